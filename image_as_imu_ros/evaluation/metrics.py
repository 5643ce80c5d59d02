"""
Errors of estimated velocities against a reference; numpy only.

Arrays are (N, 3), one row per frame, estimate and reference in the same axes and units.
"""

from __future__ import annotations

from typing import Any

import numpy as np

SIGN_THRESHOLD_RAD_S = 0.5
"""Below this reference rate, a sign says nothing."""

SPEED_STRATA_RAD_S = (0.0, 1.0, 3.0, 6.0, 12.0, 25.0)
"""Bounds of the reference rates that are scored apart."""

NORMAL_95 = 1.96
"""Half-width of the central 95 % of a normal distribution, in standard deviations."""


def rmse(estimate: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Root mean square error per axis, (3,)."""
    return np.sqrt(np.mean((estimate - reference) ** 2, axis=0))


def oracle_signs(estimate: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Find the one sign per frame that maximises estimate . reference, (N, 1), +1 or -1."""
    return np.where((estimate * reference).sum(axis=1, keepdims=True) < 0.0, -1.0, 1.0)


def slope(estimate: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Gain of the estimate over the reference per axis, (3,); NaN where that is zero."""
    power = (reference ** 2).sum(axis=0)
    return np.divide((estimate * reference).sum(axis=0), power, where=power > 0.0,
                     out=np.full(3, np.nan))


def bias_removed_rmse(estimate: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Root mean square error per axis after subtracting its mean, (3,)."""
    return np.std(estimate - reference, axis=0)


def sign_accuracy(estimate_rad_s: np.ndarray, reference_rad_s: np.ndarray) -> float | None:
    """Share of right signs where the reference turns faster than 0.5 rad/s; None if nowhere."""
    fast = np.linalg.norm(reference_rad_s, axis=1) > SIGN_THRESHOLD_RAD_S
    if not fast.any():
        return None
    return float(((estimate_rad_s * reference_rad_s).sum(axis=1)[fast] > 0.0).mean())


def coverage_95(estimate: np.ndarray, reference: np.ndarray, covariance: np.ndarray) -> float:
    """Share of axes, pooled, whose error is within 1.96 sigma; covariance is (N, 3, 3)."""
    sigma = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    return float((np.abs(estimate - reference) <= NORMAL_95 * sigma).mean())


def mean_nees(estimate: np.ndarray, reference: np.ndarray, covariance: np.ndarray) -> float:
    """
    Mean normalised estimation error squared over the 3 axes; 3 for a perfect covariance.

    :param covariance: (N, 3, 3), positive definite
    """
    error = (estimate - reference)[..., None]
    return float((error.transpose(0, 2, 1) @ np.linalg.solve(covariance, error)).mean())


def by_speed(angular_rad_s: np.ndarray, angular_reference_rad_s: np.ndarray,
             linear_m_s: np.ndarray, linear_reference_m_s: np.ndarray) -> list[dict[str, Any]]:
    """
    Errors at each speed, one entry per stratum that has frames.

    `rotation_rmse_rad_s` is that of the whole vector, `relative` the same over the rms of the
    reference, `rotation_slope` the gain along it. `translation_direction_deg` is the median
    angle between the linear velocities, None where the reference has none.
    """
    speed = np.linalg.norm(angular_reference_rad_s, axis=1)
    strata = []
    for low, high in zip(SPEED_STRATA_RAD_S, SPEED_STRATA_RAD_S[1:]):
        rows = (speed >= low) & (speed < high)
        if not rows.any():
            continue
        estimate, reference = angular_rad_s[rows], angular_reference_rad_s[rows]
        power = float((reference ** 2).sum())
        error = float(((estimate - reference) ** 2).sum())
        linear, linear_reference = linear_m_s[rows], linear_reference_m_s[rows]
        lengths = np.linalg.norm(linear, axis=1) * np.linalg.norm(linear_reference, axis=1)
        known = lengths > 1e-9  # also False for NaN
        cosine = (linear * linear_reference).sum(axis=1)[known] / lengths[known]
        strata.append({
            'from_rad_s': low, 'to_rad_s': high, 'frames': int(rows.sum()),
            'rotation_rmse_rad_s': float(np.sqrt(error / rows.sum())),
            'relative': float(np.sqrt(error / power)) if power > 0.0 else None,
            'rotation_slope': float((estimate * reference).sum() / power) if power > 0.0 else None,
            'translation_direction_deg': float(np.degrees(np.median(np.arccos(
                cosine.clip(-1.0, 1.0))))) if known.any() else None})
    return strata
