"""Networks from files of weights, and files of weights from networks."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from image_as_imu_ros.errors import ConfigError, WeightsError
from image_as_imu_ros.files import write_atomically
from image_as_imu_ros.model.architectures import build_network
from image_as_imu_ros.model.network import (
    WHOLE,
    WIDTHS,
    CellDistributions,
    CompactNetwork,
    DisplacementNetwork,
)
from image_as_imu_ros.model.onnx_cells import CRITIC, NETWORK, WHOLE_NETWORK
from image_as_imu_ros.model.onnx_export import (
    exported_critic,
    exported_network,
    exported_whole,
)
from image_as_imu_ros.model.reference import ReferenceNetwork
from image_as_imu_ros.model.weights_files import WeightsFile, find_weights

NAMES_IN_ERRORS = 3


@dataclass(frozen=True)
class Weights:
    """A network in evaluation mode, and the file it is from."""

    network: nn.Module
    file: WeightsFile


def load_weights(name_or_path: str) -> Weights:
    """
    Load a network for inference.

    :param name_or_path: a shipped name, or a path that ends in .safetensors
    :raises WeightsError: if the file is missing, damaged or for an unknown architecture
    """
    file = find_weights(name_or_path)
    return Weights(load_network(file), file)


def load_network(file: WeightsFile) -> nn.Module:
    """
    Load the network of a file of weights, in evaluation mode.

    :raises WeightsError: if it is damaged or for an unknown architecture
    """
    try:
        widths, ranks = (tuple(json.loads(file.metadata.get(name, str(list(usual)))))
                         for name, usual in (('widths', WIDTHS), ('ranks', WHOLE)))
        network = build_network(file.architecture, widths, ranks)
    except (ConfigError, TypeError, ValueError) as error:
        raise WeightsError(f'cannot use weights {file.path}: {error}') from error
    load_strictly(network, read_tensors(file.path)[0], file.path)
    return network.eval().requires_grad_(False)


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

    :param metadata: text stored in the file; `architecture`, `widths` and `ranks` are those of a
        compact network of whole convolutions unless it states them
    :returns: sha256 of the file
    """
    tensors = {key: (tensor.half() if tensor.is_floating_point() and
                     not key.startswith('critic.') else tensor).contiguous()
               for key, tensor in state.items()}
    return _write(tensors, path, {'architecture': CompactNetwork.architecture, **metadata})


def export_onnx(weights: Path, folder: Path, whole: bool = False) -> tuple[str, ...]:
    """
    Write the network and its critic as ONNX models, `network.onnx` and `critic.onnx`.

    :param weights: .safetensors of a network of distributions
    :param whole: write `whole.onnx` too, from images to distributions, for other programs
    :returns: names of the files
    :raises WeightsError: if the weights cannot be used, or the folder cannot be written
    :raises ConfigError: if they are of another network, or onnx is not installed
    """
    network = load_weights(str(weights)).network
    if not isinstance(network, DisplacementNetwork):
        raise ConfigError(f'{weights} is of the architecture "{network.architecture}", which '
                          'runs in torch only')
    distributions = CellDistributions(network.fused(), half=False).eval()
    models = {NETWORK: exported_network(distributions, 'cpu'), CRITIC: exported_critic(network)}
    if whole:
        models[WHOLE_NETWORK] = exported_whole(distributions)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, model in models.items():
            write_atomically(folder / name, model)
    except OSError as error:
        raise WeightsError(f'cannot write ONNX models to {folder}: {error}') from error
    return tuple(models)


def _write(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> str:
    """Write a weights file so that the path never holds half of one; returns its sha256."""
    data = save(tensors, metadata)
    write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()
