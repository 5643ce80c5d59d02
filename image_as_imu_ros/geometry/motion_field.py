"""Image motion of a moving pinhole camera in closed form."""

from __future__ import annotations

import numpy as np

from image_as_imu_ros.types import CameraIntrinsics


def cross_matrix(vector: np.ndarray) -> np.ndarray:
    """Matrix (3, 3) of the cross product with a vector (3,), from the left."""
    x, y, z = vector.tolist()
    return np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])


def motion_field_matrix(points_px: np.ndarray, intrinsics: CameraIntrinsics) -> np.ndarray:
    """
    Linear map from the camera's motion to image motion at given pixels.

    The flow in px over an exposure T is `A @ [w T, v T / Z]`, with w (rad/s) and v (m/s) the
    camera's velocities in its optical frame (x right, y down, z forward) and Z (m) the depth:
    a static point moves dX/dt = -w x X - v. Distortion is not modelled; undistort first.

    :param points_px: (..., 2), pixel coordinates (x, y)
    :param intrinsics: of the same image
    :returns: A, (..., 2, 6), rows (u, v), columns (w T in rad, v T / Z unitless), px

    Source: Longuet-Higgins and Prazdny (1980), doi:10.1098/rspb.1980.0057.
    """
    x = (points_px[..., 0] - intrinsics.cx_px) / intrinsics.fx_px
    y = (points_px[..., 1] - intrinsics.cy_px) / intrinsics.fy_px
    zero, one = np.zeros_like(x), np.ones_like(x)
    u = np.stack([x * y, -(1.0 + x * x), y, -one, zero, x], axis=-1) * intrinsics.fx_px
    v = np.stack([1.0 + y * y, -x * y, -x, zero, -one, y], axis=-1) * intrinsics.fy_px
    return np.stack([u, v], axis=-2)


def pixel_grid(width_px: int, height_px: int, stride_px: int) -> np.ndarray:
    """Centres of the stride x stride cells of an image, (height/stride, width/stride, 2), px."""
    xs = np.arange(width_px // stride_px) * stride_px + (stride_px - 1) / 2
    ys = np.arange(height_px // stride_px) * stride_px + (stride_px - 1) / 2
    return np.stack(np.meshgrid(xs, ys), axis=-1)


def plane_homography(intrinsics: CameraIntrinsics, rotation: np.ndarray, position: np.ndarray,
                     normal_over_distance: np.ndarray) -> np.ndarray:
    """
    Homography from a displaced camera's pixels to the reference camera's, through a plane.

    :param rotation: (..., 3, 3), displaced camera's axes in the reference camera's
    :param position: (..., 3), displaced camera's centre in the reference camera, m
    :param normal_over_distance: (3,), n with n . X = 1 on the plane, 1/m; zeros for infinity
    :returns: (..., 3, 3), x_reference ~ H x_displaced, px
    """
    n = normal_over_distance
    scale = 1.0 - position @ n
    inner = (position[..., :, None] * n + scale[..., None, None] * np.eye(3)) @ rotation
    return intrinsics.matrix @ inner @ np.linalg.inv(intrinsics.matrix)
