"""
Camera motion from per-cell displacement distributions, by maximum a posteriori.

Each cell of the image votes for its unsigned displacement over the exposure; the motion field
ties all cells to six numbers, found where the summed log-probability peaks. An edge that shows
one component of its blur and says little of the other keeps both facts this way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from image_as_imu_ros.geometry.displacement_bins import (
    BINS,
    DIRECTIONS,
    RADIUS_SCALE_PX,
    RHO_STEP,
    RINGS,
    bin_displacements,
)

CELLS_PER_WITNESS = 147.0
"""Neighbouring cells err together: so many count as one independent witness."""
CELLS_PER_ERROR = 25.0
"""The same for the spread of the cells' distributions, which is wider than their errors."""
SHARED_ERROR_PX = 0.5
"""Error of the displacement that all cells share."""
SHORT_ERROR_PX = 1.5
"""The same of a blur that is too short to be told from none, below some SHORT_PX."""
SHORT_PX = 2.0
TRANSLATION_PRIOR = 0.15
"""Spread of v T / Z before the image is seen, relative to |w T|: hands turn about the wrist."""
TRANSLATION_PRIOR_FLOOR_PX = 0.5
LENGTH_PRIOR = 2.0
"""Before the image is seen, a blur twice as long is rarer by two to this power."""
MAX_SURPRISE = 6.0
"""Most that an expected rotation can speak against another, nats."""
SCAN_LENGTHS_PX = (2.0, 5.0, 10.0, 18.0, 30.0, 48.0)
SCAN_DIRECTIONS = 12
SCAN_ROLLS = (-1.5, 0.0, 1.5)
"""Rolls beside the pans of the scan, relative to them."""
SCAN_STARTS = 4
INFORMATION_NATS = 10.0
"""A solution this much likelier than motions at random has 63 % of all information."""
COARSE_ITERATIONS = 10
FINE_ITERATIONS = 2
NEAR_ITERATIONS = 8
SPARSE = 4
"""Every other row and column."""
FINALISTS = 2
LENGTH_RATIOS = np.exp(np.linspace(-1.7, 1.7, 32)).astype(np.float32)
"""Lengths of the blur relative to a hill's at which a critic looks."""
CHOICES = slice(4, 28)
"""Those of LENGTH_RATIOS among which it chooses."""
MODES = 4
"""Most answers that a critic leaves open."""
MODE_REACH = 2
"""Steps of LENGTH_RATIOS that belong to the same answer on either side of a peak."""
SAME_HILL = 0.15
"""Rotations that differ by less, relative to them, lead to the same peak."""
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
    """How much better than motions at random the solution explains the image, 0 to 1."""
    inlier_share: float
    extent_px: float
    """Median displacement over the exposure, px of the working image."""
    depth_m: float | None = None
    """The Z of v T / Z, where the image tells it."""
    translation_spread: float = math.inf
    """Variance of v T / Z that was expected, about none, before the image was seen."""
    log_posterior: float = 0.0
    """Height of the hill, nats, up to a constant of the image."""
    alternatives: tuple[BlurSolution, ...] = ()
    """Other hills, less likely by this image alone."""

    def averaged(self) -> BlurSolution:
        """
        Mean of all hills as likely as they are, with the covariance of their mixture.

        Where two lengths are a close call, half-way between them is less wrong than either.
        """
        hills = (self, *self.alternatives)
        heights = np.array([hill.log_posterior for hill in hills])
        share = np.exp(heights - heights.max())
        share /= share.sum()
        # each on the side of the likeliest
        motions = np.stack([math.copysign(1.0, hill.motion[:3] @ self.motion[:3]) * hill.motion
                            for hill in hills])
        mean = share @ motions
        spread = motions - mean
        covariance = np.einsum('k,kij->ij', share, [hill.covariance for hill in hills]) \
            + (share * spread.T) @ spread
        return replace(self, motion=mean, covariance=covariance)

    def given(self, expected: Expectation) -> BlurSolution:
        """Of this and the alternatives, the one that is likeliest with an expectation."""
        hills = (self, *self.alternatives)
        surprise = expected.surprise(np.stack([hill.motion for hill in hills]))
        return hills[int(np.argmax([hill.log_posterior for hill in hills] - surprise))]


