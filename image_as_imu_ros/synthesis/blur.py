"""
Synthetic motion blur of a textured plane, exact up to the number of subframes.

The camera moves on a rigid path during the exposure; each subframe is an exact homography of
the scene; their mean in linear light is what the sensor collects. Subframes lie at most
`MAX_STEP_PX` apart, so that no ghosting shows.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from image_as_imu_ros.geometry.displacement_bins import RADIUS_SCALE_PX
from image_as_imu_ros.geometry.motion_field import (
    motion_field_matrix,
    pixel_grid,
    plane_homography,
)
from image_as_imu_ros.synthesis.textures import GAMMA
from image_as_imu_ros.types import CameraIntrinsics

MAX_STEP_PX = 1.25
ROLL_LEVER = 1.0 / 3.0
"""Displacement by a roll relative to that by a pan of the same angle, over a typical image."""
OVERSAMPLING = 1.25
"""Resolution of the sharp scene, in samples per image pixel."""


@dataclass(frozen=True)
class Sample:
    """One synthetic image with its motion."""

    gray: np.ndarray
    """(H, W) uint8, as a camera would encode it."""
    field: np.ndarray
    """
    (H / stride, W / stride, 2, 6) float32, maps `motion` to the displacement over the exposure
    at the cells, px: the motion field matrix, translation scaled by d / depth.
    """
    motion: np.ndarray
    """(6,) w T in rad and v T / d, d the plane's distance along the optical axis."""
    intrinsics: CameraIntrinsics

    @property
    def flow_px(self) -> np.ndarray:
        """Displacement over the exposure at the cells, (H / stride, W / stride, 2), px."""
        return self.field @ self.motion


def sample_camera(rng: np.random.Generator, width_px: int, height_px: int) -> CameraIntrinsics:
    """A window of a 320 px wide image of a random camera; its axis may lie outside the window."""
    focal = float(np.exp(rng.uniform(np.log(150.0), np.log(520.0))))
    centre = np.array([160.0, 112.0]) + rng.normal(0.0, 6.0, 2)
    free = np.maximum(np.array([320 - width_px, 240 - height_px]), 0)
    corner = rng.uniform(0.0, 1.0, 2) * free
    return CameraIntrinsics(width_px, height_px, focal, focal * float(rng.normal(1.0, 0.01)),
                            *(centre - corner))


def sample_motion(rng: np.random.Generator, focal_px: float) -> np.ndarray:
    """Draw (w T, v T / d): blur up to some 60 px, translation as of a hand-held camera."""
    # even on the scale of the bins' rings, so that a cell that sees little pulls nowhere
    extent = RADIUS_SCALE_PX * np.expm1(rng.uniform(0.0, np.log1p(65.0 / RADIUS_SCALE_PX)))
    axis = rng.standard_normal(3) * (1.0, 1.0, rng.choice([0.5, 1.0, 3.0]))
    rotation = axis / np.linalg.norm(axis * (1.0, 1.0, ROLL_LEVER)) * extent / focal_px
    lever = rng.normal(0.0, 0.25, 3)
    free = rng.standard_normal(3) * np.linalg.norm(rotation) * 0.3 * rng.random() ** 2
    return np.concatenate([rotation, np.cross(rotation, lever) + free])


def render(rng: np.random.Generator, texture: np.ndarray, intrinsics: CameraIntrinsics,
           motion: np.ndarray, stride_px: int) -> Sample:
    """
    Photograph a random part of a texture with a moving camera.

    :param texture: (H, W) float32 in linear light
    :param motion: (6,) mean motion over the exposure, as of `Sample.motion`
    """
    width, height = intrinsics.width_px, intrinsics.height_px
    # the plane n . X = 1, one unit ahead on the optical axis, tilted at random
    normal = np.array([*rng.normal(0.0, 0.35, 2), 1.0])
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], float)
    reach = np.linalg.norm(motion_field_matrix(corners, intrinsics) @ motion, axis=-1).max()
    subframes = 1 + int(np.ceil(reach / MAX_STEP_PX))
    times = (np.arange(subframes) + 0.5) / subframes - 0.5
    path = times[:, None] * motion
    path += (times ** 2 - 1.0 / 12.0)[:, None] * motion.std() * rng.normal(0.0, 0.5, 6)
    homographies = plane_homography(intrinsics, Rotation.from_rotvec(path[:, :3]).as_matrix(),
                                    path[:, 3:], normal)
    margin = int(np.ceil(reach / 2)) + 4
    scene = _scene(rng, texture, width + 2 * margin, height + 2 * margin)
    to_scene = np.array([[OVERSAMPLING, 0, margin * OVERSAMPLING],
                         [0, OVERSAMPLING, margin * OVERSAMPLING], [0, 0, 1]])
    light = np.zeros((height, width), np.float32)
    for homography in homographies:
        light += cv2.warpPerspective(scene, to_scene @ homography, (width, height),
                                     flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                                     borderMode=cv2.BORDER_REFLECT)
    grid = pixel_grid(width, height, stride_px)
    rays = np.concatenate([(grid - [intrinsics.cx_px, intrinsics.cy_px])
                           / [intrinsics.fx_px, intrinsics.fy_px],
                           np.ones((*grid.shape[:2], 1))], axis=-1)
    inverse_depth = np.maximum(rays @ normal, 0.05)
    field = motion_field_matrix(grid, intrinsics)
    field[..., 3:] *= inverse_depth[..., None, None]
    return Sample(expose(rng, light / subframes), field.astype(np.float32), motion, intrinsics)


