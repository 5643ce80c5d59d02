"""The node over real DDS: known motion in, values out; what is wrong is dropped and counted."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('image_as_imu_ros.msg')

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import TransformStamped, TwistWithCovarianceStamped
from image_as_imu_ros.msg import ExposureTime, MotionEstimate
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import SetParameters
from rclpy.context import Context
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import (
    DurabilityPolicy,
    QoSProfile,
    ReliabilityPolicy,
    qos_profile_sensor_data,
)
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, Imu
from spinning import Spinner

from image_as_imu_ros.config import EstimatorConfig
from image_as_imu_ros.estimator import VisualGyroscope
from image_as_imu_ros.geometry.alignment import PairAligner
from image_as_imu_ros.geometry.relative_blur import RelativeBlurSolver
from image_as_imu_ros.ros.conversions import ns_to_stamp, stamp_to_ns
from image_as_imu_ros.ros.node import VisualImu, warm_up
from image_as_imu_ros.ros.transforms import optical_transform
from image_as_imu_ros.stream import StreamEstimator

FRAME_ID = 'camera_optical_frame'
DEADLINE_S = 30.0
END_DEADLINE_S = 2.0
START_DEADLINE_S = 90.0
"""Of a process that imports torch, on a busy machine."""
START_NS = 1_700_000_000_000_000_000


class Peer(Node):
    """A camera that publishes the test sequence, and a listener to all that the node says."""

    def __init__(self, sequence, context: Context | None = None, compressed: bool = False):
        super().__init__('peer', context=context)
        self._sequence = sequence
        self._changed = threading.Condition()
        self.sent = 0
        self.received: dict[str, list[Any]] = {}
        self.image_publisher = self.create_publisher(
            *((CompressedImage, 'image/compressed') if compressed else (Image, 'image')),
            qos_profile_sensor_data)
        self.camera_info_publisher = self.create_publisher(CameraInfo, 'camera_info', 10)
        self.exposure_publisher = self.create_publisher(ExposureTime, 'exposure_time', 10)
        self.clock_publisher = self.create_publisher(Clock, '/clock', 10)
        self._node_services = {
            service: self.create_client(kind, f'visual_imu/{service}')
            for service, kind in (('change_state', ChangeState), ('get_state', GetState),
                                  ('set_parameters', SetParameters))}
        for topic, kind in (('imu/data_raw', Imu), ('twist', TwistWithCovarianceStamped),
                            ('motion', MotionEstimate)):
            self._listen(kind, f'visual_imu/{topic}', topic)
        self._listen(DiagnosticArray, '/diagnostics', 'diagnostics')

    def _listen(self, kind: type, topic: str, key: str) -> None:
        self.received[key] = []

        def keep(msg: Any) -> None:
            with self._changed:
                self.received[key].append(msg)
                self._changed.notify_all()
        self.create_subscription(kind, topic, keep, 50)

    def wait(self, condition: Callable[[], Any], what: str = 'what the test expects',
             deadline_s: float = DEADLINE_S) -> None:
        """Until the condition holds, which may depend on anything received."""
        with self._changed:
            deadline = time.monotonic() + deadline_s
            while not condition():
                assert time.monotonic() < deadline, f'waited in vain for {what}'
                self._changed.wait(0.02)

    def call(self, service: str, request: Any) -> Any:
        """Response of a service of the node."""
        client = self._node_services[service]
        self.wait(client.service_is_ready, f'the service {service}')
        future = client.call_async(request)
        self.wait(future.done, f'the response of {service}')
        return future.result()

    def change_state(self, transition: int) -> bool:
        request = ChangeState.Request(transition=Transition(id=transition))
        return self.call('change_state', request).success

    def state(self) -> int:
        return self.call('get_state', GetState.Request()).current_state.id

    def set_parameters_of_node(self, **values: Any) -> None:
        request = SetParameters.Request(parameters=[
            Parameter(name, value=value).to_parameter_msg() for name, value in values.items()])
        response = self.call('set_parameters', request)
        assert all(result.successful for result in response.results)

    def wait_until_matched(self, deadline_s: float = DEADLINE_S) -> None:
        """Until the node listens to the camera, and this node to it."""
        self.wait(lambda: (self.image_publisher.get_subscription_count() == 1
                           and self.camera_info_publisher.get_subscription_count() == 1
                           and self.count_publishers('visual_imu/motion') == 1), 'discovery',
                  deadline_s)

    @property
    def status(self) -> DiagnosticStatus:
        """Newest status of the node."""
        self.wait(lambda: self.received['diagnostics'], 'diagnostics')
        return self.received['diagnostics'][-1].status[0]

    @property
    def node_values(self) -> dict[str, str]:
        """Every line of the newest diagnostics."""
        return {pair.key: pair.value for pair in self.status.values}

    def value(self, key: str) -> str:
        """Value of the newest diagnostics."""
        return self.node_values[key]

    def frame(self, index: int, stamp_ns: int) -> tuple[CameraInfo, ExposureTime, Image]:
        """Messages of one frame of the sequence."""
        image, matrix = self._sequence.frames[index].image, self._sequence.camera_matrix
        height, width = image.shape[:2]
        image_msg = Image(height=height, width=width, encoding='rgb8', step=3 * width)
        image_msg.data.frombytes(image.tobytes())
        info = CameraInfo(width=width, height=height, distortion_model='plumb_bob',
                          d=[0.0] * 5, k=matrix.ravel())
        exposure = ExposureTime(exposure_time=self._sequence.exposure_time_s)
        for msg in (info, exposure, image_msg):
            msg.header.stamp, msg.header.frame_id = ns_to_stamp(stamp_ns), FRAME_ID
        return info, exposure, image_msg

    def publish(self, info: CameraInfo, exposure: ExposureTime, image: Any) -> None:
        """Publish one frame; its camera_info has arrived before the image leaves."""
        self.camera_info_publisher.publish(info)
        assert self.camera_info_publisher.wait_for_all_acked(Duration(seconds=DEADLINE_S))
        self.exposure_publisher.publish(exposure)
        self.image_publisher.publish(image)

    def next_frame(self) -> tuple[CameraInfo, ExposureTime, Image]:
        """Messages of the next frame; the sequence runs to and fro, in steady time."""
        count = len(self._sequence.frames)
        index = self.sent % (2 * count - 2)
        stamp_ns = START_NS + round(self.sent * self._sequence.interval_s * 1e9)
        self.sent += 1
        return self.frame(min(index, 2 * count - 2 - index), stamp_ns)

    def send(self, frame: tuple[CameraInfo, ExposureTime, Any] | None = None,
             deadline_s: float = DEADLINE_S) -> MotionEstimate:
        """Publish a frame (the next one unless told) and wait for the node's answer to it."""
        answers = len(self.received['motion'])
        self.publish(*(frame or self.next_frame()))
        self.wait(lambda: len(self.received['motion']) > answers, 'an answer on ~/motion',
                  deadline_s)
        return self.received['motion'][-1]


