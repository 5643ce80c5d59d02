"""`image-as-imu synthesize`: simulated recordings, images and datasets with their exact motion."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from image_as_imu_ros.cli.options import positive_count
from image_as_imu_ros.errors import ConfigError

if TYPE_CHECKING:
    from image_as_imu_ros.config import DatasetConfig
    from image_as_imu_ros.synthesis.dataset_writer import Source

KEYFRAMES = 1000
DATASET_OPTIONS = ('keyframes', 'recordings', 'promptda', 'rife', 'blend')
DRAWN = 10_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument('output', type=Path, metavar='DIR',
                        help='folder to write; must not exist, but keyframes are added to, and a '
                             'validation set or a dataset that was cut off goes on')
    parser.add_argument('--preset', choices=('recording', 'validation', 'keyframes'),
                        default='recording',
                        help='a shaken camera in a room (default), the fixed validation set, or '
                             'views of rooms with depth, to train on')
    parser.add_argument('--assets', type=Path, metavar='ASSETS',
                        help='meshes (scene.npz) of rooms for keyframes; for the validation set '
                             'also photographs and panoramas; these alone for a dataset')
    parser.add_argument('--images', type=positive_count, metavar='N',
                        help='how many: the first N of the validation set (default: all), '
                             f'keyframes (default: {KEYFRAMES}), or images of a dataset (default: '
                             f'{DRAWN}; of recordings all)')
    parser.add_argument('--config', type=Path, metavar='FILE',
                        help='YAML file of settings of the recording or the dataset')
    parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE',
                        help='override one of them, as duration=5 or seed=3')
    dataset = parser.add_argument_group('datasets', 'blurred images with flow, depth and motion')
    dataset.add_argument('--format', choices=('webdataset', 'csv'),
                         help="write a dataset: shards of tar files, or files and the paper's "
                              'table; torchrun shares the work')
    dataset.add_argument('--keyframes', type=Path, metavar='DIR',
                         help='views of rooms, of the preset keyframes, to draw from as well')
    dataset.add_argument('--recordings', type=Path, action='append', metavar='DIR',
                         help='instead of drawing, blur sharp recordings with depth: StrayScanner '
                              'folder, scene of ScanNet++ or a whole copy of it; may be repeated')
    dataset.add_argument('--promptda', metavar='MODEL',
                         help='finer depth by Prompt Depth Anything: folder or name of a model')
    interpolation = dataset.add_mutually_exclusive_group()
    interpolation.add_argument('--rife', type=Path, metavar='CHECKOUT',
                               help='average images interpolated by RIFE, as the paper did, '
                                    'instead of views by depth')
    interpolation.add_argument('--blend', action='store_true',
                               help='the same, with images that fade over')


def run(arguments: argparse.Namespace) -> None:
    """Film a simulated room, or write the validation set, keyframes or a dataset."""
    if arguments.format is not None:
        if arguments.preset != 'recording':
            raise ConfigError(f'--format writes a dataset: leave out --preset {arguments.preset}')
        _write_dataset(arguments)
        return
    for name in DATASET_OPTIONS:
        if getattr(arguments, name):
            raise ConfigError(f'--{name} is for datasets: give --format, too')
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


def _write_dataset(arguments: argparse.Namespace) -> None:
    """Write this process's share of a dataset."""
    from image_as_imu_ros.config import DatasetConfig, load
    from image_as_imu_ros.processes import process_of_torchrun
    from image_as_imu_ros.synthesis.dataset_writer import write_dataset
    config = load(DatasetConfig, arguments.config, tuple(arguments.set))
    source = (_drawn_scenes if arguments.recordings is None else _recorded_scenes)(
        arguments, config)
    rank, processes = process_of_torchrun()
    images = write_dataset(source, arguments.output, arguments.format, config.block, rank,
                           processes)
    if images is None:
        print(f'{arguments.output}: process {rank} of {processes} has done its part, others have '
              'not yet')
    else:
        print(f'{arguments.output}: {images} images, {len(source) - images} left out; look at '
              f'them: {arguments.output / "contact_sheet.jpg"}')


def _drawn_scenes(arguments: argparse.Namespace, config: DatasetConfig) -> Source:
    from image_as_imu_ros.config import TrainingConfig
    from image_as_imu_ros.training.dataset import keep_to_one_thread
    from image_as_imu_ros.training.drawn_scenes import DrawnScenes
    if arguments.promptda or arguments.rife or arguments.blend:
        raise ConfigError('--promptda, --rife and --blend work on recordings: give --recordings')
    keep_to_one_thread()
    training = TrainingConfig(width=config.width, height=config.height, seed=config.seed,
                              procedural=config.procedural, rooms=config.rooms)
    return DrawnScenes(training, arguments.images or DRAWN, arguments.assets,
                       arguments.keyframes, config.held_out)


def _recorded_scenes(arguments: argparse.Namespace, config: DatasetConfig) -> Source:
    from image_as_imu_ros.synthesis.adapters import Blend, PromptDepth, Rife
    from image_as_imu_ros.synthesis.recorded_scenes import RecordedScenes
    if arguments.assets or arguments.keyframes:
        raise ConfigError('--assets and --keyframes are for drawn scenes, without --recordings')
    interpolator = Blend() if arguments.blend else None
    if arguments.rife:
        interpolator = Rife(arguments.rife)
    depth_model = PromptDepth(arguments.promptda) if arguments.promptda else None
    return RecordedScenes(tuple(arguments.recordings), config, arguments.images, depth_model,
                          interpolator)
