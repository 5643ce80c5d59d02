"""The real ekf_node of robot_localization, launched with our node, on a replayed pan."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy')
pytest.importorskip('launch_ros')
pytest.importorskip('nav_msgs')

from conftest import (  # noqa: E402
    BlurredSequence,
    frames_of,
    make_blurred_sequence,
    write_sequence_folder,
)
from geometry_msgs.msg import TwistWithCovarianceStamped  # noqa: E402
from launching import CHECKOUT, interrupt, launch  # noqa: E402
from nav_msgs.msg import Odometry  # noqa: E402
from rclpy.duration import Duration  # noqa: E402
from rclpy.serialization import deserialize_message  # noqa: E402
from rosgraph_msgs.msg import Clock  # noqa: E402
from scipy.spatial.transform import Rotation  # noqa: E402
from sensor_msgs.msg import Image, Imu  # noqa: E402

from image_as_imu_ros.config import EstimatorConfig  # noqa: E402
from image_as_imu_ros.estimator import VisualGyroscope  # noqa: E402
from image_as_imu_ros.evaluation.sources.rosbag import Bag  # noqa: E402
from image_as_imu_ros.ros.conversions import (  # noqa: E402
    imu_to_msg,
    ns_to_stamp,
    stamp_to_ns,
    twist_to_msg,
)
from image_as_imu_ros.ros.recorder import Recorder  # noqa: E402
from image_as_imu_ros.ros.replay import IMU_TOPIC, MOTION_TOPIC, TOPICS  # noqa: E402
from image_as_imu_ros.stream import StreamEstimator  # noqa: E402
from image_as_imu_ros.types import MotionEstimate  # noqa: E402

VERB = [sys.executable, '-m', 'image_as_imu_ros']
ODOMETRY_TOPIC = '/odometry/filtered'
LAUNCH_FILE = CHECKOUT / 'launch' / 'visual_imu_ekf.launch.py'
START_DEADLINE_S = 90.0
FRAMES = 120
LATENCY_S = 0.05
"""From mid-exposure to the message, as of the node on two cores."""
FRAME_ID = 'camera_optical_frame'
TURN_HZ = 0.4
PEAK_RAD_S = 1.5
TOLERANCE = 0.05
SETTLED_S = 0.5
"""From the first estimate, until the filter has caught up with it."""
HEADING_LAG_S = 0.5 / 30
"""The filter turns by the rate at the last image until the next one."""

# roll, pitch, yaw of the camera's body, and the robot's axis about which its pan turns the robot:
# the camera's own down axis, in the robot's axes.
MOUNTINGS = {
    'forward': ((0.0, 0.0, 0.0), (0.0, 0.0, -1.0)),
    'looking left': ((0.0, 0.0, np.pi / 2), (0.0, 0.0, -1.0)),
    'on its right side': ((np.pi / 2, 0.0, 0.0), (0.0, 1.0, 0.0)),
    'upside down': ((np.pi, 0.0, 0.0), (0.0, 0.0, 1.0)),
}


def ekf_node() -> Path | None:
    """Executable in one of the prefixes of AMENT_PREFIX_PATH."""
    for prefix in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep):
        path = Path(prefix) / 'lib' / 'robot_localization' / 'ekf_node'
        if path.is_file():
            return path
    return None


pytestmark = pytest.mark.skipif(
    ekf_node() is None, reason='robot_localization is not in AMENT_PREFIX_PATH; source its setup')


def pan(time_s: float) -> np.ndarray:
    """Rate of the camera about its down axis, (3,) rad/s: to and fro, from standstill."""
    return np.array([0.0, PEAK_RAD_S * np.sin(2 * np.pi * TURN_HZ * time_s), 0.0])


def heading(time_s: float) -> float:
    """Angle that the camera has turned through since the start, rad."""
    return PEAK_RAD_S / (2 * np.pi * TURN_HZ) * (1 - np.cos(2 * np.pi * TURN_HZ * time_s))


@pytest.fixture(scope='module')
def sequence() -> BlurredSequence:
    """The pan, 4 s at 30 Hz."""
    return make_blurred_sequence(FRAMES, 3, pan)


@pytest.fixture(scope='module')
def estimates(sequence) -> list[MotionEstimate]:
    """What the stream makes of it, in time order."""
    stream = StreamEstimator(VisualGyroscope(EstimatorConfig(device='cpu', threads=1)))
    return [stream.process(frame) for frame in frames_of(sequence)]


@pytest.fixture(scope='module')
def bag(sequence, tmp_path_factory) -> Path:
    """The pan as a bag with the topics of `image-as-imu convert`."""
    folder = tmp_path_factory.mktemp('pan')
    write_sequence_folder(folder / 'pan', sequence, pan)
    subprocess.run([*VERB, 'convert', str(folder / 'pan'), str(folder / 'bag')], check=True,
                   cwd=CHECKOUT, capture_output=True)
    return folder / 'bag'


def wait_until(condition: Callable[[], object], process: subprocess.Popen, log: Path) -> None:
    """While the launch file and all of its nodes run, and not for ever."""
    deadline = time.monotonic() + START_DEADLINE_S
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        assert 'has died' not in log.read_text(), log.read_text()
        time.sleep(0.1)


@contextlib.contextmanager
def launched(recorder: Recorder, log: Path, *arguments: str) -> Iterator[None]:
    """The launch file, once the filter runs, until the end of the block."""
    process = launch(LAUNCH_FILE, log, f'image_topic:={TOPICS["image"]}', 'exposure_time:=0.01',
                     'estimator.threads:=1', *arguments)
    try:
        wait_until(lambda: recorder.node.count_publishers(ODOMETRY_TOPIC)
                   and recorder.node.count_publishers('/tf_static'), process, log)
        yield
    finally:
        interrupt(process)


def say(node: rclpy.node.Node, estimates: list[MotionEstimate]) -> int:
    """Publish the estimates as `visual_imu` does, as late as it does; when they began, in ns."""
    imus = node.create_publisher(Imu, IMU_TOPIC, 10)
    twists = node.create_publisher(TwistWithCovarianceStamped, '/visual_imu/twist', 10)
    while not (imus.get_subscription_count() >= 1 and twists.get_subscription_count() >= 1):
        time.sleep(0.05)
    begin_ns = time.time_ns()
    for estimate in estimates:
        if estimate.usable:
            late = replace(estimate, stamp_ns=estimate.stamp_ns + begin_ns)
            time.sleep(max(0.0, (late.stamp_ns - time.time_ns()) * 1e-9 + LATENCY_S))
            imus.publish(imu_to_msg(late, FRAME_ID))
            twists.publish(twist_to_msg(late, FRAME_ID))
    assert imus.wait_for_all_acked(Duration(seconds=10))
    time.sleep(0.2)  # the filter's own period, several times over
    return begin_ns


def judge(odometry: list[Odometry], begin_ns: int, axis: tuple[float, ...]) -> None:
    """Compare the filter's odometry with the pan."""
    rates, truth, covariances, headings, poses = [], [], [], [], []
    for msg in odometry:
        time_s = (stamp_to_ns(msg.header.stamp) - begin_ns) * 1e-9
        if SETTLED_S < time_s < FRAMES / 30 - 0.1:
            headings.append(heading(time_s - HEADING_LAG_S))
            poses.append(msg.pose)
            angular = msg.twist.twist.angular
            rates.append([angular.x, angular.y, angular.z])
            truth.append(np.array(axis) * pan(time_s)[1])
            covariances.append(np.reshape(msg.twist.covariance, (6, 6))[3:, 3:])
    rates, truth = np.array(rates), np.array(truth)
    assert len(rates) > 10, len(odometry)
    slope = np.sum(rates * truth) / np.sum(truth ** 2)
    rms = np.sqrt(np.mean(np.sum((rates - truth) ** 2, axis=1)))
    begin, end = (Rotation.from_quat([getattr(pose.pose.orientation, name) for name in 'xyzw'])
                  for pose in (poses[0], poses[-1]))
    turned, angle = (begin.inv() * end).as_rotvec(), headings[-1] - headings[0]
    stds = np.sqrt(np.median([np.diag(each) for each in covariances], axis=0))
    print(f'{len(rates)} messages: slope {slope:.4f}, rms {rms:.3f} of '
          f'{np.sqrt(np.mean(np.sum(truth ** 2, axis=1))):.3f} rad/s, stds {stds.round(3)}; '
          f'turned {np.degrees(turned).round(2)} deg, truth '
          f'{np.degrees(angle * np.array(axis)).round(2)}')
    assert slope == pytest.approx(1.0, abs=TOLERANCE)
    assert rms < 0.2 * PEAK_RAD_S
    np.testing.assert_allclose(turned, angle * np.array(axis), atol=0.6 * TOLERANCE)
    assert odometry[-1].header.frame_id == 'odom' and odometry[-1].child_frame_id == 'base_link'
    for covariance in covariances:
        eigenvalues = np.linalg.eigvalsh(covariance)
        assert 1e-6 < eigenvalues.min() and eigenvalues.max() < 1.0
    whole = np.reshape(poses[-1].covariance, (6, 6))
    assert np.isfinite(whole).all() and np.linalg.eigvalsh(whole).min() > 0.0


