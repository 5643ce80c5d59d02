"""Networks by name, and what turns those that torch computes into a motion."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from image_as_imu_ros.errors import ConfigError
from image_as_imu_ros.geometry.blur_solver import BlurSolution
from image_as_imu_ros.geometry.flow_solver import sample_pixels, solve_flow
from image_as_imu_ros.model.device_features import FeatureTables
from image_as_imu_ros.model.device_solver import DeviceSolver, to_solutions
from image_as_imu_ros.model.distributions import (
    TO_MOTION,
    Architecture,
    Distributions,
    solve_band,
)
from image_as_imu_ros.model.network import WHOLE, WIDTHS, CompactNetwork, DisplacementNetwork
from image_as_imu_ros.model.reference import ReferenceNetwork
from image_as_imu_ros.model.runtimes import Compiled, make_runtime
from image_as_imu_ros.model.timm_network import TimmNetwork
from image_as_imu_ros.model.weights_files import TIMM
from image_as_imu_ros.types import CameraIntrinsics


class TorchCells:
    """
    A network of distributions and its critic in torch on the CPU, a `CellModel`.

    :param runtime: 'torch' or 'compile'
    """

    def __init__(self, network: DisplacementNetwork, runtime: str) -> None:
        self._distributions = make_runtime(runtime, network, 'cpu')
        self._critic = copy.deepcopy(network.critic).to('cpu').traced()

    def log_probabilities(self, images: np.ndarray) -> np.ndarray:
        """Distributions of the cells' displacements, as of `CellModel`."""
        return self._distributions(torch.from_numpy(images)[:, None]).numpy()

    def judge(self, features: np.ndarray) -> np.ndarray:
        """What the critic makes of hills, as of `CellModel`."""
        with torch.inference_mode():
            return self._critic(torch.from_numpy(features)[None])[0].numpy()


def uploaded(arrays: Sequence[np.ndarray], dtype: torch.dtype, device: str) -> Tensor:
    """Arrays of one shape, stacked on a device; from pinned memory, so that nothing waits."""
    stacked = torch.empty((len(arrays), *arrays[0].shape), dtype=dtype,
                          pin_memory=device != 'cpu')
    np.stack(arrays, out=stacked.numpy())
    return stacked.to(device, non_blocking=True)


class DeviceDistributions(Distributions):
    """
    The same where images and distributions stay on a GPU and are solved there, many at once.

    On a CPU, where it is tested, the solver for single images is quicker.
    """

    def __init__(self, network: DisplacementNetwork, device: str, runtime: str = 'auto') -> None:
        self._device = device
        solver = DeviceSolver(copy.deepcopy(network.critic)).to(device)
        self._solver = Compiled(solver, device) if runtime == 'compile' else solver
        self._tables = lru_cache(maxsize=8)(FeatureTables.of)
        self._distributions = make_runtime(runtime, network, device)

    def observe(self, images: Sequence[np.ndarray]) -> list[tuple[Tensor, Tensor]]:
        """Run the network; as `Distributions` does, but for tensors of the device."""
        gray = uploaded(images, torch.float32, self._device)
        return list(zip(gray, self._distributions(gray[:, None])))

    def solve(self, output: tuple[Tensor, Tensor], matrix: np.ndarray, start: np.ndarray | None,
              usable: np.ndarray | None = None) -> BlurSolution:
        """Find the motion that the distributions agree on and that the critic believes."""
        return self.solve_all([output], [matrix], [start], usable)[0]

    def solve_all(self, outputs: Sequence[tuple[Tensor, Tensor]], matrices: Sequence[np.ndarray],
                  starts: Sequence[np.ndarray | None],
                  usable: np.ndarray | None = None) -> list[BlurSolution]:
        """Find the motions of images of one size and mask, with one transfer of them all."""
        one_camera = all(matrix is matrices[0] for matrix in matrices)
        field = uploaded(matrices[:1] if one_camera else matrices, torch.float32, self._device)
        start = uploaded([np.full(6, np.nan) if start is None else start / TO_MOTION
                          for start in starts], torch.float64, self._device)
        with torch.no_grad():
            images, votes = (torch.stack(tensors) for tensors in zip(*outputs))
            tables = self._tables(*images.shape[1:], *votes.shape[1:3], self._device,
                                  None if usable is None else usable.tobytes())
            found = self._solver(images, votes, field, start, tables).cpu().numpy()
        return to_solutions(found, TO_MOTION)

    def solve_rows(self, output: tuple[Tensor, Tensor], matrix: np.ndarray, rows: slice,
                   starts: np.ndarray, usable: np.ndarray | None = None) -> list[BlurSolution]:
        """Find where the cells of a band agree, uphill from starts, on the CPU."""
        return solve_band(output[1].cpu().numpy(), matrix, rows, starts, usable)


