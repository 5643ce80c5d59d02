"""
Distribution over unsigned displacements, the network's output per cell.

Blur shows a displacement only up to its sign, so d and -d share a bin. Bins lie on a polar
grid: direction modulo pi, and radius on the scale rho = log(1 + r / R0), which is linear below
R0 and logarithmic above. Ring 0 is zero displacement and a single bin.
"""

from __future__ import annotations

import importlib
import math
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

DIRECTIONS = 24
RINGS = 21
RADIUS_SCALE_PX = 2.0
MAX_RADIUS_PX = 90.0
BINS = 1 + RINGS * DIRECTIONS
RHO_STEP = math.log1p(MAX_RADIUS_PX / RADIUS_SCALE_PX) / RINGS
STRIDE_PX = 8
"""Side of the cells that the network's output describes."""

Array = TypeVar('Array', np.ndarray, 'Tensor')


def bin_displacements() -> np.ndarray:
    """Displacement at the centre of each bin, (BINS, 2) float32, px."""
    radius = RADIUS_SCALE_PX * np.expm1(RHO_STEP * np.arange(1, RINGS + 1))
    angle = np.arange(DIRECTIONS) * (math.pi / DIRECTIONS)
    polar = radius[:, None, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    return np.concatenate([np.zeros((1, 2)), polar.reshape(-1, 2)]).astype(np.float32)


def interpolation(displacement: Array) -> tuple[Array, Array]:
    """
    Bins around a displacement and their bilinear weights in (rho, direction).

    :param displacement: (..., 2), px, of either sign; longer than MAX_RADIUS_PX counts as that;
        of numpy or of torch
    :returns: bin indices (..., 4) and weights (..., 4) that sum to 1
    """
    # torch is imported where its tensors are used, and only there
    xp = np if isinstance(displacement, np.ndarray) else importlib.import_module('torch')
    u, v = displacement[..., 0], displacement[..., 1]
    rho = xp.clip(xp.log1p(xp.hypot(u, v) / RADIUS_SCALE_PX) / RHO_STEP, 0.0, RINGS - 1e-4)
    theta = xp.arctan2(v, u) * (DIRECTIONS / math.pi) % DIRECTIONS
    ring, low = (xp.asarray(xp.floor(each), dtype=xp.int64) for each in (rho, theta))
    outward, onward = rho - ring, theta - low
    directions = xp.stack([low % DIRECTIONS, (low + 1) % DIRECTIONS], -1)
    shares = xp.stack([1 - onward, onward], -1)
    outer = 1 + ring[..., None] * DIRECTIONS + directions
    inner = xp.where(ring[..., None] == 0, 0, outer - DIRECTIONS)
    weights = [shares * (1 - outward)[..., None], shares * outward[..., None]]
    return xp.concatenate([inner, outer], -1), xp.concatenate(weights, -1)
