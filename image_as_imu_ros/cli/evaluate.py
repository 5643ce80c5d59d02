"""`image-as-imu evaluate`."""

from __future__ import annotations

import argparse
import re
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
    parser.add_argument('--fresh', action='store_true',
                        help='estimate anew, even where an earlier run of the same recording, '
                             'weights and settings left its estimates in the output folder')
    parser.add_argument('--rerun', type=Path, metavar='FILE.rrd',
                        help='also write a recording for the Rerun viewer')
    rivals = parser.add_argument_group('comparison with other methods')
    rivals.add_argument('--baselines', action='store_true',
                        help='all methods that --compare knows; paper where its predictions lie '
                             'in the source folder')
    rivals.add_argument('--compare', type=lambda text: tuple(text.split(',')), default=(),
                        metavar='zero,single,stream,interframe,pycolmap,paper',
                        help='some of these methods, on the same recording')
    rivals.add_argument('--trajectory', type=_named_file, action='append', default=[],
                        metavar='NAME=FILE', help='poses in TUM format, from camera to world')
    rivals.add_argument('--predictions', type=_named_file, action='append', default=[],
                        metavar='NAME=FILE', help='velocities: timestamp, alpha_x, alpha_y, '
                        'alpha_z[, t_x, t_y, t_z]')
    add_recording_arguments(parser)
    add_config_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Evaluate a recording, write the report and print its table."""
    import shlex
    import sys
    from dataclasses import asdict

    from image_as_imu_ros.evaluation.comparison import (
        Predictor,
        evaluate_with_cache,
        rivals_of,
        run_methods,
    )
    from image_as_imu_ros.evaluation.comparison_table import comparison_table
    from image_as_imu_ros.evaluation.report import table_of, write_report
    from image_as_imu_ros.evaluation.sources import open_recording
    config = read_config(arguments)
    rivals = rivals_of(arguments.source, arguments.baselines, arguments.compare,
                       arguments.trajectory, arguments.predictions)
    recording = open_recording(arguments.source, arguments.kind, read_recording_options(arguments))
    output = arguments.output or Path('results') / f'{recording.name}_{arguments.mode}'
    predictor = Predictor(recording, config, output, arguments.fresh, progress=True)
    evaluation = evaluate_with_cache(predictor, arguments.mode)
    methods = run_methods(evaluation, rivals, predictor) if rivals else []
    settings = {'estimator': asdict(config.estimator), 'stream': asdict(config.stream)}
    summary = write_report(evaluation, output, config.estimator.weights, settings, methods,
                           shlex.join(['image-as-imu', *sys.argv[1:]]))
    print(table_of(summary))
    if methods:
        print(f'\n{comparison_table(summary["comparison"])}')
    if arguments.rerun is not None:
        from image_as_imu_ros.evaluation.rerun_recording import write_rerun
        write_rerun(evaluation, methods, arguments.rerun, config.estimator.scene_depth)
        print(f'rerun: {arguments.rerun}')
    print(f'report: {output / "report.html"}')


def _named_file(text: str) -> tuple[str, Path]:
    """Parse NAME=FILE."""
    name, equals, path = text.partition('=')
    if not (re.fullmatch(r'[\w.-]+', name) and equals and path):
        raise argparse.ArgumentTypeError(f'"{text}" is not of the form NAME=FILE')
    return name, Path(path)
