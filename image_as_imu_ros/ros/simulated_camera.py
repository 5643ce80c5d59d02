"""A camera that pans to and fro over a drawn texture: known motion over DDS, for measurements."""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import rclpy
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image

from image_as_imu_ros.msg import ExposureTime
from image_as_imu_ros.ros.conversions import ns_to_stamp
from image_as_imu_ros.synthesis.textures import procedural_texture

FRAME_ID = 'camera_optical_frame'
AMPLITUDE_RAD = 0.3
COMPANION_DEPTH = 10


@dataclass(frozen=True)
class Pan:
    """
    Images of a far plane from a camera that turns about its vertical axis.

    :param frames: from one end of the pan to the other
    """

    width_px: int = 640
    height_px: int = 480
    frames: int = 30
    interval_s: float = 1 / 30
    exposure_time_s: float = 0.01
    encoding: str = 'rgb8'
    seed: int = 1

    @property
    def focal_px(self) -> float:
        """Of both axes."""
        return 0.8 * self.width_px

    @cached_property
    def images(self) -> list[np.ndarray]:
        """One per frame, (H, W) or (H, W, 3) uint8, blurred by the motion over the exposure."""
        travel_px = math.ceil(2 * AMPLITUDE_RAD * self.focal_px) + self.width_px // 8
        side_px = max(self.height_px, self.width_px + travel_px)
        # (side, side), linear light, 0 to about 1
        texture = procedural_texture(np.random.default_rng(self.seed), side_px)
        images = []
        for index in range(self.frames):
            phase = math.pi * index / (self.frames - 1)
            centre_px = 0.5 * side_px - AMPLITUDE_RAD * self.focal_px * math.cos(phase)
            rate_rad_s = AMPLITUDE_RAD * math.sin(phase) * math.pi / (
                (self.frames - 1) * self.interval_s)
            blur_px = max(1, round(rate_rad_s * self.exposure_time_s * self.focal_px))
            light = cv2.getRectSubPix(cv2.blur(texture, (blur_px, 1)),
                                      (self.width_px, self.height_px), (centre_px, side_px / 2))
            image = np.round(255 * np.clip(light, 0, 1) ** (1 / 2.2)).astype(np.uint8)
            images.append(image if self.encoding == 'mono8'
                          else cv2.cvtColor(image, cv2.COLOR_GRAY2RGB))
        return images


class SimulatedCamera(Node):
    """Publishes the images of a pan, with their camera_info and exposure, when told to."""

    def __init__(self, pan: Pan, context: Context | None = None, namespace: str = '') -> None:
        super().__init__('simulated_camera', context=context, namespace=namespace)
        self._pan = pan
        self.image_publisher = self.create_publisher(Image, 'image', qos_profile_sensor_data)
        self.info_publisher = self.create_publisher(CameraInfo, 'camera_info', COMPANION_DEPTH)
        self.exposure_publisher = self.create_publisher(
            ExposureTime, 'exposure_time', COMPANION_DEPTH)

    def messages(self, index: int, stamp_ns: int) -> tuple[CameraInfo, ExposureTime, Image]:
        """Messages of one frame; the pan runs to and fro."""
        pan, images = self._pan, self._pan.images
        place = index % (2 * len(images) - 2)
        pixels = images[min(place, 2 * len(images) - 2 - place)]
        info = CameraInfo(
            width=pan.width_px, height=pan.height_px, distortion_model='plumb_bob', d=[0.0] * 5,
            k=[pan.focal_px, 0.0, (pan.width_px - 1) / 2, 0.0, pan.focal_px,
               (pan.height_px - 1) / 2, 0.0, 0.0, 1.0])
        exposure = ExposureTime(exposure_time=pan.exposure_time_s)
        image = Image(height=pan.height_px, width=pan.width_px, encoding=pan.encoding,
                      step=pixels.nbytes // pan.height_px)
        image.data.frombytes(pixels.tobytes())
        for msg in (info, exposure, image):
            msg.header.stamp, msg.header.frame_id = ns_to_stamp(stamp_ns), FRAME_ID
        return info, exposure, image

    def shoot(self, index: int, stamp_ns: int | None = None) -> None:
        """
        Publish one frame.

        :param stamp_ns: None stamps it as it leaves
        """
        info, exposure, image = self.messages(index, stamp_ns or 0)
        if stamp_ns is None:
            stamp = self.get_clock().now().to_msg()
            for msg in (info, exposure, image):
                msg.header.stamp = stamp
        self.info_publisher.publish(info)
        if self.exposure_publisher.get_subscription_count():
            self.exposure_publisher.publish(exposure)
        self.image_publisher.publish(image)

    def publishers_without_listener(self) -> list[Publisher]:
        """Those that no one subscribes to."""
        return [publisher for publisher in (self.image_publisher, self.info_publisher)
                if not publisher.get_subscription_count()]


def main(argv: list[str] | None = None) -> None:
    """
    Publish at a steady pace until the time is over or the process is interrupted.

    The first image waits for listeners of image and camera_info, and a line on standard output
    announces it: Fast DDS takes up to seconds to make a new camera known.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--width', type=int, default=640)
    parser.add_argument('--height', type=int, default=480)
    parser.add_argument('--encoding', choices=('rgb8', 'mono8'), default='rgb8')
    parser.add_argument('--rate', type=float, default=30.0, help='images per second')
    parser.add_argument('--namespace', default='', help='of the topics')
    parser.add_argument('--seconds', type=float, default=math.inf)
    arguments = parser.parse_args(argv)
    pan = Pan(arguments.width, arguments.height, encoding=arguments.encoding,
              interval_s=1 / arguments.rate)
    rclpy.init(args=[])
    camera = SimulatedCamera(pan, namespace=arguments.namespace)
    executor = SingleThreadedExecutor()
    executor.add_node(camera)
    index = 0
    try:
        while camera.publishers_without_listener():
            executor.spin_once(timeout_sec=0.01)
        print('filming', flush=True)
        begin_s = time.monotonic()
        while index < arguments.seconds * arguments.rate:
            left_s = begin_s + index * pan.interval_s - time.monotonic()
            if left_s > 0:
                executor.spin_once(timeout_sec=left_s)
                continue
            camera.shoot(index)
            index += 1
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        rclpy.try_shutdown()


if __name__ == '__main__':
    main()
