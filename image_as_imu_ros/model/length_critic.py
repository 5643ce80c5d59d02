"""Judges how long the blur of a whole image is, by what `length_features` sees of it."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional

from image_as_imu_ros.geometry.blur_solver import CHOICES, LENGTH_RATIOS
from image_as_imu_ros.geometry.displacement_bins import RADIUS_SCALE_PX
from image_as_imu_ros.model.length_features import CHANNELS
from image_as_imu_ros.model.steered_derivatives import STEERED


class Correlation(nn.Conv1d):
    """The same as `nn.Conv1d` padded by half a kernel, several times as fast on short input."""

    def __init__(self, channels: int, width: int, kernel: int) -> None:
        super().__init__(channels, width, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, length) to (B, width, length)."""
        if torch.onnx.is_in_onnx_export():  # which knows convolutions, and computes them well
            return super().forward(x)
        windows = functional.pad(x, self.padding * 2).unfold(2, x.shape[2], 1)
        return self.weight.flatten(1) @ windows.flatten(1, 2) + self.bias[:, None]


class LengthCritic(nn.Module):
    """Convolutions over the logarithm of lag over length: the same for every hill."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.scale = nn.BatchNorm1d(CHANNELS)
        self.layers = nn.Sequential(
            Correlation(CHANNELS, width, 5), nn.GELU(), Correlation(width, width, 9), nn.GELU(),
            Correlation(width, width, 9), nn.GELU(), Correlation(width, 1, 1))
        self.cells_share = nn.Parameter(torch.tensor(1.0))
        self.length_prior = nn.Parameter(torch.tensor(2.0))
        self.register_buffer('ratios', torch.from_numpy(LENGTH_RATIOS), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """
        Judge hills.

        :param features: (B, K, CHANNELS, len(LENGTH_RATIOS)) of B images with K hills each
        :returns: logits, (B, K, len(LENGTH_RATIOS[CHOICES]))
        """
        judged = self.layers(self.scale(features.flatten(0, 1))).unflatten(0, features.shape[:2])
        cells = features[:, :, STEERED]
        length_px = (features[:, :, STEERED + 1, :1].exp() - 1.0) * self.ratios
        prior = torch.log1p(length_px / RADIUS_SCALE_PX)
        return (judged[:, :, 0] + self.cells_share * cells - self.length_prior * prior)[
            ..., CHOICES]

    def traced(self) -> torch.jit.ScriptModule:
        """The same for inference, of any number of images and hills, in half the time."""
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter('ignore', FutureWarning)
            example = torch.zeros(1, 1, CHANNELS, len(LENGTH_RATIOS))
            return torch.jit.freeze(torch.jit.trace(self.eval(), example, check_trace=False))
