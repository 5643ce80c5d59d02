"""Launch files of replay and stereo, for real where launch_ros is installed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip('rclpy')
pytest.importorskip('image_as_imu_ros.msg')

from launching import CHECKOUT, interrupt, launch, needs_launch  # noqa: E402
from sensor_msgs.msg import Imu  # noqa: E402

from image_as_imu_ros.ros.conversions import stamp_to_ns  # noqa: E402
from image_as_imu_ros.ros.recorder import Recorder  # noqa: E402

pytestmark = needs_launch
DEADLINE_S = 150.0


@pytest.fixture
def bag(sequence_folder: Path, tmp_path: Path) -> Path:
    """Bag of 24 images and a gyroscope."""
    subprocess.run([sys.executable, '-m', 'image_as_imu_ros', 'convert', str(sequence_folder),
                    str(tmp_path / 'bag')], check=True, cwd=CHECKOUT, capture_output=True)
    return tmp_path / 'bag'


def test_a_replay_runs_in_the_bags_time_and_ends_with_it(bag, tmp_path):
    log = tmp_path / 'launch.log'
    compare = str((CHECKOUT / 'scripts' / 'imu_compare').is_file()).lower()
    with Recorder({'/visual_imu/imu/data_raw': Imu, '/imu/data': Imu}) as recorder:
        launched = launch(CHECKOUT / 'launch' / 'replay.launch.py', log, f'bag:={bag}',
                          'lossless:=true', 'use_exposure_topic:=true', 'output_frame:=imu_link',
                          'camera_pose:=0 0 0 0 0 0', 'estimator.threads:=1',
                          f'compare:={compare}')
        try:
            status = launched.wait(timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            interrupt(launched)
            pytest.fail(log.read_text())
        ours, theirs = (
            [message for _, message in messages] for messages in recorder.messages.values())
    assert status == 0, log.read_text()
    assert 'messages published' in log.read_text()
    assert len(ours) >= 20 and len(theirs) > 100, log.read_text()
    assert {message.header.frame_id for message in ours} == {'imu_link'}
    begin_ns, end_ns = (stamp_to_ns(theirs[index].header.stamp) for index in (0, -1))
    assert all(begin_ns <= stamp_to_ns(message.header.stamp) <= end_ns for message in ours)


def test_stereo_starts_a_node_per_camera_each_on_its_own_topics(tmp_path):
    log = tmp_path / 'launch.log'
    topics = {'/left/image_raw', '/left/camera_info', '/right/image_raw', '/right/camera_info'}
    wanted = {('visual_imu', '/left'), ('visual_imu', '/right')}
    with Recorder({}) as recorder:
        launched = launch(CHECKOUT / 'launch' / 'stereo.launch.py', log, 'exposure_time:=0.01',
                          'estimator.threads:=1')
        try:
            deadline = time.monotonic() + DEADLINE_S
            # what listens may be known before the node that it is part of
            while not (all(map(recorder.node.count_subscribers, topics))
                       and wanted <= set(recorder.node.get_node_names_and_namespaces())):
                assert launched.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            assert recorder.node.count_publishers('/left/visual_imu/imu/data_raw') == 1
            assert recorder.node.count_publishers('/right/visual_imu/imu/data_raw') == 1
        finally:
            status = interrupt(launched)
    assert status == 0, log.read_text()
