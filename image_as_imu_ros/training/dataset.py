"""Training images, each a function of the seed and its index alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from image_as_imu_ros.config import TrainingConfig
from image_as_imu_ros.errors import ConfigError, DataFormatError
from image_as_imu_ros.geometry.displacement_bins import STRIDE_PX
from image_as_imu_ros.geometry.flow_solver import sample_pixels
from image_as_imu_ros.geometry.motion_field import motion_field_matrix, pixel_grid
from image_as_imu_ros.model.reference import ReferenceNetwork
from image_as_imu_ros.synthesis import keyframes as rooms
from image_as_imu_ros.synthesis.blur import Sample, Shot, draw_sensor, plan, take
from image_as_imu_ros.synthesis.labelled_image import MAX_MEAN_FLOW_PX, LabelledImage
from image_as_imu_ros.synthesis.motion import (
    DISTANCE_M,
    sample_camera,
    sample_motion,
)
from image_as_imu_ros.synthesis.sensor import RETAKE, SensorConfig, SensorParameters, retake
from image_as_imu_ros.synthesis.shards import Shards
from image_as_imu_ros.synthesis.textures import (
    HELD_OUT_EVERY,
    HELD_OUT_ROOM,
    Texture,
    load_textures,
    procedural_texture,
    tinted,
)
from image_as_imu_ros.training.pseudo_labels import DenseSample, label_files, read_label
from image_as_imu_ros.types import CameraIntrinsics

CROPS_PER_DRAWING = 64
"""Procedural textures are drawn anew after so many crops; drawing costs ten crops."""
KEYFRAMES_AT_A_TIME = 8
"""Rooms take turns among so many keyframes over 4 CROPS_PER_DRAWING; reading costs two crops."""
FAR_M = 100.0
"""Depth of what has none."""
SENSORS = SensorConfig()
ONE_MOTION_SENSORS = SensorConfig(rolling_share=0.0)
"""The paper's network answers with one motion for all rows."""
HELD_OUT_SHARE = 0.125
"""Of each recording, or of a dataset in shards, at its end."""

Batch = tuple[Tensor, ...]


class Factory(Protocol):
    """
    Makes image number i of a seed, whoever asks and in whatever order.

    What is random is decided image by image in `plan`, on the CPU; `finish` makes the images of
    many plans at once, on any device.
    """

    def plan(self, index: int) -> Any:
        """Decide on image `index`."""

    @staticmethod
    def finish(plans: list[Any], device: str | torch.device = 'cpu') -> list[Any]:
        """Make the images that are planned."""

    def crop(self, index: int) -> Any:
        """Make image `index`."""

    @staticmethod
    def collate(samples: list[Any]) -> Batch:
        """Stack images of one size."""


