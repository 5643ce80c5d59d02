"""
Signed, fused motion from images in time order, without look-ahead.

Blur tells each frame's velocity up to its sign; the alignment of neighbouring frames tells the
signed mean velocity between them. A Kalman filter whose state spans the gap joins both, and the
sign of the blur is the one that the filter finds likelier.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from image_as_imu_ros.config import StreamConfig
from image_as_imu_ros.errors import SynchronizationError
from image_as_imu_ros.estimator import (
    BlurMeasurement,
    BlurObservation,
    VisualGyroscope,
    unknown_covariance,
)
from image_as_imu_ros.geometry.alignment import Alignment, PairAligner
from image_as_imu_ros.geometry.blur_solver import Expectation
from image_as_imu_ros.types import EstimateStatus, Frame, MotionEstimate

RESOLVED_MARGIN = 2.0
"""Log-likelihood ratio from which on a blur's sign counts as known."""
MIN_SIMILARITY = 0.5
"""Least correlation of two aligned frames that counts as a match."""
UNMODELLED_DEPTH = 0.03
"""Error of an aligned rotation, relative to it, from the scene not lying at one depth."""
GATE = 50.0
"""Squared Mahalanobis distance (7 sigma) beyond which a measurement is distrusted."""
MAX_SPEED_STD_RAD_S = 6.0
"""A prediction that is less certain than this is not published."""


class RotationFilter:
    """
    Kalman filter of the angle turned since the last frame, the rate and the acceleration.

    Accelerations follow Singer's model: correlated over CORRELATION_S, of a size in proportion
    to the recent rates, as hand and body shake. Axes are those of the camera.

    Source: Singer (1970), doi:10.1109/TAES.1970.310128.
    """

    CORRELATION_S = 0.04
    ACCELERATION_PER_RATE = 35.0
    ACCELERATION_FLOOR_RAD_S2 = 1.0
    INITIAL_RATE_RAD_S = 5.0
    MEMORY_S = 0.3

    def __init__(self) -> None:
        self.recent_rate = self.INITIAL_RATE_RAD_S
        self.mean = np.zeros(9)
        self.covariance = np.zeros((9, 9))
        self.covariance[3:6, 3:6] = np.eye(3) * self.INITIAL_RATE_RAD_S ** 2
        self.covariance[6:, 6:] = np.eye(3) * self._acceleration() ** 2

    @property
    def rate(self) -> np.ndarray:
        """Angular velocity now, (3,) rad/s."""
        return self.mean[3:6]

    @property
    def rate_covariance(self) -> np.ndarray:
        """Its covariance, (3, 3), (rad/s)^2."""
        return self.covariance[3:6, 3:6]

    def _acceleration(self) -> float:
        return self.ACCELERATION_PER_RATE * self.recent_rate + self.ACCELERATION_FLOOR_RAD_S2

    def predict(self, elapsed_s: float) -> None:
        """Go on by a gap; the angle is counted from its start."""
        self.mean[:3] = 0.0
        self.covariance[:3] = self.covariance[:, :3] = 0.0
        steps = 12
        dt = elapsed_s / steps
        decay = np.exp(-dt / self.CORRELATION_S)
        step = np.array([[1.0, dt, dt * dt / 2], [0.0, 1.0, dt], [0.0, 0.0, decay]])
        noise = np.zeros((3, 3))
        transition = np.eye(3)
        for _ in range(steps):
            transition = step @ transition
            noise = step @ noise @ step.T
            noise[2, 2] += self._acceleration() ** 2 * (1.0 - decay * decay)
        full = np.kron(transition, np.eye(3))
        self.mean = full @ self.mean
        self.covariance = full @ self.covariance @ full.T + np.kron(noise, np.eye(3))

    def likelihood(self, start: int, value: np.ndarray, covariance: np.ndarray) -> float:
        """Squared Mahalanobis distance of a measurement of state entries start to start + 3."""
        innovation = value - self.mean[start:start + 3]
        spread = self.covariance[start:start + 3, start:start + 3] + covariance
        return float(innovation @ np.linalg.solve(spread, innovation))

    def update(self, start: int, value: np.ndarray, covariance: np.ndarray) -> None:
        """Take in a measurement, trusted less the further it is outside the gate."""
        excess = self.likelihood(start, value, covariance) / GATE
        if excess > 1.0:
            spread = self.covariance[start:start + 3, start:start + 3]
            covariance = covariance * excess + spread * (excess - 1.0)
        rows = self.covariance[start:start + 3]
        gain = np.linalg.solve(rows[:, start:start + 3] + covariance, rows).T
        self.mean = self.mean + gain @ (value - self.mean[start:start + 3])
        self.covariance = self.covariance - gain @ rows
        self.covariance = 0.5 * (self.covariance + self.covariance.T)

    def remember(self, elapsed_s: float) -> None:
        """Let the size of the accelerations follow the rates."""
        share = np.exp(-elapsed_s / self.MEMORY_S)
        power = self.rate @ self.rate / 3.0
        self.recent_rate = float(np.sqrt(share * self.recent_rate ** 2 + (1 - share) * power))


