"""`image-as-imu train`."""

from __future__ import annotations

import argparse
from pathlib import Path

from image_as_imu_ros.config import TrainingConfig, load

RECIPES = Path(__file__).parents[1] / 'training' / 'recipes'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    names = sorted(path.stem for path in RECIPES.glob('*.yaml'))
    parser.add_argument('output', type=Path, metavar='RUN',
                        help='run folder; resumed where it holds a checkpoint')
    parser.add_argument('--assets', type=Path, metavar='DIR',
                        help='folder of photographs and panoramas (default: drawn textures alone)')
    parser.add_argument('--keyframes', type=Path, metavar='DIR',
                        help='views of rooms, of `synthesize --preset keyframes`, to add')
    parser.add_argument('--labels', type=Path, action='append', default=[], metavar='DIR',
                        help='train on a recording with pseudo labels; may be repeated')
    parser.add_argument('--config', metavar='FILE|NAME',
                        help=f'YAML file of training settings, or one of {", ".join(names)}')
    parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE',
                        help='override one training setting, as batch=16')
    parser.add_argument('--max-minutes', type=float, metavar='MIN',
                        help='stop with a checkpoint after this time')
    parser.add_argument('--init', metavar='FILE', help='short for --set initial=FILE')
    parser.add_argument('--overfit', type=int, metavar='N',
                        help='train on N fixed images until the loss has fallen, as a check; '
                             'short for --set overfit=N')
    parser.add_argument('--device', default='cpu', choices=('cpu', 'cuda'),
                        help='where to train (default: cpu); torchrun gives each process its own')


def run(arguments: argparse.Namespace) -> None:
    """Train, or go on training."""
    from image_as_imu_ros.training.train import train
    overrides = [*arguments.set]
    if arguments.init is not None:
        overrides.append(f'initial={arguments.init}')
    if arguments.overfit is not None:
        overrides.append(f'overfit={arguments.overfit}')
    path = arguments.config and RECIPES / f'{arguments.config}.yaml'
    if path and not path.is_file():
        path = Path(arguments.config)
    config = load(TrainingConfig, path, tuple(overrides))
    score = train(config, arguments.output, arguments.assets, tuple(arguments.labels),
                  arguments.max_minutes, arguments.device, arguments.keyframes)
    images = 'the images trained on' if config.overfit else 'held-out images'
    print(f'validation loss {score.loss:.4g}; rotation recovered with a median error of '
          f'{100 * score.rotation_error:.1f} % on {images}; checkpoint in {arguments.output}')
