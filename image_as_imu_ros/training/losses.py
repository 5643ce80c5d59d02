"""
What a network is taught.

Distributions learn each cell's displacement, and the motion that all cells agree on. A cell's
distribution trained alone is right on average over cells, but their product over an image is
not: neighbours repeat each other's errors, most of all in the length of the blur. The second
loss judges the product itself, with the very weight that the solver gives it.

The paper's network learns flow and depth, and the pose that a linear solver finds with them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from image_as_imu_ros.geometry.blur_solver import CELLS_PER_WITNESS
from image_as_imu_ros.geometry.displacement_bins import (
    MAX_RADIUS_PX,
    RADIUS_SCALE_PX,
    interpolation,
)
from image_as_imu_ros.geometry.flow_solver import DEPTH_RANGE_M
from image_as_imu_ros.synthesis.motion import ROLL_LEVER

RIVALS = 16
"""Motions that each image's true motion is compared with."""


def distribution_loss(logits: Tensor, flow_px: Tensor) -> Tensor:
    """
    Cross-entropy against the bins around the true displacement.

    :param logits: (B, h, w, BINS)
    :param flow_px: (B, h, w, 2), px
    :returns: mean over all cells, nats
    """
    bins, weights = interpolation(flow_px)
    log_probability = logits.log_softmax(dim=-1)
    return -(weights * log_probability.gather(-1, bins)).sum(dim=-1).mean()


def motion_loss(votes: Tensor, field: Tensor, motion: Tensor, rivals: Tensor) -> Tensor:
    """
    How badly the cells' summed votes tell the true motion from each rival.

    Where rivals are drawn around the truth by a symmetric law, the loss is least when the sum
    is the log-posterior of the motion (conditional noise-contrastive estimation).

    :param votes: log-probabilities up to a constant for each cell, (B, h, w, BINS)
    :param field: (B, h, w, 2, 6), displacement per motion, px
    :param motion: (B, 6), the true one
    :param rivals: (B, K, 6)
    :returns: mean over images and rivals, nats; log 2 for a network that cannot tell

    Source: Ceylan and Gutmann (2018), arXiv:1806.03664.
    """
    motions = torch.cat([motion[:, None], rivals], dim=1)
    flow_px = torch.einsum('bnij,bkj->bnki', field.flatten(1, 2), motions)
    bins, weights = interpolation(flow_px)
    at_bins = votes.flatten(1, 2).gather(-1, bins.flatten(2)).view(bins.shape)
    score = (weights * at_bins).sum(dim=(1, 3)) / CELLS_PER_WITNESS
    return functional.softplus(score[:, 1:] - score[:, :1]).mean()


def teaching_loss(logits: Tensor, votes: Tensor, taught: tuple[Tensor, Tensor]) -> Tensor:
    """
    How far each cell's distribution and votes are from those of a teacher.

    A distribution that was learnt tells more than the bin where the truth happened to lie.
    Distributions are compared by divergence, in nats; votes count in the sum over the image
    wherever motions differ, likely or not, so by the mean square of their differences.

    :param logits, votes: of the student, (B, h, w, BINS)
    :param taught: the same of the teacher
    :returns: mean over all cells

    Source: Hinton et al. (2015), arXiv:1503.02531.
    """
    divergence = functional.kl_div(logits.log_softmax(dim=-1), taught[0].log_softmax(dim=-1),
                                   reduction='none', log_target=True).sum(dim=-1).mean()
    difference = votes - taught[1]
    return divergence + difference.var(dim=-1, correction=0).mean()