class BlurGain:
    """
    By how much the blur overstates the motion, learnt from the rotation between frames.

    A wrongly stated exposure and the network's own bias both scale all blur by one factor. Its
    logarithm is a random walk, observed where the blurs at both ends of a gap have a sign: their
    mean is compared with the rotation over the gap.
    """

    PRIOR_STD = 0.3
    DRIFT_STD = 0.01
    RATIO_STD = 0.4
    MIN_RATE_RAD_S = 1.5

    def __init__(self) -> None:
        self.log_gain = 0.0
        self.variance = self.PRIOR_STD ** 2

    def observe(self, blur_rate: np.ndarray, gap_rate: np.ndarray) -> None:
        """
        Compare the mean of two neighbouring blurs' rates with the rate over the gap between.

        :param blur_rate, gap_rate: (3,) rad/s
        """
        speed = np.linalg.norm(gap_rate)
        along = blur_rate @ gap_rate / max(speed, 1e-9)
        if min(along, speed) < self.MIN_RATE_RAD_S:
            return
        noise = self.RATIO_STD ** 2
        innovation = np.log(along / speed) - self.log_gain
        noise *= max(1.0, abs(innovation) / (2.0 * np.sqrt(self.variance + noise)))
        self.variance += self.DRIFT_STD ** 2
        share = self.variance / (self.variance + noise)
        self.log_gain += share * innovation
        self.variance *= 1.0 - share

    @property
    def value(self) -> float:
        """Blur's rate over the true rate."""
        return float(np.exp(self.log_gain))


