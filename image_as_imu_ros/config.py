"""
Settings: one frozen dataclass per concern, the single source of every default.

The YAML loader, `--set section.key=value`, the ROS parameters and the README's parameter table
are all generated from the fields' metadata.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml

from image_as_imu_ros.errors import ConfigError

Config = TypeVar('Config')


WEIGHTS = (r'\w[\w.-]*|[^\0]*[^\0/]\.safetensors', 'a name, or a path that ends in .safetensors')
NODE_NAME = (r'(/?\w+(/\w+)*)?', 'a node name, with or without namespaces')
IMAGE_FILE = (r'(?i)([^\0]*[^\0/]\.(png|pgm|bmp|tiff?|jpe?g))?',
              'a path that ends in .png, .pgm, .bmp, .tif or .jpg')
FRAME_ID = (r'([^\s/]\S*)?', 'a TF frame without a leading slash or spaces')
"""Text that settings may take: a pattern for all of it, and what it is."""


def setting(default: Any, description: str, *, unit: str = '', low: float | None = None,
            high: float | None = None, one_of: tuple[str, ...] = (),
            matching: tuple[str, str] | None = None, read_only: bool = True,
            changes_in: str = 'any state') -> Any:
    """
    Declare one setting: default, description, unit, bounds, choices or pattern.

    :param read_only: whether the node takes it at its start only
    :param changes_in: state of the node's lifecycle in which it may change: 'any state',
        'inactive' (or unconfigured) or 'unconfigured'
    """
    return dataclasses.field(default=default, metadata={
        'description': description, 'unit': unit, 'range': (low, high), 'one_of': one_of,
        'matching': matching, 'read_only': read_only, 'changes_in': changes_in})


def check(config: Any) -> None:
    """
    Check every field of a config dataclass against its type and bounds.

    :raises ConfigError: naming the field, its value and what it may be
    """
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        kind = type(entry.default)
        if kind is float and type(value) in (int, str):  # YAML reads 1e-3 as text
            with contextlib.suppress(ValueError):
                value = float(value)
                object.__setattr__(config, entry.name, value)
        if kind is tuple and type(value) is list:  # YAML has no other
            value = tuple(value)
            object.__setattr__(config, entry.name, value)
        if type(value) is not kind:
            raise ConfigError(
                f'{entry.name}: {value!r} is a {type(value).__name__}, expected {kind.__name__}')
        choices = entry.metadata['one_of']
        if choices and value not in choices:
            raise ConfigError(f'{entry.name}: "{value}" is not one of {", ".join(choices)}')
        if entry.metadata['matching'] and not re.fullmatch(entry.metadata['matching'][0], value):
            raise ConfigError(f'{entry.name}: {value!r} is not {entry.metadata["matching"][1]}')
        low, high = entry.metadata['range']
        if (low is not None and not value >= low) or (high is not None and not value <= high):
            unit = entry.metadata['unit']
            raise ConfigError(f'{entry.name}: {value} is outside [{low}, {high}] {unit}'.rstrip())


@dataclass(frozen=True)
class EstimatorConfig:
    """How one image is turned into a motion."""

    weights: str = setting('compact', 'name of shipped weights or path to a .safetensors file',
                           matching=WEIGHTS, read_only=False, changes_in='unconfigured')
    device: str = setting('auto', 'where the network runs', one_of=('auto', 'cpu', 'cuda'),
                          read_only=False, changes_in='unconfigured')
    runtime: str = setting(
        'auto', 'what computes the network; auto: onnxruntime on a CPU where it is installed, '
        'else torch', one_of=('auto', 'torch', 'compile', 'onnxruntime', 'tensorrt'))
    mask: str = setting(
        '', "image file of the size or aspect ratio of the camera's images, black where they show "
        'the robot itself, else white; empty for none', matching=IMAGE_FILE, read_only=False,
        changes_in='unconfigured')
    threads: int = setting(
        0, 'CPU threads of the network; 0: half of the cores, at least one, and one more while no '
        'other image is at work', low=0, high=256, read_only=False, changes_in='unconfigured')
    working_size: int = setting(
        320, 'longer side of the undistorted image that the network sees', unit='px',
        low=128, high=1280, read_only=False, changes_in='unconfigured')
    scene_depth: float = setting(
        2.0, 'assumed distance of the scene, which scales the linear velocity', unit='m',
        low=0.05, high=1000.0, read_only=False)
    scene_depth_error: float = setting(
        0.5, 'standard deviation of scene_depth, relative to it; small where it is known',
        low=0.001, high=10.0)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class StreamConfig:
    """How images in time order are joined into a signed motion."""

    max_gap: float = setting(
        0.5, 'longest time between frames that are still related to each other', unit='s',
        low=0.01, high=10.0, read_only=False)
    unresolved_sign: str = setting(
        'predict', 'frames whose sign stays open: publish the prediction, nothing, or a '
        'covariance that holds both signs', one_of=('predict', 'drop', 'inflate'), read_only=False)
    exposure_mode: str = setting(
        'given', 'exposure as it is told, or estimated from blur and motion between images, '
        'whatever is told', one_of=('given', 'estimate'))
    readout_mode: str = setting(
        'estimate', 'readout time as it is told, 0 being a global shutter, or, where none is '
        'told, estimated from the images', one_of=('given', 'estimate'))
    smoothing_frames: int = setting(
        0, 'frames of look-ahead, offline only; 0 is causal', low=0, high=1000)
    subframe_rates: int = setting(
        0, "estimates per frame of a rolling shutter, one for each band of its rows; 0 or 1: the "
        "frame's alone", low=0, high=64)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class NodeConfig:
    """What the node `visual_imu` listens to and publishes."""

    image_transport: str = setting('raw', 'image topic: raw Image or CompressedImage',
                                   one_of=('raw', 'compressed'), read_only=False,
                                   changes_in='inactive')
    exposure_time: float = setting(
        0.0, 'exposure time when no per-frame topic tells it; 0 means unknown', unit='s',
        low=0.0, high=1.0, read_only=False)
    use_exposure_topic: bool = setting(
        False, "take each frame's exposure from the topic exposure_time (ExposureTime)",
        read_only=False, changes_in='inactive')
    exposure_source: str = setting(
        'parameter', "what tells each frame's exposure, where use_exposure_topic is not set: the "
        'parameter exposure_time, or messages on the topic exposure_time: of this package, of '
        'realsense2_camera, of FLIR cameras or of camera_ros; v4l2: a parameter of exposure_node',
        one_of=('parameter', 'topic', 'realsense', 'flir', 'libcamera', 'v4l2'))
    exposure_node: str = setting(
        '', 'name of the camera driver node whose parameters tell the exposure (v4l2)',
        matching=NODE_NAME, read_only=False, changes_in='inactive')
    rectified: str = setting(
        'auto', 'whether the images are rectified, so that P of camera_info counts and not K and '
        'D; auto: where their topic is named image_rect...', one_of=('auto', 'yes', 'no'))
    image_rotation: int = setting(
        0, 'clockwise turn by which the driver rotates the images, while camera_info describes '
        'them unrotated; 0, 90, 180 or 270', unit='deg', low=0, high=270)
    use_depth_topic: bool = setting(
        False, 'take the depth of the scene from the topic depth (Image, aligned with image)')
    readout_time: float = setting(
        0.0, 'time from the first to the last row of a rolling shutter; 0 for global', unit='s',
        low=0.0, high=0.2, read_only=False)
    stamp_reference: str = setting(
        'start', 'moment of the exposure that the image stamps mark',
        one_of=('start', 'middle', 'end'), read_only=False)
    time_offset: float = setting(
        0.0, 'added to all stamps: how far the clock of the other sensors runs ahead of that of '
        'the images, as `calibrate` and `imu_compare` tell it', unit='s', low=-1.0, high=1.0,
        read_only=False)
    max_latency: float = setting(
        0.5, 'frames older than this on arrival are dropped; 0 keeps all', unit='s',
        low=0.0, high=60.0, read_only=False)
    output_frame: str = setting(
        '', "frame of the published vectors; empty for the image's own optical frame",
        matching=FRAME_ID, read_only=False, changes_in='unconfigured')
    camera_pose: str = setting(
        '', 'mounting of the camera in output_frame, where no TF tells it: x y z roll pitch yaw '
        '[m, rad] of its body axes (x forward, y left, z up)')
    publish_twist: bool = setting(True, 'publish ~/twist', read_only=False)
    diagnostics_period: float = setting(1.0, 'time between diagnostics', unit='s',
                                        low=0.1, high=60.0, read_only=False)
    autostart: bool = setting(
        False, 'configure and activate at start, where no launch file or manager does it')

    def __post_init__(self) -> None:
        check(self)
        if self.camera_pose:
            camera_pose_values(self.camera_pose)
        if self.image_rotation % 90:
            raise ConfigError(f'image_rotation: {self.image_rotation} is not 0, 90, 180 or 270')

    @property
    def told_exposure(self) -> str:
        """What tells each frame's exposure: one of the values of `exposure_source`."""
        return 'topic' if self.use_exposure_topic else self.exposure_source


