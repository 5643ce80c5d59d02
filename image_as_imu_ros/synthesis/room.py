"""A textured room filmed by a shaken camera with a gyroscope: recordings whose motion is known."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from image_as_imu_ros.config import check, setting
from image_as_imu_ros.errors import ConfigError
from image_as_imu_ros.synthesis.sequence_folder import SequenceFolder
from image_as_imu_ros.synthesis.textures import GAMMA, procedural_texture, tinted
from image_as_imu_ros.synthesis.trajectory import Trajectory
from image_as_imu_ros.types import CameraIntrinsics

TEXEL_M = 0.004
ROOM_SIZE_M = (5.12, 2.816, 4.096)
"""Extent along the world axes x (right), y (down) and z (ahead); the origin is its centre."""
MIP_LEVELS = 4
SUPERSAMPLING = 2
"""Rays per pixel and image axis, unless told otherwise."""


MOTIONS = {'shake': Trajectory.hand_shake, 'glide': Trajectory.glide}


@dataclass(frozen=True)
class RecordingConfig:
    """A simulated recording: camera, sensor noise, gyroscope."""

    seed: int = setting(0, 'seed of room, motion and noise', low=0)
    motion: str = setting('shake', 'of a hand that shakes the camera, or of a robot that glides',
                          one_of=tuple(MOTIONS))
    duration: float = setting(10.0, 'length of the recording', unit='s', low=0.5, high=3600.0)
    frame_rate: float = setting(30.0, 'images per second', unit='Hz', low=1.0, high=240.0)
    exposure_time: float = setting(0.01, 'exposure time', unit='s', low=1e-5, high=0.1)
    readout_time: float = setting(
        0.0, 'time from the first to the last row of a rolling shutter; 0 for global', unit='s',
        low=0.0, high=0.1)
    width: int = setting(320, 'image width', unit='px', low=32, high=4096)
    height: int = setting(224, 'image height', unit='px', low=32, high=4096)
    focal_length: float = setting(250.0, 'focal length', unit='px', low=10.0, high=10000.0)
    full_well: float = setting(4000.0, 'electrons of a saturated pixel', low=10.0)
    read_noise: float = setting(5.0, 'read noise in electrons', low=0.0)
    gyro_rate: float = setting(200.0, 'gyroscope samples per second', unit='Hz',
                               low=10.0, high=10000.0)
    gyro_noise: float = setting(0.01, 'gyroscope noise of a sample', unit='rad/s', low=0.0)
    gyro_bias: float = setting(0.01, 'rms of the constant bias of the gyroscope', unit='rad/s',
                               low=0.0)

    def __post_init__(self) -> None:
        check(self)
        # rows are exposed while others are read, so that each time must fit, not their sum
        if max(self.exposure_time, self.readout_time) > 1 / self.frame_rate:
            raise ConfigError(
                f'exposure_time {self.exposure_time} s or readout_time {self.readout_time} s does '
                f'not fit into a frame at {self.frame_rate} Hz; shorten it')

    @property
    def intrinsics(self) -> CameraIntrinsics:
        """Pinhole intrinsics with the principal point in the middle."""
        return CameraIntrinsics(self.width, self.height, self.focal_length, self.focal_length,
                                (self.width - 1) / 2, (self.height - 1) / 2)


class Room:
    """
    A closed box whose six sides carry random paint, print and lamps.

    :param seed: another seed, another room
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        x, y, z = np.rint(np.array(ROOM_SIZE_M) / TEXEL_M).astype(int)
        shapes = [(y, z), (y, z), (z, x), (z, x), (y, x), (y, x)]  # rows, columns of -x +x -y ...
        sides = [_paint_side(rng, shape) for shape in shapes]
        _light_ceiling(rng, sides[2])
        self._atlas, self._tops = _stack_mipmaps(sides)

    def radiance(self, x: np.ndarray, y: np.ndarray, rotation_world_camera: np.ndarray,
                 position_m: np.ndarray) -> np.ndarray:
        """
        Look from inside the room along the rays (x, y, 1), camera axes.

        :param x: (W,), evenly spaced, increasing
        :param y: (H,)
        :param rotation_world_camera: (H, 3, 3), one per row, or (1, 3, 3) for all of them
        :param position_m: (H, 3) or (1, 3), in the world, inside the room
        :returns: linear RGB, (H, W, 3) float32; 1 saturates the sensor
        """
        x, y = x.astype(np.float32), y.astype(np.float32)[:, None]
        rotation = rotation_world_camera.astype(np.float32)[..., None]
        position = position_m.astype(np.float32)[..., None]
        half = np.array(ROOM_SIZE_M, np.float32) / 2
        rays = [rotation[:, i, 0] * x + (rotation[:, i, 1] * y + rotation[:, i, 2])
                for i in range(3)]
        # A ray meets the side towards which it covers the distance soonest.
        pace = [np.maximum(ray / (h - position[:, i]), ray / (-h - position[:, i]))
                for i, (ray, h) in enumerate(zip(rays, half))]
        soonest = np.maximum(np.maximum(pace[0], pace[1]), pace[2])
        meets_x, meets_y = pace[0] == soonest, pace[1] == soonest
        across = np.where(meets_x, rays[0], np.where(meets_y, rays[1], rays[2]))
        side = np.where(meets_x, 0, np.where(meets_y, 2, 4)) + (across > 0)
        depth = 1 / soonest
        hits = [position[:, i] + depth * ray + h for i, (ray, h) in enumerate(zip(rays, half))]

        # Distance between neighbouring rays on the side, evened out over both directions.
        slant = np.abs(across) / np.sqrt(x**2 + y**2 + 1)
        footprint = depth * ((x[1] - x[0]) / TEXEL_M) / np.sqrt(slant)
        level = np.zeros(side.shape, np.int64)
        for coarser in range(1, MIP_LEVELS):
            level += footprint > 2 ** (coarser - 0.5)
        scale = np.take(1 / (TEXEL_M * 2 ** np.arange(MIP_LEVELS, dtype=np.float32)), level)
        columns = np.where(meets_x, hits[2], hits[0]) * scale + 0.5
        rows = np.where(meets_y & ~meets_x, hits[2], hits[1]) * scale
        rows += np.take(self._tops, level * 6 + side)
        return cv2.remap(self._atlas, columns, rows, cv2.INTER_LINEAR)


