"""Velocities of trajectories against known motion, and against evo's own measures."""

import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from image_as_imu_ros.errors import DataFormatError, SynchronizationError
from image_as_imu_ros.evaluation import metrics
from image_as_imu_ros.evaluation.sources.recording import FrameRecord, Stream
from image_as_imu_ros.evaluation.trajectory import read_trajectory, trajectory_velocities
from image_as_imu_ros.types import CameraIntrinsics

pytest.importorskip('evo', reason='pip install evo')

CAMERA = CameraIntrinsics(320, 240, 300.0, 300.0, 159.5, 119.5)
START_NS = 304_167_000_000_000
STEP_S = 1e-4


def rate(t_s: np.ndarray) -> np.ndarray:
    """Angular velocity of the known motion, in camera axes, rad/s."""
    return np.stack([3.0 * np.cos(9.0 * t_s), 4.0 * np.cos(7.0 * t_s + 0.5),
                     2.0 * np.cos(11.0 * t_s + 1.0)], axis=-1)


@cache
def known_poses(every: int) -> tuple[np.ndarray, Rotation, np.ndarray]:
    """Times (N,) s, rotations and positions (N, 3) of two seconds, each `every` 0.1 ms."""
    middles_s = (np.arange(20_000) + 0.5) * STEP_S
    steps = Rotation.from_rotvec(rate(middles_s) * STEP_S)
    matrices = [Rotation.from_euler('xyz', [0.3, -0.2, 1.0]).as_matrix()]
    for step in steps.as_matrix():
        matrices.append(matrices[-1] @ step)
    t_s = np.arange(0, 20_001, every) * STEP_S
    positions = np.stack([np.sin(3 * t_s), np.cos(2 * t_s), 0.5 * t_s], axis=1)
    return t_s, Rotation.from_matrix(matrices[::every]), positions


def write_tum(path: Path, t_s: np.ndarray, rotations: Rotation, positions: np.ndarray) -> Path:
    """Write poses as a TUM file, stamped from START_NS on."""
    rows = np.column_stack([START_NS * 1e-9 + t_s, positions, rotations.as_quat()])
    path.write_text('\n'.join(' '.join(f'{value:.12f}' for value in row) for row in rows) + '\n')
    return path


def stream_at(t_s: np.ndarray) -> Stream:
    """Frames at some times after START_NS."""
    return Stream('camera', tuple(
        FrameRecord(START_NS + round(time_s * 1e9), CAMERA, 0.01) for time_s in t_s),
        lambda: iter(()), np.eye(3))


@pytest.mark.parametrize(('every', 'shift_s'), [(333, 0.0), (50, 0.0021)],
                         ids=['30 Hz, at the frames', '200 Hz, between'])
def test_a_known_motion_scores_below_a_thousandth(tmp_path: Path, every: int, shift_s: float):
    path = write_tum(tmp_path / 'poses.txt', *known_poses(every))
    at_s = np.arange(0.0, 1.99, 0.0333) + shift_s
    angular, linear = trajectory_velocities(read_trajectory(path), stream_at(at_s))
    assert max(metrics.rmse(angular, rate(at_s))) < 1e-3
    world = np.stack([3 * np.cos(3 * at_s), -2 * np.sin(2 * at_s), np.full_like(at_s, 0.5)], 1)
    np.testing.assert_allclose(np.linalg.norm(linear, axis=1), np.linalg.norm(world, axis=1),
                               atol=1e-3)


def test_linear_velocity_is_in_the_cameras_own_axes(tmp_path: Path):
    t_s = np.arange(0.0, 2.0, 0.05)
    rotations = Rotation.from_rotvec(np.outer(t_s, [0.0, 0.0, 2.0]))
    forward = rotations.apply([1.0, 0.0, 0.0])  # always along the camera's x
    positions = np.cumsum(np.vstack([np.zeros(3), 0.5 * (forward[1:] + forward[:-1])]) * 0.05,
                          axis=0)
    path = write_tum(tmp_path / 'poses.txt', t_s, rotations, positions)
    angular, linear = trajectory_velocities(read_trajectory(path), stream_at(t_s))
    np.testing.assert_allclose(angular, np.tile([0.0, 0.0, 2.0], (len(t_s), 1)), atol=1e-6)
    np.testing.assert_allclose(linear[4:-4], np.tile([1.0, 0.0, 0.0], (len(t_s) - 8, 1)),
                               atol=0.01)


