"""Rivals on the same recording in the same run, scored alike."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from image_as_imu_ros.errors import ConfigError, ImageAsImuError
from image_as_imu_ros.evaluation import metrics, sync
from image_as_imu_ros.evaluation.estimation import MODES, StreamEstimates
from image_as_imu_ros.evaluation.evaluate import (
    PROTOCOLS,
    Evaluation,
    Samples,
    interval_scores,
    pool,
    protocol_scores,
    samples_of,
    score_estimates,
    uncertainty_scores,
)
from image_as_imu_ros.evaluation.predictions import Velocities, read_velocities, rotation_of
from image_as_imu_ros.evaluation.predictor import FOLDER, Make, Predictor
from image_as_imu_ros.evaluation.provenance import file_sha256, versions
from image_as_imu_ros.evaluation.sources.recording import Recording, Stream

logger = logging.getLogger(__name__)

PUBLISHED = 'published'
"""Protocol `paper` with the frames outside the gyroscope's record too, as the paper scores."""

TITLES = {
    'zero': 'always zero',
    'single': 'ours, single images',
    'stream': 'ours, stream',
    'interframe': 'inter-frame rotation (ORB, RANSAC)',
    'pycolmap': 'structure from motion (pycolmap)',
    'paper': "the paper's model, its stored predictions",
}
METHODS = tuple(TITLES)
PAPER_PREDICTIONS = 'paper_base_model_predictions.csv'

OWN, ORACLE, ORACLE_PER_AXIS = 'own', 'gyroscope, per frame', 'gyroscope, per axis'
"""Whose signs a method has."""

PUBLISHED_ROWS = {'dining': {
    'always zero': (4.58, 1.53, 3.66), 'COLMAP': None, 'COLMAP (DISK + LightGlue)': None,
    'MASt3R': (2.36, 0.84, 1.67), 'DROID-SLAM': (2.92, 1.20, 1.98), 'the paper':
    (0.87, 0.50, 1.33)}}
"""Figures that Chen and Clark (2025) publish, x, y, z in rad/s; None: the method failed."""


@dataclass(frozen=True)
class Method:
    """One method's velocities, one part per stream of the recording, or why there are none."""

    name: str
    title: str
    signs: str
    parts: tuple[Samples, ...]
    note: str = ''
    failure: str = ''
    cached: bool = False
    ms_per_frame: dict[str, float | None] | None = None

    @property
    def mode(self) -> str:
        """How it is scored: `single` where the gyroscope chooses the signs."""
        return 'single' if self.signs == ORACLE else 'stream'


@dataclass(frozen=True)
class Rivals:
    """What to compare: names of METHODS, and files of others by the name they shall have."""

    methods: tuple[str, ...] = ()
    trajectories: tuple[tuple[str, Path], ...] = ()
    predictions: tuple[tuple[str, Path], ...] = ()

    def __post_init__(self) -> None:
        unknown = [name for name in self.methods if name not in METHODS]
        if unknown:
            raise ConfigError(f'method "{unknown[0]}" is not one of {", ".join(METHODS)}; others '
                              'come by --trajectory NAME=FILE or --predictions NAME=FILE')
        names = [*self.methods, *(name for name, _ in (*self.trajectories, *self.predictions))]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ConfigError(f'two methods are called "{twice[0]}"; give one another name')

    @property
    def modes(self) -> tuple[str, ...]:
        """In which modes this package's estimator is among them."""
        return tuple(mode for mode in MODES if mode in self.methods)

    def __bool__(self) -> bool:
        return bool(self.methods or self.trajectories or self.predictions)


def rivals_of(source: Path, baselines: bool, methods: Sequence[str],
              trajectories: Sequence[tuple[str, Path]],
              predictions: Sequence[tuple[str, Path]]) -> Rivals:
    """
    Resolve what the command line asks for.

    :param baselines: all METHODS; the paper's where its predictions are in the source folder
        and no others are given under its name
    :raises ConfigError: if a method is unknown or two have the same name
    """
    named = {name for name, _ in (*trajectories, *predictions)}
    if baselines:
        stored = (source / PAPER_PREDICTIONS).is_file()
        methods = [name for name in METHODS if name in methods
                   or (name not in named and (name != 'paper' or stored))]
    return Rivals(tuple(methods), tuple(trajectories), tuple(predictions))


