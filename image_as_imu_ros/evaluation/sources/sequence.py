"""
Sequence folders: frames.csv, gyro.csv and meta.json beside the images.

frames.csv has one row per image and camera: file, t or t_mid (mid-exposure, s), exposure_s,
width, height, fx, fy, cx, cy; optional camera, model and the references wx, wy, wz (rad/s) and
vx, vy, vz (m/s) in that camera's axes. gyro.csv (t, wx, wy, wz) is in the axes of the first
camera. meta.json may tell the readout_time_s of a rolling shutter.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from image_as_imu_ros.errors import ConfigError, DataFormatError, InputError
from image_as_imu_ros.evaluation.sources.image_files import stored_image_file
from image_as_imu_ros.evaluation.sources.recording import (
    FrameRecord,
    Gyroscope,
    Recording,
    RecordingOptions,
    Stream,
    finite_gyroscope,
)
from image_as_imu_ros.evaluation.sources.table import Table
from image_as_imu_ros.types import CameraIntrinsics

_INTRINSIC_COLUMNS = ('width', 'height', 'fx', 'fy', 'cx', 'cy')


def is_sequence(folder: Path) -> bool:
    """Whether a folder looks like a sequence folder."""
    return (folder / 'frames.csv').is_file()


def open_sequence(folder: Path, options: RecordingOptions) -> Recording:
    """
    Open a sequence folder; rows that cannot be used are skipped and counted.

    :raises DataFormatError: if a file or column is missing or unreadable, or nothing is usable
    :raises ConfigError: if no camera has the wanted name
    """
    table = Table(folder / 'frames.csv', ('file', *_INTRINSIC_COLUMNS))
    time_column = next((name for name in ('t_mid', 't') if name in table), None)
    if time_column is None:
        raise DataFormatError(f'{table.path} has no column "t" or "t_mid" (mid-exposure, s)')
    stamps_ns = table.stamps_ns(time_column)
    cameras = table.text('camera') if 'camera' in table else ['camera'] * len(table)
    wanted = [name for name in dict.fromkeys(cameras) if fnmatchcase(name, options.camera or '*')]
    if not wanted:
        raise ConfigError(f'no camera of {folder} is called "{options.camera}"; '
                          f'there are: {", ".join(dict.fromkeys(cameras))}')

    meta = _read_meta(folder)
    skipped: Counter[str] = Counter()
    gyroscope = _read_gyroscope(folder, skipped)
    files = table.text('file')
    sizes_and_lengths = table.numbers(*_INTRINSIC_COLUMNS)
    exposures_s = [options.exposure_time_s if math.isnan(value) else float(value) for value in (
        table.numbers('exposure_s') if 'exposure_s' in table else np.full(len(table), np.nan))]
    models = table.text('model') if 'model' in table else _default_models(meta, len(table))
    angular_rad_s = _references(table, ('wx', 'wy', 'wz'))
    linear_m_s = _references(table, ('vx', 'vy', 'vz'))

    readout_s = _readout_time_s(meta)
    rows_of: dict[str, list[int]] = {name: [] for name in wanted}
    intrinsics: dict[int, CameraIntrinsics] = {}
    for row, camera in enumerate(cameras):
        if camera not in rows_of:
            continue
        try:
            intrinsics[row] = _intrinsics(models[row], sizes_and_lengths[row], meta)
            rows_of[camera].append(row)
        except InputError as error:
            skipped[str(error)] += 1

    def stream(camera: str) -> Stream:
        rows = rows_of[camera]
        records = tuple(
            FrameRecord(
                int(stamps_ns[row]), intrinsics[row], exposures_s[row], readout_s,
                angular_velocity_reference_rad_s=angular_rad_s[row],
                linear_velocity_reference_m_s=linear_m_s[row],
                linear_velocity_stored_m_s=linear_m_s[row])
            for row in rows)
        rotation = options.R_gyro_camera
        if rotation is None and camera == cameras[0]:
            rotation = np.eye(3)
        return Stream(camera, records,
                      lambda: (stored_image_file(folder / files[row]) for row in rows), rotation)

    if gyroscope is None and all(reference is None for reference in angular_rad_s):
        raise DataFormatError(f'{folder} has neither gyro.csv nor columns wx, wy, wz in '
                              'frames.csv: there is nothing to compare with')
    streams = tuple(stream(name) for name in wanted if rows_of[name])
    return Recording(folder, 'sequence', 'full', streams, gyroscope, (), dict(skipped))


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / 'meta.json'
    if not path.is_file():
        return {}
    try:
        meta = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise DataFormatError(f'cannot read {path}: {error}') from error
    if not isinstance(meta, dict):
        raise DataFormatError(f'{path} is not a JSON object')
    return meta


def _readout_time_s(meta: dict[str, Any]) -> float:
    value = meta.get('readout_time_s', 0.0)
    if not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise DataFormatError(f'meta.json: readout_time_s {value!r} is not within 0 and 1 s')
    return float(value)


def _read_gyroscope(folder: Path, skipped: dict[str, int]) -> Gyroscope | None:
    path = folder / 'gyro.csv'
    if not path.is_file():
        return None
    table = Table(path, ('t', 'wx', 'wy', 'wz'))
    return finite_gyroscope(table.stamps_ns('t'), table.numbers('wx', 'wy', 'wz'), skipped)


def _default_models(meta: dict[str, Any], count: int) -> list[str]:
    return ['radtan' if 'distortion_radtan' in meta else 'pinhole'] * count


def _references(table: Table, names: tuple[str, str, str]) -> list[np.ndarray | None]:
    """Per-row vectors, None where the columns or a number are missing."""
    if any(name not in table for name in names):
        return [None] * len(table)
    return [vector if np.isfinite(vector).all() else None for vector in table.numbers(*names)]


def _intrinsics(model: str, numbers: np.ndarray, meta: dict[str, Any]) -> CameraIntrinsics:
    """Intrinsics of one row; InputError where the model or a number is of no use."""
    if not np.isfinite(numbers).all():
        raise InputError('frames.csv row with a missing size, focal length or principal point')
    width, height, fx, fy, cx, cy = numbers.tolist()
    size = int(width), int(height)
    if model in ('', 'pinhole'):
        return CameraIntrinsics(*size, fx, fy, cx, cy)
    if model == 'radtan':
        coefficients = meta.get('distortion_radtan')
        if not isinstance(coefficients, list):
            raise InputError('camera model "radtan" without distortion_radtan in meta.json')
        return CameraIntrinsics(*size, fx, fy, cx, cy, 'plumb_bob',
                                tuple(float(value) for value in coefficients))
    raise InputError(f'camera model "{model}" is not supported')
