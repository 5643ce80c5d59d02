"""Recordings with a gyroscope, of any kind, behind one type."""

from __future__ import annotations

from pathlib import Path

from image_as_imu_ros.errors import ConfigError, DataFormatError
from image_as_imu_ros.evaluation.sources.recording import Recording, RecordingOptions
from image_as_imu_ros.evaluation.sources.sequence import is_sequence, open_sequence
from image_as_imu_ros.evaluation.sources.strayscanner import is_strayscanner, open_strayscanner

__all__ = ['KINDS', 'Recording', 'RecordingOptions', 'open_recording']

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
    if kind != 'strayscanner' and options.image_size not in (None, 'full'):
        raise ConfigError(f'image size "{options.image_size}" is for StrayScanner folders; '
                          f'{source} is a {kind}, whose images are taken as they are')
    if kind != 'rosbag' and any((options.image_topic, options.camera_info_topic,
                                 options.imu_topic, options.exposure_topic)):
        raise ConfigError(f'topics are for rosbags; {source} is a {kind}')
    if kind == 'rosbag':
        from image_as_imu_ros.evaluation.sources.rosbag import open_rosbag
        return open_rosbag(source, options)
    if not source.is_dir():
        raise DataFormatError(f'{source} is not a folder, as a {kind} recording must be')
    return (open_strayscanner if kind == 'strayscanner' else open_sequence)(source, options)


def _detect(source: Path) -> str:
    """Tell the kind of a recording by its files."""
    if source.is_file():
        if source.suffix in ('.mcap', '.db3'):
            return 'rosbag'
        raise DataFormatError(f'{source} is neither a folder nor a .mcap or .db3 file')
    if is_sequence(source):
        return 'sequence'
    if is_strayscanner(source):
        return 'strayscanner'
    if (source / 'metadata.yaml').is_file():
        return 'rosbag'
    raise DataFormatError(
        f'{source} is no known recording: it has no metadata.yaml (rosbag2), no imu.csv with '
        'odometry.csv or opencv_poses.csv (StrayScanner) and no frames.csv (sequence)')
