"""The pages in docs/ agree with the code, with the running node and with each other."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
PAGES = sorted([*(CHECKOUT / 'docs').glob('*.md'), CHECKOUT / 'QUALITY_DECLARATION.md',
                CHECKOUT / 'CONTRIBUTING.md'])
EVIDENCE = {'Apache-2.0': 'apache', 'BSD-2-Clause': 'redistribution and use|bsd', 'MIT': 'mit',
            'BSD-3-Clause': 'bsd', 'MPL-2.0 AND MIT': 'mpl-2.0 and mit',
            'MIT OR Apache-2.0': 'mit or apache-2.0', 'LGPL-3.0-or-later': 'lesser general public',
            'GPL-3.0-only': 'gplv3', 'PSF-based, BSD-compatible': 'python software foundation'}
"""What the metadata of a package under a licence says in any case, a regular expression."""

LIVE_TOPICS = {'/clock', '/parameter_events', '/rosout'}
"""Of every node."""

specification = importlib.util.spec_from_file_location('generate', CHECKOUT / 'docs/generate.py')
generate = importlib.util.module_from_spec(specification)
specification.loader.exec_module(generate)


def anchors(page: Path) -> set[str]:
    """Sections of a page, as links name them."""
    return {re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-')
            for title in re.findall(r'^#+ (.+)$', page.read_text(), re.M)}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r'\]\(([^)#:]*)(?:#([^)]+))?\)', page.read_text()):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f'{target}#{anchor}'


def test_every_page_is_in_the_index() -> None:
    linked = set(re.findall(r'\]\(([\w.]+\.md)', (CHECKOUT / 'docs/index.md').read_text()))
    assert {path.name for path in (CHECKOUT / 'docs').glob('*.md')} - linked == {'index.md'}


def test_the_reference_is_that_of_the_code() -> None:
    assert generate.REFERENCE.read_text() == generate.reference(), 'run `make docs`'


def test_the_licences_are_those_of_the_dependencies() -> None:
    text = generate.SECURITY.read_text()
    assert text == generate.with_licences(text), 'run `make docs`'
    names = {name for name, _ in generate.dependencies()}
    assert names == set(generate.LICENCES)
    for name in names:
        stated = generate.stated_licence(name)
        if stated is not None:
            assert re.search(EVIDENCE[generate.LICENCES[name]], stated.lower()), name


def test_every_cause_of_a_drop_is_explained() -> None:
    pytest.importorskip('rclpy')
    from image_as_imu_ros.ros.diagnostics import DropCause
    assert [cause.value for cause in DropCause] == list(generate.CAUSES)


def documented_values() -> set[str]:
    """Keys of the diagnostics that the reference explains, lists written out."""
    keys = set()
    for text in generate.DIAGNOSTICS:
        match = re.fullmatch(r'(\w+) (\w+(?:, \w+)+)( \[.+\])?', text)
        if match is None:
            keys.add(text)
            continue
        keys |= {f'{match[1]} {part}{match[3] or ""}' for part in match[2].split(', ')}
    keys.remove('dropped: CAUSE')
    return keys | {f'dropped: {cause}' for cause in generate.CAUSES}


def test_topics_and_diagnostics_are_those_of_the_running_node(blurred_sequence) -> None:
    pytest.importorskip('rclpy')
    pytest.importorskip('image_as_imu_ros.msg')
    from test_node import Rig, activate
    topics = {}
    for transport in ('raw', 'compressed'):
        compressed = transport == 'compressed'
        rig = Rig(blurred_sequence, compressed, image_transport=transport,
                  use_exposure_topic=True, use_depth_topic=True,
                  **{'stream.exposure_mode': 'estimate'})
        with rig as peer:
            activate(peer)
            if not compressed:
                for _ in range(3):
                    peer.send()
                peer.wait(lambda: float(peer.value('output rate [Hz]')) > 0, 'a rate')  # noqa: B023
                values = {pair.key for pair in peer.status.values}
            for kind, found in (
                    ('subscribed', rig.node.get_subscriber_names_and_types_by_node),
                    ('published', rig.node.get_publisher_names_and_types_by_node)):
                topics.setdefault(kind, {}).update(dict(found('visual_imu', '/')))
    listed = {'subscribed': generate.SUBSCRIBED, 'published': generate.PUBLISHED}
    for kind, rows in listed.items():
        expected = {}
        for name, message_type, _ in rows:
            full = name.replace('~', '/visual_imu')
            expected[full if full.startswith('/') else f'/{full}'] = [message_type]
        lively = {name for name in topics[kind]
                  if name in LIVE_TOPICS or name.endswith('/transition_event')}
        assert {name: types for name, types in topics[kind].items()
                if name not in lively} == expected
    assert values == documented_values()
