"""The fixed validation set: single images at all speeds, of scenes that no training sees."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from image_as_imu_ros.config import EstimatorConfig
from image_as_imu_ros.errors import DataFormatError
from image_as_imu_ros.evaluation.metrics import SPEED_STRATA_RAD_S
from image_as_imu_ros.geometry.displacement_bins import STRIDE_PX
from image_as_imu_ros.synthesis import keyframes as rooms
from image_as_imu_ros.synthesis import mesh_rooms
from image_as_imu_ros.synthesis.blur import Shot, plan, take
from image_as_imu_ros.synthesis.motion import (
    IMAGE_PX,
    MAX_EXTENT_PX,
    MAX_TURN_RAD,
    ROLL_LEVER,
    sample_camera,
    translation_with,
)
from image_as_imu_ros.synthesis.sensor import SensorConfig
from image_as_imu_ros.synthesis.sequence_folder import SequenceFolder
from image_as_imu_ros.synthesis.textures import ROOM_FILE, Texture, image_files, load_textures

IMAGES = 2000
SEED = 20_000_000
"""Of everything random here; training's and recordings' seeds stay below."""
EXPOSURES_S = (5e-3, 20e-3)
"""Logarithmic; shorter where the blur would be longer than any that training draws."""
FRAME_INTERVAL_S = 0.05
STRATA = len(SPEED_STRATA_RAD_S) - 1
SCENES = ('room', 'panorama', 'photograph', 'photograph')
"""Of five images each, one of every speed; then again."""
IMAGES_PER_VIEW = 2 * STRATA * len(SCENES)
"""The room is seen from another place after so many images; it takes a fourth of them."""
SENSORS = SensorConfig(rolling_share=0.0, h264_share=0.0)
"""Single images know of no readout; a codec's version must not decide on a fixed set."""


def held_out_files(assets: Path) -> list[Path]:
    """
    What the set shows: held-out pictures, and the held-out room.

    :raises DataFormatError: if there is no such room
    """
    room = mesh_rooms.find_rooms(assets, held_out=True)[0]
    return [*image_files(assets, held_out=True), room / ROOM_FILE,
            *sorted(path for path in (room / 'textures').iterdir())]


def write_validation(folder: Path, assets: Path, images: int = IMAGES) -> None:
    """
    Write the validation set as a sequence folder; the same files make the same images.

    Speeds are even within each of SPEED_STRATA_RAD_S, which take turns, and so do SCENES.
    Image i does not depend on how many there are; a run that was cut off goes on where it was.
    Depth, which one image cannot tell, is `EstimatorConfig.scene_depth` at the distance of
    reference: in the middle of a photograph, the median of a view of the room.

    :param folder: must not exist
    :param assets: photographs, panoramas and meshes; of these the held-out share is used
    :param images: how many
    :raises DataFormatError: if the folder exists, or a kind of scene is missing
    :raises ConfigError: if embreex, which renders the room, is not installed
    """
    shown = {str(path.relative_to(assets)): hashlib.sha256(path.read_bytes()).hexdigest()
             for path in held_out_files(assets)}
    textures = load_textures(assets, held_out=True)
    kinds = {'panorama': [texture for texture in textures if texture.panorama],
             'photograph': [texture for texture in textures if not texture.panorama]}
    for kind, found in kinds.items():
        if not found:
            raise DataFormatError(f'no held-out {kind} below {assets}')
    meta = {'seed': SEED, 'images': images, 'held_out': shown,
            'sensors': dataclasses.asdict(SENSORS)}
    with SequenceFolder(folder, 'validation set', meta, resume=True) as sequence:
        views = sequence.partial / 'views'
        mesh_rooms.write_keyframes(views, assets, -(-images // IMAGES_PER_VIEW), held_out=True)
        paths = rooms.find_keyframes(views)
        keyframe = lru_cache(maxsize=2)(lambda number: rooms.Keyframe.load(paths[number]))
        with tqdm(total=images, initial=sequence.images, desc='images',
                  unit='image') as progress:
            while sequence.images < images:
                first = sequence.images - sequence.images % STRATA
                # always whole rounds, as rounding may depend on the size of a batch
                shots = [_plan(index, kinds, keyframe) for index in range(first, first + STRATA)]
                for index, sample in enumerate(take(shots), first):
                    if not sequence.images <= index < images:
                        continue
                    exposure_s = sample.path.exposure_s
                    angular, linear = sample.motion.reshape(2, 3) / exposure_s
                    sequence.add(sample.rgb, index * FRAME_INTERVAL_S, exposure_s,
                                 sample.intrinsics, angular,
                                 linear * EstimatorConfig().scene_depth)
                    progress.update()
        sequence.remove('views')


def _plan(index: int, kinds: dict[str, list[Texture]],
          keyframe: Callable[[int], rooms.Keyframe]) -> Shot:
    """Plan image `index`; views of the room are numbered."""
    rng = np.random.default_rng([SEED, index])
    turn, stratum = divmod(index, STRATA)
    speed = rng.uniform(*SPEED_STRATA_RAD_S[stratum:stratum + 2])
    axis = rng.standard_normal(3)
    angular = speed * axis / np.linalg.norm(axis)
    kind = SCENES[turn % len(SCENES)]
    camera = sample_camera(rng, *IMAGE_PX, lens='wide' if kind == 'panorama' else None)
    if kind == 'room':
        view = keyframe(index // IMAGES_PER_VIEW)
        focal_px = view.camera.fx_px / rooms.OVERSAMPLING
        camera = dataclasses.replace(camera, fx_px=focal_px, fy_px=focal_px)
    pixels_s = camera.fx_px * np.linalg.norm(angular * (1.0, 1.0, ROLL_LEVER))
    exposure_s = min(float(np.exp(rng.uniform(*np.log(EXPOSURES_S)))),
                     MAX_TURN_RAD / speed, MAX_EXTENT_PX / pixels_s)
    rotation = angular * exposure_s
    motion = np.concatenate([rotation, translation_with(rng, rotation)])
    if kind == 'room':
        return rooms.plan(rng, view, camera, motion, STRIDE_PX, SENSORS, exposure_s)
    texture = kinds[kind][rng.integers(len(kinds[kind]))]
    return plan(rng, texture, camera, motion, STRIDE_PX, SENSORS, exposure_s)
