"""Each fault of a gyroscope is named, and nothing else; without one there is no alarm."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from image_as_imu_ros.evaluation.imu_health import judge
from image_as_imu_ros.synthesis.trajectory import Trajectory

DURATION_S = 12.0
IMAGE_RATE_HZ, GYRO_RATE_HZ = 30.0, 200.0
START_NS = 1_700_000_000_000_000_000


class Scene:
    """
    A shaken camera beside a gyroscope.

    The camera errs as the stream does on recordings: 0.25 rad/s and 6 % of the rate, alike at
    neighbouring images, 5 % too fast about x and y, 2.5 ms early, and sometimes grossly.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        trajectory = Trajectory.hand_shake(seed, DURATION_S)
        gyro_s = np.arange(0.0, DURATION_S, 1 / GYRO_RATE_HZ)
        camera_s = np.arange(0.5, DURATION_S - 0.5, 1 / IMAGE_RATE_HZ)
        self.gyro_ns = START_NS + np.rint(gyro_s * 1e9).astype(np.int64)
        self.camera_ns = START_NS + np.rint(camera_s * 1e9).astype(np.int64)
        self.gyro = trajectory.angular_velocity_rad_s(gyro_s) \
            + 0.01 * rng.standard_normal((len(gyro_s), 3))
        true = trajectory.angular_velocity_rad_s(camera_s + 0.0025) * [1.05, 1.05, 1.0]
        sigma = 0.2 + 0.06 * np.linalg.norm(true, axis=1, keepdims=True)
        noise = rng.standard_normal(true.shape)
        for row in range(1, len(noise)):
            noise[row] = 0.5 * noise[row - 1] + np.sqrt(0.75) * noise[row]
        self.camera = true + sigma * noise
        wrong = rng.random(len(true)) < 0.02
        self.camera[wrong] += 5.0 * rng.standard_normal((int(wrong.sum()), 3))
        self.covariance = sigma[..., None] ** 2 * np.eye(3)

    def judge(self):
        """What the monitor says."""
        return judge(self.gyro_ns, self.gyro, self.camera_ns, self.camera, self.covariance)


def swap_axes(scene):
    scene.gyro = scene.gyro[:, [1, 0, 2]]


def flip_axis(scene):
    scene.gyro = scene.gyro * [1.0, 1.0, -1.0]


def mistake_the_frame(scene):
    scene.gyro = scene.gyro @ np.array([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, -1.0]]).T


def turn(scene):
    scene.gyro = Rotation.from_rotvec([0.0, 0.35, 0.0]).apply(scene.gyro)


def scale(scene):
    scene.gyro = scene.gyro * [1.0, 1.3, 1.0]


def bias(scene):
    scene.gyro = scene.gyro + [0.0, 0.0, -0.3]


def get_stuck(scene):
    scene.gyro[800:1200, 1] = scene.gyro[800, 1]


def delay(scene):
    scene.gyro_ns = scene.gyro_ns + 30_000_000


def drop_out(scene):
    kept = np.ones(len(scene.gyro), dtype=bool)
    kept[700:760] = kept[1500:1530] = False
    scene.gyro, scene.gyro_ns = scene.gyro[kept], scene.gyro_ns[kept]


def become_nan(scene):
    scene.gyro[300:303, 1] = np.nan


FAULTS = [
    (swap_axes, 'axes', 'swapped: x carries y, y carries x'),
    (flip_axis, 'axes', 'flipped: z carries -z'),
    (mistake_the_frame, 'axes', 'swapped: x carries -y, y carries -x, z carries -z'),
    (turn, 'rotation', 'deg from what the transform says'), (scale, 'scale', 'y reads 1.2'),
    (bias, 'bias', 'z is biased by -0.'), (get_stuck, 'stuck', 'y is stuck'),
    (delay, 'time offset', 'ms late'), (drop_out, 'dropouts', '2 dropouts of up to 305 ms'),
    (become_nan, 'not finite', '3 of 2400 readings are NaN')]


@pytest.mark.parametrize('seed', range(8))
def test_a_sound_gyroscope_raises_no_alarm(seed: int):
    health = Scene(seed).judge()
    assert health.summary == 'ok' and health.conclusive and not health.faults
    np.testing.assert_allclose(health.scale, [1 / 1.05, 1 / 1.05, 1.0], atol=0.06)
    assert np.abs(health.bias_rad_s).max() < 0.1
    assert abs(health.time_offset_s) < 0.006


@pytest.mark.parametrize('seed', (0, 5))
@pytest.mark.parametrize(('spoil', 'kind', 'text'), FAULTS, ids=[f[0].__name__ for f in FAULTS])
def test_each_fault_is_named_and_no_other(spoil, kind: str, text: str, seed: int):
    scene = Scene(seed)
    spoil(scene)
    health = scene.judge()
    assert list(health.faults) == [kind]
    assert text in health.summary


def test_several_faults_at_once_are_all_named():
    scene = Scene(1)
    for spoil in (swap_axes, bias, delay, drop_out):
        spoil(scene)
    assert set(scene.judge().faults) == {'axes', 'bias', 'time offset', 'dropouts'}


def test_rest_and_few_images_prove_nothing():
    scene = Scene(2)
    scene.camera = 0.05 * scene.camera
    scene.gyro = 0.05 * scene.gyro
    health = scene.judge()
    assert not health.conclusive and 'too little motion' in health.summary
    scene = Scene(2)
    scene.camera_ns, scene.camera, scene.covariance = (
        values[:20] for values in (scene.camera_ns, scene.camera, scene.covariance))
    assert not scene.judge().conclusive
    nothing = np.zeros(0, dtype=np.int64), np.zeros((0, 3))
    assert not judge(*nothing, *nothing, np.zeros((0, 3, 3))).conclusive


def test_error_is_the_difference_of_the_two():
    scene = Scene(3)
    scene.camera = np.stack([np.interp(scene.camera_ns, scene.gyro_ns, axis)
                             for axis in scene.gyro.T], axis=1) + [0.1, 0.0, -0.2]
    np.testing.assert_allclose(scene.judge().error_rms_rad_s, [0.1, 0.0, 0.2], atol=1e-4)
