"""`image-as-imu mask`."""

from __future__ import annotations

import argparse
from pathlib import Path

from image_as_imu_ros.cli.options import add_recording_arguments, read_recording_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument('source', type=Path, metavar='SOURCE',
                        help='rosbag2, StrayScanner folder or sequence folder of a camera that '
                             'turns to and fro')
    parser.add_argument('output', type=Path, metavar='OUT.png',
                        help='mask for estimator.mask: black where the images never change')
    parser.add_argument('--overwrite', action='store_true', help='replace OUT.png')
    add_recording_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Find what never changes in a recording's images, write it and tell its share."""
    import cv2
    import numpy as np

    from image_as_imu_ros.errors import ConfigError
    from image_as_imu_ros.evaluation.sources import open_recording
    from image_as_imu_ros.evaluation.still_parts import still_parts
    from image_as_imu_ros.files import write_atomically
    if arguments.output.exists() and not arguments.overwrite:
        raise ConfigError(f'{arguments.output} exists; choose another name, or --overwrite')
    recording = open_recording(arguments.source, arguments.kind,
                               read_recording_options(arguments))
    still = still_parts(recording, progress=True)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.output, cv2.imencode(
        '.png', np.where(still, 0, 255).astype(np.uint8))[1].tobytes())
    print(f'masked {still.mean():.1%} of {still.shape[1]}x{still.shape[0]} px: '
          f'{arguments.output}')
