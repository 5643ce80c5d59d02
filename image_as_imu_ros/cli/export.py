"""`image-as-imu export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from image_as_imu_ros.cli.options import (
    add_config_arguments,
    add_recording_arguments,
    read_config,
    read_recording_options,
)
from image_as_imu_ros.errors import ConfigError

if TYPE_CHECKING:
    from image_as_imu_ros.evaluation.sources import Recording


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument('source', type=Path, metavar='SOURCE',
                        help='video file, rosbag2, StrayScanner folder or sequence folder; '
                             'no gyroscope is needed')
    parser.add_argument('--format', required=True, choices=('csv', 'tum', 'gcsv', 'bag'),
                        help="rates as CSV, orientations in the TUM format, Gyroflow's .gcsv, or "
                             'a copy of the bag with an Imu topic added')
    parser.add_argument('--output', type=Path, metavar='OUT',
                        help='file (default: NAME with the suffix of the format; .gcsv beside '
                             'its video); for a bag also .db3, or a folder to be made')
    parser.add_argument('--overwrite', action='store_true', help='replace OUT')
    video = parser.add_argument_group('videos')
    for name, text in (('fx', 'focal length'), ('fy', 'focal length (default: as fx)'),
                       ('cx', 'principal point (default: the middle)'),
                       ('cy', 'principal point (default: the middle)')):
        video.add_argument(f'--{name}', type=float, metavar='PX', help=f'{text}, px')
    video.add_argument('--distortion', type=_numbers, default=(), metavar='K1,K2,P1,P2[,K3]',
                       help='plumb_bob coefficients, as OpenCV and ROS have them')
    video.add_argument('--readout', type=float, default=0.0, metavar='S',
                       help='time from the first to the last row of a rolling shutter')
    add_recording_arguments(parser)
    add_config_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Follow the camera through a recording and write its motion."""
    import tempfile

    from image_as_imu_ros.estimator import VisualGyroscope
    from image_as_imu_ros.evaluation import export
    from image_as_imu_ros.evaluation.motion_track import track_motion
    from image_as_imu_ros.evaluation.rosbag_writer import write_rosbag
    config = read_config(arguments)
    recording = _open(arguments, arguments.source)
    output = arguments.output or _default_output(arguments, recording.name)
    if output.exists() and not arguments.overwrite:
        raise ConfigError(f'{output} exists; choose another name by --output, or --overwrite')
    gyroscope = VisualGyroscope(config.estimator)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix='.export_') as scratch:
        bag = recording.source
        if arguments.format == 'bag' and recording.kind != 'rosbag':
            bag = Path(scratch) / 'converted.mcap'
            write_rosbag(recording, bag, images='compressed', progress=True)
            recording = _open(argparse.Namespace(**{
                **vars(arguments), 'kind': 'rosbag', 'camera': None, 'image_size': None,
                'stamp_reference': 'start'}), bag)
        track = track_motion(recording, gyroscope, config.stream, progress=True)
        if arguments.format == 'bag':
            count = export.write_bag(track, bag, output, arguments.overwrite)
            print(f'{output}: {count} messages on {export.IMU_TOPIC}')
            return
    if arguments.format == 'csv':
        export.write_csv(track, output)
    elif arguments.format == 'tum':
        export.write_tum(track, output)
    else:
        video = arguments.source.name if recording.kind == 'video' else ''
        export.write_gcsv(track, output, video)
    usable = sum(estimate.usable for estimate in track.estimates)
    print(f'{output}: {usable} of {len(track.stream.records)} images with a signed rate, '
          f'{len(track.gaps)} rotations between images')


def _open(arguments: argparse.Namespace, source: Path) -> Recording:
    """Open a video or a recording, which needs no gyroscope here."""
    from dataclasses import replace

    import numpy as np

    from image_as_imu_ros.evaluation.sources import open_recording
    from image_as_imu_ros.evaluation.sources.video import is_video, open_video
    if not is_video(source):
        options = replace(read_recording_options(arguments), needs_gyroscope=False)
        if options.R_gyro_camera is None:
            options = replace(options, R_gyro_camera=np.eye(3))
        return open_recording(source, arguments.kind, options)
    if arguments.fx is None:
        raise ConfigError(f'{source} is a video, which does not tell its focal length: --fx PX')
    fy = arguments.fx if arguments.fy is None else arguments.fy
    return open_video(source, (arguments.fx, fy, arguments.cx, arguments.cy),
                      arguments.distortion, arguments.exposure, arguments.readout)


def _default_output(arguments: argparse.Namespace, name: str) -> Path:
    """Name of the file where none is given; Gyroflow looks for it beside the video."""
    from image_as_imu_ros.evaluation.export import FORMATS
    suffix = FORMATS[arguments.format]
    if arguments.format == 'gcsv' and arguments.source.is_file():
        return arguments.source.with_suffix(suffix)
    return Path(f'{name}_visual{suffix}')


def _numbers(text: str) -> tuple[float, ...]:
    """Parse numbers with commas."""
    try:
        return tuple(float(value) for value in text.split(','))
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}" is not numbers with commas') from None
