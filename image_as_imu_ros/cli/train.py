"""`image-as-imu train`."""

from __future__ import annotations

import argparse
from pathlib import Path

from image_as_imu_ros.config import TrainingConfig, load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument('output', type=Path, metavar='RUN',
                        help='run folder; resumed where it holds a checkpoint')
    parser.add_argument('--assets', type=Path, metavar='DIR',
                        help='folder of photographs and panoramas (default: drawn textures alone)')
    parser.add_argument('--keyframes', type=Path, metavar='DIR',
                        help='views of rooms, of `synthesize --preset keyframes`, to add')
    parser.add_argument('--config', type=Path, metavar='FILE',
                        help='YAML file of training settings')
    parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE',
                        help='override one training setting, as batch=16')
    parser.add_argument('--max-minutes', type=float, metavar='MIN',
                        help='stop with a checkpoint after this time')
    parser.add_argument('--init', type=Path, metavar='FILE',
                        help='start from these weights: .safetensors, or a checkpoint.pt')
    parser.add_argument('--device', default='cpu', choices=('cpu', 'cuda'),
                        help='where to train (default: cpu)')


def run(arguments: argparse.Namespace) -> None:
    """Train, or go on training."""
    from image_as_imu_ros.training.train import train
    config = load(TrainingConfig, arguments.config, tuple(arguments.set))
    loss = train(config, arguments.output, arguments.assets, arguments.max_minutes,
                 arguments.init, arguments.device, arguments.keyframes)
    print(f'validation loss {loss:.4f} nats; checkpoint in {arguments.output}')
