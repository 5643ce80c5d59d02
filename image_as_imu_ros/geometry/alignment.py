"""
Rotation between two frames by direct alignment, whatever their blur.

Both images are first given each other's blur, which makes them alike in sharpness; the sign of
a blur does not matter for that. The later image is then matched by Gauss-Newton from several
starting motions, coarse to fine, over rotation and the translation of a scene at one depth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from image_as_imu_ros.geometry.motion_field import (
    motion_field_matrix, pixel_grid, plane_homography)
from image_as_imu_ros.types import CameraIntrinsics

SCALES = (8, 4, 2)
"""Reductions of the working image, coarse to fine."""
ITERATIONS = (6, 6, 5)
SURVIVORS = (3, 1)
"""Starting motions kept after all but the last level."""
MIN_OVERLAP = 0.35
BLUR_STEP_PX = 1.3
PIXELS_PER_WITNESS = 60.0
"""Neighbouring residuals are alike: so many pixels count as one independent witness."""
TRANSLATION_PRIOR = 0.3
TRANSLATION_PRIOR_FLOOR = 0.004
FACING = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True)
class Alignment:
    """Motion of the camera from one frame to the next."""

    motion: np.ndarray
    """(6,) rotation vector in rad and translation / Z, in the earlier camera's axes."""
    covariance: np.ndarray
    """(6, 6) of `motion`."""
    similarity: float
    """Correlation of the aligned images where they overlap, at most 1."""
    inlier_share: float
    overlap: float


@dataclass(frozen=True)
class Level:
    """One resolution of an image pair with each other's blur."""

    earlier: np.ndarray
    later: np.ndarray
    intrinsics: CameraIntrinsics
    matrix: np.ndarray
    """(h, w, 2, 6) motion field."""


def with_blur(image: np.ndarray, intrinsics: CameraIntrinsics, motion: np.ndarray) -> np.ndarray:
    """
    Add the blur of a motion (w T, v T / Z) to an image.

    :param image: (h, w) float32
    :param motion: (6,), either sign gives the same
    """
    corners = np.array([[0.0, 0.0], [intrinsics.width_px, intrinsics.height_px]])
    reach = np.linalg.norm(motion_field_matrix(corners, intrinsics) @ motion, axis=-1).max()
    steps = min(int(np.ceil(reach / BLUR_STEP_PX)), 24)
    if steps <= 1:
        return image
    times = (np.arange(steps) + 0.5) / steps - 0.5
    path = times[:, None] * motion
    homographies = plane_homography(intrinsics, Rotation.from_rotvec(path[:, :3]).as_matrix(),
                                    path[:, 3:], FACING)
    total = np.zeros_like(image)
    for homography in homographies:
        total += cv2.warpPerspective(image, homography, image.shape[::-1],
                                     flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                                     borderMode=cv2.BORDER_REPLICATE)
    return total / steps


