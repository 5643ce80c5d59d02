"""
Fits the critic of the blur's length to what the solver makes of whole synthetic images.

The rest of the network stays as it is: the critic learns which of the solver's hills, and how
many times their length, is the truth.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from image_as_imu_ros.config import TrainingConfig
from image_as_imu_ros.geometry.blur_solver import (
    CHOICES,
    FINALISTS,
    LENGTH_RATIOS,
    Hills,
    solve_blur,
)
from image_as_imu_ros.geometry.displacement_bins import STRIDE_PX
from image_as_imu_ros.geometry.motion_field import motion_field_matrix, pixel_grid
from image_as_imu_ros.model.length_critic import LengthCritic
from image_as_imu_ros.model.length_features import CHANNELS, hill_features
from image_as_imu_ros.model.network import CellDistributions, CompactNetwork
from image_as_imu_ros.model.runtimes import Runtime, TorchRuntime
from image_as_imu_ros.synthesis.blur import Sample
from image_as_imu_ros.training.dataset import CropFactory, keep_to_one_thread

WIDTH_PX, HEIGHT_PX = 320, 224
TOLERANCE = 0.1
"""Error of the motion field, relative to it, at which an answer's worth is down to two thirds."""
NOT_A_HILL = 9.0
"""Relative error that stands for a hill that does not exist."""
EPOCHS = 20
BATCH = 64
LEARNING_RATE = 3e-3


def judged_hills(distributions: Runtime, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """
    What the critic sees of an image, and how wrong each of its choices would be.

    :returns: features (FINALISTS, CHANNELS, len(LENGTH_RATIOS)), and the relative error of the
        motion field, (FINALISTS, C); rows beyond the hills are NOT_A_HILL
    """
    image = sample.gray.astype(np.float32) / 255.0
    # the solver knows of no depth: one distance for all cells
    matrix = motion_field_matrix(pixel_grid(WIDTH_PX, HEIGHT_PX, STRIDE_PX), sample.intrinsics)
    features = np.zeros((FINALISTS, CHANNELS, len(LENGTH_RATIOS)), np.float32)
    errors = np.full((FINALISTS, len(LENGTH_RATIOS[CHOICES])), NOT_A_HILL, np.float32)

    def judge(hills: Hills) -> np.ndarray:
        count = len(hills.motions)
        features[:count] = hill_features(image, matrix, hills)
        true_px = sample.flow_px
        size = np.sqrt((true_px ** 2).sum(axis=-1).mean())
        for row, motion in zip(errors, hills.motions):
            found_px = matrix @ motion
            facing = np.sign((found_px * true_px).sum())
            for choice, ratio in enumerate(LENGTH_RATIOS[CHOICES]):
                wrong = ((facing * ratio * found_px - true_px) ** 2).sum(axis=-1).mean()
                row[choice] = np.sqrt(wrong) / (size + 1.0)
        return np.zeros((count, errors.shape[1]))

    gray = torch.from_numpy(image)[None, None]
    solve_blur(distributions(gray)[0].numpy(), matrix, judge=judge)
    return features, errors


class JudgedImages(Dataset):
    """
    `judged_hills` of whole synthetic images, made by whichever process asks.

    :param network: whose hills are judged
    :param images: how many
    :param assets, held_out, keyframes: as of `CropFactory`
    """

    def __init__(self, network: CompactNetwork, config: TrainingConfig, images: int, assets: Path,
                 held_out: bool, keyframes: Path | None) -> None:
        self._network, self._config, self._images = network, config, images
        self._scenes = (assets, held_out, keyframes)

    def __len__(self) -> int:
        """Number of images."""
        return self._images

    @cached_property
    def _tools(self) -> tuple[Runtime, CropFactory]:
        keep_to_one_thread()
        return (TorchRuntime(CellDistributions(self._network.fused(), half=False), 'cpu'),
                CropFactory(self._config, *self._scenes))

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Make image `index` and judge its hills."""
        distributions, scenes = self._tools
        with torch.inference_mode():
            return judged_hills(distributions, scenes.crop(index))


def critic_loss(logits: Tensor, errors: Tensor) -> Tensor:
    """
    Minus the logarithm of what the choice is worth on average, nats.

    :param logits: (B, K, C)
    :param errors: (B, K, C), relative to the motion field
    """
    choice = logits.masked_fill(errors >= NOT_A_HILL, -1e4).flatten(1).log_softmax(dim=1)
    worth = -(0.5 * (errors / TOLERANCE) ** 2).log1p().flatten(1)
    return -torch.logsumexp(choice + worth, dim=1).mean()


@torch.no_grad()
def median_error(critic: LengthCritic, features: Tensor, errors: Tensor) -> float:
    """Median over images of the relative error of the critic's choice."""
    logits = critic(features).masked_fill(errors >= NOT_A_HILL, -1e4)
    chosen = logits.flatten(1).argmax(dim=1, keepdim=True)
    return errors.flatten(1).gather(1, chosen).median().item()


def fit_critic(network: CompactNetwork, assets: Path, images: int, seed: int,
               keyframes: Path | None = None, workers: int = 2) -> float:
    """
    Fit the critic in place.

    :param assets: photographs and panoramas
    :param keyframes: views of rooms; None uses flat scenes alone
    :param images: whole images to fit on; a fifth as many held-out ones are scored
    :param workers: processes that make and solve them
    :returns: median relative error of the motion field on the held-out images
    :raises DataFormatError: if there are no photographs
    """
    config = TrainingConfig(seed=seed, width=WIDTH_PX, height=HEIGHT_PX)
    sets = []
    for held_out, count, name in ((False, images, 'solving'), (True, max(images // 5, 1),
                                                               'held out')):
        loader = DataLoader(JudgedImages(network, config, count, assets, held_out, keyframes),
                            batch_size=None, num_workers=workers,
                            # OpenCV's threads do not survive a fork
                            multiprocessing_context='spawn' if workers else None)
        # copies, as each tensor of another process keeps a file open
        parts = [[part.numpy().copy() for part in each]
                 for each in tqdm(loader, name, unit='image')]
        sets.append([np.stack(part) for part in zip(*parts)])
    (features, errors), held_out = ([torch.from_numpy(part) for part in each] for each in sets)

    generator = torch.Generator().manual_seed(seed)
    critic = network.critic.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(critic.parameters(), weight_decay=1e-3)
    batches = -(-images // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE,
                                                   EPOCHS * batches)
    for _ in tqdm(range(EPOCHS), 'fitting', unit='epoch'):
        for batch in torch.randperm(images, generator=generator).split(BATCH):
            loss = critic_loss(critic(features[batch]), errors[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return median_error(critic.eval(), *held_out)
