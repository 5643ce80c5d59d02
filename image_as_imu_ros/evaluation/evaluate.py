"""
Run the estimator over a recording, or take estimates from elsewhere, and score them.

Angular velocities are compared in the reference gyroscope's axes, linear velocities in the
camera's optical axes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from image_as_imu_ros.config import StreamConfig
from image_as_imu_ros.errors import ConfigError, DataFormatError, InputError, SynchronizationError
from image_as_imu_ros.evaluation import metrics, sync
from image_as_imu_ros.evaluation.sources.recording import Recording, Stream
from image_as_imu_ros.types import EstimateStatus, MotionEstimate

if TYPE_CHECKING:
    from image_as_imu_ros.estimator import VisualGyroscope

MODES = ('single', 'stream')
PROTOCOLS = ('paper', 'interpolated')

_MATCH_TOLERANCE_NS = 1_000_000
_INTERVAL_TOLERANCE = 1.1


@dataclass(frozen=True)
class StreamEstimates:
    """The estimates of one stream, one entry per record; None where a frame gave none."""

    stream: Stream
    estimates: tuple[MotionEstimate | None, ...]


@dataclass(frozen=True)
class Samples:
    """
    Frames side by side with their references; NaN where a frame has none.

    Angular velocities (N, 3) rad/s and their covariance (N, 3, 3) are in gyroscope axes, linear
    ones (N, 3) m/s in camera axes. The references are those of each protocol.
    """

    stamp_ns: np.ndarray
    angular_rad_s: np.ndarray
    linear_m_s: np.ndarray
    covariance: np.ndarray
    angular_references_rad_s: dict[str, np.ndarray]
    linear_references_m_s: dict[str, np.ndarray]

    @property
    def has_estimate(self) -> np.ndarray:
        """Which frames have an estimate, (N,) bool."""
        return np.isfinite(self.angular_rad_s).all(axis=1)

    def scorable(self, protocol: str) -> np.ndarray:
        """Which frames have a reference within the gyroscope's record, (N,) bool."""
        return np.isfinite(self.angular_references_rad_s[protocol]).all(axis=1)


@dataclass(frozen=True)
class Evaluation:
    """Estimates of a recording with their scores; `metrics` is ready for summary.json."""

    recording: Recording
    mode: str
    streams: tuple[StreamEstimates, ...]
    metrics: dict[str, Any] = field(repr=False)


def evaluate(recording: Recording, gyroscope: VisualGyroscope, mode: str,
             stream_config: StreamConfig = StreamConfig(), progress: bool = False) -> Evaluation:
    """
    Estimate the motion of every frame and score it.

    Frames that cannot be used are skipped and counted by reason.

    :param mode: `single`, each image by itself and unsigned, or `stream`, signed, and causal
        unless `smoothing_frames` of the config says otherwise
    :param progress: show a bar on stderr where that is a terminal
    :raises ConfigError: if the mode is unknown
    :raises DataFormatError: if no frame at all could be estimated
    :raises SynchronizationError: if no image lies within the gyroscope's record
    """
    _check_mode(mode)
    from image_as_imu_ros.smoothing import SmoothedStream
    skipped, times_ms, results = Counter(recording.skipped), [], []
    with tqdm(total=recording.frame_count, unit='frame',
              disable=None if progress else True) as bar:
        for stream in recording.streams:
            smoothed = SmoothedStream(gyroscope, stream_config)
            estimates: dict[int, MotionEstimate] = {}
            read = 0
            for row, (record, stored) in enumerate(zip(stream.records, stream.read())):
                read = row + 1
                try:
                    _check_exposure(stream, row)
                    frame = record.with_image(stored.decode())
                    start = time.perf_counter()
                    final = [gyroscope.estimate(frame)] if mode == 'single' \
                        else smoothed.process(frame)
                    times_ms.append(1e3 * (time.perf_counter() - start))
                    estimates |= {estimate.stamp_ns: estimate for estimate in final}
                except InputError as error:
                    skipped[str(error)] += 1
                bar.update()
            estimates |= {estimate.stamp_ns: estimate for estimate in smoothed.finish()}
            missing = len(stream.records) - read
            if missing:
                skipped['image is missing at the end of the recording'] += missing
            results.append(StreamEstimates(stream, tuple(
                estimates.get(record.stamp_ns) for record in stream.records)))
    if not times_ms:
        reasons = '; '.join(f'{count} x {reason}' for reason, count in skipped.most_common(3))
        raise DataFormatError(f'no frame of {recording.source} could be estimated: {reasons}')
    return _scored(recording, mode, tuple(results), times_ms, dict(skipped))


