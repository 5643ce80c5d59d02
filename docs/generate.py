"""
Write docs/reference.md and the table of licences in docs/security.md: `make docs`.

Parameters come from the config, messages from msg/, licences from what is installed. Topics and
diagnostics are listed here; a test compares them with the running node.
"""

from __future__ import annotations

import configparser
import dataclasses
import re
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from image_as_imu_ros.config import changeable_in, ros_parameters

DOCS = Path(__file__).resolve().parent
CHECKOUT = DOCS.parent
REFERENCE, SECURITY = DOCS / 'reference.md', DOCS / 'security.md'
SUBSCRIBED = [
    ('image', 'sensor_msgs/msg/Image', 'images, unless `image_transport` is `compressed`'),
    ('image/compressed', 'sensor_msgs/msg/CompressedImage',
     'images, if `image_transport` is `compressed`'),
    ('camera_info', 'sensor_msgs/msg/CameraInfo', 'intrinsics; those that came last hold'),
    ('exposure_time', 'image_as_imu_ros/msg/ExposureTime',
     'if `use_exposure_topic`, or `exposure_source` is `topic` (other sources have types of their '
     'own); stamped as its image'),
    ('depth', 'sensor_msgs/msg/Image', 'if `use_depth_topic`: aligned with the image, 16UC1 mm or '
     '32FC1 m'),
]
PUBLISHED = [
    ('~/imu/data_raw', 'sensor_msgs/msg/Imu', 'angular velocity, where its sign is known'),
    ('~/twist', 'geometry_msgs/msg/TwistWithCovarianceStamped',
     'with `publish_twist`: both velocities, where the sign is known'),
    ('~/motion', 'image_as_imu_ros/msg/MotionEstimate', 'every estimate, with all that is known'),
    ('~/overlay', 'sensor_msgs/msg/Image', 'the image with its motion drawn on it, only while '
     'somebody listens'),
    ('/diagnostics', 'diagnostic_msgs/msg/DiagnosticArray',
     'every `diagnostics_period`, in every state'),
]
SERVICES = ('`change_state`, `get_state`, `get_available_states`, `get_available_transitions`, '
            '`get_transition_graph` (lifecycle_msgs), and those of every node for its parameters')
LEVELS = [
    ('OK', 'images come and most are measured'),
    ('WARN', 'at least a tenth of the images is dropped; or no image yields a motion with a known '
             'sign; or the exposure is unknown; or an image was dropped by a fault of ours '
             '(internal error, estimate not finite)'),
    ('ERROR', 'the last transition was refused or broke down; or every image is dropped'),
    ('STALE', 'nothing is measured as nothing is to be: the node is not active, or no images '
              'arrive'),
]
DIAGNOSTICS = {
    'input rate [Hz]': 'images that arrive',
    'output rate [Hz]': '`Imu` messages',
    'latency p50, p95, p99 [ms]': "from the image's stamp to the `Imu` message",
    'processing p50, p95, p99 [ms]': "from the image's arrival to the `Imu` message",
    'overhead p50, p95, p99 [ms]': 'latency less what the estimator itself took',
    'waiting p50, p95, p99 [ms]': 'the part of it while the estimator was busy with images before',
    'images received, estimated, published, dropped': 'since the node started; published: with '
    'an `Imu` message',
    'dropped: CAUSE': 'since the node started, by cause (below)',
    'time jumps': 'how often stamps jumped back and the stream started anew',
    'last drop': 'cause and reason of the newest one',
    'weights': 'in use', 'device': '`cpu` or `cuda`',
    'exposure source': "newest image's: `topic`, `parameter`, `estimated` or `unknown`",
    'status': "newest image's, as in `MotionEstimate`",
    'sign': "newest image's: `resolved` or `unresolved`",
    'blur extent [px]': "newest image's median length of blur",
    'angular velocity stddev [rad/s]': "newest image's, x, y, z, from its covariance",
    'estimated exposure [ms]': 'and its standard deviation, with `stream.exposure_mode: estimate`',
    'estimated readout [ms]': 'of a rolling shutter, and its standard deviation, where none is '
    'told and `stream.readout_mode` is `estimate`',
    'median depth [m]': 'of the newest depth image, with `use_depth_topic`',
    'memory [MiB]': 'resident memory of the process',
    'GPU memory [MiB]': 'of its tensors; 0 on the CPU',
}
CAUSES = {
    'busy': 'a newer image came before this one was processed',
    'late': 'older than `max_latency` on arrival',
    'zero stamp': 'the stamp is zero, negative or at the end of its range',
    'out of order': 'the stamp is not later than that of the image before',
    'no frame_id': 'neither the image nor its camera_info names a frame',
    'no camera_info': 'none has come yet',
    'bad camera_info': 'uncalibrated, of an unknown distortion model or of another image size',
    'bad image': 'unknown encoding, truncated, or too small',
    'bad exposure': 'not positive, or longer than the interval between images',
    'no transform': 'TF does not know `output_frame` at the time of the image',
    'estimate not finite': 'a fault of ours; please report it',
    'internal error': 'a fault of ours, with a traceback in the log; please report it',
}

