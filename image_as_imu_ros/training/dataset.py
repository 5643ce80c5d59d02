"""Endless synthetic crops, each a function of the seed and its index alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from image_as_imu_ros.config import TrainingConfig
from image_as_imu_ros.model.network import STRIDE_PX
from image_as_imu_ros.synthesis.blur import Sample, render, sample_camera, sample_motion
from image_as_imu_ros.synthesis.textures import load_textures, procedural_texture

CROPS_PER_DRAWING = 64
"""Procedural textures are drawn anew after so many crops; drawing costs ten crops."""


class CropFactory:
    """
    Crop number i of a seed, whoever asks and in whatever order.

    :param assets: folder of photographs and panoramas; None trains on drawn textures alone
    :param held_out: draw from the validation share of the photographs, and other seeds
    """

    def __init__(self, config: TrainingConfig, assets: Path | None, held_out: bool) -> None:
        self.config = config
        self.seed = 2 * config.seed + held_out
        self.photographs = load_textures(assets, held_out) if assets else []
        self.drawing = lru_cache(maxsize=16)(self._drawing)

    def _drawing(self, number: int) -> np.ndarray:
        return procedural_texture(np.random.default_rng([self.seed, 1, number]))

    def crop(self, index: int) -> Sample:
        """Make crop `index`."""
        rng = np.random.default_rng([self.seed, 0, index])
        if rng.random() < self.config.procedural or not self.photographs:
            block = index // (4 * CROPS_PER_DRAWING)
            texture = self.drawing(4 * block + int(rng.integers(4)))
        else:
            texture = self.photographs[rng.integers(len(self.photographs))]
        camera = sample_camera(rng, self.config.width, self.config.height)
        return render(rng, texture, camera, sample_motion(rng, camera.fx_px), STRIDE_PX)


def collate(samples: list[Sample]) -> tuple[Tensor, Tensor, Tensor]:
    """Stack samples: gray (B, 1, H, W) uint8, field (B, h, w, 2, 6) and motion (B, 6)."""
    return (torch.from_numpy(np.stack([s.gray for s in samples])[:, None]),
            torch.from_numpy(np.stack([s.field for s in samples])),
            torch.from_numpy(np.stack([s.motion for s in samples])).float())


class CropBatches(IterableDataset):
    """Batches of crops from a starting index on; workers take turns, order is kept."""

    def __init__(self, config: TrainingConfig, assets: Path | None, start: int) -> None:
        self.config, self.assets, self.start = config, assets, start

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield batches as `collate` makes them."""
        cv2.setNumThreads(1)
        torch.set_num_threads(1)
        info = get_worker_info()
        turn, turns = (info.id, info.num_workers) if info else (0, 1)
        factory = CropFactory(self.config, self.assets, held_out=False)
        batch = self.config.batch
        for first in range(self.start + turn * batch, self.config.crops, turns * batch):
            last = min(first + batch, self.config.crops)
            yield collate([factory.crop(index) for index in range(first, last)])
