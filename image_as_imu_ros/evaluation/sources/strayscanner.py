"""
StrayScanner recordings of an iPhone: as the app writes them, or as the paper processed them.

An app's folder has rgb.mp4, odometry.csv, imu.csv and camera_matrix.csv; a processed one has
rgb_320x224/ (and often rgb/), camera_matrix_320x224.csv, velocities.csv and opencv_poses.csv: see
`strayscanner_processing`. The first row of odometry.csv has no image: image k belongs to row
k + 1. Depth images, in mm, are numbered by row. ARKit stamps the middle of the exposure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from image_as_imu_ros.errors import ConfigError, DataFormatError, InputError
from image_as_imu_ros.evaluation.sources.image_files import read_image_file, stored_image_file
from image_as_imu_ros.evaluation.sources.recording import (
    FrameRecord,
    Gyroscope,
    Recording,
    RecordingOptions,
    StoredImage,
    Stream,
    finite_gyroscope,
)
from image_as_imu_ros.evaluation.sources.table import Table
from image_as_imu_ros.types import CameraIntrinsics

R_GYRO_CAMERA = np.array([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
"""From the camera's optical axes to the iPhone's gyroscope axes."""

CAMERA = 'camera'
ASSUMED_EXPOSURE_TIME_S = 0.01
DEFAULT_IMAGE_SIZE = '320x224'

_RESIZED_PX = (336, 252)
_CROPPED_PX = (320, 224)
_POSE_COLUMNS = ('x', 'y', 'z', 'qx', 'qy', 'qz', 'qw')
_PROCESSED_POSE_COLUMNS = ('t_x', 't_y', 't_z', 'qx', 'qy', 'qz', 'qw')


def is_strayscanner(folder: Path) -> bool:
    """Whether a folder looks like a StrayScanner recording."""
    return (folder / 'imu.csv').is_file() and any(
        (folder / name).is_file() for name in ('odometry.csv', 'opencv_poses.csv'))


def open_strayscanner(folder: Path, options: RecordingOptions) -> Recording:
    """
    Open a StrayScanner folder.

    :raises DataFormatError: if a file or column is missing or unreadable
    :raises ConfigError: if the image size is neither `320x224` nor `full`
    """
    image_size = options.image_size or DEFAULT_IMAGE_SIZE
    if image_size not in (DEFAULT_IMAGE_SIZE, 'full'):
        raise ConfigError(f'image size "{image_size}" of a StrayScanner folder is not '
                          f'"{DEFAULT_IMAGE_SIZE}" or "full"')
    if not fnmatchcase(CAMERA, options.camera or '*'):
        raise ConfigError(f'no camera of {folder} is called "{options.camera}"; '
                          f'there is one: {CAMERA}')
    odometry = (read_odometry(folder)[1:] if (folder / 'odometry.csv').is_file()
                else _read_poses(folder / 'opencv_poses.csv', _PROCESSED_POSE_COLUMNS))
    stamps_ns, exposures_s = odometry.t_ns, odometry.exposures_s.copy()
    assumptions = []
    unknown = np.isnan(exposures_s)
    if unknown.any():
        assumed_s = options.exposure_time_s or ASSUMED_EXPOSURE_TIME_S
        exposures_s[unknown] = assumed_s
        assumptions.append(f'exposure time {assumed_s} s, where the recording does not state it')
    stored_m_s, reference_m_s = _linear_velocities(folder, odometry)

    numbers, intrinsics, read = find_images(folder, image_size, len(stamps_ns))
    skipped: dict[str, int] = {}
    beyond = sum(number >= len(stamps_ns) for number in numbers)
    if beyond:
        skipped['image has no odometry row'] = beyond
        numbers = [number for number in numbers if number < len(stamps_ns)]
    records = tuple(
        FrameRecord(
            int(stamps_ns[k]), intrinsics, float(exposures_s[k]),
            linear_velocity_stored_m_s=stored_m_s[k],
            linear_velocity_reference_m_s=(
                reference_m_s[k] if np.isfinite(reference_m_s[k]).all() else None))
        for k in numbers)
    if options.depth:
        depths = _numbered_files(folder / 'depth')
        if not depths:
            raise DataFormatError(f'{folder} has no depth images in depth/; leave out --depth')
        # opencv_poses.csv, too, leaves the first row out
        records = tuple(
            replace(record, depth=partial(_read_depth, depths[k + 1], image_size))
            if k + 1 in depths else record for k, record in zip(numbers, records))
    rotation = R_GYRO_CAMERA if options.R_gyro_camera is None else options.R_gyro_camera
    return Recording(
        folder, 'strayscanner', image_size,
        (Stream(CAMERA, records, lambda: read(numbers), rotation),),
        read_gyroscope(folder, skipped), tuple(assumptions), skipped)


def resize_and_crop(image: np.ndarray) -> np.ndarray:
    """
    Shrink a 4:3 image to 336x252 px and cut out its central 320x224 px, as the paper does.

    Bilinear with a filter as wide as the reduction, which OpenCV does not have: it comes nearest
    to the images that the paper's authors made.

    :param image: (H, W) gray or (H, W, 3), uint8
    :raises InputError: if the image is not 4:3
    """
    import torch
    _check_shape(image)
    planes = torch.from_numpy(np.ascontiguousarray(np.atleast_3d(image))).movedim(-1, 0)[None]
    size = _RESIZED_PX[::-1]
    small = torch.nn.functional.interpolate(planes, size=size, mode='bilinear', antialias=True)
    return _cropped(small[0].movedim(0, -1).numpy().reshape(*size, *image.shape[2:]))


def _check_shape(image: np.ndarray) -> None:
    height, width = image.shape[:2]
    if width * 3 != height * 4:
        raise InputError(f'image of {width}x{height} px is not 4:3 as StrayScanner writes it')


def _cropped(image: np.ndarray) -> np.ndarray:
    left, top = _crop_corner()
    return image[top:top + _CROPPED_PX[1], left:left + _CROPPED_PX[0]]


def _crop_corner() -> tuple[int, int]:
    return (_RESIZED_PX[0] - _CROPPED_PX[0]) // 2, (_RESIZED_PX[1] - _CROPPED_PX[1]) // 2


@dataclass(frozen=True)
class Odometry:
    """
    Poses of the camera as ARKit tracked them, in OpenCV axes relative to a world.

    `t_ns` is (N,), `positions_m` (N, 3), `R_world_camera` (N, 3, 3) and `exposures_s` (N,), NaN
    where it is not stated.
    """

    t_ns: np.ndarray
    positions_m: np.ndarray
    R_world_camera: np.ndarray
    exposures_s: np.ndarray

    def __getitem__(self, rows: slice) -> Odometry:
        return Odometry(*(getattr(self, field.name)[rows] for field in fields(self)))

    def linear_velocities_m_s(self) -> np.ndarray:
        """
        Linear velocities as the paper's velocities.csv states them, (N, 3).

        Differences between the poses after and before over TWICE the time to the one after, in
        the PREVIOUS pose's axes; zero at both ends.
        """
        velocities_m_s = np.zeros_like(self.positions_m)
        spans_s = 2e-9 * (self.t_ns[2:] - self.t_ns[1:-1])[:, None]
        world_m_s = (self.positions_m[2:] - self.positions_m[:-2]) / spans_s
        velocities_m_s[1:-1] = np.einsum('nji,nj->ni', self.R_world_camera[:-2], world_m_s)
        return velocities_m_s


def read_odometry(folder: Path) -> Odometry:
    """
    Read odometry.csv, its first row, which has no image, included.

    :raises DataFormatError: if it cannot be read
    """
    return _read_poses(folder / 'odometry.csv', _POSE_COLUMNS)


def _read_poses(path: Path, names: tuple[str, ...]) -> Odometry:
    table = Table(path, ('timestamp', *names))
    poses = table.numbers(*names)
    try:
        R_world_camera = Rotation.from_quat(poses[:, 3:]).as_matrix()
    except ValueError as error:
        raise DataFormatError(f'{path}: a quaternion is not valid: {error}') from error
    exposures_s = (table.numbers('exposure') if 'exposure' in table
                   else np.full(len(table), np.nan))
    return Odometry(table.stamps_ns('timestamp'), poses[:, :3], R_world_camera, exposures_s)


def _linear_velocities(folder: Path, odometry: Odometry) -> tuple[np.ndarray, np.ndarray]:
    """
    Linear velocity per image as stored and as a reference, both (N, 3) m/s.

    They are those of velocities.csv, or computed where there is none. The reference is in each
    image's own axes, NaN where ARKit was not tracking, which shows as exactly zero.
    """
    path = folder / 'velocities.csv'
    if path.is_file():
        table = Table(path, ('timestamp', 't_x', 't_y', 't_z'))
        stored_m_s = table.numbers('t_x', 't_y', 't_z')
        if len(table) != len(odometry.t_ns):
            raise DataFormatError(f'{path} has {len(table)} rows for {len(odometry.t_ns)} poses')
    else:
        stored_m_s = odometry.linear_velocities_m_s()
    reference_m_s = np.full_like(stored_m_s, np.nan)
    R_world_camera = odometry.R_world_camera
    R_camera_previous = R_world_camera[1:].transpose(0, 2, 1) @ R_world_camera[:-1]
    reference_m_s[1:] = np.einsum('nij,nj->ni', R_camera_previous, stored_m_s[1:])
    reference_m_s[(stored_m_s == 0.0).all(axis=1)] = np.nan
    return stored_m_s, reference_m_s


def read_gyroscope(folder: Path, skipped: dict[str, int]) -> Gyroscope:
    """
    Read imu.csv; samples that are not finite are counted in `skipped`.

    :raises DataFormatError: if it cannot be read
    :raises SynchronizationError: if its stamps go backwards or repeat
    """
    names = ('alpha_x', 'alpha_y', 'alpha_z')
    table = Table(folder / 'imu.csv', ('timestamp', *names))
    return finite_gyroscope(table.stamps_ns('timestamp'), table.numbers(*names), skipped)


def find_images(folder: Path, image_size: str, count: int, raw: bool = False) -> tuple[
        list[int], CameraIntrinsics, Callable[[list[int]], Iterator[StoredImage]]]:
    """
    Numbers of the images there are, their intrinsics, and how to read them.

    :param count: poses, more than which a video's images are not
    :param raw: start from the full images even where there are processed ones
    :raises DataFormatError: if there are none, or a video or the camera matrix cannot be read
    """
    small = image_size == DEFAULT_IMAGE_SIZE
    processed, full, video = (folder / name for name in ('rgb_320x224', 'rgb', 'rgb.mp4'))
    files = _numbered_files(processed) if small and not raw else {}
    if files:
        return list(files), _small_intrinsics(folder), lambda numbers: (
            stored_image_file(files[number]) for number in numbers)
    files = _numbered_files(full)
    if files:
        width, height = _size_of_first_readable(list(files.values()))
        return list(files), _intrinsics(folder, small, width, height, raw), lambda numbers: (
            StoredImage(partial(_read_small, files[number])) if small
            else stored_image_file(files[number]) for number in numbers)
    if not video.is_file():
        wanted = f'{processed.name}/, {full.name}/' if small else f'{full.name}/'
        raise DataFormatError(f'{folder} has no images: none of {wanted} or {video.name}')
    width, height, video_count = video_properties(video)
    return (list(range(min(count, video_count))),
            _intrinsics(folder, small, width, height, raw),
            lambda numbers: read_video(video, small, len(numbers)))


def _numbered_files(folder: Path) -> dict[int, Path]:
    """Image files by their number, in order."""
    files = {int(path.stem): path for path in folder.glob('*.*')
             if path.stem.isdigit() and path.suffix.lower() in ('.jpg', '.jpeg', '.png')}
    return dict(sorted(files.items()))


def _size_of_first_readable(paths: list[Path]) -> tuple[int, int]:
    """Width and height of the images, which are all of one size."""
    for path in paths:
        try:
            height, width = read_image_file(path).shape[:2]
        except InputError:
            continue
        return width, height
    raise DataFormatError(f'none of {len(paths)} images in {paths[0].parent} can be read')


def video_properties(video: Path) -> tuple[int, int, int]:
    """Width, height and frame count of a video."""
    capture = cv2.VideoCapture(str(video))
    try:
        values = [int(capture.get(key)) for key in (
            cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_COUNT)]
    finally:
        capture.release()
    if min(values) <= 0:
        raise DataFormatError(f'{video} cannot be decoded as a video; is it truncated?')
    return values[0], values[1], values[2]


def read_video(video: Path, small: bool, count: int) -> Iterator[StoredImage]:
    """Decode the first images of a video one by one, in the sensor's orientation."""
    capture = cv2.VideoCapture(str(video))
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
    try:
        for _ in range(count):
            found, image = capture.read()
            if not found:
                return
            yield StoredImage(partial(_from_video, image, small))
    finally:
        capture.release()


