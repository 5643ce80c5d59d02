"""Lifecycle node `visual_imu`: images in, angular velocity out."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TwistWithCovarianceStamped
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription
from rclpy.timer import Timer
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, Imu

from image_as_imu_ros.config import NodeConfig, VisualImuConfig
from image_as_imu_ros.devices import memory_of_tensors, release_unused_memory
from image_as_imu_ros.errors import (
    ConfigError,
    ImageAsImuError,
    InputError,
    SynchronizationError,
)
from image_as_imu_ros.estimator import BlurObservation, VisualGyroscope
from image_as_imu_ros.msg import ExposureTime
from image_as_imu_ros.msg import MotionEstimate as MotionEstimateMsg
from image_as_imu_ros.ros import conversions
from image_as_imu_ros.ros.camera_metadata import MESSAGE_SOURCES, DriverExposure, is_rectified
from image_as_imu_ros.ros.diagnostics import DropCause, Monitor
from image_as_imu_ros.ros.handover import Handover
from image_as_imu_ros.ros.inbox import Arrival, Inbox, Taken
from image_as_imu_ros.ros.overlay import OverlayPainter
from image_as_imu_ros.ros.parameters import NodeParameters
from image_as_imu_ros.ros.transforms import TransformSource, open_transforms
from image_as_imu_ros.stream import StreamEstimator
from image_as_imu_ros.threads import LIBC
from image_as_imu_ros.types import CameraIntrinsics, Frame, MotionEstimate

OUTPUT_DEPTH = 10
COMPANION_DEPTH = 10
"""Queue depth of camera_info and exposure_time; images have 1, so that the newest wins."""

STOP_WAIT_S = 1.0
"""How long the end of the image in work is waited for; an interrupted node ends within 2 s."""

WARM_UP_FRAMES = 3
"""At the third, blurs are also compared with each other."""

TURN_S = 5e-4
"""How long a thread keeps Python's interpreter while others wait for it."""

YIELD_S = 2e-3
"""How long the executor leaves it to the worker that an image has woken."""

LATENESS_S = 0.5
"""An image that is older than one before by more than this tells of a jump in time."""

INTERVAL_TOLERANCE = 1.1
"""Exposures up to this many frame intervals pass: stamps jitter."""

WARNING_PERIOD_S = 5.0
"""Each cause of dropped frames is logged at most this often."""

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Parameters of glibc's mallopt."""

STAMP_SHIFTS = {'start': 0.5, 'middle': 0.0, 'end': -0.5}
"""From the stamp to the middle of the exposure, in exposures."""
LAST_STAMP_NS = (2 ** 31 - 2) * 10 ** 9
"""Stamps must leave room for the shift to the middle of the exposure."""

EXPOSURE_SOURCES = {
    MotionEstimateMsg.EXPOSURE_UNKNOWN: 'unknown',
    MotionEstimateMsg.EXPOSURE_PARAMETER: 'parameter',
    MotionEstimateMsg.EXPOSURE_TOPIC: 'topic',
    MotionEstimateMsg.EXPOSURE_ESTIMATED: 'estimated',
}


class FrameDropped(Exception):
    """One image yields no message."""

    def __init__(self, cause: DropCause, reason: str) -> None:
        super().__init__(reason)
        self.cause = cause


@contextlib.contextmanager
def dropping(cause: DropCause) -> Iterator[None]:
    """Give an InputError of the block its cause."""
    try:
        yield
    except InputError as error:
        raise FrameDropped(cause, str(error)) from error


@dataclass(frozen=True)
class Exposure:
    """Exposure of one image and where it is known from (EXPOSURE_ of MotionEstimate.msg)."""

    time_s: float | None
    readout_s: float
    source: int


@dataclass(frozen=True)
class Observed:
    """An image on its way from one worker to the other."""

    arrival: Arrival
    frame_id: str
    exposure: Exposure
    observation: BlurObservation
    begun_s: float
    done_s: float
    """When the observation began and was done, on the monotonic clock."""


