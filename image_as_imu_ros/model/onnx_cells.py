"""A network of distributions and its critic in ONNX Runtime on the CPU, without torch."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from image_as_imu_ros.errors import ConfigError, WeightsError
from image_as_imu_ros.files import write_atomically
from image_as_imu_ros.model.compiled_front_ends import (
    derivative_correlation,
    directional_structure,
)
from image_as_imu_ros.model.weights_files import WeightsFile
from image_as_imu_ros.threads import HelpingThreads, NetworkThreads

logger = logging.getLogger(__name__)

PACKAGE = Path(__file__).resolve().parents[1]
NETWORK, CRITIC, WHOLE_NETWORK = 'network.onnx', 'critic.onnx', 'whole.onnx'
INPUTS = ('structure', 'correlation', 'gray')
"""Of the network, which may lack some."""
FEATURES = 'features'
"""Input of the critic."""
MAX_KEPT = 8
"""Weights whose models are kept, the newest ones."""


class OnnxCells:
    """
    A `CellModel` of ONNX Runtime.

    :param threads: of the network
    :raises ConfigError: if ONNX Runtime is not installed
    :raises WeightsError: if the weights do not fit their network
    """

    def __init__(self, file: WeightsFile, threads: NetworkThreads) -> None:
        onnxruntime = imported_onnxruntime('onnxruntime')
        self._threads = threads
        self._helpers = HelpingThreads()
        self._front_end = ThreadPoolExecutor(1, 'front_end')
        with self._helpers.begun():
            self._front_end.submit(int).result()
        try:
            self._open(onnxruntime, kept_models(file))
        except Exception:  # not there yet or damaged, for which onnxruntime raises many kinds
            with TemporaryDirectory(prefix='image_as_imu_ros-') as folder:
                export_models(file, Path(folder))
                keep_models(file, Path(folder))
                self._open(onnxruntime, Path(folder))

    def _open(self, onnxruntime: Any, folder: Path) -> None:
        self._critic = open_session(onnxruntime, folder / CRITIC, 1)
        with self._helpers.begun():
            self._networks = {count: open_session(onnxruntime, folder / NETWORK, count)
                              for count in {self._threads.least, self._threads.most}}
        self._inputs = [each.name for each in self._networks[self._threads.least].get_inputs()]

    def log_probabilities(self, images: np.ndarray) -> np.ndarray:
        """Distributions of the cells' displacements, as of `CellModel`."""
        threads = self._threads.count
        if threads == 1:
            return self._run(threads, images, directional_structure(images),
                             derivative_correlation(images))
        with self._helpers.apart():
            structure = self._front_end.submit(directional_structure, images)
            correlation = derivative_correlation(images)
            return self._run(threads, images, structure.result(), correlation)

    def _run(self, threads: int, images: np.ndarray, structure: np.ndarray,
             correlation: np.ndarray) -> np.ndarray:
        seen = dict(zip(INPUTS, (structure, correlation, images[:, None])))
        return self._networks[threads].run(None, {name: seen[name] for name in self._inputs})[0]

    def judge(self, features: np.ndarray) -> np.ndarray:
        """What the critic makes of hills, as of `CellModel`."""
        return self._critic.run(None, {FEATURES: features[None]})[0][0]


def open_session(onnxruntime: Any, model: Path, threads: int) -> Any:
    """Have ONNX Runtime compute a model on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # threads that still spin afterwards would take the processor from the solver
    options.add_session_config_entry('session.force_spinning_stop', '1')
    return onnxruntime.InferenceSession(model.read_bytes(), options,
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


def cache_folder() -> Path:
    """
    Where what was computed once is kept, and may be deleted.

    :raises RuntimeError: if the user has no home
    """
    told = Path(os.environ.get('XDG_CACHE_HOME', ''))
    return (told if told.is_absolute() else Path.home() / '.cache') / 'image_as_imu_ros'


def kept_models(file: WeightsFile) -> Path:
    """Folder where the models of these weights, made by this code, are kept."""
    digest = hashlib.sha256(file.path.read_bytes())
    for source in (*sorted((PACKAGE / 'model').glob('*.py')),
                   PACKAGE / 'geometry' / 'displacement_bins.py',
                   PACKAGE / 'geometry' / 'blur_solver.py'):
        digest.update(source.read_bytes())
    return cache_folder() / 'onnx' / f'{file.name}-{digest.hexdigest()[:16]}'


def export_models(file: WeightsFile, folder: Path) -> None:
    """
    Write the models of weights, where torch is not loaded by a process that loads it.

    :raises ConfigError: if onnx is not installed
    :raises WeightsError: if the weights do not fit their network, or nothing can be written
    """
    if importlib.util.find_spec('onnx') is None:
        raise lacking('onnxruntime', 'onnx')
    logger.info('%s: exporting for ONNX Runtime, once', file.name)
    if 'torch' in sys.modules or not sys.executable:
        from image_as_imu_ros.model.weights import export_onnx
        export_onnx(file.path, folder)
        return
    done = subprocess.run(
        [sys.executable, '-m', 'image_as_imu_ros', 'weights', 'onnx', str(file.path.resolve()),
         str(folder.resolve())], cwd=PACKAGE.parent, text=True, capture_output=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f'exit status {done.returncode}'])[-1]
        raise WeightsError(f'cannot export weights {file.path}: {reason}')


def keep_models(file: WeightsFile, exported: Path) -> None:
    """Copy models to the cache, if it can be written, and delete the oldest there."""
    try:
        folder = kept_models(file)
        folder.mkdir(parents=True, exist_ok=True)
        for name in (CRITIC, NETWORK):
            write_atomically(folder / name, (exported / name).read_bytes())
        kept = sorted(folder.parent.iterdir(), key=lambda path: path.stat().st_mtime)
    except (OSError, RuntimeError) as error:
        logger.warning('%s: its ONNX models cannot be kept (%s), and are exported at each start; '
                       'set XDG_CACHE_HOME to a folder that can be written', file.name, error)
        return
    for old in kept[:-MAX_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
