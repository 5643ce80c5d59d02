"""A planted mounting, offset, bias and scale of a gyroscope are found again."""

import dataclasses

import numpy as np
import pytest
import yaml
from scipy.spatial.transform import Rotation

from image_as_imu_ros.cli.main import main
from image_as_imu_ros.errors import DataFormatError, SynchronizationError
from image_as_imu_ros.evaluation.calibration import Calibration, calibrate
from image_as_imu_ros.evaluation.imu_health import judge_track
from image_as_imu_ros.evaluation.motion_track import GapRotation, track_motion
from image_as_imu_ros.evaluation.sources import open_recording
from image_as_imu_ros.evaluation.sources.recording import Gyroscope
from image_as_imu_ros.synthesis.trajectory import Oscillation, Trajectory

DURATION_S = 10.0
START_NS = 1_700_000_000_000_000_000


@dataclasses.dataclass(frozen=True)
class Planted:
    """What is done to a gyroscope."""

    rotation: Rotation
    offset_s: float
    bias_rad_s: np.ndarray
    scale: np.ndarray

    def gyroscope(self, time_s: np.ndarray, rates_rad_s: np.ndarray) -> Gyroscope:
        """The gyroscope's record of the camera's rates (N, 3)."""
        readings = self.scale * self.rotation.apply(rates_rad_s) + self.bias_rad_s
        return Gyroscope(START_NS + np.rint((time_s + self.offset_s) * 1e9).astype(np.int64),
                         readings)

    def check(self, found: Calibration, degrees: float, offset_s: float, bias_rad_s: float,
              scale: float) -> None:
        """Compare with tolerances."""
        error = Rotation.from_matrix(found.R_gyro_camera) * self.rotation.inv()
        assert np.degrees(error.magnitude()) < degrees
        assert abs(found.time_offset_s - self.offset_s) < offset_s
        np.testing.assert_allclose(found.bias_rad_s, self.bias_rad_s, atol=bias_rad_s)
        np.testing.assert_allclose(found.scale, self.scale, atol=scale)


SOUND = Planted(Rotation.identity(), 0.0, np.zeros(3), np.ones(3))
PLANTED = [
    Planted(Rotation.from_euler('xyz', [170.0, -40.0, 75.0], degrees=True), 0.0235,
            np.array([0.05, -0.12, 0.02]), np.array([0.93, 1.06, 1.02])),
    Planted(Rotation.from_euler('xyz', [-90.0, 5.0, 91.0], degrees=True), -0.17,
            np.array([-0.4, 0.0, 0.3]), np.array([1.2, 0.8, 1.0]))]


def gaps_of(trajectory: Trajectory, seed: int) -> tuple[GapRotation, ...]:
    """Rotations between images at 30 Hz as they are measured: noise, and 5 % nonsense."""
    rng = np.random.default_rng(seed)
    mids_s = np.arange(1 / 60, trajectory.duration_s, 1 / 30)
    orientations = trajectory.rotation(mids_s)
    turns = (orientations[:-1].inv() * orientations[1:]).as_rotvec()
    sigma = 0.0005 + 0.006 * np.linalg.norm(turns, axis=1, keepdims=True)
    turns = turns + sigma * rng.standard_normal(turns.shape)
    wrong = rng.random(len(turns)) < 0.05
    turns[wrong] += 0.1 * rng.standard_normal((int(wrong.sum()), 3))
    stamps_ns = (START_NS + np.rint(mids_s * 1e9)).astype(np.int64).tolist()
    return tuple(GapRotation(start, end, 0.0, turn, float(s) ** 2 * np.eye(3))
                 for start, end, turn, s in zip(stamps_ns, stamps_ns[1:], turns, sigma[:, 0]))


@pytest.fixture(scope='module')
def trajectory():
    return Trajectory.hand_shake(4, DURATION_S)


@pytest.fixture(scope='module')
def samples(trajectory):
    """Times and rates of a gyroscope with noise, in the camera's axes."""
    time_s = np.arange(0.0, DURATION_S, 1 / 200)
    noise = 0.01 * np.random.default_rng(0).standard_normal((len(time_s), 3))
    return time_s, trajectory.angular_velocity_rad_s(time_s) + noise


@pytest.mark.parametrize('planted', PLANTED, ids=['much', 'more'])
def test_planted_calibration_is_found(trajectory, samples, planted: Planted):
    found = calibrate(planted.gyroscope(*samples), gaps_of(trajectory, seed=1))
    planted.check(found, 0.5, 1e-3, 0.01, 0.01)
    assert 0.02 < found.outlier_share < 0.1 and not found.warnings


def test_deviations_state_the_error(trajectory, samples):
    planted, errors = PLANTED[0], []
    for seed in range(2, 5):
        found = calibrate(planted.gyroscope(*samples), gaps_of(trajectory, seed))
        turn = (Rotation.from_matrix(found.R_gyro_camera) * planted.rotation.inv()).as_rotvec()
        errors.append(np.concatenate([
            turn / found.rotation_deviation_rad,
            [(found.time_offset_s - planted.offset_s) / found.time_offset_deviation_s],
            (found.bias_rad_s - planted.bias_rad_s) / found.bias_deviation_rad_s,
            (found.scale - planted.scale) / found.scale_deviation]))
    assert 0.4 < np.sqrt(np.mean(np.square(errors))) < 1.6
    assert np.abs(errors).max() < 4.0


