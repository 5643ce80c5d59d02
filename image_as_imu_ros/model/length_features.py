"""
What the critic of a blur's length sees of an image, once it is known where the motion goes.

Cell by cell, a blur of twice the length often looks as likely as the true one. Followed along a
whole motion field, and averaged over the image, the derivatives' correlation has one dip, at
lag = length; averaging first and judging afterwards is what single cells cannot do.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from image_as_imu_ros.geometry.blur_solver import LENGTH_RATIOS, Hills

STEERED = 10
CHANNELS = STEERED + 4
"""Steered correlations; the cells' log-probability at that ratio; median and greatest length of
the blur; and how much lower the hill is than the highest."""
NOISE_ENERGY = 3e-6
SMOOTHING_SHARE = 0.1
"""Of the blur's length, by which derivatives are smoothed."""
SMOOTHING_PX = (0.6, 2.5)
"""Least and most of that."""
NEARBY_SHARE = 0.25
"""Of the blur's length: radius of what is nearby, px of half the image."""
MIN_NEARBY_PX = 2
LEAST_PROFILE = -30.0
"""Far worse than the best is just that, nats."""
SAME_SCALE = 1.2
"""Blurs whose lengths differ by less share their derivatives."""


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
        gxx, gxy, gyy = slope(gx, 1, 0), slope(gx, 0, 1), slope(gy, 0, 1)
        self._derivatives = cv2.merge([gx, gy, gxy, 0.5 * (gyy - gxx)])
        # a coarse map does, as it is smooth
        half = (image.shape[1] // 2, image.shape[0] // 2)
        window = (2 * int(max(MIN_NEARBY_PX, NEARBY_SHARE * typical_px)) + 1,) * 2
        self._nearby = [cv2.blur(cv2.resize(energy, half, interpolation=cv2.INTER_AREA), window)
                        for energy in
                        (gx * gx + gy * gy, gxx * gxx + 2 * gxy * gxy + gyy * gyy)]

    def correlations(self, centres_px: np.ndarray, flow_px: np.ndarray) -> np.ndarray:
        """
        Correlate them with themselves along a motion field.

        For the derivatives along, across, and of both kinds, at lags of LENGTH_RATIOS times the
        displacement: correlation over energy; and the mean product and the mean energy, relative
        to the energy nearby. The last channel is the share of the points for which both ends lie
        in the image.

        :param centres_px: (N, 2), where to look
        :param flow_px: (N, 2), displacement over the exposure there
        :returns: (STEERED, len(LENGTH_RATIOS)) float32
        """
        x, y = np.ascontiguousarray(centres_px.T, np.float32)
        u, v = np.ascontiguousarray(flow_px.T, np.float32)
        length = np.sqrt(u * u + v * v) + np.float32(1e-6)
        height, width = self._derivatives.shape[:2]
        # ends of a lag are up to so far from the centre; shorter lags than a pixel show nothing
        room_x, room_y = np.minimum(x, width - 1 - x), np.minimum(y, height - 1 - y)
        longest = 2 * np.minimum(room_x / (np.abs(u) + 1e-6), room_y / (np.abs(v) + 1e-6))
        ratios = LENGTH_RATIOS[:, None]
        seen = ((ratios <= longest) & (ratios * length > 1.0)).astype(np.float32)
        half_u, half_v = (0.5 * ratios * seen) * np.stack([u, v])[:, None]
        found = cv2.remap(self._derivatives, np.concatenate([x + half_u, x - half_u]),
                          np.concatenate([y + half_v, y - half_v]), cv2.INTER_LINEAR)
        # complex numbers turn the derivatives; those of both kinds turn twice
        turn = (u - 1j * v) / length
        turned = found.view(np.complex64).reshape(2, len(ratios), -1, 2)
        turned *= np.stack([turn, turn * turn], axis=-1)
        # along, across, of both kinds, and one that is of no use
        a, b = turned.view(np.float32)
        product = a * b * seen[..., None]
        power = (a * a + b * b) * (0.5 * seen[..., None])

        # sums over the points, plain and relative to the energy nearby
        column, row = nearest_of_half(centres_px.T)
        gradient, curvature = (1 / (nearby[row, column] + np.float32(NOISE_ENERGY))
                               for nearby in self._nearby)
        shares = np.zeros((len(length), 4, 6), np.float32)
        for channel, relative in enumerate((gradient, gradient, curvature)):
            shares[:, channel, channel] = 1.0
            shares[:, channel, 3 + channel] = relative
        shares = shares.reshape(-1, 6)
        products, powers = ((shares.T @ of.reshape(len(ratios), -1).T) for of in (product, power))
        count = seen.sum(axis=1) + 1
        steered = np.stack([products[:3] / (powers[:3] + 1e-9 * count), products[3:] / count,
                            powers[3:] / count], axis=1)
        return np.concatenate([steered.reshape(-1, len(ratios)), count[None] / len(length)])


@lru_cache(maxsize=8)
def chessboard(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Every other cell, (N, 2) column and row, and its index; the others tell little more."""
    row, column = np.indices((rows, columns))
    looked_at = np.flatnonzero((row + column) % 2 == 0)
    return np.stack([looked_at % columns, looked_at // columns], axis=-1), looked_at


def cell_centres(cells: np.ndarray, side_px: float) -> np.ndarray:
    """Centres of cells of a grid, of columns or rows or both, px."""
    return (cells + 0.5) * side_px - 0.5


def nearest_of_half(places_px: np.ndarray) -> np.ndarray:
    """Pixels of an image at half its size that are nearest to places in the whole one."""
    return np.rint(places_px / 2 - 0.25).astype(int)


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
        feature[:STEERED] = derivatives.correlations(centres_px, flow_px)
    return features
