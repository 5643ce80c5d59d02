"""Rows of a rolling shutter see the motion at other times than the middle of the image does."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from image_as_imu_ros.config import StreamConfig
from image_as_imu_ros.geometry.motion_field import motion_field_matrix, pixel_grid
from image_as_imu_ros.geometry.parallax import (
    DEPTH_SPREAD,
    NOTHING_EXPECTED,
    Matches,
    PointMotion,
    motion_of_points,
    starts_about,
)
from image_as_imu_ros.row_motion import (
    ReadoutTime,
    RowTrust,
    Straightener,
    blur_response,
    effective_gap_s,
    row_offset_s,
    straightened,
)
from image_as_imu_ros.stream import StreamEstimator
from image_as_imu_ros.synthesis.room import Room, develop, expose
from image_as_imu_ros.synthesis.trajectory import Oscillation, Trajectory
from image_as_imu_ros.types import CameraIntrinsics, Frame

CAMERA = CameraIntrinsics(320, 224, 250.0, 245.0, 158.0, 113.0)
EXPOSURE_S, READOUT_S, PERIOD_S = 0.01, 0.02, 1 / 30
FRAME = Frame(np.zeros((224, 320), np.uint8), 0, CAMERA, EXPOSURE_S, READOUT_S)


@pytest.fixture(scope='module')
def room():
    return Room(seed=0)


def film(room, trajectory, frames, readout_s=READOUT_S, start_s=0.04):
    rng = np.random.default_rng(0)
    return [Frame(develop(expose(room, trajectory, CAMERA, mid_s, EXPOSURE_S, readout_s, 1),
                          rng, 4000.0, 5.0), round(mid_s * 1e9), CAMERA, EXPOSURE_S, readout_s)
            for mid_s in start_s + PERIOD_S * np.arange(frames)]


def test_points_are_straightened_as_a_pinhole_camera_turns():
    derivatives = np.array([[2.0, -3.0, 1.5], [60.0, 90.0, -80.0], [900.0, -1500.0, 2000.0]])
    rng = np.random.default_rng(0)
    at_once = rng.uniform((20, 20), (300, 204), (200, 2))
    rays = np.column_stack([at_once, np.ones(200)]) @ np.linalg.inv(CAMERA.matrix).T
    seen = at_once
    for _ in range(20):  # a point is seen in the row that is exposed just then
        offset_s = row_offset_s(seen[:, 1], CAMERA, FRAME)
        turns = np.stack([offset_s, offset_s ** 2 / 2, offset_s ** 3 / 6], axis=-1) @ derivatives
        projected = Rotation.from_rotvec(turns).inv().apply(rays) @ CAMERA.matrix.T
        seen = projected[:, :2] / projected[:, 2:]
    assert np.abs(seen - at_once).max() > 8.0
    # the motion field is that of small turns
    found, per_second, _ = straightened(seen, CAMERA, FRAME, derivatives)
    np.testing.assert_allclose(found, at_once, atol=0.5)
    assert np.median(np.abs(found - at_once)) < 0.03 * np.median(np.abs(seen - at_once))
    longer, *_ = straightened(seen, CAMERA, replace(FRAME, readout_time_s=READOUT_S + 1e-4),
                              derivatives)
    np.testing.assert_allclose((longer - found) / 1e-4, per_second, rtol=0.02, atol=1.0)


def test_points_tell_by_how_much_the_rate_has_changed():
    rng = np.random.default_rng(3)
    before = np.array([[1.0, -2.0, 0.5], [30.0, 40.0, -20.0], [500.0, -400.0, 300.0]])
    now = before + np.array([[1.2, 0.8, -0.9], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    turn = np.array([0.02, -0.04, 0.03])
    at_later = rng.uniform((30, 30), (290, 194), (150, 2))
    rays = np.column_stack([at_later, np.ones(150)]) @ np.linalg.inv(CAMERA.matrix).T
    at_earlier = Rotation.from_rotvec(turn).apply(rays) @ CAMERA.matrix.T
    at_earlier = at_earlier[:, :2] / at_earlier[:, 2:]
    # where they are seen row by row; back from there the motion field is the same
    seen = [points - (straightened(points, CAMERA, FRAME, derivatives)[0] - points)
            for points, derivatives in ((at_later, now), (at_earlier, before))]
    matches = Matches(*(each + 0.1 * rng.standard_normal((150, 2)) for each in seen),
                      np.tile([1.0, 0.0, 1.0], (150, 1)), np.zeros(150), np.zeros((150, 2, 0)),
                      np.zeros((0, 0)))
    # by the idea that the rate has not changed
    straighten = Straightener(CAMERA, FRAME, before, before, 0.5 * np.eye(3), None)
    by_rows = straighten(matches)
    motion = PointMotion(*motion_of_points(
        by_rows.at_later, by_rows.at_earlier, by_rows.doubt, np.ones(150), DEPTH_SPREAD,
        by_rows.by_rows, by_rows.rows_information, CAMERA.matrix,
        starts_about(np.array([*turn, 0.0, 0.0, 0.0]), 0.01), *NOTHING_EXPECTED))
    vector, information = straighten.told(motion)
    information[3:6, 3:6] += 1e6 * np.eye(3)  # a camera that does not shift
    covariance = np.linalg.inv(information)
    told, deviation = (covariance @ vector)[6:], np.sqrt(np.diag(covariance)[6:])
    np.testing.assert_allclose(told, now[0] - before[0], atol=4.0 * deviation.max())
    assert deviation.max() < 0.2


def test_a_rate_that_changes_while_rows_are_exposed_looks_like_another_motion():
    acceleration = np.array([0.0, 100.0, 0.0])
    motion = blur_response(CAMERA, FRAME)[:, :3] @ acceleration
    # a pan that is faster below than above looks in part like a roll
    assert abs(motion[2]) > 0.5
    points_px = pixel_grid(320, 224, 8).reshape(-1, 2)
    field = motion_field_matrix(points_px, CAMERA)
    offset_s = row_offset_s(points_px[:, 1], CAMERA, FRAME)
    blur = np.einsum('nij,nj->ni', field[..., :3], offset_s[:, None] * acceleration)
    misfit = blur - field @ motion
    # no motion of the whole fits better
    np.testing.assert_allclose(np.einsum('nij,ni->j', field, misfit), 0.0, atol=1e-5)
    assert (misfit ** 2).sum() < 0.8 * (blur ** 2).sum()
    assert not blur_response(CAMERA, replace(FRAME, readout_time_s=0.0)).any()


def test_rows_are_trusted_once_straightened_points_fit_better():
    trust, noisy, clear = RowTrust(), 0.3, 0.2
    assert not trust
    for _ in range(2):
        trust.judge(noisy, clear)
    assert trust
    for _ in range(3):
        trust.judge(clear, noisy)
    assert not trust


def test_readout_time_is_learnt_kept_and_looked_at_again():
    readout, noise = ReadoutTime(), np.random.default_rng(0)
    assert readout.matters
    for _ in range(200):
        readout.drift()
        own = 1.0 / (1.0 / readout.variance + 1.0 / 0.002 ** 2)
        measured_s = 0.02 + 0.002 * noise.standard_normal()
        readout.observe(own / 0.002 ** 2 * (measured_s - readout.value_s), own)
    assert readout.value_s == pytest.approx(0.02, abs=3e-3)
    assert readout.matters and readout.certain and readout.known
    for _ in range(300):
        readout.drift()
    assert readout.known and not readout.certain  # a camera at rest is still the same
    told_nothing = readout.value_s, readout.variance
    readout.observe(0.0, readout.variance)
    assert (readout.value_s, readout.variance) == told_nothing
    readout.observe(-1.0, 1e-9)
    assert readout.value_s == 0.0
    for _ in range(5):
        readout.observe(0.0, 1e-9)
    assert not readout.matters and not readout.known
    for _ in range(100):
        readout.drift()
    assert readout.matters


def true_rates(trajectory, timed):
    return trajectory.angular_velocity_rad_s(np.array([each.stamp_ns for each in timed]) * 1e-9)


@pytest.fixture(scope='module')
def shaken(room):
    """A hand's motion, and its images."""
    trajectory = Trajectory.hand_shake(seed=5, duration_s=4.0)
    return trajectory, film(room, trajectory, 75)


