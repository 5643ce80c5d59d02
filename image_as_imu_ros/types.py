"""Frozen values shared by the core, the command line and the node; units are in the names."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field, replace

import numpy as np

from image_as_imu_ros.errors import InputError

DISTORTION_COEFFICIENTS = {
    'pinhole': (0,),
    'plumb_bob': (4, 5),
    'rational_polynomial': (8,),
    'equidistant': (4,),
}
"""Supported distortion models (ROS CameraInfo names) and their coefficient counts."""


PLAUSIBLE_FOCAL = (0.01, 1000.0)
PLAUSIBLE_CENTRE = 1000.0
"""In longer sides of the image: what a small crop of a long lens's image may have."""
PLAUSIBLE_DISTORTION = 1e4


@dataclass(frozen=True)
class CameraIntrinsics:
    """
    Intrinsics of one image size; pixel centres are at integer coordinates, from 0.

    Distortion models carry the names of `sensor_msgs/CameraInfo` (`plumb_bob`,
    `rational_polynomial`, `equidistant`) with OpenCV's coefficient order, or `pinhole`.

    :raises InputError: if a value is not finite or absurd, a size or focal length is not
        positive, or the model and the number of its coefficients do not match
    """

    width_px: int
    height_px: int
    fx_px: float
    fy_px: float
    cx_px: float
    cy_px: float
    distortion_model: str = 'pinhole'
    distortion: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.width_px <= 0 or self.height_px <= 0:
            raise InputError(f'image size {self.width_px}x{self.height_px} is not positive')
        numbers = (self.fx_px, self.fy_px, self.cx_px, self.cy_px, *self.distortion)
        if not all(math.isfinite(value) for value in numbers):
            raise InputError(f'camera intrinsics are not finite: {numbers}; calibrate the camera')
        if self.fx_px <= 0 or self.fy_px <= 0:
            raise InputError(
                f'focal length fx={self.fx_px}, fy={self.fy_px} px must be positive; '
                'is the camera calibrated?')
        side_px = max(self.width_px, self.height_px)
        low, high = (share * side_px for share in PLAUSIBLE_FOCAL)
        if not low <= min(self.fx_px, self.fy_px) <= max(self.fx_px, self.fy_px) <= high \
                or max(abs(self.cx_px), abs(self.cy_px)) > PLAUSIBLE_CENTRE * side_px \
                or any(abs(value) > PLAUSIBLE_DISTORTION for value in self.distortion):
            raise InputError(f'camera intrinsics are absurd for an image of {self.width_px}x'
                             f'{self.height_px} px: {numbers}; calibrate the camera')
        counts = DISTORTION_COEFFICIENTS.get(self.distortion_model)
        if counts is None:
            raise InputError(
                f'distortion model "{self.distortion_model}" is not supported; '
                f'use one of {", ".join(DISTORTION_COEFFICIENTS)}')
        if len(self.distortion) not in counts:
            raise InputError(
                f'distortion model "{self.distortion_model}" takes '
                f'{" or ".join(map(str, counts))} coefficients, got {len(self.distortion)}')

    @property
    def matrix(self) -> np.ndarray:
        """Camera matrix K, (3, 3), px."""
        return np.array([[self.fx_px, 0.0, self.cx_px], [0.0, self.fy_px, self.cy_px],
                         [0.0, 0.0, 1.0]])

    def resized(self, width_px: int, height_px: int) -> CameraIntrinsics:
        """Intrinsics after the whole image was resized to the given size, px."""
        sx, sy = width_px / self.width_px, height_px / self.height_px
        return replace(
            self, width_px=width_px, height_px=height_px, fx_px=self.fx_px * sx,
            fy_px=self.fy_px * sy, cx_px=(self.cx_px + 0.5) * sx - 0.5,
            cy_px=(self.cy_px + 0.5) * sy - 0.5)


