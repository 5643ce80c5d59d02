"""What one camera's images tell of its motion: a rate at each image, a rotation between two."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from image_as_imu_ros.config import StreamConfig
from image_as_imu_ros.errors import DataFormatError, InputError
from image_as_imu_ros.estimator import BlurMeasurement, VisualGyroscope
from image_as_imu_ros.evaluation.sources.recording import Recording, Stream
from image_as_imu_ros.stream import StreamEstimator, unmodelled_turn
from image_as_imu_ros.types import MotionEstimate


@dataclass(frozen=True)
class GapRotation:
    """
    Rotation of the camera from the middle of one exposure to that of the next.

    `rotation_rad` (3,) is the rotation vector in the earlier camera's axes, `covariance` (3, 3)
    its own. `exposure_time_s` is 0 where unknown.
    """

    start_ns: int
    end_ns: int
    exposure_time_s: float
    rotation_rad: np.ndarray
    covariance: np.ndarray


@dataclass(frozen=True)
class MotionTrack:
    """
    Motion of one camera in its optical axes, in time order.

    `estimates` are those of the stream, unsigned ones included; `gaps` the rotations between
    neighbouring images, where they match. `skipped` counts unusable images by reason.
    `readout_time_s` is what the images tell of it, with its standard deviation, where asked for.
    """

    stream: Stream
    estimates: tuple[MotionEstimate, ...]
    gaps: tuple[GapRotation, ...]
    skipped: dict[str, int]
    readout_time_s: tuple[float, float] | None = None


def track_motion(recording: Recording, gyroscope: VisualGyroscope,
                 config: StreamConfig = StreamConfig(), progress: bool = False) -> MotionTrack:
    """
    Follow the camera of a recording through its images.

    :param progress: show a bar on stderr where that is a terminal
    :raises DataFormatError: if the recording has several cameras or no image can be used
    """
    stream = recording.only_stream
    estimator = StreamEstimator(gyroscope, config)
    estimates, gaps, skipped = [], [], Counter(recording.skipped)
    images = zip(stream.records, stream.read())
    for record, stored in tqdm(images, total=len(stream.records), unit='frame',
                               disable=None if progress else True):
        previous = estimator.measurement
        try:
            estimates.append(estimator.process(record.with_image(stored.decode())))
        except InputError as error:
            skipped[str(error)] += 1
            continue
        gap = _gap(estimator, previous, estimates[-1].exposure_time_s)
        if gap is not None:
            gaps.append(gap)
    if not estimates:
        reasons = '; '.join(f'{count} x {reason}' for reason, count in skipped.most_common(3))
        raise DataFormatError(f'no image of {recording.source} could be used: {reasons}')
    return MotionTrack(stream, tuple(estimates), tuple(gaps), dict(skipped),
                       estimator.readout_time_s)


def _gap(estimator: StreamEstimator, previous: BlurMeasurement | None,
         exposure_time_s: float | None) -> GapRotation | None:
    """Rotation since the previous image, if the stream could relate the two."""
    alignment = estimator.alignment
    if alignment is None:
        return None
    turn = alignment.motion[:3]
    return GapRotation(previous.frame.stamp_ns, estimator.measurement.frame.stamp_ns,
                       exposure_time_s or 0.0, turn,
                       alignment.covariance[:3, :3] + unmodelled_turn(turn) * np.eye(3))