def _read_small(path: Path) -> np.ndarray:
    return resize_and_crop(read_image_file(path))


def _read_depth(path: Path, image_size: str) -> np.ndarray:
    """Depth over the view of the images, (h, w) float32 m, NaN where unknown."""
    depth_mm = read_image_file(path)
    if image_size == DEFAULT_IMAGE_SIZE:
        _check_shape(depth_mm)
        depth_mm = _cropped(cv2.resize(depth_mm, _RESIZED_PX, interpolation=cv2.INTER_NEAREST))
    return depth_from_mm(depth_mm)


def depth_from_mm(depth_mm: np.ndarray) -> np.ndarray:
    """Depth in m, float32, NaN where unknown, of an image in mm, 0 where unknown."""
    return np.where(depth_mm > 0, depth_mm.astype(np.float32) / 1000.0, np.nan)


def _from_video(image_bgr: np.ndarray, small: bool) -> np.ndarray:
    image = cv2.cvtColor(image_bgr, cv2.COLOR_BGR2RGB)
    return resize_and_crop(image) if small else image


def _intrinsics(folder: Path, small: bool, width_px: int, height_px: int,
                raw: bool) -> CameraIntrinsics:
    if small:
        return _small_intrinsics(folder, width_px, raw)
    fx, fy, cx, cy = _camera_matrix(folder / 'camera_matrix.csv')
    return CameraIntrinsics(width_px, height_px, fx, fy, cx, cy)


