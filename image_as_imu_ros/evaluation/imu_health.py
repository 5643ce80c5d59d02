"""
What is wrong with a gyroscope, judged by the angular velocity that a camera sees.

One judgement serves the live comparison and the evaluation of recordings. Both sides are in the
gyroscope's supposed axes; faults that the camera's own errors could explain are not reported.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from image_as_imu_ros.evaluation.motion_track import MotionTrack
    from image_as_imu_ros.evaluation.sources.recording import Gyroscope

OFFSET_RANGE_S = 0.2
OFFSET_STEP_S = 0.004
MIN_ESTIMATES = 45
MIN_MOTION_RAD_S = 0.3
"""Rms of the camera's rate about an axis, from which on that axis is judged."""
SIGNIFICANCE = 4.0
"""Deviations that a fault must exceed, beside the tolerance of its kind."""
SCALE_TOLERANCE = 0.12
BIAS_TOLERANCE_RAD_S = 0.1
OFFSET_TOLERANCE_S = 0.010
TURN_TOLERANCE_DEG = 10.0
AXES_GAIN = 0.5
"""Share of the squared error that another order of axes must leave at most, to be named."""
STUCK_S = 0.25
DROPOUT_PERIODS = 4.5
MAX_HOLE_S = 0.1
"""Where the gyroscope has none nearby, an estimate is not compared."""
SIGNED_PERMUTATIONS = np.array([
    np.eye(3)[list(order)] * np.array(signs)[:, None]
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1.0, -1.0), repeat=3)])
"""(48, 3, 3); the gyroscope reads one of them times the true rates."""


@dataclass(frozen=True)
class Health:
    """
    Judgement of a gyroscope.

    `faults` tells each fault by its kind in one sentence; kinds are `axes`, `rotation`, `scale`,
    `bias`, `stuck`, `time offset`, `dropouts` and `not finite`. `conclusive` is False where too
    little was seen to clear it. `error_rms_rad_s`, (3,), is the difference of the two as they
    are; `scale`, `bias_rad_s` and `time_offset_s` describe the gyroscope's readings, NaN where
    nothing tells them.
    """

    faults: dict[str, str]
    conclusive: bool
    compared: int
    error_rms_rad_s: np.ndarray
    scale: np.ndarray
    bias_rad_s: np.ndarray
    time_offset_s: float

    @property
    def summary(self) -> str:
        """One line."""
        if self.faults:
            return '; '.join(self.faults.values())
        if not self.conclusive:
            return 'too little motion to judge the gyroscope'
        return 'ok'


