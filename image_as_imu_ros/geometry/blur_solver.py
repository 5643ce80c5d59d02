"""
Camera motion from per-cell displacement distributions, by maximum a posteriori.

Each cell of the image votes for its unsigned displacement over the exposure; the motion field
ties all cells to six numbers, found where the summed log-probability peaks. An edge that shows
one component of its blur and says little of the other keeps both facts this way.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np

from image_as_imu_ros.geometry import cell_kernels
from image_as_imu_ros.geometry.cell_kernels import (
    TRANSLATION_PRIOR,
    TRANSLATION_PRIOR_FLOOR_PX,
    Cells,
)
from image_as_imu_ros.geometry.displacement_bins import (
    BINS,
    DIRECTIONS,
    RINGS,
    Array,
    bin_displacements,
)

CELLS_PER_WITNESS = 147.0
"""Neighbouring cells err together: so many count as one independent witness."""
CELLS_PER_ERROR = 25.0
"""The same for the spread of the cells' distributions, which is wider than their errors."""
SHARED_ERROR_PX = 0.5
"""Error of the displacement that all cells share."""
SHARED_ERROR = 0.02
"""The same, relative to the displacement."""
SHORT_ERROR_PX = 1.5
"""The same of a blur that is too short to be told from none, below some SHORT_PX."""
SHORT_PX = 2.0
MAX_SURPRISE = 6.0
"""Most that an expected rotation can speak against another, nats."""
SCAN_LENGTHS_PX = np.array([2.0, 5.0, 10.0, 18.0, 30.0, 48.0])
SCAN_DIRECTIONS = 12
SCAN_ROLLS = (-1.5, 0.0, 1.5)
"""Rolls beside the pans of the scan, relative to them."""
SCAN_STARTS = 4
LIFTED_LENGTHS = (1.0, 0.6, 1.6)
"""Times the rotation that fits the mean squares, where to start from as well."""
INLIER_NATS = 3.0
"""A cell agrees with a motion that is so little less likely than its own choice."""
INFORMATION_NATS = 10.0
"""A solution this much likelier than motions at random has 63 % of all information."""
COARSE_ITERATIONS = 7
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
BIN_DISPLACEMENTS_PX = bin_displacements()
RADII_PX = np.hypot(*BIN_DISPLACEMENTS_PX[1::DIRECTIONS].T)
DIRECTION_VECTORS = BIN_DISPLACEMENTS_PX[1:1 + DIRECTIONS] / RADII_PX[0]
DIRECTION_COLUMNS = np.ascontiguousarray(DIRECTION_VECTORS.T)
PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
"""Entries of a symmetric matrix, (3, 3)."""


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

    def scaled(self, factors: np.ndarray) -> BlurSolution:
        """Every component of the motion times a factor, (6,), all hills alike."""
        return replace(self, motion=factors * self.motion,
                       covariance=np.outer(factors, factors) * self.covariance,
                       alternatives=tuple(hill.scaled(factors) for hill in self.alternatives))

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
    Log-likelihood of motions given the cells' distributions.

    :param log_probability: (N, BINS) of N cells, float32
    :param matrix: (N, 2, 6), motion field matrix at the cells' centres, px
    :param cells_per_witness: so many cells count as one independent witness
    """

    def __init__(self, log_probability: np.ndarray, matrix: np.ndarray,
                 cells_per_witness: float) -> None:
        self.weight = 1.0 / cells_per_witness
        self.focal_px = float(np.abs(matrix[:, 0, 1]).mean())
        self.cells = Cells(np.ascontiguousarray(log_probability, np.float32),
                           np.ascontiguousarray(matrix.transpose(1, 2, 0), np.float32),
                           self.weight, self.focal_px)

    def cell_values(self, motions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log-probability and displacement, px, of every cell at motions (K, 6), (K, N) each."""
        values, lengths_px = np.empty((2, len(motions), len(self.cells.log_probability)),
                                      np.float32)
        cell_kernels.cell_values(self.cells, motions, values, lengths_px)
        return values, lengths_px

    def likelihoods(self, motions: np.ndarray, ratios: np.ndarray) -> np.ndarray:
        """Log-likelihood of motions (K, 6) times each ratio (R,), (K, R), nats."""
        found = np.empty((len(motions), len(ratios)))
        cell_kernels.likelihoods(self.cells, motions, ratios, found)
        return found * self.weight

    def evaluate(self, motion: np.ndarray) -> tuple[float, np.ndarray]:
        """Log-posterior of a motion (6,), up to a constant, and its gradient (6,)."""
        gradient = np.empty(6)
        value = cell_kernels.evaluate(self.cells, motion, cell_kernels.work_for(self.cells),
                                      gradient)
        return value, gradient

    def climb(self, motions: np.ndarray, iterations: int) -> tuple[np.ndarray, np.ndarray]:
        """
        Go uphill from several starts: BFGS from the empirical information, step halving.

        :param motions: (K, 6)
        :returns: improved motions (K, 6) and their log-posteriors (K,), highest first
        """
        peaks, heights = np.array(motions, float, order='C'), np.empty(len(motions))
        cell_kernels.climb(self.cells, peaks, heights, iterations)
        order = np.argsort(-heights)
        return peaks[order], heights[order]