class Rig:
    """A node under test and its peer, in one process, over DDS."""

    domains = (1 + (os.getpid() + count) % 100 for count in itertools.count(1))

    def __init__(self, sequence, compressed: bool = False, **parameters: Any) -> None:
        self.context = Context()
        # A domain of its own: the one before may not have left the graph yet.
        rclpy.init(context=self.context, domain_id=next(self.domains))
        values = {'diagnostics_period': 0.1, 'max_latency': 0.0, 'estimator.device': 'cpu',
                  'estimator.threads': 1,
                  'qos_overrides./camera_info.subscription.reliability': 'reliable',
                  'exposure_time': sequence.exposure_time_s} | parameters
        self.node = VisualImu(context=self.context, parameter_overrides=[
            Parameter(name, value=value) for name, value in values.items()])
        self.peer = Peer(sequence, self.context, compressed)
        self._spinners = [Spinner(node, self.context) for node in (self.node, self.peer)]

    def __enter__(self) -> Peer:
        return self.peer

    def __exit__(self, *error: object) -> None:
        for spinner in self._spinners:
            spinner.stop()
        self.context.shutdown()


def activate(peer: Peer) -> Peer:
    assert peer.change_state(Transition.TRANSITION_CONFIGURE)
    assert peer.change_state(Transition.TRANSITION_ACTIVATE)
    peer.wait_until_matched()
    return peer


@pytest.fixture
def peer(blurred_sequence):
    """Peer of an active node."""
    with Rig(blurred_sequence) as peer:
        yield activate(peer)


@pytest.fixture(scope='class')
def lasting(blurred_sequence):
    """Peer of an active node with per-frame exposures, for the tests of a class."""
    with Rig(blurred_sequence, use_exposure_topic=True, exposure_time=0.0) as peer:
        yield activate(peer)


# Known motion


@dataclass(frozen=True)
class Answers:
    """What the node said to the sequence, by stamp; `truth` by frame."""

    imu: dict[int, Imu]
    twist: dict[int, TwistWithCovarianceStamped]
    motion: dict[int, MotionEstimate]
    stamps_ns: list[int]
    truth: np.ndarray


@pytest.fixture(scope='module')
def answers(blurred_sequence):
    """The whole sequence through the node, at 30 Hz stamps and the pace of the answers."""
    with Rig(blurred_sequence) as peer:
        activate(peer)
        for _ in blurred_sequence.frames:
            peer.send()
        usable = sum(msg.sign_resolved for msg in peer.received['motion'])
        peer.wait(lambda: len(peer.received['twist']) == usable, '~/twist of each usable frame')
        by_stamp = {key: {stamp_to_ns(msg.header.stamp): msg for msg in peer.received[key]}
                    for key in ('imu/data_raw', 'twist', 'motion')}
    middle_s = [frame.start_s + blurred_sequence.exposure_time_s / 2
                for frame in blurred_sequence.frames]
    return Answers(
        by_stamp['imu/data_raw'], by_stamp['twist'], by_stamp['motion'],
        [START_NS + round(time_s * 1e9) for time_s in middle_s],
        np.array([frame.angular_velocity_rad_s for frame in blurred_sequence.frames]))


