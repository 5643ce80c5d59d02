"""Writes sequence folders: images with their exact motion."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np

from image_as_imu_ros import __version__
from image_as_imu_ros.errors import DataFormatError
from image_as_imu_ros.types import CameraIntrinsics

COLUMNS = ('file', 't_mid', 'exposure_s', 'width', 'height', 'fx', 'fy', 'cx', 'cy',
           'wx', 'wy', 'wz', 'vx', 'vy', 'vz')
CONVENTION = ('camera axes x right, y down, z forward; w is the angular velocity of the camera in '
              'its own axes, a static point moves dX/dt = -w x X - v')


class SequenceFolder:
    """
    A sequence folder in the making; it appears when the block ends without an error.

    :param folder: must not exist
    :param source: what made the images, for meta.json
    :param meta: further content of meta.json
    :param resume: go on with what a run of the same source and meta left when it was cut off
    :raises DataFormatError: if the folder exists or an image cannot be written
    """

    def __init__(self, folder: Path, source: str, meta: dict[str, Any],
                 resume: bool = False) -> None:
        if folder.exists():
            raise DataFormatError(
                f'{folder} already exists; remove it or choose another folder')
        self._folder = folder
        self._meta = {'source': f'image_as_imu_ros {__version__}: {source}',
                      'convention': CONVENTION, **meta}
        self.partial = folder.with_name(f'{folder.name}.partial')
        """Where the folder's files are until it is complete."""
        self._resume = resume
        self.images = 0
        """Number of images so far."""

    def __enter__(self) -> SequenceFolder:
        table, meta = self.partial / 'frames.csv', self.partial / 'meta.json'
        text = f'{json.dumps(self._meta, indent=2)}\n'
        rows = [','.join(COLUMNS)]
        begun = self._resume and table.exists() and meta.exists()
        if begun and meta.read_text() == text:
            # the last row may be cut short
            rows = table.read_text().split('\n')[:-1] or rows
        else:
            shutil.rmtree(self.partial, ignore_errors=True)
            (self.partial / 'frames').mkdir(parents=True)
            meta.write_text(text)
        self.images = len(rows) - 1
        table.write_text('\n'.join([*rows, '']))
        self._file = table.open('a', newline='')
        self._table = csv.writer(self._file, lineterminator='\n')
        return self

    def add(self, image: np.ndarray, mid_s: float, exposure_s: float,
            intrinsics: CameraIntrinsics, angular_velocity_rad_s: np.ndarray,
            linear_velocity_m_s: np.ndarray) -> None:
        """
        Append an image.

        :param image: (H, W) gray or (H, W, 3) RGB, uint8
        :param angular_velocity_rad_s, linear_velocity_m_s: (3,), mean over the exposure
        """
        name = f'frames/{self.images:06d}.png'
        if not cv2.imwrite(str(self.partial / name),
                           image[..., ::-1] if image.ndim == 3 else image):
            raise DataFormatError(f'cannot write {self.partial / name}; is the disk full?')
        self._table.writerow([
            name, f'{mid_s:.9f}', exposure_s, intrinsics.width_px, intrinsics.height_px,
            intrinsics.fx_px, intrinsics.fy_px, intrinsics.cx_px, intrinsics.cy_px,
            *(f'{value:.6f}' for value in (*angular_velocity_rad_s, *linear_velocity_m_s))])
        self._file.flush()
        self.images += 1

    def remove(self, name: str) -> None:
        """Remove a folder of intermediate files from within."""
        shutil.rmtree(self.partial / name)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._file.close()
        if kind is None:
            self.partial.rename(self._folder)
