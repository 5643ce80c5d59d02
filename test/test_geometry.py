"""Motion field, homographies, working images, value types and displacement bins."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from image_as_imu_ros.errors import InputError
from image_as_imu_ros.geometry.camera import WorkingCamera
from image_as_imu_ros.geometry.displacement_bins import (
    BINS,
    MAX_RADIUS_PX,
    bin_displacements,
    interpolation,
)
from image_as_imu_ros.geometry.motion_field import (
    motion_field_matrix,
    pixel_grid,
    plane_homography,
)
from image_as_imu_ros.types import CameraIntrinsics, EstimateStatus, Frame, MotionEstimate

CAMERA = CameraIntrinsics(640, 480, 510.0, 470.0, 300.5, 261.25)
PLUMB_BOB = dataclasses.replace(CAMERA, distortion_model='plumb_bob',
                                distortion=(-0.28, 0.09, 0.001, -0.002, 0.01))
RATIONAL = dataclasses.replace(CAMERA, distortion_model='rational_polynomial',
                               distortion=(0.4, -0.2, 0.001, -0.001, 0.02, 0.6, -0.1, 0.01))
FISHEYE = dataclasses.replace(CAMERA, distortion_model='equidistant',
                              distortion=(0.05, -0.02, 0.008, -0.002))


def project(points_m, intrinsics):
    """Pinhole projection of (..., 3) to px."""
    return (points_m[..., :2] / points_m[..., 2:] * [intrinsics.fx_px, intrinsics.fy_px]
            + [intrinsics.cx_px, intrinsics.cy_px])


def points_in_view(count=200):
    """Random points, (N, 3) m, that the camera sees."""
    rng = np.random.default_rng(0)
    rays = np.column_stack([rng.uniform(-0.5, 0.5, count), rng.uniform(-0.45, 0.4, count),
                            np.ones(count)])
    return rays * rng.uniform(0.5, 5.0, (count, 1))


def test_motion_field_is_the_derivative_of_the_projection():
    points_m, step_s = points_in_view(), 1e-5
    angular_rad_s, linear_m_s = np.array([0.7, -1.1, 2.0]), np.array([0.3, 0.5, -0.8])
    speed_m_s = -np.cross(angular_rad_s, points_m) - linear_m_s
    expected_px_s = (project(points_m + step_s * speed_m_s, CAMERA)
                     - project(points_m - step_s * speed_m_s, CAMERA)) / (2 * step_s)
    matrix = motion_field_matrix(project(points_m, CAMERA), CAMERA)
    flow_px_s = matrix[..., :3] @ angular_rad_s \
        + matrix[..., 3:] @ linear_m_s / points_m[:, 2:]
    np.testing.assert_allclose(flow_px_s, expected_px_s, rtol=1e-6, atol=1e-5)


def test_pixel_grid_holds_the_centres_of_the_cells():
    grid = pixel_grid(24, 17, 8)
    assert grid.shape == (2, 3, 2)
    # a cell of columns 0 to 7 is centred between columns 3 and 4
    np.testing.assert_array_equal(grid[1, 2], [19.5, 11.5])


def test_plane_homography_maps_what_both_cameras_see_of_the_plane():
    normal_per_m = np.array([0.2, -0.3, 0.8])
    rays = points_in_view()
    points_m = rays / (rays @ normal_per_m)[:, None]
    rotation = Rotation.from_rotvec([[0.1, -0.2, 0.3], [0.0, 0.1, -0.2]]).as_matrix()
    position_m = np.array([[0.05, -0.1, 0.2], [0.1, 0.1, 0.0]])
    homographies = plane_homography(CAMERA, rotation, position_m, normal_per_m)
    for turn, centre_m, homography in zip(rotation, position_m, homographies):
        displaced_px = project((points_m - centre_m) @ turn, CAMERA)
        mapped = np.column_stack([displaced_px, np.ones(len(rays))]) @ homography.T
        np.testing.assert_allclose(mapped[:, :2] / mapped[:, 2:], project(points_m, CAMERA),
                                   atol=1e-8)


def test_plane_at_infinity_ignores_the_position():
    turn = Rotation.from_rotvec([0.1, -0.2, 0.3]).as_matrix()
    near, far = (plane_homography(CAMERA, turn, np.full(3, metres), np.zeros(3))
                 for metres in (0.0, 5.0))
    np.testing.assert_array_equal(near, far)


@pytest.mark.parametrize('size, working_size, expected', [
    ((640, 480), 320, (320, 240)), ((1920, 1080), 320, (320, 176)), ((320, 224), 320, (320, 224)),
    ((200, 150), 320, (200, 144)), ((480, 640), 320, (240, 320)), ((1281, 721), 320, (320, 176)),
])
def test_working_size_is_reduced_and_cropped_to_multiples_of_eight(size, working_size, expected):
    camera = CameraIntrinsics(*size, 500.0, 500.0, (size[0] - 1) / 2, (size[1] - 1) / 2)
    working = WorkingCamera(camera, working_size)
    image = working.working_image(np.zeros(size[::-1], np.uint8))
    assert image.shape == expected[::-1] and image.dtype == np.float32
    assert (working.intrinsics.width_px, working.intrinsics.height_px) == expected


def spot_of(image):
    """Centre of mass of a bright spot on black, px (x, y)."""
    rows, columns = np.indices(image.shape)
    return np.array([(columns * image).sum(), (rows * image).sum()]) / image.sum()


def view_of_spot(spot_px, size=(640, 480)):
    """A Gaussian spot that is wide enough to be reduced without aliasing, uint8."""
    columns, rows = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    distance2 = (columns - spot_px[0]) ** 2 + (rows - spot_px[1]) ** 2
    return np.rint(250 * np.exp(-distance2 / (2 * 4.0 ** 2))).astype(np.uint8)


def distorted_projection(points_m, intrinsics):
    """OpenCV's own projection, (N, 2) px."""
    fisheye = intrinsics.distortion_model == 'equidistant'
    points = cv2.fisheye.projectPoints(
        points_m[:, None], np.zeros(3), np.zeros(3), intrinsics.matrix,
        np.array(intrinsics.distortion)) if fisheye else cv2.projectPoints(
        points_m, np.zeros(3), np.zeros(3), intrinsics.matrix, np.array(intrinsics.distortion))
    return points[0].reshape(-1, 2)


