"""
Loops of the blur solver over cells and motions, compiled.

What belongs to a cell is in single precision, what belongs to a motion in double. Where a loop
looks something up, it does nothing else, so that the others become vector instructions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from image_as_imu_ros.compiled import compiled
from image_as_imu_ros.geometry.displacement_bins import (
    DIRECTIONS,
    RADIUS_SCALE_PX,
    RHO_STEP,
    RINGS,
    interpolation,
)
from image_as_imu_ros.geometry.small_matrices import dot, invert

TRANSLATION_PRIOR = 0.15
"""Spread of v T / Z before the image is seen, relative to |w T|: hands turn about the wrist."""
TRANSLATION_PRIOR_FLOOR_PX = 0.5
LEAST_SPREAD_PX2 = 0.1
"""Added to the variances of a cell's displacement."""
LENGTH_PRIOR = 2.0
"""Before the image is seen, a blur twice as long is rarer by two to this power."""
ARCTANGENT = tuple(math.degrees(factor) for factor in (
    0.9997878412794807, -0.3258083974640975, 0.1555786518463281, -0.04432655554792128))
"""Factors of the odd powers of a tangent up to 1 in OpenCV's polynomial, degrees."""

NUMBER = np.float32
ZERO, ONE, TWO, QUARTER, HALF, WHOLE = (NUMBER(number) for number in (0, 1, 2, 90, 180, 360))
SMALL, TINY_PX = NUMBER(1e-12), NUMBER(1e-6)
ARC_1, ARC_3, ARC_5, ARC_7 = map(NUMBER, ARCTANGENT)
LOG_9, LOG_8, LOG_7, LOG_6, LOG_5, LOG_4, LOG_3 = (NUMBER(factor) for factor in (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1))
LOG_2, LOG_1 = NUMBER(-2.4999993993e-1), NUMBER(3.3333331174e-1)
LOG_OF_2, HALVED = NUMBER(math.log(2.0)), NUMBER(0.5)
ROOT_BITS = np.int32(NUMBER(math.sqrt(0.5)).view(np.int32))
MANTISSA_BITS, MANTISSA = np.int32(23), np.int32((1 << 23) - 1)
SCALE_PX, RINGS_PER_NAT = NUMBER(RADIUS_SCALE_PX), NUMBER(1.0 / RHO_STEP)
DIRECTIONS_PER_DEGREE = NUMBER(DIRECTIONS / 180.0)
DIRECTIONS_PER_RAD = NUMBER(DIRECTIONS / math.pi)
LAST_RING, LAST_DIRECTION = NUMBER(RINGS - 1e-3), NUMBER(2 * DIRECTIONS - 1e-3)
AROUND = np.int32(2 * DIRECTIONS)


def _corners() -> np.ndarray:
    """
    Bins around displacements of each ring and direction, all round, (4, RINGS * 2 * DIRECTIONS).

    They are the inner and the outer one, and the same of the next direction.
    """
    radius, angle = np.meshgrid(
        RADIUS_SCALE_PX * np.expm1(RHO_STEP * (np.arange(RINGS) + 0.5)),
        (np.arange(2 * DIRECTIONS) + 0.5) * (math.pi / DIRECTIONS), indexing='ij')
    inside = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    bins, _ = interpolation(inside.reshape(-1, 2))
    return np.ascontiguousarray(bins.T[[0, 2, 1, 3]])


CORNERS = _corners()
PLACES = CORNERS.astype(np.uint32)


class Cells(NamedTuple):
    """N cells whose distributions are compared with motions."""

    log_probability: np.ndarray
    """(N, BINS) float32."""
    columns: np.ndarray
    """(2, 6, N) float32, motion field matrix at their centres, px."""
    weight: float
    """Of each cell, as a witness."""
    focal_px: float


