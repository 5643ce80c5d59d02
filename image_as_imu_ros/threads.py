"""Threads that compute: how many there are, how they wait, and on which cores they run."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from image_as_imu_ros.processes import cores_of_process

LIBC = ctypes.CDLL(None)

SETTINGS = {
    # threads that spin while they wait take the processor from the stage that works
    'OMP_WAIT_POLICY': 'passive',
    # the solver's matrices are too small to be shared among threads
    'OPENBLAS_NUM_THREADS': '1'}


def keep_threads_quiet() -> None:
    """
    Have the threads of the libraries sleep while they wait, for programs that own their process.

    Sets what torch's OpenMP and numpy's BLAS read when they are loaded, unless it is set.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


class NetworkThreads:
    """
    How many threads of the CPU a network uses.

    :param setting: `estimator.threads`; 0 is half of the cores, and one more while no other image
        is at work, as then that one's core is idle
    """

    def __init__(self, setting: int) -> None:
        self.least = setting or max(1, cores_of_process() // 2)
        self.most = setting or min(self.least + 1, cores_of_process())
        self._at_work: list[None] = []

    @property
    def count(self) -> int:
        """The number at present."""
        return self.least if self._at_work else self.most

    @contextmanager
    def working(self) -> Iterator[None]:
        """Be at work on an image while the network, in another thread, sees the next one."""
        self._at_work.append(None)
        try:
            yield
        finally:
            self._at_work.pop()


class HelpingThreads:
    """
    Threads that share a piece of work with the one that wakes them, on other cores than its.

    A thread is often woken on the core of the one that wakes it, above all on virtual machines,
    whose idle cores look taken. There both would wait for each other.
    """

    def __init__(self) -> None:
        self._ids: set[int] = set()

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Count those threads of this process in that begin meanwhile."""
        before = _threads_of_process()
        yield
        self._ids |= _threads_of_process() - before

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Stay on this core meanwhile, and keep the helpers off it, where there are others."""
        cores = os.sched_getaffinity(0)
        own = {LIBC.sched_getcpu()}
        if not self._ids or not cores - own:
            yield
            return
        for helper in self._ids:
            _keep_to(cores - own, helper)
        _keep_to(own)
        try:
            yield
        finally:
            _keep_to(cores)


def _keep_to(cores: set[int], thread: int = 0) -> None:
    """Run a thread, this one unless told otherwise, on some cores, if it may and still lives."""
    with suppress(OSError):
        os.sched_setaffinity(thread, cores)


def _threads_of_process() -> set[int]:
    return {int(folder.name) for folder in Path('/proc/self/task').iterdir()}
