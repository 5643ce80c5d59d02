"""Time and memory of the pipeline, stage by stage, on simulated images."""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from image_as_imu_ros.config import StreamConfig, VisualImuConfig
from image_as_imu_ros.errors import ConfigError, ImageAsImuError
from image_as_imu_ros.estimator import VisualGyroscope
from image_as_imu_ros.evaluation.provenance import PACKAGE, versions
from image_as_imu_ros.evaluation.sources import RecordingOptions, open_recording
from image_as_imu_ros.image_decoding import decode_compressed
from image_as_imu_ros.model.compiled_front_ends import (
    derivative_correlation,
    directional_structure,
)
from image_as_imu_ros.model.weights_files import REFERENCE
from image_as_imu_ros.stream import StreamEstimator
from image_as_imu_ros.synthesis.room import RecordingConfig, write_recording
from image_as_imu_ros.types import Frame

SIMULATED_SIZE = (320, 224)
WARM_UP = 10
MAX_COMPARED = 10
"""Images that the other network is timed on, at most: it may take seconds for each."""
COMPARED_WARM_UP = 2
COLD_STARTS = 3
JPEG_QUALITY = 95
FRONT_ENDS = 40
"""Images on which the front ends are timed by themselves."""
STAGES = ('decode', 'preprocess', 'front end', 'network', 'solve', 'align', 'fuse', 'whole',
          'interval')


@dataclass(frozen=True)
class Run:
    """What to time."""

    mode: str
    """'single' or 'stream'."""
    size: tuple[int, int]
    """Width and height of the input images, px."""
    frames: int
    """Images timed, after some others, rounded up to whole batches."""
    batch: int = 1
    """Images that the network sees at once, as when a recording is evaluated offline."""

    def __post_init__(self) -> None:
        if self.batch < 1 or self.frames < 1:
            raise ConfigError(f'batch {self.batch} and frames {self.frames} must be at least 1')