class VisualImu(LifecycleNode):
    """
    Publishes the motion of the camera whose images it receives.

    The executor's thread only takes messages. Of two worker threads, one runs the network on the
    newest image while the other solves, aligns and publishes the one before. An image that
    cannot be used is dropped, counted by cause in the diagnostics and reported in a throttled
    warning.

    :param monitor: counts what happens to the images; for those who measure the node
    """

    def __init__(self, monitor: Monitor | None = None, **options: Any) -> None:
        super().__init__('visual_imu', **options)
        self._monitor = monitor or Monitor()
        self._gyroscope: VisualGyroscope | None = None
        self._stream: StreamEstimator | None = None
        self._transforms: TransformSource | None = None
        self._driver_exposure: DriverExposure | None = None
        self._subscribed: list[Subscription] = []
        self._inbox: Inbox | None = None
        self._workers: tuple[threading.Thread, ...] = ()
        self._last_warning_s: dict[DropCause, float] = {}
        self._newest_frame_ns: int | None = None

        self._overlay = OverlayPainter(self)
        self._diagnostics_timer: Timer | None = None
        self._settings = NodeParameters(self, self._state, self._follow)
        self._imu_publisher = self._publisher(Imu, '~/imu/data_raw')
        self._twist_publisher = self._publisher(TwistWithCovarianceStamped, '~/twist')
        self._motion_publisher = self._publisher(MotionEstimateMsg, '~/motion')
        self._diagnostics_publisher = self.create_publisher(
            DiagnosticArray, '/diagnostics', OUTPUT_DEPTH)
        # Steady, so that a simulated clock that stands still does not silence them.
        self._diagnostics_timer = self.create_timer(
            self.config.node.diagnostics_period, self._publish_diagnostics,
            clock=Clock(clock_type=ClockType.STEADY_TIME))

    @property
    def config(self) -> VisualImuConfig:
        """Present values of the parameters."""
        return self._settings.config

    def _state(self) -> str:
        """Present state of the lifecycle."""
        return self._state_machine.current_state[1]

    def _follow(self, config: VisualImuConfig) -> None:
        """Hand on what may change while the node is configured."""
        if self._gyroscope is not None:
            self._gyroscope.config = config.estimator
            self._stream.config = config.stream
        period_ns = round(1e9 * config.node.diagnostics_period)
        if self._diagnostics_timer is not None and (
                self._diagnostics_timer.timer_period_ns != period_ns):
            self._diagnostics_timer.timer_period_ns = period_ns
            self._diagnostics_timer.reset()

    # Transitions

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the weights and warm up."""
        if not self._attempt('configure', self._load, undo=self._free):
            return TransitionCallbackReturn.FAILURE
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe and start the workers."""
        if not self._attempt('activate', self._start, undo=self._stop):
            return TransitionCallbackReturn.FAILURE
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe; the weights stay loaded."""
        with self._telling('deactivate'):
            self._stop()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the weights."""
        with self._telling('cleanup'):
            self._free()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and free, from whatever state."""
        with self._telling('shutdown'):
            self._stop()
            self._free()
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Clean up after a transition that broke down: the node may be configured again."""
        with self._telling('error processing'):
            self._stop()
            self._free()
        return super().on_error(state)

    @property
    def working(self) -> bool:
        """Whether a worker is still at an image: it may outlast a stop."""
        return any(worker.is_alive() for worker in self._workers)

    def destroy_node(self) -> None:
        """Stop the workers, then destroy the node."""
        self._stop()
        self._overlay.close()
        super().destroy_node()

    def _attempt(self, transition: str, action: Callable[[], None],
                 undo: Callable[[], None]) -> bool:
        """Do what a transition takes; where it fails, undo it and say why."""
        try:
            action()
        except Exception as error:
            undo()
            self._monitor.failure = f'{transition} refused: {one_line(error)}'
            self.get_logger().error(f'cannot {transition}: {one_line(error)}')
            if not isinstance(error, ImageAsImuError):
                self.get_logger().error(traceback.format_exc())
            return False
        self._monitor.failure = ''
        return True

    @contextlib.contextmanager
    def _telling(self, transition: str) -> Iterator[None]:
        """Say what breaks a transition down, which rclpy swallows, before it has us clean up."""
        try:
            yield
        except Exception as error:
            self._monitor.failure = f'{transition} broke down: {one_line(error)}'
            self.get_logger().error(f'{transition} broke down: {traceback.format_exc()}')
            raise

    def _load(self) -> None:
        """
        Load the weights, warm up, and follow TF if an output frame is set.

        :raises WeightsError: if the weights are missing, corrupt or of another architecture
        :raises ConfigError: if the device is not available, nothing could tell the transform to
            the output frame, or smoothing is asked for
        """
        config = self.config
        if config.stream.smoothing_frames:
            raise ConfigError(f'stream.smoothing_frames: {config.stream.smoothing_frames} is for '
                              'offline use, as it needs images yet to come; set it to 0')
        if config.node.output_frame:
            self._transforms = open_transforms(
                self, config.node.output_frame, config.node.camera_pose)
        self._gyroscope = VisualGyroscope(config.estimator)
        self._stream = StreamEstimator(self._gyroscope, config.stream)
        self.get_logger().info('warming up; the very first time loops are compiled, for half a '
                               'minute')
        warm_up(self._stream)
        self._monitor.facts |= {
            'weights': config.estimator.weights, 'device': self._gyroscope.device}

    def _free(self) -> None:
        """Let go of the weights and TF."""
        if self._gyroscope is not None:
            device, self._gyroscope, self._stream = self._gyroscope.device, None, None
            release_unused_memory(device)
        if self._transforms is not None:
            self._transforms.close()
            self._transforms = None

    def _start(self) -> None:
        """Forget the past, subscribe and start the workers."""
        config = self.config.node
        for worker in self._workers:
            worker.join()  # where it outlasted STOP_WAIT_S
        self._stream.reset()
        self._newest_frame_ns = None
        source = MESSAGE_SOURCES.get(config.told_exposure)
        exposure_type = None if source is None else source.message_type()
        self._inbox = Inbox(source is not None, config.use_depth_topic)
        observed: Handover[Observed] = Handover()
        self._workers = (
            threading.Thread(target=self._observe_images, args=(self._inbox, observed),
                             name='observation', daemon=True),
            threading.Thread(target=self._estimate_motions, args=(observed,),
                             name='estimation', daemon=True))
        for worker in self._workers:
            worker.start()
        self._subscribe(CameraInfo, 'camera_info', self._inbox.put_camera_info, COMPANION_DEPTH)
        if source is not None:
            self._subscribe(exposure_type, source.topic, self._on_exposure, COMPANION_DEPTH)
        elif config.told_exposure == 'v4l2':
            self._driver_exposure = DriverExposure(self, config.exposure_node)
        if config.use_depth_topic:
            self._subscribe(Image, 'depth', self._inbox.put_depth, COMPANION_DEPTH)
        if config.image_transport == 'compressed':
            topic = self.resolve_topic_name('image') + '/compressed'
            self._subscribe(CompressedImage, topic, self._on_image, 1)
        else:
            self._subscribe(Image, 'image', self._on_image, 1)
        self._monitor.active = True

    def _stop(self) -> None:
        """Unsubscribe and end the workers after their present images."""
        self._monitor.active = False
        for subscription in self._subscribed:
            self.destroy_subscription(subscription)
        self._subscribed.clear()
        if self._driver_exposure is not None:
            self._driver_exposure.close()
            self._driver_exposure = None
        if self._inbox is not None:
            self._inbox.close()
        end_s = time.monotonic() + STOP_WAIT_S
        for worker in self._workers:
            worker.join(max(0.0, end_s - time.monotonic()))

    def _publisher(self, kind: type, topic: str) -> Any:
        """Lifecycle publisher with a sensor driver's QoS."""
        return self.create_lifecycle_publisher(
            kind, topic, OUTPUT_DEPTH,
            qos_overriding_options=QoSOverridingOptions.with_default_policies())

    def _subscribe(self, kind: type, topic: str, callback: Callable, depth: int) -> None:
        """Subscription with the QoS of sensor data."""
        qos = QoSProfile(depth=depth, reliability=ReliabilityPolicy.BEST_EFFORT)
        self._subscribed.append(self.create_subscription(
            kind, topic, callback, qos,
            qos_overriding_options=QoSOverridingOptions.with_default_policies()))

    # Arrival, in the executor's thread

    def _on_image(self, msg: Image | CompressedImage) -> None:
        self._monitor.received()
        stamp_ns = conversions.stamp_to_ns(msg.header.stamp)
        if not 0 < stamp_ns < LAST_STAMP_NS:
            self._drop(DropCause.ZERO_STAMP, f'image has no usable stamp: {stamp_ns * 1e-9:.3f} '
                       's; check the camera driver')
            return
        max_latency_s = self.config.node.max_latency
        age_s = (self.get_clock().now().nanoseconds - stamp_ns) * 1e-9 \
            - self.config.node.time_offset
        if max_latency_s and age_s > max_latency_s:
            self._drop(DropCause.LATE, f'image is {age_s:.3f} s old on arrival; raise '
                       'max_latency, or set use_sim_time for a replay with a clock')
            return
        if self._inbox.put_image(msg):
            self._drop(DropCause.BUSY, 'a newer image came before this one was processed; '
                       'lower the frame rate or estimator.working_size')
        elif not self._inbox.waits:
            # the worker would wait for the interpreter until the executor has gone its round
            time.sleep(YIELD_S)

    def _on_exposure(self, msg: Any) -> None:
        source = MESSAGE_SOURCES[self.config.node.told_exposure]
        try:
            self._inbox.put_exposure(source.read(msg))
        except InputError as error:
            if source is not MESSAGE_SOURCES['libcamera']:  # which others share
                self.get_logger().warning(f'no exposure: {error}',
                                          throttle_duration_sec=WARNING_PERIOD_S)

    # Estimation, in the workers' threads

    def _observe_images(self, inbox: Inbox, observed: Handover[Observed]) -> None:
        """Run the network on the newest image, just in time, until the inbox is closed."""
        while True:
            observed.wait_for_turn()
            if (taken := inbox.take()) is None:
                break
            with self._surviving():
                image = self._observe(taken)
                observed.put(image, image.done_s - image.begun_s)
        observed.close()

    def _estimate_motions(self, observed: Handover[Observed]) -> None:
        """Estimate and publish until there is nothing more to come."""
        while (image := observed.take()) is not None:
            with self._surviving():
                self._estimate(image)

    @contextlib.contextmanager
    def _surviving(self) -> Iterator[None]:
        """Drop the image where something goes wrong; nothing that happens ends the node."""
        try:
            yield
        except FrameDropped as dropped:
            self._drop(dropped.cause, str(dropped))
        except ImageAsImuError as error:
            self._drop(DropCause.BAD_IMAGE, str(error))
        except Exception as error:
            if self.context.ok():  # else it was interrupted while it published
                self._drop(DropCause.INTERNAL, one_line(error), traceback.format_exc())

    def _observe(self, taken: Taken) -> Observed:
        """
        Decode an image and run the network on it.

        :raises FrameDropped: if the image yields no message
        """
        config, begun_s = self.config, time.monotonic()
        arrival, camera_info = taken.arrival, taken.camera_info
        if camera_info is None:
            raise FrameDropped(DropCause.NO_CAMERA_INFO, 'no camera_info has arrived on '
                               f'{self.resolve_topic_name("camera_info")}; remap it')
        driver = self._driver_exposure
        exposure = choose_exposure(taken.exposure, config, arrival.interval_s,
                                   None if driver is None else driver.exposure_s)
        rectified = is_rectified(config.node.rectified, self.resolve_topic_name('image'))
        frame = assemble_frame(taken, exposure, config.node, rectified)
        frame_id = arrival.image.header.frame_id or camera_info.header.frame_id
        if not frame_id:
            raise FrameDropped(DropCause.NO_FRAME_ID, 'image has no frame_id, so nobody could '
                               'tell the axes of the result; set it in the camera driver')
        observation = self._gyroscope.observe(frame)
        return Observed(arrival, frame_id, exposure, observation, begun_s, time.monotonic())

    def _estimate(self, observed: Observed) -> None:
        """
        Estimate and publish.

        :raises FrameDropped: if the image yields no message
        """
        config, exposure, frame_id = self.config, observed.exposure, observed.frame_id
        waited_s = (observed.begun_s - observed.arrival.arrived_s
                    + time.monotonic() - observed.done_s)
        stamp_ns = observed.observation.frame.stamp_ns
        self._accept_stamp(stamp_ns, config)
        estimate = self._stream.join(observed.observation)
        self._newest_frame_ns = stamp_ns
        source, shift_s = exposure.source, config.node.time_offset
        if exposure.time_s is None and estimate.exposure_time_s is not None:
            source = MotionEstimateMsg.EXPOSURE_ESTIMATED
            shift_s += STAMP_SHIFTS[config.node.stamp_reference] * estimate.exposure_time_s
        output_frame = config.node.output_frame or frame_id
        try:
            for each in self._stream.bands or (estimate,):
                each = replace(each, stamp_ns=each.stamp_ns + round(shift_s * 1e9))
                if output_frame != frame_id:
                    each = self._moved_to(output_frame, frame_id, each)
                self._publish(each, output_frame, source, observed.arrival, waited_s)
        finally:
            self._monitor.estimated({
                'exposure source': EXPOSURE_SOURCES[source], 'status': estimate.status.name,
                'sign': 'resolved' if estimate.sign_resolved else 'unresolved',
                'blur extent [px]': f'{estimate.blur_extent_px:.1f}',
                'angular velocity stddev [rad/s]': ', '.join(
                    f'{deviation:.3g}' for deviation in np.sqrt(np.diag(estimate.covariance)[3:])),
                **self._further_facts(observed)})
        self._overlay.offer(observed.observation, estimate, frame_id,
                            config.estimator.scene_depth)

    def _further_facts(self, observed: Observed) -> dict[str, str]:
        """What the diagnostics tell of what is estimated of the camera, and of measured depth."""
        facts = {}
        if self._stream.readout_time_s is not None:
            readout_ms, deviation_ms = (1e3 * value for value in self._stream.readout_time_s)
            facts['estimated readout [ms]'] = f'{readout_ms:.1f} +- {deviation_ms:.1f}'
        if self._stream.exposure_time_s is not None:
            exposure_ms, deviation_ms = (1e3 * value for value in self._stream.exposure_time_s)
            facts['estimated exposure [ms]'] = f'{exposure_ms:.2f} +- {deviation_ms:.2f}'
        if self.config.node.use_depth_topic:
            depth_m = observed.observation.depth_m
            facts['median depth [m]'] = 'unknown' if depth_m is None else f'{depth_m:.2f}'
        return facts

    def _accept_stamp(self, stamp_ns: int, config: VisualImuConfig) -> None:
        """
        Start anew where time jumped back, as when a bag loops.

        :raises FrameDropped: if the image is merely a little late, or a duplicate
        """
        if self._newest_frame_ns is None or stamp_ns > self._newest_frame_ns:
            return
        back_s = (self._newest_frame_ns - stamp_ns) * 1e-9
        if back_s <= min(config.stream.max_gap, LATENESS_S):
            raise FrameDropped(DropCause.OUT_OF_ORDER, f'image is {back_s:.3f} s older than one '
                               'before it')
        self.get_logger().warning(f'time jumped back by {back_s:.3f} s: starting anew',
                                  throttle_duration_sec=WARNING_PERIOD_S)
        self._stream.reset()
        self._monitor.restarted()

    def _moved_to(self, output_frame: str, frame_id: str,
                  estimate: MotionEstimate) -> MotionEstimate:
        """
        Express the motion in the output frame.

        :raises FrameDropped: if TF does not know the two frames at the time of the image
        """
        try:
            transform = self._transforms.lookup(output_frame, frame_id, estimate.stamp_ns)
        except SynchronizationError as error:
            raise FrameDropped(DropCause.NO_TRANSFORM, str(error)) from error
        return conversions.moved_to_frame(estimate, transform)

    def _publish(self, estimate: MotionEstimate, frame_id: str, exposure_source: int,
                 arrival: Arrival, waited_s: float) -> None:
        """
        Publish ~/imu/data_raw and ~/twist of a measurement, and ~/motion.

        :param waited_s: how long the image lay idle on its way
        :raises FrameDropped: if a number is not finite or a variance not positive
        """
        numbers = (estimate.angular_velocity_rad_s, estimate.linear_velocity_m_s,
                   estimate.covariance)
        if not (all(np.isfinite(array).all() for array in numbers)
                and (np.diag(estimate.covariance) > 0.0).all()):
            raise FrameDropped(DropCause.NOT_FINITE, 'the estimate is not finite or has no '
                               'uncertainty; please report it with the image')
        processing_s = time.monotonic() - arrival.arrived_s
        if estimate.usable:
            self._imu_publisher.publish(conversions.imu_to_msg(estimate, frame_id))
            now_ns = self.get_clock().now().nanoseconds
            self._monitor.published((now_ns - arrival.stamp_ns) * 1e-9, processing_s,
                                    sum(estimate.timing_ms.values()) * 1e-3, waited_s,
                                    estimate.row_band_index)
            if self.config.node.publish_twist:
                self._twist_publisher.publish(conversions.twist_to_msg(estimate, frame_id))
        self._motion_publisher.publish(
            conversions.motion_to_msg(estimate, frame_id, exposure_source, processing_s))

    # Reports, from either thread

    def _drop(self, cause: DropCause, reason: str, details: str = '') -> None:
        """Count a dropped image and say why, not too often."""
        self._monitor.dropped(cause, reason)
        now_s = time.monotonic()
        if now_s - self._last_warning_s.get(cause, -math.inf) >= WARNING_PERIOD_S:
            self._last_warning_s[cause] = now_s
            self.get_logger().warning(f'image dropped, {cause.value}: {reason}\n{details}'.strip())

    def _publish_diagnostics(self) -> None:
        self._monitor.facts |= memory_facts(self._gyroscope)
        self._diagnostics_publisher.publish(
            self._monitor.report(self.get_fully_qualified_name(),
                                 self.get_clock().now().to_msg()))


