"""
Several rates from each image of a rolling shutter, whose rows are exposed one after another.

Kalman filters go from band of rows to band of rows. Each band's blur tells the rate at its time,
up to its sign, and its alignment with the image before the turn since the same scene was last
exposed. A vibration turns the rate round within an image, so that the sign is open in band after
band: several filters follow what may be, and the likeliest is believed. The rates of a frame stay
in a filter's state until its last band, so that every one of them knows the whole frame, and no
later one.

Source of following several: Reid (1979), doi:10.1109/TAC.1979.1102177.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import cv2
import numpy as np

from image_as_imu_ros.config import StreamConfig
from image_as_imu_ros.estimator import BlurMeasurement, BlurObservation, VisualGyroscope
from image_as_imu_ros.geometry.alignment import (
    Alignment,
    Level,
    reduced_field,
    reduced_mask,
    unlikeness,
)
from image_as_imu_ros.geometry.gaussians import mahalanobis, updated
from image_as_imu_ros.motion_filter import (
    MAX_SPEED_STD_RAD_S,
    RESOLVED_MARGIN,
    BlurGain,
    MotionFilter,
    of_each_axis,
)
from image_as_imu_ros.row_motion import row_offset_s
from image_as_imu_ros.types import CameraIntrinsics, EstimateStatus, Frame, MotionEstimate

REDUCTIONS, ITERATIONS = (4, 2), 4
"""Of the working image, at which bands are aligned one after the other, in so many steps."""
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
MOST_TRACKS = 4
"""Motions that are followed at once."""
LEAST_SCORE = -12.0
"""Least log-likelihood of a motion that is followed on, relative to the best."""
ALIKE = 1.0
"""Squared Mahalanobis distance of rates and accelerations that are followed as one."""
FARTHEST = 25.0
"""Squared Mahalanobis distance beyond which a measurement tells no more against a motion."""
LEAST_BLUR = 4.0
"""Squared Mahalanobis distance of a blur from none: shorter ones are read as too long."""
UNREAD = -6.0
"""Log-likelihood of a rate, per (rad/s)^3, where a band's blur is wrongly read."""
UNMATCHED = 8.0
"""Log-likelihood of a turn, per rad^3, where none is found."""
WITNESSES, LEAST_DIFFERENCE = 10.0, 1e-3
"""Pixels of aligned bands that count as independent, and their unexplained share at best."""
START_ACCELERATION_RAD_S2, ACCELERATION_PER_RATE = 200.0, 35.0
"""Rms of the acceleration at first, and what a blur lets expect, per second."""
MEMORY_FRAMES = 4.0
"""Frames over which the size of the acceleration is remembered."""


@lru_cache(maxsize=64)
def singer(elapsed_s: float, correlation_s: float) -> tuple[np.ndarray, np.ndarray]:
    """
    Transition and noise of angle, rate and acceleration over some time, both (9, 9).

    The noise is of an acceleration whose rms is 1 rad/s^2.

    Source: Singer (1970), doi:10.1109/TAES.1970.310128.
    """
    steps = 12
    dt = elapsed_s / steps
    decay = np.exp(-dt / correlation_s)
    step = np.array([[1.0, dt, dt * dt / 2], [0.0, 1.0, dt], [0.0, 0.0, decay]])
    noise = np.zeros((3, 3))
    transition = np.eye(3)
    for _ in range(steps):
        transition = step @ transition
        noise = step @ noise @ step.T
        noise[2, 2] += 1.0 - decay * decay
    return of_each_axis(transition), of_each_axis(noise)


