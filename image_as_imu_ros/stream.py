"""
Signed, fused motion from images in time order, without look-ahead.

Blur tells each frame's velocity up to its sign; the alignment of neighbouring frames tells the
signed mean velocity between them. A Kalman filter whose state spans the gap joins both, and the
sign of the blur is the one that the filter finds likelier.
"""

from __future__ import annotations

import copy
import time
from dataclasses import replace

import numpy as np

from image_as_imu_ros.config import StreamConfig
from image_as_imu_ros.errors import ConfigError, SynchronizationError
from image_as_imu_ros.estimator import (
    BlurMeasurement,
    BlurObservation,
    VisualGyroscope,
    unknown_covariance,
)
from image_as_imu_ros.geometry.alignment import Alignment, ExpectedMotion, PairAligner
from image_as_imu_ros.geometry.blur_solver import Expectation
from image_as_imu_ros.geometry.gaussians import inverse
from image_as_imu_ros.geometry.relative_blur import RelativeBlurSolver
from image_as_imu_ros.lever_arm import LeverArm
from image_as_imu_ros.motion_filter import (
    MAX_SPEED_STD_RAD_S,
    MOVED,
    NOTHING,
    RESOLVED_MARGIN,
    TWIST,
    BlurGain,
    FilterStep,
    MotionFilter,
    without_prior,
)
from image_as_imu_ros.rolling_shutter import BandEstimator
from image_as_imu_ros.row_motion import (
    ReadoutTime,
    RowTrust,
    Straightener,
    blur_response,
    effective_gap_s,
)
from image_as_imu_ros.types import EstimateStatus, Frame, MotionEstimate

MIN_SIMILARITY = 0.5
"""Least correlation of two aligned frames that counts as a match."""
MIN_SIMILARITY_WITHOUT_POINTS = 0.9
"""The same where too few points are found again to confirm it."""
UNMODELLED_TURN, UNMODELLED_TURN_RAD = 0.015, 0.0005
UNMODELLED_WAY = 0.2
"""Error of an aligned rotation and translation, relative to each, and at least so much."""
EXPECTED_CHANGE, EXPECTED_CHANGE_RAD_S = 2.0, 0.1
"""Variance of a change of rate that rows may show, relative to the filter's; at least so much."""
UNMODELLED_BLUR, UNMODELLED_BLUR_RAD_S, UNMODELLED_BLUR_VELOCITY = 0.05, 0.1, 0.2
"""Error of a rate by an image's own blur, relative to it and beyond; of its velocity, 1/s."""
UNMODELLED_CHANGE_RAD_S = 0.3
"""Error of such a change: depths and accelerations that rows see pass for it."""
UNMODELLED_COMPARISON, UNMODELLED_COMPARISON_RAD_S = 0.035, 0.03
"""Error of a rate by compared blurs, relative to it, and beyond that."""
LINEARISATIONS, LINEAR_WITHIN = 2, 0.02
"""Most times that blurs are compared, and relative change of the rates that needs no other."""
UNEVEN_GAPS = 0.2
"""Relative difference of two gaps between frames from which on Simpson's rule does not hold."""
GUESSED_EXPOSURE_S = 0.01
"""Exposure that an estimate of it starts from."""
GUESSED_EXPOSURE_STD = 1.0
"""Of its logarithm: a tenth of that and ten times that are two sigma away."""
KNOWN_EXPOSURE_STD = 0.15
"""Of its logarithm, below which an estimated exposure counts as known."""


