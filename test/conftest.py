"""Fixtures common to several tests: recordings, isolation of ROS, images of known motion."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from image_as_imu_ros.config import EstimatorConfig
from image_as_imu_ros.estimator import VisualGyroscope
from image_as_imu_ros.types import CameraIntrinsics, Frame

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='session')
def data_folder() -> Path:
    """Folder of the optional recordings; skips where there is none."""
    folder = Path(os.environ.get('IMAGE_AS_IMU_DATA', CHECKOUT.parent / 'shared' / 'data'))
    if not folder.is_dir():
        pytest.skip(f'no recordings at {folder}; set IMAGE_AS_IMU_DATA')
    return folder


@pytest.fixture(scope='session', autouse=True)
def isolated_ros(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the nodes of this test process, and of its children, to themselves."""
    os.environ['ROS_DOMAIN_ID'] = str(1 + os.getpid() % 100)
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    os.environ['ROS_LOG_DIR'] = str(tmp_path_factory.mktemp('ros_log'))


def torchrun(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a script, or `-m MODULE`, in two processes that share some work."""
    return subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2',
         *map(str, words)],
        cwd=CHECKOUT, env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(CHECKOUT)},
        capture_output=True, text=True, timeout=170, check=False)


@dataclass(frozen=True)
class BlurredFrame:
    """An image, and the true mean angular velocity over its exposure in camera axes."""

    image: np.ndarray
    start_s: float
    angular_velocity_rad_s: np.ndarray


@dataclass(frozen=True)
class BlurredSequence:
    """Images of a far, flat texture under a smooth rotation; there is no translation."""

    focal_px: float
    exposure_time_s: float
    interval_s: float
    frames: list[BlurredFrame]

    @property
    def camera_matrix(self) -> np.ndarray:
        """Matrix K of the images, (3, 3), px."""
        height, width = self.frames[0].image.shape[:2]
        return np.array([[self.focal_px, 0.0, (width - 1) / 2],
                         [0.0, self.focal_px, (height - 1) / 2], [0.0, 0.0, 1.0]])


@pytest.fixture(scope='session')
def blurred_sequence() -> BlurredSequence:
    """24 frames of 320x240 px at 30 Hz, up to 6 rad/s, exposed 10 ms."""
    return make_blurred_sequence(frames=24, seed=7)


@pytest.fixture(scope='session')
def blurred_frames(blurred_sequence: BlurredSequence) -> list[Frame]:
    """`blurred_sequence` as the core takes it."""
    return frames_of(blurred_sequence)


def frames_of(sequence: BlurredSequence) -> list[Frame]:
    """A sequence as the core takes it."""
    height, width = sequence.frames[0].image.shape[:2]
    fx, fy, cx, cy = sequence.camera_matrix[[0, 1, 0, 1], [0, 1, 2, 2]].tolist()
    exposure_s = sequence.exposure_time_s
    return [Frame(frame.image, round((frame.start_s + exposure_s / 2) * 1e9),
                  CameraIntrinsics(width, height, fx, fy, cx, cy), exposure_s)
            for frame in sequence.frames]


@pytest.fixture(scope='session')
def gyroscope() -> VisualGyroscope:
    """The shipped network on one CPU thread."""
    return VisualGyroscope(EstimatorConfig(device='cpu', threads=1))


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache of exported models that is empty."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'image_as_imu_ros' / 'onnx'


@pytest.fixture
def sequence_folder(tmp_path: Path, blurred_sequence: BlurredSequence) -> Path:
    """Sequence folder of `blurred_sequence` with a 200 Hz gyroscope in camera axes."""
    folder = tmp_path / 'swing'
    write_sequence_folder(folder, blurred_sequence, _angular_velocity)
    return folder


@pytest.fixture
def make_app_folder(tmp_path: Path) -> Callable[[list[np.ndarray]], Path]:
    """Write a folder as the StrayScanner app does, for images of 640x480 px."""
    def make(images: list[np.ndarray]) -> Path:
        folder = tmp_path / 'stray'
        folder.mkdir()
        np.savetxt(folder / 'camera_matrix.csv', [[500, 0, 318], [0, 500, 242], [0, 0, 1]],
                   delimiter=', ')
        poses = ''.join(
            f'{100 + row / 30:.9f}, {row:06d}, {0.03 * row}, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0\n'
            for row in range(len(images) + 1))
        (folder / 'odometry.csv').write_text(
            f'timestamp, frame, x, y, z, qx, qy, qz, qw\n{poses}')
        samples = ''.join(f'{99.9 + k / 100:.9f}, 0.0, 0.0, 9.8, {0.1 * k:.3f}, 0.2, -0.3\n'
                          for k in range(60))
        (folder / 'imu.csv').write_text(
            f'timestamp, a_x, a_y, a_z, alpha_x, alpha_y, alpha_z\n{samples}')
        video = cv2.VideoWriter(
            str(folder / 'rgb.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 30, (640, 480))
        for image in images:
            video.write(image)
        video.release()
        return folder
    return make


@pytest.fixture
def rewrite_bag() -> Callable[..., Path]:
    """
    Copy a bag message by message into an MCAP folder, `rewrite_bag(bag, output, change)`.

    `change(topic, message)` returns the message to write, or None for no message.
    """
    from rosbags.highlevel import AnyReader
    from rosbags.rosbag2 import StoragePlugin, Writer

    from image_as_imu_ros.evaluation.sources.rosbag import typestore

    def rewrite(bag: Path, output: Path, change: Callable) -> Path:
        store, written = typestore(), {}
        with AnyReader([bag]) as reader, Writer(
                output, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
            for connection, time_ns, data in reader.messages():
                message = change(connection.topic, reader.deserialize(data, connection.msgtype))
                if message is None:
                    continue
                if connection.topic not in written:
                    written[connection.topic] = writer.add_connection(
                        connection.topic, connection.msgtype, typestore=store)
                writer.write(written[connection.topic], time_ns,
                             store.serialize_cdr(message, connection.msgtype))
        return output
    return rewrite


def write_sequence_folder(folder: Path, sequence: BlurredSequence,
                          rate: Callable[[float], np.ndarray]) -> None:
    """Write a sequence as a folder with a 200 Hz gyroscope, which feels the given rate (rad/s)."""
    (folder / 'frames').mkdir(parents=True)
    fx, fy, cx, cy = sequence.camera_matrix[[0, 1, 0, 1], [0, 1, 2, 2]]
    rows = ['file,t_mid,exposure_s,width,height,fx,fy,cx,cy']
    for index, frame in enumerate(sequence.frames):
        name, (height, width) = f'frames/{index:04d}.jpg', frame.image.shape[:2]
        cv2.imwrite(str(folder / name), frame.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        middle_s = frame.start_s + sequence.exposure_time_s / 2
        rows.append(f'{name},{middle_s:.9f},{sequence.exposure_time_s},{width},{height},'
                    f'{fx},{fy},{cx},{cy}')
    (folder / 'frames.csv').write_text('\n'.join(rows) + '\n')
    end_s = sequence.frames[-1].start_s + 0.23
    samples = [(time_s, *rate(time_s)) for time_s in np.arange(-0.2, end_s, 0.005)]
    (folder / 'gyro.csv').write_text('t,wx,wy,wz\n' + ''.join(
        ','.join(f'{value:.9f}' for value in sample) + '\n' for sample in samples))


def make_blurred_sequence(frames: int, seed: int,
                          rate_of: Callable[[float], np.ndarray] | None = None,
                          exposure_s: float = 0.01) -> BlurredSequence:
    """
    Average a texture, warped by exact rotation homographies, over each exposure.

    :param rate_of: angular velocity in camera axes by time, (3,) rad/s; the test trajectory's
        unless told
    """
    rate_of = rate_of or _angular_velocity
    width, height, focal, interval_s, subframes = 320, 240, 300.0, 1 / 30, 32
    step_s = exposure_s / subframes
    texture = _texture(np.random.default_rng(seed), 1024)
    to_texture = np.array([[focal, 0.0, 511.5], [0.0, focal, 511.5], [0.0, 0.0, 1.0]])
    from_pixels = np.linalg.inv(
        np.array([[focal, 0.0, (width - 1) / 2], [0.0, focal, (height - 1) / 2],
                  [0.0, 0.0, 1.0]]))
    sequence = BlurredSequence(focal, exposure_s, interval_s, [])
    rotation = np.eye(3)  # from camera to texture axes
    time_s = 0.0
    for index in range(frames):
        start_s = index * interval_s
        while time_s < start_s - step_s / 2:
            rotation = rotation @ _rotation(rate_of(time_s) * step_s)
            time_s += step_s
        light, rates = np.zeros((height, width, 3)), []
        for _ in range(subframes):
            rate = rate_of(time_s + step_s / 2)
            middle = rotation @ _rotation(rate * step_s / 2)
            light += cv2.warpPerspective(
                texture, to_texture @ middle @ from_pixels, (width, height),
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT)
            rates.append(rate)
            rotation = rotation @ _rotation(rate * step_s)
            time_s += step_s
        image = np.round(255 * (light / subframes) ** (1 / 2.2)).astype(np.uint8)
        sequence.frames.append(BlurredFrame(image, start_s, np.mean(rates, axis=0)))
    return sequence


def _angular_velocity(time_s: float) -> np.ndarray:
    """Rate of the test trajectory in camera axes, rad/s."""
    return np.array([3.0 * np.cos(9.0 * time_s), 4.0 * np.cos(7.0 * time_s + 0.5),
                     2.0 * np.cos(11.0 * time_s + 1.0)])


def _rotation(vector_rad: np.ndarray) -> np.ndarray:
    return cv2.Rodrigues(vector_rad)[0]


def _texture(random: np.random.Generator, size_px: int) -> np.ndarray:
    """Linear light in 0..1: overlapping discs (dead leaves) with a grain, (size, size, 3)."""
    texture = np.zeros((size_px, size_px, 3), np.float32)
    for _ in range(8000):
        radius = int(np.clip(3 / random.random(), 3, 40))
        centre = tuple(int(value) for value in random.integers(0, size_px, 2))
        colour = np.clip(random.random() + 0.1 * random.standard_normal(3), 0, 1)
        cv2.circle(texture, centre, radius, colour.tolist(), -1, cv2.LINE_AA)
    grain = random.standard_normal((size_px // 3, size_px // 3, 1)).astype(np.float32)
    texture += 0.15 * cv2.resize(grain, (size_px, size_px))[..., None]
    return np.clip(texture, 0, 1) ** 2.2
