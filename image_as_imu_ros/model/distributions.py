"""How distributions of displacements, whatever computes them, become a motion on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from image_as_imu_ros.geometry.blur_solver import BlurSolution, Hills, solve_blur, solve_near
from image_as_imu_ros.geometry.displacement_bins import STRIDE_PX
from image_as_imu_ros.geometry.motion_field import pixel_grid
from image_as_imu_ros.model.length_features import hill_features
from image_as_imu_ros.types import CameraIntrinsics

ROLL_READ = 0.93
"""A roll as the network reads it, relative to pans; on simulated rooms."""
FEWEST_CELLS = 8
"""Of a band of rows, which fewer leave open."""
TO_MOTION = np.array([1.0, 1.0, 1.0 / ROLL_READ, 1.0, 1.0, 1.0])


class Architecture(Protocol):
    """A network with its solver. One thread may observe while another solves."""

    colour: ClassVar[bool]
    """Whether it sees the working image in RGB rather than in gray."""
    tells_depth: ClassVar[bool]
    """Whether the network tells the depth of the scene, so that no measured one is used."""
    tells_rows: ClassVar[bool]
    """Whether `solve_rows` has an answer for a part of an image."""

    @staticmethod
    def points(intrinsics: CameraIntrinsics) -> np.ndarray:
        """Where in a working image the network's output is used, (..., 2), px."""

    def observe(self, images: Sequence[np.ndarray]) -> list[Any]:
        """
        Run the network on working images of one size.

        :param images: float32, 0 to 1, (h, w) gray or (h, w, 3) RGB
        :returns: its output for each of them
        """

    def solve(self, output: Any, matrix: np.ndarray, start: np.ndarray | None,
              usable: np.ndarray | None = None) -> BlurSolution:
        """
        Find the motion that the output tells.

        :param start: (6,), a further starting point
        :param usable: (...) bool, at which of the points the output is used; None: at all
        """

    def solve_all(self, outputs: Sequence[Any], matrices: Sequence[np.ndarray],
                  starts: Sequence[np.ndarray | None],
                  usable: np.ndarray | None = None) -> list[BlurSolution]:
        """Find the motions that outputs of images of one size and mask tell, as `solve`."""

    def solve_rows(self, output: Any, matrix: np.ndarray, rows: slice, starts: np.ndarray,
                   usable: np.ndarray | None = None) -> list[BlurSolution]:
        """
        Find motions that a band of rows tells, px, near starts (K, 6); none if too little of it.

        :raises ConfigError: if it has no answer for a part of an image
        """


class CellModel(Protocol):
    """A network of distributions on the CPU. Any thread may call either method, one at a time."""

    def log_probabilities(self, images: np.ndarray) -> np.ndarray:
        """
        Distributions of the cells' displacements.

        :param images: (B, H, W) float32, 0 to 1 as the camera encodes it, H and W multiples of 8
        :returns: (B, H / 8, W / 8, BINS) float32
        """

    def judge(self, features: np.ndarray) -> np.ndarray:
        """
        What the critic makes of the hills of one image.

        :param features: of `hill_features`, (K, CHANNELS, len(LENGTH_RATIOS)) float32
        :returns: logits of each hill at each of LENGTH_RATIOS[CHOICES], (K, C)
        """


Seen = tuple[np.ndarray, np.ndarray]
"""An image, and the log-probabilities of its cells."""


class Distributions:
    """Distributions of displacements per cell of a gray image, and maximum a posteriori."""

    colour = False
    tells_depth = False
    tells_rows = True

    def __init__(self, model: CellModel) -> None:
        self._model = model

    @staticmethod
    def points(intrinsics: CameraIntrinsics) -> np.ndarray:
        """Centres of the cells, (h / 8, w / 8, 2)."""
        return pixel_grid(intrinsics.width_px, intrinsics.height_px, STRIDE_PX)

    def observe(self, images: Sequence[np.ndarray]) -> list[Seen]:
        """
        Run the network.

        :returns: each image, and log-probabilities of its cells' displacements,
            (h / 8, w / 8, BINS)
        """
        return list(zip(images, self._model.log_probabilities(np.stack(images))))

    def solve(self, output: Seen, matrix: np.ndarray, start: np.ndarray | None,
              usable: np.ndarray | None = None) -> BlurSolution:
        """Find the motion that the distributions agree on and that the critic believes."""
        image, log_probability = output

        def judge(hills: Hills) -> np.ndarray:
            logits = self._model.judge(hill_features(image, matrix, hills, usable))
            highest = logits.max()
            return logits - (highest + np.log(np.exp(logits - highest).sum()))

        read = None if start is None else start / TO_MOTION
        return solve_blur(log_probability, matrix, read, judge, usable).scaled(TO_MOTION)

    def solve_all(self, outputs: Sequence[Seen], matrices: Sequence[np.ndarray],
                  starts: Sequence[np.ndarray | None],
                  usable: np.ndarray | None = None) -> list[BlurSolution]:
        """Find the motions of images, one after the other."""
        return [self.solve(*each, usable) for each in zip(outputs, matrices, starts)]

    def solve_rows(self, output: Seen, matrix: np.ndarray, rows: slice, starts: np.ndarray,
                   usable: np.ndarray | None = None) -> list[BlurSolution]:
        """Find where the cells of a band agree, uphill from starts."""
        return solve_band(output[1], matrix, rows, starts, usable)


def solve_band(log_probability: np.ndarray, matrix: np.ndarray, rows: slice, starts: np.ndarray,
               usable: np.ndarray | None = None) -> list[BlurSolution]:
    """
    Find where the cells of a band of rows agree.

    :param log_probability: (h, w, BINS) of the whole image
    :param matrix: (h, w, 2, 6)
    :param rows: of the working image, px
    :param starts: motions (K, 6) to go uphill from
    :param usable: (h, w) bool, cells that tell of the scene; None: all
    :returns: as `solve_near`; nothing where fewer than FEWEST_CELLS are usable
    """
    centres_px = (np.arange(len(matrix)) + 0.5) * STRIDE_PX
    inside = (centres_px >= rows.start) & (centres_px < rows.stop)
    if not inside.any():
        inside[np.abs(centres_px - 0.5 * (rows.start + rows.stop)).argmin()] = True
    usable = np.ones(matrix.shape[:2], bool) if usable is None else usable
    cells = inside[:, None] & usable
    if cells.sum() < FEWEST_CELLS:
        return []
    found = solve_near(log_probability[cells], matrix[cells], starts / TO_MOTION,
                       float(cells.sum() / usable.sum()))
    return [solution.scaled(TO_MOTION) for solution in found]