def choose_exposure(msg: ExposureTime | None, settings: VisualImuConfig,
                    interval_s: float | None, driver_s: float | None = None) -> Exposure:
    """
    Exposure of an image: its own message, else the driver's or our parameter, else unknown.

    Unknown, too, is one that is to be estimated.

    :param interval_s: time since the image before, where known
    :param driver_s: what a parameter of the camera driver tells
    :raises FrameDropped: if a time is not positive, or the exposure longer than the interval
    """
    config = settings.node
    if settings.stream.exposure_mode == 'estimate':
        readout_s = config.readout_time if msg is None else msg.readout_time or config.readout_time
        return Exposure(None, readout_s, MotionEstimateMsg.EXPOSURE_UNKNOWN)
    if msg is not None:
        exposure = Exposure(msg.exposure_time, msg.readout_time or config.readout_time,
                            MotionEstimateMsg.EXPOSURE_TOPIC)
    elif driver_s or config.exposure_time:
        exposure = Exposure(driver_s or config.exposure_time, config.readout_time,
                            MotionEstimateMsg.EXPOSURE_PARAMETER)
    else:
        return Exposure(None, config.readout_time, MotionEstimateMsg.EXPOSURE_UNKNOWN)
    if not (math.isfinite(exposure.time_s) and exposure.time_s > 0.0
            and math.isfinite(exposure.readout_s) and exposure.readout_s >= 0.0):
        raise FrameDropped(DropCause.BAD_EXPOSURE, f'exposure time {exposure.time_s} s or readout '
                           f'time {exposure.readout_s} s is not positive; check what publishes '
                           'exposure_time')
    if interval_s is not None and exposure.time_s > INTERVAL_TOLERANCE * interval_s:
        raise FrameDropped(DropCause.BAD_EXPOSURE, f'exposure time {exposure.time_s:.4g} s is '
                           f'longer than the frame interval of {interval_s:.4g} s; is it in '
                           'seconds?')
    return exposure