def score(estimates: Sequence[MotionEstimate], recording: Recording,
          mode: str = 'stream') -> Evaluation:
    """
    Score estimates that were made elsewhere, as by the node and recorded from its topics.

    Each belongs to the frame of the recording's only stream whose mid-exposure stamp is
    nearest, within 1 ms; others are counted as skipped.

    :raises ConfigError: if the mode is unknown or the recording has several streams
    :raises SynchronizationError: if no estimate or no image meets its counterpart
    """
    _check_mode(mode)
    if len(recording.streams) != 1:
        names = ', '.join(stream.camera for stream in recording.streams)
        raise ConfigError(f'estimates belong to one camera, but the recording has {names}; '
                          'open it with one of them')
    (stream,) = recording.streams
    stamps_ns = np.array([record.stamp_ns for record in stream.records])
    matched: list[MotionEstimate | None] = [None] * len(stamps_ns)
    skipped = Counter(recording.skipped)
    for estimate in estimates:
        nearest = int(np.abs(stamps_ns - estimate.stamp_ns).argmin())
        if abs(int(stamps_ns[nearest]) - estimate.stamp_ns) <= _MATCH_TOLERANCE_NS:
            matched[nearest] = estimate
        else:
            skipped['estimate has the stamp of no image'] += 1
    if all(estimate is None for estimate in matched):
        raise SynchronizationError(
            f'none of {len(estimates)} estimates has the stamp of an image of '
            f'{recording.source}; are both on the same clock?')
    return _scored(recording, mode, (StreamEstimates(stream, tuple(matched)),), [], dict(skipped))


def samples_of(recording: Recording, result: StreamEstimates, mode: str) -> Samples:
    """Lay out one stream's estimates beside their references."""
    records, stream = result.stream.records, result.stream
    stamps_ns = np.array([record.stamp_ns for record in records], dtype=np.int64)
    rotation = np.eye(3) if stream.R_gyro_camera is None else stream.R_gyro_camera
    angular, linear = (np.full((len(records), 3), np.nan) for _ in range(2))
    covariance = np.full((len(records), 3, 3), np.nan)
    for row, estimate in enumerate(result.estimates):
        if estimate is not None and counts_as_estimate(estimate, mode):
            angular[row] = rotation @ estimate.angular_velocity_rad_s
            linear[row] = estimate.linear_velocity_m_s
            covariance[row] = rotation @ estimate.covariance[3:, 3:] @ rotation.T
    stored, at_frame = (
        np.array([np.full(3, np.nan) if value is None else value for value in values])
        for values in ([record.linear_velocity_stored_m_s for record in records],
                       [record.linear_velocity_reference_m_s for record in records]))
    references = _angular_references(recording, stream, stamps_ns, rotation)
    references['paper'][-1] = np.nan  # the paper drops the last frame
    return Samples(stamps_ns, angular, linear, covariance, references,
                   {'paper': stored, 'interpolated': at_frame})


def counts_as_estimate(estimate: MotionEstimate, mode: str) -> bool:
    """Whether an estimate takes part: a signed one in stream mode, any measured one in single."""
    return estimate.usable if mode == 'stream' else estimate.status != EstimateStatus.NO_SIGNAL


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        raise ConfigError(f'mode "{mode}" is not one of {", ".join(MODES)}')


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


def _angular_references(recording: Recording, stream: Stream, stamps_ns: np.ndarray,
                        rotation: np.ndarray) -> dict[str, np.ndarray]:
    """References of each protocol in gyroscope axes; a frame's own reference wins."""
    references = {protocol: np.full((len(stamps_ns), 3), np.nan) for protocol in PROTOCOLS}
    if recording.gyroscope is not None and stream.R_gyro_camera is not None:
        covered = sync.in_range(recording.gyroscope, stamps_ns)
        for protocol, look_up in (('paper', sync.nearest), ('interpolated', sync.interpolated)):
            references[protocol][covered] = look_up(recording.gyroscope, stamps_ns[covered])
    for row, record in enumerate(stream.records):
        if record.angular_velocity_reference_rad_s is not None:
            for reference in references.values():
                reference[row] = rotation @ record.angular_velocity_reference_rad_s
    return references


def _scored(recording: Recording, mode: str, results: tuple[StreamEstimates, ...],
            times_ms: list[float], skipped: dict[str, int]) -> Evaluation:
    """Pool the streams and compute every metric."""
    parts = [samples_of(recording, result, mode) for result in results]
    pooled = _pooled(parts)
    if not pooled.scorable('interpolated').any():
        raise SynchronizationError(
            f'no image of {recording.source} lies within the record of its gyroscope; '
            'are both on the same clock?')
    statuses = Counter(estimate.status.name for result in results
                       for estimate in result.estimates if estimate is not None)
    percentiles = np.percentile(times_ms, (50, 95, 99)).tolist() if times_ms else [None] * 3
    reference = pooled.angular_references_rad_s['interpolated'][pooled.scorable('interpolated')]
    return Evaluation(recording, mode, results, {
        'source': str(recording.source),
        'kind': recording.kind,
        'mode': mode,
        'image_size': recording.image_size,
        'frames': recording.frame_count,
        'evaluated': int((pooled.has_estimate & pooled.scorable('interpolated')).sum()),
        'protocols': {protocol: _protocol(pooled, protocol, mode) for protocol in PROTOCOLS},
        'zero_rotation_rmse_rad_s': _numbers(metrics.rmse(np.zeros_like(reference), reference)),
        'time_offset_s': _time_offset(recording, results, parts, mode),
        **_uncertainty(pooled, mode),
        'frame_ms': dict(zip(('p50', 'p95', 'p99'), percentiles)),
        'R_gyro_camera': {
            result.stream.camera: None if result.stream.R_gyro_camera is None
            else result.stream.R_gyro_camera.tolist() for result in results},
        'statuses': dict(statuses),
        'skipped': skipped,
        'assumptions': list(recording.assumptions),
    })


