"""ONNX models from networks of distributions, which torch writes."""

from __future__ import annotations

import io
import warnings

import torch
from torch import Tensor, nn

from image_as_imu_ros.geometry.blur_solver import LENGTH_RATIOS
from image_as_imu_ros.model.length_features import CHANNELS
from image_as_imu_ros.model.network import (
    CellDistributions,
    DisplacementNetwork,
    MethodOf,
    example_features,
    example_images,
)
from image_as_imu_ros.model.onnx_cells import FEATURES, INPUTS, lacking

OPSET = 17
IMAGES, OUTPUT = INPUTS[-1], 'log_probability'
AXES = {0: 'images', 2: 'height', 3: 'width'}
"""Those of an input that are of any size."""


def exported_network(distributions: CellDistributions, device: str) -> bytes:
    """
    ONNX model of what follows the front ends, for any number and size of images.

    Of the front ends' many slices ONNX Runtime would make copies.
    """
    features = example_features(distributions.network, device)
    return _exported(
        MethodOf(distributions, 'distributions').eval(), features, INPUTS, OUTPUT,
        {name: {axis: f'{name}_{text}' for axis, text in AXES.items()} for name in INPUTS})


def exported_whole(distributions: CellDistributions) -> bytes:
    """ONNX model from images to distributions, front ends included, as of `CellDistributions`."""
    return _exported(distributions, (example_images(),), (IMAGES,), OUTPUT,
                     {IMAGES: AXES, OUTPUT: {0: 'images', 1: 'rows', 2: 'columns'}})


def exported_critic(network: DisplacementNetwork) -> bytes:
    """ONNX model of the critic, for any number of hills."""
    features = torch.zeros(1, 2, CHANNELS, len(LENGTH_RATIOS))
    return _exported(network.critic, (features,), (FEATURES,), 'logits', {FEATURES: {1: 'hills'}})


def _exported(module: nn.Module, inputs: tuple[Tensor, ...], names: tuple[str, ...], output: str,
              axes: dict[str, dict[int, str]]) -> bytes:
    """
    ONNX model of a module.

    :raises ConfigError: if onnx is not installed
    """
    file = io.BytesIO()
    try:
        import onnx  # noqa: F401  # which torch's export needs
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter('ignore')  # torch's newer export takes ten times as long
            torch.onnx.utils.export(module, inputs, file, opset_version=OPSET,
                                    input_names=list(names), output_names=[output],
                                    dynamic_axes=axes)
    except ModuleNotFoundError as error:
        raise lacking('onnxruntime', 'onnx') from error
    return file.getvalue()
