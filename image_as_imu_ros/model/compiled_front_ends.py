"""
What the network is given of an image, compiled for the CPU; needs no torch.

`network.DirectionalStructure` and `network.DerivativeCorrelation` are the same for GPUs and tell
what the features mean. Here one row of cells is made after the other, of pixels that stay in the
nearest caches: rows are added up first, as that runs along memory, and columns afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple, TypeVar

import cv2
import numpy as np

from image_as_imu_ros.compiled import compiled
from image_as_imu_ros.geometry.displacement_bins import STRIDE_PX

DIRECTIONS = 8
"""Of the features; they cover half a turn."""

STRUCTURE_STRIDE_PX = 4
LAGS_PX = (1, 2, 4, 8, 16, 32)
STRUCTURE_MARGIN_PX = max(LAGS_PX) // 2 + 1
LEAST_SQUARE = 1e-6
"""Added to the mean squared differences, whose logarithm is taken."""


class Level(NamedTuple):
    """Of the pyramid in which derivatives are correlated."""

    reduction: int
    lags_px: tuple[int, ...]
    """In the reduced image."""
    window: int
    """In which the derivatives' energy is averaged, cells."""
    skip: int
    """Every so many rows are enough."""

    @property
    def cell_px(self) -> int:
        """Side of the cells in the reduced image."""
        return STRIDE_PX // self.reduction

    @property
    def margin_px(self) -> int:
        """Around the reduced image."""
        return max(self.lags_px) // 2 + 2


LEVELS = (Level(1, (3, 4, 6, 8), 3, 2), Level(2, (5, 7, 9, 11), 3, 1),
          Level(4, (7, 9, 11, 14), 5, 1))
NOISE_FLOOR = 3e-5
"""Added to the energy of the derivatives."""
MAX_CORRELATION = 2.0
STEPS = ((1, 0), (1, 0), (1, 1), (0, 1), (0, 1), (0, 1), (-1, 1), (1, 0))
"""Between the pixels of each direction's derivative, px; of either sign, which cancels."""

Array = TypeVar('Array')


def structure_offsets() -> list[tuple[int, int, int]]:
    """Distinct (lag, dx, dy) of the structure functions, px, the shortest lags first."""
    offsets = []
    for lag in LAGS_PX:
        for k in range(DIRECTIONS):
            angle = math.pi * k / DIRECTIONS
            offset = (lag, round(lag * math.cos(angle)), round(lag * math.sin(angle)))
            if offset not in offsets:
                offsets.append(offset)
    return offsets


def structure_step(lag: int) -> int:
    """Every so many pixels are enough, across and down."""
    return 2 if lag >= 8 else 1


def correlated_pairs(level: Level) -> Iterator[tuple[int, int, int, int, int]]:
    """
    Where derivatives a lag apart are, direction by direction and lag by lag.

    :returns: the direction, first column and row of the one in the image with its margin, and
        columns and rows from there to the other
    """
    for k in range(DIRECTIONS):
        cos, sin = math.cos(math.pi * k / DIRECTIONS), math.sin(math.pi * k / DIRECTIONS)
        for lag in level.lags_px:
            dx, dy = round(lag * cos), round(lag * sin)
            yield (k, level.margin_px - dx // 2 - (round(cos) < 0), level.margin_px - dy // 2,
                   dx, dy)


def slope(image: Array, dx: int, dy: int) -> Array:
    """Difference of pixels dx (-1 to 1) and dy (0 or 1) apart, (..., H - dy, W - |dx|)."""
    height, width = image.shape[-2] - dy, image.shape[-1] - abs(dx)
    right, left = max(dx, 0), max(-dx, 0)
    return image[..., dy:dy + height, right:right + width] \
        - image[..., :height, left:left + width]


