"""The motion between two cameras is found from points, at whatever depth each of them is."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from image_as_imu_ros.geometry.parallax import (
    DEPTH_SPREAD,
    NOTHING_EXPECTED,
    match_points,
    motion_of_points,
    refined_by_points,
    starts_about,
)
from image_as_imu_ros.types import CameraIntrinsics

CAMERA = CameraIntrinsics(320, 224, 250.0, 245.0, 158.0, 113.0)
COUNT = 150
NOISE_PX = 0.1
PERFECT = np.tile([1.0, 0.0, 1.0], (COUNT, 1))


def matched(rng, motion, depth_spread=0.4, noise_px=NOISE_PX, outliers=0.0, slope=(0.0, 0.0)):
    """
    Points in the later image and, by the pinhole camera, in the earlier one.

    They lie on a plane whose nearness has a slope, and off it by random factors.
    """
    later = rng.uniform((0, 0), (CAMERA.width_px, CAMERA.height_px), (COUNT, 2))
    rays = np.column_stack([later, np.ones(COUNT)]) @ np.linalg.inv(CAMERA.matrix).T
    nearness = np.exp(depth_spread * rng.standard_normal(COUNT)) * (1.0 + rays[:, :2] @ slope)
    points = Rotation.from_rotvec(motion[:3]).apply(rays / nearness[:, None])
    points = points + motion[3:] * points[:, 2:] * nearness[:, None]
    seen = (points / points[:, 2:]) @ CAMERA.matrix.T
    earlier = seen[:, :2] + noise_px * rng.standard_normal((COUNT, 2))
    wild = rng.random(COUNT) < outliers
    earlier[wild] += rng.uniform(-8.0, 8.0, (COUNT, 2))[wild]
    return later, earlier


def test_what_makes_rows_differ_is_found_beside_the_motion():
    rng = np.random.default_rng(4)
    motion = np.array([0.03, -0.05, 0.02, 0.01, -0.015, 0.004])
    later, earlier = matched(rng, motion)
    # rows of both images at other rates, as of a shaken camera
    per_readout = 400.0 * np.outer(later[:, 1] / CAMERA.height_px - 0.5, (1.0, 0.4))
    # and, in units of 10 ms, with an offset of some that are more alike
    by_rows = np.stack([0.01 * per_readout, np.ones_like(per_readout)], axis=-1)
    true, expected = np.array([1.2, 0.0]), np.diag([1.0 / 1.5 ** 2, 1.0 / 1e-4 ** 2])
    estimate, covariance, *_, rows, joint = motion_of_points(
        later, earlier - by_rows @ true, PERFECT, np.ones(COUNT), DEPTH_SPREAD, by_rows,
        expected, CAMERA.matrix, starts_about(motion, 0.01), *NOTHING_EXPECTED)
    assert rows[0] == pytest.approx(1.2, abs=4.0 * joint[6, 6] ** 0.5)
    assert joint[6, 6] < 0.2 ** 2
    assert abs(rows[1]) < 1e-3  # as surely as it was expected
    np.testing.assert_allclose(joint[:6, :6], covariance)
    np.testing.assert_allclose(estimate[:3], motion[:3], atol=1.5e-3)


def found(later, earlier, guess, depth_spread=DEPTH_SPREAD, expected=NOTHING_EXPECTED,
          doubt=PERFECT):
    return motion_of_points(later, earlier, doubt[:len(later)], np.ones(len(later)), depth_spread,
                            np.zeros((len(later), 2, 0)), np.zeros((0, 0)),
                            CAMERA.matrix, starts_about(guess, 0.01), *expected)[:3]


WAYS = [(0.02, 0.0, 0.0), (0.0, -0.015, 0.004), (0.004, 0.004, 0.03), (0.0, 0.0, 0.0)]


@pytest.mark.parametrize('way', WAYS)
def test_turn_is_found_though_every_point_has_a_depth_of_its_own(way):
    rng = np.random.default_rng(3)
    motion = np.array([0.03, -0.05, 0.02, *way])
    # as an alignment at one depth errs: part of the way is taken for a turn
    guess = motion + [-way[1], way[0], 0.0, -way[0], -way[1], -way[2]]
    estimate, covariance, inlier_share = found(*matched(rng, motion), guess)
    # measured: up to 0.0006 rad
    np.testing.assert_allclose(estimate[:3], motion[:3], atol=1e-3)
    assert inlier_share > 0.9
    assert np.linalg.eigvalsh(covariance).min() > 0.0


def test_a_fifth_of_wrong_matches_does_little_harm():
    rng = np.random.default_rng(4)
    motion = np.array([0.03, -0.05, 0.02, 0.015, 0.005, 0.01])
    estimate, _, inlier_share = found(*matched(rng, motion, outliers=0.2), motion * 0.8)
    np.testing.assert_allclose(estimate[:3], motion[:3], atol=2e-3)
    assert inlier_share < 0.9


def test_points_on_edges_tell_across_them():
    rng = np.random.default_rng(7)
    motion = np.array([0.03, -0.05, 0.02, 0.015, 0.005, 0.01])
    later, earlier = matched(rng, motion)
    angle = rng.uniform(0.0, np.pi, COUNT)
    along = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    earlier = earlier + 1.0 * rng.standard_normal((COUNT, 1)) * along
    x, y = along.T
    edges = PERFECT + 100.0 * np.stack([x * x, x * y, y * y], axis=-1)
    errors = [np.linalg.norm(found(later, earlier, motion, doubt=doubt)[0][:3] - motion[:3])
              for doubt in (edges, PERFECT)]
    # measured: 0.0007 and 0.0027 rad
    assert errors[0] < 1.5e-3
    assert errors[0] < 0.6 * errors[1]


def test_windows_tell_where_edges_leave_points_unsure():
    rng = np.random.default_rng(8)
    scene = np.repeat(rng.random((1, 320), np.float32), 224, axis=0)  # stripes that run down
    scene[::2] += 0.2 * rng.random((112, 320), np.float32)
    scene[20:60, 20:60] = cv2.resize(rng.random((5, 5), np.float32), (40, 40),
                                     interpolation=cv2.INTER_NEAREST)
    scene = cv2.GaussianBlur(scene, (0, 0), 1.5)
    matches = match_points(scene, scene, np.eye(3))
    striped = matches.at_later[:, 0] > 80.0
    xx, _, yy = matches.doubt[striped].T
    assert striped.sum() > 40
    assert np.median(yy / xx) > 4.0  # measured: 8
    # of the earlier image, which a turned camera took, where they lie
    turned = np.array([[0.0, -1.0, 271.0], [1.0, 0.0, -48.0], [0.0, 0.0, 1.0]])
    matches = match_points(cv2.warpPerspective(scene, turned, (320, 224)), scene, turned)
    xx, _, yy = matches.doubt[matches.at_later[:, 0] > 80.0].T
    assert np.median(xx / yy) > 4.0


def test_covariance_covers_the_errors():
    rng = np.random.default_rng(5)
    distances = []
    for _ in range(60):
        motion = np.concatenate([rng.normal(0.0, 0.03, 3), rng.normal(0.0, 0.01, 3)])
        estimate, covariance, _ = found(*matched(rng, motion), motion * rng.uniform(0.5, 1.5, 6))
        error = estimate[:3] - motion[:3]
        distances.append(error @ np.linalg.solve(covariance[:3, :3], error))
    # points that are independent are worth more than it says: 3 / 6 and no more of 3
    assert 0.1 < np.median(distances) < 3.0


def test_plane_that_two_motions_explain_is_decided_by_what_was_expected():
    motion, normal = np.array([0.01, -0.02, 0.005, -0.015, -0.005, 0.025]), (0.3, -0.2)
    other = None
    for seed in range(8):
        rng = np.random.default_rng(seed)
        later, earlier = matched(rng, motion, noise_px=0.03, slope=normal, depth_spread=0.0)
        estimate, _, _ = found(later, earlier, motion * rng.uniform(-2.0, 2.0, 6))
        if np.linalg.norm(estimate[:3] - motion[:3]) > 3e-3:
            other = estimate
            break
    assert other is not None, 'this plane is told from its rival without help'
    told, _, _ = found(later, earlier, other, expected=(motion, np.eye(6) / 0.005 ** 2))
    np.testing.assert_allclose(told[:3], motion[:3], atol=2e-3)


def test_measured_depth_tells_how_far():
    rng = np.random.default_rng(6)
    motion = np.array([0.01, 0.02, -0.01, 0.02, -0.01, 0.015])
    estimate, covariance, _ = found(*matched(rng, motion, depth_spread=0.02), motion * 0.7, 0.05)
    np.testing.assert_allclose(estimate, motion, atol=1.5e-3)
    assert np.sqrt(covariance[3, 3]) < 2e-3


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2 ** 32 - 1), st.integers(1, 40))
def test_points_that_make_no_sense_give_numbers_still(seed, count):
    rng = np.random.default_rng(seed)
    later, earlier = rng.uniform(-20.0, 340.0, (2, count, 2))
    estimate, covariance, inlier_share = found(later, earlier, rng.normal(0.0, 0.1, 6))
    assert np.isfinite(estimate).all() and np.isfinite(covariance).all()
    assert 0.0 <= inlier_share <= 1.0


def test_images_without_corners_are_not_matched():
    blank = np.full((224, 320), 0.5, np.float32)
    assert match_points(blank, blank, np.eye(3)) is None
    assert refined_by_points(blank, blank, CAMERA.matrix, np.zeros(6)) == ()


def test_few_corners_are_not_enough():
    scene = np.full((224, 320), 0.2, np.float32)
    scene[80:120, 100:160] = 0.8
    assert len(match_points(scene, scene, np.eye(3)).doubt) >= 4
    assert refined_by_points(scene, scene, CAMERA.matrix, np.zeros(6)) == ()
