"""What happens to the images: counts, rates and latencies, as messages on /diagnostics."""

from __future__ import annotations

import enum
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from std_msgs.msg import Header

WINDOW_S = 3.0
"""Window of a node's monitor."""

PERCENTILES = (50, 95, 99)
TIMES = ('latency', 'processing', 'overhead', 'waiting')
"""From an image's stamp to its Imu message; from its arrival; latency less what the estimator
took; the part of it while the estimator was busy with images before."""

WARN_DROPPED_SHARE = 0.1
"""Share of dropped images in the window from which the status is a warning."""


class DropCause(enum.Enum):
    """Why an image was dropped."""

    BUSY = 'busy'
    LATE = 'late'
    ZERO_STAMP = 'zero stamp'
    OUT_OF_ORDER = 'out of order'
    NO_FRAME_ID = 'no frame_id'
    NO_CAMERA_INFO = 'no camera_info'
    BAD_CAMERA_INFO = 'bad camera_info'
    BAD_IMAGE = 'bad image'
    BAD_EXPOSURE = 'bad exposure'
    NO_TRANSFORM = 'no transform'
    NOT_FINITE = 'estimate not finite'
    INTERNAL = 'internal error'


OUR_FAULTS = {DropCause.NOT_FINITE, DropCause.INTERNAL}
"""Causes that no image should bring about: each one is worth a warning."""


class Monitor:
    """
    Counters of one node, written by its threads and read for its diagnostics.

    `facts` are further lines of the report (device, weights, ...), `failure` is why the last
    transition was refused, and `active` tells whether images are expected.

    :param window_s: time over which rates and percentiles are taken and the level is judged
    """

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self.facts: dict[str, str] = {}
        self.failure = ''
        self.active = False
        self._lock = threading.Lock()
        self._received: deque[float] = deque()
        self._dropped: deque[tuple[float, DropCause]] = deque()
        self._estimated: deque[float] = deque()
        self._measured: deque[float] = deque()
        self._published: deque[tuple[float, float, float, float, float]] = deque()
        self._totals: Counter[str] = Counter(received=0, estimated=0, published=0)
        self._restarts = 0
        self._drops: Counter[DropCause] = Counter()
        self._last_drop = ''

    def received(self) -> None:
        """Count an image that arrived."""
        with self._lock:
            self._totals['received'] += 1
            self._received.append(time.monotonic())

    def dropped(self, cause: DropCause, reason: str) -> None:
        """Count an image that yields no estimate."""
        with self._lock:
            self._drops[cause] += 1
            self._dropped.append((time.monotonic(), cause))
            self._last_drop = f'{cause.value}: {reason}'

    def estimated(self, facts: dict[str, str]) -> None:
        """Count an image whose motion was estimated, and keep what is to be told of it."""
        with self._lock:
            self.facts |= facts
            self._totals['estimated'] += 1
            self._estimated.append(time.monotonic())

    def published(self, latency_s: float, processing_s: float, estimator_s: float,
                  waited_s: float, row_band: int = 0) -> None:
        """
        Count an Imu message.

        :param latency_s: from the image's stamp to the message, in the node's clock
        :param processing_s: from the image's arrival to the message
        :param estimator_s: what the estimator took of it; the rest of the latency is overhead
        :param waited_s: part of the overhead: while the estimator was busy with images before
        :param row_band: of its image; 0 begins another image
        """
        with self._lock:
            if row_band == 0:
                self._measured.append(time.monotonic())
            self._totals['published'] += 1
            self._published.append(
                (time.monotonic(), latency_s, processing_s, latency_s - estimator_s, waited_s))

    def restarted(self) -> None:
        """Count a jump back in time, at which the estimation starts anew."""
        with self._lock:
            self._restarts += 1

    def report(self, node_name: str, stamp: Time) -> DiagnosticArray:
        """Diagnostics of the last seconds."""
        with self._lock:
            self._forget_old()
            level, message = self._judge()
            values = self._values()
        status = DiagnosticStatus(
            level=level, name=f'{node_name}: visual gyroscope', message=message,
            hardware_id=node_name,
            values=[KeyValue(key=key, value=value) for key, value in values.items()])
        return DiagnosticArray(header=Header(stamp=stamp), status=[status])

    def totals(self) -> dict[str, int]:
        """Images received, estimated, published and dropped so far."""
        with self._lock:
            return {**self._totals, 'dropped': sum(self._drops.values())}

    def times_ms(self) -> dict[str, list[float]]:
        """PERCENTILES of `TIMES`, ms; empty without messages."""
        with self._lock:
            self._forget_old()
            return self._times_ms()

    def _times_ms(self) -> dict[str, list[float]]:
        if not self._published:
            return {}
        columns = 1e3 * np.array(self._published)[:, 1:].T
        return {name: np.percentile(column, PERCENTILES).round(2).tolist()
                for name, column in zip(TIMES, columns)}

    def _forget_old(self) -> None:
        """Drop events that have left the window."""
        start = time.monotonic() - self._window_s
        for events in (self._received, self._estimated, self._measured):
            while events and events[0] < start:
                events.popleft()
        for details in (self._dropped, self._published):
            while details and details[0][0] < start:
                details.popleft()

    def _judge(self) -> tuple[bytes, str]:
        """Level and one line."""
        received, dropped = len(self._received), len(self._dropped)
        if self.failure:
            return DiagnosticStatus.ERROR, self.failure
        if not self.active:
            return DiagnosticStatus.STALE, 'not active'
        if not received:
            return DiagnosticStatus.STALE, 'no images arrive'
        if not self._estimated and dropped:
            return DiagnosticStatus.ERROR, f'every image is dropped; {self._last_drop}'
        faults = sum(cause in OUR_FAULTS for _, cause in self._dropped)
        if faults:
            return (DiagnosticStatus.WARN,
                    f'{faults} images dropped by a fault of ours; see the log')
        if self._estimated and not self._published:
            return DiagnosticStatus.WARN, 'no image yields a motion with a known sign'
        if dropped >= WARN_DROPPED_SHARE * received:
            return (DiagnosticStatus.WARN,
                    f'{dropped} of {received} images dropped; {self._last_drop}')
        if self.facts.get('exposure source') == 'unknown':
            return (DiagnosticStatus.WARN,
                    'exposure unknown: set exposure_time or use_exposure_topic, or '
                    'stream.exposure_mode to estimate')
        # those that have left the window may have been measured within it
        measured = min(len(self._measured), received)
        return DiagnosticStatus.OK, f'{measured} of {received} images measured'

    def _values(self) -> dict[str, str]:
        """Every line of the report."""
        values = {
            'input rate [Hz]': f'{rate_hz(self._received):.1f}',
            'output rate [Hz]': f'{rate_hz([event[0] for event in self._published]):.1f}'}
        for name, times in self._times_ms().items():
            for percentile, value in zip(PERCENTILES, times):
                values[f'{name} p{percentile} [ms]'] = f'{value:.2f}'
        values |= {f'images {name}': str(count) for name, count in self._totals.items()}
        values['images dropped'] = str(sum(self._drops.values()))
        values |= {f'dropped: {cause.value}': str(self._drops[cause]) for cause in DropCause}
        values['time jumps'] = str(self._restarts)
        return values | {'last drop': self._last_drop} | self.facts


def rate_hz(times_s: Sequence[float]) -> float:
    """Mean rate of events, 0 for fewer than two."""
    return (len(times_s) - 1) / (times_s[-1] - times_s[0]) if len(times_s) > 1 else 0.0