@dataclass(frozen=True)
class Frame:
    """
    One image and what is known of how it was taken.

    `image` is (H, W) gray or (H, W, 3) RGB, uint8 or uint16. `stamp_ns` is the middle of the
    exposure (of the centre row where the shutter rolls). `exposure_time_s` is None where it is
    unknown; `readout_time_s` is 0 for a global or unknown shutter. `depth_m` is (h, w), the
    distance along the optical axis of what the image shows, over the same view but of any
    resolution; NaN where unknown.

    :raises InputError: if the image's type or shape, its match with the intrinsics, or a time
        is unusable
    """

    image: np.ndarray
    stamp_ns: int
    intrinsics: CameraIntrinsics
    exposure_time_s: float | None
    readout_time_s: float = 0.0
    depth_m: np.ndarray | None = None

    def __post_init__(self) -> None:
        shape = self.image.shape
        if self.image.dtype not in (np.uint8, np.uint16):
            raise InputError(f'image dtype {self.image.dtype} is not uint8 or uint16')
        if not (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)) or 0 in shape:
            raise InputError(f'image shape {shape} is neither (H, W) nor (H, W, 3)')
        if shape[:2] != (self.intrinsics.height_px, self.intrinsics.width_px):
            raise InputError(
                f'image is {shape[1]}x{shape[0]} px but its intrinsics are for '
                f'{self.intrinsics.width_px}x{self.intrinsics.height_px} px; '
                'use the camera_info of this image size')
        exposure = self.exposure_time_s
        if exposure is not None and not (math.isfinite(exposure) and 0.0 < exposure <= 10.0):
            raise InputError(f'exposure time {exposure} s is outside (0, 10] s')
        if not (math.isfinite(self.readout_time_s) and 0.0 <= self.readout_time_s <= 1.0):
            raise InputError(f'readout time {self.readout_time_s} s is outside [0, 1] s')
        if self.depth_m is not None and (self.depth_m.ndim != 2 or 0 in self.depth_m.shape
                                         or self.depth_m.dtype.kind != 'f'):
            raise InputError(f'depth of shape {self.depth_m.shape} and type '
                             f'{self.depth_m.dtype} is not (h, w) of floats, in m')


class EstimateStatus(enum.IntEnum):
    """Why an estimate can or cannot be used; the values are those of MotionEstimate.msg."""

    OK = 0
    """Measured from this image (and, in a stream, its predecessors)."""
    PREDICTED = 1
    """The image's sign or motion stayed open; the stream's prediction filled in."""
    SIGN_UNRESOLVED = 2
    """The velocity is known up to one common sign."""
    NO_SIGNAL = 3
    """Too little texture or contrast to measure anything."""


@dataclass(frozen=True)
class MotionEstimate:
    """
    Mean velocity of the camera over one exposure, in its optical frame (REP-103).

    The optical frame has x right, y down, z forward; the angular velocity is the camera's
    relative to the scene, expressed in camera axes. Where `sign_resolved` is false, the
    negative of both vectors is equally likely. `covariance` is (6, 6) in the order linear,
    angular, as in `geometry_msgs/TwistWithCovariance`.
    """

    stamp_ns: int
    exposure_time_s: float | None
    angular_velocity_rad_s: np.ndarray
    linear_velocity_m_s: np.ndarray
    covariance: np.ndarray
    sign_resolved: bool
    sign_margin: float
    """Log-likelihood ratio of the chosen sign over the other one; 0 when unresolved."""
    quality: float
    """0 (no usable signal) to 1."""
    blur_extent_px: float
    """Median length of the blur at the image's own resolution, px."""
    inlier_share: float
    status: EstimateStatus
    timing_ms: dict[str, float] = field(default_factory=dict)
    row_band_index: int = 0
    """Which band of rows was measured, from 0 at the top."""
    row_band_count: int = 1
    """Bands that the image was divided into; 1 for the whole image."""

    @property
    def usable(self) -> bool:
        """Whether the signed velocity may be published as a measurement."""
        return self.sign_resolved and self.status in (EstimateStatus.OK, EstimateStatus.PREDICTED)

    def rotated(self, rotation: np.ndarray) -> MotionEstimate:
        """The same motion in other axes: x_new = rotation @ x_camera, rotation (3, 3)."""
        both = np.kron(np.eye(2), rotation)
        return replace(
            self, angular_velocity_rad_s=rotation @ self.angular_velocity_rad_s,
            linear_velocity_m_s=rotation @ self.linear_velocity_m_s,
            covariance=both @ self.covariance @ both.T)

    def of_either_sign(self) -> MotionEstimate:
        """Zero, with a covariance that holds this motion and its negative."""
        twist = np.concatenate([self.linear_velocity_m_s, self.angular_velocity_rad_s])
        return replace(self, angular_velocity_rad_s=np.zeros(3), linear_velocity_m_s=np.zeros(3),
                       covariance=self.covariance + np.outer(twist, twist))

    def negated(self) -> MotionEstimate:
        """The other of the two motions that blur alone cannot tell apart."""
        return replace(self, angular_velocity_rad_s=-self.angular_velocity_rad_s,
                       linear_velocity_m_s=-self.linear_velocity_m_s)
