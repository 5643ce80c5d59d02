"""
Several rates from each image of a rolling shutter, whose rows are exposed one after another.

A Kalman filter goes from band of rows to band of rows. Each band's blur tells the rate at its
time, and its alignment with the image before the turn since the same scene was last exposed.
The rates of a frame stay in the filter's state until its last band, so that every one of them
knows the whole frame, and no later one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from image_as_imu_ros.config import StreamConfig
from image_as_imu_ros.estimator import BlurMeasurement, BlurObservation, VisualGyroscope
from image_as_imu_ros.geometry.alignment import Alignment, Level, field_of_pixels
from image_as_imu_ros.motion_filter import (
    MAX_SPEED_STD_RAD_S,
    RESOLVED_MARGIN,
    BlurGain,
    MotionFilter,
    mahalanobis,
    of_each_axis,
    singer,
    updated,
)
from image_as_imu_ros.row_motion import row_offset_s
from image_as_imu_ros.types import CameraIntrinsics, EstimateStatus, Frame, MotionEstimate

REDUCTIONS = (4, 2)
"""Of the working image, at which bands are aligned one after the other."""
ITERATIONS = 4
MIN_PIXELS = 60
"""Fewest pixels of a band that are aligned."""
MIN_SIMILARITY = 0.5
"""Least correlation of two aligned bands that counts as a match."""
TEMPLATE_ROWS = 10
"""Height of the strip that is searched for where a band is lost, at the coarser reduction."""
LOST_PX = 3.0
"""Uncertainty of an expected turn, at that reduction, from which on it is lost."""
ALIGNMENT_ERROR_PX = 0.5
"""Error of an aligned band that all its pixels share."""
ALIGNMENT_SCALE_STD = 0.03
"""The same, relative to the turn: depths differ, and translation looks like rotation."""
LENGTH_STD = 0.1
"""Of the logarithm of the blur's length in a band."""
ANCHOR_STD_RAD_S = 0.7
"""Of the bands' mean rate about the whole frame's."""
START_STD_RAD_S = 2.5
"""Of the first band's rate about the whole frame's, where that has a sign."""
ASTRAY = 1.5
"""Bands that are further from the frame's rate than that, relative to it, begin anew."""
START_ACCELERATION_RAD_S2 = 200.0
ACCELERATION_PER_RATE = 35.0
MEMORY_FRAMES = 4.0
"""Frames over which the size of the acceleration is remembered."""


