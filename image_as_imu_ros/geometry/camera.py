"""From any calibrated image to the small undistorted one that the network sees."""

from __future__ import annotations

import warnings

import cv2
import numpy as np

from image_as_imu_ros.geometry.world_mask import WorldMask, fitted_mask
from image_as_imu_ros.image_decoding import as_gray
from image_as_imu_ros.types import CameraIntrinsics

SIZE_MULTIPLE_PX = 8
WHITE = 255
OUTSIDE_PX = 2.0
"""How far beyond its border an image may go on and still count as shown."""
DEPTH_SPREAD_PX = 2.5
"""Reach of the median that tells the depth at a point."""


class WorkingCamera:
    """
    Reduces, undistorts and crops the images of one camera to a pinhole image of working size.

    The longer side becomes at most `working_size_px`; both sides are cropped about the centre to
    multiples of 8 px. Angular resolution at the centre is kept by undistortion, so that what a
    wide lens sees beyond the working image is left out. What shows no part of the world, by a
    mask or because it lies outside the camera's image, is filled smoothly.

    :param intrinsics: of the camera's own images
    :param mask: (H, W) bool, what of those shows the world, of their aspect ratio; None: all
    :raises InputError: if the mask is of another aspect ratio
    """

    def __init__(self, intrinsics: CameraIntrinsics, working_size_px: int,
                 mask: np.ndarray | None = None) -> None:
        self.source = intrinsics
        scale = min(1.0, working_size_px / max(intrinsics.width_px, intrinsics.height_px))
        reduced = intrinsics.resized(max(SIZE_MULTIPLE_PX, round(intrinsics.width_px * scale)),
                                     max(SIZE_MULTIPLE_PX, round(intrinsics.height_px * scale)))
        self._reduced_size = (reduced.width_px, reduced.height_px)
        width, height = (side - side % SIZE_MULTIPLE_PX for side in self._reduced_size)
        self._left, self._top = ((reduced.width_px - width) // 2,
                                 (reduced.height_px - height) // 2)
        self.intrinsics = CameraIntrinsics(
            width, height, reduced.fx_px, reduced.fy_px, reduced.cx_px - self._left,
            reduced.cy_px - self._top)
        self._map = None
        if any(intrinsics.distortion):
            self._map = self._undistortion(reduced)
        self._mask = self._working_mask(mask)

    @property
    def usable(self) -> np.ndarray | None:
        """(h, w) bool, which pixels of the working image show the world; None: all of them."""
        return None if self._mask is None else self._mask.usable

    def _working_mask(self, mask: np.ndarray | None) -> WorldMask | None:
        """Mask of the working image: a pixel shows the world where all that it is made of does."""
        if mask is None and self._map is None:
            return None
        size = self.source.width_px, self.source.height_px
        shown = np.ones(size[::-1], bool) if mask is None else fitted_mask(mask, *size)
        shown = self._placed(np.where(shown, np.uint8(WHITE), np.uint8(0))) == WHITE
        if self._map is not None:
            for place, side in zip(self._map, self._reduced_size):
                shown &= (place > -OUTSIDE_PX) & (place < side - 1 + OUTSIDE_PX)
        return None if shown.all() else WorldMask(shown)

    def _undistortion(self, reduced: CameraIntrinsics) -> tuple[np.ndarray, np.ndarray]:
        size = (self.intrinsics.width_px, self.intrinsics.height_px)
        coefficients = np.array(reduced.distortion)
        if reduced.distortion_model == 'equidistant':
            return cv2.fisheye.initUndistortRectifyMap(
                reduced.matrix, coefficients, np.eye(3), self.intrinsics.matrix, size,
                cv2.CV_32FC1)
        return cv2.initUndistortRectifyMap(reduced.matrix, coefficients, None,
                                           self.intrinsics.matrix, size, cv2.CV_32FC1)

    def working_image(self, image: np.ndarray) -> np.ndarray:
        """
        Make the working image.

        :param image: (H, W) gray or (H, W, 3) RGB, uint8 or uint16, of the source camera
        :returns: (h, w) float32 gray, 0 to 1, as the camera encodes it
        """
        return self._reduced(as_gray(image))

    def colour_image(self, image: np.ndarray) -> np.ndarray:
        """
        Make the working image in colour; gray gives three equal channels.

        :param image: as for `working_image`
        :returns: (h, w, 3) float32 RGB, 0 to 1, as the camera encodes it
        """
        rgb = image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
        return self._reduced(rgb)

    def depth_at(self, depth_m: np.ndarray, points_px: np.ndarray) -> np.ndarray:
        """
        Look up a depth image of the source camera, of any resolution.

        :param depth_m: (H, W), NaN where unknown
        :param points_px: (..., 2), pixels of the working image
        :returns: (...), m, the median around each point; NaN where nothing there is known
        """
        spread = np.array([-DEPTH_SPREAD_PX, 0.0, DEPTH_SPREAD_PX])
        around = points_px[..., None, None, :] + np.stack(np.meshgrid(spread, spread), axis=-1)
        x, y = around[..., 0], around[..., 1]
        if self._map is None:
            x, y = x + self._left, y + self._top
        else:
            columns = np.rint(x).astype(int).clip(0, self.intrinsics.width_px - 1)
            rows = np.rint(y).astype(int).clip(0, self.intrinsics.height_px - 1)
            x, y = (each[rows, columns] for each in self._map)
        height, width = depth_m.shape
        columns = np.rint((x + 0.5) * (width / self._reduced_size[0]) - 0.5).astype(int)
        rows = np.rint((y + 0.5) * (height / self._reduced_size[1]) - 0.5).astype(int)
        inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        depth = depth_m[rows.clip(0, height - 1), columns.clip(0, width - 1)].astype(float)
        depth[~inside | ~(depth > 0.0) | ~np.isfinite(depth)] = np.nan
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', RuntimeWarning)  # a point may have nothing around it
            return np.nanmedian(depth, axis=(-2, -1))

    def _reduced(self, image: np.ndarray) -> np.ndarray:
        """Working image of one of any number of channels."""
        placed = self._placed(image)
        working = placed.astype(np.float32) / _white_level(placed)
        return working if self._mask is None else self._mask.filled(working)

    def _placed(self, image: np.ndarray) -> np.ndarray:
        """Reduce, undistort and crop an image of any type; it goes on beyond its border."""
        if (image.shape[1], image.shape[0]) != self._reduced_size:
            image = cv2.resize(image, self._reduced_size, interpolation=cv2.INTER_AREA)
        if self._map is not None:
            return cv2.remap(image, *self._map, cv2.INTER_LINEAR,
                             borderMode=cv2.BORDER_REPLICATE)
        return image[self._top:self._top + self.intrinsics.height_px,
                     self._left:self._left + self.intrinsics.width_px]


def _white_level(image: np.ndarray) -> float:
    """Full scale: 255, or the power of two that holds a 9 to 16 bit image."""
    if image.dtype == np.uint8:
        return 255.0
    return float(2 ** max(8, int(image.max()).bit_length()) - 1)