def assemble_frame(taken: Taken, exposure: Exposure, config: NodeConfig,
                   rectified: bool = False) -> Frame:
    """
    Decode an image, with its depth, turn it upright and stamp it in mid-exposure.

    :param rectified: whether it is, so that P of camera_info describes it
    :raises FrameDropped: if the image, its depth or its camera_info is unusable
    """
    image_msg, depth_m = taken.arrival.image, None
    with dropping(DropCause.BAD_CAMERA_INFO):
        intrinsics = conversions.intrinsics_from_msg(taken.camera_info, rectified)
    with dropping(DropCause.BAD_IMAGE):
        if config.image_transport == 'compressed':
            image = conversions.image_from_compressed_msg(image_msg)
        else:
            image = conversions.image_from_msg(image_msg)
        if taken.depth is not None:
            depth_m = conversions.depth_from_msg(taken.depth)
    turns = config.image_rotation // 90
    if turns:
        image = np.ascontiguousarray(np.rot90(image, turns))
        depth_m = None if depth_m is None else np.ascontiguousarray(np.rot90(depth_m, turns))
    # From either end, the middle of the centre row is half an exposure and half a readout away.
    shift_s = STAMP_SHIFTS[config.stamp_reference] * (
        (exposure.time_s or 0.0) + exposure.readout_s)
    stamp_ns = conversions.stamp_to_ns(image_msg.header.stamp) + round(shift_s * 1e9)
    with dropping(DropCause.BAD_CAMERA_INFO):
        return Frame(image, stamp_ns, intrinsics, exposure.time_s, exposure.readout_s, depth_m)


