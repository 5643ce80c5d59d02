"""Every runtime gives the motion that torch gives step by step, or says what it lacks."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from image_as_imu_ros.cli.main import main
from image_as_imu_ros.config import EstimatorConfig
from image_as_imu_ros.errors import ConfigError
from image_as_imu_ros.estimator import VisualGyroscope
from image_as_imu_ros.geometry.blur_solver import LENGTH_RATIOS
from image_as_imu_ros.model.architectures import Reference, TorchCells, build_network
from image_as_imu_ros.model.length_features import CHANNELS
from image_as_imu_ros.model.network import CellDistributions
from image_as_imu_ros.model.onnx_cells import MAX_KEPT, OnnxCells, kept_models
from image_as_imu_ros.model.weights import export_weights, load_weights
from image_as_imu_ros.model.weights_files import find_weights
from image_as_imu_ros.threads import SETTINGS, HelpingThreads, NetworkThreads
from image_as_imu_ros.types import Frame

CHECKOUT = Path(__file__).resolve().parents[1]
ON_CPU = ('torch', 'onnxruntime')
SIZES = [(1, 224, 320), (3, 104, 136), (2, 200, 72)]


def blurred_noise(images, height, width):
    random = np.random.default_rng(images)
    return np.stack([cv2.GaussianBlur(random.random((height, width), np.float32), (0, 0), 2 + k)
                     for k in range(images)])


def config(runtime: str, device: str = 'cpu') -> EstimatorConfig:
    return EstimatorConfig(device=device, threads=1, runtime=runtime)


@pytest.fixture(scope='module')
def gyroscopes():
    """A gyroscope for each runtime that is quick to start on a CPU."""
    pytest.importorskip('onnxruntime')
    pytest.importorskip('onnx')
    return {name: VisualGyroscope(config(name)) for name in ON_CPU}


@pytest.fixture(scope='module')
def network():
    return load_weights('compact').network


@pytest.fixture(scope='module')
def eager(network):
    """Torch, step by step, of the shipped weights, without folding or tracing anything."""
    def distributions(gray):
        with torch.inference_mode():
            _, votes = network(gray)
            return votes.log_softmax(dim=-1)
    return distributions


@pytest.fixture(scope='module')
def models(network):
    pytest.importorskip('onnxruntime')
    pytest.importorskip('onnx')
    return {'torch': TorchCells(network, 'torch'),
            'onnxruntime': OnnxCells(find_weights('compact'), NetworkThreads(1))}


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """The exported model that includes the front ends."""
    onnxruntime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnx')
    folder = tmp_path_factory.mktemp('onnx')
    assert main(['weights', 'onnx', 'compact', str(folder), '--whole']) == 0
    session = onnxruntime.InferenceSession(folder / 'whole.onnx')
    return lambda gray: session.run(None, {'gray': gray[:, None]})[0]


@pytest.mark.parametrize('images, height, width', SIZES)
def test_whole_model_takes_any_number_and_size_of_images(whole, eager, images, height, width):
    gray = blurred_noise(images, height, width)
    expected = eager(torch.from_numpy(gray)[:, None]).numpy()
    np.testing.assert_allclose(whole(gray), expected, atol=1e-3)


@pytest.mark.parametrize('name', ON_CPU)
@pytest.mark.parametrize('images, height, width', SIZES)
def test_distributions_are_those_of_eager_torch(models, eager, name, images, height, width):
    gray = blurred_noise(images, height, width)
    expected = eager(torch.from_numpy(gray)[:, None]).numpy()
    np.testing.assert_allclose(models[name].log_probabilities(gray), expected, atol=1e-3)


def test_distributions_are_those_of_fewer_threads_beside_another_image(monkeypatch):
    pytest.importorskip('onnxruntime')
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: {0, 1})
    threads = NetworkThreads(0)
    cells = OnnxCells(find_weights('compact'), threads)
    gray = blurred_noise(1, 224, 320)
    assert threads.count == 2
    alone = cells.log_probabilities(gray)
    with threads.working():
        assert threads.count == 1
        np.testing.assert_allclose(cells.log_probabilities(gray), alone, atol=1e-4)
    assert NetworkThreads(1).count == 1


@pytest.fixture
def helper():
    """A thread that waits, and what moves it."""
    done, helpers = threading.Event(), HelpingThreads()
    thread = threading.Thread(target=done.wait)
    with helpers.begun():
        thread.start()
    yield thread, done, helpers
    done.set()
    thread.join()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason='needs two cores')
def test_helping_threads_stay_off_the_core_of_the_one_they_help(helper):
    thread, done, helpers = helper
    cores = os.sched_getaffinity(0)
    with helpers.apart():
        own = os.sched_getaffinity(0)
        assert len(own) == 1
        assert os.sched_getaffinity(thread.native_id) == cores - own
    assert os.sched_getaffinity(0) == cores
    done.set()
    thread.join()
    with helpers.apart():  # though it has ended
        assert len(os.sched_getaffinity(0)) == 1


def test_helping_threads_of_a_single_core_stay(monkeypatch, helper):
    _, _, helpers = helper
    cores, moved = os.sched_getaffinity(0), []
    os.sched_setaffinity(0, {min(cores)})
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, 'sched_setaffinity', lambda *moves: moved.append(moves))
            with helpers.apart():
                pass
    finally:
        os.sched_setaffinity(0, cores)
    assert not moved


def test_network_of_two_threads_has_its_helpers_apart(monkeypatch):
    pytest.importorskip('onnxruntime')
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: {0, 1})
    cells, moved = OnnxCells(find_weights('compact'), NetworkThreads(0)), set()
    monkeypatch.setattr(os, 'sched_setaffinity', lambda thread, _: moved.add(thread))
    cells.log_probabilities(blurred_noise(1, 224, 320))
    assert len(moved - {0}) == 2  # front end, network
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    assert any(names.get(thread, '').startswith('front_end') for thread in moved)


@pytest.mark.parametrize('name', ON_CPU)
@pytest.mark.parametrize('hills', [1, 2, 3])
def test_critics_judge_alike(models, network, name, hills):
    features = np.random.default_rng(hills).normal(
        0.0, 0.5, (hills, CHANNELS, len(LENGTH_RATIOS))).astype(np.float32)
    with torch.inference_mode():
        expected = network.critic(torch.from_numpy(features)[None])[0].numpy()
    np.testing.assert_allclose(models[name].judge(features), expected, atol=1e-3)


@pytest.mark.parametrize('name', ON_CPU)
def test_velocity_is_that_of_eager_torch(gyroscopes, eager, name, blurred_frames):
    gyroscope = gyroscopes[name]
    differences, speeds = [], []
    for frame in blurred_frames[::3]:
        observation = gyroscope.observe(frame)
        gray = torch.from_numpy(observation.working_image)[None, None]
        by_eager = dataclasses.replace(
            observation, output=(observation.working_image, eager(gray)[0].numpy()))
        found, expected = (gyroscope.solve(each).solution.averaged().motion[:3]
                           / frame.exposure_time_s for each in (observation, by_eager))
        speeds.append(np.linalg.norm(expected))
        differences.append(min(np.linalg.norm(found - expected), np.linalg.norm(found + expected)))
    # a last bit may lead the solver, which stops after so many steps, to stop elsewhere
    assert np.median(np.divide(differences, speeds)) < 0.001
    assert np.linalg.norm(differences) < 0.01 * np.linalg.norm(speeds)


def test_frames_observed_together_give_what_each_gives(gyroscopes, blurred_frames):
    gyroscope = gyroscopes['onnxruntime']
    first, second = blurred_frames[:2]
    small = Frame(cv2.resize(first.image, (160, 120)), first.stamp_ns,
                  first.intrinsics.resized(160, 120), first.exposure_time_s)
    blank = dataclasses.replace(first, image=np.zeros_like(first.image))
    frames = [first, small, blank, second]
    for frame, together in zip(frames, gyroscope.observe_all(frames)):
        alone = gyroscope.observe(frame)
        assert together.frame is frame and set(together.timing_ms) == set(alone.timing_ms)
        np.testing.assert_array_equal(together.working_image, alone.working_image)
        if frame is blank:
            assert together.output is None
        else:
            np.testing.assert_allclose(together.output[1], alone.output[1], atol=1e-3)
    assert gyroscope.observe_all([]) == []


@pytest.mark.parametrize('missing', ['onnxruntime', 'onnx'])
def test_without_onnxruntime_torch_does_it(
        gyroscopes, own_cache, monkeypatch, missing, blurred_frames):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec',
                        lambda name: None if name == missing else find_spec(name))
    monkeypatch.setitem(sys.modules, missing, None)
    found, expected = (each.estimate(blurred_frames[0]).angular_velocity_rad_s
                       for each in (VisualGyroscope(config('auto')), gyroscopes['torch']))
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ConfigError, match=rf'"onnxruntime" needs {missing}; pip install'):
        VisualGyroscope(config('onnxruntime'))


FRESH = """
import sys, numpy as np, image_as_imu_ros.cli
from image_as_imu_ros.config import EstimatorConfig
from image_as_imu_ros.estimator import VisualGyroscope
from image_as_imu_ros.types import CameraIntrinsics, Frame
image = np.random.default_rng(0).random((224, 320)).cumsum(axis=1) * 1.5
frame = Frame(image.astype(np.uint8), 0, CameraIntrinsics(320, 224, 250., 250., 159.5, 111.5),
              exposure_time_s=0.01)
