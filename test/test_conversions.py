"""Messages to values and back; what is wrong in a message is said, never guessed."""

import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy')

from geometry_msgs.msg import Transform
from hypothesis import given, settings
from hypothesis import strategies as st
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from image_as_imu_ros.errors import InputError
from image_as_imu_ros.image_decoding import ENCODINGS
from image_as_imu_ros.ros import conversions
from image_as_imu_ros.types import EstimateStatus, MotionEstimate

RANDOM = np.random.default_rng(5)


def image_msg(pixels: np.ndarray, encoding: str, padding: int = 0, big_endian: bool = False):
    """Message of (H, W[, C]) pixels as they lie in memory, with `padding` bytes a row."""
    height, width = pixels.shape[:2]
    stored = pixels.astype(pixels.dtype.newbyteorder('>' if big_endian else '<'))
    rows = np.frombuffer(stored.tobytes(), np.uint8).reshape(height, -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=255)
    msg = Image(encoding=encoding, width=width, height=height, step=rows.shape[1],
                is_bigendian=int(big_endian))
    msg.data.frombytes(rows.tobytes())
    return msg


def estimate(**changes) -> MotionEstimate:
    """Estimate with distinct numbers in every field."""
    spread = RANDOM.standard_normal((6, 6))
    values = {
        'stamp_ns': 12_000_000_345, 'exposure_time_s': 0.008,
        'angular_velocity_rad_s': np.array([1.0, -2.0, 3.0]),
        'linear_velocity_m_s': np.array([0.1, 0.2, -0.3]),
        'covariance': spread @ spread.T + np.eye(6), 'sign_resolved': True, 'sign_margin': 7.0,
        'quality': 0.5, 'blur_extent_px': 9.0, 'inlier_share': 0.75,
        'status': EstimateStatus.PREDICTED}
    return MotionEstimate(**(values | changes))


@pytest.mark.parametrize('padding', [0, 1, 6])
@pytest.mark.parametrize('encoding, order', [
    ('rgb8', [0, 1, 2]), ('bgr8', [2, 1, 0]), ('8UC3', [2, 1, 0]), ('rgba8', [0, 1, 2, 3]),
    ('bgra8', [2, 1, 0, 3])])
def test_colours_come_out_as_rgb(encoding, order, padding):
    rgba = RANDOM.integers(0, 256, (5, 7, 4), np.uint8)
    image = conversions.image_from_msg(image_msg(rgba[..., order], encoding, padding))
    np.testing.assert_array_equal(image, rgba[..., :3])


@pytest.mark.parametrize('big_endian', [False, True])
@pytest.mark.parametrize('encoding', ['mono16', '16UC1'])
def test_sixteen_bit_gray_in_either_byte_order(encoding, big_endian):
    gray = RANDOM.integers(0, 65536, (5, 7), np.uint16)
    image = conversions.image_from_msg(image_msg(gray, encoding, 3, big_endian))
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image, gray)


def test_plain_pixels_are_not_copied():
    msg = image_msg(RANDOM.integers(0, 256, (5, 7, 3), np.uint8), 'rgb8')
    image = conversions.image_from_msg(msg)
    assert np.shares_memory(image, np.frombuffer(msg.data, np.uint8))


@pytest.mark.parametrize('encoding, chroma_first', [
    ('yuv422', True), ('uyvy', True), ('yuv422_yuy2', False), ('yuyv', False)])
def test_yuv422_in_both_orders(encoding, chroma_first):
    """A constant colour, laid out by hand: Y 120, U 90, V 200 (BT.601, limited range)."""
    row = [90, 120, 200, 120] if chroma_first else [120, 90, 120, 200]
    pixels = np.tile(np.array(row, np.uint8).reshape(1, 2, 2), (4, 3, 1))
    image = conversions.image_from_msg(image_msg(pixels, encoding))
    luma = 1.164 * (120 - 16)
    expected = [luma + 1.596 * 72, luma - 0.813 * 72 - 0.391 * -38, luma + 2.018 * -38]
    np.testing.assert_allclose(image, np.broadcast_to(expected, (4, 6, 3)), atol=1.5)


@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
def test_bayer_patterns_give_the_colour_that_they_sampled(pattern):
    colour = {'r': 200, 'g': 120, 'b': 40}
    cell = np.array([colour[letter] for letter in pattern], np.uint8).reshape(2, 2)
    image = conversions.image_from_msg(image_msg(np.tile(cell, (4, 5)), f'bayer_{pattern}8'))
    np.testing.assert_allclose(image[2:-2, 2:-2], np.broadcast_to([200, 120, 40], (4, 6, 3)))