def vector(msg: Any) -> np.ndarray:
    return np.array([msg.x, msg.y, msg.z])


def test_every_frame_is_answered_at_its_mid_exposure(answers):
    assert sorted(answers.motion) == pytest.approx(answers.stamps_ns, abs=2)
    assert len(answers.imu) >= len(answers.stamps_ns) - 3  # the first has no sign


def test_angular_velocity_is_the_known_one_with_its_sign(answers):
    stamps_ns = np.array(answers.stamps_ns)
    estimates = np.array([vector(msg.angular_velocity) for msg in answers.imu.values()])
    truth = answers.truth[[np.abs(stamps_ns - stamp).argmin() for stamp in answers.imu]]
    errors = np.linalg.norm(estimates - truth, axis=1)
    assert np.sqrt(np.mean(errors ** 2)) < 0.25 * np.sqrt(np.mean(np.sum(truth ** 2, axis=1)))
    assert np.mean(np.sum(estimates * truth, axis=1) > 0) > 0.9


def test_imu_is_flagged_as_a_gyroscope_with_a_believable_covariance(answers):
    for msg in answers.imu.values():
        assert msg.header.frame_id == FRAME_ID
        assert msg.orientation_covariance[0] == -1.0
        assert msg.linear_acceleration_covariance[0] == -1.0
        covariance = np.reshape(msg.angular_velocity_covariance, (3, 3))
        np.testing.assert_allclose(covariance, covariance.T)
        assert np.linalg.eigvalsh(covariance).min() > 0.0
        assert np.sqrt(np.diag(covariance)).max() < 10.0


def test_twist_agrees_with_imu(answers):
    assert sorted(answers.twist) == sorted(answers.imu)
    for stamp_ns, msg in answers.twist.items():
        assert msg.header.frame_id == FRAME_ID
        imu = answers.imu[stamp_ns]
        assert msg.twist.twist.angular == imu.angular_velocity
        covariance = np.reshape(msg.twist.covariance, (6, 6))
        np.testing.assert_array_equal(
            covariance[3:, 3:], np.reshape(imu.angular_velocity_covariance, (3, 3)))
        assert np.isfinite(vector(msg.twist.twist.linear)).all()
        assert np.linalg.eigvalsh(covariance).min() > 0.0


def test_motion_tells_exposure_and_sign_state(answers, blurred_sequence):
    for stamp_ns, msg in answers.motion.items():
        assert msg.header.frame_id == FRAME_ID
        assert msg.exposure_time == blurred_sequence.exposure_time_s
        assert msg.exposure_source == MotionEstimate.EXPOSURE_PARAMETER
        assert (msg.sign_resolved and msg.status in (msg.OK, msg.PREDICTED)) == (
            stamp_ns in answers.imu)
        assert np.isfinite(msg.covariance).all()
        assert 0.0 < msg.processing_latency < DEADLINE_S


def test_compressed_images_give_the_same_motion(answers, blurred_sequence):
    with Rig(blurred_sequence, compressed=True, image_transport='compressed') as peer:
        activate(peer)
        for _ in range(3):
            info, exposure, raw = peer.next_frame()
            pixels = np.frombuffer(raw.data, np.uint8).reshape(raw.height, raw.width, 3)
            msg = CompressedImage(header=raw.header, format='png')
            msg.data.frombytes(cv2.imencode('.png', pixels[..., ::-1])[1].tobytes())
            motion = peer.send((info, exposure, msg))
    expected = answers.motion[stamp_to_ns(motion.header.stamp)]
    np.testing.assert_allclose(
        vector(motion.angular_velocity), vector(expected.angular_velocity), atol=1e-3)


# Bad input

NAN = float('nan')


def edit(which: str, **changes: Any) -> Callable:
    """Change fields of one message of a frame; a callable is given the present value."""
    def spoil(info: CameraInfo, exposure: ExposureTime, image: Image) -> None:
        msg = {'info': info, 'exposure': exposure, 'image': image}[which]
        for name, change in changes.items():
            target = msg.header if hasattr(msg.header, name) else msg
            setattr(target, name, change(getattr(target, name)) if callable(change) else change)
    return spoil


