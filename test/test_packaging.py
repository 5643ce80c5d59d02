"""The package's metadata, its messages, and the wheels that pip makes of it."""

from __future__ import annotations

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pytest

import image_as_imu_ros
from image_as_imu_ros.types import EstimateStatus

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGE = CHECKOUT / 'image_as_imu_ros'
BUILD_INPUTS = ('CMakeLists.txt', 'LICENSE', 'README.md', 'config', 'image_as_imu_ros', 'launch',
                'msg', 'package.xml', 'pyproject.toml', 'requirements-ros.txt',
                'requirements-test.txt', 'scripts', 'setup.cfg', 'setup.py')
EXPOSURE_SOURCES = {'EXPOSURE_UNKNOWN': 0, 'EXPOSURE_PARAMETER': 1, 'EXPOSURE_TOPIC': 2,
                    'EXPOSURE_ESTIMATED': 3}

# Keys of PyPI and rosdep by the module that is imported; absent where the name is the same.
PYPI_NAMES = {'cv2': 'opencv-python-headless', 'yaml': 'pyyaml'}
ROSDEP_KEYS = {'cv2': 'python3-opencv', 'matplotlib': 'python3-matplotlib',
               'numba': 'python3-numba', 'numpy': 'python3-numpy',
               'rosbags': 'python3-rosbags-pip', 'scipy': 'python3-scipy',
               'tf2_ros': 'tf2_ros_py', 'timm': 'python3-timm-pip',
               'torch': 'python3-torch', 'tqdm': 'python3-tqdm', 'yaml': 'python3-yaml'}
BROUGHT_BY_TIMM = {'safetensors'}  # which has no rosdep key of its own
# what nobody needs who only uses the trained network
EXTRAS = {'accelerate': 'train', 'embreex': 'rooms', 'allantools': 'evaluation',
          'evo': 'evaluation', 'lz4': 'scannetpp', 'onnx': 'onnxruntime',
          'onnxruntime': 'onnxruntime', 'pycolmap': 'evaluation', 'rerun': 'rerun',
          'transformers': 'promptda', 'av': 'video'}


def third_party_imports() -> set[str]:
    """Top-level modules that the package or its launch file imports from elsewhere."""
    names = set()
    for path in [*PACKAGE.rglob('*.py'), *CHECKOUT.glob('launch/*.py')]:
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split('.')[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split('.')[0])
    return names - set(sys.stdlib_module_names) - {'image_as_imu_ros'}


def project_setting(section: str, key: str) -> str:
    """One setting of setup.cfg."""
    settings = configparser.ConfigParser()
    settings.read(CHECKOUT / 'setup.cfg')
    return settings[section][key]


def message_constants(name: str) -> dict[str, int]:
    """Constants of a message of this package."""
    text = (CHECKOUT / 'msg' / f'{name}.msg').read_text()
    return {key: int(value) for key, value in re.findall(r'^uint8 (\w+)=(\d+)', text, re.M)}


@pytest.fixture(scope='session')
def manifest() -> ElementTree.Element:
    """Root of package.xml."""
    return ElementTree.parse(CHECKOUT / 'package.xml').getroot()


def test_version_is_the_same_everywhere(manifest: ElementTree.Element) -> None:
    assert manifest.findtext('version') == image_as_imu_ros.__version__
    assert project_setting('metadata', 'version') == 'attr: image_as_imu_ros.__version__'


def test_licence_is_the_same_everywhere(manifest: ElementTree.Element) -> None:
    licence = manifest.find('license')
    assert (CHECKOUT / licence.get('file')).read_text().startswith(f'{licence.text} License')
    assert project_setting('metadata', 'license') == licence.text


def test_manifest_declares_an_interface_package(manifest: ElementTree.Element) -> None:
    assert manifest.get('format') == '3'
    assert manifest.findtext('name') == 'image_as_imu_ros'
    assert manifest.findtext('member_of_group') == 'rosidl_interface_packages'
    assert manifest.findtext('export/build_type') == 'ament_cmake'


def test_manifest_declares_every_import(manifest: ElementTree.Element) -> None:
    declared = {element.text for kind in ('depend', 'exec_depend')
                for element in manifest.findall(kind)}
    needed = {ROSDEP_KEYS.get(name, name)
              for name in third_party_imports() - BROUGHT_BY_TIMM - EXTRAS.keys()}
    assert needed <= declared


def test_wheel_declares_every_import() -> None:
    listed = project_setting('options', 'install_requires').split()
    declared = {re.split(r'[<>=]', name)[0] for name in listed}
    python = {name for name, key in ROSDEP_KEYS.items() if key.startswith('python3-')}
    needed = third_party_imports() & (python | BROUGHT_BY_TIMM)
    assert {PYPI_NAMES.get(name, name) for name in needed} == declared


def test_extras_declare_what_they_bring() -> None:
    for name, extra in EXTRAS.items():
        assert name in third_party_imports()
        assert name in project_setting('options.extras_require', extra)


