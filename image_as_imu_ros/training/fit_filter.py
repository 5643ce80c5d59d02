"""
Fits the correlation's matched filter, and how much the rest of the network counts beside it.

The filter has one weight for each angle between a feature's direction and the motion and each
ratio of lag to length, the same for all motions. With the rest of the network fixed, finding
them is a convex problem: logistic regression of the true motion against rivals, over whole
images.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from image_as_imu_ros.config import TrainingConfig
from image_as_imu_ros.errors import WeightsError
from image_as_imu_ros.geometry.blur_solver import CELLS_PER_WITNESS
from image_as_imu_ros.geometry.displacement_bins import (
    MAX_RADIUS_PX,
    RADIUS_SCALE_PX,
    bin_displacements,
    interpolation,
)
from image_as_imu_ros.model.network import (
    ANGLES,
    DIRECTIONS,
    RATIOS,
    DisplacementNetwork,
    filter_table,
)
from image_as_imu_ros.synthesis.blur import Sample
from image_as_imu_ros.synthesis.motion import ROLL_LEVER
from image_as_imu_ros.training.dataset import CropFactory
from image_as_imu_ros.training.losses import RIVALS, rival_motions

WIDTH_PX, HEIGHT_PX = 320, 224
PROCEDURAL = 0.25
FAR_RIVALS = 24
"""Motions of any kind that the true one is compared with, beside RIVALS near ones."""
FAR_WEIGHT = 2.0
RIDGE = 0.013
"""Of the squared weights against a single image, in units of the evidence's spread."""


def evidence(network: DisplacementNetwork, sample: Sample, seed: int) -> Tensor:
    """
    What the network and the features say for the true motion of an image and for its rivals.

    :param seed: of the rivals
    :returns: (1 + RIVALS + FAR_RIVALS, 1 + ANGLES * RATIOS), the true motion first
    """
    generator = torch.Generator().manual_seed(seed)
    focal_px = sample.intrinsics.fx_px
    truth = torch.from_numpy(sample.motion).float()[None]
    near = rival_motions(truth, torch.tensor([focal_px]), generator)[0]
    axis = functional.normalize(torch.randn(FAR_RIVALS, 3, generator=generator), dim=-1)
    length_px = RADIUS_SCALE_PX * torch.expm1(
        torch.rand(FAR_RIVALS, 1, generator=generator)
        * math.log1p(0.7 * MAX_RADIUS_PX / RADIUS_SCALE_PX))
    turn = axis * length_px / (focal_px * torch.tensor([1.0, 1.0, ROLL_LEVER]))
    lever = 0.15 * torch.randn(FAR_RIVALS, 3, generator=generator)
    far = torch.cat([turn, lever * turn.norm(dim=-1, keepdim=True)], dim=-1)
    motions = torch.cat([truth, near, far])
    flow_px = torch.einsum('hwij,kj->khwi', torch.from_numpy(sample.field), motions).flatten(1, 2)

    gray = torch.from_numpy(sample.gray)[None, None].float() / 255.0
    structure, features = network.front_ends(gray)
    unfiltered = network.head(network.decode(structure, gray))
    log_probability = torch.log_softmax(unfiltered, dim=1)[0].flatten(1).T
    bins, weights = interpolation(flow_px)
    cells = torch.arange(len(log_probability))[:, None]
    rows = [(log_probability[cells, bins[k]] * weights[k]).sum() for k in range(len(motions))]
    features = features[0].flatten(1).T.unflatten(1, (DIRECTIONS, -1))
    looked_up = []
    for flow in flow_px:
        indices, shares = filter_table(flow)
        looked_up.append(torch.zeros(ANGLES * RATIOS).scatter_add(
            0, indices.flatten(), (shares * features[..., None]).flatten()))
    return torch.cat([torch.stack(rows)[:, None], torch.stack(looked_up)], 1) / CELLS_PER_WITNESS


def separation(evidence: Tensor, weights: Tensor) -> Tensor:
    """How badly evidence (N, 1 + rivals, F) tells the true motions from their rivals, nats."""
    score = evidence @ weights
    badly = functional.softplus(score[:, 1:] - score[:, :1])
    return badly[:, :RIVALS].mean() + FAR_WEIGHT * badly[:, RIVALS:].mean()


def fit_filter(network: DisplacementNetwork, assets: Path, images: int, seed: int) -> float:
    """
    Fit the filter and the share of the rest, in place.

    :param assets: photographs and panoramas
    :param images: whole images to fit on; a fifth as many held-out ones are scored
    :returns: `separation` on the held-out images, nats; 3 log 2 for one that cannot tell
    :raises DataFormatError: if there are no photographs
    :raises WeightsError: if the network has no such filter
    """
    if not isinstance(network, DisplacementNetwork):
        raise WeightsError(f'weights of the architecture "{network.architecture}" have no filter')
    network.eval()
    config = TrainingConfig(seed=seed, width=WIDTH_PX, height=HEIGHT_PX, procedural=PROCEDURAL)
    shares = ((False, images, 'fitting'), (True, max(images // 5, 1), 'held out'))
    evidences = []
    with torch.no_grad():
        for held_out, count, name in shares:
            scenes = CropFactory(config, assets, held_out)
            evidences.append(torch.stack([
                evidence(network, scenes.crop(index), index)
                for index in tqdm(range(count), name, unit='image')]))
    training, validation = evidences
    scale = training.std(dim=(0, 1)) + 1e-6
    weights = torch.zeros(training.shape[-1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=300, line_search_fn='strong_wolfe')

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = separation(training / scale, weights) + RIDGE / images * weights.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    found = (weights / scale).detach()
    with torch.no_grad():
        network.head[2].weight *= found[0]
        network.head[2].bias *= found[0]
        indices, parts = filter_table(bin_displacements())
        table = (found[1:][indices] * parts).sum(dim=-1)
        table[0] = table[0].mean(dim=0)  # no displacement has no direction
        network.template.weight.copy_(table.flatten(1)[..., None, None])
    return separation(validation, found).item()