@dataclass(frozen=True)
class Expectation:
    """Rotation over the exposure that earlier images let expect, of either sign."""

    rotation_rad: np.ndarray
    """(3,) w T."""
    covariance: np.ndarray
    """(3, 3), rad^2."""

    def surprise(self, motions: np.ndarray) -> np.ndarray:
        """How much speaks against motions (K, 6), (K,) nats; bounded, as jolts do happen."""
        distances = []
        for sign in (1.0, -1.0):
            error = sign * motions[:, :3] - self.rotation_rad
            distances.append((error * np.linalg.solve(self.covariance, error.T).T).sum(axis=1))
        return np.minimum(0.5 * np.minimum(*distances), MAX_SURPRISE)


class BlurObjective:
    """
    Log-likelihood of motions given the cells' distributions, with gradients, for many at once.

    :param log_probability: (N, BINS) of N cells
    :param matrix: (N, 2, 6), motion field matrix at the cells' centres, px
    :param cells_per_witness: so many cells count as one independent witness
    """

    def __init__(self, log_probability: np.ndarray, matrix: np.ndarray,
                 cells_per_witness: float) -> None:
        cells = len(log_probability)
        # rings x directions per cell: ring 0 repeated for all directions, directions wrapped
        table = np.empty((cells, RINGS + 1, DIRECTIONS + 1), np.float32)
        table[:, 0] = log_probability[:, :1]
        table[:, 1:, :-1] = log_probability[:, 1:].reshape(cells, RINGS, DIRECTIONS)
        table[:, 1:, -1] = table[:, 1:, 0]
        self._flat = table.ravel()
        self._base = (np.arange(cells) * ((RINGS + 1) * (DIRECTIONS + 1))).astype(np.int32)
        self.matrix = matrix.astype(np.float32)
        self.columns = np.ascontiguousarray(self.matrix.reshape(-1, 6).T)
        self.weight = 1.0 / cells_per_witness
        self.focal_px = float(np.abs(matrix[:, 0, 1]).mean())

    def cell_values(self, motions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log-probability of every cell at motions (K, 6), (K, N), and its slope, (K, N, 2)."""
        flow = (motions.astype(np.float32) @ self.columns).reshape(len(motions), -1, 2)
        u, v = flow[..., 0], flow[..., 1]
        radius = np.sqrt(u * u + v * v) + np.float32(1e-6)
        rho = np.minimum(np.log1p(radius / RADIUS_SCALE_PX) / RHO_STEP, RINGS - 1e-3)
        theta = np.arctan2(v, u) * (DIRECTIONS / math.pi)
        theta = np.minimum(np.where(theta < 0, theta + DIRECTIONS, theta), DIRECTIONS - 1e-3)
        ring, direction = rho.astype(np.int32), theta.astype(np.int32)
        a, b = rho - ring, theta - direction
        index = self._base + ring * (DIRECTIONS + 1) + direction
        v00, v01 = self._flat[index], self._flat[index + 1]
        v10, v11 = self._flat[index + DIRECTIONS + 1], self._flat[index + DIRECTIONS + 2]
        low, high = v00 + b * (v01 - v00), v10 + b * (v11 - v10)
        along = (high - low) / (RHO_STEP * (RADIUS_SCALE_PX + radius) * radius)
        across = ((v01 - v00) * (1 - a) + (v11 - v10) * a) * (DIRECTIONS / math.pi) \
            / (radius * radius)
        slope = np.stack([along * u - across * v, along * v + across * u], axis=-1)
        return low + a * (high - low), slope

    def evaluate(self, motions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Log-posterior of motions (K, 6), up to a constant.

        :returns: value (K,), gradient (K, 6), and the slopes of the cells, (K, N, 2)
        """
        value, slope = self.cell_values(motions)
        gradient = slope.reshape(len(motions), -1) @ self.columns.T
        gradient = gradient.astype(float) * self.weight
        spread = translation_spread(motions, self.focal_px)[:, None]
        translation, turn = motions[:, 3:], motions[:, :3]
        length = (translation ** 2).sum(axis=1, keepdims=True)
        angle = np.linalg.norm(turn, axis=1, keepdims=True) + 1e-9
        radius = angle * self.focal_px
        gradient[:, :3] -= LENGTH_PRIOR * self.focal_px / (RADIUS_SCALE_PX + radius) * turn / angle
        gradient[:, 3:] -= translation / spread
        gradient[:, :3] += length * (TRANSLATION_PRIOR / spread) ** 2 * motions[:, :3]
        prior = -0.5 * length / spread - LENGTH_PRIOR * np.log1p(radius / RADIUS_SCALE_PX)
        return value.sum(axis=1) * self.weight + prior[:, 0], gradient, slope

    def empirical_information(self, motions: np.ndarray, slope: np.ndarray) -> np.ndarray:
        """Sum of squared scores of the cells, and the prior's share, (K, 6, 6)."""
        score = slope[..., :1] * self.matrix[:, 0] + slope[..., 1:] * self.matrix[:, 1]
        information = (score.transpose(0, 2, 1) @ score).astype(float) * self.weight
        prior = np.zeros_like(information)
        prior[:, range(3, 6), range(3, 6)] = 1.0 / translation_spread(motions,
                                                                      self.focal_px)[:, None]
        return information + prior

    def climb(self, motions: np.ndarray, iterations: int) -> tuple[np.ndarray, np.ndarray]:
        """
        Go uphill from several starts at once: BFGS from the empirical information, step halving.

        :param motions: (K, 6)
        :returns: improved motions (K, 6) and their log-posteriors (K,)
        """
        best, (value, gradient, slope) = motions, self.evaluate(motions)
        information = self.empirical_information(motions, slope)
        diagonal = np.einsum('kii->ki', information)
        inverse = np.linalg.inv(information + np.eye(6) * (0.1 * diagonal + 1e-3)[:, None, :])
        length = np.ones(len(motions))
        for _ in range(iterations):
            step = length[:, None] * np.einsum('kij,kj->ki', inverse, gradient)
            new_value, new_gradient, _ = self.evaluate(best + step)
            better = new_value > value
            # curvature along the step, learnt from failures too
            change = gradient - new_gradient
            curvature = np.einsum('ki,ki->k', step, change)
            learn = curvature > 1e-9
            rho = np.where(learn, 1.0 / np.where(learn, curvature, 1.0), 0.0)
            left = np.eye(6) - rho[:, None, None] * step[:, :, None] * change[:, None, :]
            inverse = left @ inverse @ left.transpose(0, 2, 1) \
                + rho[:, None, None] * step[:, :, None] * step[:, None, :]
            best = np.where(better[:, None], best + step, best)
            value = np.where(better, new_value, value)
            gradient = np.where(better[:, None], new_gradient, gradient)
            length = np.where(better, np.minimum(1.0, length * 2), length * 0.4)
        return best, value


def translation_spread(motions: np.ndarray, focal_px: float) -> np.ndarray:
    """Prior variance of v T / Z, (K,): hands turn about the wrist, so it grows with |w T|."""
    return TRANSLATION_PRIOR ** 2 * (motions[:, :3] ** 2).sum(axis=1) \
        + (TRANSLATION_PRIOR_FLOOR_PX / focal_px) ** 2


def lifted_start(probability: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """
    Rotation whose squared motion field fits the cells' mean squared displacements best.

    The products uu - vv and 2uv of a rotation's flow are linear in w w^T; its leading
    eigenvector gives w up to sign.

    :param probability: (N, BINS)
    :param matrix: (N, 2, 6), px
    :returns: (3,) w T, rad
    """
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


@dataclass(frozen=True)
class Hills:
    """Distinct local maxima of the posterior of one image, highest first."""

    motions: np.ndarray
    """(K, 6)."""
    heights: np.ndarray
    """(K,), log-posterior up to a constant, nats."""
    profiles: np.ndarray
    """(K, len(LENGTH_RATIOS)), log-likelihood of each motion times each ratio, nats."""


Judge = Callable[[Hills], np.ndarray]
"""Log-probability of each hill at each of LENGTH_RATIOS[CHOICES], given the image, (K, C)."""


def solve_blur(log_probability: np.ndarray, matrix: np.ndarray,
               start: np.ndarray | None = None, judge: Judge | None = None) -> BlurSolution:
    """
    Find the motion that the cells' distributions agree on.

    :param log_probability: (h, w, BINS), float32
    :param matrix: (h, w, 2, 6), motion field matrix at the cells' centres, px
    :param start: motion (6,) to search from too, such as what a stream expects
    :param judge: chooses among the hills, and the length at each; None takes them as they are
    :returns: the motion up to sign, with its covariance
    """
    # every other row and column is enough to find the right hill
    sparse_logs = log_probability[::2, ::2].reshape(-1, BINS)
    sparse_probability = np.exp(sparse_logs)
    sparse_matrix = matrix[::2, ::2].reshape(-1, 2, 6)
    sparse = BlurObjective(sparse_logs, sparse_matrix, CELLS_PER_WITNESS / SPARSE)
    scan = _scan(sparse.focal_px)
    likelihoods = sparse.cell_values(scan)[0].sum(axis=1) * sparse.weight
    starts = np.concatenate([scan[np.argsort(-likelihoods)[:SCAN_STARTS]],
                             _starts(sparse_probability, sparse_matrix, sparse.focal_px),
                             *([] if start is None else [start[None]])])
    found, heights = sparse.climb(starts, COARSE_ITERATIONS)
    log_probability, matrix = log_probability.reshape(-1, BINS), matrix.reshape(-1, 2, 6)
    objective = BlurObjective(log_probability, matrix, CELLS_PER_WITNESS)
    peaks, heights = objective.climb(_distinct(found[np.argsort(-heights)]), FINE_ITERATIONS)
    ignorance = np.log(np.mean(np.exp(likelihoods - likelihoods.max()))) + likelihoods.max()

    def solution(mode: Mode) -> BlurSolution:
        value = objective.cell_values(mode.motion[None])[0][0]
        gain = max(float(value.sum()) * objective.weight - ignorance, 0.0)
        covariance = spread_covariance(sparse_probability, sparse_matrix, mode.motion, sparse)
        covariance += mode.length_variance * np.outer(mode.motion, mode.motion)
        return BlurSolution(
            mode.motion, covariance, float(value.mean()),
            float(-np.expm1(-gain / INFORMATION_NATS)),
            float(np.mean(value > log_probability.max(axis=1) - 3.0)),
            float(np.median(np.linalg.norm(objective.matrix @ mode.motion, axis=1))),
            translation_spread=float(translation_spread(mode.motion[None], objective.focal_px)[0]),
            log_posterior=mode.height)

    order = np.argsort(-heights)
    peaks, heights = peaks[order], heights[order]
    if judge is None:
        modes = [Mode(motion, float(height), 0.0) for motion, height in zip(peaks, heights)]
    else:
        scaled = LENGTH_RATIOS[:, None] * peaks[:, None]
        profiles = np.stack([sparse.cell_values(each)[0].sum(axis=1) for each in scaled])
        modes = _modes(peaks, judge(Hills(peaks, heights, profiles * sparse.weight)))
    best, *others = (solution(mode) for mode in modes)
    return replace(best, alternatives=tuple(others))


def solve_near(log_probability: np.ndarray, matrix: np.ndarray,
               starts: np.ndarray, share: float) -> list[BlurSolution]:
    """
    Find the hills above starts, as for a part of an image of which much is expected.

    :param log_probability, matrix: as for `solve_blur`, of a part of the cells
    :param starts: motions (K, 6)
    :param share: of the image's cells
    :returns: distinct motions, the likeliest first; their `information` is not known
    """
    log_probability, matrix = log_probability.reshape(-1, BINS), matrix.reshape(-1, 2, 6)
    # as much against the prior as the whole image would have, lest it shorten every blur
    objective = BlurObjective(log_probability, matrix, CELLS_PER_WITNESS * share)
    found, heights = objective.climb(starts, NEAR_ITERATIONS)
    probability = np.exp(log_probability)
    solutions = []
    for motion in _distinct(found[np.argsort(-heights)]):
        value = objective.cell_values(motion[None])[0][0]
        solutions.append(BlurSolution(
            motion, spread_covariance(probability, matrix, motion, objective, 1.0),
            float(value.mean()), 0.0,
            float(np.mean(value > log_probability.max(axis=1) - 3.0)),
            float(np.median(np.linalg.norm(objective.matrix @ motion, axis=1))),
            log_posterior=float(value.sum()) / CELLS_PER_WITNESS))
    return solutions


@dataclass(frozen=True)
class Mode:
    """A motion that explains the image, and how sure its length is."""

    motion: np.ndarray
    """(6,)."""
    height: float
    """Log-probability, up to a constant, nats."""
    length_variance: float
    """Of the logarithm of the length."""


def _modes(motions: np.ndarray, log_probability: np.ndarray) -> list[Mode]:
    """
    The likeliest MODES of lengths of hills.

    :param motions: (K, 6)
    :param log_probability: (K, C), of each at LENGTH_RATIOS[CHOICES]
    """
    logarithms = np.log(LENGTH_RATIOS[CHOICES])
    modes = []
    for motion, row in zip(motions, log_probability):
        around = np.pad(row, 1, constant_values=-np.inf)
        for peak in np.flatnonzero((row >= around[:-2]) & (row > around[2:])):
            near = slice(max(peak - MODE_REACH, 0), peak + MODE_REACH + 1)
            weight = np.exp(row[near] - row[peak])
            total = weight.sum()
            mean = float(weight @ logarithms[near] / total)
            variance = float(weight @ (logarithms[near] - mean) ** 2 / total)
            modes.append(Mode(motion * math.exp(mean), float(row[peak] + np.log(total)),
                              variance))
    return sorted(modes, key=lambda mode: -mode.height)[:MODES]


def _distinct(motions: np.ndarray) -> np.ndarray:
    """The first FINALISTS motions (K, 6) that differ from those before, of either sign."""
    found: list[np.ndarray] = []
    for motion in motions:
        turn = motion[:3]
        if all(min(np.linalg.norm(turn - other[:3]), np.linalg.norm(turn + other[:3]))
               > SAME_HILL * np.linalg.norm(turn) for other in found):
            found.append(motion)
        if len(found) == FINALISTS:
            break
    return np.array(found)


@lru_cache(maxsize=8)
def _scan(focal_px: float) -> np.ndarray:
    """Pans of all directions and lengths, with and without roll, (K, 6)."""
    length, angle, roll = np.meshgrid(
        np.array(SCAN_LENGTHS_PX) / focal_px, np.arange(SCAN_DIRECTIONS) * np.pi / SCAN_DIRECTIONS,
        SCAN_ROLLS, indexing='ij')
    rotation = np.stack([np.sin(angle), -np.cos(angle), roll], axis=-1) * length[..., None]
    return np.pad(rotation.reshape(-1, 3), ((0, 0), (0, 3)))


def _starts(probability: np.ndarray, matrix: np.ndarray, focal_px: float) -> np.ndarray:
    """Further motions (K, 6) to start from: fitted to the mean squares, and almost none."""
    lifted = lifted_start(probability, matrix)
    rotations = [lifted, 0.6 * lifted, 1.6 * lifted, np.full(3, 1.0 / focal_px)]
    return np.pad(np.array(rotations), ((0, 0), (0, 3)))


def spread_covariance(probability: np.ndarray, matrix: np.ndarray, motion: np.ndarray,
                      objective: BlurObjective, thinning: float = SPARSE) -> np.ndarray:
    """Inverse information: each cell's own spread around the solution, witnesses counted once."""
    flow = (matrix @ motion).astype(np.float32)
    facing = np.sign(flow @ BIN_DISPLACEMENTS_PX.T)
    # moments of the bins, each turned to the side of the solution
    u, v = BIN_DISPLACEMENTS_PX.T
    first = (probability * facing) @ BIN_DISPLACEMENTS_PX
    second = probability @ np.stack([u * u, v * v, u * v], axis=1)
    uu = second[:, 0] - 2 * first[:, 0] * flow[:, 0] + flow[:, 0] ** 2 + 0.1
    vv = second[:, 1] - 2 * first[:, 1] * flow[:, 1] + flow[:, 1] ** 2 + 0.1
    uv = second[:, 2] - first[:, 0] * flow[:, 1] - first[:, 1] * flow[:, 0] \
        + flow[:, 0] * flow[:, 1]
    inverse = np.stack([np.stack([vv, -uv], -1), np.stack([-uv, uu], -1)], -2) \
        / (uu * vv - uv * uv)[:, None, None]
    information = np.einsum('nai,nab,nbj->ij', matrix, inverse, matrix, optimize=True)
    information = information.astype(float) * thinning / CELLS_PER_ERROR
    information[3:, 3:] += np.eye(3) / translation_spread(motion[None], objective.focal_px)[0]
    covariance = np.linalg.inv(information)
    extent_px = float(np.median(np.linalg.norm(flow, axis=1)))
    shared_px = SHARED_ERROR_PX ** 2 \
        + (SHORT_ERROR_PX * math.exp(-(extent_px / SHORT_PX) ** 2)) ** 2
    covariance[:3, :3] += np.eye(3) * shared_px / objective.focal_px ** 2
    return covariance