BAD_FRAMES = {
    'truncated data': ('bad image', edit('image', data=lambda data: data[:-1000])),
    'data too long': ('bad image', edit('image', data=lambda data: data + data)),
    'no data': ('bad image', edit('image', data=[])),
    'unknown encoding': ('bad image', edit('image', encoding='nv99')),
    'step too small': ('bad image', edit('image', step=100)),
    'no width': ('bad image', edit('image', width=0)),
    'no stamp': ('zero stamp', edit('image', stamp=ns_to_stamp(0))),
    'an older stamp': ('out of order',
                       edit('image', stamp=lambda stamp: ns_to_stamp(stamp_to_ns(stamp) - 10**8))),
    'zero intrinsics': ('bad camera_info', edit('info', k=[0.0] * 9)),
    'NaN intrinsics': ('bad camera_info', edit('info', k=[NAN] * 9)),
    'another size': ('bad camera_info', edit('info', width=640, height=480)),
    'unknown distortion': ('bad camera_info',
                           edit('info', distortion_model='mystery', d=[0.1])),
    'exposure NaN': ('bad exposure', edit('exposure', exposure_time=NAN)),
    'exposure zero': ('bad exposure', edit('exposure', exposure_time=0.0)),
    'exposure negative': ('bad exposure', edit('exposure', exposure_time=-0.01)),
    'exposure in ms': ('bad exposure', edit('exposure', exposure_time=10.0)),
    'readout NaN': ('bad exposure', edit('exposure', readout_time=NAN)),
}


class TestFrames:
    """Single frames to one long-lived node."""

    @pytest.mark.parametrize('cause, spoil', BAD_FRAMES.values(), ids=BAD_FRAMES.keys())
    def test_bad_frame_is_dropped_and_counted_and_the_next_one_passes(self, lasting, cause, spoil):
        lasting.send()
        drops = int(lasting.value(f'dropped: {cause}'))
        answers = len(lasting.received['motion'])
        bad = lasting.next_frame()
        spoil(*bad)
        lasting.publish(*bad)
        lasting.wait(lambda: int(lasting.value(f'dropped: {cause}')) > drops, f'a drop by {cause}')
        assert int(lasting.value(f'dropped: {cause}')) == drops + 1
        assert lasting.value('last drop').startswith(f'{cause}: ')
        assert len(lasting.received['motion']) == answers
        motion = lasting.send()
        assert motion.exposure_source == MotionEstimate.EXPOSURE_TOPIC

    def test_image_without_frame_id_takes_that_of_its_camera_info(self, lasting):
        frame = lasting.next_frame()
        frame[2].header.frame_id = ''
        assert lasting.send(frame).header.frame_id == FRAME_ID

    def test_image_without_any_frame_id_is_dropped(self, lasting):
        drops = int(lasting.value('dropped: no frame_id'))
        frame = lasting.next_frame()
        frame[0].header.frame_id = frame[2].header.frame_id = ''
        lasting.publish(*frame)
        lasting.wait(lambda: int(lasting.value('dropped: no frame_id')) == drops + 1)
        lasting.send()

    def test_frame_without_its_exposure_message_goes_by_the_parameter(self, lasting):
        lasting.set_parameters_of_node(exposure_time=0.004)
        info, _, image = lasting.next_frame()
        other = lasting.frame(0, START_NS - 10**9)[1]
        motion = lasting.send((info, other, image))
        lasting.set_parameters_of_node(exposure_time=0.0)
        assert motion.exposure_source == MotionEstimate.EXPOSURE_PARAMETER
        assert motion.exposure_time == 0.004

    def test_exposure_that_comes_after_its_image_is_waited_for(self, lasting):
        info, exposure, image = lasting.next_frame()
        answers = len(lasting.received['motion'])
        lasting.image_publisher.publish(image)
        time.sleep(0.01)  # less than the node waits
        lasting.exposure_publisher.publish(exposure)
        lasting.wait(lambda: len(lasting.received['motion']) > answers)
        assert lasting.received['motion'][-1].exposure_source == MotionEstimate.EXPOSURE_TOPIC


def test_image_without_camera_info_is_dropped_and_diagnosed_as_error(peer):
    peer.image_publisher.publish(peer.next_frame()[2])
    peer.wait(lambda: int(peer.value('dropped: no camera_info')) == 1)
    assert peer.status.level == DiagnosticStatus.ERROR
    assert 'camera_info' in peer.status.message
    peer.send()


def test_unexpected_errors_and_estimates_that_are_not_finite_are_survived(
        blurred_sequence, monkeypatch):
    rig = Rig(blurred_sequence)
    with rig as peer:
        activate(peer)
        peer.send()
        join = rig.node._stream.join

        def break_down(observation):
            raise RuntimeError('a bug')

        def not_finite(observation):
            return replace(join(observation), angular_velocity_rad_s=np.full(3, NAN))
        for fault, cause in ((break_down, 'internal error'),
                             (not_finite, 'estimate not finite')):
            monkeypatch.setattr(rig.node._stream, 'join', fault)
            peer.publish(*peer.next_frame())
            peer.wait(lambda: int(peer.value(f'dropped: {cause}')) == 1, cause)  # noqa: B023
            monkeypatch.undo()
            peer.send()


