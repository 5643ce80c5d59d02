"""Noise of a gyroscope, real or visual, while it rests: Allan deviation and noise density."""

from __future__ import annotations

from typing import Any

import numpy as np

from image_as_imu_ros.errors import ConfigError
from image_as_imu_ros.evaluation.evaluate import Samples
from image_as_imu_ros.evaluation.sources.recording import Gyroscope

STILL_RAD_S = 0.2
"""Below this rate the camera counts as resting, in a hand too, whose tremor is then noise."""
MIN_STILL_S = 0.3
MIN_SAMPLES = 10
WHITE_SHARE = 0.1
"""Averaging times up to this share of the stretch tell the noise density."""
MIN_SECONDS_FOR_BIAS = 60.0
FLICKER_FACTOR = 0.664
"""Minimum of the Allan deviation over the bias instability: sqrt(2 ln 2 / pi)."""


def longest_rest(gyroscope: Gyroscope) -> tuple[int, int] | None:
    """Find the longest stretch of rest: its first and last stamp in ns, None if there is none."""
    still = np.linalg.norm(gyroscope.angular_velocity_rad_s, axis=1) < STILL_RAD_S
    edges = np.flatnonzero(np.diff(np.concatenate([[False], still, [False]]).astype(int)))
    stretches = [(int(gyroscope.t_ns[first]), int(gyroscope.t_ns[after - 1]))
                 for first, after in edges.reshape(-1, 2)]
    longest = max(stretches, key=lambda stretch: stretch[1] - stretch[0], default=None)
    if longest is None or (longest[1] - longest[0]) * 1e-9 < MIN_STILL_S:
        return None
    return longest


def noise_of(rates_rad_s: np.ndarray, period_s: float) -> dict[str, Any] | None:
    """
    Characterise evenly spaced samples of a resting gyroscope.

    The noise density N is that of white noise whose Allan deviation is N / sqrt(tau), median
    over the short averaging times. The bias instability needs a minute of rest.

    :param rates_rad_s: (N, 3)
    :returns: mean, standard deviation, noise density (rad/s/sqrt(Hz)), bias instability and
        Allan deviation, per axis; None with fewer than ten samples
    :raises ConfigError: if allantools is not installed
    """
    if len(rates_rad_s) < MIN_SAMPLES:
        return None
    try:
        import allantools
    except ImportError as error:
        raise ConfigError('the Allan deviation needs allantools: pip install allantools') \
            from error
    deviations = []
    for axis in rates_rad_s.T:
        tau_s, deviation, _, _ = allantools.oadev(axis, rate=1.0 / period_s, data_type='freq',
                                                  taus='octave')
        deviations.append(deviation)
    deviations = np.array(deviations).T  # (taus, 3)
    seconds = len(rates_rad_s) * period_s
    short = tau_s <= max(WHITE_SHARE * seconds, tau_s[0])
    density = np.median(deviations[short] * np.sqrt(tau_s[short])[:, None], axis=0)
    return {
        'samples': len(rates_rad_s), 'seconds': seconds,
        'mean_rad_s': rates_rad_s.mean(axis=0).tolist(),
        'std_rad_s': rates_rad_s.std(axis=0, ddof=1).tolist(),
        'noise_density_rad_s_sqrt_hz': density.tolist(),
        'bias_instability_rad_s': (deviations.min(axis=0) / FLICKER_FACTOR).tolist()
        if seconds >= MIN_SECONDS_FOR_BIAS else None,
        'allan_deviation': {'tau_s': tau_s.tolist(), 'rad_s': deviations.tolist()}}


def noise_at_rest(gyroscope: Gyroscope, methods: dict[str, Samples]) -> dict[str, Any] | None:
    """
    Noise of the reference and of methods over the longest rest.

    :param methods: of one camera each, by name; methods that miss frames of the rest are left out
    :returns: None where the camera never rests
    :raises ConfigError: if allantools is not installed
    """
    rest = longest_rest(gyroscope)
    if rest is None:
        return None
    first_ns, last_ns = rest

    def within(stamps_ns: np.ndarray) -> np.ndarray:
        return (stamps_ns >= first_ns) & (stamps_ns <= last_ns)

    noise = {'gyroscope': noise_of(gyroscope.angular_velocity_rad_s[within(gyroscope.t_ns)],
                                   gyroscope.period_ns * 1e-9)}
    for name, samples in methods.items():
        rows = within(samples.stamp_ns)
        if rows.sum() >= MIN_SAMPLES and samples.has_estimate[rows].all():
            period_s = float(np.median(np.diff(samples.stamp_ns[rows]))) * 1e-9
            noise[name] = noise_of(samples.angular_rad_s[rows], period_s)
    return {'from_ns': first_ns, 'to_ns': last_ns, 'still_below_rad_s': STILL_RAD_S,
            'noise': {name: entry for name, entry in noise.items() if entry is not None}}
