"""The training loop, to be read from top to bottom."""

from __future__ import annotations

import csv
import dataclasses
import logging
import math
import time
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from image_as_imu_ros.config import TrainingConfig
from image_as_imu_ros.errors import ConfigError
from image_as_imu_ros.geometry.motion_field import motion_field_matrix
from image_as_imu_ros.model.architectures import build_network, open_network
from image_as_imu_ros.model.weights import load_strictly
from image_as_imu_ros.training.checkpoint import (
    read_checkpoint,
    start_from,
    start_from_teacher,
    write_checkpoint,
)
from image_as_imu_ros.training.dataset import (
    Batch,
    CropBatches,
    LabelledFactory,
    make_factory,
)
from image_as_imu_ros.training.objectives import Objective, objective_for

logger = logging.getLogger(__name__)

SCALARS_EVERY = 20
"""Steps between TensorBoard's scalars."""
IMAGES_SOLVED = 16
"""Held-out images whose motion is recovered at each checkpoint."""
IMAGES_SHOWN = 4


class Score(NamedTuple):
    """How good a network is on held-out images."""

    loss: float
    rotation_error: float
    """Median error of w T that the solver finds, of either sign, relative to the true one."""


def learning_rate(config: TrainingConfig, crops: int) -> float:
    """
    Rate after so many crops, a function of nothing else, so that resuming needs no state.

    Trapezoid: rise, hold, and fall to zero over the last part. Cosine: rise, and fall to zero.
    One-cycle: as of torch's OneCycleLR, without its cycle of the momentum.
    """
    if config.overfit:
        return config.learning_rate
    progress = min(crops / config.crops, 1.0)
    if config.schedule == 'one-cycle':
        first, peak, last = config.learning_rate * np.array([1 / 25, 1.0, 1 / 25e4])
        return (_cosine(first, peak, progress / 0.3) if progress < 0.3
                else _cosine(peak, last, (progress - 0.3) / 0.7))
    rise = progress / config.warmup if config.warmup else 1.0
    if config.schedule == 'cosine' and rise >= 1.0:
        return _cosine(config.learning_rate, 0.0,
                       (progress - config.warmup) / max(1.0 - config.warmup, 1e-9))
    fall = (1.0 - progress) / config.decay if config.decay else 1.0
    return config.learning_rate * max(0.0, min(1.0, rise, fall))


def _cosine(first: float, last: float, progress: float) -> float:
    """From the first value to the last along half a cosine."""
    return float(last + 0.5 * (first - last) * (1.0 + math.cos(math.pi * progress)))


