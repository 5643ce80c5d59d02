"""
Velocities from a trajectory of poses in TUM format, as SLAM and structure from motion write it.

evo reads and checks the file, and splits the poses where tracking was lost. The polynomial through
the seven poses around a frame gives the velocities there, in the camera's own axes: with poses at
the frames, differences of neighbours alone would be off by 0.1 rad/s in a fast shake. The rates
depend neither on the origin nor on the axes of the trajectory's world.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.interpolate import KroghInterpolator
from scipy.spatial.transform import Rotation

from image_as_imu_ros.errors import ConfigError, DataFormatError, SynchronizationError
from image_as_imu_ros.evaluation.sources.recording import Stream
from image_as_imu_ros.geometry.motion_field import cross_matrix

if TYPE_CHECKING:
    from evo.core.trajectory import PoseTrajectory3D

MAX_GAP_PERIODS = 2.5
"""Poses further apart than so many median periods are not joined: tracking was lost there."""
MIN_POSES = 3
NEIGHBOURS = 7
ASSOCIATION_S = 0.01
"""By how much a pose may miss a frame at the ends of a stretch."""


def read_trajectory(path: Path) -> PoseTrajectory3D:
    """
    Read and check a TUM file: `t x y z qx qy qz qw`, from camera to world.

    :raises ConfigError: if evo is not installed
    :raises DataFormatError: if the file cannot be read or holds no valid trajectory
    """
    try:
        from evo.core.trajectory import TrajectoryException
        from evo.tools.file_interface import FileInterfaceException, read_tum_trajectory_file
    except ImportError as error:
        raise ConfigError('trajectories need evo: pip install evo') from error
    try:
        trajectory = read_tum_trajectory_file(path)
    except (OSError, ValueError, FileInterfaceException, TrajectoryException) as error:
        raise DataFormatError(f'cannot read {path} as a TUM trajectory: {error}') from error
    valid, details = trajectory.check()
    if not valid:
        raise DataFormatError(f'{path} is no valid trajectory: {details}')
    if trajectory.num_poses < MIN_POSES:
        raise DataFormatError(f'{path} has {trajectory.num_poses} poses; at least {MIN_POSES} '
                              'are needed')
    return trajectory


def trajectory_velocities(trajectory: PoseTrajectory3D,
                          stream: Stream) -> tuple[np.ndarray, np.ndarray]:
    """
    Differentiate the poses at the frames.

    :returns: angular velocity (N, 3) rad/s and linear velocity (N, 3), in the trajectory's unit
        per second, both in camera axes; NaN where no poses are
    :raises SynchronizationError: if no frame lies within the trajectory
    """
    at_s = np.array([record.stamp_ns for record in stream.records]) * 1e-9
    period_s = float(np.median(np.diff(trajectory.timestamps)))
    angular, linear = (np.full((len(at_s), 3), np.nan) for _ in range(2))
    for stretch in trajectory.split_time_gaps(MAX_GAP_PERIODS * period_s):
        t_s = stretch.timestamps
        if len(t_s) < MIN_POSES:
            continue
        rotations = Rotation.from_quat(np.roll(stretch.orientations_quat_wxyz, -1, axis=1))
        inside = (at_s >= t_s[0] - ASSOCIATION_S) & (at_s <= t_s[-1] + ASSOCIATION_S)
        for frame in np.flatnonzero(inside):
            nearest = int(np.abs(t_s - at_s[frame]).argmin())
            first = max(0, min(nearest - NEIGHBOURS // 2, len(t_s) - NEIGHBOURS))
            near = slice(first, first + NEIGHBOURS)
            angular[frame], linear[frame] = _velocities_at(
                at_s[frame], t_s[near], rotations[near], stretch.positions_xyz[near])
    if not np.isfinite(angular).any():
        raise SynchronizationError(
            f'no image lies within the trajectory, {trajectory.timestamps[0]:.3f} to '
            f'{trajectory.timestamps[-1]:.3f} s (images {at_s[0]:.3f} to {at_s[-1]:.3f} s); are '
            'its times the stamps of the images in seconds?')
    return angular, linear


def _velocities_at(time_s: float, t_s: np.ndarray, rotations: Rotation,
                   positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Differentiate the polynomial through a few poses; both velocities in camera axes."""
    nearest = int(np.abs(t_s - time_s).argmin())
    turns = (rotations[nearest].inv() * rotations).as_rotvec()
    path = KroghInterpolator(t_s - time_s, np.concatenate([turns, positions], axis=1))
    turn, slope = path(0.0)[:3], path.derivative(0.0)
    linear = (rotations[nearest] * Rotation.from_rotvec(turn)).apply(slope[3:], inverse=True)
    return _right_jacobian(turn) @ slope[:3], linear


def _right_jacobian(turn_rad: np.ndarray) -> np.ndarray:
    """From the derivative of a rotation vector to the angular velocity in the turned axes."""
    angle = float(np.linalg.norm(turn_rad))
    cross = cross_matrix(turn_rad)
    if angle < 1e-6:
        return np.eye(3) - 0.5 * cross
    return (np.eye(3) - (1.0 - np.cos(angle)) / angle ** 2 * cross
            + (angle - np.sin(angle)) / angle ** 3 * cross @ cross)
