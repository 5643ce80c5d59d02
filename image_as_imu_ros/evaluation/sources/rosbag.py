"""Rosbag2 recordings (sqlite3 or MCAP), read without ROS."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore
from scipy.spatial.transform import Rotation

from image_as_imu_ros.errors import ConfigError, DataFormatError, InputError
from image_as_imu_ros.evaluation.sources.recording import (
    FrameRecord,
    Gyroscope,
    Recording,
    RecordingOptions,
    StoredImage,
    Stream,
    finite_gyroscope,
    mid_exposure_ns,
)
from image_as_imu_ros.image_decoding import decode_compressed, decode_image
from image_as_imu_ros.ros.conversions import intrinsics_from_msg, stamp_to_ns
from image_as_imu_ros.types import CameraIntrinsics

IMAGE_TYPE = 'sensor_msgs/msg/Image'
COMPRESSED_IMAGE_TYPE = 'sensor_msgs/msg/CompressedImage'
CAMERA_INFO_TYPE = 'sensor_msgs/msg/CameraInfo'
IMU_TYPE = 'sensor_msgs/msg/Imu'
TF_TYPE = 'tf2_msgs/msg/TFMessage'
EXPOSURE_TYPE = 'image_as_imu_ros/msg/ExposureTime'
EXPOSURE_DEFINITION = 'std_msgs/Header header\nfloat64 exposure_time\nfloat64 readout_time\n'
"""Fields of msg/ExposureTime.msg, for where the generated message is not installed."""


def typestore() -> Typestore:
    """Message types of ROS 2 and this package's ExposureTime."""
    store = get_typestore(Stores.ROS2_KILTED)
    store.register(get_types_from_msg(EXPOSURE_DEFINITION, EXPOSURE_TYPE))
    return store


def open_rosbag(source: Path, options: RecordingOptions) -> Recording:
    """
    Open a rosbag2: a folder with metadata.yaml, or a single .mcap or .db3 file.

    Topics are found by their types; where there are several, the options must name one.

    :raises DataFormatError: if the bag cannot be read, or images, camera info, gyroscope or the
        rotation between the two are missing or ambiguous
    :raises SynchronizationError: if stamps go backwards or repeat
    """
    with Bag(source) as bag:
        images = _image_connections(bag, options)
        skipped: dict[str, int] = {}
        gyroscope, imu_frame = None, ''
        if options.needs_gyroscope:
            imu = _connection(bag, IMU_TYPE, options.imu_topic, '--imu-topic')
            gyroscope, imu_frame = _read_gyroscope(bag, imu, skipped)
        rotations = _read_static_rotations(bag)
        streams = tuple(
            _open_stream(bag, image, rotations, imu_frame, options, skipped)
            for image in images)
    assumptions = [f'image stamps mark the {options.stamp_reference} of the exposure']
    if options.exposure_time_s is not None:
        assumptions.append(f'exposure time {options.exposure_time_s} s '
                           'for images without an ExposureTime message')
    return Recording(source, 'rosbag', 'full', streams, gyroscope, tuple(assumptions), skipped)


class Bag(AnyReader):
    """
    An open rosbag2: a folder with metadata.yaml, or a single .mcap or .db3 file.

    :raises DataFormatError: whenever it cannot be read, in its methods too
    """

    def __init__(self, source: Path) -> None:
        self.source = source
        if source.suffix == '.bag':
            raise DataFormatError(f'{source} is a bag of ROS 1; convert it by `rosbags-convert`')
        with _naming(source):
            super().__init__([source], default_typestore=typestore())

    def open(self) -> None:
        """Read the bag's index and message definitions."""
        with _naming(self.source):
            super().open()

    def messages(self, connections: Collection[Connection] = (), start: int | None = None,
                 stop: int | None = None) -> Iterator[tuple[Connection, int, bytes]]:
        """Connection, time in ns and CDR bytes of each message."""
        with _naming(self.source):
            yield from super().messages(connections, start, stop)

    def deserialize(self, rawdata: bytes, typ: str) -> Any:
        """Message of CDR bytes."""
        with _naming(self.source):
            return super().deserialize(rawdata, typ)

    def read(self, connection: Connection) -> Iterator[Any]:
        """Messages of one topic."""
        for _, _, data in self.messages([connection]):
            yield self.deserialize(data, connection.msgtype)

    def header_stamps_ns(self, connection: Connection) -> list[int]:
        """Header stamps of one topic, without deserialising its messages."""
        stamps_ns = []
        with _naming(self.source):
            for _, _, data in super().messages([connection]):
                byte_order = '<' if data[1] & 1 else '>'
                seconds, nanoseconds = struct.unpack_from(f'{byte_order}iI', data, 4)
                stamps_ns.append(seconds * 1_000_000_000 + nanoseconds)
        return stamps_ns


