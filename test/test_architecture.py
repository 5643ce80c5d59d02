"""What may import what, and that each fact of the package is stated once or agrees."""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from image_as_imu_ros.config import (
    VisualImuConfig,
    from_dict,
    ros_parameter_from_text,
    ros_parameters,
    ros_yaml,
)
from image_as_imu_ros.errors import ConfigError
from image_as_imu_ros.evaluation.provenance import ESTIMATING_CODE

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGE = CHECKOUT / 'image_as_imu_ros'
SOURCES = sorted(PACKAGE.rglob('*.py'))
CONVERSIONS = PACKAGE / 'ros' / 'conversions.py'  # of duck-typed messages; needs no ROS to read
WITHOUT_ROS = [path for path in SOURCES
               if PACKAGE / 'ros' not in path.parents or path == CONVERSIONS]
LAYERS = [
    {'errors', 'types', 'config', 'files'},
    {'geometry', 'model', 'image_decoding', 'ros.conversions'}, {'estimator'}, {'stream'},
    {'synthesis', 'training', 'evaluation'}, {'cli', 'ros'}]
ROS_PACKAGES = {
    'ament_index_python', 'builtin_interfaces', 'cv_bridge', 'diagnostic_msgs', 'geometry_msgs',
    'launch', 'launch_ros', 'lifecycle_msgs', 'rcl_interfaces', 'rclpy', 'rosgraph_msgs',
    'sensor_msgs', 'std_msgs', 'tf2_msgs', 'tf2_ros', 'tf_transformations'}

BLOCK_ROS = f"""
import importlib, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {ROS_PACKAGES!r} or name == 'image_as_imu_ros.msg':
            raise ModuleNotFoundError(f'{{name}} is blocked by the test', name=name)
sys.meta_path.insert(0, Blocker())
"""


def module_name(path: Path) -> str:
    """Dotted name of a source file."""
    parts = path.relative_to(CHECKOUT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def imported_names(path: Path) -> set[str]:
    """Modules and names that a source file imports, dotted, those inside functions included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f'{node.module}.{alias.name}' for alias in node.names)}
    return names


def layer(module: str) -> int | None:
    """Height of a module of this package in LAYERS; None for others."""
    _, *parts = module.split('.')
    for name in ('.'.join(parts[:2]), *parts[:1]):
        for height, names in enumerate(LAYERS):
            if name in names:
                return height
    return None


def run_python(code: str) -> None:
    """Run code in a process of its own; its failure is the test's."""
    result = subprocess.run([sys.executable, '-c', code], cwd=CHECKOUT, text=True,
                            capture_output=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr


def test_core_imports_where_ros_is_missing() -> None:
    modules = [module_name(path) for path in WITHOUT_ROS]
    assert 'image_as_imu_ros.estimator' in modules and 'image_as_imu_ros.cli.play' in modules
    run_python(BLOCK_ROS + f'for name in {modules!r}: importlib.import_module(name)')


def test_the_blocker_of_these_tests_blocks() -> None:
    pytest.importorskip('rclpy')
    with pytest.raises(AssertionError, match='blocked by the test'):
        run_python(BLOCK_ROS + 'import image_as_imu_ros.ros.node')


@pytest.mark.parametrize(
    'path', [path for path in SOURCES if PACKAGE / 'ros' not in path.parents], ids=module_name)
def test_only_the_ros_folder_names_ros_packages(path: Path) -> None:
    assert not {name.split('.')[0] for name in imported_names(path)} & ROS_PACKAGES


@pytest.mark.parametrize('code', [
    'import image_as_imu_ros, image_as_imu_ros.cli.main',
    "import image_as_imu_ros.cli.main as m\ntry: m.main(['--help'])\nexcept SystemExit: pass",
], ids=['import', 'help'])
def test_the_package_and_its_help_load_nothing_heavy(code: str) -> None:
    run_python(code + '\nimport sys; heavy = {"torch", "timm", "cv2", "rclpy"} & set(sys.modules)'
               '\nassert not heavy, heavy')


@pytest.mark.parametrize('path', SOURCES, ids=module_name)
def test_imports_point_downward(path: Path) -> None:
    own = layer(module_name(path))
    upward = {name for name in imported_names(path)
              if name.startswith('image_as_imu_ros.') and own is not None
              and (layer(name) or 0) > own}
    assert not upward


def test_cached_estimates_depend_on_all_code_that_makes_them() -> None:
    by_name = {module_name(path): path for path in SOURCES}
    needed, waiting = set(), ['image_as_imu_ros.estimator', 'image_as_imu_ros.smoothing']
    while waiting:
        name = waiting.pop()
        if name in by_name and name not in needed:
            needed.add(name)
            waiting += imported_names(by_name[name])
    # settings are in the key themselves; the rest has no say in what is estimated
    unrelated = {f'image_as_imu_ros.{name}' for name in ('errors', 'config', 'files', 'processes',
                                                        'threads')}
    covered = [PACKAGE / name for name in ESTIMATING_CODE]
    assert all(path.exists() for path in covered)
    assert not {name for name in needed - unrelated
                if not {by_name[name], *by_name[name].parents} & set(covered)}


def test_parameter_file_is_that_of_the_config() -> None:
    path = CHECKOUT / 'config' / 'visual_imu.yaml'
    assert path.read_text() == ros_yaml(), 'run `make config`'
    values = yaml.safe_load(path.read_text())['/**']['ros__parameters']
    names = {field.name for field in dataclasses.fields(VisualImuConfig)} - {'node'}
    sections = {name: values.pop(name) for name in names}
    assert from_dict(VisualImuConfig, {**sections, 'node': values}) == VisualImuConfig()


@pytest.mark.parametrize(('name', 'text', 'value'), [
    ('exposure_time', '5e-3', 0.005), ('exposure_time', '1', 1.0), ('estimator.threads', '2', 2),
    ('publish_twist', 'false', False), ('output_frame', '1', '1'),
    ('stream.unresolved_sign', 'drop', 'drop')])
def test_parameter_from_text_has_the_parameters_type(name: str, text: str, value: object) -> None:
    parsed = ros_parameter_from_text(name, text)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(('name', 'text', 'message'), [
    ('exposure_time', 'abc', "exposure_time: 'abc' is a str, expected float"),
    ('exposure_time', 'nan', 'exposure_time: nan is outside'),
    ('exposure_time', '-1', 'exposure_time: -1.0 is outside'),
    ('estimator.threads', '1.5', 'threads: 1.5 is a float, expected int'),
    ('publish_twist', '[', 'expected bool'),
    ('stamp_reference', 'centre', 'start, middle, end'),
    ('exposure', '0.01', 'unknown parameter "exposure"')])
def test_parameter_from_bad_text_is_refused(name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match='.') as refusal:
        ros_parameter_from_text(name, text)
    assert message in str(refusal.value) and '\n' not in str(refusal.value)


def test_every_parameter_name_is_unique() -> None:
    names = [name for name, _, _ in ros_parameters()]
    assert len(names) == len(set(names))
