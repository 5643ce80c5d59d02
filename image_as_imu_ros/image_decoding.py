"""
Pixels from the bytes of ROS image messages and image files, without ROS.

Colour comes out as RGB and gray as one channel, uint8 or uint16 in native byte order, whatever
went in. Nothing is resized, rotated or rescaled.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from image_as_imu_ros.errors import InputError


@dataclass(frozen=True)
class _Layout:
    """How one encoding stores its pixels, and the OpenCV conversion to RGB (None: as it is)."""

    channels: int
    bytes_per_channel: int = 1
    conversion: int | None = None


_LAYOUTS = {
    'rgb8': _Layout(3),
    'bgr8': _Layout(3, conversion=cv2.COLOR_BGR2RGB),
    '8UC3': _Layout(3, conversion=cv2.COLOR_BGR2RGB),
    'rgba8': _Layout(4, conversion=cv2.COLOR_RGBA2RGB),
    'bgra8': _Layout(4, conversion=cv2.COLOR_BGRA2RGB),
    '8UC4': _Layout(4, conversion=cv2.COLOR_BGRA2RGB),
    'mono8': _Layout(1),
    '8UC1': _Layout(1),
    'mono16': _Layout(1, 2),
    '16UC1': _Layout(1, 2),
    'rgb16': _Layout(3, 2),
    'bgr16': _Layout(3, 2, cv2.COLOR_BGR2RGB),
    'yuv422': _Layout(2, conversion=cv2.COLOR_YUV2RGB_UYVY),
    'uyvy': _Layout(2, conversion=cv2.COLOR_YUV2RGB_UYVY),
    'yuv422_yuy2': _Layout(2, conversion=cv2.COLOR_YUV2RGB_YUY2),
    'yuyv': _Layout(2, conversion=cv2.COLOR_YUV2RGB_YUY2),
    # OpenCV names a Bayer pattern by its second row.
    'bayer_rggb8': _Layout(1, conversion=cv2.COLOR_BayerBG2RGB),
    'bayer_bggr8': _Layout(1, conversion=cv2.COLOR_BayerRG2RGB),
    'bayer_gbrg8': _Layout(1, conversion=cv2.COLOR_BayerGR2RGB),
    'bayer_grbg8': _Layout(1, conversion=cv2.COLOR_BayerGB2RGB),
}
ENCODINGS = tuple(_LAYOUTS)
"""Encodings of `sensor_msgs/Image` that can be decoded."""

_MIN_BAYER_SIZE_PX = 3
_TRAILER_WINDOW_BYTES = 1024


def decode_image(encoding: str, width: int, height: int, step: int, big_endian: bool,
                 data: bytes | memoryview) -> np.ndarray:
    """
    Decode the fields of a `sensor_msgs/Image`.

    :param step: bytes from one row to the next; rows may be padded
    :param data: the pixel bytes; anything that numpy can read without a copy
    :returns: (H, W, 3) RGB or (H, W) gray, uint8 or uint16; may be a read-only view of `data`
    :raises InputError: if the encoding is unknown, a size is not positive, the step is too
        small for a row or the data too short for all rows
    """
    layout = _LAYOUTS.get(encoding)
    if layout is None:
        raise InputError(f'image encoding "{encoding}" is not supported; '
                         f'use one of {", ".join(ENCODINGS)}')
    if width <= 0 or height <= 0:
        raise InputError(f'image size {width}x{height} is not positive')
    row_bytes = width * layout.channels * layout.bytes_per_channel
    if step < row_bytes:
        raise InputError(f'image step {step} is too small: {width} px of {encoding} take '
                         f'{row_bytes} bytes; the camera driver fills the message wrongly')
    needed = step * (height - 1) + row_bytes
    flat = np.frombuffer(data, np.uint8)
    if flat.size < needed:
        raise InputError(f'image data of {flat.size} bytes is truncated: {width}x{height} px of '
                         f'{encoding} with step {step} take {needed} bytes')
    rows = np.lib.stride_tricks.as_strided(
        flat, (height, row_bytes), (step, 1), writeable=False)
    if layout.conversion in (cv2.COLOR_YUV2RGB_UYVY, cv2.COLOR_YUV2RGB_YUY2):
        return _decode_yuv422(rows, width, layout.conversion)
    if layout.bytes_per_channel == 2:
        rows = np.ascontiguousarray(rows).view('>u2' if big_endian else '<u2').astype(
            np.uint16, copy=False)
    pixels = rows.reshape(height, width, layout.channels) if layout.channels > 1 else rows
    if layout.conversion is None:
        return pixels
    if encoding.startswith('bayer') and min(width, height) < _MIN_BAYER_SIZE_PX:
        raise InputError(f'Bayer image of {width}x{height} px is too small to be interpolated')
    return cv2.cvtColor(pixels, layout.conversion)


def decode_compressed(data: bytes | memoryview) -> np.ndarray:
    """
    Decode a JPEG or PNG: an image file or the data of a `sensor_msgs/CompressedImage`.

    The pixels stay as stored: an orientation tag is ignored, since the intrinsics belong to
    the sensor's own orientation. An alpha channel is dropped.

    :returns: (H, W, 3) RGB or (H, W) gray, uint8 or uint16
    :raises InputError: if the data is empty, truncated or in no known format
    """
    encoded = np.frombuffer(data, np.uint8)
    _check_complete(encoded)
    try:
        image = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
    except cv2.error:
        image = None
    if image is None or image.dtype not in (np.uint8, np.uint16):
        raise InputError(f'compressed image of {encoded.size} bytes cannot be decoded; '
                         'it must be a whole JPEG or PNG with 8 or 16 bits per channel')
    if image.ndim == 2:
        return image
    return cv2.cvtColor(image, cv2.COLOR_BGRA2RGB if image.shape[2] == 4 else cv2.COLOR_BGR2RGB)


def as_gray(image: np.ndarray) -> np.ndarray:
    """Gray of an image, (H, W) gray or (H, W, 3) RGB, of the same type."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.ndim == 3 else image


def _decode_yuv422(rows: np.ndarray, width: int, conversion: int) -> np.ndarray:
    """Decode packed 4:2:2 rows; an odd last pixel borrows its neighbours' missing chroma."""
    if width == 1:
        raise InputError('a 4:2:2 image of 1 px width has no complete chroma')
    if width % 2:
        rows = np.concatenate([rows, rows[:, -4:-2]], axis=1)
    pixels = np.ascontiguousarray(rows).reshape(len(rows), -1, 2)
    return cv2.cvtColor(pixels, conversion)[:, :width]


def _check_complete(encoded: np.ndarray) -> None:
    """Find a missing end marker, which OpenCV would paint over with gray."""
    head, tail = encoded[:8].tobytes(), encoded[-_TRAILER_WINDOW_BYTES:].tobytes()
    for name, magic, trailer in (('JPEG', b'\xff\xd8', b'\xff\xd9'), ('PNG', b'\x89PNG', b'IEND')):
        if head.startswith(magic) and trailer not in tail:
            raise InputError(f'{name} of {encoded.size} bytes is truncated: '
                             'its end marker is missing')