def test_newest_frame_wins_and_replaced_ones_are_counted(blurred_sequence):
    # bands of rows, so that an estimate takes longer than a burst's images are apart
    with Rig(blurred_sequence, readout_time=0.01, **{'stream.subframe_rates': 16}) as peer:
        activate(peer)
        peer.send()
        burst = [peer.next_frame() for _ in range(10)]
        for frame in burst:
            peer.image_publisher.publish(frame[2])
            time.sleep(0.005)  # slow enough for DDS to deliver each
        last = stamp_to_ns(burst[-1][2].header.stamp)
        peer.wait(lambda: stamp_to_ns(peer.received['motion'][-1].header.stamp) > last)
        peer.wait(lambda: int(peer.value('images received')) == (
            int(peer.value('images estimated')) + int(peer.value('images dropped'))))
        assert int(peer.value('dropped: busy')) == int(peer.value('images dropped')) > 0


# Time


@pytest.mark.parametrize('reference, shift_s', [
    ('start', 0.005 + 0.008), ('middle', 0.0), ('end', -0.005 - 0.008)])
def test_stamp_is_the_middle_of_the_centre_rows_exposure(peer, reference, shift_s):
    peer.set_parameters_of_node(stamp_reference=reference, readout_time=0.016)
    frame = peer.next_frame()
    motion = peer.send(frame)
    assert stamp_to_ns(motion.header.stamp) - stamp_to_ns(frame[2].header.stamp) == (
        pytest.approx(shift_s * 1e9, abs=1))


def test_stamps_are_moved_to_the_clock_of_other_sensors(peer):
    peer.set_parameters_of_node(stamp_reference='middle', time_offset=-0.25)
    frame = peer.next_frame()
    motion = peer.send(frame)
    assert stamp_to_ns(motion.header.stamp) == stamp_to_ns(frame[2].header.stamp) - 250_000_000


def test_old_frames_are_dropped_with_the_remedy(peer):
    peer.send()
    peer.set_parameters_of_node(max_latency=0.5)
    peer.publish(*peer.next_frame())
    peer.wait(lambda: int(peer.value('dropped: late')) == 1)
    assert 'max_latency' in peer.value('last drop')
    now_ns = peer.get_clock().now().nanoseconds
    peer.send(peer.frame(1, now_ns))
    peer.set_parameters_of_node(time_offset=0.9)  # of a clock that is so much behind
    peer.send(peer.frame(2, now_ns - 800_000_000))


def test_looping_bag_with_a_simulated_clock(blurred_sequence):
    with Rig(blurred_sequence, use_sim_time=True, max_latency=0.5) as peer:
        activate(peer)
        for _loop in range(2):
            peer.sent = 0
            for _ in range(20):
                frame = peer.next_frame()
                peer.clock_publisher.publish(Clock(clock=frame[2].header.stamp))
                peer.send(frame)
            assert int(peer.value('images dropped')) == 0
        peer.wait(lambda: int(peer.value('time jumps')) == 1)
        stamps = [stamp_to_ns(msg.header.stamp) for msg in peer.received['imu/data_raw']]
        assert sum(later < earlier for earlier, later in zip(stamps, stamps[1:])) == 1
        assert stamp_to_ns(peer.received['diagnostics'][-1].header.stamp) < START_NS + 10**10
        # Against the simulated clock, not the wall clock, a frame is late.
        clock_ns = stamp_to_ns(frame[2].header.stamp) + 10**9
        peer.clock_publisher.publish(Clock(clock=ns_to_stamp(clock_ns)))
        peer.wait(lambda: stamp_to_ns(peer.received['diagnostics'][-1].header.stamp) == clock_ns)
        peer.publish(*peer.next_frame())
        peer.wait(lambda: int(peer.value('dropped: late')) == 1)


# Lifecycle


def test_lifecycle_keeps_silent_when_inactive_and_resumes(blurred_sequence):
    with Rig(blurred_sequence) as peer:
        assert peer.state() == State.PRIMARY_STATE_UNCONFIGURED
        assert peer.change_state(Transition.TRANSITION_CONFIGURE)
        assert peer.state() == State.PRIMARY_STATE_INACTIVE
        assert peer.image_publisher.get_subscription_count() == 0
        for _ in range(2):
            assert peer.change_state(Transition.TRANSITION_ACTIVATE)
            peer.wait_until_matched()
            imus = len(peer.received['imu/data_raw'])
            for _ in range(3):
                peer.send()
            peer.wait(lambda: len(peer.received['imu/data_raw']) > imus)  # noqa: B023
            assert peer.change_state(Transition.TRANSITION_DEACTIVATE)
            peer.wait(lambda: peer.image_publisher.get_subscription_count() == 0)
        peer.wait(lambda: peer.status.level == DiagnosticStatus.STALE)
        assert peer.change_state(Transition.TRANSITION_CLEANUP)
        assert peer.state() == State.PRIMARY_STATE_UNCONFIGURED
        assert peer.change_state(Transition.TRANSITION_CONFIGURE)
        assert peer.change_state(Transition.TRANSITION_INACTIVE_SHUTDOWN)
        assert peer.state() == State.PRIMARY_STATE_FINALIZED


