"""
Motion blur of stored views with depth: near things hide and uncover far ones.

A keyframe is the view at mid-exposure, in layers: what is seen, and near the edges in depth also
what stands behind. For each subframe the layers' depths are projected into the displaced camera,
the nearest wins, and the colour is looked up in the keyframe by the exact geometry. Rotation alone
needs no depth, so only translation is projected anew, whenever it has moved near things against
far ones by some `PARALLAX_PX`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from image_as_imu_ros.errors import DataFormatError
from image_as_imu_ros.files import replacing
from image_as_imu_ros.geometry.motion_field import motion_field_matrix, pixel_grid
from image_as_imu_ros.synthesis.blur import Labels, Shot, draw_sensor
from image_as_imu_ros.synthesis.exposure import MAX_STEP_SAMPLES, flicker
from image_as_imu_ros.synthesis.motion import sample_exposure, sample_path
from image_as_imu_ros.synthesis.sensor import SensorConfig
from image_as_imu_ros.types import CameraIntrinsics

LAYERS = 3
OVERSAMPLING = 1.25
"""Resolution of a keyframe, in its pixels per pixel of the images that are made of it."""
PARALLAX_PX = 2.0
UNCOVERED_PX = 40
"""Hidden layers are kept within this distance, in the keyframe, of an edge in depth."""
SKY_PER_M = 1e-3
"""Inverse depth of what has none."""
MAX_APPROACH = 0.15
"""The camera moves by this part of the distance of the nearest thing at most."""


@dataclass(frozen=True)
class Keyframe:
    """A sharp view in layers, the nearest first; undistorted."""

    light: np.ndarray
    """(LAYERS, H, W) linear gray or (LAYERS, H, W, 3) linear RGB."""
    inverse_depth: np.ndarray
    """(LAYERS, H, W), 1/m, along the optical axis; 0 where there is nothing."""
    camera: CameraIntrinsics

    def save(self, path: Path) -> None:
        """Write an .npz; the path never holds half of one."""
        with replacing(path) as partial, partial.open('wb') as file:
            np.savez_compressed(
                file, light=self.light.astype(np.float16),
                inverse_depth=self.inverse_depth.astype(np.float16),
                camera=[self.camera.fx_px, self.camera.fy_px, self.camera.cx_px,
                        self.camera.cy_px])

    @classmethod
    def load(cls, path: Path) -> Keyframe:
        """
        Read what `save` wrote.

        :raises DataFormatError: if the file is not a keyframe
        """
        try:
            with np.load(path) as stored:
                light, inverse_depth = stored['light'], stored['inverse_depth']
                camera = CameraIntrinsics(*light.shape[:0:-1], *stored['camera'].tolist())
        except (OSError, KeyError, ValueError, BadZipFile) as error:
            raise DataFormatError(f'cannot read keyframe {path}: {error}; remove it') from error
        return cls(light, inverse_depth, camera)


def find_keyframes(folder: Path) -> list[Path]:
    """
    The keyframes of a folder, by name.

    :raises DataFormatError: if there is none
    """
    paths = sorted(folder.glob('*.npz'))
    if not paths:
        raise DataFormatError(f'no keyframe (*.npz) in {folder}; write some with: '
                              f'image-as-imu synthesize {folder} --preset keyframes')
    return paths


def plan(rng: np.random.Generator, keyframe: Keyframe, intrinsics: CameraIntrinsics,
         motion: np.ndarray, stride_px: int, sensors: SensorConfig,
         exposure_s: float | None = None) -> Shot:
    """
    Photograph a keyframe with a moving camera, as `blur.plan` does a texture.

    The shutter is global: the light is gathered here, for all rows at once. The reference
    distance d of the labels is the median depth of the view.

    :param intrinsics: of a camera that looks along the keyframe's axis and sees a part of it
    :param motion: (6,) mean motion over the exposure, as of `Labels.motion`; its translation is
        shortened where the camera would come close to something
    :param exposure_s: drawn if None
    """
    if exposure_s is None:
        exposure_s = sample_exposure(rng, motion[:3])
    sensor = replace(draw_sensor(rng, sensors), readout_s=0.0)
    grid = pixel_grid(intrinsics.width_px, intrinsics.height_px, stride_px)
    to_keyframe = keyframe.camera.matrix @ np.linalg.inv(intrinsics.matrix)
    centres = cv2.perspectiveTransform(grid, to_keyframe).astype(np.float32)
    inverse_depth = cv2.remap(keyframe.inverse_depth[0].astype(np.float32), centres, None,
                              cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    inverse_depth = np.maximum(inverse_depth, SKY_PER_M)
    distance_m = 1.0 / float(np.median(inverse_depth))
    approach = np.linalg.norm(motion[3:]) * distance_m * inverse_depth.max()
    motion = motion * np.repeat([1.0, min(1.0, MAX_APPROACH / max(approach, 1e-9))], 3)
    path = sample_path(rng, motion, exposure_s)
    field = motion_field_matrix(grid, intrinsics)
    field[..., 3:] *= (inverse_depth * distance_m)[..., None, None]

    speed_px_s = np.linalg.norm(np.einsum('hwij,mj->mhwi', field, path.velocity), axis=-1).max()
    step_px = MAX_STEP_SAMPLES * intrinsics.fx_px / keyframe.camera.fx_px
    count = 1 + int(np.ceil(speed_px_s * exposure_s / step_px))
    times_s = exposure_s * ((np.arange(count) + 0.5) / count - 0.5)
    rotations_rad, positions = path.pose(times_s)
    light = average_light(keyframe, intrinsics, rotations_rad, positions * distance_m,
                          flicker(times_s, exposure_s / count, sensor))
    labels = Labels(motion, field.astype(np.float32), field @ motion, inverse_depth * distance_m)
    return Shot(None, light, intrinsics, path, sensor, labels)


def average_light(keyframe: Keyframe, intrinsics: CameraIntrinsics, rotations_rad: np.ndarray,
                  positions_m: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """
    Mean of the views from a camera's poses, (H, W) or (H, W, 3) float32.

    :param intrinsics: of that camera
    :param rotations_rad, positions_m: (N, 3), of the camera in the keyframe's axes, in order of
        time
    :param weights: (N,), brightness of the light at each pose; all 1 if None
    """
    weights = np.ones(len(positions_m)) if weights is None else weights
    width, height = intrinsics.width_px, intrinsics.height_px
    pixels = np.stack([*np.meshgrid(np.arange(width), np.arange(height)),
                       np.ones((height, width))]).reshape(3, -1)
    rays = Rotation.from_rotvec(rotations_rad).as_matrix() @ np.linalg.inv(intrinsics.matrix)
    scene = _Layers.around(keyframe, rays @ pixels[:, [0, width - 1, -width, -1]])
    light = np.zeros((height, width, *keyframe.light.shape[3:]), np.float32)
    shift_px = scene.parallax_px(np.ptp(positions_m, axis=0))
    count = len(positions_m)
    groups = min(1 + 2 * int(np.ceil(shift_px / PARALLAX_PX / 2)), count - 1 + count % 2)
    starts = np.arange((groups + 1) // 2) * count // groups
    # alike from either end of time
    for group in np.split(np.arange(count), [*starts[1:], *(count - starts[:0:-1])]):
        nearest = scene.seen_from(positions_m[group].mean(axis=0))
        for index in group:
            x, y, z = (scene.matrix @ rays[index] @ pixels).astype(np.float32)
            light += np.float32(weights[index]) * scene.look_up(
                nearest, (x / z).reshape(height, width), (y / z).reshape(height, width),
                positions_m[index])
    return light / count


class _Layers:
    """
    A part of a keyframe, ready to be seen from other places in the keyframe's axes.

    :param light: (LAYERS, h, w) or (LAYERS, h, w, 3)
    :param inverse_depth: (LAYERS, h, w)
    :param matrix: (3, 3), camera matrix of that part, px
    """

    def __init__(self, light: np.ndarray, inverse_depth: np.ndarray, matrix: np.ndarray) -> None:
        self._light = light.astype(np.float32).reshape(-1, *light.shape[2:])
        self._shape = inverse_depth.shape[1:]
        self.matrix = matrix
        inverse_depth = inverse_depth.astype(np.float16)
        inverse_depth[0] = np.maximum(inverse_depth[0], np.float16(SKY_PER_M))
        points = np.flatnonzero(inverse_depth)
        self._inverse_depth = inverse_depth.ravel()[points]
        # far to near; halves that are positive are in the order of their bits
        order = np.argsort(self._inverse_depth.view(np.uint16), kind='stable')
        points = points[order]
        self._inverse_depth = self._inverse_depth[order].astype(np.float32)
        layer, place = np.divmod(points, inverse_depth[0].size)
        y, x = np.divmod(place, self._shape[1])
        self._layer = layer.astype(np.int32)
        self._x = (x - matrix[0, 2]).astype(np.float32)
        self._y = (y - matrix[1, 2]).astype(np.float32)
        # what not even the hidden layers show is as far as the farthest thing around
        window = np.ones((UNCOVERED_PX, UNCOVERED_PX), np.uint8)
        self._farthest = _tag(cv2.erode(inverse_depth[0].astype(np.float32), window), 0)

    @classmethod
    def around(cls, keyframe: Keyframe, corners: np.ndarray) -> _Layers:
        """Cut out what rays (..., 3, N) to the corners of views enclose, and what may enter."""
        x, y, z = np.moveaxis(keyframe.camera.matrix @ corners, -2, 0)
        height, width = keyframe.inverse_depth.shape[1:]
        # at least a pixel remains of a keyframe that the views miss
        left, right = np.clip([(x / z).min() - UNCOVERED_PX, (x / z).max() + UNCOVERED_PX],
                              (0, 1), (width - 1, width)).astype(int)
        top, bottom = np.clip([(y / z).min() - UNCOVERED_PX, (y / z).max() + UNCOVERED_PX],
                              (0, 1), (height - 1, height)).astype(int)
        part = np.s_[:, top:bottom, left:right]
        matrix = keyframe.camera.matrix - [[0, 0, left], [0, 0, top], [0, 0, 0]]
        return cls(keyframe.light[part], keyframe.inverse_depth[part], matrix)

    def parallax_px(self, shift_m: np.ndarray) -> float:
        """Bound of how far a shift of the camera moves near things against far ones, px."""
        depth_span = self._inverse_depth[-1] - self._inverse_depth[0]
        return float(np.linalg.norm(shift_m) * depth_span * self.matrix[0, 0])

    def seen_from(self, position_m: np.ndarray) -> np.ndarray:
        """Nearest layer's inverse depth, seen from elsewhere, tagged with the layer, (h, w)."""
        px, py, pz = position_m.astype(np.float32)
        ratio = 1 / (1 - pz * self._inverse_depth)
        fx, fy, cx, cy = self.matrix[[0, 1, 0, 1], [0, 1, 2, 2]].astype(np.float32)
        x = (self._x - fx * px * self._inverse_depth) * ratio + cx
        y = (self._y - fy * py * self._inverse_depth) * ratio + cy
        # a border of a pixel takes what falls outside
        nearest = cv2.copyMakeBorder(self._farthest, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
        height, width = nearest.shape
        column = (x + 1).clip(0, width - 1).astype(np.int32)
        row = (y + 1).clip(0, height - 1).astype(np.int32)
        # of several values for one place the last one stays: the nearest
        nearest.ravel()[row * width + column] = _tag(self._inverse_depth * ratio, self._layer)
        # a point covers the four pixels around it
        nearest = cv2.dilate(nearest, np.ones((2, 2), np.uint8), anchor=(1, 1))
        return np.ascontiguousarray(nearest[1:-1, 1:-1])

    def look_up(self, nearest: np.ndarray, x_px: np.ndarray, y_px: np.ndarray,
                position_m: np.ndarray) -> np.ndarray:
        """
        Light at pixels of this part as seen from elsewhere.

        :param nearest: of `seen_from`, from within a pixel of parallax
        :param x_px, y_px: (H, W)
        """
        px, py, pz = position_m.astype(np.float32)
        fx, fy, cx, cy = self.matrix[[0, 1, 0, 1], [0, 1, 2, 2]].astype(np.float32)
        inverse_depth = cv2.remap(nearest, x_px, y_px, cv2.INTER_NEAREST,
                                  borderMode=cv2.BORDER_REPLICATE)
        ratio = 1 / (1 + pz * inverse_depth)
        height, width = self._shape
        x = ((x_px - cx + fx * px * inverse_depth) * ratio + cx).clip(0, width - 1)
        y = ((y_px - cy + fy * py * inverse_depth) * ratio + cy).clip(0, height - 1)
        y += _layer(inverse_depth) * np.float32(height)
        return cv2.remap(self._light, x, y, cv2.INTER_LINEAR)


def _tag(inverse_depth: np.ndarray, layer: np.ndarray | int) -> np.ndarray:
    """Keep the number of a layer, 0 to 3, in the last two bits of a float32."""
    return ((inverse_depth.view(np.int32) & ~3) | layer).view(np.float32)


def _layer(tagged: np.ndarray) -> np.ndarray:
    return tagged.view(np.int32) & 3
