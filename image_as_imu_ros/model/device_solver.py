"""
The blur solver and its critic in torch, for many images at once: on a GPU, nothing leaves it.

What `geometry.blur_solver` and `model.length_critic` do for one image, step by step; those are
quicker on a CPU. Here all shapes follow from the size and the number of the images, and nothing
waits for the device, so that a compiler can make one CUDA graph of it. What belongs to a cell is
in single precision, what belongs to a motion in double.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from image_as_imu_ros.geometry.blur_solver import (
    CELLS_PER_ERROR,
    CELLS_PER_WITNESS,
    CHOICES,
    COARSE_ITERATIONS,
    CORNERS,
    DIRECTION_VECTORS,
    FINALISTS,
    FINE_ITERATIONS,
    INFORMATION_NATS,
    INLIER_NATS,
    LENGTH_PRIOR,
    LENGTH_RATIOS,
    LIFTED_LENGTHS,
    MODE_REACH,
    MODES,
    PAIRS,
    RADII_PX,
    SAME_HILL,
    SCAN_STARTS,
    SHARED_ERROR_PX,
    SHORT_ERROR_PX,
    SHORT_PX,
    SPARSE,
    TRANSLATION_PRIOR,
    BlurSolution,
    scan_motions,
    translation_spread,
)
from image_as_imu_ros.geometry.displacement_bins import (
    DIRECTIONS,
    RADIUS_SCALE_PX,
    RHO_STEP,
    RINGS,
)
from image_as_imu_ros.model.device_features import FeatureTables, hill_features, median
from image_as_imu_ros.model.length_critic import LengthCritic

FIELDS = ('log_likelihood', 'information', 'inlier_share', 'extent_px', 'translation_spread',
          'log_posterior')
"""Of a `BlurSolution`, as they follow its motion and covariance in the solver's output."""
ARCTANGENT = tuple(math.degrees(factor) for factor in (
    0.9997878412794807, -0.3258083974640975, 0.1555786518463281, -0.04432655554792128))
"""Factors of the odd powers of a tangent up to 1 in OpenCV's polynomial, degrees."""
NO_HILL = -1e9
"""Logit of what does not exist."""


class Hills(NamedTuple):
    """Local maxima of the posteriors of B images, FINALISTS of each, highest first."""

    motions: Tensor
    """(B, K, 6)."""
    heights: Tensor
    """(B, K), log-posterior up to a constant, nats; -inf where there is no further hill."""
    profiles: Tensor
    """(B, K, len(LENGTH_RATIOS)), log-likelihood of each motion times each ratio, nats."""