def _scene(rng: np.random.Generator, texture: np.ndarray, width_px: int,
           height_px: int) -> np.ndarray:
    """A random view of the texture, turned, scaled and relit, at OVERSAMPLING."""
    for _ in range(6):
        scene = _view(rng, texture, width_px, height_px)
        if np.quantile(np.abs(np.diff(scene[::2, ::2])), 0.85) > 0.05 * scene.mean():
            break  # enough detail to show a blur; else look elsewhere
    if rng.random() < 0.35:  # parts that were soft before the camera moved
        soft = cv2.GaussianBlur(scene, (0, 0), float(np.exp(rng.uniform(-0.3, 1.4))))
        where = cv2.resize(rng.standard_normal((4, 4)).astype(np.float32),
                           scene.shape[::-1], interpolation=cv2.INTER_CUBIC)
        scene = scene + (soft - scene) * (3 * where + np.float32(rng.normal())).clip(0, 1)
    scene = scene ** np.float32(rng.uniform(0.7, 1.5))
    if rng.random() < 0.4:  # lamps and windows: brighter than the sensor can hold
        knee = np.float32(np.quantile(scene[::4, ::4], rng.uniform(0.8, 0.99)))
        scene = scene + np.maximum(scene - knee, 0) * np.float32(np.exp(rng.uniform(0, 3.5)))
    level = float(np.mean(np.minimum(scene, 1.0))) + 1e-3
    return scene * np.float32(np.exp(rng.uniform(np.log(0.1), np.log(0.6))) / level)


def _view(rng: np.random.Generator, texture: np.ndarray, width_px: int,
          height_px: int) -> np.ndarray:
    width, height = int(width_px * OVERSAMPLING), int(height_px * OVERSAMPLING)
    # mostly reduced, as cameras' images are before the network sees them, hence sharp
    scale = float(np.exp(rng.uniform(np.log(0.9), np.log(3.2)))) / OVERSAMPLING
    while scale > 1.4:
        texture = cv2.resize(texture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        scale /= 2
    turn = rng.normal(0.0, 0.35) if rng.random() < 0.7 else rng.uniform(-np.pi, np.pi)
    cos, sin = scale * np.cos(turn), scale * np.sin(turn)
    flip = rng.choice([-1.0, 1.0])
    linear = np.array([[cos * flip, -sin], [sin * flip, cos]])
    target = rng.uniform(0.2, 0.8, 2) * (texture.shape[1], texture.shape[0])
    offset = target - linear @ (width / 2, height / 2)
    return cv2.warpAffine(texture, np.column_stack([linear, offset]), (width, height),
                          flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                          borderMode=cv2.BORDER_REFLECT)


def expose(rng: np.random.Generator, light: np.ndarray) -> np.ndarray:
    """
    What a camera makes of the collected light: optics, noise, tone curve, sharpening, JPEG.

    :param light: (H, W) float32 in linear light, 1 saturates
    :returns: (H, W) uint8
    """
    if rng.random() < 0.2:
        light = cv2.GaussianBlur(light, (0, 0), float(rng.uniform(0.3, 0.8)))
    light = np.clip(light, 0.0, 1.0)
    noise = np.exp(rng.uniform(np.log(5e-4), np.log(1e-2)))
    deviation = noise * np.sqrt(light * rng.uniform(0.3, 1.5) + rng.uniform(0.005, 0.05))
    grain = rng.standard_normal(light.shape, np.float32)
    if rng.random() < 0.5:  # demosaicking and noise reduction correlate the noise
        grain = cv2.GaussianBlur(grain, (0, 0), float(rng.uniform(0.4, 1.0)))
    light = np.clip(light + deviation.astype(np.float32) * grain, 0.0, 1.0)
    encoded = light ** np.float32(1.0 / (GAMMA * rng.uniform(0.85, 1.15)))
    if rng.random() < 0.4:  # contrast curve
        bend = np.float32(rng.uniform(0.0, 0.5))
        encoded = encoded + bend * (encoded * encoded * (3 - 2 * encoded) - encoded)
    if rng.random() < 0.4:
        soft = cv2.GaussianBlur(encoded, (0, 0), float(rng.uniform(0.6, 1.5)))
        encoded = encoded + np.float32(rng.uniform(0.2, 1.2)) * (encoded - soft)
    gray = (np.clip(encoded, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    if rng.random() < 0.5:
        quality = int(rng.integers(30, 98))
        coded = cv2.imencode('.jpg', gray, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        gray = cv2.imdecode(coded, cv2.IMREAD_GRAYSCALE)
    return gray
