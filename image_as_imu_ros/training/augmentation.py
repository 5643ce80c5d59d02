"""The paper's augmentation of images, which leaves their motion as it is."""

from __future__ import annotations

import cv2
import numpy as np

JITTER, JITTER_SHARE = 0.2, 0.4
GRAY_SHARE = 0.2
OTHER_SHARE = 0.3
"""Of images that noise, defocus or compression is added to; the paper does not state it."""
DEFOCUS_RADIUS_PX = (1.0, 1.5)
NOISE = (0.01, 0.05)
"""Deviation at full brightness; colours get a third of it."""
JPEG_QUALITY = (20, 100)


def augment(rng: np.random.Generator, rgb: np.ndarray) -> np.ndarray:
    """
    Change an image as another camera, or another light, might.

    :param rgb: (H, W, 3) uint8
    :returns: the same shape and type
    """
    image = rgb.astype(np.float32) / 255.0
    if rng.random() < JITTER_SHARE:
        image = _jitter(rng, image)
    if rng.random() < GRAY_SHARE:
        image = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=-1)
    if rng.random() < OTHER_SHARE:
        image = cv2.filter2D(image, -1, _disc(rng.uniform(*DEFOCUS_RADIUS_PX)),
                             borderType=cv2.BORDER_REFLECT)
    if rng.random() < OTHER_SHARE:
        grain = rng.standard_normal((*image.shape[:2], 1), np.float32) \
            + rng.standard_normal(image.shape, np.float32) / 3
        image = image + np.float32(rng.uniform(*NOISE)) * np.sqrt(image) * grain
    out = (image.clip(0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    if rng.random() < OTHER_SHARE:
        quality = int(rng.integers(JPEG_QUALITY[0], JPEG_QUALITY[1] + 1))
        coded = cv2.imencode('.jpg', out, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        out = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    return out


def _jitter(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Change brightness, contrast, saturation and hue, each by up to JITTER."""
    brightness, contrast, saturation = rng.uniform(1.0 - JITTER, 1.0 + JITTER, 3)
    image = image * np.float32(brightness)
    image = image + (1.0 - np.float32(contrast)) * (image.mean() - image)
    hsv = cv2.cvtColor(image.clip(0.0, 1.0), cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + 360.0 * rng.uniform(-JITTER, JITTER)) % 360.0
    hsv[..., 1] = (hsv[..., 1] * saturation).clip(0.0, 1.0)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _disc(radius_px: float) -> np.ndarray:
    """Blur kernel of a disc with a soft rim."""
    reach = np.arange(-2, 3)
    distance = np.hypot(*np.meshgrid(reach, reach))
    kernel = np.clip(radius_px + 0.5 - distance, 0.0, 1.0)
    return kernel / kernel.sum()
