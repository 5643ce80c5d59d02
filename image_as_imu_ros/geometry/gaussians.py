"""
What measurements make of Gaussians of a few numbers, compiled.

A filter takes many small steps, and in numpy each call takes longer than what it computes.
"""

from __future__ import annotations

import numpy as np

from image_as_imu_ros.compiled import compiled
from image_as_imu_ros.geometry.small_matrices import dot, invert

GATE = 50.0
"""Squared Mahalanobis distance (7 sigma) beyond which a measurement is distrusted."""
LEAST_INFORMATION = 1e-6
"""Directions that are told less, relative to the best, count as not told."""


def inverse(matrix: np.ndarray) -> np.ndarray:
    """Invert a positive definite matrix (n, n)."""
    found = np.array(matrix, float, order='C')
    invert(found)
    return found


def mahalanobis(innovation: np.ndarray, spread: np.ndarray) -> float:
    """Squared Mahalanobis distance of an innovation (m,) of a covariance (m, m)."""
    return _mahalanobis(*_dense(innovation, spread))


def updated(mean: np.ndarray, covariance: np.ndarray, matrix: np.ndarray, value: np.ndarray,
            noise: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """
    Kalman's update by a measurement, trusted less the further it is outside the gate.

    :param mean, covariance: of the state, (n,), (n, n)
    :param matrix: (m, n), of which state the measurement is
    :param value, noise: the measurement, (m,), and its covariance, (m, m)
    :returns: mean and covariance of the state, and the squared Mahalanobis distance of the
        measurement from what was expected, of each of its m numbers
    """
    return _updated(*_dense(mean, covariance, matrix, value, noise))


def updated_as_told(mean: np.ndarray, covariance: np.ndarray, matrix: np.ndarray,
                    vector: np.ndarray, information: np.ndarray,
                    unmodelled: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """
    The same by a measurement of which some directions may not be told at all.

    :param vector, information: inverse covariance of the measurement times that, (m,), and the
        inverse covariance, (m, m)
    :param unmodelled: (m, m), covariance of errors beside those
    """
    return _updated_as_told(*_dense(mean, covariance, matrix, vector, information, unmodelled))


def _dense(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """One kind of array, as loops are compiled for each kind anew."""
    return tuple(np.ascontiguousarray(array, float) for array in arrays)


@compiled
def told_directions(information: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In what K directions an information (D, D) tells anything, and how much: (K,), (K, D)."""
    power, directions = np.linalg.eigh(information)
    told = power > LEAST_INFORMATION * power[-1]
    return power[told], np.ascontiguousarray(directions.T[told])


@compiled
def _mahalanobis(innovation, spread):
    precision = spread.copy()
    invert(precision)
    distance = 0.0
    for row in range(len(innovation)):
        distance += innovation[row] * dot(precision[row], innovation)
    return distance


@compiled
def _updated(mean, covariance, matrix, value, noise):
    innovation, known = value - matrix @ mean, matrix @ covariance
    precision = known @ matrix.T + noise
    invert(precision)
    surprise = precision @ innovation
    distance = innovation @ surprise
    trust = 1.0 / max(1.0, distance / GATE)
    covariance = covariance - trust * (known.T @ (precision @ known))
    return mean + trust * (surprise @ known), 0.5 * (covariance + covariance.T), \
        distance / len(value)


@compiled
def _updated_as_told(mean, covariance, matrix, vector, information, unmodelled):
    power, directions = told_directions(information)
    noise = directions @ unmodelled @ directions.T
    for k in range(len(power)):
        noise[k, k] += 1.0 / power[k]
    return _updated(mean, covariance, directions @ matrix, directions @ vector / power, noise)
