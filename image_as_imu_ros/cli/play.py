"""`image-as-imu play`: publish a rosbag2 over DDS in real time."""

from __future__ import annotations

import argparse
from pathlib import Path

from image_as_imu_ros.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument('bag', type=Path, metavar='BAG',
                        help='rosbag2 folder (sqlite3 or MCAP), or a .mcap or .db3 file')
    parser.add_argument('--rate', type=float, default=1.0, metavar='R',
                        help='speed; 1 is as recorded (default)')
    parser.add_argument('--loop', action='store_true', help='start again at the end, until Ctrl-C')
    parser.add_argument('--restamp', choices=('never', 'now'), default='never',
                        help='"now" shifts header stamps as though it were recorded now, for '
                             'nodes that drop old images; transforms keep theirs')
    parser.add_argument('--clock', action='store_true',
                        help='publish /clock in recorded time, for nodes with use_sim_time')
    parser.add_argument('--wait-for-subscribers', type=float, default=0.0, metavar='S',
                        help='wait up to S seconds for a subscriber of the images (default: 0, '
                             'do not wait)')
    parser.add_argument('--exclude', nargs='+', default=(), metavar='TOPIC',
                        help="topics to leave out, such as a /tf_static that is not the robot's")
    parser.add_argument('--answers', default='', metavar='TOPIC',
                        help='~/motion of a node: stand still, with the clock, before each image '
                             'until the one before is answered there, so that none is lost')


def run(arguments: argparse.Namespace) -> None:
    """
    Play the bag.

    :raises ImageAsImuError: if ROS is missing, the bag cannot be played or no one subscribes
    """
    try:
        from image_as_imu_ros.ros.player import PlayOptions, PlayStatistics, play
    except ModuleNotFoundError as error:
        raise ConfigError(f'playing needs ROS 2 ({error}); source your ROS installation or '
                          'install the extra "ros"') from error
    options = PlayOptions(arguments.rate, arguments.loop, arguments.restamp == 'now',
                          arguments.clock, arguments.wait_for_subscribers,
                          tuple(arguments.exclude), arguments.answers)
    statistics = PlayStatistics()
    play(arguments.bag, options, statistics)
    print(f'{statistics.messages} messages published, '
          f'at most {statistics.worst_lag_s * 1e3:.1f} ms late'
          + (f', {statistics.unanswered} images unanswered' if options.answers else ''))
