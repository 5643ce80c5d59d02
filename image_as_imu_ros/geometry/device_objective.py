"""
`BlurObjective` in torch, for many images at once, and nothing in it waits for the device.

What belongs to a cell is in single precision, what belongs to a motion in double.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from image_as_imu_ros.geometry.blur_solver import translation_spread
from image_as_imu_ros.geometry.cell_kernels import (
    ARCTANGENT,
    LENGTH_PRIOR,
    TRANSLATION_PRIOR,
)
from image_as_imu_ros.geometry.displacement_bins import (
    DIRECTIONS,
    RADIUS_SCALE_PX,
    RHO_STEP,
    RINGS,
)


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
        """As of `BlurObjective`: four corners, shares, lengths (B, N, K); flow (B, N, 2, K)."""
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
        turn_rad = turn.square().sum(dim=-1, keepdim=True).sqrt() + 1e-9
        focal = self.focal_px[..., None] / RADIUS_SCALE_PX
        scaled = 1.0 + turn_rad * focal
        pull = LENGTH_PRIOR * focal / (scaled * turn_rad)
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


def with_prior(information: Tensor, motions: Tensor, focal_px: Tensor) -> Tensor:
    """Add what is known of translations beforehand to information (B, K, 6, 6)."""
    prior = (1.0 / translation_spread(motions, focal_px))[..., None].expand(-1, -1, 3)
    return information + torch.diag_embed(functional.pad(prior, (3, 0)))


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