def bad_weights(kind: str, folder: Path) -> str:
    """Name or path of weights that cannot be used."""
    if kind == 'unknown name':
        return 'no_such_weights'
    path = folder / 'weights.safetensors'
    if kind == 'corrupt':
        path.write_bytes(b'not safetensors' * 100)
    if kind == 'other architecture':
        from safetensors.numpy import save_file
        save_file({'encoder.weight': np.zeros((3, 3), np.float32)}, path)
    return str(path)


@pytest.mark.parametrize('kind', ['unknown name', 'missing', 'corrupt', 'other architecture'])
def test_configure_fails_on_bad_weights_and_says_why(blurred_sequence, tmp_path, kind):
    weights = bad_weights(kind, tmp_path)
    with Rig(blurred_sequence, **{'estimator.weights': weights}) as peer:
        assert not peer.change_state(Transition.TRANSITION_CONFIGURE)
        assert peer.state() == State.PRIMARY_STATE_UNCONFIGURED
        peer.wait(lambda: peer.status.level == DiagnosticStatus.ERROR)
        assert 'configure refused' in peer.status.message
        assert Path(weights).name in peer.status.message


def test_activate_fails_on_a_bad_quality_of_service_and_says_why(blurred_sequence):
    key = 'qos_overrides./image.subscription.reliability'
    with Rig(blurred_sequence, **{key: 'nonsense'}) as peer:
        assert peer.change_state(Transition.TRANSITION_CONFIGURE)
        assert not peer.change_state(Transition.TRANSITION_ACTIVATE)
        assert peer.state() == State.PRIMARY_STATE_INACTIVE
        peer.wait(lambda: peer.status.level == DiagnosticStatus.ERROR)
        assert 'activate refused' in peer.status.message
        assert 'nonsense' in peer.status.message


def test_output_frame_without_any_transform_is_refused(blurred_sequence, monkeypatch):
    for module in ('tf2_ros', 'tf2_msgs', 'tf2_msgs.msg'):
        monkeypatch.setitem(sys.modules, module, None)
    with Rig(blurred_sequence, output_frame='imu_link') as peer:
        assert not peer.change_state(Transition.TRANSITION_CONFIGURE)
        peer.wait(lambda: peer.status.level == DiagnosticStatus.ERROR)
        assert 'tf2_ros' in peer.status.message and 'camera_pose' in peer.status.message


def assert_rolled(motion: MotionEstimate, answers: Answers) -> None:
    """In a frame that is the robot's: the camera looks along its x, and lies on its side."""
    assert motion.header.frame_id == 'base_link'
    x, y, z = vector(answers.motion[stamp_to_ns(motion.header.stamp)].angular_velocity)
    np.testing.assert_allclose(vector(motion.angular_velocity), [z, y, -x], atol=1e-3)


def test_output_frame_is_reached_through_parameters(blurred_sequence, answers):
    with Rig(blurred_sequence, output_frame='base_link',
             camera_pose='0.1 0 0.2 1.57079633 0 0') as peer:
        activate(peer)
        assert_rolled(peer.send(), answers)


@pytest.mark.parametrize('module', ['tf2_ros', 'tf2_msgs'])
def test_output_frame_is_reached_through_tf(blurred_sequence, answers, module, monkeypatch):
    """No TF gives no message; a transform that is told once is enough."""
    pytest.importorskip(module)
    from tf2_msgs.msg import TFMessage
    if module == 'tf2_msgs':
        monkeypatch.setitem(sys.modules, 'tf2_ros', None)
    with Rig(blurred_sequence, output_frame='base_link') as peer:
        activate(peer)
        peer.publish(*peer.next_frame())
        peer.wait(lambda: int(peer.value('dropped: no transform')) == 1)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        publisher = peer.create_publisher(TFMessage, '/tf_static', latched)
        transform = TransformStamped(child_frame_id=FRAME_ID, transform=optical_transform(
            0.1, 0.0, 0.2, np.pi / 2, 0.0, 0.0))
        transform.header.frame_id = 'base_link'
        publisher.publish(TFMessage(transforms=[transform]))
        peer.wait(lambda: publisher.wait_for_all_acked(Duration(seconds=0))
                  and publisher.get_subscription_count() == 1)
        motion = peer.send()
        assert peer.change_state(Transition.TRANSITION_DEACTIVATE)
        assert peer.change_state(Transition.TRANSITION_CLEANUP)
    assert len(peer.received['motion']) == 1
    assert_rolled(motion, answers)



