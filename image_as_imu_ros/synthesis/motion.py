"""Cameras and how they move while an image is exposed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from image_as_imu_ros.geometry.displacement_bins import RADIUS_SCALE_PX
from image_as_imu_ros.types import CameraIntrinsics

ROLL_LEVER = 1.0 / 3.0
"""Displacement by a roll relative to that by a pan of the same angle, over a typical image."""
IMAGE_PX = (320, 224)
"""Whole image that focal lengths refer to; crops are windows of it."""
FIELDS_OF_VIEW_DEG = {'phone': (58.0, 72.0), 'webcam': (52.0, 82.0),
                      'machine vision': (34.0, 60.0), 'wide': (82.0, 108.0)}
"""Across the width: lenses of 24 to 32, 20 to 36, 31 to 58 and 13 to 20 mm, 35 mm equivalent."""
CENTRE_STD_PX = 6.0
"""Of the principal point about the middle, per axis."""
MAX_SPEED_RAD_S = 25.0
EXPOSURES_S = (0.5e-3, 33e-3)
MAX_EXTENT_PX = 65.0
"""Of the blur by rotation: 25 rad/s over 10 ms at a focal length of 250 px are 63."""
MAX_TURN_RAD = 0.25
"""Over an exposure: 25 rad/s over 10 ms; longer exposures are of slower motion."""
LEVER_STD_M = 0.2
"""Of the camera about the pivot that it turns with, per axis: a wrist, an elbow, a mast."""
DISTANCE_M = (0.5, 6.0)
"""Of the scene ahead; even on a logarithmic scale."""
SWAY_M_S = 0.3
"""Deviation of the pivot's velocity, per axis; it grows with how fast the camera turns."""
KNOTS_PER_S = 4000.0
MIN_KNOTS = 33
SHAKE_HZ, VIBRATION_HZ = (1.0, 12.0), (20.0, 250.0)


