"""
What a recording is to the evaluation: streams of images, and a gyroscope to compare with.

Everything but the pixels is read when a recording is opened; images are decoded one at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from image_as_imu_ros.errors import DataFormatError, SynchronizationError
from image_as_imu_ros.types import CameraIntrinsics, Frame

STAMP_REFERENCES = ('start', 'middle', 'end')
"""Moments of the exposure that an image's stamp may mark."""


def seconds_to_ns(seconds: float) -> int:
    """Convert seconds to whole nanoseconds."""
    return round(float(seconds) * 1e9)


def half_duration_ns(exposure_time_s: float | None, readout_time_s: float) -> int:
    """Time from the centre row's middle to either end of the exposure; unusable times count 0."""
    known_s = [value for value in (exposure_time_s, readout_time_s)
               if value is not None and math.isfinite(value)]
    return seconds_to_ns(0.5 * sum(known_s))


def mid_exposure_ns(stamp_ns: int, exposure_time_s: float | None, readout_time_s: float,
                    stamp_reference: str) -> int:
    """
    Move an image's stamp to the middle of its exposure, at the centre row.

    The stamp marks the `start` (of the first row), the `middle` (of the centre row) or the
    `end` (of the last row) of the exposure. Without an exposure time the readout alone counts.
    """
    half_ns = half_duration_ns(exposure_time_s, readout_time_s)
    return stamp_ns + {'start': half_ns, 'middle': 0, 'end': -half_ns}[stamp_reference]


@dataclass(frozen=True)
class Gyroscope:
    """
    The reference: angular velocity in the gyroscope's own axes.

    `t_ns` is (N,), strictly increasing; `angular_velocity_rad_s` is (N, 3), finite.

    :raises DataFormatError: if there are fewer than two samples
    :raises SynchronizationError: if the stamps go backwards or repeat
    """

    t_ns: np.ndarray
    angular_velocity_rad_s: np.ndarray

    def __post_init__(self) -> None:
        if len(self.t_ns) < 2:
            raise DataFormatError(
                f'the gyroscope has {len(self.t_ns)} usable samples; at least 2 are needed')
        check_increasing(self.t_ns, 'gyroscope sample')

    @property
    def period_ns(self) -> int:
        """Median time between samples, ns."""
        return int(np.median(np.diff(self.t_ns)))


def check_increasing(stamps_ns: np.ndarray, what: str) -> None:
    """
    Check that stamps strictly increase.

    :raises SynchronizationError: naming the first one that does not
    """
    steps = np.diff(stamps_ns)
    if (steps <= 0).any():
        bad = int(np.argmax(steps <= 0)) + 1
        raise SynchronizationError(
            f'{what} {bad} (from 0) is stamped {stamps_ns[bad]} ns, '
            f'{-steps[bad - 1] * 1e-9:.6f} s before the previous one; sort or cut the recording')


def finite_gyroscope(t_ns: np.ndarray, angular_velocity_rad_s: np.ndarray,
                     skipped: dict[str, int]) -> Gyroscope:
    """Build a gyroscope from the finite samples; the others are counted in `skipped`."""
    finite = np.isfinite(angular_velocity_rad_s).all(axis=1)
    if not finite.all():
        skipped['gyroscope sample is not finite'] = int((~finite).sum())
    return Gyroscope(t_ns[finite], angular_velocity_rad_s[finite])


@dataclass(frozen=True)
class FrameRecord:
    """
    What is known of a frame without its pixels.

    `stamp_ns` is mid-exposure. The references are (3,), in the camera's optical axes, and None
    where unknown; an angular velocity here wins over the recording's gyroscope.
    `depth` reads the aligned depth image, (h, w) m, where there is one that is to be used.
    `linear_velocity_stored_m_s` is the value as the recording states it, which the paper's
    protocol compares with; `linear_velocity_reference_m_s` is at this frame, in its own axes.
    """

    stamp_ns: int
    intrinsics: CameraIntrinsics
    exposure_time_s: float | None
    readout_time_s: float = 0.0
    angular_velocity_reference_rad_s: np.ndarray | None = None
    linear_velocity_reference_m_s: np.ndarray | None = None
    linear_velocity_stored_m_s: np.ndarray | None = None
    depth: Callable[[], np.ndarray] | None = None

    def with_image(self, image: np.ndarray) -> Frame:
        """
        Join the frame's pixels, (H, W) gray or (H, W, 3) RGB.

        :raises InputError: if image, intrinsics or exposure cannot be used
        """
        return Frame(image, self.stamp_ns, self.intrinsics, self.exposure_time_s,
                     self.readout_time_s, None if self.depth is None else self.depth())


@dataclass(frozen=True)
class StoredImage:
    """
    An image as the recording holds it.

    `decode` returns the pixels or raises InputError. `file_bytes` are those of the JPEG or PNG
    file with exactly these pixels, where there is one, and `file_format` says which it is.
    """

    decode: Callable[[], np.ndarray]
    file_bytes: bytes | None = None
    file_format: str = ''


@dataclass(frozen=True)
class Stream:
    """
    The frames of one camera, in time order.

    `read()` yields one StoredImage per record, in the records' order; it may end early where
    the recording is truncated. `R_gyro_camera` takes camera axes to gyroscope axes; None where
    it is unknown, so that only the frames' own references count.
    """

    camera: str
    records: tuple[FrameRecord, ...]
    read: Callable[[], Iterator[StoredImage]]
    R_gyro_camera: np.ndarray | None

    def __post_init__(self) -> None:
        stamps_ns = np.array([record.stamp_ns for record in self.records], dtype=np.int64)
        check_increasing(stamps_ns, f'image of camera "{self.camera}"')


@dataclass(frozen=True)
class Recording:
    """Streams of images with their reference, and what had to be assumed or left out."""

    source: Path
    kind: str
    image_size: str
    streams: tuple[Stream, ...]
    gyroscope: Gyroscope | None
    assumptions: tuple[str, ...] = ()
    skipped: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not any(stream.records for stream in self.streams):
            reasons = ''.join(f'; {count} x {reason}' for reason, count in self.skipped.items())
            raise DataFormatError(f'{self.source} has no usable image{reasons}')

    @property
    def name(self) -> str:
        """Short name for folders and titles."""
        return self.source.resolve().stem if self.source.is_file() else self.source.resolve().name

    @property
    def frame_count(self) -> int:
        """Frames of all streams."""
        return sum(len(stream.records) for stream in self.streams)


@dataclass(frozen=True)
class RecordingOptions:
    """
    What a user may say about a recording.

    Topics and `stamp_reference` concern rosbags; `image_size` StrayScanner folders
    (`320x224` or `full`, None for the default). `camera` is a glob over camera names or image
    topics, `R_gyro_camera` (3, 3) overrides the rotation from camera to gyroscope axes,
    `exposure_time_s` stands in where the recording has none. `depth` has depth images used, where
    the recording has them.
    """

    image_size: str | None = None
    camera: str | None = None
    R_gyro_camera: np.ndarray | None = None
    exposure_time_s: float | None = None
    stamp_reference: str = 'start'
    image_topic: str | None = None
    camera_info_topic: str | None = None
    imu_topic: str | None = None
    exposure_topic: str | None = None
    depth: bool = False
