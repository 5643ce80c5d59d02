"""Filters of the stream: the motion of the camera, and the scale of its blur."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.linalg import expm

from image_as_imu_ros.geometry.gaussians import (
    inverse,
    mahalanobis,
    updated,
    updated_as_told,
)
from image_as_imu_ros.lever_arm import LeverArm

RESOLVED_MARGIN = 2.0
"""Log-likelihood ratio from which on a blur's sign counts as known."""
MAX_SPEED_STD_RAD_S = 6.0
"""A rate that is less certain than this is not published."""
RATE = slice(3, 6)
"""Where the rate is in the state of `MotionFilter`."""
DERIVATIVES = slice(6, 12)
"""Where the first and the second derivative of the rate are."""
TWO_RATES = np.r_[15:18, RATE]
"""The rates at the last image and now."""
MOVED = np.r_[0:3, 21:24]
"""The angle since the last image, and the way beside that of the lever arm."""
TWIST = np.r_[RATE, 18:21]
"""The rate, and the velocity beside that of the lever arm, now."""
NOTHING = np.zeros((6, 6))
DISTANCE_SHARE = 1.06
"""Square of an estimate's error over that of a measurement's distance from the expected one."""
USUAL_DISTANCE = 0.25
"""Mean square of how far a turn is off, in standard deviations, where a hand shakes the camera."""
MOST_SURPRISE, LEAST_UNREST, MOST_UNREST, MEMORY_UNREST = 6.0, 0.03, 1.5, 20
"""Most that a turn counts, in units of that; shares of such shaking; turns remembered."""
USUAL_BLUR_DISTANCE, MOST_BLUR_SURPRISE = 4.0, 3.0
"""
Squared Mahalanobis distance beyond which a blur speaks against what was expected.

And how many times that it speaks for: a blur may be read wrongly, too.
"""
PRIOR_MEASURED, MEMORY_MEASURED = 15, 30
"""Motions that the first idea of the distance counts as, and that are remembered."""


def of_each_axis(matrix: np.ndarray) -> np.ndarray:
    """Let a matrix (n, n) hold for each of three axes: (3 n, 3 n)."""
    size = 3 * len(matrix)
    return (matrix[:, None, :, None] * np.eye(3)[:, None]).reshape(size, size)


def without_prior(motion: np.ndarray, covariance: np.ndarray,
                  translation_spread: float) -> tuple[np.ndarray, np.ndarray]:
    """
    Take the prior about no translation out of a motion that was found under it.

    A filter knows better what translation to expect.

    :param motion, covariance: (6,), (6, 6), or longer ones that begin with them
    :param translation_spread: variance of the translation that the prior expected
    :returns: the inverse covariance times the motion, and the inverse covariance
    """
    posterior = inverse(covariance)
    information = posterior.copy()
    information[3:6, 3:6] -= np.eye(3) / translation_spread
    return posterior @ motion, information


@dataclass(frozen=True)
class FilterStep:
    """A filter's state at one frame, with what it was predicted from the frame before."""

    begins: bool
    """Whether there is no frame before."""
    transition: np.ndarray
    """(n, n), from the state at the frame before."""
    predicted_mean: np.ndarray
    predicted_covariance: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    twist_matrix: np.ndarray
    """(6, n), of which state the angular velocity and the velocity over the depth are."""
    variance_factor: float


