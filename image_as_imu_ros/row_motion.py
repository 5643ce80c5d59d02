"""
What a rolling shutter, whose rows are exposed one after another, does to the motion of images.

A camera that turns steadily is seen to turn for a longer or a shorter while between two images,
and one whose rate changes turns by another angle in each row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from image_as_imu_ros.geometry.alignment import Alignment
from image_as_imu_ros.geometry.motion_field import motion_field_matrix, pixel_grid
from image_as_imu_ros.geometry.parallax import Matches, PointMotion
from image_as_imu_ros.motion_filter import without_prior
from image_as_imu_ros.types import CameraIntrinsics, Frame

MAX_GAP_LOSS = 0.75
"""Most by which a scene that moves against the shutter shortens the gap, relative to it."""
STRIDE_PX = 8
"""Between the pixels whose motion stands for that of the image."""
MEMORY_IMAGES = 5
LEAST_GAIN = 0.05
"""By how much straightened points must be less noisy, of the logarithm."""
MOST_GAIN = 1.0
"""By how much one image tells it at most."""


def row_offset_s(rows_px: np.ndarray, intrinsics: CameraIntrinsics, frame: Frame) -> np.ndarray:
    """
    When rows of a reduced image were exposed, from the frame's stamp on.

    :param rows_px: of an image with the given intrinsics, undistorted
    :returns: s, of the same shape
    """
    return frame.readout_time_s * _row_share(rows_px, intrinsics, frame.intrinsics)


def _row_share(rows_px: np.ndarray, intrinsics: CameraIntrinsics,
               source: CameraIntrinsics) -> np.ndarray:
    """The same in readout times, -0.5 to 0.5, of a frame with the intrinsics of its source."""
    rows = source.cy_px + (rows_px - intrinsics.cy_px) * source.fy_px / intrinsics.fy_px
    return (rows + 0.5) / source.height_px - 0.5


def effective_gap_s(turn: np.ndarray, gap_s: float, frame: Frame) -> float:
    """
    Time over which a scene turned that was exposed by other rows in the second image.

    :param turn: (3,) rad, from one image to the next
    :param gap_s: between the same row of both images
    """
    rows = float(turn[0]) * frame.intrinsics.fy_px
    shift_s = frame.readout_time_s * rows / frame.intrinsics.height_px
    return gap_s + max(shift_s, -MAX_GAP_LOSS * gap_s)  # images that match overlap


def straightened(points_px: np.ndarray, intrinsics: CameraIntrinsics, frame: Frame,
                 derivatives: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Find where points would be seen if all rows had been exposed at the frame's stamp.

    :param points_px: (N, 2), of an image with the given intrinsics, undistorted
    :param derivatives: (3, 3), angular velocity at the stamp, rad/s, and its first and second
        derivative
    :returns: (N, 2), px, and how that moves with the readout time, (N, 2), px/s, and with the
        angular velocity, (N, 2, 3), px s
    """
    share = _row_share(points_px[:, 1], intrinsics, frame.intrinsics)
    offset_s = frame.readout_time_s * share
    turns = np.stack([offset_s, offset_s ** 2 / 2, offset_s ** 3 / 6], axis=-1) @ derivatives
    rates = np.stack([share, share * offset_s, share * offset_s ** 2 / 2], axis=-1) @ derivatives
    field = motion_field_matrix(points_px, intrinsics)[..., :3]
    return (points_px - np.einsum('nij,nj->ni', field, turns),
            -np.einsum('nij,nj->ni', field, rates), -field * offset_s[:, None, None])


@dataclass(frozen=True)
class Straightener:
    """
    Moves matched points to where all rows exposed at once would show them.

    Points in other rows are matched over other times, so that they also tell by how much the rate
    has changed from one image to the next.
    """

    intrinsics: CameraIntrinsics
    """Of the images with the points."""
    frame: Frame
    """The later one, with the readout time."""
    before: np.ndarray
    now: np.ndarray
    """What is thought of the motion at either image, as `derivatives` of `straightened`."""
    change_information: np.ndarray
    """(3, 3), inverse covariance of the change of the rate."""
    readout_variance: float | None
    """How uncertain the readout time is; None where it is told."""

    def __call__(self, matches: Matches) -> Matches:
        """Straighten; rows then differ by what the change and the readout time are off."""
        at_earlier, earlier_per_s, _ = straightened(
            matches.at_earlier, self.intrinsics, self.frame, self.before)
        at_later, later_per_s, per_rate = straightened(
            matches.at_later, self.intrinsics, self.frame, self.now)
        by_rows, information = -per_rate, self.change_information
        if self.readout_variance is not None:
            by_rows = np.dstack([by_rows, earlier_per_s - later_per_s])
            information = np.diag([0.0, 0.0, 0.0, 1.0 / self.readout_variance])
            information[:3, :3] = self.change_information
        return matches._replace(at_earlier=at_earlier, at_later=at_later, by_rows=by_rows,
                                rows_information=information)

    def told(self, motion: Alignment | PointMotion) -> tuple[np.ndarray, np.ndarray]:
        """
        What straightened points tell of the motion and the change, without what was expected.

        :returns: inverse covariance times both, (9,), and the inverse covariance, (9, 9)
        """
        vector, information = without_prior(
            np.concatenate([motion.motion, motion.rows[:3]]), motion.joint_covariance[:9, :9],
            motion.translation_spread)
        information[6:, 6:] -= self.change_information
        return vector + information[:, 6:] @ (self.now[0] - self.before[0]), information


