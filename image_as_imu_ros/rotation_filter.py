"""Filters of the stream: the rotation of the camera, and the scale of its blur."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESOLVED_MARGIN = 2.0
"""Log-likelihood ratio from which on a blur's sign counts as known."""
MAX_SPEED_STD_RAD_S = 6.0
"""A rate that is less certain than this is not published."""
GATE = 50.0
"""Squared Mahalanobis distance (7 sigma) beyond which a measurement is distrusted."""


def singer(elapsed_s: float, acceleration: float,
           correlation_s: float) -> tuple[np.ndarray, np.ndarray]:
    """
    Transition and noise of angle, rate and acceleration over some time, both (3, 3).

    :param acceleration: rms of the acceleration, rad/s^2

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
        noise[2, 2] += acceleration ** 2 * (1.0 - decay * decay)
    return transition, noise


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


class RotationFilter:
    """
    Kalman filter of the angle turned since the last frame, the rate and the acceleration.

    Accelerations follow Singer's model: correlated over CORRELATION_S, of a size in proportion
    to the recent rates, as hand and body shake. Axes are those of the camera.
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
        self._prediction: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

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
        transition, noise = singer(elapsed_s, self._acceleration(), self.CORRELATION_S)
        transition[:, 0] = 0.0
        full = np.kron(transition, np.eye(3))
        self.mean = full @ self.mean
        self.covariance = full @ self.covariance @ full.T + np.kron(noise, np.eye(3))
        self._prediction = full, self.mean, self.covariance

    @property
    def step(self) -> FilterStep:
        """The present state and how it came about; arrays are never changed in place."""
        size = len(self.mean)
        prediction = self._prediction or (np.eye(size), self.mean, self.covariance)
        return FilterStep(self._prediction is None, *prediction, self.mean, self.covariance)

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