def rival_motions(motion: Tensor, focal_px: Tensor, generator: torch.Generator) -> Tensor:
    """
    Draw motions around the true ones, near and far, each as likely from there as back.

    Blur lengths vary on the scale of the bins' rings, axes on the sphere, with roll scaled to
    what it does to the image; the translation goes along with the rotation.

    :param motion: (B, 6)
    :param focal_px: (B,)
    :returns: (B, RIVALS, 6)
    """
    def draw(*shape: int) -> Tensor:
        return torch.randn(len(motion), RIVALS, *shape, generator=generator).to(motion)

    scale = focal_px[:, None, None] * motion.new_tensor([1.0, 1.0, ROLL_LEVER])
    turn_px = motion[:, None, :3] * scale
    rotation = motion[:, :3].norm(dim=-1)[:, None, None] + 1e-9
    near = torch.rand(len(motion), RIVALS, 2, generator=generator).to(motion)
    length_spread, axis_spread = (3.0 * (near - 1.0)).exp().split(1, dim=-1)
    ring = torch.log1p(turn_px.norm(dim=-1, keepdim=True) / RADIUS_SCALE_PX)
    ring = (ring + length_spread * draw(1)).abs().clamp(
        max=torch.log1p(torch.tensor(MAX_RADIUS_PX / RADIUS_SCALE_PX)).item())
    axis = functional.normalize(
        functional.normalize(turn_px, dim=-1) + axis_spread * draw(3), dim=-1)
    turn = RADIUS_SCALE_PX * torch.expm1(ring) * axis / scale
    lever = motion[:, None, 3:] / rotation + 0.2 * axis_spread * draw(3)
    return torch.cat([turn, lever * turn.norm(dim=-1, keepdim=True)], dim=-1)


def resigned(truth: Tensor, prediction: Tensor) -> Tensor:
    """
    Turn each image's truth to the side of its prediction, as blur does not show the sign.

    :param truth: (B, ...), NaN where unknown
    :param prediction: (B, ...)
    """
    product = (truth.nan_to_num() * prediction.detach()).flatten(1).sum(dim=1)
    return torch.where(product < 0.0, -1.0, 1.0).view(-1, *[1] * (truth.ndim - 1)) * truth


def solve_pose(flow_px: Tensor, depth_m: Tensor, matrix: Tensor) -> Tensor:
    """
    Find the motion whose motion field is nearest to the flow, differentiably.

    Weighted linear least squares as in `solve_flow`, in double precision; pixels of impossible
    depth weigh nothing.

    :param flow_px: (B, N, 2), (u, v), over the exposure
    :param depth_m: (B, N)
    :param matrix: (B, N, 2, 6), motion field matrix at the same pixels
    :returns: (w T, v T), (B, 6), rad and m
    """
    low_m, high_m = DEPTH_RANGE_M
    depth_m, matrix = depth_m.double(), matrix.double()
    weight = ((depth_m > low_m) & (depth_m < high_m)).double()
    inverse_depth = 1.0 / depth_m.clamp(low_m, high_m)[..., None, None]
    rows = torch.cat([matrix[..., :3], matrix[..., 3:] * inverse_depth], dim=-1)
    normal = torch.einsum('bn,bnij,bnik->bjk', weight, rows, rows)
    right = torch.einsum('bn,bnij,bni->bj', weight, rows, flow_px.double())
    # keeps a hopeless image, such as one of endless depth, from stopping the training
    ridge = 1e-9 * normal.diagonal(dim1=1, dim2=2).mean(dim=1) + 1e-9
    eye = torch.eye(6, dtype=torch.double, device=matrix.device)
    return torch.linalg.solve(normal + ridge[:, None, None] * eye, right).float()


def pose_loss(prediction: Tensor, truth: Tensor) -> Tensor:
    """
    Mean squared error of the rotation, and ten times that of the translation.

    :param prediction: (B, 6), (w T, v T)
    :param truth: (B, 6), of the same sign, NaN where unknown
    """
    known = torch.isfinite(truth)
    error = torch.where(known, prediction - truth.nan_to_num(), 0.0).square()
    parts = [error[:, part].sum() / known[:, part].sum().clamp(min=1)
             for part in (slice(0, 3), slice(3, 6))]
    return parts[0] + 10.0 * parts[1]
