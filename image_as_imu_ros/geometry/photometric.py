"""Compiled loops over the pixels of images that are laid over each other."""

from __future__ import annotations

import math

import numpy as np

from image_as_imu_ros.compiled import compiled
from image_as_imu_ros.geometry.quaternions import (
    angle_of,
    composed,
    quaternion_of,
    vector_scale,
    write_rotation,
)
from image_as_imu_ros.geometry.small_matrices import dot, invert

MIN_OVERLAP = 0.35
"""Least share of the pixels that must be seen in both images."""
PIXELS_PER_WITNESS = 200.0
"""Neighbouring residuals are alike: so many pixels count as one independent witness."""
OUTLIER = 2.5
"""Standard deviations from which on a residual counts less."""
LEAST_NOISE = 1e-3
LEAST_MISFIT = 0.1
"""Noise of images of unit contrast, however alike they are."""
REGISTRATION_PX = 0.3
"""How far pixels of aligned images are off beyond what the plane of most of them explains."""
CONTRAST_STD = 0.03
"""Of how much of an image's contrast a region of it has, relative to the other image's."""
TRANSLATION_PRIOR = 0.15
TRANSLATION_PRIOR_FLOOR = 0.004
WEAK_PRIOR = 1e-3
ZERO, HALF, ONE, NEAR = (np.float32(number) for number in (0.0, 0.5, 1.0, 1e-3))
"""A product of numbers of 32 and 64 bits is slow."""
BELOW_ONE = np.float32(1.0 - 2.0 ** -23)
ALL_OF_THEM = np.float32(0.999)
"""Share of the pixels that one between or over them is made of, but for rounding."""
NOT_COUNTED = np.float32(-1.0)
DIGITS = ((31, 20), (20, 10), (10, 0))
"""Last bit of what is before, and of, each digit of a float32 that is taken as an integer."""


@compiled
def mean_of_views(image: np.ndarray, camera: np.ndarray, motion: np.ndarray,
                  count: int) -> np.ndarray:
    """
    Mean of what a camera sees along a motion; the image goes on beyond its border.

    :param image: (h, w) float32, what it sees in the middle
    :param camera: camera matrix (3, 3), px
    :param motion: (6,), rotation vector and translation / Z
    :param count: of views, in even steps
    :returns: (h, w) float32
    """
    height, width = image.shape
    pixels, columns = image.ravel(), np.empty(width, np.float32)
    for i in range(width):
        columns[i] = i
    mean = np.zeros_like(image)
    corners = np.empty(width, np.uint32)
    across, down = np.empty(width, np.float32), np.empty(width, np.float32)
    weight = np.float32(1.0 / count)
    for k in range(count):
        h = homography_of(camera, ((k + 0.5) / count - 0.5) * motion).astype(np.float32)
        for row in range(height):
            y = np.float32(row)
            x0, y0, z0 = h[0, 1] * y + h[0, 2], h[1, 1] * y + h[1, 2], h[2, 1] * y + h[2, 2]
            for i in range(width):
                over_z = ONE / max(h[2, 0] * columns[i] + z0, NEAR)
                corners[i], across[i], down[i] = _place(
                    (h[0, 0] * columns[i] + x0) * over_z, (h[1, 0] * columns[i] + y0) * over_z,
                    width, height)
            for i in range(width):
                mean[row, i] += weight * _between(pixels, corners[i], width, across[i], down[i])
    return mean


