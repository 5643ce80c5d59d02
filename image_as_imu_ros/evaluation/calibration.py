"""
Calibration of a gyroscope against the camera that it is mounted beside, without a target.

The model: a gyroscope reads `scale * (R_gyro_camera w) + bias` at the time `t + offset`, where w
is the camera's angular velocity at the image time t. What images tell sharply is the rotation
between two of them; the gyroscope's samples, as a smooth signal in continuous time, are
integrated over the same gap and compared. A blurred image shows the mean of its exposure, so the
signal is first averaged over that, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from image_as_imu_ros.errors import DataFormatError, SynchronizationError
from image_as_imu_ros.evaluation import sync
from image_as_imu_ros.evaluation.motion_track import GapRotation
from image_as_imu_ros.evaluation.sources.recording import Gyroscope

OFFSET_RANGE_S = 0.3
OFFSET_STEP_S = 0.005
MIN_GAPS = 20
MIN_EXPOSURE_S = 1e-4
"""Unknown exposures count as so short that they do not matter."""
STEPS_PER_GAP = 6
CAUCHY_SCALE = 1.5
ROUNDS = 3
PARTS = 20
"""Stretches of the recording whose disagreement tells the deviations."""
UNCERTAIN_ROTATION_DEG = 3.0
UNCERTAIN_SCALE = 0.05
MIRRORED_MARGIN, MIRRORED_GAIN = 0.05, 0.8
"""By how much a mirrored gyroscope must correlate better, and what it may leave of the rest."""

_ROTATION, _OFFSET, _BIAS, _LOG_SCALE = slice(0, 3), 3, slice(4, 7), slice(7, 10)
_UNITS = np.array([0.01] * 3 + [0.001] + [0.01] * 6)


@dataclass(frozen=True)
class Calibration:
    """
    How a gyroscope is mounted and what it does to the rates; deviations are one sigma.

    `rotation_deviation_rad` is about the gyroscope's axes. `time_offset_s` is the gyroscope's
    stamp less the image's at the same instant, as Kalibr's timeshift_cam_imu.
    `residual_rms_rad_s` is what remains between the rates of the gaps, per gyroscope axis.
    """

    R_gyro_camera: np.ndarray
    rotation_deviation_rad: np.ndarray
    time_offset_s: float
    time_offset_deviation_s: float
    bias_rad_s: np.ndarray
    bias_deviation_rad_s: np.ndarray
    scale: np.ndarray
    scale_deviation: np.ndarray
    gaps: int
    outlier_share: float
    residual_rms_rad_s: np.ndarray
    warnings: tuple[str, ...]

    def corrected(self, gyroscope: Gyroscope) -> Gyroscope:
        """The gyroscope without its bias, scale and offset, on the images' clock."""
        return Gyroscope(gyroscope.t_ns - round(self.time_offset_s * 1e9),
                         (gyroscope.angular_velocity_rad_s - self.bias_rad_s) / self.scale)


class GyroscopeSignal:
    """
    A gyroscope as a function of continuous time; times are s after `origin_ns`.

    Cubic between the samples: straight lines would lose 2 % of a motion of 8 Hz at 100 Hz.
    """

    def __init__(self, gyroscope: Gyroscope) -> None:
        self.gyroscope = gyroscope
        self.origin_ns = int(gyroscope.t_ns[0])
        # nearly equal stamps, as of late deliveries, would make the curve swing out
        apart = np.concatenate([[True], np.diff(gyroscope.t_ns) > 0.3 * gyroscope.period_ns])
        self._angle = CubicSpline(self.seconds(gyroscope.t_ns[apart]),
                                  gyroscope.angular_velocity_rad_s[apart]).antiderivative()
        self._angle_sum = self._angle.antiderivative()

    def seconds(self, stamps_ns: np.ndarray) -> np.ndarray:
        """Seconds after the origin."""
        return (stamps_ns - self.origin_ns) * 1e-9

    def turn(self, start_s: np.ndarray, end_s: np.ndarray, exposure_s: np.ndarray) -> np.ndarray:
        """Integral of the rates between times (N,), averaged over an exposure, (N, 3) rad."""
        half_s = np.maximum(exposure_s, MIN_EXPOSURE_S)[:, None] / 2

        def mean_angle(time_s: np.ndarray) -> np.ndarray:
            return (self._angle_sum(time_s + half_s[:, 0])
                    - self._angle_sum(time_s - half_s[:, 0])) / (2 * half_s)

        return mean_angle(end_s) - mean_angle(start_s)


