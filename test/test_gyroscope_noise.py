"""Noise at rest and intervals by the block bootstrap, against what is known of white noise."""

import numpy as np
import pytest

from image_as_imu_ros.evaluation.bootstrap import BlockBootstrap
from image_as_imu_ros.evaluation.gyroscope_noise import longest_rest, noise_at_rest, noise_of
from image_as_imu_ros.evaluation.sources.recording import Gyroscope

PERIOD_S, SIGMA_RAD_S = 0.01, np.array([0.002, 0.004, 0.008])


def resting(seconds: float, seed: int = 0) -> np.ndarray:
    """White noise about a constant, (N, 3) rad/s."""
    random = np.random.default_rng(seed)
    return 0.01 + SIGMA_RAD_S * random.standard_normal((round(seconds / PERIOD_S), 3))


def test_noise_density_of_white_noise_is_its_deviation_over_the_root_of_the_rate():
    pytest.importorskip('allantools', reason='pip install allantools')
    noise = noise_of(resting(120.0), PERIOD_S)
    np.testing.assert_allclose(noise['noise_density_rad_s_sqrt_hz'],
                               SIGMA_RAD_S * np.sqrt(PERIOD_S), rtol=0.1)
    np.testing.assert_allclose(noise['mean_rad_s'], 0.01, atol=1e-3)
    np.testing.assert_allclose(noise['std_rad_s'], SIGMA_RAD_S, rtol=0.05)
    assert max(noise['bias_instability_rad_s']) < 0.002
    assert noise_of(resting(10.0), PERIOD_S)['bias_instability_rad_s'] is None
    assert noise_of(resting(0.05), PERIOD_S) is None


def test_the_longest_rest_is_found_between_motions():
    pytest.importorskip('allantools', reason='pip install allantools')
    moving = np.tile([1.0, 0.0, 0.0], (100, 1))
    rates = np.concatenate([resting(1.0), moving, resting(3.0), moving])
    gyroscope = Gyroscope(np.arange(len(rates)) * 10_000_000, rates)
    assert longest_rest(gyroscope) == (2_000_000_000, 4_990_000_000)
    assert noise_at_rest(gyroscope, {})['noise']['gyroscope']['samples'] == 300
    assert longest_rest(Gyroscope(np.arange(100) * 10_000_000, moving)) is None
    assert noise_at_rest(Gyroscope(np.arange(100) * 10_000_000, moving), {}) is None


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Errors that are alike for 0.3 s; a bootstrap of single frames would be far too sure."""
    stamps_ns = np.arange(900) * 33_333_333
    held, width = 0, []
    for seed in range(100):
        steps = np.random.default_rng(seed).standard_normal((100, 1))
        values = np.repeat(steps, 9, axis=0)
        (low, high), = BlockBootstrap(stamps_ns).ratio_interval(values)
        held += low <= 0.0 <= high
        width.append(high - low)
    assert 0.86 <= held / 100 <= 0.99
    assert np.mean(width) == pytest.approx(2 * 1.96 / 100 ** 0.5, rel=0.15)


def test_intervals_repeat_and_need_some_length():
    stamps_ns = np.arange(300) * 33_333_333
    values = np.random.default_rng(1).standard_normal((300, 3)) ** 2
    one, other = (BlockBootstrap(stamps_ns).ratio_interval(values) for _ in range(2))
    np.testing.assert_array_equal(one, other)
    assert (one[:, 0] < values.mean(axis=0)).all() and (values.mean(axis=0) < one[:, 1]).all()
    assert BlockBootstrap(stamps_ns[:60]).ratio_interval(values[:60]) is None
