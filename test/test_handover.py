"""When the next image is begun, and what becomes of those handed over."""

from __future__ import annotations

import threading

import pytest

pytest.importorskip('rclpy')

from image_as_imu_ros.ros import handover as module  # noqa: E402
from image_as_imu_ros.ros.handover import Handover  # noqa: E402

DEADLINE_S = 10.0


class Clock:
    """A monotonic clock that moves when told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, 'time', clock)
    return clock


def measured(handover: Handover, clock: Clock, item: str, observed_for_s: float,
             estimated_for_s: float) -> None:
    """Pass an image through both stages; the next one to be estimated is not there yet."""
    handover.put(item, observed_for_s)
    assert handover.take() == item
    clock.now_s += estimated_for_s


def waiter(handover: Handover) -> threading.Thread:
    """A thread that waits for its turn."""
    thread = threading.Thread(target=handover.wait_for_turn, daemon=True)
    thread.start()
    return thread


def settle(handover: Handover, clock: Clock, observed_for_s: float,
           estimated_for_s: float) -> None:
    """Let two images pass, then leave the estimator at the third."""
    for item in ('first', 'second'):
        measured(handover, clock, item, observed_for_s, estimated_for_s)
    handover.put('third', observed_for_s)
    assert handover.take() == 'third'


def test_the_first_images_are_begun_at_once(clock):
    handover = Handover()
    handover.wait_for_turn()
    handover.put('first', 0.1)
    handover.wait_for_turn()
    assert handover.take() == 'first'
    handover.wait_for_turn()  # nobody knows yet how long an estimation takes


def test_an_image_is_begun_at_once_where_observing_takes_longer(clock):
    handover = Handover()
    settle(handover, clock, observed_for_s=60.0, estimated_for_s=50.0)
    handover.wait_for_turn()


def test_an_image_is_begun_when_the_estimator_will_be_free_once_it_is_observed(clock):
    handover = Handover()
    settle(handover, clock, observed_for_s=20.0, estimated_for_s=60.0)
    clock.now_s += 40.0
    handover.wait_for_turn()  # 20 s left to estimate, as many to observe


def test_an_image_is_not_begun_before(clock):
    handover = Handover()
    settle(handover, clock, observed_for_s=20.0, estimated_for_s=60.0)
    clock.now_s += 10.0
    thread = waiter(handover)
    thread.join(0.2)
    assert thread.is_alive()
    clock.now_s += 1.0  # sooner than ever before: the estimator wants the next one
    estimator = threading.Thread(target=handover.take, daemon=True)
    estimator.start()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    handover.close()
    estimator.join(DEADLINE_S)
    assert not estimator.is_alive()


def test_an_image_that_waits_already_counts_as_work_to_come(clock):
    handover = Handover()
    settle(handover, clock, observed_for_s=50.0, estimated_for_s=60.0)
    clock.now_s += 20.0
    handover.wait_for_turn()  # 40 s left, 50 to observe
    handover.put('fourth', 50.0)
    thread = waiter(handover)
    thread.join(0.2)
    assert thread.is_alive()  # 100 s left
    assert handover.take() == 'fourth'
    clock.now_s += 60.0
    handover.put('fifth', 50.0)
    assert handover.take() == 'fifth'
    thread.join(DEADLINE_S)
    assert not thread.is_alive()


def test_what_was_handed_over_is_still_taken_after_the_end():
    handover = Handover()
    handover.put('last', 0.1)
    handover.close()
    assert handover.take() == 'last'
    assert handover.take() is None and handover.take() is None


def test_there_is_room_for_one_image():
    handover, taken = Handover(), []
    handover.put('first', 0.1)
    observer = threading.Thread(target=handover.put, args=('second', 0.1), daemon=True)
    observer.start()
    observer.join(0.2)
    assert observer.is_alive()
    taken += [handover.take(), handover.take()]
    observer.join(DEADLINE_S)
    assert taken == ['first', 'second'] and not observer.is_alive()