@pytest.mark.parametrize('change, complaint', [
    ({'encoding': 'nv99'}, 'nv99'),
    ({'step': 20}, 'step 20'),
    ({'width': 0}, '0x5'),
    ({'height': 0}, '7x0'),
    ({'height': 6}, 'truncated'),
    ({'height': 4}, 'more than'),
    ({'width': 2**32 - 1}, 'step'),
    ({'height': 2**32 - 1}, 'truncated'),
])
def test_contradictions_in_an_image_are_named(change, complaint):
    msg = image_msg(RANDOM.integers(0, 256, (5, 7, 3), np.uint8), 'rgb8')
    for name, value in change.items():
        setattr(msg, name, value)
    with pytest.raises(InputError, match=complaint):
        conversions.image_from_msg(msg)


@settings(max_examples=300, deadline=None)
@given(encoding=st.sampled_from(ENCODINGS), width=st.integers(0, 9), height=st.integers(0, 9),
       step=st.integers(0, 80), big_endian=st.booleans(), size=st.integers(0, 800))
def test_any_header_gives_an_image_of_its_size_or_an_input_error(
        encoding, width, height, step, big_endian, size):
    msg = Image(encoding=encoding, width=width, height=height, step=step,
                is_bigendian=int(big_endian))
    msg.data.frombytes(bytes(size))
    try:
        image = conversions.image_from_msg(msg)
    except InputError:
        return
    assert image.shape[:2] == (height, width)
    assert image.dtype in (np.uint8, np.uint16)


@settings(max_examples=100, deadline=None)
@given(width=st.integers(1, 9), height=st.integers(1, 9), padding=st.integers(0, 5),
       big_endian=st.booleans(), seed=st.integers(0, 99))
def test_padding_and_byte_order_never_change_the_pixels(width, height, padding, big_endian, seed):
    random = np.random.default_rng(seed)
    gray = random.integers(0, 65536, (height, width), np.uint16)
    colour = random.integers(0, 256, (height, width, 3), np.uint8)
    np.testing.assert_array_equal(
        conversions.image_from_msg(image_msg(gray, 'mono16', padding, big_endian)), gray)
    np.testing.assert_array_equal(
        conversions.image_from_msg(image_msg(colour, 'rgb8', padding)), colour)


def test_rare_encodings_are_refused_where_cv_bridge_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, 'cv_bridge', None)
    with pytest.raises(InputError, match='"32FC1" is not supported; use one of rgb8'):
        conversions.image_from_msg(image_msg(np.ones((4, 5), np.float32), '32FC1'))


