"""
Motion between two images by matched points, whatever the depth of each.

An alignment of whole images takes the scene to lie at one depth, so that much of a translation
passes for rotation. A point that is matched tells two numbers: across the line on which its depth
moves it, it tells of rotation and of the translation's direction; along that line, where its own
depth hides the rest, little.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

from image_as_imu_ros.compiled import compiled
from image_as_imu_ros.geometry.photometric import (
    WEAK_PRIOR,
    homography_of,
    magnitude_of_rank,
)
from image_as_imu_ros.geometry.quaternions import (
    composed,
    quaternion_of,
    vector_scale,
    write_rotation,
)
from image_as_imu_ros.geometry.small_matrices import dot, invert

POINTS = 150
DETECTION = 2
"""Reduction of the image in which points are chosen; coarser corners are the safer ones."""
QUALITY = 0.003
"""Least eigenvalue of a point's gradients, relative to the best point's."""
FAIR_QUALITY = 0.05
"""That of a point that is taken for half as sure as the best ones."""
APART_PX = 10
WINDOW_PX = 15
LEVELS = 1
"""Of the pyramid in which points are tracked, beyond the image itself."""
CRITERIA = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 8, 0.03)
RETURN_PX = 0.4
"""A point that is tracked forth and back ends within this distance of itself."""
MIN_POINTS = 25
GRAY_LEVELS = 255.0
DEPTH_SPREAD = 0.5
"""Standard deviation of the nearness of what a camera sees, relative to its mean."""
MEASURED_DEPTH_SPREAD = 0.15
"""The same where depth is measured."""
FREEDOM = 2.0
"""Degrees of freedom of the distribution (Student's) of a point's residuals."""
FIRST_NOISE_PX, LEAST_NOISE_PX, MOST_NOISE_PX = 0.1, 0.02, 2.0
POINTS_PER_WITNESS = 6.0
"""Windows of neighbouring points overlap: so many count as one independent witness."""
INLIER = 9.0
"""Squared standard deviations up to which a point counts as an inlier."""
SEARCH = ((4, 4), (4, 2), (4, 1))
"""Steps from each start, and starts kept."""
LAST_STEPS = 3
WAY_SPREAD = 0.02
"""Standard deviation of the translation over the depth that is expected, about none."""
LEAST_WAY = 1e-5
"""A direction must not be lost."""
AXES_WAY = np.diag([1.0, 1.0, 3.0])


class PointMotion(NamedTuple):
    """Motion by points, from the earlier camera to the later one."""

    motion: np.ndarray
    """(6,) rotation vector in rad and translation over the mean depth, in the earlier's axes."""
    covariance: np.ndarray
    """(6, 6) of `motion`."""
    inlier_share: float
    translation_spread: float = WAY_SPREAD ** 2
    """Variance of the translation that was expected, about none, before the images were seen."""


def refined_by_points(earlier: np.ndarray, later: np.ndarray, camera: np.ndarray,
                      motion: np.ndarray, nearness: np.ndarray | None = None,
                      ) -> PointMotion | None:
    """
    Improve a motion that was found as if the scene lay at one depth.

    :param earlier, later: (h, w) float32, 0 to 1, alike in blur
    :param camera: camera matrix (3, 3) of both, px
    :param motion: (6,), rotation vector of the later camera in the earlier one's axes, rad, and
        translation over the mean depth
    :param nearness: (rows, columns) of any resolution, mean depth of the scene over that of what
        the later image shows there; None: unknown
    :returns: None where too few points are found again
    """
    matches = match_points(earlier, later, homography_of(camera, motion))
    if matches is None or len(matches.doubt) < MIN_POINTS:
        return None
    if nearness is None:
        near, depth_spread = np.ones(len(matches.doubt)), DEPTH_SPREAD
    else:
        rows, columns = nearness.shape
        to_cells = columns / later.shape[1], rows / later.shape[0]
        column, row = (matches.at_later * to_cells).astype(int).T
        near, depth_spread = nearness[row, column].astype(float), MEASURED_DEPTH_SPREAD
    # the cost has several valleys: also begin with translations along the axes
    way = max(float(np.linalg.norm(motion[3:])), float(np.median(matches.off_px)) / camera[0, 0])
    starts = np.tile(motion, (1 + 2 * len(AXES_WAY), 1))
    starts[1:, 3:] = way * np.concatenate([AXES_WAY, -AXES_WAY])
    return PointMotion(*motion_of_points(matches.at_later, matches.at_earlier, matches.doubt, near,
                                         depth_spread, camera, starts))


class Matches(NamedTuple):
    """Points of the later image that were found again in the earlier one."""

    at_later: np.ndarray
    """(N, 2), px."""
    at_earlier: np.ndarray
    """(N, 2), px."""
    doubt: np.ndarray
    """(N,), variance of where a point was found, relative to that of a perfect corner."""
    off_px: np.ndarray
    """(N,), distance from where the point was expected, seen in the later image."""


def match_points(earlier: np.ndarray, later: np.ndarray, to_earlier: np.ndarray) -> Matches | None:
    """
    Match corners of the later image in the earlier one, by Lucas and Kanade's method.

    :param earlier, later: (h, w) float32, 0 to 1, alike in blur
    :param to_earlier: homography (3, 3) that nearly does so
    :returns: None where the later image has no corner
    """
    earlier, later = (cv2.convertScaleAbs(image, alpha=GRAY_LEVELS) for image in (earlier, later))
    height, width = later.shape
    coarse = cv2.resize(later, (width // DETECTION, height // DETECTION),
                        interpolation=cv2.INTER_AREA)
    points, quality = cv2.goodFeaturesToTrackWithQuality(coarse, POINTS, QUALITY,
                                                         APART_PX / DETECTION, None)
    if points is None:
        return None
    points = DETECTION * points + 0.5 * (DETECTION - 1)
    warped = cv2.warpPerspective(earlier, to_earlier, (width, height),
                                 flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    window = {'winSize': (WINDOW_PX, WINDOW_PX), 'criteria': CRITERIA}
    matched, found, _ = cv2.calcOpticalFlowPyrLK(later, warped, points, None, maxLevel=LEVELS,
                                                 **window)
    back, again, _ = cv2.calcOpticalFlowPyrLK(warped, later, matched, points.copy(), maxLevel=0,
                                              flags=cv2.OPTFLOW_USE_INITIAL_FLOW, **window)
    found &= again & (np.linalg.norm(back - points, axis=2) < RETURN_PX)
    at_earlier = cv2.perspectiveTransform(matched, to_earlier)[:, 0]
    border = 0.5 * WINDOW_PX
    inside = ((at_earlier > border) & (at_earlier < (width - border, height - border))).all(axis=1)
    kept = inside & (found[:, 0] > 0)
    return Matches(*(each[kept].astype(float) for each in (
        points[:, 0], at_earlier, 1.0 + FAIR_QUALITY * quality.max() / quality.ravel(),
        np.linalg.norm(matched - points, axis=2)[:, 0])))


@compiled
def motion_of_points(at_later: np.ndarray, at_earlier: np.ndarray, doubt: np.ndarray,
                     nearness: np.ndarray, depth_spread: float, camera: np.ndarray,
                     starts: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """
    Find the motion under which each point has moved, at whatever depth it is.

    Gauss-Newton steps from each start; the likeliest motion is refined with the noise that its
    residuals show.

    :param at_later, at_earlier, doubt: as of `Matches`
    :param nearness: (N,), mean depth of the scene over that of a point, as far as it is known
    :param depth_spread: standard deviation of that
    :param camera: camera matrix (3, 3) of both, px
    :param starts: (K, 6), rotation vector of the later camera in the earlier one's axes, rad, and
        translation over the mean depth
    :returns: motion (6,), covariance (6, 6) and share of inliers
    """
    candidates, noise = starts.copy(), FIRST_NOISE_PX
    distances = np.zeros(len(nearness), np.float32)
    for steps, kept in SEARCH:
        costs, least = np.empty(len(candidates)), math.inf
        for k in range(len(candidates)):
            candidates[k], _, costs[k], across, _ = _stepped(
                at_later, at_earlier, doubt, nearness, depth_spread, camera, candidates[k], noise,
                steps)
            if costs[k] < least:
                least, distances = costs[k], across
        candidates = candidates[np.argsort(costs)[:kept]]
        noise = 1.4826 * magnitude_of_rank(distances, len(distances) // 2)
        noise = min(max(noise, LEAST_NOISE_PX), MOST_NOISE_PX)
    motion, covariance, _, _, inlier_share = _stepped(
        at_later, at_earlier, doubt, nearness, depth_spread, camera, candidates[0], noise,
        LAST_STEPS)
    return motion, covariance, inlier_share


@compiled
def _stepped(at_later, at_earlier, doubt, nearness, depth_spread, camera, start, noise, steps):
    """Motion after some steps, its covariance, cost, distances across and share of inliers."""
    fx, fy, cx, cy = camera[0, 0], camera[1, 1], camera[0, 2], camera[1, 2]
    count = len(nearness)
    motion, step, rotation = start.copy(), np.empty(6), np.empty((3, 3))
    turn = quaternion_of(start[0], start[1], start[2])
    across, along = np.empty(6), np.empty(6)
    information, vector = np.empty((6, 6)), np.empty(6)
    distances = np.empty(count, np.float32)
    cost = inliers = 0.0
    for iteration in range(steps + 1):
        write_rotation(rotation, turn)
        if abs(motion[3]) + abs(motion[4]) + abs(motion[5]) < LEAST_WAY:
            motion[3] = LEAST_WAY
        information[:] = 0.0
        vector[:] = 0.0
        cost = inliers = 0.0
        for i in range(count):
            x, y = (at_later[i, 0] - cx) / fx, (at_later[i, 1] - cy) / fy
            over_z = 1.0 / max(rotation[2, 0] * x + rotation[2, 1] * y + rotation[2, 2], 1e-3)
            u = (rotation[0, 0] * x + rotation[0, 1] * y + rotation[0, 2]) * over_z
            v = (rotation[1, 0] * x + rotation[1, 1] * y + rotation[1, 2]) * over_z
            # how the point moves by the translation, if at the mean depth
            way_u, way_v = fx * (motion[3] - u * motion[5]), fy * (motion[4] - v * motion[5])
            way = math.sqrt(way_u * way_u + way_v * way_v) + 1e-9
            along_u, along_v = way_u / way, way_v / way
            off_u = at_earlier[i, 0] - cx - fx * u - nearness[i] * way_u
            off_v = at_earlier[i, 1] - cy - fy * v - nearness[i] * way_v
            off_along = along_u * off_u + along_v * off_v
            off_across = along_u * off_v - along_v * off_u
            hidden = depth_spread * way
            variance = noise * noise * doubt[i]
            variance_along = variance + hidden * hidden
            distance = off_across * off_across / variance + off_along * off_along / variance_along
            distances[i] = abs(off_across) / math.sqrt(doubt[i])
            # along the line a depth may hide anything, which would speak for long ways
            cost += math.log1p(off_across * off_across / (FREEDOM * variance))
            inliers += off_across * off_across < INLIER * variance
            if iteration == steps:
                continue
            # a nearer point is the better witness of the translation's direction
            near = nearness[i] + depth_spread * hidden * off_along / variance_along
            flow_u = (-fx * u * v, fx * (1.0 + u * u), -fx * v)
            flow_v = (-fy * (1.0 + v * v), fy * u * v, fy * u)
            for d in range(3):
                across[d] = along_u * flow_v[d] - along_v * flow_u[d]
                along[d] = along_u * flow_u[d] + along_v * flow_v[d]
            across[3], across[4] = -along_v * fx * near, along_u * fy * near
            across[5] = (along_v * fx * u - along_u * fy * v) * near
            along[3], along[4] = along_u * fx * nearness[i], along_v * fy * nearness[i]
            along[5] = -(along_u * fx * u + along_v * fy * v) * nearness[i]
            weight = 1.0 / (POINTS_PER_WITNESS * (1.0 + distance / FREEDOM))
            weight_across, weight_along = weight / variance, weight / variance_along
            for a in range(6):
                vector[a] += weight_across * off_across * across[a] \
                    + weight_along * off_along * along[a]
                for b in range(a + 1):
                    information[a, b] += weight_across * across[a] * across[b] \
                        + weight_along * along[a] * along[b]
        if iteration == steps:
            break
        for a in range(6):
            for b in range(a):
                information[b, a] = information[a, b]
            information[a, a] += WEAK_PRIOR
            if a >= 3:
                information[a, a] += 1.0 / WAY_SPREAD ** 2
                vector[a] -= motion[a] / WAY_SPREAD ** 2
        invert(information)
        for a in range(6):
            step[a] = dot(information[a], vector)
        turn = composed(quaternion_of(step[0], step[1], step[2]), turn)
        covariance = information.copy()
        for d in range(3):
            motion[3 + d] += step[3 + d]
    scale = vector_scale(turn)
    for d in range(3):
        motion[d] = scale * turn[1 + d]
    return motion, covariance, cost, distances, inliers / count