class CropFactory:
    """
    Synthetic crops in gray, without end, with their motion field at the cells.

    :param assets: folder of photographs and panoramas; None trains on drawn textures alone
    :param held_out: draw from the validation share of photographs and keyframes, and other seeds
    :param keyframes: folder of views of rooms, as `mesh_rooms.write_keyframes` makes; None trains
        on flat scenes alone
    :param stride_px: of the cells of the motion field
    """

    def __init__(self, config: TrainingConfig, assets: Path | None, held_out: bool,
                 keyframes: Path | None = None, stride_px: int = STRIDE_PX) -> None:
        self.config, self.stride_px = config, stride_px
        self.seed = 2 * config.seed + held_out
        self.photographs = load_textures(assets, held_out) if assets else []
        self.drawing = lru_cache(maxsize=16)(self._drawing)
        self.keyframes = [] if keyframes is None else [
            path for index, path in enumerate(rooms.find_keyframes(keyframes))
            if (index % HELD_OUT_EVERY == 0) == held_out and HELD_OUT_ROOM not in path.name]
        self.keyframe = lru_cache(maxsize=2 * KEYFRAMES_AT_A_TIME)(self._keyframe)

    def _drawing(self, number: int) -> Texture:
        rng = np.random.default_rng([self.seed, 1, number])
        return Texture.of_light(tinted(rng, procedural_texture(rng)))

    def _keyframe(self, number: int) -> rooms.Keyframe:
        rng = np.random.default_rng([self.seed, 2, number])
        return rooms.Keyframe.load(self.keyframes[rng.integers(len(self.keyframes))])

    def texture(self, rng: np.random.Generator, index: int) -> Texture:
        """Choose the texture of image `index`."""
        if rng.random() < self.config.procedural or not self.photographs:
            block = index // (4 * CROPS_PER_DRAWING)
            return self.drawing(4 * block + int(rng.integers(4)))
        return self.photographs[rng.integers(len(self.photographs))]

    def plan(self, index: int) -> Shot:
        """Plan crop `index`."""
        rng = np.random.default_rng([self.seed, 0, index])
        if self.keyframes and rng.random() < self.config.rooms:
            block = index // (4 * CROPS_PER_DRAWING)
            number = KEYFRAMES_AT_A_TIME * block + int(rng.integers(KEYFRAMES_AT_A_TIME))
            return self._plan_of_room(rng, self.keyframe(number))
        texture = self.texture(rng, index)
        camera = self.camera(rng, texture)
        return plan(rng, texture, camera, sample_motion(rng, camera.fx_px), self.stride_px,
                    SENSORS)

    def camera(self, rng: np.random.Generator, texture: Texture) -> CameraIntrinsics:
        """Draw the camera for a texture: panoramas are sharp enough for wide lenses alone."""
        lens = 'wide' if texture.panorama else None
        return sample_camera(rng, self.config.width, self.config.height, lens)

    def _plan_of_room(self, rng: np.random.Generator, keyframe: rooms.Keyframe) -> Shot:
        camera = sample_camera(rng, self.config.width, self.config.height)
        # nearly the keyframe's own focal length, so that its pixels are small enough
        focal_px = keyframe.camera.fx_px / rooms.OVERSAMPLING
        camera = replace(camera, fx_px=focal_px, fy_px=focal_px * camera.fy_px / camera.fx_px)
        return rooms.plan(rng, keyframe, camera, sample_motion(rng, focal_px), self.stride_px,
                          SENSORS)

    @staticmethod
    def finish(plans: list[Shot], device: str | torch.device = 'cpu') -> list[Sample]:
        """Take the photographs that are planned."""
        return take(plans, device)

    def crop(self, index: int) -> Any:
        """Make crop `index`."""
        (sample,) = self.finish([self.plan(index)])
        return sample

    @staticmethod
    def collate(samples: list[Sample]) -> Batch:
        """
        Stack samples.

        :returns: gray (B, 1, H, W) uint8, field (B, h, w, 2, 6), motion (B, 6), and the
            displacement at the cells (B, h, w, 2), which is the field times the motion unless
            the shutter rolls
        """
        return (torch.from_numpy(np.stack([s.gray for s in samples])[:, None]),
                torch.from_numpy(np.stack([s.field for s in samples])),
                *(torch.from_numpy(np.stack(arrays)).float() for arrays in (
                    [s.motion for s in samples], [s.flow_px for s in samples])))


def collate_dense(samples: list[DenseSample]) -> Batch:
    """
    Stack samples.

    :returns: RGB (B, 3, H, W) uint8, flow (B, 2, H, W), depth (B, H, W), motion (B, 6), and the
        motion field matrix at the N pixels of the linear solver (B, N, 2, 6)
    """
    height, width = samples[0].depth_m.shape
    pixels = sample_pixels(width, height)
    matrices = [motion_field_matrix(pixels, sample.intrinsics) for sample in samples]
    return (torch.from_numpy(np.stack([s.rgb for s in samples])).movedim(-1, 1).contiguous(),
            *(torch.from_numpy(np.stack(arrays)).float() for arrays in (
                [s.flow_px for s in samples], [s.depth_m for s in samples],
                [s.motion for s in samples], matrices)))


class DenseFactory(CropFactory):
    """Synthetic images in colour with dense flow and depth, without end."""

    collate = staticmethod(collate_dense)

    def plan(self, index: int) -> tuple[Shot, float]:
        """Plan image `index`, and the distance of its scene, m."""
        rng = np.random.default_rng([self.seed, 0, index])
        texture = self.texture(rng, index)
        camera = self.camera(rng, texture)
        cells = motion_field_matrix(pixel_grid(camera.width_px, camera.height_px, 16), camera)
        while True:
            motion = sample_motion(rng, camera.fx_px)
            if np.linalg.norm(cells @ motion, axis=-1).mean() <= MAX_MEAN_FLOW_PX:
                break
        shot = plan(rng, texture, camera, motion, stride_px=1, sensors=ONE_MOTION_SENSORS)
        return shot, FAR_M if texture.panorama else float(np.exp(rng.uniform(*np.log(DISTANCE_M))))

    @staticmethod
    def finish(plans: list[tuple[Shot, float]],
               device: str | torch.device = 'cpu') -> list[DenseSample]:
        """Take the photographs that are planned."""
        shots, distances_m = zip(*plans)
        samples = []
        for sample, distance_m in zip(take(shots, device), distances_m):
            labels = sample.labels
            depth_m = distance_m / np.maximum(labels.inverse_depth, distance_m / FAR_M)
            samples.append(DenseSample(
                sample.rgb, labels.flow_px.astype(np.float32).transpose(2, 0, 1),
                depth_m.astype(np.float32), labels.motion * ([1.0] * 3 + [distance_m] * 3),
                sample.intrinsics))
        return samples


