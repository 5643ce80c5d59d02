"""Where networks compute: the CPU, or a GPU by torch, which is loaded only where there is one."""

from __future__ import annotations

import ctypes
from pathlib import Path

from image_as_imu_ros.errors import ConfigError


def chosen_device(setting: str) -> str:
    """
    Tell the device that the setting `estimator.device` means here.

    :param setting: 'auto', 'cpu' or 'cuda'
    :returns: 'cpu' or 'cuda'
    :raises ConfigError: if there is no such device
    """
    if setting == 'cpu' or (setting == 'auto' and not _has_driver()):
        return 'cpu'
    import torch
    if torch.cuda.is_available():
        return 'cuda'
    if setting == 'cuda':
        raise ConfigError('device: "cuda" was asked for but torch sees no GPU; use "auto"')
    return 'cpu'


def _has_driver() -> bool:
    try:
        ctypes.CDLL('libcuda.so.1')
    except OSError:
        return False
    return True


def computes_bfloat16(device: str) -> bool:
    """Whether bfloat16 is faster than float32 there; some CPUs emulate it, eight times slower."""
    cpuinfo = Path('/proc/cpuinfo')  # where there is none, float32 is right, if slower
    return device == 'cuda' or (cpuinfo.exists() and 'avx512_bf16' in cpuinfo.read_text())


def memory_of_tensors(device: str) -> int:
    """Bytes that tensors of this process take on a GPU."""
    if device != 'cuda':
        return 0
    import torch
    return torch.cuda.memory_allocated()


def release_unused_memory(device: str) -> None:
    """Give memory of a GPU that tensors no longer need to other processes."""
    if device == 'cuda':
        import torch
        torch.cuda.empty_cache()
