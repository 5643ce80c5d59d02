"""Loops over numbers, compiled by numba when they are first called, and kept on disk."""

from __future__ import annotations

from collections.abc import Callable

import numba

FAST = {'reassoc', 'contract', 'arcp', 'nsz'}
"""Sums may be reordered for vectors; NaN and infinity stay what they are."""


def compiled(function: Callable) -> Callable:
    """
    Compile a function of numbers and arrays, which then leaves the interpreter lock alone.

    Its machine code is kept beside the source or in the user's cache, for the next process, and
    only in memory where neither can be written to. It is made anew when the function's own file
    changes: after a change of a constant that it imports, delete `__pycache__`.
    """
    options = {'nogil': True, 'fastmath': FAST, 'error_model': 'numpy'}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # numba's word for no folder to write to
        return numba.njit(**options)(function)