@compiled
def seen_along(detail: np.ndarray, to_image: np.ndarray, camera: np.ndarray, motion: np.ndarray,
               count: int, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Mean of what a camera sees at some of its pixels along a motion, and its gradients.

    :param detail: (h, w, 4) float32, an image, its gradient along x and y, and 1 where it may be
        seen, else 0, as it is along its borders
    :param to_image: homography (3, 3), from what the camera sees in the middle to the image
    :param camera, motion, count: as of `mean_of_views`
    :param pixels: (2, N) float32
    :returns: mean of the views, of their gradients in the camera's pixels, and of those times
        their time, -0.5 to 0.5, which longer ways change, (5, N) float32; and whether a pixel
        sees nothing but what may be seen, (N,) bool
    """
    number = pixels.shape[1]
    seen, inside = np.zeros((5, number), np.float32), np.ones(number, np.bool_)
    corners, found = np.empty(number, np.uint32), np.empty((4, number), np.float32)
    u, v, over_z = (np.empty(number, np.float32), np.empty(number, np.float32),
                    np.empty(number, np.float32))
    across, down = np.empty(number, np.float32), np.empty(number, np.float32)
    h, weight = np.empty((3, 3), np.float32), np.float32(1.0 / count)
    for k in range(count):
        time = (k + 0.5) / count - 0.5
        plane = homography_of(camera, time * motion).astype(np.float32)
        for i in range(3):
            for j in range(3):
                h[i, j] = to_image[i, 0] * plane[0, j] + to_image[i, 1] * plane[1, j] \
                    + to_image[i, 2] * plane[2, j]
        for i in range(number):
            x, y = pixels[0, i], pixels[1, i]
            over_z[i] = ONE / max(h[2, 0] * x + h[2, 1] * y + h[2, 2], NEAR)
            u[i] = (h[0, 0] * x + h[0, 1] * y + h[0, 2]) * over_z[i]
            v[i] = (h[1, 0] * x + h[1, 1] * y + h[1, 2]) * over_z[i]
            across[i], down[i] = u[i], v[i]
        interpolate(detail, across, down, corners, found)
        for i in range(number):
            inside[i] &= found[3, i] > ALL_OF_THEM
        for i in range(number):
            seen[0, i] += weight * found[0, i]
        timed = np.float32(time)
        for i in range(number):
            gx, gy = found[1, i], found[2, i]
            scale = weight * over_z[i]
            slope_x = scale * (gx * (h[0, 0] - u[i] * h[2, 0]) + gy * (h[1, 0] - v[i] * h[2, 0]))
            slope_y = scale * (gx * (h[0, 1] - u[i] * h[2, 1]) + gy * (h[1, 1] - v[i] * h[2, 1]))
            seen[1, i] += slope_x
            seen[2, i] += slope_y
            seen[3, i] += timed * slope_x
            seen[4, i] += timed * slope_y
    return seen, inside


@compiled
def strongest(strength: np.ndarray, count: int) -> np.ndarray:
    """Ascending indices of at most so many greatest of non-negative numbers (N,) float32."""
    least = magnitude_of_rank(strength, len(strength) - count)
    spare = count  # for those that equal it
    for i in range(len(strength)):
        spare -= strength[i] > least
    chosen, found = np.empty(count, np.int64), 0
    for i in range(len(strength)):
        equal = strength[i] == least and spare > 0
        spare -= equal
        if (equal or strength[i] > least) and found < count:
            chosen[found] = i
            found += 1
    return chosen[:found]


@compiled
def jacobian_at(chosen: np.ndarray, gx: np.ndarray, gy: np.ndarray,
                field: np.ndarray) -> np.ndarray:
    """
    Change of an image's pixels as the camera moves.

    :param chosen: (N,), indices of pixels
    :param gx, gy: (M,) float32, of all pixels
    :param field: (2, D, M) float32, motion field at all pixels
    :returns: (D, N)
    """
    jacobian = np.empty((field.shape[1], len(chosen)), np.float32)
    for d in range(len(jacobian)):
        for i in range(len(chosen)):
            at = chosen[i]
            jacobian[d, i] = gx[at] * field[0, d, at] + gy[at] * field[1, d, at]
    return jacobian


@compiled
def refined(image: np.ndarray, values: np.ndarray, pixels: np.ndarray, nearness: np.ndarray,
            offset_px: np.ndarray, jacobian: np.ndarray, camera: np.ndarray, start: np.ndarray,
            iterations: int,
            usable: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, float, float]:
    """
    Improve a motion by Gauss-Newton steps, by how alike it makes two images.

    The constant Jacobian is that of the later image (inverse composition).

    :param image: (h, w) float32, the earlier one, less its mean
    :param values: (N,) float32, pixels of the later one, less its mean
    :param pixels: (2, N) float32, where those are
    :param nearness: (N,) float32, Z of the translation over the depth there
    :param offset_px: (2, N) float32, their displacement beyond the common motion
    :param jacobian: (6, N) float32
    :param camera: camera matrix (3, 3), px
    :param start: (6,), rotation vector and translation / Z
    :param usable: (h * w,) bool, which pixels of the earlier image may be seen; (0,): all
    :returns: motion (6,), covariance (6, 6), similarity, share of inliers, and variance of the
        translation by the prior; a similarity of -inf where the images overlap too little
    """
    height, width = image.shape
    right, bottom = np.float32(width - 1), np.float32(height - 1)
    cx, cy = np.float32(camera[0, 2]), np.float32(camera[1, 2])
    count = len(values)
    earlier, masked = image.ravel(), len(usable) > 0
    corners, seen = np.empty(count, np.uint32), np.empty(count, np.float32)
    across, down = np.empty(count, np.float32), np.empty(count, np.float32)
    residual, magnitude = np.empty(count, np.float32), np.empty(count, np.float32)
    rotation, homography = np.empty((3, 3)), np.empty((3, 3))
    h, step = np.empty((3, 3), np.float32), np.empty(6)
    motion, covariance = np.empty(6), np.empty((6, 6))
    for d in range(6):
        motion[d] = start[d]
    turn = quaternion_of(start[0], start[1], start[2])
    similarity = inlier_share = spread = 0.0
    per_witness = np.float32(1.0 / PIXELS_PER_WITNESS)
    for _ in range(iterations):
        write_rotation(rotation, turn)
        _write_homography(homography, camera, rotation, 0.0, 0.0, 0.0)
        for i in range(3):
            for j in range(3):
                h[i, j] = homography[i, j]
        right_by, down_by = (np.float32(camera[0, 0] * motion[3]),
                             np.float32(camera[1, 1] * motion[4]))
        forward = np.float32(motion[5])
        for i in range(count):
            x, y = pixels[0, i], pixels[1, i]
            over_z = ONE / max(h[2, 0] * x + h[2, 1] * y + h[2, 2], NEAR)
            u = (h[0, 0] * x + h[0, 1] * y + h[0, 2]) * over_z
            v = (h[1, 0] * x + h[1, 1] * y + h[1, 2]) * over_z
            u += nearness[i] * (right_by - forward * (u - cx)) - offset_px[0, i]
            v += nearness[i] * (down_by - forward * (v - cy)) - offset_px[1, i]
            inside = (u >= ZERO) & (u <= right) & (v >= ZERO) & (v <= bottom)
            seen[i] = ONE if inside else ZERO
            corners[i], across[i], down[i] = _place(u, v, width, height)
        if masked:
            for i in range(count):
                seen[i] = seen[i] if usable[corners[i]] else ZERO
        for i in range(count):
            residual[i] = _between(earlier, corners[i], width, across[i], down[i])
        number = a_sum = b_sum = aa_sum = bb_sum = ZERO
        for i in range(count):
            a, b = residual[i] * seen[i], values[i] * seen[i]
            number += seen[i]
            a_sum += a
            b_sum += b
            aa_sum += a * a
            bb_sum += b * b
        if number <= MIN_OVERLAP * count:
            similarity = -math.inf
            break
        a_power = max(float(aa_sum - a_sum * a_sum / number), 0.0) + 1e-6
        b_power = max(float(bb_sum - b_sum * b_sum / number), 0.0) + 1e-6
        factor = np.float32(math.sqrt(b_power / a_power))  # exposure or white level may change
        shift = (b_sum - factor * a_sum) / number
        misfit = ZERO
        for i in range(count):
            residual[i] = (residual[i] * factor - values[i] + shift) * seen[i]
            misfit += residual[i] * residual[i]
            magnitude[i] = abs(residual[i]) if seen[i] > ZERO else NOT_COUNTED
        similarity = 1.0 - misfit / (2.0 * b_power)
        weight, inliers = robust_weights(residual, magnitude, int(number), LEAST_NOISE)
        for i in range(count):
            weight[i] *= per_witness
        information, vector = sums(jacobian, weight, residual, 0, count)
        inlier_share = inliers / number
        angle = angle_of(turn)
        spread = TRANSLATION_PRIOR ** 2 * angle * angle + TRANSLATION_PRIOR_FLOOR ** 2
        for d in range(6):
            information[d, d] += WEAK_PRIOR
            if d >= 3:
                information[d, d] += 1.0 / spread
                vector[d] -= motion[d] / spread
        invert(information)
        covariance = information
        for d in range(6):
            step[d] = dot(covariance[d], vector)
        turn = composed(turn, quaternion_of(step[0], step[1], step[2]))
        write_rotation(rotation, turn)
        for d in range(3):
            motion[3 + d] += dot(rotation[d], step[3:])
    scale = vector_scale(turn)
    for d in range(3):
        motion[d] = scale * turn[1 + d]
    return motion, covariance, similarity, inlier_share, spread


@compiled
def compared(seen: np.ndarray, chosen: np.ndarray, ends: np.ndarray,
             field: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Least squares of what two images differ by, over a change of the motions that blur them.

    Each image, taken to unit contrast, has the blur of both. Pixels count as independent, the
    less the steeper they are, as they may be off their places; what is common to a region's
    contrast tells nothing.

    :param seen: (2, 5, M) float32, as of `seen_along`: the earlier image along the later motion,
        and the later image along the earlier motion
    :param chosen: (N,), ascending indices of the pixels
    :param ends: (R,), how many of the M pixels there are to the end of each region
    :param field: (2, 6, M) float32, motion field there
    :returns: information (R, 9, 9) and vector (R, 9) of the change of the earlier rotation and
        the later motion, by each region
    """
    count = len(chosen)
    residual, value = np.zeros(count, np.float32), np.empty(count, np.float32)
    jacobian = np.zeros((10, count), np.float32)  # the last row is that of a region's contrast
    steepness = np.empty(count, np.float32)
    for image in range(2):
        sign = ONE - np.float32(2 * image)
        mean = ZERO
        for i in range(count):
            value[i] = seen[image, 0, chosen[i]]
            mean += value[i]
        mean /= np.float32(count)
        power = ZERO
        for i in range(count):
            value[i] -= mean
            power += value[i] * value[i]
        over_contrast = ONE / (np.float32(math.sqrt(power / np.float32(count)))
                               + np.float32(1e-9))
        for i in range(count):
            value[i] *= over_contrast
            residual[i] += sign * value[i]
            jacobian[9, i] += HALF * value[i]
        if image == 0:
            for i in range(count):
                gx, gy = seen[0, 1, chosen[i]], seen[0, 2, chosen[i]]
                steepness[i] = over_contrast * over_contrast * (gx * gx + gy * gy)
        # each image is blurred by the other's motion
        slopes = jacobian_at(chosen, seen[image, 3], seen[image, 4], field)
        first, last = (3, 9) if image == 0 else (0, 3)
        for d in range(first, last):
            slope = slopes[d - first]
            along = ZERO
            for i in range(count):
                along += value[i] * slope[i]
            along /= np.float32(count)
            for i in range(count):
                jacobian[d, i] = sign * over_contrast * (along * value[i] - slope[i])
    weight, _ = robust_weights(residual, np.abs(residual), count, LEAST_MISFIT)
    misplaced = np.float32(REGISTRATION_PX ** 2) * weight.max()
    for i in range(count):
        weight[i] /= ONE + misplaced * steepness[i]
    informations, vectors = np.zeros((len(ends), 9, 9)), np.zeros((len(ends), 9))
    first = 0
    for region in range(len(ends)):
        last = first
        while last < count and chosen[last] < ends[region]:
            last += 1
        if last > first:
            information, vector = sums(jacobian, weight, residual, first, last)
            shared = information[9] / (information[9, 9] + 1.0 / CONTRAST_STD ** 2)
            for a in range(9):
                vectors[region, a] = shared[a] * vector[9] - vector[a]
                for b in range(9):
                    informations[region, a, b] = information[a, b] - shared[a] * information[9, b]
        first = last
    return informations, vectors


@compiled
def homography_of(camera: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """
    Homography from the later camera's pixels to the earlier one's, of a scene at one depth.

    :param camera: camera matrix (3, 3) of both, px
    :param motion: (6,), rotation vector of the later camera in the earlier one's axes, and
        translation over the depth
    :returns: (3, 3)
    """
    rotation, homography = np.empty((3, 3)), np.empty((3, 3))
    write_rotation(rotation, quaternion_of(motion[0], motion[1], motion[2]))
    _write_homography(homography, camera, rotation, motion[3], motion[4], motion[5])
    return homography


@compiled
def magnitude_of_rank(magnitudes: np.ndarray, rank: int) -> float:
    """
    Find the number that so many others are below.

    :param magnitudes: (N,) float32; negative ones do not count
    """
    bits = magnitudes.view(np.int32)  # in the order of the numbers
    counts, prefix = np.zeros(1 << 11, np.int64), 0
    for before, last in DIGITS:
        counts[:] = 0
        mask = (1 << (before - last)) - 1
        for i in range(len(bits)):
            if bits[i] >> before == prefix:
                counts[(bits[i] >> last) & mask] += 1
        digit = 0
        while digit < mask and rank >= counts[digit]:
            rank -= counts[digit]
            digit += 1
        prefix = (prefix << (before - last)) | digit
    for i in range(len(bits)):
        if bits[i] == prefix:
            return magnitudes[i]
    return ZERO  # fewer numbers count than the rank


@compiled
def deviation(magnitudes: np.ndarray, count: int) -> float:
    """
    Standard deviation by the median, which outliers hardly move.

    :param magnitudes: (N,) float32, of deviations; negative ones do not count
    :param count: of those that do
    """
    return 1.4826 * magnitude_of_rank(magnitudes, count // 2)


@compiled
def robust_weights(residual: np.ndarray, magnitude: np.ndarray, count: int,
                   least_noise: float) -> tuple[np.ndarray, int]:
    """
    Weigh residuals by their inverse variance, and outliers less.

    :param residual, magnitude: (N,) float32; where the magnitude is negative it does not count
    :param count: of those that do
    :param least_noise: the standard deviation of residuals is at least so much
    :returns: (N,) float32, and the number of inliers
    """
    noise = deviation(magnitude, count) + least_noise
    scale = np.float32(1.0 / (OUTLIER * noise) ** 2)
    full = np.float32(1.0 / noise ** 2)
    weight, inliers = np.empty(len(residual), np.float32), 0
    for i in range(len(residual)):
        square = residual[i] * residual[i] * scale
        counts = magnitude[i] >= ZERO
        weight[i] = full / ((ONE + square) * (ONE + square)) if counts else ZERO
        inliers += counts & (square < ONE)
    return weight, inliers


@compiled
def sums(jacobian: np.ndarray, weight: np.ndarray, residual: np.ndarray, first: int,
         last: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Sums of weighted least squares.

    :param jacobian: (D, N) float32
    :param weight, residual: (N,) float32
    :param first, last: of the N, where the sums begin and before which they end
    :returns: information (D, D) and vector (D,)
    """
    size, weighted = len(jacobian), np.empty(last - first, np.float32)
    information, vector = np.empty((size, size)), np.empty(size)
    for a in range(size):
        for i in range(last - first):
            weighted[i] = weight[first + i] * jacobian[a, first + i]
        vector[a] = dot(weighted, residual[first:last])
        for b in range(a + 1):
            information[a, b] = information[b, a] = dot(weighted, jacobian[b][first:last])
    return information, vector


@compiled
def interpolate(channels: np.ndarray, x: np.ndarray, y: np.ndarray, corners: np.ndarray,
                found: np.ndarray) -> None:
    """
    Look up four channels between pixels, bilinearly; an image goes on beyond its border.

    :param channels: (h, w, 4) float32
    :param x, y: (N,) float32, where, px; overwritten
    :param corners: (N,) uint32, overwritten
    :param found: (4, N) float32, the result
    """
    height, width, _ = channels.shape
    for i in range(len(x)):
        corners[i], x[i], y[i] = _place(x[i], y[i], width, height)
    pixels, below = channels.reshape(-1), np.uint32(4 * width)
    for i in range(len(x)):
        top = np.uint32(4) * corners[i]
        bottom = top + below
        both = x[i] * y[i]
        right, down = x[i] - both, y[i] - both
        here = ONE - x[i] - down
        for channel in range(4):
            found[channel, i] = here * pixels[top + channel] + right * pixels[top + 4 + channel] \
                + down * pixels[bottom + channel] + both * pixels[bottom + 4 + channel]


@compiled
def _place(u, v, width, height):
    """Index of the first of four pixels around a position, and the shares of the others."""
    # NaN is not greater, and must not become an index
    u = min(u if u > ZERO else ZERO, np.float32(width - 1) * BELOW_ONE)
    v = min(v if v > ZERO else ZERO, np.float32(height - 1) * BELOW_ONE)
    left, top = np.int32(u), np.int32(v)
    return np.uint32(top * width + left), u - np.float32(left), v - np.float32(top)


@compiled
def _between(pixels, corner, width, across, down):
    """Value between four pixels, of which the first has the given index."""
    under = corner + width
    upper = pixels[corner] + across * (pixels[corner + 1] - pixels[corner])
    lower = pixels[under] + across * (pixels[under + 1] - pixels[under])
    return upper + down * (lower - upper)


@compiled
def _write_homography(homography, camera, rotation, tx, ty, tz):
    """As `homography_of`, of a rotation matrix and a translation."""
    fx, fy, cx, cy = camera[0, 0], camera[1, 1], camera[0, 2], camera[1, 2]
    for j in range(3):
        z = rotation[2, j]
        homography[0, j] = fx * ((1.0 - tz) * rotation[0, j] + tx * z) + cx * z
        homography[1, j] = fy * ((1.0 - tz) * rotation[1, j] + ty * z) + cy * z
        homography[2, j] = z
    for i in range(3):
        homography[i, 0] /= fx
        homography[i, 1] /= fy
        homography[i, 2] -= cx * homography[i, 0] + cy * homography[i, 1]
