"""The simulated recording obeys the physics that it claims to."""

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from image_as_imu_ros.errors import ConfigError, DataFormatError, InputError
from image_as_imu_ros.evaluation.sources import open_recording
from image_as_imu_ros.geometry.motion_field import motion_field_matrix
from image_as_imu_ros.synthesis.room import (
    ROOM_SIZE_M,
    RecordingConfig,
    Room,
    develop,
    expose,
    write_recording,
)
from image_as_imu_ros.synthesis.trajectory import Oscillation, Trajectory
from image_as_imu_ros.types import CameraIntrinsics

CAMERA = CameraIntrinsics(160, 112, 125.0, 125.0, 79.5, 55.5)
EXPOSURE_S = 0.01


@pytest.fixture(scope='module')
def room():
    return Room(seed=3)


@pytest.fixture(scope='module')
def shake():
    return Trajectory.hand_shake(seed=3, duration_s=4.0)


def turning(angular_velocity_rad_s):
    return Trajectory(Oscillation.constant(angular_velocity_rad_s), duration_s=1.0)


def relative_error(light, expected):
    return np.abs(light - expected).mean() / expected.mean()


def test_orientation_is_the_integral_of_the_angular_velocity(shake):
    time_s, step_s = np.linspace(0.1, 3.9, 200), 1e-5
    turn = shake.rotation(time_s - step_s).inv() * shake.rotation(time_s + step_s)
    np.testing.assert_allclose(turn.as_rotvec() / (2 * step_s),
                               shake.angular_velocity_rad_s(time_s), atol=1e-5)


def test_static_point_moves_against_the_camera(shake):
    point_m = np.array([1.0, 2.0, 3.0])
    time_s, step_s = np.linspace(0.1, 3.9, 200), 1e-5

    def seen(at_s):
        return shake.rotation(at_s).inv().apply(point_m - shake.position_m(at_s))

    speed = (seen(time_s + step_s) - seen(time_s - step_s)) / (2 * step_s)
    expected = (-np.cross(shake.angular_velocity_rad_s(time_s), seen(time_s))
                - shake.linear_velocity_m_s(time_s))
    np.testing.assert_allclose(speed, expected, atol=1e-5)


def test_hand_shake_has_fast_and_calm_stretches_and_starts_at_rest(shake):
    speed = np.linalg.norm(shake.angular_velocity_rad_s(np.linspace(0, 4, 4001)), axis=1)
    assert speed[0] == 0
    assert 4 < speed.max() < 25
    assert np.mean(speed < 0.5) > 0.1


def test_times_outside_the_trajectory_are_refused(shake):
    with pytest.raises(InputError, match='4.1'):
        shake.rotation(np.array([4.1]))


def test_resting_camera_takes_the_same_image_at_any_exposure(room):
    rest = turning((0.0, 0.0, 0.0))
    sharp, long = (expose(room, rest, CAMERA, 0.5, seconds) for seconds in (1e-5, 0.1))
    np.testing.assert_allclose(long, sharp, rtol=1e-4)
    assert sharp.std() > 0.2 * sharp.mean()  # there is something to see


@pytest.mark.parametrize('axis', range(3))
def test_image_moves_as_the_motion_field_says(room, axis):
    angular_rad_s, step_s = 0.5 * np.eye(3)[axis], 0.05
    before, after = (expose(room, turning(angular_rad_s), CAMERA, at_s, 1e-5)
                     for at_s in (0.5 - step_s / 2, 0.5 + step_s / 2))
    columns, rows = np.meshgrid(np.arange(160.0), np.arange(112.0))
    points = np.stack([columns, rows], axis=-1)
    flow = motion_field_matrix(points, CAMERA)[..., :3] @ (angular_rad_s * step_s)
    # The motion field is the instantaneous one; half a step to either side makes it second order.
    ahead, behind = ((points + sign * flow / 2).astype(np.float32) for sign in (1, -1))
    middle = [cv2.remap(image, at[..., 0], at[..., 1], cv2.INTER_LINEAR)[10:-10, 10:-10]
              for image, at in ((after, ahead), (before, behind))]
    wrong_way = [cv2.remap(image, at[..., 0], at[..., 1], cv2.INTER_LINEAR)[10:-10, 10:-10]
                 for image, at in ((after, behind), (before, ahead))]
    assert relative_error(*middle) < 0.05
    assert relative_error(*wrong_way) > 3 * relative_error(*middle)


@pytest.mark.parametrize('angular_rad_s', [(6.0, 0, 0), (0, -6.0, 0), (0, 0, 9.0), (3, 4, -5.0)])
def test_blur_of_a_pure_rotation_is_the_mean_of_homography_warps(room, angular_rad_s):
    trajectory, margin, zoom = turning(angular_rad_s), 40, 2
    blurred = expose(room, trajectory, CAMERA, 0.5, EXPOSURE_S)
    wide = CameraIntrinsics(zoom * (160 + 2 * margin), zoom * (112 + 2 * margin), zoom * 125.0,
                            zoom * 125.0, zoom * (79.5 + margin), zoom * (55.5 + margin))
    sharp = expose(room, trajectory, wide, 0.5, 1e-6)
    expected = np.zeros_like(blurred)
    offsets_s = EXPOSURE_S * ((np.arange(60) + 0.5) / 60 - 0.5)
    for turn in Rotation.from_rotvec(offsets_s[:, None] * np.array(angular_rad_s)).as_matrix():
        to_sharp = wide.matrix @ turn @ np.linalg.inv(CAMERA.matrix)
        expected += cv2.warpPerspective(sharp, to_sharp, (160, 112),
                                        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP) / 60
    still = expose(room, trajectory, CAMERA, 0.5, 1e-6)
    assert relative_error(blurred, expected) < 0.03
    assert relative_error(still, expected) > 3 * relative_error(blurred, expected)