class StreamEstimator:
    """
    Joins a camera's images, in time order, into signed motion.

    `alignment` is the motion that was found between the last two images; None where they did not
    match or the last one began anew.

    :param gyroscope: estimates single images; may be shared by several streams
    :raises ConfigError: if bands of rows are asked for that its network does not tell
    """

    def __init__(self, gyroscope: VisualGyroscope, config: StreamConfig = StreamConfig()) -> None:
        if config.subframe_rates > 1 and not gyroscope.tells_rows:
            raise ConfigError(f'subframe_rates: {config.subframe_rates}, but the network '
                              f'"{gyroscope.weights.name}" measures whole images only; use other '
                              'weights or set it to 0')
        self.gyroscope = gyroscope
        self.config = config
        self._estimates_exposure = config.exposure_mode == 'estimate'
        self._estimates_readout = config.readout_mode == 'estimate'
        self._band_estimator = BandEstimator(gyroscope, config)
        self.bands: tuple[MotionEstimate, ...] = ()
        """Estimates of the last frame's bands of rows, in time order."""
        self.reset()

    @property
    def exposure_time_s(self) -> tuple[float, float] | None:
        """Estimated exposure and its standard deviation, s; None where it is not estimated."""
        if not self._estimates_exposure:
            return None
        exposure_s = GUESSED_EXPOSURE_S * self._gain.value
        return exposure_s, exposure_s * float(np.sqrt(self._gain.variance))

    @property
    def readout_time_s(self) -> tuple[float, float] | None:
        """Estimated readout time and its standard deviation, s; None where none is estimated."""
        if not self._estimates_readout:
            return None
        return self._readout.value_s, self._readout.variance ** 0.5

    @property
    def _knows_exposure(self) -> bool:
        """Whether an estimated exposure is certain enough to be told."""
        return self._gain.variance < KNOWN_EXPOSURE_STD ** 2

    @property
    def scene_depth(self) -> tuple[float, float]:
        """Distance of the last frame's scene, m, and its relative error."""
        return self.gyroscope.depth_of(self._previous)

    @property
    def filter_step(self) -> FilterStep:
        """The filter's state after the last frame, for a smoother."""
        return self._filter.step

    def reset(self) -> None:
        """Forget all earlier images: the next one may have any stamp."""
        self._gain = BlurGain(GUESSED_EXPOSURE_STD) if self._estimates_exposure else BlurGain()
        self._lever = LeverArm()
        self._readout = ReadoutTime()
        self._restart()

    def _restart(self) -> None:
        """Forget the motion, not what is known of the camera."""
        self._band_estimator.reset()
        self.alignment: Alignment | None = None
        self._previous: BlurMeasurement | None = None
        self._aligner: PairAligner | None = None
        self._comparison: RelativeBlurSolver | None = None
        self._filter = MotionFilter(self._lever)
        self._past_derivatives = np.zeros((2, 3))
        self._past_velocity = np.zeros(3)
        self._row_trust = RowTrust()
        self._telling_rows: Straightener | None = None
        self._gain_history: list[tuple[np.ndarray, np.ndarray, float]] = []

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
        with self.gyroscope.threads.working():
            return self._join(observation)

    def _join(self, observation: BlurObservation) -> MotionEstimate:
        begin = time.perf_counter()
        if self._estimates_exposure:  # the gain of the guess leads to the true one
            observation = replace(observation, frame=replace(
                observation.frame, exposure_time_s=GUESSED_EXPOSURE_S))
        estimates_readout = self._estimates_readout and not observation.frame.readout_time_s
        if estimates_readout:
            observation = replace(observation, frame=replace(
                observation.frame, readout_time_s=self._readout.value_s))
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
                self._restart()
                previous = elapsed_s = None
        if previous is not None:
            self._filter.predict(elapsed_s)
        exposure_s = frame.exposure_time_s
        start = None
        if previous is not None and exposure_s is not None:
            start = self._filter.twist * exposure_s * self._gain.value
        predicted = time.perf_counter()
        measurement = self.gyroscope.solve(observation, start)
        solved = time.perf_counter()
        alignment = None
        if previous is not None:
            alignment = self._align(previous, measurement, elapsed_s, estimates_readout)
            rates = [motion[:3] for motion in self._unsigned_motion(measurement)]
            if alignment is not None:
                rates.append(alignment.motion[:3] / elapsed_s)
            if rates:
                self._filter.see_shaking(max(rates, key=np.linalg.norm))
            if alignment is not None:
                self._update_by_alignment(alignment, elapsed_s)
            if measurement.solution is not None and exposure_s is not None:
                expected = Expectation(self._filter.rate * exposure_s * self._gain.value,
                                       self._filter.rate_covariance * exposure_s ** 2)
                measurement = replace(measurement, solution=measurement.solution.given(expected))
        aligned = time.perf_counter()
        estimate = self._fuse(measurement, alignment, elapsed_s)
        if previous is not None:
            self._filter.remember(elapsed_s)
        estimate = self._with_exposure(estimate)
        self.bands = ()
        if (self.config.subframe_rates > 1 and frame.readout_time_s
                and (not estimates_readout or self._readout.known)):
            self.bands = self._band_estimator.join(
                previous, observation, measurement, estimate, self._gain,
                predicts=self.config.unresolved_sign != 'drop')
        else:
            self._band_estimator.reset()
        self._previous, self.alignment = measurement, alignment
        self._past_derivatives = self._filter.derivatives[1:]
        self._past_velocity = self._filter.twist[3:]
        timing = {**measurement.timing_ms, 'align': 1e3 * (aligned - solved),
                  'fuse': 1e3 * (predicted - begin + time.perf_counter() - aligned)}
        self.bands = tuple(replace(band, timing_ms=timing) for band in self.bands)
        return replace(estimate, timing_ms=timing)

    def _learn_gain(self) -> None:
        """Compare the blurs of three frames with the turn between them, by Simpson's rule."""
        if len(self._gain_history) < 3:
            return
        (first, _, _), (middle, turn, gap_s), (last, next_turn, next_gap_s) = self._gain_history
        if abs(gap_s - next_gap_s) < UNEVEN_GAPS * gap_s:
            self._gain.observe((first + 4.0 * middle + last) / 6.0,
                               (turn + next_turn) / (gap_s + next_gap_s))

    def _compare_blurs(self, current: BlurMeasurement, alignment: Alignment) -> None:
        """Update the filter by how this image's blur and the last one's belong together."""
        previous = self._previous
        if len(self._gain_history) < 2:  # the last blur was not used
            return
        if self._comparison is None:
            self._comparison = RelativeBlurSolver(current.intrinsics, current.usable)
        then, now = map(self._shown_exposure_s, (previous, current))
        to_motion = np.repeat([then, now], [3, 6])
        expected = self._filter.mean, self._filter.covariance
        # rows of a rolling shutter see other rates: there a second look makes it worse
        for _ in range(1 if self._row_trust else LINEARISATIONS):
            rates, twist = self._filter.two_rates, self._filter.twist
            relative = self._comparison.compare(
                previous.working_image, current.working_image, alignment,
                then * np.concatenate([rates[:3], self._past_velocity]), now * twist)
            if relative is None:
                return
            unmodelled = np.zeros((9, 9))
            unmodelled[3:6, 3:6] = np.eye(3) * unmodelled_variance(
                twist[:3], UNMODELLED_COMPARISON, UNMODELLED_COMPARISON_RAD_S)
            self._filter.mean, self._filter.covariance = expected
            self._filter.update_rate_and_twist(
                to_motion * relative.vector,
                np.outer(to_motion, to_motion) * relative.information, unmodelled)
            moved = np.linalg.norm(self._filter.two_rates - rates)
            if moved < LINEAR_WITHIN * np.linalg.norm(rates):
                return

    def _with_exposure(self, estimate: MotionEstimate) -> MotionEstimate:
        """State the exposure where it is estimated, and leave the blur out before it is known."""
        if not self._estimates_exposure:
            return estimate
        if self._knows_exposure:
            return replace(estimate, exposure_time_s=self.exposure_time_s[0])
        if estimate.usable:
            return replace(estimate, exposure_time_s=None)
        return _nothing(estimate.stamp_ns)

    def _align(self, previous: BlurMeasurement, current: BlurMeasurement, elapsed_s: float,
               estimates_readout: bool) -> Alignment | None:
        """Motion since the last frame, started from both blurs with either sign."""
        self._telling_rows = None
        if previous.solution is None or current.solution is None:  # a blank image matches any
            return None
        if self._aligner is None:
            self._aligner = PairAligner(current.intrinsics, current.usable)
        seeds = [np.zeros(6), self._filter.moved]
        blurs = []
        for measurement in (previous, current):
            blurs.append(measurement.solution.motion if measurement.informative else None)
            for motion in self._unsigned_motion(measurement):
                seeds += [motion * elapsed_s, -motion * elapsed_s]
        sides = self._sides(current)
        straightener = self._straightener(current, estimates_readout, sides)
        alignment = self._aligner.align(previous.working_image, current.working_image, *blurs,
                                        seeds, current.nearness, self._expected(current, sides),
                                        straightener)
        if alignment is None or alignment.similarity < (
                MIN_SIMILARITY_WITHOUT_POINTS if alignment.matches is None else MIN_SIMILARITY):
            return None
        if alignment.straightened is not None:
            by_rows = alignment.straightened
            if estimates_readout:
                self._readout.observe(by_rows.rows[-1], by_rows.joint_covariance[-1, -1])
            self._row_trust.judge(alignment.noise_px, by_rows.noise_px)
            if self._row_trust:
                if not estimates_readout or self._readout.certain:
                    self._telling_rows = straightener
                return by_rows
        if estimates_readout and not self._row_trust:
            return alignment
        turn, way = np.split(alignment.motion, 2)
        turn = turn * (elapsed_s / effective_gap_s(turn, elapsed_s, current.frame))
        return replace(alignment, motion=np.concatenate([turn, way]))

    def _sides(self, current: BlurMeasurement) -> list[tuple[np.ndarray, MotionFilter]]:
        """Rates (3,), of either sign, that a blur tells, and the filter with each taken in."""
        sides = []
        for motion in self._unsigned_motion(current):
            for rate in (motion[:3], -motion[:3]):
                ahead = copy.copy(self._filter)
                self._update_by_blur(ahead, current, rate)
                sides.append((rate, ahead))
        return sides

    def _expected(self, current: BlurMeasurement,
                  sides: list[tuple[np.ndarray, MotionFilter]]) -> list[ExpectedMotion]:
        """Motions since the last frame that the filter expects, on either side of the blur."""
        if not sides:
            return [ExpectedMotion(*self._filter.expected_motion)]
        to_rate = 1.0 / self._shown_exposure_s(current)
        covariance = to_rate ** 2 * current.solution.covariance[:3, :3]
        return [ExpectedMotion(*ahead.expected_motion,
                               0.5 * self._filter.likelihood(rate, covariance))
                for rate, ahead in sides]

    def _straightener(self, current: BlurMeasurement, estimates_readout: bool,
                      sides: list[tuple[np.ndarray, MotionFilter]]) -> Straightener | None:
        """What moves points to where all rows exposed at once would show them, if it matters."""
        if estimates_readout:
            self._readout.drift()
        if not (self._readout.matters if estimates_readout else current.frame.readout_time_s):
            return None
        _, ahead = max(sides, key=lambda side: side[0] @ self._filter.rate,
                       default=(None, self._filter))
        before = np.vstack([ahead.two_rates[:3], self._past_derivatives])
        change_covariance = EXPECTED_CHANGE * ahead.change_covariance \
            + EXPECTED_CHANGE_RAD_S ** 2 * np.eye(3)
        return Straightener(current.intrinsics, current.frame, before, ahead.derivatives,
                            inverse(change_covariance),
                            self._readout.variance if estimates_readout else None)

    def _unsigned_motion(self, measurement: BlurMeasurement) -> list[np.ndarray]:
        """Rotation and translation in a second, (6,), up to their sign, where a blur tells it."""
        if not measurement.informative or measurement.frame.exposure_time_s is None:
            return []
        return [measurement.solution.motion / self._shown_exposure_s(measurement)]

    def _shown_exposure_s(self, measurement: BlurMeasurement) -> float:
        """Exposure by the length of the blur: as it is told, times the gain."""
        return measurement.frame.exposure_time_s * self._gain.value

    def _fuse(self, measurement: BlurMeasurement, alignment: Alignment | None,
              elapsed_s: float | None) -> MotionEstimate:
        """Resolve the blur's sign, update the filter and read it out."""
        frame = measurement.frame
        history, self._gain_history = self._gain_history, []
        blurred = measurement.informative and frame.exposure_time_s is not None
        if frame.exposure_time_s is not None:
            estimate = self.gyroscope.to_estimate(measurement)
        else:
            estimate = _nothing(frame.stamp_ns)
        blur_rate, margin = estimate.angular_velocity_rad_s, 0.0
        if blurred and (elapsed_s is not None or self._estimates_exposure):
            estimate = _scaled(estimate, 1.0 / self._gain.value, self._gain.variance)
        if blurred and elapsed_s is not None:
            evidence = self._evidence_for_sign(measurement, estimate)
            margin = abs(evidence)
            if evidence < 0:
                estimate, blur_rate = estimate.negated(), -blur_rate
        resolved = margin >= RESOLVED_MARGIN
        if resolved:
            self._filter.see_blur(estimate.angular_velocity_rad_s, estimate.covariance[3:, 3:])
            self._update_by_blur(self._filter, measurement, estimate.angular_velocity_rad_s)
            if alignment is not None:
                self._gain_history = [*history[-2:], (blur_rate, alignment.motion[:3], elapsed_s)]
                self._learn_gain()
                self._compare_blurs(measurement, alignment)
        elif blurred and elapsed_s is not None:
            self._filter.update_of_either_sign(estimate.angular_velocity_rad_s,
                                               estimate.covariance[3:, 3:])
        inflates = blurred and self.config.unresolved_sign == 'inflate'
        if elapsed_s is None:
            return replace(estimate.of_either_sign(), sign_resolved=True,
                           status=EstimateStatus.PREDICTED) if inflates else estimate
        if alignment is not None and not resolved:
            estimate = replace(
                estimate,
                quality=max(estimate.quality, alignment.similarity),
                inlier_share=alignment.inlier_share)
        if resolved or alignment is not None:
            status = EstimateStatus.OK
        elif inflates or (
                self.config.unresolved_sign != 'drop'
                and np.trace(self._filter.rate_covariance) < 3 * MAX_SPEED_STD_RAD_S ** 2):
            status = EstimateStatus.PREDICTED
        else:
            return estimate
        return replace(
            with_twist(estimate, self._filter.twist,
                       self._filter.variance_factor * self._filter.twist_covariance,
                       self.gyroscope.depth_of(measurement)),
            sign_resolved=True, sign_margin=margin, status=status)

    def _evidence_for_sign(self, measurement: BlurMeasurement, estimate: MotionEstimate) -> float:
        """Log-likelihood ratio of a blur's estimate, as it is signed, against its reverse."""
        if self._estimates_exposure and not self._knows_exposure:
            # the sign is then in the direction, whatever the length
            unscaled = self.gyroscope.to_estimate(measurement)
            length = np.linalg.norm(self._filter.rate) \
                / (np.linalg.norm(unscaled.angular_velocity_rad_s) + 1e-9)
            estimate = _scaled(unscaled, float(length), 0.0)
        rate, covariance = estimate.angular_velocity_rad_s, estimate.covariance[3:, 3:]
        return 0.5 * (self._filter.likelihood(-rate, covariance)
                      - self._filter.likelihood(rate, covariance))

    def _update_by_alignment(self, alignment: Alignment, elapsed_s: float) -> None:
        """Take in the motion since the last frame, also as a witness of the lever arm."""
        turn, way = np.split(alignment.motion, 2)
        unmodelled = np.diag(np.repeat([unmodelled_turn(turn), UNMODELLED_WAY ** 2 * (way @ way)],
                                       3))
        told = without_prior(alignment.motion, alignment.covariance, alignment.translation_spread)
        self._filter.see_turn(turn, alignment.covariance[:3, :3] + unmodelled[:3, :3])
        self._filter.learn_lever(elapsed_s, turn, *told, unmodelled)
        if self._telling_rows is None:
            self._filter.update_motion(MOVED, *told, unmodelled)
            return
        unmodelled = np.pad(unmodelled, (0, 3))
        unmodelled[6:, 6:] = UNMODELLED_CHANGE_RAD_S ** 2 * np.eye(3)
        self._filter.update_motion_and_change(*self._telling_rows.told(alignment), unmodelled)

    def _update_by_blur(self, motion_filter: MotionFilter, measurement: BlurMeasurement,
                        rate: np.ndarray) -> None:
        """Have a filter take in a blur, on the side of a rate, (3,)."""
        solution = measurement.solution
        to_twist = 1.0 / self._shown_exposure_s(measurement)
        twist = np.copysign(to_twist, solution.motion[:3] @ rate) * solution.motion
        unmodelled = np.diag(np.repeat([
            unmodelled_variance(twist[:3], UNMODELLED_BLUR, UNMODELLED_BLUR_RAD_S),
            UNMODELLED_BLUR_VELOCITY ** 2], 3))
        response = blur_response(measurement.intrinsics, measurement.frame) \
            if self._row_trust else NOTHING
        motion_filter.update_motion(TWIST, *without_prior(
            twist,
            to_twist ** 2 * solution.covariance + self._gain.variance * np.outer(twist, twist),
            to_twist ** 2 * solution.translation_spread), unmodelled, response)