def expose(room: Room, trajectory: Trajectory, intrinsics: CameraIntrinsics, mid_s: float,
           exposure_time_s: float, readout_time_s: float = 0.0,
           supersampling: int = SUPERSAMPLING) -> np.ndarray:
    """
    Gather the light of one exposure, each row at its own time where the shutter rolls.

    Instants are spaced so that nothing moves more than a pixel from one to the next.

    :param intrinsics: pinhole
    :param mid_s: middle of the exposure, of the middle row where the shutter rolls
    :param supersampling: rays per pixel and image axis
    :returns: linear RGB, (H, W, 3) float32; 1 saturates the sensor
    """
    width, height = intrinsics.width_px * supersampling, intrinsics.height_px * supersampling
    x = ((np.arange(width) + 0.5) / supersampling - 0.5 - intrinsics.cx_px) / intrinsics.fx_px
    y = ((np.arange(height) + 0.5) / supersampling - 0.5 - intrinsics.cy_px) / intrinsics.fy_px
    rows_s = mid_s + readout_time_s * ((np.arange(height) + 0.5) / height - 0.5)
    if readout_time_s == 0:
        rows_s = rows_s[:1]
    span_s = exposure_time_s + readout_time_s
    speed = _fastest_px_s(trajectory, intrinsics, mid_s + span_s * np.linspace(-0.5, 0.5, 9))
    instants = int(np.ceil(speed * exposure_time_s)) + 1
    light = np.zeros((height, width, 3), np.float32)
    for offset_s in exposure_time_s * ((np.arange(instants) + 0.5) / instants - 0.5):
        time_s = rows_s + offset_s
        light += room.radiance(x, y, trajectory.rotation(time_s).as_matrix(),
                               trajectory.position_m(time_s))
    light /= instants
    return cv2.resize(light, (intrinsics.width_px, intrinsics.height_px),
                      interpolation=cv2.INTER_AREA)


def develop(light: np.ndarray, rng: np.random.Generator, full_well: float,
            read_noise: float) -> np.ndarray:
    """
    Turn light into an 8-bit image: saturation, shot and read noise, display gamma.

    :param light: linear, 1 saturates; any shape
    :param full_well: electrons of a saturated pixel
    :param read_noise: electrons
    :returns: uint8 of the same shape
    """
    electrons = np.minimum(light, 1) * full_well
    noise = rng.standard_normal(light.shape, np.float32) * np.sqrt(electrons + read_noise**2)
    signal = np.clip((electrons + noise) / full_well, 0, 1)
    return np.rint(255 * signal ** (1 / GAMMA)).astype(np.uint8)


