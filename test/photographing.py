"""Steady motion and a simple room to photograph, for several tests."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from image_as_imu_ros.synthesis.motion import MIN_KNOTS, CameraPath
from image_as_imu_ros.synthesis.sensor import SensorConfig

EXPOSURE_S = 0.01
NO_SHUTTER_EFFECTS = SensorConfig(rolling_share=0.0, flicker_share=0.0)


def steady_path(rng: np.random.Generator | None, motion: np.ndarray, exposure_s: float,
                readout_s: float = 0.0) -> CameraPath:
    """Stand in for `sample_path`: the velocity does not change."""
    half_s = (exposure_s + readout_s) / 2
    velocity = np.tile(np.asarray(motion, float) / exposure_s, (MIN_KNOTS, 1))
    return CameraPath.follow(exposure_s, np.linspace(-half_s, half_s, MIN_KNOTS), velocity)


def write_box_room(folder: Path, rng: np.random.Generator) -> None:
    """Write the mesh of a box to stand in."""
    low, high = np.array([-3.0, -2.0, 0.0]), np.array([3.0, 2.0, 2.5])
    vertices, uv, triangles = [], [], []
    for axis in range(3):
        for side in (low, high):
            for a, b in ((0, 0), (1, 0), (1, 1), (0, 1)):
                corner = side.copy()
                corner[axis - 1] = (low, high)[a][axis - 1]
                corner[axis - 2] = (low, high)[b][axis - 2]
                vertices.append(corner)
                uv.append((2 * a, 2 * b))
            first = len(vertices) - 4
            triangles += [(first, first + 1, first + 2), (first, first + 2, first + 3)]
    (folder / 'textures').mkdir(parents=True)
    np.savez(folder / 'scene.npz', V=np.array(vertices), UV=np.array(uv), F=np.array(triangles),
             MAT=np.zeros(len(triangles), int))
    cv2.imwrite(str(folder / 'textures' / 'a.png'), rng.integers(0, 256, (40, 40), np.uint8))
    (folder / 'materials.json').write_text(
        json.dumps([{'texture': 'a.png', 'color': [0.7, 0.7, 0.7]}]))
