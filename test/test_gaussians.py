"""Gaussians take in measurements, also such that leave some directions open."""

import numpy as np
import pytest

from image_as_imu_ros.geometry.gaussians import (
    inverse,
    mahalanobis,
    told_directions,
    updated,
    updated_as_told,
)


@pytest.fixture
def state():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(7, 7))
    return rng.normal(size=7), root @ root.T


@pytest.fixture
def measurement():
    """Matrix (3, 7), value and covariance, of slices as filters cut them out of larger arrays."""
    rng = np.random.default_rng(1)
    root = rng.normal(size=(6, 6))
    return rng.normal(size=(7, 3)).T, rng.normal(size=6)[::2], (root @ root.T)[::2, ::2]


def test_an_update_is_kalmans(state, measurement):
    (mean, covariance), (matrix, value, noise) = state, measurement
    spread = matrix @ covariance @ matrix.T + noise
    gain = covariance @ matrix.T @ np.linalg.inv(spread)
    found, left, distance = updated(mean, covariance, matrix, value, noise)
    np.testing.assert_allclose(found, mean + gain @ (value - matrix @ mean))
    np.testing.assert_allclose(left, covariance - gain @ matrix @ covariance, atol=1e-12)
    assert distance == pytest.approx(mahalanobis(value - matrix @ mean, spread) / 3)


def test_a_measurement_may_be_given_by_its_information(state, measurement):
    matrix, value, noise = measurement
    unmodelled = np.diag([0.1, 0.2, 0.3])
    information = inverse(noise)
    np.testing.assert_allclose(information @ noise, np.eye(3), atol=1e-12)
    told = updated_as_told(*state, matrix, information @ value, information, unmodelled)
    for found, expected in zip(told, updated(*state, matrix, value, noise + unmodelled)):
        np.testing.assert_allclose(found, expected)


def test_what_is_not_told_of_changes_nothing(state, measurement):
    matrix, value, _ = measurement
    direction = np.array([0.6, 0.0, 0.8])
    information = 4.0 * np.outer(direction, direction)
    told = updated_as_told(*state, matrix, information @ value, information, np.zeros((3, 3)))
    alone = updated(*state, direction[None] @ matrix, np.array([direction @ value]),
                    np.array([[0.25]]))
    for found, expected in zip(told, alone):
        np.testing.assert_allclose(found, expected)
    power, directions = told_directions(information)
    np.testing.assert_allclose(power, [4.0])
    np.testing.assert_allclose(np.abs(directions), [np.abs(direction)], atol=1e-12)
