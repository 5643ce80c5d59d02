"""
The paper's preparation of a StrayScanner folder: images of 320x224 px, motions, blur.

Besides the images it writes camera_matrix_320x224.csv, calib_params_320x224.txt, velocities.csv,
opencv_poses.csv, blur.csv and two plots, and copies the small tables of the app, so that the
result is a StrayScanner folder of its own.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from image_as_imu_ros.errors import ConfigError, DataFormatError, InputError
from image_as_imu_ros.evaluation.plots import png_of
from image_as_imu_ros.evaluation.sources.image_files import read_image_file
from image_as_imu_ros.evaluation.sources.recording import Gyroscope
from image_as_imu_ros.evaluation.sources.strayscanner import (
    DEFAULT_IMAGE_SIZE,
    Odometry,
    find_images,
    read_gyroscope,
    read_odometry,
)
from image_as_imu_ros.evaluation.sync import nearest
from image_as_imu_ros.files import write_atomically
from image_as_imu_ros.image_decoding import as_gray
from image_as_imu_ros.types import CameraIntrinsics

PICKERS = {'fft': 6.3, 'laplacian': 300.0}
"""Measures of sharpness, and the value below which an image counts as blurred."""

_SUMMARY = 'processing.json'
_IMAGES = f'rgb_{DEFAULT_IMAGE_SIZE}'
_JPEG_QUALITY = 95
_COPIED = ('camera_matrix.csv', 'imu.csv', 'odometry.csv')
_FIRST_TO_OPENCV = np.diag([1.0, -1.0, -1.0])
"""Axes that opencv_poses.csv gives its world, relative to the first pose."""

_POSE_COLUMNS = ('timestamp', 't_x', 't_y', 't_z', 'qx', 'qy', 'qz', 'qw')
_VELOCITY_COLUMNS = ('timestamp', 't_x', 't_y', 't_z', 'alpha_x', 'alpha_y', 'alpha_z')
_BLUR_COLUMNS = ('image', *PICKERS, *(f'blurred_{name}' for name in PICKERS))


@dataclass(frozen=True)
class Processing:
    """What was made of a folder; the settings are those that a continued run must share."""

    source: str
    picker: str
    threshold: float
    images: int = 0
    unreadable: int = 0
    blurred: int = 0

    @property
    def settings(self) -> tuple[str, str, float]:
        """What two runs into one folder must have in common."""
        return self.source, self.picker, self.threshold


def process_strayscanner(folder: Path, output: Path, fine_tuning: Path | None = None,
                         picker: str = 'fft', threshold: float | None = None,
                         progress: bool = False) -> Processing:
    """
    Prepare a StrayScanner folder as the paper does; images that are there already are kept.

    :param folder: as the app writes it, with rgb/ in place of rgb.mp4 allowed
    :param output: StrayScanner folder to write
    :param fine_tuning: a second such folder to write, with the blurred images alone
    :param picker: one of PICKERS, which tells the blurred ones
    :param threshold: of the picker; None for the one in PICKERS
    :raises ConfigError: if the picker is unknown, or the output is of another run
    :raises DataFormatError: if the folder cannot be read or none of its images can
    """
    if picker not in PICKERS:
        raise ConfigError(f'picker "{picker}" is not one of {", ".join(PICKERS)}')
    threshold = PICKERS[picker] if threshold is None else threshold
    planned = Processing(folder.resolve().name, picker, threshold)
    odometry = read_odometry(folder)
    gyroscope = read_gyroscope(folder, {})
    if len(odometry.t_ns) < 2:
        raise DataFormatError(f'{folder / "odometry.csv"} has one row, which has no image')
    numbers, intrinsics, read = find_images(
        folder, DEFAULT_IMAGE_SIZE, len(odometry.t_ns) - 1, raw=True)
    numbers = [number for number in numbers if number < len(odometry.t_ns) - 1]
    for target in filter(None, (output, fine_tuning)):
        if folder.resolve() == target.resolve():
            raise ConfigError(f'{target} is the folder to be read; give another one to write')
        _check_settings(target, planned)

    (output / _IMAGES).mkdir(parents=True, exist_ok=True)
    _write_json(output, planned)
    images = tqdm(zip(numbers, read(numbers)), total=len(numbers), unit='image',
                  disable=None if progress else True)
    for number, stored in images:
        path = _image_path(output, number)
        if path.exists():
            continue
        try:
            image = stored.decode()
        except InputError as error:
            images.write(f'image {number} left out: {error}')
            continue
        write_atomically(path, cv2.imencode('.jpg', image[..., ::-1] if image.ndim == 3 else image,
                                            (cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY))[1])
    written = [number for number in numbers if _image_path(output, number).exists()]
    if not written:
        raise DataFormatError(f'none of {len(numbers)} images of {folder} can be read')
    sharpness = np.array([_sharpness(_image_path(output, number)) for number in written])
    blurred = [number for number, value in zip(
        written, sharpness[:, list(PICKERS).index(picker)]) if value < threshold]
    _write_tables(folder, output, odometry, gyroscope, intrinsics)
    _write_blur(output, written, sharpness, picker, threshold)
    done = Processing(*planned.settings, len(written), len(numbers) - len(written), len(blurred))
    if fine_tuning is not None:
        _write_fine_tuning(folder, output, fine_tuning, blurred, done)
        _write_tables(folder, fine_tuning, odometry, gyroscope, intrinsics)
    _write_plots(output, odometry, gyroscope, written, sharpness, picker, threshold)
    _write_json(output, done)
    return done


def fft_energy(gray: np.ndarray) -> float:
    """
    Mean of log(1 + |F|) over an image's Fourier transform F; a blurred image has less.

    :param gray: (H, W) uint8
    """
    return float(np.log1p(np.abs(np.fft.fft2(gray))).mean())


def laplacian_variance(gray: np.ndarray) -> float:
    """Variance of an image's Laplacian, (H, W) uint8; a blurred image has less."""
    return float(cv2.Laplacian(gray, cv2.CV_64F).var())


