"""
RGB-D recordings with poses: StrayScanner folders with depth, and iPhone scans of ScanNet++.

ScanNet++ v2 keeps a scene's iPhone scan in `data/SCENE/iphone/`: `rgb.mkv` (in the first version
`rgb.mp4`) or `rgb/frame_000000.jpg`, ...; `depth.bin` or `depth/frame_000000.png`, ... (mm);
`pose_intrinsic_imu.json`, which gives for each `frame_000000` the time, the intrinsics and ARKit's
pose in the scene's metric axes; and `colmap/` with COLMAP's poses of some frames and one camera.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from image_as_imu_ros.errors import ConfigError, DataFormatError, InputError
from image_as_imu_ros.evaluation.sources.image_files import read_image_file, stored_image_file
from image_as_imu_ros.evaluation.sources.recording import RecordingOptions, StoredImage
from image_as_imu_ros.evaluation.sources.strayscanner import (
    depth_from_mm,
    is_strayscanner,
    open_strayscanner,
    read_odometry,
    read_video,
    video_properties,
)
from image_as_imu_ros.types import CameraIntrinsics

MAX_SPEED_M_S, MAX_RATE_RAD_S = 5.0, 25.0
"""Faster than that is no hand, but tracking that jumped."""
JUMP_M_S, JUMP_RAD_S = 1.5, 5.0
"""By which a step of a tracked camera may leave the mean of the steps before and after."""
MAX_GAP = 3.0
"""Longest time between two frames, in median times."""
MAX_COLMAP_GAP_S = 1.0
"""Between two frames that COLMAP knows, those between are not corrected over more."""

SPLITS = {False: 'nvs_sem_train', True: 'nvs_sem_val'}
"""Names of ScanNet++'s lists of scenes, to train on and held out (50 scenes)."""
_POSES = 'pose_intrinsic_imu.json'
_VIDEOS = ('rgb.mkv', 'rgb.mp4')
_DEPTH_SHAPE = (192, 256)
_RAW_DEFLATE = -zlib.MAX_WBITS


@dataclass(frozen=True)
class RgbdRecording:
    """
    Images with depth and poses, in time order.

    `t_s` is (N,), `R_world_camera` (N, 3, 3), in optical axes, `positions_m` (N, 3) in a world at
    rest. `read()` yields the N images; `depths[k]()` is (h, w), m, over the same view, NaN where
    unknown.
    """

    name: str
    t_s: np.ndarray
    R_world_camera: np.ndarray
    positions_m: np.ndarray
    cameras: tuple[CameraIntrinsics, ...]
    read: Callable[[], Iterator[StoredImage]]
    depths: tuple[Callable[[], np.ndarray], ...]

    def tracked(self) -> np.ndarray:
        """
        Tell between which neighbouring frames the poses are those of a moving hand, (N - 1,) bool.

        Poses that jump are found by their speed, and by a step that those before and after it
        contradict. Where they do not change at all, there was no tracking.
        """
        step_s = np.diff(self.t_s)
        rates = Rotation.from_matrix(
            self.R_world_camera[1:] @ self.R_world_camera[:-1].transpose(0, 2, 1)).as_rotvec()
        good = (step_s > 0) & (step_s < MAX_GAP * np.median(step_s))
        moved = np.zeros(len(step_s), bool)
        for steps, fastest, jump in ((np.diff(self.positions_m, axis=0), MAX_SPEED_M_S, JUMP_M_S),
                                     (rates, MAX_RATE_RAD_S, JUMP_RAD_S)):
            speeds = steps / np.maximum(step_s, 1e-9)[:, None]
            moved |= (steps != 0).any(axis=1)
            around = np.concatenate([speeds[1:2], speeds, speeds[-2:-1]])
            left = np.linalg.norm(speeds - (around[:-2] + around[2:]) / 2, axis=1)
            good &= (np.linalg.norm(speeds, axis=1) < fastest) & (left < jump)
        return good & moved


