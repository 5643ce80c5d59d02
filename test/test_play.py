"""`image-as-imu play`: a real bag, played in a process of its own over real DDS."""

import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag1 import Writer as Ros1Writer
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

rclpy = pytest.importorskip('rclpy')
pytest.importorskip('image_as_imu_ros.msg')

from image_as_imu_ros.msg import MotionEstimate  # noqa: E402
from rclpy.context import Context  # noqa: E402
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy  # noqa: E402
from rosgraph_msgs.msg import Clock  # noqa: E402
from sensor_msgs.msg import Image, Imu  # noqa: E402
from std_msgs.msg import String  # noqa: E402

from image_as_imu_ros.errors import ConfigError, SynchronizationError  # noqa: E402
from image_as_imu_ros.ros import player as player_module  # noqa: E402
from image_as_imu_ros.ros.player import PlayOptions, PlayStatistics, play  # noqa: E402
from image_as_imu_ros.ros.recorder import Recorder  # noqa: E402

CHECKOUT = Path(__file__).resolve().parents[1]
BEGIN_NS = 1_700_000_000_000_000_000
IMAGES, IMUS, SECONDS = 30, 200, 1.0
IMAGE_TYPE, IMU_TYPE = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/Imu'


@pytest.fixture(scope='module', params=['mcap folder', 'sqlite3 folder', 'mcap file'])
def bag(request, tmp_path_factory):
    return write_bag(tmp_path_factory.mktemp('bag') / 'bag', request.param)


@pytest.fixture(scope='module')
def short_bag(tmp_path_factory):
    return write_bag(tmp_path_factory.mktemp('bag') / 'bag', 'mcap folder')


def write_bag(folder, kind):
    """One second of 320x224 images and Imu, a latched note and a topic of an unknown type."""
    store = get_typestore(Stores.ROS2_KILTED)
    store.register(get_types_from_msg('int32 value\n', 'nowhere_msgs/msg/Nothing'))
    types = store.types
    plugin = StoragePlugin.SQLITE3 if kind.startswith('sqlite3') else StoragePlugin.MCAP
    latched = Qos(QosHistory.KEEP_LAST, 1, QosReliability.RELIABLE, QosDurability.TRANSIENT_LOCAL,
                  QosTime(0, 0), QosTime(0, 0), QosLiveliness.AUTOMATIC, QosTime(0, 0), False)

    def header(stamp_ns):
        stamp = types['builtin_interfaces/msg/Time'](*divmod(stamp_ns, 10**9))
        return types['std_msgs/msg/Header'](stamp, 'camera')

    with Writer(folder, version=9, storage_plugin=plugin) as writer:
        def add(topic, msgtype, **options):
            connection = writer.add_connection(topic, msgtype, typestore=store, **options)
            return lambda stamp_ns, message: writer.write(
                connection, stamp_ns, store.serialize_cdr(message, msgtype))

        note = add('/note', 'std_msgs/msg/String', offered_qos_profiles=[latched])
        note(BEGIN_NS, types['std_msgs/msg/String']('hello'))
        add('/nothing', 'nowhere_msgs/msg/Nothing')(
            BEGIN_NS, types['nowhere_msgs/msg/Nothing'](1))
        image, imu = add('/image', IMAGE_TYPE), add('/imu', IMU_TYPE)
        events = [(BEGIN_NS + round(i * 1e9 * SECONDS / IMAGES), 'image', i)
                  for i in range(IMAGES)]
        events += [(BEGIN_NS + round(i * 1e9 * SECONDS / IMUS), 'imu', i) for i in range(IMUS)]
        for stamp_ns, what, index in sorted(events):
            if what == 'image':
                pixels = np.full(320 * 224 * 3, index, np.uint8)
                image(stamp_ns, types[IMAGE_TYPE](header(stamp_ns), 224, 320, 'rgb8', 0, 960,
                                                  pixels))
            else:
                vector = types['geometry_msgs/msg/Vector3'](float(index), 0.0, 0.0)
                imu(stamp_ns, types[IMU_TYPE](
                    header(stamp_ns), types['geometry_msgs/msg/Quaternion'](0.0, 0.0, 0.0, 1.0),
                    np.zeros(9), vector, np.zeros(9), vector, np.zeros(9)))
    return next(folder.glob('*.mcap')) if kind == 'mcap file' else folder


