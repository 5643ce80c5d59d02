"""
How the blurs of two neighbouring images compare, by the scene that both of them show.

Each image, given the other's blur, must look like the other one: a photometric residual that is
linear in both motions nearby. It tells them far better than either image by itself does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from image_as_imu_ros.compiled import compiled
from image_as_imu_ros.geometry.alignment import Alignment, count_of_views, field_of_pixels
from image_as_imu_ros.geometry.gaussians import told_directions
from image_as_imu_ros.geometry.photometric import compared, homography_of, seen_along
from image_as_imu_ros.types import CameraIntrinsics

GRID_PX = 4
"""Spacing of the pixels that are compared."""
REGIONS = 4, 5
"""Rows and columns of parts of the image whose disagreement tells the error of the whole."""
AS_SURE_AS = 1.4
"""So many of them, as what they err by is much alike in all."""
STEP_PX = 4.0
LEAST_VIEWS = 4
DETAIL_PX = 6.0
"""Standard deviation of the Gaussian whose result is taken off, so that shading does not count."""
BORDER_PX = 4
SATURATED, SATURATED_REACH_PX = 0.97, 2
"""What a saturated pixel may be encoded as, at least, and how far around it light is unknown."""
MIN_SHARE = 0.15
"""Least share of the pixels that see only what is in both images."""


@dataclass(frozen=True)
class RelativeBlur:
    """
    Rotation over the exposure of an image and motion over that of the next one, as they belong.

    In the form of their information, which may be singular: that of the earlier rotation, (3,) in
    rad, and the later motion, (6,) w T and v T / Z, each in its camera's axes.
    """

    vector: np.ndarray
    """(9,), `information` times rotation and motion."""
    information: np.ndarray
    """(9, 9), their inverse covariance."""


class RelativeBlurSolver:
    """
    Compares the blurs of aligned working images of one camera.

    :param intrinsics: of the working images
    :param usable: (h, w) bool, which of their pixels show the scene; None: all of them
    """

    def __init__(self, intrinsics: CameraIntrinsics, usable: np.ndarray | None = None) -> None:
        self._intrinsics, self._usable = intrinsics, usable
        size = intrinsics.height_px, intrinsics.width_px
        places = np.mgrid[:size[0]:GRID_PX, :size[1]:GRID_PX].reshape(2, -1)
        if usable is not None:
            places = places[:, usable[tuple(places)]]
        row, column = (place * regions // extent
                       for place, regions, extent in zip(places, REGIONS, size))
        region = REGIONS[1] * row + column
        places = places[:, np.argsort(region, kind='stable')]
        self._ends = np.cumsum(np.bincount(region, minlength=math.prod(REGIONS)))
        self._pixels = np.ascontiguousarray(places[::-1], np.float32)
        self._field = np.ascontiguousarray(
            field_of_pixels(intrinsics)[..., np.ravel_multi_index(tuple(places), size)])
        self._seen: list[tuple[np.ndarray, np.ndarray]] = []

    def compare(self, earlier: np.ndarray, later: np.ndarray, alignment: Alignment,
                earlier_motion: np.ndarray, later_motion: np.ndarray) -> RelativeBlur | None:
        """
        Find how the motions over the exposures of two images belong together.

        :param earlier, later: (h, w) float32, 0 to 1
        :param alignment: from the earlier to the later image
        :param earlier_motion, later_motion: (6,) w T and v T / Z, of any sign, about which the
            comparison is linearised
        :returns: None where too little of the scene is in both images, or it shows nothing
        """
        turn = cv2.Rodrigues(alignment.motion[:3])[0]
        camera = self._intrinsics.matrix
        in_later_axes = np.concatenate([turn.T @ earlier_motion[:3], turn.T @ earlier_motion[3:]])
        views, inside = zip(*(
            seen_along(self._detail(image), to_image, camera, motion,
                       count_of_views(self._intrinsics, motion, STEP_PX, LEAST_VIEWS),
                       self._pixels)
            for image, to_image, motion in (
                (earlier, self._to_earlier(alignment), later_motion),
                (later, np.eye(3), in_later_axes))))
        chosen = np.flatnonzero(inside[0] & inside[1])
        if len(chosen) < MIN_SHARE * len(inside[0]):
            return None
        told = compared(np.stack(views), chosen, self._ends, self._field)
        if not told[0].any():  # nothing to be seen
            return None
        vector, information = joined(*told)
        vector += information @ np.concatenate([in_later_axes[:3], later_motion])
        to_later = np.eye(9)
        to_later[:3, :3] = turn.T
        return RelativeBlur(to_later.T @ vector, to_later.T @ information @ to_later)

    def _to_earlier(self, alignment: Alignment) -> np.ndarray:
        """Homography (3, 3) from the later image to the earlier one, as most points moved."""
        if alignment.plane is not None:
            return alignment.plane
        return homography_of(self._intrinsics.matrix, alignment.motion)

    def _detail(self, image: np.ndarray) -> np.ndarray:
        """What is not smooth in the light of an image, as of `seen_along`."""
        for seen, detail in self._seen:
            if seen is image:
                return detail
        light = image * image  # light blurs, not its encoding
        height, width = light.shape
        # a coarser image tells what is smooth as well
        coarse = cv2.resize(light, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        smooth = cv2.GaussianBlur(coarse, (0, 0), DETAIL_PX / 2)
        rough = light - cv2.resize(smooth, (width, height), interpolation=cv2.INTER_LINEAR)
        around = np.ones((2 * SATURATED_REACH_PX + 1,) * 2, np.uint8)
        within = np.s_[BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX]
        known = np.zeros(image.shape, np.float32)
        known[within] = cv2.dilate((image >= SATURATED).view(np.uint8), around)[within] == 0
        if self._usable is not None:
            known *= self._usable
        detail = cv2.merge([rough, *(cv2.Sobel(rough, cv2.CV_32F, *along, ksize=3, scale=1 / 8)
                                     for along in ((1, 0), (0, 1))), known])
        self._seen = [*self._seen[-1:], (image, detail)]
        return detail


@compiled
def joined(informations: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Sum what regions tell, no surer than AS_SURE_AS of them are, nor than independent pixels.

    :param informations, vectors: (R, D, D), (R, D), as of `compared`
    :returns: vector (D,) and information (D, D)
    """
    information, vector = informations[0].copy(), vectors[0].copy()
    for region in range(1, len(vectors)):
        information += informations[region]
        vector += vectors[region]
    power, directions = told_directions(information)
    common = (directions @ vector / power) @ directions
    scatter = 0.0
    for region in range(len(vectors)):
        off = directions @ (vectors[region] - informations[region] @ common)
        for k in range(len(power)):
            scatter += off[k] * off[k] / power[k]
    variance = max(len(vectors) / AS_SURE_AS * scatter / len(power), 1.0)
    return vector / variance, information / variance
