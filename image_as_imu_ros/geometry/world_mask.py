"""What of a camera's images shows the world, and not the robot itself or what lies outside."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from image_as_imu_ros.errors import ConfigError, InputError
from image_as_imu_ros.image_decoding import as_gray, decode_compressed

MARGIN_PX = 2
"""Of a working image, that is left out around what is hidden: blur smears over its edge."""
COARSEST_PX = 3
"""Least shorter side of the images that are reduced to fill it."""
MIN_SHOWN = 0.1
"""Least share of an image that must show the world."""


def read_mask(path: str) -> np.ndarray:
    """
    Read what of a camera's images shows the world.

    :param path: of an image file, dark where it does not
    :returns: (H, W) bool
    :raises ConfigError: if the file cannot be read, or nearly all of it is dark
    """
    try:
        gray = as_gray(decode_compressed(Path(path).read_bytes()))
    except (OSError, InputError) as error:
        raise ConfigError(f'mask: cannot read "{path}": {error}; give the path of a PNG that is '
                          'black where the images show the robot itself, else white') from error
    shown = gray > np.iinfo(gray.dtype).max // 2
    if shown.mean() < MIN_SHOWN:
        raise ConfigError(f'mask: "{path}" is white on {shown.mean():.1%} only; at least '
                          f'{MIN_SHOWN:.0%} are needed. White is what shows the world')
    return shown


def fitted_mask(shown: np.ndarray, width_px: int, height_px: int) -> np.ndarray:
    """
    Fit a mask to images of a size.

    :param shown: (H, W) bool, of that size or of its aspect ratio
    :returns: (height_px, width_px) bool
    :raises InputError: if it is of neither
    """
    rows, columns = shown.shape
    if abs(rows * width_px - columns * height_px) > max(columns, width_px):  # a pixel of either
        raise InputError(f'the mask is {columns}x{rows} px but the image {width_px}x{height_px} '
                         'px; draw it on an image of this camera')
    return cv2.resize(shown.view(np.uint8), (width_px, height_px),
                      interpolation=cv2.INTER_NEAREST).view(bool)


class WorldMask:
    """
    What of the working images of one camera shows the world.

    :param shown: (h, w) bool
    """

    def __init__(self, shown: np.ndarray) -> None:
        self.usable = cv2.erode(shown.view(np.uint8),
                                np.ones((2 * MARGIN_PX + 1,) * 2, np.uint8)).view(bool)
        """(h, w) bool, the same without what is next to anything else."""
        self._hidden = (~shown).view(np.uint8)
        self._shares = [shown.astype(np.float32)]
        while min(self._shares[-1].shape) >= 2 * COARSEST_PX:
            height, width = self._shares[-1].shape
            self._shares.append(_reduced(self._shares[-1], (height // 2, width // 2)))

    def filled(self, image: np.ndarray) -> np.ndarray:
        """
        Have the world go on smoothly over what hides it.

        Each hidden pixel takes the mean of what is shown of the finest pixel around it, of a
        pyramid of reduced images, that shows anything, or else of the whole image.

        :param image: (h, w) or (h, w, C) float32, which is overwritten
        """
        shares = self._shares if image.ndim == 2 else [each[..., None] for each in self._shares]
        sums = [image * shares[0]]
        for share in shares[1:]:
            sums.append(_reduced(sums[-1], share.shape[:2]))
        smooth = np.empty_like(sums[-1])
        smooth[:] = sums[-1].mean(axis=(0, 1)) / shares[-1].mean()
        for total, share in zip(sums[:0:-1], shares[:0:-1]):
            smooth = _enlarged(smooth, share.shape[:2])
            np.divide(total, share, out=smooth, where=share > 0.0)
        return cv2.copyTo(_enlarged(smooth, image.shape[:2]), self._hidden, image)


def _reduced(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Means of an image's pixels, (h, w) or (h, w, C), in a shape of fewer."""
    return cv2.resize(image, shape[::-1], interpolation=cv2.INTER_AREA)


def _enlarged(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """An image, (h, w) or (h, w, C), interpolated in a shape of more pixels."""
    return cv2.resize(image, shape[::-1], interpolation=cv2.INTER_LINEAR)