class BandFilter:
    """
    Kalman filter of angle, rate and acceleration that keeps copies of past angles and rates.

    The state is angle, rate, acceleration, then the copies, three numbers each.

    :param rate, covariance: (3,), (3, 3), at the start
    :param acceleration: rms, rad/s^2
    """

    CORRELATION_S = 0.03
    """Over which the acceleration resembles itself."""

    def __init__(self, rate: np.ndarray, covariance: np.ndarray, acceleration: float) -> None:
        self.mean = np.concatenate([np.zeros(3), rate, np.zeros(3)])
        self.covariance = np.zeros((9, 9))
        self.covariance[3:6, 3:6] = covariance
        self.covariance[6:, 6:] = np.eye(3) * acceleration ** 2

    def predict(self, elapsed_s: float, acceleration: float) -> None:
        """Go on by some time."""
        # times that differ by less than 10 us share their matrices
        transition, noise = singer(round(elapsed_s, 5), self.CORRELATION_S)
        self.mean, self.covariance = self.mean.copy(), self.covariance.copy()
        self.mean[:9] = transition @ self.mean[:9]
        self.covariance[:9] = transition @ self.covariance[:9]
        self.covariance[:, :9] = self.covariance[:, :9] @ transition.T
        self.covariance[:9, :9] += acceleration ** 2 * noise

    def copy(self, start: int) -> int:
        """Keep a copy of state entries start to start + 3; tells where it begins."""
        size = len(self.mean)
        entries = np.r_[:size, start:start + 3]
        self.mean, self.covariance = self.mean[entries], self.covariance[entries][:, entries]
        return size

    def forget_all_but(self, starts: list[int]) -> None:
        """Drop all copies but those, of angles, and count angles from the first of them."""
        picked = np.eye(len(self.mean))
        rows = np.concatenate([picked[:9], *(picked[start:start + 3] for start in starts)])
        for start in (0, *range(9, len(rows), 3)):
            rows[start:start + 3] -= picked[starts[0]:starts[0] + 3]
        self.mean, self.covariance = rows @ self.mean, rows @ self.covariance @ rows.T

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

    def likelihood(self, matrix: np.ndarray, values: np.ndarray,
                   covariances: np.ndarray) -> np.ndarray:
        """Log-likelihood (N,) of measurements, (N, 3), (N, 3, 3), but for a constant."""
        spread = matrix @ self.covariance @ matrix.T + covariances
        innovation = values - matrix @ self.mean
        distance = np.einsum('ni,ni->n', innovation, np.linalg.solve(
            spread, innovation[..., None])[..., 0])
        return -0.5 * (np.minimum(distance, FARTHEST) + np.linalg.slogdet(spread)[1])

    def update(self, matrix: np.ndarray, value: np.ndarray, covariance: np.ndarray) -> None:
        """Take in a measurement, trusted less the further it is outside the gate."""
        self.mean, self.covariance, _ = updated(self.mean, self.covariance, matrix, value,
                                                covariance)


@dataclass
class _Track:
    """A motion that may be."""

    filter: BandFilter
    score: float = 0.0
    """Log-likelihood of all that was seen, relative to the best track's after the last image."""
    blur: np.ndarray | None = None
    """Rate (3,) that the last band's blur tells, signed."""
    aligned: tuple[bool, ...] = ()
    read: tuple[bool, ...] = ()
    """Of each band of the frame so far: whether its turn, and its blur, were taken in."""

    def given(self, told: float, rate: np.ndarray, covariance: np.ndarray) -> _Track:
        """The same with a band's blur taken in, of a log-likelihood."""
        band_filter = copy.copy(self.filter)
        band_filter.update(band_filter.rate_matrix(), rate, covariance)
        return _Track(band_filter, self.score + told, rate, self.aligned, (*self.read, True))

    def without_blur(self, told: float) -> _Track:
        """The same with a band's blur left aside."""
        return _Track(copy.copy(self.filter), self.score + told, None, self.aligned,
                      (*self.read, False))

    def is_like(self, other: _Track) -> bool:
        """Whether rate and acceleration are those of another."""
        motion = slice(3, 9)
        return mahalanobis(self.filter.mean[motion] - other.filter.mean[motion],
                           other.filter.covariance[motion, motion]) < ALIKE


