"""Colours for flow and depth."""

from __future__ import annotations

import torch
from torch import Tensor

FULL_COLOUR_PX = 30.0
DEPTH_RANGE_M = (0.3, 10.0)


def double_angle(flow_px: Tensor) -> Tensor:
    """
    Vectors of the same length and twice the angle, equal for displacements of either sign.

    :param flow_px: (..., 2)
    :returns: (..., 2), px
    """
    u, v = flow_px.unbind(dim=-1)
    length = flow_px.norm(dim=-1).clamp(min=1e-6)
    return torch.stack([(u * u - v * v) / length, 2 * u * v / length], dim=-1)


def flow_picture(vectors: Tensor) -> Tensor:
    """
    Hue by direction, brightness by length: an unsigned displacement has one colour.

    :param vectors: (B, h, w, 2) of `double_angle`, px
    :returns: RGB (B, 3, h, w), 0 to 1
    """
    hue = torch.atan2(vectors[..., 1], vectors[..., 0]) / (2 * torch.pi)
    value = (vectors.norm(dim=-1) / FULL_COLOUR_PX).clamp(max=1.0)
    # each primary colour's distance from the hue, around the circle in sixths
    place = torch.stack([(6.0 * hue + shift) % 6.0 for shift in (0.0, 4.0, 2.0)], dim=1)
    return value[:, None] * ((place - 3.0).abs() - 1.0).clamp(0.0, 1.0)


def depth_picture(depth_m: Tensor) -> Tensor:
    """
    Near is bright, on a logarithmic scale.

    :param depth_m: (B, H, W)
    :returns: (B, 3, H, W), 0 to 1
    """
    low, high = torch.tensor(DEPTH_RANGE_M).log().tolist()
    shade = ((high - depth_m.log()) / (high - low)).clamp(0.0, 1.0)
    return shade[:, None].expand(-1, 3, -1, -1)