def blur_response(intrinsics: CameraIntrinsics, frame: Frame) -> np.ndarray:
    """
    Tell how a rate that changes while the rows are exposed changes the motion of the whole blur.

    Rows at either end are blurred by other rates than the middle, which looks, for example, like a
    roll: the motion of the whole that fits best, by least squares.

    :param intrinsics: of an image of the frame, undistorted
    :returns: (6, 6), angular velocity, rad/s, and velocity over the depth, 1/s, per first and
        second derivative of the angular velocity
    """
    readout_s = frame.readout_time_s
    return _unit_response(intrinsics, frame.intrinsics) * np.repeat([readout_s, readout_s ** 2], 3)


@lru_cache(maxsize=8)
def _unit_response(intrinsics: CameraIntrinsics, source: CameraIntrinsics) -> np.ndarray:
    """`blur_response` for a readout of one second."""
    points_px = pixel_grid(intrinsics.width_px, intrinsics.height_px, STRIDE_PX).reshape(-1, 2)
    field = motion_field_matrix(points_px, intrinsics)
    share = _row_share(points_px[:, 1], intrinsics, source)[:, None, None]
    of_rows = np.concatenate([share * field[..., :3], share ** 2 / 2 * field[..., :3]], axis=-1)
    return np.linalg.lstsq(field.reshape(-1, 6), of_rows.reshape(-1, 6), rcond=None)[0]


class ReadoutTime:
    """
    Readout time of a shutter that nobody tells, learnt from points between images.

    It is constant but for a small drift, so that a global shutter is looked at again at times.
    """

    PRIOR_STD_S = 0.015
    ERROR_STD_S = 0.004
    """Of what one pair of images tells, beyond its own: rates while the rows are exposed err."""
    DRIFT_STD_S = 4e-4
    CERTAIN_SHARE = 0.2
    LONGEST_S = 0.06
    NONE_S = 2e-3
    """A readout that is surely about so short does not matter."""

    def __init__(self) -> None:
        self.value_s = 0.0
        self.variance = self.PRIOR_STD_S ** 2
        self.known = False
        """Whether it has been certain and, as far as is known, still is that of a rolling one."""

    @property
    def certain(self) -> bool:
        """Whether changes of the rate that rows tell are of about the right size."""
        return self.variance < (self.CERTAIN_SHARE * self.value_s) ** 2

    @property
    def matters(self) -> bool:
        """Whether it may be longer than that of a global shutter."""
        return self.value_s > self.NONE_S or self.variance > self.NONE_S ** 2

    def drift(self) -> None:
        """Know it less surely, from one image to the next."""
        self.variance += self.DRIFT_STD_S ** 2

    def observe(self, correction_s: float, variance: float) -> None:
        """
        Take in what points tell.

        :param correction_s, variance: what is known of it with them, relative to `value_s`
        """
        told = 1.0 / variance - 1.0 / self.variance
        if told <= 0.0:
            return
        share = self.variance / (self.variance + 1.0 / told + self.ERROR_STD_S ** 2)
        self.value_s += share * correction_s / (variance * told)
        self.value_s = min(max(self.value_s, 0.0), self.LONGEST_S)
        self.variance *= 1.0 - share
        self.known = self.certain or (self.known and self.value_s > self.NONE_S)


class RowTrust:
    """
    Whether what is thought of the motion during an image's rows may be used.

    Vibration faster than half the frame rate looks like a slow motion whose derivatives are
    nothing like the true ones. Straightened points that fit together better show that they are.
    """

    def __init__(self) -> None:
        self._log_noise = 0.0

    def __bool__(self) -> bool:
        return self._log_noise < -LEAST_GAIN

    def judge(self, noise_px: float, straightened_noise_px: float) -> None:
        """Take in the noise of points as they are, and straightened."""
        gain = math.log(straightened_noise_px / noise_px)
        self._log_noise += (min(max(gain, -MOST_GAIN), MOST_GAIN) - self._log_noise) \
            / MEMORY_IMAGES
