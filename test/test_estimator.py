"""One image gives the velocity up to its sign, whatever its size; unusable images are refused."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch

from image_as_imu_ros.config import EstimatorConfig
from image_as_imu_ros.errors import ConfigError, InputError
from image_as_imu_ros.estimator import MAX_CAMERAS, VisualGyroscope
from image_as_imu_ros.evaluation.metrics import oracle_signs, rmse
from image_as_imu_ros.types import CameraIntrinsics, EstimateStatus, Frame


def closest_sign(vector, reference):
    return vector if vector @ reference > 0 else -vector


@pytest.fixture(scope='module')
def estimates(gyroscope, blurred_frames):
    """Estimates of every third frame."""
    return [gyroscope.estimate(frame) for frame in blurred_frames[::3]]


def test_velocity_is_found_up_to_its_sign(estimates, blurred_sequence):
    reference = np.array([f.angular_velocity_rad_s for f in blurred_sequence.frames[::3]])
    velocity = np.array([estimate.angular_velocity_rad_s for estimate in estimates])
    velocity *= oracle_signs(velocity, reference)
    # measured: 0.15 of the reference's rms
    assert np.linalg.norm(rmse(velocity, reference)) < 0.4 * np.linalg.norm(rmse(0, reference))


def test_estimate_says_that_its_sign_is_open(estimates, blurred_frames):
    for estimate, frame in zip(estimates, blurred_frames[::3]):
        assert estimate.status is EstimateStatus.SIGN_UNRESOLVED
        assert not estimate.sign_resolved and not estimate.usable and estimate.sign_margin == 0
        assert estimate.stamp_ns == frame.stamp_ns
        assert estimate.exposure_time_s == frame.exposure_time_s
        assert 0 < estimate.quality <= 1 and 0 <= estimate.inlier_share <= 1
        assert set(estimate.timing_ms) == {'preprocess', 'network', 'solve'}
        np.testing.assert_allclose(estimate.covariance, estimate.covariance.T, rtol=1e-6)
        assert np.linalg.eigvalsh(estimate.covariance).min() > 0


def test_velocity_goes_with_the_inverse_of_the_exposure(gyroscope, blurred_frames, estimates):
    frame = dataclasses.replace(blurred_frames[0], exposure_time_s=0.02)
    twice_as_long = gyroscope.estimate(frame)
    np.testing.assert_allclose(2 * twice_as_long.angular_velocity_rad_s,
                               estimates[0].angular_velocity_rad_s, rtol=1e-6)
    np.testing.assert_allclose(4 * twice_as_long.covariance, estimates[0].covariance, rtol=1e-5)


def test_enlarged_image_gives_the_same_velocity(gyroscope, blurred_frames, estimates):
    differences, extents = [], []
    for frame, estimate in zip(blurred_frames[::3], estimates):
        large = gyroscope.estimate(Frame(
            cv2.resize(frame.image, (640, 480), interpolation=cv2.INTER_CUBIC), frame.stamp_ns,
            frame.intrinsics.resized(640, 480), frame.exposure_time_s))
        small_rad_s = estimate.angular_velocity_rad_s
        difference = closest_sign(large.angular_velocity_rad_s, small_rad_s) - small_rad_s
        # two lengths that are a close call may change places, as their covariance says
        assert difference @ np.linalg.solve(estimate.covariance[3:, 3:], difference) < 9.0
        differences.append(np.linalg.norm(difference) / np.linalg.norm(small_rad_s))
        extents.append(large.blur_extent_px / estimate.blur_extent_px)
    assert np.median(differences) < 0.08  # measured: 0.064
    assert np.median(extents) == pytest.approx(2.0, rel=0.05)


def test_mirrored_image_gives_the_mirrored_motion(gyroscope, blurred_frames, estimates):
    # mirroring x negates the rates about y and z (an axial vector)
    frame, estimate = blurred_frames[0], estimates[0]
    mirrored = gyroscope.estimate(dataclasses.replace(
        frame, image=np.ascontiguousarray(frame.image[:, ::-1])))
    expected = estimate.angular_velocity_rad_s * [1, -1, -1]
    found = closest_sign(mirrored.angular_velocity_rad_s, expected)
    assert found @ expected > 0.9 * np.linalg.norm(found) * np.linalg.norm(expected)


def test_frames_solved_together_give_what_each_gives(gyroscope, blurred_frames):
    first, second = blurred_frames[:2]
    small = Frame(cv2.resize(first.image, (160, 120)), first.stamp_ns,
                  first.intrinsics.resized(160, 120), first.exposure_time_s)
    blank = dataclasses.replace(first, image=np.zeros_like(first.image))
    observations = [gyroscope.observe(frame) for frame in (first, small, blank, second)]
    starts = [None, None, None, np.full(6, 0.01)]
    for observation, start, together in zip(observations, starts,
                                            gyroscope.solve_all(observations, starts)):
        alone = gyroscope.solve(observation, start)
        assert together.frame is observation.frame
        assert set(together.timing_ms) == set(alone.timing_ms)
        if observation.frame is blank:
            assert together.solution is None
        else:
            np.testing.assert_array_equal(together.solution.motion, alone.solution.motion)
    for estimate, observation in zip(gyroscope.conclude_all(observations), observations):
        np.testing.assert_array_equal(estimate.angular_velocity_rad_s,
                                      gyroscope.conclude(observation).angular_velocity_rad_s)


def test_unknown_exposure_is_refused(gyroscope, blurred_frames):
    with pytest.raises(InputError, match='exposure time is unknown'):
        gyroscope.estimate(dataclasses.replace(blurred_frames[0], exposure_time_s=None))


@pytest.mark.parametrize('width, height, message', [
    (60, 200, '60x200 px is too small; at least 64 px'), (1000, 70, 'reduced to 320x16 px')])
def test_too_small_and_too_narrow_images_are_refused(gyroscope, width, height, message):
    camera = CameraIntrinsics(width, height, 100.0, 100.0, width / 2, height / 2)
    with pytest.raises(InputError, match=message):
        gyroscope.estimate(Frame(np.zeros((height, width), np.uint8), 0, camera, 0.01))


@pytest.mark.parametrize('level', [0, 128, 255])
def test_blank_image_has_no_signal_and_no_certainty(gyroscope, blurred_frames, level):
    image = np.full_like(blurred_frames[0].image, level)
    estimate = gyroscope.estimate(dataclasses.replace(blurred_frames[0], image=image))
    assert estimate.status is EstimateStatus.NO_SIGNAL and estimate.quality == 0
    np.testing.assert_array_equal(estimate.angular_velocity_rad_s, 0)
    assert np.diag(estimate.covariance).min() >= 100


def test_cameras_alternate_and_few_are_kept(gyroscope, blurred_frames, estimates):
    gray = np.random.default_rng(0).integers(0, 256, (72, 96), np.uint8)
    for focal_px in range(100, 101 + MAX_CAMERAS):
        camera = CameraIntrinsics(96, 72, focal_px, focal_px, 47.5, 35.5)
        gyroscope.estimate(Frame(gray, 0, camera, 0.01))
    again = gyroscope.estimate(blurred_frames[0])
    np.testing.assert_array_equal(again.angular_velocity_rad_s,
                                  estimates[0].angular_velocity_rad_s)
    assert len(gyroscope._cameras) <= MAX_CAMERAS


@pytest.mark.skipif(torch.cuda.is_available(), reason='torch sees a GPU')
def test_absent_gpu_is_refused_when_asked_for_and_done_without_otherwise():
    with pytest.raises(ConfigError, match='"cuda" was asked for'):
        VisualGyroscope(EstimatorConfig(device='cuda'))
    assert VisualGyroscope(EstimatorConfig(device='auto')).device == 'cpu'


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='torch sees no GPU')
def test_gpu_gives_the_motion_of_the_cpu(blurred_frames, estimates):
    """
    On a machine with an NVIDIA GPU and a CUDA build of torch.

    Run: python -m pytest -m gpu test/test_estimator.py
    """
    gyroscope = VisualGyroscope(EstimatorConfig(device='cuda'))
    for frame, on_cpu in zip(blurred_frames[::3], estimates):
        on_gpu = closest_sign(gyroscope.estimate(frame).angular_velocity_rad_s,
                              on_cpu.angular_velocity_rad_s)
        # both run in bfloat16, whose rounding differs from device to device
        assert np.linalg.norm(on_gpu - on_cpu.angular_velocity_rad_s) \
            < 0.05 * np.linalg.norm(on_cpu.angular_velocity_rad_s)