class LabelledFactory:
    """
    Images of recordings with their pseudo labels, pass after pass, each in an order of its own.

    :param folders: as `write_pseudo_labels` leaves them
    :param held_out: the end of each recording, in order and not augmented
    :raises DataFormatError: if a folder holds no labels
    """

    collate = staticmethod(collate_dense)

    def __init__(self, config: TrainingConfig, folders: tuple[Path, ...], held_out: bool) -> None:
        self.seed, self.held_out = config.seed, held_out
        self.files: list[Any] = []
        for folder in folders:
            self._take_share(label_files(folder))
        self.order = lru_cache(maxsize=2)(self._order)

    def _take_share(self, files: list[Any]) -> None:
        """Add those that are held out, or the others."""
        first_held_out = len(files) - max(1, round(HELD_OUT_SHARE * len(files)))
        self.files += files[first_held_out:] if self.held_out else files[:first_held_out]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def _order(self, epoch: int) -> np.ndarray:
        if self.held_out:
            return np.arange(len(self.files))
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.files))

    def file(self, index: int) -> Any:
        """What image `index` is read from, counted over all passes."""
        epoch, place = divmod(index, len(self.files))
        return self.files[self.order(epoch)[place]]

    def read(self, index: int) -> DenseSample:
        """Read image `index`, counted over all passes."""
        return read_label(self.file(index))

    def plan(self, index: int) -> tuple[DenseSample, SensorParameters | None]:
        """Read image `index`, counted over all passes, and draw a camera to retake it with."""
        sample = self.read(index)
        rng = np.random.default_rng([self.seed, 0, index])
        return sample, None if self.held_out else draw_sensor(rng, RETAKE)

    @staticmethod
    def finish(plans: list[tuple[DenseSample, SensorParameters | None]],
               device: str | torch.device = 'cpu') -> list[DenseSample]:
        """Photograph what was read once more, unless it is held out."""
        samples, sensors = zip(*plans)
        if None in sensors:
            return list(samples)
        images = torch.from_numpy(np.stack([sample.rgb for sample in samples])).to(device)
        images = retake(images.movedim(-1, 1), [s.intrinsics for s in samples], sensors)
        return [replace(sample, rgb=image)
                for sample, image in zip(samples, images.movedim(1, -1).cpu().numpy())]

    def crop(self, index: int) -> DenseSample:
        """Make image `index`."""
        (sample,) = self.finish([self.plan(index)])
        return sample


class ShardFactory(LabelledFactory):
    """
    Images of a dataset in shards, pass after pass, each in an order of its own.

    :param folder: as `image-as-imu synthesize --format webdataset` leaves it
    :param held_out: the end of the dataset, in order and not augmented
    :raises DataFormatError: if it holds fewer than two images
    """

    def __init__(self, config: TrainingConfig, folder: Path, held_out: bool) -> None:
        super().__init__(config, (), held_out)
        self.config, self.shards = config, Shards(folder)
        if len(self.shards) < 2:
            raise DataFormatError(f'{folder} holds one image; at least 2 are needed, one to train '
                                  'on and one to validate')
        self._take_share(list(range(len(self.shards))))
        self.dense = is_dense(config)
        self.collate = collate_dense if self.dense else CropFactory.collate

    def read(self, index: int) -> DenseSample:
        """Read image `index`, counted over all passes."""
        return dense_sample(self._image(index))

    def plan(self, index: int) -> CellSample | tuple[DenseSample, SensorParameters | None]:
        """Read image `index`, counted over all passes."""
        return super().plan(index) if self.dense else cell_sample(self._image(index))

    def finish(self, plans: list[Any], device: str | torch.device = 'cpu') -> list[Any]:
        """Photograph once more what a dense network is to see."""
        return super().finish(plans, device) if self.dense else plans

    def _image(self, index: int) -> LabelledImage:
        image = self.shards[self.file(index)]
        camera = image.intrinsics
        if (camera.width_px, camera.height_px) != (self.config.width, self.config.height):
            raise ConfigError(
                f'shards: the images of {self.config.shards} have {camera.width_px}x'
                f'{camera.height_px} px, not {self.config.width}x{self.config.height}; set width '
                'and height')
        return image


