"""Compiled loops over pixels give what OpenCV and numpy do."""

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from image_as_imu_ros.geometry.motion_field import plane_homography
from image_as_imu_ros.geometry.photometric import (
    LEAST_NOISE,
    OUTLIER,
    homography_of,
    magnitude_of_rank,
    mean_of_views,
    robust_weights,
    seen_along,
    strongest,
    sums,
)
from image_as_imu_ros.types import CameraIntrinsics

CAMERA = CameraIntrinsics(80, 60, 70.0, 72.0, 38.0, 31.0)
MOTION = np.array([0.05, -0.08, 0.12, 0.03, -0.02, 0.04])


def plane(motion):
    return plane_homography(CAMERA, Rotation.from_rotvec(motion[:3]).as_matrix()[None],
                            motion[None, 3:], np.array([0.0, 0.0, 1.0]))[0]


@pytest.mark.parametrize('factor', [0.0, 1.0, 10.0])
def test_homography_is_that_of_a_plane_that_faces_the_camera(factor):
    motion = factor * MOTION
    np.testing.assert_allclose(homography_of(CAMERA.matrix, motion), plane(motion), atol=1e-9)


def views(image, to_image=np.eye(3)):
    """What is seen along MOTION at four times."""
    times = np.array([-0.375, -0.125, 0.125, 0.375])
    return times, [cv2.warpPerspective(image, to_image @ plane(time * MOTION), (80, 60),
                                       flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                                       borderMode=cv2.BORDER_REPLICATE) for time in times]


def test_mean_of_views_is_that_of_warped_images():
    image = np.random.default_rng(0).random((60, 80), np.float32)
    # some releases of OpenCV round positions to 1/32 px
    np.testing.assert_allclose(mean_of_views(image, CAMERA.matrix, MOTION, 4),
                               np.mean(views(image)[1], axis=0), atol=0.05)


def test_pixels_see_along_a_motion_what_images_show():
    smooth = cv2.GaussianBlur(np.random.default_rng(0).random((60, 80), np.float32), (0, 0), 3.0)
    to_image = plane(-0.7 * MOTION)
    times, images = views(smooth, to_image)
    rows, columns = (each.ravel() for each in np.mgrid[:60:2, :80:2])
    usable = np.zeros(smooth.shape, bool)
    usable[2:-2, 2:-2] = True
    usable[20:24, 30:40] = False
    detail = np.dstack([smooth, *np.gradient(smooth)[::-1], usable]).astype(np.float32)
    seen, inside = seen_along(detail, to_image, CAMERA.matrix, MOTION, 4,
                              np.stack([columns, rows]).astype(np.float32))
    ways = np.stack([cv2.perspectiveTransform(
        np.stack([columns, rows], axis=-1)[None].astype(float), to_image @ plane(time * MOTION))[0]
        for time in times])
    across, down = np.clip(ways, 0, [78, 58]).astype(int).transpose(2, 0, 1)
    sure = (np.abs(ways - np.rint(ways)) > 1e-3).all(axis=(0, 2))
    around = usable[:-1, :-1] & usable[1:, :-1] & usable[:-1, 1:] & usable[1:, 1:]
    np.testing.assert_array_equal(inside[sure], around[down, across].all(axis=0)[sure])
    assert inside.sum() > 300
    contrast = smooth.std()
    np.testing.assert_allclose(seen[0], np.mean(images, axis=0)[rows, columns],
                               atol=0.02 * contrast)
    moment = np.tensordot(times, images, 1) / 4
    mean = np.mean(images, axis=0)
    for slope, of_views in zip(seen[1:], [*np.gradient(mean)[::-1], *np.gradient(moment)[::-1]]):
        of_views = of_views[rows, columns][inside]
        # measured: 0.21, of differences between pixels instead of gradients between them
        assert np.abs(slope[inside] - of_views).max() < 0.25 * np.abs(of_views).max()


def test_views_along_what_is_not_a_number_stay_within_the_image():
    image = np.full((60, 80), 0.5, np.float32)
    np.testing.assert_array_equal(mean_of_views(image, CAMERA.matrix, np.full(6, np.nan), 2),
                                  image)
    seen, inside = seen_along(np.dstack([image] * 3 + [np.zeros_like(image)]), np.eye(3),
                              CAMERA.matrix, np.full(6, np.nan), 2, np.zeros((2, 1), np.float32))
    assert seen[0] == 0.5 and not inside


@pytest.mark.parametrize('rank', [0, 40, 99])
def test_magnitude_of_a_rank_leaves_out_what_does_not_count(rank):
    random = np.random.default_rng(1)
    counted = np.abs(random.standard_normal(100)).astype(np.float32)
    counted[:30] = counted[30]  # ties
    magnitudes = np.concatenate([counted, np.full(50, -1.0, np.float32)])
    assert magnitude_of_rank(random.permutation(magnitudes), rank) == np.sort(counted)[rank]


@pytest.mark.parametrize('distinct', [5, 1000])
def test_strongest_are_chosen_ties_or_not(distinct):
    strength = np.random.default_rng(2).integers(0, distinct, 1000).astype(np.float32)
    chosen = strongest(strength, 300)
    assert (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(np.sort(strength[chosen]), np.sort(strength)[-300:])


def test_sums_are_those_of_robust_least_squares():
    random = np.random.default_rng(3)
    jacobian, residual = random.standard_normal((6, 500)), 0.1 * random.standard_normal(500)
    residual[::7] *= 8.0
    counts = random.random(500) < 0.8
    magnitude = np.where(counts, np.abs(residual), -1.0)
    jacobian, residual, magnitude = (each.astype(np.float32)
                                     for each in (jacobian, residual, magnitude))
    weights, inliers = robust_weights(residual, magnitude, int(counts.sum()), LEAST_NOISE)
    information, vector = sums(jacobian, weights, residual, 0, 500)
    parts = [sums(jacobian, weights, residual, *part) for part in ((0, 200), (200, 500))]
    noise = 1.4826 * np.sort(magnitude[counts])[counts.sum() // 2] + LEAST_NOISE
    weight = counts / ((1.0 + (residual / (OUTLIER * noise)) ** 2) ** 2 * noise ** 2)
    np.testing.assert_allclose(information, weight * jacobian @ jacobian.T, rtol=1e-4, atol=1.0)
    np.testing.assert_allclose(vector, weight * jacobian @ residual, rtol=1e-4, atol=1.0)
    for part, whole in zip(zip(*parts), (information, vector)):
        np.testing.assert_allclose(part[0] + part[1], whole, rtol=1e-4, atol=1.0)
    assert inliers == (np.abs(residual[counts]) < OUTLIER * noise).sum()