@dataclass(frozen=True)
class CameraPath:
    """
    Motion about an exposure; time 0 is the middle of it, of the middle row where a shutter rolls.

    Lengths are in units of the distance d of the scene ahead.
    """

    exposure_s: float
    times_s: np.ndarray
    """(M,), evenly spaced, over the exposures of all rows."""
    velocity: np.ndarray
    """(M, 6), angular velocity in rad/s and linear velocity over d in 1/s, camera axes."""
    rotation_rad: np.ndarray
    """(M, 3), the camera's axes in those at time 0, as rotation vectors."""
    position: np.ndarray
    """(M, 3), in the camera's axes at time 0."""

    @classmethod
    def follow(cls, exposure_s: float, times_s: np.ndarray, velocity: np.ndarray) -> CameraPath:
        """
        Integrate velocities, (M, 6) at evenly spaced times that are symmetric about 0; M is odd.

        Between two times the axis of rotation is fixed.
        """
        step_s = times_s[1] - times_s[0]
        between = 0.5 * (velocity[1:] + velocity[:-1]) * step_s
        turns = Rotation.from_rotvec(between[:, :3]).as_matrix()
        axes = np.concatenate([np.eye(3)[None], turns])
        reach = 1
        while reach < len(axes):  # products of the first k turns, for all k at once
            axes[reach:] = axes[:-reach] @ axes[reach:]
            reach *= 2
        shifts = (axes[:-1] + axes[1:]) / 2 @ between[:, 3:, None]
        places = np.concatenate([np.zeros((1, 3)), np.cumsum(shifts[..., 0], axis=0)])
        middle = len(times_s) // 2
        to_middle = axes[middle].T
        return cls(exposure_s, times_s, velocity,
                   Rotation.from_matrix(to_middle @ axes).as_rotvec(),
                   (places - places[middle]) @ to_middle.T)

    def pose(self, time_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rotation vectors and positions (..., 3) at times, linear between the knots."""
        return (_at(self.times_s, self.rotation_rad, time_s),
                _at(self.times_s, self.position, time_s))

    def mean_motion(self, time_s: np.ndarray) -> np.ndarray:
        """(..., 6), mean velocity over exposures about the given times, times exposure_s."""
        return self.exposure_s * _mean_over(self.times_s, self.velocity, time_s, self.exposure_s)


def sample_camera(rng: np.random.Generator, width_px: int, height_px: int,
                  lens: str | None = None) -> CameraIntrinsics:
    """
    A window of a 320 px wide image of a random camera; its axis may lie outside the window.

    :param lens: one of FIELDS_OF_VIEW_DEG; drawn if None
    """
    lens = lens or str(rng.choice(list(FIELDS_OF_VIEW_DEG), p=[0.35, 0.25, 0.25, 0.15]))
    view_rad = np.radians(rng.uniform(*FIELDS_OF_VIEW_DEG[lens]))
    focal = IMAGE_PX[0] / 2 / float(np.tan(view_rad / 2))
    centre = (np.array(IMAGE_PX) - 1) / 2 + rng.normal(0.0, CENTRE_STD_PX, 2)
    free = np.maximum(np.array(IMAGE_PX) - (width_px, height_px), 0)
    corner = rng.uniform(0.0, 1.0, 2) * free
    return CameraIntrinsics(width_px, height_px, focal, focal * float(rng.normal(1.0, 0.01)),
                            *(centre - corner).tolist())


def sample_motion(rng: np.random.Generator, focal_px: float) -> np.ndarray:
    """Draw (w T, v T / d): blur by rotation up to MAX_EXTENT_PX, translation as of a hand."""
    # even on the scale of the bins' rings, so that a cell that sees little pulls nowhere
    top = np.log1p(MAX_EXTENT_PX / RADIUS_SCALE_PX)
    extent = RADIUS_SCALE_PX * np.expm1(rng.uniform(0.0, top))
    axis = rng.standard_normal(3) * (1.0, 1.0, rng.choice([0.5, 1.0, 3.0]))
    rotation = axis / np.linalg.norm(axis * (1.0, 1.0, ROLL_LEVER)) * extent / focal_px
    rotation *= min(1.0, MAX_TURN_RAD / np.linalg.norm(rotation))
    return np.concatenate([rotation, translation_with(rng, rotation)])


def translation_with(rng: np.random.Generator, rotation_rad: np.ndarray) -> np.ndarray:
    """
    Draw the translation that comes with a turn of a hand-held or mounted camera.

    :returns: v T / d, (3,)
    """
    distance_m = np.exp(rng.uniform(*np.log(DISTANCE_M)))
    lever_m = rng.normal(0.0, LEVER_STD_M, 3).clip(-2.5 * LEVER_STD_M, 2.5 * LEVER_STD_M)
    # a hand that turns the camera by 3 rad/s sways at the full speed
    sway = rng.standard_normal(3) * SWAY_M_S * np.linalg.norm(rotation_rad) / 3.0 * rng.random()
    return (np.cross(rotation_rad, lever_m) + sway) / distance_m


def sample_exposure(rng: np.random.Generator, rotation_rad: np.ndarray) -> float:
    """Draw an exposure, s, in which a camera turns so far at MAX_SPEED_RAD_S or less."""
    shortest = max(np.linalg.norm(rotation_rad) / MAX_SPEED_RAD_S, EXPOSURES_S[0])
    return float(np.exp(rng.uniform(*np.log([min(shortest, EXPOSURES_S[1]), EXPOSURES_S[1]]))))


def sample_path(rng: np.random.Generator, motion: np.ndarray, exposure_s: float,
                readout_s: float = 0.0) -> CameraPath:
    """
    Draw how a camera moves whose mean motion over the exposure is given.

    Steadily, at a constant acceleration, in a hand's band-limited shake, or also vibrating.

    :param motion: (6,), w T and v T / d, of the middle row
    """
    span_s = exposure_s + readout_s
    knots = max(MIN_KNOTS, 1 + 2 * int(np.ceil(span_s * KNOTS_PER_S / 2)))
    times_s = np.linspace(-span_s / 2, span_s / 2, knots)
    size = np.repeat([np.linalg.norm(motion[:3]), np.linalg.norm(motion[3:])], 3) / 3 ** 0.5
    kind = rng.choice(['steady', 'accelerating', 'shaken', 'vibrating'], p=[0.3, 0.3, 0.25, 0.15])
    change = np.zeros((knots, 6))
    if kind != 'steady':
        # over no less than 5 ms, as nobody accelerates faster
        change += np.outer(times_s / max(exposure_s, 5e-3), size * rng.normal(0.0, 1.0, 6))
    for band_hz, share in ((SHAKE_HZ, 0.7), (VIBRATION_HZ, 0.5)):
        if kind == 'vibrating' or (kind == 'shaken' and band_hz is SHAKE_HZ):
            rate = 2 * np.pi * np.exp(rng.uniform(*np.log(band_hz), (3, 6)))
            wave = np.sin(times_s[:, None, None] * rate + rng.uniform(0, 2 * np.pi, (3, 6)))
            change += (wave * rng.uniform(0.0, share, (3, 6))).sum(axis=1) * size
    change -= _mean_over(times_s, change, np.zeros(()), exposure_s)
    return CameraPath.follow(exposure_s, times_s, (motion + change) / exposure_s)


def _mean_over(times_s: np.ndarray, values: np.ndarray, middle_s: np.ndarray,
               span_s: float) -> np.ndarray:
    """Means of values (M, 6), linear between the times, over spans about middles (...)."""
    step_s = times_s[1] - times_s[0]
    integral = np.zeros_like(values)
    np.cumsum(0.5 * (values[1:] + values[:-1]) * step_s, axis=0, out=integral[1:])
    return (_at(times_s, integral, middle_s + span_s / 2)
            - _at(times_s, integral, middle_s - span_s / 2)) / span_s


def _at(times_s: np.ndarray, values: np.ndarray, time_s: np.ndarray) -> np.ndarray:
    """Interpolate values (M, K) linearly at times (...); the ends go on as they are."""
    place = (np.asarray(time_s) - times_s[0]) / (times_s[1] - times_s[0])
    place = place.clip(0.0, len(values) - 1.0)
    before = np.minimum(place.astype(int), len(values) - 2)
    share = (place - before)[..., None]
    return (1.0 - share) * values[before] + share * values[before + 1]
