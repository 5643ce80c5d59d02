"""The level of the diagnostics means something: what is wrong decides it."""

import pytest

pytest.importorskip('rclpy')

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus

from image_as_imu_ros.ros import diagnostics
from image_as_imu_ros.ros.diagnostics import DropCause, Monitor


@pytest.fixture
def clock(monkeypatch):
    """Monotonic clock of the monitor, to be moved by hand: [s]."""
    now_s = [100.0]
    monkeypatch.setattr(diagnostics.time, 'monotonic', lambda: now_s[0])
    return now_s


@pytest.fixture
def monitor(clock):
    monitor = Monitor()
    monitor.active = True
    return monitor


def run(monitor: Monitor, clock: list[float], measured: int, unsigned: int = 0,
        dropped: int = 0, exposure: str = 'topic') -> DiagnosticStatus:
    """Status after so many images at 10 Hz."""
    fates = ['measured'] * measured + ['unsigned'] * unsigned + ['dropped'] * dropped
    for fate in fates:
        clock[0] += 0.1
        monitor.received()
        if fate == 'dropped':
            monitor.dropped(DropCause.BAD_IMAGE, 'it is broken')
            continue
        monitor.estimated({'exposure source': exposure})
        if fate == 'measured':
            monitor.published(latency_s=0.02, processing_s=0.01, estimator_s=0.007,
                              waited_s=0.002)
    return monitor.report('/visual_imu', Time(sec=5)).status[0]


@pytest.mark.parametrize('counts, level, words', [
    ({'measured': 10}, DiagnosticStatus.OK, '10 of 10'),
    ({'measured': 19, 'dropped': 1}, DiagnosticStatus.OK, '19 of 20'),
    ({'measured': 8, 'dropped': 2}, DiagnosticStatus.WARN, '2 of 10 images dropped; bad image'),
    ({'measured': 0, 'dropped': 9}, DiagnosticStatus.ERROR, 'every image is dropped; bad image'),
    ({'measured': 0, 'unsigned': 9}, DiagnosticStatus.WARN, 'known sign'),
    ({'measured': 9, 'exposure': 'unknown'}, DiagnosticStatus.WARN, 'exposure unknown'),
    ({'measured': 0}, DiagnosticStatus.STALE, 'no images'),
])
def test_level_follows_from_what_became_of_the_images(monitor, clock, counts, level, words):
    status = run(monitor, clock, **counts)
    assert status.level == level
    assert words in status.message


def test_past_trouble_is_forgotten_but_stays_counted(monitor, clock):
    run(monitor, clock, measured=0, dropped=5)
    clock[0] += 10.0
    status = run(monitor, clock, measured=10)
    assert status.level == DiagnosticStatus.OK
    assert {pair.key: pair.value for pair in status.values}['dropped: bad image'] == '5'


def test_a_refused_transition_is_an_error_until_the_next_one(monitor):
    monitor.active, monitor.failure = False, 'configure refused: no weights'
    status = monitor.report('/visual_imu', Time()).status[0]
    assert (status.level, status.message) == (DiagnosticStatus.ERROR, monitor.failure)
    monitor.failure = ''
    assert monitor.report('/visual_imu', Time()).status[0].level == DiagnosticStatus.STALE


def test_rates_and_percentiles_are_those_of_the_window(monitor, clock):
    status = run(monitor, clock, measured=20, unsigned=1)
    values = {pair.key: pair.value for pair in status.values}
    assert values['input rate [Hz]'] == values['output rate [Hz]'] == '10.0'
    assert values['latency p50 [ms]'] == '20.00'
    assert values['processing p95 [ms]'] == '10.00'
    assert values['overhead p99 [ms]'] == '13.00'
    assert values['waiting p50 [ms]'] == '2.00'


@pytest.mark.parametrize('cause', [DropCause.INTERNAL, DropCause.NOT_FINITE])
def test_a_single_fault_of_ours_is_a_warning(monitor, clock, cause):
    run(monitor, clock, measured=25)
    monitor.dropped(cause, 'a bug')
    status = run(monitor, clock, measured=1)
    assert status.level == DiagnosticStatus.WARN
    assert 'fault of ours' in status.message
