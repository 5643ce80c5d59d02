"""
Judges from a whole image how long its blur is, once it is known where the motion goes.

Cell by cell, a blur of twice the length often looks as likely as the true one. Followed along a
whole motion field, and averaged over the image, the derivatives' correlation has one dip, at
lag = length; averaging first and judging afterwards is what single cells cannot do.
"""

from __future__ import annotations

import warnings
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from image_as_imu_ros.geometry.blur_solver import CHOICES, LENGTH_RATIOS, Hills
from image_as_imu_ros.geometry.displacement_bins import RADIUS_SCALE_PX
from image_as_imu_ros.model.steered_derivatives import STEERED, SteeredDerivatives

CHANNELS = STEERED + 4
"""Steered correlations; the cells' log-probability at that ratio; median and greatest length of
the blur; and how much lower the hill is than the highest."""
LEAST_PROFILE = -30.0
"""Far worse than the best is just that, nats."""
SAME_SCALE = 1.2
"""Blurs whose lengths differ by less share their derivatives."""


class Correlation(nn.Conv1d):
    """The same as `nn.Conv1d` padded by half a kernel, several times as fast on short input."""

    def __init__(self, channels: int, width: int, kernel: int) -> None:
        super().__init__(channels, width, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, length) to (B, width, length)."""
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
        length_px = features[:, :, STEERED + 1, :1].expm1() * self.ratios
        prior = torch.log1p(length_px / RADIUS_SCALE_PX)
        return (judged[:, :, 0] + self.cells_share * cells - self.length_prior * prior)[
            ..., CHOICES]

    def traced(self) -> torch.jit.ScriptModule:
        """The same for inference, of any number of images and hills, in half the time."""
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter('ignore', FutureWarning)
            example = torch.zeros(1, 1, CHANNELS, len(LENGTH_RATIOS))
            return torch.jit.freeze(torch.jit.trace(self.eval(), example, check_trace=False))


@lru_cache(maxsize=8)
def chessboard(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Every other cell, (N, 2) column and row, and its index; the others tell little more."""
    row, column = np.indices((rows, columns))
    looked_at = np.flatnonzero((row + column) % 2 == 0)
    return np.stack([looked_at % columns, looked_at // columns], axis=-1), looked_at


def cell_centres(cells: np.ndarray, side_px: float) -> np.ndarray:
    """Centres of cells of a grid, of columns or rows or both, px."""
    return (cells + 0.5) * side_px - 0.5


def hill_features(image: np.ndarray, matrix: np.ndarray, hills: Hills) -> np.ndarray:
    """
    Gather what the critic sees of the hills of one image.

    :param image: (H, W) float32, 0 to 1
    :param matrix: (h, w, 2, 6), motion field matrix at the cells' centres, px
    :returns: (K, CHANNELS, len(LENGTH_RATIOS)) float32
    """
    cells, looked_at = chessboard(*matrix.shape[:2])
    centres_px = cell_centres(cells, image.shape[0] / len(matrix))
    flows_px = (hills.motions @ matrix.reshape(-1, 6).T).reshape(len(hills.motions), -1, 2)
    flows_px = flows_px[:, looked_at]
    lengths_px = np.linalg.norm(flows_px, axis=-1)
    medians_px = np.median(lengths_px, axis=1) + 1e-6  # a hill may be exactly at rest
    features = np.empty((len(flows_px), CHANNELS, len(LENGTH_RATIOS)), np.float32)
    features[:, STEERED] = np.maximum(hills.profiles - hills.profiles.max(), LEAST_PROFILE)
    features[:, STEERED + 1:] = np.stack([
        np.log1p(medians_px), np.log1p(lengths_px.max(axis=1)),
        hills.heights - hills.heights.max()], axis=-1)[..., None]
    derivatives = None
    for feature, flow_px, median_px in zip(features, flows_px, medians_px.tolist()):
        if derivatives is None or max(median_px / derivatives.typical_px,
                                      derivatives.typical_px / median_px) > SAME_SCALE:
            derivatives = SteeredDerivatives(image, median_px)
        feature[:STEERED] = derivatives.correlations(centres_px, flow_px, LENGTH_RATIOS)
    return features
