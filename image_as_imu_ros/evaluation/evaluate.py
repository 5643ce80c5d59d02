"""
Score the estimates of a recording, whoever made them.

Angular velocities are compared in the reference gyroscope's axes, linear velocities in the
camera's optical axes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from image_as_imu_ros.config import StreamConfig
from image_as_imu_ros.errors import ConfigError, SynchronizationError
from image_as_imu_ros.evaluation import bootstrap, metrics, sync
from image_as_imu_ros.evaluation.estimation import (
    Estimates,
    StreamEstimates,
    check_mode,
    estimate_motion,
)
from image_as_imu_ros.evaluation.sources.recording import Recording, Stream
from image_as_imu_ros.types import EstimateStatus, MotionEstimate

if TYPE_CHECKING:
    from image_as_imu_ros.estimator import VisualGyroscope

PROTOCOLS = ('paper', 'interpolated')

MATCH_TOLERANCE_NS = 1_000_000


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

    def signed(self, mode: str, protocol: str = 'interpolated') -> np.ndarray:
        """Angular velocities, (N, 3) rad/s, in single mode with the reference's signs."""
        if mode == 'stream':
            return self.angular_rad_s
        reference = np.nan_to_num(self.angular_references_rad_s[protocol])
        return self.angular_rad_s * metrics.oracle_signs(self.angular_rad_s, reference)


@dataclass(frozen=True)
class Evaluation:
    """Estimates of a recording with their scores; `metrics` is ready for summary.json."""

    recording: Recording
    mode: str
    streams: tuple[StreamEstimates, ...]
    metrics: dict[str, Any] = field(repr=False)


def evaluate(recording: Recording, gyroscope: VisualGyroscope, mode: str,
             stream_config: StreamConfig = StreamConfig(), progress: bool = False,
             batch: int = 1) -> Evaluation:
    """
    Estimate the motion of every frame and score it.

    :raises SynchronizationError: if no image lies within the gyroscope's record; else as
        `estimate_motion`
    """
    return score_estimates(
        recording, mode,
        estimate_motion(recording, gyroscope, mode, stream_config, progress, batch))


def score(estimates: Sequence[MotionEstimate], recording: Recording,
          mode: str = 'stream') -> Evaluation:
    """
    Score estimates that were made elsewhere, as by the node and recorded from its topics.

    Each belongs to the frame of the recording's only stream whose mid-exposure stamp is
    nearest, within 1 ms; others are counted as skipped.

    :raises ConfigError: if the mode is unknown or the recording has several streams
    :raises SynchronizationError: if no estimate or no image meets its counterpart
    """
    check_mode(mode)
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
        if abs(int(stamps_ns[nearest]) - estimate.stamp_ns) <= MATCH_TOLERANCE_NS:
            matched[nearest] = estimate
        else:
            skipped['estimate has the stamp of no image'] += 1
    if all(estimate is None for estimate in matched):
        raise SynchronizationError(
            f'none of {len(estimates)} estimates has the stamp of an image of '
            f'{recording.source}; are both on the same clock?')
    return score_estimates(recording, mode, Estimates(
        (StreamEstimates(stream, tuple(matched)),), (), dict(skipped)))


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


def score_estimates(recording: Recording, mode: str, estimates: Estimates) -> Evaluation:
    """
    Pool the streams and compute every metric.

    :raises SynchronizationError: if no image lies within the gyroscope's record
    """
    results, times_ms, skipped = estimates.streams, estimates.times_ms, estimates.skipped
    recording = _on_one_clock(recording, results, mode)
    parts = [samples_of(recording, result, mode) for result in results]
    pooled = pool(parts)
    if not pooled.scorable('interpolated').any():
        raise SynchronizationError(
            f'no image of {recording.source} lies within the record of its gyroscope'
            f'{sync.spans(recording.gyroscope, pooled.stamp_ns)}; are both on the same clock? '
            '--time-offset auto or --time-offset S moves the gyroscope')
    statuses = Counter(estimate.status.name for result in results
                       for estimate in result.estimates if estimate is not None)
    percentiles = np.percentile(times_ms, (50, 95, 99)).tolist() if times_ms else [None] * 3
    reference = pooled.angular_references_rad_s['interpolated'][pooled.scorable('interpolated')]
    offset_s = _time_offset(recording, results, parts, mode)
    return Evaluation(recording, mode, results, {
        'source': str(recording.source),
        'kind': recording.kind,
        'mode': mode,
        'image_size': recording.image_size,
        'frames': recording.frame_count,
        'evaluated': int((pooled.has_estimate & pooled.scorable('interpolated')).sum()),
        'protocols': {protocol: protocol_scores(pooled, protocol, mode) for protocol in PROTOCOLS},
        'zero_rotation_rmse_rad_s': _numbers(metrics.rmse(np.zeros_like(reference), reference)),
        'time_offset_s': offset_s,
        'time_offset_applied_s': recording.time_offset_applied_s,
        **uncertainty_scores(pooled, mode),
        'intervals': {protocol: interval_scores(pooled, protocol, mode)
                      for protocol in PROTOCOLS},
        'frame_ms': dict(zip(('p50', 'p95', 'p99'), percentiles)),
        'R_gyro_camera': {
            result.stream.camera: None if result.stream.R_gyro_camera is None
            else result.stream.R_gyro_camera.tolist() for result in results},
        'statuses': dict(statuses),
        'skipped': skipped,
        'assumptions': list(recording.assumptions),
        'warnings': [*recording.warnings, *sync.offset_warnings(offset_s)],
    })


