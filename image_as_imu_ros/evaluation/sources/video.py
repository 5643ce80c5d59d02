"""Plain videos, of which the camera's intrinsics are known and nothing else need be."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from image_as_imu_ros.errors import DataFormatError
from image_as_imu_ros.evaluation.sources.recording import (
    FrameRecord,
    Recording,
    StoredImage,
    Stream,
)
from image_as_imu_ros.types import CameraIntrinsics

SUFFIXES = ('.mp4', '.mov', '.avi', '.mkv', '.webm', '.m4v')
CAMERA = 'camera'


def is_video(source: Path) -> bool:
    """Whether a file is called like a video."""
    return source.is_file() and source.suffix.lower() in SUFFIXES


def open_video(source: Path, intrinsics_px: tuple[float, float, float | None, float | None],
               distortion: tuple[float, ...] = (), exposure_time_s: float | None = None,
               readout_time_s: float = 0.0) -> Recording:
    """
    Open a video; the time of its first image is 0, as image editors count.

    :param intrinsics_px: fx, fy, cx, cy of the images as they are shown; None puts the principal
        point in the middle
    :param distortion: coefficients of `plumb_bob`: k1, k2, p1, p2 and perhaps k3
    :raises DataFormatError: if it cannot be decoded
    :raises InputError: if the intrinsics are no such
    """
    capture = cv2.VideoCapture(str(source))
    try:
        found, first = capture.read()
        if not found:
            raise DataFormatError(f'{source} cannot be decoded as a video; is it truncated?')
        rate_hz = capture.get(cv2.CAP_PROP_FPS)
        times_s = [1e-3 * capture.get(cv2.CAP_PROP_POS_MSEC)]
        while capture.grab():
            times_s.append(1e-3 * capture.get(cv2.CAP_PROP_POS_MSEC))
    finally:
        capture.release()
    if (np.diff(times_s) <= 0.0).any():  # a container without times
        if not rate_hz > 0.0:
            raise DataFormatError(f'{source} tells neither times nor a frame rate')
        times_s = [index / rate_hz for index in range(len(times_s))]
    height, width = first.shape[:2]
    fx, fy, cx, cy = intrinsics_px
    intrinsics = CameraIntrinsics(
        width, height, fx, fy, (width - 1) / 2 if cx is None else cx,
        (height - 1) / 2 if cy is None else cy,
        'plumb_bob' if distortion else 'pinhole', distortion)
    records = tuple(FrameRecord(round((time_s - times_s[0]) * 1e9), intrinsics, exposure_time_s,
                                readout_time_s) for time_s in times_s)
    return Recording(source, 'video', 'full',
                     (Stream(CAMERA, records, lambda: _read(source), np.eye(3)),), None)


def _read(source: Path) -> Iterator[StoredImage]:
    """Decode the images one by one, as they are shown."""
    capture = cv2.VideoCapture(str(source))
    try:
        while True:
            found, image = capture.read()
            if not found:
                return
            yield StoredImage(partial(cv2.cvtColor, image, cv2.COLOR_BGR2RGB))
    finally:
        capture.release()
