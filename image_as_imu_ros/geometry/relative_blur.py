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
    noise_of,
    robust_weights,
    turned,
    views_along,
)
from image_as_imu_ros.geometry.motion_field import motion_field_matrix, pixel_grid
from image_as_imu_ros.types import CameraIntrinsics

REDUCTION = 2
"""Of the working image."""
GAMMA = 2.2
"""Light blurs, not its encoding."""
STEP_PX = 2.0
LEAST_VIEWS = 4
DETAIL_PX = 6.0
"""Standard deviation of the Gaussian whose result is taken off, so that shading does not count."""
LEAST_MISFIT = 0.02
"""Of images of unit contrast, however alike they are."""
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
        self._camera, self._inverse_camera = intrinsics.matrix, np.linalg.inv(intrinsics.matrix)
        self._size = (intrinsics.width_px // REDUCTION, intrinsics.height_px // REDUCTION)
        self._reduced = intrinsics.resized(*self._size)
        field = motion_field_matrix(pixel_grid(*self._size, 1), self._reduced)
        self._field = field[..., :3].astype(np.float32)
        self._corners = field[[0, 0, -1, -1], [0, -1, 0, -1]]

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
        homography = self._camera @ turned(turn, alignment.motion[3:]) @ self._inverse_camera
        shape = later.shape[::-1]
        scene = cv2.warpPerspective(earlier, homography, shape,
                                    flags=cv2.WARP_INVERSE_MAP | cv2.INTER_CUBIC,
                                    borderMode=cv2.BORDER_REPLICATE)
        seen = cv2.warpPerspective(np.ones_like(earlier), homography, shape,
                                   flags=cv2.WARP_INVERSE_MAP | cv2.INTER_NEAREST)
        first, second, seen = (cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)
                               for image in (scene, later, seen))
        # from here on in the axes of the later camera
        motions = [np.kron(np.eye(2), turn.T) @ earlier_motion, later_motion]
        inner = self._inner(seen, motions)
        if inner.mean() < MIN_SHARE:
            return None
        residual, jacobian = self._residual(np.maximum(first, 0.0) ** GAMMA, second ** GAMMA,
                                            motions, inner)
        weight = robust_weights(residual, noise_of(residual, LEAST_MISFIT))
        weighted = jacobian * weight[:, None]
        information = (weighted.T @ jacobian).astype(float)
        vector = -(weighted.T @ residual).astype(float)
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

    def _inner(self, seen: np.ndarray, motions: list[np.ndarray]) -> np.ndarray:
        """Pixels (h, w) bool, every other row of them, that only the common scene blurs."""
        reach = sum(np.linalg.norm(self._corners @ motion, axis=-1).max() for motion in motions)
        border = int(min(BORDER_PX + reach / 2, min(self._size) // 4))
        inner = cv2.erode((seen > 0.99).astype(np.uint8), np.ones((2 * border + 1,) * 2, np.uint8),
                          borderValue=0) > 0
        inner[:border] = inner[-border:] = inner[:, :border] = inner[:, -border:] = False
        inner[1::2] = False
        return inner

    def _residual(self, first: np.ndarray, second: np.ndarray, motions: list[np.ndarray],
                  inner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Difference (N,) of both images with all blur, and its derivative (N, 6)."""
        field, values, slopes = self._field[inner], [], []
        for image, motion in ((first, motions[1]), (second, motions[0])):
            blurred, moment = np.zeros_like(image), np.zeros_like(image)
            views = views_along(image, self._reduced, motion, STEP_PX, LEAST_VIEWS)
            for time, view in views:
                blurred += view
                moment += time * view
            blurred, moment = (_detail(each / len(views)) for each in (blurred, moment))
            value = blurred[inner]
            value -= value.mean()
            contrast = float(value.std()) + 1e-9
            value /= contrast
            gx, gy = (cv2.Sobel(moment, cv2.CV_32F, dx, dy, ksize=3, scale=1 / 8)[inner]
                      for dx, dy in ((1, 0), (0, 1)))
            # a longer way takes what is seen before and after further off
            slope = -(gx[:, None] * field[:, 0] + gy[:, None] * field[:, 1]) / contrast
            values.append(value)
            # of an image of unit contrast
            slopes.append(slope - np.outer(value, value @ slope / len(value)))
        return values[0] - values[1], np.concatenate([-slopes[1], slopes[0]], axis=1)


def _detail(image: np.ndarray) -> np.ndarray:
    return image - cv2.GaussianBlur(image, (0, 0), DETAIL_PX)
