"""`image-as-imu synthesize`: simulated recordings and images with their exact motion."""

from __future__ import annotations

import argparse
from pathlib import Path

from image_as_imu_ros.errors import ConfigError

KEYFRAMES = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument('output', type=Path, metavar='DIR',
                        help='folder to write; must not exist, but keyframes are added to, and a '
                             'validation set that was cut off goes on')
    parser.add_argument('--preset', choices=('recording', 'validation', 'keyframes'),
                        default='recording',
                        help='a shaken camera in a room (default), the fixed validation set, or '
                             'views of rooms with depth, to train on')
    parser.add_argument('--assets', type=Path, metavar='ASSETS',
                        help='meshes (scene.npz) of rooms for keyframes; for the validation set '
                             'also photographs and panoramas')
    parser.add_argument('--images', type=int, metavar='N',
                        help='how many: the first N of the validation set (default: all), or '
                             f'keyframes (default: {KEYFRAMES})')
    parser.add_argument('--config', type=Path, metavar='FILE',
                        help='YAML file of recording settings')
    parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE',
                        help='override one recording setting, as duration=5 or seed=3')


def run(arguments: argparse.Namespace) -> None:
    """Film a simulated room with a shaken camera, or write the validation set or keyframes."""
    if arguments.preset == 'validation':
        from image_as_imu_ros.synthesis.validation import IMAGES, write_validation
        if arguments.assets is None:
            raise ConfigError('the validation set shows photographs, panoramas and a room: '
                              'give their folder, --assets')
        images = IMAGES if arguments.images is None else arguments.images
        write_validation(arguments.output, arguments.assets, images)
        print(f'{arguments.output}: {images} images; score them with: '
              f'image-as-imu evaluate {arguments.output} --mode single')
        return
    if arguments.preset == 'keyframes':
        from image_as_imu_ros.synthesis.mesh_rooms import write_keyframes
        if arguments.assets is None:
            raise ConfigError('keyframes show rooms: give the folder of their meshes, --assets')
        images = KEYFRAMES if arguments.images is None else arguments.images
        write_keyframes(arguments.output, arguments.assets, images)
        print(f'{arguments.output}: {images} views; train on them with: '
              f'image-as-imu train RUN --keyframes {arguments.output}')
        return
    from image_as_imu_ros.config import load
    from image_as_imu_ros.synthesis.room import RecordingConfig, write_recording
    config = load(RecordingConfig, arguments.config, tuple(arguments.set))
    write_recording(config, arguments.output)
    print(f'{arguments.output}: {config.duration} s, seed {config.seed}; '
          f'score it with: image-as-imu evaluate {arguments.output}')