def _small_intrinsics(folder: Path, full_width_px: int | None = None,
                      raw: bool = False) -> CameraIntrinsics:
    """
    Intrinsics of the 320x224 crop.

    Where they are not on file they are computed as the paper's tools do, without the half-pixel
    shift of a resize (0.4 px here), so that both kinds of folder agree.
    """
    path = folder / 'camera_matrix_320x224.csv'
    if full_width_px is None or (path.is_file() and not raw):
        fx, fy, cx, cy = _camera_matrix(path)
    else:
        scale = _RESIZED_PX[0] / full_width_px
        fx, fy, cx, cy = (scale * value for value in _camera_matrix(folder / 'camera_matrix.csv'))
        left, top = _crop_corner()
        cx, cy = cx - left, cy - top
    return CameraIntrinsics(*_CROPPED_PX, fx, fy, cx, cy)


def _camera_matrix(path: Path) -> tuple[float, float, float, float]:
    """Read fx, fy, cx, cy of a 3x3 matrix in a file."""
    try:
        matrix = np.loadtxt(path, delimiter=',')
    except (OSError, ValueError) as error:
        raise DataFormatError(f'cannot read camera matrix {path}: {error}') from error
    if matrix.shape != (3, 3):
        raise DataFormatError(f'camera matrix {path} is {matrix.shape}, not 3x3')
    (fx, _, cx), (_, fy, cy), _ = matrix.tolist()
    return fx, fy, cx, cy
