"""
Judges from a whole image how long its blur is, once it is known where the motion goes.

Cell by cell, a blur of twice the length often looks as likely as the true one. Followed along a
whole motion field, and averaged over the image, the derivatives' correlation has one dip, at
lag = length; averaging first and judging afterwards is what single cells cannot do.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from image_as_imu_ros.geometry.blur_solver import CHOICES, LENGTH_RATIOS, Hills
from image_as_imu_ros.geometry.displacement_bins import RADIUS_SCALE_PX

STEERED = 10
CHANNELS = STEERED + 4
"""Steered correlations; the cells' log-probability at that ratio; median and greatest length of
the blur; and how much lower the hill is than the highest."""
NOISE_ENERGY = 3e-6


def steered_correlations(image: np.ndarray, centres_px: np.ndarray,
                         flow_px: np.ndarray) -> np.ndarray:
    """
    Correlate derivatives of an image with themselves along a motion field.

    For the derivatives along, across, and of both kinds, at lags of LENGTH_RATIOS times the
    displacement: correlation over energy; and the mean product and the mean energy, relative to
    the energy nearby. The last channel is the share of the points for which both ends lie in the
    image.

    :param image: (H, W) float32, 0 to 1
    :param centres_px: (N, 2), where to look
    :param flow_px: (N, 2), displacement over the exposure there
    :returns: (STEERED, len(LENGTH_RATIOS)) float32
    """
    length = np.linalg.norm(flow_px, axis=1).astype(np.float32) + np.float32(1e-6)
    typical = float(np.median(length))
    smooth = cv2.GaussianBlur(image, (0, 0), min(max(typical / 10, 0.6), 2.5))

    def slope(of: np.ndarray, dx: int, dy: int) -> np.ndarray:
        return cv2.Sobel(of, cv2.CV_32F, dx, dy, ksize=3, scale=0.125)

    gx, gy = slope(smooth, 1, 0), slope(smooth, 0, 1)
    gxx, gxy, gyy = slope(gx, 1, 0), slope(gx, 0, 1), slope(gy, 0, 1)
    window = (2 * int(max(4.0, typical / 2)) + 1,) * 2
    column, row = np.rint(centres_px).astype(int).T
    nearby = [cv2.blur(energy, window)[row, column] + np.float32(NOISE_ENERGY) for energy in
              (gx * gx + gy * gy, gxx * gxx + 2 * gxy * gxy + gyy * gyy)]

    ux, uy = (flow_px.astype(np.float32) / length[:, None]).T
    half = LENGTH_RATIOS[:, None] * length * np.float32(0.5)
    x, y = centres_px.astype(np.float32).T
    ends_x = np.concatenate([x + half * ux, x - half * ux])
    ends_y = np.concatenate([y + half * uy, y - half * uy])
    height, width = image.shape
    inside = (ends_x >= 0) & (ends_x <= width - 1) & (ends_y >= 0) & (ends_y <= height - 1)
    lags = len(LENGTH_RATIOS)
    seen = (inside[:lags] & inside[lags:] & (half > 0.5)).astype(np.float32)
    first = cv2.remap(cv2.merge([gx, gy]), ends_x, ends_y, cv2.INTER_LINEAR)
    second = cv2.remap(cv2.merge([gxx, gxy, gyy]), ends_x, ends_y, cv2.INTER_LINEAR)
    along = first[..., 0] * ux + first[..., 1] * uy
    across = first[..., 1] * ux - first[..., 0] * uy
    mixed = second[..., 1] * (ux * ux - uy * uy) + (second[..., 2] - second[..., 0]) * (ux * uy)

    count = seen.sum(axis=1) + 1
    channels = []
    for derivative, energy in ((along, nearby[0]), (across, nearby[0]), (mixed, nearby[1])):
        a, b = derivative[:lags] * seen, derivative[lags:] * seen
        product, power = a * b, (a * a + b * b) * np.float32(0.5)
        channels += [product.sum(axis=1) / (power.sum(axis=1) + 1e-9 * count),
                     product @ (1 / energy) / count, power @ (1 / energy) / count]
    return np.stack([*channels, count / len(length)]).astype(np.float32)


class LengthCritic(nn.Module):
    """Convolutions over the logarithm of lag over length: the same for every hill."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.scale = nn.BatchNorm1d(CHANNELS)
        self.layers = nn.Sequential(
            nn.Conv1d(CHANNELS, width, 5, padding=2), nn.GELU(),
            nn.Conv1d(width, width, 9, padding=4), nn.GELU(),
            nn.Conv1d(width, width, 9, padding=4), nn.GELU(), nn.Conv1d(width, 1, 1))
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


def hill_features(image: np.ndarray, matrix: np.ndarray, hills: Hills) -> np.ndarray:
    """
    Gather what the critic sees of the hills of one image.

    :param image: (H, W) float32, 0 to 1
    :param matrix: (h, w, 2, 6), motion field matrix at the cells' centres, px
    :returns: (K, CHANNELS, len(LENGTH_RATIOS)) float32
    """
    row, column = np.indices(matrix.shape[:2])
    looked_at = (row + column) % 2 == 0  # as on a chessboard: the others tell little more
    cells = np.stack([column, row], axis=-1)[looked_at]
    centres_px = (cells + 0.5) * (image.shape[0] / len(matrix)) - 0.5
    # far worse than the best is just that
    profiles = np.maximum(hills.profiles - hills.profiles.max(), -30.0)
    features = []
    for motion, height, profile in zip(hills.motions, hills.heights, profiles):
        flow_px = matrix[looked_at] @ motion
        length = np.linalg.norm(flow_px, axis=1)
        constants = (math.log1p(np.median(length)), math.log1p(length.max()),
                     height - hills.heights.max())
        features.append(np.concatenate([
            steered_correlations(image, centres_px, flow_px), profile[None],
            np.repeat(constants, len(LENGTH_RATIOS)).reshape(3, -1)]))
    return np.stack(features).astype(np.float32)
