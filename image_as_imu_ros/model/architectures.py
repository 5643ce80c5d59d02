"""
How each architecture turns an image into a motion.

The metadata of a weights file names its architecture; what differs between them in use is all
here.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import nn

from image_as_imu_ros.errors import ConfigError
from image_as_imu_ros.geometry.blur_solver import (
    BlurSolution,
    Hills,
    solve_blur,
    solve_near,
)
from image_as_imu_ros.geometry.flow_solver import sample_pixels, solve_flow
from image_as_imu_ros.geometry.motion_field import pixel_grid
from image_as_imu_ros.model.length_critic import hill_features
from image_as_imu_ros.model.network import (
    STRIDE_PX,
    WIDTHS,
    CompactNetwork,
    DisplacementNetwork,
)
from image_as_imu_ros.model.reference import ReferenceNetwork
from image_as_imu_ros.model.runtimes import make_runtime
from image_as_imu_ros.model.timm_network import PREFIX, TimmNetwork
from image_as_imu_ros.types import CameraIntrinsics


class Architecture(Protocol):
    """
    A network with its solver. One thread may observe while another solves.

    :param network: with its weights, in evaluation mode
    :param device: torch device
    :param runtime: what computes the network, as the setting `estimator.runtime`
    :raises ConfigError: if it cannot compute this network, or not here
    """

    colour: ClassVar[bool]
    """Whether it sees the working image in RGB rather than in gray."""
    tells_depth: ClassVar[bool]
    """Whether the network tells the depth of the scene, so that no measured one is used."""

    def __init__(self, network: nn.Module, device: str, runtime: str = 'auto') -> None: ...

    @staticmethod
    def points(intrinsics: CameraIntrinsics) -> np.ndarray:
        """Where in a working image the network's output is used, (..., 2), px."""

    def observe(self, images: Sequence[np.ndarray]) -> list[Any]:
        """
        Run the network on working images of one size.

        :param images: float32, 0 to 1, (h, w) gray or (h, w, 3) RGB
        :returns: its output for each of them
        """

    def solve(self, output: Any, matrix: np.ndarray, start: np.ndarray | None) -> BlurSolution:
        """Find the motion that the output tells; `start` (6,) is a further starting point."""

    def solve_rows(self, output: Any, matrix: np.ndarray, rows: slice,
                   starts: np.ndarray) -> list[BlurSolution]:
        """Find motions that a band of rows tells, px, near starts (K, 6)."""


ROLL_READ = 0.93
"""A roll as networks trained on crops read it, relative to pans; on simulated rooms."""
TO_MOTION = np.array([1.0, 1.0, 1.0 / ROLL_READ, 1.0, 1.0, 1.0])


