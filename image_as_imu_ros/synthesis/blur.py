"""
Motion-blurred photographs with their exact motion.

A `Shot` holds all that decides on an image: scene, camera, path and sensor. Many are planned on
CPUs, each by a random generator of its own; `take` makes images of a batch of them, on any
device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation

from image_as_imu_ros.errors import ConfigError
from image_as_imu_ros.geometry.motion_field import motion_field_matrix, pixel_grid
from image_as_imu_ros.synthesis.exposure import (
    FlatScene,
    homographies,
    integrate,
    row_times_s,
    views,
)
from image_as_imu_ros.synthesis.motion import CameraPath, sample_exposure, sample_path
from image_as_imu_ros.synthesis.sensor import (
    SensorConfig,
    SensorParameters,
    develop,
    draw,
)
from image_as_imu_ros.synthesis.textures import LAMP, TONES, Texture
from image_as_imu_ros.types import CameraIntrinsics

TILT_STD = 0.35
NEAREST, FARTHEST = 2.0, 0.5
"""Bounds of the inverse depth in the corners, times that on the optical axis."""
AHEAD, NEARLY_BESIDE = 0.2, 0.25
"""Least cosine between the optical axis at mid-exposure and what rows read earlier or later see,
and least inverse depth of it, times that on the axis."""
TEXELS_PER_PX = (0.9, 3.2)
"""Of the finest level. Mostly reduced, as cameras' images are before the network sees them."""
COARSEST = 1.5
"""Texels of the level that is used, per pixel, at most; it has half of that at least."""
PANORAMA_OVERSAMPLING = 1.25
PITCH_STD_RAD, ROLL_STD_RAD = 0.35, 0.3
TRIES = 6
MARGIN_PX = 3
MAX_SCENE_PX = 4096


@dataclass(frozen=True)
class Labels:
    """What is known of a photograph's motion; cells are of some stride, at mid-exposure."""

    motion: np.ndarray
    """(6,), w T in rad and v T / d, means over the exposure of the middle row; d is a distance of
    reference: along the optical axis, or the median."""
    field: np.ndarray
    """(h, w, 2, 6) float32, maps `motion` to the displacement over the exposure at the cells, px:
    the motion field matrix, translation scaled by `inverse_depth`."""
    flow_px: np.ndarray
    """(h, w, 2), displacement over each cell's own exposure: `field @ motion`, unless the shutter
    rolls."""
    inverse_depth: np.ndarray
    """(h, w), d over the depth, in the view of each row's mid-exposure."""


@dataclass(frozen=True)
class Shot:
    """A photograph that is planned."""

    scene: FlatScene | None
    light: np.ndarray | None
    """(H, W) float32, gathered already, where there is no flat scene."""
    intrinsics: CameraIntrinsics
    path: CameraPath
    """Motion in time: mean velocities are `path.mean_motion`, resolved ones `path.velocity`."""
    sensor: SensorParameters
    labels: Labels


@dataclass(frozen=True)
class Sample:
    """One synthetic image with its motion."""

    rgb: np.ndarray
    """(H, W, 3) uint8, as a camera would encode it; all channels alike if it sees no colour."""
    intrinsics: CameraIntrinsics
    path: CameraPath
    sensor: SensorParameters
    labels: Labels

    @cached_property
    def gray(self) -> np.ndarray:
        """(H, W) uint8."""
        return cv2.cvtColor(self.rgb, cv2.COLOR_RGB2GRAY)

    @property
    def motion(self) -> np.ndarray:
        """See `Labels.motion`."""
        return self.labels.motion

    @property
    def field(self) -> np.ndarray:
        """See `Labels.field`."""
        return self.labels.field

    @property
    def flow_px(self) -> np.ndarray:
        """See `Labels.flow_px`."""
        return self.labels.flow_px