def translation_spread(motions: Array, focal_px: float | Array) -> Array:
    """
    Prior variance of v T / Z: hands turn about the wrist, so it grows with |w T|.

    :param motions: (..., 6), of numpy or of torch
    :returns: (...)
    """
    return TRANSLATION_PRIOR ** 2 * (motions[..., :3] ** 2).sum(axis=-1) \
        + (TRANSLATION_PRIOR_FLOOR_PX / focal_px) ** 2


class CellMoments:
    """
    Mean displacements that cells tell, each direction by itself.

    :param log_probability: (N, BINS)
    """

    def __init__(self, log_probability: np.ndarray) -> None:
        polar = cv2.exp(log_probability)[:, 1:].reshape(-1, RINGS, DIRECTIONS)
        sums = np.stack([RADII_PX, RADII_PX ** 2]) @ polar
        self.lengths_px = sums[:, 0]
        """Share of each direction times its mean length, (N, DIRECTIONS)."""
        cosine, sine = DIRECTION_VECTORS.T
        self.second_px2 = sums[:, 1] @ np.stack([cosine ** 2, sine ** 2, cosine * sine], axis=1)
        """Means of uu, vv and uv, (N, 3)."""


class Survey:
    """
    What the search for a motion needs again for every image of one camera.

    :param turn_matrix: (N, 2, 3), motion field matrix of rotations, px
    """

    def __init__(self, turn_matrix: np.ndarray) -> None:
        self.pans = scan_motions(float(np.abs(turn_matrix[:, 0, 1]).mean()))
        """Motions of the scan, of one pixel, (K, 6)."""
        a, b = turn_matrix[:, 0], turn_matrix[:, 1]

        def rows(form: Callable[[int, int], np.ndarray]) -> np.ndarray:
            return np.stack([form(i, j) * (1.0 if i == j else 2.0) for i, j in PAIRS], axis=-1)

        self._lifted = np.stack([rows(lambda i, j: a[:, i] * a[:, j] - b[:, i] * b[:, j]),
                                 rows(lambda i, j: a[:, i] * b[:, j] + a[:, j] * b[:, i]),
                                 rows(lambda i, j: a[:, i] * a[:, j] + b[:, i] * b[:, j])])

    def lifted_start(self, moments: CellMoments) -> np.ndarray:
        """
        Rotation whose squared motion field fits the cells' mean squared displacements best.

        The products uu - vv, 2uv and uu + vv of a rotation's flow are linear in w w^T; its
        leading eigenvector gives w up to sign.

        :returns: (3,) w T, rad
        """
        cosine, sine = DIRECTION_VECTORS.T
        turned = np.stack([cosine ** 2 - sine ** 2, 2 * cosine * sine, np.ones(DIRECTIONS)])
        means = turned @ moments.lengths_px.T
        weight = np.hypot(means[0], means[1]) / (means[2] + 1.0) ** 2
        rows = (self._lifted * weight[:, None]).reshape(-1, len(PAIRS))
        values = (means * (means[2] * weight)).ravel()
        solution = np.linalg.lstsq(rows.T @ rows, rows.T @ values, rcond=None)[0]
        lifted = np.zeros((3, 3))
        for entry, (i, j) in zip(solution, PAIRS):
            lifted[i, j] = lifted[j, i] = entry
        eigenvalues, eigenvectors = np.linalg.eigh(lifted)
        return eigenvectors[:, -1] * math.sqrt(max(eigenvalues[-1], 0.0))


