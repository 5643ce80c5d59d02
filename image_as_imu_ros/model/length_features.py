"""
What the critic of a blur's length sees of an image, once it is known where the motion goes.

Cell by cell, a blur of twice the length often looks as likely as the true one. Followed along a
whole motion field, and averaged over the image, the derivatives' correlation has one dip, at
lag = length; averaging first and judging afterwards is what single cells cannot do.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from image_as_imu_ros.geometry.blur_solver import LENGTH_RATIOS, Hills
from image_as_imu_ros.model.steered_derivatives import STEERED, SteeredDerivatives

CHANNELS = STEERED + 4
"""Steered correlations; the cells' log-probability at that ratio; median and greatest length of
the blur; and how much lower the hill is than the highest."""
LEAST_PROFILE = -30.0
"""Far worse than the best is just that, nats."""
SAME_SCALE = 1.2
"""Blurs whose lengths differ by less share their derivatives."""


@lru_cache(maxsize=8)
def chessboard(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Every other cell, (N, 2) column and row, and its index; the others tell little more."""
    row, column = np.indices((rows, columns))
    looked_at = np.flatnonzero((row + column) % 2 == 0)
    return np.stack([looked_at % columns, looked_at // columns], axis=-1), looked_at


def looked_at_cells(rows: int, columns: int,
                    usable: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Those of `chessboard` that are usable, (rows, columns) bool; None: all."""
    cells, looked_at = chessboard(rows, columns)
    if usable is None:
        return cells, looked_at
    chosen = usable.ravel()[looked_at]
    return cells[chosen], looked_at[chosen]


def cell_centres(cells: np.ndarray, side_px: float) -> np.ndarray:
    """Centres of cells of a grid, of columns or rows or both, px."""
    return (cells + 0.5) * side_px - 0.5


def hill_features(image: np.ndarray, matrix: np.ndarray, hills: Hills,
                  usable: np.ndarray | None = None) -> np.ndarray:
    """
    Gather what the critic sees of the hills of one image.

    :param image: (H, W) float32, 0 to 1
    :param matrix: (h, w, 2, 6), motion field matrix at the cells' centres, px
    :param usable: (h, w) bool, cells that tell of the scene; None: all
    :returns: (K, CHANNELS, len(LENGTH_RATIOS)) float32
    """
    cells, looked_at = looked_at_cells(*matrix.shape[:2], usable)
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
