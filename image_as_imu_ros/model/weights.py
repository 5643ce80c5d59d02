"""Weights: shipped ones by name, others by path, checked on every load."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from image_as_imu_ros.errors import WeightsError
from image_as_imu_ros.model.network import CompactNetwork

SHIPPED = Path(__file__).parent / 'shipped'


@dataclass(frozen=True)
class Weights:
    """A network ready for inference and what is known of it."""

    name: str
    network: CompactNetwork
    metadata: dict[str, str]


def shipped_names() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob('*.safetensors'))


def description(name: str) -> dict[str, Any]:
    """The shipped record of weights: sha256, architecture, licence, data, metrics."""
    return json.loads((SHIPPED / f'{name}.json').read_text())


def verify(name: str) -> str:
    """
    Check the shipped file against its recorded hash.

    :returns: the sha256
    :raises WeightsError: if the file is missing or differs
    """
    path = SHIPPED / f'{name}.safetensors'
    if not path.is_file():
        shipped = ', '.join(shipped_names()) or 'none'
        raise WeightsError(f'no weights "{name}"; shipped: {shipped}; '
                           'or give the path of a .safetensors file')
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    expected = description(name)['sha256']
    if actual != expected:
        raise WeightsError(f'{path} is damaged: sha256 {actual}, expected {expected}; reinstall')
    return actual


def load_weights(name_or_path: str, device: str) -> Weights:
    """
    Load a network for inference.

    :param name_or_path: a shipped name, or a path that ends in .safetensors
    :param device: torch device
    :raises WeightsError: if the file is missing, damaged or for another architecture
    """
    if name_or_path.endswith('.safetensors'):
        path, name = Path(name_or_path), Path(name_or_path).stem
    else:
        verify(name_or_path)
        path, name = SHIPPED / f'{name_or_path}.safetensors', name_or_path
    tensors, metadata = read_tensors(path)
    network = CompactNetwork()
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise WeightsError(f'{path} does not fit {CompactNetwork.architecture}: '
                           f'{" ".join(str(error).split())}') from error
    network = network.fused().requires_grad_(False).to(device, memory_format=torch.channels_last)
    return Weights(name, network, metadata)


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """
    Read a network's state, in single precision, and the text stored with it.

    :raises WeightsError: if the file is missing, damaged or for another architecture
    """
    try:
        with safe_open(path, 'pt') as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (OSError, SafetensorError) as error:
        raise WeightsError(f'cannot read weights {path}: {error}') from error
    architecture = metadata.get('architecture')
    if architecture != CompactNetwork.architecture:
        raise WeightsError(f'{path} is for architecture "{architecture}", this version runs '
                           f'"{CompactNetwork.architecture}"')
    return {key: tensor.float() if tensor.is_floating_point() else tensor
            for key, tensor in tensors.items()}, metadata


def export_weights(state: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> str:
    """
    Write a network's state in half precision.

    :param metadata: text stored in the file, the architecture is added
    :returns: sha256 of the file
    """
    tensors = {key: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
               for key, tensor in state.items()}
    data = save(tensors, {**metadata, 'architecture': CompactNetwork.architecture})
    partial = path.with_suffix('.partial')
    partial.write_bytes(data)
    os.replace(partial, path)
    return hashlib.sha256(data).hexdigest()
