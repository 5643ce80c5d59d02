"""`image-as-imu run`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from image_as_imu_ros.cli.options import add_config_arguments, add_rotation_argument, read_config

if TYPE_CHECKING:
    from image_as_imu_ros.types import MotionEstimate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument('image', type=Path, metavar='IMAGE', help='JPEG or PNG file')
    parser.add_argument('--fx', type=float, required=True, help='focal length, px')
    parser.add_argument('--fy', type=float, required=True, help='focal length, px')
    parser.add_argument('--cx', type=float, help='principal point, px (default: image centre)')
    parser.add_argument('--cy', type=float, help='principal point, px (default: image centre)')
    parser.add_argument('--exposure', type=float, required=True, metavar='S',
                        help='exposure time, s')
    add_rotation_argument(parser, 'other')
    parser.add_argument('--json', action='store_true', help='print JSON')
    add_config_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Estimate the motion of one image, up to one common sign."""
    from image_as_imu_ros.estimator import VisualGyroscope
    from image_as_imu_ros.evaluation.sources.image_files import read_image_file
    from image_as_imu_ros.types import CameraIntrinsics, Frame
    image = read_image_file(arguments.image)
    height, width = image.shape[:2]
    intrinsics = CameraIntrinsics(
        width, height, arguments.fx, arguments.fy,
        (width - 1) / 2 if arguments.cx is None else arguments.cx,
        (height - 1) / 2 if arguments.cy is None else arguments.cy)
    frame = Frame(image, 0, intrinsics, arguments.exposure)
    estimate = VisualGyroscope(read_config(arguments).estimator).estimate(frame)
    axes = 'camera optical axes'
    if arguments.R is not None:
        estimate, axes = estimate.rotated(arguments.R), 'axes rotated by R'
    if arguments.json:
        print(json.dumps(_as_dict(estimate, axes), indent=2))
    else:
        print(_as_text(estimate, axes))


def _as_dict(estimate: MotionEstimate, axes: str) -> dict[str, Any]:
    deviations = np.sqrt(np.diagonal(estimate.covariance)).tolist()
    return {
        'axes': axes,
        'sign_resolved': estimate.sign_resolved,
        'hypotheses': [
            {'angular_velocity_rad_s': one.angular_velocity_rad_s.tolist(),
             'linear_velocity_m_s': one.linear_velocity_m_s.tolist()}
            for one in (estimate, estimate.negated())],
        'angular_velocity_stddev_rad_s': deviations[3:],
        'linear_velocity_stddev_m_s': deviations[:3],
        'covariance': estimate.covariance.tolist(),
        'exposure_time_s': estimate.exposure_time_s,
        'quality': estimate.quality,
        'blur_extent_px': estimate.blur_extent_px,
        'status': estimate.status.name,
    }


def _as_text(estimate: MotionEstimate, axes: str) -> str:
    deviations = np.sqrt(np.diagonal(estimate.covariance))
    lines = [f'in {axes}; one image cannot tell a motion from its negative',
             f'{"":<26}{"x":>9}{"y":>9}{"z":>9}']
    for name, vector, deviation in (
            ('angular velocity [rad/s]', estimate.angular_velocity_rad_s, deviations[3:]),
            ('linear velocity [m/s]', estimate.linear_velocity_m_s, deviations[:3])):
        for label, values in ((name, vector), ('  or', -vector)):
            lines.append(f'{label:<26}' + ''.join(f'{value:>+9.3f}' for value in values))
        lines.append(f'{"  standard deviation":<26}'
                     + ''.join(f'{value:>9.3f}' for value in deviation))
    lines.append(f'quality {estimate.quality:.2f}, blur {estimate.blur_extent_px:.1f} px, '
                 f'status {estimate.status.name}')
    return '\n'.join(lines)