def benchmark(config: VisualImuConfig, run: Run, other: str | None = None) -> dict[str, Any]:
    """
    Time single images or a stream on simulated hand-held frames.

    :param other: further weights to time on the first of the same images; 'reference' is the
        paper's network with random weights, which take the same time as its trained ones
    :returns: machine, settings, and p50, p95, p99 of each stage and the whole in ms, for each
        image; with `other`, also `compared`, the same of the other weights, and `ratio`, its
        median times over ours
    """
    batches = -(-run.frames // run.batch) + WARM_UP
    images = simulated_frames(batches * run.batch, run.size)
    result = _timed(config, run, images, WARM_UP)
    if other is None:
        return result
    images = images[:min(run.frames, MAX_COMPARED) + COMPARED_WARM_UP]
    with TemporaryDirectory() as folder:
        path = other
        if other == REFERENCE:
            from safetensors.torch import save_file

            from image_as_imu_ros.model.reference import random_state
            path = f'{folder}/random.safetensors'
            save_file(random_state(), path, {'architecture': REFERENCE})
        other_config = replace(config, estimator=replace(config.estimator, weights=path,
                                                         runtime='auto'))
        compared = _timed(other_config, replace(run, batch=1), images, COMPARED_WARM_UP)
    if path != other:
        compared['weights'] = f'{other}, random'
    ratio = {stage: round(compared['ms'][stage]['p50'] / result['ms'][stage]['p50'], 1)
             for stage in ('network', 'whole')}
    return {**result, 'compared': compared, 'ratio': ratio}


def _timed(config: VisualImuConfig, run: Run, images: list[Frame],
           warm_up: int) -> dict[str, Any]:
    """Time one set of weights on all batches of images but the first `warm_up`."""
    files = [cv2.imencode('.jpg', cv2.cvtColor(frame.image, cv2.COLOR_RGB2BGR),
                          [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1] for frame in images]
    gyroscope = VisualGyroscope(config.estimator)
    stream = StreamEstimator(gyroscope, config.stream) if run.mode == 'stream' else None
    stages: dict[str, list[float]] = {}
    cpu_s = 0.0
    _forget_peak_memory(gyroscope.device)
    for begin in tqdm(range(0, len(images), run.batch), 'timing', unit='batch'):
        batch = slice(begin, begin + run.batch)
        times, batch_cpu_s = _batch_times(gyroscope, stream, images[batch], files[batch])
        if begin >= warm_up * run.batch:
            cpu_s += batch_cpu_s
            for stage, durations_ms in times.items():
                stages.setdefault(stage, []).extend(durations_ms)
    memory_mib = _peak_memory_mib(gyroscope.device)
    stages['front end'] = _front_end_ms(gyroscope, images[:FRONT_ENDS])
    if run.mode == 'stream':
        stages['interval'] = _intervals_ms(gyroscope, config.stream, images)[warm_up:]
    count = len(stages['whole'])
    return {
        'mode': run.mode, 'image_size': f'{run.size[0]}x{run.size[1]}', 'batch': run.batch,
        'images': count, 'weights': config.estimator.weights, 'device': gyroscope.device,
        'runtime': config.estimator.runtime, 'machine': machine(gyroscope.device),
        'threads': gyroscope.threads.least, 'versions': versions(), 'commit': commit(),
        'load_average': load_average(),
        'images_per_s': round(1e3 * count / sum(stages['whole']), 1),
        'cpu_ms': round(1e3 * cpu_s / count, 2), 'peak_memory_mib': memory_mib,
        'ms': {stage: dict(zip(('p50', 'p95', 'p99'),
                               np.percentile(stages[stage], (50, 95, 99)).round(2).tolist()))
               for stage in STAGES if stages.get(stage)}}


def _batch_times(gyroscope: VisualGyroscope, stream: StreamEstimator | None, frames: list[Frame],
                 files: list[np.ndarray]) -> tuple[dict[str, list[float]], float]:
    """
    Take a batch of images and tell each stage's time, ms per image, and the processor's, s.

    `fuse` is what remains of `whole`, the decoding left out: covariances, in a stream the filter.
    """
    begin = time.perf_counter()
    frames = [replace(frame, image=decode_compressed(file.tobytes()))
              for frame, file in zip(frames, files)]
    decoded, cpu_s = time.perf_counter(), time.process_time()
    observations = gyroscope.observe_all(frames)
    times = {'decode': [1e3 * (decoded - begin) / len(frames)]}
    for together in [observations] if stream is None else [[each] for each in observations]:
        begin = time.perf_counter()
        estimates = gyroscope.conclude_all(together) if stream is None \
            else list(map(stream.join, together))
        rest_ms = 1e3 * (time.perf_counter() - begin) / len(together)
        for observation, estimate in zip(together, estimates):
            known_ms = sum(estimate.timing_ms.get(stage, 0.0) for stage in ('solve', 'align'))
            for stage, duration_ms in {**estimate.timing_ms, 'fuse': max(rest_ms - known_ms, 0.0),
                                       'whole': observation.elapsed_ms + rest_ms}.items():
                times.setdefault(stage, []).append(duration_ms)
    return times, time.process_time() - cpu_s


def _intervals_ms(gyroscope: VisualGyroscope, config: StreamConfig,
                  frames: list[Frame]) -> list[float]:
    """
    Times from one estimate to the next at the highest rate, ms.

    As in the node, a second thread observes the next image while this one estimates.
    """
    stream, intervals_ms = StreamEstimator(gyroscope, config), []
    with ThreadPoolExecutor(1) as observer:
        ahead = observer.submit(gyroscope.observe, frames[0])
        begin = time.perf_counter()
        for following in (*frames[1:], None):
            observation = ahead.result()
            if following is not None:
                ahead = observer.submit(gyroscope.observe, following)
            stream.join(observation)
            end = time.perf_counter()
            intervals_ms.append(1e3 * (end - begin))
            begin = end
    return intervals_ms


def _front_end_ms(gyroscope: VisualGyroscope, frames: list[Frame]) -> list[float]:
    """Times of the compiled front ends alone, where they are a part of `network`."""
    if gyroscope.device != 'cpu' or gyroscope.config.runtime == 'compile' \
            or gyroscope.weights.architecture == REFERENCE:
        return []
    times_ms = []
    for observation in gyroscope.observe_all(frames):
        begin = time.perf_counter()
        directional_structure(observation.working_image[None])
        derivative_correlation(observation.working_image[None])
        times_ms.append(1e3 * (time.perf_counter() - begin))
    return times_ms


def cold_start(config: VisualImuConfig, size: tuple[int, int]) -> dict[str, Any]:
    """
    Time fresh processes from their start until `image-as-imu run` has printed its estimate.

    :returns: settings, and the times of COLD_STARTS starts: s, and of the processor, s
    :raises ImageAsImuError: if it fails
    """
    frame = simulated_frames(1, size)[0]
    values = asdict(config.estimator)
    elapsed_s, processor_s = [], []
    with TemporaryDirectory() as folder:
        path = f'{folder}/image.png'
        cv2.imwrite(path, cv2.cvtColor(frame.image, cv2.COLOR_RGB2BGR))
        command = [sys.executable, '-m', 'image_as_imu_ros', 'run', path,
                   '--fx', str(frame.intrinsics.fx_px), '--fy', str(frame.intrinsics.fy_px),
                   '--exposure', str(frame.exposure_time_s)]
        command += itertools.chain.from_iterable(
            ('--set', f'estimator.{name}={value}') for name, value in values.items())
        for _ in range(COLD_STARTS):
            begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run(command, cwd=PACKAGE.parent, text=True, capture_output=True,
                                  check=False)
            if done.returncode:
                raise ImageAsImuError(f'image-as-imu run failed: {done.stderr.strip()}')
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            elapsed_s.append(round(time.perf_counter() - begin, 2))
            processor_s.append(round(after.ru_utime + after.ru_stime - before.ru_utime
                                     - before.ru_stime, 2))
    return {'mode': 'cold start', 'image_size': f'{size[0]}x{size[1]}',
            'weights': config.estimator.weights, 'device': config.estimator.device,
            'runtime': config.estimator.runtime, 'machine': machine('cpu'),
            'threads': config.estimator.threads, 'versions': versions(), 'commit': commit(),
            'load_average': load_average(), 'seconds': elapsed_s, 'cpu_seconds': processor_s}


def _forget_peak_memory(device: str) -> None:
    """Begin to measure the peak anew; before Linux 4.0 and elsewhere it is since the start."""
    with contextlib.suppress(OSError):
        Path('/proc/self/clear_refs').write_text('5')
    if device == 'cuda':
        import torch
        torch.cuda.reset_peak_memory_stats()


def _peak_memory_mib(device: str) -> dict[str, int]:
    """Greatest resident memory of this process and, where it is used, of tensors on the GPU."""
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(OSError):
        lines = Path('/proc/self/status').read_text().splitlines()
        peak_kib = next(int(line.split()[1]) for line in lines if line.startswith('VmHWM'))
    found = {'process': peak_kib // 1024}
    if device == 'cuda':
        import torch
        found['gpu'] = torch.cuda.max_memory_allocated() >> 20
    return found


def commit() -> str | None:
    """Commit of the checkout that runs, with a + where it was changed; None outside of one."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(['git', 'describe', '--always', '--dirty=+'], cwd=PACKAGE, text=True,
                              capture_output=True, check=True).stdout.strip()
    return None


def load_average() -> list[float]:
    """Of the last 1, 5 and 15 minutes."""
    return [round(load, 1) for load in os.getloadavg()]


def simulated_frames(count: int, size: tuple[int, int]) -> list[Frame]:
    """Frames of a simulated recording, enlarged to the given width and height, px."""
    rate = RecordingConfig().frame_rate
    with TemporaryDirectory() as folder:
        write_recording(RecordingConfig(duration=max(0.5, (count + 1) / rate)),
                        Path(folder) / 'recording')
        recording = open_recording(Path(folder) / 'recording', 'sequence', RecordingOptions())
        stream = recording.streams[0]
        frames = [record.with_image(stored.decode()) for record, stored
                  in zip(stream.records, stream.read())][:count]
    if size == SIMULATED_SIZE:
        return frames
    return [replace(frame, image=cv2.resize(frame.image, size, interpolation=cv2.INTER_CUBIC),
                    intrinsics=frame.intrinsics.resized(*size)) for frame in frames]


def machine(device: str) -> str:
    """Processor and, where it is used, GPU."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists():
        names = [line.split(':', 1)[1].strip() for line in cpuinfo.read_text().splitlines()
                 if line.startswith('model name')]
        name = names[0] if names else name
    text = f'{name}, {os.cpu_count()} cores'
    if device == 'cuda':
        import torch
        text += f'; {torch.cuda.get_device_name()}'
    return text