class Distributions:
    """Distributions of displacements per cell of a gray image, and maximum a posteriori."""

    colour = False
    tells_depth = False

    def __init__(self, network: DisplacementNetwork, device: str, runtime: str = 'auto') -> None:
        self._critic = copy.deepcopy(network.critic).to('cpu').traced()
        self._distributions = make_runtime(runtime, network, device)

    @staticmethod
    def points(intrinsics: CameraIntrinsics) -> np.ndarray:
        """Centres of the cells, (h / 8, w / 8, 2)."""
        return pixel_grid(intrinsics.width_px, intrinsics.height_px, STRIDE_PX)

    def observe(self, images: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Each image, and log-probabilities of its cells' displacements, (h / 8, w / 8, BINS)."""
        log_probability = self._distributions(torch.from_numpy(np.stack(images))[:, None])
        return list(zip(images, log_probability.numpy()))

    def solve(self, output: tuple[np.ndarray, np.ndarray], matrix: np.ndarray,
              start: np.ndarray | None) -> BlurSolution:
        """Find the motion that the distributions agree on and that the critic believes."""
        image, log_probability = output

        def judge(hills: Hills) -> np.ndarray:
            features = torch.from_numpy(hill_features(image, matrix, hills))
            with torch.inference_mode():
                logits = self._critic(features[None])[0]
                return logits.flatten().log_softmax(dim=0).view_as(logits).numpy()

        read = None if start is None else start / TO_MOTION
        return solve_blur(log_probability, matrix, read, judge).scaled(TO_MOTION)

    def solve_rows(self, output: tuple[np.ndarray, np.ndarray], matrix: np.ndarray, rows: slice,
                   starts: np.ndarray) -> list[BlurSolution]:
        """Find where the cells of a band agree, uphill from starts."""
        centres_px = (np.arange(len(matrix)) + 0.5) * STRIDE_PX
        inside = (centres_px >= rows.start) & (centres_px < rows.stop)
        if not inside.any():
            inside[np.abs(centres_px - 0.5 * (rows.start + rows.stop)).argmin()] = True
        found = solve_near(output[1][inside], matrix[inside], starts / TO_MOTION,
                           float(inside.mean()))
        return [solution.scaled(TO_MOTION) for solution in found]


class Reference:
    """The paper's flow and depth of an RGB image, and linear least squares."""

    colour = True
    tells_depth = True

    def __init__(self, network: ReferenceNetwork, device: str, runtime: str = 'auto') -> None:
        if runtime not in ('auto', 'torch'):
            raise ConfigError(f'runtime: the reference network runs in torch, not in "{runtime}"; '
                              'use "auto" or other weights')
        self._network = network.to(device)

    @staticmethod
    def points(intrinsics: CameraIntrinsics) -> np.ndarray:
        """The pixels that the solver uses, (N, 2)."""
        return sample_pixels(intrinsics.width_px, intrinsics.height_px)

    def observe(self, images: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Flow (N, 2) in px and depth (N,) in m at those pixels, of each image."""
        height, width = images[0].shape[:2]
        x, y = sample_pixels(width, height).T
        flow, depth = self._network.predict(images)
        return list(zip(flow[:, :, y, x].swapaxes(1, 2), depth[:, y, x]))

    def solve(self, output: tuple[np.ndarray, np.ndarray], matrix: np.ndarray,
              start: np.ndarray | None) -> BlurSolution:
        """Fit the motion field to the flow; linear, so that no start is needed."""
        return solve_flow(*output, matrix)

    def solve_rows(self, output: tuple[np.ndarray, np.ndarray], matrix: np.ndarray, rows: slice,
                   starts: np.ndarray) -> list[BlurSolution]:
        """
        Not of use: the paper's solver has no answer for a part of an image.

        :raises ConfigError: always
        """
        raise ConfigError('subframe_rates: the reference network measures whole images only; '
                          'use other weights or set it to 0')


KNOWN = f'"{CompactNetwork.architecture}", "{ReferenceNetwork.architecture}" and ' \
    f'"{PREFIX}NAME" of a timm backbone'


def architecture_of(network: nn.Module) -> type[Architecture]:
    """How a network's output becomes a motion."""
    return Reference if isinstance(network, ReferenceNetwork) else Distributions


def build_network(architecture: str, widths: tuple[int, ...] = WIDTHS) -> nn.Module:
    """
    Make a network by the name of its architecture, untrained.

    :param widths: channels at strides 4, 8, 16 and 32; the reference network has its own
    :raises ConfigError: if there is no such architecture, or it does not take these widths
    """
    if architecture == ReferenceNetwork.architecture:
        return ReferenceNetwork()
    if len(widths) != len(WIDTHS) or min(widths) < 1:
        raise ConfigError(f'widths: {list(widths)} are not {len(WIDTHS)} numbers of channels')
    if architecture == CompactNetwork.architecture:
        return CompactNetwork(widths)
    if architecture.startswith(PREFIX):
        return TimmNetwork(architecture.removeprefix(PREFIX), widths)
    raise ConfigError(f'architecture "{architecture}" is unknown; known are {KNOWN}')