def warm_up(stream: StreamEstimator) -> None:
    """Let the first images be as quick as the others."""
    intrinsics = CameraIntrinsics(320, 240, 300.0, 300.0, 159.5, 119.5)
    rng = np.random.default_rng(0)
    scene = np.mean([cv2.resize(rng.integers(0, 256, (cells, cells), np.uint8), (320, 240),
                                interpolation=cv2.INTER_NEAREST) for cells in (8, 16, 32, 64)],
                    axis=0)
    for index in range(WARM_UP_FRAMES):
        views = [cv2.warpAffine(scene, cv2.getRotationMatrix2D((159.5, 119.5), roll_deg, 1.0),
                                (320, 240), borderMode=cv2.BORDER_REFLECT)
                 for roll_deg in 6.0 * index + np.linspace(0.0, 2.4, 5)]
        frame = Frame(np.mean(views, axis=0).astype(np.uint8), index * 32_000_000, intrinsics,
                      exposure_time_s=0.4 * 0.032)
        stream.process(frame)
    with stream.gyroscope.threads.working():  # as amid other images
        stream.gyroscope.observe(frame)
    stream.reset()


def fit_for_images() -> None:
    """
    Have threads of this process take turns sooner, and glibc reuse the memory of images.

    An image that arrives otherwise waits up to 5 ms for the interpreter, and page faults cost
    more than the copy of a large image. Elsewhere than with glibc there is no mallopt and
    nothing to do.
    """
    sys.setswitchinterval(TURN_S)
    mallopt = getattr(LIBC, 'mallopt', None)
    if mallopt is not None:
        for parameter, size in ((M_MMAP_THRESHOLD, 32 << 20), (M_TRIM_THRESHOLD, 1 << 30),
                                (M_TOP_PAD, 64 << 20)):
            mallopt(parameter, size)