@contextmanager
def _naming(source: Path) -> Iterator[None]:
    """Turn what broken bytes raise, which may come from SQLite or zstd, into one error."""
    try:
        yield
    except Exception as error:
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise DataFormatError(f'cannot read bag {source}: {reason}; is it truncated? '
                              'Try `ros2 bag reindex`') from error


def _image_connections(bag: Bag, options: RecordingOptions) -> list[Connection]:
    """Find the image topics that the options select; one, unless a glob selects several."""
    if options.image_topic:
        return [_connection(bag, (IMAGE_TYPE, COMPRESSED_IMAGE_TYPE), options.image_topic,
                            '--image-topic')]
    found = [connection for connection in bag.connections
             if connection.msgtype in (IMAGE_TYPE, COMPRESSED_IMAGE_TYPE)
             and connection.msgcount > 0]
    if not found:
        raise DataFormatError(f'bag {bag.source} has no images: none of its topics is a '
                              f'sensor_msgs Image or CompressedImage; {_topics(bag)}')
    if options.camera:
        chosen = [connection for connection in found
                  if fnmatchcase(connection.topic, options.camera)]
        if not chosen:
            raise ConfigError(f'no image topic of {bag.source} matches "{options.camera}"; '
                              f'there are: {", ".join(c.topic for c in found)}')
        return chosen
    if len(found) > 1:
        raise DataFormatError(f'bag {bag.source} has several image topics: '
                              f'{", ".join(c.topic for c in found)}; choose by --image-topic')
    return found


def _connection(bag: Bag, msgtypes: str | tuple[str, ...], topic: str | None,
                option: str) -> Connection:
    """Find the one topic of a type, or the named one."""
    msgtypes = (msgtypes,) if isinstance(msgtypes, str) else msgtypes
    found = [connection for connection in bag.connections
             if connection.msgtype in msgtypes and topic in (None, connection.topic)]
    if not found:
        wanted = f'topic {topic} of type ' if topic else 'topic of type '
        raise DataFormatError(f'bag {bag.source} has no {wanted}{" or ".join(msgtypes)}; '
                              f'{_topics(bag)}')
    if len({connection.topic for connection in found}) > 1:
        raise DataFormatError(f'bag {bag.source} has several topics of type {msgtypes[0]}: '
                              f'{", ".join(c.topic for c in found)}; choose by {option}')
    return found[0]


def _topics(bag: Bag) -> str:
    return 'its topics are: ' + (
        ', '.join(f'{c.topic} ({c.msgtype})' for c in bag.connections) or 'none')


def _companion(bag: Bag, image: Connection, msgtype: str, topic: str | None,
               option: str) -> Connection:
    """Find the topic of a type that belongs to an image topic: first in its own namespace."""
    if topic is None:
        namespaces = [image.topic.rpartition('/')[0]]
        if image.msgtype == COMPRESSED_IMAGE_TYPE:
            namespaces.append(namespaces[0].rpartition('/')[0])
        topic = next((connection.topic for namespace in namespaces
                      for connection in bag.connections
                      if connection.msgtype == msgtype
                      and connection.topic.rpartition('/')[0] == namespace), None)
    return _connection(bag, msgtype, topic, option)


def _read_gyroscope(bag: Bag, connection: Connection,
                    skipped: dict[str, int]) -> tuple[Gyroscope, str]:
    """Read the gyroscope of an Imu topic and the name of its frame."""
    stamps_ns, rates, frame = [], [], ''
    for message in bag.read(connection):
        if message.angular_velocity_covariance[0] == -1.0:
            raise DataFormatError(f'{connection.topic} says that it has no angular velocity '
                                  '(covariance[0] is -1); choose another by --imu-topic')
        rate = message.angular_velocity
        stamps_ns.append(stamp_to_ns(message.header.stamp))
        rates.append((rate.x, rate.y, rate.z))
        frame = message.header.frame_id
    return finite_gyroscope(np.array(stamps_ns, dtype=np.int64),
                            np.array(rates, dtype=float).reshape(-1, 3), skipped), frame


def _read_exposures(bag: Bag, image: Connection,
                    options: RecordingOptions) -> dict[int, tuple[float, float]]:
    """Exposure and readout times, s, by the stamp of the image; empty without such a topic."""
    present = any(connection.msgtype == EXPOSURE_TYPE for connection in bag.connections)
    if not present and options.exposure_topic is None:
        return {}
    connection = _companion(bag, image, EXPOSURE_TYPE, options.exposure_topic, '--exposure-topic')
    return {stamp_to_ns(message.header.stamp): (message.exposure_time, message.readout_time)
            for message in bag.read(connection)}