class _ReducedPair:
    """
    Two working images at one reduction.

    :param earlier, later: measurements of both
    """

    def __init__(self, earlier: BlurMeasurement, later: BlurMeasurement, scale: int) -> None:
        self._scale = scale
        self.intrinsics, self._field = reduced_field(later.intrinsics, scale)
        size = self.intrinsics.width_px, self.intrinsics.height_px
        seen, self.later = (
            cv2.resize(each.working_image, size, interpolation=cv2.INTER_AREA)
            for each in (earlier, later))
        self._level = Level(seen, self.later, self.intrinsics, self._field,
                            usable=reduced_mask(later.usable, self.intrinsics))

    def band(self, rows: slice) -> _ReducedBand | None:
        """A band of rows of the working image; None where too little is seen in it."""
        full_size = (self._level.pixels[1] + 0.5) * self._scale
        chosen = (full_size >= rows.start) & (full_size < rows.stop)
        count = np.count_nonzero(chosen)
        if count < MIN_PIXELS:
            return None
        level = self._level.part(chosen, np.zeros((2, count)))
        middle = int(0.5 * (rows.start + rows.stop) / self._scale)
        field = np.ascontiguousarray(self._field[:, :3, self._level.chosen[chosen]])
        return _ReducedBand(level, field, self.intrinsics, self.later, middle)


