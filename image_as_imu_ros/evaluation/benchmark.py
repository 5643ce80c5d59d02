"""Time of the pipeline, stage by stage, on simulated images."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import torch
from tqdm import tqdm

from image_as_imu_ros import __version__
from image_as_imu_ros.config import VisualImuConfig
from image_as_imu_ros.estimator import VisualGyroscope
from image_as_imu_ros.evaluation.sources import RecordingOptions, open_recording
from image_as_imu_ros.stream import StreamEstimator
from image_as_imu_ros.synthesis.room import RecordingConfig, write_recording
from image_as_imu_ros.types import Frame

SIMULATED_SIZE = (320, 224)


def benchmark(config: VisualImuConfig, mode: str, size: tuple[int, int], frames: int,
              warm_up: int = 10) -> dict[str, Any]:
    """
    Time single images or a stream, one image at a time, on simulated hand-held frames.

    :param mode: 'single' or 'stream'
    :param size: width and height of the input images, px
    :param frames: images timed, after `warm_up` others
    :returns: machine, settings, and p50, p95, p99 of each stage and the whole in ms
    """
    images = simulated_frames(frames + warm_up, size)
    gyroscope = VisualGyroscope(config.estimator)
    stream = StreamEstimator(gyroscope, config.stream)
    process = stream.process if mode == 'stream' else gyroscope.estimate
    stages: dict[str, list[float]] = {}
    for index, frame in enumerate(tqdm(images, 'timing', unit='image')):
        begin = time.perf_counter()
        estimate = process(frame)
        whole = 1e3 * (time.perf_counter() - begin)
        if index >= warm_up:
            for stage, duration_ms in {**estimate.timing_ms, 'whole': whole}.items():
                stages.setdefault(stage, []).append(duration_ms)
    return {
        'mode': mode, 'image_size': f'{size[0]}x{size[1]}', 'images': frames,
        'weights': config.estimator.weights, 'device': gyroscope.device,
        'machine': machine(gyroscope.device), 'threads': torch.get_num_threads(),
        'versions': {'image_as_imu_ros': __version__, 'torch': torch.__version__,
                     'opencv': cv2.__version__, 'numpy': np.__version__,
                     'python': platform.python_version()},
        'ms': {stage: dict(zip(('p50', 'p95', 'p99'),
                               np.percentile(durations, (50, 95, 99)).round(2).tolist()))
               for stage, durations in stages.items()}}


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
    return f'{text}; {torch.cuda.get_device_name()}' if device == 'cuda' else text