def judge(gyro_ns: np.ndarray, gyro_rad_s: np.ndarray, camera_ns: np.ndarray,
          camera_rad_s: np.ndarray, camera_covariance: np.ndarray) -> Health:
    """
    Compare a gyroscope with the rates that a camera sees.

    :param gyro_ns: stamps (N,), increasing
    :param gyro_rad_s: readings (N, 3), which need not be finite
    :param camera_ns: stamps (M,), increasing
    :param camera_rad_s: signed rates (M, 3), turned into the gyroscope's supposed axes
    :param camera_covariance: of those, (M, 3, 3)
    """
    faults = _delivery_faults(gyro_ns, gyro_rad_s)
    finite = np.isfinite(gyro_rad_s).all(axis=1)
    gyro_ns, gyro_rad_s = gyro_ns[finite], gyro_rad_s[finite]
    unknown = np.full(3, np.nan)
    if len(gyro_ns) < 2 or not len(camera_ns):
        return Health(faults, False, 0, unknown, unknown, unknown, float('nan'))
    origin_ns = gyro_ns[0]
    signal = _Signal((gyro_ns - origin_ns) * 1e-9, gyro_rad_s)
    camera_s = (camera_ns - origin_ns) * 1e-9
    usable = signal.covers(camera_s)
    camera_s, camera, covariance = (
        values[usable] for values in (camera_s, camera_rad_s, camera_covariance))
    reading = signal.at(camera_s)
    error_rms = np.sqrt(np.mean((camera - reading) ** 2, axis=0)) if len(camera) else unknown
    faults |= _stuck(signal, camera_s, camera)
    moved = np.sqrt(np.mean(camera ** 2, axis=0)) if len(camera) else np.zeros(3)
    moving = moved > MIN_MOTION_RAD_S
    if len(camera) < MIN_ESTIMATES or moving.sum() < 2 or 'stuck' in faults:
        return Health(faults, 'stuck' in faults, len(camera), error_rms, unknown, unknown,
                      float('nan'))
    weight = 1.0 / np.maximum(np.trace(covariance, axis1=1, axis2=2) / 3.0, 0.05 ** 2)
    offset_s, axes = _offset_and_axes(signal, camera_s, camera, weight)
    if not np.array_equal(axes, np.eye(3)):
        faults['axes'] = _describe_axes(axes)
    reading = signal.at(camera_s + offset_s) @ axes  # in the supposed axes
    scale, scale_deviation, bias, bias_deviation = _lines(reading, camera, weight)
    turn_deg = _turn_deg(reading / scale, camera, weight)
    if 'axes' not in faults and turn_deg > TURN_TOLERANCE_DEG and moving.all():
        faults['rotation'] = (f'it is mounted {turn_deg:.0f} deg from what the transform says; '
                              'run image-as-imu calibrate')
    else:
        faults |= _scale_faults(scale, scale_deviation, moving, axes)
    faults |= _bias_faults(axes @ bias, np.abs(axes) @ bias_deviation)
    deviation_s = _offset_deviation_s(signal, camera_s, offset_s, camera, axes, weight)
    if abs(offset_s) > max(OFFSET_TOLERANCE_S, SIGNIFICANCE * deviation_s):
        faults['time offset'] = (
            f'its stamps are {1e3 * abs(offset_s):.0f} ms {"late" if offset_s > 0 else "early"}, '
            f"or the images' stamps the reverse; time_offset:={offset_s:.3f} of visual_imu "
            'aligns them')
    return Health(faults, True, len(camera), error_rms,
                  np.where(moving, scale, np.nan)[np.abs(axes).argmax(axis=1)], axes @ bias,
                  offset_s)


def judge_track(gyroscope: Gyroscope, track: MotionTrack, R_gyro_camera: np.ndarray) -> Health:
    """Judge the gyroscope of a recording, mounted as the rotation (3, 3) says."""
    usable = [estimate.rotated(R_gyro_camera) for estimate in track.estimates if estimate.usable]
    return judge(
        gyroscope.t_ns, gyroscope.angular_velocity_rad_s,
        np.array([estimate.stamp_ns for estimate in usable], dtype=np.int64),
        np.array([estimate.angular_velocity_rad_s for estimate in usable]).reshape(-1, 3),
        np.array([estimate.covariance[3:, 3:] for estimate in usable]).reshape(-1, 3, 3))


class _Signal:
    """The gyroscope's readings, linearly interpolated."""

    def __init__(self, time_s: np.ndarray, rate_rad_s: np.ndarray) -> None:
        self.time_s, self.rate_rad_s = time_s, rate_rad_s

    def at(self, time_s: np.ndarray) -> np.ndarray:
        """Rates at times (N,), (N, 3)."""
        return np.stack([np.interp(time_s, self.time_s, axis) for axis in self.rate_rad_s.T], 1)

    def covers(self, time_s: np.ndarray) -> np.ndarray:
        """Which times have readings close by, also when shifted by OFFSET_RANGE_S, (N,) bool."""
        after = np.searchsorted(self.time_s, time_s).clip(1, len(self.time_s) - 1)
        return ((time_s > self.time_s[0] + OFFSET_RANGE_S)
                & (time_s < self.time_s[-1] - OFFSET_RANGE_S)
                & (self.time_s[after] - self.time_s[after - 1] < MAX_HOLE_S))