def test_corrected_gyroscope_reads_what_the_camera_does(trajectory, samples):
    planted = PLANTED[0]
    found = calibrate(planted.gyroscope(*samples), gaps_of(trajectory, seed=1))
    corrected = found.corrected(planted.gyroscope(*samples))
    np.testing.assert_allclose((corrected.t_ns - START_NS) * 1e-9, samples[0], atol=3e-4)
    np.testing.assert_allclose(corrected.angular_velocity_rad_s @ found.R_gyro_camera,
                               samples[1], atol=0.15)


def test_mirrored_gyroscope_is_refused(trajectory, samples):
    time_s, rates = samples
    mirrored = SOUND.gyroscope(time_s, rates * [1.0, -1.0, 1.0])
    with pytest.raises(DataFormatError, match='mirrored'):
        calibrate(mirrored, gaps_of(trajectory, seed=1))


def test_other_clock_is_named(trajectory, samples):
    later = dataclasses.replace(SOUND, offset_s=100.0).gyroscope(*samples)
    with pytest.raises(SynchronizationError, match='0 pairs of images, of 299'):
        calibrate(later, gaps_of(trajectory, seed=1))


def test_one_axis_alone_leaves_the_rest_uncertain():
    shake = Oscillation.random(np.random.default_rng(0), (3.0, 1e-6, 1e-6), (0.5, 8.0))
    trajectory = Trajectory(shake, DURATION_S)
    time_s = np.arange(0.0, DURATION_S, 1 / 200)
    gyroscope = SOUND.gyroscope(time_s, trajectory.angular_velocity_rad_s(time_s))
    found = calibrate(gyroscope, gaps_of(trajectory, seed=1))
    assert any('rotation is uncertain' in warning for warning in found.warnings)
    assert any('scale of y is uncertain' in warning for warning in found.warnings)


def test_command_finds_what_was_planted_and_writes_its_files(sequence_folder, tmp_path, capsys):
    planted = Planted(Rotation.from_euler('xyz', [80.0, -20.0, 130.0], degrees=True), 0.012,
                      np.array([0.03, -0.05, 0.08]), np.array([1.05, 0.96, 1.0]))
    time_s = np.arange(-0.5, 1.5, 0.005)
    # the motion of the fixture's images
    rates = np.stack([3.0 * np.cos(9.0 * time_s), 4.0 * np.cos(7.0 * time_s + 0.5),
                      2.0 * np.cos(11.0 * time_s + 1.0)], axis=1)
    gyroscope = planted.gyroscope(time_s, rates)
    np.savetxt(sequence_folder / 'gyro.csv', np.column_stack([
        (gyroscope.t_ns - START_NS) * 1e-9, gyroscope.angular_velocity_rad_s]), '%.9f', ',',
        header='t,wx,wy,wz', comments='')
    output = tmp_path / 'out'
    assert main(['calibrate', str(sequence_folder), '--output', str(output),
                 '--imu-frame', 'chip']) == 0
    printed = capsys.readouterr().out
    own, kalibr, transform = (yaml.safe_load((output / name).read_text()) for name in (
        'calibration.yaml', 'camchain-imucam.yaml', 'static_transform.yaml'))
    rotation = Rotation.from_matrix(own['R_imu_camera'])
    assert np.degrees((rotation * planted.rotation.inv()).magnitude()) < 1.0
    assert abs(own['time_offset_s'] - planted.offset_s) < 0.001
    np.testing.assert_allclose(own['bias_rad_s'], planted.bias_rad_s, atol=0.04)
    np.testing.assert_allclose(own['scale'], planted.scale, atol=0.03)
    camera = kalibr['cam0']
    np.testing.assert_allclose(np.array(camera['T_cam_imu'])[:3, :3],
                               np.array(own['R_imu_camera']).T)
    assert camera['timeshift_cam_imu'] == own['time_offset_s']
    assert (camera['intrinsics'][0], camera['resolution']) == (300.0, [320, 240])
    assert (transform['frame_id'], transform['child_frame_id']) == ('chip', 'camera_optical_frame')
    np.testing.assert_allclose(
        Rotation.from_quat([transform['rotation'][axis] for axis in 'xyzw']).as_matrix(),
        own['R_imu_camera'], atol=1e-6)
    assert 'static_transform_publisher' in printed and 'time offset  +1' in printed


def test_command_needs_a_gyroscope(sequence_folder, capsys):
    (sequence_folder / 'gyro.csv').unlink()
    table = sequence_folder / 'frames.csv'
    header, *rows = table.read_text().splitlines()
    table.write_text('\n'.join([f'{header},wx,wy,wz', *(f'{row},1,2,3' for row in rows)]) + '\n')
    assert main(['calibrate', str(sequence_folder)]) == 1
    assert 'has no gyroscope to calibrate' in capsys.readouterr().err


@pytest.mark.timeout(600)  # 176 images, on a busy machine
def test_phone_is_mounted_as_its_maker_says_and_healthy(data_folder, gyroscope):
    recording = open_recording(data_folder / 'strayscanner_dining')
    track = track_motion(recording, gyroscope)
    found = calibrate(recording.gyroscope, track.gaps)
    (stream,) = recording.streams
    error = Rotation.from_matrix(found.R_gyro_camera @ stream.R_gyro_camera.T).magnitude()
    assert np.degrees(error) < 2.0  # measured: 1.0
    assert abs(found.time_offset_s) < 0.005  # measured: -1.6 ms
    np.testing.assert_allclose(found.scale, 1.0, atol=0.06)
    assert judge_track(recording.gyroscope, track, stream.R_gyro_camera).summary == 'ok'