def take(shots: Sequence[Shot], device: str | torch.device = 'cpu') -> list[Sample]:
    """
    Take photographs of one size.

    :raises ConfigError: if one is to be H.264 coded and PyAV is not installed
    """
    height, width = shots[0].intrinsics.height_px, shots[0].intrinsics.width_px
    light = torch.empty((len(shots), 3, height, width), device=device)
    flat = [i for i, shot in enumerate(shots) if shot.scene is not None]
    if flat:
        exposures = [views(shots[i].scene, shots[i].intrinsics, shots[i].path, shots[i].sensor)
                     for i in flat]
        light[flat] = integrate(exposures, width, height, device)
    for i, shot in enumerate(shots):
        if shot.light is not None:
            light[i] = torch.from_numpy(shot.light).to(device)
    images = develop(light, [shot.intrinsics for shot in shots], [shot.sensor for shot in shots])
    images = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return [Sample(image, shot.intrinsics, shot.path, shot.sensor, shot.labels)
            for image, shot in zip(images, shots)]


def draw_sensor(rng: np.random.Generator, config: SensorConfig) -> SensorParameters:
    """Draw a camera by a generator of numpy's."""
    return draw(config, torch.Generator().manual_seed(int(rng.integers(2 ** 62))))


def plan(rng: np.random.Generator, texture: Texture, intrinsics: CameraIntrinsics,
         motion: np.ndarray, stride_px: int, sensors: SensorConfig,
         exposure_s: float | None = None) -> Shot:
    """
    Plan a photograph of a random part of a texture, or of a panorama about the camera.

    A panorama is infinitely far, so that there is no translation. The shutter does not roll where
    the camera would turn so far, while it is read out, that rows see past the scene.

    :param motion: (6,) mean motion over the exposure, as of `Labels.motion`
    :param exposure_s: drawn if None
    """
    if exposure_s is None:
        exposure_s = sample_exposure(rng, motion[:3])
    sensor = draw_sensor(rng, sensors)
    if texture.panorama:
        motion = np.concatenate([motion[:3], np.zeros(3)])
    path = sample_path(rng, motion, exposure_s, sensor.readout_s)
    normal = np.zeros(3) if texture.panorama else _tilted(rng, intrinsics)
    if sensor.readout_s and not _stays_ahead(intrinsics, path, normal):
        sensor = replace(sensor, readout_s=0.0)
        path = sample_path(rng, motion, exposure_s)
    wandering = _wandering(intrinsics, path, normal)
    wandering = (wandering[:, :2] / wandering[:, 2:]).transpose(0, 2, 1).reshape(-1, 2)
    for _ in range(TRIES):
        scene = _part_of_panorama(rng, texture, intrinsics, wandering) if texture.panorama \
            else _part_of_texture(rng, texture, intrinsics, wandering, normal)
        if _detailed(scene):
            break  # enough to show a blur; else look elsewhere
    if not texture.panorama:
        scene = _retouched(rng, scene)
    return Shot(scene, None, intrinsics, path, sensor,
                _labels(intrinsics, path, normal, sensor.readout_s, stride_px))


def _wandering(intrinsics: CameraIntrinsics, path: CameraPath,
               normal: np.ndarray) -> np.ndarray:
    """Where the image's corners are over time, in its own pixels at mid-exposure, (M, 3, 4)."""
    x, y = intrinsics.width_px - 0.5, intrinsics.height_px - 0.5
    corners = np.array([[-0.5, -0.5, 1], [x, -0.5, 1], [-0.5, y, 1], [x, y, 1]]).T
    return homographies(intrinsics, path, normal, path.times_s) @ corners


def _stays_ahead(intrinsics: CameraIntrinsics, path: CameraPath, normal: np.ndarray) -> bool:
    """Whether the camera, while it is read out, never looks past the plane or far aside."""
    rays = np.linalg.inv(intrinsics.matrix) @ _wandering(intrinsics, path, normal)
    ahead = rays[:, 2] / np.linalg.norm(rays, axis=1)
    return bool(ahead.min() > AHEAD and (not normal.any()
                                         or (normal @ rays > NEARLY_BESIDE * rays[:, 2]).all()))


