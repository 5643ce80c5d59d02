"""Nothing that is loaded can run code, no path is taken unchecked, and nothing needs a network."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from image_as_imu_ros.config import EstimatorConfig
from image_as_imu_ros.errors import ConfigError, WeightsError
from image_as_imu_ros.model.weights import load_weights, read_state

CHECKOUT = Path(__file__).resolve().parents[1]
SOURCES = [path for folder in ('image_as_imu_ros', 'launch')
           for path in sorted((CHECKOUT / folder).rglob('*.py'))]

UNSAFE_MODULES = {'pickle', 'cPickle', 'dill', 'cloudpickle', 'joblib', 'shelve', 'marshal'}
NETWORK_MODULES = {'socket', 'ssl', 'http', 'urllib', 'ftplib', 'smtplib', 'telnetlib', 'requests',
                   'httpx', 'aiohttp', 'huggingface_hub', 'socketserver', 'xmlrpc'}
UNSAFE_CALLS = {'eval', 'exec', 'compile', '__import__', 'os.system', 'os.popen', 'yaml.load',
                'yaml.full_load', 'yaml.unsafe_load', 'torch.hub.load', 'pickle.load',
                'torch.hub.load_state_dict_from_url', 'torch.hub.download_url_to_file'}
REQUIRED = {'torch.load': ('weights_only', True), 'timm.create_model': ('pretrained', False)}
"""Calls and the keyword that they must be given."""
FORBIDDEN = {'allow_pickle': True, 'shell': True, 'pretrained': True}
"""Keywords that no call may be given."""


def faults_of(text: str) -> list[str]:
    """Each line of a source that loads or runs what it should not."""
    faults = []
    for node in ast.walk(ast.parse(text)):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or '']
        faults += [f'{node.lineno}: imports {module}' for module in modules
                   if module.split('.')[0] in UNSAFE_MODULES | NETWORK_MODULES]
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: keyword.value.value if isinstance(keyword.value, ast.Constant)
                 else keyword.value for keyword in node.keywords}
        if name in UNSAFE_CALLS:
            faults.append(f'{node.lineno}: calls {name}')
        if name in REQUIRED:
            keyword, value = REQUIRED[name]
            if given.get(keyword, None if keyword == 'weights_only' else value) is not value:
                faults.append(f'{node.lineno}: {name} without {keyword}={value}')
        faults += [f'{node.lineno}: {keyword}={value}' for keyword, value in FORBIDDEN.items()
                   if given.get(keyword) is value]
    return faults


@pytest.mark.parametrize('path', SOURCES, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_sources_neither_run_what_they_load_nor_reach_for_the_network(path: Path) -> None:
    assert not faults_of(path.read_text())


@pytest.mark.parametrize('code', [
    'import pickle', 'from urllib.request import urlopen', 'eval("1")', 'yaml.load(file)',
    'torch.load(path)', 'torch.load(path, weights_only=False)', 'np.load(p, allow_pickle=True)',
    'subprocess.run("ls", shell=True)', 'timm.create_model(name, pretrained=True)'])
def test_the_scan_finds_what_is_unsafe(code: str) -> None:
    assert faults_of(code)


class Exploit:
    """An object whose pickle runs code when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    target, checkpoint = tmp_path / 'owned', tmp_path / 'checkpoint.pth'
    torch.save({'weight': torch.zeros(1), 'extra': Exploit(target)}, checkpoint)
    with pytest.raises(WeightsError, match='checkpoint'):
        read_state(checkpoint)
    renamed = checkpoint.rename(tmp_path / 'weights.safetensors')
    with pytest.raises(WeightsError, match='weights'):
        load_weights(str(renamed))
    assert not target.exists()
    torch.load(shutil.copy(renamed, checkpoint), weights_only=False)
    assert target.exists(), 'the exploit works where it is let'


@pytest.mark.parametrize('weights', [
    '', '.', '..', '../compact', '/etc/passwd', 'compact/../compact', 'a\0.safetensors',
    '.safetensors', '/tmp/.safetensors', 'https://example.org/weights.pt', '~/weights.pth'])
def test_weights_are_a_plain_name_or_a_safetensors_path(weights: str) -> None:
    with pytest.raises(ConfigError, match='weights'):
        EstimatorConfig(weights=weights)


@pytest.mark.parametrize('weights', ['compact', 'my-net_2.1', '/data/a.safetensors',
                                     '../b c/d.safetensors', 'e.safetensors'])
def test_ordinary_weights_pass(weights: str) -> None:
    assert EstimatorConfig(weights=weights).weights == weights


ESTIMATE = """
import sys
def forbid(event, arguments):
    if event in ('socket.getaddrinfo', 'socket.gethostbyname', 'socket.sendto', 'socket.connect'):
        address = arguments[-1] if event in ('socket.connect', 'socket.sendto') else arguments[0]
        host = address[0] if isinstance(address, tuple) else address
        if not str(host).startswith(('127.', '/', 'localhost', '::1')):
            raise SystemExit(f'reaches for the network: {event} {arguments}')
sys.addaudithook(forbid)
if '--reach-out' in sys.argv:
    import socket
    socket.create_connection(('192.0.2.1', 9), timeout=0.1)
import numpy as np
from image_as_imu_ros.config import EstimatorConfig
from image_as_imu_ros.estimator import VisualGyroscope
from image_as_imu_ros.stream import StreamEstimator
from image_as_imu_ros.types import CameraIntrinsics, Frame
stream = StreamEstimator(VisualGyroscope(EstimatorConfig(device='cpu', threads=1)))
camera = CameraIntrinsics(128, 96, 100.0, 100.0, 63.5, 47.5)
image = np.random.default_rng(0).integers(0, 256, (96, 128), np.uint8)
for index in range(2):
    estimate = stream.process(Frame(image, 1 + index * 33_000_000, camera, 0.01))
print(estimate.status.name)
"""


def without_network(*arguments: str) -> subprocess.CompletedProcess:
    """Run ESTIMATE in an empty network namespace where that is allowed, audited anywhere."""
    namespace = ['unshare', '--user', '--map-root-user', '--net']
    try:
        subprocess.run([*namespace, 'true'], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        namespace = []
    return subprocess.run([*namespace, sys.executable, '-c', ESTIMATE, *arguments], cwd=CHECKOUT,
                          capture_output=True, text=True, timeout=150, check=False)


def test_the_estimator_runs_without_a_network() -> None:
    result = without_network()
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() in ('OK', 'PREDICTED', 'SIGN_UNRESOLVED', 'NO_SIGNAL')


def test_reaching_out_would_be_found() -> None:
    result = without_network('--reach-out')
    assert result.returncode != 0 and 'reaches for the network' in result.stderr


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / 'scene.npz', array=np.array([Exploit(tmp_path / 'owned')], object))
    with np.load(tmp_path / 'scene.npz') as stored, pytest.raises(ValueError, match='pickle'):
        stored['array']
