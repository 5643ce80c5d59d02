"""
Derivatives of an image, turned into the directions of a motion field and correlated along it.

The loops are short functions over few arrays each: of longer ones the compiler makes no vectors,
nor of rows that are unpacked rather than indexed, as it does not know that they lie densely.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from image_as_imu_ros.compiled import compiled
from image_as_imu_ros.geometry.photometric import interpolate

STEERED = 10
"""Channels of what is correlated."""
NOISE_ENERGY = 3e-6
SMOOTHING_SHARE = 0.1
"""Of the blur's length, by which derivatives are smoothed."""
SMOOTHING_PX = (0.6, 2.5)
"""Least and most of that."""
NEARBY_SHARE = 0.25
"""Of the blur's length: radius of what is nearby, px of half the image."""
MIN_NEARBY_PX = 2

# compiled code would turn a float32 that meets a Python number into a float64
ZERO, QUARTER, HALF, ONE, TWO = np.float32([0.0, 0.25, 0.5, 1.0, 2.0])
TINY_PX, TINY_ENERGY = np.float32([1e-6, 1e-9])
KINDS = ((0, 1, 0), (1, 0, 0), (2, 3, 1))
"""Derivatives along, across, and of both kinds: which two are turned into each, and whether they
are first or second ones; those of both kinds turn twice."""


class SteeredDerivatives:
    """
    Derivatives of an image that can be turned into any direction.

    :param image: (H, W) float32, 0 to 1
    :param typical_px: length of the blur that they shall show
    """

    def __init__(self, image: np.ndarray, typical_px: float) -> None:
        self.typical_px = typical_px
        sigma_px = float(np.clip(SMOOTHING_SHARE * typical_px, *SMOOTHING_PX))
        smooth = cv2.GaussianBlur(image, (0, 0), sigma_px)

        def slope(of: np.ndarray, dx: int, dy: int) -> np.ndarray:
            return cv2.Sobel(of, cv2.CV_32F, dx, dy, ksize=3, scale=0.125)

        gx, gy = slope(smooth, 1, 0), slope(smooth, 0, 1)
        self._derivatives, energies = _merged(
            gx, gy, slope(gx, 1, 0), slope(gx, 0, 1), slope(gy, 0, 1))
        window = (2 * int(max(MIN_NEARBY_PX, NEARBY_SHARE * typical_px)) + 1,) * 2
        self._nearby = cv2.blur(energies, window)

    def correlations(self, centres_px: np.ndarray, flow_px: np.ndarray,
                     ratios: np.ndarray) -> np.ndarray:
        """
        Correlate them with themselves along a motion field.

        For the derivatives along, across, and of both kinds, at lags of some ratios of the
        displacement: correlation over energy; and the mean product and the mean energy, relative
        to the energy nearby. The last channel is the share of the points for which both ends lie
        in the image.

        :param centres_px: (N, 2), where to look
        :param flow_px: (N, 2), displacement over the exposure there
        :param ratios: (R,) float32
        :returns: (STEERED, R) float32
        """
        column, row = nearest_of_half(centres_px.T)
        relative = 1.0 / (self._nearby[row, column] + np.float32(NOISE_ENERGY))
        return _correlations(
            self._derivatives, np.ascontiguousarray(centres_px.T, np.float32),
            np.ascontiguousarray(flow_px.T, np.float32), np.ascontiguousarray(relative.T), ratios)


def nearest_of_half(places_px: np.ndarray) -> np.ndarray:
    """Pixels of an image at half its size that are nearest to places in the whole one."""
    return np.rint(places_px / 2 - 0.25).astype(int)