def test_silence_is_diagnosed_and_then_health(peer, blurred_sequence):
    peer.wait(lambda: peer.status.message == 'no images arrive')
    assert peer.status.level == DiagnosticStatus.STALE
    for _ in range(4):
        peer.send()
    peer.wait(lambda: peer.status.level == DiagnosticStatus.OK)
    assert peer.value('exposure source') == 'parameter'
    assert peer.value('device') == 'cpu'
    assert float(peer.value('input rate [Hz]')) > 0.0
    assert float(peer.value('processing p95 [ms]')) >= float(peer.value('processing p50 [ms]')) > 0


def test_quality_of_service_can_be_overridden(peer):
    (info,) = peer.get_subscriptions_info_by_topic('/image')
    assert info.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT
    (info,) = peer.get_subscriptions_info_by_topic('/camera_info')
    assert info.qos_profile.reliability == ReliabilityPolicy.RELIABLE  # as the rig asks
    (info,) = peer.get_publishers_info_by_topic('/visual_imu/imu/data_raw')
    assert info.qos_profile.reliability == ReliabilityPolicy.RELIABLE


# A process of its own


def node_process(*parameters: str) -> subprocess.Popen:
    arguments = [word for parameter in parameters for word in ('-p', parameter)]
    return subprocess.Popen(
        [sys.executable, '-m', 'image_as_imu_ros.ros.node', '--ros-args', *arguments],
        cwd=Path(__file__).parents[1], stderr=subprocess.PIPE, text=True)


def shared_memory_of(process_id: int) -> set[Path]:
    """Segments that hold the messages of a process; ports are shared with all others."""
    try:
        maps = Path(f'/proc/{process_id}/maps').read_text()
    except OSError:
        return set()
    return {Path(path) for path in re.findall(r' (/dev/shm/fast\w+_[0-9a-f]{16}\w*)$', maps, re.M)}


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_process_measures_and_ends_cleanly_on_a_signal(blurred_sequence, number):
    context = Context()
    rclpy.init(context=context)
    process = node_process('autostart:=true', 'max_latency:=0.0', 'exposure_time:=0.01',
                           'estimator.threads:=1')
    peer = Peer(blurred_sequence, context)
    spinner = Spinner(peer, context)
    try:
        peer.wait_until_matched(START_DEADLINE_S)
        deadline = time.monotonic() + DEADLINE_S
        while not peer.received['imu/data_raw']:
            assert time.monotonic() < deadline, 'no Imu came'
            with contextlib.suppress(AssertionError):  # a frame may be lost, best effort
                peer.send(deadline_s=3.0)
        shared = shared_memory_of(process.pid)
        process.send_signal(number)
        busy = max(1.0, os.getloadavg()[0] / os.cpu_count())
        _, log = process.communicate(timeout=END_DEADLINE_S * busy)
    finally:
        process.kill()
        process.wait()
        spinner.stop()
        context.shutdown()
    assert process.returncode == 0, log
    assert 'Traceback' not in log
    own = shared - shared_memory_of(os.getpid())
    assert own and not [path for path in own if path.exists()]


def test_warm_up_runs_all_that_a_stream_runs(monkeypatch):
    ran = set()
    for owner, name in ((PairAligner, 'align'), (RelativeBlurSolver, 'compare')):
        def watched(*args, name=name, run=getattr(owner, name)):
            result = run(*args)
            if result is not None:
                ran.add(name)
            return result
        monkeypatch.setattr(owner, name, watched)
    stream = StreamEstimator(VisualGyroscope(EstimatorConfig(threads=1)))
    warm_up(stream)
    assert ran == {'align', 'compare'}
    assert stream.measurement is None


OVERBURDENED = """
import sys, torch
from image_as_imu_ros.ros import node
def toil(self, observation):
    print('toiling', file=sys.stderr, flush=True)
    matrix = torch.ones(1500, 1500)
    while True:
        matrix = matrix @ matrix
node.warm_up = lambda stream: None
node.StreamEstimator.join = toil
sys.exit(node.main())
"""


def test_process_ends_cleanly_though_an_image_is_still_in_work(blurred_sequence):
    arguments = [word for parameter in ('autostart:=true', 'max_latency:=0.0',
                                        'exposure_time:=0.01', 'estimator.threads:=1')
                 for word in ('-p', parameter)]
    context = Context()
    rclpy.init(context=context)
    process = subprocess.Popen([sys.executable, '-c', OVERBURDENED, '--ros-args', *arguments],
                               cwd=Path(__file__).parents[1], stderr=subprocess.PIPE, text=True)
    peer = Peer(blurred_sequence, context)
    spinner = Spinner(peer, context)
    try:
        peer.wait_until_matched(START_DEADLINE_S)
        toiling = threading.Thread(target=lambda: next(
            line for line in process.stderr if 'toiling' in line))
        toiling.start()
        while toiling.is_alive():
            peer.publish(*peer.next_frame())
            toiling.join(0.2)
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=START_DEADLINE_S)
    finally:
        process.kill()
        process.wait()
        spinner.stop()
        context.shutdown()
    assert process.returncode == 0, log
    assert 'terminate' not in log


