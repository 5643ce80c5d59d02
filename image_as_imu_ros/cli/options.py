"""Arguments that several verbs share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from image_as_imu_ros.config import VisualImuConfig, load

if TYPE_CHECKING:
    from image_as_imu_ros.evaluation.sources import RecordingOptions


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how the estimator is configured."""
    parser.add_argument('--weights', metavar='NAME|PATH',
                        help='shipped weights by name, or a .safetensors file')
    parser.add_argument('--set', action='append', default=[], metavar='SECTION.KEY=VALUE',
                        help='override one setting, as estimator.device=cpu')


def read_config(arguments: argparse.Namespace) -> VisualImuConfig:
    """
    Resolve the settings of `add_config_arguments`.

    :raises ConfigError: if a setting is unknown or out of range
    """
    config = load(VisualImuConfig, overrides=tuple(arguments.set))
    if arguments.weights is not None:
        config = replace(config, estimator=replace(config.estimator, weights=arguments.weights))
    return config


def add_recording_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what may be said about a recording."""
    parser.add_argument('--kind', default='auto',
                        choices=('auto', 'rosbag', 'strayscanner', 'sequence'),
                        help='what the recording is (default: auto, told by its files)')
    parser.add_argument('--image-size', metavar='320x224|full',
                        help='images of a StrayScanner folder (default: 320x224)')
    parser.add_argument('--camera', metavar='GLOB',
                        help='cameras of a sequence folder, or image topics of a bag')
    parser.add_argument('--exposure', type=float, metavar='S',
                        help='exposure time where the recording states none')
    parser.add_argument('--depth', action='store_true',
                        help='use the depth images of a StrayScanner folder')
    add_rotation_argument(parser, 'gyroscope')
    parser.add_argument('--time-offset', type=_time_offset, metavar='S|auto',
                        help="how far the gyroscope's clock runs ahead of the images', to be "
                             'applied; auto estimates it by cross-correlation')
    topics = parser.add_argument_group('rosbags')
    topics.add_argument('--stamp-reference', default='start', choices=('start', 'middle', 'end'),
                        help='moment of the exposure that image stamps mark (default: start)')
    topics.add_argument('--stamps', default='header', choices=('header', 'received'),
                        help='times of the message headers (default), or of recording, for '
                             'drivers that do not stamp')
    topics.add_argument('--intrinsics', type=_intrinsics, metavar='FX,FY,CX,CY[,K1,K2,P1,P2]',
                        help='instead of camera info: px, and plumb_bob distortion')
    for name in ('image', 'camera-info', 'imu', 'exposure'):
        topics.add_argument(f'--{name}-topic', metavar='TOPIC',
                            help='where its type does not tell it')


def add_batch_argument(parser: argparse.ArgumentParser) -> None:
    """Declare how many images the network sees at once."""
    parser.add_argument('--batch', type=positive_count, default=1, metavar='N',
                        help='images that the network sees at once, of any of the recordings; '
                             'meant for GPUs (default: 1)')


def find_sources(paths: Sequence[Path], kind: str) -> Mapping[str, Path]:
    """
    Find recordings, also those in folders that only hold recordings, unless their kind is told.

    :returns: them by short names; those that are alike have their folder's name, or a number
    :raises DataFormatError: if one does not exist or is no recording
    """
    from image_as_imu_ros.evaluation.sources import find_recordings
    sources = find_recordings(paths) if kind == 'auto' else paths
    whole = [source.resolve() for source in sources]
    short = [path.stem if path.is_file() else path.name for path in whole]
    longer = [f'{path.parent.name}_{path.name}' if short.count(name) > 1 else name
              for path, name in zip(whole, short)]
    names = [f'{name}_{index}' if longer.count(name) > 1 else name
             for index, name in enumerate(longer)]
    return dict(zip(names, sources))


def read_recording_options(arguments: argparse.Namespace) -> RecordingOptions:
    """Collect what `add_recording_arguments` declared."""
    from image_as_imu_ros.evaluation.sources import RecordingOptions
    return RecordingOptions(
        arguments.image_size, arguments.camera, arguments.R, arguments.exposure,
        arguments.stamp_reference, arguments.image_topic, arguments.camera_info_topic,
        arguments.imu_topic, arguments.exposure_topic, arguments.time_offset, arguments.stamps,
        arguments.intrinsics, arguments.depth)


def add_rotation_argument(parser: argparse.ArgumentParser, target: str) -> None:
    """Declare `--R`, the rotation from camera axes to those of the target."""
    parser.add_argument('--R', type=_rotation, metavar='R00,R01,..,R22',
                        help=f'rotation from camera to {target} axes, by rows; '
                             'write --R=-1,.. where it begins with a minus')


def positive_count(text: str) -> int:
    """Parse a positive whole number."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'"{text}" is not a number from 1 on')
    return int(text)


def _time_offset(text: str) -> float | str:
    """Parse seconds or the word `auto`."""
    if text == 'auto':
        return text
    try:
        value = float(text)
    except ValueError:
        value = float('nan')
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f'"{text}" is neither seconds nor "auto"')
    return value


def _intrinsics(text: str) -> tuple[float, ...]:
    """Parse focal lengths, principal point and distortion coefficients."""
    values = _numbers(text)
    if len(values) not in (4, 8, 9):
        raise argparse.ArgumentTypeError(f'"{text}" is not 4, 8 or 9 numbers with commas')
    return tuple(values)


def _numbers(text: str) -> list[float]:
    """Parse numbers with commas; an empty list where one is none."""
    try:
        return [float(value) for value in text.split(',')]
    except ValueError:
        return []


def _rotation(text: str) -> np.ndarray:
    """Parse nine numbers as a rotation matrix, (3, 3)."""
    values = _numbers(text)
    if len(values) != 9:
        raise argparse.ArgumentTypeError(f'"{text}" is not nine numbers with commas')
    rotation = np.array(values).reshape(3, 3)
    if not (np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3)
            and np.linalg.det(rotation) > 0.0):
        raise argparse.ArgumentTypeError(f'"{text}" is not a rotation matrix')
    return rotation
