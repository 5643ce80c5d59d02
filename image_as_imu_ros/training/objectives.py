"""How each kind of network is judged: its losses on a batch, and pictures of what it sees."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from image_as_imu_ros.config import TrainingConfig
from image_as_imu_ros.devices import computes_bfloat16
from image_as_imu_ros.errors import ConfigError
from image_as_imu_ros.geometry.displacement_bins import STRIDE_PX, bin_displacements
from image_as_imu_ros.geometry.flow_solver import sample_pixels
from image_as_imu_ros.model.network import DisplacementNetwork
from image_as_imu_ros.model.weights import load_weights
from image_as_imu_ros.training.dataset import Batch, is_dense
from image_as_imu_ros.training.losses import (
    distribution_loss,
    motion_loss,
    pose_loss,
    resigned,
    rival_motions,
    solve_pose,
    teaching_loss,
)
from image_as_imu_ros.training.pictures import depth_picture, double_angle, flow_picture

MOTION_WEIGHT = 4.0
"""Of the loss over whole images relative to that over cells."""


class Objective(Protocol):
    """What a network is taught, and how to look at it."""

    def losses(self, network: nn.Module, batch: Batch, seed: int) -> dict[str, Tensor]:
        """Parts of the loss on a batch, weighted; anything random is a function of the seed."""

    def picture(self, network: nn.Module, batch: Batch) -> Tensor:
        """Input, predictions and truth side by side, an image a row, (3, H, W), 0 to 1."""


class DistributionObjective:
    """
    Displacements of the cells, and the motions that they agree on.

    :param teacher: a network of distributions to learn from as well
    """

    def __init__(self, teacher: DisplacementNetwork | None = None) -> None:
        self.teacher = teacher
        self._fused_teacher = None if teacher is None else teacher.fused()

    def losses(self, network: nn.Module, batch: Batch, seed: int) -> dict[str, Tensor]:
        """Losses `cells` and `motions`, nats, and, of a teacher, `teacher`."""
        gray, field, motion, flow_px = batch
        own, votes = (output.float() for output in _predicted(network, gray))
        focal_px = field[..., 0, 1].abs().mean(dim=(1, 2))
        rivals = rival_motions(motion, focal_px, torch.Generator().manual_seed(seed))
        losses = {'cells': distribution_loss(own, flow_px),
                  'motions': MOTION_WEIGHT * motion_loss(votes, field, motion, rivals)}
        if self._fused_teacher is not None:
            with torch.no_grad():
                taught = _predicted(self._fused_teacher.to(gray.device), gray)
            losses['teacher'] = teaching_loss(own, votes,
                                              tuple(output.float() for output in taught))
        return losses

    def picture(self, network: nn.Module, batch: Batch) -> Tensor:
        """Input; flow by the mean double-angle vector of each cell; true flow."""
        gray, _, _, flow_px = batch
        probability = _predicted(network, gray)[0].float().softmax(dim=-1)
        vectors = double_angle(torch.from_numpy(bin_displacements()).to(probability))
        predicted = probability @ vectors
        true = double_angle(flow_px)
        return _grid([gray.expand(-1, 3, -1, -1) / 255.0,
                      *(flow_picture(vectors).repeat_interleave(STRIDE_PX, 2)
                        .repeat_interleave(STRIDE_PX, 3) for vectors in (predicted, true))])


class DenseObjective:
    """The paper's: flow, depth, and the pose that a linear solver finds with them."""

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config

    def losses(self, network: nn.Module, batch: Batch, seed: int) -> dict[str, Tensor]:
        """Losses `flow`, `depth` and, unless it weighs nothing, `pose`."""
        rgb, true_flow, true_depth, true_motion, matrix = batch
        flow, depth = (output.float() for output in _predicted(network, rgb))
        losses = {
            'flow': self.config.flow_weight
            * (flow - resigned(true_flow, flow)).abs().mean(),
            'depth': self.config.depth_weight * (depth - true_depth).abs().mean()}
        if self.config.pose_weight:
            x, y = sample_pixels(rgb.shape[3], rgb.shape[2]).T
            pose = solve_pose(flow[:, :, y, x].mT, depth[:, y, x], matrix)
            losses['pose'] = self.config.pose_weight * pose_loss(pose, resigned(true_motion, pose))
        return losses

    def picture(self, network: nn.Module, batch: Batch) -> Tensor:
        """Input; predicted and true flow; predicted and true depth."""
        rgb, true_flow, true_depth = batch[:3]
        flow, depth = (output.float() for output in _predicted(network, rgb))
        return _grid([rgb / 255.0,
                      *(flow_picture(double_angle(field.movedim(1, -1)))
                        for field in (flow, true_flow)),
                      *(depth_picture(field) for field in (depth, true_depth))])


def objective_for(config: TrainingConfig) -> Objective:
    """
    Choose by the architecture.

    :raises ConfigError: if a teacher cannot teach it
    :raises WeightsError: if its weights cannot be used
    """
    if not config.teacher:
        return DenseObjective(config) if is_dense(config) else DistributionObjective()
    teacher = load_weights(config.teacher).network
    if is_dense(config) or not isinstance(teacher, DisplacementNetwork):
        raise ConfigError(f'teacher: "{config.teacher}" cannot teach "{config.architecture}"; '
                          'both must be networks of distributions')
    return DistributionObjective(teacher)


def _predicted(network: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    """Run a network on images (B, C, H, W) uint8, in mixed precision."""
    with torch.autocast(image.device.type, torch.bfloat16,
                        enabled=computes_bfloat16(image.device.type)):
        return network(image.float() / 255.0)


def _grid(columns: list[Tensor]) -> Tensor:
    """Put images (B, 3, H, W) of one size side by side, those of a batch below each other."""
    return torch.cat([torch.cat(list(column.cpu()), dim=1) for column in columns], dim=2)
