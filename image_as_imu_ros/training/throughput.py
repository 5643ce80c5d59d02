"""How fast training images are made, by stage and altogether."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from image_as_imu_ros.config import TrainingConfig
from image_as_imu_ros.errors import ConfigError
from image_as_imu_ros.training.dataset import CROPS_PER_DRAWING, CropBatches, CropFactory

PLANNED, FINISHED = 4 * CROPS_PER_DRAWING, 64
"""Images whose CPU time is measured, in one thread; drawn textures serve as many as planned."""


def time_synthesis(size: tuple[int, int], images: int, device: str, workers: int,
                   assets: Path | None = None) -> dict[str, Any]:
    """
    Make training images as `train` does: by processes that plan, and on the CPU also finish them.

    :param size: width and height, px, multiples of 32
    :param images: how many are counted, after as many as the processes keep ready
    :param device: 'cpu', or 'cuda', where this process finishes them
    :param workers: processes, of one thread each
    :param assets: photographs and panoramas; None draws textures alone
    :returns: `images_per_s`, and `cpu_ms` per image of one thread, by stage
    :raises DataFormatError: if there is no readable image
    :raises ConfigError: if there is no GPU, or the size does not suit training
    """
    if device == 'cuda' and not torch.cuda.is_available():
        raise ConfigError('device: "cuda" was asked for but torch sees no GPU; use "cpu"')
    config = TrainingConfig(width=size[0], height=size[1], batch=32, workers=workers,
                            crops=images + 32 * (2 * workers + 1))
    factory = CropFactory(config, assets, held_out=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    begin = time.process_time()
    plans = [factory.plan(index) for index in range(PLANNED)]
    planned = time.process_time()
    for first in range(0, FINISHED, 8):
        factory.finish(plans[first:first + 8])
    finished = time.process_time()
    torch.set_num_threads(threads)
    cpu_ms = {'plan': round(1e3 * (planned - begin) / PLANNED, 2),
              'finish': round(1e3 * (finished - planned) / FINISHED, 2)}

    counted, started = 0, 0.0
    for number, batch in enumerate(tqdm(_batches(config, assets, device), unit='batch')):
        if device != 'cpu':
            factory.collate(factory.finish(batch, device))
        if number == 2 * workers:  # what was ready beforehand
            counted, started = 0, time.perf_counter()
        else:
            counted += config.batch
    return {'image_size': f'{size[0]}x{size[1]}', 'device': device, 'workers': workers,
            'images': counted, 'cpu_ms': cpu_ms,
            'images_per_s': round(counted / (time.perf_counter() - started), 1)}


def _batches(config: TrainingConfig, assets: Path | None, device: str) -> Iterator[Any]:
    return DataLoader(
        CropBatches(config, assets, 0, finished=device == 'cpu'), batch_size=None,
        num_workers=config.workers, prefetch_factor=2 if config.workers else None,
        multiprocessing_context='spawn' if config.workers else None)
