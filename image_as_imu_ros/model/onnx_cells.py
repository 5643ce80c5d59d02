"""A network of distributions and its critic in ONNX Runtime on the CPU, without torch."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from image_as_imu_ros.errors import ConfigError, WeightsError
from image_as_imu_ros.model.compiled_front_ends import (
    derivative_correlation,
    directional_structure,
)
from image_as_imu_ros.model.weights_files import WeightsFile

logger = logging.getLogger(__name__)

PACKAGE = Path(__file__).resolve().parents[1]
NETWORK, CRITIC = 'network.onnx', 'critic.onnx'
INPUTS = ('structure', 'correlation', 'gray')
"""Of the network, which may lack some."""
FEATURES = 'features'
"""Input of the critic."""
MAX_KEPT = 8
"""Weights whose models are kept, the newest ones."""


def cache_folder() -> Path:
    """Where what was computed once is kept, and may be deleted."""
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'image_as_imu_ros'


def exported_models(file: WeightsFile) -> Path:
    """
    Folder of the ONNX models of weights, which are exported when they are first used.

    :raises ConfigError: if onnx is not installed, which exporting needs
    :raises WeightsError: if the weights do not fit their network
    """
    # what the models depend on
    digest = hashlib.sha256(file.path.read_bytes())
    for source in sorted((PACKAGE / 'model').glob('*.py')):
        digest.update(source.read_bytes())
    folder = cache_folder() / 'onnx' / f'{file.name}-{digest.hexdigest()[:16]}'
    if (folder / NETWORK).is_file() and (folder / CRITIC).is_file():
        return folder
    if importlib.util.find_spec('onnx') is None:
        raise lacking('onnxruntime', 'onnx')
    try:
        folder.mkdir(parents=True, exist_ok=True)
        kept = sorted(folder.parent.iterdir(), key=lambda path: path.stat().st_mtime)
        for old in kept[:-MAX_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix='image_as_imu_ros-'))
    logger.info('%s: exporting for ONNX Runtime, once, to %s', file.name, folder)
    if 'torch' in sys.modules:
        from image_as_imu_ros.model.weights import export_onnx
        export_onnx(file.path, folder)
        return folder
    # in a process of its own, so that this one stays without torch's half a gigabyte
    done = subprocess.run(
        [sys.executable, '-m', 'image_as_imu_ros', 'weights', 'onnx', str(file.path.resolve()),
         str(folder)], cwd=PACKAGE.parent, text=True, capture_output=True, check=False)
    if done.returncode:
        raise WeightsError(f'cannot export weights {file.path}: {done.stderr.strip()}')
    return folder


class OnnxCells:
    """
    A `CellModel` of ONNX Runtime.

    :param threads: that the network uses
    :raises ConfigError: if ONNX Runtime is not installed
    :raises WeightsError: if the weights do not fit their network
    """

    def __init__(self, file: WeightsFile, threads: int) -> None:
        folder = exported_models(file)
        self._network = open_session(folder / NETWORK, threads)
        self._critic = open_session(folder / CRITIC, 1)
        self._inputs = [each.name for each in self._network.get_inputs()]

    def log_probabilities(self, images: np.ndarray) -> np.ndarray:
        """Distributions of the cells' displacements, as of `CellModel`."""
        seen = dict(zip(INPUTS, (directional_structure(images), derivative_correlation(images),
                                 images[:, None])))
        return self._network.run(None, {name: seen[name] for name in self._inputs})[0]

    def judge(self, features: np.ndarray) -> np.ndarray:
        """What the critic makes of hills, as of `CellModel`."""
        return self._critic.run(None, {FEATURES: features[None]})[0][0]


def open_session(model: Path, threads: int) -> Any:
    """
    Have ONNX Runtime compute a model on the CPU.

    :raises ConfigError: if it is not installed
    """
    onnxruntime = imported_onnxruntime('onnxruntime')
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # its threads would take the processor from the solver of the image before
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    return onnxruntime.InferenceSession(str(model), options,
                                        providers=['CPUExecutionProvider'])


def imported_onnxruntime(runtime: str) -> Any:
    """
    Load ONNX Runtime.

    :param runtime: setting that asks for it
    :raises ConfigError: if it is not installed
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise lacking(runtime, 'onnxruntime') from error
    return onnxruntime


def lacking(runtime: str, package: str) -> ConfigError:
    """What to say of a package that is not installed."""
    return ConfigError(f'runtime: "{runtime}" needs {package}; pip install '
                       "'image_as_imu_ros[onnxruntime]'")
