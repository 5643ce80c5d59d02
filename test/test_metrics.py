"""Scores against hand-computed values, and against the published ones where the data is."""

from pathlib import Path

import numpy as np
import pytest

from image_as_imu_ros.errors import DataFormatError, SynchronizationError
from image_as_imu_ros.evaluation import metrics, sync
from image_as_imu_ros.evaluation.sources.recording import Gyroscope
from image_as_imu_ros.evaluation.sources.table import Table

REFERENCE = np.array([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, -3.0]])


def gyroscope(period_s: float = 0.01, count: int = 501) -> Gyroscope:
    """Samples from 1 s on of a smooth motion about all axes."""
    t_s = np.arange(count) * period_s
    rates = np.stack([3 * np.sin(7 * t_s), 2 * np.cos(5 * t_s + 1), np.sin(11 * t_s + 2)], axis=1)
    return Gyroscope(1_000_000_000 + np.round(t_s * 1e9).astype(np.int64), rates)


def test_rmse_is_per_axis():
    estimate = REFERENCE + np.array([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(metrics.rmse(estimate, REFERENCE), [3**0.5, (16 / 3)**0.5, 0.0])


def test_oracle_takes_one_sign_per_frame_never_per_axis():
    estimate = np.array([[-2.0, 1.0, 0.0], [1.0, 3.0, 0.0]])
    reference = np.array([[2.0, 1.0, 0.0], [-1.0, 2.0, 0.0]])
    np.testing.assert_array_equal(metrics.oracle_signs(estimate, reference), [[-1.0], [1.0]])


def test_slope_weighs_by_power_and_is_open_without_motion():
    estimate = np.array([[1.0, 5.0, 0.0], [4.0, 5.0, 0.0]])
    reference = np.array([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    np.testing.assert_allclose(metrics.slope(estimate, reference), [9 / 5, np.nan, np.nan])


def test_bias_removed_rmse_ignores_a_constant_alone():
    noise = np.array([[1.0, -2.0, 0.0], [-1.0, 2.0, 0.0], [1.0, -2.0, 0.0], [-1.0, 2.0, 0.0]])
    reference = np.zeros((4, 3))
    np.testing.assert_allclose(
        metrics.bias_removed_rmse(noise + [10.0, 20.0, 30.0], reference), [1.0, 2.0, 0.0])


def test_sign_accuracy_counts_fast_frames_alone():
    reference = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.4, 0.0, 0.0], [0.0, 0.0, 0.51]])
    estimate = np.array([[0.1, 9.0, 0.0], [0.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 0.01]])
    assert metrics.sign_accuracy(estimate, reference) == pytest.approx(2 / 3)
    assert metrics.sign_accuracy(estimate, 0.1 * reference) is None


def test_coverage_and_nees_of_a_known_case():
    covariance = np.broadcast_to(np.diag([1.0, 4.0, 0.25]), (2, 3, 3))
    error = np.array([[1.9, 4.0, 0.5], [0.0, 2.0, 1.0]])
    estimate = np.zeros((2, 3))
    # sigma 1, 2, 0.5: only the second z is outside 1.96 sigma; 4.0 = 2 sigma is outside too
    assert metrics.coverage_95(estimate, error, covariance) == pytest.approx(4 / 6)
    assert metrics.mean_nees(estimate, error, covariance) == pytest.approx(
        (1.9**2 + 4.0 + 1.0 + 0.0 + 1.0 + 4.0) / 2)


def test_nees_and_coverage_are_right_for_errors_of_the_stated_covariance():
    random = np.random.default_rng(3)
    factor = random.standard_normal((3, 3))
    covariance = np.broadcast_to(factor @ factor.T, (20_000, 3, 3))
    error = random.standard_normal((20_000, 3)) @ factor.T
    assert metrics.mean_nees(error, np.zeros_like(error), covariance) == pytest.approx(3, abs=0.1)
    assert metrics.coverage_95(error, np.zeros_like(error), covariance) == pytest.approx(
        0.95, abs=0.01)


def test_nearest_sample_and_interpolation_between_samples():
    rates = np.array([[0.0, 0.0, 0.0], [10.0, 20.0, 30.0], [10.0, 20.0, 30.0]])
    gyro = Gyroscope(np.array([0, 10, 20]) * 1_000_000, rates)
    stamps_ns = np.array([4, 6, -5, 25]) * 1_000_000
    np.testing.assert_array_equal(sync.nearest(gyro, stamps_ns)[:, 0], [0.0, 10.0, 0.0, 10.0])
    np.testing.assert_allclose(sync.interpolated(gyro, stamps_ns)[:, 0], [4.0, 6.0, 0.0, 10.0])


def test_interpolation_keeps_nanoseconds_of_unix_stamps():
    origin_ns = 1_700_000_000_000_000_001
    gyro = Gyroscope(origin_ns + np.array([0, 1000]), np.array([[0.0] * 3, [1.0] * 3]))
    np.testing.assert_allclose(sync.interpolated(gyro, np.array([origin_ns + 250])), [[0.25] * 3])


def test_range_allows_one_period_outside_and_no_hole_inside():
    t_ns = np.concatenate([np.arange(0, 20), np.arange(40, 60)]) * 10_000_000
    gyro = Gyroscope(t_ns, np.zeros((40, 3)))
    stamps_ns = np.array([-10_000_000, -10_000_001, 600_000_000, 600_000_001, 300_000_000,
                          190_000_000, 195_000_000])
    np.testing.assert_array_equal(
        sync.in_range(gyro, stamps_ns), [True, False, True, False, False, True, False])


@pytest.mark.parametrize('signed', [True, False])
@pytest.mark.parametrize('offset_s', [-0.0235, 0.0, 0.0121])
def test_time_offset_is_found_below_a_millisecond(offset_s: float, signed: bool):
    gyro = gyroscope()
    random = np.random.default_rng(1)
    stamps_ns = 1_300_000_000 + np.arange(120) * 33_333_333
    estimate = sync.interpolated(gyro, stamps_ns + round(offset_s * 1e9))
    estimate += 0.1 * random.standard_normal(estimate.shape)
    if not signed:
        estimate *= random.choice([-1.0, 1.0], (len(estimate), 1))
    assert sync.time_offset_s(gyro, stamps_ns, estimate, signed) == pytest.approx(
        offset_s, abs=0.001)


def test_time_offset_stays_open_without_frames_or_motion():
    gyro = gyroscope()
    stamps_ns = 1_300_000_000 + np.arange(10) * 33_333_333
    assert sync.time_offset_s(gyro, stamps_ns, np.ones((10, 3)), True) is None
    stamps_ns = 1_300_000_000 + np.arange(60) * 33_333_333
    assert sync.time_offset_s(gyro, stamps_ns, np.zeros((60, 3)), True) is None


def test_gyroscope_needs_samples_in_order():
    with pytest.raises(DataFormatError, match='1 usable samples'):
        Gyroscope(np.array([1]), np.zeros((1, 3)))
    with pytest.raises(SynchronizationError, match=r'gyroscope sample 2 .* before the previous'):
        Gyroscope(np.array([0, 10, 5]), np.zeros((3, 3)))


def test_published_scores_of_the_paper_come_out(data_folder: Path):
    """Nearest gyroscope sample, last frame dropped, as published (frames before the log too)."""
    folder = data_folder / 'strayscanner_dining'
    if not folder.is_dir():
        pytest.skip(f'{folder} is absent')
    imu = Table(folder / 'imu.csv', ('timestamp',))
    gyro = Gyroscope(imu.stamps_ns('timestamp'), imu.numbers('alpha_x', 'alpha_y', 'alpha_z'))
    predictions = Table(folder / 'paper_base_model_predictions.csv', ('timestamp',))
    assert len(predictions) == 175
    reference = sync.nearest(gyro, predictions.stamps_ns('timestamp'))
    stored = Table(folder / 'velocities.csv', ()).numbers('alpha_x', 'alpha_y', 'alpha_z')
    np.testing.assert_allclose(reference, stored[:-1], atol=1e-9)
    estimate = predictions.numbers('alpha_x', 'alpha_y', 'alpha_z')
    np.testing.assert_allclose(metrics.rmse(estimate, reference), [0.81, 0.48, 1.28], atol=0.005)
    np.testing.assert_allclose(
        metrics.rmse(np.zeros((175, 3)), reference), [4.59, 1.53, 3.67], atol=0.005)