class StreamEstimator:
    """
    Joins a camera's images, in time order, into signed motion.

    `alignment` is the motion that was found between the last two images; None where they did not
    match or the last one began anew.

    :param gyroscope: estimates single images; may be shared by several streams
    """

    def __init__(self, gyroscope: VisualGyroscope, config: StreamConfig = StreamConfig()) -> None:
        self.gyroscope = gyroscope
        self.config = config
        self.reset()

    def reset(self) -> None:
        """Forget all earlier images: the next one may have any stamp."""
        self.alignment: Alignment | None = None
        self._previous: BlurMeasurement | None = None
        self._aligner: PairAligner | None = None
        self._filter = RotationFilter()
        self._gain = BlurGain()
        self._blur_rate: np.ndarray | None = None

    @property
    def measurement(self) -> BlurMeasurement | None:
        """What was seen in the last image; None before the first."""
        return self._previous

    def process(self, frame: Frame) -> MotionEstimate:
        """
        Take in the next image.

        After a gap longer than `max_gap`, or with other intrinsics, the stream starts anew.

        :returns: motion at the frame's mid-exposure; `usable` tells whether its sign is known
        :raises SynchronizationError: if the stamp is not later than the last one's
        :raises InputError: if the image cannot be used
        """
        return self.join(self.gyroscope.observe(frame))

    def join(self, observation: BlurObservation) -> MotionEstimate:
        """Take in the next image, of which the network has seen the blur; else as `process`."""
        frame = observation.frame
        previous = self._previous
        elapsed_s = None
        if previous is not None:
            elapsed_s = (frame.stamp_ns - previous.frame.stamp_ns) * 1e-9
            if elapsed_s <= 0:
                raise SynchronizationError(
                    f"stamp {frame.stamp_ns} ns is not after the last image's "
                    f'{previous.frame.stamp_ns} ns; reset the stream to accept a time jump')
            if elapsed_s > self.config.max_gap or frame.intrinsics != previous.frame.intrinsics:
                self.reset()
                previous = elapsed_s = None
        if previous is not None:
            self._filter.predict(elapsed_s)
        exposure_s = frame.exposure_time_s
        start = None
        if previous is not None and exposure_s is not None:
            start = np.pad(self._filter.rate * exposure_s, (0, 3))
        measurement = self.gyroscope.solve(observation, start)
        begin = time.perf_counter()
        alignment = None
        if previous is not None:
            alignment = self._align(previous, measurement, elapsed_s)
            if alignment is not None:
                turn = alignment.motion[:3]
                unmodelled = np.eye(3) * UNMODELLED_DEPTH ** 2 * (turn @ turn)
                self._filter.update(0, turn, alignment.covariance[:3, :3] + unmodelled)
            if measurement.solution is not None and exposure_s is not None:
                expected = Expectation(self._filter.rate * exposure_s * self._gain.value,
                                       self._filter.rate_covariance * exposure_s ** 2)
                measurement = replace(measurement, solution=measurement.solution.given(expected))
        timing = {**measurement.timing_ms, 'align': 1e3 * (time.perf_counter() - begin)}
        estimate = self._fuse(measurement, alignment, elapsed_s)
        if previous is not None:
            self._filter.remember(elapsed_s)
        self._previous, self.alignment = measurement, alignment
        return replace(estimate, timing_ms=timing)

    def _align(self, previous: BlurMeasurement, current: BlurMeasurement,
               elapsed_s: float) -> Alignment | None:
        """Motion since the last frame, started from both blurs with either sign."""
        if previous.solution is None or current.solution is None:  # a blank image matches any
            return None
        if self._aligner is None:
            self._aligner = PairAligner(current.intrinsics)
        prediction = np.concatenate([self._filter.mean[:3], np.zeros(3)])
        seeds = [np.zeros(6), prediction]
        blurs = []
        for measurement in (previous, current):
            blur = measurement.solution.motion if measurement.informative else None
            blurs.append(blur)
            if blur is not None and measurement.frame.exposure_time_s is not None:
                turn = blur * elapsed_s / measurement.frame.exposure_time_s
                seeds += [turn, -turn]
        alignment = self._aligner.align(previous.working_image, current.working_image, *blurs,
                                        seeds)
        matched = alignment is not None and alignment.similarity >= MIN_SIMILARITY
        return alignment if matched else None

    def _fuse(self, measurement: BlurMeasurement, alignment: Alignment | None,
              elapsed_s: float | None) -> MotionEstimate:
        """Resolve the blur's sign, update the filter and read it out."""
        frame = measurement.frame
        margin = 0.0
        last_blur_rate, self._blur_rate = self._blur_rate, None
        if frame.exposure_time_s is not None:
            estimate = self.gyroscope.to_estimate(measurement)
        else:
            estimate = MotionEstimate(
                frame.stamp_ns, None, np.zeros(3), np.zeros(3), unknown_covariance(), False, 0.0,
                0.0, 0.0, 0.0, EstimateStatus.NO_SIGNAL)
        blurred = measurement.informative and frame.exposure_time_s is not None
        if blurred and elapsed_s is not None:
            blur_rate = estimate.angular_velocity_rad_s
            estimate = _scaled(estimate, 1.0 / self._gain.value, self._gain.variance)
            rate, covariance = estimate.angular_velocity_rad_s, estimate.covariance[3:, 3:]
            against = self._filter.likelihood(3, -rate, covariance) \
                - self._filter.likelihood(3, rate, covariance)
            margin = 0.5 * abs(against)
            if against < 0:
                estimate, blur_rate = estimate.negated(), -blur_rate
            rate = estimate.angular_velocity_rad_s
            if margin >= RESOLVED_MARGIN:
                self._filter.update(3, rate, covariance)
                if alignment is not None and last_blur_rate is not None:
                    self._gain.observe(0.5 * (last_blur_rate + blur_rate),
                                       alignment.motion[:3] / elapsed_s)
                self._blur_rate = blur_rate
            else:  # of either sign: zero, give or take the rate
                self._filter.update(3, np.zeros(3), covariance + np.outer(rate, rate))
        if elapsed_s is None:
            return estimate
        resolved = margin >= RESOLVED_MARGIN
        if alignment is not None and not resolved:
            estimate = replace(
                estimate,
                linear_velocity_m_s=alignment.motion[3:] / elapsed_s
                * self.gyroscope.config.scene_depth,
                quality=max(estimate.quality, alignment.similarity),
                inlier_share=alignment.inlier_share)
        if resolved or alignment is not None:
            status = EstimateStatus.OK
        elif self.config.unresolved_sign == 'predict' and \
                np.trace(self._filter.rate_covariance) < 3 * MAX_SPEED_STD_RAD_S ** 2:
            status = EstimateStatus.PREDICTED
        else:
            return estimate
        full = np.zeros((6, 6))
        full[:3, :3] = estimate.covariance[:3, :3]
        full[3:, 3:] = self._filter.rate_covariance
        return replace(estimate, angular_velocity_rad_s=self._filter.rate.copy(),
                       covariance=full, sign_resolved=True, sign_margin=margin, status=status)


def _scaled(estimate: MotionEstimate, factor: float, log_variance: float) -> MotionEstimate:
    """Both velocities times a factor whose logarithm has the given variance."""
    twist = factor * np.concatenate([estimate.linear_velocity_m_s,
                                     estimate.angular_velocity_rad_s])
    return replace(estimate, linear_velocity_m_s=twist[:3], angular_velocity_rad_s=twist[3:],
                   covariance=factor ** 2 * estimate.covariance
                   + log_variance * np.outer(twist, twist))
