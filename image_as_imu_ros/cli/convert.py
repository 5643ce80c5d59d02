"""`image-as-imu convert`."""

from __future__ import annotations

import argparse
from pathlib import Path

from image_as_imu_ros.cli.options import add_recording_arguments, read_recording_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument('source', type=Path, metavar='SOURCE',
                        help='StrayScanner or sequence folder (or a bag, to be written anew)')
    parser.add_argument('output', type=Path, metavar='OUT',
                        help='.mcap or .db3 file, or a rosbag2 folder to be made')
    parser.add_argument('--storage', choices=('mcap', 'sqlite3'),
                        help='storage of a folder (default: mcap)')
    parser.add_argument('--images', default='raw', choices=('raw', 'compressed'),
                        help='Image (default), or CompressedImage with the bytes of the files')
    parser.add_argument('--overwrite', action='store_true', help='replace OUT')
    add_recording_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Write the recording as a rosbag2."""
    from image_as_imu_ros.evaluation.rosbag_writer import write_rosbag
    from image_as_imu_ros.evaluation.sources import open_recording
    recording = open_recording(arguments.source, arguments.kind, read_recording_options(arguments))
    count = write_rosbag(recording, arguments.output, arguments.storage, arguments.images,
                         arguments.overwrite, progress=True)
    print(f'{arguments.output}: {count} of {recording.frame_count} images')
