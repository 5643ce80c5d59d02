"""
Datasets as WebDataset shards: tar files whose members belong together by their first name.

`shard-000003.tar` holds, for image 771 of a dataset, `000000771.png`, `.flow.npy`,
`.inverse_depth.npy`, `.velocities.npy` and `.json`. Any reader of WebDataset takes them; `Shards`
reads any image without reading those before it.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from image_as_imu_ros.errors import DataFormatError, InputError
from image_as_imu_ros.files import replacing
from image_as_imu_ros.image_decoding import decode_compressed
from image_as_imu_ros.synthesis.labelled_image import LabelledImage
from image_as_imu_ros.types import CameraIntrinsics

IMAGE, FLOW, INVERSE_DEPTH, VELOCITIES, FACTS = (
    'png', 'flow.npy', 'inverse_depth.npy', 'velocities.npy', 'json')


def shard_path(folder: Path, number: int) -> Path:
    """Where shard `number` of a dataset is."""
    return folder / f'shard-{number:06d}.tar'


def write_shard(path: Path, images: Iterable[tuple[int, LabelledImage]]) -> None:
    """
    Write a shard, which appears only when it is complete; the same images make the same file.

    :param images: with their numbers in the dataset
    """
    with replacing(path) as partial, \
            tarfile.open(partial, 'w', format=tarfile.USTAR_FORMAT) as tar:
        for number, image in images:
            for suffix, content in members(image).items():
                entry = tarfile.TarInfo(f'{number:09d}.{suffix}')
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


def members(image: LabelledImage) -> dict[str, bytes]:
    """Files of one image by their suffix."""
    return {IMAGE: encoded(image.image), FLOW: as_npy(image.flow_px.astype(np.float16)),
            INVERSE_DEPTH: as_npy(image.inverse_depth_per_m.astype(np.float16)),
            VELOCITIES: as_npy(image.velocities.astype(np.float32)),
            FACTS: json.dumps(_facts(image)).encode()}


def encoded(image: np.ndarray) -> bytes:
    """Gray or RGB image, uint8, as a PNG file."""
    return cv2.imencode('.png', image[..., ::-1] if image.ndim == 3 else image)[1].tobytes()


def as_npy(array: np.ndarray) -> bytes:
    """Array as an .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array))
    return buffer.getvalue()


def _facts(image: LabelledImage) -> dict[str, Any]:
    camera = image.intrinsics
    return {
        'source': image.source, 'width_px': camera.width_px, 'height_px': camera.height_px,
        'fx_px': camera.fx_px, 'fy_px': camera.fy_px, 'cx_px': camera.cx_px,
        'cy_px': camera.cy_px, 'start_s': image.start_s,
        'exposure_time_s': image.exposure_time_s, 'readout_time_s': image.readout_time_s,
        'angular_velocity_rad_s': image.angular_velocity_rad_s.tolist(),
        'linear_velocity_m_s': image.linear_velocity_m_s.tolist(),
        'T_end_start': image.T_end_start.tolist()}


class _Member(NamedTuple):
    shard: int
    offset: int
    size: int


class Shards:
    """
    The images of a dataset in shards, in their order.

    :raises DataFormatError: if there are none, or one of them is damaged
    """

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob('shard-*.tar'))
        found: dict[str, dict[str, _Member]] = {}
        for number, path in enumerate(self.paths):
            try:
                with tarfile.open(path, 'r:') as tar:
                    for entry in tar:
                        key, _, suffix = entry.name.partition('.')
                        found.setdefault(key, {})[suffix] = _Member(
                            number, entry.offset_data, entry.size)
            except (OSError, tarfile.TarError) as error:
                raise DataFormatError(f'cannot read shard {path}: {error}; remove it and write '
                                      'the dataset again, which fills the gap') from error
        if not found:
            raise DataFormatError(f'no images in shards (shard-*.tar) in {folder}; write some '
                                  f'with: image-as-imu synthesize {folder} --format webdataset')
        self._images = [found[key] for key in sorted(found)]

    def __len__(self) -> int:
        """Number of images."""
        return len(self._images)

    def __getitem__(self, index: int) -> LabelledImage:
        """
        Read an image; it has no images of the ends of its exposure.

        :raises DataFormatError: if it is damaged
        """
        places = self._images[index]
        path = self.paths[next(iter(places.values())).shard]
        try:
            files = {}
            with path.open('rb') as tar:
                for suffix, place in places.items():
                    tar.seek(place.offset)
                    files[suffix] = tar.read(place.size)
            inverse_depth, flow, velocities = (np.load(io.BytesIO(files[suffix])) for suffix in (
                INVERSE_DEPTH, FLOW, VELOCITIES))
            facts = json.loads(files[FACTS])
            return LabelledImage(
                decode_compressed(files[IMAGE]), inverse_depth.astype(np.float32),
                flow.astype(np.float32),
                CameraIntrinsics(*(facts[f'{name}_px'] for name in (
                    'width', 'height', 'fx', 'fy', 'cx', 'cy'))),
                facts['exposure_time_s'], np.array(facts['angular_velocity_rad_s']),
                np.array(facts['linear_velocity_m_s']), velocities,
                np.array(facts['T_end_start']), facts['source'], facts['start_s'],
                facts['readout_time_s'])
        except (InputError, KeyError, OSError, TypeError, ValueError) as error:
            raise DataFormatError(f'image {index} of {path.parent}, in {path.name}, cannot be '
                                  f'read: {error!r}') from error