@dataclass(frozen=True)
class CellSample:
    """What a network of distributions is taught; the fields are those of `Sample`."""

    gray: np.ndarray
    field: np.ndarray
    motion: np.ndarray
    flow_px: np.ndarray
    intrinsics: CameraIntrinsics


def cell_sample(image: LabelledImage) -> CellSample:
    """What `CropFactory` makes, of an image of a dataset."""
    camera, gray = image.intrinsics, image.image
    if gray.ndim == 3:
        gray = cv2.cvtColor(gray, cv2.COLOR_RGB2GRAY)
    grid = pixel_grid(camera.width_px, camera.height_px, STRIDE_PX)
    places = grid.astype(np.float32)
    inverse_depth = cv2.remap(image.inverse_depth_per_m, places, None, cv2.INTER_NEAREST)
    flow_px = cv2.remap(np.ascontiguousarray(image.flow_px.transpose(1, 2, 0)), places, None,
                        cv2.INTER_LINEAR)
    distance_m = 1.0 / float(np.median(inverse_depth))
    field = motion_field_matrix(grid, camera)
    field[..., 3:] *= (inverse_depth * distance_m)[..., None, None]
    return CellSample(gray, field.astype(np.float32),
                      image.motion / np.repeat([1.0, distance_m], 3), flow_px, camera)


def dense_sample(image: LabelledImage) -> DenseSample:
    """What the paper's network is taught, of an image of a dataset."""
    rgb = image.image
    if rgb.ndim == 2:
        rgb = np.repeat(rgb[..., None], 3, axis=-1)
    return DenseSample(rgb, image.flow_px, 1.0 / image.inverse_depth_per_m, image.motion,
                       image.intrinsics)


def is_dense(config: TrainingConfig) -> bool:
    """Whether the network learns flow and depth, as the paper's does."""
    return config.architecture == ReferenceNetwork.architecture


def make_factory(config: TrainingConfig, assets: Path | None, labels: tuple[Path, ...],
                 held_out: bool, keyframes: Path | None = None) -> Factory:
    """
    Choose what to train or validate on.

    :param labels: folders of labelled recordings; none for synthetic images
    :raises ConfigError: if the settings do not fit the data
    """
    if config.shards:
        if assets or keyframes or labels:
            raise ConfigError('shards: they are instead of --assets, --keyframes and --labels; '
                              'leave those out')
        return ShardFactory(config, Path(config.shards), held_out)
    if keyframes and is_dense(config):
        raise ConfigError(f'keyframes: rooms do not teach "{config.architecture}" yet')
    if labels:
        if not is_dense(config):
            raise ConfigError(f'pseudo labels teach the reference network, not '
                              f'"{config.architecture}"')
        return LabelledFactory(config, labels, held_out)
    if config.epochs:
        raise ConfigError('epochs: synthetic images have no end; set crops, or give --labels')
    return DenseFactory(config, assets, held_out) if is_dense(config) \
        else CropFactory(config, assets, held_out, keyframes)


def keep_to_one_thread() -> None:
    """For a process that makes images: others do too, and rounding depends on the threads."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


class CropBatches(IterableDataset):
    """
    One process's share of the batches, from a starting index on; workers take turns in order.

    A step takes the next `batch` indices whatever the number of processes, so that a run that
    goes on with more or fewer of them neither repeats nor skips an image.

    :param start: index of the first image of the first batch
    :param process: which of the processes that train together
    :param finished: make batches; otherwise lists of plans, for the factory's `finish` and
        `collate` on another device
    """

    def __init__(self, config: TrainingConfig, assets: Path | None, start: int,
                 labels: tuple[Path, ...] = (), process: int = 0, processes: int = 1,
                 keyframes: Path | None = None, finished: bool = True) -> None:
        self.config, self.assets, self.labels, self.start = config, assets, labels, start
        self.keyframes, self.finished = keyframes, finished
        self.share = config.batch // processes
        self.offset = process * self.share

    def __iter__(self) -> Iterator[Batch | list[Any]]:
        """Yield batches as the factory's `collate` makes them, or their plans."""
        keep_to_one_thread()
        info = get_worker_info()
        turn, turns = (info.id, info.num_workers) if info else (0, 1)
        factory = make_factory(self.config, self.assets, self.labels, held_out=False,
                               keyframes=self.keyframes)
        firsts = range(self.start, self.config.crops, self.config.batch)
        for first in itertools.islice(firsts, turn, None, turns):
            indices = range(first + self.offset, first + self.offset + self.share)
            if self.config.overfit:
                indices = [index % self.config.overfit for index in indices]
            plans = [factory.plan(index) for index in indices]
            yield factory.collate(factory.finish(plans)) if self.finished else plans