def test_cmake_builds_every_message() -> None:
    listed = re.findall(r'msg/\w+\.msg', (CHECKOUT / 'CMakeLists.txt').read_text())
    assert sorted(listed) == sorted(
        str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / 'msg').iterdir())


def test_message_constants_are_those_of_the_core() -> None:
    statuses = {status.name: status.value for status in EstimateStatus}
    assert message_constants('MotionEstimate') == {**EXPOSURE_SOURCES, **statuses}


def test_generated_messages_are_those_of_the_sources() -> None:
    messages = pytest.importorskip('image_as_imu_ros.msg')
    for name, value in message_constants('MotionEstimate').items():
        assert getattr(messages.MotionEstimate, name) == value
    for kind in ('MotionEstimate', 'ExposureTime'):
        text = re.sub(r'#.*', '', (CHECKOUT / 'msg' / f'{kind}.msg').read_text())
        names = re.findall(r'^[\w/\[\]]+ +(\w+) *$', text, re.M)
        assert names[0] == 'header'
        fields = getattr(messages, kind).get_fields_and_field_types()
        assert list(fields) == names, 'run `make install`'


@pytest.fixture(scope='session')
def source_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a build needs, away from the checkout."""
    folder = tmp_path_factory.mktemp('source') / 'image_as_imu_ros'
    folder.mkdir()
    for name in BUILD_INPUTS:
        path = CHECKOUT / name
        if path.is_dir():
            shutil.copytree(path, folder / name, ignore=shutil.ignore_patterns('__pycache__'))
        else:
            shutil.copy(path, folder)
    return folder


def build_wheel(python: Path, source: Path, environment: dict[str, str]) -> zipfile.ZipFile:
    """Have a Python build the wheel as pip does, with the setuptools that is installed."""
    code = 'from setuptools.build_meta import build_wheel; build_wheel("dist")'
    result = subprocess.run([python, '-c', code], cwd=source, env=environment, text=True,
                            capture_output=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    (wheel,) = (source / 'dist').glob('*.whl')
    return zipfile.ZipFile(wheel)


def package_files() -> set[str]:
    """Every file of the package, as wheels name them."""
    return {str(path.relative_to(CHECKOUT)) for path in PACKAGE.rglob('*')
            if path.is_file() and path.parent.name != '__pycache__'}


def test_wheel_without_ros_is_plain_python(source_copy: Path, tmp_path: Path) -> None:
    setuptools = pytest.importorskip('setuptools')
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', tmp_path / 'venv'], check=True)
    environment = dict(os.environ, PYTHONPATH=str(Path(setuptools.__file__).parents[1]))
    wheel = build_wheel(tmp_path / 'venv' / 'bin' / 'python', source_copy, environment)
    names = wheel.namelist()
    assert wheel.filename.endswith('-py3-none-any.whl')
    assert package_files() <= set(names)
    assert not [name for name in names if name.startswith('image_as_imu_ros/msg')
                or '.data/' in name]
    (entry_points,) = (name for name in names if name.endswith('entry_points.txt'))
    assert b'image-as-imu = image_as_imu_ros.cli.main:main' in wheel.read(entry_points)


def test_wheel_with_ros_holds_what_ros_looks_for(source_copy: Path) -> None:
    if not (Path(sys.prefix) / 'share' / 'rosidl_default_generators').is_dir():
        pytest.skip('rosidl is not installed beside this Python')
    pytest.importorskip('setuptools')
    shutil.rmtree(source_copy / 'dist', ignore_errors=True)
    wheel = build_wheel(Path(sys.executable), source_copy, dict(os.environ))
    names = wheel.namelist()
    assert package_files() <= set(names)
    assert {'image_as_imu_ros/msg/_motion_estimate.py',
            'image_as_imu_ros/msg/_exposure_time.py'} <= set(names)
    data = {name.partition('.data/data/')[2]: name for name in names if '.data/data/' in name}
    assert {'share/ament_index/resource_index/packages/image_as_imu_ros',
            'share/image_as_imu_ros/package.xml',
            'share/image_as_imu_ros/msg/MotionEstimate.msg',
            'share/image_as_imu_ros/launch/visual_imu.launch.py',
            'share/image_as_imu_ros/launch/visual_imu_ekf.launch.py',
            'share/image_as_imu_ros/launch/replay.launch.py',
            'share/image_as_imu_ros/launch/stereo.launch.py',
            'share/image_as_imu_ros/config/visual_imu.yaml',
            'share/image_as_imu_ros/config/visual_imu.rviz',
            'share/image_as_imu_ros/config/ekf.yaml',
            'share/image_as_imu_ros/config/foxglove.json',
            'lib/image_as_imu_ros/imu_arrows', 'lib/image_as_imu_ros/imu_compare',
            'lib/image_as_imu_ros/visual_imu'} <= set(data)
    assert any(name.startswith('lib/libimage_as_imu_ros__') for name in data)
    mode = wheel.getinfo(data['lib/image_as_imu_ros/visual_imu']).external_attr >> 16
    assert mode & 0o111 == 0o111, 'ros2 run needs an executable file'
