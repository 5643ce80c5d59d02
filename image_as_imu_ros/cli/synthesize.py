"""`image-as-imu synthesize`: a simulated recording with its exact motion."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument('output', type=Path, metavar='DIR',
                        help='sequence folder to write; must not exist')
    parser.add_argument('--config', type=Path, metavar='FILE',
                        help='YAML file of recording settings')
    parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE',
                        help='override one recording setting, as duration=5 or seed=3')


def run(arguments: argparse.Namespace) -> None:
    """Film a simulated room with a shaken camera."""
    from image_as_imu_ros.config import load
    from image_as_imu_ros.synthesis.room import RecordingConfig, write_recording
    config = load(RecordingConfig, arguments.config, tuple(arguments.set))
    write_recording(config, arguments.output)
    print(f'{arguments.output}: {config.duration} s, seed {config.seed}; '
          f'score it with: image-as-imu evaluate {arguments.output}')