def run_methods(evaluation: Evaluation, rivals: Rivals, predictor: Predictor) -> list[Method]:
    """
    Run every method; one that fails is kept with its reason.

    :param evaluation: of this package's estimator, which is among the methods
    """
    recording = predictor.recording = evaluation.recording  # its clocks may have been joined
    runs: dict[str, Callable[[], Method]] = {
        'zero': lambda: _zero(predictor), 'interframe': lambda: _interframe(predictor),
        'pycolmap': lambda: _pycolmap(predictor),
        'paper': lambda: _predictions(predictor, 'paper', recording.source / PAPER_PREDICTIONS),
        **{mode: _estimator_run(evaluation, mode, predictor) for mode in MODES}}
    chosen = {name: runs[name] for name in METHODS
              if name in rivals.methods or name == evaluation.mode}
    for name, path in rivals.trajectories:
        chosen[name] = _trajectory_run(predictor, name, path)
    for name, path in rivals.predictions:
        chosen[name] = _predictions_run(predictor, name, path)
    methods = []
    for name, run in chosen.items():
        try:
            methods.append(run())
        except ImageAsImuError as error:
            logger.warning('%s: %s', name, error)
            methods.append(Method(name, TITLES.get(name, name), OWN, (), failure=str(error)))
    return methods


def comparison_of(methods: Sequence[Method], recording: Recording) -> dict[str, Any]:
    """Lay out the methods' figures for summary.json."""
    published = next((rows for name, rows in PUBLISHED_ROWS.items() if name in recording.name),
                     None)
    return {
        'protocols': {
            PUBLISHED: 'nearest gyroscope sample at the stamp, last frame dropped, frames outside '
                       "the gyroscope's record against its first or last sample",
            'paper': "the same without frames outside the gyroscope's record",
            'interpolated': 'gyroscope interpolated at mid-exposure'},
        'methods': {method.name: _scores(method) for method in methods},
        'published': published and {
            'source': 'Chen and Clark (2025), arXiv 2503.17358; x, y, z in rad/s, null: failed',
            'rotation_rmse_rad_s': {
                name: values and list(values) for name, values in published.items()}},
        'versions': versions(),
    }


def pooled_samples(method: Method) -> Samples:
    """A method's streams in one."""
    return pool(method.parts)


def _scores(method: Method) -> dict[str, Any]:
    """All figures of one method; those of one that failed are absent."""
    facts = {'title': method.title, 'signs': method.signs, 'remark': method.note,
             'failure': method.failure}
    if method.failure:
        return facts
    samples = pooled_samples(method)
    protocols = {}
    for protocol in (PUBLISHED, *PROTOCOLS):
        answered = samples.scorable(protocol) & samples.has_estimate
        protocols[protocol] = {
            **protocol_scores(samples, protocol, method.mode),
            **interval_scores(samples, protocol, method.mode),
            'frames': int(samples.scorable(protocol).sum()), 'answered': int(answered.sum()),
            'rotation_rmse_of_answers_rad_s': metrics.rmse(
                samples.signed(method.mode, protocol)[answered],
                samples.angular_references_rad_s[protocol][answered]).tolist()
            if answered.any() else None}
    uncertainty = uncertainty_scores(samples, method.mode)
    if method.signs != OWN:
        uncertainty['sign_accuracy'] = None
    return {
        **facts, 'predictions': f'{FOLDER}/{method.name}.csv', 'from_cache': method.cached,
        'evaluated': int((samples.has_estimate & samples.scorable('interpolated')).sum()),
        'protocols': protocols, **uncertainty,
        'ms_per_frame': method.ms_per_frame}


def _samples(recording: Recording, parts: Sequence[Velocities]) -> tuple[Samples, ...]:
    """Velocities beside the references of every protocol."""
    return tuple(
        replace(_with_published(recording, samples_of(recording, StreamEstimates(
            stream, (None,) * len(stream.records)), 'stream'), index),
            angular_rad_s=part.angular_rad_s, linear_m_s=part.linear_m_s)
        for index, (stream, part) in enumerate(zip(recording.streams, parts)))


def _with_published(recording: Recording, samples: Samples, index: int) -> Samples:
    """Add the references of protocol `published`."""
    stream, reference = recording.streams[index], samples.angular_references_rad_s['paper'].copy()
    if recording.gyroscope is not None and stream.R_gyro_camera is not None:
        open_rows = ~np.isfinite(reference).all(axis=1)
        open_rows[-1] = False
        reference[open_rows] = sync.nearest(recording.gyroscope, samples.stamp_ns[open_rows])
    return replace(
        samples,
        angular_references_rad_s={**samples.angular_references_rad_s, PUBLISHED: reference},
        linear_references_m_s={**samples.linear_references_m_s,
                               PUBLISHED: samples.linear_references_m_s['paper']})


def _zero(predictor: Predictor) -> Method:
    def make() -> tuple[tuple[Velocities, ...], str]:
        return tuple(Velocities(*np.zeros((2, len(stream.records), 3)))
                     for stream in predictor.recording.streams), ''

    return replace(_rival(predictor, 'zero', (), make, {}), ms_per_frame=None)


