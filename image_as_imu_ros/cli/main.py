"""Entry point of `image-as-imu`; a verb's module is imported only when it is called."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys

from image_as_imu_ros import __version__
from image_as_imu_ros.errors import ImageAsImuError

VERBS = {
    'run': 'angular and linear velocity of one image',
    'evaluate': 'score a recording against its gyroscope',
    'calibrate': 'mounting, time offset, bias and scale of a gyroscope beside the camera',
    'mask': 'find what never moves with the scene, such as parts of the robot',
    'export': 'write the motion for other programs: csv, tum, gcsv or a bag',
    'convert': 'write a recording as a rosbag2',
    'strayscanner': 'prepare a StrayScanner folder as the paper does',
    'play': 'publish a rosbag2 over DDS in real time',
    'demo': 'the whole path, from a recording over ROS 2 to a plot',
    'synthesize': 'write a simulated recording or a dataset, with the exact motion',
    'train': 'train a network on synthetic blur or labelled recordings',
    'pseudo-labels': 'label a recording with a trained network, to train on it',
    'benchmark': 'time the pipeline, stage by stage',
    'weights': 'list or verify the shipped weights, or export trained ones',
}
"""Each verb is a module of this package with `add_arguments(parser)` and `run(arguments)`."""


def main(argv: list[str] | None = None) -> int:
    """
    Run one verb.

    :param argv: arguments without the program's name; None takes those of the process
    :returns: exit status: 0, or 1 after a known error; usage errors exit with 2
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog='image-as-imu', description='Angular velocity of a camera from its motion blur.')
    parser.add_argument('--version', action='version', version=__version__)
    verbs = parser.add_subparsers(dest='verb', required=True, metavar='VERB')
    chosen = next((word for word in argv if not word.startswith('-')), None)
    for name, summary in VERBS.items():
        verb_parser = verbs.add_parser(name, help=summary, description=summary)
        if name == chosen:
            verb = importlib.import_module(f'image_as_imu_ros.cli.{name.replace("-", "_")}')
            verb.add_arguments(verb_parser)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format='%(message)s', stream=sys.stderr)
    try:
        verb.run(arguments)
    except ImageAsImuError as error:
        print(f'image-as-imu {chosen}: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
