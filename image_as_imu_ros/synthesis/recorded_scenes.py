"""
Blurred images of sharp RGB-D recordings: what a longer exposure would have collected.

An exposure lasts from one frame of the recording to one some frames later. The frame in the
middle, with its depth, is looked at from the poses between, as `keyframes` does with rooms; what
it hides is filled in from the frames at both ends. Or, as in the paper, frames are interpolated
in the image and averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from scipy.integrate import trapezoid
from scipy.interpolate import CubicSpline
from scipy.ndimage import distance_transform_edt
from scipy.spatial.transform import Rotation, RotationSpline
from tqdm import tqdm

from image_as_imu_ros.config import DatasetConfig
from image_as_imu_ros.errors import ConfigError, DataFormatError, InputError
from image_as_imu_ros.evaluation.sources.recording import StoredImage
from image_as_imu_ros.geometry.camera import WorkingCamera
from image_as_imu_ros.geometry.motion_field import motion_field_matrix, pixel_grid
from image_as_imu_ros.synthesis import room
from image_as_imu_ros.synthesis.exposure import MAX_STEP_SAMPLES
from image_as_imu_ros.synthesis.keyframes import LAYERS, OVERSAMPLING, Keyframe, average_light
from image_as_imu_ros.synthesis.labelled_image import (
    INSTANTS,
    MAX_MEAN_FLOW_PX,
    LabelledImage,
    mean_flow_px,
    pose_matrix,
)
from image_as_imu_ros.synthesis.rgbd_recordings import (
    RgbdRecording,
    find_rgbd_recordings,
    open_rgbd_recording,
)
from image_as_imu_ros.synthesis.textures import GAMMA
from image_as_imu_ros.types import CameraIntrinsics

VIEW = 1.05
"""Width of a recording's reduced images over that of the ones cut out of their middle."""
BEHIND = 1.1
"""Depth of a surface over that of another, from which on it is taken to be behind it."""
BEYOND = 2
"""Frames before and after an exposure that take part in its path, where tracking is good."""
INTERPOLATED = 4
"""Images that a gap between two frames becomes; of ten gaps the paper makes 41 images."""
SEED = 40_000_000
"""Of sensor noise; added to the dataset's."""
_STEP_SHARE = 1e-3


class DepthModel(Protocol):
    """Makes better depth of an image and a coarse one, such as `adapters.PromptDepth`."""

    settings: str
    """Which one, for the dataset's record."""

    def complete(self, image: np.ndarray, depth_m: np.ndarray) -> np.ndarray:
        """
        Estimate depth.

        :param image: (H, W, 3) uint8 RGB
        :param depth_m: (h, w) over the same view, positive
        :returns: (h', w') m, over the same view
        """


