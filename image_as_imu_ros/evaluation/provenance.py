"""What a result was made of: versions, the code, the weights and the recording."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2

from image_as_imu_ros import __version__
from image_as_imu_ros.evaluation.sources.recording import Recording
from image_as_imu_ros.model.weights_files import SHIPPED

PACKAGE = Path(__file__).resolve().parents[1]
ESTIMATING_CODE = ('estimator.py', 'batches.py', 'compiled.py', 'devices.py', 'stream.py',
                   'motion_filter.py', 'lever_arm.py', 'smoothing.py', 'rolling_shutter.py',
                   'row_motion.py', 'types.py', 'image_decoding.py', 'geometry', 'model',
                   'evaluation/sources', 'evaluation/estimation.py')
"""Files and folders of the package that estimates depend on."""

_DISTRIBUTIONS = {'numpy': 'numpy', 'scipy': 'scipy', 'torch': 'torch', 'timm': 'timm',
                  'matplotlib': 'matplotlib', 'evo': 'evo', 'pycolmap': 'pycolmap',
                  'allantools': 'AllanTools'}


def versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that figures depend on."""
    found = {'image_as_imu_ros': __version__, 'python': platform.python_version(),
             'system': platform.platform(), 'opencv': cv2.__version__}
    for name, distribution in _DISTRIBUTIONS.items():
        try:
            found[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            found[name] = 'not installed'
    return found


def code_sha256(names: Iterable[str] = ESTIMATING_CODE) -> str:
    """Hash of some Python files of the package, given by their paths inside it."""
    digest = hashlib.sha256()
    for name in names:
        path = PACKAGE / name
        for file in sorted(path.rglob('*.py')) if path.is_dir() else [path]:
            digest.update(f'{file.relative_to(PACKAGE)}\n'.encode() + file.read_bytes())
    return digest.hexdigest()


def weights_sha256(name_or_path: str) -> str | None:
    """Hash of a weights file; None where there is no such file."""
    path = Path(name_or_path) if name_or_path.endswith('.safetensors') \
        else SHIPPED / f'{name_or_path}.safetensors'
    return sha256_if_any(path)


def sha256_if_any(path: Path) -> str | None:
    """Hash of a file's content; None where there is no such file."""
    return file_sha256(path) if path.is_file() else None


def file_sha256(path: Path) -> str:
    """Hash of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def recording_sha256(recording: Recording) -> str:
    """
    Hash of what methods see of a recording.

    Stamps, exposures, intrinsics and axes go in by value; the files by name, size and time of
    change, so that large recordings need not be read.
    """
    digest = hashlib.sha256()
    for stream in recording.streams:
        rotation = None if stream.R_gyro_camera is None else stream.R_gyro_camera.tolist()
        digest.update(json.dumps([stream.camera, rotation]).encode())
        for record in stream.records:
            digest.update(json.dumps([record.stamp_ns, record.exposure_time_s,
                                      record.readout_time_s,
                                      asdict(record.intrinsics)]).encode())
    source = recording.source.resolve()
    files = sorted(source.rglob('*')) if source.is_dir() else [source]
    for file in files:
        if file.is_file():
            state = file.stat()
            digest.update(f'{file.relative_to(source.parent)} {state.st_size} '
                          f'{state.st_mtime_ns}\n'.encode())
    return digest.hexdigest()


def key_of(content: dict[str, Any]) -> str:
    """Hash of anything that JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
