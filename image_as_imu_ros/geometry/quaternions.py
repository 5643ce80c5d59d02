"""Rotations inside compiled loops, as quaternions (w, x, y, z)."""

from __future__ import annotations

import math

from image_as_imu_ros.compiled import compiled


@compiled
def quaternion_of(x, y, z):
    """Of a rotation vector: (w, x, y, z)."""
    angle = math.sqrt(x * x + y * y + z * z)
    share = math.sin(0.5 * angle) / angle if angle > 1e-9 else 0.5
    return math.cos(0.5 * angle), share * x, share * y, share * z


@compiled
def composed(a, b):
    """Quaternion product."""
    aw, ax, ay, az = a
    bw, bx, by, bz = b
    return (aw * bw - ax * bx - ay * by - az * bz, aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx, aw * bz + ax * by - ay * bx + az * bw)


@compiled
def angle_of(turn):
    """Of a rotation, up to a half turn."""
    w, x, y, z = turn
    return 2.0 * math.atan2(math.sqrt(x * x + y * y + z * z), abs(w))


@compiled
def vector_scale(turn):
    """What the last three numbers of a quaternion are to be multiplied by for the vector."""
    w, x, y, z = turn
    length = math.sqrt(x * x + y * y + z * z)
    return math.copysign(angle_of(turn) / length if length > 1e-12 else 2.0, w)


@compiled
def write_rotation(rotation, turn):
    """Write the matrix (3, 3) of a quaternion."""
    w, x, y, z = turn
    rotation[0, 0] = 1.0 - 2.0 * (y * y + z * z)
    rotation[0, 1] = 2.0 * (x * y - w * z)
    rotation[0, 2] = 2.0 * (x * z + w * y)
    rotation[1, 0] = 2.0 * (x * y + w * z)
    rotation[1, 1] = 1.0 - 2.0 * (x * x + z * z)
    rotation[1, 2] = 2.0 * (y * z - w * x)
    rotation[2, 0] = 2.0 * (x * z - w * y)
    rotation[2, 1] = 2.0 * (y * z + w * x)
    rotation[2, 2] = 1.0 - 2.0 * (x * x + y * y)
