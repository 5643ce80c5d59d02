"""
Errors of estimated velocities against a reference; numpy only.

Arrays are (N, 3), one row per frame, estimate and reference in the same axes and units.
"""

from __future__ import annotations

import numpy as np

SIGN_THRESHOLD_RAD_S = 0.5
"""Below this reference rate, a sign says nothing."""

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
