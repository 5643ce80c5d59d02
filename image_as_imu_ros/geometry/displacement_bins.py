"""
Distribution over unsigned displacements, the network's output per cell.

Blur shows a displacement only up to its sign, so d and -d share a bin. Bins lie on a polar
grid: direction modulo pi, and radius on the scale rho = log(1 + r / R0), which is linear below
R0 and logarithmic above. Ring 0 is zero displacement and a single bin.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

DIRECTIONS = 24
RINGS = 21
RADIUS_SCALE_PX = 2.0
MAX_RADIUS_PX = 90.0
BINS = 1 + RINGS * DIRECTIONS
RHO_STEP = math.log1p(MAX_RADIUS_PX / RADIUS_SCALE_PX) / RINGS


def bin_displacements() -> Tensor:
    """Displacement at the centre of each bin, (BINS, 2), px."""
    radius = RADIUS_SCALE_PX * torch.expm1(RHO_STEP * torch.arange(1, RINGS + 1))
    angle = torch.arange(DIRECTIONS) * (math.pi / DIRECTIONS)
    ring = torch.stack([angle.cos(), angle.sin()], dim=-1)
    polar = radius[:, None, None] * ring
    return torch.cat([torch.zeros(1, 2), polar.reshape(-1, 2)])


def interpolation(displacement: Tensor) -> tuple[Tensor, Tensor]:
    """
    Bins around a displacement and their bilinear weights in (rho, direction).

    :param displacement: (..., 2), px, of either sign; longer than MAX_RADIUS_PX counts as that
    :returns: bin indices (..., 4) and weights (..., 4) that sum to 1
    """
    radius = displacement.norm(dim=-1)
    rho = (torch.log1p(radius / RADIUS_SCALE_PX) / RHO_STEP).clamp(max=RINGS - 1e-4)
    theta = torch.atan2(displacement[..., 1], displacement[..., 0]) * (DIRECTIONS / math.pi)
    theta = theta % DIRECTIONS
    ring, ring_weight = rho.floor().long(), rho.frac()
    low = theta.floor().long() % DIRECTIONS
    direction_weight = theta - theta.floor()
    directions = torch.stack([low, (low + 1) % DIRECTIONS], dim=-1)
    direction_weights = torch.stack([1 - direction_weight, direction_weight], dim=-1)
    inner = torch.where(ring[..., None] == 0, 0, 1 + (ring[..., None] - 1) * DIRECTIONS
                        + directions)
    outer = 1 + ring[..., None] * DIRECTIONS + directions
    weights = torch.cat([direction_weights * (1 - ring_weight)[..., None],
                         direction_weights * ring_weight[..., None]], dim=-1)
    return torch.cat([inner, outer], dim=-1), weights