def camera_pose_values(text: str) -> tuple[float, ...]:
    """
    Numbers of a camera pose `x y z roll pitch yaw`, m and rad.

    :raises ConfigError: if it is not six finite numbers
    """
    values: tuple[float, ...] = ()
    with contextlib.suppress(ValueError):
        values = tuple(float(word) for word in text.split())
    if len(values) != 6 or not all(map(math.isfinite, values)):
        raise ConfigError(f'camera_pose: "{text}" is not six numbers "x y z roll pitch yaw"')
    return values


# of the images that training draws, alike on the fly and in a dataset
share_of_drawings = partial(
    setting, 0.3, 'share of drawn textures, the rest being photographs', low=0.0, high=1.0)
share_of_rooms = partial(
    setting, 0.3, 'share of rendered rooms, where there are keyframes of some', low=0.0, high=1.0)


@dataclass(frozen=True)
class TrainingConfig:
    """How a network is trained: the compact one on synthetic blur, unless told otherwise."""

    architecture: str = setting(
        'compact-4', 'what to train: compact-4, timm:NAME for a timm backbone, or reference, '
        "which learns by the paper's losses")
    widths: tuple = setting((32, 64, 96, 128), 'channels at strides 4, 8, 16 and 32 (of timm '
                            'backbones, of their decoder); the reference network has its own')
    ranks: tuple = setting((0, 0, 0, 0, 0), "of the compact network's convolutions there and of "
                           'its last layer; 0 leaves them whole')
    initial: str = setting('', 'weights to start from: .safetensors, checkpoint.pt of a run, or '
                           'a plain state dict of the encoder alone')
    teacher: str = setting('', 'weights of a compact network to learn from besides the truth '
                           'and, without `initial`, to start from: a name or .safetensors')
    crops: int = setting(400_000, 'training images in all, rounded up to whole batches; the '
                         'schedule is laid over them', low=1)
    epochs: int = setting(0, 'passes over the images of recordings or shards, which then decide '
                          'on the crops', low=0)
    batch: int = setting(8, 'images per step, of all processes together', low=1, high=4096)
    width: int = setting(160, 'image width, a multiple of 32', unit='px', low=64, high=1024)
    height: int = setting(128, 'image height, a multiple of 32', unit='px', low=64, high=1024)
    learning_rate: float = setting(1.5e-3, 'peak of the schedule', low=0.0, high=1.0)
    schedule: str = setting(
        'trapezoid', 'of the learning rate: trapezoid by `warmup` and `decay`, cosine after '
        '`warmup`, or one-cycle', one_of=('trapezoid', 'cosine', 'one-cycle'))
    weight_decay: float = setting(0.02, 'of AdamW', low=0.0, high=1.0)
    gradient_norm: float = setting(1.0, 'longer gradients are cut to this', low=1e-6, high=1e6)
    warmup: float = setting(0.01, 'share of the crops over which the rate rises',
                            low=0.0, high=1.0)
    decay: float = setting(0.6, 'share of the crops, at the end, over which the rate falls to 0',
                           low=0.0, high=1.0)
    ema_crops: float = setting(6400.0, 'time constant of the averaged weights, in crops',
                               low=1.0, high=1e9)
    flow_weight: float = setting(1e-4, 'of the flow in the loss of the reference network',
                                 low=0.0, high=1e6)
    depth_weight: float = setting(1e-3, 'of the depth in it', low=0.0, high=1e6)
    pose_weight: float = setting(0.0, 'of the pose that its linear solver finds', low=0.0,
                                 high=1e6)
    procedural: float = share_of_drawings()
    rooms: float = share_of_rooms()
    shards: str = setting('', 'folder of a dataset in shards, of `synthesize --format '
                          'webdataset`, to train on instead of drawing')
    validation: int = setting(256, 'held-out images scored at each checkpoint', low=1)
    overfit: int = setting(0, 'train on so many fixed images, until the loss has fallen; 0 trains '
                           'as usual', low=0)
    overfit_share: float = setting(0.15, 'of the first loss, below which overfitting ends',
                                   low=0.0, high=1.0)
    checkpoint_minutes: float = setting(5.0, 'time between checkpoints', unit='min',
                                        low=0.01, high=1e4)
    tensorboard: bool = setting(False, 'write scalars and pictures for TensorBoard')
    workers: int = setting(2, 'processes that synthesize, for each one that trains', low=0,
                           high=256)
    seed: int = setting(1, 'of everything random', low=0)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class DatasetConfig:
    """What a dataset on disk is made of."""

    seed: int = setting(1, 'of everything random', low=0)
    held_out: bool = setting(False, 'of photographs, rooms and scenes of ScanNet++, take those '
                             'that no training sees')
    width: int = setting(320, 'image width', unit='px', low=32, high=4096)
    height: int = setting(224, 'image height', unit='px', low=32, high=4096)
    block: int = setting(256, 'images in a shard, or in a part of the table: what is lost when a '
                         'process is stopped', low=1, high=100_000)
    procedural: float = share_of_drawings()
    rooms: float = share_of_rooms()
    frames_apart: int = setting(10, 'frames of a recording that an exposure lasts; an even number',
                                low=2, high=1000)
    frame_step: int = setting(5, 'frames between the starts of two exposures', low=1, high=100_000)
    colmap: bool = setting(False, "correct ARKit's poses by COLMAP's, in ScanNet++")

    def __post_init__(self) -> None:
        check(self)
        if self.frames_apart % 2:
            raise ConfigError(f'frames_apart: {self.frames_apart} is odd, so that no frame is in '
                              'the middle')


