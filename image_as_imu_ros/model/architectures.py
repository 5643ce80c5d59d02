"""
How each architecture turns an image into a motion.

The metadata of a weights file names its architecture; what differs between them in use is all
here.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from image_as_imu_ros.errors import ConfigError
from image_as_imu_ros.geometry.blur_solver import (
    BlurSolution,
    Hills,
    solve_blur,
    solve_near,
)
from image_as_imu_ros.geometry.flow_solver import sample_pixels, solve_flow
from image_as_imu_ros.geometry.motion_field import pixel_grid
from image_as_imu_ros.model.device_features import FeatureTables
from image_as_imu_ros.model.device_solver import DeviceSolver, to_solutions
from image_as_imu_ros.model.length_critic import hill_features
from image_as_imu_ros.model.network import (
    STRIDE_PX,
    WIDTHS,
    CompactNetwork,
    DisplacementNetwork,
)
from image_as_imu_ros.model.reference import ReferenceNetwork
from image_as_imu_ros.model.runtimes import Compiled, make_runtime
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

    def solve_all(self, outputs: Sequence[Any], matrices: Sequence[np.ndarray],
                  starts: Sequence[np.ndarray | None]) -> list[BlurSolution]:
        """Find the motions that outputs of images of one size tell, as `solve`."""

    def solve_rows(self, output: Any, matrix: np.ndarray, rows: slice,
                   starts: np.ndarray) -> list[BlurSolution]:
        """Find motions that a band of rows tells, px, near starts (K, 6)."""


ROLL_READ = 0.93
"""A roll as the network reads it, relative to pans; on simulated rooms."""
TO_MOTION = np.array([1.0, 1.0, 1.0 / ROLL_READ, 1.0, 1.0, 1.0])


Observed = tuple[np.ndarray, np.ndarray] | tuple[Tensor, Tensor]
"""An image, and the log-probabilities of its cells."""


def uploaded(arrays: Sequence[np.ndarray], dtype: torch.dtype, device: str) -> Tensor:
    """Arrays of one shape, stacked on a device; from pinned memory, so that nothing waits."""
    stacked = torch.empty((len(arrays), *arrays[0].shape), dtype=dtype,
                          pin_memory=device != 'cpu')
    np.stack(arrays, out=stacked.numpy())
    return stacked.to(device, non_blocking=True)


class Distributions:
    """
    Distributions of displacements per cell of a gray image, and maximum a posteriori.

    :param on_device: whether images and distributions stay where the network is and are solved
        there, many at once; unless told on GPUs, as the solver for single images is quicker on
        a CPU
    """

    colour = False
    tells_depth = False

    def __init__(self, network: DisplacementNetwork, device: str, runtime: str = 'auto',
                 on_device: bool | None = None) -> None:
        self._device = device
        self._on_device = device != 'cpu' if on_device is None else on_device
        critic = copy.deepcopy(network.critic)
        if self._on_device:
            solver = DeviceSolver(critic).to(device)
            self._solver = Compiled(solver, device) if runtime == 'compile' else solver
            self._tables = lru_cache(maxsize=8)(FeatureTables.of)
        else:
            self._critic = critic.to('cpu').traced()
        self._distributions = make_runtime(runtime, network, device)

    @staticmethod
    def points(intrinsics: CameraIntrinsics) -> np.ndarray:
        """Centres of the cells, (h / 8, w / 8, 2)."""
        return pixel_grid(intrinsics.width_px, intrinsics.height_px, STRIDE_PX)

    def observe(self, images: Sequence[np.ndarray]) -> list[Observed]:
        """
        Run the network.

        :returns: each image, and log-probabilities of its cells' displacements,
            (h / 8, w / 8, BINS); tensors of the device if that solves them
        """
        gray = uploaded(images, torch.float32, self._device)
        log_probability = self._distributions(gray[:, None])
        if self._on_device:
            return list(zip(gray, log_probability))
        return list(zip(images, log_probability.cpu().numpy()))

    def solve(self, output: Observed, matrix: np.ndarray,
              start: np.ndarray | None) -> BlurSolution:
        """Find the motion that the distributions agree on and that the critic believes."""
        return self.solve_all([output], [matrix], [start])[0]

    def solve_all(self, outputs: Sequence[Observed], matrices: Sequence[np.ndarray],
                  starts: Sequence[np.ndarray | None]) -> list[BlurSolution]:
        """Find the motions of images of one size, on the device with one transfer of them all."""
        reads = [None if start is None else start / TO_MOTION for start in starts]
        if self._on_device:
            return self._solved_on_device(outputs, matrices, reads)
        return [solution.scaled(TO_MOTION)
                for solution in map(self._solved, outputs, matrices, reads)]

    def _solved_on_device(self, outputs: Sequence[tuple[Tensor, Tensor]],
                          matrices: Sequence[np.ndarray],
                          starts: Sequence[np.ndarray | None]) -> list[BlurSolution]:
        one_camera = all(matrix is matrices[0] for matrix in matrices)
        field = uploaded(matrices[:1] if one_camera else matrices, torch.float32, self._device)
        start = uploaded([np.full(6, np.nan) if start is None else start for start in starts],
                         torch.float64, self._device)
        with torch.no_grad():
            images, votes = (torch.stack(tensors) for tensors in zip(*outputs))
            tables = self._tables(*images.shape[1:], *votes.shape[1:3], self._device)
            found = self._solver(images, votes, field, start, tables).cpu().numpy()
        return to_solutions(found, TO_MOTION)

    def _solved(self, output: tuple[np.ndarray, np.ndarray], matrix: np.ndarray,
                start: np.ndarray | None) -> BlurSolution:
        image, log_probability = output

        def judge(hills: Hills) -> np.ndarray:
            features = torch.from_numpy(hill_features(image, matrix, hills))
            with torch.inference_mode():
                logits = self._critic(features[None])[0]
                return logits.flatten().log_softmax(dim=0).view_as(logits).numpy()

        return solve_blur(log_probability, matrix, start, judge)

    def solve_rows(self, output: Observed, matrix: np.ndarray, rows: slice,
                   starts: np.ndarray) -> list[BlurSolution]:
        """Find where the cells of a band agree, uphill from starts."""
        centres_px = (np.arange(len(matrix)) + 0.5) * STRIDE_PX
        inside = (centres_px >= rows.start) & (centres_px < rows.stop)
        if not inside.any():
            inside[np.abs(centres_px - 0.5 * (rows.start + rows.stop)).argmin()] = True
        votes = torch.as_tensor(output[1])[np.flatnonzero(inside)].cpu().numpy()
        found = solve_near(votes, matrix[inside], starts / TO_MOTION, float(inside.mean()))
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

    def solve_all(self, outputs: Sequence[tuple[np.ndarray, np.ndarray]],
                  matrices: Sequence[np.ndarray],
                  starts: Sequence[np.ndarray | None]) -> list[BlurSolution]:
        """Fit the motion fields to the flows, one after the other."""
        return list(map(self.solve, outputs, matrices, starts))

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
