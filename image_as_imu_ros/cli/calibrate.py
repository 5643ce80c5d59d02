"""`image-as-imu calibrate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from image_as_imu_ros.cli.options import (
    add_config_arguments,
    add_recording_arguments,
    read_config,
    read_recording_options,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument('source', type=Path, metavar='SOURCE',
                        help='rosbag2, StrayScanner folder or sequence folder with a gyroscope')
    parser.add_argument('--output', type=Path, metavar='DIR',
                        help='folder of the files (default: results/NAME_calibration)')
    parser.add_argument('--camera-frame', default='camera_optical_frame', metavar='FRAME',
                        help='frame of the images in the static transform')
    parser.add_argument('--imu-frame', default='imu_link', metavar='FRAME',
                        help='frame of the gyroscope in it')
    add_recording_arguments(parser)
    add_config_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Calibrate the gyroscope of a recording, write the files and print the result."""
    from dataclasses import replace

    import numpy as np

    from image_as_imu_ros.errors import DataFormatError
    from image_as_imu_ros.estimator import VisualGyroscope
    from image_as_imu_ros.evaluation.calibration import calibrate
    from image_as_imu_ros.evaluation.calibration_files import (
        calibration_table,
        static_transform_command,
        write_calibration,
    )
    from image_as_imu_ros.evaluation.imu_health import judge_track
    from image_as_imu_ros.evaluation.motion_track import track_motion
    from image_as_imu_ros.evaluation.sources import open_recording
    config, options = read_config(arguments), read_recording_options(arguments)
    if options.R_gyro_camera is None:  # it is what we look for
        options = replace(options, R_gyro_camera=np.eye(3))
    recording = open_recording(arguments.source, arguments.kind, options)
    if recording.gyroscope is None:
        raise DataFormatError(f'{recording.source} has no gyroscope to calibrate')
    track = track_motion(recording, VisualGyroscope(config.estimator), config.stream,
                         progress=True)
    calibration = calibrate(recording.gyroscope, track.gaps)
    health = judge_track(recording.gyroscope, track, calibration.R_gyro_camera)
    output = arguments.output or Path('results') / f'{recording.name}_calibration'
    frames = arguments.camera_frame, arguments.imu_frame
    write_calibration(calibration, health, track.stream.records[0].intrinsics, output, *frames)
    print(calibration_table(calibration, health))
    if track.readout_time_s is not None and not track.stream.records[0].readout_time_s:
        readout_ms, deviation_ms = (1e3 * value for value in track.readout_time_s)
        print(f'readout of the shutter [ms] {readout_ms:.1f} +- {deviation_ms:.1f}, by the images')
    print(static_transform_command(calibration, *frames))
    print(f'files: {output}')
