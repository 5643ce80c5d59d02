"""
Where the camera sits: transforms from TF, by tf2_ros or by its messages, or from parameters.

Poses are told as people measure them: of the camera's body axes (x forward, y left, z up), as
x y z roll pitch yaw. A camera's images have optical axes (x right, y down, z forward; REP-103).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from geometry_msgs.msg import Quaternion, Transform, TransformStamped, Vector3
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.time import Time
from scipy.spatial.transform import Rotation

from image_as_imu_ros.config import camera_pose_values
from image_as_imu_ros.errors import ConfigError, SynchronizationError
from image_as_imu_ros.ros.conversions import stamp_to_ns

OPTICAL_IN_BODY = Rotation.from_euler('xyz', [-np.pi / 2, 0.0, -np.pi / 2])
"""Optical axes of a camera in its body axes."""

DYNAMIC_DEPTH = 100
STATIC_DEPTH = 1000
"""Queue depths of /tf and /tf_static, as tf2_ros has them; static ones hold on to all."""

HISTORY_NS = 10_000_000_000
"""How long a moving transform is remembered."""


class TransformSource(Protocol):
    """Tells how frames lie to each other."""

    def lookup(self, target: str, source: str, stamp_ns: int) -> Transform:
        """
        Transform of points from the source frame to the target frame.

        :raises SynchronizationError: if it is not known at that time
        """

    def close(self) -> None:
        """Let go of subscriptions."""


def open_transforms(node: Node, target: str, camera_pose: str) -> TransformSource:
    """
    Choose where transforms come from, first match: the pose given, tf2_ros, TF's messages.

    :param target: frame that they lead to
    :param camera_pose: of the camera in it, `x y z roll pitch yaw` in m and rad, or empty
    :raises ConfigError: if the pose is not of this form, or if there is none and neither tf2_ros
        nor tf2_msgs is installed
    """
    if camera_pose:
        return GivenTransform(target, optical_transform(*camera_pose_values(camera_pose)))
    try:
        return Tf2Transforms(node)
    except ImportError:
        pass
    try:
        return MessageTransforms(node)
    except ImportError as error:
        raise ConfigError(
            f'output_frame "{target}" needs tf2_ros or tf2_msgs, and neither is installed; '
            'install one, or tell the mounting by camera_pose:="x y z roll pitch yaw"') from error


def optical_transform(x: float, y: float, z: float, roll: float, pitch: float,
                      yaw: float) -> Transform:
    """
    Transform from a camera's optical frame to the frame that its pose is told in.

    :param x, y, z: place of the camera, m
    :param roll, pitch, yaw: about the fixed x, y and z axes in this order, rad; zero: it looks
        along x, upright
    """
    qx, qy, qz, qw = (_body_rotation(roll, pitch, yaw) * OPTICAL_IN_BODY).as_quat()
    return Transform(translation=Vector3(x=float(x), y=float(y), z=float(z)),
                     rotation=Quaternion(x=qx, y=qy, z=qz, w=qw))


def _body_rotation(roll: float, pitch: float, yaw: float) -> Rotation:
    """Rotation of fixed-axis angles, by tf_transformations where it is installed and works."""
    try:
        from tf_transformations import quaternion_from_euler
        return Rotation.from_quat(quaternion_from_euler(roll, pitch, yaw))
    except (ImportError, AttributeError):  # transforms3d before 0.4.2 fails with numpy's np.float
        return Rotation.from_euler('xyz', [roll, pitch, yaw])


class GivenTransform:
    """One fixed transform to one frame, whatever the camera's frame is called."""

    def __init__(self, target: str, transform: Transform) -> None:
        self._target = target
        self._transform = transform

    def lookup(self, target: str, source: str, stamp_ns: int) -> Transform:
        """Return the given transform, of any camera frame and at any time."""
        if target != self._target:
            raise SynchronizationError(
                f'camera_pose is told in "{self._target}", not in "{target}"')
        return self._transform

    def close(self) -> None:
        """Nothing is held."""


class Tf2Transforms:
    """
    Transforms from the buffer of tf2_ros.

    :raises ImportError: if tf2_ros is not installed
    """

    def __init__(self, node: Node) -> None:
        from tf2_ros import Buffer, TransformException, TransformListener
        self._error = TransformException
        self._buffer = Buffer()
        self._listener = TransformListener(self._buffer, node)

    def lookup(self, target: str, source: str, stamp_ns: int) -> Transform:
        """Ask the buffer, without waiting."""
        try:
            return self._buffer.lookup_transform(
                target, source, Time(nanoseconds=stamp_ns)).transform
        except self._error as error:
            raise SynchronizationError(str(error)) from error

    def close(self) -> None:
        """Unsubscribe."""
        self._listener.unregister()


