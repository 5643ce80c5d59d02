"""What computes distributions where torch is loaded: `estimator.runtime`, on CPU and GPU."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from image_as_imu_ros.errors import ConfigError
from image_as_imu_ros.geometry.displacement_bins import BINS, STRIDE_PX
from image_as_imu_ros.model.network import (
    CellDistributions,
    DisplacementNetwork,
    example_images,
    traced,
)
from image_as_imu_ros.model.onnx_cells import INPUTS, cache_folder, imported_onnxruntime
from image_as_imu_ros.model.onnx_export import OUTPUT, exported_network

PROVIDERS = {'onnxruntime': 'CUDAExecutionProvider', 'tensorrt': 'TensorrtExecutionProvider'}


class Runtime(Protocol):
    """Computes distributions. Any thread may call it, one at a time."""

    def __call__(self, gray: Tensor) -> Tensor:
        """
        Compute distributions of images.

        :param gray: (B, 1, H, W) float32 on any device, as of `CellDistributions`
        :returns: log-probabilities, (B, H / 8, W / 8, BINS) float32 on the device of the runtime
        """


def make_runtime(name: str, network: DisplacementNetwork, device: str) -> Runtime:
    """
    Prepare a network for inference.

    :param name: 'torch', 'compile' or, on a GPU, 'onnxruntime' or 'tensorrt'
    :param device: 'cpu' or 'cuda'
    :raises ConfigError: if what it needs is missing
    """
    network = network.fused().to(device, memory_format=torch.channels_last)
    if name in ('onnxruntime', 'tensorrt'):
        return OnnxRuntime(CellDistributions(network, half=False).eval(), name, device)
    # on a CPU that computes bfloat16 it is no quicker than ONNX Runtime, and errs by more
    distributions = CellDistributions(network, half=device == 'cuda').eval()
    if name == 'compile':
        return CompiledRuntime(distributions, device)
    return TorchRuntime(distributions, device)


class TorchRuntime:
    """Torch: step by step on a GPU, on the CPU what follows the front ends traced."""

    def __init__(self, distributions: CellDistributions, device: str) -> None:
        self._device = device
        self._front_ends = distributions.network.front_ends
        self._distributions: Any = \
            distributions.distributions if device == 'cuda' else traced(distributions)

    def __call__(self, gray: Tensor) -> Tensor:
        """Compute distributions, as of `Runtime`."""
        with torch.inference_mode():
            gray = gray.to(self._device)
            return self._distributions(*self._front_ends(gray), gray)


class Compiled:
    """
    A function under torch's compiler, which takes each shape as it comes; on a GPU a CUDA graph.

    It works in a thread of its own, as CUDA graphs belong to the thread that made them.

    :param function: of tensors, which returns one
    """

    def __init__(self, function: Callable[..., Tensor], device: str) -> None:
        self._function = torch.compile(
            function, mode='reduce-overhead' if device == 'cuda' else 'default')
        self._thread = ThreadPoolExecutor(1, 'compiled')

    def __call__(self, *tensors: Any) -> Tensor:
        """Call the function."""
        return self._thread.submit(self._run, tensors).result()

    def _run(self, tensors: tuple[Any, ...]) -> Tensor:
        with torch.no_grad():
            return self._function(*tensors).clone()  # the next run of a graph overwrites it


class CompiledRuntime:
    """
    Torch's compiler.

    :raises ConfigError: if it cannot compile here
    """

    def __init__(self, distributions: CellDistributions, device: str) -> None:
        self._device = device
        self._distributions = Compiled(distributions, device)
        try:
            self(example_images())
        except Exception as error:  # torch's compilers raise many kinds
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigError(f'runtime: torch cannot compile here ({reason}); it needs a C++ '
                              'compiler, on a GPU Triton; or use "torch"') from error

    def __call__(self, gray: Tensor) -> Tensor:
        """Compute distributions, as of `Runtime`."""
        return self._distributions(gray.to(self._device))


class OnnxRuntime:
    """
    ONNX Runtime on a GPU for what follows the front ends, for images of any size.

    :param name: 'onnxruntime' or 'tensorrt'
    :raises ConfigError: if it is not installed, or not for this device
    """

    def __init__(self, distributions: CellDistributions, name: str, device: str) -> None:
        onnxruntime = imported_onnxruntime(name)
        provider = PROVIDERS[name]
        if device != 'cuda' or provider not in onnxruntime.get_available_providers():
            raise ConfigError(
                f'runtime: "{name}" on device {device} is not in this onnxruntime, which has '
                f'{", ".join(onnxruntime.get_available_providers())}; on an NVIDIA GPU, pip '
                'install onnxruntime-gpu instead; or use "torch"')
        self._device = device
        self._front_ends = distributions.network.front_ends
        self._session = onnxruntime.InferenceSession(
            exported_network(distributions, device),
            providers=[(provider, _provider_options(provider))])
        self._inputs = [each.name for each in self._session.get_inputs()]

    def __call__(self, gray: Tensor) -> Tensor:
        """Compute distributions, as of `Runtime`."""
        with torch.inference_mode():
            gray = gray.to(self._device)
            features = dict(zip(INPUTS, (*self._front_ends(gray), gray)))
        binding = self._session.io_binding()
        features = {name: features[name].contiguous() for name in self._inputs}
        for name, tensor in features.items():
            binding.bind_input(name, 'cuda', 0, np.float32, tuple(tensor.shape),
                               tensor.data_ptr())
        height, width = gray.shape[2:]
        found = torch.empty(len(gray), height // STRIDE_PX, width // STRIDE_PX, BINS,
                            device=self._device)
        binding.bind_output(OUTPUT, 'cuda', 0, np.float32, tuple(found.shape), found.data_ptr())
        torch.cuda.current_stream().synchronize()  # the session works in a stream of its own
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return found


def _provider_options(provider: str) -> dict[str, Any]:
    """Settings of a provider of ONNX Runtime."""
    if provider != 'TensorrtExecutionProvider':
        return {}
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    return {'trt_fp16_enable': True, 'trt_engine_cache_enable': True,  # building takes minutes
            'trt_engine_cache_path': str(cache), 'trt_timing_cache_enable': True,
            'trt_timing_cache_path': str(cache)}
