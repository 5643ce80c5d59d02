"""A measured depth makes the linear velocity metric, and near things move more than far ones."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from image_as_imu_ros.config import EstimatorConfig
from image_as_imu_ros.errors import DataFormatError, InputError
from image_as_imu_ros.estimator import (
    MEASURED_DEPTH_ERROR,
    VisualGyroscope,
    relative_nearness,
    with_nearness,
)
from image_as_imu_ros.evaluation.sources import open_recording
from image_as_imu_ros.evaluation.sources.recording import RecordingOptions
from image_as_imu_ros.geometry.camera import WorkingCamera
from image_as_imu_ros.geometry.motion_field import motion_field_matrix, pixel_grid
from image_as_imu_ros.types import CameraIntrinsics, Frame

CAMERA = CameraIntrinsics(320, 240, 300.0, 300.0, 159.5, 119.5)


def ramp(width_px, height_px):
    """Depth that rises by 1 m per image width and 2 m per image height, (H, W) m."""
    x, y = np.meshgrid((np.arange(width_px) + 0.5) / width_px,
                       (np.arange(height_px) + 0.5) / height_px)
    return (1.0 + x + 2.0 * y).astype(np.float32)


@pytest.mark.parametrize('size', [(320, 240), (640, 480), (256, 192), (64, 48)])
def test_depth_of_any_resolution_is_looked_up_where_the_image_shows_it(size):
    camera = WorkingCamera(CAMERA, 320)
    points = pixel_grid(320, 240, 8)
    expected = 1.0 + (points[..., 0] + 0.5) / 320 + 2.0 * (points[..., 1] + 0.5) / 240
    np.testing.assert_allclose(camera.depth_at(ramp(*size), points), expected, atol=0.03)


def test_depth_is_cropped_and_reduced_as_the_image_is():
    source = CameraIntrinsics(1306, 978, 1000.0, 1000.0, 652.5, 488.5)
    camera = WorkingCamera(source, 320)
    depth_m = ramp(1306, 978)
    points = pixel_grid(camera.intrinsics.width_px, camera.intrinsics.height_px, 8)
    reduced = camera.working_image((depth_m * 10_000).astype(np.uint16)) * 65535 / 10_000
    centres = cv2.remap(reduced, *np.moveaxis(points.astype(np.float32), -1, 0), cv2.INTER_LINEAR)
    np.testing.assert_allclose(camera.depth_at(depth_m, points), centres, atol=0.01)


def test_depth_follows_the_undistortion():
    distorted = replace(CAMERA, distortion_model='plumb_bob', distortion=(-0.25, 0.05, 0.0, 0.0))
    camera = WorkingCamera(distorted, 320)
    points = pixel_grid(320, 240, 8)
    rays = np.concatenate([(points - [159.5, 119.5]) / 300.0,
                           np.ones((*points.shape[:2], 1))], -1).reshape(-1, 3)
    seen, _ = cv2.projectPoints(rays, np.zeros(3), np.zeros(3), distorted.matrix,
                                np.array(distorted.distortion))
    x, y = seen.reshape(*points.shape[:2], 2).transpose(2, 0, 1)
    expected = 1.0 + (x + 0.5) / 320 + 2.0 * (y + 0.5) / 240
    found = camera.depth_at(ramp(320, 240), points)
    inside = (x > 3) & (x < 316) & (y > 3) & (y < 236)
    np.testing.assert_allclose(found[inside], expected[inside], atol=0.02)


def test_unknown_depth_is_told_as_such_and_holes_are_bridged():
    depth_m = np.full((240, 320), 3.0, np.float32)
    depth_m[:120] = np.nan
    depth_m[200:201] = 0.0
    found = WorkingCamera(CAMERA, 320).depth_at(depth_m, pixel_grid(320, 240, 8))
    assert np.isnan(found[:14]).all()
    assert (found[16:] == 3.0).all()


def test_near_cells_move_more_under_a_translation_and_alike_under_a_rotation():
    matrix = motion_field_matrix(pixel_grid(320, 240, 8), CAMERA)
    depth_m = np.full(matrix.shape[:2], 4.0)
    depth_m[:10], depth_m[20:22] = 2.0, np.nan
    median_m, nearness = relative_nearness(depth_m)
    scaled = with_nearness(matrix, nearness)
    assert median_m == 4.0
    np.testing.assert_array_equal(scaled[..., :3], matrix[..., :3])
    np.testing.assert_allclose(scaled[:10, ..., 3:], 2.0 * matrix[:10, ..., 3:])
    np.testing.assert_array_equal(scaled[10:, ..., 3:], matrix[10:, ..., 3:])


def test_too_little_known_depth_is_left_out():
    depth_m = np.full((30, 40), np.nan)
    depth_m[:3] = 2.0
    assert relative_nearness(depth_m) == (None, None)


def test_velocity_is_in_proportion_to_the_measured_depth_and_more_certain(
        gyroscope, blurred_frames):
    frame = blurred_frames[3]
    assumed = gyroscope.estimate(frame)
    near, far = (gyroscope.estimate(replace(
        frame, depth_m=np.full((60, 80), depth_m, np.float32))) for depth_m in (2.0, 6.0))
    np.testing.assert_allclose(near.linear_velocity_m_s, assumed.linear_velocity_m_s, rtol=1e-6)
    np.testing.assert_allclose(far.linear_velocity_m_s, 3.0 * near.linear_velocity_m_s, rtol=1e-6)
    np.testing.assert_allclose(far.angular_velocity_rad_s, near.angular_velocity_rad_s, rtol=1e-6)
    assert np.trace(near.covariance[:3, :3]) < np.trace(assumed.covariance[:3, :3])
    speed = np.linalg.norm(near.linear_velocity_m_s)
    assert np.trace(near.covariance[:3, :3]) >= (MEASURED_DEPTH_ERROR * speed) ** 2


def test_known_scene_distance_narrows_the_covariance(gyroscope, blurred_frames):
    known = VisualGyroscope(EstimatorConfig(device='cpu', threads=1, scene_depth=4.0,
                                            scene_depth_error=0.02))
    estimate, assumed = known.estimate(blurred_frames[3]), gyroscope.estimate(blurred_frames[3])
    np.testing.assert_allclose(estimate.linear_velocity_m_s, 2.0 * assumed.linear_velocity_m_s,
                               rtol=1e-6)
    along = estimate.linear_velocity_m_s / np.linalg.norm(estimate.linear_velocity_m_s)
    share = along @ estimate.covariance[:3, :3] @ along \
        / np.linalg.norm(estimate.linear_velocity_m_s) ** 2
    assumed_share = along @ assumed.covariance[:3, :3] @ along \
        / np.linalg.norm(assumed.linear_velocity_m_s) ** 2
    assert assumed_share - share == pytest.approx(0.5 ** 2 - 0.02 ** 2, rel=1e-6)


@pytest.mark.parametrize('depth_m', [np.zeros((4, 4), np.uint16), np.zeros((4, 4, 1), np.float32),
                                     np.zeros((0, 4), np.float32)])
def test_depth_of_another_shape_or_type_is_refused(depth_m):
    with pytest.raises(InputError, match='depth of shape'):
        Frame(np.zeros((240, 320), np.uint8), 0, CAMERA, 0.01, depth_m=depth_m)


def test_depth_images_of_a_recording_belong_to_their_rows(data_folder):
    source = data_folder / 'strayscanner_dining'
    (stream,) = open_recording(source, options=RecordingOptions(depth=True)).streams
    depth_m = stream.records[10].depth()
    assert depth_m.shape == (224, 320)
    assert 0.3 < np.nanmedian(depth_m) < 8.0
    stored_mm = cv2.imread(str(source / 'depth' / '000011.png'), cv2.IMREAD_UNCHANGED)
    assert np.nanmedian(depth_m) == pytest.approx(np.median(stored_mm) * 1e-3, rel=0.1)


def test_recording_without_depth_images_says_so(data_folder, tmp_path):
    for path in (data_folder / 'strayscanner_dining').iterdir():
        if path.name != 'depth':
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(DataFormatError, match='no depth images'):
        open_recording(tmp_path, options=RecordingOptions(depth=True))
