"""Have the threads of the libraries sleep while they wait, for programs that own their process."""

from __future__ import annotations

import os

SETTINGS = {
    # threads that spin while they wait take the processor from the stage that works
    'OMP_WAIT_POLICY': 'passive',
    # the solver's matrices are too small to be shared among threads
    'OPENBLAS_NUM_THREADS': '1'}


def keep_threads_quiet() -> None:
    """Set what torch's OpenMP and numpy's BLAS read when they are loaded, unless it is set."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