def _tilted(rng: np.random.Generator, intrinsics: CameraIntrinsics) -> np.ndarray:
    """Normal of a plane one unit ahead that all of the image shows, neither too far nor near."""
    slope = rng.normal(0.0, TILT_STD, 2)
    x, y = ((np.array([0, size]) - centre) / focal for size, centre, focal in (
        (intrinsics.width_px, intrinsics.cx_px, intrinsics.fx_px),
        (intrinsics.height_px, intrinsics.cy_px, intrinsics.fy_px)))
    change = slope[0] * x[:, None] + slope[1] * y
    slope *= min(1.0, (1.0 - FARTHEST) / max(-change.min(), 1e-9),
                 (NEAREST - 1.0) / max(change.max(), 1e-9))
    return np.array([*slope, 1.0])


def _labels(intrinsics: CameraIntrinsics, path: CameraPath, normal: np.ndarray, readout_s: float,
            stride_px: int) -> Labels:
    grid = pixel_grid(intrinsics.width_px, intrinsics.height_px, stride_px)
    # the middle of each row of cells
    times_s = np.interp(grid[:, 0, 1], np.arange(intrinsics.height_px),
                        row_times_s(intrinsics, readout_s))
    rays = np.concatenate([grid, np.ones((*grid.shape[:2], 1))], axis=-1) \
        @ np.linalg.inv(intrinsics.matrix).T
    rotation_rad, position = path.pose(times_s)
    turned = Rotation.from_rotvec(rotation_rad).inv().apply(normal) \
        / (1.0 - position @ normal)[:, None]
    inverse_depth = np.einsum('hwc,hc->hw', rays, turned)
    field = motion_field_matrix(grid, intrinsics)
    field[..., 3:] *= inverse_depth[..., None, None]
    motion = path.mean_motion(np.zeros(()))
    motions = path.mean_motion(times_s) if readout_s else motion[None]
    flow_px = np.einsum('hwij,hj->hwi', field, np.broadcast_to(motions, (len(grid), 6)))
    return Labels(motion, field.astype(np.float32), flow_px, inverse_depth)


def _part_of_texture(rng: np.random.Generator, texture: Texture, intrinsics: CameraIntrinsics,
                     wandering: np.ndarray, normal: np.ndarray) -> FlatScene:
    """A random view of the plane, turned, scaled and mirrored."""
    scale = float(np.exp(rng.uniform(*np.log(TEXELS_PER_PX))))
    level = min(max(0, int(np.ceil(np.log2(scale / COARSEST)))), len(texture.levels) - 1)
    light = texture.levels[level]
    scale /= 2 ** level
    turn = rng.normal(0.0, 0.35) if rng.random() < 0.7 else rng.uniform(-np.pi, np.pi)
    cos, sin = scale * np.cos(turn), scale * np.sin(turn)
    flip = rng.choice([-1.0, 1.0])
    to_texture = np.array([[cos * flip, -sin, 0.0], [sin * flip, cos, 0.0], [0.0, 0.0, 1.0]])
    middle = np.array([intrinsics.width_px / 2, intrinsics.height_px / 2])
    target = rng.uniform(0.2, 0.8, 2) * light.shape[1::-1]
    to_texture[:2, 2] = target - to_texture[:2, :2] @ middle
    low, high = _box(wandering @ to_texture[:2, :2].T + to_texture[:2, 2])
    columns, rows = (_mirrored(np.arange(low[axis], high[axis] + 1), light.shape[1 - axis])
                     for axis in range(2))
    to_texture[:2, 2] -= low
    return FlatScene(light[rows].take(columns, axis=1), to_texture, normal, TONES)


