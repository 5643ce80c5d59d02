"""What a training run leaves behind, and what one starts from."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from image_as_imu_ros.errors import WeightsError
from image_as_imu_ros.files import replacing
from image_as_imu_ros.model.network import LowRank
from image_as_imu_ros.model.weights import load_strictly, read_tensors


def read_checkpoint(path: Path, architecture: str | None = None) -> dict:
    """
    Load a training state.

    :param architecture: the one that it must be of
    :raises WeightsError: if it is missing, damaged or of another network
    """
    state = _load(path)
    found = state.get('architecture')
    if found is None or architecture not in (None, found):
        raise WeightsError(f'{path} is for architecture {found}, '
                           f'not {architecture or "that of a run"}; start a new run folder')
    return state


def write_checkpoint(path: Path, state: dict) -> None:
    """Write a training state so that the path never holds half of one."""
    with replacing(path) as partial:
        torch.save(state, partial)


def start_from(network: nn.Module, path: Path) -> None:
    """
    Give a network the tensors of a file, or its encoder, where the file holds no more.

    :param path: .safetensors, checkpoint.pt of a run (its average), or a plain state dict such as
        a published encoder, with or without its classifier
    :raises WeightsError: if the file cannot be read or does not fit
    """
    if path.suffix == '.safetensors':
        tensors = read_tensors(path)[0]
    else:
        state = _load(path)
        tensors = state.get('average', state.get('state_dict', state))
    encoder = getattr(network, 'backbone', None)
    if encoder is not None and not any(name.startswith('backbone.') for name in tensors):
        names = encoder.state_dict()
        load_strictly(encoder, {name: tensor for name, tensor in tensors.items()
                                if name in names}, path)
    else:
        load_strictly(network, tensors, path)


def start_from_teacher(network: nn.Module, teacher: nn.Module, name: str) -> None:
    """
    Give a network what its teacher has learnt, convolutions of low rank the nearest to its.

    :param name: of the teacher
    :raises WeightsError: if they differ in more than ranks
    """
    tensors = teacher.state_dict()
    for path, module in network.named_modules():
        weight = tensors.get(f'{path}.weight')
        if isinstance(module, LowRank) and weight is not None and weight.shape == module.shape:
            module.approximate(tensors.pop(f'{path}.weight'))
            bias = tensors.pop(f'{path}.bias', None)
            tensors |= {f'{path}.{key}': tensor for key, tensor in module.state_dict().items()}
            if bias is not None:
                tensors[f'{path}.1.bias'] = bias
    load_strictly(network, tensors, Path(name))


def _load(path: Path) -> dict:
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged files
        raise WeightsError(f'cannot read checkpoint {path}: {error!r}') from error
    if not isinstance(state, dict):
        raise WeightsError(f'cannot read checkpoint {path}: it holds no tensors by name')
    return state
