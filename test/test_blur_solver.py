"""The blur solver finds the motion behind cells' displacement distributions."""

import numpy as np
import pytest
import torch

from image_as_imu_ros.geometry.blur_solver import (
    CELLS_PER_WITNESS,
    SCAN_LENGTHS_PX,
    BlurObjective,
    CellMoments,
    Survey,
    solve_blur,
)
from image_as_imu_ros.geometry.displacement_bins import (
    BINS,
    bin_displacements,
    interpolation,
)
from image_as_imu_ros.geometry.motion_field import motion_field_matrix, pixel_grid
from image_as_imu_ros.types import CameraIntrinsics

CAMERA = CameraIntrinsics(320, 224, 250.0, 240.0, 150.0, 118.0)
MATRIX = motion_field_matrix(pixel_grid(320, 224, 8), CAMERA)
MOTIONS = [  # w T in rad and v T / Z
    (0.05, -0.02, 0.04, 0.0, 0.0, 0.0), (0.0, 0.1, 0.0, 0.0, 0.0, 0.0),
    (0.0, 0.0, 0.2, 0.0, 0.0, 0.0), (-0.01, 0.02, -0.1, 0.0, 0.0, 0.0),
    (0.06, 0.05, -0.05, 0.004, -0.003, 0.002)]


def log_probability(motion, noise_px=0.0, blank_share=0.0, seed=0):
    """What an honest network would answer to a motion: (h, w, BINS) with a floor."""
    rng = np.random.default_rng(seed)
    flow_px = MATRIX @ motion + noise_px * rng.standard_normal((*MATRIX.shape[:2], 2))
    bins, weights = interpolation(torch.from_numpy(flow_px).float())
    probability = torch.full((*MATRIX.shape[:2], BINS), 1e-3 / BINS)
    probability.scatter_add_(-1, bins, 0.999 * weights)
    probability[torch.from_numpy(rng.random(MATRIX.shape[:2]) < blank_share)] = 1 / BINS
    return probability.log().numpy()


def closest_sign(motion, reference):
    return motion if motion @ reference > 0 else -motion


@pytest.mark.parametrize('motion', MOTIONS)
def test_motion_is_recovered_up_to_its_sign(motion):
    motion = np.array(motion)
    solution = solve_blur(log_probability(motion), MATRIX)
    found = closest_sign(solution.motion, motion)
    length_px = np.linalg.norm(MATRIX @ motion, axis=-1)
    error_px = np.linalg.norm(MATRIX @ (found - motion), axis=-1)
    assert np.median(error_px) < 0.03 * np.median(length_px)
    np.testing.assert_allclose(found[:3], motion[:3], atol=0.05 * np.linalg.norm(motion[:3]))
    assert solution.extent_px == pytest.approx(np.median(length_px), rel=0.05)
    assert solution.information > 0.5 and solution.inlier_share > 0.9


def test_motion_is_recovered_from_noisy_cells_half_of_them_blank():
    motion = np.array([0.05, -0.06, 0.03, 0.0, 0.0, 0.0])
    solution = solve_blur(log_probability(motion, noise_px=2.0, blank_share=0.5), MATRIX)
    found = closest_sign(solution.motion, motion)
    np.testing.assert_allclose(found[:3], motion[:3], atol=0.05 * np.linalg.norm(motion[:3]))
    clean = solve_blur(log_probability(motion), MATRIX)
    assert solution.information < clean.information


@pytest.mark.parametrize('motion', MOTIONS)
def test_reversed_time_gives_the_same_distributions_and_motion(motion):
    forward, backward = (log_probability(sign * np.array(motion)) for sign in (1, -1))
    np.testing.assert_allclose(forward, backward, atol=0.05)
    first, second = (solve_blur(logs, MATRIX).motion for logs in (forward, backward))
    np.testing.assert_allclose(closest_sign(second, first), first,
                               atol=0.01 * np.linalg.norm(first))


@pytest.mark.parametrize('motion', [*MOTIONS, (1e-3, 0.0, 0.0, 0.0, 0.0, 0.0)])
def test_covariance_is_symmetric_and_positive_definite(motion):
    covariance = solve_blur(log_probability(np.array(motion)), MATRIX).covariance
    np.testing.assert_allclose(covariance, covariance.T, rtol=1e-6, atol=1e-12)
    assert np.linalg.eigvalsh(covariance).min() > 0


