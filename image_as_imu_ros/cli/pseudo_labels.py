"""`image-as-imu pseudo-labels`."""

from __future__ import annotations

import argparse
from pathlib import Path

from image_as_imu_ros.cli.options import add_recording_arguments, read_recording_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument('recording', type=Path, metavar='RECORDING',
                        help='rosbag2, StrayScanner folder or sequence folder with a gyroscope')
    parser.add_argument('output', type=Path, metavar='OUT',
                        help='folder of labels; those that it holds already are kept')
    parser.add_argument('--weights', type=Path, required=True, metavar='FILE',
                        help='trained weights of the reference network, .safetensors')
    parser.add_argument('--device', default='cpu', choices=('cpu', 'cuda'),
                        help='where the network runs (default: cpu)')
    add_recording_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Label a recording."""
    from image_as_imu_ros.evaluation.sources import open_recording
    from image_as_imu_ros.training.pseudo_labels import write_pseudo_labels
    recording = open_recording(arguments.recording, arguments.kind,
                               read_recording_options(arguments))
    count = write_pseudo_labels(recording, arguments.output, arguments.weights, arguments.device)
    print(f'{count} labelled images of {recording.frame_count} in {arguments.output}')