class BandFilter:
    """
    Kalman filter of angle, rate and acceleration that keeps copies of past angles and rates.

    The state is angle, rate, acceleration, then the copies, three numbers each.

    :param rate, covariance: (3,), (3, 3), at the start
    :param acceleration: rms, rad/s^2
    """

    CORRELATION_S = 0.03

    def __init__(self, rate: np.ndarray, covariance: np.ndarray, acceleration: float) -> None:
        self.mean = np.concatenate([np.zeros(3), rate, np.zeros(3)])
        self.covariance = np.zeros((9, 9))
        self.covariance[3:6, 3:6] = covariance
        self.covariance[6:, 6:] = np.eye(3) * acceleration ** 2

    def predict(self, elapsed_s: float, acceleration: float) -> None:
        """Go on by some time."""
        transition, noise = singer(elapsed_s, acceleration, self.CORRELATION_S)
        full = np.eye(len(self.mean))
        full[:9, :9] = of_each_axis(transition)
        self.mean = full @ self.mean
        self.covariance = full @ self.covariance @ full.T
        self.covariance[:9, :9] += of_each_axis(noise)

    def copy(self, start: int) -> int:
        """Keep a copy of state entries start to start + 3; tells where it begins."""
        self._transform(np.concatenate([np.eye(len(self.mean)),
                                        np.eye(len(self.mean))[start:start + 3]]))
        return len(self.mean) - 3

    def forget_all_but(self, starts: list[int]) -> None:
        """Drop all copies but those, of angles, and count angles from the first of them."""
        picked = np.eye(len(self.mean))
        rows = np.concatenate([picked[:9], *(picked[start:start + 3] for start in starts)])
        for start in (0, *range(9, len(rows), 3)):
            rows[start:start + 3] -= picked[starts[0]:starts[0] + 3]
        self._transform(rows)

    def _transform(self, matrix: np.ndarray) -> None:
        self.mean = matrix @ self.mean
        self.covariance = matrix @ self.covariance @ matrix.T

    def difference(self, earlier: list[tuple[float, int]]) -> np.ndarray:
        """Measurement matrix (3, n) of the angle since a weighted mean of copies of it."""
        matrix = np.zeros((3, len(self.mean)))
        matrix[:, :3] = np.eye(3)
        for weight, start in earlier:
            matrix[:, start:start + 3] -= weight * np.eye(3)
        return matrix

    def rate_matrix(self) -> np.ndarray:
        """Measurement matrix (3, n) of the present rate."""
        return np.eye(len(self.mean))[3:6]

    def distance(self, matrix: np.ndarray, value: np.ndarray, covariance: np.ndarray) -> float:
        """Squared Mahalanobis distance of a measurement."""
        return mahalanobis(value - matrix @ self.mean,
                           matrix @ self.covariance @ matrix.T + covariance)

    def update(self, matrix: np.ndarray, value: np.ndarray, covariance: np.ndarray) -> None:
        """Take in a measurement, trusted less the further it is outside the gate."""
        self.mean, self.covariance, _ = updated(self.mean, self.covariance, matrix, value,
                                                covariance)


