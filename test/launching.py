"""Launch files of the checkout, run as `ros2 launch` does, where launch_ros is installed."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGE = 'image_as_imu_ros'
STOP_LIMIT_S = 30.0

needs_launch = pytest.mark.skipif(
    importlib.util.find_spec('launch_ros') is None,
    reason='launch_ros is not installed; it comes with ROS, not from PyPI')

LAUNCH = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
arguments = [text.split(':=', 1) for text in sys.argv[2:]]
service = LaunchService(noninteractive=True)
service.include_launch_description(LaunchDescription([IncludeLaunchDescription(
    PythonLaunchDescriptionSource(sys.argv[1]), launch_arguments=arguments)]))
sys.exit(service.run())
"""


@functools.cache
def checkout_prefix() -> Path:
    """Folder laid out as an install of this package, made of links into the checkout."""
    prefix = Path(tempfile.mkdtemp(prefix='prefix_'))
    atexit.register(shutil.rmtree, prefix, ignore_errors=True)
    marker = prefix / 'share' / 'ament_index' / 'resource_index' / 'packages' / PACKAGE
    marker.parent.mkdir(parents=True)
    marker.touch()
    (prefix / 'share' / PACKAGE).mkdir()
    for name in ('launch', 'config', 'package.xml'):
        (prefix / 'share' / PACKAGE / name).symlink_to(CHECKOUT / name)
    (prefix / 'lib').mkdir()
    (prefix / 'lib' / PACKAGE).symlink_to(CHECKOUT / 'scripts')
    return prefix


def launch_environment() -> dict[str, str]:
    """Environment in which launch files find the checkout first, then what is installed."""
    def joined(name: str, *first: str) -> str:
        return os.pathsep.join([*first, *filter(None, [os.environ.get(name)])])
    prefixes = [str(checkout_prefix()), sys.prefix]
    return dict(os.environ, AMENT_PREFIX_PATH=joined('AMENT_PREFIX_PATH', *prefixes),
                PYTHONPATH=joined('PYTHONPATH', str(CHECKOUT)),
                PATH=joined('PATH', str(Path(sys.executable).parent)))


def launch(file: Path, log: Path, *arguments: str) -> subprocess.Popen:
    """Start a launch file with arguments NAME:=VALUE; its output goes to the log."""
    with log.open('w') as output:
        return subprocess.Popen([sys.executable, '-c', LAUNCH, str(file), *arguments],
                                stdout=output, stderr=output, env=launch_environment())


def interrupt(process: subprocess.Popen) -> int:
    """Interrupt as Ctrl-C does; exit status of the launch."""
    process.send_signal(signal.SIGINT)
    return process.wait(timeout=STOP_LIMIT_S)