def _delivery_faults(gyro_ns: np.ndarray, gyro_rad_s: np.ndarray) -> dict[str, str]:
    """Readings that are missing or no numbers."""
    faults = {}
    bad = int((~np.isfinite(gyro_rad_s).all(axis=1)).sum())
    if bad:
        faults['not finite'] = f'{bad} of {len(gyro_ns)} readings are NaN or infinite'
    steps_s = np.diff(gyro_ns) * 1e-9
    if len(steps_s) > 2:
        long = steps_s > DROPOUT_PERIODS * np.median(steps_s)
        if long.any():
            faults['dropouts'] = (f'{int(long.sum())} dropouts of up to '
                                  f'{1e3 * steps_s.max():.0f} ms at a period of '
                                  f'{1e3 * np.median(steps_s):.1f} ms')
    return faults


def _stuck(signal: _Signal, camera_s: np.ndarray, camera: np.ndarray) -> dict[str, str]:
    """Axes that repeat one value while the camera turns, about whichever axis."""
    stuck = []
    turning = np.linalg.norm(camera, axis=1) > MIN_MOTION_RAD_S
    for axis, values in zip('xyz', signal.rate_rad_s.T):
        changes = np.flatnonzero(np.diff(values) != 0.0)
        bounds = np.concatenate([[-1], changes, [len(values) - 1]])
        longest = int(np.diff(bounds).argmax())
        first, last = signal.time_s[[bounds[longest] + 1, bounds[longest + 1]]]
        during = (camera_s >= first) & (camera_s <= last)
        if last - first > STUCK_S and during.any() and turning[during].mean() > 0.5:
            stuck.append(f'{axis} is stuck at {values[bounds[longest] + 1]:.3f} rad/s for '
                         f'{last - first:.1f} s')
    return {'stuck': ', '.join(stuck)} if stuck else {}


def _offset_and_axes(signal: _Signal, camera_s: np.ndarray, camera: np.ndarray,
                     weight: np.ndarray) -> tuple[float, np.ndarray]:
    """
    Time offset and order of axes under which the gyroscope fits the camera best.

    :returns: s, and the signed permutation (3, 3) with reading = permutation @ rate; the
        identity unless another leaves much less
    """
    camera = camera - camera.mean(axis=0)
    power = float(weight @ (camera ** 2).sum(axis=1))
    offsets_s = np.arange(-OFFSET_RANGE_S, OFFSET_RANGE_S + 1e-9, OFFSET_STEP_S)
    left = np.empty((len(offsets_s), len(SIGNED_PERMUTATIONS)))
    for row, offset_s in enumerate(offsets_s):
        reading = signal.at(camera_s + offset_s)
        reading = reading - reading.mean(axis=0)
        correlation = reading.T @ (weight[:, None] * camera)
        match = np.einsum('kij,ij->k', SIGNED_PERMUTATIONS, correlation)
        # what the best common factor of the reading leaves of the camera's rates
        left[row] = power - np.maximum(match, 0.0) ** 2 / (
            weight @ (reading ** 2).sum(axis=1) + 1e-9)
    row_of, best = left.argmin(axis=0), left.min(axis=0)
    identity = int(np.flatnonzero((SIGNED_PERMUTATIONS == np.eye(3)).all(axis=(1, 2)))[0])
    chosen = int(best.argmin())
    if best[chosen] > AXES_GAIN * best[identity]:
        chosen = identity
    row = int(row_of[chosen])
    offset_s = offsets_s[row]
    if 0 < row < len(offsets_s) - 1:  # vertex of the parabola through three
        before, lowest, after = left[row - 1:row + 2, chosen]
        offset_s += 0.5 * OFFSET_STEP_S * (before - after) / (before - 2 * lowest + after)
    return float(offset_s), SIGNED_PERMUTATIONS[chosen]