def find_rgbd_recordings(source: Path, held_out: bool) -> list[Path]:
    """
    Folders of recordings: the one given, or the scenes of a copy of ScanNet++.

    :param source: StrayScanner folder, a scene of ScanNet++, or the folder that holds its `data/`
        and `splits/`
    :param held_out: of ScanNet++, its validation scenes
    :raises DataFormatError: if it is none of these, or a scene's scan is missing
    """
    if is_strayscanner(source) or (source / 'iphone' / _POSES).is_file():
        return [source]
    listing = source / 'splits' / f'{SPLITS[held_out]}.txt'
    try:
        scenes = [source / 'data' / name for name in listing.read_text().split()]
    except OSError as error:
        raise DataFormatError(
            f'{source} is neither a StrayScanner folder (imu.csv, odometry.csv) nor a scene of '
            f'ScanNet++ (iphone/{_POSES}) nor a copy of it ({listing.parent.name}/'
            f'{listing.name} and data/)') from error
    present = [scene for scene in scenes if (scene / 'iphone' / _POSES).is_file()]
    if not present:
        raise DataFormatError(f'none of the {len(scenes)} scenes of {listing} has an '
                              f'iphone/{_POSES} in {source / "data"}')
    return present


def open_rgbd_recording(folder: Path, colmap: bool = False) -> RgbdRecording:
    """
    Open one of the folders that `find_rgbd_recordings` finds.

    :param colmap: correct ARKit's poses by COLMAP's, and use its camera; ScanNet++ only
    :raises DataFormatError: if a file is missing or unreadable
    :raises ConfigError: if poses of COLMAP are wanted where there are none, or something is not
        installed
    """
    if not is_strayscanner(folder):
        return _open_scannetpp(folder, colmap)
    if colmap:
        raise ConfigError(f'{folder} is a StrayScanner folder, which has no poses of COLMAP')
    if not (folder / 'depth').is_dir():
        raise DataFormatError(f'{folder} has no depth images in depth/')
    recording = open_strayscanner(folder, RecordingOptions(image_size='full', depth=True))
    (stream,), odometry = recording.streams, read_odometry(folder)
    rows = np.searchsorted(odometry.t_ns, [record.stamp_ns for record in stream.records])
    with_depth = [record.depth is not None for record in stream.records]
    rows, records = rows[with_depth], [record for record in stream.records if record.depth]
    return RgbdRecording(
        recording.name, odometry.t_ns[rows] * 1e-9, odometry.R_world_camera[rows],
        odometry.positions_m[rows], tuple(record.intrinsics for record in records),
        partial(_chosen, stream.read, with_depth), tuple(record.depth for record in records))


def _chosen(read: Callable[[], Iterator[StoredImage]],
            wanted: list[bool]) -> Iterator[StoredImage]:
    return (image for image, want in zip(read(), wanted) if want)


def _open_scannetpp(folder: Path, colmap: bool) -> RgbdRecording:
    scan = folder / 'iphone'
    names, t_s, poses, matrices = _read_poses(scan / _POSES)
    numbers = [int(name.removeprefix('frame_')) for name in names]
    files = [scan / 'rgb' / f'{name}.jpg' for name in names]
    have = np.array([path.is_file() for path in files])
    if have.any():
        height, width = read_image_file(files[int(np.argmax(have))]).shape[:2]
    else:
        video = next((scan / name for name in _VIDEOS if (scan / name).is_file()), None)
        if video is None:
            raise DataFormatError(f'{scan} has neither frames rgb/frame_*.jpg nor a video '
                                  f'{" or ".join(_VIDEOS)}')
        width, height, count = video_properties(video)
        have = np.array(numbers) < count
    cameras = [CameraIntrinsics(width, height, *matrix[[0, 1, 0, 1], [0, 1, 2, 2]].tolist())
               for matrix in matrices]
    if colmap:
        known, poses, camera = _corrected(scan / 'colmap', names, t_s, poses)
        have &= known
        cameras = [camera] * len(names)
    depths = _depths(scan, names, numbers)
    kept = [k for k in np.flatnonzero(have).tolist() if depths[k] is not None]
    if len(kept) < 2:
        raise DataFormatError(f'{scan} has {len(kept)} frames with image, pose and depth; at '
                              'least 2 are needed')
    if files[kept[0]].is_file():
        read = partial(map, stored_image_file, [files[k] for k in kept])
    else:
        wanted = {numbers[k] for k in kept}
        read = partial(_chosen, partial(read_video, video, False, count),
                       [number in wanted for number in range(count)])
    return RgbdRecording(
        folder.resolve().name, t_s[kept], poses[kept, :3, :3], poses[kept, :3, 3],
        tuple(cameras[k] for k in kept), read, tuple(depths[k] for k in kept))