@pytest.mark.parametrize('parameter, complaint', [
    ('max_latency:=99.0', 'max_latency'), ('estimator.weights:=no_such_weights', 'no_such'),
    ('estimator.mask:=/no_such.png', 'cannot read "/no_such.png"')])
def test_process_that_cannot_start_says_why_and_exits_with_1(parameter, complaint):
    process = node_process('autostart:=true', parameter)
    _, log = process.communicate(timeout=START_DEADLINE_S)
    assert process.returncode == 1
    assert complaint in log
    assert 'Traceback' not in log


def test_process_that_is_interrupted_while_it_loads_ends_cleanly(tmp_path):
    checkout = Path(__file__).parents[1]
    (tmp_path / 'numba.py').write_text('raise KeyboardInterrupt')
    paths = os.pathsep.join([str(tmp_path), str(checkout)])
    process = subprocess.run(
        [sys.executable, str(checkout / 'scripts' / 'visual_imu')], stderr=subprocess.PIPE,
        text=True, check=False, env=dict(os.environ, PYTHONPATH=paths))
    assert (process.returncode, process.stderr) == (0, '')


# Rolling shutter, estimated exposure, depth, smoothing


def test_each_band_of_rows_gets_its_message(blurred_sequence):
    bands, readout_s = 4, 0.02
    with Rig(blurred_sequence, readout_time=readout_s, **{'stream.subframe_rates': bands}) as peer:
        activate(peer)
        for answers in (1, 1 + bands, 1 + 2 * bands):
            peer.publish(*peer.next_frame())
            peer.wait(lambda answers=answers: len(peer.received['motion']) >= answers,
                      'the bands of each image')
        peer.wait(lambda: len(peer.received['imu/data_raw']) == 2 * bands, 'their Imu messages')
        last = peer.received['motion'][-bands:]
    assert [msg.row_band_index for msg in last] == list(range(bands))
    assert {msg.row_band_count for msg in last} == {bands}
    middle_ns = START_NS + round((2 * blurred_sequence.interval_s + 0.5 * (
        blurred_sequence.exposure_time_s + readout_s)) * 1e9)
    expected_ns = [middle_ns + round(readout_s * 1e9 * ((band + 0.5) / bands - 0.5))
                   for band in range(bands)]
    assert [stamp_to_ns(msg.header.stamp) for msg in last] == pytest.approx(expected_ns, abs=5)


def test_exposure_is_estimated_and_said_so(blurred_sequence):
    with Rig(blurred_sequence, exposure_time=0.0, stamp_reference='start',
             **{'stream.exposure_mode': 'estimate'}) as peer:
        activate(peer)
        while True:
            motion = peer.send()
            if motion.exposure_source != MotionEstimate.EXPOSURE_UNKNOWN:
                break
            assert peer.sent < 60
        peer.wait(lambda: peer.value('exposure source') == 'estimated', 'the source')
        assert '+-' in peer.value('estimated exposure [ms]')
    assert motion.exposure_source == MotionEstimate.EXPOSURE_ESTIMATED
    assert motion.exposure_time == pytest.approx(blurred_sequence.exposure_time_s, rel=0.4)
    begin_ns = START_NS + round((peer.sent - 1) * blurred_sequence.interval_s * 1e9)
    assert stamp_to_ns(motion.header.stamp) - begin_ns == pytest.approx(
        5e8 * motion.exposure_time, abs=10)


def test_depth_image_scales_the_linear_velocity(blurred_sequence):
    with Rig(blurred_sequence, use_depth_topic=True) as peer:
        publisher = peer.create_publisher(Image, 'depth', qos_profile_sensor_data)
        activate(peer)
        peer.wait(lambda: publisher.get_subscription_count() == 1, 'the subscription to depth')
        speeds = []
        for encoding, value in (('16UC1', np.uint16(4000)), ('32FC1', np.float32(4.0))):
            frame = peer.next_frame()
            rows, columns = 60, 80
            depth = Image(height=rows, width=columns, encoding=encoding,
                          step=columns * value.itemsize, header=frame[2].header)
            depth.data.frombytes(np.full((rows, columns), value).tobytes())
            publisher.publish(depth)
            peer.send(frame)
            peer.wait(lambda: 'median depth [m]' in peer.node_values, 'the depth')
            assert peer.value('median depth [m]') == '4.00'
            speeds.append(np.linalg.norm(vector(peer.received['motion'][-1].linear_velocity)))
    assert all(speed > 0.0 for speed in speeds)


def test_smoothing_is_refused_live(blurred_sequence):
    with Rig(blurred_sequence, **{'stream.smoothing_frames': 2}) as peer:
        assert not peer.change_state(Transition.TRANSITION_CONFIGURE)
        assert 'smoothing_frames' in peer.status.message