def test_blur_does_not_tell_the_direction_of_time(room, shake):
    class Reversed(Trajectory):
        def __init__(self):
            pass

        def angular_velocity_rad_s(self, time_s):
            return -shake.angular_velocity_rad_s(4.0 - time_s)

        def linear_velocity_m_s(self, time_s):
            return -shake.linear_velocity_m_s(4.0 - time_s)

        def rotation(self, time_s):
            return shake.rotation(4.0 - time_s)

        def position_m(self, time_s):
            return shake.position_m(4.0 - time_s)

    forward = expose(room, shake, CAMERA, 1.7, EXPOSURE_S)
    backward = expose(room, Reversed(), CAMERA, 4.0 - 1.7, EXPOSURE_S)
    np.testing.assert_allclose(backward, forward, rtol=1e-3, atol=1e-4)


def test_rolling_shutter_exposes_each_row_at_its_own_time(room):
    trajectory, readout_s = turning((0.0, 3.0, 0.0)), 0.02
    rolling = expose(room, trajectory, CAMERA, 0.5, 1e-5, readout_s)
    for row in (5, 55, 106):
        row_s = 0.5 + readout_s * ((row + 0.5) / 112 - 0.5)
        at_its_time = expose(room, trajectory, CAMERA, row_s, 1e-5)
        assert relative_error(rolling[row], at_its_time[row]) < 0.02
    in_the_middle = expose(room, trajectory, CAMERA, 0.5, 1e-5)
    assert relative_error(rolling[5], in_the_middle[5]) > 0.05


def test_sensor_noise_grows_with_the_light_and_highlights_saturate():
    rng = np.random.default_rng(0)
    light = np.full((200, 200), 0.25, np.float32)
    image = develop(light, rng, full_well=1000.0, read_noise=10.0)
    linear = (image / 255) ** 2.2
    assert linear.mean() == pytest.approx(0.25, rel=0.01)
    assert linear.std() == pytest.approx(np.sqrt(250 + 100) / 1000, rel=0.05)
    assert develop(40 * light, rng, full_well=1e6, read_noise=0.0).min() >= 254


@pytest.mark.parametrize('seed', range(3))
def test_glide_is_slow_and_keeps_off_the_walls(seed):
    glide = Trajectory.glide(seed, 10.0)
    time_s = np.linspace(0.0, 10.0, 501)
    assert 0.1 < np.sqrt((glide.angular_velocity_rad_s(time_s) ** 2).sum(axis=1).mean()) < 0.6
    assert 0.3 < np.sqrt((glide.linear_velocity_m_s(time_s) ** 2).sum(axis=1).mean()) < 1.5
    assert (np.abs(glide.position_m(time_s)) < np.array(ROOM_SIZE_M) / 2 - 0.4).all()


@pytest.fixture(scope='module')
def recording(tmp_path_factory):
    config = RecordingConfig(seed=1, duration=2.0, width=64, height=48, focal_length=50.0)
    folder = tmp_path_factory.mktemp('room') / 'recording'
    return config, folder, write_recording(config, folder)


def test_recording_is_a_sequence_folder_with_the_true_motion(recording):
    config, folder, trajectory = recording
    opened = open_recording(folder)
    (stream,) = opened.streams
    assert opened.kind == 'sequence' and len(stream.records) == 60
    time_s = np.array([record.stamp_ns for record in stream.records]) * 1e-9
    assert np.diff(time_s) == pytest.approx(1 / 30, abs=1e-6)
    references = np.array([r.angular_velocity_reference_rad_s for r in stream.records])
    np.testing.assert_allclose(references, trajectory.angular_velocity_rad_s(time_s), atol=0.05)
    image = next(stream.read()).decode()
    assert image.shape == (48, 64, 3) and image.std() > 10


def test_gyroscope_integrates_to_the_rotation_of_the_camera(recording):
    config, folder, trajectory = recording
    time_s, *rates = np.loadtxt(folder / 'gyro.csv', delimiter=',', skiprows=1).T
    turns = Rotation.from_rotvec((np.array(rates).T[1:] + np.array(rates).T[:-1]) / 2 / 200)
    total = Rotation.identity()
    for turn in turns:
        total = total * turn
    error = (trajectory.rotation(time_s[-1:]).inv() * total).magnitude()
    assert error < 0.1  # two seconds of bias and noise; the camera itself turns by radians


def test_same_seed_gives_the_same_recording(recording, tmp_path):
    config, folder, _ = recording
    write_recording(RecordingConfig(seed=1, duration=2.0, width=64, height=48, focal_length=50.0),
                    tmp_path / 'again')
    for name in ('frames.csv', 'gyro.csv', 'frames/000030.png'):
        assert (tmp_path / 'again' / name).read_bytes() == (folder / name).read_bytes()


def test_an_existing_folder_is_not_overwritten(recording):
    config, folder, _ = recording
    with pytest.raises(DataFormatError, match='already exists'):
        write_recording(config, folder)


def test_recording_states_its_readout_time(tmp_path):
    write_recording(RecordingConfig(seed=3, duration=0.5, width=64, height=48, focal_length=50.0,
                                    readout_time=0.03), tmp_path / 'rolling')
    (stream,) = open_recording(tmp_path / 'rolling').streams
    assert {record.readout_time_s for record in stream.records} == {0.03}


def test_exposure_must_fit_into_the_frame_interval():
    with pytest.raises(ConfigError, match='exposure_time'):
        RecordingConfig(frame_rate=100.0, exposure_time=0.02)