def _pooled(parts: list[Samples]) -> Samples:
    """Concatenate the samples of several streams."""
    return Samples(
        np.concatenate([part.stamp_ns for part in parts]),
        np.concatenate([part.angular_rad_s for part in parts]),
        np.concatenate([part.linear_m_s for part in parts]),
        np.concatenate([part.covariance for part in parts]),
        {protocol: np.concatenate([part.angular_references_rad_s[protocol] for part in parts])
         for protocol in PROTOCOLS},
        {protocol: np.concatenate([part.linear_references_m_s[protocol] for part in parts])
         for protocol in PROTOCOLS})


def _protocol(samples: Samples, protocol: str, mode: str) -> dict[str, Any]:
    """
    Errors under one protocol.

    In stream mode a frame without an estimate counts as an estimate of zero in every RMSE; in
    single mode it is left out, and what depends on an own sign is None.
    """
    signed = mode == 'stream'
    has_estimate = samples.has_estimate
    rows = samples.scorable(protocol) & (has_estimate | signed)
    reference = samples.angular_references_rad_s[protocol][rows]
    angular = np.where(has_estimate[:, None], samples.angular_rad_s, 0.0)[rows]
    linear = np.where(has_estimate[:, None], samples.linear_m_s, 0.0)[rows]
    linear_reference = samples.linear_references_m_s[protocol][rows]
    signs = metrics.oracle_signs(angular, reference)
    moving = np.isfinite(linear_reference).all(axis=1)
    measured = has_estimate[rows]

    def translation_rmse(estimate: np.ndarray) -> list[float | None] | None:
        return _numbers(metrics.rmse(estimate[moving], linear_reference[moving])) \
            if moving.any() else None

    if not rows.any():
        return dict.fromkeys((
            'rotation_rmse_rad_s', 'rotation_rmse_oracle_sign_rad_s', 'rotation_slope',
            'rotation_rmse_bias_removed_rad_s', 'translation_rmse_m_s',
            'translation_rmse_oracle_sign_m_s', 'oracle_sign_by_speed'))
    return {
        'rotation_rmse_rad_s': _numbers(metrics.rmse(angular, reference)) if signed else None,
        'rotation_rmse_oracle_sign_rad_s': _numbers(metrics.rmse(signs * angular, reference)),
        'rotation_slope': _numbers(metrics.slope((signs * angular)[measured],
                                                 reference[measured])),
        'rotation_rmse_bias_removed_rad_s': _numbers(metrics.bias_removed_rmse(
            angular if signed else signs * angular, reference)),
        'translation_rmse_m_s': translation_rmse(linear) if signed else None,
        'translation_rmse_oracle_sign_m_s': translation_rmse(signs * linear),
        'oracle_sign_by_speed': metrics.by_speed(signs * angular, reference, signs * linear,
                                                 linear_reference),
    }


def _uncertainty(samples: Samples, mode: str) -> dict[str, float | None]:
    """Signs and covariances against the interpolated reference."""
    rows = samples.scorable('interpolated') & samples.has_estimate
    if not rows.any():
        return dict.fromkeys(('sign_accuracy', 'nees_mean', 'coverage_95'))
    estimate, covariance = samples.angular_rad_s[rows], samples.covariance[rows]
    reference = samples.angular_references_rad_s['interpolated'][rows]
    signed = estimate if mode == 'stream' else estimate * metrics.oracle_signs(estimate, reference)
    return {
        'sign_accuracy': (
            metrics.sign_accuracy(estimate, reference) if mode == 'stream' else None),
        'nees_mean': _number(metrics.mean_nees(signed, reference, covariance)),
        'coverage_95': _number(metrics.coverage_95(signed, reference, covariance)),
    }


def _time_offset(recording: Recording, results: tuple[StreamEstimates, ...],
                 parts: list[Samples], mode: str) -> float | None:
    """Time offset of the frames whose axes relative to the gyroscope's are known."""
    usable = [part for part, result in zip(parts, results)
              if result.stream.R_gyro_camera is not None]
    if recording.gyroscope is None or not usable:
        return None
    stamps_ns, angular_rad_s = (
        np.concatenate([getattr(part, name)[part.has_estimate] for part in usable])
        for name in ('stamp_ns', 'angular_rad_s'))
    return sync.time_offset_s(recording.gyroscope, stamps_ns, angular_rad_s, mode == 'stream')


def _numbers(values: np.ndarray) -> list[float | None]:
    """Plain numbers for JSON."""
    return [_number(value) for value in values]


def _number(value: float) -> float | None:
    """Plain number for JSON, None for NaN."""
    return float(value) if np.isfinite(value) else None