@lru_cache(maxsize=64)
def shaking(elapsed_s: float, length_s: float, drift: float) -> tuple[np.ndarray, np.ndarray]:
    """
    Transition and noise of a rate that shakes about a steady one, over some time, both (5, 5).

    The state is the angle, the rate, its first and second derivative, and the steady rate. The
    difference of both rates is a Matern-5/2 process of unit variance, the steady one a random
    walk.

    :param length_s: over which the shaking resembles itself
    :param drift: rms change of the steady rate in a second

    Source: Hartikainen and Sarkka (2010), doi:10.1109/MLSP.2010.5589113; the noise by
    Van Loan (1978), doi:10.1109/TAC.1978.1101743.
    """
    decay = np.sqrt(5.0) / length_s
    dynamics = np.eye(5, k=1)
    dynamics[3] = 0.0, -decay ** 3, -3.0 * decay ** 2, -3.0 * decay, decay ** 3
    generator = np.zeros((10, 10))
    generator[:5, :5], generator[5:, 5:] = -dynamics, dynamics.T
    generator[3, 8], generator[4, 9] = 16.0 / 3.0 * decay ** 5, drift ** 2
    # of a part in which nothing fades much, then doubled: the exponential grows as rates fade
    doublings = max(0, math.ceil(math.log2(elapsed_s * decay + 1e-9)))
    exponential = expm(generator * (elapsed_s / 2 ** doublings))
    transition = exponential[5:, 5:].T
    noise = transition @ exponential[:5, 5:]
    for _ in range(doublings):
        noise = transition @ noise @ transition.T + noise
        transition = transition @ transition
    return transition, noise


def fading(elapsed_s: float, length_s: float) -> tuple[np.ndarray, np.ndarray]:
    """
    How a velocity that fades, of unit variance, goes on over some time, and the way it makes.

    :param length_s: over which it fades
    :returns: share of the velocity that each of the two has, (2,), and their noise, (2, 2)

    Source: Uhlenbeck and Ornstein (1930), doi:10.1103/PhysRev.36.823.
    """
    kept = math.exp(-elapsed_s / length_s)
    lost = 1.0 - kept
    cross = length_s * lost ** 2
    way = length_s ** 2 * (2.0 * elapsed_s / length_s - 3.0 + 4.0 * kept - kept ** 2)
    return np.array([kept, length_s * lost]), np.array([[1.0 - kept ** 2, cross], [cross, way]])


