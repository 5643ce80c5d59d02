"""The real ekf_node of robot_localization, launched with our node, on a replayed pan."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('launch_ros')
pytest.importorskip('nav_msgs')

from conftest import make_blurred_sequence, write_sequence_folder  # noqa: E402
from launching import CHECKOUT, interrupt, launch  # noqa: E402
from nav_msgs.msg import Odometry  # noqa: E402
from rclpy.serialization import deserialize_message  # noqa: E402
from scipy.spatial.transform import Rotation  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402

from image_as_imu_ros.evaluation.sources.rosbag import Bag  # noqa: E402
from image_as_imu_ros.ros.conversions import stamp_to_ns  # noqa: E402
from image_as_imu_ros.ros.recorder import Recorder  # noqa: E402

LAUNCH_FILE = CHECKOUT / 'launch' / 'visual_imu_ekf.launch.py'
START_DEADLINE_S = 90.0
FRAMES = 120
TURN_HZ = 0.4
PEAK_RAD_S = 1.5
TOLERANCE = 0.05
SETTLED_S = 0.5
"""From the first estimate, until the filter has caught up with it."""

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


@pytest.fixture(scope='module')
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bag of the pan, 4 s at 30 Hz."""
    folder = tmp_path_factory.mktemp('pan')
    write_sequence_folder(folder / 'pan', make_blurred_sequence(FRAMES, 3, pan), pan)
    subprocess.run([sys.executable, '-m', 'image_as_imu_ros', 'convert', str(folder / 'pan'),
                    str(folder / 'bag')], check=True, cwd=CHECKOUT)
    return folder / 'bag'


def first_stamp_ns(bag: Path) -> int:
    """Stamp of the first image, at which the pan begins."""
    with Bag(bag) as reader:
        images = [entry for entry in reader.connections if entry.topic == '/camera/image_raw']
        connection, _, data = next(reader.messages(images))
        return stamp_to_ns(deserialize_message(data, Image).header.stamp)


def filtered(bag: Path, log: Path, *arguments: str) -> list[Odometry]:
    """Odometry of the filter over one replay, in the bag's time, at a quarter of its speed."""
    with Recorder({'/odometry/filtered': Odometry}) as recorder:
        launched = launch(
            LAUNCH_FILE, log, 'image_topic:=/camera/image_raw', 'exposure_time:=0.01',
            'estimator.threads:=1', 'use_sim_time:=true', *arguments)
        try:
            deadline = time.monotonic() + START_DEADLINE_S
            while not (recorder.node.count_subscribers('/camera/image_raw')
                       and recorder.node.count_publishers('/odometry/filtered')):
                assert launched.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            subprocess.run([sys.executable, '-m', 'image_as_imu_ros', 'play', str(bag), '--clock',
                            '--rate', '0.25', '--wait-for-subscribers', '30', '--exclude',
                            '/tf_static'], check=True, capture_output=True, cwd=CHECKOUT)
        finally:
            interrupt(launched)
        return [msg for _, msg in recorder.messages['/odometry/filtered']]


@pytest.mark.parametrize('angles, axis', MOUNTINGS.values(), ids=MOUNTINGS.keys())
def test_filter_turns_about_the_right_axis_at_the_right_rate(bag, tmp_path, angles, axis):
    pose = [f'camera_{name}:={angle}' for name, angle in zip(('roll', 'pitch', 'yaw'), angles)]
    begin_ns = first_stamp_ns(bag)
    log = tmp_path / 'launch.log'
    odometry = filtered(bag, log, 'fuse_twist:=true', *pose)
    rates, truth, covariances = [], [], []
    for msg in odometry:
        time_s = (stamp_to_ns(msg.header.stamp) - begin_ns) * 1e-9
        if SETTLED_S < time_s < FRAMES / 30 - 0.1:
            angular = msg.twist.twist.angular
            rates.append([angular.x, angular.y, angular.z])
            truth.append(np.array(axis) * pan(time_s)[1])
            covariances.append(np.reshape(msg.twist.covariance, (6, 6))[3:, 3:])
    rates, truth = np.array(rates), np.array(truth)
    assert len(rates) > 20, (len(odometry), log.read_text())
    slope = np.sum(rates * truth) / np.sum(truth ** 2)
    rms = np.sqrt(np.mean(np.sum((rates - truth) ** 2, axis=1)))
    print(f'slope {slope:.4f}, rms of the vector {rms:.3f} rad/s, '
          f'rms of the truth {np.sqrt(np.mean(np.sum(truth ** 2, axis=1))):.3f} rad/s')
    assert slope == pytest.approx(1.0, abs=TOLERANCE)
    assert rms < 0.2 * PEAK_RAD_S
    assert odometry[-1].header.frame_id == 'odom' and odometry[-1].child_frame_id == 'base_link'
    for covariance in covariances:
        eigenvalues = np.linalg.eigvalsh(covariance)
        assert 1e-6 < eigenvalues.min() and eigenvalues.max() < 1.0
    pose = odometry[-1].pose
    assert np.isfinite(pose.covariance).all() and np.linalg.eigvalsh(
        np.reshape(pose.covariance, (6, 6))).min() > 0.0
    turned = Rotation.from_quat([getattr(pose.pose.orientation, name) for name in 'xyzw'])
    end_s = (stamp_to_ns(odometry[-1].header.stamp) - begin_ns) * 1e-9
    angle = PEAK_RAD_S / (2 * np.pi * TURN_HZ) * (1 - np.cos(2 * np.pi * TURN_HZ * end_s))
    print(f'turned {np.degrees(turned.as_rotvec()).round(2)} deg, truth '
          f'{np.degrees(angle * np.array(axis)).round(2)} deg; std of the rate '
          f'{np.sqrt(np.median([np.diag(c) for c in covariances], axis=0)).round(3)} rad/s')