def _part_of_panorama(rng: np.random.Generator, texture: Texture, intrinsics: CameraIntrinsics,
                      wandering: np.ndarray) -> FlatScene:
    """The part of a panorama that a camera sees, as its image plane would show it."""
    panorama = texture.levels[0]
    scale = np.diag([PANORAMA_OVERSAMPLING, PANORAMA_OVERSAMPLING, 1.0])
    low, high = _box(wandering * PANORAMA_OVERSAMPLING)
    to_scene = scale - np.array([[0, 0, low[0]], [0, 0, low[1]], [0, 0, 0]])
    columns, rows = (np.arange(end - start + 1.0) for start, end in zip(low, high))
    heading = Rotation.from_euler('yxz', rng.normal(0.0, (10.0, PITCH_STD_RAD, ROLL_STD_RAD)))
    axes = (heading.as_matrix() @ np.linalg.inv(to_scene @ intrinsics.matrix)).astype(np.float32)
    x, y, z = (torch.from_numpy(axes[i, 0] * columns.astype(np.float32) + (
        axes[i, 1] * rows.astype(np.float32) + axes[i, 2])[:, None]) for i in range(3))
    height, width = panorama.shape[:2]
    longitude = torch.atan2(x, z).numpy() * np.float32(width / (2 * np.pi)) + (width - 1) / 2
    latitude = torch.atan2(y, torch.hypot(x, z)).numpy() * np.float32(height / np.pi) \
        + (height - 1) / 2
    light = cv2.remap(panorama, longitude.astype(np.float32), latitude.astype(np.float32),
                      cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return FlatScene(light, to_scene, np.zeros(3))


def _box(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole-numbered bounds of points (N, 2) with a margin, (2,) each."""
    low, high = np.floor(points.min(axis=0)) - MARGIN_PX, np.ceil(points.max(axis=0)) + MARGIN_PX
    excess = np.maximum(high - low - MAX_SCENE_PX, 0.0)
    return (low + excess / 2).astype(int), (high - excess / 2).astype(int)


def _mirrored(indices: np.ndarray, size: int) -> np.ndarray:
    """Bring indices into 0 to size - 1 by mirroring at the ends."""
    folded = indices % (2 * size)
    return np.minimum(folded, 2 * size - 1 - folded)


def _detailed(scene: FlatScene) -> bool:
    light = scene.light[::4, ::2, 1]
    light = light if scene.tones is None else scene.tones[light]
    return bool(np.quantile(np.abs(np.diff(light[:, ::2])), 0.85) > 0.05 * light.mean())


def _softened(light: np.ndarray, side: int) -> np.ndarray:
    """
    Smooth light over so many pixels.

    :raises ConfigError: if OpenCV is too old
    """
    if not hasattr(cv2, 'stackBlur'):
        raise ConfigError(f'OpenCV {cv2.__version__} cannot draw training images, it needs 4.7: '
                          'pip install "opencv-python-headless>=4.7", in an environment of its '
                          'own where ROS brings another')
    return cv2.stackBlur(light, (side, side))


def _retouched(rng: np.random.Generator, scene: FlatScene) -> FlatScene:
    """Make parts soft, change the contrast of the light, and set lamps and windows alight."""
    light, height, width = scene.light, *scene.light.shape[:2]
    if rng.random() < 0.35:  # parts that were soft before the camera moved
        side = 1 + 2 * round(1.5 * np.exp(rng.uniform(-0.3, 1.4)))
        soft = _softened(light, side)
        where = cv2.resize(rng.standard_normal((4, 4)).astype(np.float32), (width, height),
                           interpolation=cv2.INTER_CUBIC)
        share = (3 * where + np.float32(rng.normal())).clip(0, 1)
        light = cv2.blendLinear(soft, light, share, 1 - share)
    tones = TONES ** np.float32(rng.uniform(0.8, 1.3))
    if rng.random() < 0.4:  # windows and sky: brighter than the sensor can hold
        knee = tones[int(np.quantile(light[::8, ::8, 1], rng.uniform(0.8, 0.99)))]
        tones = tones + np.maximum(tones - knee, 0) * np.float32(np.exp(rng.uniform(0, 3.5)))
    if rng.random() < 0.25:  # lamps, which become streaks
        light = np.minimum(light, LAMP - 1)
        for centre in rng.uniform(0, 1, (int(rng.integers(1, 12)), 2)):
            cv2.circle(light, (centre * (width, height)).astype(int).tolist(),
                       1 + int(rng.exponential(2.0)), (LAMP, LAMP, LAMP), -1)
        tones[LAMP] = tones[LAMP - 1] * np.exp(rng.uniform(1.0, 4.5))
    return FlatScene(light, scene.to_scene, scene.normal, tones)
