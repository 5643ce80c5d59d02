"""
Rotation between two frames of a scene of any depth, where time does not press.

The alignment of whole images takes the scene to lie at one depth, so that part of a translation
passes for rotation: a few percent, where a hand or an arm turns the camera. Here the earlier
image is warped onto the later one by that alignment, the flow that remains is matched densely, and
rotation and direction of translation are those that bring every pixel onto its epipolar line,
whatever its depth.
"""

from __future__ import annotations

import cv2
import numpy as np
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from image_as_imu_ros.geometry.alignment import Alignment, with_blur
from image_as_imu_ros.geometry.motion_field import cross_matrix
from image_as_imu_ros.geometry.photometric import homography_of
from image_as_imu_ros.types import CameraIntrinsics

FACING = np.array([0.0, 0.0, 1.0])
GRAY_LEVELS = 255.0
WINDOW_PX = 9
BORDER_PX = 7
MATCH_NOISE_GRAY = 2.0
"""Difference of matched windows, which their gradients turn into an uncertainty of the flow."""
MATCH_FLOOR_PX = 0.02
CAUCHY_SCALE = 1.5
ROUNDS = 2
MAX_STEPS = 15
MIN_PIXELS = 200
STRIDE_PX = 3
PIXELS_PER_WITNESS = 3.5
"""Neighbouring flow is alike: so many of the pixels taken count as one independent witness."""
UNMODELLED_RAD = 0.0005
UNMODELLED_SHARE = 0.01
"""Error of the rotation that remains, absolute and relative to it."""


def refine_rotation(earlier: np.ndarray, later: np.ndarray, intrinsics: CameraIntrinsics,
                    alignment: Alignment, earlier_blur: np.ndarray | None,
                    later_blur: np.ndarray | None) -> tuple[np.ndarray, np.ndarray] | None:
    """
    Improve the rotation of an alignment.

    :param earlier, later: (h, w) float32 working images, 0 to 1
    :param intrinsics: of the working images
    :param earlier_blur, later_blur: (6,) motion over each exposure, any sign; None: sharp
    :returns: rotation vector (3,) in the earlier camera's axes, rad, and its covariance (3, 3);
        None where the images share too little
    """
    rotation = Rotation.from_rotvec(alignment.motion[:3])
    translation = alignment.motion[3:]
    to_earlier = homography_of(intrinsics.matrix, alignment.motion)
    images = [np.clip(GRAY_LEVELS * (image if blur is None else with_blur(
        image, intrinsics, blur)), 0.0, GRAY_LEVELS).astype(np.uint8)
              for image, blur in ((earlier, later_blur), (later, earlier_blur))]
    at_later, at_earlier, covariance = _matches(*images, to_earlier)
    if len(at_later) < MIN_PIXELS:
        return None
    inverse = np.linalg.inv(intrinsics.matrix)
    rays_later, rays_earlier = (np.pad(points, ((0, 0), (0, 1)), constant_values=1.0) @ inverse.T
                                for points in (at_later, at_earlier))
    focal = np.array([intrinsics.fx_px, intrinsics.fy_px])
    start = translation if np.linalg.norm(translation) > 1e-6 else FACING
    start = start / np.linalg.norm(start)
    sideways = np.linalg.svd(start[None])[2][1:]
    turned = rays_later @ rotation.as_matrix().T

    def distances(step: np.ndarray) -> np.ndarray:
        """Distance of each pixel from its epipolar line, in standard deviations, (N,)."""
        across = cross_matrix(start + step[3:] @ sideways)
        lines = turned @ (across @ Rotation.from_rotvec(step[:3]).as_matrix()).T
        u, v = (lines[:, :2] / focal).T
        spread = covariance[:, 0, 0] * u * u + 2 * covariance[:, 0, 1] * u * v \
            + covariance[:, 1, 1] * v * v
        return (rays_earlier * lines).sum(axis=1) / np.sqrt(spread + 1e-18)

    step, noise = np.zeros(5), 1.0
    for _ in range(ROUNDS):
        fit = least_squares(distances, step, loss='cauchy', f_scale=CAUCHY_SCALE * noise,
                            max_nfev=MAX_STEPS)
        step = fit.x
        noise = 1.4826 * float(np.median(np.abs(distances(step)))) + 1e-9
    vector = (Rotation.from_rotvec(step[:3]) * rotation).as_rotvec()
    spread = PIXELS_PER_WITNESS * noise ** 2 * np.linalg.pinv(fit.jac.T @ fit.jac)[:3, :3]
    unmodelled = UNMODELLED_RAD ** 2 + UNMODELLED_SHARE ** 2 * (vector @ vector)
    return vector, spread + unmodelled * np.eye(3)


def _matches(earlier: np.ndarray, later: np.ndarray,
             to_earlier: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Match the later image's pixels in the earlier one.

    :param earlier, later: (h, w) uint8
    :param to_earlier: homography (3, 3) that nearly does so
    :returns: pixels of the later image (N, 2), where they are in the earlier (N, 2), and the
        covariance of that (N, 2, 2), px
    """
    height, width = later.shape
    flags = {'flags': cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP}
    warped = cv2.warpPerspective(earlier, to_earlier, (width, height), **flags)
    seen = cv2.warpPerspective(np.ones_like(earlier), to_earlier, (width, height), **flags)
    seen[[0, -1]] = seen[:, [0, -1]] = 0
    seen = cv2.erode(seen, np.ones((2 * BORDER_PX + 1,) * 2), borderValue=0)
    matcher = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    matcher.setFinestScale(0)
    flow = matcher.calc(later, warped, None)

    gx = cv2.Sobel(later, cv2.CV_32F, 1, 0, scale=1 / 8)
    gy = cv2.Sobel(later, cv2.CV_32F, 0, 1, scale=1 / 8)
    xx, xy, yy = (cv2.blur(product, (WINDOW_PX, WINDOW_PX)) for product in
                  (gx * gx, gx * gy, gy * gy))
    rows, columns = STRIDE_PX * np.array(np.nonzero(seen[::STRIDE_PX, ::STRIDE_PX]))
    structure = np.stack([xx, xy, xy, yy], axis=-1)[rows, columns].reshape(-1, 2, 2)
    spread = MATCH_NOISE_GRAY ** 2 * np.linalg.inv(structure + np.eye(2)) \
        + MATCH_FLOOR_PX ** 2 * np.eye(2)
    at_later = np.stack([columns, rows], axis=1).astype(float)
    x, y, z = to_earlier @ np.pad(at_later + flow[rows, columns], ((0, 0), (0, 1)),
                                  constant_values=1.0).T
    at_earlier = np.stack([x / z, y / z], axis=1)
    jacobian = (to_earlier[:2, :2] - at_earlier[:, :, None] * to_earlier[2, :2]) \
        / z[:, None, None]
    return at_later, at_earlier, jacobian @ spread @ jacobian.transpose(0, 2, 1)
