"""Endless synthetic crops, each a function of the seed and its index alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from image_as_imu_ros.config import TrainingConfig
from image_as_imu_ros.model.network import STRIDE_PX
from image_as_imu_ros.synthesis import keyframes as rooms
from image_as_imu_ros.synthesis.blur import (
    OVERSAMPLING,
    Sample,
    render,
    sample_camera,
    sample_motion,
)
from image_as_imu_ros.synthesis.textures import (
    HELD_OUT_EVERY,
    load_textures,
    procedural_texture,
)

CROPS_PER_DRAWING = 64
"""Procedural textures are drawn anew after so many crops; drawing costs ten crops."""
KEYFRAMES_AT_A_TIME = 8
"""Rooms take turns among so many keyframes over 4 CROPS_PER_DRAWING; reading costs two crops."""


class CropFactory:
    """
    Crop number i of a seed, whoever asks and in whatever order.

    :param assets: folder of photographs and panoramas; None trains on drawn textures alone
    :param held_out: draw from the validation share of photographs and keyframes, and other seeds
    :param keyframes: folder of views of rooms, as `mesh_rooms.write_keyframes` makes; None trains
        on flat scenes alone
    """

    def __init__(self, config: TrainingConfig, assets: Path | None, held_out: bool,
                 keyframes: Path | None = None) -> None:
        self.config = config
        self.seed = 2 * config.seed + held_out
        self.photographs = load_textures(assets, held_out) if assets else []
        self.drawing = lru_cache(maxsize=16)(self._drawing)
        self.keyframes = [] if keyframes is None else [
            path for index, path in enumerate(rooms.find_keyframes(keyframes))
            if (index % HELD_OUT_EVERY == 0) == held_out]
        self.keyframe = lru_cache(maxsize=2 * KEYFRAMES_AT_A_TIME)(self._keyframe)

    def _drawing(self, number: int) -> np.ndarray:
        return procedural_texture(np.random.default_rng([self.seed, 1, number]))

    def _keyframe(self, number: int) -> rooms.Keyframe:
        rng = np.random.default_rng([self.seed, 2, number])
        return rooms.Keyframe.load(self.keyframes[rng.integers(len(self.keyframes))])

    def crop(self, index: int) -> Sample:
        """Make crop `index`."""
        rng = np.random.default_rng([self.seed, 0, index])
        block = index // (4 * CROPS_PER_DRAWING)
        if self.keyframes and rng.random() < self.config.rooms:
            number = KEYFRAMES_AT_A_TIME * block + int(rng.integers(KEYFRAMES_AT_A_TIME))
            return self._crop_of_room(rng, self.keyframe(number))
        if rng.random() < self.config.procedural or not self.photographs:
            texture = self.drawing(4 * block + int(rng.integers(4)))
        else:
            texture = self.photographs[rng.integers(len(self.photographs))]
        camera = sample_camera(rng, self.config.width, self.config.height)
        return render(rng, texture, camera, sample_motion(rng, camera.fx_px), STRIDE_PX)

    def _crop_of_room(self, rng: np.random.Generator, keyframe: rooms.Keyframe) -> Sample:
        camera = sample_camera(rng, self.config.width, self.config.height)
        # nearly the keyframe's own focal length, so that its pixels are small enough
        focal_px = keyframe.camera.fx_px / OVERSAMPLING
        camera = replace(camera, fx_px=focal_px, fy_px=focal_px * camera.fy_px / camera.fx_px)
        motion = sample_motion(rng, focal_px)
        return rooms.render(rng, keyframe, camera, motion, STRIDE_PX)


def collate(samples: list[Sample]) -> tuple[Tensor, Tensor, Tensor]:
    """Stack samples: gray (B, 1, H, W) uint8, field (B, h, w, 2, 6) and motion (B, 6)."""
    return (torch.from_numpy(np.stack([s.gray for s in samples])[:, None]),
            torch.from_numpy(np.stack([s.field for s in samples])),
            torch.from_numpy(np.stack([s.motion for s in samples])).float())


class CropBatches(IterableDataset):
    """Batches of crops from a starting index on; workers take turns, order is kept."""

    def __init__(self, config: TrainingConfig, assets: Path | None, start: int,
                 keyframes: Path | None = None) -> None:
        self.config, self.assets, self.start, self.keyframes = config, assets, start, keyframes

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield batches as `collate` makes them."""
        cv2.setNumThreads(1)
        torch.set_num_threads(1)
        info = get_worker_info()
        turn, turns = (info.id, info.num_workers) if info else (0, 1)
        factory = CropFactory(self.config, self.assets, held_out=False, keyframes=self.keyframes)
        batch = self.config.batch
        for first in range(self.start + turn * batch, self.config.crops, turns * batch):
            last = min(first + batch, self.config.crops)
            yield collate([factory.crop(index) for index in range(first, last)])
