"""The scenes that training draws, as a source of datasets."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from image_as_imu_ros.config import TrainingConfig
from image_as_imu_ros.synthesis.blur import Sample
from image_as_imu_ros.synthesis.labelled_image import INSTANTS, LabelledImage, pose_matrix
from image_as_imu_ros.synthesis.motion import DISTANCE_M
from image_as_imu_ros.training.dataset import FAR_M, CropFactory

_SETTINGS = ('seed', 'width', 'height', 'procedural', 'rooms')


class DrawnScenes:
    """
    Textures, photographs and rooms under random motion, as `CropFactory` draws them.

    These have no scale: the distance of the scene is drawn, too.

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
    Give a sample metres.

    :param sample: with its labels at every pixel
    """
    labels, path = sample.labels, sample.path
    distance_m = float(np.exp(rng.uniform(*np.log(DISTANCE_M))))
    scale = np.repeat([1.0, distance_m], 3)
    angular_rad_s, linear_m_s = np.split(labels.motion * scale / path.exposure_s, 2)
    times_s = path.exposure_s * np.linspace(-0.5, 0.5, INSTANTS)
    velocities = np.stack([np.interp(times_s, path.times_s, values)
                           for values in path.velocity.T], axis=1) * scale
    start, end = (pose_matrix(rotation, position * distance_m)
                  for rotation, position in zip(*path.pose(times_s[[0, -1]])))
    gray = (sample.rgb == sample.rgb[..., :1]).all()
    return LabelledImage(
        sample.rgb[..., 0] if gray else sample.rgb,
        np.maximum(labels.inverse_depth / distance_m, 1.0 / FAR_M).astype(np.float32),
        labels.flow_px.astype(np.float32).transpose(2, 0, 1), sample.intrinsics, path.exposure_s,
        angular_rad_s, linear_m_s, np.column_stack([times_s, velocities]),
        np.linalg.inv(end) @ start, 'drawn scene', readout_time_s=sample.sensor.readout_s)