class PairAligner:
    """
    Aligns pairs of working images of one camera.

    :param intrinsics: of the working images
    """

    def __init__(self, intrinsics: CameraIntrinsics) -> None:
        self.intrinsics = intrinsics
        self._levels = []
        for scale in SCALES:
            size = (intrinsics.width_px // scale, intrinsics.height_px // scale)
            reduced = intrinsics.resized(*size)
            matrix = motion_field_matrix(pixel_grid(*size, 1), reduced).astype(np.float32)
            self._levels.append((size, reduced, matrix))

    def align(self, earlier: np.ndarray, later: np.ndarray,
              earlier_blur: np.ndarray | None, later_blur: np.ndarray | None,
              seeds: list[np.ndarray]) -> Alignment | None:
        """
        Find the motion from the earlier to the later image.

        :param earlier, later: (h, w) float32 working images
        :param earlier_blur, later_blur: (6,) motion over each exposure, any sign; None: sharp
        :param seeds: motions (6,) to start from
        :returns: None if no start leads to a match
        """
        candidates = [np.asarray(seed, float) for seed in seeds]
        result = None
        for number, (size, reduced, matrix) in enumerate(self._levels):
            level = Level(self._reduce(earlier, size, reduced, later_blur),
                          self._reduce(later, size, reduced, earlier_blur), reduced, matrix)
            found = [self._refine(level, start, ITERATIONS[number]) for start in candidates]
            found = sorted((f for f in found if f is not None),
                           key=lambda alignment: -alignment.similarity)
            if not found:
                return None
            result = found[0]
            if number < len(SURVIVORS):
                candidates = []
                for alignment in found:
                    if all(_apart(alignment.motion, kept) for kept in candidates):
                        candidates.append(alignment.motion)
                candidates = candidates[:SURVIVORS[number]]
        return result

    @staticmethod
    def _reduce(image: np.ndarray, size: tuple[int, int], intrinsics: CameraIntrinsics,
                blur: np.ndarray | None) -> np.ndarray:
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        return small if blur is None else with_blur(small, intrinsics, blur)

    @staticmethod
    def _refine(level: Level, start: np.ndarray, iterations: int) -> Alignment | None:
        """Gauss-Newton from one start; None where the images no longer overlap."""
        height, width = level.later.shape
        rotation, translation = Rotation.from_rotvec(start[:3]), start[3:].copy()
        for _ in range(iterations + 1):
            homography = plane_homography(level.intrinsics, rotation.as_matrix(), translation,
                                          FACING)
            warped = cv2.warpPerspective(level.earlier, homography, (width, height),
                                         flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                                         borderMode=cv2.BORDER_CONSTANT, borderValue=-1.0)
            valid = warped >= 0.0
            valid[[0, -1]] = valid[:, [0, -1]] = False
            valid = cv2.erode(valid.view(np.uint8), None).view(bool)
            overlap = float(valid.mean())
            if overlap < MIN_OVERLAP:
                return None
            a, b = warped[valid], level.later[valid]
            a_spread, b_spread = a.std() + 1e-4, b.std() + 1e-4
            gain = b_spread / a_spread  # exposure and white level may change
            residual = (a - a.mean()) * gain - (b - b.mean())
            similarity = 1.0 - float(residual @ residual) / (2 * len(a) * b_spread ** 2)
            noise = 1.4826 * float(np.median(np.abs(residual))) + 1e-3
            weight = 1.0 / (1.0 + (residual / (2.5 * noise)) ** 2) ** 2
            gy, gx = _gradient(0.5 * (warped * gain + level.later))
            jacobian = (gx[valid, None] * level.matrix[valid][:, 0]
                        + gy[valid, None] * level.matrix[valid][:, 1])
            weighted = jacobian * weight[:, None]
            precision = 1.0 / (PIXELS_PER_WITNESS * noise ** 2)
            information = (jacobian.T @ weighted).astype(float) * precision
            vector = (weighted.T @ residual).astype(float) * precision
            rotation_vector = rotation.as_rotvec()
            spread = TRANSLATION_PRIOR ** 2 * (rotation_vector @ rotation_vector) \
                + TRANSLATION_PRIOR_FLOOR ** 2
            information[3:, 3:] += np.eye(3) / spread
            vector[3:] -= translation / spread
            information += np.eye(6) * 1e-3
            step = np.linalg.solve(information, vector)
            rotation = rotation * Rotation.from_rotvec(step[:3])
            translation += rotation.apply(step[3:])
        return Alignment(np.concatenate([rotation.as_rotvec(), translation]),
                         np.linalg.inv(information), similarity,
                         float((np.abs(residual) < 2.5 * noise).mean()), overlap)


def _apart(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.linalg.norm(a[:3] - b[:3]) > 0.01)


def _gradient(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Central differences along y and x."""
    return (cv2.Sobel(image, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8),
            cv2.Sobel(image, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8))
