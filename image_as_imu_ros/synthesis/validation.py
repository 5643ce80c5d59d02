"""The fixed validation set: single images at all speeds, of scenes that no training sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from image_as_imu_ros.config import EstimatorConfig
from image_as_imu_ros.evaluation.metrics import SPEED_STRATA_RAD_S
from image_as_imu_ros.model.network import STRIDE_PX
from image_as_imu_ros.synthesis import blur, room
from image_as_imu_ros.synthesis.sequence_folder import SequenceFolder
from image_as_imu_ros.synthesis.textures import load_textures
from image_as_imu_ros.synthesis.trajectory import Oscillation, Trajectory
from image_as_imu_ros.types import CameraIntrinsics

IMAGES = 2000
SEED = 20_000_000
"""Of everything random here; training's and recordings' seeds stay below."""
EXPOSURE_S = 0.01
FRAME_INTERVAL_S = 0.05
ROOM_EVERY = 4
"""Every fourth image shows the room, the others held-out photographs and panoramas."""
WIDTH_PX, HEIGHT_PX = 320, 224


def write_validation(folder: Path, assets: Path, images: int = IMAGES) -> None:
    """
    Write the validation set as a sequence folder; the same files make the same images.

    Speeds are even within each of SPEED_STRATA_RAD_S, which take turns. Depth, which one image
    cannot tell, is `EstimatorConfig.scene_depth` at the middle of a photograph and exact in the
    room.

    :param folder: must not exist
    :param assets: photographs and panoramas; of these the held-out share is used
    :param images: how many
    :raises DataFormatError: if the folder exists or there are no photographs
    """
    textures = load_textures(assets, held_out=True)
    scene = room.Room(SEED)
    develop = room.RecordingConfig()
    with SequenceFolder(folder, 'validation set', {'seed': SEED, 'images': images}) as sequence:
        for index in tqdm(range(images), 'rendering', unit='image'):
            rng = np.random.default_rng([SEED, index])
            stratum = index % (len(SPEED_STRATA_RAD_S) - 1)
            speed = rng.uniform(*SPEED_STRATA_RAD_S[stratum:stratum + 2])
            axis = rng.standard_normal(3)
            angular = speed * axis / np.linalg.norm(axis)
            camera = _camera(rng)
            if index // (len(SPEED_STRATA_RAD_S) - 1) % ROOM_EVERY == 0:
                trajectory = _through_the_room(rng, angular)
                light = room.expose(scene, trajectory, camera, EXPOSURE_S, EXPOSURE_S)
                image = room.develop(light, rng, develop.full_well, develop.read_noise)
                linear = trajectory.linear_velocity_m_s(np.array([EXPOSURE_S]))[0]
            else:
                lever = np.cross(angular, rng.normal(0.0, 0.25, 3))
                sample = blur.render(rng, textures[rng.integers(len(textures))], camera,
                                     EXPOSURE_S * np.concatenate([angular, lever]), STRIDE_PX)
                image, linear = sample.gray, lever * EstimatorConfig().scene_depth
            sequence.add(image, index * FRAME_INTERVAL_S, EXPOSURE_S, camera, angular, linear)


def _camera(rng: np.random.Generator) -> CameraIntrinsics:
    """A phone's or webcam's camera, reduced to 320 px."""
    focal_px = float(np.exp(rng.uniform(np.log(200.0), np.log(320.0))))
    centre = np.array([(WIDTH_PX - 1) / 2, (HEIGHT_PX - 1) / 2]) + rng.normal(0.0, 4.0, 2)
    return CameraIntrinsics(WIDTH_PX, HEIGHT_PX, focal_px, focal_px, *centre.tolist())


def _through_the_room(rng: np.random.Generator, angular_rad_s: np.ndarray) -> Trajectory:
    """An even turn about a pivot, from a random place and view; the exposure is in its middle."""
    return Trajectory(
        Oscillation.constant(tuple(angular_rad_s)), 2 * EXPOSURE_S,
        lever_arm_m=tuple(rng.normal(0.0, 0.15, 3).clip(-0.4, 0.4)),
        tremor_m=Oscillation.constant(tuple(rng.uniform(-0.5, 0.5, 3))),
        start=Rotation.from_euler('yx', rng.uniform((-np.pi, -0.4), (np.pi, 0.4))))