def test_readout_time_straightens_what_a_shaken_camera_sees_told_or_not(shaken, gyroscope):
    trajectory, films = shaken
    truth = true_rates(trajectory, films)
    errors = {}
    for mode, told_s in (('given', 0.0), ('given', READOUT_S), ('estimate', 0.0)):
        stream = StreamEstimator(gyroscope, StreamConfig(readout_mode=mode))
        rates = [stream.process(replace(frame, readout_time_s=told_s)).angular_velocity_rad_s
                 for frame in films]
        # one image's two lengths of blur, which a last bit decides, leave a median as it is
        errors[mode, told_s] = np.median(np.linalg.norm((np.array(rates) - truth)[25:], axis=1))
    # measured: 0.44 and 0.50 of it; 0.65 where rows do not tell the change of the rate
    assert errors['given', READOUT_S] < 0.56 * errors['given', 0.0]
    assert errors['estimate', 0.0] < 0.58 * errors['given', 0.0]
    readout_s, deviation_s = stream.readout_time_s
    assert readout_s == pytest.approx(READOUT_S, rel=0.3)
    assert deviation_s < 0.002


def test_bands_come_once_the_readout_time_is_learnt(shaken, gyroscope):
    trajectory, films = shaken
    errors = {}
    for told_s in (READOUT_S, 0.0):
        stream, bands = StreamEstimator(gyroscope, StreamConfig(subframe_rates=8)), []
        for frame in films:
            stream.process(replace(frame, readout_time_s=told_s))
            bands.append(stream.bands)
        late = [band for group in bands[45:] for band in group]
        assert len(late) == 8 * 30
        rates = np.array([band.angular_velocity_rad_s for band in late])
        errors[told_s] = np.sqrt(((rates - true_rates(trajectory, late)) ** 2).mean())
    assert not any(bands[:5])
    assert errors[0.0] < 1.1 * errors[READOUT_S] < 0.7  # measured: 0.54 and 0.53


