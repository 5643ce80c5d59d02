"""Nodes under test that spin in threads of their own."""

from __future__ import annotations

import threading

from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node


class Spinner:
    """
    Spins a node in a thread of its own until it is stopped.

    In turns of limited length: an executor that is shut down just when it begins to wait may miss
    it, and wait for ever.
    """

    def __init__(self, node: Node, context: Context) -> None:
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(node)
        self._stopped = False
        self._thread = threading.Thread(target=self._spin)
        self._thread.start()

    def _spin(self) -> None:
        while not self._stopped:
            self._executor.spin_once(timeout_sec=0.2)

    def stop(self) -> None:
        self._stopped = True
        self._thread.join()
        self._executor.shutdown()