def unmodelled_variance(vector: np.ndarray, relative: float, beyond: float) -> float:
    """Variance of what each part of a vector (3,) errs by beyond its covariance."""
    return relative ** 2 * float(vector @ vector) + beyond ** 2


def unmodelled_turn(turn: np.ndarray) -> float:
    """The same of an aligned rotation (3,), rad^2."""
    return unmodelled_variance(turn, UNMODELLED_TURN, UNMODELLED_TURN_RAD)


def with_twist(estimate: MotionEstimate, twist: np.ndarray, covariance: np.ndarray,
               depth: tuple[float, float]) -> MotionEstimate:
    """
    Let an estimate tell what a filter does.

    :param twist, covariance: (6,), (6, 6), as of `MotionFilter.twist`
    :param depth: of the scene, m, and its relative error
    """
    depth_m, depth_error = depth
    order = np.r_[3:6, 0:3]
    to_metres = np.repeat([depth_m, 1.0], 3)
    twist = to_metres * twist[order]
    covariance = covariance[np.ix_(order, order)] * np.outer(to_metres, to_metres)
    covariance[:3, :3] += depth_error ** 2 * np.outer(twist[:3], twist[:3])
    return replace(estimate, linear_velocity_m_s=twist[:3], angular_velocity_rad_s=twist[3:],
                   covariance=0.5 * (covariance + covariance.T))


def _nothing(stamp_ns: int) -> MotionEstimate:
    """Estimate of a motion of which nothing is known."""
    return MotionEstimate(stamp_ns, None, np.zeros(3), np.zeros(3), unknown_covariance(), False,
                          0.0, 0.0, 0.0, 0.0, EstimateStatus.NO_SIGNAL)


def _scaled(estimate: MotionEstimate, factor: float, log_variance: float) -> MotionEstimate:
    """Both velocities times a factor whose logarithm has the given variance."""
    twist = factor * np.concatenate([estimate.linear_velocity_m_s,
                                     estimate.angular_velocity_rad_s])
    return replace(estimate, linear_velocity_m_s=twist[:3], angular_velocity_rad_s=twist[3:],
                   covariance=factor ** 2 * estimate.covariance
                   + log_variance * np.outer(twist, twist))
