"""Hands each observed image to the thread that estimates, and times when to begin the next."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar('Item')

REMEMBERED = 5
"""Images whose durations tell how long the next one will take."""


class Handover(Generic[Item]):
    """
    Between two threads that work at once: one observes images, the other estimates of them.

    An image that is observed while the other thread is still busy would wait and grow old, while a
    newer one comes. So the observer begins when the estimator will be free by the time that
    the observation is done; at once where observing takes longer. It goes by the longest
    observation and the shortest estimation of late: rather too early, and a little older, than
    so late that the estimator waits and fewer images are measured.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._closed = False
        self._waiting: Item | None = None
        self._estimating_since_s: float | None = None
        self._observations_s: deque[float] = deque(maxlen=REMEMBERED)
        self._estimations_s: deque[float] = deque(maxlen=REMEMBERED)

    def wait_for_turn(self) -> None:
        """Wait until it is time to observe the next image."""
        with self._changed:
            while (left_s := self._time_to_turn()) > 0.0:
                self._changed.wait(left_s)

    def _time_to_turn(self) -> float:
        """How long an image that is begun now would wait for the estimator, s."""
        if self._estimating_since_s is None or not (self._observations_s and self._estimations_s):
            return 0.0
        images = 1 if self._waiting is None else 2
        free_s = self._estimating_since_s + images * min(self._estimations_s)
        return free_s - max(self._observations_s) - time.monotonic()

    def put(self, item: Item, observed_for_s: float) -> None:
        """Hand over what was observed, once there is room for it."""
        with self._changed:
            self._observations_s.append(observed_for_s)
            self._changed.wait_for(lambda: self._waiting is None)
            self._waiting = item
            self._changed.notify_all()

    def close(self) -> None:
        """Send the estimator home, after what is still waiting."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self) -> Item | None:
        """Wait for an observed image, the last one being done; None at the end."""
        with self._changed:
            if self._estimating_since_s is not None:
                self._estimations_s.append(time.monotonic() - self._estimating_since_s)
                self._estimating_since_s = None
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._closed or self._waiting is not None)
            item, self._waiting = self._waiting, None
            if item is not None:
                self._estimating_since_s = time.monotonic()
            self._changed.notify_all()
            return item