def test_the_world_of_the_trajectory_does_not_matter(tmp_path: Path):
    t_s, rotations, positions = known_poses(333)
    turned = Rotation.from_euler('zyx', [1.0, 0.5, -2.0])
    paths = [write_tum(tmp_path / 'a.txt', t_s, rotations, positions),
             write_tum(tmp_path / 'b.txt', t_s, turned * rotations,
                       turned.apply(positions) + 7.0)]
    results = [trajectory_velocities(read_trajectory(path), stream_at(t_s)) for path in paths]
    for one, other in zip(*results):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_lost_tracking_is_not_bridged(tmp_path: Path):
    t_s, rotations, positions = known_poses(333)
    kept = (t_s < 0.7) | (t_s > 1.2)
    path = write_tum(tmp_path / 'poses.txt', t_s[kept], rotations[kept], positions[kept])
    angular, _ = trajectory_velocities(read_trajectory(path), stream_at(t_s))
    np.testing.assert_array_equal(np.isfinite(angular).all(axis=1), kept)


def test_bad_trajectories_are_named(tmp_path: Path):
    bad = tmp_path / 'bad.txt'
    for content in ('', '1 2 3\n', 'timestamp,x\n1,2\n'):
        bad.write_text(content)
        with pytest.raises(DataFormatError, match='bad.txt'):
            read_trajectory(bad)
    with pytest.raises(DataFormatError, match='absent.txt'):
        read_trajectory(tmp_path / 'absent.txt')
    path = write_tum(tmp_path / 'poses.txt', *known_poses(333))
    stream = stream_at(np.arange(0.0, 1.0, 0.1))
    late = replace(stream, records=tuple(
        replace(record, stamp_ns=record.stamp_ns + 10**12) for record in stream.records))
    with pytest.raises(SynchronizationError, match='no image lies within the trajectory'):
        trajectory_velocities(read_trajectory(path), late)


def test_evo_agrees_on_the_error_of_the_rotation_rate(tmp_path: Path):
    """Its relative pose error over short steps, per second, is the RMSE of our vectors."""
    t_s, rotations, positions = known_poses(50)
    error = 0.4 * np.stack([np.sin(5 * t_s), np.cos(4 * t_s), np.sin(3 * t_s + 1)], axis=1)
    middle = 0.5 * (t_s[1:] + t_s[:-1])
    turned = [rotations[0]]
    for turn in (rotations[:-1].inv() * rotations[1:]).as_rotvec() \
            + 0.5 * (error[1:] + error[:-1]) * 0.005:
        turned.append(turned[-1] * Rotation.from_rotvec(turn))
    paths = [write_tum(tmp_path / 'reference.txt', t_s, rotations, positions),
             write_tum(tmp_path / 'estimate.txt', t_s, Rotation.concatenate(turned), positions)]
    reference, estimate = (trajectory_velocities(read_trajectory(path), stream_at(middle))[0]
                           for path in paths)
    ours = float(np.sqrt(((estimate - reference) ** 2).sum(axis=1).mean()))

    result = tmp_path / 'result.zip'
    subprocess.run([Path(sys.executable).parent / 'evo_rpe', 'tum', *paths, '--pose_relation',
                    'angle_rad', '--delta', '1', '--delta_unit', 'f', '--save_results', result],
                   check=True, capture_output=True, timeout=120,
                   env={'HOME': str(tmp_path), 'PATH': '/usr/bin:/bin'})
    with zipfile.ZipFile(result) as archive:
        evos = json.loads(archive.read('stats.json'))['rmse'] / 0.005
    assert ours == pytest.approx(evos, rel=2e-3)
    assert 0.3 < ours < 0.6