@pytest.mark.parametrize('working_size', [320, 500])
@pytest.mark.parametrize('camera', [
    dataclasses.replace(CAMERA, distortion_model='plumb_bob', distortion=(0.0,) * 5),
    PLUMB_BOB, RATIONAL, FISHEYE], ids=['sharp', 'plumb_bob', 'rational', 'fisheye'])
def test_working_image_shows_a_point_where_its_pinhole_intrinsics_say(camera, working_size):
    working = WorkingCamera(camera, working_size)
    points_m = np.array([[0.0, 0.0, 1.0], [0.4, 0.3, 1.1], [-0.5, 0.2, 1.2], [-0.3, -0.4, 1.3]])
    for point_m, seen_px in zip(points_m, distorted_projection(points_m, camera)):
        image = working.working_image(view_of_spot(seen_px))
        # a distorted spot is no longer symmetric, so its own centre may be off a little
        np.testing.assert_allclose(spot_of(image), project(point_m, working.intrinsics), atol=0.1)


def test_resizing_keeps_the_ray_of_every_image_point():
    half = CAMERA.resized(320, 120)
    # the outer corner of the image stays the outer corner
    for corner_px, half_px in (((-0.5, -0.5), (-0.5, -0.5)), ((639.5, 479.5), (319.5, 119.5))):
        rays = [(np.array(point_px) - [camera.cx_px, camera.cy_px])
                / [camera.fx_px, camera.fy_px]
                for camera, point_px in ((CAMERA, corner_px), (half, half_px))]
        np.testing.assert_allclose(*rays, atol=1e-12)


@pytest.mark.parametrize('bits', [8, 10, 12, 16])
def test_images_of_any_depth_give_the_same_working_image(bits):
    rng = np.random.default_rng(1)
    eight = rng.integers(0, 256, (480, 640), np.uint8)
    eight[:100, :100] = 255
    working = WorkingCamera(CAMERA, 320)
    deep = eight if bits == 8 else np.round(eight / 255 * (2 ** bits - 1)).astype(np.uint16)
    np.testing.assert_allclose(working.working_image(deep), working.working_image(eight),
                               atol=2 / 255)


def test_colour_becomes_gray_with_red_first():
    image = np.zeros((480, 640, 3), np.uint8)
    image[..., 0] = 200
    gray = WorkingCamera(CAMERA, 320).working_image(image)
    np.testing.assert_allclose(gray, 0.299 * 200 / 255, atol=1 / 255)