def pool(parts: Sequence[Samples]) -> Samples:
    """Concatenate the samples of several streams."""
    return Samples(
        np.concatenate([part.stamp_ns for part in parts]),
        np.concatenate([part.angular_rad_s for part in parts]),
        np.concatenate([part.linear_m_s for part in parts]),
        np.concatenate([part.covariance for part in parts]),
        {protocol: np.concatenate([part.angular_references_rad_s[protocol] for part in parts])
         for protocol in parts[0].angular_references_rad_s},
        {protocol: np.concatenate([part.linear_references_m_s[protocol] for part in parts])
         for protocol in parts[0].linear_references_m_s})


def protocol_scores(samples: Samples, protocol: str, mode: str) -> dict[str, Any]:
    """
    Errors under one protocol.

    In stream mode a frame without an estimate counts as an estimate of zero in every RMSE; in
    single mode it is left out, and what depends on an own sign is None.
    """
    signed = mode == 'stream'
    has_estimate = samples.has_estimate
    rows, angular = _compared(samples, protocol, mode)
    reference = samples.angular_references_rad_s[protocol][rows]
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


def _compared(samples: Samples, protocol: str, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """Which frames count under a protocol, (N,) bool, and their estimates, missing ones zero."""
    has_estimate = samples.has_estimate
    rows = samples.scorable(protocol) & (has_estimate | (mode == 'stream'))
    return rows, np.where(has_estimate[:, None], samples.angular_rad_s, 0.0)[rows]


def uncertainty_scores(samples: Samples, mode: str) -> dict[str, float | None]:
    """Signs and covariances against the interpolated reference."""
    rows = samples.scorable('interpolated') & samples.has_estimate
    if not rows.any():
        return dict.fromkeys(('sign_accuracy', 'nees_mean', 'coverage_95'))
    estimate, covariance = samples.angular_rad_s[rows], samples.covariance[rows]
    reference = samples.angular_references_rad_s['interpolated'][rows]
    signed = estimate if mode == 'stream' else estimate * metrics.oracle_signs(estimate, reference)
    stated = np.isfinite(covariance).all(axis=(1, 2))
    consistency = (metrics.mean_nees, metrics.coverage_95) if stated.any() else ()
    return {
        'sign_accuracy': (
            metrics.sign_accuracy(estimate, reference) if mode == 'stream' else None),
        **dict.fromkeys(('nees_mean', 'coverage_95')),
        **{name: _number(metric(signed[stated], reference[stated], covariance[stated]))
           for name, metric in zip(('nees_mean', 'coverage_95'), consistency)},
    }


def interval_scores(samples: Samples, protocol: str, mode: str) -> dict[str, Any]:
    """
    RMSE of the whole vector and 95 % intervals of errors, slopes and signs under one protocol.

    The frames are those of `protocol_scores`; signs are the method's own in stream mode, the
    oracle's in single mode. Intervals are None where the recording is too short.
    """
    rows, angular = _compared(samples, protocol, mode)
    reference = samples.angular_references_rad_s[protocol][rows]
    if mode == 'single':
        angular = angular * metrics.oracle_signs(angular, reference)
    if not rows.any():
        return dict.fromkeys((
            'rotation_rmse_vector_rad_s', 'rotation_rmse_vector_95_rad_s',
            'rotation_rmse_95_rad_s', 'rotation_slope_95', 'sign_accuracy_95'))
    squared = (angular - reference) ** 2
    measured = samples.has_estimate[rows]
    fast = measured & (np.linalg.norm(reference, axis=1) > metrics.SIGN_THRESHOLD_RAD_S)
    right = fast & ((angular * reference).sum(axis=1) > 0.0)
    resampled = bootstrap.BlockBootstrap(samples.stamp_ns[rows])

    def interval(numerator: np.ndarray, denominator: np.ndarray | None = None,
                 root: bool = False) -> list[Any] | None:
        bounds = resampled.ratio_interval(numerator, denominator)
        if bounds is None:
            return None
        return [_numbers(axis) for axis in (np.sqrt(bounds) if root else bounds)]

    vector = interval(squared.sum(axis=1, keepdims=True), root=True)
    signs = interval(right[:, None], fast[:, None]) if mode == 'stream' and fast.any() else None
    shown = measured[:, None]
    return {
        'rotation_rmse_vector_rad_s': float(np.sqrt(squared.sum(axis=1).mean())),
        'rotation_rmse_vector_95_rad_s': vector and vector[0],
        'rotation_rmse_95_rad_s': interval(squared, root=True),
        'rotation_slope_95': interval(angular * reference * shown, reference ** 2 * shown),
        'sign_accuracy_95': signs and signs[0],
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


def _on_one_clock(recording: Recording, results: tuple[StreamEstimates, ...],
                  mode: str) -> Recording:
    """Move the gyroscope by the estimated offset between the clocks, where that is asked for."""
    usable = [result for result in results if result.stream.R_gyro_camera is not None]
    if not recording.estimate_time_offset or recording.gyroscope is None or not usable:
        return recording
    samples = max((samples_of(recording, result, mode) for result in usable),
                  key=lambda samples: samples.has_estimate.sum())
    return recording.shifted(sync.clock_offset_s(
        recording.gyroscope, samples.stamp_ns[samples.has_estimate],
        samples.angular_rad_s[samples.has_estimate], mode == 'stream'))


def _numbers(values: np.ndarray) -> list[float | None]:
    """Plain numbers for JSON."""
    return [_number(value) for value in values]


def _number(value: float) -> float | None:
    """Plain number for JSON, None for NaN."""
    return float(value) if np.isfinite(value) else None