@compiled
def _merged(gx: np.ndarray, gy: np.ndarray, gxx: np.ndarray, gxy: np.ndarray,
            gyy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Put derivatives side by side, and tell their energy.

    :param gx, gy, gxx, gxy, gyy: (H, W)
    :returns: (H, W, 4), along x, along y, mixed, and half the difference of the second ones; and
        (H / 2, W / 2, 2), mean energy of the first and of the second ones, a coarse map as it is
        smooth
    """
    height, width = gx.shape
    merged = np.empty((height, width, 4), np.float32)
    energies = np.empty((height // 2, width // 2, 2), np.float32)
    first, second = np.empty(width, np.float32), np.empty(width, np.float32)
    for row in range(height):
        _interleave(gx[row], gy[row], gxy[row], gyy[row], gxx[row], merged[row])
    for row in range(height // 2):
        _first_energy(gx[2 * row], gy[2 * row], gx[2 * row + 1], gy[2 * row + 1], first)
        _second_energy(gxx[2 * row:2 * row + 2], gxy[2 * row:2 * row + 2],
                       gyy[2 * row:2 * row + 2], second)
        _pair_means(first, second, energies[row])
    return merged, energies


@compiled
def _interleave(gx, gy, gxy, gyy, gxx, merged):
    for x in range(len(gx)):
        merged[x, 0] = gx[x]
        merged[x, 1] = gy[x]
        merged[x, 2] = gxy[x]
        merged[x, 3] = HALF * (gyy[x] - gxx[x])


@compiled
def _first_energy(gx, gy, next_gx, next_gy, energy):
    for x in range(len(energy)):
        energy[x] = gx[x] * gx[x] + gy[x] * gy[x] + next_gx[x] * next_gx[x] \
            + next_gy[x] * next_gy[x]


@compiled
def _second_energy(gxx, gxy, gyy, energy):
    for x in range(len(energy)):
        energy[x] = gxx[0, x] * gxx[0, x] + gxx[1, x] * gxx[1, x] \
            + gyy[0, x] * gyy[0, x] + gyy[1, x] * gyy[1, x] \
            + TWO * (gxy[0, x] * gxy[0, x] + gxy[1, x] * gxy[1, x])


@compiled
def _pair_means(first, second, means):
    for x in range(len(means)):
        means[x, 0] = QUARTER * (first[2 * x] + first[2 * x + 1])
        means[x, 1] = QUARTER * (second[2 * x] + second[2 * x + 1])


@compiled
def _correlations(derivatives: np.ndarray, centres_px: np.ndarray, flow_px: np.ndarray,
                  relative: np.ndarray, ratios: np.ndarray) -> np.ndarray:
    """
    Correlate derivatives as `SteeredDerivatives.correlations`.

    :param derivatives: (H, W, 4)
    :param centres_px, flow_px: (2, N)
    :param relative: (2, N), by what products of first and of second derivatives count
    """
    height, width, _ = derivatives.shape
    x, y, u, v = centres_px[0], centres_px[1], flow_px[0], flow_px[1]
    points = len(x)
    length, longest, seen = np.empty_like(x), np.empty_like(x), np.empty_like(x)
    cosines, sines = np.empty((3, points), np.float32), np.empty((3, points), np.float32)
    ahead_x, ahead_y = np.empty_like(x), np.empty_like(x)
    behind_x, behind_y = np.empty_like(x), np.empty_like(x)
    ahead, behind = np.empty((4, points), np.float32), np.empty((4, points), np.float32)
    corner = np.empty(points, np.uint32)
    for i in range(points):
        length[i] = math.sqrt(u[i] * u[i] + v[i] * v[i]) + TINY_PX
        c, s = u[i] / length[i], v[i] / length[i]
        cosines[0, i], sines[0, i] = c, s
        cosines[1, i], sines[1, i] = c, -s
        cosines[2, i], sines[2, i] = c * c - s * s, TWO * c * s
        # ends of a lag are up to so far from the centre
        room_x, room_y = min(x[i], width - 1 - x[i]), min(y[i], height - 1 - y[i])
        longest[i] = 2 * min(room_x / (abs(u[i]) + TINY_PX), room_y / (abs(v[i]) + TINY_PX))
    steered = np.empty((STEERED, len(ratios)), np.float32)
    for lag, ratio in enumerate(ratios):
        _see(length, longest, ratio, seen)
        _ends(x, u, HALF * ratio, seen, ahead_x, behind_x)
        _ends(y, v, HALF * ratio, seen, ahead_y, behind_y)
        interpolate(derivatives, ahead_x, ahead_y, corner, ahead)
        interpolate(derivatives, behind_x, behind_y, corner, behind)
        count = ONE
        for i in range(points):
            count += seen[i]
        for kind in range(3):
            one, other, order = KINDS[kind]
            product, product_share, power, power_share = _sums(
                ahead[one], ahead[other], behind[one], behind[other], cosines[kind], sines[kind],
                seen, relative[order])
            steered[3 * kind, lag] = product / (power + TINY_ENERGY * count)
            steered[3 * kind + 1, lag] = product_share / count
            steered[3 * kind + 2, lag] = power_share / count
        steered[-1, lag] = count / points
    return steered


@compiled
def _see(length, longest, ratio, seen):
    """Tell by 0 or 1 where a lag ends in the image and is long enough to show anything."""
    for i in range(len(seen)):
        seen[i] = ONE if (ratio <= longest[i]) & (ratio * length[i] > ONE) else ZERO


@compiled
def _ends(centre, flow, ratio, seen, ahead, behind):
    """Find a coordinate of both ends of a lag; the centre's where it is not seen."""
    for i in range(len(centre)):
        reach = ratio * flow[i] if seen[i] > ZERO else ZERO
        ahead[i] = centre[i] + reach
        behind[i] = centre[i] - reach


@compiled
def _sums(first_ahead, second_ahead, first_behind, second_behind, cosine, sine, seen, relative):
    """
    Sum products and mean powers of derivatives at both ends of a lag, turned by an angle.

    :returns: sums of products, relative products, powers and relative powers
    """
    product_sum = product_share = power_sum = power_share = ZERO
    for i in range(len(seen)):
        a = cosine[i] * first_ahead[i] + sine[i] * second_ahead[i]
        b = cosine[i] * first_behind[i] + sine[i] * second_behind[i]
        product, power = seen[i] * (a * b), seen[i] * (a * a + b * b)
        product_sum += product
        product_share += relative[i] * product
        power_sum += power
        power_share += relative[i] * power
    return product_sum, product_share, HALF * power_sum, HALF * power_share