class Reference:
    """The paper's flow and depth of an RGB image, and linear least squares."""

    colour = True
    tells_depth = True
    tells_rows = False

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
              start: np.ndarray | None, usable: np.ndarray | None = None) -> BlurSolution:
        """Fit the motion field to the flow; linear, so that no start is needed."""
        chosen = np.s_[:] if usable is None else usable
        return solve_flow(*(each[chosen] for each in (*output, matrix)))

    def solve_all(self, outputs: Sequence[tuple[np.ndarray, np.ndarray]],
                  matrices: Sequence[np.ndarray], starts: Sequence[np.ndarray | None],
                  usable: np.ndarray | None = None) -> list[BlurSolution]:
        """Fit the motion fields to the flows, one after the other."""
        return [self.solve(*each, usable) for each in zip(outputs, matrices, starts)]

    def solve_rows(self, output: tuple[np.ndarray, np.ndarray], matrix: np.ndarray, rows: slice,
                   starts: np.ndarray, usable: np.ndarray | None = None) -> list[BlurSolution]:
        """
        Not of use: the paper's solver has no answer for a part of an image.

        :raises ConfigError: always
        """
        raise ConfigError('subframe_rates: the reference network measures whole images only; '
                          'use other weights or set it to 0')


KNOWN = f'"{CompactNetwork.architecture}", "{ReferenceNetwork.architecture}" and ' \
    f'"{TIMM}NAME" of a timm backbone'


def open_network(network: nn.Module, device: str, runtime: str = 'auto') -> Architecture:
    """
    Give a network its solver.

    :param network: with its weights, in evaluation mode
    :param device: 'cpu' or 'cuda'
    :param runtime: what computes the network, as the setting `estimator.runtime`
    :raises ConfigError: if that cannot compute this network, or not here
    """
    if isinstance(network, ReferenceNetwork):
        return Reference(network, device, runtime)
    if device == 'cpu':
        return Distributions(TorchCells(network, runtime))
    return DeviceDistributions(network, device, runtime)


def build_network(architecture: str, widths: tuple[int, ...] = WIDTHS,
                  ranks: tuple[int, ...] = WHOLE) -> nn.Module:
    """
    Make a network by the name of its architecture, untrained.

    :param widths: channels at strides 4, 8, 16 and 32; the reference network has its own
    :param ranks: of the compact network's convolutions there and of its last layer; 0 leaves
        them whole
    :raises ConfigError: if there is no such architecture, or it does not take these widths
    """
    if architecture == ReferenceNetwork.architecture:
        return ReferenceNetwork()
    if len(widths) != len(WIDTHS) or min(widths) < 1:
        raise ConfigError(f'widths: {list(widths)} are not {len(WIDTHS)} numbers of channels')
    narrowest = (widths[0], *map(min, widths, widths[1:]), 2 * widths[1])
    if len(ranks) != len(WHOLE) or any(
            not isinstance(rank, int) or not 0 <= rank <= width
            for rank, width in zip(ranks, narrowest)) \
            or (any(ranks) and architecture != CompactNetwork.architecture):
        raise ConfigError(f'ranks: {list(ranks)} are not {len(WHOLE)} ranks of layers of a '
                          f'compact network, at most {list(narrowest)}')
    if architecture == CompactNetwork.architecture:
        return CompactNetwork(widths, ranks)
    if architecture.startswith(TIMM):
        return TimmNetwork(architecture.removeprefix(TIMM), widths)
    raise ConfigError(f'architecture "{architecture}" is unknown; known are {KNOWN}')