def opencv_poses(odometry: Odometry) -> tuple[np.ndarray, np.ndarray]:
    """
    Poses of the images as opencv_poses.csv states them: (N, 3) m and (N, 4) quaternions, w last.

    They are relative to the first row of the odometry, which has no image, whose axes y and z
    are turned round to be those of the world.
    """
    to_world = _FIRST_TO_OPENCV @ odometry.R_world_camera[0].T
    positions_m = (odometry.positions_m[1:] - odometry.positions_m[0]) @ to_world.T
    return positions_m, Rotation.from_matrix(to_world @ odometry.R_world_camera[1:]).as_quat()


def velocities(odometry: Odometry, gyroscope: Gyroscope) -> np.ndarray:
    """
    Velocities of the images as velocities.csv states them, (N, 6): linear m/s, angular rad/s.

    Linear ones by `Odometry.linear_velocities_m_s`; angular ones are the nearest samples of the
    gyroscope, in its axes.
    """
    images = odometry[1:]
    return np.concatenate([images.linear_velocities_m_s(), nearest(gyroscope, images.t_ns)],
                          axis=1)


def _check_settings(output: Path, planned: Processing) -> None:
    """Raise ConfigError where the folder holds something else than an earlier run's files."""
    if not output.exists() or not any(output.iterdir()):
        return
    try:
        earlier = Processing(**json.loads((output / _SUMMARY).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f'{output} is not empty and was not written by `image-as-imu '
                          'strayscanner`; give another folder') from error
    if earlier.settings != planned.settings:
        raise ConfigError(
            f'{output} was made from {earlier.source} by {earlier.picker} below '
            f'{earlier.threshold:g}, not from {planned.source} by {planned.picker} below '
            f'{planned.threshold:g}; give another folder')


def _image_path(folder: Path, number: int) -> Path:
    return folder / _IMAGES / f'{number:06d}.jpg'


def _sharpness(path: Path) -> tuple[float, float]:
    """Measures of an image file in the order of PICKERS."""
    gray = as_gray(read_image_file(path))
    return fft_energy(gray), laplacian_variance(gray)


def _write_tables(folder: Path, output: Path, odometry: Odometry, gyroscope: Gyroscope,
                  intrinsics: CameraIntrinsics) -> None:
    """Write intrinsics, poses and velocities, and copy the tables they were made from."""
    for name in _COPIED:
        shutil.copyfile(folder / name, output / name)
    matrix = '\n'.join(','.join(f'{value:f}' for value in row) for row in intrinsics.matrix)
    write_atomically(output / f'camera_matrix_{DEFAULT_IMAGE_SIZE}.csv', f'{matrix}\n'.encode())
    write_atomically(
        output / f'calib_params_{DEFAULT_IMAGE_SIZE}.txt',
        f'{intrinsics.fx_px} {intrinsics.fy_px} {intrinsics.cx_px} {intrinsics.cy_px}\n'.encode())
    times_s = (odometry.t_ns[1:] * 1e-9).tolist()
    positions_m, quaternions = opencv_poses(odometry)
    for name, columns, values in (
            ('opencv_poses.csv', _POSE_COLUMNS, np.concatenate([positions_m, quaternions], 1)),
            ('velocities.csv', _VELOCITY_COLUMNS, velocities(odometry, gyroscope))):
        _write_csv(output / name, columns, [
            (f'{time_s:.9f}', *row) for time_s, row in zip(times_s, values.tolist())])


def _write_blur(output: Path, numbers: list[int], sharpness: np.ndarray, picker: str,
                threshold: float) -> None:
    thresholds = np.array([threshold if name == picker else value
                           for name, value in PICKERS.items()])
    _write_csv(output / 'blur.csv', _BLUR_COLUMNS, [
        (f'{number:06d}', *values, *below) for number, values, below in zip(
            numbers, sharpness.tolist(), (sharpness < thresholds).astype(int).tolist())])


def _write_fine_tuning(folder: Path, output: Path, fine_tuning: Path, blurred: list[int],
                       done: Processing) -> None:
    """Copy the blurred images to a folder of their own; others from before are removed."""
    (fine_tuning / _IMAGES).mkdir(parents=True, exist_ok=True)
    _write_json(fine_tuning, done)
    wanted = {_image_path(fine_tuning, number) for number in blurred}
    for path in set((fine_tuning / _IMAGES).iterdir()) - wanted:
        path.unlink()
    for number in blurred:
        shutil.copyfile(_image_path(output, number), _image_path(fine_tuning, number))


def _write_plots(output: Path, odometry: Odometry, gyroscope: Gyroscope, numbers: list[int],
                 sharpness: np.ndarray, picker: str, threshold: float) -> None:
    """Plot the velocities, and the sharpness over the speed that blurs."""
    motion = velocities(odometry, gyroscope)
    t_s = (odometry.t_ns[1:] - odometry.t_ns[1]) * 1e-9
    figure = Figure(figsize=(10, 6), layout='constrained')
    linear, angular = figure.subplots(2, 1, sharex=True)
    for axes, values, label in ((linear, motion[:, :3], 'linear [m/s], ARKit'),
                                (angular, motion[:, 3:], 'angular [rad/s], gyroscope')):
        for name, column in zip('xyz', values.T):
            axes.plot(t_s, column, label=name, linewidth=1)
        axes.set_ylabel(label)
        axes.legend(loc='upper right', ncol=3)
    angular.set_xlabel('time [s]')
    write_atomically(output / 'velocities.png', png_of(figure))

    speed = np.linalg.norm(motion[numbers, 3:], axis=1)
    figure = Figure(figsize=(10, 4.5), layout='constrained')
    for axes, name, values in zip(figure.subplots(1, len(PICKERS)), PICKERS, sharpness.T):
        axes.scatter(speed, values, s=10)
        axes.axhline(threshold if name == picker else PICKERS[name], color='#d1495b')
        axes.set_xlabel('angular speed [rad/s]')
        axes.set_title(f'{name}: blurred below the line')
    write_atomically(output / 'blur.png', png_of(figure))


def _write_csv(path: Path, columns: tuple[str, ...], rows: list[tuple]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator='\n')
    writer.writerow(columns)
    writer.writerows(rows)
    write_atomically(path, buffer.getvalue().encode())


def _write_json(folder: Path, processing: Processing) -> None:
    write_atomically(folder / _SUMMARY, f'{json.dumps(asdict(processing), indent=2)}\n'.encode())
