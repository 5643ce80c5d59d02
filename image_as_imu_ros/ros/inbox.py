"""Hands the newest image, and what was sent along with it, to the thread that estimates."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from image_as_imu_ros.msg import ExposureTime
from image_as_imu_ros.ros.conversions import stamp_to_ns

COMPANION_WAIT_S = 0.05
"""How long an image waits for the camera_info and exposure that were sent along with it."""

KEPT_DEPTHS = 4
"""Depth images that are kept for images yet to come."""

DEPTH_TOLERANCE_NS = 2_000_000
"""By how much the stamp of a depth image may differ from its image's."""

KEPT_EXPOSURES = 64
"""Exposures that are kept for images yet to come."""


@dataclass(frozen=True)
class Arrival:
    """An image as it came from the wire."""

    image: Image | CompressedImage
    interval_s: float | None
    """Since the stamp of the image before; None for the first one and after a jump back."""
    arrived_s: float
    """On the monotonic clock."""

    @property
    def stamp_ns(self) -> int:
        """The image's own stamp."""
        return stamp_to_ns(self.image.header.stamp)


class Taken(NamedTuple):
    """An image with what has come of its companions."""

    arrival: Arrival
    camera_info: CameraInfo | None
    exposure: ExposureTime | None
    depth: Image | None


class Inbox:
    """
    Holds one image: a newer one replaces it.

    Filled by the executor's thread and emptied by the worker's.

    :param wants_exposure: whether each image has an ExposureTime message to wait for
    :param wants_depth: whether each image has a depth image to wait for
    """

    def __init__(self, wants_exposure: bool, wants_depth: bool = False) -> None:
        self._wants_exposure, self._wants_depth = wants_exposure, wants_depth
        self._changed = threading.Condition()
        self._closed = False
        self._newest_stamp_ns: int | None = None
        self._waiting: Arrival | None = None
        self._camera_info: CameraInfo | None = None
        self._exposures: dict[int, ExposureTime] = {}
        self._depths: dict[int, Image] = {}

    @property
    def waits(self) -> bool:
        """Whether images wait for other messages."""
        return self._wants_exposure or self._wants_depth

    def put_image(self, msg: Image | CompressedImage) -> bool:
        """Leave an image; tell whether it replaced one that nobody took."""
        stamp_ns, interval_s = stamp_to_ns(msg.header.stamp), None
        with self._changed:
            if self._newest_stamp_ns is not None and stamp_ns > self._newest_stamp_ns:
                interval_s = (stamp_ns - self._newest_stamp_ns) * 1e-9
            self._newest_stamp_ns = stamp_ns
            replaces = self._waiting is not None
            self._waiting = Arrival(msg, interval_s, time.monotonic())
            self._changed.notify()
        return replaces

    def put_camera_info(self, msg: CameraInfo) -> None:
        """Leave the camera's intrinsics, which hold until others come."""
        with self._changed:
            self._camera_info = msg
            self._changed.notify()

    def put_exposure(self, msg: ExposureTime) -> None:
        """Leave the exposure of the image with the same stamp."""
        self._keep(self._exposures, msg, KEPT_EXPOSURES)

    def put_depth(self, msg: Image) -> None:
        """Leave the depth image of the image with nearly the same stamp."""
        self._keep(self._depths, msg, KEPT_DEPTHS)

    def _keep(self, kept: dict[int, Any], msg: Any, count: int) -> None:
        with self._changed:
            kept[stamp_to_ns(msg.header.stamp)] = msg
            while len(kept) > count:
                del kept[next(iter(kept))]
            self._changed.notify()

    def close(self) -> None:
        """Send the taker home."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def take(self) -> Taken | None:
        """
        Wait for an image, then shortly for its camera_info, exposure and depth.

        The wait ends without them when the next image is there.

        :returns: the image with what has come of them, or None once the inbox is closed
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting is not None)
            arrival, self._waiting = self._waiting, None
            self._changed.wait_for(
                lambda: (self._closed or self._waiting is not None
                         or self._is_complete(arrival.stamp_ns)), COMPANION_WAIT_S)
            if self._closed:
                return None
            return Taken(arrival, self._camera_info, self._exposures.get(arrival.stamp_ns),
                         self._depth(arrival.stamp_ns))

    def _depth(self, stamp_ns: int) -> Image | None:
        """Depth image of an image, if it is here."""
        nearest = min(self._depths, key=lambda each: abs(each - stamp_ns), default=None)
        if nearest is None or abs(nearest - stamp_ns) > DEPTH_TOLERANCE_NS:
            return None
        return self._depths[nearest]

    def _is_complete(self, stamp_ns: int) -> bool:
        """Tell whether all that belongs to an image is here."""
        return self._camera_info is not None and (
            not self._wants_exposure or stamp_ns in self._exposures) and (
            not self._wants_depth or self._depth(stamp_ns) is not None)