def test_fewer_cells_leave_a_larger_covariance():
    motion = np.array(MOTIONS[0])
    full, half = (solve_blur(log_probability(motion, blank_share=share), MATRIX).covariance
                  for share in (0.0, 0.5))
    # an error that all cells share is the same in both
    assert np.trace(half[:3, :3]) > 1.2 * np.trace(full[:3, :3])


def test_a_seed_near_the_truth_does_no_harm():
    motion = np.array(MOTIONS[0])
    logs = log_probability(motion)
    plain, seeded = (solve_blur(logs, MATRIX, start) for start in (None, 1.1 * motion))
    assert seeded.log_likelihood >= plain.log_likelihood - 1e-3


def smooth_log_probability(motion):
    """Distributions that fall off so slowly that the table's kinks do not show, (N, BINS)."""
    flow_px = MATRIX.reshape(-1, 2, 6) @ motion
    bins_px = bin_displacements()
    distance_px = np.minimum(*(np.linalg.norm(bins_px - sign * flow_px[:, None], axis=-1)
                               for sign in (1, -1)))
    return torch.log_softmax(torch.from_numpy(-distance_px ** 2 / 800), dim=-1).numpy()


def test_gradient_of_the_objective_is_its_slope():
    truth = np.array(MOTIONS[4])
    objective = BlurObjective(smooth_log_probability(truth), MATRIX.reshape(-1, 2, 6),
                              CELLS_PER_WITNESS)
    # none of them with displacements along an axis, where the table has a kink
    motions = truth * np.array([[0.5], [0.9], [1.3]]) + [0.01, -0.02, 0.03, 0.002, 0.001, -0.003]
    step = 4e-4
    for motion in motions:
        _, gradient = objective.evaluate(motion)
        for k in range(6):
            ahead, behind = (objective.evaluate(motion + sign * step * np.eye(6)[k])[0]
                             for sign in (1, -1))
            assert (ahead - behind) / (2 * step) == pytest.approx(
                gradient[k], abs=0.02 * np.abs(gradient).max())


def test_cells_that_make_no_sense_lead_nowhere():
    logs = np.full((MATRIX[..., 0, 0].size, BINS), -np.inf, np.float32)
    objective = BlurObjective(logs, MATRIX.reshape(-1, 2, 6), CELLS_PER_WITNESS)
    _, heights = objective.climb(np.array([MOTIONS[0], np.full(6, np.nan), np.full(6, 1e30)]), 3)
    assert not np.isfinite(heights).any()


def test_cells_are_looked_up_between_their_bins():
    rng = np.random.default_rng(0)
    logs = rng.normal(size=(MATRIX[..., 0, 0].size, BINS)).astype(np.float32)
    matrix = MATRIX.reshape(-1, 2, 6)
    motions = np.stack([sign * scale * np.array(motion) for motion in MOTIONS
                        for sign in (1, -1) for scale in (0.02, 1.0, 6.0)])
    bins, weights = interpolation(torch.from_numpy(motions @ matrix.transpose(1, 2, 0)).movedim(
        0, -1))
    expected = (logs[np.arange(len(logs))[:, None], bins.numpy()] * weights.numpy()).sum(axis=-1)
    objective = BlurObjective(logs, matrix, CELLS_PER_WITNESS)
    values, lengths_px = objective.cell_values(motions)
    np.testing.assert_allclose(values, expected, atol=0.01)
    np.testing.assert_allclose(lengths_px, np.linalg.norm(
        matrix @ motions[:, None, :, None], axis=(-2, -1)), rtol=1e-4)


def test_likelihoods_are_those_of_the_cells_and_mean_squares_tell_the_rotation():
    motion = np.array(MOTIONS[0])
    logs, matrix = log_probability(motion).reshape(-1, BINS), MATRIX.reshape(-1, 2, 6)
    survey = Survey(matrix[..., :3])
    objective = BlurObjective(logs, matrix, CELLS_PER_WITNESS)
    found = objective.likelihoods(survey.pans, SCAN_LENGTHS_PX)
    for length_px, likelihoods in zip(SCAN_LENGTHS_PX, found.T):
        values, _ = objective.cell_values(length_px * survey.pans)
        np.testing.assert_allclose(likelihoods, values.sum(axis=1) / CELLS_PER_WITNESS, rtol=1e-4)
    lifted = closest_sign(survey.lifted_start(CellMoments(logs)), motion[:3])
    np.testing.assert_allclose(lifted, motion[:3], atol=0.1 * np.linalg.norm(motion))
