"""Images that lie in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from image_as_imu_ros.errors import InputError
from image_as_imu_ros.evaluation.sources.recording import StoredImage
from image_as_imu_ros.image_decoding import decode_compressed

_FORMATS = {'.jpg': 'jpeg', '.jpeg': 'jpeg', '.png': 'png'}


def read_image_file(path: Path) -> np.ndarray:
    """
    Read a JPEG or PNG file: (H, W, 3) RGB or (H, W) gray, uint8 or uint16.

    :raises InputError: if the file cannot be read or decoded
    """
    try:
        return decode_compressed(path.read_bytes())
    except OSError as error:
        raise InputError(f'cannot read image {path}: {error.strerror or error}') from error
    except InputError as error:
        raise InputError(f'{path}: {error}') from error


def stored_image_file(path: Path) -> StoredImage:
    """A file as a stored image; a file that cannot be read fails when it is decoded."""
    try:
        return StoredImage(lambda: read_image_file(path), path.read_bytes(),
                           _FORMATS.get(path.suffix.lower(), ''))
    except OSError:
        return StoredImage(lambda: read_image_file(path))
