"""Look-ahead for recordings: each image's rate is estimated again once later images are known."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np

from image_as_imu_ros.config import StreamConfig
from image_as_imu_ros.estimator import BlurObservation, VisualGyroscope
from image_as_imu_ros.motion_filter import MAX_SPEED_STD_RAD_S, RATE, FilterStep
from image_as_imu_ros.stream import StreamEstimator, unmodelled_variance, with_twist
from image_as_imu_ros.types import EstimateStatus, Frame, MotionEstimate

ALIKE, ALIKE_RAD_S = 0.015, 0.03
"""Error that neighbouring images share, relative to a rate and beyond: smoothing leaves it."""


class SmoothedStream:
    """
    A stream whose estimates come `smoothing_frames` images late and know those images.

    Rauch, Tung and Striebel's smoother over the stream's filter. With 0 frames it is the stream.

    :param gyroscope: estimates single images; may be shared by several streams
    """

    def __init__(self, gyroscope: VisualGyroscope, config: StreamConfig) -> None:
        self._stream = StreamEstimator(gyroscope, config)
        self._frames = config.smoothing_frames
        self._pending: deque[tuple[MotionEstimate, FilterStep, tuple[float, float]]] = deque()

    def process(self, frame: Frame) -> list[MotionEstimate]:
        """
        Take in the next image, as `StreamEstimator.process`.

        :returns: the estimates that have become final, in time order; often of an earlier image
        """
        return self.join(self._stream.gyroscope.observe(frame))

    def join(self, observation: BlurObservation) -> list[MotionEstimate]:
        """Take in the next image, of which the network has seen the blur; else as `process`."""
        estimate = self._stream.join(observation)
        if not self._frames:
            return [estimate]
        step = self._stream.filter_step
        final = self.finish() if step.begins else []
        self._pending.append((estimate, step, self._stream.scene_depth))
        if len(self._pending) > self._frames:
            final.append(self._release())
        return final

    def finish(self) -> list[MotionEstimate]:
        """End the stream: the estimates that were waiting for later images."""
        return [self._release() for _ in range(len(self._pending))]

    def _release(self) -> MotionEstimate:
        """Take out the oldest estimate, smoothed by all that follow."""
        *earlier, (_, last, _) = self._pending
        mean, covariance = last.mean, last.covariance
        following = last
        for _, step, _ in reversed(earlier):
            gain = np.linalg.solve(following.predicted_covariance,
                                   following.transition @ step.covariance).T
            mean = step.mean + gain @ (mean - following.predicted_mean)
            covariance = step.covariance \
                + gain @ (covariance - following.predicted_covariance) @ gain.T
            following = step
        estimate, _, depth = self._pending.popleft()
        if np.trace(covariance[RATE, RATE]) >= 3 * MAX_SPEED_STD_RAD_S ** 2:
            return estimate
        matrix = following.twist_matrix
        twist = matrix @ mean
        covariance = last.variance_factor * matrix @ covariance @ matrix.T
        covariance[:3, :3] += unmodelled_variance(twist[:3], ALIKE, ALIKE_RAD_S) * np.eye(3)
        return replace(
            with_twist(estimate, twist, covariance, depth),
            sign_resolved=True,
            status=EstimateStatus.OK if estimate.status is EstimateStatus.OK
            else EstimateStatus.PREDICTED)