def test_a_cv_bridge_of_another_numpy_is_named_and_not_fatal(monkeypatch, tmp_path):
    """Its import as it fails with NumPy 2 where it was built for NumPy 1."""
    (tmp_path / 'cv_bridge.py').write_text(
        "raise AttributeError('_ARRAY_API not found')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'cv_bridge', raising=False)
    with pytest.raises(InputError, match=f'does not work with NumPy {np.__version__}'):
        conversions.image_from_msg(image_msg(np.ones((4, 5), np.float32), '32FC1'))


def test_what_cv_bridge_cannot_read_either_is_an_input_error():
    pytest.importorskip('cv_bridge')
    with pytest.raises(InputError, match='cannot be read by cv_bridge'):
        conversions.image_from_msg(image_msg(np.ones((6, 5), np.uint8), 'nv99'))


@pytest.mark.parametrize('extension', ['.png', '.jpg'])
@pytest.mark.parametrize('shape', [(48, 65), (48, 65, 3)])
def test_compressed_images_come_out_as_rgb_or_gray(extension, shape):
    ramp = np.linspace(0, 255, 48 * 65).reshape(48, 65)
    pixels = np.zeros(shape, np.uint8) + (ramp if len(shape) == 2 else ramp[..., None])
    if len(shape) == 3:
        pixels = pixels * [1.0, 0.5, 0.25]
    pixels = pixels.astype(np.uint8)
    stored = pixels if len(shape) == 2 else pixels[..., ::-1]
    msg = CompressedImage(format=extension[1:])
    msg.data.frombytes(cv2.imencode(extension, stored)[1].tobytes())
    image = conversions.image_from_compressed_msg(msg)
    np.testing.assert_allclose(image.astype(float), pixels, atol=0 if extension == '.png' else 12)


@pytest.mark.parametrize('extension', ['.png', '.jpg'])
@pytest.mark.parametrize('kept', [0, 1, 40, 0.5, -3])
def test_truncated_compressed_images_are_refused(extension, kept):
    data = cv2.imencode(extension, RANDOM.integers(0, 256, (48, 64, 3), np.uint8))[1].tobytes()
    msg = CompressedImage(format=extension[1:])
    msg.data.frombytes(data[:int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(InputError):
        conversions.image_from_compressed_msg(msg)


def camera_info(**changes) -> CameraInfo:
    """Camera of 640x480 px."""
    msg = CameraInfo(width=640, height=480, distortion_model='plumb_bob', d=[0.0] * 5,
                     k=[500.0, 0.0, 320.0, 0.0, 510.0, 240.0, 0.0, 0.0, 1.0])
    for name, value in changes.items():
        setattr(msg, name, value)
    return msg


def test_undistorted_camera_is_a_pinhole():
    for msg in (camera_info(), camera_info(d=[], distortion_model='')):
        intrinsics = conversions.intrinsics_from_msg(msg)
        assert intrinsics.distortion_model == 'pinhole'
        assert (intrinsics.width_px, intrinsics.height_px) == (640, 480)
        assert (intrinsics.fx_px, intrinsics.fy_px) == (500.0, 510.0)
        assert (intrinsics.cx_px, intrinsics.cy_px) == (320.0, 240.0)


@pytest.mark.parametrize('model, core_model, count', [
    ('plumb_bob', 'plumb_bob', 5), ('rational_polynomial', 'rational_polynomial', 8),
    ('equidistant', 'equidistant', 4), ('fisheye', 'equidistant', 4)])
def test_distortion_keeps_its_model_and_coefficients(model, core_model, count):
    coefficients = tuple(0.01 * (index + 1) for index in range(count))
    intrinsics = conversions.intrinsics_from_msg(
        camera_info(distortion_model=model, d=coefficients))
    assert intrinsics.distortion_model == core_model
    assert intrinsics.distortion == coefficients


def test_fisheye_without_coefficients_is_not_a_pinhole():
    msg = camera_info(distortion_model='equidistant', d=[0.0] * 4)
    assert conversions.intrinsics_from_msg(msg).distortion_model == 'equidistant'


def test_region_of_interest_and_binning_apply_to_the_intrinsics():
    """A scene point keeps its place: full-resolution pixel u lies at (u - x0 + 0.5) / 2 - 0.5."""
    msg = camera_info(binning_x=2, binning_y=2)
    msg.roi.x_offset, msg.roi.y_offset, msg.roi.width, msg.roi.height = 100, 50, 401, 300
    intrinsics = conversions.intrinsics_from_msg(msg)
    assert (intrinsics.width_px, intrinsics.height_px) == (200, 150)
    for slope in (-0.2, 0.0, 0.3):
        full = 500.0 * slope + 320.0
        assert intrinsics.fx_px * slope + intrinsics.cx_px == pytest.approx(
            (full - 100 + 0.5) / 2 - 0.5)


@pytest.mark.parametrize('changes, complaint', [
    ({'k': [0.0] * 9}, 'uncalibrated'),
    ({'k': [float('nan')] * 9}, 'not finite'),
    ({'k': [500.0, 0.0, 320.0, 0.0, -5.0, 240.0, 0.0, 0.0, 1.0]}, 'fy=-5.0'),
    ({'width': 0}, '0x480'),
    ({'distortion_model': 'double_sphere', 'd': [0.1]}, 'double_sphere'),
    ({'d': [0.1, 0.2]}, 'coefficients'),
    ({'d': [float('nan')] * 5}, 'not finite'),
])
def test_unusable_cameras_are_refused_with_the_reason(changes, complaint):
    with pytest.raises(InputError, match=complaint):
        conversions.intrinsics_from_msg(camera_info(**changes))


def test_imu_is_a_gyroscope_only():
    value = estimate()
    msg = conversions.imu_to_msg(value, 'camera_optical')
    assert msg.header.frame_id == 'camera_optical'
    assert (msg.header.stamp.sec, msg.header.stamp.nanosec) == (12, 345)
    assert (msg.angular_velocity.x, msg.angular_velocity.y, msg.angular_velocity.z) == (1, -2, 3)
    np.testing.assert_array_equal(
        np.reshape(msg.angular_velocity_covariance, (3, 3)), value.covariance[3:, 3:])
    assert msg.orientation_covariance[0] == -1.0
    assert msg.linear_acceleration_covariance[0] == -1.0


def test_twist_keeps_the_order_linear_angular():
    value = estimate()
    msg = conversions.twist_to_msg(value, 'camera_optical')
    assert (msg.twist.twist.linear.x, msg.twist.twist.angular.y) == (0.1, -2.0)
    np.testing.assert_array_equal(np.reshape(msg.twist.covariance, (6, 6)), value.covariance)


def test_motion_carries_what_the_others_cannot():
    pytest.importorskip('image_as_imu_ros.msg')
    msg = conversions.motion_to_msg(estimate(exposure_time_s=None), 'camera_optical', 0, 0.02)
    assert msg.exposure_time == 0.0
    assert msg.status == msg.PREDICTED
    assert (msg.sign_resolved, msg.sign_margin, msg.quality) == (True, 7.0, 0.5)
    assert (msg.blur_extent_px, msg.inlier_share, msg.row_band_count) == (9.0, 0.75, 1)
    assert msg.processing_latency == 0.02


@pytest.mark.parametrize('stamp_ns', [0, 1, 1_700_000_000_999_999_999])
def test_stamps_keep_every_nanosecond(stamp_ns):
    assert conversions.stamp_to_ns(conversions.ns_to_stamp(stamp_ns)) == stamp_ns


def test_motion_of_another_frame_of_the_body_follows_from_the_rigid_motion():
    """
    Compare with finite differences of the other frame's pose.

    The camera moves with constant twist; the other frame sits at a fixed transform to it.
    """
    value = estimate()
    angle = 0.7
    transform = Transform()
    transform.rotation.z, transform.rotation.w = np.sin(angle / 2), np.cos(angle / 2)
    transform.translation.x, transform.translation.y, transform.translation.z = 0.3, -0.2, 0.5
    moved = conversions.moved_to_frame(value, transform)

    other_from_camera = np.eye(4)
    other_from_camera[:3, :3] = cv2.Rodrigues(np.array([0.0, 0.0, angle]))[0]
    other_from_camera[:3, 3] = 0.3, -0.2, 0.5
    step_s = 1e-6
    camera_step = np.eye(4)
    camera_step[:3, :3] = cv2.Rodrigues(value.angular_velocity_rad_s * step_s)[0]
    camera_step[:3, 3] = value.linear_velocity_m_s * step_s
    other_step = other_from_camera @ camera_step @ np.linalg.inv(other_from_camera)
    skew = (other_step[:3, :3] - other_step[:3, :3].T) / (2 * step_s)
    np.testing.assert_allclose(
        moved.angular_velocity_rad_s, [skew[2, 1], skew[0, 2], skew[1, 0]], rtol=1e-4)
    np.testing.assert_allclose(
        moved.linear_velocity_m_s, other_step[:3, 3] / step_s, rtol=1e-4)
    assert np.linalg.eigvalsh(moved.covariance).min() > 0
    assert np.trace(moved.covariance[3:, 3:]) == pytest.approx(
        np.trace(value.covariance[3:, 3:]))


def test_conversions_read_messages_that_are_not_of_rclpy():
    msg = SimpleNamespace(encoding='mono8', width=2, height=1, step=2, is_bigendian=False,
                          data=np.array([3, 4], np.uint8))
    np.testing.assert_array_equal(conversions.image_from_msg(msg), [[3, 4]])


@pytest.mark.parametrize('encoding, kind, unit', [
    ('16UC1', '<u2', 1e-3), ('16UC1', '>u2', 1e-3), ('32FC1', '<f4', 1.0), ('32FC1', '>f4', 1.0)])
def test_depth_is_read_in_metres_whatever_its_encoding(encoding, kind, unit):
    values = np.array([[1.0, 0.0, 2.5], [4.0, 0.5, 3.0]])
    pixels = np.rint(values / unit).astype(kind) if unit < 1 else values.astype(kind)
    padded = np.zeros((2, pixels.itemsize * 3 + 5), np.uint8)
    padded[:, :-5] = pixels.view(np.uint8)
    msg = SimpleNamespace(encoding=encoding, width=3, height=2, step=padded.shape[1],
                          is_bigendian=kind[0] == '>', data=padded.tobytes())
    expected = np.where(values > 0, values, np.nan)
    np.testing.assert_allclose(conversions.depth_from_msg(msg), expected, rtol=1e-6)
    for broken in ({'encoding': 'rgb8'}, {'step': 1}, {'data': msg.data[:-1]}, {'height': 0}):
        with pytest.raises(InputError, match='depth'):
            conversions.depth_from_msg(SimpleNamespace(**{**vars(msg), **broken}))