def _read_static_rotations(bag: Bag) -> dict[str, dict[str, np.ndarray]]:
    """Rotations R_a_b of neighbouring frames on /tf_static: graph[a][b]."""
    graph: dict[str, dict[str, np.ndarray]] = {}
    for connection in bag.connections:
        if connection.msgtype != TF_TYPE or not connection.topic.endswith('tf_static'):
            continue
        for message in bag.read(connection):
            for transform in message.transforms:
                q = transform.transform.rotation
                parent, child = transform.header.frame_id, transform.child_frame_id
                if not any((q.x, q.y, q.z, q.w)):
                    raise DataFormatError(f'the transform from {parent} to {child} on '
                                          f'{connection.topic} has a quaternion of zeros')
                R_parent_child = Rotation.from_quat([q.x, q.y, q.z, q.w]).as_matrix()
                graph.setdefault(parent, {})[child] = R_parent_child
                graph.setdefault(child, {})[parent] = R_parent_child.T
    return graph


def _rotation_between(graph: dict[str, dict[str, np.ndarray]], target: str,
                      source: str) -> np.ndarray | None:
    """R_target_source along the static transforms; None if they do not connect the two."""
    reached, queue = {target: np.eye(3)}, [target]
    while queue and source not in reached:
        frame = queue.pop(0)
        for neighbour, rotation in graph.get(frame, {}).items():
            if neighbour not in reached:
                reached[neighbour] = reached[frame] @ rotation
                queue.append(neighbour)
    return reached.get(source)


def _open_stream(bag: Bag, image: Connection, rotations: dict[str, dict[str, np.ndarray]],
                 imu_frame: str, options: RecordingOptions, skipped: dict[str, int]) -> Stream:
    """Read an image topic's stamps, and what belongs to it from the other topics."""
    stamps_ns = bag.header_stamps_ns(image)
    if not stamps_ns:
        raise DataFormatError(f'{image.topic} in bag {bag.source} has no message')
    if 0 in stamps_ns:
        raise DataFormatError(f'images on {image.topic} have zero stamps; '
                              'the camera driver must stamp them')
    intrinsics = _read_intrinsics(bag, image, options)
    first_intrinsics = next(iter(intrinsics.values()))
    frame = next(bag.read(image)).header.frame_id
    R_gyro_camera = options.R_gyro_camera
    if R_gyro_camera is None and frame and imu_frame:
        R_gyro_camera = _rotation_between(rotations, imu_frame, frame)
    if R_gyro_camera is None:
        raise DataFormatError(
            f'bag {bag.source} does not tell the rotation from camera frame "{frame}" to '
            f'gyroscope frame "{imu_frame}" on /tf_static; give it by --R R00,R01,..,R22')

    exposures = _read_exposures(bag, image, options)
    records = []
    for stamp_ns in stamps_ns:
        exposure_s, readout_s = exposures.get(stamp_ns, (options.exposure_time_s, 0.0))
        records.append(FrameRecord(
            mid_exposure_ns(stamp_ns, exposure_s, readout_s, options.stamp_reference),
            intrinsics.get(stamp_ns, first_intrinsics), exposure_s, readout_s))
    if exposures and not any(stamp_ns in exposures for stamp_ns in stamps_ns):
        skipped['exposure time has the stamp of no image'] = len(exposures)
    return Stream(image.topic, tuple(records), lambda: _read_images(bag.source, image.topic),
                  R_gyro_camera)


def _read_intrinsics(bag: Bag, image: Connection,
                     options: RecordingOptions) -> dict[int, CameraIntrinsics]:
    """Read the camera info that belongs to an image topic, by stamp."""
    connection = _companion(bag, image, CAMERA_INFO_TYPE, options.camera_info_topic,
                            '--camera-info-topic')
    try:
        intrinsics = {stamp_to_ns(message.header.stamp): intrinsics_from_msg(message)
                      for message in bag.read(connection)}
    except InputError as error:
        raise DataFormatError(f'{connection.topic} in bag {bag.source}: {error}') from error
    if not intrinsics:
        raise DataFormatError(f'{connection.topic} in bag {bag.source} has no message')
    return intrinsics


def _read_images(source: Path, topic: str) -> Iterator[StoredImage]:
    """Read the images of a topic one by one."""
    with Bag(source) as bag:
        connection = next(c for c in bag.connections if c.topic == topic)
        for message in bag.read(connection):
            yield _stored_image(message, connection.msgtype)


def _stored_image(message: Any, msgtype: str) -> StoredImage:
    if msgtype == COMPRESSED_IMAGE_TYPE:
        data = bytes(message.data)
        return StoredImage(lambda: decode_compressed(data), data, message.format)
    return StoredImage(lambda: decode_image(
        message.encoding, message.width, message.height, message.step,
        bool(message.is_bigendian), message.data))