@lru_cache(maxsize=8)
def _survey(turn_matrix: bytes) -> Survey:
    """Keep the survey of each camera; measured depth changes no rotation's share of the matrix."""
    return Survey(np.frombuffer(turn_matrix).reshape(-1, 2, 3))


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
               start: np.ndarray | None = None, judge: Judge | None = None,
               usable: np.ndarray | None = None) -> BlurSolution:
    """
    Find the motion that the cells' distributions agree on.

    :param log_probability: (h, w, BINS), float32
    :param matrix: (h, w, 2, 6), motion field matrix at the cells' centres, px
    :param start: motion (6,) to search from too, such as what a stream expects
    :param judge: chooses among the hills, and the length at each; None takes them as they are
    :param usable: (h, w) bool, cells that tell of the scene; None: all
    :returns: the motion up to sign, with its covariance
    """
    # every other row and column is enough to find the right hill
    sparse_logs, sparse_matrix = (cells_of(each, usable, 2) for each in (log_probability, matrix))
    sparse = BlurObjective(sparse_logs, sparse_matrix, CELLS_PER_WITNESS / SPARSE)
    survey = _survey(np.asarray(sparse_matrix[..., :3], float).tobytes())
    moments = CellMoments(sparse_logs)
    likelihoods = sparse.likelihoods(survey.pans, SCAN_LENGTHS_PX)
    pans, lengths = np.unravel_index(np.argsort(-likelihoods, axis=None)[:SCAN_STARTS],
                                     likelihoods.shape)
    starts = np.concatenate([SCAN_LENGTHS_PX[lengths, None] * survey.pans[pans],
                             _starts(survey.lifted_start(moments), sparse.focal_px),
                             *([] if start is None else [start[None]])])
    found, _ = sparse.climb(starts, COARSE_ITERATIONS)
    objective = BlurObjective(*(cells_of(each, usable) for each in (log_probability, matrix)),
                              CELLS_PER_WITNESS)
    peaks, heights = objective.climb(_distinct(found), FINE_ITERATIONS)
    if judge is None:
        modes = [Mode(motion, float(height), 0.0) for motion, height in zip(peaks, heights)]
    else:
        profiles = sparse.likelihoods(peaks, LENGTH_RATIOS)
        modes = _modes(peaks, judge(Hills(peaks, heights, profiles)))

    ignorance = np.log(np.mean(np.exp(likelihoods - likelihoods.max()))) + likelihoods.max()
    solutions = []
    for mode, found, likelihood in zip(modes, *_solutions(
            objective, np.stack([mode.motion for mode in modes]), moments, sparse.cells, SPARSE)):
        gain = max(likelihood - ignorance, 0.0)
        uncertain = mode.length_variance * np.outer(mode.motion, mode.motion)
        solutions.append(replace(found, covariance=found.covariance + uncertain,
                                 information=float(-np.expm1(-gain / INFORMATION_NATS)),
                                 log_posterior=mode.height))
    return replace(solutions[0], alternatives=tuple(solutions[1:]))


def cells_of(grid: np.ndarray, usable: np.ndarray | None, step: int = 1) -> np.ndarray:
    """
    What a grid (h, w, ...) holds of its usable cells, (N, ...).

    :param usable: (h, w) bool; None: all are
    :param step: rows and columns from one cell to the next
    """
    thinned = grid[::step, ::step]
    if usable is None:
        return np.ascontiguousarray(thinned).reshape(-1, *grid.shape[2:])
    return thinned[usable[::step, ::step]]


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
    found, _ = objective.climb(starts, NEAR_ITERATIONS)
    solutions, _ = _solutions(objective, _distinct(found), CellMoments(log_probability),
                              objective.cells, 1.0)
    return [replace(solution, log_posterior=solution.log_likelihood * len(matrix)
                    / CELLS_PER_WITNESS) for solution in solutions]


