"""Draws an estimate over its image, for people to look at: ~/overlay."""

from __future__ import annotations

import queue
import threading

import cv2
import numpy as np
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import Image

from image_as_imu_ros.estimator import BlurObservation
from image_as_imu_ros.geometry.camera import WorkingCamera
from image_as_imu_ros.geometry.motion_field import motion_field_matrix, pixel_grid
from image_as_imu_ros.ros.conversions import image_to_msg
from image_as_imu_ros.types import CameraIntrinsics, EstimateStatus, MotionEstimate

OVERLAY_SIZE_PX = 640
"""Longer side; the cost of drawing then does not depend on the camera."""

STRIDE_PX = 40
NOMINAL_EXPOSURE_S = 0.01
"""Flow is drawn for so long where the exposure is unknown."""

SHORT_PX = 10.0
MAGNIFICATIONS = (1, 2, 4, 8, 16)
"""Flow whose median is shorter than SHORT_PX is drawn larger by one of these."""

STATUS_COLOURS = {
    EstimateStatus.OK: (90, 230, 90), EstimateStatus.PREDICTED: (255, 200, 60),
    EstimateStatus.SIGN_UNRESOLVED: (255, 120, 60), EstimateStatus.NO_SIGNAL: (170, 170, 170)}
AXIS_COLOURS = {'x': (255, 80, 80), 'y': (80, 220, 80), 'z': (90, 140, 255)}
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
WARNING_PERIOD_S = 5.0
LINE_PX, MARGIN_PX = 18, 8
PANEL_HEIGHT_PX, PANEL_WIDTH_PX = 4 * LINE_PX + MARGIN_PX, 330
BAR_LENGTH_PX, BAR_HEIGHT_PX = 70, 14
BAR_FULL_RAD_S = (1.0, 2.0, 5.0, 10.0, 25.0, 50.0)
"""Full scales of the bars, of which the smallest that holds all rates is taken."""


def draw_overlay(image: np.ndarray, intrinsics: CameraIntrinsics, estimate: MotionEstimate,
                 scene_depth_m: float) -> np.ndarray:
    """
    Draw the flow over the exposure, and in words and bars what else there is to know.

    Arrows run as the picture moves; without heads, the sign is open.

    :param image: (H, W, 3) RGB uint8, undistorted
    :param intrinsics: of this image, a pinhole
    :param estimate: in the camera's optical frame
    :param scene_depth_m: for which the linear velocity holds
    :returns: a new (H, W, 3) RGB uint8
    """
    canvas = image.copy()
    colour = STATUS_COLOURS[estimate.status]
    magnification = _draw_flow(canvas, intrinsics, estimate, scene_depth_m, colour)
    _draw_words(canvas, estimate, magnification, colour)
    _draw_bars(canvas, estimate)
    return canvas


def _draw_flow(canvas: np.ndarray, intrinsics: CameraIntrinsics, estimate: MotionEstimate,
               scene_depth_m: float, colour: tuple[int, int, int]) -> int:
    """Draw the arrows; return by how much they are magnified."""
    height, width = canvas.shape[:2]
    exposure_s = estimate.exposure_time_s or NOMINAL_EXPOSURE_S
    motion = exposure_s * np.concatenate([
        estimate.angular_velocity_rad_s, estimate.linear_velocity_m_s / scene_depth_m])
    points = pixel_grid(width, height, STRIDE_PX).reshape(-1, 2)
    flow = motion_field_matrix(points, intrinsics) @ motion
    median_px = np.median(np.linalg.norm(flow, axis=-1))
    magnification = next((factor for factor in MAGNIFICATIONS
                          if factor * median_px >= SHORT_PX), MAGNIFICATIONS[-1])
    half = np.clip(0.5 * magnification * flow, -width, width)
    for begin, end in zip(np.rint(points - half).astype(int), np.rint(points + half).astype(int)):
        for shade, thickness in ((BLACK, 3), (colour, 1)):
            if estimate.sign_resolved:
                cv2.arrowedLine(canvas, begin.tolist(), end.tolist(), shade, thickness,
                                cv2.LINE_AA, tipLength=0.3)
            else:
                cv2.line(canvas, begin.tolist(), end.tolist(), shade, thickness, cv2.LINE_AA)
    return magnification


def _draw_words(canvas: np.ndarray, estimate: MotionEstimate, magnification: int,
                colour: tuple[int, int, int]) -> None:
    """Write speed, axis, sign state, exposure and quality."""
    speed = float(np.linalg.norm(estimate.angular_velocity_rad_s))
    axis = estimate.angular_velocity_rad_s / max(speed, 1e-9)
    std = float(np.sqrt(max(axis @ estimate.covariance[3:, 3:] @ axis, 0.0))) if speed else float(
        np.sqrt(np.trace(estimate.covariance[3:, 3:]) / 3.0))
    exposure = estimate.exposure_time_s
    sign = (f'known, margin {estimate.sign_margin:.1f}' if estimate.sign_resolved else 'open')
    lines = [
        f'{speed:.2f} +- {std:.2f} rad/s   {estimate.status.name}',
        'axis  ' + '  '.join(f'{name} {value:+.2f}' for name, value in zip('xyz', axis)),
        f'sign {sign}   quality {estimate.quality:.2f}',
        ('exposure unknown' if exposure is None else f'exposure {1e3 * exposure:.1f} ms, blur '
         f'{estimate.blur_extent_px:.0f} px')
        + (f', arrows x{magnification}' if magnification > 1 else '')]
    _darken(canvas[:PANEL_HEIGHT_PX, :PANEL_WIDTH_PX])
    for index, line in enumerate(lines):
        _write(canvas, line, (MARGIN_PX, LINE_PX * (index + 1)), colour if index == 0 else WHITE)


