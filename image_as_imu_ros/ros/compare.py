"""
Node `imu_compare`: a real IMU beside the visual one, live or from a bag.

Publishes how far the two differ and, on /diagnostics, what is wrong with the real one. Vectors
are in the axes of the real IMU's frame.
"""

from __future__ import annotations

import sys
from collections import deque
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import Vector3Stamped
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.time import Time
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import Imu

from image_as_imu_ros.errors import ConfigError
from image_as_imu_ros.evaluation.imu_health import Health, judge
from image_as_imu_ros.ros.conversions import stamp_to_ns

INPUT_DEPTH = 200
OUTPUT_DEPTH = 10
SILENCE_S = 2.0
PARAMETERS = {
    'window': (20.0, 'time over which the IMU is judged [s]; 2 to 120'),
    'diagnostics_period': (1.0, 'time between diagnostics [s]; 0.1 to 60'),
    'rotation': ([1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
                 "from the visual IMU's axes to the IMU's, by rows, as image-as-imu calibrate "
                 'finds it; the identity where the frames are the same, else TF tells it'),
}


class ImuCompare(Node):
    """
    Subscribes `imu` and `visual`; publishes `~/error`, `~/error_std` and /diagnostics.

    :raises ConfigError: if a parameter is out of range
    """

    def __init__(self, **options: Any) -> None:
        super().__init__('imu_compare', **options)
        values = {name: self.declare_parameter(name, default, ParameterDescriptor(
            description=description, read_only=True)).value
            for name, (default, description) in PARAMETERS.items()}
        if not 2.0 <= values['window'] <= 120.0:
            raise ConfigError(f'window: {values["window"]} is outside [2, 120] s')
        if not 0.1 <= values['diagnostics_period'] <= 60.0:
            raise ConfigError(
                f'diagnostics_period: {values["diagnostics_period"]} is outside [0.1, 60] s')
        self._rotation = _as_rotation(values['rotation'])
        self._rotation_is_given = not np.array_equal(self._rotation, np.eye(3))
        self._window_ns = round(values['window'] * 1e9)
        self._transforms: Any = None
        self._problems = {'imu': '', 'rotation': ''}
        self._clock = Clock(clock_type=ClockType.STEADY_TIME)
        self._heard_ns = {'imu': None, 'visual': None}
        self._imu_frame: str | None = None
        self._gyro: deque[tuple[int, float, float, float]] = deque()
        self._waiting: deque[Imu] = deque(maxlen=100)
        self._camera: deque[tuple[int, np.ndarray, np.ndarray]] = deque()
        self._error_publisher = self.create_publisher(Vector3Stamped, '~/error', OUTPUT_DEPTH)
        self._deviation_publisher = self.create_publisher(Vector3Stamped, '~/error_std',
                                                          OUTPUT_DEPTH)
        self._diagnostics_publisher = self.create_publisher(DiagnosticArray, '/diagnostics',
                                                            OUTPUT_DEPTH)
        quality = QoSProfile(depth=INPUT_DEPTH, reliability=ReliabilityPolicy.BEST_EFFORT)
        self.create_subscription(Imu, 'imu', self._on_imu, quality)
        self.create_subscription(Imu, 'visual', self._on_visual, quality)
        self.create_timer(values['diagnostics_period'], self._report, clock=self._clock)

    def _on_imu(self, msg: Imu) -> None:
        self._heard_ns['imu'] = self._clock.now().nanoseconds
        stamp_ns = stamp_to_ns(msg.header.stamp)
        if msg.angular_velocity_covariance[0] == -1.0:
            self._problems['imu'] = (
                'the IMU says that it has no angular velocity (covariance[0] is -1)')
            return
        self._problems['imu'] = ''
        if self._gyro and stamp_ns <= self._gyro[-1][0]:
            if self._gyro[-1][0] - stamp_ns < self._window_ns / 10:
                return  # repeated or a little out of order
            self._gyro.clear()  # time jumped back, as when a bag loops
            self._waiting.clear()
            self._camera.clear()
        self._imu_frame = msg.header.frame_id
        self._gyro.append((stamp_ns, *_vector(msg)))
        while self._gyro[-1][0] - self._gyro[0][0] > self._window_ns:
            self._gyro.popleft()
        while self._waiting and stamp_to_ns(self._waiting[0].header.stamp) <= stamp_ns:
            self._compare(self._waiting.popleft())

    def _on_visual(self, msg: Imu) -> None:
        self._heard_ns['visual'] = self._clock.now().nanoseconds
        if self._gyro and stamp_to_ns(msg.header.stamp) <= self._gyro[-1][0]:
            self._compare(msg)
        else:
            self._waiting.append(msg)

    def _compare(self, msg: Imu) -> None:
        """Turn a visual rate into the IMU's axes, keep it and publish its difference."""
        stamp_ns = stamp_to_ns(msg.header.stamp)
        if self._camera and stamp_ns <= self._camera[-1][0]:
            return
        rotation = self._rotation_from(msg)
        if rotation is None:
            return
        rate = rotation @ _vector(msg)
        covariance = np.array(msg.angular_velocity_covariance).reshape(3, 3)
        covariance = rotation @ covariance @ rotation.T
        self._camera.append((stamp_ns, rate, covariance))
        while self._camera[0][0] < stamp_ns - self._window_ns:
            self._camera.popleft()
        newest = next((index for index in range(len(self._gyro) - 1, -1, -1)
                       if self._gyro[index][0] <= stamp_ns), None)
        if newest is None:
            return
        around = np.array([self._gyro[newest], self._gyro[min(newest + 1, len(self._gyro) - 1)]])
        times_s = (around[:, 0] - stamp_ns) * 1e-9
        reading = np.array([np.interp(0.0, times_s, axis) for axis in around[:, 1:].T])
        if np.isfinite(reading).all():
            self._publish(self._error_publisher, msg, rate - reading)
            self._publish(self._deviation_publisher, msg, np.sqrt(np.diagonal(covariance)))

    def _rotation_from(self, msg: Imu) -> np.ndarray | None:
        """Rotation (3, 3) from the axes of a visual message to the IMU's; None if unknown."""
        source, target = msg.header.frame_id, self._imu_frame
        if self._rotation_is_given or source == target:
            return self._rotation
        self._problems['rotation'] = (
            f'no rotation from {source} to {target}: publish the static transform, or set the '
            'parameter rotation; image-as-imu calibrate finds it')
        if self._transforms is None:
            try:
                from tf2_ros import Buffer, TransformListener
            except ImportError:
                return None
            self._transforms = Buffer()
            self._listener = TransformListener(self._transforms, self)
        from tf2_ros import TransformException
        try:
            transform = self._transforms.lookup_transform(target, source, Time())
        except TransformException:
            return None
        self._problems['rotation'] = ''
        q = transform.transform.rotation
        return Rotation.from_quat([q.x, q.y, q.z, q.w]).as_matrix()

    def _publish(self, publisher: Any, msg: Imu, values: np.ndarray) -> None:
        out = Vector3Stamped()
        out.header.stamp, out.header.frame_id = msg.header.stamp, self._imu_frame or ''
        out.vector.x, out.vector.y, out.vector.z = map(float, values)
        publisher.publish(out)

    def _report(self) -> None:
        """Judge what is in the window and publish it."""
        now_ns = self._clock.now().nanoseconds
        silent = [name for name, heard_ns in self._heard_ns.items()
                  if heard_ns is None or now_ns - heard_ns > SILENCE_S * 1e9]
        gyro = np.array(self._gyro).reshape(-1, 4)
        stamps_ns = np.array([row[0] for row in self._gyro], dtype=np.int64)
        health = judge(
            stamps_ns, gyro[:, 1:], np.array([row[0] for row in self._camera], dtype=np.int64),
            np.array([row[1] for row in self._camera]).reshape(-1, 3),
            np.array([row[2] for row in self._camera]).reshape(-1, 3, 3))
        level, message = DiagnosticStatus.OK, health.summary
        if silent:
            topics = ' and '.join(self.resolve_topic_name(name) for name in silent)
            level, message = DiagnosticStatus.STALE, f'nothing arrives on {topics}'
        elif any(self._problems.values()):
            level, message = DiagnosticStatus.ERROR, '; '.join(filter(
                None, self._problems.values()))
        elif health.faults:
            level = DiagnosticStatus.WARN
        status = DiagnosticStatus(
            level=level, name='imu_compare: IMU against camera', message=message,
            hardware_id=self._imu_frame or '',
            values=[KeyValue(key=key, value=value) for key, value in _values(health).items()])
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics_publisher.publish(array)


def _vector(msg: Imu) -> tuple[float, float, float]:
    return msg.angular_velocity.x, msg.angular_velocity.y, msg.angular_velocity.z


def _as_rotation(values: list[float]) -> np.ndarray:
    """
    Nine numbers as a rotation, (3, 3).

    :raises ConfigError: if they are none
    """
    rotation = np.array(values)
    if rotation.size == 9:
        rotation = rotation.reshape(3, 3)
        if np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) and \
                np.linalg.det(rotation) > 0.0:
            return rotation
    raise ConfigError(f'rotation: {list(values)} is not a rotation matrix by rows')


def _values(health: Health) -> dict[str, str]:
    """Every line of the report."""
    values = {f'fault: {kind}': text for kind, text in health.faults.items()}
    values['compared'] = str(health.compared)
    for name, vector in (('error rms [rad/s]', health.error_rms_rad_s), ('scale', health.scale),
                         ('bias [rad/s]', health.bias_rad_s)):
        values |= {f'{name} {axis}': f'{value:.3f}' for axis, value in zip('xyz', vector)}
    return values | {'time offset [ms]': f'{1e3 * health.time_offset_s:.1f}'}


def main(args: list[str] | None = None) -> int:
    """
    Run the node until it is interrupted.

    :returns: exit status: 0, or 1 if a parameter is refused
    """
    rclpy.init(args=args)
    node = None
    try:
        node = ImuCompare()
        rclpy.spin(node)
    except (ParameterException, ConfigError) as error:
        rclpy.logging.get_logger('imu_compare').fatal(' '.join(str(error).split()))
        return 1
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == '__main__':
    sys.exit(main())