@pytest.mark.parametrize('change, message', [
    ({'width_px': 0}, '0x480'), ({'height_px': -1}, '640x-1'), ({'fx_px': 0.0}, 'fx=0.0'),
    ({'fy_px': -3.0}, 'fy=-3.0'), ({'cx_px': float('nan')}, 'nan'),
    ({'distortion_model': 'plumb_bob', 'distortion': (float('inf'), 0.0, 0.0, 0.0)}, 'inf'),
    ({'distortion_model': 'thin_prism'}, 'thin_prism'),
    ({'distortion_model': 'plumb_bob', 'distortion': (0.1,)}, '4 or 5 coefficients, got 1'),
    ({'distortion': (0.1,)}, 'pinhole.* got 1'),
])
def test_unusable_intrinsics_are_refused_with_their_value(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(CAMERA, **change)


@pytest.mark.parametrize('change, message', [
    ({'image': np.zeros((480, 640), np.float32)}, 'float32'),
    ({'image': np.zeros((480, 640, 4), np.uint8)}, r'\(480, 640, 4\)'),
    ({'image': np.zeros(480, np.uint8)}, r'\(480,\)'),
    ({'image': np.zeros((0, 640), np.uint8)}, r'\(0, 640\)'),
    ({'image': np.zeros((240, 320), np.uint8)}, '320x240 px but its intrinsics are for 640x480'),
    ({'exposure_time_s': 0.0}, '0.0 s'), ({'exposure_time_s': 11.0}, '11.0 s'),
    ({'exposure_time_s': float('nan')}, 'nan s'), ({'readout_time_s': -0.01}, '-0.01 s'),
    ({'readout_time_s': float('inf')}, 'inf s'),
])
def test_unusable_frames_are_refused_with_their_value(change, message):
    with pytest.raises(InputError, match=message):
        Frame(**{'image': np.zeros((480, 640), np.uint8), 'stamp_ns': 0, 'intrinsics': CAMERA,
                 'exposure_time_s': 0.01, **change})


def estimate(covariance):
    return MotionEstimate(5, 0.01, np.array([1.0, 2.0, 3.0]), np.array([0.1, 0.2, 0.3]),
                          covariance, True, 4.0, 0.5, 7.0, 0.9, EstimateStatus.OK)


def test_estimate_turns_into_other_axes_with_its_covariance():
    spread = np.random.default_rng(2).standard_normal((6, 6))
    motion = estimate(spread @ spread.T)
    turn = Rotation.from_euler('xyz', [0.4, -0.3, 2.0]).as_matrix()
    turned = motion.rotated(turn)
    np.testing.assert_allclose(turned.angular_velocity_rad_s, turn @ [1.0, 2.0, 3.0])
    np.testing.assert_allclose(turned.linear_velocity_m_s, turn @ [0.1, 0.2, 0.3])
    for rows in (slice(0, 3), slice(3, 6)):
        for columns in (slice(0, 3), slice(3, 6)):
            np.testing.assert_allclose(turned.covariance[rows, columns],
                                       turn @ motion.covariance[rows, columns] @ turn.T)
    assert turned.usable and turned.stamp_ns == 5


def test_negated_estimate_is_the_other_motion_of_the_same_blur():
    motion = estimate(np.eye(6))
    other = motion.negated()
    np.testing.assert_array_equal(other.angular_velocity_rad_s, [-1.0, -2.0, -3.0])
    np.testing.assert_array_equal(other.linear_velocity_m_s, [-0.1, -0.2, -0.3])
    np.testing.assert_array_equal(other.covariance, motion.covariance)


@pytest.mark.parametrize('status, sign_resolved, usable', [
    (EstimateStatus.OK, True, True), (EstimateStatus.PREDICTED, True, True),
    (EstimateStatus.OK, False, False), (EstimateStatus.SIGN_UNRESOLVED, False, False),
    (EstimateStatus.NO_SIGNAL, False, False),
])
def test_only_signed_measurements_are_usable(status, sign_resolved, usable):
    motion = dataclasses.replace(estimate(np.eye(6)), status=status, sign_resolved=sign_resolved)
    assert motion.usable is usable


def soft_labels(displacement_px):
    """Distribution (N, BINS) whose interpolation weights are those of displacements (N, 2)."""
    bins, weights = interpolation(displacement_px)
    return torch.zeros(len(displacement_px), BINS).scatter_add(1, bins, weights)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-200, 200, width=32)] * 2), min_size=1, max_size=20))
def test_a_displacement_and_its_negative_share_their_bins(displacements):
    displacement_px = torch.tensor(displacements, dtype=torch.float32)
    bins, weights = interpolation(displacement_px)
    assert 0 <= bins.min() and bins.max() < BINS
    assert weights.min() >= 0
    np.testing.assert_allclose(weights.sum(dim=-1), 1.0, atol=1e-5)
    # the angle of a float32 vector is known to some 1e-6 rad, a weight to 1e-5
    np.testing.assert_allclose(soft_labels(displacement_px), soft_labels(-displacement_px),
                               atol=1e-4)


def test_bins_are_the_same_in_numpy_and_torch():
    displacement_px = np.random.default_rng(0).normal(0.0, 30.0, (1000, 2)).astype(np.float32)
    for array, tensor in zip(interpolation(displacement_px),
                             interpolation(torch.from_numpy(displacement_px))):
        np.testing.assert_allclose(array, tensor, atol=1e-4)


def test_the_centre_of_a_bin_belongs_to_that_bin_alone():
    np.testing.assert_allclose(soft_labels(torch.from_numpy(bin_displacements())), np.eye(BINS),
                               atol=1e-3)


def test_the_last_ring_holds_all_longer_displacements():
    longest = torch.tensor([[MAX_RADIUS_PX, 0.0]])
    np.testing.assert_array_equal(soft_labels(3 * longest), soft_labels(longest))


@pytest.mark.parametrize('change', [
    {'fx_px': 1e-300}, {'fy_px': 1e9}, {'cx_px': 1e300}, {'cy_px': -1e9},
    {'distortion_model': 'plumb_bob', 'distortion': (1e300, 0.0, 0.0, 0.0, 0.0)}])
def test_absurd_intrinsics_are_refused(change):
    with pytest.raises(InputError, match='absurd'):
        dataclasses.replace(CAMERA, **change)
    # of a small crop
    dataclasses.replace(CAMERA, fx_px=60 * CAMERA.fx_px, cx_px=-60 * CAMERA.cx_px)