def write_recording(config: RecordingConfig, folder: Path) -> Trajectory:
    """
    Film a room and write a sequence folder, which appears only when it is complete.

    `frames.csv` carries each exposure's mean angular and linear velocity in camera axes,
    `gyro.csv` the noisy gyroscope, also in camera axes.

    :param folder: must not exist
    :returns: the true motion; time 0 is that of both files
    :raises DataFormatError: if the folder exists
    """
    rng = np.random.default_rng(config.seed)
    bias = config.gyro_bias * rng.standard_normal(3)
    with SequenceFolder(folder, 'simulated room', {
            'settings': dataclasses.asdict(config), 'gyro_bias_rad_s': bias.tolist(),
            'readout_time_s': config.readout_time,
            }) as sequence:
        room = Room(config.seed)
        trajectory = MOTIONS[config.motion](config.seed, config.duration)
        period_s = 1 / config.frame_rate
        margin_s = max(period_s, config.exposure_time + config.readout_time) / 2
        mids_s = np.arange(margin_s, config.duration - margin_s + 1e-9, period_s)
        intrinsics = config.intrinsics
        for mid_s in tqdm(mids_s, 'rendering', unit='frame'):
            light = expose(room, trajectory, intrinsics, mid_s, config.exposure_time,
                           config.readout_time)
            image = develop(light, rng, config.full_well, config.read_noise)
            within_s = mid_s + config.exposure_time * np.linspace(-0.5, 0.5, 21)
            sequence.add(image, mid_s, config.exposure_time, intrinsics,
                         trajectory.angular_velocity_rad_s(within_s).mean(axis=0),
                         trajectory.linear_velocity_m_s(within_s).mean(axis=0))
        gyro_s = np.arange(0, config.duration, 1 / config.gyro_rate)
        rates = trajectory.angular_velocity_rad_s(gyro_s) + bias
        rates += config.gyro_noise * rng.standard_normal(rates.shape)
        np.savetxt(sequence.partial / 'gyro.csv', np.column_stack([gyro_s, rates]), '%.6f', ',',
                   header='t,wx,wy,wz', comments='')
    return trajectory


def _fastest_px_s(trajectory: Trajectory, intrinsics: CameraIntrinsics,
                  time_s: np.ndarray) -> float:
    """Bound of the image velocity anywhere in the image at the given times, px/s."""
    corner = np.hypot(intrinsics.width_px / intrinsics.fx_px,
                      intrinsics.height_px / intrinsics.fy_px) / 2
    angular = trajectory.angular_velocity_rad_s(time_s)
    linear = np.linalg.norm(trajectory.linear_velocity_m_s(time_s), axis=1)
    clearance_m = (np.array(ROOM_SIZE_M) / 2 - np.abs(trajectory.position_m(time_s))).min()
    speed = (np.hypot(angular[:, 0], angular[:, 1]) * (1 + corner**2)
             + np.abs(angular[:, 2]) * corner + linear / clearance_m * (1 + corner**2))
    return float(speed.max()) * max(intrinsics.fx_px, intrinsics.fy_px)


def _paint_side(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Hang tinted patterns of several sizes and small lamps; (rows, columns, 3) linear float32."""
    rows, columns = shape
    side = _tinted_pattern(rng, max(shape))[:rows, :columns]
    for size in rng.integers(120, 500, 8):
        picture = _tinted_pattern(rng, int(size))[:int(size * rng.uniform(0.5, 1))]
        top = rng.integers(0, rows - picture.shape[0])
        left = rng.integers(0, columns - picture.shape[1])
        side[top:top + picture.shape[0], left:left + picture.shape[1]] = picture
    for centre in rng.integers((0, 0), (columns, rows), (4, 2)):
        cv2.circle(side, centre.tolist(), int(rng.integers(2, 9)), [rng.uniform(4, 30)] * 3, -1)
    return side


def _tinted_pattern(rng: np.random.Generator, size: int) -> np.ndarray:
    return tinted(rng, procedural_texture(rng, size))


def _light_ceiling(rng: np.random.Generator, ceiling: np.ndarray) -> None:
    """Hang three bright panels."""
    for centre in rng.uniform(0.15, 0.85, (3, 2)) * ceiling.shape[1::-1]:
        box = (centre.tolist(), rng.uniform(60, 220, 2).tolist(), rng.uniform(0, 180))
        cv2.fillPoly(ceiling, [cv2.boxPoints(box).astype(int)], [rng.uniform(3, 8)] * 3)


def _stack_mipmaps(sides: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """
    Put all sides at all resolutions into one image, so that a single look-up serves them.

    :returns: that image, and (6 * MIP_LEVELS,), the row in it where side s at level l begins
        under index 6 l + s; the first column is 0.5 for all
    """
    tiles, tops, top = [], [], 0
    widest = max(side.shape[1] for side in sides)
    for level in range(MIP_LEVELS):
        for side in sides:
            rows, columns = side.shape[0] >> level, side.shape[1] >> level
            tile = cv2.resize(side, (columns, rows), interpolation=cv2.INTER_AREA)
            tiles.append(cv2.copyMakeBorder(tile, 1, 1, 1, 1 + widest - columns,
                                            cv2.BORDER_REPLICATE))
            tops.append(top + 0.5)
            top += rows + 2
    return np.concatenate(tiles), np.array(tops, np.float32)
