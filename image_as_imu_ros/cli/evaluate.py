"""`image-as-imu evaluate`."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from image_as_imu_ros.cli.options import (
    add_batch_argument,
    add_config_arguments,
    add_recording_arguments,
    find_sources,
    read_config,
    read_recording_options,
)
from image_as_imu_ros.config import VisualImuConfig
from image_as_imu_ros.errors import ConfigError, DataFormatError, ImageAsImuError

if TYPE_CHECKING:
    from image_as_imu_ros.evaluation.comparison import Rivals
    from image_as_imu_ros.evaluation.predictor import Predictor
    from image_as_imu_ros.processes import Process

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
    add_batch_argument(parser)
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
    from image_as_imu_ros.processes import joined_processes
    config = read_config(arguments)
    sources = find_sources(arguments.sources, arguments.kind)
    if len(sources) > 1 and arguments.rerun is not None:
        raise ConfigError('--rerun is for one recording; run it for each')
    with joined_processes() as process:
        if len(sources) > 1:
            _evaluate_several(arguments, sources, config, process)
        else:
            _evaluate_one(arguments, *sources.values(), config, process)


def _evaluate_one(arguments: argparse.Namespace, source: Path, config: VisualImuConfig,
                  process: Process) -> None:
    """Evaluate a recording."""
    from image_as_imu_ros.evaluation.comparison_table import comparison_table
    from image_as_imu_ros.evaluation.report import table_of
    task = _open(arguments, source, config, arguments.output)
    _estimate(arguments, [task], process)
    if process.rank:
        return
    summary = _report(arguments, task, config)
    print(table_of(summary))
    if 'comparison' in summary:
        print(f'\n{comparison_table(summary["comparison"])}')
    if arguments.rerun is not None:
        print(f'rerun: {arguments.rerun}')
    print(f'report: {task.output / "report.html"}')


def _evaluate_several(arguments: argparse.Namespace, sources: Mapping[str, Path],
                      config: VisualImuConfig, process: Process) -> None:
    """
    Evaluate recordings together; those that fail become rows of the table too.

    :raises DataFormatError: after the table, if any could not be evaluated
    """
    from image_as_imu_ros.evaluation.overview import (
        failed_row,
        overview,
        overview_table,
        row_of,
        write_overview,
    )
    output = arguments.output or Path('results') / arguments.mode
    tasks: dict[str, Task] = {}
    rows: dict[str, dict[str, Any]] = {}

    def fail(name: str, error: ImageAsImuError) -> None:
        logger.warning('%s', error)
        rows[name] = failed_row(name, sources[name], error)

    for name, source in sources.items():
        try:
            tasks[name] = _open(arguments, source, config, output / name)
        except ImageAsImuError as error:
            fail(name, error)
    _estimate(arguments, list(tasks.values()), process)
    if process.rank:
        return
    for name, task in tasks.items():
        try:
            rows[name] = row_of(name, _report(arguments, task, config))
        except ImageAsImuError as error:
            fail(name, error)
    content = overview([rows[name] for name in sources], arguments.mode, config.estimator.weights)
    write_overview(content, output)
    print(overview_table(content))
    print(f'tables: {output / "overview.json"}, {output / "overview.csv"}')
    failed = [row['recording'] for row in content['recordings'] if row['error']]
    if failed:
        raise DataFormatError(f'{len(failed)} of {len(rows)} recordings could not be evaluated: '
                              f'{", ".join(failed)}; the table says why')


class Task(NamedTuple):
    """A recording to evaluate, and what to compare."""

    source: Path
    output: Path
    rivals: Rivals
    predictor: Predictor


def _open(arguments: argparse.Namespace, source: Path, config: VisualImuConfig,
          output: Path | None) -> Task:
    """Open a recording."""
    from image_as_imu_ros.evaluation.comparison import rivals_of
    from image_as_imu_ros.evaluation.predictor import Predictor
    from image_as_imu_ros.evaluation.sources import open_recording
    rivals = rivals_of(source, arguments.baselines, arguments.compare, arguments.trajectory,
                       arguments.predictions)
    recording = open_recording(source, arguments.kind, read_recording_options(arguments))
    output = output or Path('results') / f'{recording.name}_{arguments.mode}'
    predictor = Predictor(recording, config, output, arguments.fresh, progress=True)
    return Task(source, output, rivals, predictor)


def _estimate(arguments: argparse.Namespace, tasks: Sequence[Task], process: Process) -> None:
    """Run the estimator on all recordings, in all modes that are asked for."""
    from image_as_imu_ros.evaluation.predictor import estimate_together
    compared = (mode for task in tasks for mode in task.rivals.modes)
    estimate_together([task.predictor for task in tasks],
                      dict.fromkeys([arguments.mode, *compared]), arguments.batch, process)


def _report(arguments: argparse.Namespace, task: Task,
            config: VisualImuConfig) -> dict[str, Any]:
    """Score a recording whose motion is estimated, write its report and return the summary."""
    import shlex
    import sys
    from dataclasses import asdict

    from image_as_imu_ros.evaluation.comparison import run_methods
    from image_as_imu_ros.evaluation.predictor import evaluate_with_cache
    from image_as_imu_ros.evaluation.report import write_report
    evaluation = evaluate_with_cache(task.predictor, arguments.mode)
    methods = run_methods(evaluation, task.rivals, task.predictor) if task.rivals else []
    settings = {'estimator': asdict(config.estimator), 'stream': asdict(config.stream)}
    summary = write_report(evaluation, task.output, config.estimator.weights, settings, methods,
                           shlex.join(['image-as-imu', *sys.argv[1:]]))
    if arguments.rerun is not None:
        from image_as_imu_ros.evaluation.rerun_recording import write_rerun
        write_rerun(evaluation, methods, arguments.rerun, config.estimator.scene_depth)
    for warning in summary['warnings']:
        logger.warning('%s: %s', task.source, warning)
    return summary


def _named_file(text: str) -> tuple[str, Path]:
    """Parse NAME=FILE."""
    name, equals, path = text.partition('=')
    if not (re.fullmatch(r'[\w.-]+', name) and equals and path):
        raise argparse.ArgumentTypeError(f'"{text}" is not of the form NAME=FILE')
    return name, Path(path)
