"""Plays a rosbag2 over DDS in real time, where no `ros2 bag` is installed."""

from __future__ import annotations

import importlib
import itertools
import logging
import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import rclpy
from rclpy.context import Context
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosbags.interfaces import Connection, QosDurability
from rosgraph_msgs.msg import Clock
from tqdm import tqdm

from image_as_imu_ros.errors import ConfigError, DataFormatError, SynchronizationError
from image_as_imu_ros.evaluation.sources.rosbag import COMPRESSED_IMAGE_TYPE, IMAGE_TYPE, Bag

if TYPE_CHECKING:
    from image_as_imu_ros.msg import MotionEstimate

LARGE_IMAGES_PROFILE = Path(__file__).with_name('fastdds_large_images.xml')
"""Fast DDS profile whose shared-memory segment has room for images."""

QUEUE_DEPTH = 50
LATCHED_QUEUE_DEPTH = 1000
CLOCK_PERIOD_S = 0.01
POLL_PERIOD_S = 0.05
BAR_FORMAT = 'playing: {percentage:3.0f}%|{bar}| {n:.1f}/{total:.1f} s'
SETTLING_S = 3.5
"""
From the discovery of one subscriber until the others are known, too, as a filter beside the node.

Fast DDS announces a participant again after 3 s, where its first announcements were not heard.
"""
ANSWER_LIMIT_S = 10.0
"""How long the bag stands still for the answer to an image, which may have been dropped."""
SAME_FRAME_NS = 2_000_000
"""Images whose stamps differ by no more are of one frame, as an image and its depth."""
STAMP_OFFSET = 4
"""Of a header's stamp in a serialized message, after CDR's preamble."""

logger = logging.getLogger(__name__)
logger.addHandler(logging.NullHandler())


@dataclass(frozen=True)
class PlayOptions:
    """
    How a bag is played.

    `rate` is the speed, 1 as recorded. With `restamp`, header stamps are shifted as though the
    recording happened now; otherwise messages go out unchanged. `clock` publishes `/clock` in
    recorded time, for nodes with `use_sim_time`. `wait_for_subscribers_s` is how long to wait
    for someone to subscribe to the images before the first message; 0 does not wait. Topics in
    `exclude` are left out, such as a `/tf_static` that contradicts the robot's. With `answers`,
    the topic `~/motion` of a node, the bag and its clock stand still before each image until the
    one before is answered, so that a node slower than the bag loses none.

    :raises ConfigError: if the rate or the waiting time is out of range, or `answers` goes with
        `restamp`, whose stamps would not tell how much time passed between images, or without
        `wait_for_subscribers_s`
    """

    rate: float = 1.0
    loop: bool = False
    restamp: bool = False
    clock: bool = False
    wait_for_subscribers_s: float = 0.0
    exclude: tuple[str, ...] = ()
    answers: str = ''

    def __post_init__(self) -> None:
        if not 0.01 <= self.rate <= 100:
            raise ConfigError(f'rate {self.rate} is outside [0.01, 100]')
        if not 0 <= self.wait_for_subscribers_s <= 3600:
            raise ConfigError(
                f'waiting time {self.wait_for_subscribers_s} s is outside [0, 3600] s')
        if self.answers and self.restamp:
            raise ConfigError(f'answers on {self.answers} cannot be waited for with restamp: the '
                              'bag would stand still while its time goes on; use clock instead')
        if self.answers and not self.wait_for_subscribers_s:
            raise ConfigError(f'answers on {self.answers} need someone who answers; tell by '
                              'wait-for-subscribers how many seconds to wait for it')


@dataclass
class PlayStatistics:
    """What has been published, and how late."""

    messages: int = 0
    worst_lag_s: float = 0.0
    """Longest time from when a message was due until DDS had taken it."""
    unanswered: int = 0
    """Images whose answer did not come in time, with `answers`."""


@dataclass(frozen=True)
class Channel:
    """A topic of the bag, its publisher, and whether its messages begin with a header."""

    connection: Connection
    publisher: Publisher
    has_header: bool

    @property
    def has_images(self) -> bool:
        """Whether its messages are images."""
        return self.connection.msgtype in (IMAGE_TYPE, COMPRESSED_IMAGE_TYPE)


