"""What in a camera's images never changes while it moves: parts of the robot itself."""

from __future__ import annotations

import cv2
import numpy as np
from tqdm import tqdm

from image_as_imu_ros.errors import DataFormatError, InputError
from image_as_imu_ros.evaluation.sources.recording import Recording
from image_as_imu_ros.image_decoding import as_gray

LONGER_SIDE_PX = 320
"""Of the images that are compared."""
STILL = 0.03
"""Mean squared change of a still part, relative to that of a part that changes much."""
CHANGING = 0.75
"""Share of an image that changes less than that part."""
SMOOTHING_PX, DETAIL_PX = 1.0, 3.0
"""Standard deviations: of the smoothing of changes, and of what is taken off to show detail."""
SPECK_PX, HOLE_PX = 5, 9
"""Diameters up to which still specks are dropped, and holes between still parts filled."""
EDGE_PX = 2
"""What smoothing takes off still parts all round."""
MOVED = 0.3
"""Least change of the detail of all else, relative to its power; 1 of unrelated images."""
MIN_IMAGES = 20


def still_parts(recording: Recording, progress: bool = False) -> np.ndarray:
    """
    Find what never changes in the images of a moving camera; unreadable ones are left out.

    :param recording: of one camera
    :param progress: show a bar on stderr where that is a terminal
    :returns: (H, W) bool, of the size of its images
    :raises DataFormatError: if it has several cameras or too few images, or moves too little
    """
    stream = recording.only_stream
    intrinsics = stream.records[0].intrinsics
    full = intrinsics.width_px, intrinsics.height_px
    scale = min(1.0, LONGER_SIDE_PX / max(full))
    size = tuple(max(round(side * scale), 1) for side in full)
    change, detail_change, power = np.zeros((3, *size[::-1]), np.float32)
    before, images = None, 0
    for stored in tqdm(stream.read(), total=len(stream.records), unit='frame',
                       disable=None if progress else True):
        try:
            image = stored.decode()
        except InputError:
            continue
        images += 1
        gray = cv2.resize(as_gray(image), size, interpolation=cv2.INTER_AREA)
        gray = gray.astype(np.float32)
        now = gray, gray - cv2.GaussianBlur(gray, (0, 0), DETAIL_PX)
        if before is not None:
            change += (now[0] - before[0]) ** 2
            detail_change += (now[1] - before[1]) ** 2
            power += now[1] ** 2 + before[1] ** 2
        before = now
    if images < MIN_IMAGES:
        raise DataFormatError(f'{recording.source} has {images} images that can be read; at least '
                              f'{MIN_IMAGES} of a moving camera are needed to find a mask')
    smooth = cv2.GaussianBlur(change, (0, 0), SMOOTHING_PX)
    still = (smooth < STILL * np.quantile(smooth, CHANGING)).astype(np.uint8)
    for kind, diameter in ((cv2.MORPH_CLOSE, HOLE_PX), (cv2.MORPH_OPEN, SPECK_PX)):
        still = cv2.morphologyEx(still, kind, cv2.getStructuringElement(
            cv2.MORPH_ELLIPSE, (diameter, diameter)))
    still = cv2.dilate(still, np.ones((2 * EDGE_PX + 1,) * 2, np.uint8))
    moves = still == 0
    if not detail_change[moves].sum() > MOVED * power[moves].sum():
        raise DataFormatError(f'the camera of {recording.source} moves too little to tell its '
                              'own parts from the scene; turn it to and fro by half a view')
    return cv2.resize(still, full, interpolation=cv2.INTER_NEAREST).view(bool)
