"""An exposure that nobody tells follows from the blur and the motion between images."""

from dataclasses import replace

import numpy as np
import pytest

from image_as_imu_ros import stream as stream_module
from image_as_imu_ros.config import StreamConfig
from image_as_imu_ros.evaluation import sync
from image_as_imu_ros.evaluation.metrics import mean_nees, rmse
from image_as_imu_ros.evaluation.sources import open_recording
from image_as_imu_ros.stream import StreamEstimator
from image_as_imu_ros.types import EstimateStatus

ESTIMATE = StreamConfig(exposure_mode='estimate')


@pytest.fixture(scope='module')
def observations(gyroscope, blurred_frames):
    """There and back, of which no exposure is told."""
    interval_ns = blurred_frames[1].stamp_ns - blurred_frames[0].stamp_ns
    observed = [gyroscope.observe(replace(frame, exposure_time_s=None))
                for frame in blurred_frames]
    order = [*observed, *observed[-2::-1]]
    return [replace(each, frame=replace(each.frame, stamp_ns=index * interval_ns))
            for index, each in enumerate(order)]


@pytest.fixture(scope='module', params=[0.003, 0.03])
def learnt(request, gyroscope, observations):
    """The stream and its estimates, from guesses a factor of three off."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream_module, 'GUESSED_EXPOSURE_S', request.param)
        stream = StreamEstimator(gyroscope, ESTIMATE)
        estimates = [stream.join(observation) for observation in observations]
        yield stream.exposure_time_s, estimates


def test_estimate_is_right_within_its_uncertainty_wherever_it_starts(learnt, blurred_sequence):
    (exposure_s, deviation_s), _ = learnt
    assert exposure_s == pytest.approx(blurred_sequence.exposure_time_s, rel=0.2)
    assert abs(exposure_s - blurred_sequence.exposure_time_s) < 3.0 * deviation_s
    assert deviation_s < 0.15 * exposure_s


def test_exposure_is_told_once_it_is_known_and_not_before(learnt):
    told = [estimate.exposure_time_s for estimate in learnt[1]]
    known = [value is not None for value in told]
    assert not known[0] and known[-1]
    assert known == sorted(known)  # once known, it stays known
    assert learnt[1][0].status is EstimateStatus.NO_SIGNAL


def test_velocities_are_as_good_as_their_covariance_says(learnt, blurred_sequence):
    count = len(blurred_sequence.frames)
    estimates = learnt[1][-count + 3:]  # on the way back
    truth = -np.array([frame.angular_velocity_rad_s for frame in blurred_sequence.frames])[-4::-1]
    rates = np.array([estimate.angular_velocity_rad_s for estimate in estimates])
    assert np.linalg.norm(rmse(rates, truth)) < 0.3 * np.linalg.norm(rmse(0, truth))
    assert mean_nees(rates, truth, np.array(
        [estimate.covariance[3:, 3:] for estimate in estimates])) < 6.0


def test_a_told_exposure_is_not_looked_at(gyroscope, observations):
    def last(exposure_s):
        stream = StreamEstimator(gyroscope, ESTIMATE)
        return [stream.join(replace(observation, frame=replace(
            observation.frame, exposure_time_s=exposure_s))) for observation in
            observations[:6]][-1]

    np.testing.assert_array_equal(last(0.05).angular_velocity_rad_s,
                                  last(None).angular_velocity_rad_s)


def test_a_gap_leaves_the_exposure_known_and_a_reset_does_not(gyroscope, observations):
    stream = StreamEstimator(gyroscope, ESTIMATE)
    learnt_from = observations[:20]
    for observation in learnt_from:
        stream.join(observation)
    before = stream.exposure_time_s
    later = replace(observations[0], frame=replace(
        observations[0].frame, stamp_ns=learnt_from[-1].frame.stamp_ns + 5_000_000_000))
    assert stream.join(later).exposure_time_s is not None
    assert stream.exposure_time_s == before
    stream.reset()
    assert stream.exposure_time_s[1] >= stream.exposure_time_s[0]
    assert StreamEstimator(gyroscope).exposure_time_s is None


def test_recorded_exposure_is_found_after_60_fast_images(gyroscope, data_folder):
    recording = open_recording(data_folder / 'strayscanner_dining')
    (stream,) = recording.streams
    speeds = np.linalg.norm(sync.interpolated(recording.gyroscope, np.array(
        [record.stamp_ns for record in stream.records])), axis=1)
    last = int(np.flatnonzero(np.cumsum(speeds > 2.0) == 60)[0])
    estimator = StreamEstimator(gyroscope, ESTIMATE)
    for record, stored in zip(stream.records[:last + 1], stream.read()):
        estimate = estimator.process(replace(record, exposure_time_s=None).with_image(
            stored.decode()))
    assert estimate.exposure_time_s == pytest.approx(stream.records[0].exposure_time_s, rel=0.1)