def _lines(reading: np.ndarray, camera: np.ndarray, weight: np.ndarray) -> tuple[
        np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """
    Scale and bias of the readings per axis, each with its deviation.

    Camera rates are fitted to the readings, not the reverse: the noise is the camera's.
    """
    results = []
    witnesses = 0.3 * len(reading)  # the camera's errors at neighbouring images are alike
    for x, y in zip(reading.T, camera.T):
        w = weight.copy()
        for _ in range(5):
            mean_x, mean_y = w @ x / w.sum(), w @ y / w.sum()
            spread = w @ (x - mean_x) ** 2 / w.sum() + 1e-9
            slope = w @ ((x - mean_x) * (y - mean_y)) / w.sum() / spread
            error = y - mean_y - slope * (x - mean_x)
            size = 1.4826 * np.median(np.abs(error)) + 1e-6
            w = weight / (1.0 + (error / (2.5 * size)) ** 2)
        slope = slope if abs(slope) > 1e-3 else 1e-3
        noise = np.sqrt(w @ error ** 2 / w.sum() / witnesses)
        scale = 1.0 / slope
        results.append((scale, noise / np.sqrt(spread) * scale ** 2, mean_x - scale * mean_y,
                        noise * abs(scale)))
    return tuple(np.array(values) for values in zip(*results))


def _turn_deg(reading: np.ndarray, camera: np.ndarray, weight: np.ndarray) -> float:
    """Angle of the rotation that best takes the camera's rates to the readings, deg."""
    centred = reading - reading.mean(axis=0), weight[:, None] * (camera - camera.mean(axis=0))
    u, _, vt = np.linalg.svd(centred[0].T @ centred[1])
    rotation = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
    return float(np.degrees(np.arccos(np.clip((np.trace(rotation) - 1.0) / 2.0, -1.0, 1.0))))


def _offset_deviation_s(signal: _Signal, camera_s: np.ndarray, offset_s: float,
                        camera: np.ndarray, axes: np.ndarray, weight: np.ndarray) -> float:
    """Deviation of the offset: noise over the readings' rate of change."""
    step_s = OFFSET_STEP_S
    before, after = (signal.at(camera_s + offset_s + sign * step_s) @ axes for sign in (-1, 1))
    slope = (after - before) / (2 * step_s)
    error = camera - signal.at(camera_s + offset_s) @ axes
    noise = weight @ (error ** 2).sum(axis=1) / (0.3 * weight @ (slope ** 2).sum(axis=1) + 1e-9)
    return float(np.sqrt(noise / len(camera)))


def _describe_axes(axes: np.ndarray) -> str:
    """What the gyroscope gives as its axes, in words."""
    sources = [('-' if axes[row].sum() < 0 else '') + 'xyz'[int(np.abs(axes[row]).argmax())]
               for row in range(3)]
    text = ', '.join(f'{axis} carries {source}' for axis, source in zip('xyz', sources)
                     if axis != source)
    swapped = any(axis not in source for axis, source in zip('xyz', sources))
    return f'axes are {"swapped" if swapped else "flipped"}: {text}'


def _scale_faults(scale: np.ndarray, deviation: np.ndarray, moving: np.ndarray,
                  axes: np.ndarray) -> dict[str, str]:
    """Axes whose readings are too large or too small."""
    wrong = [f'{"xyz"[int(np.abs(axes[:, axis]).argmax())]} reads {scale[axis]:.2f} times the '
             'rate' for axis in range(3)
             if moving[axis] and abs(scale[axis] - 1.0) > max(
                 SCALE_TOLERANCE, SIGNIFICANCE * deviation[axis])]
    return {'scale': ', '.join(wrong)} if wrong else {}


def _bias_faults(bias_rad_s: np.ndarray, deviation: np.ndarray) -> dict[str, str]:
    """Axes that do not read zero at rest."""
    wrong = [f'{axis} is biased by {value:+.2f} rad/s'
             for axis, value, sigma in zip('xyz', bias_rad_s, deviation)
             if abs(value) > max(BIAS_TOLERANCE_RAD_S, SIGNIFICANCE * sigma)]
    return {'bias': ', '.join(wrong)} if wrong else {}