class _Problem:
    """Rotations over gaps, beside what a gyroscope says of them."""

    def __init__(self, signal: GyroscopeSignal, gaps: list[GapRotation]) -> None:
        self.signal = signal
        self.start_s, self.end_s = (
            signal.seconds(np.array([getattr(gap, name) for gap in gaps], dtype=np.int64))
            for name in ('start_ns', 'end_ns'))
        self.exposure_s = np.array([gap.exposure_time_s for gap in gaps])
        self.turns = np.array([gap.rotation_rad for gap in gaps])
        self.whitening = np.linalg.inv(np.linalg.cholesky([gap.covariance for gap in gaps]))

    @property
    def spans_s(self) -> np.ndarray:
        """Lengths of the gaps, (N, 1) s."""
        return (self.end_s - self.start_s)[:, None]

    def rates(self, offset_s: float) -> np.ndarray:
        """Mean rates of the gyroscope over the gaps, (N, 3) rad/s, in its axes."""
        return self.signal.turn(self.start_s + offset_s, self.end_s + offset_s,
                                self.exposure_s) / self.spans_s

    def predicted(self, parameters: np.ndarray) -> np.ndarray:
        """Rotation vectors (N, 3) of the gaps, camera axes, from the gyroscope."""
        edges_s = np.linspace(self.start_s, self.end_s, STEPS_PER_GAP + 1) + parameters[_OFFSET]
        total = Rotation.identity(len(self.start_s))
        for low_s, high_s in zip(edges_s, edges_s[1:]):
            reading = self.signal.turn(low_s, high_s, self.exposure_s)
            bias = parameters[_BIAS] * (high_s - low_s)[:, None]
            total = total * Rotation.from_rotvec((reading - bias) / np.exp(parameters[_LOG_SCALE]))
        return Rotation.from_rotvec(parameters[_ROTATION]).inv().apply(total.as_rotvec())

    def residuals(self, parameters: np.ndarray) -> np.ndarray:
        """Differences in units of their expected deviation, (3 N,)."""
        difference = self.predicted(parameters) - self.turns
        return np.einsum('nij,nj->ni', self.whitening, difference).ravel()


def calibrate(gyroscope: Gyroscope, gaps: tuple[GapRotation, ...]) -> Calibration:
    """
    Find how a gyroscope is mounted beside a camera, and its offset, bias and scale.

    Nothing need be known beforehand, but for the clocks, which agree to OFFSET_RANGE_S. The fit
    is robust against wrong rotations. Deviations are the larger of what the residuals imply and
    of what the disagreement between parts of the recording does.

    :param gaps: of one camera, in time order
    :raises DataFormatError: if too few gaps lie within the gyroscope's record, or nothing moves,
        or the gyroscope's axes are mirrored
    """
    signal = GyroscopeSignal(gyroscope)
    problem = _Problem(signal, _covered(gyroscope, gaps))
    start, mirrored = _start(problem)
    if mirrored:
        raise DataFormatError(
            "the gyroscope's axes are mirrored: one of them has the wrong sign, or two are "
            'swapped; correct the driver, then calibrate')
    solution, noise = start, 1.0
    for _ in range(ROUNDS):
        solution, covariances = _fit(problem, solution, noise)
        size = np.abs(problem.residuals(solution))
        noise = 1.4826 * float(np.median(size)) + 1e-9
    deviation = np.sqrt(np.maximum(*map(np.diagonal, covariances)))

    rotation, scale = Rotation.from_rotvec(solution[_ROTATION]), np.exp(solution[_LOG_SCALE])
    error_rad_s = rotation.apply(problem.predicted(solution) - problem.turns) / problem.spans_s
    kept = size.reshape(-1, 3).max(axis=1) < 5 * noise
    return Calibration(
        rotation.as_matrix(), deviation[_ROTATION], float(solution[_OFFSET]),
        float(deviation[_OFFSET]), solution[_BIAS], deviation[_BIAS], scale,
        scale * deviation[_LOG_SCALE], len(problem.turns), float(1.0 - kept.mean()),
        np.sqrt(np.mean(error_rad_s[kept] ** 2, axis=0)), _warnings(deviation))