class Work(NamedTuple):
    """What is found out of the cells at one motion, float32."""

    flow: np.ndarray
    """(2, N), displacements, px, or the slopes of the log-probability along them."""
    radius: np.ndarray
    """(N,), lengths of the displacements, px."""
    shares: np.ndarray
    """(2, N), of the next ring and of the next direction."""
    places: np.ndarray
    """(2, N) uint32, direction, and that with the ring: column of CORNERS."""
    corners: np.ndarray
    """(4, N), log-probabilities there, as CORNERS."""


@compiled
def work_for(cells):
    """Room for `cells`."""
    count = len(cells.log_probability)
    return Work(np.empty((2, count), np.float32), np.empty(count, np.float32),
                np.empty((2, count), np.float32), np.empty((2, count), np.uint32),
                np.empty((4, count), np.float32))


@compiled
def log(x):
    """Natural logarithm of a positive number, to single precision: Cephes' polynomial."""
    bits = np.int32(np.float32(x).view(np.int32) - ROOT_BITS)
    power = bits >> MANTISSA_BITS
    x = np.int32((bits & MANTISSA) + ROOT_BITS).view(np.float32) - ONE
    series = ((((((((LOG_9 * x + LOG_8) * x + LOG_7) * x + LOG_6) * x + LOG_5) * x + LOG_4) * x
                + LOG_3) * x + LOG_2) * x + LOG_1) * x
    return (series - HALVED) * x * x + x + np.float32(power) * LOG_OF_2


@compiled
def angle(x, y):
    """
    Angle from the x axis, 0 to 360 degrees, as OpenCV computes it, up to 0.01 degrees wrong.

    An exact one leads up the same hills by another path: the motion where the solver stops then
    differs by more than 1 % in every other image.
    """
    across, along = abs(x), abs(y)
    tangent = min(across, along) / (max(across, along) + SMALL)
    square = tangent * tangent
    found = (((ARC_7 * square + ARC_5) * square + ARC_3) * square + ARC_1) * tangent
    rest = QUARTER - found
    found = found if across >= along else rest
    rest = HALF - found
    found = found if x >= ZERO else rest
    rest = WHOLE - found
    return found if y >= ZERO else rest


@compiled
def displace(cells, motion, work):
    """Find displacements at a motion (6,), their lengths and directions."""
    flow = work.flow
    count = flow.shape[1]
    for axis in range(2):
        for n in range(count):
            flow[axis, n] = ZERO
        for part in range(len(motion)):
            factor = np.float32(motion[part])
            for n in range(count):
                flow[axis, n] += factor * cells.columns[axis, part, n]
    for n in range(count):
        u, v = flow[0, n], flow[1, n]
        work.radius[n] = np.sqrt(u * u + v * v)
        across = angle(u, v) * DIRECTIONS_PER_DEGREE
        across = across if across < LAST_DIRECTION else LAST_DIRECTION
        direction = np.int32(across)
        work.places[0, n] = direction
        work.shares[1, n] = across - np.float32(direction)


@compiled
def look_up(cells, scale, work):
    """Find log-probabilities around displacements times a number."""
    for n in range(len(work.radius)):
        along = log(ONE + scale * work.radius[n] / SCALE_PX) * RINGS_PER_NAT
        along = along if along < LAST_RING else LAST_RING
        along = along if along > ZERO else ZERO  # the logarithm of NaN is anything
        ring = np.int32(along)
        work.places[1, n] = ring * AROUND + work.places[0, n]
        work.shares[0, n] = along - np.float32(ring)
    for n in range(len(work.radius)):
        place = work.places[1, n]
        for corner in range(4):
            work.corners[corner, n] = cells.log_probability[n, PLACES[corner, place]]


@compiled
def between(work, n):
    """Log-probability of a cell at the place that was looked up."""
    low, high = work.corners[0, n], work.corners[1, n]
    low += work.shares[1, n] * (work.corners[2, n] - low)
    high += work.shares[1, n] * (work.corners[3, n] - high)
    return low + work.shares[0, n] * (high - low)