@dataclass(frozen=True)
class _Pyramid:
    """One image pair at one reduction."""

    scale: int
    later: np.ndarray
    level: Level
    intrinsics: CameraIntrinsics
    field: np.ndarray
    """(N, 2, 3), motion field of rotations at the level's pixels."""

    def matched(self, rows: slice) -> np.ndarray:
        """The pan (3,) under which the middle of a band is found in the earlier image, rad."""
        height, width = self.later.shape
        middle = int(0.5 * (rows.start + rows.stop) / self.scale)
        top = int(np.clip(middle - TEMPLATE_ROWS // 2, 0, height - TEMPLATE_ROWS))
        left = width // 4
        template = self.later[top:top + TEMPLATE_ROWS, left:width - left]
        scores = cv2.matchTemplate(self.level.earlier, template, cv2.TM_CCOEFF_NORMED)
        _, _, _, (x, y) = cv2.minMaxLoc(scores)
        return np.array([(top - y) / self.intrinsics.fy_px, (x - left) / self.intrinsics.fx_px,
                         0.0])


class BandEstimator:
    """
    Follows the rate through the bands of a rolling shutter's images.

    `subframe_rates` of the config are the bands per image.
    """

    def __init__(self, gyroscope: VisualGyroscope, config: StreamConfig) -> None:
        self._gyroscope = gyroscope
        self._count = config.subframe_rates
        self.reset()

    def reset(self) -> None:
        """Forget all earlier images."""
        self._filter: BandFilter | None = None
        self._times_s = np.zeros(0)
        self._now_s = 0.0
        self._acceleration = 0.0
        self._blur: np.ndarray | None = None
        self._begun = False
        """Whether any band has had a sign yet."""

    def join(self, previous: BlurMeasurement | None, observation: BlurObservation,
             current: BlurMeasurement, estimate: MotionEstimate, gain: BlurGain,
             predicts: bool) -> tuple[MotionEstimate, ...]:
        """
        Take in the next image.

        :param previous, current: measurements of the image before and of this one
        :param estimate: of the whole frame, which tells what bands do not
        :returns: one estimate per band, in time order; none before the sign is first known
        """
        frame, intrinsics = current.frame, current.intrinsics
        edges = np.linspace(0.0, intrinsics.height_px, self._count + 1)
        # counted from the frame before, whose stamp is exact
        stamp_s = 0.0 if previous is None else (frame.stamp_ns - previous.frame.stamp_ns) * 1e-9
        times_s = stamp_s + row_offset_s(0.5 * (edges[:-1] + edges[1:]) - 0.5, intrinsics, frame)
        begins = self._filter is None or previous is None
        if begins:
            self.reset()
            self._acceleration = START_ACCELERATION_RAD_S2
            rate, deviation = np.zeros(3), MotionFilter.INITIAL_RATE_RAD_S
            if estimate.usable:
                rate, deviation = estimate.angular_velocity_rad_s, START_STD_RAD_S
            self._filter = BandFilter(rate, deviation ** 2 * np.eye(3), self._acceleration)
            self._now_s = times_s[0]
        pyramids = self._pyramids(previous, current) if len(self._times_s) else []
        angles, rates, margins, informed, speeds = [], [], [], [], []
        blur = self._blur
        for band, time_s in enumerate(times_s):
            # never back, where the readout lasts longer than the frame interval
            self._filter.predict(max(time_s - self._now_s, 0.0), self._acceleration)
            self._now_s = time_s
            rows = slice(edges[band], edges[band + 1])
            aligned = bool(pyramids) and self._align(pyramids, rows, time_s, stamp_s, frame, blur)
            margin, blur = self._take_blur(observation, current, rows, gain, blur)
            speeds.append(blur)
            margins.append(margin)
            informed.append(aligned or margin >= RESOLVED_MARGIN)
            angles.append(self._filter.copy(0))
            rates.append(self._filter.copy(3))
        if not begins and self._is_astray(rates, estimate):
            self.reset()
            return self.join(previous, observation, current, estimate, gain, predicts)
        if estimate.status is EstimateStatus.OK:
            self._anchor(rates, estimate)
        estimates = tuple(
            self._read_out(estimate, band, rates[band], frame.stamp_ns + round(
                (times_s[band] - stamp_s) * 1e9), margins[band], informed[band], predicts)
            for band in range(self._count))
        self._blur = blur
        self._adapt(np.stack([self._filter.mean[start:start + 3] for start in rates]), times_s,
                    speeds)
        self._filter.forget_all_but(angles)
        self._times_s, self._now_s = times_s - stamp_s, self._now_s - stamp_s
        if self._begun and all(each.status is EstimateStatus.SIGN_UNRESOLVED
                               for each in estimates):
            self.reset()
        self._begun |= any(informed)
        return estimates if self._begun else ()

    def _anchor(self, rates: list[int], estimate: MotionEstimate) -> None:
        """Let the mean of the bands be near the whole frame's rate."""
        state = np.eye(len(self._filter.mean))
        matrix = np.mean([state[start:start + 3] for start in rates], axis=0)
        self._filter.update(matrix, estimate.angular_velocity_rad_s,
                            estimate.covariance[3:, 3:] + ANCHOR_STD_RAD_S ** 2 * np.eye(3))

    def _is_astray(self, rates: list[int], estimate: MotionEstimate) -> bool:
        """Whether the bands in the middle tell another motion than the whole frame."""
        middle = np.mean([self._filter.mean[start:start + 3] for start in (
            rates[(self._count - 1) // 2], rates[self._count // 2])], axis=0)
        whole = estimate.angular_velocity_rad_s
        speed = float(np.linalg.norm(whole))
        return (estimate.status is EstimateStatus.OK and speed > BlurGain.MIN_RATE_RAD_S
                and float(np.linalg.norm(middle - whole)) > ASTRAY * speed)

    def _read_out(self, estimate: MotionEstimate, band: int, start: int, stamp_ns: int,
                  margin: float, informed: bool, predicts: bool) -> MotionEstimate:
        covariance = estimate.covariance.copy()
        covariance[:3, 3:] = covariance[3:, :3] = 0.0
        covariance[3:, 3:] = self._filter.covariance[start:start + 3, start:start + 3]
        certain = np.trace(covariance[3:, 3:]) < 3 * MAX_SPEED_STD_RAD_S ** 2
        status = EstimateStatus.OK if informed else EstimateStatus.PREDICTED
        return replace(
            estimate, stamp_ns=stamp_ns, covariance=covariance,
            sign_resolved=bool(certain and (informed or predicts)),
            angular_velocity_rad_s=self._filter.mean[start:start + 3], sign_margin=margin,
            status=status if certain else EstimateStatus.SIGN_UNRESOLVED,
            row_band_index=band, row_band_count=self._count)

    def _adapt(self, rates: np.ndarray, times_s: np.ndarray,
               blurs: list[np.ndarray | None]) -> None:
        """Let the size of the acceleration follow what this frame's bands show."""
        slopes = np.diff(rates, axis=0) / np.diff(times_s)[:, None]
        speeds = [np.linalg.norm(blur) for blur in blurs if blur is not None]
        speed = np.sqrt(np.mean(np.square(speeds)) / 3) if speeds else 0.0
        shown = ACCELERATION_PER_RATE * speed + np.sqrt((slopes ** 2).mean(axis=0).max()) + 1.0
        share = np.exp(-1.0 / MEMORY_FRAMES)
        self._acceleration = float(np.sqrt(
            share * self._acceleration ** 2 + (1.0 - share) * shown ** 2))

    def _take_blur(self, observation: BlurObservation, current: BlurMeasurement, rows: slice,
                   gain: BlurGain,
                   last: np.ndarray | None) -> tuple[float, np.ndarray | None]:
        """
        Update by a band's blur.

        :param last: blur of the band before, (3,) rad/s, of either sign
        :returns: the margin of its sign, and the rate that it tells, of either sign
        """
        exposure_s = current.frame.exposure_time_s
        if exposure_s is None or not current.informative:
            return 0.0, None
        to_rate = 1.0 / (exposure_s * gain.value)
        matrix = self._filter.rate_matrix()
        expected = np.pad(self._filter.mean[3:6] / to_rate, (0, 3))
        starts = [expected, current.solution.motion]
        if last is not None:
            starts.append(np.pad(last / to_rate, (0, 3)))
        readings = []
        for hill in self._gyroscope.solve_rows(observation, rows, np.stack(starts)):
            rate = hill.motion[:3] * to_rate
            covariance = hill.covariance[:3, :3] * to_rate ** 2 \
                + (LENGTH_STD ** 2 + gain.variance) * np.outer(rate, rate)
            against = [0.5 * self._filter.distance(matrix, sign * rate, covariance)
                       for sign in (1.0, -1.0)]
            sign = 1.0 if against[0] <= against[1] else -1.0
            readings.append((hill.log_posterior - min(against), sign * rate, covariance,
                             abs(against[1] - against[0])))
        if not readings:
            return 0.0, None
        _, rate, covariance, margin = max(readings, key=lambda reading: reading[0])
        if margin >= RESOLVED_MARGIN:
            self._filter.update(matrix, rate, covariance)
        return margin, rate

    def _pyramids(self, previous: BlurMeasurement, current: BlurMeasurement) -> list[_Pyramid]:
        if previous.solution is None or current.solution is None:  # a blank image matches any
            return []
        pyramids = []
        for scale in REDUCTIONS:
            size = (current.intrinsics.width_px // scale, current.intrinsics.height_px // scale)
            reduced = current.intrinsics.resized(*size)
            field = field_of_pixels(reduced)
            earlier, later = (cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in (
                previous.working_image, current.working_image))
            level = Level(earlier, later, reduced, field)
            pyramids.append(_Pyramid(scale, later, level, reduced, np.ascontiguousarray(
                field[:, :3, level.chosen].transpose(2, 0, 1))))
        return pyramids

    def _align(self, pyramids: list[_Pyramid], rows: slice, time_s: float, stamp_s: float,
               frame: Frame, blur: np.ndarray | None) -> bool:
        """Update by the turn since the band's scene was exposed in the frame before."""
        expected = self._turn_since(time_s - stamp_s)
        matrix = self._filter.difference(self._weights(time_s - stamp_s))
        spread = matrix @ self._filter.covariance @ matrix.T
        starts = [expected]
        if np.trace(spread) * pyramids[0].intrinsics.fx_px ** 2 > LOST_PX ** 2:
            starts.append(pyramids[0].matched(rows))
            if blur is not None:
                starts += [blur * stamp_s, -blur * stamp_s]
        for pyramid in pyramids:
            y = pyramid.level.pixels[1]
            full_size = (y + 0.5) * pyramid.scale
            chosen = (full_size >= rows.start) & (full_size < rows.stop)
            if chosen.sum() < MIN_PIXELS:
                return False
            field, y = pyramid.field[chosen], y[chosen]
            later_s = stamp_s + row_offset_s(y, pyramid.intrinsics, frame)
            best = None
            for turn in starts:
                seen_at = y - (field @ turn)[:, 1]
                seen_s = row_offset_s(seen_at, pyramid.intrinsics, frame)
                mean_s = float(np.clip(seen_s.mean(), self._times_s[0], self._times_s[-1]))
                # rows of a band turned by a little more or less than its middle
                within = (later_s - time_s)[:, None] * self._filter.mean[3:6] \
                    - (seen_s - mean_s)[:, None] * self._rate_before(mean_s)
                offset = np.einsum('nij,nj->in', field, within)
                found = pyramid.level.part(chosen, offset).refine(np.pad(turn, (0, 3)), ITERATIONS)
                if found is not None and (best is None
                                          or found.similarity > best[0].similarity):
                    best = found, mean_s
            if best is None or best[0].similarity < MIN_SIMILARITY:
                return False
            starts = [best[0].motion[:3]]
        self._take_turn(best[0], self._weights(best[1]), pyramids[-1].intrinsics)
        return True

    def _take_turn(self, found: Alignment, earlier: list[tuple[float, int]],
                   intrinsics: CameraIntrinsics) -> None:
        turn = found.motion[:3]
        shared = (ALIGNMENT_ERROR_PX / intrinsics.fx_px) ** 2 \
            + ALIGNMENT_SCALE_STD ** 2 * float(turn @ turn)
        # of the rotation alone, as if the translation were known: prior and scale stand for it
        covariance = np.linalg.inv(np.linalg.inv(found.covariance)[:3, :3])
        self._filter.update(self._filter.difference(earlier), turn,
                            covariance + shared * np.eye(3))

    def _weights(self, time_s: float) -> list[tuple[float, int]]:
        """The angle of the frame before at a time since its stamp, as a mean of copies."""
        after = int(np.searchsorted(self._times_s, time_s).clip(1, len(self._times_s) - 1))
        span_s = self._times_s[after] - self._times_s[after - 1]
        share = float((time_s - self._times_s[after - 1]) / span_s)
        return [(1.0 - share, 9 + 3 * (after - 1)), (share, 9 + 3 * after)]

    def _turn_since(self, time_s: float) -> np.ndarray:
        """Expected turn (3,) since a time of the frame before, rad."""
        return self._filter.difference(self._weights(time_s)) @ self._filter.mean

    def _rate_before(self, time_s: float) -> np.ndarray:
        """Rate (3,) at a time of the frame before, from its angles."""
        (_, start), (_, end) = self._weights(time_s)
        band = (start - 9) // 3
        span_s = self._times_s[band + 1] - self._times_s[band]
        return (self._filter.mean[end:end + 3] - self._filter.mean[start:start + 3]) / span_s
