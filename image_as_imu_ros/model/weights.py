"""Weights: shipped ones by name, others by path, checked on every load."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from image_as_imu_ros.errors import ConfigError, WeightsError
from image_as_imu_ros.files import write_atomically
from image_as_imu_ros.model.architectures import build_network
from image_as_imu_ros.model.network import WIDTHS, CompactNetwork
from image_as_imu_ros.model.reference import ReferenceNetwork

SHIPPED = Path(__file__).parent / 'shipped'
NAMES_IN_ERRORS = 3


@dataclass(frozen=True)
class Weights:
    """A network in evaluation mode and what is known of it."""

    name: str
    network: nn.Module
    metadata: dict[str, str]

    @property
    def architecture(self) -> str:
        """Name that `build_network` knows."""
        return self.metadata['architecture']


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


def load_weights(name_or_path: str) -> Weights:
    """
    Load a network for inference.

    :param name_or_path: a shipped name, or a path that ends in .safetensors
    :raises WeightsError: if the file is missing, damaged or for an unknown architecture
    """
    if name_or_path.endswith('.safetensors'):
        path, name = Path(name_or_path), Path(name_or_path).stem
    else:
        verify(name_or_path)
        path, name = SHIPPED / f'{name_or_path}.safetensors', name_or_path
    tensors, metadata = read_tensors(path)
    try:
        network = build_network(str(metadata.get('architecture')),
                                tuple(json.loads(metadata.get('widths', str(list(WIDTHS))))))
    except (ConfigError, TypeError, ValueError) as error:
        raise WeightsError(f'cannot use weights {path}: {error}') from error
    load_strictly(network, tensors, path)
    return Weights(name, network.eval().requires_grad_(False), metadata)


def load_strictly(network: nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """
    Give a network its tensors.

    :param path: where they come from
    :raises WeightsError: naming the tensors that are missing, unknown or of another shape
    """
    expected = network.state_dict()
    faults = {
        'missing': [name for name in expected if name not in tensors],
        'unexpected': [name for name in tensors if name not in expected],
        'of another shape': [
            f'{name} {tuple(tensors[name].shape)}, expected {tuple(tensor.shape)}'
            for name, tensor in expected.items()
            if name in tensors and tensors[name].shape != tensor.shape]}
    texts = [f'{len(names)} {fault} ({", ".join(names[:NAMES_IN_ERRORS])}'
             f'{", ..." if len(names) > NAMES_IN_ERRORS else ""})'
             for fault, names in faults.items() if names]
    if texts:
        name = getattr(network, 'architecture', 'the encoder')
        raise WeightsError(f'{path} does not fit {name}: tensors {"; ".join(texts)}')
    network.load_state_dict(tensors)


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """
    Read a network's state, in single precision, and the text stored with it.

    :raises WeightsError: if the file is missing or damaged
    """
    tensors, metadata = _read_safetensors(path)
    return {key: tensor.float() if tensor.is_floating_point() else tensor
            for key, tensor in tensors.items()}, metadata


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safe_open(path, 'pt') as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise WeightsError(f'cannot read weights {path}: {error}') from error


def read_state(source: Path) -> dict[str, torch.Tensor]:
    """
    Read a plain state dict, .pt, .pth or .safetensors.

    :raises WeightsError: if the file is missing, damaged or something else
    """
    if source.suffix == '.safetensors':
        return read_tensors(source)[0]
    try:
        state = torch.load(source, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged files
        reason = ' '.join(str(error).split())[:160]
        raise WeightsError(f'cannot read checkpoint {source}: {reason}') from error
    if not isinstance(state, dict) \
            or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise WeightsError(f'{source} is not a plain state dict, tensors by name')
    return state


def import_weights(source: Path, output: Path) -> str:
    """
    Turn the published checkpoint of the paper into weights of the reference network.

    They stay in single precision: half would move its flow by 0.001 px.

    :param source: plain state dict, .pt, .pth or .safetensors
    :param output: .safetensors file to write
    :returns: sha256 of the file
    :raises WeightsError: if the checkpoint cannot be read or is not that of the network
    """
    if output.suffix != '.safetensors' or output.resolve() == source.resolve():
        raise WeightsError(f'cannot write to {output}: give another file, .safetensors')
    state = read_state(source)
    network = ReferenceNetwork()
    load_strictly(network, state, source)
    spoilt = [name for name, tensor in network.state_dict().items()
              if not torch.isfinite(tensor).all()]
    if spoilt:
        raise WeightsError(f'{source} holds values that are not finite: {spoilt[0]}')
    return _write(network.state_dict(), output, {
        'source': source.name, 'source_sha256': hashlib.sha256(source.read_bytes()).hexdigest(),
        'architecture': ReferenceNetwork.architecture})


def export_weights(state: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> str:
    """
    Write a network's state in half precision; the critic, tiny, in single.

    :param metadata: text stored in the file; `architecture` and `widths` are those of the shipped
        compact network unless it states them
    :returns: sha256 of the file
    """
    tensors = {key: (tensor.half() if tensor.is_floating_point() and
                     not key.startswith('critic.') else tensor).contiguous()
               for key, tensor in state.items()}
    return _write(tensors, path, {'architecture': CompactNetwork.architecture, **metadata})


def _write(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> str:
    """Write a weights file so that the path never holds half of one; returns its sha256."""
    data = save(tensors, metadata)
    write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()
