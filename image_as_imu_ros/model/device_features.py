"""What the critic sees of images, as `hill_features`, in torch, of many at once."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from image_as_imu_ros.geometry.blur_solver import LENGTH_RATIOS, cells_of
from image_as_imu_ros.geometry.displacement_bins import MAX_RADIUS_PX
from image_as_imu_ros.model.length_features import (
    LEAST_PROFILE,
    SAME_SCALE,
    cell_centres,
    looked_at_cells,
)
from image_as_imu_ros.model.steered_derivatives import (
    MIN_NEARBY_PX,
    NEARBY_SHARE,
    NOISE_ENERGY,
    SMOOTHING_PX,
    SMOOTHING_SHARE,
    nearest_of_half,
)

MAX_REACH = math.floor(4 * SMOOTHING_PX[1] + 0.5)
"""Of the smoothing, px."""
MAX_NEARBY_PX = int(NEARBY_SHARE * MAX_RADIUS_PX)
"""Beyond the longest blur that a cell can tell, the window grows no more."""


class DeviceHills(NamedTuple):
    """Local maxima of the posteriors of B images, FINALISTS of each, highest first."""

    motions: Tensor
    """(B, K, 6)."""
    heights: Tensor
    """(B, K), log-posterior up to a constant, nats; -inf where there is no further hill."""
    profiles: Tensor
    """(B, K, len(LENGTH_RATIOS)), log-likelihood of each motion times each ratio, nats."""


class FeatureTables(NamedTuple):
    """
    What depends on the size of the images and on which cells are usable only.

    C of the cells are looked at.
    """

    usable: Tensor
    """(N,) int64, which cells may be used."""
    sparse: Tensor
    """(M,) int64, those of them in every other row and column."""
    cells: Tensor
    """(C,) int64, which cells."""
    centres_px: Tensor
    """(C, 2), their x and y."""
    ratios: Tensor
    """LENGTH_RATIOS."""
    rows: Tensor
    """(MAX_NEARBY_PX + 1, h, H / 2), mean over a window of each radius around each row of cells,
    of the image at half its size."""
    columns: Tensor
    """(MAX_NEARBY_PX + 1, w, W / 2), the same around each column."""

    @staticmethod
    def of(height: int, width: int, rows: int, columns: int, device: str,
           usable: bytes | None = None) -> FeatureTables:
        """
        Tables for images of a size, px, and the size of their grid of cells.

        :param usable: bytes of which cells may be used, (rows, columns) bool; None: all
        """
        mask = None if usable is None else np.frombuffer(usable, bool).reshape(rows, columns)
        cells, looked_at = looked_at_cells(rows, columns, mask)
        numbers = np.arange(rows * columns).reshape(rows, columns)
        return FeatureTables(*(torch.from_numpy(table).to(device) for table in (
            cells_of(numbers, mask), cells_of(numbers, mask, 2), looked_at,
            cell_centres(cells, height / rows).astype(np.float32), LENGTH_RATIOS,
            _windows(rows, height), _windows(columns, width))))


def _windows(cells: int, size_px: int) -> np.ndarray:
    """Shares of the pixels of half an image in windows, (MAX_NEARBY_PX + 1, cells, size / 2)."""
    half = size_px // 2
    nearest = nearest_of_half(cell_centres(np.arange(cells), size_px / cells))
    shares = np.zeros((MAX_NEARBY_PX + 1, cells, half), np.float32)
    for radius, table in enumerate(shares):
        places = np.abs(nearest[:, None] + np.arange(-radius, radius + 1))
        places = half - 1 - np.abs(half - 1 - places)  # mirrored at both ends
        np.add.at(table, (np.arange(cells)[:, None], places), 1.0 / (2 * radius + 1))
    return shares


def hill_features(images: Tensor, matrix: Tensor, hills: DeviceHills,
                  tables: FeatureTables) -> Tensor:
    """
    Gather what the critic sees of the hills of images.

    :param images: (B, H, W) float32, 0 to 1
    :param matrix: (B, N, 2, 6) or (1, N, 2, 6) float32, motion field matrix of the cells, px
    :returns: (B, K, CHANNELS, len(LENGTH_RATIOS)) float32; of hills that are none, of no use
    """
    motions, heights, profiles = hills
    rows = matrix[:, tables.cells].transpose(1, 2).flatten(1, 2)
    flow_px = (rows @ motions.float().mT).mT.unflatten(2, (2, -1))
    lengths_px = flow_px.norm(dim=2)
    medians_px = median(lengths_px) + 1e-6
    exist = heights > -math.inf
    highest = profiles.amax(dim=2).masked_fill(~exist, -math.inf).amax(dim=1)
    cells = (profiles - highest[:, None, None]).clamp(LEAST_PROFILE, 0.0)
    below = (heights - heights[:, :1]).masked_fill(~exist, 0.0).float()
    constants = torch.stack([medians_px.log1p(), lengths_px.amax(dim=2).log1p(), below], dim=2)
    derivatives, nearby = _derivatives(images, _scales(medians_px), tables)
    steered = _correlations(derivatives, nearby, flow_px.flatten(0, 1), tables)
    return torch.cat([steered.unflatten(0, exist.shape), cells[:, :, None],
                      constants[..., None].expand(-1, -1, -1, len(tables.ratios))], dim=2)


def _scales(medians_px: Tensor) -> Tensor:
    """Lengths that derivatives shall show, (B, K), px: those of the hill before where alike."""
    scales = [medians_px[:, 0]]
    for length in medians_px[:, 1:].unbind(1):
        alike = torch.maximum(length / scales[-1], scales[-1] / length) <= SAME_SCALE
        scales.append(torch.where(alike, scales[-1], length))
    return torch.stack(scales, dim=1)


def _derivatives(images: Tensor, typical_px: Tensor,
                 tables: FeatureTables) -> tuple[Tensor, Tensor]:
    """
    Derivatives of smoothed images that can be turned, as `SteeredDerivatives`.

    :param typical_px: (B, K), length of the blur that they shall show
    :returns: (B K, 4, H, W): along x, along y, mixed, and half the difference of the second ones;
        and the energy of the first and of the second ones nearby, (B K, 2, C)
    """
    hills, typical_px = typical_px.shape[1], typical_px.flatten()
    sigma = (SMOOTHING_SHARE * typical_px).clamp(*SMOOTHING_PX)[:, None]
    taps = torch.arange(-MAX_REACH, MAX_REACH + 1, device=images.device)
    kernel = torch.exp(-0.5 * (taps / sigma) ** 2)
    # OpenCV's kernels end at four sigma
    kernel = kernel * (taps.abs() <= ((8 * sigma + 1).round() / 2).floor())
    kernel = (kernel / kernel.sum(dim=1, keepdim=True))[:, None]
    padded = functional.pad(images, (MAX_REACH,) * 4, mode='reflect')
    padded = padded[:, None].expand(-1, hills, -1, -1).flatten(0, 1)[None]
    smooth = functional.conv2d(functional.conv2d(padded, kernel[..., None], groups=len(kernel)),
                               kernel[:, :, None], groups=len(kernel))[0]
    gx, gy = _slope(smooth), _slope(smooth.mT).mT
    gxx, gxy, gyy = _slope(gx), _slope(gx.mT).mT, _slope(gy.mT).mT
    energies = torch.stack([gx * gx + gy * gy, gxx * gxx + 2 * gxy * gxy + gyy * gyy], dim=1)
    radius = (NEARBY_SHARE * typical_px).clamp(MIN_NEARBY_PX, MAX_NEARBY_PX).long()
    nearby = tables.rows[radius][:, None] @ functional.avg_pool2d(energies, 2) \
        @ tables.columns[radius].mT[:, None]
    return (torch.stack([gx, gy, gxy, 0.5 * (gyy - gxx)], dim=1),
            nearby.flatten(2)[..., tables.cells])


def _slope(images: Tensor) -> Tensor:
    """Sobel's derivative along x of (B, H, W)."""
    padded = functional.pad(images, (1, 1, 1, 1), mode='reflect')
    smooth = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    return 0.125 * (smooth[..., 2:] - smooth[..., :-2])


