"""Mountings and TF: the right axes and lever arms, by whichever way they are told."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip('rclpy')

import rclpy
from geometry_msgs.msg import Quaternion, Transform, TransformStamped, Vector3
from rclpy.context import Context
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from scipy.spatial.transform import Rotation
from spinning import Spinner

from image_as_imu_ros.config import NodeConfig
from image_as_imu_ros.errors import ConfigError, SynchronizationError
from image_as_imu_ros.ros import transforms
from image_as_imu_ros.ros.conversions import moved_to_frame, ns_to_stamp
from image_as_imu_ros.ros.transforms import TransformTree, open_transforms, optical_transform
from image_as_imu_ros.types import EstimateStatus, MotionEstimate

DEADLINE_S = 20.0
QUARTER = np.pi / 2
RANDOM = np.random.default_rng(11)

# roll, pitch, yaw of the camera, and where its optical x, y and z axes then point on the robot
MOUNTINGS = {
    'forward': ((0, 0, 0), [(0, -1, 0), (0, 0, -1), (1, 0, 0)]),
    'looking left': ((0, 0, QUARTER), [(1, 0, 0), (0, 0, -1), (0, 1, 0)]),
    'looking back': ((0, 0, np.pi), [(0, 1, 0), (0, 0, -1), (-1, 0, 0)]),
    'looking down': ((0, QUARTER, 0), [(0, -1, 0), (-1, 0, 0), (0, 0, -1)]),
    'on its right side': ((QUARTER, 0, 0), [(0, 0, -1), (0, 1, 0), (1, 0, 0)]),
    'upside down': ((np.pi, 0, 0), [(0, 1, 0), (0, 0, 1), (1, 0, 0)]),
}


def estimate(angular: np.ndarray, linear: np.ndarray, covariance: np.ndarray) -> MotionEstimate:
    return MotionEstimate(0, 0.01, angular, linear, covariance, True, 5.0, 1.0, 10.0, 1.0,
                          EstimateStatus.OK)


@pytest.mark.parametrize('angles, axes', MOUNTINGS.values(), ids=MOUNTINGS.keys())
def test_rates_come_out_about_the_robots_axes(angles, axes):
    transform = optical_transform(0.0, 0.0, 0.0, *angles)
    for rate, expected in zip(np.eye(3), axes):
        moved = moved_to_frame(estimate(rate, np.zeros(3), np.eye(6)), transform)
        np.testing.assert_allclose(moved.angular_velocity_rad_s, expected, atol=1e-12)


@pytest.mark.parametrize('angles, axes', MOUNTINGS.values(), ids=MOUNTINGS.keys())
def test_lever_arm_gives_the_velocity_of_the_robots_origin(angles, axes):
    """The robot turns left on the spot: its origin rests, though the camera moves."""
    place, turn = np.array([0.3, -0.2, 0.5]), np.array([0.0, 0.0, 2.0])
    to_robot = np.array(axes, float).T
    seen = estimate(to_robot.T @ turn, to_robot.T @ np.cross(turn, place), 0.01 * np.eye(6))
    moved = moved_to_frame(seen, optical_transform(*place, *angles))
    np.testing.assert_allclose(moved.angular_velocity_rad_s, turn, atol=1e-12)
    np.testing.assert_allclose(moved.linear_velocity_m_s, 0.0, atol=1e-12)
    arm_m2 = place[0] ** 2 + place[1] ** 2  # turning errors become errors of z's velocity
    assert moved.covariance[2, 2] == pytest.approx(0.01 * (1 + arm_m2))
    assert np.linalg.eigvalsh(moved.covariance).min() > 0.0


def test_pose_angles_are_those_of_static_transform_publisher():
    """Fixed axes x, y, z in this order: yaw of 90 degrees after a roll of 90 degrees."""
    transform = optical_transform(0, 0, 0, QUARTER, 0, QUARTER)
    q = transform.rotation
    body = Rotation.from_quat([q.x, q.y, q.z, q.w]) * transforms.OPTICAL_IN_BODY.inv()
    np.testing.assert_allclose(body.apply([[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
                               [[0, 1, 0], [0, 0, 1], [1, 0, 0]], atol=1e-12)


@pytest.mark.parametrize('present', [False, True])
def test_angles_need_no_tf_transformations(monkeypatch, present):
    expected = Rotation.from_euler('xyz', [0.3, -0.4, 1.2])
    if present:
        pytest.importorskip('tf_transformations')
    else:
        monkeypatch.setitem(sys.modules, 'tf_transformations', None)
    np.testing.assert_allclose(transforms._body_rotation(0.3, -0.4, 1.2).as_matrix(),
                               expected.as_matrix(), atol=1e-12)


@pytest.mark.parametrize('pose', ['1 2 3', '0 0 0 0 0 0 0', '0 0 0 a 0 0', '0 0 nan 0 0 0',
                                  '0 0 0 0 0 inf'])
def test_bad_poses_are_refused_by_name(pose):
    with pytest.raises(ConfigError, match='camera_pose: .*six numbers'):
        NodeConfig(camera_pose=pose)


# The tree of transforms


def stamped(parent: str, child: str, time_ns: int = 0, place: np.ndarray | None = None,
            rotation: Rotation | None = None) -> TransformStamped:
    x, y, z = np.zeros(3) if place is None else place
    qx, qy, qz, qw = (Rotation.identity() if rotation is None else rotation).as_quat()
    msg = TransformStamped(child_frame_id=child, transform=Transform(
        translation=Vector3(x=float(x), y=float(y), z=float(z)),
        rotation=Quaternion(x=float(qx), y=float(qy), z=float(qz), w=float(qw))))
    msg.header.frame_id, msg.header.stamp = parent, ns_to_stamp(time_ns)
    return msg


def random_transform(parent: str, child: str, time_ns: int = 0) -> TransformStamped:
    return stamped(parent, child, time_ns, RANDOM.standard_normal(3),
                   Rotation.random(random_state=RANDOM))


def as_matrix(transform: Transform) -> np.ndarray:
    t, q = transform.translation, transform.rotation
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_quat([q.x, q.y, q.z, q.w]).as_matrix()
    matrix[:3, 3] = t.x, t.y, t.z
    return matrix


def test_branches_of_the_tree_are_joined_at_their_ancestor():
    tree = TransformTree()
    edges = {child: random_transform(parent, child) for parent, child in (
        ('base', 'mast'), ('mast', 'head'), ('head', 'camera'), ('base', 'imu'))}
    for edge in edges.values():
        tree.add(edge, fixed=True)
    to_base = as_matrix(edges['mast'].transform) @ as_matrix(edges['head'].transform) \
        @ as_matrix(edges['camera'].transform)
    expected = np.linalg.inv(as_matrix(edges['imu'].transform)) @ to_base
    np.testing.assert_allclose(as_matrix(tree.lookup('imu', 'camera', 5)), expected, atol=1e-12)
    np.testing.assert_allclose(as_matrix(tree.lookup('camera', '/imu', 5)),
                               np.linalg.inv(expected), atol=1e-12)
    np.testing.assert_allclose(as_matrix(tree.lookup('camera', 'camera', 5)), np.eye(4))


def test_moving_transforms_are_interpolated_and_never_extrapolated():
    tree = TransformTree()
    for time_ns, angle in ((1000, 0.0), (2000, 1.0)):
        tree.add(stamped('base', 'head', time_ns, [angle, 0, 0],
                         Rotation.from_rotvec([0, 0, angle])), fixed=False)
    matrix = as_matrix(tree.lookup('base', 'head', 1250))
    np.testing.assert_allclose(Rotation.from_matrix(matrix[:3, :3]).as_rotvec(), [0, 0, 0.25],
                               atol=1e-12)
    np.testing.assert_allclose(matrix[:3, 3], [0.25, 0, 0])
    tree.lookup('base', 'head', 2000)
    for time_ns in (999, 2001):
        with pytest.raises(SynchronizationError, match='"head" with "base" at this time'):
            tree.lookup('base', 'head', time_ns)


def test_a_bag_that_starts_again_is_followed():
    tree = TransformTree()
    for time_ns in (50_000_000_000, 1_000_000_000, 2_000_000_000):
        tree.add(random_transform('base', 'head', time_ns), fixed=False)
    tree.lookup('base', 'head', 1_500_000_000)


def test_what_is_no_transform_is_ignored():
    tree = TransformTree()
    good = random_transform('base', 'camera')
    tree.add(good, fixed=True)
    bad_rotation, bad_place = stamped('base', 'camera'), stamped('base', 'camera')
    bad_rotation.transform.rotation = Quaternion(x=0.0, y=0.0, z=0.0, w=0.0)
    bad_place.transform.translation.y = float('nan')
    for bad in (bad_rotation, bad_place):
        tree.add(bad, fixed=True)
    np.testing.assert_allclose(as_matrix(tree.lookup('base', 'camera', 0)),
                               as_matrix(good.transform), atol=1e-12)


def test_frames_in_a_circle_end_the_search():
    tree = TransformTree()
    for parent, child in (('a', 'b'), ('b', 'a')):
        tree.add(random_transform(parent, child), fixed=True)
    with pytest.raises(SynchronizationError, match='known frames: a, b'):
        tree.lookup('a', 'c', 0)


def test_the_tree_agrees_with_tf2():
    tf2_ros = pytest.importorskip('tf2_ros')
    from rclpy.time import Time
    tree, buffer = TransformTree(), tf2_ros.Buffer()
    names = ['base', 'mast', 'head', 'camera', 'imu']
    for index, child in enumerate(names[1:], 1):
        parent, fixed = names[RANDOM.integers(index)], bool(RANDOM.integers(2))
        for time_ns in (10**9, 2 * 10**9):
            edge = random_transform(parent, child, time_ns)
            tree.add(edge, fixed)
            (buffer.set_transform_static if fixed else buffer.set_transform)(edge, 'test')
    for target, source in itertools.product(names, repeat=2):
        theirs = buffer.lookup_transform(target, source, Time(nanoseconds=1_300_000_000))
        np.testing.assert_allclose(as_matrix(tree.lookup(target, source, 1_300_000_000)),
                                   as_matrix(theirs.transform), atol=1e-9)


# Over DDS


@pytest.fixture
def node() -> Iterator[Node]:
    """A spinning node."""
    context = Context()
    rclpy.init(context=context, domain_id=101 + os.getpid() % 100)
    node = rclpy.create_node('transforms_under_test', context=context)
    spinner = Spinner(node, context)
    yield node
    spinner.stop()
    context.shutdown()


@pytest.mark.parametrize('module', ['tf2_ros', 'tf2_msgs'])
def test_transforms_are_heard_over_dds(node, module, monkeypatch):
    pytest.importorskip(module)
    from tf2_msgs.msg import TFMessage
    if module == 'tf2_msgs':
        monkeypatch.setitem(sys.modules, 'tf2_ros', None)
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    mast = random_transform('base', 'mast')
    node.create_publisher(TFMessage, '/tf_static', latched).publish(TFMessage(transforms=[mast]))
    source = open_transforms(node, 'base', '')  # later than what was said once
    publisher = node.create_publisher(TFMessage, '/tf', 10)
    deadline = time.monotonic() + DEADLINE_S
    while True:
        for time_ns in (10**9, 2 * 10**9):
            publisher.publish(TFMessage(transforms=[stamped('mast', 'camera', time_ns)]))
        try:
            found = source.lookup('base', 'camera', 1_500_000_000)
            break
        except SynchronizationError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    np.testing.assert_allclose(as_matrix(found), as_matrix(mast.transform), atol=1e-9)
    with pytest.raises(SynchronizationError):
        source.lookup('nowhere', 'camera', 1_500_000_000)
    source.close()


def test_without_tf_the_mounting_must_be_told(node, monkeypatch):
    for module in ('tf2_ros', 'tf2_msgs', 'tf2_msgs.msg'):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match='tf2_ros or tf2_msgs.*camera_pose'):
        open_transforms(node, 'base_link', '')
    source = open_transforms(node, 'base_link', '0.1 0 0 0 0 0')
    assert source.lookup('base_link', 'any_camera', 0) == optical_transform(0.1, 0, 0, 0, 0, 0)
    with pytest.raises(SynchronizationError, match='"map"'):
        source.lookup('map', 'any_camera', 0)