def test_nothing_changes_for_a_global_shutter_that_nobody_tells_of(room, gyroscope):
    shaken = Trajectory.hand_shake(seed=5, duration_s=3.0)
    films, rates = film(room, shaken, 25, readout_s=0.0, start_s=0.5), {}
    for mode in ('given', 'estimate'):
        stream = StreamEstimator(gyroscope, StreamConfig(readout_mode=mode))
        rates[mode] = [stream.process(frame).angular_velocity_rad_s for frame in films]
    np.testing.assert_array_equal(rates['given'], rates['estimate'])
    assert stream.readout_time_s[0] < 0.003


def test_known_readout_time_corrects_the_gap_between_images(room, gyroscope):
    # a steady tilt: what moves down is exposed later in the second image
    steady = Trajectory(Oscillation.constant((1.5, 0.0, 0.0)), duration_s=0.5)
    speeds = {}
    for told_s in (0.0, READOUT_S):
        stream = StreamEstimator(gyroscope, StreamConfig(readout_mode='given'))
        for frame in film(room, steady, 12):  # until the filter has settled
            estimate = stream.process(replace(
                frame, readout_time_s=told_s, exposure_time_s=None))
        speeds[told_s] = estimate.angular_velocity_rad_s[0]
    assert abs(speeds[READOUT_S] - 1.5) < 0.5 * abs(speeds[0.0] - 1.5)
    assert abs(speeds[READOUT_S] - 1.5) < 0.05


def test_rows_have_their_own_time_in_reduced_images():
    half = CAMERA.resized(160, 112)
    ends = row_offset_s(np.array([-0.5, 55.5, 111.5]), half, FRAME)
    np.testing.assert_allclose(ends, [-READOUT_S / 2, 0.0, READOUT_S / 2], atol=1e-12)


def test_gap_grows_where_the_scene_moves_with_the_shutter():
    assert effective_gap_s(np.array([0.1, 0.3, 0.2]), PERIOD_S, FRAME) == pytest.approx(
        PERIOD_S + 24.5 / 224.0 * READOUT_S)