@pytest.mark.parametrize('name, arguments', [
    ('stereo', ['ekf:=true', 'cameras:=left']), ('visual_imu_ekf', [])])
def test_filter_outlives_the_first_ticks_of_a_simulated_clock(tmp_path, name, arguments):
    log = tmp_path / 'launch.log'
    with Recorder({}) as recorder:
        clock = recorder.node.create_publisher(Clock, '/clock', 10)
        process = launch(CHECKOUT / 'launch' / f'{name}.launch.py', log, 'use_sim_time:=true',
                         'autostart:=false', *arguments)
        try:
            wait_until(lambda: clock.get_subscription_count() >= 1
                       and recorder.node.count_publishers(ODOMETRY_TOPIC), process, log)
            for tick in range(60):
                time.sleep(0.02)
                clock.publish(Clock(clock=ns_to_stamp(20_000_000 * tick)))
            wait_until(lambda: recorder.node.count_publishers(ODOMETRY_TOPIC), process, log)
        finally:
            interrupt(process)
    assert not any('ekf_node' in line and 'has died' in line
                   for line in log.read_text().splitlines()), log.read_text()


def camera_pose(angles: tuple[float, ...]) -> list[str]:
    """Launch arguments of a mounting."""
    return [f'camera_{name}:={angle}' for name, angle in zip(('roll', 'pitch', 'yaw'), angles)]