def play(bag: Path, options: PlayOptions, statistics: PlayStatistics) -> None:
    """
    Publish the messages of a bag at the pace of their times in the bag.

    Messages travel as the bytes that they are stored as. Types that are not installed are left
    out with a warning.

    :param bag: rosbag2 folder (sqlite3 or MCAP), or a single .mcap or .db3 file
    :param statistics: brought up to date with each message
    :raises DataFormatError: if the bag cannot be read or holds nothing that can be published
    :raises SynchronizationError: if no one subscribes in time
    """
    os.environ.setdefault('FASTDDS_DEFAULT_PROFILES_FILE', str(LARGE_IMAGES_PROFILE))
    if options.restamp and options.rate != 1.0:
        logger.warning('new stamps at rate %g: motion between images looks %g times as fast as '
                       'it was, unlike their blur; use clock instead', options.rate, options.rate)
    with Bag(bag) as reader:
        context = Context()  # not the default one, whose signal handlers would swallow Ctrl-C
        rclpy.init(context=context)
        try:
            node = rclpy.create_node('bag_player', context=context)
            Player(node, reader, options, statistics).run()
        finally:
            context.try_shutdown()


class Player:
    """Publishers of a node for the topics of an open bag."""

    def __init__(self, node: Node, reader: Bag, options: PlayOptions,
                 statistics: PlayStatistics) -> None:
        self._node = node
        self._reader = reader
        self._options = options
        self._statistics = statistics
        self._channels: dict[int, Channel] = {}
        for connection in reader.connections:
            if connection.topic not in options.exclude:
                self._advertise(connection)
        if not self._channels:
            raise DataFormatError('the bag has no topic of an installed type; '
                                  'install or source the packages of its types')
        self._clock = node.create_publisher(Clock, '/clock', 1) if options.clock else None
        self._answers = Answers(node, options.answers) if options.answers else None
        self._awaited_ns: int | None = None
        """Stamp of the image that is yet to be answered."""

    def run(self) -> None:
        """Play to the end, or again and again until interrupted."""
        if self._options.wait_for_subscribers_s:
            self._wait_for_subscribers()
        while True:
            self._play_once()
            if not self._options.loop:
                break
        for channel in self._channels.values():
            channel.publisher.wait_for_all_acked(Duration(seconds=1))

    def _advertise(self, connection: Connection) -> None:
        package, _, name = connection.msgtype.split('/')
        try:
            kind = getattr(importlib.import_module(f'{package}.msg'), name)
        except (ImportError, AttributeError):
            logger.warning('%s is left out: its type %s is not installed',
                           connection.topic, connection.msgtype)
            return
        latched = connection.topic == '/tf_static' or any(
            qos.durability == QosDurability.TRANSIENT_LOCAL
            for qos in connection.ext.offered_qos_profiles)
        qos = QoSProfile(depth=QUEUE_DEPTH)
        if latched:
            qos = QoSProfile(depth=LATCHED_QUEUE_DEPTH,
                             durability=DurabilityPolicy.TRANSIENT_LOCAL)
        fields = kind.get_fields_and_field_types()
        self._channels[connection.id] = Channel(
            connection, self._node.create_publisher(kind, connection.topic, qos),
            has_header=next(iter(fields.values()), None) == 'std_msgs/Header')

    def _wait_for_subscribers(self) -> None:
        images = [channel for channel in self._channels.values() if channel.has_images]
        awaited = images or list(self._channels.values())
        limit_s = self._options.wait_for_subscribers_s
        end_s = time.monotonic() + limit_s
        while not any(map(self._is_heard, awaited)):
            if time.monotonic() > end_s:
                topics = ' or '.join(channel.connection.topic for channel in awaited)
                if self._answers is not None:
                    topics += f' and would answer on {self._options.answers}'
                raise SynchronizationError(
                    f'no one subscribed to {topics} within {limit_s} s; is the subscriber '
                    'running, with the same ROS_DOMAIN_ID?')
            time.sleep(POLL_PERIOD_S)
        time.sleep(SETTLING_S)

    def _is_heard(self, channel: Channel) -> bool:
        """Whether someone subscribes to a topic: the node that answers, if one does."""
        if self._answers is None:
            return channel.publisher.get_subscription_count() > 0
        return self._answers.come_from_a_subscriber_of(channel.connection.topic)

    def _play_once(self) -> None:
        messages = self._reader.messages(
            [channel.connection for channel in self._channels.values()])
        first = next(messages, None)  # opens the files, before the clock starts to run
        if first is None:
            raise DataFormatError('the bag has no messages')
        recorded_s = (self._reader.end_time - first[1]) * 1e-9
        with tqdm(total=recorded_s, bar_format=BAR_FORMAT) as progress:
            begin_ns, begin_wall_ns, begin_recorded_ns = (
                time.monotonic_ns(), time.time_ns(), first[1])
            for connection, recorded_ns, data in itertools.chain([first], messages):
                since_begin_ns = recorded_ns - begin_recorded_ns
                due_ns = begin_ns + round(since_begin_ns / self._options.rate)
                self._sleep_until(due_ns, recorded_ns)
                channel = self._channels[connection.id]
                if self._answers is not None and channel.has_images and self._is_heard(channel):
                    pause_ns = self._await_answer(stamp_of(data))
                    begin_ns, due_ns = begin_ns + pause_ns, due_ns + pause_ns
                if self._options.restamp and channel.has_header:
                    data = self._restamped(data, begin_recorded_ns, begin_wall_ns)
                channel.publisher.publish(data)
                lag_s = (time.monotonic_ns() - due_ns) * 1e-9
                self._statistics.messages += 1
                self._statistics.worst_lag_s = max(self._statistics.worst_lag_s, lag_s)
                progress.update(since_begin_ns * 1e-9 - progress.n)
        if self._answers is not None:
            self._await_answer(None)

    def _await_answer(self, next_ns: int | None) -> int:
        """
        Stand still until the image published last is answered.

        :param next_ns: stamp of what is to be published now; None at the end
        :returns: for how long, ns
        """
        awaited_ns, begin_ns = self._awaited_ns, time.monotonic_ns()
        if None not in (awaited_ns, next_ns) and abs(next_ns - awaited_ns) <= SAME_FRAME_NS:
            return 0
        self._awaited_ns = next_ns
        if awaited_ns is not None and not self._answers.wait():
            self._statistics.unanswered += 1
            logger.warning('the image of %.3f s is not answered on %s within %g s',
                           awaited_ns * 1e-9, self._options.answers, ANSWER_LIMIT_S)
        return time.monotonic_ns() - begin_ns

    def _sleep_until(self, due_ns: int, recorded_ns: int) -> None:
        """Sleep, with the clock ticking on towards the recorded time of what is due."""
        while True:
            left_s = (due_ns - time.monotonic_ns()) * 1e-9
            if self._clock is not None:
                now_ns = recorded_ns - round(max(left_s, 0) * 1e9 * self._options.rate)
                tick = Clock()
                tick.clock.sec, tick.clock.nanosec = divmod(now_ns, 10**9)
                self._clock.publish(tick)
            if left_s <= 0:
                return
            time.sleep(left_s if self._clock is None else min(left_s, CLOCK_PERIOD_S))

    def _restamped(self, data: bytes, begin_recorded_ns: int, begin_wall_ns: int) -> bytes:
        """Shift the stamp at the start of a serialized message from recorded to present time."""
        since_begin_ns = stamp_of(data) - begin_recorded_ns
        stamp_ns = begin_wall_ns + round(since_begin_ns / self._options.rate)
        stamp = struct.pack(stamp_layout(data), *divmod(stamp_ns, 10**9))
        return data[:STAMP_OFFSET] + stamp + data[STAMP_OFFSET + len(stamp):]


