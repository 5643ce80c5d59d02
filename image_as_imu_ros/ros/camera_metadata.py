"""
What camera drivers tell of an image besides its pixels: exposure time, rectification.

Each driver has its own message and unit; they become `ExposureTime`, in seconds, here and nowhere
else. The packages of their messages are imported when they are asked for.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rcl_interfaces.srv import GetParameters
from rclpy.node import Node
from rclpy.parameter import parameter_value_to_python

from image_as_imu_ros.errors import ConfigError, InputError
from image_as_imu_ros.msg import ExposureTime

MICROSECOND_S = 1e-6
V4L2_UNIT_S = 1e-4
V4L2_MANUAL = 1
"""Of the menu V4L2_CID_EXPOSURE_AUTO."""

POLL_PERIOD_S = 1.0
"""How often the parameters of a camera driver are read."""


def is_rectified(told: str, image_topic: str) -> bool:
    """
    Tell whether images are rectified.

    :param told: the parameter `rectified`: yes, no, or auto, which goes by the topic's name as
        image_proc and camera drivers choose it
    """
    name = image_topic.rpartition('/')[2]
    return told == 'yes' or (told == 'auto' and name.startswith('image_rect'))


@dataclass(frozen=True)
class MessageSource:
    """A driver's message with the exposure of the image of the same stamp."""

    package: str
    message: str
    topic: str
    exposure_s: Callable[[Any], float]
    """Reads the exposure time; raises InputError where the message does not tell it."""

    def message_type(self) -> type:
        """
        Class of the messages.

        :raises ConfigError: if their package is not installed
        """
        try:
            return getattr(importlib.import_module(f'{self.package}.msg'), self.message)
        except ImportError as error:
            raise ConfigError(
                f'exposure_source needs the messages of {self.package}, which is not installed; '
                'install it, or publish ExposureTime') from error

    def read(self, msg: Any) -> ExposureTime:
        """
        Exposure time in seconds, with the stamp of its image.

        :raises InputError: if the message does not tell it
        """
        if self.package == ExposureTime.__module__.partition('.')[0]:
            return msg
        return ExposureTime(header=msg.header, exposure_time=self.exposure_s(msg))


def _from_realsense(msg: Any) -> float:
    """
    Microseconds of `actual_exposure` in the JSON of `realsense2_camera_msgs/Metadata`.

    Colour sensors of the D400 family do not tell what their auto exposure chose (librealsense
    issues 2549 and 5035): then there is no exposure rather than a wrong one.
    """
    try:
        values = json.loads(msg.json_data)
        exposure_us = float(values['actual_exposure'])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError('the RealSense metadata has no actual_exposure; use kernel patches or '
                         'the RSUSB backend of librealsense') from error
    if values.get('auto_exposure') and 'color' in msg.header.frame_id:
        raise InputError('a RealSense colour sensor does not tell the exposure that it chose '
                         'itself; set rgb_camera.enable_auto_exposure to false')
    return exposure_us * MICROSECOND_S


def _from_flir(msg: Any) -> float:
    """Microseconds of `flir_camera_msgs/ImageMetaData`."""
    return msg.exposure_time * MICROSECOND_S


def _from_libcamera(msg: Any) -> float:
    """Microseconds of `ExposureTime` among what camera_ros publishes of each image's request."""
    for status in msg.status:
        for pair in status.values:
            if pair.key == 'ExposureTime':
                try:
                    return float(pair.value) * MICROSECOND_S
                except ValueError as error:
                    raise InputError(f'ExposureTime "{pair.value}" of the camera is not a number'
                                     ) from error
    raise InputError('these diagnostics are not of an image')


MESSAGE_SOURCES = {
    'topic': MessageSource('image_as_imu_ros', 'ExposureTime', 'exposure_time',
                           lambda msg: msg.exposure_time),
    'realsense': MessageSource('realsense2_camera_msgs', 'Metadata', 'exposure_time',
                               _from_realsense),
    'flir': MessageSource('flir_camera_msgs', 'ImageMetaData', 'exposure_time', _from_flir),
    # which camera_ros publishes there, among the diagnostics of others
    'libcamera': MessageSource('diagnostic_msgs', 'DiagnosticArray', '/diagnostics',
                               _from_libcamera),
}
"""By the value of the parameter `exposure_source`."""


V4L2_PARAMETERS = ('auto_exposure', 'exposure_time_absolute', 'exposure_auto', 'exposure_absolute')
"""As v4l2_camera has them: of kernels since 5.17, and of those before."""


def v4l2_exposure_s(values: dict[str, Any]) -> float | None:
    """
    Exposure time from the controls of a V4L2 camera, whose unit is 100 us.

    :param values: by the names in V4L2_PARAMETERS; those that the camera lacks are None
    :returns: None where the camera chooses it itself or does not tell it
    """
    for mode, exposure in (V4L2_PARAMETERS[:2], V4L2_PARAMETERS[2:]):
        value = values.get(exposure)
        if value is not None:
            fixed = values.get(mode) in (None, V4L2_MANUAL)
            return value * V4L2_UNIT_S if fixed and value > 0 else None
    return None


class DriverExposure:
    """
    Follows the exposure that the parameters of a camera driver tell.

    `exposure_s` is None until they are known, and where the camera chooses by itself.
    """

    def __init__(self, node: Node, driver: str) -> None:
        if not driver:
            raise ConfigError('exposure_node: "" names no node; exposure_source "v4l2" needs the '
                              "camera driver's")
        self.exposure_s: float | None = None
        self._values: dict[str, Any] = {}
        self._node = node
        self._client = node.create_client(GetParameters, f'{driver}/get_parameters')
        self._timer = node.create_timer(POLL_PERIOD_S, self._ask)

    def _ask(self) -> None:
        if not self._client.service_is_ready():
            self.exposure_s = None
            return
        for name in V4L2_PARAMETERS:  # one by one: a name that is not declared spoils an answer
            future = self._client.call_async(GetParameters.Request(names=[name]))
            future.add_done_callback(lambda done, name=name: self._take(name, done.result()))

    def _take(self, name: str, response: GetParameters.Response) -> None:
        value = parameter_value_to_python(response.values[0]) if response.values else None
        self._values[name] = value
        self.exposure_s = v4l2_exposure_s(self._values)

    def close(self) -> None:
        """Stop following."""
        self._node.destroy_timer(self._timer)
        self._node.destroy_client(self._client)