class MotionFilter:
    """
    Kalman filter of the camera's motion from image to image.

    The state is the angle turned since the last image, the rate, its first and second
    derivative, the steady rate about which it shakes, the rate at the last image, and then the
    velocity over the depth of the scene beside that of the lever arm, and its integral since the
    last image, three numbers each. The shaking resembles itself over LENGTH_S; its size is in
    proportion to the rates, recent and present, as that of hand and body, less where turns
    turn out as expected for long, as those of a robot do, and more where they do not; and that of
    the velocity, which fades over VELOCITY_LENGTH_S (an Ornstein-Uhlenbeck process), to the recent
    ones. Axes are those of the camera.

    :param lever: what is known of the lever arm already
    """

    LENGTH_S = 0.067
    SPREAD_PER_RATE = 1.7
    SPREAD_FLOOR_RAD_S = 0.03
    DRIFT = 1.0
    VELOCITY_LENGTH_S = 0.2
    VELOCITY_PER_RATE = 0.1
    VELOCITY_FLOOR = 0.1
    INITIAL_RATE_RAD_S = 5.0
    MEMORY_S = 0.3

    def __init__(self, lever: LeverArm | None = None) -> None:
        self.lever = lever or LeverArm()
        self.recent_rate = self.INITIAL_RATE_RAD_S
        slope = 5.0 / 3.0 / self.LENGTH_S ** 2
        # of shaking and a steady rate that are as large as each other
        spread = np.diag([0.0, 2.0, slope, 9.0 * slope ** 2, 1.0, 2.0,
                          2.0 * self.VELOCITY_PER_RATE ** 2, 0.0])
        spread[1, 3] = spread[3, 1] = -slope
        spread[1, 4] = spread[4, 1] = 1.0
        self.mean = np.zeros(3 * len(spread))
        self.covariance = of_each_axis(spread) * self.INITIAL_RATE_RAD_S ** 2 / 2.0
        self._prediction: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        self._shaking_noise = np.zeros_like(self.covariance)
        self._unrest = 1.0
        self._distance, self._measured = 1.0 / DISTANCE_SHARE, PRIOR_MEASURED

    @property
    def variance_factor(self) -> float:
        """
        By how much measurements have recently erred more than they and the filter expected.

        Estimates do not depend on a factor that is common to all covariances, but what they are
        worth does.

        Source: Mehra (1970), doi:10.1109/TAC.1970.1099422.
        """
        return DISTANCE_SHARE * self._distance

    @property
    def rate(self) -> np.ndarray:
        """Angular velocity now, (3,) rad/s."""
        return self.mean[RATE]

    @property
    def derivatives(self) -> np.ndarray:
        """Angular velocity now, rad/s, and its first and second derivative, (3, 3)."""
        return self.mean[RATE.start:DERIVATIVES.stop].reshape(3, 3)

    @property
    def rate_covariance(self) -> np.ndarray:
        """Its covariance, (3, 3), (rad/s)^2."""
        return self.covariance[RATE, RATE]

    @property
    def moved(self) -> np.ndarray:
        """Rotation vector, rad, and translation over the depth since the last image, (6,)."""
        return self.lever.carried @ self.mean[MOVED]

    @property
    def expected_motion(self) -> tuple[np.ndarray, np.ndarray]:
        """`moved`, (6,), and its inverse covariance, (6, 6)."""
        return self.moved, inverse(self._moved_covariance)

    @property
    def _moved_covariance(self) -> np.ndarray:
        """Of `moved`, (6, 6)."""
        matrix = self._matrix(MOVED)
        return matrix @ self.covariance @ matrix.T

    @property
    def twist_matrix(self) -> np.ndarray:
        """Of which state the angular velocity and the velocity over the depth are, (6, n)."""
        return self._matrix(TWIST)

    @property
    def twist(self) -> np.ndarray:
        """Angular velocity, rad/s, and velocity over the depth, 1/s, now, (6,)."""
        return self.lever.carried @ self.mean[TWIST]

    @property
    def twist_covariance(self) -> np.ndarray:
        """Its covariance, (6, 6)."""
        matrix = self.twist_matrix
        return matrix @ self.covariance @ matrix.T

    @property
    def two_rates(self) -> np.ndarray:
        """Angular velocity at the last image and now, (6,) rad/s."""
        return self.mean[TWO_RATES]

    @property
    def change_covariance(self) -> np.ndarray:
        """Of the difference of both, (3, 3) (rad/s)^2."""
        return self._change_matrix @ self.covariance @ self._change_matrix.T

    @property
    def _change_matrix(self) -> np.ndarray:
        """Of which state that difference is, (3, n)."""
        matrix = np.zeros((3, len(self.mean)))
        matrix[:, TWO_RATES] = np.hstack([-np.eye(3), np.eye(3)])
        return matrix

    @property
    def _velocity_variance(self) -> float:
        """What is expected of the velocity over the depth beside the lever arm's, 1/s^2."""
        return (self.VELOCITY_PER_RATE * self.recent_rate) ** 2 + self.VELOCITY_FLOOR ** 2

    def predict(self, elapsed_s: float) -> None:
        """Go on by a gap; the angle and the way are counted from its start."""
        # gaps that differ by less than 10 us share their matrices
        step, step_noise = shaking(round(elapsed_s, 5), self.LENGTH_S, self.DRIFT)
        transition, shaking_noise = np.zeros((8, 8)), np.zeros((8, 8))
        transition[:5, 1:5] = step[:, 1:]
        transition[5, 1] = 1.0
        shaking_noise[:5, :5] = step_noise
        noise = shaking_noise * (self._unrest * (self.SPREAD_PER_RATE * self.recent_rate) ** 2
                                 + self.SPREAD_FLOOR_RAD_S ** 2)
        transition[6:, 6], noise[6:, 6:] = fading(elapsed_s, self.VELOCITY_LENGTH_S)
        noise[6:, 6:] *= self._velocity_variance
        full = of_each_axis(transition)
        self.mean = full @ self.mean
        self.covariance = full @ self.covariance @ full.T + of_each_axis(noise)
        self._prediction = full, self.mean, self.covariance
        self._shaking_noise = of_each_axis(shaking_noise)

    def see_shaking(self, rate: np.ndarray) -> None:
        """
        Let a rate in the gap, of either sign, tell the size of its shaking, beside recent ones.

        :param rate: (3,) rad/s; to be told after `predict` and before the first update
        """
        more = 0.5 * (rate @ rate / 3.0 - self.recent_rate ** 2)
        more *= 1.0 if more > 0.0 else self._unrest
        self.covariance = (self.covariance
                           + self._shaking_noise * (self.SPREAD_PER_RATE ** 2 * more))
        self._prediction = self._prediction[0], self.mean, self.covariance

    def see_turn(self, turn: np.ndarray, covariance: np.ndarray) -> None:
        """
        Let an aligned turn tell whether the camera shakes as much as its rate lets expect.

        A robot's motion is smoother than that of a hand, and some hands shake more than others.
        To be told before the turn is taken in.

        :param turn, covariance: (3,), (3, 3), since the last image
        """
        distance = mahalanobis(turn - self.moved[:3],
                               self._moved_covariance[:3, :3] + covariance)
        surprise = min(distance / (3.0 * USUAL_DISTANCE), MOST_SURPRISE)
        self._unrest = float(np.clip(self._unrest * np.exp((surprise - 1.0) / MEMORY_UNREST),
                                     LEAST_UNREST, MOST_UNREST))

    def see_blur(self, rate: np.ndarray, covariance: np.ndarray) -> None:
        """
        Let a blur that is far from what was expected tell that this is less sure than it seemed.

        As where a hand begins to shake. To be told before the blur is taken in.

        :param rate, covariance: (3,) rad/s, (3, 3), with the likelier sign
        """
        surprise = self.likelihood(rate, covariance) / USUAL_BLUR_DISTANCE
        self.covariance = self.covariance * np.clip(surprise, 1.0, MOST_BLUR_SURPRISE)

    @property
    def step(self) -> FilterStep:
        """The present state and how it came about; arrays are never changed in place."""
        size = len(self.mean)
        prediction = self._prediction or (np.eye(size), self.mean, self.covariance)
        return FilterStep(self._prediction is None, *prediction, self.mean, self.covariance,
                          self.twist_matrix, self.variance_factor)

    def likelihood(self, rate: np.ndarray, covariance: np.ndarray) -> float:
        """Squared Mahalanobis distance of a measured angular velocity, (3,) rad/s."""
        return mahalanobis(rate - self.rate, self.rate_covariance + covariance)

    def update(self, entries: slice | np.ndarray, value: np.ndarray,
               covariance: np.ndarray) -> None:
        """Take in a measurement of entries of the state, trusted less when outside the gate."""
        self.mean, self.covariance, _ = updated(
            self.mean, self.covariance, np.eye(len(self.mean))[entries], value, covariance)

    def update_of_either_sign(self, rate: np.ndarray, covariance: np.ndarray) -> None:
        """
        Take in a blur's rate of open sign: zero, give or take the rate.

        One that speaks against what was expected with either sign is misread, as noise is in the
        dark, and tells nothing.

        :param rate, covariance: (3,) rad/s, (3, 3)
        """
        if min(self.likelihood(rate, covariance),
               self.likelihood(-rate, covariance)) < USUAL_BLUR_DISTANCE:
            self.update(RATE, np.zeros(3), covariance + np.outer(rate, rate))

    def update_motion(self, entries: np.ndarray, vector: np.ndarray, information: np.ndarray,
                      unmodelled: np.ndarray = NOTHING, response: np.ndarray = NOTHING) -> None:
        """
        Take in a rotation and translation.

        :param entries: MOVED or TWIST
        :param vector, information: (6,), (6, 6), as `without_prior` makes them
        :param unmodelled: (6, 6), covariance of errors that neither the images nor the prior have
        :param response: (6, 6), how it depends on the first and second derivative of the rate
        """
        matrix = self._matrix(entries)
        matrix[:, DERIVATIVES] += response
        self._update_measured(matrix, vector, information, unmodelled)

    def update_motion_and_change(self, vector: np.ndarray, information: np.ndarray,
                                 unmodelled: np.ndarray) -> None:
        """
        Take in the motion since the last image and by how much the rate has changed.

        :param vector, information, unmodelled: (9,), (9, 9), (9, 9), else as of `update_motion`
        """
        self._update_measured(np.vstack([self._matrix(MOVED), self._change_matrix]), vector,
                              information, unmodelled)

    def learn_lever(self, elapsed_s: float, turn: np.ndarray, vector: np.ndarray,
                    information: np.ndarray, unmodelled: np.ndarray = NOTHING) -> None:
        """
        Learn the lever arm from a motion since the last image.

        :param turn: its rotation, (3,) rad
        :param vector, information, unmodelled: as of `update_motion`
        """
        # velocities beside the lever's last for a while: several images tell the same of them
        own_way = self._velocity_variance * elapsed_s * (elapsed_s + 2.0 * self.VELOCITY_LENGTH_S)
        self.lever.observe(turn, vector, information, own_way + unmodelled[3, 3])

    def update_rate_and_twist(self, vector: np.ndarray, information: np.ndarray,
                              unmodelled: np.ndarray) -> None:
        """
        Take in how the rate at the last image and the motion now belong together.

        :param vector, information: (9,), (9, 9), of the rate then, (3,), and the twist now, (6,):
            their inverse covariance, which may be singular, and its product with them
        :param unmodelled: (9, 9), as of `update_motion`
        """
        self._update_told(np.vstack([np.eye(len(self.mean))[TWO_RATES[:3]], self.twist_matrix]),
                          vector, information, unmodelled)

    def _matrix(self, entries: np.ndarray) -> np.ndarray:
        """Of which state a whole motion is, (6, n): MOVED or TWIST with the lever arm's part."""
        matrix = np.zeros((6, len(self.mean)))
        matrix[:, entries] = self.lever.carried
        return matrix

    def _update_measured(self, matrix: np.ndarray, vector: np.ndarray, information: np.ndarray,
                         unmodelled: np.ndarray) -> None:
        """Take in a measurement that also tells how far off measurements are."""
        distance = self._update_told(matrix, vector, information, unmodelled)
        self._distance += (distance - self._distance) / min(self._measured + 1, MEMORY_MEASURED)
        self._measured += 1

    def _update_told(self, matrix: np.ndarray, vector: np.ndarray, information: np.ndarray,
                     unmodelled: np.ndarray = NOTHING) -> float:
        """Take in a measurement by its information; returns how far off each number of it was."""
        self.mean, self.covariance, distance = updated_as_told(
            self.mean, self.covariance, matrix, vector, information, unmodelled)
        return distance

    def remember(self, elapsed_s: float) -> None:
        """Let the size of the motion to expect follow the rates."""
        share = np.exp(-elapsed_s / self.MEMORY_S)
        power = self.rate @ self.rate / 3.0
        self.recent_rate = float(np.sqrt(share * self.recent_rate ** 2 + (1 - share) * power))


class BlurGain:
    """
    By how much the blur overstates the motion, learnt from the rotation between frames.

    A wrongly stated exposure and the network's own bias both scale all blur by one factor. Its
    logarithm is a random walk, observed where blurs have a sign: their mean is compared with the
    rotation over the same time.
    """

    PRIOR_STD = 0.3
    DRIFT_STD = 0.01
    RATIO_STD = 0.4
    MIN_RATE_RAD_S = 1.5

    def __init__(self, prior_std: float = PRIOR_STD) -> None:
        self.log_gain = 0.0
        self.variance = prior_std ** 2

    def observe(self, blur_rate: np.ndarray, gap_rate: np.ndarray) -> None:
        """
        Compare the mean rate of blurs with the rate by the rotation between their frames.

        :param blur_rate, gap_rate: (3,) rad/s
        """
        speed = np.linalg.norm(gap_rate)
        along = blur_rate @ gap_rate / max(speed, 1e-9)
        if min(along / self.value, speed) < self.MIN_RATE_RAD_S:
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
