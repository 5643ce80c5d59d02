"""A recording for the Rerun viewer: images, motion field, depth, estimate and reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from image_as_imu_ros.errors import ConfigError, InputError
from image_as_imu_ros.evaluation.comparison import Method
from image_as_imu_ros.evaluation.contact_sheet import UNKNOWN_EXPOSURE_S
from image_as_imu_ros.evaluation.estimation import StreamEstimates
from image_as_imu_ros.evaluation.evaluate import Evaluation, samples_of
from image_as_imu_ros.evaluation.plots import AXES
from image_as_imu_ros.evaluation.sources.image_files import read_image_file
from image_as_imu_ros.geometry.motion_field import motion_field_matrix, pixel_grid

if TYPE_CHECKING:
    from rerun import RecordingStream

TIMELINE = 'time'
ARROW_STRIDE_SHARE = 10
MM_PER_M = 1000.0


def write_rerun(evaluation: Evaluation, methods: Sequence[Method], path: Path,
                scene_depth_m: float) -> None:
    """
    Write images, motion fields, depth where known, estimates and references on one timeline.

    :raises ConfigError: if rerun-sdk is not installed
    """
    try:
        import rerun
    except ImportError as error:
        raise ConfigError('--rerun needs the Rerun SDK: pip install rerun-sdk') from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with rerun.RecordingStream('image_as_imu_ros', recording_id=evaluation.recording.name) as log:
        log.save(path)
        for index, result in enumerate(evaluation.streams):
            _log_images(log, evaluation, result, f'camera/{index}', scene_depth_m)
            _log_rates(log, evaluation, result, index, methods)
        _log_gyroscope(log, evaluation)


def _log_images(log: RecordingStream, evaluation: Evaluation, result: StreamEstimates,
                entity: str, scene_depth_m: float) -> None:
    """Images, their depth, and the path of scene points during the exposure."""
    import rerun
    for row, (record, stored) in enumerate(zip(result.stream.records, result.stream.read())):
        log.set_time(TIMELINE, timestamp=np.datetime64(record.stamp_ns, 'ns'))
        try:
            image = stored.decode()
        except InputError:
            continue
        log.log(entity, rerun.Image(image).compress(jpeg_quality=90)
                if image.dtype == np.uint8 else rerun.Image(image))
        intrinsics = record.intrinsics
        depth = _depth_of(evaluation, row)
        if depth is not None:
            log.log(f'{entity}/depth', rerun.DepthImage(
                cv2.resize(depth, (intrinsics.width_px, intrinsics.height_px),
                           interpolation=cv2.INTER_NEAREST), meter=MM_PER_M))
        estimate = result.estimates[row]
        if estimate is None:
            continue
        points = pixel_grid(intrinsics.width_px, intrinsics.height_px,
                            max(1, intrinsics.width_px // ARROW_STRIDE_SHARE)).reshape(-1, 2)
        motion = np.concatenate([estimate.angular_velocity_rad_s,
                                 estimate.linear_velocity_m_s / scene_depth_m])
        paths = motion_field_matrix(points, intrinsics) @ motion * (
            estimate.exposure_time_s or UNKNOWN_EXPOSURE_S)
        log.log(f'{entity}/flow', rerun.Arrows2D(vectors=paths, origins=points - 0.5 * paths))


def _log_rates(log: RecordingStream, evaluation: Evaluation, result: StreamEstimates,
               index: int, methods: Sequence[Method]) -> None:
    """Angular velocity of the estimate, its deviation, the reference and the other methods."""
    samples = samples_of(evaluation.recording, result, evaluation.mode)
    curves = {'estimate': samples.signed(evaluation.mode),
              'reference': samples.angular_references_rad_s['interpolated'],
              'estimate_sigma': np.sqrt(np.diagonal(samples.covariance, axis1=1, axis2=2))}
    curves |= {method.name: method.parts[index].signed(method.mode) for method in methods
               if not method.failure and method.name != evaluation.mode}
    for name, rates in curves.items():
        _log_curve(log, f'{name}/{index}', samples.stamp_ns, rates)


def _log_gyroscope(log: RecordingStream, evaluation: Evaluation) -> None:
    """All samples of the gyroscope."""
    gyroscope = evaluation.recording.gyroscope
    if gyroscope is not None:
        _log_curve(log, 'gyroscope', gyroscope.t_ns, gyroscope.angular_velocity_rad_s)


def _log_curve(log: RecordingStream, name: str, stamps_ns: np.ndarray,
               rates_rad_s: np.ndarray) -> None:
    """One scalar per axis and known value, under `angular_velocity/AXIS/NAME`."""
    import rerun
    known = np.isfinite(rates_rad_s).all(axis=1)
    times = rerun.TimeColumn(TIMELINE, timestamp=stamps_ns[known].astype('datetime64[ns]'))
    for axis, rates in zip(AXES, rates_rad_s[known].T):
        log.send_columns(f'angular_velocity/{axis}/{name}', indexes=[times],
                         columns=rerun.Scalars.columns(scalars=rates))


def _depth_of(evaluation: Evaluation, row: int) -> np.ndarray | None:
    """Depth image of a StrayScanner frame, mm; image k belongs to depth k + 1, as to odometry."""
    if evaluation.recording.kind != 'strayscanner':
        return None
    path = evaluation.recording.source / 'depth' / f'{row + 1:06d}.png'
    return read_image_file(path) if path.is_file() else None
