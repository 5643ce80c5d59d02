"""The scenes that training draws, as a source of datasets."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from image_as_imu_ros.config import TrainingConfig
from image_as_imu_ros.synthesis.blur import Sample
from image_as_imu_ros.synthesis.labelled_image import LabelledImage, symmetric_pose
from image_as_imu_ros.training.dataset import DISTANCE_RANGE_M, CropFactory

MAX_SPEED_RAD_S = 25.0
EXPOSURE_RANGE_S = (0.5e-3, 33e-3)
"""Even on a logarithmic scale, where the speed allows it."""
_SETTINGS = ('seed', 'width', 'height', 'procedural', 'rooms')


class DrawnScenes:
    """
    Textures, photographs and rooms under random motion, as `CropFactory` draws them.

    These have no scale and no clock: the distance of the scene and the exposure are drawn, too.

    :param images: how many
    """

    def __init__(self, config: TrainingConfig, images: int, assets: Path | None,
                 keyframes: Path | None, held_out: bool) -> None:
        self._factory = CropFactory(config, assets, held_out, keyframes, stride_px=1)
        self._images = images
        plain = dataclasses.asdict(config)
        self.settings: dict[str, Any] = {
            'source': 'drawn scenes', 'held_out': held_out,
            'photographs': len(self._factory.photographs),
            'keyframes': len(self._factory.keyframes), **{name: plain[name] for name in _SETTINGS}}

    def __len__(self) -> int:
        """Number of images."""
        return self._images

    def draw(self, index: int) -> LabelledImage:
        """Make image `index`."""
        rng = np.random.default_rng([self._factory.seed, 3, index])
        return labelled(self._factory.crop(index), rng)


def labelled(sample: Sample, rng: np.random.Generator) -> LabelledImage:
    """
    Give a sample metres and seconds.

    :param sample: with its motion field at every pixel
    """
    distance_m = float(np.exp(rng.uniform(*np.log(DISTANCE_RANGE_M))))
    shortest_s = np.clip(np.linalg.norm(sample.motion[:3]) / MAX_SPEED_RAD_S, *EXPOSURE_RANGE_S)
    exposure_s = float(np.exp(rng.uniform(*np.log([shortest_s, EXPOSURE_RANGE_S[1]]))))
    motion = sample.motion * np.repeat([1.0, distance_m], 3)
    # the field's column of sideways motion is -f d / Z
    inverse_depth = -sample.field[..., 0, 3] / (sample.intrinsics.fx_px * distance_m)
    angular_rad_s, linear_m_s = np.split(motion / exposure_s, 2)
    return LabelledImage(
        sample.gray, inverse_depth.astype(np.float32), sample.intrinsics, exposure_s,
        angular_rad_s, linear_m_s, np.zeros((0, 7)), symmetric_pose(motion), 'drawn scene')
