"""
Run the estimator over recordings.

The network sees images in batches, whatever stream or recording they are of; the rest of the
estimator takes them one by one, each stream's in order. Several processes share the images of
single mode, and of stream mode the streams.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import NamedTuple

from tqdm import tqdm

from image_as_imu_ros.batches import in_batches
from image_as_imu_ros.config import StreamConfig
from image_as_imu_ros.errors import ConfigError, DataFormatError, ImageAsImuError, InputError
from image_as_imu_ros.estimator import (
    BlurMeasurement,
    BlurObservation,
    PreparedImage,
    VisualGyroscope,
)
from image_as_imu_ros.evaluation.sources.recording import Recording, Stream
from image_as_imu_ros.processes import Process
from image_as_imu_ros.smoothing import SmoothedStream
from image_as_imu_ros.types import MotionEstimate

MODES = ('single', 'stream')

_INTERVAL_TOLERANCE = 1.1

Share = tuple[range, ...]
"""What a process has to do of a recording: rows of each of its streams."""


@dataclass(frozen=True)
class StreamEstimates:
    """The estimates of one stream, one entry per record; None where a frame gave none."""

    stream: Stream
    estimates: tuple[MotionEstimate | None, ...]


@dataclass(frozen=True)
class Estimates:
    """
    All that the estimator said of a recording, or of a share of it.

    `times_ms` is how long each frame took the whole pipeline but the decoding of its file; of the
    time of a batch in the network each of its images has an even share.
    """

    streams: tuple[StreamEstimates, ...]
    times_ms: tuple[float, ...]
    skipped: dict[str, int]


def check_mode(mode: str) -> None:
    """
    Check the name of a mode.

    :raises ConfigError: if there is none of that name
    """
    if mode not in MODES:
        raise ConfigError(f'mode "{mode}" is not one of {", ".join(MODES)}')


def estimate_motion(recording: Recording, gyroscope: VisualGyroscope, mode: str,
                    stream_config: StreamConfig = StreamConfig(), progress: bool = False,
                    batch: int = 1) -> Estimates:
    """
    Estimate the motion of every frame.

    Frames that cannot be used are skipped and counted by reason.

    :param mode: `single`, each image by itself and unsigned, or `stream`, signed, and causal
        unless `smoothing_frames` of the config says otherwise
    :param progress: show a bar on stderr where that is a terminal
    :param batch: images that the network sees at once
    :raises ConfigError: if the mode is unknown
    :raises DataFormatError: if no frame at all could be estimated
    """
    shares = shares_of([recording], mode)
    (part,) = estimate_shares([recording], shares, gyroscope, mode, stream_config, progress, batch)
    return joined(recording, [part])


def shares_of(recordings: Sequence[Recording], mode: str,
              process: Process = Process()) -> list[Share]:
    """
    Tell what a process has to do of each recording, so that all have about as much.

    In single mode they take turns at the images. A stream is one's alone: the longest ones are
    given out first, each to who has least to do.

    :raises ConfigError: if the mode is unknown
    """
    check_mode(mode)
    lengths = [[len(stream.records) for stream in recording.streams] for recording in recordings]
    if mode == 'single':
        shares, before = [], 0
        for frames in lengths:
            share = []
            for length in frames:
                share.append(range((process.rank - before) % process.count, length,
                                   process.count))
                before += length
            shares.append(tuple(share))
        return shares
    streams = [(recording, stream) for recording, frames in enumerate(lengths)
               for stream in range(len(frames))]
    load, own = [0] * process.count, set()
    for recording, stream in sorted(streams, key=lambda place: -lengths[place[0]][place[1]]):
        rank = load.index(min(load))
        load[rank] += lengths[recording][stream]
        if rank == process.rank:
            own.add((recording, stream))
    return [tuple(range(length if (recording, stream) in own else 0)
                  for stream, length in enumerate(frames))
            for recording, frames in enumerate(lengths)]


def joined(recording: Recording, parts: Iterable[Estimates | ImageAsImuError]) -> Estimates:
    """
    Join all shares of a recording.

    :raises ImageAsImuError: if one of them could not be done
    :raises DataFormatError: if no frame at all could be estimated
    """
    skipped, times_ms, streams = Counter(recording.skipped), [], []
    for part in parts:
        if isinstance(part, ImageAsImuError):
            raise part
        skipped.update(part.skipped)
        times_ms += part.times_ms
        streams.append(part.streams)
    if not times_ms:
        reasons = '; '.join(f'{count} x {reason}' for reason, count in skipped.most_common(3))
        raise DataFormatError(f'no frame of {recording.source} could be estimated: {reasons}')
    return Estimates(tuple(
        StreamEstimates(stream, tuple(
            next(filter(None, estimates), None)
            for estimates in zip(*(result.estimates for result in results))))
        for stream, results in zip(recording.streams, zip(*streams))),
        tuple(times_ms), dict(skipped))


class _Image(NamedTuple):
    """A frame of a recording, ready for the network."""

    recording: int
    stream: int
    prepared: PreparedImage


def estimate_shares(recordings: Sequence[Recording], shares: Sequence[Share],
                    gyroscope: VisualGyroscope, mode: str,
                    stream_config: StreamConfig = StreamConfig(), progress: bool = False,
                    batch: int = 1) -> Iterator[Estimates | ImageAsImuError]:
    """
    Estimate the motion of some frames of recordings, as `estimate_motion`.

    :param shares: which frames, for each recording
    :returns: for each recording, as soon as it is done, the estimates, or why it has none;
        `skipped` counts the frames of the share alone
    """
    with tqdm(total=sum(len(rows) for share in shares for rows in share), unit='frame',
              disable=None if progress else True) as bar:
        runs = {index: _Run(recording, share, gyroscope, stream_config, bar)
                for index, (recording, share) in enumerate(zip(recordings, shares))}
        images = chain.from_iterable(runs[index].images(index) for index in range(len(runs)))
        for together in in_batches(images, batch):
            observations = gyroscope.observe_prepared([image.prepared for image in together])
            seen = gyroscope.solve_all(observations) if mode == 'single' else observations
            for image, each in zip(together, seen):
                runs[image.recording].take(image.stream, each, mode)
            while next(iter(runs)) < together[-1].recording:  # that one may have more images
                yield runs.pop(next(iter(runs))).result()
        while runs:
            yield runs.pop(next(iter(runs))).result()


class _Run:
    """A share of a recording in work."""

    def __init__(self, recording: Recording, share: Share, gyroscope: VisualGyroscope,
                 stream_config: StreamConfig, bar: tqdm) -> None:
        self._recording, self._share, self._gyroscope = recording, share, gyroscope
        self._bar = bar
        self._streams = [SmoothedStream(gyroscope, stream_config) for _ in recording.streams]
        self._estimates: list[dict[int, MotionEstimate]] = [{} for _ in recording.streams]
        self._times_ms: list[float] = []
        self._skipped: Counter[str] = Counter()
        self._failure: ImageAsImuError | None = None

    def images(self, recording: int) -> Iterator[_Image]:
        """Decode and prepare the frames that can be used, in the streams' order."""
        try:
            for number, (stream, rows) in enumerate(zip(self._recording.streams, self._share)):
                stored_images = chain(stream.read(), repeat(None)) if rows else ()
                for row, (record, stored) in enumerate(zip(stream.records, stored_images)):
                    if self._failure is not None:
                        return
                    if row not in rows:
                        continue
                    try:
                        if stored is None:
                            raise InputError('image is missing at the end of the recording')
                        _check_exposure(stream, row)
                        frame = record.with_image(stored.decode())
                        prepared = self._gyroscope.prepare(frame)
                    except InputError as error:
                        self._skip(error)
                    else:
                        yield _Image(recording, number, prepared)
        except ImageAsImuError as error:
            self._failure = error

    def take(self, stream: int, seen: BlurObservation | BlurMeasurement, mode: str) -> None:
        """Estimate the motion of the next frame: solved, by itself, or observed, in its stream."""
        begin = time.perf_counter()
        try:
            estimates = [self._gyroscope.concluded(seen)] if mode == 'single' \
                else self._streams[stream].join(seen)
        except InputError as error:
            self._skip(error)
        except ImageAsImuError as error:
            self._failure = error
        else:
            self._times_ms.append(seen.elapsed_ms + 1e3 * (time.perf_counter() - begin))
            self._keep(stream, estimates)
            self._bar.update()

    def result(self) -> Estimates | ImageAsImuError:
        """What the estimator said, after the last frame."""
        if self._failure is not None:
            return self._failure
        for number, stream in enumerate(self._streams):
            self._keep(number, stream.finish())
        return Estimates(tuple(
            StreamEstimates(stream, tuple(
                estimates.get(record.stamp_ns) for record in stream.records))
            for stream, estimates in zip(self._recording.streams, self._estimates)),
            tuple(self._times_ms), dict(self._skipped))

    def _keep(self, stream: int, estimates: Iterable[MotionEstimate]) -> None:
        self._estimates[stream] |= {estimate.stamp_ns: estimate for estimate in estimates}

    def _skip(self, error: InputError) -> None:
        self._skipped[str(error)] += 1
        self._bar.update()


def _check_exposure(stream: Stream, row: int) -> None:
    """Raise InputError if a frame would have been exposed for longer than the frame interval."""
    exposure_s = stream.records[row].exposure_time_s
    if exposure_s is None or len(stream.records) < 2:
        return
    before, after = stream.records[max(row - 1, 0)], stream.records[max(row, 1)]
    interval_s = (after.stamp_ns - before.stamp_ns) * 1e-9
    if exposure_s > _INTERVAL_TOLERANCE * interval_s:
        raise InputError(f'exposure time {exposure_s} s is longer than the frame interval of '
                         f'{interval_s:.4g} s')
