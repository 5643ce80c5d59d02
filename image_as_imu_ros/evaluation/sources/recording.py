"""
What a recording is to the evaluation: streams of images, and a gyroscope to compare with.

Everything but the pixels is read when a recording is opened; images are decoded one at a time.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from image_as_imu_ros.errors import DataFormatError, SynchronizationError
from image_as_imu_ros.types import CameraIntrinsics, Frame

STAMP_REFERENCES = ('start', 'middle', 'end')
"""Moments of the exposure that an image's stamp may mark."""

AUTO_TIME_OFFSET = 'auto'
"""Instead of seconds: the offset between the clocks is estimated and applied."""

_FLOOR_WARNING_RAD_S = 0.1
_INTERPOLATION_SHARE = 30 ** -0.5
"""Rms of s (1 - s) over 0..1: of the error between two samples, in units of how far a sample
lies off the line through its neighbours."""


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

    @property
    def interpolation_error_rad_s(self) -> np.ndarray:
        """
        Estimate what linear interpolation between the samples errs by, (3,) rad/s rms.

        From how far each sample lies off the line through its neighbours, which is what twice
        the period would cost; sensor noise counts too.
        """
        rates, t_ns = self.angular_velocity_rad_s, self.t_ns
        if len(rates) < 3:
            return np.zeros(3)
        share = ((t_ns[1:-1] - t_ns[:-2]) / (t_ns[2:] - t_ns[:-2]))[:, None]
        line = rates[:-2] + share * (rates[2:] - rates[:-2])
        return _INTERPOLATION_SHARE * np.sqrt(np.mean((rates[1:-1] - line) ** 2, axis=0))

    def shifted(self, offset_s: float) -> Gyroscope:
        """Gyroscope on the images' clock, ahead of which its own runs by the offset."""
        return Gyroscope(self.t_ns - seconds_to_ns(offset_s), self.angular_velocity_rad_s)


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


def longest_increasing(stamps_ns: np.ndarray) -> np.ndarray:
    """Tell which stamps to keep, (N,) bool, so that most remain and those strictly increase."""
    tails: list[int] = []  # the smallest last stamp of a run of each length, and its index
    ends: list[int] = []
    before = np.full(len(stamps_ns), -1)
    for index, stamp_ns in enumerate(stamps_ns.tolist()):
        length = bisect_left(tails, stamp_ns)
        before[index] = ends[length - 1] if length else -1
        tails[length:length + 1] = [stamp_ns]
        ends[length:length + 1] = [index]
    kept = np.zeros(len(stamps_ns), dtype=bool)
    index = ends[-1] if ends else -1
    while index >= 0:
        kept[index] = True
        index = int(before[index])
    return kept


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
    """
    Streams of images with their reference, and what had to be assumed or left out.

    `time_offset_applied_s` is how far the gyroscope's clock ran ahead of the images' before its
    stamps were moved; `estimate_time_offset` asks for that to be found and done.
    """

    source: Path
    kind: str
    image_size: str
    streams: tuple[Stream, ...]
    gyroscope: Gyroscope | None
    assumptions: tuple[str, ...] = ()
    skipped: dict[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    time_offset_applied_s: float = 0.0
    estimate_time_offset: bool = False

    def __post_init__(self) -> None:
        if not any(stream.records for stream in self.streams):
            reasons = ''.join(f'; {count} x {reason}' for reason, count in self.skipped.items())
            raise DataFormatError(f'{self.source} has no usable image{reasons}')

    @property
    def name(self) -> str:
        """Short name for folders and titles."""
        return self.source.resolve().stem if self.source.is_file() else self.source.resolve().name

    @property
    def only_stream(self) -> Stream:
        """
        The frames, where all are of one camera.

        :raises DataFormatError: if there are several cameras
        """
        if len(self.streams) != 1:
            names = ', '.join(stream.camera for stream in self.streams)
            raise DataFormatError(f'{self.source} has several cameras: {names}; choose one by '
                                  '--camera')
        return self.streams[0]

    @property
    def frame_count(self) -> int:
        """Frames of all streams."""
        return sum(len(stream.records) for stream in self.streams)

    @property
    def frame_interval_ns(self) -> int | None:
        """Median time between the frames of a stream, ns; None without two frames."""
        steps = [np.diff([record.stamp_ns for record in stream.records])
                 for stream in self.streams]
        steps = np.concatenate(steps) if steps else np.zeros(0)
        return int(np.median(steps)) if len(steps) else None

    def shifted(self, offset_s: float) -> Recording:
        """Move the gyroscope, if there is one, onto the images' clock."""
        if self.gyroscope is None:
            return self
        return replace(self, gyroscope=self.gyroscope.shifted(offset_s),
                       time_offset_applied_s=self.time_offset_applied_s + offset_s,
                       estimate_time_offset=False)

    def with_gyroscope_warnings(self) -> Recording:
        """Say so where the gyroscope is too slow to be a reference."""
        if self.gyroscope is None or self.frame_interval_ns is None:
            return self
        floor = self.gyroscope.interpolation_error_rad_s
        rate_hz = 1e9 / self.gyroscope.period_ns
        slow = self.gyroscope.period_ns > self.frame_interval_ns
        if not slow and floor.max() < _FLOOR_WARNING_RAD_S:
            return self
        return replace(self, warnings=(*self.warnings, (
            f'the gyroscope gives {rate_hz:.1f} samples a second for '
            f'{1e9 / self.frame_interval_ns:.1f} images: between them it errs by about '
            f'{"/".join(f"{value:.2f}" for value in floor)} rad/s (x/y/z rms), below which no '
            'figure means anything; record it at its full rate, 100 Hz or more')))


@dataclass(frozen=True)
class RecordingOptions:
    """
    What a user may say about a recording.

    Topics, `intrinsics_px`, `stamps` and `stamp_reference` concern rosbags; `image_size`
    StrayScanner folders (`320x224` or `full`, None for the default). `camera` is a glob over
    camera names or image topics, `R_gyro_camera` (3, 3) overrides the rotation from camera to
    gyroscope axes, `exposure_time_s` stands in where the recording has none. `time_offset_s` is
    how far the gyroscope's clock runs ahead of the images', in seconds or AUTO_TIME_OFFSET.
    `intrinsics_px` is fx, fy, cx, cy and distortion coefficients of `plumb_bob`, instead of
    camera info. `stamps` are those of the headers, or `received`, the times of recording. `depth`
    has depth images used, where the recording has them. Without `needs_gyroscope`, there need be
    none; a bag's is not looked for, and `R_gyro_camera` must be given.
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
    time_offset_s: float | str | None = None
    stamps: str = 'header'
    intrinsics_px: tuple[float, ...] | None = None
    depth: bool = False
    needs_gyroscope: bool = True