def directional_structure(images: np.ndarray) -> np.ndarray:
    """
    Compute what `network.DirectionalStructure` computes.

    :param images: (B, H, W) float32, 0 to 1, H and W multiples of 4
    :returns: (B, channels, H / 4, W / 4) float32
    """
    count, height, width = images.shape
    tables = _structure_tables()
    found = np.empty((count, 1 + sum(map(len, tables.values())), height // STRUCTURE_STRIDE_PX,
                      width // STRUCTURE_STRIDE_PX), np.float32)
    for image, features in zip(images, found):
        padded = cv2.copyMakeBorder(image, *(STRUCTURE_MARGIN_PX,) * 4, cv2.BORDER_REPLICATE)
        begin = 0
        for step, offsets in tables.items():
            columns = np.ascontiguousarray(
                padded.reshape(len(padded), -1, step).transpose(2, 0, 1))
            _mean_squares(columns, offsets, features[begin:begin + len(offsets)])
            begin += len(offsets)
        squares = features[:begin].reshape(-1, features.shape[2])
        cv2.log(squares, squares)
        _make_relative(features)
    return found


@lru_cache(maxsize=1)
def _structure_tables() -> dict[int, np.ndarray]:
    """Offsets by how many pixels are enough for them, (N, 2) columns and rows."""
    return {step: np.array([(dx, dy) for lag, dx, dy in structure_offsets()
                            if structure_step(lag) == step]) for step in (1, 2)}


@compiled
def _mean_squares(columns: np.ndarray, offsets: np.ndarray, squares: np.ndarray) -> None:
    """
    Mean squared differences of pixels, cell by cell, and LEAST_SQUARE.

    :param columns: (step, H, W / step) of an image with its margin: every so many columns
    :param offsets: (N, 2) from one pixel to the other, columns and rows
    :param squares: where to put them, (N, rows, columns)
    """
    step = len(columns)
    side = STRUCTURE_STRIDE_PX // step
    share = np.float32(1 / side ** 2)
    line = np.empty(side * squares.shape[2], np.float32)
    for row in range(squares.shape[1]):
        for n in range(len(offsets)):
            dx, dy = offsets[n]
            left = STRUCTURE_MARGIN_PX - dx // 2
            top = STRUCTURE_MARGIN_PX - dy // 2 + STRUCTURE_STRIDE_PX * row
            first, second = columns[left % step], columns[(left + dx) % step]
            begin, end = left // step, (left + dx) // step
            for x in range(len(line)):
                line[x] = 0
            for y in range(top, top + STRUCTURE_STRIDE_PX, step):
                here = first[y, begin:begin + len(line)]
                there = second[y + dy, end:end + len(line)]
                for x in range(len(line)):
                    difference = there[x] - here[x]
                    line[x] += difference * difference
            cells = squares[n, row]
            _sum_columns(line, side, cells)
            for x in range(len(cells)):
                cells[x] = share * cells[x] + np.float32(LEAST_SQUARE)


@compiled
def _make_relative(features: np.ndarray) -> None:
    """Subtract from logarithms, (1 + N, rows, columns), their mean, which the last becomes."""
    count = len(features) - 1
    for row in range(features.shape[1]):
        mean = features[count, row]
        for x in range(len(mean)):
            mean[x] = 0
        for n in range(count):
            logs = features[n, row]
            for x in range(len(mean)):
                mean[x] += logs[x] / np.float32(count)
        for n in range(count):
            logs = features[n, row]
            for x in range(len(mean)):
                logs[x] -= mean[x]
        for x in range(len(mean)):
            mean[x] = np.float32(0.5) * mean[x] + np.float32(3)


def derivative_correlation(images: np.ndarray) -> np.ndarray:
    """
    Compute what `network.DerivativeCorrelation` computes.

    :param images: (B, H, W) float32, 0 to 1, H and W multiples of 8
    :returns: (B, channels, H / 8, W / 8) float32, direction by direction
    """
    count, height, width = images.shape
    found = np.empty((count, DIRECTIONS * sum(len(level.lags_px) for level in LEVELS),
                      height // STRIDE_PX, width // STRIDE_PX), np.float32)
    for image, features in zip(images, found):
        for level in LEVELS:
            reduced = cv2.resize(image, (width // level.reduction, height // level.reduction),
                                 interpolation=cv2.INTER_AREA)
            padded = cv2.copyMakeBorder(reduced, *(level.margin_px,) * 4, cv2.BORDER_REPLICATE)
            for step, pairs in _correlation_tables(level).items():
                _correlate(slope(padded, *step), pairs, level.margin_px, level.cell_px,
                           level.skip, level.window // 2, features)
    return found


@lru_cache(maxsize=len(LEVELS))
def _correlation_tables(level: Level) -> dict[tuple[int, int], np.ndarray]:
    """Pairs by the step of their derivative, (N, 5): as `correlated_pairs`, first the channel."""
    lags = [(each, lag) for each in LEVELS for lag in each.lags_px]
    channels = [k * len(lags) + lags.index((level, lag))
                for k in range(DIRECTIONS) for lag in level.lags_px]
    return {step: np.array([(channel, *pair)
                            for channel, (k, *pair) in zip(channels, correlated_pairs(level))
                            if STEPS[k] == step]) for step in set(STEPS)}


@compiled
def _correlate(slopes: np.ndarray, pairs: np.ndarray, margin: int, side: int, skip: int,
               reach: int, features: np.ndarray) -> None:
    """
    Correlation of one derivative with itself, over its energy around each cell.

    :param slopes: (H, W), with the margin
    :param pairs: (N, 5) channel, first column and row, and columns and rows to the other
    :param side: of the cells, px, of which every `skip` rows are looked at
    :param reach: how many cells away the energy is averaged
    :param features: where to put it, (channels, rows, columns)
    """
    _, rows, columns = features.shape
    share = np.float32(skip / side ** 2)
    line = np.empty(side * columns, np.float32)
    energy = np.empty((rows, columns), np.float32)
    for row in range(rows):
        _sum_products(slopes, margin, margin + side * row, 0, 0, side, skip, line)
        _sum_columns(line, side, energy[row])
    energy = _mean_around(energy, reach)
    for row in range(rows):
        around = energy[row]
        for x in range(columns):
            around[x] = share / (share * around[x] + np.float32(NOISE_FLOOR))
        for n in range(len(pairs)):
            channel, left, top, dx, dy = pairs[n]
            _sum_products(slopes, left, top + side * row, dx, dy, side, skip, line)
            cells = features[channel, row]
            _sum_columns(line, side, cells)
            for x in range(columns):
                cells[x] = min(max(around[x] * cells[x], np.float32(-MAX_CORRELATION)),
                               np.float32(MAX_CORRELATION))


@compiled
def _sum_products(values: np.ndarray, left: int, top: int, dx: int, dy: int, count: int,
                  skip: int, line: np.ndarray) -> None:
    """Add up products of values (dx, dy) apart in so many rows, column by column in a line."""
    for x in range(len(line)):
        line[x] = 0
    for y in range(top, top + count, skip):
        here = values[y, left:left + len(line)]
        there = values[y + dy, left + dx:left + dx + len(line)]
        for x in range(len(line)):
            line[x] += here[x] * there[x]


@compiled
def _sum_columns(line: np.ndarray, count: int, sums: np.ndarray) -> None:
    """Add up groups of 2, 4 or 8 columns; in so many words, as vectors take it."""
    if count == 2:
        for x in range(len(sums)):
            sums[x] = line[2 * x] + line[2 * x + 1]
    elif count == 4:
        for x in range(len(sums)):
            sums[x] = line[4 * x] + line[4 * x + 1] + line[4 * x + 2] + line[4 * x + 3]
    else:
        for x in range(len(sums)):
            sums[x] = (line[8 * x] + line[8 * x + 1] + line[8 * x + 2] + line[8 * x + 3]
                       + line[8 * x + 4] + line[8 * x + 5] + line[8 * x + 6] + line[8 * x + 7])


@compiled
def _mean_around(values: np.ndarray, reach: int) -> np.ndarray:
    """Mean of the cells so many away or less, of those that exist, (rows, columns)."""
    rows, columns = values.shape
    means = np.empty((rows, columns), np.float32)
    line = np.empty(columns, np.float32)
    for row in range(rows):
        top, bottom = max(row - reach, 0), min(row + reach + 1, rows)
        for x in range(columns):
            line[x] = 0
        for y in range(top, bottom):
            for x in range(columns):
                line[x] += values[y, x]
        for x in range(columns):
            left, right = max(x - reach, 0), min(x + reach + 1, columns)
            total = np.float32(0)
            for k in range(left, right):
                total += line[k]
            means[row, x] = total / np.float32((right - left) * (bottom - top))
    return means