@compiled
def slope(work):
    """Replace displacements by the slopes of the log-probability along them; tell its sum."""
    found = ZERO
    for n in range(len(work.radius)):
        outward, onward = work.shares[0, n], work.shares[1, n]
        low, high = work.corners[0, n], work.corners[1, n]
        inner, outer = work.corners[2, n] - low, work.corners[3, n] - high
        low += onward * inner
        rise = high + onward * outer - low
        found += low + outward * rise
        radius = work.radius[n] + TINY_PX
        turning = (inner + outward * (outer - inner)) * DIRECTIONS_PER_RAD / radius
        climbing = rise * RINGS_PER_NAT / (SCALE_PX + radius)
        u, v = work.flow[0, n] / radius, work.flow[1, n] / radius
        work.flow[0, n] = climbing * u - turning * v
        work.flow[1, n] = climbing * v + turning * u
    return found


@compiled
def square(vector):
    """Sum of the squares of three numbers."""
    return vector[0] ** 2 + vector[1] ** 2 + vector[2] ** 2


@compiled
def expected_square(cells, motion):
    """Prior variance of v T / Z, as `blur_solver.translation_spread`."""
    return TRANSLATION_PRIOR ** 2 * square(motion) \
        + (TRANSLATION_PRIOR_FLOOR_PX / cells.focal_px) ** 2


@compiled
def evaluate(cells, motion, work, gradient):
    """Log-posterior of a motion (6,), up to a constant; `work` then has slopes."""
    displace(cells, motion, work)
    look_up(cells, ONE, work)
    value = slope(work) * cells.weight
    for part in range(len(motion)):
        found = ZERO
        for n in range(len(work.radius)):
            found += work.flow[0, n] * cells.columns[0, part, n] \
                + work.flow[1, n] * cells.columns[1, part, n]
        gradient[part] = found * cells.weight

    spread = expected_square(cells, motion)
    length = square(motion[3:])
    turn = math.sqrt(square(motion)) + 1e-9
    scaled = 1.0 + turn * (cells.focal_px / RADIUS_SCALE_PX)
    pull = LENGTH_PRIOR * cells.focal_px / RADIUS_SCALE_PX / (scaled * turn)
    for part in range(3):
        gradient[part] += (length * (TRANSLATION_PRIOR / spread) ** 2 - pull) * motion[part]
        gradient[3 + part] -= motion[3 + part] / spread
    return value - 0.5 * length / spread - LENGTH_PRIOR * math.log(scaled)


@compiled
def information(cells, motion, work):
    """Sum of squared scores of the cells, of which `work` has the slopes, and the prior's."""
    count = len(work.radius)
    scores = np.empty((6, count), np.float32)
    for part in range(len(motion)):
        for n in range(count):
            scores[part, n] = work.flow[0, n] * cells.columns[0, part, n] \
                + work.flow[1, n] * cells.columns[1, part, n]
    squares = np.empty((6, 6))
    for row in range(len(motion)):
        for column in range(row + 1):
            found = ZERO
            for n in range(count):
                found += scores[row, n] * scores[column, n]
            squares[row, column] = squares[column, row] = found * cells.weight
    for part in range(3, 6):
        squares[part, part] += 1.0 / expected_square(cells, motion)
    return squares


@compiled
def climb(cells, motions, heights, iterations):
    """
    Replace motions (K, 6) by better ones, and tell their log-posteriors (K,).

    BFGS that starts from the empirical information, with step halving.
    """
    work = work_for(cells)
    room = np.empty((6, 6))
    gradient, new_gradient, step, ahead, change, along = (
        room[0], room[1], room[2], room[3], room[4], room[5])
    for k in range(len(motions)):
        best = motions[k]
        value = evaluate(cells, best, work, gradient)
        inverse = information(cells, best, work)
        for part in range(len(best)):
            inverse[part, part] += 0.1 * inverse[part, part] + 1e-3
        invert(inverse)
        length = 1.0
        for _ in range(iterations):
            for part in range(len(best)):
                step[part] = length * dot(inverse[part], gradient)
                ahead[part] = best[part] + step[part]
            new_value = evaluate(cells, ahead, work, new_gradient)
            # curvature along the step, learnt from failures too
            for part in range(len(best)):
                change[part] = gradient[part] - new_gradient[part]
            curvature = dot(step, change)
            if curvature > 1e-9:
                for part in range(len(best)):
                    along[part] = -dot(inverse[part], change) / curvature
                own = 0.5 * (1.0 - dot(along, change)) / curvature
                for part in range(len(best)):
                    along[part] += own * step[part]
                for row in range(len(best)):
                    for column in range(len(best)):
                        inverse[row, column] += along[row] * step[column] \
                            + step[row] * along[column]
            if new_value > value:
                value, length = new_value, min(1.0, 2.0 * length)
                for part in range(len(best)):
                    best[part], gradient[part] = ahead[part], new_gradient[part]
            else:
                length *= 0.4
        heights[k] = value


