"""Smooth random motion of a hand-held camera, known exactly at every instant."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from image_as_imu_ros.errors import InputError

KNOT_RATE_HZ = 1000.0
"""Rate at which the orientation is stored; between two knots one more step is integrated."""


@dataclass(frozen=True)
class Oscillation:
    """
    Sum of sines per axis, `sum_k amplitude[k] sin(2 pi frequency[k] t + phase[k])`.

    :param amplitude: (K, 3), in the unit of the result
    :param frequency_hz: (K, 3); 0 makes the term constant
    :param phase_rad: (K, 3)
    """

    amplitude: np.ndarray
    frequency_hz: np.ndarray
    phase_rad: np.ndarray

    @classmethod
    def random(cls, rng: np.random.Generator, rms: tuple[float, float, float],
               band_hz: tuple[float, float], terms: int = 12) -> Oscillation:
        """Draw terms, evenly over the octaves of a frequency band, with the given rms per axis."""
        edges = np.geomspace(*band_hz, terms + 1)[:, None]
        frequency_hz = edges[:-1] * (edges[1:] / edges[:-1]) ** rng.random((terms, 3))
        amplitude = rng.uniform(0.3, 1.0, (terms, 3))
        amplitude *= np.asarray(rms) / np.sqrt(np.sum(amplitude**2, axis=0) / 2)
        return cls(amplitude, frequency_hz, rng.uniform(0, 2 * np.pi, (terms, 3)))

    @classmethod
    def constant(cls, value: tuple[float, float, float]) -> Oscillation:
        """Three values that do not change."""
        return cls(np.asarray(value, float)[None], np.zeros((1, 3)), np.full((1, 3), np.pi / 2))

    def value(self, time_s: np.ndarray) -> np.ndarray:
        """Value at times (N,), as (N, 3)."""
        return np.sum(self.amplitude * np.sin(self._angle_rad(time_s)), axis=1)

    def rate(self, time_s: np.ndarray) -> np.ndarray:
        """Time derivative at times (N,), as (N, 3)."""
        slope = self.amplitude * 2 * np.pi * self.frequency_hz
        return np.sum(slope * np.cos(self._angle_rad(time_s)), axis=1)

    def _angle_rad(self, time_s: np.ndarray) -> np.ndarray:
        time_s = np.asarray(time_s, float)
        return 2 * np.pi * self.frequency_hz * time_s[:, None, None] + self.phase_rad


class Trajectory:
    """
    Motion of a camera through a static world, from its angular velocity.

    Camera axes are x right, y down, z forward. A static point moves `dX/dt = -w x X - v` in
    them. The camera sits at the end of a lever that turns with it about a trembling pivot.

    :param angular_velocity_rad_s: camera's angular velocity in its own axes
    :param duration_s: the motion is defined for 0 <= t <= duration
    :param lever_arm_m: camera's position seen from the pivot, camera axes
    :param tremor_m: position of the pivot in the world
    :param rest_period_s: the rotation swells and dies away once per period, beginning at rest;
        0 keeps it at full strength
    :param start: orientation `R_world_camera` at time 0
    """

    def __init__(self, angular_velocity_rad_s: Oscillation, duration_s: float,
                 lever_arm_m: tuple[float, float, float] = (0.0, 0.0, 0.0),
                 tremor_m: Oscillation = Oscillation.constant((0.0, 0.0, 0.0)),
                 rest_period_s: float = 0.0, start: Rotation = Rotation.identity()) -> None:
        self.duration_s = duration_s
        self._shake = angular_velocity_rad_s
        self._lever_arm_m = np.asarray(lever_arm_m, float)
        self._tremor_m = tremor_m
        self._rest_period_s = rest_period_s
        self._knots = self._integrate(start)

    @classmethod
    def hand_shake(cls, seed: int, duration_s: float,
                   rms_rad_s: tuple[float, float, float] = (3.5, 3.0, 3.0)) -> Trajectory:
        """
        Draw the motion of a phone that is shaken, with stretches of near rest.

        :param rms_rad_s: of the shaking at its strongest; peaks are some three times as high
        """
        rng = np.random.default_rng(seed)
        return cls(
            Oscillation.random(rng, rms_rad_s, (0.5, 8.0)), duration_s,
            lever_arm_m=(0.02, 0.05, 0.2),
            tremor_m=Oscillation.random(rng, (0.01, 0.01, 0.01), (0.3, 3.0)),
            rest_period_s=4.0)

    @classmethod
    def glide(cls, seed: int, duration_s: float) -> Trajectory:
        """
        Draw the motion of a robot in a room: slow turns, of some 0.3 rad/s, at a walker's pace.

        It stays within a metre of where it begins, and looks in any direction at first.
        """
        rng = np.random.default_rng(seed)
        return cls(
            Oscillation.random(rng, (0.15, 0.25, 0.12), (0.15, 1.2)), duration_s,
            tremor_m=Oscillation.random(rng, (0.3, 0.2, 0.3), (0.1, 0.45)),
            start=Rotation.from_euler('y', rng.uniform(-np.pi, np.pi)))

    def angular_velocity_rad_s(self, time_s: np.ndarray) -> np.ndarray:
        """Angular velocity at times (N,), camera axes, (N, 3)."""
        shake = self._shake.value(time_s)
        if self._rest_period_s == 0:
            return shake
        swell = np.sin(np.pi * np.asarray(time_s) / self._rest_period_s) ** 2
        return swell[:, None] * shake

    def linear_velocity_m_s(self, time_s: np.ndarray) -> np.ndarray:
        """Velocity at times (N,), camera axes, (N, 3)."""
        swing = np.cross(self.angular_velocity_rad_s(time_s), self._lever_arm_m)
        return swing + self.rotation(time_s).inv().apply(self._tremor_m.rate(time_s))

    def rotation(self, time_s: np.ndarray) -> Rotation:
        """
        Orientation `R_world_camera` at times (N,).

        :raises InputError: if a time is outside the trajectory
        """
        time_s = np.asarray(time_s, float)
        if time_s.min() < 0 or time_s.max() > self.duration_s:
            raise InputError(f'times {time_s.min()} to {time_s.max()} s are outside the '
                             f'trajectory; it lasts from 0 to {self.duration_s} s')
        knot = np.floor(time_s * KNOT_RATE_HZ).astype(int)
        start_s = knot / KNOT_RATE_HZ
        return self._knots[knot] * self._step(start_s, time_s - start_s)

    def position_m(self, time_s: np.ndarray) -> np.ndarray:
        """Position at times (N,) in the world, (N, 3)."""
        return self.rotation(time_s).apply(self._lever_arm_m) + self._tremor_m.value(time_s)

    def _integrate(self, start: Rotation) -> Rotation:
        knots = int(np.floor(self.duration_s * KNOT_RATE_HZ)) + 1
        start_s = np.arange(knots - 1) / KNOT_RATE_HZ
        turns = self._step(start_s, np.full(knots - 1, 1 / KNOT_RATE_HZ)).as_matrix()
        orientation = np.empty((knots, 3, 3))
        orientation[0] = start.as_matrix()
        for knot, turn in enumerate(turns):
            orientation[knot + 1] = orientation[knot] @ turn
        return Rotation.from_matrix(orientation)

    def _step(self, start_s: np.ndarray, length_s: np.ndarray) -> Rotation:
        """Rotate over (N,) short intervals: fourth-order Magnus with two Gauss points."""
        middle_s, offset_s = start_s + length_s / 2, length_s * np.sqrt(3) / 6
        first = self.angular_velocity_rad_s(middle_s - offset_s)
        second = self.angular_velocity_rad_s(middle_s + offset_s)
        length_s = length_s[:, None]
        return Rotation.from_rotvec(length_s / 2 * (first + second)
                                    + np.sqrt(3) / 12 * length_s**2 * np.cross(first, second))