@contextmanager
def player(bag, *options):
    process = subprocess.Popen(
        [sys.executable, '-m', 'image_as_imu_ros', 'play', str(bag), *options], cwd=CHECKOUT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # a shell's background jobs, such as CI, ignore Ctrl-C, and so would their children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def record_whole_play(bag, topics, *options):
    with Recorder(topics) as recorder, player(bag, '--wait-for-subscribers', '20',
                                              *options) as process:
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        time.sleep(0.5)  # for what is still under way
    return recorder.messages, output, errors


def stamps_ns(messages):
    return np.array([message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
                     for _, message in messages])


def test_all_messages_arrive_unchanged_in_order_and_in_time(bag):
    received, output, errors = record_whole_play(bag, {'/image': Image, '/imu': Imu})
    images, imus = received['/image'], received['/imu']
    assert [message.data[0] for _, message in images] == list(range(IMAGES))
    assert [message.angular_velocity.x for _, message in imus] == list(range(IMUS))
    np.testing.assert_array_equal(
        stamps_ns(imus), BEGIN_NS + np.round(np.arange(IMUS) * 1e9 * SECONDS / IMUS))
    took_s = imus[-1][0] - imus[0][0]
    assert took_s == pytest.approx(SECONDS * (IMUS - 1) / IMUS, abs=0.15)
    assert f'{IMAGES + IMUS + 1} messages published' in output
    assert '/nothing is left out' in errors and 'nowhere_msgs/msg/Nothing' in errors


def test_rate_changes_the_pace_but_not_the_stamps(short_bag):
    received, _, _ = record_whole_play(short_bag, {'/image': Image, '/imu': Imu}, '--rate', '2')
    imus = received['/imu']
    assert imus[-1][0] - imus[0][0] == pytest.approx(SECONDS / 2, abs=0.15)
    assert stamps_ns(imus)[-1] - stamps_ns(imus)[0] == pytest.approx(0.995e9)


def test_excluded_topics_are_left_out(short_bag):
    received, output, _ = record_whole_play(short_bag, {'/image': Image, '/imu': Imu},
                                            '--exclude', '/imu', '/note')
    assert len(received['/image']) == IMAGES and not received['/imu']
    assert f'{IMAGES} messages published' in output


def test_restamped_messages_happen_now(short_bag):
    before_ns = time.time_ns()
    received, _, _ = record_whole_play(short_bag, {'/image': Image, '/imu': Imu},
                                       '--restamp', 'now')
    stamps = stamps_ns(received['/imu'])
    assert before_ns < stamps[0] < stamps[-1] < time.time_ns()
    np.testing.assert_allclose(np.diff(stamps), 1e9 * SECONDS / IMUS, atol=2)
    assert [message.data[-1] for _, message in received['/image']] == list(range(IMAGES))


def test_clock_runs_with_the_recording(short_bag):
    received, _, _ = record_whole_play(short_bag, {'/image': Image, '/clock': Clock}, '--clock')
    ticks = np.array([tick.clock.sec * 10**9 + tick.clock.nanosec
                      for _, tick in received['/clock']])
    assert (np.diff(ticks) >= 0).all()
    assert ticks[0] == pytest.approx(BEGIN_NS, abs=0.05e9)
    assert ticks[-1] == pytest.approx(BEGIN_NS + 0.995e9, abs=0.02e9)
    assert np.diff(ticks).max() < 0.1e9


def test_loop_starts_again_and_latched_messages_reach_late_subscribers(short_bag):
    with Recorder({'/image': Image}) as recorder, player(
            short_bag, '--loop', '--wait-for-subscribers', '20') as process:
        notes = []
        deadline = time.monotonic() + 40
        while len(recorder.messages['/image']) < 2 * IMAGES and time.monotonic() < deadline:
            time.sleep(0.05)
        recorder.node.create_subscription(
            String, '/note', notes.append,
            QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL))
        while not notes and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    shown = [message.data[0] for _, message in recorder.messages['/image']]
    assert shown[:2 * IMAGES] == 2 * list(range(IMAGES))
    assert notes[0].data == 'hello'
    assert process.returncode == 130  # interrupted


def test_nobody_listening_is_an_error_after_the_waiting_time(short_bag):
    with player(short_bag, '--wait-for-subscribers', '0.5') as process:
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith(
        'image-as-imu play: no one subscribed to /image within 0.5 s')