LICENCES = {
    'accelerate': 'Apache-2.0', 'allantools': 'LGPL-3.0-or-later',
    'av': 'BSD-3-Clause', 'embreex': 'BSD-2-Clause',
    'evo': 'GPL-3.0-only', 'lz4': 'BSD-3-Clause', 'matplotlib': 'PSF-based, BSD-compatible',
    'numba': 'BSD-2-Clause', 'numpy': 'BSD-3-Clause', 'onnx': 'Apache-2.0', 'onnxruntime': 'MIT',
    'opencv-python-headless': 'Apache-2.0', 'pycolmap': 'BSD-3-Clause', 'pyyaml': 'MIT',
    'rerun-sdk': 'MIT OR Apache-2.0', 'rosbags': 'Apache-2.0', 'safetensors': 'Apache-2.0',
    'scipy': 'BSD-3-Clause', 'tensorboard': 'Apache-2.0', 'timm': 'Apache-2.0',
    'torch': 'BSD-3-Clause', 'tqdm': 'MPL-2.0 AND MIT', 'transformers': 'Apache-2.0'}
"""By the projects' own statement; a test compares them with the metadata of what is installed."""


def parameters() -> str:
    """Table of every parameter."""
    rows = ['| parameter | type | default | range | changes in | meaning |',
            '| --- | --- | --- | --- | --- | --- |']
    for name, _, entry in ros_parameters():
        rows.append(f'| `{name}` | {type(entry.default).__name__} | `{entry.default!r}` | '
                    f'{allowed(entry)} | {changeable_in(entry)} | '
                    f'{entry.metadata["description"]} |')
    return '\n'.join(rows)


def allowed(entry: dataclasses.Field) -> str:
    """What a parameter may be."""
    low, high = entry.metadata['range']
    if entry.metadata['one_of']:
        return ', '.join(f'`{choice}`' for choice in entry.metadata['one_of'])
    if entry.metadata['matching']:
        return entry.metadata['matching'][1]
    if low is None:
        return '`true`, `false`' if isinstance(entry.default, bool) else ''
    return f'{low:g} to {high:g} {entry.metadata["unit"]}'.rstrip()


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Markdown table."""
    lines = [head, ('---',) * len(head), *rows]
    return '\n'.join(f'| {" | ".join(row)} |' for row in lines)


def messages() -> str:
    """The package's own messages, as they are defined."""
    return '\n\n'.join(f'### {path.stem}\n\n```\n{path.read_text().strip()}\n```'
                       for path in sorted((CHECKOUT / 'msg').glob('*.msg')))


def code(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Rows whose first entry is code."""
    return [(f'`{row[0]}`', *row[1:]) for row in rows]


def reference() -> str:
    """Content of reference.md."""
    return f"""# Reference of the node `visual_imu`

Written by `make docs` from the code; a test keeps both in agreement. How to use it:
[documentation](index.md).

## Parameters

A value out of range, of another type or at the wrong time is refused with the parameter's name and
the reason. *Changes in* is the state of the lifecycle in which the node takes a new value:
`inactive` allows `unconfigured` too. Further parameters, `qos_overrides.<topic>...`, set the
quality of service.

{parameters()}

## Topics

Relative names; images and their companions best effort with a depth of 1 and 10, outputs reliable
with a depth of 10.

{table(('subscribes', 'type', 'content'), code(SUBSCRIBED))}

{table(('publishes', 'type', 'content'), code(PUBLISHED))}

Services: {SERVICES}.

## Diagnostics

One status, `<node>: visual gyroscope`. Rates, percentiles and the level are those of the last 3 s.

{table(('level', 'meaning'), LEVELS)}

{table(('value', 'meaning'), code(list(DIAGNOSTICS.items())))}

{table(('cause of a drop', 'meaning'), list(CAUSES.items()))}

## Messages

{messages()}
"""


def dependencies() -> list[tuple[str, str]]:
    """Packages that setup.cfg names and the extra that needs them, '' for all uses."""
    settings = configparser.ConfigParser()
    settings.read(CHECKOUT / 'setup.cfg')
    listed = [(line, '') for line in settings['options']['install_requires'].split('\n')]
    for extra, lines in settings['options.extras_require'].items():
        if not lines.startswith('file:'):
            listed += [(line, extra) for line in lines.split('\n')]
    return [(re.split(r'[<>=!~;\[ ]', line)[0], extra) for line, extra in listed if line]


def stated_licence(name: str) -> str | None:
    """What the metadata of an installed package says of its licence; None if not installed."""
    try:
        known = metadata(name)
    except PackageNotFoundError:
        return None
    classifiers = [text for text in known.get_all('Classifier') or []
                   if text.startswith('License')]
    return ' '.join(filter(None, [known.get('License-Expression'), known.get('License'),
                                  *classifiers]))


def licences() -> str:
    """Table of the dependencies' licences."""
    return table(('package', 'licence', 'needed for'), [
        (f'`{name}`', LICENCES[name], f'extra `{extra}`' if extra else 'everything')
        for name, extra in dependencies()])


def with_licences(text: str) -> str:
    """Security page with the present table."""
    return re.sub(r'(?s)(<!-- licences -->\n).*?(<!-- end -->)',
                  lambda match: f'{match[1]}{licences()}\n{match[2]}', text)


if __name__ == '__main__':
    REFERENCE.write_text(reference())
    SECURITY.write_text(with_licences(SECURITY.read_text()))
