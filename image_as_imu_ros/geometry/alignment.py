"""
Rotation between two frames by direct alignment, whatever their blur.

Both images are first given each other's blur, which makes them alike in sharpness; the sign of
a blur does not matter for that. The later image is then matched by Gauss-Newton from several
starting motions, coarse to fine, over rotation and the translation of a scene at one depth, unless
a depth is known for each part of the image. Then points are matched, each of a depth of its own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from image_as_imu_ros.geometry.motion_field import motion_field_matrix, pixel_grid
from image_as_imu_ros.geometry.parallax import NOTHING_EXPECTED, Matches, refined_by_points
from image_as_imu_ros.geometry.photometric import (
    ALL_OF_THEM,
    jacobian_at,
    mean_of_views,
    refined,
    strongest,
)
from image_as_imu_ros.types import CameraIntrinsics

ROUNDS = ((8, 1, 3), (8, 5, 2), (4, 4, 1))
"""Reduction of the working image, Gauss-Newton steps, and starts kept, coarse to fine."""
TEMPLATE_ROLLS_RAD = (-0.24, -0.12, 0.0, 0.12, 0.24)
TEMPLATE_SEEDS = 2
MAX_PIXELS = 6000
NEIGHBOURHOOD_PX = 15
BLUR_STEP_PX = 1.6
POINTS_BLUR_STEP_PX = 4.0
"""Of views that are averaged; corners that are blurred themselves do not show coarser ones."""
MAX_VIEWS = 24
ONE_DEPTH_ERROR = 0.04
"""Error of a rotation that was found as if the scene lay at one depth, relative to it."""
WITNESSES, LEAST_DIFFERENCE = 30.0, 0.01
"""Pixels of aligned images that count as independent, and their unexplained share at best."""
MOST_SURPRISE = 50.0
"""Squared distance from what is expected that counts at most, as jolts do happen."""
ON_PLANE_PX = 2.0
"""Distance up to which a match counts as on the plane that most of them lie on."""


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
    noise_px: float = math.nan
    rows: np.ndarray | None = None
    joint_covariance: np.ndarray | None = None
    matches: Matches | None = None
    """As of `PointMotion`, where points were matched."""
    straightened: Alignment | None = None
    """The same by points that were moved to where all rows exposed at once would show them."""

    @cached_property
    def plane(self) -> np.ndarray | None:
        """Homography (3, 3) from the later to the earlier image, as most points moved, if any."""
        if self.matches is None:
            return None
        return cv2.findHomography(self.matches.at_later, self.matches.at_earlier, cv2.USAC_FAST,
                                  ON_PLANE_PX)[0]


class ExpectedMotion(NamedTuple):
    """A motion that earlier images, and one sign of a blur, let expect."""

    motion: np.ndarray
    """(6,)."""
    information: np.ndarray
    """(6, 6), its inverse covariance."""
    surprise: float = 0.0
    """How much speaks against that sign, nats."""

    def against(self, motion: np.ndarray) -> float:
        """How much speaks against a motion (6,), nats."""
        off = motion - self.motion
        return self.surprise + 0.5 * min(float(off @ self.information @ off), MOST_SURPRISE)


class Level:
    """
    One resolution of an image pair: the pixels of the later image with the strongest edges.

    :param earlier, later: (h, w) float32, made alike in blur
    :param field: (2, 6, h * w) float32, motion field at the pixels
    :param nearness: (rows, columns) of any resolution, depth of the scene over that of what the
        later image shows there; None: the same everywhere
    :param usable: (h, w) bool, which pixels of either image show the scene; None: all of them
    """

    def __init__(self, earlier: np.ndarray, later: np.ndarray, intrinsics: CameraIntrinsics,
                 field: np.ndarray, nearness: np.ndarray | None = None,
                 usable: np.ndarray | None = None) -> None:
        gx = cv2.Sobel(later, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8)
        gy = cv2.Sobel(later, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8)
        if later.size > MAX_PIXELS:
            strength = gx * gx + gy * gy
            # relative to the surroundings, so that a few lamps do not take all places
            strength /= cv2.blur(strength, (NEIGHBOURHOOD_PX, NEIGHBOURHOOD_PX)) + 1e-6
            strength[[0, -1]] = strength[:, [0, -1]] = 0.0
            if usable is not None:
                strength[~usable] = 0.0
            self.chosen = strongest(strength.ravel(), MAX_PIXELS)
        else:
            self.chosen = np.arange(later.size)
        self.usable = np.ones(0, bool) if usable is None else usable.ravel()
        if usable is not None:
            self.chosen = self.chosen[self.usable[self.chosen]]
        # means do not matter, and small numbers are the more exact
        self.earlier = earlier - cv2.mean(earlier)[0]
        self.camera = intrinsics.matrix
        self.values = later.ravel()[self.chosen] - cv2.mean(later)[0]
        self.jacobian = jacobian_at(self.chosen, gx.ravel(), gy.ravel(), field)
        if nearness is None:
            self.nearness = np.ones(len(self.chosen), np.float32)
        else:
            self.nearness = cv2.resize(nearness.astype(np.float32),
                                       later.shape[::-1]).ravel()[self.chosen]
            self.jacobian[3:] *= self.nearness
        self.pixels = np.stack(np.divmod(self.chosen, later.shape[1])[::-1]).astype(np.float32)
        self.offset_px = np.zeros_like(self.pixels)

    def part(self, chosen: np.ndarray, offset_px: np.ndarray) -> Level:
        """
        Some of the pixels, each displaced by so much more than the common motion tells.

        :param chosen: (N,) bool, n of them
        :param offset_px: (2, n)
        """
        part = copy.copy(self)
        part.values, part.nearness = self.values[chosen], self.nearness[chosen]
        part.jacobian, part.pixels = (np.compress(chosen, each, axis=1)
                                      for each in (self.jacobian, self.pixels))
        part.offset_px = np.ascontiguousarray(offset_px, np.float32)
        return part

    def refine(self, start: np.ndarray, iterations: int) -> Alignment | None:
        """
        Improve a motion (6,) by Gauss-Newton steps.

        :returns: None where the images overlap too little
        """
        alignment = Alignment(*refined(
            self.earlier, self.values, self.pixels, self.nearness, self.offset_px, self.jacobian,
            self.camera, start, iterations, self.usable))
        return alignment if math.isfinite(alignment.similarity) else None


def reach_px(intrinsics: CameraIntrinsics, motion: np.ndarray) -> float:
    """How far a motion (6,) takes the corners of an image at most."""
    return max(math.hypot(*flow) for flow in (_field_of_corners(intrinsics) @ motion).tolist())


@lru_cache
def _field_of_corners(intrinsics: CameraIntrinsics) -> np.ndarray:
    right, bottom = intrinsics.width_px - 1, intrinsics.height_px - 1
    return motion_field_matrix(np.array(
        [[0.0, 0.0], [right, 0.0], [0.0, bottom], [right, bottom]]), intrinsics)


def count_of_views(intrinsics: CameraIntrinsics, motion: np.ndarray, step_px: float,
                   least: int = 1) -> int:
    """
    How many views along a motion (6,) are to be averaged.

    :param step_px: longest step of any pixel from one to the next, up to MAX_VIEWS
    :param least: fewest views
    """
    return min(max(math.ceil(reach_px(intrinsics, motion) / step_px), least), MAX_VIEWS)


def with_blur(image: np.ndarray, intrinsics: CameraIntrinsics, motion: np.ndarray | None,
              step_px: float = BLUR_STEP_PX) -> np.ndarray:
    """
    Add the blur of a motion (w T, v T / Z) to an image.

    :param image: (h, w) float32
    :param motion: (6,), either sign gives the same; None: there is none
    :param step_px: as of `count_of_views`
    """
    count = 1 if motion is None else count_of_views(intrinsics, motion, step_px)
    return image if count == 1 else mean_of_views(image, intrinsics.matrix, motion, count)


class PairAligner:
    """
    Aligns pairs of working images of one camera.

    :param intrinsics: of the working images
    :param usable: (h, w) bool, which of their pixels show the scene; None: all of them
    """

    def __init__(self, intrinsics: CameraIntrinsics, usable: np.ndarray | None = None) -> None:
        self._intrinsics, self._usable = intrinsics, usable
        self._reductions = {}
        self._reduced_usable = {}
        for scale in sorted({scale for scale, _, _ in ROUNDS}):
            self._reductions[scale] = reduced_field(intrinsics, scale)
            self._reduced_usable[scale] = reduced_mask(usable, self._reductions[scale][0])

    def align(self, earlier: np.ndarray, later: np.ndarray,
              earlier_blur: np.ndarray | None, later_blur: np.ndarray | None,
              seeds: list[np.ndarray],
              nearness: np.ndarray | None = None,
              expected: Sequence[ExpectedMotion] = (ExpectedMotion(*NOTHING_EXPECTED),),
              straighten: Callable[[Matches], Matches] | None = None) -> Alignment | None:
        """
        Find the motion from the earlier to the later image.

        :param earlier, later: (h, w) float32 working images
        :param earlier_blur, later_blur: (6,) motion over each exposure, any sign; None: sharp
        :param seeds: motions (6,) to start from
        :param nearness: as of `Level`, where the depth is known
        :param expected: motions of which one may be expected; where parts of the scene move by
            themselves, several of them decide which part the camera's motion is of
        :param straighten: of a rolling shutter, as of `refined_by_points`
        :returns: None if no start leads to a match
        """
        images = {1: (earlier, later)}
        for scale, (reduced, _) in self._reductions.items():
            images[scale] = tuple(cv2.resize(
                image, (reduced.width_px, reduced.height_px), interpolation=cv2.INTER_AREA)
                for image in images[max(images)])
        candidates = [*seeds, *self._template_seeds(*images[ROUNDS[0][0]])]
        level, level_scale = None, None
        for scale, iterations, kept in ROUNDS:
            if scale != level_scale:
                reduced, field = self._reductions[scale]
                level = Level(*(with_blur(image, reduced, blur) for image, blur in
                                zip(images[scale], (later_blur, earlier_blur))),
                              reduced, field, nearness, self._reduced_usable[scale])
                level_scale = scale
            found = [level.refine(start, iterations) for start in candidates]
            found = sorted((f for f in found if f is not None),
                           key=lambda alignment: -alignment.similarity)
            if not found:
                return None
            distinct: list[Alignment] = []
            for alignment in found:
                if all(_apart(alignment.motion, other.motion) for other in distinct):
                    distinct.append(alignment)
            if len(expected) > 1:
                distinct.sort(key=lambda alignment: _against(alignment, expected))
            candidates = [alignment.motion for alignment in distinct[:kept]]
        nearest = min(expected, key=lambda each: each.against(distinct[0].motion))
        return self._refined(distinct[0], earlier, later, earlier_blur, later_blur, nearness,
                             nearest[:2], straighten)

    def _refined(self, alignment: Alignment, earlier: np.ndarray, later: np.ndarray,
                 earlier_blur: np.ndarray | None, later_blur: np.ndarray | None,
                 nearness: np.ndarray | None,
                 expected: tuple[np.ndarray, np.ndarray],
                 straighten: Callable[[Matches], Matches] | None) -> Alignment:
        """Improve an alignment by points of any depth, where there are enough."""
        alike = (with_blur(image, self._intrinsics, blur, POINTS_BLUR_STEP_PX)
                 for image, blur in ((earlier, later_blur), (later, earlier_blur)))
        found = refined_by_points(*alike, self._intrinsics.matrix, alignment.motion, nearness,
                                  expected, straighten, self._usable)
        if not found:
            covariance = alignment.covariance.copy()
            turn = alignment.motion[:3]
            covariance[:3, :3] += ONE_DEPTH_ERROR ** 2 * (turn @ turn) * np.eye(3)
            return replace(alignment, covariance=covariance)
        of_points = [replace(alignment, **each._asdict()) for each in found]
        return replace(of_points[0], straightened=of_points[1] if straighten else None)

    def _template_seeds(self, scene: np.ndarray, view: np.ndarray) -> list[np.ndarray]:
        """Pans, with roll, under which the middle of the later image is found in the earlier."""
        height, width = view.shape
        reduced, _ = self._reductions[ROUNDS[0][0]]
        left, top = width // 4, height // 4
        centre = ((width - 1) / 2, (height - 1) / 2)
        found = []
        for roll in TEMPLATE_ROLLS_RAD:
            rolled = cv2.warpAffine(
                view, cv2.getRotationMatrix2D(centre, -math.degrees(roll), 1.0), (width, height),
                borderMode=cv2.BORDER_REPLICATE)
            template = rolled[top:height - top, left:width - left]
            _, score, _, (x, y) = cv2.minMaxLoc(
                cv2.matchTemplate(scene, template, cv2.TM_CCOEFF_NORMED))
            # what is at the middle now was at an offset before: the image moved by its negative
            u, v = left - x, top - y
            found.append((score, np.array([v / reduced.fy_px, -u / reduced.fx_px, roll,
                                           0.0, 0.0, 0.0])))
        found.sort(key=lambda pair: -pair[0])
        return [seed for _, seed in found[:TEMPLATE_SEEDS]]


def field_of_pixels(intrinsics: CameraIntrinsics) -> np.ndarray:
    """Motion field at all pixels of an image, (2, 6, h * w) float32."""
    matrix = motion_field_matrix(
        pixel_grid(intrinsics.width_px, intrinsics.height_px, 1), intrinsics)
    return np.ascontiguousarray(matrix.reshape(-1, 2, 6).transpose(1, 2, 0), np.float32)


@lru_cache(maxsize=8)
def reduced_field(intrinsics: CameraIntrinsics,
                  scale: int) -> tuple[CameraIntrinsics, np.ndarray]:
    """Intrinsics of an image reduced by a whole number, and the motion field at its pixels."""
    reduced = intrinsics.resized(intrinsics.width_px // scale, intrinsics.height_px // scale)
    return reduced, field_of_pixels(reduced)


def reduced_mask(usable: np.ndarray | None, reduced: CameraIntrinsics) -> np.ndarray | None:
    """Mask of an image reduced to a size: what is made of usable pixels alone, if not all is."""
    if usable is None:
        return None
    return cv2.resize(usable.astype(np.float32), (reduced.width_px, reduced.height_px),
                      interpolation=cv2.INTER_AREA) > ALL_OF_THEM


def unlikeness(similarity: float, witnesses: float, least_difference: float) -> float:
    """
    How much speaks against an alignment of images, nats, up to a constant.

    :param witnesses: pixels that count as independent
    :param least_difference: share that stays unexplained at best
    """
    return 0.5 * witnesses * math.log(1.0 - min(similarity, 1.0) ** 2 + least_difference)


def _against(alignment: Alignment, expected: Sequence[ExpectedMotion]) -> float:
    """How much speaks against an alignment: what it leaves unexplained, and what was expected."""
    return unlikeness(alignment.similarity, WITNESSES, LEAST_DIFFERENCE) \
        + min(each.against(alignment.motion) for each in expected)


def _apart(a: np.ndarray, b: np.ndarray) -> bool:
    return math.dist(a[:3], b[:3]) > 0.01
