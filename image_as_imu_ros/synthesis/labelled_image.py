"""An image with everything that is known of how it was blurred: one row of a dataset."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from image_as_imu_ros.geometry.motion_field import motion_field_matrix, pixel_grid
from image_as_imu_ros.types import CameraIntrinsics

MAX_MEAN_FLOW_PX = 30.0
"""The paper leaves out images that are blurred more."""
INSTANTS = 21
"""Of an exposure, at which its time-resolved velocity is stated, both ends included."""


@dataclass(frozen=True)
class LabelledImage:
    """
    An image, its camera, and the motion, depth and image motion of its exposure.

    Velocities are those of the camera in its own axes at each instant (x right, y down, z
    forward): a static point moves dX/dt = -w x X - v.
    """

    image: np.ndarray
    """(H, W) gray or (H, W, 3) RGB, uint8."""
    inverse_depth_per_m: np.ndarray
    """(H, W) float32, along the optical axis at mid-exposure, positive."""
    flow_px: np.ndarray
    """
    (2, H, W) float32, (u, v): displacement of what each pixel shows at mid-exposure, over the
    exposure of its row.
    """
    intrinsics: CameraIntrinsics
    exposure_time_s: float
    angular_velocity_rad_s: np.ndarray
    """(3,), mean over the exposure, of the middle row where the shutter rolls."""
    linear_velocity_m_s: np.ndarray
    """(3,), likewise."""
    velocities: np.ndarray
    """(INSTANTS, 7): time from mid-exposure in s, w in rad/s, v in m/s."""
    T_end_start: np.ndarray
    """(4, 4), from the camera's axes at the start of the exposure to those at its end."""
    source: str
    """What the image shows, in a word or two."""
    start_s: float = 0.0
    """Time of the start of the exposure on the clock of a recording."""
    readout_time_s: float = 0.0
    """From the first to the last row; 0 for a global shutter."""
    ends: tuple[np.ndarray, np.ndarray] | None = None
    """Sharp images of the same camera at start and end of the exposure, if there are any."""

    @property
    def motion(self) -> np.ndarray:
        """(w T, v T), (6,), rad and m."""
        return self.exposure_time_s * np.concatenate(
            [self.angular_velocity_rad_s, self.linear_velocity_m_s])


def mean_flow_px(motion: np.ndarray, inverse_depth_per_m: np.ndarray,
                 intrinsics: CameraIntrinsics) -> np.ndarray:
    """
    Displacement of every pixel by a mean motion (w T, v T).

    :param inverse_depth_per_m: (H, W)
    :returns: (2, H, W) float32, (u, v), px
    """
    grid = pixel_grid(intrinsics.width_px, intrinsics.height_px, 1)
    matrix = motion_field_matrix(grid, intrinsics)
    flow = matrix[..., :3] @ motion[:3] \
        + matrix[..., 3:] @ motion[3:] * inverse_depth_per_m[..., None]
    return flow.astype(np.float32).transpose(2, 0, 1)


def pose_matrix(rotation_rad: np.ndarray, position_m: np.ndarray) -> np.ndarray:
    """Pose of a rotation vector and a position, (4, 4)."""
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = Rotation.from_rotvec(rotation_rad).as_matrix(), position_m
    return pose
