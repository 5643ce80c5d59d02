"""
Writes datasets of labelled images, block by block.

A block is a range of image numbers: a shard, or a part of the table. It appears when it is
complete, whoever writes it and when, and images are functions of their numbers. So a run that
was stopped goes on with the blocks that are missing, and processes share a dataset by taking
turns, on one machine or on several that share its folder.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from image_as_imu_ros import __version__
from image_as_imu_ros.errors import ConfigError
from image_as_imu_ros.evaluation.contact_sheet import sheet_of_flow
from image_as_imu_ros.files import write_atomically
from image_as_imu_ros.synthesis.labelled_image import LabelledImage
from image_as_imu_ros.synthesis.shards import Shards, as_npy, encoded, shard_path, write_shard

SUMMARY, TABLE, SHEET = 'dataset.json', 'dataset.csv', 'contact_sheet.jpg'
PARTS = 'parts'
SHEET_IMAGES = 16
COLUMNS = ('blurred', 'flow', 'depth', 'image1', 'image2', 'ts1', 'ts2', 'fx', 'fy', 'cx', 'cy',
           'bRa_qx', 'bRa_qy', 'bRa_qz', 'bRa_qw', 'bta_x', 'bta_y', 'bta_z', 'avg_px_dist',
           'max_px_dist')
"""Of the paper's table; a is the camera at the start of the exposure, b at its end."""


class Source(Protocol):
    """What a dataset shows."""

    settings: dict[str, Any]
    """What makes its images what they are."""

    def __len__(self) -> int:
        """Number of images."""

    def draw(self, index: int) -> LabelledImage | None:
        """Make image `index`, a function of that number alone; None if it is left out."""


def write_webdataset_block(folder: Path, block: int,
                           images: Iterable[tuple[int, LabelledImage]]) -> None:
    """Write a shard."""
    write_shard(shard_path(folder, block), images)


def write_table_block(folder: Path, block: int,
                      images: Iterable[tuple[int, LabelledImage]]) -> None:
    """Write the files of some images, and then their part of the table."""
    rows = []
    for number, image in images:
        paths = _write_files(folder, number, image)
        rows.append([*paths, *_numbers(image)])
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator='\n').writerows(rows)
    write_atomically(_part_path(folder, block), buffer.getvalue().encode())


def _part_path(folder: Path, block: int) -> Path:
    return folder / PARTS / f'part-{block:06d}.csv'


def _write_files(folder: Path, number: int, image: LabelledImage) -> list[str]:
    """Write an image's files; their paths in the folder, empty where there is nothing."""
    files = {'blurred': ('png', encoded(image.image)), 'flow': ('npy', as_npy(image.flow_px)),
             'depth': ('npy', as_npy(1.0 / image.inverse_depth_per_m)),
             **{name: ('png', encoded(end)) for name, end in zip(
                 ('image1', 'image2'), image.ends or ())}}
    paths = []
    for name in COLUMNS[:5]:
        if name not in files:
            paths.append('')
            continue
        suffix, content = files[name]
        paths.append(f'{name}/{number:09d}.{suffix}')
        (folder / name).mkdir(exist_ok=True)
        write_atomically(folder / paths[-1], content)
    return paths


def _numbers(image: LabelledImage) -> list[float]:
    """The columns that are numbers."""
    camera, length_px = image.intrinsics, np.linalg.norm(image.flow_px, axis=0)
    rotation = Rotation.from_matrix(image.T_end_start[:3, :3]).as_quat()
    return [image.start_s, image.start_s + image.exposure_time_s, camera.fx_px, camera.fy_px,
            camera.cx_px, camera.cy_px, *rotation.tolist(), *image.T_end_start[:3, 3].tolist(),
            float(length_px.mean()), float(length_px.max())]


FORMATS: dict[str, tuple[Callable[[Path, int], Path], Callable[..., None]]] = {
    'webdataset': (shard_path, write_webdataset_block), 'csv': (_part_path, write_table_block)}
"""For each format, which file tells that a block is complete, and what writes it."""


def write_dataset(source: Source, folder: Path, layout: str, block_size: int,
                  rank: int = 0, processes: int = 1) -> int | None:
    """
    Write the blocks of a dataset that are this process's and are not there yet.

    Whoever finds all blocks complete draws the contact sheet and, for `csv`, joins the table.

    :param layout: one of FORMATS
    :param rank: which of the processes that share the work
    :returns: images of the dataset; None where other processes have blocks in work still
    :raises ConfigError: if the folder holds something else
    """
    complete, write = FORMATS[layout]
    blocks = range((len(source) + block_size - 1) // block_size)
    _claim(folder, {'format': layout, 'images': len(source), 'images_per_block': block_size,
                    'version': __version__, **source.settings})
    complete(folder, 0).parent.mkdir(parents=True, exist_ok=True)
    numbers = {block: range(block * block_size, min((block + 1) * block_size, len(source)))
               for block in blocks[rank::processes]}
    missing = [block for block in numbers if not complete(folder, block).exists()]
    total = sum(map(len, numbers.values()))
    with tqdm(total=total, initial=total - sum(len(numbers[block]) for block in missing),
              unit='image', desc='drawing' if processes == 1 else f'process {rank}',
              position=rank if processes > 1 else None) as progress:
        for block in missing:
            write(folder, block, _drawn(source, numbers[block], progress))
    if not all(complete(folder, block).exists() for block in blocks):
        return None
    for left_over in folder.glob('.*.partial'):  # of processes that were killed
        left_over.unlink(missing_ok=True)
    _write_sheet(source, folder)
    return _join(folder, blocks) if layout == 'csv' else len(Shards(folder))


def _drawn(source: Source, numbers: range, progress: tqdm) -> Iterator[tuple[int, LabelledImage]]:
    for number in numbers:
        image = source.draw(number)
        progress.update()
        if image is not None:
            yield number, image


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Note what the folder's dataset is made of; raise ConfigError if it holds another one."""
    path = folder / SUMMARY
    text = f'{json.dumps(settings, indent=2, sort_keys=True)}\n'
    # looked at first, as another process may be about to claim it
    in_use = folder.exists() and any(not found.name.startswith('.') for found in folder.iterdir())
    if path.exists():
        earlier, settings = json.loads(path.read_text()), json.loads(text)
        changed = sorted(key for key in earlier.keys() | settings.keys()
                         if earlier.get(key) != settings.get(key))
        if changed:
            key = changed[0]
            raise ConfigError(f'{folder} holds a dataset with {key} {earlier.get(key)}, not '
                              f'{settings.get(key)}; go on with the same settings, or give '
                              'another folder')
        return
    if in_use:
        raise ConfigError(f'{folder} is not empty and holds no dataset ({SUMMARY}); give another '
                          'folder')
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())


def _join(folder: Path, blocks: range) -> int:
    """Make the table of its parts; the number of its rows."""
    parts = ''.join(_part_path(folder, block).read_text() for block in blocks)
    write_atomically(folder / TABLE, f'{",".join(COLUMNS)}\n{parts}'.encode())
    return parts.count('\n')


def _write_sheet(source: Source, folder: Path) -> None:
    """Lay out some images of all the dataset with their flow."""
    numbers = np.unique(np.linspace(0, len(source) - 1, SHEET_IMAGES).round().astype(int))
    images = [image for image in map(source.draw, numbers.tolist()) if image is not None]
    if images:
        sheet = sheet_of_flow([(image.image, image.flow_px) for image in images])
        write_atomically(folder / SHEET, cv2.imencode('.jpg', sheet[..., ::-1])[1].tobytes())