def _covered(gyroscope: Gyroscope, gaps: tuple[GapRotation, ...]) -> list[GapRotation]:
    """Gaps whose neighbourhood the gyroscope has recorded without a hole."""
    margin_ns = round(OFFSET_RANGE_S * 1e9)
    edges_ns = np.array([(gap.start_ns, gap.end_ns) for gap in gaps], dtype=np.int64)
    inside = np.ones(len(gaps), dtype=bool)
    for shift_ns in range(-margin_ns, margin_ns + 1, max(gyroscope.period_ns * 5, 5_000_000)):
        for edge_ns in edges_ns.reshape(-1, 2).T:
            inside &= sync.in_range(gyroscope, edge_ns + shift_ns)
    found = [gap for gap, usable in zip(gaps, inside) if usable]
    if len(found) < MIN_GAPS:
        raise SynchronizationError(
            f'{len(found)} pairs of images, of {len(gaps)} that match, lie within the record of '
            f'the gyroscope, {OFFSET_RANGE_S} s from its ends and holes; {MIN_GAPS} are needed: '
            'are both on the same clock, and does the scene show texture?')
    return found


def _start(problem: _Problem) -> tuple[np.ndarray, bool]:
    """
    Find offset and rotation from nothing, by the correlation of the rates.

    :returns: parameters, and whether a mirrored gyroscope would explain the rates much better
    """
    camera = problem.turns / problem.spans_s
    camera_power = camera - np.median(camera, axis=0)
    length = np.linalg.norm(camera_power)
    best, score, mirrored = None, -1.0, False
    for offset_s in np.arange(-OFFSET_RANGE_S, OFFSET_RANGE_S + 1e-9, OFFSET_STEP_S):
        rates = problem.rates(offset_s)
        centred = rates - np.median(rates, axis=0)
        u, s, vt = np.linalg.svd(centred.T @ camera_power)
        sign = np.sign(np.linalg.det(u @ vt))
        total = length * np.linalg.norm(centred) + 1e-12
        proper, any_hand = (s[0] + s[1] + sign * s[2]) / total, s.sum() / total
        if proper > score:
            rotation = u @ np.diag([1.0, 1.0, sign]) @ vt
            bias = np.median(rates - camera @ rotation.T, axis=0)
            best = np.concatenate([Rotation.from_matrix(rotation).as_rotvec(), [offset_s], bias,
                                   np.zeros(3)])
            score = proper
            mirrored = any_hand > 0.5 and any_hand - proper > MIRRORED_MARGIN \
                and 1.0 - any_hand < MIRRORED_GAIN * (1.0 - proper)
    if best is None or length < 1e-6:
        raise DataFormatError('nothing moves in the recording; shake the camera about all axes')
    return best, mirrored


def _fit(problem: _Problem, start: np.ndarray,
         noise: float) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """
    Robust least squares.

    :param noise: factor on the expected deviations
    :returns: parameters, and two covariances, of rotations about the gyroscope's axes: from the
        curvature, and from how much the parts of the recording disagree
    """
    base = Rotation.from_rotvec(start[_ROTATION])

    def moved(step: np.ndarray) -> np.ndarray:
        """The start, turned by a small rotation about the gyroscope's axes, and moved."""
        return np.concatenate([(Rotation.from_rotvec(step[_ROTATION]) * base).as_rotvec(),
                               start[3:] + step[3:]])

    fit = least_squares(lambda step: problem.residuals(moved(step)) / noise,
                        np.zeros_like(start), x_scale=_UNITS, loss='cauchy',
                        f_scale=CAUCHY_SCALE, max_nfev=50)
    curvature = np.linalg.pinv(fit.jac.T @ fit.jac)
    # what pulls at the solution, of each residual; scipy has scaled the rows of the Jacobian
    square = (fit.fun / CAUCHY_SCALE) ** 2
    row_scale = np.sqrt(np.maximum((1.0 - square) / (1.0 + square) ** 2, np.finfo(float).eps))
    pulls = fit.jac * (fit.fun / (1.0 + square) / row_scale)[:, None]
    parts = np.array([part.sum(axis=0) for part in np.array_split(pulls, PARTS)])
    return moved(fit.x), (
        curvature, curvature @ (PARTS / (PARTS - 1) * parts.T @ parts) @ curvature)


def _warnings(deviation: np.ndarray) -> tuple[str, ...]:
    """Say what the recording does not tell, and what to do about it."""
    warnings = []
    worst_deg = float(np.degrees(deviation[_ROTATION].max()))
    if worst_deg > UNCERTAIN_ROTATION_DEG:
        warnings.append(f'the rotation is uncertain by {worst_deg:.1f} deg: turn the camera about '
                        'all three axes, faster or for longer')
    for axis, value in zip('xyz', deviation[_LOG_SCALE]):
        if value > UNCERTAIN_SCALE:
            warnings.append(f'the scale of {axis} is uncertain by {100 * value:.0f} %: turn the '
                            f'camera more about the axis {axis} of the gyroscope')
    return tuple(warnings)
