"""The reference gyroscope at the times of frames, and the time offset between the two."""

from __future__ import annotations

import numpy as np
from scipy.signal import fftconvolve

from image_as_imu_ros.errors import SynchronizationError
from image_as_imu_ros.evaluation.sources.recording import Gyroscope

_MAX_HOLE_PERIODS = 10
_OFFSET_RANGE_S = 0.1
_OFFSET_STEP_S = 0.001
_OFFSET_WARNING_S = 0.005
_MIN_FRAMES_FOR_OFFSET = 20
_GRID_NS = 10_000_000
_MIN_OVERLAP = 0.5
_MIN_CORRELATION = 0.5
_RIVAL_DISTANCE_NS = 500_000_000
_MIN_LEAD = 0.05


def in_range(gyroscope: Gyroscope, stamps_ns: np.ndarray) -> np.ndarray:
    """
    Tell which stamps the gyroscope's record covers, (N,) bool.

    Outside the record one period is tolerated; inside, holes longer than ten periods are not
    covered.
    """
    t_ns, period_ns = gyroscope.t_ns, gyroscope.period_ns
    after = np.searchsorted(t_ns, stamps_ns).clip(1, len(t_ns) - 1)
    in_hole = ((t_ns[after] - t_ns[after - 1] > _MAX_HOLE_PERIODS * period_ns)
               & (stamps_ns > t_ns[after - 1]) & (stamps_ns < t_ns[after]))
    return ((stamps_ns >= t_ns[0] - period_ns) & (stamps_ns <= t_ns[-1] + period_ns) & ~in_hole)


def nearest(gyroscope: Gyroscope, stamps_ns: np.ndarray) -> np.ndarray:
    """Angular velocity of the sample nearest to each stamp, (N, 3) rad/s; ties take the first."""
    t_ns = gyroscope.t_ns
    after = np.searchsorted(t_ns, stamps_ns).clip(1, len(t_ns) - 1)
    take_before = stamps_ns - t_ns[after - 1] <= t_ns[after] - stamps_ns
    return gyroscope.angular_velocity_rad_s[after - take_before]


def interpolated(gyroscope: Gyroscope, stamps_ns: np.ndarray) -> np.ndarray:
    """Angular velocity linearly interpolated at each stamp, (N, 3) rad/s; constant outside."""
    origin_ns = gyroscope.t_ns[0]  # keeps nanoseconds within float64
    t_s, at_s = (gyroscope.t_ns - origin_ns) * 1e-9, (stamps_ns - origin_ns) * 1e-9
    return np.stack([np.interp(at_s, t_s, axis) for axis in gyroscope.angular_velocity_rad_s.T],
                    axis=-1)


def time_offset_s(gyroscope: Gyroscope, stamps_ns: np.ndarray, estimate_rad_s: np.ndarray,
                  signed: bool) -> float | None:
    """
    Find the offset d that maximises the correlation of estimate(t) and gyroscope(t + d).

    All three axes count together. Unsigned estimates take, at each offset, the sign that agrees
    with the gyroscope. A positive offset says that the image stamps are early.

    :param estimate_rad_s: in gyroscope axes, (N, 3)
    :returns: s, within +-0.1 s; None with fewer than 20 frames whose neighbourhood the
        gyroscope covers, or without motion
    """
    range_ns = round(_OFFSET_RANGE_S * 1e9)
    inside = (in_range(gyroscope, stamps_ns - range_ns) & in_range(gyroscope, stamps_ns)
              & in_range(gyroscope, stamps_ns + range_ns))
    stamps_ns, estimate_rad_s = stamps_ns[inside], estimate_rad_s[inside]
    if len(stamps_ns) < _MIN_FRAMES_FOR_OFFSET or not estimate_rad_s.any():
        return None
    steps = round(_OFFSET_RANGE_S / _OFFSET_STEP_S)
    offsets_s = np.arange(-steps, steps + 1) * _OFFSET_STEP_S
    scores = np.array([
        _correlation(estimate_rad_s,
                     interpolated(gyroscope, stamps_ns + round(offset * 1e9)), signed)
        for offset in offsets_s])
    if not np.isfinite(scores).all():
        return None
    best = int(scores.argmax())
    if 0 < best < len(scores) - 1:  # vertex of the parabola through the three best scores
        before, peak, after = scores[best - 1:best + 2]
        curvature = before - 2.0 * peak + after
        if curvature < 0.0:
            return float(offsets_s[best]
                         + 0.5 * _OFFSET_STEP_S * (before - after) / curvature)
    return float(offsets_s[best])


def spans(gyroscope: Gyroscope | None, stamps_ns: np.ndarray) -> str:
    """Text on when images and gyroscope begin and end, s; empty without a gyroscope."""
    if gyroscope is None:
        return ''
    first, last, begin, end = (value * 1e-9 for value in (
        stamps_ns.min(), stamps_ns.max(), gyroscope.t_ns[0], gyroscope.t_ns[-1]))
    return f' (images {first:.3f} to {last:.3f} s, gyroscope {begin:.3f} to {end:.3f} s)'