def test_filter_follows_estimates_that_come_late(estimates, tmp_path):
    """In the time of the wall clock, with the filter's history."""
    angles, axis = MOUNTINGS['forward']
    with Recorder({ODOMETRY_TOPIC: Odometry}) as recorder:
        with launched(recorder, tmp_path / 'launch.log', 'autostart:=false',
                      *camera_pose(angles)):
            begin_ns = say(recorder.node, estimates)
        odometry = [msg for _, msg in recorder.messages[ODOMETRY_TOPIC]]
    judge(odometry, begin_ns, axis)


@pytest.mark.timeout(900)  # for a machine that others use too
@pytest.mark.parametrize('angles, axis', MOUNTINGS.values(), ids=MOUNTINGS.keys())
def test_filter_follows_a_replayed_bag(bag, tmp_path, angles, axis):
    """Images in, odometry out, in the bag's time, which waits for the node."""
    log = tmp_path / 'launch.log'
    with Recorder({ODOMETRY_TOPIC: Odometry, IMU_TOPIC: Imu}) as recorder:
        with launched(recorder, log, 'use_sim_time:=true', *camera_pose(angles)):
            played = subprocess.run(
                [*VERB, 'play', str(bag), '--rate', '0.5', '--clock', '--answers', MOTION_TOPIC,
                 '--exclude', '/tf_static', '--wait-for-subscribers', str(START_DEADLINE_S)],
                cwd=CHECKOUT, capture_output=True, text=True, check=False)
            assert played.returncode == 0, played.stderr + log.read_text()
            assert ', 0 images unanswered' in played.stdout, played.stderr + log.read_text()
        odometry, imus = ([msg for _, msg in recorder.messages[topic]]
                          for topic in (ODOMETRY_TOPIC, IMU_TOPIC))
    assert len(imus) >= FRAMES - 1, log.read_text()  # the first image alone tells no sign
    # the filter may take in several at once
    assert len(odometry) >= 0.75 * FRAMES, log.read_text()
    with Bag(bag) as reader:
        images = [entry for entry in reader.connections if entry.topic == TOPICS['image']]
        first = deserialize_message(next(reader.messages(images))[2], Image)
    judge(odometry, stamp_to_ns(first.header.stamp), axis)