class Interpolator(Protocol):
    """Makes images between two, such as `adapters.Rife`."""

    settings: str
    """Which one, for the dataset's record."""

    def between(self, first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
        """
        Make an image of a time between two.

        :param first, second: (H, W, 3) float32 RGB, 0 to 1, as the camera encodes them
        :param share: of the time between them that has passed, 0 to 1
        """


class _View(NamedTuple):
    """A frame of a recording, reduced and undistorted."""

    light: np.ndarray
    """(H, W, 3) linear."""
    depth_m: np.ndarray
    """(H, W), along the optical axis, positive everywhere."""
    camera: CameraIntrinsics


class _Path:
    """
    A camera's motion in the axes of one of its frames.

    :param t_s: (N,), times of frames from that frame's on
    :param rotations: (N,), of those frames in the axes of that one
    :param positions_m: (N, 3)
    """

    def __init__(self, t_s: np.ndarray, rotations: Rotation, positions_m: np.ndarray) -> None:
        self.rotation = RotationSpline(t_s, rotations)
        self.position_m = CubicSpline(t_s, positions_m)

    def velocities(self, time_s: np.ndarray, step_s: float) -> np.ndarray:
        """Velocities (N, 6), angular and linear, in the camera's axes at times (N,)."""
        before, after = (self.rotation(time_s + side * step_s) for side in (-0.5, 0.5))
        angular = (before.inv() * after).as_rotvec() / step_s
        linear = self.rotation(time_s).inv().apply(self.position_m(time_s, 1))
        return np.concatenate([angular, linear], axis=1)


class _Frames:
    """
    A recording's images by number, decoded in order.

    :param keep: how many of the last images can be had again
    """

    def __init__(self, read: Callable[[], Iterator[StoredImage]], name: str, keep: int) -> None:
        self._read, self._name, self._keep = read, name, keep
        self._restart()

    def _restart(self) -> None:
        self._images, self._next = self._read(), 0
        self._kept: dict[int, StoredImage] = {}

    def decode(self, number: int) -> np.ndarray:
        """
        Read an image, (H, W, 3) RGB.

        :raises DataFormatError: if the recording ends before, or the image is damaged
        """
        if number < self._next and number not in self._kept:
            self._restart()
        while self._next <= number:
            image = next(self._images, None)
            if image is None:
                raise DataFormatError(f'the images of {self._name} end before number {number}')
            self._kept[self._next] = image
            self._kept.pop(self._next - self._keep, None)
            self._next += 1
        try:
            return self._kept[number].decode()
        except InputError as error:
            raise DataFormatError(f'image {number} of {self._name}: {error}') from error


class RecordedScenes:
    """
    Exposures of recordings, in their order, as a source of datasets.

    :param images: how many, evenly spaced over all there are; None for all
    :param depth_model: for depth that is better than the recording's
    :param interpolator: to average interpolated images instead of views by depth
    :raises DataFormatError: if nothing of the recordings can be used
    """

    def __init__(self, sources: tuple[Path, ...], config: DatasetConfig,
                 images: int | None = None, depth_model: DepthModel | None = None,
                 interpolator: Interpolator | None = None) -> None:
        self._config, self._depth_model, self._interpolator = config, depth_model, interpolator
        self._folders = [folder for source in sources
                         for folder in find_rgbd_recordings(source, config.held_out)]
        self._recording = lru_cache(2)(self._opened)
        self._tracked = lru_cache(2)(lambda number: self._recording(number).tracked())
        self._frames = lru_cache(2)(self._reader)
        self._view = lru_cache(4)(self._reduced_view)
        self._encoded = lru_cache(config.frames_apart + 2)(self._reduced_image)
        exposures = []
        for number, folder in enumerate(tqdm(self._folders, 'opening', unit='recording')):
            try:
                exposures += [(number, first) for first in self._exposures(number).tolist()]
            except DataFormatError as error:
                if len(self._folders) == 1:
                    raise
                tqdm.write(f'{folder.name} left out: {error}')
        if not exposures:
            raise DataFormatError(
                f'none of {len(self._folders)} recordings has {config.frames_apart + 1} frames in '
                'a row whose poses do not jump')
        chosen = np.arange(len(exposures)) if images is None else np.unique(
            np.linspace(0, len(exposures) - 1, images).round().astype(int))
        self._chosen = [exposures[index] for index in chosen]
        self.settings: dict[str, Any] = {
            'source': 'recordings', 'recordings': [folder.resolve().name
                                                   for folder in self._folders],
            'depth': getattr(depth_model, 'settings', 'as recorded'),
            'interpolation': getattr(interpolator, 'settings', 'by depth'),
            **{name: getattr(config, name) for name in (
                'seed', 'width', 'height', 'held_out', 'frames_apart', 'frame_step', 'colmap')}}

    def __len__(self) -> int:
        """Number of exposures."""
        return len(self._chosen)

    def draw(self, index: int) -> LabelledImage | None:
        """Make image `index`; None where it is blurred too much, or a frame cannot be read."""
        try:
            return self._exposed(index)
        except DataFormatError as error:
            tqdm.write(f'image {index} left out: {error}')
            return None

    def _exposed(self, index: int) -> LabelledImage | None:
        number, first = self._chosen[index]
        middle, last = first + self._config.frames_apart // 2, first + self._config.frames_apart
        recording, view = self._recording(number), self._view(number, middle)
        camera = self._cut(view.camera)
        times_s = np.linspace(recording.t_s[first], recording.t_s[last], INSTANTS) \
            - recording.t_s[middle]
        exposure_s = float(times_s[-1] - times_s[0])
        path = self._path(number, first, middle, last)
        velocities = path.velocities(times_s, _STEP_SHARE * exposure_s)
        mean = trapezoid(velocities, times_s, axis=0) / exposure_s
        start, end = (pose_matrix(path.rotation(at_s).as_rotvec(), path.position_m(at_s))
                      for at_s in times_s[[0, -1]])
        depth_m = _cut_out(view.depth_m, view.camera, camera, cv2.INTER_NEAREST)
        inverse_depth = (1.0 / depth_m).astype(np.float32)
        label = LabelledImage(
            np.zeros(depth_m.shape, np.uint8), inverse_depth,
            mean_flow_px(mean * exposure_s, inverse_depth, camera), camera, exposure_s,
            mean[:3], mean[3:],
            np.column_stack([times_s - times_s.mean(), velocities]),
            np.linalg.inv(end) @ start, recording.name, float(recording.t_s[first]))
        if np.linalg.norm(label.flow_px, axis=0).mean() > MAX_MEAN_FLOW_PX:
            return None
        if self._interpolator is None:
            subframes = 1 + int(np.ceil(_reach_px(label) * OVERSAMPLING / MAX_STEP_SAMPLES))
            share = (np.arange(subframes) + 0.5) / subframes
            at_s = times_s[0] + share * exposure_s
            light = average_light(self._keyframe(number, first, middle, last), camera,
                                  path.rotation(at_s).as_rotvec(), path.position_m(at_s))
        else:
            light = _cut_out(self._interpolated(number, first, last), view.camera, camera)
        rng = np.random.default_rng([SEED + self._config.seed, number, first])
        develop = room.RecordingConfig()
        image = room.develop(light, rng, develop.full_well, develop.read_noise)
        return replace(label, image=image, ends=(self._sharp(number, first, camera),
                                                 self._sharp(number, last, camera)))

    def _opened(self, number: int) -> RgbdRecording:
        return open_rgbd_recording(self._folders[number], self._config.colmap)

    def _reader(self, number: int) -> _Frames:
        return _Frames(self._recording(number).read, self._folders[number].name,
                       self._config.frames_apart + 2)

    def _exposures(self, number: int) -> np.ndarray:
        """First frames of the exposures of a recording."""
        apart = self._config.frames_apart
        tracked = self._tracked(number)
        if len(tracked) < apart:
            return np.zeros(0, int)
        whole = np.lib.stride_tricks.sliding_window_view(tracked, apart).all(axis=1)
        (firsts,) = np.nonzero(whole)
        return firsts[firsts % self._config.frame_step == 0]

    def _path(self, number: int, first: int, middle: int, last: int) -> _Path:
        """Motion in the axes of the frame in the middle, held by frames beyond both ends, too."""
        recording, tracked = self._recording(number), self._tracked(number)
        before, after = tracked[max(0, first - BEYOND):first][::-1], tracked[last:last + BEYOND]
        rows = slice(first - np.logical_and.accumulate(before).sum(),
                     last + np.logical_and.accumulate(after).sum() + 1)
        to_middle = Rotation.from_matrix(recording.R_world_camera[middle]).inv()
        return _Path(
            recording.t_s[rows] - recording.t_s[middle],
            to_middle * Rotation.from_matrix(recording.R_world_camera[rows]),
            to_middle.apply(recording.positions_m[rows] - recording.positions_m[middle]))

    def _working_camera(self, number: int, frame: int) -> WorkingCamera:
        source = self._recording(number).cameras[frame]
        width = round(VIEW * OVERSAMPLING * self._config.width)
        if source.width_px < source.height_px:
            width = round(width * source.height_px / source.width_px)
        return WorkingCamera(source, width)

    def _reduced_image(self, number: int, frame: int) -> np.ndarray:
        image = self._frames(number).decode(frame)
        return self._working_camera(number, frame).colour_image(image)

    def _reduced_view(self, number: int, frame: int) -> _View:
        working = self._working_camera(number, frame)
        try:
            depth_m = self._recording(number).depths[frame]()
        except InputError as error:
            raise DataFormatError(f'{self._folders[number]}: {error}') from error
        if not np.isfinite(depth_m).any():
            raise DataFormatError(f'frame {frame} of {self._folders[number].name} has no depth')
        depth_m = _filled(depth_m)
        if self._depth_model is not None:
            depth_m = self._depth_model.complete(self._frames(number).decode(frame), depth_m)
        camera = working.intrinsics
        depth_m = working.depth_at(depth_m, pixel_grid(camera.width_px, camera.height_px, 1))
        return _View(self._encoded(number, frame) ** np.float32(GAMMA), _filled(depth_m), camera)

    def _cut(self, view: CameraIntrinsics) -> CameraIntrinsics:
        """Camera of the dataset's images, which looks along the view's axis."""
        width, height = self._config.width, self._config.height
        if OVERSAMPLING * width > view.width_px or OVERSAMPLING * height > view.height_px:
            raise ConfigError(
                f'images of {width}x{height} px cannot be cut out of a recording that is reduced '
                f'to {view.width_px / OVERSAMPLING:.0f}x{view.height_px / OVERSAMPLING:.0f} px; '
                'change width or height')
        return CameraIntrinsics(
            width, height, view.fx_px / OVERSAMPLING, view.fy_px / OVERSAMPLING,
            (view.cx_px - (view.width_px - 1) / 2) / OVERSAMPLING + (width - 1) / 2,
            (view.cy_px - (view.height_px - 1) / 2) / OVERSAMPLING + (height - 1) / 2)

    def _sharp(self, number: int, frame: int, camera: CameraIntrinsics) -> np.ndarray:
        working = self._working_camera(number, frame).intrinsics
        image = _cut_out(self._encoded(number, frame), working, camera)
        return (255.0 * image + 0.5).astype(np.uint8)

    def _keyframe(self, number: int, first: int, middle: int, last: int) -> Keyframe:
        """The frame in the middle, and behind it what the frames at both ends see of the rest."""
        recording, view = self._recording(number), self._view(number, middle)
        light = np.repeat(view.light[None], LAYERS, axis=0)
        inverse_depth = np.zeros(light.shape[:3], np.float32)
        inverse_depth[0] = 1.0 / view.depth_m
        to_middle = recording.R_world_camera[middle].T
        for layer, frame in ((1, first), (2, last)):
            rotation = to_middle @ recording.R_world_camera[frame]
            shift_m = to_middle @ (recording.positions_m[frame] - recording.positions_m[middle])
            places, values, behind = _hidden(self._view(number, frame), rotation, shift_m, view)
            light[layer].reshape(-1, 3)[places] = values
            inverse_depth[layer].ravel()[places] = behind
        return Keyframe(light, inverse_depth, view.camera)

    def _interpolated(self, number: int, first: int, last: int) -> np.ndarray:
        """Mean of the frames and of images between them, linear (H, W, 3)."""
        light, count = np.zeros_like(self._encoded(number, first)), 0
        for frame in range(first, last):
            ends = self._encoded(number, frame), self._encoded(number, frame + 1)
            for part in range(INTERPOLATED):
                image = self._interpolator.between(*ends, part / INTERPOLATED) if part else ends[0]
                light += image ** np.float32(GAMMA)
                count += 1
        return (light + self._encoded(number, last) ** np.float32(GAMMA)) / (count + 1)


def _filled(depth_m: np.ndarray) -> np.ndarray:
    """Depth that is known everywhere: where it is NaN, that of the nearest place."""
    nearest = distance_transform_edt(np.isnan(depth_m), return_distances=False,
                                     return_indices=True)
    return depth_m[tuple(nearest)]


def _reach_px(label: LabelledImage) -> float:
    """Bound of the length of the path that any pixel takes during the exposure."""
    grid = pixel_grid(label.intrinsics.width_px, label.intrinsics.height_px, 16)
    columns, rows = grid.astype(int).T
    matrix = motion_field_matrix(grid, label.intrinsics)
    matrix[..., 3:] *= label.inverse_depth_per_m[rows, columns].T[..., None, None]
    speeds = np.linalg.norm(np.einsum('hwij,kj->khwi', matrix, label.velocities[:, 1:]), axis=-1)
    return float(speeds.mean(axis=0).max()) * label.exposure_time_s


def _cut_out(image: np.ndarray, view: CameraIntrinsics, camera: CameraIntrinsics,
             interpolation: int = cv2.INTER_LINEAR) -> np.ndarray:
    """Part of a view, of any channels, as a camera sees it that looks along the same axis."""
    matrix = (view.matrix @ np.linalg.inv(camera.matrix))[:2]
    return cv2.warpAffine(image, matrix, (camera.width_px, camera.height_px),
                          flags=interpolation | cv2.WARP_INVERSE_MAP,
                          borderMode=cv2.BORDER_REPLICATE)


def _hidden(other: _View, rotation: np.ndarray, shift_m: np.ndarray,
            view: _View) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    What another view sees of the surfaces that are hidden in a view.

    :param rotation, shift_m: the other view's pose in the axes of the view
    :returns: pixels of the view, (N,), as indices of its rows laid end to end, in which the last
        of several is the nearest; their light (N, 3) and inverse depth (N,), 1/m
    """
    height, width = other.depth_m.shape
    pixels = np.stack([*np.meshgrid(np.arange(width), np.arange(height)),
                       np.ones((height, width))]).reshape(3, -1)
    points = rotation @ (np.linalg.inv(other.camera.matrix) @ pixels * other.depth_m.ravel()) \
        + shift_m[:, None]
    ahead = points[2] > 0
    x, y, z = view.camera.matrix @ points[:, ahead]
    column, row = np.rint(x / z).astype(int), np.rint(y / z).astype(int)
    height, width = view.depth_m.shape
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    place = np.where(inside, row * width + column, 0)
    hidden = inside & (z > BEHIND * view.depth_m.ravel()[place])
    order = np.flatnonzero(hidden)[np.argsort(-z[hidden])]
    light = other.light.reshape(-1, 3)[ahead]
    return place[order], light[order], (1.0 / z[order]).astype(np.float32)
