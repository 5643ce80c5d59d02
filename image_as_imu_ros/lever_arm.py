"""Learns about which point a camera turns, as its velocity then follows from its rate."""

from __future__ import annotations

import numpy as np

from image_as_imu_ros.geometry.motion_field import cross_matrix


class LeverArm:
    """
    Where the camera sits on what turns it, learnt from how it moves while it turns.

    A hand, a neck or a robot turns the camera about a point outside of it: its velocity is then
    w x r, with the vector r from that point to the camera in the camera's axes. Images tell r over
    the depth of the scene. Recursive least squares that forget; r is 0 until something is learnt.
    """

    STD = 0.3
    """Of r over the depth, before anything is learnt."""
    KEPT = 0.995
    """Share of what was learnt that an image later still counts."""

    def __init__(self) -> None:
        self._vector, self._information = np.zeros(3), np.zeros((3, 3))
        self.carried = np.eye(6)
        """Adds the translation of the lever to a rotation and a translation beside it, (6, 6)."""

    @property
    def value(self) -> np.ndarray:
        """r over the depth of the scene, (3,)."""
        return np.linalg.solve(self._information + np.eye(3) / self.STD ** 2, self._vector)

    def observe(self, turn: np.ndarray, vector: np.ndarray, information: np.ndarray,
                own_variance: float) -> None:
        """
        Take in a rotation with its translation.

        :param turn: (3,) rad
        :param vector, information: (6,), (6, 6), of the rotation and the translation over the
            depth: their inverse covariance, which may be singular, and its product with them
        :param own_variance: of the translation that does not come with the turn
        """
        # of the translation alone, whatever the rotation: one is easily taken for the other
        across = np.linalg.solve(information[:3, :3], information[:3, 3:]).T
        power, directions = np.linalg.eigh(information[3:, 3:] - across @ information[:3, 3:])
        power = power.clip(min=0.0)
        directions = directions * np.sqrt(1.0 / (1.0 + own_variance * power))
        matrix = directions.T @ cross_matrix(turn)
        told = directions.T @ (vector[3:] - across @ vector[:3]) * (power > 0.0)
        self._information = self.KEPT * self._information + (matrix.T * power) @ matrix
        self._vector = self.KEPT * self._vector + matrix.T @ told
        self.carried[3:, :3] = -cross_matrix(self.value)
