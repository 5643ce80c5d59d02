"""
The light that moving cameras gather from flat and from infinitely far scenes.

Each instant's view is one homography of the scene, read once, by linear interpolation; rows of a
rolling shutter have their own. Rule of the instants: no pixel moves by more than MAX_STEP_SAMPLES
of the scene from one to the next. Linear interpolation spreads a point over two samples, and no
lamp is smaller than three, so that their streaks are even to some 4 % (rms): no ghosts show,
however bright. On photographs six times as many instants change 0.2 % of the contrast (rms; at
worst 1.5 %), which is less than their noise.

Batches are gathered by torch where there is a GPU; on the CPU OpenCV does the same, several times
as fast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn import functional

from image_as_imu_ros.geometry.motion_field import plane_homography
from image_as_imu_ros.synthesis.motion import CameraPath
from image_as_imu_ros.synthesis.sensor import SensorParameters
from image_as_imu_ros.types import CameraIntrinsics

MAX_STEP_SAMPLES = 1.5
"""Some 1.3 px, as a pixel shows 0.75 to 1.5 samples of a texture and 1.25 of a rendered view."""


@dataclass(frozen=True)
class FlatScene:
    """A plane in linear light, before a camera at the middle of its exposure."""

    light: np.ndarray
    """(h, w, 3), float32, or uint8 indices of `tones`."""
    to_scene: np.ndarray
    """(3, 3), from the camera's pixels at the middle of the exposure to the scene's."""
    normal: np.ndarray
    """(3,), n . X = 1 on the plane, lengths over its distance d; zeros if infinitely far."""
    tones: np.ndarray | None = None
    """(256,) float32."""


def row_times_s(camera: CameraIntrinsics, readout_s: float) -> np.ndarray:
    """Middle of each row's exposure, (H,), counted from that of the middle of the image, s."""
    rows = np.arange(camera.height_px)
    return readout_s * ((rows + 0.5) / camera.height_px - 0.5)


def homographies(camera: CameraIntrinsics, path: CameraPath, normal: np.ndarray,
                 times_s: np.ndarray) -> np.ndarray:
    """From the camera's pixels at times (...) to its pixels at time 0, (..., 3, 3)."""
    rotation_rad, position = path.pose(times_s)
    axes = Rotation.from_rotvec(rotation_rad.reshape(-1, 3)).as_matrix()
    return plane_homography(camera, axes.reshape(*times_s.shape, 3, 3), position, normal)


def instants(camera: CameraIntrinsics, path: CameraPath, scene: FlatScene,
             readout_s: float) -> np.ndarray:
    """
    Bounds of the intervals, (N + 1,), s from mid-exposure, in whose middles to look.

    They keep the rule at the top, by the corners and the middle of the image. Where the shutter
    does not roll, they are shorter while the camera moves faster.
    """
    x, y = camera.width_px - 1.0, camera.height_px - 1.0
    points = np.array([[0, 0, 1], [x, 0, 1], [0, y, 1], [x, y, 1], [x / 2, y / 2, 1]])
    half_s = path.exposure_s / 2
    times_s = np.linspace(-half_s, half_s, len(path.times_s)) if not readout_s else path.times_s
    seen = scene.to_scene @ homographies(camera, path, scene.normal, times_s) @ points.T
    seen = seen[:, :2] / seen[:, 2:]
    steps = np.linalg.norm(np.diff(seen, axis=0), axis=1).max(axis=1) / MAX_STEP_SAMPLES
    if readout_s:
        fastest = steps.max() / (times_s[1] - times_s[0])
        return np.linspace(-half_s, half_s, 2 + math.floor(fastest * path.exposure_s))
    travelled = np.concatenate([[0.0], np.cumsum(steps + 1e-12)])
    count = 1 + math.floor(travelled[-1])
    return np.interp(np.linspace(0.0, travelled[-1], count + 1), travelled, times_s)


@dataclass(frozen=True)
class Views:
    """What to look at during one exposure, and how much each look counts."""

    scene: FlatScene
    matrices: np.ndarray
    """(N, R, 3, 3), from pixels to the scene's; R is the number of rows, or 1 for all of them."""
    weights: np.ndarray
    """(N, R)."""


def views(scene: FlatScene, camera: CameraIntrinsics, path: CameraPath,
          sensor: SensorParameters) -> Views:
    """Divide an exposure into instants."""
    bounds_s = instants(camera, path, scene, sensor.readout_s)
    of_rows = row_times_s(camera, sensor.readout_s) if sensor.readout_s else np.zeros(1)
    times_s = ((bounds_s[1:] + bounds_s[:-1]) / 2)[:, None] + of_rows
    spans_s = np.diff(bounds_s)[:, None]
    return Views(scene, scene.to_scene @ homographies(camera, path, scene.normal, times_s),
                 flicker(times_s, spans_s, sensor) * spans_s / path.exposure_s)


