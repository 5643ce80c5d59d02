"""The training loop, to be read from top to bottom."""

from __future__ import annotations

import csv
import dataclasses
import logging
import os
import time
from pathlib import Path

import torch
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from image_as_imu_ros.config import TrainingConfig
from image_as_imu_ros.errors import WeightsError
from image_as_imu_ros.model.network import CompactNetwork
from image_as_imu_ros.model.weights import load_strictly, read_tensors
from image_as_imu_ros.training.dataset import CropBatches, CropFactory, collate
from image_as_imu_ros.training.losses import distribution_loss, motion_loss, rival_motions

logger = logging.getLogger(__name__)

MOTION_WEIGHT = 4.0
"""Of the loss over whole images relative to that over cells."""


def learning_rate(config: TrainingConfig, crops: int) -> float:
    """Rise, hold, and fall to zero over the last part."""
    progress = crops / config.crops
    rise = progress / config.warmup if config.warmup else 1.0
    fall = (1.0 - progress) / config.decay if config.decay else 1.0
    return config.learning_rate * max(0.0, min(1.0, rise, fall))


def train(config: TrainingConfig, output: Path, assets: Path | None = None,
          max_minutes: float | None = None, initial: Path | None = None,
          device: str = 'cpu', keyframes: Path | None = None) -> float:
    """
    Train the compact network, or go on from `output`/checkpoint.pt where there is one.

    Each crop depends on the seed and its number alone, so that an interrupted run goes on with
    exactly the data it would have seen.

    :param output: run folder: checkpoint.pt, log.csv
    :param assets: folder of photographs; None uses drawn textures alone
    :param max_minutes: stop after a checkpoint when so much time has passed
    :param keyframes: folder of views of rooms; None uses flat scenes alone
    :param initial: weights or checkpoint of another run to start from (warm restart)
    :returns: last validation loss, nats
    :raises WeightsError: if a checkpoint cannot be read
    """
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    network = CompactNetwork().to(device, memory_format=torch.channels_last)
    average = ModelEmaV3(network, decay=1.0 - config.batch / config.ema_crops,
                         use_warmup=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate,
                                  weight_decay=config.weight_decay)
    crops = 0
    checkpoint = output / 'checkpoint.pt'
    if checkpoint.exists():
        state = read_checkpoint(checkpoint)
        network.load_state_dict(state['network'])
        average.module.load_state_dict(state['average'])
        optimizer.load_state_dict(state['optimizer'])
        crops = state['crops']
        logger.info('resuming %s at crop %d', checkpoint, crops)
    elif initial is not None:
        load_strictly(network, read_tensors(initial)[0] if initial.suffix == '.safetensors'
                      else read_checkpoint(initial)['average'], initial)
        average.set(network)

    loader = DataLoader(CropBatches(config, assets, crops, keyframes), batch_size=None,
                        num_workers=config.workers,
                        prefetch_factor=6 if config.workers else None,
                        # OpenCV's threads do not survive a fork
                        multiprocessing_context='spawn' if config.workers else None)
    factory = CropFactory(config, assets, held_out=True, keyframes=keyframes)
    held_out = [collate([factory.crop(i) for i in range(first, min(first + config.batch,
                                                                   config.validation))])
                for first in range(0, config.validation, config.batch)]

    started = saved = time.monotonic()
    validation_loss = float('nan')
    losses: list[float] = []
    network.train()
    with tqdm(total=config.crops, initial=crops, unit='crop', smoothing=0.02) as progress:
        for batch in loader:
            optimizer.param_groups[0]['lr'] = learning_rate(config, crops)
            loss = sum(batch_losses(network, batch, device, config.seed + crops))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            crops += len(batch[0])
            average.update(network, step=crops // config.batch)
            losses.append(loss.item())
            progress.update(len(batch[0]))

            now = time.monotonic()
            finished = crops >= config.crops
            out_of_time = max_minutes is not None and now - started > 60 * max_minutes
            if finished or out_of_time or now - saved > 60 * config.checkpoint_minutes:
                parts = validate(average.module, held_out, device)
                validation_loss = sum(parts)
                training_loss = sum(losses) / len(losses)
                progress.set_postfix(train=f'{training_loss:.3f}', val=f'{validation_loss:.3f}')
                with (output / 'log.csv').open('a', newline='') as file:
                    csv.writer(file).writerow(
                        [crops, f'{(now - started) / 60:.1f}', f'{training_loss:.4f}',
                         *(f'{part:.4f}' for part in parts), optimizer.param_groups[0]['lr']])
                write_checkpoint(checkpoint, {
                    'network': network.state_dict(), 'average': average.module.state_dict(),
                    'optimizer': optimizer.state_dict(), 'crops': crops,
                    'config': dataclasses.asdict(config),
                    'architecture': CompactNetwork.architecture,
                    'validation_loss': validation_loss})
                losses, saved = [], time.monotonic()
            if out_of_time:
                break
    return validation_loss


def batch_losses(network: CompactNetwork, batch: tuple[Tensor, Tensor, Tensor], device: str,
                 seed: int) -> tuple[Tensor, Tensor]:
    """Losses of the cells and of the images' motions, nats; rivals are a function of the seed."""
    gray, field, motion = (tensor.to(device) for tensor in batch)
    with torch.autocast(device, torch.bfloat16):
        logits = network(gray.float() / 255.0)
    focal_px = field[..., 0, 1].abs().mean(dim=(1, 2))
    rivals = rival_motions(motion, focal_px, torch.Generator().manual_seed(seed))
    return (distribution_loss(logits, torch.einsum('bhwij,bj->bhwi', field, motion)),
            MOTION_WEIGHT * motion_loss(logits, field, motion, rivals))


@torch.no_grad()
def validate(network: CompactNetwork, batches: list[tuple[Tensor, Tensor, Tensor]],
             device: str) -> tuple[float, float]:
    """Mean losses over held-out batches, as of `batch_losses`."""
    network.eval()
    losses = [batch_losses(network, batch, device, seed) for seed, batch in enumerate(batches)]
    cells, motions = (torch.stack(part).mean().item() for part in zip(*losses))
    return cells, motions


def read_checkpoint(path: Path) -> dict:
    """Load a training state; WeightsError if it is missing, damaged or of another network."""
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged files
        raise WeightsError(f'cannot read checkpoint {path}: {error!r}') from error
    if state.get('architecture') != CompactNetwork.architecture:
        raise WeightsError(f'{path} is for architecture {state.get("architecture")}, '
                           f'not {CompactNetwork.architecture}; start a new run folder')
    return state


def write_checkpoint(path: Path, state: dict) -> None:
    """Write a training state so that the path never holds half of one."""
    partial = path.with_suffix('.partial')
    torch.save(state, partial)
    os.replace(partial, path)