def offset_warnings(offset_s: float | None) -> tuple[str, ...]:
    """Say so where an offset of `time_offset_s` is large enough to spoil the errors."""
    if offset_s is None or abs(offset_s) < _OFFSET_WARNING_S:
        return ()
    beyond = ' or more' if abs(offset_s) > _OFFSET_RANGE_S - _OFFSET_STEP_S else ''
    return (f'clocks differ: the gyroscope meets the images best when taken {offset_s:+.3f} '
            f's{beyond} later; --time-offset auto applies it, and so does --stamp-reference '
            'where the stamps mark another moment of the exposure',)


def clock_offset_s(gyroscope: Gyroscope, stamps_ns: np.ndarray, estimate_rad_s: np.ndarray,
                   signed: bool) -> float:
    """
    Find by how much the gyroscope's clock runs ahead of the images', however much that is.

    The two records are laid over each other in steps of 10 ms wherever half of the shorter one
    meets the other, then `time_offset_s` refines the place of the best correlation.

    :param stamps_ns: of the frames with an estimate, (N,), strictly increasing
    :param estimate_rad_s: in gyroscope axes, (N, 3)
    :returns: s; estimate(t) meets gyroscope(t + offset)
    :raises SynchronizationError: if there are too few frames, or no place is clearly the best
    """
    if len(stamps_ns) < _MIN_FRAMES_FOR_OFFSET:
        raise SynchronizationError(
            f'the clock offset cannot be estimated from {len(stamps_ns)} frames with an estimate; '
            f'{_MIN_FRAMES_FOR_OFFSET} are needed, or give it by --time-offset S')
    frames = _on_grid(stamps_ns, _features(estimate_rad_s, signed))
    samples = _on_grid(gyroscope.t_ns, _features(gyroscope.angular_velocity_rad_s, signed))
    scores = _sliding_correlation(samples, frames)
    lags_ns = (np.arange(len(scores)) - (len(frames) - 1)) * _GRID_NS
    best = int(scores.argmax())
    rivals = np.abs(lags_ns - lags_ns[best]) > _RIVAL_DISTANCE_NS
    rival = float(scores[rivals].max()) if rivals.any() else 0.0
    coarse_s = (int(gyroscope.t_ns[0]) - int(stamps_ns[0]) + int(lags_ns[best])) * 1e-9
    if scores[best] < _MIN_CORRELATION or scores[best] - rival < _MIN_LEAD:
        raise SynchronizationError(
            f'the clock offset is not clear: the best is {coarse_s:+.3f} s with a correlation of '
            f'{scores[best]:.2f} (another place has {rival:.2f}); shake the camera about all axes '
            'in the recording, or give the offset by --time-offset S')
    fine_s = time_offset_s(gyroscope.shifted(coarse_s), stamps_ns, estimate_rad_s, signed)
    return coarse_s + (fine_s or 0.0)


def _features(rates_rad_s: np.ndarray, signed: bool) -> np.ndarray:
    """What is correlated, (N, C): the rates, or what is left of them without their sign."""
    if signed:
        return rates_rad_s
    speed = np.linalg.norm(rates_rad_s, axis=1, keepdims=True)
    products = (rates_rad_s[:, :, None] * rates_rad_s[:, None]).reshape(-1, 9) / (speed + 1e-9)
    return products - products.mean(axis=0)


def _on_grid(t_ns: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values (N, C) interpolated on a regular grid from the first stamp to the last."""
    at_ns = np.arange(0, int(t_ns[-1] - t_ns[0]) + 1, _GRID_NS)
    return np.stack([np.interp(at_ns, t_ns - t_ns[0], column) for column in values.T], axis=1)


def _sliding_correlation(longer: np.ndarray, window: np.ndarray) -> np.ndarray:
    """
    Uncentred correlation of a window (M, C) with a series (N, C) at each lag from 1 - M to N - 1.

    Each counts where the two overlap alone; -1 where that is too little.
    """
    def slid(series: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        return fftconvolve(series, kernel[::-1], axes=0).sum(axis=1)

    ones, window_ones = np.ones((len(longer), 1)), np.ones((len(window), 1))
    overlap = slid(ones, window_ones)
    power = (slid((longer ** 2).sum(axis=1, keepdims=True), window_ones)
             * slid(ones, (window ** 2).sum(axis=1, keepdims=True)))
    enough = overlap >= _MIN_OVERLAP * min(len(longer), len(window)) - 0.5
    scores = np.full(len(overlap), -1.0)
    usable = enough & (power > 1e-9 * power.max())
    scores[usable] = slid(longer, window)[usable] / np.sqrt(power[usable])
    return scores


def _correlation(estimate_rad_s: np.ndarray, reference_rad_s: np.ndarray, signed: bool) -> float:
    """Uncentred correlation over all axes; NaN where either is zero throughout."""
    products = (estimate_rad_s * reference_rad_s).sum(axis=1)
    total = products.sum() if signed else np.abs(products).sum()
    with np.errstate(invalid='ignore', divide='ignore'):
        return float(total / (np.linalg.norm(estimate_rad_s) * np.linalg.norm(reference_rad_s)))