@dataclass(frozen=True)
class _ReducedBand:
    """A band of rows of the later image of a pair, at one reduction."""

    level: Level
    field: np.ndarray
    """Motion field of rotations at the level's pixels, (2, 3, N)."""
    intrinsics: CameraIntrinsics
    later: np.ndarray
    middle_row: int

    @cached_property
    def matched(self) -> np.ndarray:
        """The pan (3,) under which the middle is found in the earlier image, rad."""
        height, width = self.later.shape
        top = int(np.clip(self.middle_row - TEMPLATE_ROWS // 2, 0, height - TEMPLATE_ROWS))
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
        self._tracks: list[_Track] = []
        """Motions that may be, between images the likeliest first."""
        self._times_s = np.zeros(0)
        self._now_s = 0.0
        self._acceleration = START_ACCELERATION_RAD_S2
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
        if not self._tracks or previous is None:
            self.reset()
            self._tracks = [_Track(BandFilter(
                np.zeros(3), MotionFilter.INITIAL_RATE_RAD_S ** 2 * np.eye(3),
                self._acceleration))]
            self._now_s = times_s[0]
        for track in self._tracks:
            track.aligned = track.read = ()
        if not estimate.usable:  # what is taken over of it is of either sign
            estimate = estimate.of_either_sign()
        pairs = []
        if len(self._times_s) and previous.solution is not None and current.solution is not None:
            # a blank image would match any
            pairs = [_ReducedPair(previous, current, scale) for scale in REDUCTIONS]
        angles, rates, speeds = [], [], []
        for band, time_s in enumerate(times_s):
            rows = slice(edges[band], edges[band + 1])
            # never back, where the readout lasts longer than the frame interval
            elapsed_s, self._now_s = max(time_s - self._now_s, 0.0), time_s
            for track in self._tracks:
                track.filter.predict(elapsed_s, self._acceleration)
            self._align(pairs, rows, time_s, stamp_s, frame)
            self._take_blur(observation, current, rows, gain)
            speeds.append(self._tracks[0].blur)
            for track in self._tracks:  # whose states all have the same layout
                angle, rate = track.filter.copy(0), track.filter.copy(3)
            angles.append(angle)
            rates.append(rate)
        self._tracks.sort(key=lambda track: -track.score)
        best = self._tracks[0]
        highest = best.score
        for track in self._tracks:
            track.score -= highest
        estimates = tuple(
            self._read_out(estimate, band, rates[band], frame.stamp_ns + round(
                (times_s[band] - stamp_s) * 1e9), predicts)
            for band in range(self._count))
        self._adapt(np.stack([best.filter.mean[start:start + 3] for start in rates]), times_s,
                    speeds)
        for track in self._tracks:
            track.filter.forget_all_but(angles)
        self._times_s, self._now_s = times_s - stamp_s, self._now_s - stamp_s
        self._begun |= any(each.status is EstimateStatus.OK for each in estimates)
        if not self._begun:
            return ()
        if all(each.status is EstimateStatus.SIGN_UNRESOLVED for each in estimates):
            self.reset()
        return estimates

    def _read_out(self, estimate: MotionEstimate, band: int, start: int, stamp_ns: int,
                  predicts: bool) -> MotionEstimate:
        """A band's rate in the likeliest motion, less sure where others are about as likely."""
        best, entries = self._tracks[0], slice(start, start + 3)
        rates = np.stack([track.filter.mean[entries] for track in self._tracks])
        scores = np.array([track.score for track in self._tracks])
        share = np.exp(scores) / np.exp(scores).sum()
        apart = rates - rates[0]
        spread = np.einsum('k,kij->ij', share, [
            track.filter.covariance[entries, entries] for track in self._tracks]) \
            + (share * apart.T) @ apart
        covariance = estimate.covariance.copy()
        covariance[:3, 3:] = covariance[3:, :3] = 0.0
        covariance[3:, 3:] = spread
        rival = -float(max(scores[rates @ rates[0] < 0.0], default=LEAST_SCORE))
        # a motion and its reverse that are alike were followed as one
        margin = min(rival, 2.0 * mahalanobis(rates[0], spread))
        certain = np.trace(spread) < 3 * MAX_SPEED_STD_RAD_S ** 2
        informed = rival >= RESOLVED_MARGIN and (
            best.aligned[band] or (best.read[band] and margin >= RESOLVED_MARGIN))
        status = EstimateStatus.OK if informed else EstimateStatus.PREDICTED
        return replace(
            estimate, stamp_ns=stamp_ns, covariance=covariance,
            sign_resolved=bool(certain and (informed or predicts)),
            angular_velocity_rad_s=rates[0], sign_margin=margin,
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
                   gain: BlurGain) -> None:
        """Follow what a band's blur may tell: every hill of either sign, or that it is misread."""
        rates, covariances, heights = self._readings(observation, current, rows, gain)
        offers = []
        for track in self._tracks:
            told = heights + track.filter.likelihood(track.filter.rate_matrix(), rates,
                                                     covariances)
            offers += [(track.score + each, each, number, track)
                       for number, each in enumerate([*told, UNREAD])]
        offers.sort(key=lambda offer: -offer[0])
        kept: list[_Track] = []
        for score, each, number, track in offers:
            if score < offers[0][0] + LEAST_SCORE or len(kept) == MOST_TRACKS:
                break
            after = track.without_blur(each) if number == len(rates) else \
                track.given(each, rates[number], covariances[number])
            if not any(after.is_like(other) for other in kept):
                kept.append(after)
        self._tracks = kept

    def _readings(self, observation: BlurObservation, current: BlurMeasurement, rows: slice,
                  gain: BlurGain) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Read a band's blur.

        :returns: rates of either sign, (N, 3) rad/s, their covariances, (N, 3, 3), and how high
            their hills are, (N,), relative to the highest; none where there is no blur
        """
        exposure_s, hills = current.frame.exposure_time_s, []
        if exposure_s is not None and current.informative:
            to_rate = 1.0 / (exposure_s * gain.value)
            near = [track.filter.mean[3:6] for track in self._tracks]
            near += [track.blur for track in self._tracks if track.blur is not None]
            starts = np.zeros((len(near) + 1, 6))
            starts[0], starts[1:, :3] = current.solution.motion, np.stack(near) / to_rate
            hills = self._gyroscope.solve_rows(observation, rows, starts)
        highest, readings = max((hill.log_posterior for hill in hills), default=0.0), []
        for hill in hills:
            rate = to_rate * hill.motion[:3]
            covariance = to_rate ** 2 * hill.covariance[:3, :3] \
                + (LENGTH_STD ** 2 + gain.variance) * np.outer(rate, rate)
            if mahalanobis(rate, covariance) > LEAST_BLUR:
                height = hill.log_posterior - highest
                readings += [(rate, covariance, height), (-rate, covariance, height)]
        if not readings:
            return np.empty((0, 3)), np.empty((0, 3, 3)), np.empty(0)
        return tuple(map(np.array, zip(*readings)))

    def _align(self, pairs: list[_ReducedPair], rows: slice, time_s: float, stamp_s: float,
               frame: Frame) -> None:
        """Update by the turn since the band's scene was exposed in the frame before."""
        bands = [pair.band(rows) for pair in pairs]
        for track in self._tracks:
            found = None
            if bands and None not in bands:
                starts = self._starts(track, bands[0], time_s, stamp_s)
                found = self._aligned(track.filter, bands, starts, time_s, stamp_s, frame)
            matches = found is not None and found[0].similarity > MIN_SIMILARITY
            track.aligned = (*track.aligned, matches)
            told, similarity = UNMATCHED, MIN_SIMILARITY
            if matches:
                told = self._take_turn(track.filter, *found, bands[-1].intrinsics)
                similarity = found[0].similarity
            track.score += told
            track.score -= unlikeness(similarity, WITNESSES, LEAST_DIFFERENCE)

    def _starts(self, track: _Track, band: _ReducedBand, time_s: float,
                stamp_s: float) -> list[np.ndarray]:
        """Turns (3,) to align from."""
        matrix = track.filter.difference(self._weights(time_s - stamp_s))
        starts = [matrix @ track.filter.mean]
        spread = matrix @ track.filter.covariance @ matrix.T
        if np.trace(spread) * band.intrinsics.fx_px ** 2 > LOST_PX ** 2:
            starts.append(band.matched)
            if track.blur is not None:
                starts += [track.blur * stamp_s, -track.blur * stamp_s]
        return starts

    def _aligned(self, band_filter: BandFilter, bands: list[_ReducedBand],
                 starts: list[np.ndarray], time_s: float, stamp_s: float,
                 frame: Frame) -> tuple[Alignment, float] | None:
        """The turn that fits a band best, and the time of what it shows in the frame before."""
        for band in bands:
            y = band.level.pixels[1]
            since_s = stamp_s + row_offset_s(y, band.intrinsics, frame) - time_s
            ahead = since_s * (band_filter.mean[3:6] @ band.field)
            best = None
            for turn in starts:
                seen_s = row_offset_s(y - turn @ band.field[1], band.intrinsics, frame)
                mean_s = float(min(max(seen_s.mean(), self._times_s[0]), self._times_s[-1]))
                # rows of a band turned by a little more or less than its middle
                behind = (seen_s - mean_s) * (self._rate_before(band_filter, mean_s) @ band.field)
                level = copy.copy(band.level)
                level.offset_px = np.subtract(ahead, behind, dtype=np.float32)
                found = level.refine(np.concatenate([turn, np.zeros(3)]), ITERATIONS)
                if found is not None and (best is None
                                          or found.similarity > best[0].similarity):
                    best = found, mean_s
            if best is None:
                return None
            starts = [best[0].motion[:3]]
        return best

    def _take_turn(self, band_filter: BandFilter, found: Alignment, seen_s: float,
                   intrinsics: CameraIntrinsics) -> float:
        """Update by an aligned turn; returns its log-likelihood."""
        turn = found.motion[:3]
        shared = (ALIGNMENT_ERROR_PX / intrinsics.fx_px) ** 2 \
            + ALIGNMENT_SCALE_STD ** 2 * float(turn @ turn)
        # of the rotation alone, as if the translation were known: prior and scale stand for it
        covariance = np.linalg.inv(np.linalg.inv(found.covariance)[:3, :3]) + shared * np.eye(3)
        matrix = band_filter.difference(self._weights(seen_s))
        told = float(band_filter.likelihood(matrix, turn[None], covariance[None])[0])
        band_filter.update(matrix, turn, covariance)
        return told

    def _weights(self, time_s: float) -> list[tuple[float, int]]:
        """The angle of the frame before at a time since its stamp, as a mean of copies."""
        after = int(np.searchsorted(self._times_s, time_s).clip(1, len(self._times_s) - 1))
        span_s = self._times_s[after] - self._times_s[after - 1]
        share = float((time_s - self._times_s[after - 1]) / span_s)
        return [(1.0 - share, 9 + 3 * (after - 1)), (share, 9 + 3 * after)]

    def _rate_before(self, band_filter: BandFilter, time_s: float) -> np.ndarray:
        """Rate (3,) at a time of the frame before, from its angles."""
        (_, start), (_, end) = self._weights(time_s)
        band = (start - 9) // 3
        span_s = self._times_s[band + 1] - self._times_s[band]
        return (band_filter.mean[end:end + 3] - band_filter.mean[start:start + 3]) / span_s
