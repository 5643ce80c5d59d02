"""A calibration as files that other programs read, and as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.spatial.transform import Rotation

from image_as_imu_ros.evaluation.calibration import Calibration
from image_as_imu_ros.evaluation.imu_health import Health
from image_as_imu_ros.files import write_atomically
from image_as_imu_ros.types import CameraIntrinsics

OWN_FILE, KALIBR_FILE, TRANSFORM_FILE = (
    'calibration.yaml', 'camchain-imucam.yaml', 'static_transform.yaml')
KALIBR_MODELS = {'pinhole': 'radtan', 'plumb_bob': 'radtan', 'equidistant': 'equidistant'}


def write_calibration(calibration: Calibration, health: Health, intrinsics: CameraIntrinsics,
                      folder: Path, camera_frame: str, imu_frame: str) -> None:
    """
    Write our YAML, Kalibr's camchain-imucam.yaml and a static transform.

    Images tell no distance between the two: translations are zero, and said to be unknown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    quaternion = _quaternion(calibration)
    own = {
        'R_imu_camera': calibration.R_gyro_camera.tolist(),
        'quaternion_imu_camera_xyzw': quaternion,
        'rotation_deviation_deg': np.degrees(calibration.rotation_deviation_rad).tolist(),
        'time_offset_s': calibration.time_offset_s,
        'time_offset_deviation_s': calibration.time_offset_deviation_s,
        'bias_rad_s': calibration.bias_rad_s.tolist(),
        'bias_deviation_rad_s': calibration.bias_deviation_rad_s.tolist(),
        'scale': calibration.scale.tolist(),
        'scale_deviation': calibration.scale_deviation.tolist(),
        'image_pairs': calibration.gaps,
        'outlier_share': calibration.outlier_share,
        'residual_rms_rad_s': calibration.residual_rms_rad_s.tolist(),
        'health': health.summary,
        'warnings': list(calibration.warnings),
    }
    transform = {
        'frame_id': imu_frame, 'child_frame_id': camera_frame,
        'translation': {'x': 0.0, 'y': 0.0, 'z': 0.0},
        'rotation': dict(zip('xyzw', quaternion)),
    }
    for name, comment, content in (
            (OWN_FILE, 'reading = scale * (R_imu_camera @ rate) + bias, at the image time plus '
                       'time_offset_s; rad/s, one standard deviation', own),
            (KALIBR_FILE, 'as Kalibr writes it; the translation is unknown and left at zero',
             {'cam0': _kalibr(calibration, intrinsics)}),
            (TRANSFORM_FILE, f'{static_transform_command(calibration, camera_frame, imu_frame)}\n'
                             '# the translation is unknown and left at zero', transform)):
        text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None)
        write_atomically(folder / name, f'# {comment}\n{text}'.encode())


def static_transform_command(calibration: Calibration, camera_frame: str, imu_frame: str) -> str:
    """Command line that publishes the rotation on /tf_static."""
    x, y, z, w = _quaternion(calibration)
    return (f'ros2 run tf2_ros static_transform_publisher --x 0 --y 0 --z 0 --qx {x:.6f} '
            f'--qy {y:.6f} --qz {z:.6f} --qw {w:.6f} --frame-id {imu_frame} '
            f'--child-frame-id {camera_frame}')


def calibration_table(calibration: Calibration, health: Health) -> str:
    """Lay out a calibration as text."""
    roll, pitch, yaw = Rotation.from_matrix(calibration.R_gyro_camera).as_euler(
        'xyz', degrees=True)
    rows = [('bias [rad/s]', calibration.bias_rad_s, calibration.bias_deviation_rad_s),
            ('scale', calibration.scale, calibration.scale_deviation)]
    lines = [f'R_imu_camera (roll {roll:.2f}, pitch {pitch:.2f}, yaw {yaw:.2f} deg)']
    lines += ['  ' + ' '.join(f'{value:9.5f}' for value in row)
              for row in calibration.R_gyro_camera]
    lines.append('  +- ' + ' / '.join(
        f'{value:.2f}' for value in np.degrees(calibration.rotation_deviation_rad))
        + ' deg about the axes x / y / z of the IMU')
    lines.append(f'time offset  {1e3 * calibration.time_offset_s:+.2f} ms '
                 f'+- {1e3 * calibration.time_offset_deviation_s:.2f} '
                 '(stamp of the IMU less that of the image, mid-exposure)')
    lines += [f'{name:<12} ' + '  '.join(
        f'{axis} {value:+.4f} +- {sigma:.4f}' for axis, value, sigma in
        zip('xyz', values, deviations)) for name, values, deviations in rows]
    lines.append(f'{calibration.gaps} image pairs, {100 * calibration.outlier_share:.0f} % of '
                 'them outliers; residual ' + ' / '.join(
                     f'{value:.2f}' for value in calibration.residual_rms_rad_s) + ' rad/s')
    lines.append(f'health of the gyroscope, so mounted: {health.summary}')
    return '\n'.join(lines + [f'warning: {text}' for text in calibration.warnings])


def _quaternion(calibration: Calibration) -> list[float]:
    """x, y, z, w, which is not negative."""
    quaternion = Rotation.from_matrix(calibration.R_gyro_camera).as_quat()
    return (np.copysign(1.0, quaternion[3]) * quaternion).tolist()


def _kalibr(calibration: Calibration, intrinsics: CameraIntrinsics) -> dict[str, Any]:
    """Entry of one camera; models that Kalibr lacks keep their ROS name and coefficients."""
    T_cam_imu = np.eye(4)
    T_cam_imu[:3, :3] = calibration.R_gyro_camera.T
    model = KALIBR_MODELS.get(intrinsics.distortion_model, intrinsics.distortion_model)
    coefficients = list(intrinsics.distortion) or [0.0] * 4
    if model == 'radtan':
        coefficients = coefficients[:4]  # Kalibr has no k3
    return {
        'T_cam_imu': T_cam_imu.tolist(),
        'camera_model': 'pinhole',
        'intrinsics': [intrinsics.fx_px, intrinsics.fy_px, intrinsics.cx_px, intrinsics.cy_px],
        'distortion_model': model,
        'distortion_coeffs': coefficients,
        'resolution': [intrinsics.width_px, intrinsics.height_px],
        'timeshift_cam_imu': calibration.time_offset_s,
    }
