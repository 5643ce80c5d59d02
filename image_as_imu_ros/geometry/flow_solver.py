"""Camera motion from dense flow and depth, by the linear least squares of the paper."""

from __future__ import annotations

import numpy as np

from image_as_imu_ros.geometry.blur_solver import BlurSolution

BORDER_PX = 20
SAMPLE_STEP = 10
PIXELS_PER_WITNESS = 1536.0
"""Neighbouring pixels err together: so many count as one independent witness."""
SHARED_ERROR_PX = 1.0
"""Error of the flow that all pixels share."""
INLIER_PX = 2.0
DEPTH_RANGE_M = (0.01, 1e4)


def sample_pixels(width_px: int, height_px: int) -> np.ndarray:
    """Every tenth pixel, row by row, that is not at the border, (N, 2), (x, y)."""
    x, y = np.meshgrid(np.arange(BORDER_PX, width_px - BORDER_PX),
                       np.arange(BORDER_PX, height_px - BORDER_PX))
    return np.stack([x.ravel(), y.ravel()], axis=-1)[::SAMPLE_STEP]


def solve_flow(flow_px: np.ndarray, depth_m: np.ndarray, matrix: np.ndarray) -> BlurSolution:
    """
    Find the motion whose motion field is nearest to the flow.

    :param flow_px: (N, 2), (u, v), over the exposure
    :param depth_m: (N,)
    :param matrix: (N, 2, 6), motion field matrix at the same pixels
    :returns: the motion, with metric translation for its `depth_m`, the median depth
    """
    depth_m = np.clip(depth_m.astype(float), *DEPTH_RANGE_M)
    median_m = float(np.median(depth_m))
    design = matrix.copy()
    design[..., 3:] *= (median_m / depth_m)[:, None, None]
    rows, flow = design.reshape(-1, 6), flow_px.astype(float)
    motion = np.linalg.lstsq(rows, flow.ravel(), rcond=None)[0]
    predicted = (rows @ motion).reshape(-1, 2)
    error = ((flow - predicted) ** 2).sum(axis=-1)
    power = (flow ** 2).sum(axis=-1).mean()
    # at least the shared error, so that flow of nearly zero is neither certain nor nonsense
    variance = 0.5 * (error.mean() + SHARED_ERROR_PX ** 2)
    witnesses_per_sample = SAMPLE_STEP / PIXELS_PER_WITNESS
    covariance = variance / witnesses_per_sample * np.linalg.inv(rows.T @ rows)
    focal_px = float(np.abs(matrix[:, 0, 3]).mean())
    covariance[:3, :3] += np.eye(3) * (SHARED_ERROR_PX / focal_px) ** 2
    return BlurSolution(
        motion, covariance, -0.5 * float(error.mean()),
        float(np.clip(1.0 - error.mean() / (power + SHARED_ERROR_PX ** 2), 0.0, 1.0)),
        float(np.mean(error < INLIER_PX ** 2)),
        float(np.median(np.linalg.norm(predicted, axis=-1))), median_m)
