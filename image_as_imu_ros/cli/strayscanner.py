"""`image-as-imu strayscanner`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument('folder', type=Path, metavar='FOLDER',
                        help='as the app writes it: rgb.mp4 or rgb/, odometry.csv, imu.csv, '
                             'camera_matrix.csv')
    parser.add_argument('output', type=Path, metavar='OUT',
                        help='StrayScanner folder to write; an interrupted one is completed')
    parser.add_argument('--fine-tuning', type=Path, metavar='DIR',
                        help='write the blurred images, to train on, to a folder of their own')
    parser.add_argument('--picker', default='fft', choices=('fft', 'laplacian'),
                        help='what tells a blurred image: energy of its Fourier transform '
                             '(default), or variance of its Laplacian')
    parser.add_argument('--threshold', type=float, metavar='T',
                        help='below which it is blurred (default: 6.3 of fft, 300 of laplacian)')


def run(arguments: argparse.Namespace) -> None:
    """Prepare the folder and say what was made."""
    from image_as_imu_ros.evaluation.strayscanner_processing import process_strayscanner
    done = process_strayscanner(arguments.folder, arguments.output, arguments.fine_tuning,
                                arguments.picker, arguments.threshold, progress=True)
    print(f'{arguments.output}: {done.images} images, {done.unreadable} unreadable; '
          f'{done.blurred} blurred ({done.picker} below {done.threshold:g})')
    if arguments.fine_tuning is not None:
        print(f'{arguments.fine_tuning}: {done.blurred} blurred images; label them with: '
              f'image-as-imu pseudo-labels {arguments.fine_tuning} LABELS --weights FILE')
