"""`image-as-imu evaluate`."""

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
                        help='rosbag2, StrayScanner folder or sequence folder')
    parser.add_argument('--mode', default='stream', choices=('single', 'stream'),
                        help='each image by itself, unsigned, or a causal stream (default)')
    parser.add_argument('--output', type=Path, metavar='DIR',
                        help='folder of the report (default: results/NAME_MODE)')
    add_recording_arguments(parser)
    add_config_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Evaluate a recording, write the report and print its table."""
    from dataclasses import asdict

    from image_as_imu_ros.estimator import VisualGyroscope
    from image_as_imu_ros.evaluation.evaluate import evaluate
    from image_as_imu_ros.evaluation.report import table_of, write_report
    from image_as_imu_ros.evaluation.sources import open_recording
    config = read_config(arguments)
    recording = open_recording(arguments.source, arguments.kind, read_recording_options(arguments))
    evaluation = evaluate(recording, VisualGyroscope(config.estimator), arguments.mode,
                          config.stream, progress=True)
    output = arguments.output or Path('results') / f'{recording.name}_{arguments.mode}'
    settings = {'estimator': asdict(config.estimator), 'stream': asdict(config.stream)}
    summary = write_report(evaluation, output, config.estimator.weights, settings)
    print(table_of(summary))
    print(f'report: {output / "report.html"}')