@compiled
def likelihoods(cells, motions, ratios, found):
    """Log-probability of motions (K, 6) times each ratio (R,), summed over cells, (K, R)."""
    work = work_for(cells)
    for k in range(len(motions)):
        displace(cells, motions[k], work)
        for r in range(len(ratios)):
            look_up(cells, np.float32(ratios[r]), work)
            total = ZERO
            for n in range(len(work.radius)):
                total += between(work, n)
            found[k, r] = total


@compiled
def cell_values(cells, motions, values, lengths_px):
    """Log-probability and length of the displacement of every cell at motions (K, 6), (K, N)."""
    work = work_for(cells)
    for k in range(len(motions)):
        displace(cells, motions[k], work)
        look_up(cells, ONE, work)
        for n in range(len(work.radius)):
            values[k, n] = between(work, n)
            lengths_px[k, n] = work.radius[n]


@compiled
def spread_covariances(cells, weight, directions, lengths_px, second_px2, motions):
    """
    Inverse information about motions, by how the displacements of cells spread around each.

    :param weight: of each cell, by its spread
    :param directions: (2, D) float32, unit vectors
    :param lengths_px, second_px2: of the cells, as `blur_solver.CellMoments`
    :param motions: (K, 6)
    :returns: (K, 6, 6)
    """
    columns, work = cells.columns.astype(np.float64), work_for(cells)
    count, found = columns.shape[2], np.empty((len(motions), 6, 6))
    precisions, pulls = np.empty((3, count)), np.empty((2, count))
    least = np.float32(LEAST_SPREAD_PX2)
    for k in range(len(motions)):
        displace(cells, motions[k], work)
        for n in range(count):
            u, v = work.flow[0, n], work.flow[1, n]
            mean_u, mean_v = _mean_facing(directions[0], directions[1], lengths_px[n], u, v)
            uu = second_px2[n, 0] - TWO * mean_u * u + u * u + least
            vv = second_px2[n, 1] - TWO * mean_v * v + v * v + least
            uv = second_px2[n, 2] - mean_u * v - mean_v * u + u * v
            determinant = uu * vv - uv * uv
            precisions[0, n] = vv / determinant
            precisions[1, n] = -uv / determinant
            precisions[2, n] = uu / determinant
        for part in range(6):
            for n in range(count):
                u, v = columns[0, part, n], columns[1, part, n]
                pulls[0, n] = precisions[0, n] * u + precisions[1, n] * v
                pulls[1, n] = precisions[1, n] * u + precisions[2, n] * v
            for other in range(part + 1):
                found[k, part, other] = found[k, other, part] = weight * (
                    dot(pulls[0], columns[0, other]) + dot(pulls[1], columns[1, other]))
            if part >= 3:
                found[k, part, part] += 1.0 / expected_square(cells, motions[k])
        invert(found[k])
    return found


@compiled
def _mean_facing(cosines, sines, lengths_px, u, v):
    """Mean displacement of a cell, each direction turned to the side of (u, v)."""
    mean_u = mean_v = ZERO
    for d in range(len(cosines)):
        length = lengths_px[d] if cosines[d] * u + sines[d] * v > ZERO else -lengths_px[d]
        mean_u += length * cosines[d]
        mean_v += length * sines[d]
    return mean_u, mean_v