def train(config: TrainingConfig, output: Path, assets: Path | None = None,
          labels: tuple[Path, ...] = (), max_minutes: float | None = None,
          device: str = 'cpu', keyframes: Path | None = None) -> Score:
    """
    Train a network, or go on from `output`/checkpoint.pt where there is one.

    Each crop depends on the seed and its number alone, and so does all else that is random on
    the number of crops, so that an interrupted run goes on exactly as it would have. Started by
    torchrun, processes share each batch, on one machine or several that share `output`.

    :param output: run folder: checkpoint.pt, config.yaml, log.csv, TensorBoard's events
    :param assets: folder of photographs; None uses drawn textures alone
    :param labels: folders of labelled recordings to train on instead of synthetic images
    :param max_minutes: stop after a checkpoint when so much time has passed
    :param keyframes: folder of views of rooms; None uses flat scenes alone
    :returns: last score of the averaged weights
    :raises ConfigError: if settings do not fit each other, the data or what is installed
    :raises WeightsError: if a checkpoint or the initial weights cannot be used
    """
    # who we are: one process, or one of several
    accelerator = make_accelerator(device)
    rank, processes = accelerator.process_index, accelerator.num_processes
    main_process = accelerator.is_main_process
    if config.batch % processes:
        raise ConfigError(f'batch: {config.batch} images cannot be shared evenly by '
                          f'{processes} processes')

    # what is held out, and how long to train
    factory = make_factory(config, assets, labels, not config.overfit, keyframes)
    count = config.overfit or config.validation
    if isinstance(factory, LabelledFactory):
        count = min(count, len(factory))
        if config.epochs:
            images = len(make_factory(config, assets, labels, held_out=False))
            config = dataclasses.replace(config, crops=config.epochs * images)
    samples = [factory.crop(index) for index in range(count)] if main_process else []
    held_out = [factory.collate(samples[first:first + config.batch])
                for first in range(0, len(samples), config.batch)]

    # the network, its average and its optimiser, new or as they were
    torch.manual_seed(config.seed)
    objective = objective_for(config)
    network = build_network(config.architecture, config.widths, config.ranks)
    network.to(accelerator.device, memory_format=torch.channels_last)
    decay = 0.0 if config.overfit else max(0.0, 1.0 - config.batch / config.ema_crops)
    average = ModelEmaV3(network, decay=decay, use_warmup=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate,
                                  weight_decay=config.weight_decay)
    crops = 0
    checkpoint = output / 'checkpoint.pt'
    if checkpoint.exists():
        state = read_checkpoint(checkpoint, config.architecture)
        load_strictly(network, state['network'], checkpoint)
        load_strictly(average.module, state['average'], checkpoint)
        optimizer.load_state_dict(state['optimizer'])
        crops = state['crops']
        logger.info('resuming %s at crop %d', checkpoint, crops)
    elif config.initial:
        start_from(network, Path(config.initial))
        average.set(network)
    elif config.teacher:
        start_from_teacher(network, objective.teacher, config.teacher)
        average.set(network)
    model, optimizer = accelerator.prepare(network, optimizer)

    # where the crops come from and the results go to
    on_cpu = accelerator.device.type == 'cpu'  # else images are made where the network is
    loader = DataLoader(CropBatches(config, assets, crops, labels, rank, processes,
                                    keyframes, finished=on_cpu),
                        batch_size=None, num_workers=config.workers,
                        prefetch_factor=6 if config.workers else None,
                        # OpenCV's threads do not survive a fork
                        multiprocessing_context='spawn' if config.workers else None)
    writer = None
    if main_process:
        output.mkdir(parents=True, exist_ok=True)
        (output / 'config.yaml').write_text(yaml.safe_dump(as_plain(config), sort_keys=False))
        writer = make_writer(output) if config.tensorboard else None

    started = saved = time.monotonic()
    resumed_at, score = crops, Score(math.nan, math.nan)
    losses: list[float] = []  # since the last checkpoint
    first_loss, last_pass = None, deque(maxlen=math.ceil(max(config.overfit, 1) / config.batch))
    network.train()
    with tqdm(total=config.crops, initial=crops, unit='crop', smoothing=0.02,
              disable=not main_process) as progress:
        for step, batch in enumerate(loader):
            if not on_cpu:
                batch = factory.collate(factory.finish(batch, accelerator.device))
            optimizer.param_groups[0]['lr'] = rate = learning_rate(config, crops)
            # as in any other run that comes to this crop
            seed = config.seed + crops + rank * (config.batch // processes)
            torch.manual_seed(seed)
            parts = objective.losses(model, to_device(batch, accelerator.device), seed)
            loss = sum(parts.values())
            optimizer.zero_grad(set_to_none=True)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), config.gradient_norm)
            optimizer.step()
            crops += config.batch
            average.update(network, step=crops // config.batch)
            losses.append(loss.item())
            last_pass.append(losses[-1])
            first_loss = first_loss or losses[0]
            progress.update(config.batch)

            now = time.monotonic()
            if writer and step % SCALARS_EVERY == 0:
                for name, part in {**parts, 'sum': loss}.items():
                    writer.add_scalar(f'training_loss/{name}', part.item(), crops)
                writer.add_scalar('learning_rate', rate, crops)
                writer.add_scalar('crops_per_s', (crops - resumed_at) / (now - started), crops)

            learnt = config.overfit > 0 \
                and np.mean(last_pass) < config.overfit_share * first_loss
            out_of_time = max_minutes is not None and now - started > 60 * max_minutes
            stop, save = agreed(accelerator, (
                crops >= config.crops or learnt or out_of_time,
                now - saved > 60 * config.checkpoint_minutes))
            if (stop or save) and main_process:
                parts, score = validate(average.module, objective, held_out, samples,
                                        accelerator.device)
                training_loss = float(np.mean(losses))
                progress.set_postfix(train=f'{training_loss:.3g}', val=f'{score.loss:.3g}')
                with (output / 'log.csv').open('a', newline='') as file:
                    csv.writer(file).writerow(
                        [crops, f'{(now - started) / 60:.2f}', f'{training_loss:.4g}',
                         *(f'{part:.4g}' for part in parts.values()), rate,
                         f'{score.rotation_error:.4f}'])
                if writer:
                    for name, part in {**parts, 'sum': score.loss}.items():
                        writer.add_scalar(f'held_out_loss/{name}', part, crops)
                    writer.add_scalar('rotation_error', score.rotation_error, crops)
                    shown = to_device(factory.collate(samples[:IMAGES_SHOWN]), accelerator.device)
                    with torch.no_grad():
                        writer.add_image('held_out', objective.picture(average.module, shown),
                                         crops)
                write_checkpoint(checkpoint, {
                    'network': network.state_dict(), 'average': average.module.state_dict(),
                    'optimizer': optimizer.state_dict(), 'crops': crops,
                    'config': as_plain(config), 'architecture': config.architecture,
                    'validation_loss': score.loss, 'rotation_error': score.rotation_error})
                losses, saved = [], time.monotonic()
            if stop:
                break
    if writer:
        writer.close()
    accelerator.wait_for_everyone()  # the others must not leave before the checkpoint is written
    return score


@torch.no_grad()
def validate(network: nn.Module, objective: Objective, batches: list[Batch], samples: list[Any],
             device: torch.device) -> tuple[dict[str, float], Score]:
    """Score a network on held-out samples, also stacked in batches, by loss and by motion."""
    network.eval()
    losses = [objective.losses(network, to_device(batch, device), seed)
              for seed, batch in enumerate(batches)]
    parts = {name: float(np.mean([loss[name].item() for loss in losses])) for name in losses[0]}
    error = rotation_error(network, samples[:IMAGES_SOLVED], device.type)
    return parts, Score(sum(parts.values()), error)


def rotation_error(network: nn.Module, samples: list[Any], device: str) -> float:
    """Median relative error of w T, of either sign, as the estimator solves it."""
    architecture = open_network(network, device, 'torch')
    errors = []
    for sample in samples:
        image = sample.rgb if architecture.colour else sample.gray
        output, = architecture.observe([image.astype(np.float32) / 255.0])
        matrix = motion_field_matrix(architecture.points(sample.intrinsics), sample.intrinsics)
        found = architecture.solve(output, matrix, None).motion[:3]
        true = sample.motion[:3]
        errors.append(min(np.linalg.norm(found - true), np.linalg.norm(found + true))
                      / (np.linalg.norm(true) + 1e-9))
    return float(np.median(errors))


def make_accelerator(device: str) -> Any:
    """
    Take part in the group of processes that torchrun started, or train alone.

    :raises ConfigError: if accelerate is not installed
    """
    try:
        from accelerate import Accelerator
    except ModuleNotFoundError as error:
        raise ConfigError(
            "training needs accelerate: pip install 'image_as_imu_ros[train]'") from error
    return Accelerator(cpu=device == 'cpu')


def make_writer(output: Path) -> Any:
    """
    Write for TensorBoard.

    :raises ConfigError: if it is not installed
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise ConfigError('tensorboard: it is not installed: '
                          "pip install 'image_as_imu_ros[tensorboard]'") from error
    return SummaryWriter(str(output))


def agreed(accelerator: Any, flags: tuple[bool, ...]) -> list[bool]:
    """The main process's word on flags, so that all go the same way."""
    from accelerate.utils import broadcast
    return broadcast(torch.tensor(flags, device=accelerator.device).int()).bool().tolist()


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch to where the network is."""
    return tuple(tensor.to(device, non_blocking=True) for tensor in batch)


def as_plain(config: TrainingConfig) -> dict[str, Any]:
    """The settings as YAML and checkpoints hold them."""
    return {**dataclasses.asdict(config), 'widths': list(config.widths),
            'ranks': list(config.ranks)}
