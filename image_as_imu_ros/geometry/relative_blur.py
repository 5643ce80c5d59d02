"""
How the blurs of two neighbouring images compare, by the scene that both of them show.

Each image, given the other's blur, must look like the other one: a photometric residual that is
linear in both motions nearby. It tells their difference far better than either image by itself
tells its own; of a factor that both lengths share it tells nothing, as blurring everything more
hides any misfit.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from image_as_imu_ros.geometry.alignment import (
    Alignment,
    blurred_along,
    field_of_pixels,
    reach_px,
)
from image_as_imu_ros.geometry.photometric import compared, homography_of
from image_as_imu_ros.types import CameraIntrinsics

REDUCTION = 2
"""Of the working image."""
GAMMA = 2.2
"""Light blurs, not its encoding."""
STEP_PX = 2.0
LEAST_VIEWS = 4
DETAIL_PX = 6.0
"""Standard deviation of the Gaussian whose result is taken off, so that shading does not count."""
BORDER_PX = 4
LEAST_INFORMATION = 1e-6
"""Directions that are told less, relative to the best, count as not told."""
MIN_SHARE = 0.15
"""Least share of the image that must be seen in both, away from what the blur brings in."""


@dataclass(frozen=True)
class RelativeBlur:
    """Rotations over the exposures of two images, as their likeness ties them to each other."""

    rotations: np.ndarray
    """(6,) w T of the earlier image, then of the later one, each in its camera's axes, rad."""
    information: np.ndarray
    """(6, 6) inverse covariance of `rotations`, singular along what is not told, 1/rad^2."""


class RelativeBlurSolver:
    """
    Compares the blurs of aligned working images of one camera.

    :param intrinsics: of the working images
    """

    def __init__(self, intrinsics: CameraIntrinsics) -> None:
        self._reduced = intrinsics.resized(intrinsics.width_px // REDUCTION,
                                           intrinsics.height_px // REDUCTION)
        self._size = (self._reduced.width_px, self._reduced.height_px)
        self._field = np.ascontiguousarray(field_of_pixels(self._reduced)[:, :3])

    def compare(self, earlier: np.ndarray, later: np.ndarray, alignment: Alignment,
                earlier_motion: np.ndarray, later_motion: np.ndarray) -> RelativeBlur | None:
        """
        Find how the rotations over the exposures of two images belong together.

        :param earlier, later: (h, w) float32, 0 to 1
        :param alignment: from the earlier to the later image
        :param earlier_motion, later_motion: (6,) w T and v T / Z, of any sign, about which the
            comparison is linearised
        :returns: None where too little of the scene is in both images
        """
        turn = cv2.Rodrigues(alignment.motion[:3])[0]
        homography = homography_of(self._reduced.matrix, alignment.motion)
        # from here on in the axes of the later camera
        to_later = np.eye(6)
        to_later[:3, :3] = to_later[3:, 3:] = turn.T
        motions = [to_later @ earlier_motion, later_motion]
        inner = self._inner(homography, motions)
        if len(inner) < MIN_SHARE * self._size[0] * self._size[1]:
            return None
        views, moments = [], []
        for image, motion, to_image in ((earlier, motions[1], homography),
                                        (later, motions[0], None)):
            light = cv2.pow(cv2.resize(image, self._size, interpolation=cv2.INTER_AREA), GAMMA)
            mean, moment = blurred_along(light, self._reduced, motion, STEP_PX, LEAST_VIEWS,
                                         to_image)
            views.append(_detail(mean).ravel())
            moments.append(_detail(moment))
        slopes = (np.stack([cv2.Sobel(moment, cv2.CV_32F, dx, dy, ksize=3, scale=1 / 8).ravel()
                            for moment in moments]) for dx, dy in ((1, 0), (0, 1)))
        information, vector = compared(np.stack(views), *slopes, inner, self._field)
        # a factor common to both lengths is left open
        rotations = np.concatenate([motion[:3] for motion in motions])
        along = information @ rotations
        power = float(rotations @ along) + 1e-12
        vector -= along * (rotations @ vector) / power
        information -= np.outer(along, along) / power
        rotations = rotations + np.linalg.pinv(information, rcond=LEAST_INFORMATION,
                                               hermitian=True) @ vector
        to_earlier = np.eye(6)
        to_earlier[:3, :3] = turn
        return RelativeBlur(to_earlier @ rotations, to_earlier @ information @ to_earlier.T)

    def _inner(self, to_earlier: np.ndarray, motions: list[np.ndarray]) -> np.ndarray:
        """Indices (N,) of pixels, of every other row, that only the common scene blurs."""
        reach = sum(reach_px(self._reduced, motion) for motion in motions)
        border = int(min(BORDER_PX + reach / 2, min(self._size) // 4))
        seen = cv2.warpPerspective(np.ones(self._size[::-1], np.uint8), to_earlier, self._size,
                                   flags=cv2.WARP_INVERSE_MAP | cv2.INTER_NEAREST)
        inner = cv2.erode(seen, np.ones((2 * border + 1,) * 2, np.uint8), borderValue=0)
        inner[:border] = inner[-border:] = inner[:, :border] = inner[:, -border:] = 0
        inner[1::2] = 0
        return np.flatnonzero(inner)


def _detail(image: np.ndarray) -> np.ndarray:
    """Take off what is smooth, which half the resolution tells as well."""
    height, width = image.shape
    coarse = cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    smooth = cv2.GaussianBlur(coarse, (0, 0), DETAIL_PX / 2)
    return image - cv2.resize(smooth, (width, height), interpolation=cv2.INTER_LINEAR)
