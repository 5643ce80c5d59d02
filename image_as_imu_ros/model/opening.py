"""Weights opened for estimating, with as little loaded as that takes."""

from __future__ import annotations

import importlib.util

from image_as_imu_ros.model.distributions import Architecture, Distributions
from image_as_imu_ros.model.onnx_cells import OnnxCells
from image_as_imu_ros.model.weights_files import COMPACT, TIMM, WeightsFile
from image_as_imu_ros.threads import NetworkThreads


def open_architecture(file: WeightsFile, device: str, runtime: str,
                      threads: NetworkThreads) -> Architecture:
    """
    Open weights, without torch where ONNX Runtime computes them on the CPU.

    :param device: 'cpu' or 'cuda'
    :param runtime: as the setting `estimator.runtime`
    :param threads: of the network on the CPU
    :raises WeightsError: if the weights are damaged or for an unknown architecture
    :raises ConfigError: if the runtime is not available, or not for these weights
    """
    if device == 'cpu' and _runs_on_onnx(file.architecture, runtime):
        return Distributions(OnnxCells(file, threads))
    import torch

    from image_as_imu_ros.model.architectures import open_network
    from image_as_imu_ros.model.weights import load_network
    torch.set_num_threads(threads.least)
    return open_network(load_network(file), device, runtime)


def _runs_on_onnx(architecture: str, runtime: str) -> bool:
    """Whether ONNX Runtime was chosen or, for 'auto', is installed and the quickest here."""
    if runtime != 'auto':
        return runtime == 'onnxruntime' and architecture.startswith((COMPACT, TIMM))
    return architecture == COMPACT \
        and all(map(importlib.util.find_spec, ('onnxruntime', 'onnx')))
