"""`image-as-imu evaluate`."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from image_as_imu_ros.cli.options import (
    add_config_arguments,
    add_recording_arguments,
    read_config,
    read_recording_options,
)
from image_as_imu_ros.config import VisualImuConfig
from image_as_imu_ros.errors import ConfigError, DataFormatError, ImageAsImuError

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument('sources', type=Path, nargs='+', metavar='SOURCE',
                        help='rosbag2, StrayScanner folder or sequence folder, or a folder of '
                             'such recordings; several give a table with their mean')
    parser.add_argument('--mode', default='stream', choices=('single', 'stream'),
                        help='each image by itself, unsigned, or a causal stream (default)')
    parser.add_argument('--output', type=Path, metavar='DIR',
                        help='folder of the report (default: results/NAME_MODE); of several '
                             'recordings, one folder each inside it (default: results/MODE)')
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
    """Evaluate recordings, write their reports and print the table."""
    from image_as_imu_ros.evaluation.comparison_table import comparison_table
    from image_as_imu_ros.evaluation.report import table_of
    from image_as_imu_ros.evaluation.sources import find_recordings
    config = read_config(arguments)
    sources = (arguments.sources if arguments.kind != 'auto'
               else find_recordings(arguments.sources))
    if len(sources) > 1:
        _evaluate_several(arguments, sources, config)
        return
    summary, output = _evaluate_one(arguments, sources[0], config, arguments.output)
    print(table_of(summary))
    if 'comparison' in summary:
        print(f'\n{comparison_table(summary["comparison"])}')
    if arguments.rerun is not None:
        print(f'rerun: {arguments.rerun}')
    print(f'report: {output / "report.html"}')


def _evaluate_one(arguments: argparse.Namespace, source: Path, config: VisualImuConfig,
                  output: Path | None) -> tuple[dict[str, Any], Path]:
    """Evaluate one recording and write its report; returns the summary and where it is."""
    import shlex
    import sys
    from dataclasses import asdict

    from image_as_imu_ros.evaluation.comparison import (
        Predictor,
        evaluate_with_cache,
        rivals_of,
        run_methods,
    )
    from image_as_imu_ros.evaluation.report import write_report
    from image_as_imu_ros.evaluation.sources import open_recording
    rivals = rivals_of(source, arguments.baselines, arguments.compare, arguments.trajectory,
                       arguments.predictions)
    recording = open_recording(source, arguments.kind, read_recording_options(arguments))
    output = output or Path('results') / f'{recording.name}_{arguments.mode}'
    predictor = Predictor(recording, config, output, arguments.fresh, progress=True)
    evaluation = evaluate_with_cache(predictor, arguments.mode)
    methods = run_methods(evaluation, rivals, predictor) if rivals else []
    settings = {'estimator': asdict(config.estimator), 'stream': asdict(config.stream)}
    summary = write_report(evaluation, output, config.estimator.weights, settings, methods,
                           shlex.join(['image-as-imu', *sys.argv[1:]]))
    if arguments.rerun is not None:
        from image_as_imu_ros.evaluation.rerun_recording import write_rerun
        write_rerun(evaluation, methods, arguments.rerun, config.estimator.scene_depth)
    for warning in summary['warnings']:
        logger.warning('%s: %s', source, warning)
    return summary, output


def _evaluate_several(arguments: argparse.Namespace, sources: Sequence[Path],
                      config: VisualImuConfig) -> None:
    """
    Evaluate recordings one after the other; those that fail become rows of the table too.

    :raises DataFormatError: after the table, if any could not be evaluated
    """
    from image_as_imu_ros.evaluation.overview import (
        failed_row,
        overview,
        overview_table,
        row_of,
        write_overview,
    )
    if arguments.rerun is not None:
        raise ConfigError('--rerun is for one recording; run it for each')
    output = arguments.output or Path('results') / arguments.mode
    rows: list[dict[str, Any]] = []
    for source, name in zip(sources, _distinct_names(sources)):
        try:
            summary, _ = _evaluate_one(arguments, source, config, output / name)
            rows.append(row_of(name, summary))
        except ImageAsImuError as error:
            logger.warning('%s', error)
            rows.append(failed_row(name, source, error))
    content = overview(rows, arguments.mode, config.estimator.weights)
    write_overview(content, output)
    print(overview_table(content))
    print(f'tables: {output / "overview.json"}, {output / "overview.csv"}')
    failed = [row['recording'] for row in rows if row['error']]
    if failed:
        raise DataFormatError(f'{len(failed)} of {len(rows)} recordings could not be evaluated: '
                              f'{", ".join(failed)}; the table says why')


def _distinct_names(sources: Sequence[Path]) -> list[str]:
    """Short names of recordings; those that are alike take their folder's name, and a number."""
    paths = [source.resolve() for source in sources]
    short = [path.stem if path.is_file() else path.name for path in paths]
    longer = [f'{path.parent.name}_{path.name}' if short.count(name) > 1 else name
              for path, name in zip(paths, short)]
    return [f'{name}_{index}' if longer.count(name) > 1 else name
            for index, name in enumerate(longer)]


def _named_file(text: str) -> tuple[str, Path]:
    """Parse NAME=FILE."""
    name, equals, path = text.partition('=')
    if not (re.fullmatch(r'[\w.-]+', name) and equals and path):
        raise argparse.ArgumentTypeError(f'"{text}" is not of the form NAME=FILE')
    return name, Path(path)
