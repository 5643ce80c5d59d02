"""`image-as-imu benchmark`."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from image_as_imu_ros.cli.options import add_config_arguments, read_config
from image_as_imu_ros.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument('--mode', choices=('single', 'stream', 'synthesis'), default='stream',
                        help='single images, a stream (default), or the making of training '
                             'images')
    parser.add_argument('--assets', type=Path, metavar='DIR',
                        help='with --mode synthesis: photographs and panoramas; without, drawn '
                             'textures')
    parser.add_argument('--device', default='cpu', choices=('cpu', 'cuda'),
                        help='with --mode synthesis: where images are finished (default: cpu)')
    parser.add_argument('--workers', type=int, metavar='N', default=os.cpu_count(),
                        help='with --mode synthesis: processes (default: one for each core)')
    parser.add_argument('--size', type=_size, default=(320, 224), metavar='WxH',
                        help='input images, px (default: 320x224)')
    parser.add_argument('--frames', type=int, default=100, help='images timed (default: 100)')
    parser.add_argument('--compare', metavar='reference|PATH',
                        help="time other weights beside: the paper's network with random "
                             'weights, or a .safetensors file; on fewer images')
    parser.add_argument('--dds', action='store_true',
                        help='time the node instead, at 30 Hz over DDS: stamp of the image to Imu '
                             'message (needs ROS 2)')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the result here too')
    add_config_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """
    Time the pipeline and print a table.

    :raises ImageAsImuError: if ROS is missing for `--dds`, or the node does not answer
    """
    if arguments.mode == 'synthesis':
        _write(arguments, _of_synthesis(arguments))
        return
    if arguments.dds:
        result = _over_dds(arguments)
    else:
        from image_as_imu_ros.evaluation.benchmark import benchmark
        result = benchmark(read_config(arguments), arguments.mode, arguments.size,
                           arguments.frames, arguments.compare)
    print(f'{result["mode"]}, {result["image_size"]}, {result["threads"]} threads; '
          f'{result["machine"]}')
    _print_times(result)
    if arguments.compare is not None:
        _print_times(result['compared'])
        print('ratio of medians: ' + ', '.join(
            f'{stage} {ratio}' for stage, ratio in result['ratio'].items()))
    _write(arguments, result)


def _write(arguments: argparse.Namespace, result: dict[str, Any]) -> None:
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + '\n')


def _of_synthesis(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time the making of training images and print how fast it is."""
    from image_as_imu_ros.evaluation.benchmark import machine
    from image_as_imu_ros.training.throughput import time_synthesis
    result = time_synthesis(arguments.size, arguments.frames, arguments.device,
                            arguments.workers, arguments.assets)
    result['machine'] = machine(arguments.device)
    print(f'synthesis, {result["image_size"]}, {result["workers"]} processes; '
          f'{result["machine"]}')
    stages = ', '.join(f'{stage} {time_ms} ms' for stage, time_ms in result['cpu_ms'].items())
    print(f'{result["images_per_s"]} images/s on {result["device"]}, {result["images"]} images; '
          f'CPU time per image in one thread: {stages}')
    return result


def _over_dds(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time the node."""
    try:
        from image_as_imu_ros.ros.latency import measure_latency
    except ModuleNotFoundError as error:
        raise ConfigError(f'--dds needs ROS 2 ({error}); run `make install`, or source your ROS '
                          'installation') from error
    result = measure_latency(read_config(arguments), arguments.size, arguments.frames)
    counts = result['counts']
    print(f'{result["rate_hz"]:g} Hz for {arguments.frames / result["rate_hz"]:.0f} s: '
          f'{counts["received"]} images received, {result["images"]} answered, '
          f'{counts["dropped"]} dropped; load average {result["load_average"][0]}')
    return result


def _print_times(result: dict[str, Any]) -> None:
    """Print the times of one set of weights."""
    print(f'weights {result["weights"]}, {result["images"]} images')
    print(f'{"ms":>12} {"p50":>8} {"p95":>8} {"p99":>8}')
    for stage, times in result['ms'].items():
        print(f'{stage:>12}' + ''.join(f' {times[key]:8.2f}' for key in ('p50', 'p95', 'p99')))


def _size(text: str) -> tuple[int, int]:
    """Parse WxH."""
    try:
        width, height = (int(side) for side in text.lower().split('x'))
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}" is not of the form 640x480') from None
    return width, height
