"""What people look at: the overlay's picture, and the files of RViz 2 and Foxglove."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

pytest.importorskip('rclpy')
pytest.importorskip('image_as_imu_ros.msg')

from image_as_imu_ros.msg import MotionEstimate as MotionEstimateMsg
from sensor_msgs.msg import Imu

from image_as_imu_ros.ros.overlay import MARGIN_PX, PANEL_HEIGHT_PX, STRIDE_PX, draw_overlay
from image_as_imu_ros.types import CameraIntrinsics, EstimateStatus, MotionEstimate

CHECKOUT = Path(__file__).resolve().parents[1]

# Displays, tools and views of rviz_default_plugins (plugins_description.xml, Kilted), and the
# panels that rviz_common has built in.
RVIZ_DISPLAYS = {
    'AccelStamped', 'Axes', 'Camera', 'CameraInfo', 'DepthCloud', 'Effort', 'FluidPressure',
    'Grid', 'GridCells', 'Illuminance', 'Image', 'InteractiveMarkers', 'LaserScan', 'Map',
    'Marker', 'MarkerArray', 'Odometry', 'Path', 'PointCloud', 'PointCloud2', 'PointStamped',
    'Polygon', 'Pose', 'PoseArray', 'PoseWithCovariance', 'Range', 'RelativeHumidity',
    'RobotModel', 'TF', 'Temperature', 'TwistStamped', 'Wrench'}
RVIZ_TOOLS = {'FocusCamera', 'Interact', 'Measure', 'MoveCamera', 'PublishPoint', 'Select',
              'SetGoal', 'SetInitialPose'}
RVIZ_VIEWS = {'FPS', 'Orbit', 'ThirdPersonFollower', 'TopDownOrtho', 'XYOrbit'}
RVIZ_PANELS = {'Displays', 'Help', 'Selection', 'Time', 'Tool Properties', 'Transformation',
               'Views'}


def estimate(**changes: Any) -> MotionEstimate:
    values = {
        'stamp_ns': 1, 'exposure_time_s': 0.01, 'angular_velocity_rad_s': np.array([0.0, 3.0, 0]),
        'linear_velocity_m_s': np.zeros(3), 'covariance': 0.01 * np.eye(6),
        'sign_resolved': True, 'sign_margin': 9.0, 'quality': 0.8, 'blur_extent_px': 18.0,
        'inlier_share': 0.9, 'status': EstimateStatus.OK}
    return MotionEstimate(**(values | changes))


def overlay(width: int = 640, height: int = 480, shade: int = 128, **changes: Any) -> np.ndarray:
    intrinsics = CameraIntrinsics(width, height, 600.0, 600.0, (width - 1) / 2, (height - 1) / 2)
    image = np.full((height, width, 3), shade, np.uint8)
    drawn = draw_overlay(image, intrinsics, estimate(**changes), 2.0)
    assert drawn.shape == image.shape and drawn.dtype == np.uint8
    assert (image == shade).all(), 'the original stays as it is'
    return drawn


def arrow_at_centre(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Extent (x, y) in px of what is drawn in the cell at the centre, and its centre of mass."""
    height, width = drawn.shape[:2]
    x, y = (STRIDE_PX * (side // (2 * STRIDE_PX)) for side in (width, height))
    cell = drawn[y:y + STRIDE_PX, x:x + STRIDE_PX].astype(int)
    rows, columns = np.nonzero(np.abs(cell - 128).max(axis=-1) > 60)
    return (np.array([np.ptp(columns), np.ptp(rows)]),
            np.array([columns.mean(), rows.mean()]) - (STRIDE_PX - 1) / 2)


def test_a_pan_draws_arrows_along_the_rows_as_long_as_the_blur():
    extent, middle = arrow_at_centre(overlay())  # 3 rad/s x 10 ms x 600 px = 18 px
    assert 18 <= extent[0] <= 18 + 6 and extent[1] < 15
    assert middle[0] < -1.0, 'the camera turns right, so the head of the arrow is on the left'


def test_an_open_sign_draws_lines_without_heads():
    extent, middle = arrow_at_centre(overlay(
        sign_resolved=False, status=EstimateStatus.SIGN_UNRESOLVED))
    assert extent[1] <= 5
    np.testing.assert_allclose(middle, 0.0, atol=1.0)


def test_tilting_draws_along_the_columns():
    extent, _ = arrow_at_centre(overlay(angular_velocity_rad_s=np.array([3.0, 0.0, 0.0])))
    assert extent[1] >= 18 and extent[0] < 15


def test_short_flow_is_magnified_and_says_so():
    slow = overlay(angular_velocity_rad_s=np.array([0.0, 0.5, 0.0]))
    assert arrow_at_centre(slow)[0][0] >= 10


@pytest.mark.parametrize('changes', [
    {'exposure_time_s': None}, {'angular_velocity_rad_s': np.zeros(3)},
    {'covariance': 400.0 * np.eye(6), 'status': EstimateStatus.NO_SIGNAL, 'sign_resolved': False},
    {'angular_velocity_rad_s': np.array([1e3, -1e3, 1e3])}])
@pytest.mark.parametrize('size', [(640, 480), (360, 640), (640, 64)])
def test_extremes_are_drawn(changes, size):
    overlay(*size, **changes)


def test_words_tell_the_sign():
    words = [overlay(**changes)[:PANEL_HEIGHT_PX, MARGIN_PX:] for changes in (
        {}, {'sign_resolved': False, 'status': EstimateStatus.SIGN_UNRESOLVED})]
    bright = [np.count_nonzero(cv2.cvtColor(part, cv2.COLOR_RGB2GRAY) > 200) for part in words]
    assert min(bright) > 200 and not np.array_equal(*words)


# Files


def nodes_of(layout: Any) -> Iterator[dict]:
    """The splits of a layout, from the outermost on."""
    if isinstance(layout, dict):
        yield layout
        for part in layout.values():
            yield from nodes_of(part)


@pytest.fixture(scope='module')
def rviz() -> dict:
    return yaml.safe_load((CHECKOUT / 'config' / 'visual_imu.rviz').read_text())


def test_rviz_shows_only_what_it_brings_along(rviz):
    manager = rviz['Visualization Manager']
    kinds = {'displays': ([entry['Class'] for entry in manager['Displays']], RVIZ_DISPLAYS),
             'tools': ([entry['Class'] for entry in manager['Tools']], RVIZ_TOOLS),
             'views': ([manager['Views']['Current']['Class']], RVIZ_VIEWS)}
    for used, known in kinds.values():
        assert used and {name.removeprefix('rviz_default_plugins/') for name in used} <= known
        assert all(name.startswith('rviz_default_plugins/') for name in used)
    panels = {entry['Class'].removeprefix('rviz_common/') for entry in rviz['Panels']}
    assert panels <= RVIZ_PANELS


def test_rviz_shows_the_overlay_both_rates_frames_and_the_filter(rviz):
    shown = {(entry['Class'].partition('/')[2], entry.get('Topic', {}).get('Value'))
             for entry in rviz['Visualization Manager']['Displays'] if entry['Enabled']}
    assert {('Image', 'visual_imu/overlay'), ('TwistStamped', 'imu_arrows/estimate'),
            ('TwistStamped', 'imu_arrows/reference'), ('TF', None), ('Axes', None),
            ('Odometry', 'odometry/filtered')} <= shown


def test_foxglove_lays_out_every_panel_and_plots_fields_that_exist():
    layout = json.loads((CHECKOUT / 'config' / 'foxglove.json').read_text())
    placed = {value for node in nodes_of(layout['layout']) for value in node.values()
              if isinstance(value, str) and '!' in value}
    assert placed == set(layout['configById'])
    types = {'/visual_imu/imu/data_raw': Imu, '/imu/data': Imu,
             '/visual_imu/motion': MotionEstimateMsg}
    paths = [path['value'] for panel in layout['configById'].values()
             for path in panel.get('paths', [])]
    for path in paths:
        topic, *fields = re.split(r'\.', path)
        value = types[topic]()
        for field in fields:
            value = getattr(value, field)
        assert isinstance(value, float), path
