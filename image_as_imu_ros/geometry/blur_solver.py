"""
Camera motion from per-cell displacement distributions, by maximum a posteriori.

Each cell of the image votes for its unsigned displacement over the exposure; the motion field
ties all cells to six numbers, found where the summed log-probability peaks. An edge that shows
one component of its blur and says little of the other keeps both facts this way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from image_as_imu_ros.geometry.displacement_bins import (
    BINS, DIRECTIONS, RADIUS_SCALE_PX, RHO_STEP, RINGS, bin_displacements)

CELLS_PER_WITNESS = 24.0
"""Neighbouring cells err together: so many count as one independent witness."""
TRANSLATION_PRIOR = 0.4
"""Spread of v T / Z before the image is seen, relative to |w T|: hands turn about the wrist."""
TRANSLATION_PRIOR_FLOOR_PX = 0.5
STARTS_REFINED = 3
BIN_DISPLACEMENTS_PX = bin_displacements().numpy().astype(np.float32)


@dataclass(frozen=True)
class BlurSolution:
    """Motion over one exposure, known up to one common sign."""

    motion: np.ndarray
    """(6,) w T in rad and v T / Z."""
    covariance: np.ndarray
    """(6, 6) of `motion`."""
    log_likelihood: float
    """Mean over the cells of the log-probability at the solution, nats."""
    information: float
    """Share of the cells' ignorance (log BINS) that the solution explains, at most 1."""
    inlier_share: float
    extent_px: float
    """Median displacement over the exposure, px of the working image."""


