"""Recordings with a gyroscope, of any kind, behind one type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from image_as_imu_ros.errors import ConfigError, DataFormatError
from image_as_imu_ros.evaluation.sources.recording import (
    AUTO_TIME_OFFSET,
    Recording,
    RecordingOptions,
)
from image_as_imu_ros.evaluation.sources.sequence import is_sequence, open_sequence
from image_as_imu_ros.evaluation.sources.strayscanner import is_strayscanner, open_strayscanner

__all__ = ['KINDS', 'Recording', 'RecordingOptions', 'find_recordings', 'open_recording']

KINDS = ('rosbag', 'strayscanner', 'sequence')


def open_recording(source: Path, kind: str = 'auto',
                   options: RecordingOptions = RecordingOptions()) -> Recording:
    """
    Open a recording.

    :param source: rosbag2 (folder, .mcap or .db3), StrayScanner folder or sequence folder
    :param kind: one of KINDS, or `auto` to look for telling files
    :raises DataFormatError: if it does not exist or cannot be understood
    :raises SynchronizationError: if its stamps go backwards or repeat
    :raises ConfigError: if an option does not fit
    """
    if not source.exists():
        raise DataFormatError(f'{source} does not exist')
    if kind == 'auto':
        kind = _detect(source)
        if kind is None and source.is_file():
            raise DataFormatError(f'{source} is neither a folder nor a .mcap or .db3 file')
        if kind is None:
            raise DataFormatError(
                f'{source} is no known recording: it has no metadata.yaml, .mcap or .db3 '
                '(rosbag2), no imu.csv with odometry.csv or opencv_poses.csv (StrayScanner) and '
                'no frames.csv (sequence)')
    if kind != 'strayscanner' and options.image_size not in (None, 'full'):
        raise ConfigError(f'image size "{options.image_size}" is for StrayScanner folders; '
                          f'{source} is a {kind}, whose images are taken as they are')
    if kind != 'rosbag' and (options.stamps != 'header' or any((
            options.image_topic, options.camera_info_topic, options.imu_topic,
            options.exposure_topic, options.intrinsics_px))):
        raise ConfigError('topics, --stamps and --intrinsics are for rosbags; '
                          f'{source} is a {kind}')
    recording = _open(source, kind, options).with_gyroscope_warnings()
    if options.time_offset_s == AUTO_TIME_OFFSET:
        return replace(recording, estimate_time_offset=True)
    return recording.shifted(options.time_offset_s) if options.time_offset_s else recording


def find_recordings(sources: Sequence[Path]) -> list[Path]:
    """
    Replace each folder that only holds recordings by them, at any depth, in order of name.

    :raises DataFormatError: if a source does not exist or holds no recording
    """
    found: list[Path] = []
    for source in sources:
        if not source.exists():
            raise DataFormatError(f'{source} does not exist')
        inside = [source] if _detect(source) else _recordings_below(source)
        if not inside:
            raise DataFormatError(
                f'{source} is no known recording and holds none: no rosbag2, StrayScanner folder '
                'or sequence folder')
        found += [path for path in inside if path not in found]
    return found


def _recordings_below(folder: Path) -> list[Path]:
    found = []
    for path in sorted(folder.iterdir()):
        if _detect(path):
            found.append(path)
        elif path.is_dir():
            found += _recordings_below(path)
    return found


def _open(source: Path, kind: str, options: RecordingOptions) -> Recording:
    if kind == 'rosbag':
        from image_as_imu_ros.evaluation.sources.rosbag import open_rosbag
        return open_rosbag(source, options)
    if not source.is_dir():
        raise DataFormatError(f'{source} is not a folder, as a {kind} recording must be')
    return (open_strayscanner if kind == 'strayscanner' else open_sequence)(source, options)


def _detect(source: Path) -> str | None:
    """Tell the kind of a recording by its files; None where there is nothing telling."""
    if source.is_dir():
        if is_sequence(source):
            return 'sequence'
        if is_strayscanner(source):
            return 'strayscanner'
    from image_as_imu_ros.evaluation.sources.rosbag import is_rosbag
    return 'rosbag' if is_rosbag(source) else None