config = EstimatorConfig(device='cpu', runtime='onnxruntime', weights=sys.argv[1])
gyroscope = VisualGyroscope(config)
assert np.isfinite(gyroscope.estimate(frame).angular_velocity_rad_s).all()
assert 'torch' not in sys.modules
"""


def fresh(weights):
    return subprocess.run([sys.executable, '-c', FRESH, weights], cwd=CHECKOUT, text=True,
                          capture_output=True, check=False)


def test_onnxruntime_estimates_without_torch_after_one_export(own_cache):
    pytest.importorskip('onnxruntime')
    first = fresh('compact')
    assert first.returncode == 0, first.stderr
    (folder,) = own_cache.iterdir()
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert set(times) == {'network.onnx', 'critic.onnx'}
    assert fresh('compact').returncode == 0
    assert times == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_the_models_of_the_newest_weights_are_kept(own_cache):
    pytest.importorskip('onnxruntime')
    for k in range(12):
        (own_cache / str(k)).mkdir(parents=True)
        os.utime(own_cache / str(k), (k, k))
    file = find_weights('compact')
    OnnxCells(file, NetworkThreads(1))
    assert {path.name for path in own_cache.iterdir()} == {
        kept_models(file).name, *(str(k) for k in range(12 - MAX_KEPT + 1, 12))}


@pytest.mark.parametrize('content', [b'', b'no model', None])
def test_a_damaged_model_is_exported_again(own_cache, content):
    pytest.importorskip('onnxruntime')
    file = find_weights('compact')
    OnnxCells(file, NetworkThreads(1))
    path = kept_models(file) / 'network.onnx'
    sound = path.read_bytes()
    path.write_bytes(sound[:len(sound) // 2] if content is None else content)
    OnnxCells(file, NetworkThreads(1))
    assert path.read_bytes() == sound


def test_an_export_that_fails_in_a_process_of_its_own_tells_why(own_cache, network, tmp_path):
    pytest.importorskip('onnxruntime')
    tensors = dict(network.state_dict())
    lacking = next(name for name in tensors if name.startswith('head.') and name.endswith('.bias'))
    tensors.pop(lacking)
    export_weights(tensors, tmp_path / 'lacking.safetensors', find_weights('compact').metadata)
    done = fresh(str(tmp_path / 'lacking.safetensors'))
    assert 'WeightsError' in done.stderr and lacking in done.stderr


def test_where_the_cache_cannot_be_written_models_are_exported_elsewhere(
        monkeypatch, tmp_path, blurred_frames, caplog):
    pytest.importorskip('onnxruntime')
    (tmp_path / 'file').touch()
    (tmp_path / 'temporary').mkdir()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'temporary'))
    gyroscope = VisualGyroscope(config('onnxruntime'))
    assert 'cannot be kept' in caplog.text
    assert not list((tmp_path / 'temporary').iterdir())
    assert np.isfinite(gyroscope.estimate(blurred_frames[0]).angular_velocity_rad_s).all()


def test_the_node_is_loaded_without_torch():
    pytest.importorskip('rclpy')
    subprocess.run([sys.executable, '-c', 'import sys, image_as_imu_ros.ros.node; '
                    "assert 'torch' not in sys.modules"], cwd=CHECKOUT, check=True)


def test_tensorrt_is_refused_where_there_is_none(gyroscopes):
    with pytest.raises(ConfigError, match='"tensorrt" on device cpu .* has .*CPUExecution'):
        VisualGyroscope(config('tensorrt'))


def test_a_failing_compiler_is_told_in_one_line(gyroscopes, monkeypatch):
    def refuse(*_):
        raise RuntimeError('no compiler found\nand more')
    monkeypatch.setattr(torch, 'compile', lambda *_, **__: refuse)
    with pytest.raises(ConfigError, match=r'cannot compile here \(no compiler found\)') as error:
        VisualGyroscope(config('compile'))
    assert '\n' not in str(error.value)


def test_the_reference_network_runs_in_torch_only():
    network = torch.nn.Identity()
    with pytest.raises(ConfigError, match='runs in torch, not in "onnxruntime"'):
        Reference(network, 'cpu', 'onnxruntime')


def test_networks_that_see_the_image_too_are_exported_with_it(own_cache, tmp_path):
    pytest.importorskip('onnxruntime')
    pytest.importorskip('onnx')
    architecture, widths = 'timm:mobilenetv4_conv_small', (16, 24, 32, 40)
    weights = tmp_path / 'mobile.safetensors'
    export_weights(build_network(architecture, widths).state_dict(), weights,
                   {'architecture': architecture, 'widths': json.dumps(widths)})
    gray = torch.rand(2, 1, 96, 128, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = CellDistributions(load_weights(str(weights)).network.fused(), half=False)(gray)
    cells = OnnxCells(find_weights(str(weights)), NetworkThreads(1))
    np.testing.assert_allclose(cells.log_probabilities(gray[:, 0].numpy()), expected, atol=1e-3,
                               rtol=1e-3)


@pytest.mark.parametrize('package', ['cli', 'ros'])
def test_threads_of_commands_and_node_sleep_while_they_wait(package):
    code = f"import os, image_as_imu_ros.{package}; " \
        "print(os.environ['OMP_WAIT_POLICY'], os.environ['OPENBLAS_NUM_THREADS'])"
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    for given, expected in (({}, 'passive 1'), ({'OMP_WAIT_POLICY': 'active'}, 'active 1')):
        result = subprocess.run([sys.executable, '-c', code], cwd=CHECKOUT, text=True, check=True,
                                env={**environment, **given}, capture_output=True)
        assert result.stdout.strip() == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='torch sees no GPU')
@pytest.mark.parametrize('name', ['torch', 'compile', 'onnxruntime', 'tensorrt'])
def test_gpu_runtimes_give_the_motion_of_the_cpu(name, gyroscope, blurred_frames):
    """
    On a machine with an NVIDIA GPU, a CUDA build of torch, onnxruntime-gpu and TensorRT.

    Run: python -m pytest -m gpu test/test_runtimes.py
    """
    on_gpu = VisualGyroscope(config(name, 'cuda'))
    differences, speeds = [], []
    for frame in blurred_frames[::3]:
        expected = gyroscope.estimate(frame).angular_velocity_rad_s
        found = on_gpu.estimate(frame).angular_velocity_rad_s
        speeds.append(np.linalg.norm(expected))
        differences.append(min(np.linalg.norm(found - expected), np.linalg.norm(found + expected)))
    assert np.linalg.norm(differences) < 0.01 * np.linalg.norm(speeds)