class MessageTransforms:
    """
    Transforms from the messages on /tf and /tf_static, where tf2_ros is not installed.

    As in tf2, each frame has one parent, and moving transforms are interpolated, never
    extrapolated.

    :raises ImportError: if tf2_msgs is not installed
    """

    def __init__(self, node: Node) -> None:
        from tf2_msgs.msg import TFMessage
        self._node = node
        self._tree = TransformTree()
        static = QoSProfile(depth=STATIC_DEPTH, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._subscriptions = [
            node.create_subscription(TFMessage, topic, self._keep(fixed), qos)
            for topic, fixed, qos in (('/tf', False, QoSProfile(depth=DYNAMIC_DEPTH)),
                                      ('/tf_static', True, static))]

    def _keep(self, fixed: bool) -> Callable[[Any], None]:
        def callback(msg: Any) -> None:
            for transform in msg.transforms:
                self._tree.add(transform, fixed)
        return callback

    def lookup(self, target: str, source: str, stamp_ns: int) -> Transform:
        """Ask the tree, without waiting."""
        return self._tree.lookup(target, source, stamp_ns)

    def close(self) -> None:
        """Unsubscribe."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)


class TransformTree:
    """The transforms that were told, by child frame; filled by one thread, read by another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._edges: dict[str, _Edge] = {}

    def add(self, transform: TransformStamped, fixed: bool) -> None:
        """Take in a transform, unless it is none; a fixed one holds at any time."""
        matrix = _matrix(transform.transform)
        if matrix is None:
            return
        child = _name(transform.child_frame_id)
        with self._lock:
            edge = self._edges.get(child)
            if edge is None or edge.parent != _name(transform.header.frame_id):
                edge = self._edges[child] = _Edge(_name(transform.header.frame_id))
            edge.add(stamp_to_ns(transform.header.stamp), matrix, fixed)

    def lookup(self, target: str, source: str, stamp_ns: int) -> Transform:
        """
        Transform of points from source to target.

        :raises SynchronizationError: if the frames are not connected, or not at that time
        """
        with self._lock:
            down, up = (dict(self._to_ancestors(_name(frame), stamp_ns))
                        for frame in (target, source))
        common = next((frame for frame in up if frame in down), None)
        if common is None:
            raise SynchronizationError(
                f'TF does not connect "{source}" with "{target}" at this time; '
                f'known frames: {", ".join(sorted(self._edges)) or "none"}')
        matrix = np.linalg.inv(down[common]) @ up[common]
        x, y, z, w = Rotation.from_matrix(matrix[:3, :3]).as_quat()
        return Transform(translation=Vector3(x=matrix[0, 3], y=matrix[1, 3], z=matrix[2, 3]),
                         rotation=Quaternion(x=x, y=y, z=z, w=w))

    def _to_ancestors(self, frame: str, stamp_ns: int) -> Iterator[tuple[str, np.ndarray]]:
        """The frame and its ancestors, each with the (4, 4) transform of points to it."""
        matrix = np.eye(4)
        seen = set()
        while frame not in seen:  # else the frames go round in a circle
            seen.add(frame)
            yield frame, matrix
            edge = self._edges.get(frame)
            step = None if edge is None else edge.at(stamp_ns)
            if step is None:
                return
            matrix, frame = step @ matrix, edge.parent


class _Edge:
    """Transforms from one frame to its parent, by time."""

    def __init__(self, parent: str) -> None:
        self.parent = parent
        self._fixed: np.ndarray | None = None
        self._moving: deque[tuple[int, np.ndarray]] = deque()

    def add(self, stamp_ns: int, matrix: np.ndarray, fixed: bool) -> None:
        if fixed:
            self._fixed = matrix
            return
        if self._moving and stamp_ns <= self._moving[-1][0] - HISTORY_NS:
            self._moving.clear()  # time jumped back
        if not self._moving or stamp_ns > self._moving[-1][0]:
            self._moving.append((stamp_ns, matrix))
        while self._moving[0][0] < stamp_ns - HISTORY_NS:
            self._moving.popleft()

    def at(self, stamp_ns: int) -> np.ndarray | None:
        """(4, 4) transform to the parent; None if it is not known at that time."""
        if self._fixed is not None:
            return self._fixed
        later = next((index for index, (moment, _) in enumerate(self._moving)
                      if moment >= stamp_ns), None)
        if later is None:
            return None
        end_ns, end = self._moving[later]
        if end_ns == stamp_ns:
            return end
        if later == 0:
            return None
        begin_ns, begin = self._moving[later - 1]
        return _between(begin, end, (stamp_ns - begin_ns) / (end_ns - begin_ns))


def _between(begin: np.ndarray, end: np.ndarray, share: float) -> np.ndarray:
    """Rigid transform at a share of the way from one to another, (4, 4)."""
    turn = Rotation.from_matrix(begin[:3, :3].T @ end[:3, :3]).as_rotvec()
    matrix = begin + share * (end - begin)
    matrix[:3, :3] = begin[:3, :3] @ Rotation.from_rotvec(share * turn).as_matrix()
    return matrix


def _matrix(transform: Transform) -> np.ndarray | None:
    """(4, 4) of a message; None where it holds no finite numbers or no rotation."""
    t, q = transform.translation, transform.rotation
    numbers = np.array([t.x, t.y, t.z, q.x, q.y, q.z, q.w])
    if not np.isfinite(numbers).all() or not np.any(numbers[3:]):
        return None
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_quat(numbers[3:]).as_matrix()
    matrix[:3, 3] = t.x, t.y, t.z
    return matrix


def _name(frame: str) -> str:
    """Frame as tf2 names it, without the slash that ROS 1 put in front."""
    return frame.lstrip('/')