def memory_facts(gyroscope: VisualGyroscope | None) -> dict[str, str]:
    """Memory of this process, and of its tensors on the GPU where it uses one."""
    resident = int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')
    on_gpu = 0 if gyroscope is None else memory_of_tensors(gyroscope.device)
    return {'memory [MiB]': f'{resident / 2 ** 20:.0f}',
            'GPU memory [MiB]': f'{on_gpu / 2 ** 20:.0f}'}


def one_line(error: Exception) -> str:
    """Message of an error without line breaks."""
    return ' '.join(str(error).split()) or type(error).__name__


def main(args: list[str] | None = None) -> int:
    """
    Run the node until it is interrupted.

    :returns: exit status: 0, or 1 if a parameter is refused or an autostart fails
    """
    gc.freeze()  # what is imported stays: quicker collections, and a quicker exit
    fit_for_images()
    rclpy.init(args=args)
    node, status = None, 0
    try:
        node = VisualImu()
        if node.config.node.autostart and not autostart(node):
            status = 1
        else:
            rclpy.spin(node)
    except ParameterException as error:
        rclpy.logging.get_logger('visual_imu').fatal(one_line(error))
        status = 1
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except Exception:
        if rclpy.ok():  # else a signal ended the context under a callback's hands
            raise
    finally:
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    if node is not None and node.working:  # threads in torch abort a Python that exits
        sys.stdout.flush()
        os._exit(status)
    return status


def autostart(node: VisualImu) -> bool:
    """Configure and activate; tell whether both succeeded."""
    return all(transition() == TransitionCallbackReturn.SUCCESS
               for transition in (node.trigger_configure, node.trigger_activate))


if __name__ == '__main__':
    sys.exit(main())
