"""
Velocities in files, one row per frame: those of any method, and this package's own as a cache.

The columns are `timestamp` (s, of the frame), `alpha_x`, `alpha_y`, `alpha_z` (rad/s, gyroscope
axes) and `t_x`, `t_y`, `t_z` (m/s, camera axes), as in the paper's tools; empty where a method
had no answer. Files written here add the stamp in ns and the camera; those of the estimator add
all else that it states, so that every figure and file can be made of them again.
"""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from image_as_imu_ros.errors import DataFormatError, SynchronizationError
from image_as_imu_ros.evaluation.estimation import Estimates, StreamEstimates
from image_as_imu_ros.evaluation.evaluate import MATCH_TOLERANCE_NS
from image_as_imu_ros.evaluation.sources.recording import Recording, Stream
from image_as_imu_ros.evaluation.sources.table import Table
from image_as_imu_ros.files import write_atomically
from image_as_imu_ros.types import EstimateStatus, MotionEstimate

ANGULAR_COLUMNS = ('alpha_x', 'alpha_y', 'alpha_z')
LINEAR_COLUMNS = ('t_x', 't_y', 't_z')
COLUMNS = ('timestamp', *ANGULAR_COLUMNS, *LINEAR_COLUMNS)
"""What a file of predictions must have; the linear velocity may be absent."""

COMPONENTS = ('vx', 'vy', 'vz', 'wx', 'wy', 'wz')
UPPER = tuple((row, column) for row in range(6) for column in range(row, 6))
COVARIANCE_COLUMNS = tuple(f'cov_{COMPONENTS[row]}_{COMPONENTS[column]}' for row, column in UPPER)
"""Upper triangle of the 6x6 covariance in camera axes."""

_OWN_COLUMNS = (*COLUMNS, 'stamp_ns', 'camera')
_NUMBERS = ('exposure_time_s', 'sign_margin', 'quality', 'blur_extent_px', 'inlier_share')
_ESTIMATE_COLUMNS = (*_OWN_COLUMNS, *_NUMBERS, 'sign_resolved', 'status', *COVARIANCE_COLUMNS)
_NOTE = '# '


@dataclass(frozen=True)
class Velocities:
    """
    One stream's velocities by some method, a row per frame; NaN where it has no answer.

    Angular velocities (N, 3) rad/s are in gyroscope axes, linear ones (N, 3) m/s in camera axes.
    """

    angular_rad_s: np.ndarray
    linear_m_s: np.ndarray

    @classmethod
    def none(cls, frames: int) -> Velocities:
        """No answer at all."""
        return cls(np.full((frames, 3), np.nan), np.full((frames, 3), np.nan))


def rotation_of(stream: Stream) -> np.ndarray:
    """From camera to gyroscope axes, (3, 3); the identity where they are not known."""
    return np.eye(3) if stream.R_gyro_camera is None else stream.R_gyro_camera


def write_velocities(path: Path, recording: Recording, parts: tuple[Velocities, ...],
                     note: dict[str, Any]) -> None:
    """Write a method's velocities, one part per stream, with a note in the first line."""
    rows = [[*_start_of_row(record.stamp_ns, angular, linear), record.stamp_ns, stream.camera]
            for stream, part in zip(recording.streams, parts)
            for record, angular, linear in zip(stream.records, part.angular_rad_s,
                                               part.linear_m_s)]
    _write(path, note, _OWN_COLUMNS, rows)


def read_velocities(path: Path, recording: Recording) -> tuple[Velocities, ...]:
    """
    Read a method's velocities, one part per stream.

    A row belongs to the frame with the nearest stamp, within 1 ms, of the camera that it names.

    :raises DataFormatError: if the file cannot be read, lacks a column, or names no camera
        where the recording has several
    :raises SynchronizationError: if no row has the stamp of a frame
    """
    table = Table(path, ('timestamp', *ANGULAR_COLUMNS))
    if 'camera' not in table and len(recording.streams) > 1:
        raise DataFormatError(f'{path} has no column "camera" to tell the '
                              f'{len(recording.streams)} cameras of {recording.source} apart')
    stamps_ns = np.array([int(cell) for cell in table.text('stamp_ns')], dtype=np.int64) \
        if 'stamp_ns' in table else table.stamps_ns('timestamp')
    angular = table.numbers(*ANGULAR_COLUMNS)
    linear = table.numbers(*LINEAR_COLUMNS) if all(name in table for name in LINEAR_COLUMNS) \
        else np.full_like(angular, np.nan)
    cameras = np.array(table.text('camera')) if 'camera' in table else None
    parts, matched = [], 0
    for stream in recording.streams:
        part = Velocities.none(len(stream.records))
        frames_ns = np.array([record.stamp_ns for record in stream.records])
        for row in range(len(table)):
            if cameras is not None and cameras[row] != stream.camera:
                continue
            frame = int(np.abs(frames_ns - stamps_ns[row]).argmin())
            if abs(int(frames_ns[frame] - stamps_ns[row])) <= MATCH_TOLERANCE_NS:
                part.angular_rad_s[frame], part.linear_m_s[frame] = angular[row], linear[row]
                matched += 1
        parts.append(part)
    if not matched:
        raise SynchronizationError(f'none of {len(table)} rows of {path} has the stamp of an '
                                   f'image of {recording.source}')
    return tuple(parts)


