"""
The blur solver and its critic in torch, for many images at once: on a GPU, nothing leaves it.

What `geometry.blur_solver` and `model.length_critic` do for one image, step by step; those are
quicker on a CPU. Here all shapes follow from the size and the number of the images, and nothing
waits for the device, so that a compiler can make one CUDA graph of it.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from image_as_imu_ros.geometry.blur_solver import (
    CELLS_PER_ERROR,
    CELLS_PER_WITNESS,
    CHOICES,
    COARSE_ITERATIONS,
    DIRECTION_VECTORS,
    FINALISTS,
    FINE_ITERATIONS,
    INFORMATION_NATS,
    INLIER_NATS,
    LENGTH_RATIOS,
    LIFTED_LENGTHS,
    MODE_REACH,
    MODES,
    PAIRS,
    RADII_PX,
    SAME_HILL,
    SCAN_LENGTHS_PX,
    SCAN_STARTS,
    SHARED_ERROR,
    SHARED_ERROR_PX,
    SHORT_ERROR_PX,
    SHORT_PX,
    SPARSE,
    BlurSolution,
    scan_motions,
    translation_spread,
)
from image_as_imu_ros.geometry.cell_kernels import CORNERS, LEAST_SPREAD_PX2
from image_as_imu_ros.geometry.device_objective import DeviceObjective, inverted, with_prior
from image_as_imu_ros.geometry.displacement_bins import DIRECTIONS, RINGS
from image_as_imu_ros.model.device_features import (
    DeviceHills,
    FeatureTables,
    hill_features,
    median,
)
from image_as_imu_ros.model.length_critic import LengthCritic

FIELDS = ('log_likelihood', 'information', 'inlier_share', 'extent_px', 'translation_spread',
          'log_posterior')
"""Of a `BlurSolution`, as they follow its motion and covariance in the solver's output."""
NO_HILL = -1e9
"""Logit of what does not exist."""


