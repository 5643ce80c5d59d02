"""
Pure functions between ROS messages and the core's values.

Messages are read by their fields alone, so those of a bag reader serve as well as rclpy's; the
classes of the messages that are built here are imported where they are built.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from image_as_imu_ros.errors import InputError
from image_as_imu_ros.geometry.motion_field import cross_matrix
from image_as_imu_ros.image_decoding import ENCODINGS, decode_compressed, decode_image
from image_as_imu_ros.types import CameraIntrinsics, MotionEstimate

if TYPE_CHECKING:
    from builtin_interfaces.msg import Time
    from geometry_msgs.msg import Transform, TwistWithCovarianceStamped
    from sensor_msgs.msg import Image, Imu
    from std_msgs.msg import Header

    from image_as_imu_ros.msg import MotionEstimate as MotionEstimateMsg


def stamp_to_ns(stamp: Time) -> int:
    """Nanoseconds of a `builtin_interfaces/Time`."""
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def ns_to_stamp(stamp_ns: int) -> Time:
    """`builtin_interfaces/Time` of nanoseconds."""
    from builtin_interfaces.msg import Time
    seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
    return Time(sec=seconds, nanosec=nanoseconds)


def image_from_msg(msg: Any) -> np.ndarray:
    """
    Pixels of a `sensor_msgs/Image`, without a copy where its layout allows.

    Encodings that `decode_image` does not know are left to cv_bridge where it is installed.

    :returns: (H, W) gray or (H, W, 3) RGB, uint8 or uint16; may be a read-only view
    :raises InputError: if the encoding is unknown or the sizes contradict each other
    """
    if msg.encoding not in ENCODINGS:
        return _image_through_cv_bridge(msg)
    image = decode_image(
        msg.encoding, msg.width, msg.height, msg.step, bool(msg.is_bigendian), msg.data)
    if len(msg.data) > msg.step * msg.height:
        raise InputError(
            f'image data of {len(msg.data)} bytes is more than step x height = {msg.step} x '
            f'{msg.height}; the camera driver fills the message wrongly')
    return image


def _image_through_cv_bridge(msg: Any) -> np.ndarray:
    """
    Let cv_bridge of a ROS installation read an image.

    :raises InputError: if it is not installed or cannot read the image either
    """
    try:
        from cv_bridge import CvBridge, CvBridgeError
    except ModuleNotFoundError as error:
        raise InputError(f'image encoding "{msg.encoding}" is not supported; '
                         f'use one of {", ".join(ENCODINGS)}') from error
    except (ImportError, AttributeError, SystemError) as error:
        raise InputError(
            f'image encoding "{msg.encoding}" needs cv_bridge, which does not work with NumPy '
            f'{np.__version__} ({error}); use one of {", ".join(ENCODINGS)}') from error
    try:
        return CvBridge().imgmsg_to_cv2(msg, 'rgb8')
    except (CvBridgeError, cv2.error, KeyError, ValueError, TypeError) as error:
        raise InputError(
            f'image encoding "{msg.encoding}" cannot be read by cv_bridge: {error}') from error


def depth_from_msg(msg: Any) -> np.ndarray:
    """
    Depth of a `sensor_msgs/Image`, (H, W) float32, m; NaN where unknown (REP-118).

    :raises InputError: if it is neither 16UC1 (mm) nor 32FC1 (m), or its sizes contradict it
    """
    kinds = {'16UC1': (np.uint16, 1e-3), 'mono16': (np.uint16, 1e-3), '32FC1': (np.float32, 1.0)}
    if msg.encoding not in kinds:
        raise InputError(f'depth encoding "{msg.encoding}" is neither 16UC1 (mm) nor 32FC1 (m)')
    kind, unit_m = kinds[msg.encoding]
    row = msg.width * np.dtype(kind).itemsize
    if not 0 < row <= msg.step or len(msg.data) < msg.step * msg.height or not msg.height:
        raise InputError(f'depth image of {msg.width}x{msg.height} px has step {msg.step} and '
                         f'{len(msg.data)} bytes')
    order = '>' if msg.is_bigendian else '<'
    rows = np.frombuffer(msg.data, np.uint8)[:msg.step * msg.height].reshape(msg.height, msg.step)
    depth = np.ascontiguousarray(rows[:, :row]).view(np.dtype(kind).newbyteorder(order))
    depth = depth.astype(np.float32) * np.float32(unit_m)
    return np.where(np.isfinite(depth) & (depth > 0.0), depth, np.float32(np.nan))


def image_from_compressed_msg(msg: Any) -> np.ndarray:
    """
    Pixels of a `sensor_msgs/CompressedImage`.

    :returns: (H, W) gray or (H, W, 3) RGB, uint8 or uint16
    :raises InputError: if the data is empty, truncated or in no known format
    """
    return decode_compressed(msg.data)


def intrinsics_from_msg(msg: Any, rectified: bool = False) -> CameraIntrinsics:
    """
    Intrinsics of the images that a `sensor_msgs/CameraInfo` describes.

    Of images before rectification K and D count, of rectified ones P alone. A region of interest
    and binning are applied, as the driver applied them: the result is for the size of its
    images. `fisheye` is an alias of `equidistant`.

    :raises InputError: if the camera is uncalibrated or its distortion model is unknown
    """
    name, numbers, columns = ('P', msg.p, 4) if rectified else ('K', msg.k, 3)
    fx, fy, cx, cy = (float(numbers[index]) for index in (0, columns + 1, 2, columns + 2))
    if fx == 0.0:
        raise InputError(f'camera_info has {name}[0] = 0: the camera is uncalibrated; '
                         'calibrate it' + (', or set rectified to no' if rectified else ''))
    model = {'fisheye': 'equidistant'}.get(msg.distortion_model, msg.distortion_model)
    distortion = tuple(float(value) for value in msg.d)
    if rectified or (model != 'equidistant' and not any(distortion)):
        model, distortion = 'pinhole', ()
    roi = msg.roi
    width, height = (roi.width, roi.height) if roi.width and roi.height else (
        msg.width, msg.height)
    binning_x, binning_y = max(msg.binning_x, 1), max(msg.binning_y, 1)
    return CameraIntrinsics(
        width // binning_x, height // binning_y, fx / binning_x, fy / binning_y,
        (cx - roi.x_offset + 0.5) / binning_x - 0.5, (cy - roi.y_offset + 0.5) / binning_y - 0.5,
        model, distortion)


def moved_to_frame(estimate: MotionEstimate, transform: Transform) -> MotionEstimate:
    """
    Motion of another frame of the same rigid body, in that frame's axes.

    :param transform: from the camera's optical frame to the other one, as TF looks it up with
        the other frame as target
    """
    q, t = transform.rotation, transform.translation
    x, y, z, w = np.array([q.x, q.y, q.z, q.w]) / np.linalg.norm([q.x, q.y, q.z, q.w])
    rotation = np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]])
    rotated = estimate.rotated(rotation)
    # The other frame's origin lies at -t from the camera, seen in its axes: v + w x (-t).
    lever_arm = cross_matrix(np.array([t.x, t.y, t.z]))
    jacobian = np.block([[np.eye(3), lever_arm], [np.zeros((3, 3)), np.eye(3)]])
    return replace(
        rotated,
        linear_velocity_m_s=(
            rotated.linear_velocity_m_s + lever_arm @ rotated.angular_velocity_rad_s),
        covariance=jacobian @ rotated.covariance @ jacobian.T)


def imu_to_msg(estimate: MotionEstimate, frame_id: str) -> Imu:
    """Gyroscope-only `sensor_msgs/Imu` (REP-145): the other fields are flagged as absent."""
    from sensor_msgs.msg import Imu
    msg = Imu(header=_header(estimate, frame_id))
    _fill_vector(msg.angular_velocity, estimate.angular_velocity_rad_s)
    msg.angular_velocity_covariance = estimate.covariance[3:, 3:].ravel()
    msg.orientation_covariance[0] = -1.0
    msg.linear_acceleration_covariance[0] = -1.0
    return msg


def twist_to_msg(estimate: MotionEstimate, frame_id: str) -> TwistWithCovarianceStamped:
    """`geometry_msgs/TwistWithCovarianceStamped` in the axes of `frame_id`."""
    from geometry_msgs.msg import TwistWithCovarianceStamped
    msg = TwistWithCovarianceStamped(header=_header(estimate, frame_id))
    _fill_vector(msg.twist.twist.linear, estimate.linear_velocity_m_s)
    _fill_vector(msg.twist.twist.angular, estimate.angular_velocity_rad_s)
    msg.twist.covariance = estimate.covariance.ravel()
    return msg


def motion_to_msg(estimate: MotionEstimate, frame_id: str, exposure_source: int,
                  processing_latency_s: float) -> MotionEstimateMsg:
    """
    All of an estimate as `image_as_imu_ros/MotionEstimate`.

    :param exposure_source: one of the message's EXPOSURE_ constants
    :param processing_latency_s: from the image's arrival until now
    """
    from image_as_imu_ros.msg import MotionEstimate as MotionEstimateMsg
    msg = MotionEstimateMsg(
        header=_header(estimate, frame_id),
        exposure_time=float(estimate.exposure_time_s or 0.0), exposure_source=exposure_source,
        covariance=estimate.covariance.ravel(), status=int(estimate.status),
        sign_resolved=bool(estimate.sign_resolved), sign_margin=float(estimate.sign_margin),
        quality=float(estimate.quality), blur_extent_px=float(estimate.blur_extent_px),
        inlier_share=float(estimate.inlier_share), row_band_index=estimate.row_band_index,
        row_band_count=estimate.row_band_count,
        processing_latency=processing_latency_s)
    _fill_vector(msg.angular_velocity, estimate.angular_velocity_rad_s)
    _fill_vector(msg.linear_velocity, estimate.linear_velocity_m_s)
    return msg


def image_to_msg(image: np.ndarray, stamp_ns: int, frame_id: str) -> Image:
    """`sensor_msgs/Image` of (H, W, 3) RGB, uint8."""
    from sensor_msgs.msg import Image
    from std_msgs.msg import Header
    height, width = image.shape[:2]
    msg = Image(header=Header(stamp=ns_to_stamp(stamp_ns), frame_id=frame_id), height=height,
                width=width, encoding='rgb8', step=3 * width)
    msg.data.frombytes(image.tobytes())
    return msg


def _header(estimate: MotionEstimate, frame_id: str) -> Header:
    """Header at the middle of the exposure."""
    from std_msgs.msg import Header
    return Header(stamp=ns_to_stamp(estimate.stamp_ns), frame_id=frame_id)


def _fill_vector(vector: Any, values: np.ndarray) -> None:
    """Set x, y, z of a geometry_msgs/Vector3."""
    vector.x, vector.y, vector.z = map(float, values)
