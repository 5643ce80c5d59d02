"""The reference gyroscope at the times of frames, and the time offset between the two."""

from __future__ import annotations

import numpy as np

from image_as_imu_ros.evaluation.sources.recording import Gyroscope

_MAX_HOLE_PERIODS = 10
_OFFSET_RANGE_S = 0.1
_OFFSET_STEP_S = 0.001
_MIN_FRAMES_FOR_OFFSET = 20


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


def _correlation(estimate_rad_s: np.ndarray, reference_rad_s: np.ndarray, signed: bool) -> float:
    """Uncentred correlation over all axes; NaN where either is zero throughout."""
    products = (estimate_rad_s * reference_rad_s).sum(axis=1)
    total = products.sum() if signed else np.abs(products).sum()
    with np.errstate(invalid='ignore', divide='ignore'):
        return float(total / (np.linalg.norm(estimate_rad_s) * np.linalg.norm(reference_rad_s)))
