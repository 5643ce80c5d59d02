"""`image-as-imu benchmark`."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from image_as_imu_ros.cli.options import add_config_arguments, read_config
from image_as_imu_ros.config import VisualImuConfig
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
    parser.add_argument('--size', type=_size, nargs='+', default=[(320, 224)], metavar='WxH',
                        help='input images, px, one or several (default: 320x224)')
    parser.add_argument('--batch', type=int, default=1, metavar='N',
                        help='images that the network sees at once, as offline (default: 1)')
    parser.add_argument('--frames', type=int, default=100, help='images timed (default: 100)')
    parser.add_argument('--compare', metavar='reference|PATH',
                        help="time other weights beside: the paper's network with random "
                             'weights, or a .safetensors file; on fewer images')
    parser.add_argument('--dds', action='store_true',
                        help='time the node instead, over DDS: stamp of the image to Imu message '
                             '(needs ROS 2)')
    parser.add_argument('--rate', type=float, default=30.0, metavar='HZ',
                        help='images per second over DDS (default: 30)')
    parser.add_argument('--encoding', choices=('rgb8', 'mono8'), default='rgb8',
                        help='of images over DDS (default: rgb8)')
    parser.add_argument('--cold-start', action='store_true',
                        help='time fresh processes instead, until their first estimate')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the result here too')
    add_config_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """
    Time the pipeline and print a table.

    :raises ImageAsImuError: if ROS is missing for `--dds`, or the node does not answer
    """
    if arguments.mode == 'synthesis':
        _write(arguments, [_of_synthesis(arguments, size) for size in arguments.size])
        return
    config, results = read_config(arguments), []
    for size in arguments.size:
        if arguments.dds:
            result = _over_dds(config, size, arguments)
        else:
            from image_as_imu_ros.evaluation.benchmark import Run, benchmark, cold_start
            result = cold_start(config, size) if arguments.cold_start else benchmark(
                config, Run(arguments.mode, size, arguments.frames, arguments.batch),
                arguments.compare)
        _print_result(result)
        results.append(result)
    if len(results) > 1 and not arguments.cold_start:
        _print_overview(results)
    _write(arguments, results)


def _write(arguments: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    if arguments.json is not None:
        content = results[0] if len(results) == 1 else results
        arguments.json.write_text(json.dumps(content, indent=2) + '\n')


def _of_synthesis(arguments: argparse.Namespace, size: tuple[int, int]) -> dict[str, Any]:
    """Time the making of training images and print how fast it is."""
    from image_as_imu_ros.evaluation.benchmark import machine
    from image_as_imu_ros.training.throughput import time_synthesis
    result = time_synthesis(size, arguments.frames, arguments.device, arguments.workers,
                            arguments.assets)
    result['machine'] = machine(arguments.device)
    print(f'synthesis, {result["image_size"]}, {result["workers"]} processes; '
          f'{result["machine"]}')
    stages = ', '.join(f'{stage} {time_ms} ms' for stage, time_ms in result['cpu_ms'].items())
    print(f'{result["images_per_s"]} images/s on {result["device"]}, {result["images"]} images; '
          f'CPU time per image in one thread: {stages}')
    return result


def _over_dds(config: VisualImuConfig, size: tuple[int, int],
              arguments: argparse.Namespace) -> dict[str, Any]:
    """Time the node."""
    try:
        from image_as_imu_ros.ros.latency import measure_latency
    except ModuleNotFoundError as error:
        raise ConfigError(f'--dds needs ROS 2 ({error}); run `make install`, or source your ROS '
                          'installation') from error
    result = measure_latency(config, size, arguments.frames, arguments.rate,
                             arguments.encoding)
    counts = result['counts']
    print(f'{result["encoding"]} at {result["rate_hz"]:g} Hz for '
          f'{arguments.frames / result["rate_hz"]:.0f} s: '
          f'{counts["received"]} images received, {result["images"]} answered, '
          f'{counts["dropped"]} dropped; load average {result["load_average"][0]}')
    return result


def _print_result(result: dict[str, Any]) -> None:
    """Print one benchmark."""
    print(f'{result["mode"]}, {result["image_size"]}, runtime {result["runtime"]}, '
          f'{result["threads"]} threads; {result["machine"]}; commit {result["commit"]}')
    if 'seconds' in result:
        for elapsed_s, processor_s in zip(result['seconds'], result['cpu_seconds']):
            print(f'first estimate after {elapsed_s:.2f} s, {processor_s:.2f} s of a processor')
        return
    _print_times(result)
    if 'compared' in result:
        _print_times(result['compared'])
        print('ratio of medians: ' + ', '.join(
            f'{stage} {ratio}' for stage, ratio in result['ratio'].items()))


def _print_times(result: dict[str, Any]) -> None:
    """Print the times of one set of weights."""
    print(f'weights {result["weights"]}, {result["images"]} images')
    print(f'{"ms":>12} {"p50":>8} {"p95":>8} {"p99":>8}')
    for stage, times in result['ms'].items():
        print(f'{stage:>12}' + ''.join(f' {times[key]:8.2f}' for key in ('p50', 'p95', 'p99')))
    if 'images_per_s' in result:
        memory = ', '.join(f'{mib} MiB {place}' for place, mib
                           in result['peak_memory_mib'].items())
        print(f'{result["images_per_s"]:g} images/s in batches of {result["batch"]}, '
              f'{result["cpu_ms"]:g} ms of a processor for each; at most {memory}; '
              f'load average {result["load_average"][0]}')


def _print_overview(results: list[dict[str, Any]]) -> None:
    """Print the medians of all sizes."""
    stages = list(results[0]['ms'])
    print('median ms   ' + ''.join(f'{stage:>12}' for stage in stages))
    for result in results:
        print(f'{result["image_size"]:>12}' + ''.join(
            f'{result["ms"][stage]["p50"]:12.2f}' for stage in stages))


def _size(text: str) -> tuple[int, int]:
    """Parse WxH."""
    try:
        width, height = (int(side) for side in text.lower().split('x'))
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}" is not of the form 640x480') from None
    return width, height