@dataclass(frozen=True)
class VisualImuConfig:
    """Everything the node and the offline tools can be told, by section."""

    estimator: EstimatorConfig = EstimatorConfig()
    stream: StreamConfig = StreamConfig()
    node: NodeConfig = NodeConfig()


def from_dict(kind: type[Config], values: dict[str, Any]) -> Config:
    """
    Build a config (nested dataclasses included) from plain values.

    :raises ConfigError: if a key is unknown or a value is of the wrong type or out of range
    """
    if not isinstance(values, dict):
        raise ConfigError(f'{kind.__name__}: expected keys and values, got {values!r}')
    known = {entry.name: entry for entry in dataclasses.fields(kind)}
    unknown = set(values) - set(known)
    if unknown:
        raise ConfigError(f'unknown setting "{sorted(map(str, unknown))[0]}"; '
                          f'known here: {", ".join(known)}')
    built = {}
    for name, value in values.items():
        default = known[name].default
        nested = dataclasses.is_dataclass(default)
        built[name] = from_dict(type(default), value) if nested else value
    return kind(**built)


def load(kind: type[Config], path: Path | None = None, overrides: tuple[str, ...] = ()) -> Config:
    """
    Read a config: defaults, then the YAML file, then `section.key=value` overrides.

    :raises ConfigError: if the file cannot be read or a setting is unknown or out of range
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = yaml.safe_load(Path(path).read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f'cannot read config {path}: {error}') from error
    for override in overrides:
        key, separator, text = override.partition('=')
        if not separator:
            raise ConfigError(f'override "{override}" is not of the form key=value')
        target = values
        *sections, name = key.split('.')
        for section in sections:
            target = target.setdefault(section, {})
        target[name] = yaml.safe_load(text) if text else ''  # not YAML's null
    return from_dict(kind, values)


def ros_parameters() -> Iterator[tuple[str, str, dataclasses.Field]]:
    """The node's settings as (name of the ROS parameter, section, field); `node` has no prefix."""
    for section in dataclasses.fields(VisualImuConfig):
        prefix = '' if section.name == 'node' else f'{section.name}.'
        for entry in dataclasses.fields(section.default):
            yield prefix + entry.name, section.name, entry


