"""Arguments that several verbs share."""

from __future__ import annotations

import argparse
from dataclasses import replace
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
    topics = parser.add_argument_group('rosbags')
    topics.add_argument('--stamp-reference', default='start', choices=('start', 'middle', 'end'),
                        help='moment of the exposure that image stamps mark (default: start)')
    for name in ('image', 'camera-info', 'imu', 'exposure'):
        topics.add_argument(f'--{name}-topic', metavar='TOPIC',
                            help='where its type does not tell it')


def read_recording_options(arguments: argparse.Namespace) -> RecordingOptions:
    """Collect what `add_recording_arguments` declared."""
    from image_as_imu_ros.evaluation.sources import RecordingOptions
    return RecordingOptions(
        arguments.image_size, arguments.camera, arguments.R, arguments.exposure,
        arguments.stamp_reference, arguments.image_topic, arguments.camera_info_topic,
        arguments.imu_topic, arguments.exposure_topic, arguments.depth)


def add_rotation_argument(parser: argparse.ArgumentParser, target: str) -> None:
    """Declare `--R`, the rotation from camera axes to those of the target."""
    parser.add_argument('--R', type=_rotation, metavar='R00,R01,..,R22',
                        help=f'rotation from camera to {target} axes, by rows; '
                             'write --R=-1,.. where it begins with a minus')


def _rotation(text: str) -> np.ndarray:
    """Parse nine numbers as a rotation matrix, (3, 3)."""
    try:
        values = [float(value) for value in text.split(',')]
    except ValueError:
        values = []
    if len(values) != 9:
        raise argparse.ArgumentTypeError(f'"{text}" is not nine numbers with commas')
    rotation = np.array(values).reshape(3, 3)
    if not (np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3)
            and np.linalg.det(rotation) > 0.0):
        raise argparse.ArgumentTypeError(f'"{text}" is not a rotation matrix')
    return rotation
