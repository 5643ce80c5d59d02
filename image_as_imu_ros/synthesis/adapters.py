"""
Networks of others, for those who have installed them: RIFE, which interpolates images, and
Prompt Depth Anything, which makes fine depth of a coarse one.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from image_as_imu_ros.errors import ConfigError

RIFE_HINT = ('clone github.com/hzwer/Practical-RIFE and put the files of one of its models, of '
             'version 4, into train_log/')
PROMPTDA_HINT = ('download one: hf download depth-anything/prompt-depth-anything-vits-hf '
                 '--local-dir promptda')
_RIFE_FILES = ('train_log/RIFE_HDv3.py', 'train_log/flownet.pkl')
_RIFE_MULTIPLE_PX = 128
"""Sides of the images that its coarsest level can take."""
_MM = 1000.0


class Blend:
    """Interpolates by fading over; what moves by more than a pixel is seen twice."""

    settings = 'blend'

    def between(self, first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
        """Weigh the images by their nearness in time."""
        return (1.0 - share) * first + share * second


class Rife:
    """
    RIFE, from a checkout of Practical-RIFE.

    Its code is run: use one that you trust.

    :param checkout: folder that holds `train_log/`
    :raises ConfigError: if there is no model, or one that cannot interpolate at any time
    """

    def __init__(self, checkout: Path) -> None:
        missing = [name for name in _RIFE_FILES if not (checkout / name).is_file()]
        if missing:
            raise ConfigError(f'RIFE: {checkout / missing[0]} is missing; {RIFE_HINT}')
        sys.path.insert(0, str(checkout.resolve()))
        try:
            self._model = importlib.import_module('train_log.RIFE_HDv3').Model()
            self._model.load_model(str(checkout / 'train_log'), -1)
        except Exception as error:  # code of others
            raise ConfigError(f'RIFE of {checkout} cannot be loaded: {error!r}; {RIFE_HINT}') \
                from error
        finally:
            sys.path.remove(str(checkout.resolve()))
        version = getattr(self._model, 'version', 0)
        if version < 3.9:
            raise ConfigError(f'RIFE of {checkout} is of version {version}, which interpolates '
                              f'half-way only; {RIFE_HINT}')
        self._model.eval()
        self._device = next(self._model.flownet.parameters()).device
        self.settings = f'RIFE {version}'

    def between(self, first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
        """Interpolate, on the GPU where there is one."""
        height, width = first.shape[:2]
        padding = (0, -width % _RIFE_MULTIPLE_PX, 0, -height % _RIFE_MULTIPLE_PX)
        with torch.inference_mode():
            images = [functional.pad(torch.from_numpy(image).movedim(-1, 0)[None].to(self._device),
                                     padding) for image in (first, second)]
            image = self._model.inference(*images, share)[0, :, :height, :width]
        return image.movedim(0, -1).clamp(0.0, 1.0).cpu().numpy()


class PromptDepth:
    """
    Prompt Depth Anything, by the package transformers.

    :param name: folder of a model, or its name at Hugging Face where it was downloaded before
    :raises ConfigError: if transformers is not installed or the model cannot be loaded
    """

    def __init__(self, name: str) -> None:
        try:
            from transformers import AutoImageProcessor, PromptDepthAnythingForDepthEstimation
        except ImportError as error:
            raise ConfigError('Prompt Depth Anything needs transformers; install it with: '
                              "pip install 'image_as_imu_ros[promptda]'") from error
        try:
            self._processor = AutoImageProcessor.from_pretrained(name, local_files_only=True)
            self._model = PromptDepthAnythingForDepthEstimation.from_pretrained(
                name, local_files_only=True).eval()
        except (OSError, ValueError) as error:
            raise ConfigError(f'Prompt Depth Anything cannot be loaded from {name}: it is not '
                              f'there or no such model; {PROMPTDA_HINT}') from error
        if torch.cuda.is_available():
            self._model.cuda()
        self.settings = f'PromptDA {name}'

    def complete(self, image: np.ndarray, depth_m: np.ndarray) -> np.ndarray:
        """Estimate the depth of each pixel of the image."""
        inputs = self._processor(images=image, prompt_depth=_MM * depth_m.astype(np.float32),
                                 return_tensors='pt')
        with torch.inference_mode():
            output = self._model(**inputs.to(self._model.device))
        (result,) = self._processor.post_process_depth_estimation(
            output, target_sizes=[image.shape[:2]])
        return result['predicted_depth'].float().cpu().numpy()