def write_estimates(path: Path, estimates: Estimates, note: dict[str, Any]) -> None:
    """Write all that the estimator said, with a note in the first line."""
    rows = []
    for result in estimates.streams:
        rotation = rotation_of(result.stream)
        for estimate in filter(None, result.estimates):
            exposure_s = estimate.exposure_time_s
            numbers = (math.nan if exposure_s is None else exposure_s, estimate.sign_margin,
                       estimate.quality, estimate.blur_extent_px, estimate.inlier_share)
            rows.append([
                *_start_of_row(estimate.stamp_ns, rotation @ estimate.angular_velocity_rad_s,
                               estimate.linear_velocity_m_s),
                estimate.stamp_ns, result.stream.camera, *map(_cell, numbers),
                int(estimate.sign_resolved), estimate.status.name,
                *(_cell(estimate.covariance[entry]) for entry in UPPER)])
    note = {**note, 'skipped': estimates.skipped,
            'times_ms': estimates.times_ms}
    _write(path, note, _ESTIMATE_COLUMNS, rows)


def read_estimates(path: Path, recording: Recording) -> Estimates:
    """
    Read what `write_estimates` wrote of the same recording.

    :raises DataFormatError: if it is damaged or of another recording
    """
    note = read_note(path)
    if note.get('times_ms') == []:  # of a share none of whose frames could be used
        return Estimates(tuple(StreamEstimates(stream, (None,) * len(stream.records))
                               for stream in recording.streams), (), note['skipped'])
    table = Table(path, _ESTIMATE_COLUMNS)
    angular, linear = table.numbers(*ANGULAR_COLUMNS), table.numbers(*LINEAR_COLUMNS)
    numbers, upper = table.numbers(*_NUMBERS), table.numbers(*COVARIANCE_COLUMNS)
    keys = list(zip(table.text('camera'), map(int, table.text('stamp_ns'))))
    status, resolved = table.text('status'), table.text('sign_resolved')
    rows = {key: row for row, key in enumerate(keys)}
    results, triangle = [], tuple(np.array(UPPER).T)
    for stream in recording.streams:
        rotation = rotation_of(stream)
        estimates: list[MotionEstimate | None] = []
        for record in stream.records:
            row = rows.pop((stream.camera, record.stamp_ns), None)
            if row is None:
                estimates.append(None)
                continue
            covariance = np.zeros((6, 6))
            covariance[triangle] = covariance.T[triangle] = upper[row]
            exposure_s, margin, quality, extent_px, inliers = map(float, numbers[row])
            estimates.append(MotionEstimate(
                record.stamp_ns, None if math.isnan(exposure_s) else exposure_s,
                rotation.T @ angular[row], linear[row], covariance, resolved[row] == '1', margin,
                quality, extent_px, inliers, EstimateStatus[status[row]]))
        results.append(StreamEstimates(stream, tuple(estimates)))
    if rows:
        raise DataFormatError(f'{path}: {len(rows)} rows are of no image of {recording.source}')
    return Estimates(tuple(results), tuple(note['times_ms']), note['skipped'])


def read_note(path: Path) -> dict[str, Any]:
    """Read the note in the first line of a file; empty where there is none or no file."""
    try:
        with path.open(encoding='utf-8') as file:
            first = file.readline()
        note = json.loads(first.removeprefix(_NOTE)) if first.startswith(_NOTE) else {}
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _start_of_row(stamp_ns: int, angular: np.ndarray, linear: np.ndarray) -> list[Any]:
    """Time in seconds to the ns, and both velocities."""
    return [f'{stamp_ns // 10**9}.{stamp_ns % 10**9:09d}', *map(_cell, (*angular, *linear))]


def _cell(value: float) -> str:
    """A number with all of its digits; nothing for NaN."""
    return '' if math.isnan(value) else repr(float(value))


def _write(path: Path, note: dict[str, Any], columns: tuple[str, ...],
           rows: list[list[Any]]) -> None:
    buffer = io.StringIO()
    buffer.write(f'{_NOTE}{json.dumps(note)}\n')
    writer = csv.writer(buffer, lineterminator='\n')
    writer.writerow(columns)
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue().encode())