def ros_parameter_from_text(name: str, text: str) -> Any:
    """
    Value of a ROS parameter as typed on a command line, of the parameter's type.

    :raises ConfigError: if the parameter is unknown or the value is of the wrong type or out of
        range
    """
    known = {key: (section, entry) for key, section, entry in ros_parameters()}
    if name not in known:
        raise ConfigError(f'unknown parameter "{name}"; known are: {", ".join(known)}')
    section, entry = known[name]
    value = text
    if not isinstance(entry.default, str):
        with contextlib.suppress(yaml.YAMLError):
            value = yaml.safe_load(text)
    config = from_dict(VisualImuConfig, {section: {entry.name: value}})
    return getattr(getattr(config, section), entry.name)


def describe(entry: dataclasses.Field) -> str:
    """One line on a setting: what it is, its unit and what it may be."""
    text = entry.metadata['description']
    low, high = entry.metadata['range']
    if entry.metadata['unit']:
        text += f' [{entry.metadata["unit"]}]'
    if entry.metadata['one_of']:
        text += f'; {", ".join(entry.metadata["one_of"])}'
    if low is not None and high is not None:
        text += f'; {low:g} to {high:g}'
    return text


def changeable_in(entry: dataclasses.Field) -> str:
    """States of the lifecycle in which the node takes a new value of a setting."""
    if entry.metadata['read_only']:
        return 'at start only'
    return entry.metadata['changes_in']


def ros_yaml() -> str:
    """ROS parameter file with every default, commented: the content of config/visual_imu.yaml."""
    lines = [
        '# Every parameter of the node visual_imu with its default, written by `make config`.',
        '# Most can be changed while the node runs; in brackets: in which states only.',
        '/**:', '  ros__parameters:']
    sections = sorted(dataclasses.fields(VisualImuConfig), key=lambda entry: entry.name != 'node')
    for section in sections:
        indent = ' ' * 4
        if section.name != 'node':
            lines += ['', f'{indent}{section.name}:']
            indent += '  '
        for entry in dataclasses.fields(section.default):
            value = yaml.safe_dump({entry.name: entry.default}, default_flow_style=False).strip()
            states = changeable_in(entry)
            note = '' if states == 'any state' else f' ({states})'
            lines += [f'{indent}# {describe(entry)}{note}', f'{indent}{value}']
    return '\n'.join(lines) + '\n'


def parameter_table() -> str:
    """Markdown table of every ROS parameter, for the README."""
    rows = [f'| `{name}` | `{entry.default!r}` | {describe(entry)} |'
            for name, _, entry in ros_parameters()]
    return '\n'.join(['| parameter | default | meaning |', '| --- | --- | --- |', *rows]) + '\n'