def _read_poses(path: Path) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Names, times in s, (N, 4, 4) poses in the world and (N, 3, 3) camera matrices of frames."""
    try:
        frames: dict[str, dict[str, Any]] = json.loads(path.read_text())
        names = [name for name in sorted(frames)
                 if np.isfinite(np.array(frames[name].get('aligned_pose', np.nan), float)).all()]
        t_s = np.array([frames[name]['timestamp'] for name in names], float)
        poses = np.array([frames[name]['aligned_pose'] for name in names], float)
        matrices = np.array([frames[name]['intrinsic'] for name in names], float)
        poses, matrices = poses.reshape(-1, 4, 4), matrices.reshape(-1, 3, 3)
        poses[:, :3, :3] = Rotation.from_matrix(poses[:, :3, :3]).as_matrix()
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataFormatError(f'cannot read {path}: {error!r}') from error
    return names, t_s, poses, matrices


def _depths(scan: Path, names: list[str],
            numbers: list[int]) -> list[Callable[[], np.ndarray] | None]:
    """How to read the depth of each frame, None where there is none."""
    files = [scan / 'depth' / f'{name}.png' for name in names]
    if any(path.is_file() for path in files):
        return [partial(_depth_of_file, path) if path.is_file() else None for path in files]
    stream = DepthStream(scan / 'depth.bin')
    return [partial(stream.depth_m, number) if number < len(stream) else None
            for number in numbers]


def _depth_of_file(path: Path) -> np.ndarray:
    return depth_from_mm(read_image_file(path))


class DepthStream:
    """
    Depth images of ScanNet++'s depth.bin, 256x192.

    Either each is compressed by itself, after its length in four bytes: lz4 of 16 bit mm, or
    deflate of 32 bit floats in m; or all of the latter together.

    :raises DataFormatError: if it cannot be read
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: list[tuple[int, int]] = []
        self._whole: np.ndarray | None = None
        try:
            end = path.stat().st_size
            with path.open('rb') as file:
                while head := file.read(4):
                    size = int.from_bytes(head, 'little')
                    self._places.append((file.tell(), size))
                    if file.seek(size, 1) > end:
                        break
                if file.tell() != end:
                    file.seek(0)
                    self._whole = np.frombuffer(zlib.decompress(file.read(), _RAW_DEFLATE),
                                                np.float32).reshape(-1, *_DEPTH_SHAPE)
        except (OSError, ValueError, zlib.error) as error:
            raise DataFormatError(f'cannot read depth images {path}: {error}') from error

    def __len__(self) -> int:
        """Number of images."""
        return len(self._places) if self._whole is None else len(self._whole)

    def depth_m(self, number: int) -> np.ndarray:
        """
        Decode an image, (192, 256) m, NaN where unknown.

        :raises InputError: if it is damaged
        :raises ConfigError: if lz4 is needed and not installed
        """
        if self._whole is not None:
            return np.where(self._whole[number] > 0, self._whole[number], np.nan)
        offset, size = self._places[number]
        with self._path.open('rb') as file:
            file.seek(offset)
            data = file.read(size)
        try:
            metres = np.frombuffer(zlib.decompress(data, _RAW_DEFLATE), np.float32)
            return np.where(metres > 0, metres, np.nan).reshape(_DEPTH_SHAPE)
        except (ValueError, zlib.error):
            pass  # most are of the other kind
        try:
            import lz4.block
        except ImportError as error:
            raise ConfigError(f'{self._path} needs lz4; install it with: '
                              "pip install 'image_as_imu_ros[scannetpp]'") from error
        try:
            length = 2 * _DEPTH_SHAPE[0] * _DEPTH_SHAPE[1]
            depth_mm = np.frombuffer(lz4.block.decompress(data, uncompressed_size=length),
                                     np.uint16)
            return depth_from_mm(depth_mm.reshape(_DEPTH_SHAPE))
        except (ValueError, lz4.block.LZ4BlockError) as error:
            raise InputError(f'depth image {number} of {self._path}: {error}') from error