def integrate(exposures: Sequence[Views], width_px: int, height_px: int,
              device: str | torch.device = 'cpu') -> Tensor:
    """
    Mean light over the exposures; nothing saturates yet.

    :returns: (B, 3, H, W) float32
    """
    if torch.device(device).type == 'cpu':
        light = np.stack([gather_by_opencv(each, width_px, height_px) for each in exposures])
        return torch.from_numpy(light).permute(0, 3, 1, 2).contiguous()
    return gather_by_torch(exposures, width_px, height_px, device)


def gather_by_opencv(exposure: Views, width_px: int, height_px: int) -> np.ndarray:
    """Mean light of one exposure, (H, W, 3) float32."""
    # a fourth channel, which nobody looks at, makes OpenCV 2.5 times as fast
    scene = cv2.cvtColor(exposure.scene.light, cv2.COLOR_RGB2RGBA)
    if exposure.scene.tones is not None:
        scene = cv2.LUT(scene, exposure.scene.tones)
    light = np.zeros((height_px, width_px, 4), np.float32)
    x, y = np.arange(width_px, dtype=np.float32), np.arange(height_px, dtype=np.float32)
    for matrix, weight in zip(exposure.matrices, exposure.weights.astype(np.float32)):
        if len(matrix) == 1:
            view = cv2.warpPerspective(scene, matrix[0], (width_px, height_px),
                                       flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                                       borderMode=cv2.BORDER_REPLICATE)
            cv2.scaleAdd(view, float(weight[0]), light, light)
            continue
        rows = matrix.astype(np.float32)
        column, row, scale = (
            rows[:, i, 0, None] * x + (rows[:, i, 1] * y + rows[:, i, 2])[:, None]
            for i in range(3))
        view = cv2.remap(scene, column / scale, row / scale, cv2.INTER_LINEAR,
                         borderMode=cv2.BORDER_REPLICATE)
        light += weight[:, None, None] * view
    return light[..., :3]


def gather_by_torch(exposures: Sequence[Views], width_px: int, height_px: int,
                    device: str | torch.device) -> Tensor:
    """Mean light of a batch of exposures, (B, 3, H, W) float32."""
    order = sorted(range(len(exposures)), key=lambda i: -len(exposures[i].weights))
    ordered = [exposures[i] for i in order]
    scenes = _stack([each.scene for each in ordered], device)
    # grid_sample counts from -1 to 1 over the stack, between the outer edges of its pixels
    rows, columns = scenes.shape[2:]
    to_grid = np.array([[2 / columns, 0, 1 / columns - 1], [0, 2 / rows, 1 / rows - 1], [0, 0, 1]])
    counts = [len(each.weights) for each in ordered]
    times = max(each.weights.shape[1] for each in ordered)
    matrices = np.zeros((counts[0], len(ordered), times, 3, 3), np.float32)
    weights = np.zeros((counts[0], len(ordered), times), np.float32)
    for i, each in enumerate(ordered):
        matrices[:counts[i], i] = to_grid @ each.matrices
        weights[:counts[i], i] = each.weights
    matrices, weights = (torch.from_numpy(array).to(device) for array in (matrices, weights))
    x = torch.arange(width_px, device=device, dtype=torch.float32)
    y = torch.arange(height_px, device=device, dtype=torch.float32)[:, None]
    light = torch.zeros((len(ordered), 3, height_px, width_px), device=device)
    for k in range(counts[0]):
        active = sum(count > k for count in counts)
        matrix = matrices[k, :active, :, None]
        column, row, scale = (
            matrix[..., i, 0] * x + (matrix[..., i, 1] * y + matrix[..., i, 2]) for i in range(3))
        view = functional.grid_sample(
            scenes[:active], torch.stack([column / scale, row / scale], dim=-1),
            padding_mode='border', align_corners=False)
        light[:active].addcmul_(view, weights[k, :active, None, :, None])
    return light[torch.tensor(order, device=device).argsort()]


def flicker(times_s: np.ndarray, span_s: np.ndarray | float,
            sensor: SensorParameters) -> np.ndarray:
    """Mean brightness of the mains' light, about 1, over spans about the given times."""
    turns = sensor.flicker_hz * span_s
    return 1.0 + sensor.flicker_depth * np.sinc(turns) * np.cos(
        2 * np.pi * sensor.flicker_hz * times_s + sensor.flicker_phase_rad)


def _stack(scenes: Sequence[FlatScene], device: str | torch.device) -> Tensor:
    """Scenes at the top left of images of one size, (B, 3, h, w) float32."""
    rows, columns = (max(scene.light.shape[axis] for scene in scenes) for axis in (0, 1))
    stack = torch.zeros((len(scenes), 3, rows, columns), device=device)
    for target, scene in zip(stack, scenes):
        light = torch.from_numpy(scene.light).to(device)
        if scene.tones is not None:
            light = torch.from_numpy(scene.tones).to(device)[light.int()]
        target[:, :light.shape[0], :light.shape[1]] = light.permute(2, 0, 1)
    return stack
