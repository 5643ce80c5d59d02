"""Algebra of a few numbers inside compiled loops, without a call of a library."""

from __future__ import annotations

import numpy as np

from image_as_imu_ros.compiled import compiled


@compiled
def dot(one: np.ndarray, other: np.ndarray) -> float:
    """Product of two vectors, in their own precision."""
    found = one[0] * other[0]
    for part in range(1, len(one)):
        found += one[part] * other[part]
    return found


@compiled
def invert(matrix: np.ndarray) -> None:
    """Replace a positive definite matrix by its inverse: Gauss and Jordan's elimination."""
    size = len(matrix)
    for pivot in range(size):
        factor = 1.0 / matrix[pivot, pivot]
        matrix[pivot, pivot] = 1.0
        for column in range(size):
            matrix[pivot, column] *= factor
        for row in range(size):
            if row != pivot:
                factor = matrix[row, pivot]
                matrix[row, pivot] = 0.0
                for column in range(size):
                    matrix[row, column] -= factor * matrix[pivot, column]