class Answers:
    """The messages on the topic `~/motion` of a node, one for each image that it can use."""

    def __init__(self, node: Node, topic: str) -> None:
        from image_as_imu_ros.msg import MotionEstimate
        self._node, self._topic = node, topic
        self._executor = SingleThreadedExecutor(context=node.context)
        self._executor.add_node(node)
        self._is_answered = False
        node.create_subscription(MotionEstimate, topic, self._hear, QUEUE_DEPTH)

    def come_from_a_subscriber_of(self, topic: str) -> bool:
        """Tell whether the node that answers listens to a topic."""
        answering, listening = (
            {(end.node_namespace, end.node_name) for end in ends}
            for ends in (self._node.get_publishers_info_by_topic(self._topic),
                         self._node.get_subscriptions_info_by_topic(topic)))
        return not answering.isdisjoint(listening)

    def _hear(self, msg: MotionEstimate) -> None:
        if msg.row_band_index + 1 >= msg.row_band_count:  # the last of its image
            self._is_answered = True

    def wait(self) -> bool:
        """Wait for the answer to one image, but not for ever; tell whether it came."""
        end_s = time.monotonic() + ANSWER_LIMIT_S
        while not self._is_answered and (left_s := end_s - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=left_s)
        came, self._is_answered = self._is_answered, False
        return came


def stamp_layout(data: bytes) -> str:
    """How `struct` packs the stamp of a serialized message, whose second byte tells the order."""
    return '<iI' if data[1] & 1 else '>iI'


def stamp_of(data: bytes) -> int:
    """Stamp of a serialized message that begins with a header, ns."""
    seconds, nanoseconds = struct.unpack_from(stamp_layout(data), data, STAMP_OFFSET)
    return seconds * 10**9 + nanoseconds
