"""The node imu_compare over real DDS: the running error, and faults by their names."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

pytest.importorskip('rclpy')

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import Vector3Stamped
from rclpy.context import Context
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Imu
from spinning import Spinner

from image_as_imu_ros.errors import ConfigError
from image_as_imu_ros.ros.compare import ImuCompare
from image_as_imu_ros.ros.conversions import ns_to_stamp
from image_as_imu_ros.synthesis.trajectory import Trajectory

START_NS = 1_700_000_000_000_000_000
DEADLINE_S = 60.0
DURATION_S = 3.0
MOUNTED = [0.0, -1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, -1.0]


class Rig:
    """The node, and a peer with both IMUs that listens to it."""

    def __init__(self, **parameters: object) -> None:
        self.context = Context()
        rclpy.init(context=self.context)
        self.node = ImuCompare(context=self.context, parameter_overrides=[
            Parameter(name, value=value) for name, value in
            {'diagnostics_period': 0.5, **parameters}.items()])
        self.peer = rclpy.create_node('peer', context=self.context)
        self.errors: list[Vector3Stamped] = []
        self.deviations: list[Vector3Stamped] = []
        self.statuses: list[DiagnosticStatus] = []
        quality = QoSProfile(depth=1000)
        self.imu = self.peer.create_publisher(Imu, 'imu', quality)
        self.visual = self.peer.create_publisher(Imu, 'visual', quality)
        self.peer.create_subscription(
            Vector3Stamped, 'imu_compare/error', self.errors.append, quality)
        self.peer.create_subscription(
            Vector3Stamped, 'imu_compare/error_std', self.deviations.append, quality)
        self.peer.create_subscription(
            DiagnosticArray, '/diagnostics', lambda msg: self.statuses.extend(msg.status), quality)
        self._spinners = [Spinner(node, self.context) for node in (self.node, self.peer)]
        self.wait(lambda: self.imu.get_subscription_count()
                  and self.visual.get_subscription_count()
                  and self.node.count_subscribers('/imu_compare/error'))

    def wait(self, condition: Callable[[], object]) -> None:
        """Until the condition holds."""
        end_s = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end_s, 'waited in vain'
            time.sleep(0.005)

    def close(self) -> None:
        """End both."""
        for spinner in self._spinners:
            spinner.stop()
        self.node.destroy_node()
        self.peer.destroy_node()
        self.context.try_shutdown()

    def drive(self, distort: Callable[[np.ndarray], np.ndarray], imu_frame: str) -> None:
        """Play some seconds, the IMU 100 Hz and a little ahead, as fast as they are answered."""
        rng = np.random.default_rng(0)
        trajectory = Trajectory.hand_shake(1, DURATION_S)
        imu_s = np.arange(0.0, DURATION_S, 0.01)
        readings = distort(trajectory.angular_velocity_rad_s(imu_s))
        camera_s = np.arange(0.1, DURATION_S - 0.1, 1 / 30)
        rates = trajectory.angular_velocity_rad_s(camera_s) \
            + 0.2 * rng.standard_normal((len(camera_s), 3))
        sent = 0
        for time_s, rate in zip(camera_s, rates):
            while imu_s[sent] < time_s + 0.02:
                self.imu.publish(message(imu_s[sent], readings[sent], 0.01, imu_frame))
                sent += 1
            before = len(self.deviations)
            self.visual.publish(message(time_s, rate, 0.2, 'camera_optical_frame'))
            self.wait(lambda before=before: len(self.deviations) > before)

    def last_status(self) -> DiagnosticStatus:
        """The next but one report: made after what was sent."""
        count = len(self.statuses) + 2
        self.wait(lambda: len(self.statuses) >= count)
        return self.statuses[-1]


def message(time_s: float, rate: np.ndarray, sigma: float, frame: str) -> Imu:
    """An Imu message with a diagonal covariance."""
    msg = Imu()
    msg.header.stamp = ns_to_stamp(START_NS + round(float(time_s) * 1e9))
    msg.header.frame_id = frame
    msg.angular_velocity.x, msg.angular_velocity.y, msg.angular_velocity.z = map(float, rate)
    msg.angular_velocity_covariance = (sigma ** 2 * np.eye(3)).ravel()
    return msg


@pytest.fixture
def rig() -> Iterator[Callable[..., Rig]]:
    """Make rigs that end with the test."""
    made: list[Rig] = []

    def make(**parameters: object) -> Rig:
        made.append(Rig(**parameters))
        return made[-1]
    yield make
    for one in made:
        one.close()


def test_sound_imu_is_ok_and_its_error_is_told(rig):
    rotation = np.array(MOUNTED).reshape(3, 3)
    one = rig(rotation=MOUNTED)
    one.drive(lambda rates: rates @ rotation.T + [0.0, 0.02, 0.0], 'chip')
    status = one.last_status()
    assert (status.level, status.message) == (DiagnosticStatus.OK, 'ok')
    values = {value.key: value.value for value in status.values}
    assert float(values['compared']) > 50 and 0.1 < float(values['error rms [rad/s] x']) < 0.3
    errors = np.array([[e.vector.x, e.vector.y, e.vector.z] for e in one.errors])
    assert len(errors) > 75 and one.errors[0].header.frame_id == 'chip'
    np.testing.assert_allclose(errors.std(axis=0), 0.2, atol=0.05)
    np.testing.assert_allclose(one.deviations[0].vector.y, 0.2, atol=1e-9)


def test_flipped_axis_is_named(rig):
    one = rig()
    one.drive(lambda rates: rates * [1.0, 1.0, -1.0], 'camera_optical_frame')
    status = one.last_status()
    assert status.level == DiagnosticStatus.WARN
    assert status.message == 'axes are flipped: z carries -z'
    assert 'fault: axes' in {value.key for value in status.values}


def test_silence_and_unknown_mounting_are_told(rig):
    one = rig()
    status = one.last_status()
    assert status.level == DiagnosticStatus.STALE and 'nothing arrives on /imu and /visual' in \
        status.message
    one.visual.publish(message(0.1, np.ones(3), 0.2, 'camera_optical_frame'))
    for time_s in (0.0, 0.1, 0.2):
        one.imu.publish(message(time_s, np.ones(3), 0.01, 'chip'))
    one.wait(lambda: one.statuses[-1].level == DiagnosticStatus.ERROR)
    assert 'no rotation from camera_optical_frame to chip' in one.statuses[-1].message
    assert not one.errors


@pytest.mark.parametrize(('parameters', 'text'), [
    ({'window': 0.1}, 'window: 0.1 is outside'),
    ({'rotation': [1.0, 0.0]}, 'is not a rotation matrix'),
    ({'rotation': [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0]}, 'is not a rotation matrix')])
def test_bad_parameters_are_refused(parameters, text):
    context = Context()
    rclpy.init(context=context)
    with pytest.raises(ConfigError, match=text):
        ImuCompare(context=context, parameter_overrides=[
            Parameter(name, value=value) for name, value in parameters.items()])
    context.try_shutdown()