def _draw_bars(canvas: np.ndarray, estimate: MotionEstimate) -> None:
    """Draw the three rates with one standard deviation either way, lower right."""
    rates = estimate.angular_velocity_rad_s
    stds = np.sqrt(np.diag(estimate.covariance)[3:])
    full = next((scale for scale in BAR_FULL_RAD_S if scale >= np.abs(rates).max()),
                BAR_FULL_RAD_S[-1])
    height, width = canvas.shape[:2]
    middle = width - BAR_LENGTH_PX - MARGIN_PX
    _darken(canvas[height - 3 * (BAR_HEIGHT_PX + 4) - 3 * MARGIN_PX:,
                   middle - BAR_LENGTH_PX - 3 * MARGIN_PX:])
    for index, (name, rate, std) in enumerate(zip('xyz', rates, stds)):
        top = height - MARGIN_PX - (3 - index) * (BAR_HEIGHT_PX + 4)
        low, end, high = (
            int(middle + BAR_LENGTH_PX * np.clip(value / full, -1.0, 1.0))
            for value in (rate - std, rate, rate + std))
        centre = top + BAR_HEIGHT_PX // 2
        cv2.rectangle(canvas, (middle - BAR_LENGTH_PX, top),
                      (middle + BAR_LENGTH_PX, top + BAR_HEIGHT_PX), BLACK, -1)
        cv2.rectangle(canvas, (min(middle, end), top + 2),
                      (max(middle, end), top + BAR_HEIGHT_PX - 2), AXIS_COLOURS[name], -1)
        cv2.line(canvas, (low, centre), (high, centre), WHITE, 1)
        cv2.line(canvas, (middle, top), (middle, top + BAR_HEIGHT_PX), WHITE, 1)
        _write(canvas, name, (middle - BAR_LENGTH_PX - 14, top + BAR_HEIGHT_PX - 2),
               AXIS_COLOURS[name])
    _write(canvas, f'+-{full:g} rad/s', (middle - BAR_LENGTH_PX, height - MARGIN_PX - 3 * (
        BAR_HEIGHT_PX + 4) - 5), WHITE)


def _darken(part: np.ndarray) -> None:
    """Make a part of the picture a ground for bright text."""
    part //= 3


def _write(canvas: np.ndarray, text: str, place: tuple[int, int],
           colour: tuple[int, int, int]) -> None:
    cv2.putText(canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1, cv2.LINE_AA)


class OverlayPainter:
    """
    Publishes ~/overlay from a thread of its own, and only while someone listens.

    The estimation never waits for it: what comes while it draws is not drawn.
    """

    def __init__(self, node: LifecycleNode) -> None:
        self._node = node
        self._publisher = node.create_lifecycle_publisher(
            Image, '~/overlay', QoSProfile(depth=1),
            qos_overriding_options=QoSOverridingOptions.with_default_policies())
        self._waiting: queue.Queue[tuple[BlurObservation, MotionEstimate, str, float] | None] = (
            queue.Queue(maxsize=1))
        self._camera: WorkingCamera | None = None
        self._thread: threading.Thread | None = None

    def offer(self, observation: BlurObservation, estimate: MotionEstimate, frame_id: str,
              scene_depth_m: float) -> None:
        """
        Draw this estimate, if there is a listener and no other is being drawn.

        :param estimate: in the camera's optical frame
        :param frame_id: of the image
        """
        if not self._publisher.get_subscription_count() or self._waiting.full():
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._paint, name='overlay', daemon=True)
            self._thread.start()
        self._waiting.put((observation, estimate, frame_id, scene_depth_m))

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()
            self._thread = None

    def _paint(self) -> None:
        while (job := self._waiting.get()) is not None:
            try:
                self._publisher.publish(self._draw(*job))
            except Exception as error:  # a picture is never worth the node
                if self._node.context.ok():  # else it was interrupted while it published
                    self._node.get_logger().warning(f'no overlay: {error}',
                                                    throttle_duration_sec=WARNING_PERIOD_S)

    def _draw(self, observation: BlurObservation, estimate: MotionEstimate, frame_id: str,
              scene_depth_m: float) -> Image:
        frame = observation.frame
        if self._camera is None or self._camera.source != frame.intrinsics:
            self._camera = WorkingCamera(frame.intrinsics, OVERLAY_SIZE_PX)
        image = np.round(255.0 * self._camera.colour_image(frame.image)).astype(np.uint8)
        canvas = draw_overlay(image, self._camera.intrinsics, estimate, scene_depth_m)
        return image_to_msg(canvas, estimate.stamp_ns, frame_id)
