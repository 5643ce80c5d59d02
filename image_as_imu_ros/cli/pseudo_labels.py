"""`image-as-imu pseudo-labels`."""

from __future__ import annotations

import argparse
from pathlib import Path

from image_as_imu_ros.cli.options import (
    add_batch_argument,
    add_recording_arguments,
    find_sources,
    read_recording_options,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument('recordings', type=Path, nargs='+', metavar='RECORDING',
                        help='rosbag2, StrayScanner folder or sequence folder with a gyroscope, '
                             'or a folder of such recordings')
    parser.add_argument('output', type=Path, metavar='OUT',
                        help='folder of labels; those that it holds already are kept; of several '
                             'recordings, one folder each inside it')
    parser.add_argument('--weights', type=Path, required=True, metavar='FILE',
                        help='trained weights of the reference network, .safetensors')
    parser.add_argument('--device', default='cpu', choices=('cpu', 'cuda'),
                        help='where the network runs (default: cpu)')
    add_batch_argument(parser)
    add_recording_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Label recordings, or this process's share of them."""
    from image_as_imu_ros.evaluation.sources import open_recording
    from image_as_imu_ros.processes import joined_processes
    from image_as_imu_ros.training.pseudo_labels import label_files, write_pseudo_labels
    options = read_recording_options(arguments)
    sources = find_sources(arguments.recordings, arguments.kind)
    recordings = {arguments.output / name if len(sources) > 1 else arguments.output:
                  open_recording(source, arguments.kind, options)
                  for name, source in sources.items()}
    with joined_processes() as process:
        write_pseudo_labels(recordings, arguments.weights, arguments.device, arguments.batch,
                            process)
        process.wait_for_all()
    if process.rank:
        return
    for output, recording in recordings.items():
        print(f'{len(label_files(output))} labelled images of {recording.frame_count} in {output}')
