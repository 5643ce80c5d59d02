"""
Rotation between two frames by direct alignment, whatever their blur.

Both images are first given each other's blur, which makes them alike in sharpness; the sign of
a blur does not matter for that. The later image is then matched by Gauss-Newton from several
starting motions, coarse to fine, over rotation and the translation of a scene at one depth.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from image_as_imu_ros.geometry.motion_field import (
    motion_field_matrix,
    pixel_grid,
    plane_homography,
)
from image_as_imu_ros.types import CameraIntrinsics

ROUNDS = ((8, 1, 3), (8, 5, 2), (4, 4, 1), (2, 5, 1))
"""Reduction of the working image, Gauss-Newton steps, and starts kept, coarse to fine."""
TEMPLATE_ROLLS_RAD = (-0.24, -0.12, 0.0, 0.12, 0.24)
TEMPLATE_SEEDS = 2
MIN_OVERLAP = 0.35
MAX_PIXELS = 6000
NEIGHBOURHOOD_PX = 15
BLUR_STEP_PX = 1.6
MAX_VIEWS = 24
PIXELS_PER_WITNESS = 200.0
"""Neighbouring residuals are alike: so many pixels count as one independent witness."""
OUTLIER = 2.5
"""Standard deviations from which on a residual counts less."""
LEAST_NOISE = 1e-3
TRANSLATION_PRIOR = 0.15
TRANSLATION_PRIOR_FLOOR = 0.004
FACING = np.array([0.0, 0.0, 1.0])
WEAK_PRIOR = 1e-3 * np.eye(6)


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
    translation_spread: float
    """Variance of the translation that was expected, about none, before the images were seen."""


class Level:
    """
    One resolution of an image pair: the pixels of the later image with the strongest edges.

    :param earlier, later: (h, w) float32, made alike in blur
    :param matrix: (h * w, 2, 6) motion field at the pixels
    """

    def __init__(self, earlier: np.ndarray, later: np.ndarray, intrinsics: CameraIntrinsics,
                 matrix: np.ndarray) -> None:
        gx = cv2.Sobel(later, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8)
        gy = cv2.Sobel(later, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8)
        strength = gx * gx + gy * gy
        # relative to the surroundings, so that a few lamps do not take all places
        strength /= cv2.blur(strength, (NEIGHBOURHOOD_PX, NEIGHBOURHOOD_PX)) + 1e-6
        strength[[0, -1]] = strength[:, [0, -1]] = 0.0
        chosen = np.arange(strength.size)
        if strength.size > MAX_PIXELS:
            chosen = np.argpartition(-strength.ravel(), MAX_PIXELS)[:MAX_PIXELS]
        self.earlier = earlier
        self.camera, self.inverse_camera = intrinsics.matrix, np.linalg.inv(intrinsics.matrix)
        self.values = later.ravel()[chosen]
        self.jacobian = gx.ravel()[chosen, None] * matrix[chosen, 0] \
            + gy.ravel()[chosen, None] * matrix[chosen, 1]
        rows, columns = np.divmod(chosen, later.shape[1])
        self.pixels = np.stack([columns, rows, np.ones_like(rows)]).astype(np.float32)
        self.offset_px = np.zeros((2, 1), np.float32)

    def part(self, chosen: np.ndarray, offset_px: np.ndarray) -> Level:
        """
        Some of the pixels, each displaced by so much more than the common motion tells.

        :param chosen: (N,) bool, n of them
        :param offset_px: (2, n)
        """
        part = copy.copy(self)
        part.values, part.jacobian = self.values[chosen], self.jacobian[chosen]
        part.pixels, part.offset_px = self.pixels[:, chosen], offset_px
        return part

    def sample(self, rotation: np.ndarray,
               translation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Earlier image as the later camera would see it: values (N,), and which lie inside."""
        height, width = self.earlier.shape
        homography = self.camera @ turned(rotation, translation) @ self.inverse_camera
        x, y, z = homography.astype(np.float32) @ self.pixels
        z = np.maximum(z, 1e-3)
        x, y = x / z - self.offset_px[0], y / z - self.offset_px[1]
        inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
        values = cv2.remap(self.earlier, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return values.reshape(-1), inside

    def refine(self, start: np.ndarray, iterations: int) -> Alignment | None:
        """
        Improve a motion (6,) by Gauss-Newton steps.

        The constant Jacobian is that of the later image (inverse composition).

        :returns: None where the images overlap too little
        """
        rotation, translation = cv2.Rodrigues(start[:3])[0], start[3:].copy()
        for _ in range(iterations):
            values, inside = self.sample(rotation, translation)
            count = np.count_nonzero(inside)
            if count < MIN_OVERLAP * inside.size:
                return None
            # pixels outside stay in place as zeros: picking the others out takes longer
            seen = inside.astype(np.float32)
            a, b = (each - each @ seen / count for each in (values, self.values))
            a, b = a * seen, b * seen
            a_power, b_power = float(a @ a) + 1e-6, float(b @ b) + 1e-6
            residual = a * math.sqrt(b_power / a_power) - b  # exposure or white level may change
            inner = residual[inside]
            noise = noise_of(inner, LEAST_NOISE)
            weighted = self.jacobian * (seen * robust_weights(residual, noise))[:, None]
            information = (self.jacobian.T @ weighted).astype(float) + WEAK_PRIOR
            vector = (weighted.T @ residual).astype(float)
            angle = cv2.Rodrigues(rotation)[0][:, 0]
            spread = TRANSLATION_PRIOR ** 2 * (angle @ angle) + TRANSLATION_PRIOR_FLOOR ** 2
            information[3:, 3:] += np.eye(3) / spread
            vector[3:] -= translation / spread
            step = np.linalg.solve(information, vector)
            rotation = rotation @ cv2.Rodrigues(step[:3])[0]
            translation = translation + rotation @ step[3:]
        similarity = 1.0 - float(residual @ residual) / (2 * b_power)
        return Alignment(np.concatenate([cv2.Rodrigues(rotation)[0][:, 0], translation]),
                         np.linalg.inv(information), similarity,
                         float((np.abs(inner) < OUTLIER * noise).mean()), float(spread))


def turned(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """
    Homography from the later camera's rays to the earlier one's, of a scene at one depth.

    :param rotation: (3, 3), of the later camera in the earlier one's axes
    :param translation: (3,), over the depth
    :returns: (3, 3)
    """
    return rotation * (1.0 - translation[2]) + np.outer(translation, rotation[2])


def views_along(image: np.ndarray, intrinsics: CameraIntrinsics, motion: np.ndarray,
                step_px: float, least: int = 1) -> list[tuple[float, np.ndarray]]:
    """
    What a camera sees in even steps along a motion over an exposure.

    :param image: (h, w) float32, in the middle of the exposure
    :param motion: (6,) w T and v T / Z
    :param step_px: longest step of any pixel, up to MAX_VIEWS steps
    :param least: fewest steps
    :returns: time in exposures, -0.5 to 0.5, and view of each
    """
    corners = np.array([[0.0, 0.0], [intrinsics.width_px, intrinsics.height_px]])
    reach = np.linalg.norm(motion_field_matrix(corners, intrinsics) @ motion, axis=-1).max()
    steps = int(np.clip(np.ceil(reach / step_px), least, MAX_VIEWS))
    if steps == 1:
        return [(0.0, image)]
    times = (np.arange(steps) + 0.5) / steps - 0.5
    path = times[:, None] * motion
    homographies = plane_homography(intrinsics, Rotation.from_rotvec(path[:, :3]).as_matrix(),
                                    path[:, 3:], FACING)
    return [(float(time), cv2.warpPerspective(image, homography, image.shape[::-1],
                                              flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                                              borderMode=cv2.BORDER_REPLICATE))
            for time, homography in zip(times, homographies)]


def with_blur(image: np.ndarray, intrinsics: CameraIntrinsics, motion: np.ndarray) -> np.ndarray:
    """
    Add the blur of a motion (w T, v T / Z) to an image.

    :param image: (h, w) float32
    :param motion: (6,), either sign gives the same
    """
    views = views_along(image, intrinsics, motion, BLUR_STEP_PX)
    return sum(view for _, view in views) / len(views)


def noise_of(residual: np.ndarray, least: float) -> float:
    """Standard deviation of residuals (N,), outliers left out, and at least so much."""
    middle = len(residual) // 2
    return 1.4826 * float(np.partition(np.abs(residual), middle)[middle]) + least


def robust_weights(residual: np.ndarray, noise: float) -> np.ndarray:
    """
    Weigh pixels in least squares: by the inverse variance, outliers and neighbours less.

    :param residual: (N,)
    :param noise: their standard deviation
    :returns: weights (N,)
    """
    return 1.0 / ((1.0 + (residual / (OUTLIER * noise)) ** 2) ** 2
                  * (PIXELS_PER_WITNESS * noise ** 2))


class PairAligner:
    """
    Aligns pairs of working images of one camera.

    :param intrinsics: of the working images
    """

    def __init__(self, intrinsics: CameraIntrinsics) -> None:
        self._reductions = {}
        for scale in sorted({scale for scale, _, _ in ROUNDS}):
            size = (intrinsics.width_px // scale, intrinsics.height_px // scale)
            reduced = intrinsics.resized(*size)
            matrix = motion_field_matrix(pixel_grid(*size, 1), reduced).astype(np.float32)
            self._reductions[scale] = (size, reduced, matrix.reshape(-1, 2, 6))

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
        candidates = [*seeds, *self._template_seeds(earlier, later)]
        level, level_scale = None, None
        for scale, iterations, kept in ROUNDS:
            if scale != level_scale:
                size, reduced, matrix = self._reductions[scale]
                level = Level(self._reduce(earlier, size, reduced, later_blur),
                              self._reduce(later, size, reduced, earlier_blur), reduced, matrix)
                level_scale = scale
            found = [level.refine(start, iterations) for start in candidates]
            found = sorted((f for f in found if f is not None),
                           key=lambda alignment: -alignment.similarity)
            if not found:
                return None
            candidates = []
            for alignment in found:
                if all(_apart(alignment.motion, other) for other in candidates):
                    candidates.append(alignment.motion)
            candidates = candidates[:kept]
        return found[0]

    def _template_seeds(self, earlier: np.ndarray, later: np.ndarray) -> list[np.ndarray]:
        """Pans, with roll, under which the middle of the later image is found in the earlier."""
        (width, height), reduced, _ = self._reductions[ROUNDS[0][0]]
        scene = cv2.resize(earlier, (width, height), interpolation=cv2.INTER_AREA)
        view = cv2.resize(later, (width, height), interpolation=cv2.INTER_AREA)
        left, top = width // 4, height // 4
        centre = ((width - 1) / 2, (height - 1) / 2)
        found = []
        for roll in TEMPLATE_ROLLS_RAD:
            turned = cv2.warpAffine(
                view, cv2.getRotationMatrix2D(centre, -math.degrees(roll), 1.0), (width, height),
                borderMode=cv2.BORDER_REPLICATE)
            template = turned[top:height - top, left:width - left]
            _, score, _, (x, y) = cv2.minMaxLoc(
                cv2.matchTemplate(scene, template, cv2.TM_CCOEFF_NORMED))
            # what is at the middle now was at an offset before: the image moved by its negative
            u, v = left - x, top - y
            found.append((score, np.array([v / reduced.fy_px, -u / reduced.fx_px, roll,
                                           0.0, 0.0, 0.0])))
        found.sort(key=lambda pair: -pair[0])
        return [seed for _, seed in found[:TEMPLATE_SEEDS]]

    @staticmethod
    def _reduce(image: np.ndarray, size: tuple[int, int], intrinsics: CameraIntrinsics,
                blur: np.ndarray | None) -> np.ndarray:
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        return small if blur is None else with_blur(small, intrinsics, blur)


def _apart(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.linalg.norm(a[:3] - b[:3]) > 0.01)
