"""
Motion between two images by matched points, whatever the depth of each.

An alignment of whole images takes the scene to lie at one depth, so that much of a translation
passes for rotation. A point that is matched tells two numbers: across the line on which its depth
moves it, it tells of rotation and of the translation's direction; along that line, where its own
depth hides the rest, the less, the more the depths of points differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from image_as_imu_ros.compiled import compiled
from image_as_imu_ros.geometry.photometric import (
    WEAK_PRIOR,
    deviation,
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
QUALITY = 0.0005
"""Least eigenvalue of a point's gradients, relative to the best point's."""
FAIR_QUALITY = 0.03
"""That along a direction in which a point is taken for half as sure as the best ones."""
APART_PX = 10
WINDOW_PX = 13
LEVELS = 1
"""Of the pyramid in which points are tracked, beyond the image itself."""
CRITERIA = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 8, 0.03)
RETURN_PX = 0.4
"""
A point that is tracked forth and back ends within this distance of itself.

Or within so much more as it is less sure along a direction.
"""
MIN_POINTS = 25
GRAY_LEVELS = 255.0
DEPTH_SPREAD, LEAST_DEPTH_SPREAD = 0.5, 0.03
"""Standard deviation of the nearness of what a camera sees over its mean: at most and at least."""
MEASURED_DEPTH_SPREAD = 0.15
"""The most of it where depth is measured."""
VISIBLE = 2.0
"""Noises by which such a spread moves points where it can be told from them."""
FREEDOM = 2.0
"""Degrees of freedom of the distribution (Student's) of a point's residuals."""
FIRST_NOISE_PX, LEAST_NOISE_PX, MOST_NOISE_PX = 0.1, 0.02, 2.0
POINTS_PER_WITNESS = 6.0
"""Windows of neighbouring points overlap: so many count as one independent witness."""
INLIER = 9.0
"""Squared standard deviations up to which a point counts as an inlier."""
SEARCH = ((3, 3), (3, 1))
"""Steps from each start, and starts kept."""
ROUNDS, ROUND_STEPS = 3, 2
"""Rounds of steps at last, each with noise and spread of depths as they show."""
WAY_SPREAD = 0.02
"""Standard deviation of the translation over the depth that is expected, about none."""
LEAST_WAY = 1e-5
"""A direction must not be lost."""
AXES_WAY = np.diag([1.0, 1.0, 3.0])
UNKNOWNS = 8
"""Rotation, translation, and slopes of the nearness across the image; then those of the rows."""
NOTHING_EXPECTED = np.zeros(6), np.zeros((6, 6))


class PointMotion(NamedTuple):
    """Motion by points, from the earlier camera to the later one."""

    motion: np.ndarray
    """(6,) rotation vector in rad and translation over the mean depth, in the earlier's axes."""
    covariance: np.ndarray
    """(6, 6) of `motion`."""
    inlier_share: float
    translation_spread: float
    """Variance of the translation that was expected, about none, before the images were seen."""
    noise_px: float
    """Of a point, across the line on which its depth moves it."""
    rows: np.ndarray
    """(E,), what makes rows differ, as of `Matches.by_rows`."""
    joint_covariance: np.ndarray
    """(6 + E, 6 + E), of `motion` and that."""
    matches: Matches | None = None
    """The points as they were found, whether or not they were straightened."""


def refined_by_points(earlier: np.ndarray, later: np.ndarray, camera: np.ndarray,
                      motion: np.ndarray, nearness: np.ndarray | None = None,
                      expected: tuple[np.ndarray, np.ndarray] = NOTHING_EXPECTED,
                      straighten: Callable[[Matches], Matches] | None = None,
                      usable: np.ndarray | None = None) -> tuple[PointMotion, ...]:
    """
    Improve a motion that was found as if the scene lay at one depth.

    :param earlier, later: (h, w) float32, 0 to 1, alike in blur
    :param camera: camera matrix (3, 3) of both, px
    :param motion: (6,), rotation vector of the later camera in the earlier one's axes, rad, and
        translation over the mean depth
    :param nearness: (rows, columns) of any resolution, mean depth of the scene over that of what
        the later image shows there; None: unknown
    :param expected: motion (6,) that was expected and its inverse covariance (6, 6), to choose
        between motions that explain the points alike, as two do where all lie on a plane; it has
        no part in the answer
    :param straighten: moves points to where all rows exposed at once would have shown them
    :param usable: as of `match_points`
    :returns: the motion by the points as they are and, where they can be straightened, by those;
        nothing where too few points are found again
    """
    matches = match_points(earlier, later, homography_of(camera, motion), usable)
    if matches is None or len(matches.doubt) < MIN_POINTS:
        return ()
    if nearness is None:
        near, depth_spread = np.ones(len(matches.doubt)), DEPTH_SPREAD
    else:
        rows, columns = nearness.shape
        to_cells = columns / later.shape[1], rows / later.shape[0]
        column, row = (matches.at_later * to_cells).astype(int).T
        near, depth_spread = nearness[row, column].astype(float), MEASURED_DEPTH_SPREAD
    way = max(float(np.linalg.norm(motion[3:])), float(np.median(matches.off_px)) / camera[0, 0])
    return tuple(PointMotion(*motion_of_points(
        each.at_later, each.at_earlier, each.doubt, near, depth_spread, each.by_rows,
        each.rows_information, camera, starts_about(motion, way), *expected), matches)
        for each in (matches, *([] if straighten is None else [straighten(matches)])))


def starts_about(motion: np.ndarray, way: float) -> np.ndarray:
    """
    Motions to begin from, (7, 6), as the likelihood has several hills.

    :param motion: (6,), the first of them; the others translate along the axes instead
    :param way: length of those translations over the mean depth
    """
    starts = np.tile(motion, (1 + 2 * len(AXES_WAY), 1))
    starts[1:, 3:] = way * np.concatenate([AXES_WAY, -AXES_WAY])
    return starts


class Matches(NamedTuple):
    """Points of the later image that were found again in the earlier one."""

    at_later: np.ndarray
    """(N, 2), px."""
    at_earlier: np.ndarray
    """(N, 2), px."""
    doubt: np.ndarray
    """
    (N, 3), covariance of where a point was found in the earlier image, of x, of both, of y.

    Relative to the variance of a perfect corner; along an edge a point is less sure.
    """
    off_px: np.ndarray
    """(N,), distance from where the point was expected, seen in the later image."""
    by_rows: np.ndarray
    """(N, 2, E), how a match moves, seen in the earlier image, px, with what makes rows differ."""
    rows_information: np.ndarray
    """(E, E), inverse covariance of what is expected of that, about zero."""


def match_points(earlier: np.ndarray, later: np.ndarray, to_earlier: np.ndarray,
                 usable: np.ndarray | None = None) -> Matches | None:
    """
    Match corners of the later image in the earlier one, by Lucas and Kanade's method.

    :param earlier, later: (h, w) float32, 0 to 1, alike in blur
    :param to_earlier: homography (3, 3) that nearly does so
    :param usable: (h, w) bool, where points may be, of either image; None: everywhere
    :returns: None where the later image has no corner
    """
    earlier, later = (cv2.convertScaleAbs(image, alpha=GRAY_LEVELS) for image in (earlier, later))
    height, width = later.shape
    coarse = cv2.resize(later, (width // DETECTION, height // DETECTION),
                        interpolation=cv2.INTER_AREA)
    places = None if usable is None else cv2.resize(
        usable.view(np.uint8), (width // DETECTION, height // DETECTION),
        interpolation=cv2.INTER_NEAREST)
    points = cv2.goodFeaturesToTrack(coarse, POINTS, QUALITY, APART_PX / DETECTION, mask=places)
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
    points, matched, back = points[:, 0], matched[:, 0], back[:, 0]
    xx, xy, yy = _doubt_of(later, points).T
    x, y = (back - points).T.astype(float)
    returns = (yy * x * x - 2.0 * xy * x * y + xx * y * y) < RETURN_PX ** 2 * (xx * yy - xy * xy)
    at_earlier = cv2.perspectiveTransform(matched[:, None], to_earlier)[:, 0]
    border = 0.5 * WINDOW_PX
    inside = ((at_earlier > border) & (at_earlier < (width - border, height - border))).all(axis=1)
    if usable is not None:
        column, row = np.rint(at_earlier).astype(int).T
        inside &= usable[row.clip(0, height - 1), column.clip(0, width - 1)]
    kept = inside & returns & (found & again)[:, 0].astype(bool)
    (a, b), (c, d) = to_earlier[:2, :2] / to_earlier[2, 2]
    doubt = np.array([a * a * xx + 2.0 * a * b * xy + b * b * yy,
                      a * c * xx + (a * d + b * c) * xy + b * d * yy,
                      c * c * xx + 2.0 * c * d * xy + d * d * yy])
    of_points = (each[kept].astype(float) for each in (
        points, at_earlier, doubt.T, np.linalg.norm(matched - points, axis=1)))
    return Matches(*of_points, np.zeros((kept.sum(), 2, 0)), np.zeros((0, 0)))


@compiled
def _doubt_of(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """
    How unsure it is where points are found, by the gradients of their windows.

    :param image: (h, w) uint8
    :param points: (N, 2) float32, px
    :returns: (N, 3), as of `Matches`, but in this image
    """
    reach, best = WINDOW_PX // 2, 1e-9
    gradients = np.zeros((len(points), 3))
    for i in range(len(points)):
        column, row = round(points[i, 0]), round(points[i, 1])
        for y in range(max(row - reach, 1), min(row + reach, image.shape[0] - 2) + 1):
            for x in range(max(column - reach, 1), min(column + reach, image.shape[1] - 2) + 1):
                along_x = float(image[y, x + 1]) - float(image[y, x - 1])
                along_y = float(image[y + 1, x]) - float(image[y - 1, x])
                gradients[i, 0] += along_x * along_x
                gradients[i, 1] += along_x * along_y
                gradients[i, 2] += along_y * along_y
        xx, xy, yy = gradients[i]
        best = max(best, 0.5 * (xx + yy - math.sqrt((xx - yy) ** 2 + 4.0 * xy * xy)))
    doubt = np.empty_like(gradients)
    for i in range(len(points)):
        xx, xy, yy = gradients[i]
        scale = FAIR_QUALITY * best / max(xx * yy - xy * xy, 1e-9 * best * best)
        doubt[i] = 1.0 + scale * yy, -scale * xy, 1.0 + scale * xx
    return doubt


@compiled
def motion_of_points(
        at_later: np.ndarray, at_earlier: np.ndarray, doubt: np.ndarray, nearness: np.ndarray,
        depth_spread: float, by_rows: np.ndarray, rows_information: np.ndarray,
        camera: np.ndarray, starts: np.ndarray, expected: np.ndarray,
        expected_information: np.ndarray,
        ) -> tuple[np.ndarray, np.ndarray, float, float, float, np.ndarray, np.ndarray]:
    """
    Find the motion under which each point has moved, at whatever depth it is.

    Gauss-Newton steps from each start, over the motion and the slope of the depth; the likeliest
    motion is refined with the noise and the spread of depths that its residuals show.

    :param at_later, at_earlier, doubt: as of `Matches`
    :param nearness: (N,), mean depth of the scene over that of a point, as far as it is known
    :param depth_spread: standard deviation of that
    :param by_rows, rows_information: as of `Matches`
    :param camera: camera matrix (3, 3) of both, px
    :param starts: (K, 6), rotation vector of the later camera in the earlier one's axes, rad, and
        translation over the mean depth
    :param expected, expected_information: (6,), (6, 6), as of `refined_by_points`
    :returns: as `PointMotion`
    """
    size = UNKNOWNS + len(rows_information)
    candidates, noise = np.zeros((len(starts), size)), FIRST_NOISE_PX
    candidates[:, :6] = starts
    residuals = np.zeros((3, len(nearness)), np.float32)
    for steps, kept in SEARCH:
        costs, least = np.empty(len(candidates)), math.inf
        for k in range(len(candidates)):
            candidates[k], _, costs[k], seen, _ = _stepped(
                at_later, at_earlier, doubt, nearness, depth_spread, depth_spread, by_rows,
                rows_information, camera, candidates[k], noise, steps)
            surprise = candidates[k, :6] - expected
            costs[k] += 0.5 * surprise @ (expected_information @ surprise)
            if costs[k] < least:
                least, residuals = costs[k], seen
        candidates = candidates[np.argsort(costs)[:kept]]
        noise = _noise_of(residuals)
    unknowns, covariance, inlier_share = candidates[0], np.eye(size), 0.0
    for _ in range(ROUNDS):
        spread = _spread_of(residuals, noise, depth_spread)
        unknowns, covariance, _, residuals, inlier_share = _stepped(
            at_later, at_earlier, doubt, nearness, spread, depth_spread, by_rows,
            rows_information, camera, unknowns, noise, ROUND_STEPS)
        noise = _noise_of(residuals)
    told = np.concatenate((np.arange(6), np.arange(UNKNOWNS, size)))
    joint = covariance[told][:, told]
    return unknowns[:6], covariance[:6, :6], inlier_share, WAY_SPREAD ** 2, noise, \
        unknowns[UNKNOWNS:], joint


@compiled
def _noise_of(residuals):
    """Noise of a point, px, by the residuals of `_stepped`."""
    noise = deviation(residuals[0], residuals.shape[1])
    return min(max(noise, LEAST_NOISE_PX), MOST_NOISE_PX)


@compiled
def _spread_of(residuals, noise, most):
    """Spread of the nearness by the residuals of `_stepped`, where it moves points visibly."""
    count = residuals.shape[1]
    off, way = deviation(residuals[1], count), magnitude_of_rank(residuals[2], count // 2)
    if way * most < VISIBLE * noise:
        return most
    spread = math.sqrt(max(off * off - noise * noise, 0.0)) / way
    return min(max(spread, LEAST_DEPTH_SPREAD), most)


@compiled
def _stepped(at_later, at_earlier, doubt, nearness, depth_spread, slope_spread, by_rows,
             rows_information, camera, start, noise, steps):
    """
    Take Gauss-Newton steps.

    :returns: unknowns (8 + E,), their covariance, negative log-likelihood, residuals (3, N):
        across the line on which the depth moves a point, along it, and its way by the translation,
        px, and share of inliers
    """
    fx, fy, cx, cy = camera[0, 0], camera[1, 1], camera[0, 2], camera[1, 2]
    count = len(nearness)
    size, more = len(start), len(rows_information)
    unknowns, step, rotation = start.copy(), np.empty(size), np.empty((3, 3))
    turn = quaternion_of(start[0], start[1], start[2])
    across, along = np.zeros(size), np.empty(size)
    # what each unknown moves, and last what is left: of all points across the line, then along it
    moves = np.empty((size + 1, 2 * count))
    information, vector = np.empty((size, size)), np.empty(size)
    covariance = np.empty((size, size))
    residuals = np.empty((3, count), np.float32)
    to_nats = 0.5 * (FREEDOM + 1.0) / POINTS_PER_WITNESS
    cost = inliers = 0.0
    for iteration in range(steps + 1):
        write_rotation(rotation, turn)
        if abs(unknowns[3]) + abs(unknowns[4]) + abs(unknowns[5]) < LEAST_WAY:
            unknowns[3] = LEAST_WAY
        tx, ty, tz = unknowns[3], unknowns[4], unknowns[5]
        cost = inliers = 0.0
        for i in range(count):
            x, y = (at_later[i, 0] - cx) / fx, (at_later[i, 1] - cy) / fy
            over_z = 1.0 / max(rotation[2, 0] * x + rotation[2, 1] * y + rotation[2, 2], 1e-3)
            u = (rotation[0, 0] * x + rotation[0, 1] * y + rotation[0, 2]) * over_z
            v = (rotation[1, 0] * x + rotation[1, 1] * y + rotation[1, 2]) * over_z
            # how the translation moves a point at the mean depth
            way_u, way_v = fx * (tx - u * tz), fy * (ty - v * tz)
            way = math.sqrt(way_u * way_u + way_v * way_v) + 1e-9
            along_u, along_v = way_u / way, way_v / way
            near = nearness[i] + unknowns[6] * x + unknowns[7] * y
            off_u = at_earlier[i, 0] - cx - fx * u - near * way_u
            off_v = at_earlier[i, 1] - cy - fy * v - near * way_v
            for e in range(more):
                off_u += unknowns[UNKNOWNS + e] * by_rows[i, 0, e]
                off_v += unknowns[UNKNOWNS + e] * by_rows[i, 1, e]
            off_along = along_u * off_u + along_v * off_v
            off_across = along_u * off_v - along_v * off_u
            hidden = depth_spread * way
            xx, xy, yy = doubt[i]
            doubt_across = along_v * along_v * xx - 2.0 * along_u * along_v * xy \
                + along_u * along_u * yy
            doubt_along = along_u * along_u * xx + 2.0 * along_u * along_v * xy \
                + along_v * along_v * yy
            # an edge tells one from the other: what is left along the line is of its own
            shared = (along_u * along_v * (yy - xx)
                      + (along_u * along_u - along_v * along_v) * xy) / doubt_across
            off_along -= shared * off_across
            variance = noise * noise * doubt_across
            variance_along = noise * noise * (doubt_along - shared * shared * doubt_across) \
                + hidden * hidden
            distance_across = off_across * off_across / variance
            distance = distance_across + off_along * off_along / variance_along
            if iteration == steps:
                residuals[0, i] = abs(off_across) / math.sqrt(doubt_across)
                residuals[1, i], residuals[2, i] = abs(off_along), way
                # along the line a depth may hide anything, which would speak for long ways
                cost += to_nats * math.log1p(distance_across / FREEDOM)
                inliers += distance_across < INLIER
                continue
            flow_u = (-fx * u * v, fx * (1.0 + u * u), -fx * v)
            flow_v = (-fy * (1.0 + v * v), fy * u * v, fy * u)
            for d in range(3):
                across[d] = along_u * flow_v[d] - along_v * flow_u[d]
                along[d] = along_u * flow_u[d] + along_v * flow_v[d]
            # a point that shows to be nearer is the better witness of the direction
            nearer = near + depth_spread * hidden * off_along / variance_along
            across[3], across[4] = -along_v * fx * nearer, along_u * fy * nearer
            across[5] = (along_v * fx * u - along_u * fy * v) * nearer
            along[3], along[4] = along_u * fx * near, along_v * fy * near
            along[5] = -(along_u * fx * u + along_v * fy * v) * near
            along[6], along[7] = way * x, way * y
            for e in range(more):
                move_u, move_v = by_rows[i, 0, e], by_rows[i, 1, e]
                across[UNKNOWNS + e] = along_v * move_u - along_u * move_v
                along[UNKNOWNS + e] = -along_u * move_u - along_v * move_v
            weight = 1.0 / (POINTS_PER_WITNESS * (1.0 + distance / FREEDOM))
            weight_across = math.sqrt(weight / variance)
            weight_along = math.sqrt(weight / variance_along)
            for a in range(size):
                moves[a, i] = weight_across * across[a]
                moves[a, count + i] = weight_along * (along[a] - shared * across[a])
            moves[size, i] = weight_across * off_across
            moves[size, count + i] = weight_along * off_along
        if iteration == steps:
            for e in range(more):
                cost += 0.5 * unknowns[UNKNOWNS + e] * dot(rows_information[e],
                                                           unknowns[UNKNOWNS:])
            break
        for a in range(size):
            vector[a] = dot(moves[a], moves[size])
            for b in range(a + 1):
                information[a, b] = information[b, a] = dot(moves[a], moves[b])
            if a < 3:
                information[a, a] += WEAK_PRIOR
            elif a < UNKNOWNS:
                prior = 1.0 / (WAY_SPREAD if a < 6 else slope_spread) ** 2
                information[a, a] += prior
                vector[a] -= prior * unknowns[a]
            else:
                vector[a] -= dot(rows_information[a - UNKNOWNS], unknowns[UNKNOWNS:])
        information[UNKNOWNS:, UNKNOWNS:] += rows_information
        invert(information)
        covariance[:] = information
        for a in range(size):
            step[a] = dot(covariance[a], vector)
        turn = composed(quaternion_of(step[0], step[1], step[2]), turn)
        for a in range(3, size):
            unknowns[a] += step[a]
    scale = vector_scale(turn)
    for d in range(3):
        unknowns[d] = scale * turn[1 + d]
    return unknowns, covariance, cost, residuals, inliers / count