def _solutions(objective: BlurObjective, motions: np.ndarray, moments: CellMoments,
               cells: Cells, thinning: float) -> tuple[list[BlurSolution], np.ndarray]:
    """
    Describe motions (K, 6).

    :param moments, cells: of one in so many as `thinning` tells
    :returns: solutions without their information and posterior, and their log-likelihoods, (K,)
    """
    values, lengths_px = objective.cell_values(motions)
    inliers = values > objective.cells.log_probability.max(axis=1) - INLIER_NATS
    extents_px = np.median(lengths_px, axis=1)
    covariances = spread_covariances(moments, cells, motions, extents_px, thinning)
    means, shares = values.mean(axis=1), inliers.mean(axis=1)
    spreads = translation_spread(motions, objective.focal_px)
    solutions = [
        BlurSolution(motion, covariances[k], log_likelihood=float(means[k]), information=0.0,
                     inlier_share=float(shares[k]), extent_px=float(extents_px[k]),
                     translation_spread=float(spreads[k]))
        for k, motion in enumerate(motions)]
    return solutions, values.sum(axis=1) * objective.weight


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
    logarithms = np.log(LENGTH_RATIOS[CHOICES]).tolist()
    modes = []
    for motion, row in zip(motions, log_probability.tolist()):
        around = [-math.inf, *row, -math.inf]
        for peak, height in enumerate(row):
            if not around[peak] <= height > around[peak + 2]:
                continue
            near = slice(max(peak - MODE_REACH, 0), peak + MODE_REACH + 1)
            weights = [math.exp(other - height) for other in row[near]]
            total = sum(weights)
            mean = sum(map(operator.mul, weights, logarithms[near])) / total
            variance = sum(weight * (logarithm - mean) ** 2 for weight, logarithm
                           in zip(weights, logarithms[near])) / total
            modes.append(Mode(motion * math.exp(mean), height + math.log(total), variance))
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


def scan_motions(focal_px: float) -> np.ndarray:
    """Pans by a pixel in all directions, with and without roll, (K, 6)."""
    angle, roll = np.meshgrid(np.arange(SCAN_DIRECTIONS) * np.pi / SCAN_DIRECTIONS, SCAN_ROLLS,
                              indexing='ij')
    rotation = np.stack([np.sin(angle), -np.cos(angle), roll], axis=-1) / focal_px
    return np.pad(rotation.reshape(-1, 3), ((0, 0), (0, 3)))


def _starts(lifted: np.ndarray, focal_px: float) -> np.ndarray:
    """Further motions (K, 6) to start from: fitted to the mean squares, and almost none."""
    starts = np.zeros((4, 6))
    starts[:3, :3] = np.array(LIFTED_LENGTHS)[:, None] * lifted
    starts[3, :3] = 1.0 / focal_px
    return starts


def spread_covariances(moments: CellMoments, cells: Cells, motions: np.ndarray,
                       extents_px: np.ndarray, thinning: float) -> np.ndarray:
    """
    Inverse information: each cell's own spread around a motion, witnesses counted once.

    :param moments: of `cells`, one in so many as `thinning` tells
    :param motions: (K, 6)
    :param extents_px: (K,), median displacements
    :returns: (K, 6, 6)
    """
    covariance = cell_kernels.spread_covariances(
        cells, thinning / CELLS_PER_ERROR, DIRECTION_COLUMNS, moments.lengths_px,
        moments.second_px2, motions)
    shared_px2 = SHARED_ERROR_PX ** 2 + (SHARED_ERROR * extents_px) ** 2 \
        + (SHORT_ERROR_PX * np.exp(-(extents_px / SHORT_PX) ** 2)) ** 2
    # a roll moves the image by less than a pan
    lever_px2 = np.square(cells.columns[:, :3]).mean(axis=-1).sum(axis=0)
    covariance[:, range(3), range(3)] += shared_px2[:, None] / lever_px2
    return covariance