def _corrected(model: Path, names: list[str], t_s: np.ndarray,
               poses: np.ndarray) -> tuple[np.ndarray, np.ndarray, CameraIntrinsics]:
    """
    Correct ARKit's poses by COLMAP's, which knows some of the frames.

    :param poses: (N, 4, 4), of ARKit
    :returns: which frames lie between frames that COLMAP knows, (N,) bool; poses in its world;
        its camera
    """
    try:
        import pycolmap
    except ImportError as error:
        raise ConfigError('poses of COLMAP need pycolmap; install it with: '
                          "pip install 'image_as_imu_ros[scannetpp]'") from error
    try:
        reconstruction = pycolmap.Reconstruction(str(model))
    except (RuntimeError, ValueError) as error:
        raise DataFormatError(f'cannot read the COLMAP model {model}: {error}') from error
    known = {Path(image.name).stem: image for image in reconstruction.images.values()}
    rows = np.array([row for row, name in enumerate(names) if name in known], int)
    if len(rows) < 2:
        raise DataFormatError(f'the COLMAP model {model} knows {len(rows)} of the frames; at '
                              'least 2 are needed')
    wanted = np.tile(np.eye(4), (len(rows), 1, 1))
    wanted[:, :3] = [known[names[row]].cam_from_world().inverse().matrix() for row in rows]
    correction = wanted @ np.linalg.inv(poses[rows])
    gaps = np.diff(t_s[rows])
    before = np.searchsorted(t_s[rows], t_s, 'right') - 1
    inside = (before >= 0) & (t_s <= t_s[rows[-1]])
    inside &= (gaps[before.clip(0, len(gaps) - 1)] <= MAX_COLMAP_GAP_S) | np.isin(t_s, t_s[rows])
    at_s = t_s.clip(*t_s[rows[[0, -1]]])
    between = np.tile(np.eye(4), (len(names), 1, 1))
    between[:, :3, :3] = Slerp(t_s[rows],
                               Rotation.from_matrix(correction[:, :3, :3]))(at_s).as_matrix()
    between[:, :3, 3] = np.stack([np.interp(at_s, t_s[rows], shift)
                                  for shift in correction[:, :3, 3].T], axis=1)
    return inside, between @ poses, _camera(known[names[rows[0]]].camera)


def _camera(camera: Any) -> CameraIntrinsics:
    """Intrinsics of a COLMAP camera, whose pixel centres are at halves."""
    model, parameters = camera.model.name, camera.params.tolist()
    if model not in ('PINHOLE', 'OPENCV'):
        raise DataFormatError(f'COLMAP camera of model {model}, not PINHOLE or OPENCV')
    fx, fy, cx, cy, *distortion = parameters
    return CameraIntrinsics(camera.width, camera.height, fx, fy, cx - 0.5, cy - 0.5,
                            'plumb_bob' if distortion else 'pinhole', tuple(distortion))
