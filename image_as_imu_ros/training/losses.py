"""
What the network is taught: each cell's displacement, and the motion that all cells agree on.

A cell's distribution trained alone is right on average over cells, but their product over an
image is not: neighbours repeat each other's errors, most of all in the length of the blur. The
second loss judges the product itself, with the very weight that the solver gives it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from image_as_imu_ros.geometry.blur_solver import CELLS_PER_WITNESS
from image_as_imu_ros.geometry.displacement_bins import (
    MAX_RADIUS_PX,
    RADIUS_SCALE_PX,
    interpolation,
)
from image_as_imu_ros.synthesis.blur import ROLL_LEVER

RIVALS = 16
"""Motions that each image's true motion is compared with."""


def distribution_loss(logits: Tensor, flow_px: Tensor) -> Tensor:
    """
    Cross-entropy against the bins around the true displacement.

    :param logits: (B, BINS, h, w)
    :param flow_px: (B, h, w, 2), px
    :returns: mean over all cells, nats
    """
    bins, weights = interpolation(flow_px)
    log_probability = functional.log_softmax(logits.float(), dim=1).movedim(1, -1)
    return -(weights * log_probability.gather(-1, bins)).sum(dim=-1).mean()


def motion_loss(logits: Tensor, field: Tensor, motion: Tensor, rivals: Tensor) -> Tensor:
    """
    How badly the cells' summed log-probability tells the true motion from each rival.

    Where rivals are drawn around the truth by a symmetric law, the loss is least when the sum
    is the log-posterior of the motion (conditional noise-contrastive estimation).

    :param logits: (B, BINS, h, w)
    :param field: (B, h, w, 2, 6), displacement per motion, px
    :param motion: (B, 6), the true one
    :param rivals: (B, K, 6)
    :returns: mean over images and rivals, nats; log 2 for a network that cannot tell

    Source: Ceylan and Gutmann (2018), arXiv:1806.03664.
    """
    motions = torch.cat([motion[:, None], rivals], dim=1)
    flow_px = torch.einsum('bnij,bkj->bnki', field.flatten(1, 2), motions)
    bins, weights = interpolation(flow_px)
    log_probability = functional.log_softmax(logits.float(), dim=1).flatten(2).movedim(1, -1)
    at_bins = log_probability.gather(-1, bins.flatten(2)).view(bins.shape)
    score = (weights * at_bins).sum(dim=(1, 3)) / CELLS_PER_WITNESS
    return functional.softplus(score[:, 1:] - score[:, :1]).mean()


def rival_motions(motion: Tensor, focal_px: Tensor, generator: torch.Generator) -> Tensor:
    """
    Draw motions around the true ones, near and far, each as likely from there as back.

    Blur lengths vary on the scale of the bins' rings, axes on the sphere, with roll scaled to
    what it does to the image; the translation goes along with the rotation.

    :param motion: (B, 6)
    :param focal_px: (B,)
    :returns: (B, RIVALS, 6)
    """
    def draw(*shape: int) -> Tensor:
        return torch.randn(len(motion), RIVALS, *shape, generator=generator).to(motion)

    scale = focal_px[:, None, None] * motion.new_tensor([1.0, 1.0, ROLL_LEVER])
    turn_px = motion[:, None, :3] * scale
    rotation = motion[:, :3].norm(dim=-1)[:, None, None] + 1e-9
    near = torch.rand(len(motion), RIVALS, 2, generator=generator).to(motion)
    length_spread, axis_spread = (3.0 * (near - 1.0)).exp().split(1, dim=-1)
    ring = torch.log1p(turn_px.norm(dim=-1, keepdim=True) / RADIUS_SCALE_PX)
    ring = (ring + length_spread * draw(1)).abs().clamp(
        max=torch.log1p(torch.tensor(MAX_RADIUS_PX / RADIUS_SCALE_PX)).item())
    axis = functional.normalize(
        functional.normalize(turn_px, dim=-1) + axis_spread * draw(3), dim=-1)
    turn = RADIUS_SCALE_PX * torch.expm1(ring) * axis / scale
    lever = motion[:, None, 3:] / rotation + 0.2 * axis_spread * draw(3)
    return torch.cat([turn, lever * turn.norm(dim=-1, keepdim=True)], dim=-1)
