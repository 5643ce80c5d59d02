"""
What methods say of recordings, kept in files.

Every method's velocities are written to `predictions/NAME.csv` beside the report. A later run with
the same recording, weights, settings and code takes them from there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from image_as_imu_ros.config import VisualImuConfig
from image_as_imu_ros.errors import DataFormatError, ImageAsImuError, SynchronizationError
from image_as_imu_ros.evaluation.estimation import (
    Estimates,
    Share,
    estimate_shares,
    joined,
    shares_of,
)
from image_as_imu_ros.evaluation.evaluate import Evaluation, score_estimates
from image_as_imu_ros.evaluation.predictions import (
    Velocities,
    read_estimates,
    read_note,
    read_velocities,
    write_estimates,
    write_velocities,
)
from image_as_imu_ros.evaluation.provenance import (
    ESTIMATING_CODE,
    code_sha256,
    key_of,
    recording_sha256,
    sha256_if_any,
    weights_sha256,
)
from image_as_imu_ros.evaluation.sources.recording import Recording
from image_as_imu_ros.processes import Process

logger = logging.getLogger(__name__)

FOLDER = 'predictions'

Make = Callable[[], tuple[tuple[Velocities, ...], str]]
"""Runs a method: velocities of each stream, and what to remark."""


class Predictor:
    """
    Runs methods on a recording, or takes what an earlier run left in the output folder.

    :param folder: of the report; predictions are in a folder inside it
    :param fresh: run everything again
    :param progress: show bars on stderr where that is a terminal
    """

    def __init__(self, recording: Recording, config: VisualImuConfig, folder: Path,
                 fresh: bool = False, progress: bool = False) -> None:
        self.recording, self.config = recording, config
        self.folder, self.fresh, self.progress = folder / FOLDER, fresh, progress
        self.reused: set[str] = set()  # methods whose output was there already
        self._recording_sha256 = recording_sha256(recording)
        self._estimated: dict[str, ImageAsImuError | None] = {}  # by mode, why it failed

    def has_estimates(self, mode: str) -> bool:
        """Whether this run has made the estimates of a mode, or tried to, or an earlier one."""
        if mode not in self._estimated \
                and self._kept(self._path(mode), self._estimates_note(mode)):
            self._estimated[mode] = None
        return mode in self._estimated

    def estimates(self, mode: str) -> Estimates:
        """
        Take the estimates of a mode, made now if need be.

        :raises ImageAsImuError: as `estimate_motion`, or if the weights cannot be used
        """
        if not self.has_estimates(mode):
            estimate_together([self], [mode])
        failure = self._estimated[mode]
        if failure is not None:
            raise failure
        return read_estimates(self._path(mode), self.recording)

    def keep_estimates(self, mode: str, parts: Iterable[Estimates | ImageAsImuError]) -> None:
        """Join and write what the processes made of their shares, or note why that failed."""
        try:
            estimates = joined(self.recording, parts)
        except ImageAsImuError as error:
            self._estimated[mode] = error
        else:
            write_estimates(self._path(mode), estimates, self._estimates_note(mode))
            self._estimated[mode] = None
        for path in self.folder.glob(f'.{mode}.part-*'):
            path.unlink()

    def has_part(self, mode: str, share: Share, process: Process) -> bool:
        """Whether an earlier run of as many processes has made this one's share."""
        note = read_note(self._part_path(mode, process))
        return not self.fresh and note.get('key') == self._part_note(mode, share)['key'] \
            and not note['failure']

    def write_part(self, mode: str, share: Share, process: Process,
                   part: Estimates | ImageAsImuError) -> None:
        """Write what a process made of its share, or why it could not."""
        failure = str(part) if isinstance(part, ImageAsImuError) else ''
        write_estimates(self._part_path(mode, process), Estimates((), (), {}) if failure else part,
                        {**self._part_note(mode, share), 'failure': failure})

    def read_part(self, mode: str, process: Process) -> Estimates | ImageAsImuError:
        """Read what a process has written."""
        path = self._part_path(mode, process)
        failure = read_note(path)['failure']
        return DataFormatError(failure) if failure else read_estimates(path, self.recording)

    def velocities(self, name: str, code: tuple[str, ...], make: Make, settings: dict[str, Any],
                   ) -> tuple[tuple[Velocities, ...], dict[str, Any]]:
        """
        Run another method.

        :param code: files of the package that it consists of
        :param make: gives a part per stream, and what to remark
        :returns: the parts, and what was noted with them
        :raises ImageAsImuError: if the method fails, now or in the earlier run
        """
        path = self.folder / f'{name}.csv'
        note = self._note(name, (*code, 'evaluation/sources'), settings)
        if self._kept(path, note):
            note = read_note(path)
            if note['failure']:
                raise DataFormatError(note['failure'])
            return read_velocities(path, self.recording), note
        begin = time.perf_counter()
        try:
            parts, remark = make()
        except (DataFormatError, SynchronizationError) as error:
            none = tuple(Velocities.none(len(stream.records)) for stream in self.recording.streams)
            write_velocities(path, self.recording, none, {**note, 'failure': str(error)})
            raise
        note |= {'failure': '', 'remark': remark, 'ms_per_frame':
                 1e3 * (time.perf_counter() - begin) / self.recording.frame_count}
        write_velocities(path, self.recording, parts, note)
        return parts, note

    def _note(self, name: str, code: tuple[str, ...], settings: dict[str, Any]) -> dict[str, Any]:
        content = {'method': name, 'recording_sha256': self._recording_sha256,
                   'code_sha256': code_sha256(code), **settings}
        return {**content, 'key': key_of(content)}

    def _estimates_note(self, mode: str) -> dict[str, Any]:
        config = self.config
        return self._note(mode, ESTIMATING_CODE, {
            'mode': mode, 'weights': config.estimator.weights,
            'weights_sha256': weights_sha256(config.estimator.weights),
            'mask_sha256': sha256_if_any(Path(config.estimator.mask)),
            'config': {'estimator': asdict(config.estimator), 'stream': asdict(config.stream)}})

    def _part_note(self, mode: str, share: Share) -> dict[str, Any]:
        content = {**self._estimates_note(mode),
                   'rows': [[rows.start, rows.stop, rows.step] for rows in share]}
        return {**content, 'key': key_of(content)}

    def _path(self, mode: str) -> Path:
        return self.folder / f'{mode}.csv'

    def _part_path(self, mode: str, process: Process) -> Path:
        return self.folder / f'.{mode}.part-{process.rank}-of-{process.count}.csv'

    def _kept(self, path: Path, note: dict[str, Any]) -> bool:
        kept = not self.fresh and read_note(path).get('key') == note['key']
        if kept:
            logger.info('%s: as an earlier run left it, %s', note['method'], path)
            self.reused.add(note['method'])
        return kept


