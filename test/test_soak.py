"""The fault suite in short; `make soak` runs it in full."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip('rclpy')
pytest.importorskip('image_as_imu_ros.msg')

from soak import Plan, Soak, memory_summary

PLAN = Plan(messages=1500, jumps=8, bursts=1, kills=1, frames=2000)


@pytest.mark.timeout(600)  # of a node that is started twice on a busy machine
def test_nothing_that_a_robot_does_breaks_the_node(tmp_path: Path) -> None:
    log = tmp_path / 'node.log'
    log.write_text('')
    result = Soak(PLAN, log).run()
    summary = result.summary(PLAN)
    violations = [text for text in result.violations if not text.startswith('recovery')]
    assert not violations, 'recoveries may be slow where others work, the rest must hold'
    counts = summary['counts']
    assert sum(counts[f'fuzzed {kind}'] for kind in ('image', 'info', 'exposure')) == PLAN.messages
    assert counts['accelerated frames'] == PLAN.frames
    assert counts['images received'] > 200 and counts['imu/data_raw'] > 20
    # a bad exposure counts only where it meets its image, which few do in so short a run
    assert {'bad image', 'bad camera_info', 'zero stamp'} <= set(summary['drops'])
    assert {'fuzz', 'time jump', 'burst', 'kill of the node', 'kill of the camera'} <= set(
        summary['recovery'])


def test_memory_is_judged_by_its_change() -> None:
    assert memory_summary([100.0] * 9) == {}
    flat = memory_summary([500.0] * 10 + [400.0] * 90)
    assert flat['change'] == 0.0 and flat['peak_mib'] == 500.0
    assert memory_summary([400.0] * 90 + [440.0] * 10)['change'] == pytest.approx(0.1)
