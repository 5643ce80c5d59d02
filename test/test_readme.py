"""The README agrees with the code that it describes."""

from __future__ import annotations

import re
from pathlib import Path

from image_as_imu_ros.cli.main import VERBS
from image_as_imu_ros.config import parameter_table

CHECKOUT = Path(__file__).resolve().parents[1]
README = (CHECKOUT / 'README.md').read_text()


def test_parameter_table_is_that_of_the_config() -> None:
    begin = README.index('| parameter | default | meaning |')
    assert README[begin:README.index('\n\n', begin) + 1] == parameter_table(), \
        'paste what config.parameter_table() returns'


def test_every_verb_has_an_example() -> None:
    assert set(re.findall(r'^\| `image-as-imu ([\w-]+)', README, re.M)) == set(VERBS)


def test_linked_files_exist() -> None:
    links = re.findall(r'\]\(([^)#:]+)\)', README)
    assert links and not [link for link in links if not (CHECKOUT / link).exists()]


def test_linked_sections_exist() -> None:
    anchors = {re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-')
               for title in re.findall(r'^#+ (.+)$', README, re.M)}
    links = re.findall(r'\]\(#([^)]+)\)', README)
    assert links and not set(links) - anchors
