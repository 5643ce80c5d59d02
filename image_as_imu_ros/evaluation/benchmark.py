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
from safetensors.torch import save_file
from tqdm import tqdm

from image_as_imu_ros.config import VisualImuConfig
from image_as_imu_ros.estimator import VisualGyroscope
from image_as_imu_ros.evaluation.provenance import versions
from image_as_imu_ros.evaluation.sources import RecordingOptions, open_recording
from image_as_imu_ros.model.reference import ReferenceNetwork, random_state
from image_as_imu_ros.stream import StreamEstimator
from image_as_imu_ros.synthesis.room import RecordingConfig, write_recording
from image_as_imu_ros.types import Frame

SIMULATED_SIZE = (320, 224)
WARM_UP = 10
MAX_COMPARED = 10
"""Images that the other network is timed on, at most: it may take seconds for each."""
COMPARED_WARM_UP = 2


def benchmark(config: VisualImuConfig, mode: str, size: tuple[int, int], frames: int,
              other: str | None = None) -> dict[str, Any]:
    """
    Time single images or a stream, one image at a time, on simulated hand-held frames.

    :param mode: 'single' or 'stream'
    :param size: width and height of the input images, px
    :param frames: images timed, after some others
    :param other: further weights to time on the first of the same images; 'reference' is the
        paper's network with random weights, which take the same time as its trained ones
    :returns: machine, settings, and p50, p95, p99 of each stage and the whole in ms; with
        `other`, also `compared`, the same of the other weights, and `ratio`, its median times
        over ours
    """
    images = simulated_frames(frames + WARM_UP, size)
    result = _timed(config, mode, size, images, WARM_UP)
    if other is None:
        return result
    images = images[:min(frames, MAX_COMPARED) + COMPARED_WARM_UP]
    with TemporaryDirectory() as folder:
        path = other
        if other == ReferenceNetwork.architecture:
            path = f'{folder}/random.safetensors'
            save_file(random_state(), path, {'architecture': ReferenceNetwork.architecture})
        other_config = replace(config, estimator=replace(config.estimator, weights=path))
        compared = _timed(other_config, mode, size, images, COMPARED_WARM_UP)
    if path != other:
        compared['weights'] = f'{other}, random'
    ratio = {stage: round(compared['ms'][stage]['p50'] / result['ms'][stage]['p50'], 1)
             for stage in ('network', 'whole')}
    return {**result, 'compared': compared, 'ratio': ratio}


def _timed(config: VisualImuConfig, mode: str, size: tuple[int, int], images: list[Frame],
           warm_up: int) -> dict[str, Any]:
    """Time one set of weights on all images but the first `warm_up`."""
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
        'mode': mode, 'image_size': f'{size[0]}x{size[1]}', 'images': len(images) - warm_up,
        'weights': config.estimator.weights, 'device': gyroscope.device,
        'machine': machine(gyroscope.device), 'threads': torch.get_num_threads(),
        'versions': versions(),
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
