"""What must hold for any stream, whatever its images show."""

import dataclasses

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from image_as_imu_ros.config import StreamConfig
from image_as_imu_ros.errors import SynchronizationError
from image_as_imu_ros.evaluation.metrics import mean_nees, rmse
from image_as_imu_ros.smoothing import SmoothedStream
from image_as_imu_ros.stream import StreamEstimator
from image_as_imu_ros.types import EstimateStatus, MotionEstimate

HALF_TURN = np.diag([-1.0, -1.0, 1.0])


def smoothed(gyroscope, frames):
    stream = SmoothedStream(gyroscope, StreamConfig(smoothing_frames=len(frames)))
    early = [estimate for frame in frames for estimate in stream.process(frame)]
    return [*early, *stream.finish()]


def rates(estimates):
    return np.array([estimate.angular_velocity_rad_s for estimate in estimates])


def covariances(estimates):
    return np.array([estimate.covariance[3:, 3:] for estimate in estimates])


@pytest.fixture(scope='module')
def forward(gyroscope, blurred_frames):
    return smoothed(gyroscope, blurred_frames)


@pytest.fixture(scope='module')
def reference(blurred_sequence):
    return np.array([frame.angular_velocity_rad_s for frame in blurred_sequence.frames])


def test_smoothed_estimates_come_in_order_one_per_frame(forward, blurred_frames):
    assert [estimate.stamp_ns for estimate in forward] == \
        [frame.stamp_ns for frame in blurred_frames]


def test_smoothing_is_better_than_no_look_ahead(gyroscope, forward, blurred_frames, reference):
    stream = StreamEstimator(gyroscope)
    causal = rates([stream.process(frame) for frame in blurred_frames])
    assert np.linalg.norm(rmse(rates(forward)[1:], reference[1:])) \
        < np.linalg.norm(rmse(causal[1:], reference[1:]))
    assert forward[0].usable  # later images tell its sign


def test_smoothing_over_no_frames_is_the_stream(gyroscope, blurred_frames):
    stream, plain = SmoothedStream(gyroscope, StreamConfig()), StreamEstimator(gyroscope)
    for frame in blurred_frames[:4]:
        (estimate,) = stream.process(frame)
        np.testing.assert_array_equal(estimate.angular_velocity_rad_s,
                                      plain.process(frame).angular_velocity_rad_s)
    assert not stream.finish()


def test_smoothing_does_not_reach_across_a_gap(gyroscope, blurred_frames):
    def shifted(frame):
        return dataclasses.replace(frame, stamp_ns=frame.stamp_ns + 10_000_000_000)

    apart = smoothed(gyroscope, [*blurred_frames[:4], *map(shifted, blurred_frames[4:8])])
    for estimate, alone in zip(apart[:4], smoothed(gyroscope, blurred_frames[:4])):
        np.testing.assert_allclose(estimate.angular_velocity_rad_s,
                                   alone.angular_velocity_rad_s, atol=1e-9)


def test_time_reversal_negates(gyroscope, forward, blurred_frames):
    last_ns = blurred_frames[-1].stamp_ns
    backward = smoothed(gyroscope, [
        dataclasses.replace(frame, stamp_ns=2 * last_ns - frame.stamp_ns)
        for frame in reversed(blurred_frames)])[::-1]
    # 3 would be expected of independent results; measured: 1.7
    assert mean_nees(rates(backward)[1:-1], -rates(forward)[1:-1],
                     covariances(backward)[1:-1] + covariances(forward)[1:-1]) < 3.0
    assert np.linalg.norm(rmse(rates(backward), -rates(forward))) \
        < 0.3 * np.linalg.norm(rmse(0, rates(forward)))


def test_camera_that_is_turned_gives_the_turned_motion(gyroscope, forward, blurred_frames):
    turned = smoothed(gyroscope, [
        dataclasses.replace(frame, image=cv2.rotate(frame.image, cv2.ROTATE_180))
        for frame in blurred_frames])  # the principal point is the middle
    expected = [estimate.rotated(HALF_TURN) for estimate in forward]
    # 3 would be expected of independent results; measured: 1.6
    assert mean_nees(rates(turned), rates(expected),
                     covariances(turned) + covariances(expected)) < 2.0
    for estimate, other in zip(turned, expected):
        np.testing.assert_allclose(np.sqrt(np.diag(estimate.covariance)),
                                   np.sqrt(np.diag(other.covariance)), rtol=1.0, atol=0.05)


@pytest.mark.parametrize('seed', range(10))
def test_frame_change_turns_estimate_and_covariance(seed):
    rng = np.random.default_rng(seed)
    root, rotation = rng.standard_normal((6, 6)), Rotation.random(random_state=rng).as_matrix()
    estimate = MotionEstimate(0, 0.01, rng.standard_normal(3), rng.standard_normal(3),
                              root @ root.T, True, 1.0, 1.0, 1.0, 1.0, EstimateStatus.OK)
    turned = estimate.rotated(rotation)
    for before, after in ((estimate.covariance[3:, 3:], turned.covariance[3:, 3:]),
                          (estimate.covariance[:3, :3], turned.covariance[:3, :3]),
                          (estimate.covariance[:3, 3:], turned.covariance[:3, 3:])):
        np.testing.assert_allclose(after, rotation @ before @ rotation.T, atol=1e-12)
    np.testing.assert_allclose(turned.rotated(rotation.T).angular_velocity_rad_s,
                               estimate.angular_velocity_rad_s, atol=1e-12)


@pytest.mark.parametrize('seed', range(4))
def test_shuffled_and_repeated_stamps_are_refused(gyroscope, blurred_frames, seed):
    rng, stream = np.random.default_rng(seed), StreamEstimator(gyroscope)
    newest, accepted = -1, []
    for index in rng.integers(0, 6, 8):
        frame = blurred_frames[index]
        if index > newest:
            accepted.append(stream.process(frame))
            newest = index
            continue
        with pytest.raises(SynchronizationError, match=r'reset the stream to accept a time jump'):
            stream.process(frame)
    kept = [frame for frame in blurred_frames
            if frame.stamp_ns in {estimate.stamp_ns for estimate in accepted}]
    undisturbed = StreamEstimator(gyroscope)
    for frame, estimate in zip(kept, accepted):
        np.testing.assert_array_equal(undisturbed.process(frame).angular_velocity_rad_s,
                                      estimate.angular_velocity_rad_s)


@pytest.mark.parametrize('unresolved_sign', ['predict', 'drop', 'inflate'])
def test_first_image_is_told_only_where_its_covariance_holds_both_signs(
        gyroscope, blurred_frames, reference, unresolved_sign):
    stream = StreamEstimator(gyroscope, StreamConfig(unresolved_sign=unresolved_sign))
    estimate = stream.process(blurred_frames[0])
    assert estimate.usable is (unresolved_sign == 'inflate')
    if estimate.usable:
        assert not estimate.angular_velocity_rad_s.any()
        for sign in (1.0, -1.0):
            assert mean_nees(np.zeros((1, 3)), sign * reference[:1],
                             estimate.covariance[None, 3:, 3:]) < 7.8  # 95 % of 3 axes