class DeviceSolver(nn.Module):
    """
    `solve_blur` with the critic as its judge.

    :param critic: of the network whose distributions are solved
    """

    def __init__(self, critic: LengthCritic) -> None:
        super().__init__()
        self.critic = critic.eval()
        pairs = torch.tensor(PAIRS)
        entries = torch.zeros(3, 3, dtype=torch.long)
        entries[pairs[:, 0], pairs[:, 1]] = entries[pairs[:, 1], pairs[:, 0]] = torch.arange(
            len(PAIRS))
        tables = {
            'corners': CORNERS.T.copy(), 'ratios': LENGTH_RATIOS,
            'scan': (SCAN_LENGTHS_PX[:, None, None] * scan_motions(1.0)).reshape(-1, 6),
            'lifted_lengths': np.array(LIFTED_LENGTHS), 'directions': DIRECTION_VECTORS,
            'powers': np.stack([RADII_PX, RADII_PX ** 2]), 'pairs': pairs, 'entries': entries}
        for name, table in tables.items():
            self.register_buffer(name, torch.as_tensor(table), persistent=False)

    def forward(self, images: Tensor, log_probability: Tensor, matrix: Tensor, starts: Tensor,
                tables: FeatureTables) -> Tensor:
        """
        Find the motions that the cells' distributions agree on and that the critic believes.

        :param images: (B, H, W) float32, 0 to 1
        :param log_probability: (B, h, w, BINS) float32
        :param matrix: motion field matrix at the cells' centres, px, float32, (B, h, w, 2, 6), or
            (1, h, w, 2, 6) where all images are of one camera
        :param starts: (B, 6) float64, motions to search from too; NaN where there is none
        :param tables: of images of this size, and of which of their cells are usable
        :returns: (B, MODES, 42 + len(FIELDS)) float64, the likeliest first: motion, covariance,
            FIELDS; -inf in the last of them where there are fewer
        """
        full, sparse = (
            DeviceObjective(log_probability.flatten(1, 2)[:, cells],
                            matrix.flatten(1, 2)[:, cells], CELLS_PER_WITNESS / thinning,
                            self.corners)
            for cells, thinning in ((tables.usable, 1), (tables.sparse, SPARSE)))
        # a look-up table would be read in the time that it takes a GPU to compute it
        scan = (self.scan / sparse.focal_px[..., None]).expand(len(images), -1, -1)
        likelihoods = sparse.likelihoods(scan)
        scanned = taken(scan, likelihoods.topk(SCAN_STARTS).indices)
        # no start is like one more of the same
        starts = torch.where(starts.isfinite(), starts, scanned[:, 0])[:, None]
        lengths_px, second_px2 = self._moments(sparse.log_probability)
        turns = self._turns(sparse, lengths_px)
        hills = self._hills(full, sparse, torch.cat([scanned, turns, starts], dim=1))

        logits = self.critic(hill_features(images, matrix.flatten(1, 2), hills, tables))
        logits = logits.masked_fill(hills.heights.isinf()[..., None], NO_HILL)
        motions, heights, variances = self._modes(
            hills.motions, logits.flatten(1).log_softmax(dim=1).view_as(logits))
        values = full.cell_values(motions)
        inliers = values > full.log_probability.amax(dim=2)[..., None] - INLIER_NATS
        extents_px = median(full.displacements(motions).norm(dim=2).mT).double()
        ignorance = likelihoods.logsumexp(dim=1, keepdim=True) - math.log(len(self.scan))
        gain = (values.sum(dim=1) * full.weight - ignorance).clamp(min=0.0)
        covariances = self._covariances(sparse, lengths_px, second_px2, motions, extents_px,
                                        full.focal_px)
        covariances = covariances + variances[..., None, None] \
            * motions[..., :, None] * motions[..., None, :]
        fields = (values.mean(dim=1), -torch.expm1(-gain / INFORMATION_NATS),
                  inliers.double().mean(dim=1), extents_px,
                  translation_spread(motions, full.focal_px), heights)
        return torch.cat([motions, covariances.flatten(2),
                          torch.stack([field.double() for field in fields], dim=2)], dim=2)

    def _turns(self, sparse: DeviceObjective, lengths_px: Tensor) -> Tensor:
        """Rotations to start from: fitted to the mean squares, and almost none, (B, 4, 6)."""
        lifted = self.lifted_lengths[:, None] * self._lifted(sparse, lengths_px)[:, None]
        still = (1.0 / sparse.focal_px)[..., None].expand(len(lifted), 1, 3)
        return functional.pad(torch.cat([lifted, still], dim=1), (0, 3))

    def _hills(self, full: DeviceObjective, sparse: DeviceObjective,
               starts: Tensor) -> DeviceHills:
        """Climb from starts (B, K, 6): with few cells to the right hills, then with all."""
        finalists, exist = distinct(*sparse.climb(starts, COARSE_ITERATIONS))
        peaks, heights = full.climb(finalists, FINE_ITERATIONS)
        heights, order = heights.masked_fill(~exist, -math.inf).sort(dim=1, descending=True)
        peaks = taken(peaks, order)
        scaled = (peaks[:, :, None] * self.ratios[:, None]).flatten(1, 2)
        profiles = sparse.likelihoods(scaled).unflatten(1, (FINALISTS, -1))
        return DeviceHills(peaks, heights, profiles)

    def _moments(self, log_probability: Tensor) -> tuple[Tensor, Tensor]:
        """As `CellMoments`, (B, N, DIRECTIONS) and (B, N, 3)."""
        polar = log_probability.exp()[..., 1:].unflatten(2, (RINGS, DIRECTIONS))
        lengths_px, squares_px2 = (self.powers @ polar).unbind(2)
        cosine, sine = self.directions.unbind(1)
        return lengths_px, squares_px2 @ torch.stack(
            [cosine ** 2, sine ** 2, cosine * sine], dim=1)

    def _lifted(self, objective: DeviceObjective, lengths_px: Tensor) -> Tensor:
        """Rotation that fits the mean squared displacements, as `Survey.lifted_start`, (B, 3)."""
        cosine, sine = self.directions.unbind(1)
        turned = torch.stack([cosine ** 2 - sine ** 2, 2 * cosine * sine,
                              torch.ones_like(sine)], dim=1)
        means = (lengths_px @ turned).double().mT
        weight = torch.hypot(means[:, 0], means[:, 1]) / (means[:, 2] + 1.0) ** 2
        first, second = (objective.matrix[..., :3].double()[..., column]
                         for column in self.pairs.unbind(1))
        (au, av), (bu, bv) = first.unbind(2), second.unbind(2)
        both = torch.stack([au * bu - av * bv, au * bv + bu * av, au * bu + av * bv], dim=1)
        both = both * (2.0 - (self.pairs[:, 0] == self.pairs[:, 1]).double())
        rows = (both * weight[:, None, :, None]).flatten(1, 2)
        values = (means * (means[:, 2] * weight)[:, None]).flatten(1)
        normal = rows.mT @ rows
        ridge = 1e-12 * normal.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None] + 1e-30
        normal = normal + ridge * torch.eye(len(PAIRS), dtype=rows.dtype, device=rows.device)
        solution = (inverted(normal) @ (rows.mT @ values[..., None]))[..., 0]
        return leading(solution[:, self.entries])

    def _modes(self, motions: Tensor, log_probability: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Choose the likeliest MODES of lengths of hills, as `blur_solver.solve_blur`.

        :param motions: (B, K, 6)
        :param log_probability: (B, K, C), of each at LENGTH_RATIOS[CHOICES]
        :returns: motions (B, MODES, 6), heights (B, MODES), -inf of what is none, and variances
            of the logarithms of the lengths (B, MODES)
        """
        width, reach = 2 * MODE_REACH + 1, (MODE_REACH, MODE_REACH)
        near = functional.pad(log_probability, reach, value=-math.inf).unfold(2, width, 1)
        peak = (log_probability >= near[..., MODE_REACH - 1]) \
            & (log_probability > near[..., MODE_REACH + 1])
        shares = (near - log_probability[..., None]).clamp(max=80.0).exp()  # no peak overflows
        total = shares.sum(dim=-1)
        logarithms = functional.pad(self.ratios[CHOICES].log(), reach).unfold(0, width, 1)
        mean = (shares * logarithms).sum(dim=-1) / total
        variance = (shares * (logarithms - mean[..., None]) ** 2).sum(dim=-1) / total
        heights = (log_probability + total.log()).masked_fill(
            ~peak | (log_probability < 0.5 * NO_HILL), -math.inf)
        heights, order = heights.flatten(1).topk(MODES)
        scaled = motions[:, :, None] * mean.double().exp()[..., None]
        return (taken(scaled.flatten(1, 2), order), heights,
                variance.flatten(1).gather(1, order).double())

    def _covariances(self, sparse: DeviceObjective, lengths_px: Tensor, second_px2: Tensor,
                     motions: Tensor, extents_px: Tensor, focal_px: Tensor) -> Tensor:
        """As `spread_covariances`, of motions (B, K, 6), (B, K, 6, 6)."""
        matrix = sparse.matrix.double()
        flow = (matrix.flatten(1, 2) @ motions.mT).unflatten(1, (-1, 2))
        # each direction turned to the side of the motion
        facing = (self.directions @ flow.float()).sign()
        first = (self.directions.mT @ (facing * lengths_px[..., None])).double()
        (u, v), (mean_u, mean_v) = flow.unbind(2), first.unbind(2)
        second_uu, second_vv, second_uv = second_px2.double()[:, :, None].unbind(3)
        uu = second_uu - 2 * mean_u * u + u ** 2 + LEAST_SPREAD_PX2
        vv = second_vv - 2 * mean_v * v + v ** 2 + LEAST_SPREAD_PX2
        uv = second_uv - mean_u * v - mean_v * u + u * v
        precision = torch.stack([vv, -uv, -uv, uu], dim=2) / (uu * vv - uv * uv)[:, :, None]
        weighted = torch.einsum('bnrck,bnci->bknri', precision.unflatten(2, (2, 2)), matrix)
        information = weighted.flatten(2, 3).mT @ matrix.flatten(1, 2)[:, None]
        covariance = inverted(with_prior(information * (SPARSE / CELLS_PER_ERROR), motions,
                                         focal_px))
        shared_px2 = SHARED_ERROR_PX ** 2 + (SHARED_ERROR * extents_px) ** 2 \
            + (SHORT_ERROR_PX * torch.exp(-(extents_px / SHORT_PX) ** 2)) ** 2
        # a roll moves the image by less than a pan
        lever_px2 = (matrix[..., :3] ** 2).sum(dim=2).mean(dim=1)
        shared = shared_px2[..., None] / lever_px2[:, None]
        return covariance + torch.diag_embed(functional.pad(shared, (0, 3)))


def taken(motions: Tensor, indices: Tensor) -> Tensor:
    """Those of the motions (B, K, 6) at indices (B, M), (B, M, 6)."""
    return torch.take_along_dim(motions, indices[..., None], dim=1)


def distinct(motions: Tensor, heights: Tensor) -> tuple[Tensor, Tensor]:
    """
    Find the highest motions that differ from those higher, of either sign.

    :param motions: (B, K, 6)
    :param heights: (B, K)
    :returns: (B, FINALISTS, 6), and which of them exist, (B, FINALISTS)
    """
    turns, found, exist = motions[..., :3], [], []
    size = turns.norm(dim=-1)
    for _ in range(FINALISTS):
        height, highest = heights.max(dim=1, keepdim=True)
        motion = taken(motions, highest)
        found.append(motion)
        exist.append(height > -math.inf)
        difference = torch.minimum(*((turns - sign * motion[..., :3]).norm(dim=-1)
                                     for sign in (1, -1)))
        heights = heights.masked_fill(difference <= SAME_HILL * size, -math.inf)
    return torch.cat(found, dim=1), torch.cat(exist, dim=1)


def leading(matrices: Tensor) -> Tensor:
    """
    Leading eigenvectors of symmetric matrices, times the square root of their eigenvalues.

    :param matrices: (B, 3, 3) float64
    :returns: (B, 3), zero where no eigenvalue is positive

    Source: Smith (1961), doi:10.1145/355578.366316.
    """
    eye = torch.eye(3, dtype=matrices.dtype, device=matrices.device)
    mean = matrices.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None]
    centred = matrices - mean * eye
    spread = (centred.square().sum(dim=(1, 2), keepdim=True) / 6).sqrt() + 1e-30
    a, b, c = (centred / spread).unbind(1)
    angle = (0.5 * (a * torch.linalg.cross(b, c)).sum(dim=1)).clamp(-1.0, 1.0).acos() / 3
    largest, least = (2 * spread * torch.cos(angle + turn)[:, None, None]
                      for turn in (0.0, 2 * math.pi / 3))
    # a column of the projection upon it
    projection = (centred - least * eye) @ (centred + (largest + least) * eye)
    column = projection.diagonal(dim1=1, dim2=2).argmax(dim=1)[:, None, None]
    vector = torch.take_along_dim(projection, column, dim=2)[..., 0]
    vector = vector / (vector.norm(dim=1, keepdim=True) + 1e-30)
    return vector * (mean + largest)[..., 0].clamp(min=0.0).sqrt()


def to_solutions(found: np.ndarray, factors: np.ndarray) -> list[BlurSolution]:
    """
    Take apart what `DeviceSolver` returns.

    :param found: (B, MODES, 42 + len(FIELDS))
    :param factors: (6,), of the components of the motion, as for `BlurSolution.scaled`
    :returns: B solutions with their alternatives
    """
    motions = found[..., :6] * factors
    covariances = found[..., 6:42].reshape(*found.shape[:2], 6, 6) * np.outer(factors, factors)
    solutions = []
    for image in zip(motions, covariances, found[..., 42:].tolist()):
        first, *others = (BlurSolution(motion, covariance, **dict(zip(FIELDS, fields)))
                          for motion, covariance, fields in zip(*image) if fields[-1] > -math.inf)
        solutions.append(replace(first, alternatives=tuple(others)))
    return solutions
