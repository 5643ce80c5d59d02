"""Cameras as their drivers differ: exposures, rectification, rotation, changes while running."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('image_as_imu_ros.msg')

from conftest import make_blurred_sequence
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from image_as_imu_ros.msg import MotionEstimate
from lifecycle_msgs.msg import Transition
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image, RegionOfInterest
from spinning import Spinner
from std_msgs.msg import Header
from test_node import DEADLINE_S, FRAME_ID, Rig, activate, vector

from image_as_imu_ros.errors import ConfigError, InputError
from image_as_imu_ros.ros.camera_metadata import MESSAGE_SOURCES, is_rectified, v4l2_exposure_s
from image_as_imu_ros.ros.conversions import intrinsics_from_msg, ns_to_stamp

# What the drivers tell


def exposure_of(source: str, msg: Any) -> float:
    return MESSAGE_SOURCES[source].read(msg).exposure_time


def realsense(json_data: str, frame_id: str = 'camera_color_optical_frame') -> SimpleNamespace:
    """A `realsense2_camera_msgs/Metadata`, by its fields."""
    return SimpleNamespace(header=Header(stamp=ns_to_stamp(5), frame_id=frame_id),
                           json_data=json_data)


def libcamera(**values: str) -> DiagnosticArray:
    """What camera_ros tells of an image."""
    pairs = [KeyValue(key=key, value=value) for key, value in values.items()]
    return DiagnosticArray(header=Header(stamp=ns_to_stamp(5)),
                           status=[DiagnosticStatus(values=pairs)])


def test_drivers_microseconds_become_seconds():
    metadata = realsense('{"frame_number":7,"clock_domain":"global_time",'
                         '"actual_exposure":8500,"auto_exposure":0}')
    assert exposure_of('realsense', metadata) == pytest.approx(0.0085)
    flir = SimpleNamespace(header=Header(), exposure_time=4000, gain=1.0)
    assert exposure_of('flir', flir) == pytest.approx(0.004)
    assert exposure_of('libcamera', libcamera(AnalogueGain='2.0', ExposureTime='9987')) == (
        pytest.approx(0.009987))


def test_stamp_of_the_image_is_kept():
    read = MESSAGE_SOURCES['libcamera'].read(libcamera(ExposureTime='10'))
    assert read.header.stamp == ns_to_stamp(5)


@pytest.mark.parametrize('json_data', ['', 'no json', '[]', '7', '{}', '{"actual_exposure":null}'])
def test_metadata_without_an_exposure_is_no_exposure(json_data):
    with pytest.raises(InputError, match='actual_exposure'):
        exposure_of('realsense', realsense(json_data))


def test_auto_exposure_of_a_realsense_counts_where_the_sensor_tells_it():
    automatic = '{"actual_exposure":166,"auto_exposure":1}'
    with pytest.raises(InputError, match='enable_auto_exposure'):
        exposure_of('realsense', realsense(automatic))
    infrared = realsense(automatic, 'camera_infra1_optical_frame')
    assert exposure_of('realsense', infrared) == pytest.approx(166e-6)


def test_diagnostics_of_others_are_no_exposure():
    for msg in (DiagnosticArray(), libcamera(temperature='40'), libcamera(ExposureTime='long')):
        with pytest.raises(InputError):
            exposure_of('libcamera', msg)


@pytest.mark.parametrize('values, expected', [
    ({'auto_exposure': 1, 'exposure_time_absolute': 100}, 0.01),
    ({'auto_exposure': 3, 'exposure_time_absolute': 100}, None),
    ({'exposure_auto': 1, 'exposure_absolute': 157}, 0.0157),
    ({'exposure_auto': 3, 'exposure_absolute': 157}, None),
    ({'exposure_absolute': 50}, 0.005), ({'exposure_time_absolute': 0}, None), ({}, None)])
def test_v4l2_exposure_counts_where_it_is_set_by_hand(values, expected):
    assert v4l2_exposure_s(values) == (expected and pytest.approx(expected))


@pytest.mark.parametrize('source, package', [
    ('realsense', 'realsense2_camera_msgs'), ('flir', 'flir_camera_msgs')])
def test_missing_message_packages_are_named(source, package, monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f'{package}.msg', None)
    with pytest.raises(ConfigError, match=f'{package}, which is not installed'):
        MESSAGE_SOURCES[source].message_type()


@pytest.mark.parametrize('source', ['realsense', 'flir'])
def test_real_messages_have_the_fields_that_are_read(source):
    pytest.importorskip(f'{MESSAGE_SOURCES[source].package}.msg')
    msg = MESSAGE_SOURCES[source].message_type()()
    if source == 'realsense':
        msg.json_data = '{"actual_exposure":12000}'
    else:
        msg.exposure_time = 12000
    assert exposure_of(source, msg) == pytest.approx(0.012)


# Rectified images


def camera_info(**changes: Any) -> CameraInfo:
    """Distorted camera of 640x480 px, whose rectified images have another focal length."""
    values = {'width': 640, 'height': 480, 'distortion_model': 'plumb_bob',
              'd': [-0.3, 0.1, 0.0, 0.0, 0.0],
              'k': [500.0, 0, 320, 0, 510, 240, 0, 0, 1],
              'p': [450.0, 0, 310, -45, 0, 455, 235, 0, 0, 0, 1, 0]}
    return CameraInfo(**(values | changes))


def test_p_alone_describes_rectified_images():
    raw, rectified = (intrinsics_from_msg(camera_info(), flag) for flag in (False, True))
    assert raw.distortion_model == 'plumb_bob' and raw.fx_px == 500.0
    assert rectified.distortion_model == 'pinhole' and rectified.distortion == ()
    assert (rectified.fx_px, rectified.fy_px, rectified.cx_px, rectified.cy_px) == (
        450.0, 455.0, 310.0, 235.0)


def test_region_and_binning_hold_for_rectified_images_too():
    roi = RegionOfInterest(x_offset=100, y_offset=60, width=400, height=300)
    part = intrinsics_from_msg(camera_info(roi=roi, binning_x=2, binning_y=2), True)
    assert (part.width_px, part.height_px) == (200, 150)
    assert part.fx_px == 225.0
    assert part.cx_px == pytest.approx((310 - 100 + 0.5) / 2 - 0.5)


def test_rectified_images_without_p_are_refused():
    with pytest.raises(InputError, match=r'P\[0\] = 0.*rectified'):
        intrinsics_from_msg(camera_info(p=[0.0] * 12), True)


@pytest.mark.parametrize('told, topic, expected', [
    ('auto', '/left/image_rect', True), ('auto', '/camera/infra1/image_rect_raw', True),
    ('auto', '/left/image_rect_color', True), ('auto', '/rectangle/image_raw', False),
    ('yes', '/left/image_raw', True), ('no', '/left/image_rect', False)])
def test_rectified_images_are_known_by_their_topic(told, topic, expected):
    assert is_rectified(told, topic) is expected


# Over DDS


def test_exposure_of_libcamera_reaches_the_estimate(blurred_sequence):
    with Rig(blurred_sequence, exposure_source='libcamera', exposure_time=0.0) as peer:
        activate(peer)
        publisher = peer.create_publisher(DiagnosticArray, '/diagnostics', 10)
        for _ in range(2):
            info, exposure, image = peer.next_frame()
            told = libcamera(ExposureTime='10000')
            told.header.stamp = image.header.stamp
            publisher.publish(told)
            motion = peer.send((info, exposure, image))
    assert motion.exposure_source == MotionEstimate.EXPOSURE_TOPIC
    assert motion.exposure_time == pytest.approx(0.01)


def test_exposure_of_a_v4l2_driver_is_followed(blurred_sequence):
    rig = Rig(blurred_sequence, exposure_source='v4l2', exposure_node='/camera', exposure_time=0.0)
    with rig as peer:
        driver = Node('camera', context=rig.context)
        driver.declare_parameter('auto_exposure', 1)
        driver.declare_parameter('exposure_time_absolute', 100)
        spinner = Spinner(driver, rig.context)
        activate(peer)
        peer.wait(lambda: rig.node._driver_exposure.exposure_s is not None, 'the exposure')
        motion = peer.send()
        spinner.stop()
    assert motion.exposure_time == pytest.approx(0.01)
    assert motion.exposure_source == MotionEstimate.EXPOSURE_PARAMETER


def test_v4l2_needs_the_name_of_the_driver(blurred_sequence):
    with Rig(blurred_sequence, exposure_source='v4l2') as peer:
        assert peer.change_state(Transition.TRANSITION_CONFIGURE)
        assert not peer.change_state(Transition.TRANSITION_ACTIVATE)
        peer.wait(lambda: 'exposure_node' in peer.status.message)


@pytest.mark.parametrize('angle', [90, 180, 270])
def test_rotated_images_give_the_motion_of_the_upright_camera(blurred_sequence, angle):
    answers = []
    for rotation in (0, angle):
        with Rig(blurred_sequence, image_rotation=rotation) as peer:
            activate(peer)
            for _ in range(3):
                info, exposure, image = peer.next_frame()
                if rotation:
                    image = turned_clockwise(image, rotation)
                motion = peer.send((info, exposure, image))
            answers.append(vector(motion.angular_velocity))
    np.testing.assert_allclose(*answers, atol=1e-6)


def turned_clockwise(image: Image, angle: int) -> Image:
    """The image as a driver turns it."""
    pixels = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)
    pixels = np.rot90(pixels, -angle // 90)
    height, width = pixels.shape[:2]
    msg = Image(header=image.header, height=height, width=width, encoding='rgb8', step=3 * width)
    msg.data.frombytes(pixels.tobytes())
    return msg


def cropped(info: CameraInfo, image: Image, left: int, top: int, width: int, height: int
            ) -> tuple[CameraInfo, Image]:
    """The frame as a driver sends it after its region of interest was changed."""
    pixels = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)
    part = pixels[top:top + height, left:left + width]
    msg = Image(header=image.header, height=height, width=width, encoding='rgb8', step=3 * width)
    msg.data.frombytes(part.tobytes())
    changed = CameraInfo(header=info.header, width=info.width, height=info.height,
                         distortion_model=info.distortion_model, d=info.d, k=info.k)
    changed.roi = RegionOfInterest(x_offset=left, y_offset=top, width=width, height=height)
    return changed, msg


def test_region_of_interest_that_changes_while_running(blurred_sequence):
    """Each image comes with its own camera_info: none is dropped, and the rates go on."""
    estimates, truth = [], []
    with Rig(blurred_sequence) as peer:
        activate(peer)
        for index in range(12):
            info, exposure, image = peer.next_frame()
            if index >= 6:
                info, image = cropped(info, image, 40, 24, 240, 192)
            motion = peer.send((info, exposure, image))
            estimates.append(motion)
            truth.append(blurred_sequence.frames[index].angular_velocity_rad_s)
        assert int(peer.value('images dropped')) == 0
    signed = [(vector(motion.angular_velocity), rate) for motion, rate in zip(estimates, truth)
              if motion.sign_resolved]
    assert not estimates[6].sign_resolved, 'another image than before: it starts anew'
    assert sum(motion.sign_resolved for motion in estimates[7:]) == 5
    errors = [np.linalg.norm(rate - expected) for rate, expected in signed]
    assert np.median(errors) < 1.0


def test_auto_exposure_changes_the_blur_and_not_the_rates():
    """Exposures of 5, 10 and 15 ms in turn, each told: the rates are the same as ever."""
    exposures_s = (0.005, 0.010, 0.015)
    sequences = [make_blurred_sequence(12, 7, exposure_s=value) for value in exposures_s]
    errors, speeds = [], []
    with Rig(sequences[0], use_exposure_topic=True, exposure_time=0.0,
             stamp_reference='start') as peer:
        activate(peer)
        for index in range(12):
            sequence = sequences[index % 3]
            peer._sequence = sequence
            motion = peer.send()
            assert motion.exposure_time == sequence.exposure_time_s
            if motion.sign_resolved:
                expected = sequence.frames[index].angular_velocity_rad_s
                errors.append(np.linalg.norm(vector(motion.angular_velocity) - expected))
                speeds.append(np.linalg.norm(expected))
    assert len(errors) >= 9
    assert np.sqrt(np.mean(np.square(errors))) < 0.3 * np.sqrt(np.mean(np.square(speeds)))


def test_portrait_images_are_measured(blurred_sequence):
    """Cut from the middle, higher than wide."""
    errors = []
    with Rig(blurred_sequence) as peer:
        activate(peer)
        for index in range(8):
            info, exposure, image = peer.next_frame()
            motion = peer.send((*cropped(info, image, 80, 0, 160, 240)[:1], exposure,
                                cropped(info, image, 80, 0, 160, 240)[1]))
            if motion.sign_resolved:
                expected = blurred_sequence.frames[index].angular_velocity_rad_s
                errors.append(np.linalg.norm(vector(motion.angular_velocity) - expected))
    assert len(errors) >= 6 and np.median(errors) < 1.5
    assert motion.header.frame_id == FRAME_ID


def test_overlay_is_made_only_while_someone_looks(blurred_sequence):
    rig = Rig(blurred_sequence)
    with rig as peer:
        activate(peer)
        peer.send()
        assert rig.node._overlay._thread is None
        pictures = []
        subscription = peer.create_subscription(Image, 'visual_imu/overlay', pictures.append, 1)
        peer.wait(lambda: rig.node.count_subscribers('visual_imu/overlay') == 1)
        peer.wait(lambda: rig.node._overlay._publisher.get_subscription_count() == 1)
        motion = peer.send()
        # where the node was slow, the image before is drawn as well
        peer.wait(lambda: pictures and pictures[-1].header == motion.header, '~/overlay',
                  DEADLINE_S)
        peer.destroy_subscription(subscription)
        peer.wait(lambda: rig.node._overlay._publisher.get_subscription_count() == 0)
        count = len(pictures)
        peer.send()
    assert len(pictures) == count
    picture = pictures[-1]
    assert (picture.width, picture.height, picture.encoding) == (320, 240, 'rgb8')
    sent = np.frombuffer(peer.frame(1, 1)[2].data, np.uint8)
    drawn = np.frombuffer(picture.data, np.uint8)
    assert 0.02 < np.mean(sent != drawn) < 0.9