class DeviceObjective:
    """
    `BlurObjective` of B images; in all shapes a motion's place (K) follows the cell's (N).

    :param log_probability: (B, N, BINS) float32
    :param matrix: motion field matrix at the cells' centres, px, float32, (B, N, 2, 6), or
        (1, N, 2, 6) where all images are of one camera
    :param cells_per_witness: so many cells count as one independent witness
    :param corners: CORNERS, (RINGS * 2 * DIRECTIONS, 4)
    """

    def __init__(self, log_probability: Tensor, matrix: Tensor, cells_per_witness: float,
                 corners: Tensor) -> None:
        self.log_probability, self.matrix, self.corners = log_probability, matrix, corners
        self.rows = matrix.flatten(1, 2)
        self.weight = 1.0 / cells_per_witness
        self.focal_px = matrix[:, :, 0, 1].abs().double().mean(dim=1, keepdim=True)

    def displacements(self, motions: Tensor) -> Tensor:
        """Displacement of every cell at motions (B, K, 6), (B, N, 2, K), px."""
        return (self.rows @ motions.float().mT).unflatten(1, (-1, 2))

    def cell_values(self, motions: Tensor) -> Tensor:
        """Log-probability of every cell at motions (B, K, 6), (B, N, K)."""
        corners, along, across, _, _ = self._look_up(motions)
        low, high = (corners[k] + across * (corners[k + 2] - corners[k]) for k in (0, 1))
        return low + along * (high - low)

    def likelihoods(self, motions: Tensor) -> Tensor:
        """Log-likelihood of motions (B, K, 6), (B, K), nats."""
        return self.cell_values(motions).sum(dim=1) * self.weight

    def _look_up(self, motions: Tensor) -> tuple[tuple[Tensor, ...], Tensor, Tensor, Tensor,
                                                 Tensor]:
        flow = self.displacements(motions)
        u, v = flow.unbind(2)
        radius = (u * u + v * v).sqrt()
        along = (torch.log1p(radius / RADIUS_SCALE_PX) / RHO_STEP).clamp(max=RINGS - 1e-3)
        across = (angle(u, v) * (DIRECTIONS / 180)).clamp(max=2 * DIRECTIONS - 1e-3)
        ring, direction = along.floor(), across.floor()
        place = (ring * (2 * DIRECTIONS) + direction).long().clamp(0, len(self.corners) - 1)
        found = self.log_probability.gather(2, self.corners[place].flatten(2))
        return (found.unflatten(2, place.shape[2:] + (4,)).unbind(-1), along - ring,
                across - direction, flow, radius)

    def evaluate(self, motions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Log-posterior of motions (B, K, 6), up to a constant.

        :returns: value (B, K), gradient (B, K, 6), and the slopes of the cells, (B, N, 2, K)
        """
        corners, along, across, flow, radius = self._look_up(motions)
        radius = radius + 1e-6
        inner, outer = corners[2] - corners[0], corners[3] - corners[1]
        low = corners[0] + across * inner
        rise = corners[1] + across * outer - low
        turning = (inner + along * (outer - inner)) * (DIRECTIONS / math.pi) / radius
        climbing = rise / (RHO_STEP * (RADIUS_SCALE_PX + radius))
        u, v = (flow / radius[:, :, None]).unbind(2)
        slope = torch.stack([climbing * u - turning * v, climbing * v + turning * u], dim=2)
        value = (low + along * rise).sum(dim=1)
        gradient = (slope.flatten(1, 2).mT @ self.rows).double() * self.weight

        turn, translation = motions.split(3, dim=-1)
        length = translation.square().sum(dim=-1, keepdim=True)
        spread = translation_spread(motions, self.focal_px)[..., None]
        angle = turn.square().sum(dim=-1, keepdim=True).sqrt() + 1e-9
        focal = self.focal_px[..., None] / RADIUS_SCALE_PX
        scaled = 1.0 + angle * focal
        pull = LENGTH_PRIOR * focal / (scaled * angle)
        gradient = gradient + torch.cat([
            (length * (TRANSLATION_PRIOR / spread) ** 2 - pull) * turn, -translation / spread],
            dim=-1)
        prior = -0.5 * length / spread - LENGTH_PRIOR * scaled.log()
        return value * self.weight + prior[..., 0], gradient, slope

    def empirical_information(self, motions: Tensor, slope: Tensor) -> Tensor:
        """Sum of squared scores of the cells, and the prior's share, (B, K, 6, 6)."""
        score = (slope[..., None] * self.matrix[:, :, :, None]).sum(dim=2)
        score = score.transpose(1, 2)
        return with_prior((score.mT @ score).double() * self.weight, motions, self.focal_px)

    def climb(self, motions: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
        """
        Go uphill from several starts at once, as `BlurObjective.climb`.

        :param motions: (B, K, 6)
        :returns: improved motions (B, K, 6) and their log-posteriors (B, K)
        """
        best, (value, gradient, slope) = motions, self.evaluate(motions)
        information = self.empirical_information(motions, slope)
        diagonal = information.diagonal(dim1=-2, dim2=-1)
        inverse = inverted(information + torch.diag_embed(0.1 * diagonal + 1e-3))
        length = torch.ones_like(value)[..., None]
        for _ in range(iterations):
            step = length * (inverse @ gradient[..., None])[..., 0]
            new_value, new_gradient, _ = self.evaluate(best + step)
            better = (new_value > value)[..., None]
            # curvature along the step, learnt from failures too
            change = gradient - new_gradient
            curvature = (step * change).sum(dim=-1, keepdim=True)
            rho = curvature.clamp(min=1e-9).reciprocal() * (curvature > 1e-9)
            turned = (inverse @ change[..., None])[..., 0]
            along = rho * (0.5 * (1.0 + rho * (turned * change).sum(dim=-1, keepdim=True)) * step
                           - turned)
            product = along[..., :, None] * step[..., None, :]
            inverse = inverse + product + product.mT
            best = torch.where(better, best + step, best)
            value = torch.where(better[..., 0], new_value, value)
            gradient = torch.where(better, new_gradient, gradient)
            length = torch.where(better, (length * 2).clamp(max=1.0), length * 0.4)
        return best, value


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
            'corners': CORNERS.T.copy(), 'scan': scan_motions(1.0), 'ratios': LENGTH_RATIOS,
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
        :param tables: of images of this size
        :returns: (B, MODES, 42 + len(FIELDS)) float64, the likeliest first: motion, covariance,
            FIELDS; -inf in the last of them where there are fewer
        """
        full, sparse = (
            DeviceObjective(log_probability[:, ::step, ::step].flatten(1, 2),
                            matrix[:, ::step, ::step].flatten(1, 2), CELLS_PER_WITNESS / thinning,
                            self.corners) for step, thinning in ((1, 1), (2, SPARSE)))
        # a look-up table would be read in the time that it takes a GPU to compute it
        scan = (self.scan / sparse.focal_px[..., None]).expand(len(images), -1, -1)
        likelihoods = sparse.likelihoods(scan)
        scanned = taken(scan, likelihoods.topk(SCAN_STARTS).indices)
        # no start is like one more of the same
        starts = torch.where(starts.isfinite(), starts, scanned[:, 0])[:, None]
        lengths_px, second_px2 = self._moments(sparse.log_probability)
        lifted = self.lifted_lengths[:, None] * self._lifted(sparse, lengths_px)[:, None]
        still = (1.0 / sparse.focal_px)[..., None].expand(len(images), 1, 3)
        turns = functional.pad(torch.cat([lifted, still], dim=1), (0, 3))
        found, heights = sparse.climb(torch.cat([scanned, turns, starts], dim=1),
                                      COARSE_ITERATIONS)
        finalists, exist = distinct(found, heights)
        peaks, heights = full.climb(finalists, FINE_ITERATIONS)
        heights, order = heights.masked_fill(~exist, -math.inf).sort(dim=1, descending=True)
        peaks = taken(peaks, order)
        scaled = (peaks[:, :, None] * self.ratios[:, None]).flatten(1, 2)
        hills = Hills(peaks, heights, sparse.likelihoods(scaled).unflatten(1, (FINALISTS, -1)))

        logits = self.critic(hill_features(images, matrix.flatten(1, 2), *hills, tables))
        logits = logits.masked_fill(heights.isinf()[..., None], NO_HILL)
        motions, heights, variances = self._modes(
            peaks, logits.flatten(1).log_softmax(dim=1).view_as(logits))
        values = full.cell_values(motions)
        inliers = values > log_probability.flatten(1, 2).amax(dim=2)[..., None] - INLIER_NATS
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
        uu = second_uu - 2 * mean_u * u + u ** 2 + 0.1
        vv = second_vv - 2 * mean_v * v + v ** 2 + 0.1
        uv = second_uv - mean_u * v - mean_v * u + u * v
        precision = torch.stack([vv, -uv, -uv, uu], dim=2) / (uu * vv - uv * uv)[:, :, None]
        weighted = torch.einsum('bnrck,bnci->bknri', precision.unflatten(2, (2, 2)), matrix)
        information = weighted.flatten(2, 3).mT @ matrix.flatten(1, 2)[:, None]
        covariance = inverted(with_prior(information * (SPARSE / CELLS_PER_ERROR), motions,
                                         focal_px))
        shared_px2 = SHARED_ERROR_PX ** 2 \
            + (SHORT_ERROR_PX * torch.exp(-(extents_px / SHORT_PX) ** 2)) ** 2
        shared = (shared_px2 / focal_px ** 2)[..., None].expand(-1, -1, 3)
        return covariance + torch.diag_embed(functional.pad(shared, (0, 3)))


def with_prior(information: Tensor, motions: Tensor, focal_px: Tensor) -> Tensor:
    """Add what is known of translations beforehand to information (B, K, 6, 6)."""
    prior = (1.0 / translation_spread(motions, focal_px))[..., None].expand(-1, -1, 3)
    return information + torch.diag_embed(functional.pad(prior, (3, 0)))


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


def angle(x: Tensor, y: Tensor) -> Tensor:
    """
    Angle from the x axis, 0 to 360 degrees, as OpenCV computes it, up to 0.01 degrees wrong.

    An exact one leads up the same hills by another path: the motion where the solver stops then
    differs by more than 1 % in every other image, and would between CPU and GPU.
    """
    across, along = x.abs(), y.abs()
    tangent = torch.minimum(across, along) / (torch.maximum(across, along) + 1e-12)
    square = tangent * tangent
    found = torch.full_like(tangent, ARCTANGENT[-1])
    for factor in ARCTANGENT[-2::-1]:
        found = found * square + factor
    found = found * tangent
    found = torch.where(across >= along, found, 90.0 - found)
    found = torch.where(x < 0.0, 180.0 - found, found)
    return torch.where(y < 0.0, 360.0 - found, found)


def inverted(matrices: Tensor) -> Tensor:
    """Inverses of positive definite matrices (..., N, N); torch's own would wait for the GPU."""
    size = matrices.shape[-1]
    eye = torch.eye(size, dtype=matrices.dtype, device=matrices.device)
    both = torch.cat([matrices, eye.expand_as(matrices)], dim=-1)
    for k in range(size):  # Gauss and Jordan's elimination
        row = both[..., k:k + 1, :] / both[..., k:k + 1, k:k + 1]
        both = both - (both[..., k:k + 1] - eye[:, k:k + 1]) * row
    return both[..., size:]


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


def to_solutions(found: np.ndarray) -> list[BlurSolution]:
    """What `DeviceSolver` returns, for each image, with its alternatives."""
    solutions = []
    for image in found:
        first, *others = (
            BlurSolution(row[:6], row[6:42].reshape(6, 6), **dict(zip(FIELDS, row[42:].tolist())))
            for row in image if row[-1] > -math.inf)
        solutions.append(replace(first, alternatives=tuple(others)))
    return solutions
