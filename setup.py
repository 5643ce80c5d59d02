"""Build plain Python, plus the ROS messages where rosidl is installed beside this Python."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

NAME = 'image_as_imu_ros'
SOURCE = Path(__file__).resolve().parent
PREFIX = Path(sys.prefix)
HAS_ROSIDL = (PREFIX / 'share' / 'rosidl_default_generators').is_dir()


class BuildWithMessages(build_py):
    """Let CMake build the messages and lay out what `ros2 run` and `ros2 launch` look for."""

    def run(self) -> None:
        """Build the package; without rosidl, from a ROS install or wheels, only its Python."""
        shutil.rmtree(self.build_lib, ignore_errors=True)  # modules that are no longer there
        super().run()
        if HAS_ROSIDL and not self.editable_mode:
            self.add_ros_files(self.install_with_cmake())

    def install_with_cmake(self) -> Path:
        """Run CMakeLists.txt and return the folder that it installed into."""
        build = Path(self.get_finalized_command('build').build_temp).resolve()
        stage = build / 'stage'
        shutil.rmtree(stage, ignore_errors=True)
        environment = dict(os.environ, AMENT_PREFIX_PATH=str(PREFIX),
                           PATH=f'{PREFIX / "bin"}{os.pathsep}{os.environ["PATH"]}')
        environment.pop('PYTHONPATH', None)  # pip's isolation hides what rosidl imports
        subprocess.run(
            ['cmake', '-G', 'Ninja', '-S', str(SOURCE), '-B', str(build),
             f'-DCMAKE_INSTALL_PREFIX={stage}', f'-DCMAKE_PREFIX_PATH={PREFIX}',
             f'-DPython3_EXECUTABLE={sys.executable}', '-DCMAKE_BUILD_TYPE=Release',
             '-DBUILD_TESTING=OFF'], env=environment, check=True)
        subprocess.run(['cmake', '--build', str(build), '--target', 'install'],
                       env=environment, check=True)
        return stage

    def add_ros_files(self, stage: Path) -> None:
        """Put the generated Python into the package and all else below the prefix."""
        (generated,) = stage.glob(f'**/{NAME}/msg/__init__.py')
        package = generated.parents[1]
        shutil.copytree(package, Path(self.build_lib) / NAME, dirs_exist_ok=True)
        for path in sorted(stage.rglob('*')):
            inside = path.relative_to(stage)
            if path.is_file() and package.parent not in path.parents and inside.parts[0] != 'bin':
                self.distribution.data_files.append((str(inside.parent), [str(path)]))


class PlatformDistribution(Distribution):
    """A distribution whose wheel is tied to the platform when it holds message libraries."""

    def has_ext_modules(self) -> bool:
        return HAS_ROSIDL


setup(cmdclass={'build_py': BuildWithMessages}, distclass=PlatformDistribution, data_files=[])
