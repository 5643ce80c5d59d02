"""Keeps every message of some topics in memory, from a thread of its own."""

from __future__ import annotations

import threading
import time
from typing import Any

import rclpy
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import QoSProfile

QUEUE_DEPTH = 1000


class Recorder:
    """
    A context manager that subscribes to topics, reliably and with deep queues.

    `messages` has a list of (arrival time, message) per topic; the time is that of
    `time.monotonic()`.

    :param topics: message class by topic name
    """

    def __init__(self, topics: dict[str, type]) -> None:
        self.messages: dict[str, list[tuple[float, Any]]] = {topic: [] for topic in topics}
        self._topics = topics
        self._context = Context()
        self._thread = threading.Thread(target=self._spin, name='recorder')

    def __enter__(self) -> Recorder:
        rclpy.init(context=self._context)
        self.node = rclpy.create_node('recorder', context=self._context)
        for topic, kind in self._topics.items():
            self.node.create_subscription(
                kind, topic, lambda message, kept=self.messages[topic]: kept.append(
                    (time.monotonic(), message)), QoSProfile(depth=QUEUE_DEPTH))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._context.try_shutdown()
        self._thread.join()

    def _spin(self) -> None:
        executor = SingleThreadedExecutor(context=self._context)
        executor.add_node(self.node)
        try:
            executor.spin()
        except ExternalShutdownException:
            pass