def _correlations(derivatives: Tensor, nearby: Tensor, flow_px: Tensor,
                  tables: FeatureTables) -> Tensor:
    """
    Correlate derivatives along motion fields, as `SteeredDerivatives.correlations`.

    :param derivatives: (B, 4, H, W)
    :param nearby: (B, 2, C), energies
    :param flow_px: (B, 2, C)
    :returns: (B, STEERED, len(LENGTH_RATIOS))
    """
    (x, y), (u, v), ratios = tables.centres_px.unbind(1), flow_px.unbind(1), tables.ratios[:, None]
    right, bottom = derivatives.shape[3] - 1, derivatives.shape[2] - 1
    length = (u * u + v * v).sqrt() + 1e-6
    # ends of a lag are up to so far from the centre; shorter lags than a pixel show nothing
    longest = 2 * torch.minimum(torch.minimum(x, right - x) / (u.abs() + 1e-6),
                                torch.minimum(y, bottom - y) / (v.abs() + 1e-6))
    seen = ((ratios <= longest[:, None]) & (ratios * length[:, None] > 1.0)).float()
    half = 0.5 * ratios * seen
    half_u, half_v = half * u[:, None], half * v[:, None]
    places = torch.stack([torch.cat([x + half_u, x - half_u], dim=1) * (2 / right),
                          torch.cat([y + half_v, y - half_v], dim=1) * (2 / bottom)], dim=3) - 1.0
    # not zeros: cuDNN would take that on, and torch's compiler cannot follow it there
    found = functional.grid_sample(derivatives, places, padding_mode='border', align_corners=True)
    gx, gy, mixed, difference = found.unbind(1)
    cosine, sine = (u / length)[:, None], (v / length)[:, None]
    # along, across, and of both kinds, which turn twice
    turned = torch.stack([gx * cosine + gy * sine, gy * cosine - gx * sine,
                          mixed * (cosine ** 2 - sine ** 2) + difference * (2 * cosine * sine)],
                         dim=1)
    a, b = turned.chunk(2, dim=2)
    # sums over the points, plain and relative to the energy nearby
    relative = 1.0 / (torch.cat([nearby[:, :1], nearby], dim=1) + NOISE_ENERGY)
    shares = torch.stack([torch.ones_like(relative), relative], dim=3)
    product, products = ((a * b * seen[:, None]) @ shares).unbind(3)
    power, powers = ((0.5 * (a * a + b * b) * seen[:, None]) @ shares).unbind(3)
    count = seen.sum(dim=2)[:, None] + 1
    steered = torch.stack([product / (power + 1e-9 * count), products / count, powers / count],
                          dim=2)
    return torch.cat([steered.flatten(1, 2), count / seen.shape[2]], dim=1)


def median(values: Tensor) -> Tensor:
    """Median along the last dimension, between the two in the middle as numpy's."""
    ordered, size = values.sort(dim=-1).values, values.shape[-1]
    return 0.5 * (ordered[..., (size - 1) // 2] + ordered[..., size // 2])