@contextmanager
def answering(work_s, unanswered=(), bands=1):
    """A node that takes the newest image, works on it and answers; gives the images it took."""
    context, taken = Context(), []
    rclpy.init(context=context)
    node = rclpy.create_node('gyroscope', context=context)
    answers = node.create_publisher(MotionEstimate, '/gyroscope/motion', 10)

    def answer(image):
        time.sleep(work_s)
        taken.append(image.data[0])
        if taken[-1] not in unanswered:
            for band in range(bands):
                answers.publish(MotionEstimate(header=image.header, row_band_index=band,
                                               row_band_count=bands))

    node.create_subscription(
        Image, '/image', answer, QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)

    def spin():
        with suppress(ExternalShutdownException):
            executor.spin()

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        yield taken
    finally:
        context.try_shutdown()
        thread.join()


@pytest.mark.parametrize('bands', [1, 3])
def test_a_bag_that_waits_for_answers_loses_no_image_to_a_slow_node(short_bag, bands):
    options = PlayOptions(rate=20.0, clock=True, wait_for_subscribers_s=20.0,
                          answers='/gyroscope/motion')
    statistics = PlayStatistics()
    with Recorder({'/clock': Clock, '/imu': Imu}) as recorder, \
            answering(work_s=0.02, bands=bands) as taken:
        play(short_bag, options, statistics)
        assert taken == list(range(IMAGES))  # the last one too is awaited
    assert statistics.unanswered == 0 and statistics.messages == IMAGES + IMUS + 1
    ticks = [(at_s, tick.clock.sec * 10**9 + tick.clock.nanosec)
             for at_s, tick in recorder.messages['/clock']]
    assert ticks[-1][0] - ticks[0][0] > 0.9 * IMAGES * 0.02  # not 1 / 20 s
    assert ticks[-1][1] == pytest.approx(BEGIN_NS + 0.995e9, abs=0.02e9)
    assert [message.angular_velocity.x for _, message in recorder.messages['/imu']] == list(
        range(IMUS))


def test_an_image_without_an_answer_does_not_stop_the_bag(short_bag, monkeypatch):
    monkeypatch.setattr(player_module, 'ANSWER_LIMIT_S', 0.5)
    statistics = PlayStatistics()
    options = PlayOptions(rate=20.0, wait_for_subscribers_s=20.0, answers='/gyroscope/motion')
    with answering(work_s=0.0, unanswered={4, 29}) as taken:
        play(short_bag, options, statistics)
    assert taken == list(range(IMAGES)) and statistics.unanswered == 2


def test_a_node_that_listens_but_answers_elsewhere_is_an_error(short_bag):
    options = PlayOptions(wait_for_subscribers_s=0.5, answers='/other/motion')
    with answering(work_s=0.0), pytest.raises(SynchronizationError, match='/other/motion'):
        play(short_bag, options, PlayStatistics())


@pytest.mark.parametrize('options', [{}, {'restamp': True, 'wait_for_subscribers_s': 1.0}])
def test_answers_need_someone_who_answers_and_the_time_of_the_bag(options):
    with pytest.raises(ConfigError, match='/gyroscope/motion'):
        PlayOptions(answers='/gyroscope/motion', **options)


@pytest.mark.parametrize('content', [None, b'', b'this is no bag'])
def test_what_is_no_bag_is_an_error_of_one_line(tmp_path, content):
    path = tmp_path / 'bag.mcap'
    if content is not None:
        path.write_bytes(content)
    with player(path) as process:
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert len(errors.splitlines()) == 1 and str(path) in errors


def test_a_bag_of_ros_1_is_refused(tmp_path):
    store = get_typestore(Stores.ROS1_NOETIC)
    with Ros1Writer(tmp_path / 'old.bag') as writer:
        connection = writer.add_connection('/note', 'std_msgs/msg/String', typestore=store)
        message = store.types['std_msgs/msg/String']('hello')
        writer.write(connection, 1, store.serialize_ros1(message, 'std_msgs/msg/String'))
    with player(tmp_path / 'old.bag') as process:
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1 and 'rosbags-convert' in errors


@pytest.mark.parametrize('options', [{'rate': 0.0}, {'rate': float('nan')},
                                     {'wait_for_subscribers_s': -1.0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match='outside'):
        PlayOptions(**options)