def _estimator_run(evaluation: Evaluation, mode: str,
                   predictor: Predictor) -> Callable[[], Method]:
    """This package's estimator in a mode, which the evaluation may have run already."""
    def run() -> Method:
        recording = evaluation.recording
        results, times = evaluation.streams, evaluation.metrics['frame_ms']
        if mode != evaluation.mode:
            other = score_estimates(recording, mode, predictor.estimates(mode))
            results, times = other.streams, other.metrics['frame_ms']
        parts = tuple(_with_published(recording, samples_of(recording, result, mode), index)
                      for index, result in enumerate(results))
        remark = 'causal' if mode == 'stream' else 'frames without a signal are left out'
        return Method(mode, TITLES[mode], OWN if mode == 'stream' else ORACLE, parts, remark,
                      cached=mode in predictor.reused, ms_per_frame=times)
    return run


def _interframe(predictor: Predictor) -> Method:
    from image_as_imu_ros.evaluation.interframe import interframe_rates
    recording, max_gap_s = predictor.recording, predictor.config.stream.max_gap

    def make() -> tuple[tuple[Velocities, ...], str]:
        parts = []
        for stream in recording.streams:
            rates = interframe_rates(stream, max_gap_s, predictor.progress)
            parts.append(replace(Velocities.none(len(rates)),
                                 angular_rad_s=rates @ rotation_of(stream).T))
        return tuple(parts), 'mean over the gaps before and after, a frame late'

    return _rival(predictor, 'interframe', ('evaluation/interframe.py',), make,
                  {'max_gap_s': max_gap_s})


def _pycolmap(predictor: Predictor) -> Method:
    from image_as_imu_ros.evaluation.structure_from_motion import reconstruct

    def make() -> tuple[tuple[Velocities, ...], str]:
        parts, remarks = [], []
        for index, stream in enumerate(predictor.recording.streams):
            logger.info('pycolmap: reconstructing %d images; this takes minutes',
                        len(stream.records))
            path = predictor.folder / f'pycolmap_{index}.tum'
            remarks.append(reconstruct(stream, path))
            part = _from_trajectory(path, stream)  # whose scale is arbitrary
            parts.append(replace(part, linear_m_s=np.full_like(part.linear_m_s, np.nan)))
        return tuple(parts), '; '.join(remarks)

    return _rival(predictor, 'pycolmap', ('evaluation/structure_from_motion.py',
                                          'evaluation/trajectory.py'), make,
                  {'pycolmap': versions()['pycolmap']})


def _trajectory_run(predictor: Predictor, name: str, path: Path) -> Callable[[], Method]:
    """Velocities from poses in a file."""
    def make() -> tuple[tuple[Velocities, ...], str]:
        streams = predictor.recording.streams
        if len(streams) != 1:
            raise ConfigError(f'trajectory {path} is of one camera, but the recording has '
                              f'{len(streams)}; choose one by --camera')
        return (_from_trajectory(path, streams[0]),), f'poses of {path}'

    def run() -> Method:
        if not path.is_file():
            raise ConfigError(f'trajectory {path} does not exist')
        return _rival(predictor, name, ('evaluation/trajectory.py',), make,
                      {'file_sha256': file_sha256(path)})
    return run


def _from_trajectory(path: Path, stream: Stream) -> Velocities:
    from image_as_imu_ros.evaluation.trajectory import read_trajectory, trajectory_velocities
    angular, linear = trajectory_velocities(read_trajectory(path), stream)
    return Velocities(angular @ rotation_of(stream).T, linear)


def _predictions_run(predictor: Predictor, name: str, path: Path) -> Callable[[], Method]:
    return lambda: _predictions(predictor, name, path)


def _predictions(predictor: Predictor, name: str, path: Path) -> Method:
    """Velocities from a file; a copy of it as this package writes them is kept with the rest."""
    if not path.is_file():
        raise ConfigError(f'predictions {path} do not exist; give a file by '
                          f'--predictions {name}=FILE')

    def make() -> tuple[tuple[Velocities, ...], str]:
        return read_velocities(path, predictor.recording), f'rows of {path}'

    method = _rival(predictor, name, ('evaluation/predictions.py',), make,
                    {'file_sha256': file_sha256(path)})
    return replace(method, ms_per_frame=None,
                   signs=ORACLE_PER_AXIS if path.name == PAPER_PREDICTIONS else OWN)


def _rival(predictor: Predictor, name: str, code: tuple[str, ...], make: Make,
           settings: dict[str, Any]) -> Method:
    """Run a method that gives velocities alone."""
    parts, note = predictor.velocities(name, code, make, settings)
    return Method(name, TITLES.get(name, name), OWN, _samples(predictor.recording, parts),
                  note['remark'], cached=name in predictor.reused,
                  ms_per_frame={'mean': note['ms_per_frame']})

