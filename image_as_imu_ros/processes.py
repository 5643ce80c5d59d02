"""
The processes that torchrun starts to share some work.

One of them may fail: then all of them end, and none waits for it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from image_as_imu_ros.errors import ConfigError, ImageAsImuError

LONGEST_WAIT = timedelta(days=30)
"""For processes with more to do; those that have ended are noticed at once."""


@dataclass(frozen=True)
class Process:
    """One process of those that share some work; `group` is torch's, of all of them."""

    rank: int = 0
    count: int = 1
    group: Any = field(default=None, repr=False, compare=False)

    def wait_for_all(self) -> None:
        """
        Wait until every process has come here; only within `joined_processes`.

        :raises ImageAsImuError: if one has ended instead
        """
        if self.count == 1:
            return
        import torch
        try:
            torch.distributed.barrier(self.group)
        except RuntimeError as error:
            raise ImageAsImuError(f'process {self.rank}: another process has ended before its '
                                  'part was done; its own message tells why') from error


def process_of_torchrun() -> tuple[int, int]:
    """
    Which process this is and how many there are, as torchrun tells them; 0 and 1 by itself.

    :raises ConfigError: if RANK and WORLD_SIZE are no such numbers
    """
    texts = os.environ.get('RANK', '0'), os.environ.get('WORLD_SIZE', '1')
    try:
        rank, processes = map(int, texts)
    except ValueError:
        rank, processes = -1, 0
    if not 0 <= rank < processes:
        raise ConfigError(f'RANK={texts[0]} and WORLD_SIZE={texts[1]} in the environment are not '
                          'a process and a number of processes; unset them, or use torchrun')
    return rank, processes


@contextmanager
def joined_processes() -> Iterator[Process]:
    """
    Take part in the processes that torchrun started, or be the only one.

    Those of one machine take turns at its GPUs. Only the first one logs.

    :raises ConfigError: as `process_of_torchrun`, or if they cannot meet
    """
    rank, count = process_of_torchrun()
    if count == 1:
        yield Process()
        return
    _keep_to_own_gpu()
    import torch
    try:
        torch.distributed.init_process_group('gloo')  # all have half an hour to come
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f'process {rank} of {count} cannot join the others ({error}); use '
                          'torchrun, or unset RANK and WORLD_SIZE') from error
    logger = logging.getLogger(__package__)
    level = logger.level
    if rank:
        logger.setLevel(logging.ERROR)
    try:
        yield Process(rank, count, torch.distributed.new_group(timeout=LONGEST_WAIT))
    finally:
        logger.setLevel(level)
        torch.distributed.destroy_process_group()


def cores_of_process() -> int:
    """Cores that this process may use, an even share of those of all of this machine."""
    processes = int(os.environ.get('LOCAL_WORLD_SIZE', '1'))
    return max(1, len(os.sched_getaffinity(0)) // processes)


def _keep_to_own_gpu() -> None:
    """Choose a GPU while none is in use, for all libraries alike."""
    import torch
    names = os.environ.get('CUDA_VISIBLE_DEVICES')
    gpus = names.split(',') if names else [str(gpu) for gpu in range(torch.cuda.device_count())]
    if gpus:
        local_rank = int(os.environ.get('LOCAL_RANK', '0'))
        os.environ['CUDA_VISIBLE_DEVICES'] = gpus[local_rank % len(gpus)]