def evaluate_with_cache(predictor: Predictor, mode: str) -> Evaluation:
    """Estimate, or take what an earlier run has estimated, and score; as `evaluate`."""
    return score_estimates(predictor.recording, mode, predictor.estimates(mode))


def estimate_together(predictors: Sequence[Predictor], modes: Iterable[str], batch: int = 1,
                      process: Process = Process()) -> None:
    """
    Make the estimates that recordings lack: in batches, and shared by several processes.

    The first process then has them all, or knows why they could not be made.

    :param predictors: of all recordings, with the same settings
    :param batch: images that the network sees at once
    :raises ImageAsImuError: if the weights cannot be used, or another process has failed
    """
    gyroscope = None
    for mode in modes:
        lacking = [predictor for predictor in predictors if not predictor.has_estimates(mode)]
        shares = shares_of([predictor.recording for predictor in lacking], mode, process)
        open_shares = [(predictor, share) for predictor, share in zip(lacking, shares)
                       if process.count == 1 or not predictor.has_part(mode, share, process)]
        if open_shares:
            config = predictors[0].config
            progress = predictors[0].progress and process.rank == 0
            if gyroscope is None:
                from image_as_imu_ros.estimator import VisualGyroscope
                gyroscope = VisualGyroscope(config.estimator)
            parts = estimate_shares([predictor.recording for predictor, _ in open_shares],
                                    [share for _, share in open_shares], gyroscope, mode,
                                    config.stream, progress, batch)
            for part, (predictor, share) in zip(parts, open_shares):
                if process.count == 1:
                    predictor.keep_estimates(mode, [part])
                else:
                    predictor.write_part(mode, share, process, part)
        process.wait_for_all()
        if process.rank == 0 and process.count > 1:
            for predictor in lacking:
                predictor.keep_estimates(mode, [
                    predictor.read_part(mode, Process(rank, process.count))
                    for rank in range(process.count)])
