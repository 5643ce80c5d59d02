"""The lever arm: learnt from turns with their ways, from nothing else, and used by the filter."""

import numpy as np
import pytest

from image_as_imu_ros.lever_arm import LeverArm
from image_as_imu_ros.motion_filter import MOVED, MotionFilter, without_prior

R_OVER_DEPTH = np.array([0.05, -0.08, 0.1])
GAP_S = 1 / 30
NO_PRIOR = 1e6
"""Variance of a translation of which nothing was expected."""


def motions(rng: np.random.Generator, count: int, turn_rad: float, noise: float) -> list:
    turns = rng.normal(0.0, turn_rad, (count, 3))
    ways = np.cross(turns, R_OVER_DEPTH) + rng.normal(0.0, noise, (count, 3))
    return list(np.hstack([turns, ways]))


def learnt(found: list, information: np.ndarray, own_variance: float) -> LeverArm:
    lever = LeverArm()
    for motion in found:
        lever.observe(motion[:3], information @ motion, information, own_variance)
    return lever


def test_turns_with_their_ways_teach_the_lever():
    found = motions(np.random.default_rng(0), 60, 0.05, 1e-3)
    lever = learnt(found, np.eye(6) / 5e-4 ** 2, 1e-3 ** 2)
    np.testing.assert_allclose(lever.value, R_OVER_DEPTH, atol=0.01)
    turn = np.array([0.1, -0.2, 0.3])
    np.testing.assert_allclose((lever.carried @ np.r_[turn, 0, 0, 0])[3:],
                               np.cross(turn, lever.value), atol=1e-12)


def test_what_may_be_rotation_or_translation_teaches_nothing():
    # all that is seen is how far the image moved: by a turn, or by a way, or by some of both
    seen = np.hstack([np.eye(3), np.eye(3)]) / 1e-3
    lever = learnt(motions(np.random.default_rng(1), 60, 0.05, 1e-3), seen.T @ seen
                   + 1e-6 * np.eye(6), 1e-3 ** 2)
    np.testing.assert_allclose(lever.value, 0.0, atol=1e-3)


def test_ways_much_larger_than_turns_teach_little():
    rng = np.random.default_rng(2)
    found = [np.r_[turn, way] for turn, way in zip(rng.normal(0.0, 3e-3, (60, 3)),
                                                   rng.normal(0.0, 3e-3, (60, 3)))]
    lever = learnt(found, np.eye(6) / 5e-4 ** 2, 3e-3 ** 2)
    assert np.linalg.norm(lever.value) < LeverArm.STD


def test_what_was_learnt_is_forgotten_for_what_is_new():
    rng = np.random.default_rng(3)
    found = motions(rng, 300, 0.05, 1e-3) + [
        np.r_[motion[:3], -motion[3:]] for motion in motions(rng, 600, 0.05, 1e-3)]
    lever = learnt(found, np.eye(6) / 5e-4 ** 2, 1e-3 ** 2)
    np.testing.assert_allclose(lever.value, -R_OVER_DEPTH, atol=0.03)


@pytest.mark.parametrize('learns', [True, False])
def test_a_filter_that_knows_the_lever_tells_velocity_by_rotation(learns):
    rate = np.array([1.0, -2.0, 1.5])
    turn, velocity = rate * GAP_S, np.cross(rate, R_OVER_DEPTH)
    covariance = np.diag(np.repeat([1e-3 ** 2, 2e-3 ** 2], 3))
    blind = np.diag(np.repeat([1e-3 ** 2, 1.0], 3))
    motion_filter = MotionFilter()
    rng = np.random.default_rng(4)
    for motion in motions(rng, 60, 0.05, 1e-3):
        motion_filter.predict(GAP_S)
        if learns:
            motion_filter.learn_lever(GAP_S, motion[:3],
                                      *without_prior(motion, covariance, NO_PRIOR))
        motion_filter.remember(GAP_S)
    # from here on images tell nothing of translation
    for _ in range(20):
        motion_filter.predict(GAP_S)
        motion_filter.update_motion(
            MOVED, *without_prior(np.r_[turn, 0.0, 0.0, 0.0], blind, NO_PRIOR))
        motion_filter.remember(GAP_S)
    error = np.linalg.norm(motion_filter.twist[3:] - velocity) / np.linalg.norm(velocity)
    assert error < 0.25 if learns else error > 0.9
    spread = np.sqrt(np.diag(motion_filter.twist_covariance)[3:])
    assert (np.abs(motion_filter.twist[3:] - velocity) < 3 * spread).all()