class BlurObjective:
    """
    Log-likelihood of a motion given the cells' distributions, with its gradient.

    :param log_probability: (N, BINS) of N cells
    :param matrix: (N, 2, 6), motion field matrix at the cells' centres, px
    """

    def __init__(self, log_probability: np.ndarray, matrix: np.ndarray) -> None:
        cells = len(log_probability)
        # rings x directions per cell: ring 0 repeated for all directions, directions wrapped
        table = np.empty((cells, RINGS + 1, DIRECTIONS + 1), np.float32)
        table[:, 0] = log_probability[:, :1]
        table[:, 1:, :-1] = log_probability[:, 1:].reshape(cells, RINGS, DIRECTIONS)
        table[:, 1:, -1] = table[:, 1:, 0]
        self._flat = table.ravel()
        self._base = np.arange(cells) * ((RINGS + 1) * (DIRECTIONS + 1))
        self.matrix = matrix.astype(np.float32)

    def cell_values(self, motion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log-probability of every cell at a motion, (N,), and its gradient to it, (N, 2)."""
        flow = self.matrix @ motion.astype(np.float32)
        u, v = flow[:, 0], flow[:, 1]
        radius = np.sqrt(u * u + v * v) + 1e-6
        rho = np.log1p(radius / RADIUS_SCALE_PX) / RHO_STEP
        outside = rho >= RINGS - 1e-3
        rho = np.minimum(rho, RINGS - 1e-3)
        theta = (np.arctan2(v, u) % math.pi) * (DIRECTIONS / math.pi)
        theta = np.minimum(theta, DIRECTIONS - 1e-3)
        ring, direction = rho.astype(np.int64), theta.astype(np.int64)
        a, b = rho - ring, theta - direction
        index = self._base + ring * (DIRECTIONS + 1) + direction
        v00, v01 = self._flat[index], self._flat[index + 1]
        v10, v11 = self._flat[index + DIRECTIONS + 1], self._flat[index + DIRECTIONS + 2]
        low, high = v00 + b * (v01 - v00), v10 + b * (v11 - v10)
        value = low + a * (high - low)
        along = (high - low) / (RHO_STEP * (RADIUS_SCALE_PX + radius))
        along = np.where(outside, 0.0, along) / radius
        across = ((v01 - v00) * (1 - a) + (v11 - v10) * a) * (DIRECTIONS / math.pi) \
            / (radius * radius)
        return value, np.stack([along * u - across * v, along * v + across * u], axis=-1)

    def __call__(self, motion: np.ndarray) -> tuple[float, np.ndarray]:
        """Negative log-posterior of a motion and its gradient (6,)."""
        value, slope = self.cell_values(motion)
        gradient = np.einsum('ni,nij->j', slope, self.matrix)
        scale_px = np.abs(self.matrix[:, 0, 1]).mean()
        spread = TRANSLATION_PRIOR ** 2 * (motion[:3] @ motion[:3]) \
            + (TRANSLATION_PRIOR_FLOOR_PX / scale_px) ** 2
        penalty = 0.5 * (motion[3:] @ motion[3:]) / spread
        result = -value.sum() / CELLS_PER_WITNESS + penalty
        prior_gradient = np.concatenate([
            -2.0 * penalty * TRANSLATION_PRIOR ** 2 * motion[:3] / spread, motion[3:] / spread])
        return float(result), -gradient.astype(float) / CELLS_PER_WITNESS + prior_gradient


def lifted_start(log_probability: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """
    Rotation whose squared motion field fits the cells' mean squared displacements best.

    The products uu - vv and 2uv of a rotation's flow are linear in w w^T; its leading
    eigenvector gives w up to sign.

    :returns: (3,) w T, rad
    """
    probability = np.exp(log_probability)
    u, v = BIN_DISPLACEMENTS_PX.T
    radius = np.maximum(np.hypot(u, v), 1e-6)
    moments = probability @ np.stack([(u * u - v * v) / radius, 2 * u * v / radius, radius], 1)
    coherent = np.hypot(moments[:, 0], moments[:, 1])
    confidence = coherent / (moments[:, 2] + 1.0)
    a, b = matrix[:, 0, :3], matrix[:, 1, :3]
    pairs = [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]
    double = [1.0 if i == j else 2.0 for i, j in pairs]
    difference = np.stack([s * (a[:, i] * a[:, j] - b[:, i] * b[:, j])
                           for s, (i, j) in zip(double, pairs)], -1)
    product = np.stack([s * (a[:, i] * b[:, j] + a[:, j] * b[:, i])
                        for s, (i, j) in zip(double, pairs)], -1)
    total = np.stack([s * (a[:, i] * a[:, j] + b[:, i] * b[:, j])
                      for s, (i, j) in zip(double, pairs)], -1)
    weight = (confidence / (moments[:, 2] + 1.0))[:, None]
    rows = np.concatenate([difference * weight, product * weight, total * weight])
    values = np.concatenate([moments[:, 0] * moments[:, 2], moments[:, 1] * moments[:, 2],
                             moments[:, 2] ** 2]) * np.tile(weight[:, 0], 3)
    solution = np.linalg.lstsq(rows, values, rcond=None)[0]
    lifted = np.zeros((3, 3))
    for entry, (i, j) in zip(solution, pairs):
        lifted[i, j] = lifted[j, i] = entry
    eigenvalues, eigenvectors = np.linalg.eigh(lifted)
    return eigenvectors[:, -1] * math.sqrt(max(eigenvalues[-1], 0.0))


def solve_blur(log_probability: np.ndarray, matrix: np.ndarray,
               seeds: tuple[np.ndarray, ...] = ()) -> BlurSolution:
    """
    Find the motion that the cells' distributions agree on.

    :param log_probability: (N, BINS), float32
    :param matrix: (N, 2, 6), motion field matrix at the cells' centres, px
    :param seeds: further starting points (6,), such as a stream's prediction
    :returns: the motion up to sign, with its covariance
    """
    objective = BlurObjective(log_probability, matrix)
    focal_px = np.abs(matrix[:, 0, 1]).mean()
    lifted = lifted_start(log_probability, matrix)
    common = BIN_DISPLACEMENTS_PX[1 + np.argsort(-log_probability[:, 1:].sum(axis=0))[[0, 8]]]
    pans = [np.array([d[1], -d[0], 0.0]) / focal_px for d in common]
    turns = [pans[0] + [0.0, 0.0, turn] for turn in (-0.05, 0.05)]
    starts = [np.concatenate([w, np.zeros(3)]) for w in
              (lifted, 0.6 * lifted, 1.6 * lifted, *pans, *turns, np.full(3, 1e-3))]
    starts.extend(seeds)
    starts.sort(key=lambda start: objective(start)[0])
    # px-sized variables make the problem round
    best = min((minimize(lambda p: _scaled(objective, p, focal_px), start * focal_px, jac=True,
                         method='L-BFGS-B', options={'maxiter': 40})
                for start in starts[:STARTS_REFINED]), key=lambda result: result.fun)
    motion = best.x / focal_px
    value, _ = objective.cell_values(motion)
    covariance = _covariance(log_probability, objective.matrix, motion, focal_px)
    return BlurSolution(
        motion, covariance, float(value.mean()),
        float(np.clip(1.0 + value.mean() / math.log(BINS), 0.0, 1.0)),
        float(np.mean(value > log_probability.max(axis=1) - 3.0)),
        float(np.median(np.linalg.norm(objective.matrix @ motion, axis=1))))


def _scaled(objective: BlurObjective, pixels: np.ndarray,
            focal_px: float) -> tuple[float, np.ndarray]:
    value, gradient = objective(pixels / focal_px)
    return value, gradient / focal_px


def _covariance(log_probability: np.ndarray, matrix: np.ndarray, motion: np.ndarray,
                focal_px: float) -> np.ndarray:
    """Inverse information: each cell's own spread around the solution, witnesses counted once."""
    flow = matrix @ motion.astype(np.float32)
    probability = np.exp(log_probability)
    facing = np.sign(flow @ BIN_DISPLACEMENTS_PX.T)
    offset_u = facing * BIN_DISPLACEMENTS_PX[:, 0] - flow[:, :1]
    offset_v = facing * BIN_DISPLACEMENTS_PX[:, 1] - flow[:, 1:]
    uu = (probability * offset_u * offset_u).sum(axis=1) + 0.1
    vv = (probability * offset_v * offset_v).sum(axis=1) + 0.1
    uv = (probability * offset_u * offset_v).sum(axis=1)
    determinant = uu * vv - uv * uv
    inverse = np.stack([np.stack([vv, -uv], -1), np.stack([-uv, uu], -1)], -2) \
        / determinant[:, None, None]
    information = np.einsum('nai,nab,nbj->ij', matrix, inverse, matrix) / CELLS_PER_WITNESS
    spread = TRANSLATION_PRIOR ** 2 * (motion[:3] @ motion[:3]) \
        + (TRANSLATION_PRIOR_FLOOR_PX / focal_px) ** 2
    information[3:, 3:] += np.eye(3) / spread
    return np.linalg.inv(information.astype(float))
