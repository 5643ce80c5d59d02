"""Rosbag2 recordings (sqlite3 or MCAP), read without ROS."""

from __future__ import annotations

import re
import struct
from array import array
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore
from scipy.spatial.transform import Rotation

from image_as_imu_ros.errors import (
    ConfigError,
    DataFormatError,
    ImageAsImuError,
    InputError,
    SynchronizationError,
)
from image_as_imu_ros.evaluation.sources.damaged_bag import REMAINS
from image_as_imu_ros.evaluation.sources.recording import (
    FrameRecord,
    Gyroscope,
    Recording,
    RecordingOptions,
    StoredImage,
    Stream,
    finite_gyroscope,
    longest_increasing,
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

STAMPS = ('header', 'received')
"""Where the times of images and gyroscope come from."""

_IMAGE_TYPES = (IMAGE_TYPE, COMPRESSED_IMAGE_TYPE)
_OWN_TOPICS = '/visual_imu/'


def typestore() -> Typestore:
    """Message types of ROS 2 and this package's ExposureTime."""
    store = get_typestore(Stores.ROS2_KILTED)
    store.register(get_types_from_msg(EXPOSURE_DEFINITION, EXPOSURE_TYPE))
    return store


def is_rosbag(source: Path) -> bool:
    """Whether a path looks like a rosbag2, be it one without its metadata.yaml."""
    if source.is_file():
        return source.suffix in REMAINS
    return (source / 'metadata.yaml').is_file() or bool(_storage_files(source))


def open_rosbag(source: Path, options: RecordingOptions) -> Recording:
    """
    Open a rosbag2: a folder, with metadata.yaml or without, or a single .mcap or .db3 file.

    Topics are found by their types; where there are several, the options must name one. A bag
    that ends in the middle is read as far as it goes, with a warning. Images and gyroscope
    samples whose stamps are zero, repeated or out of order are left out and counted.

    :raises DataFormatError: if the bag cannot be read, or images, camera info, gyroscope or the
        rotation between the two are missing or ambiguous
    :raises SynchronizationError: if most stamps are repeated or out of order
    """
    with Bag(source) as bag:
        images = _image_connections(bag, options)
        skipped: dict[str, int] = {}
        gyroscope, imu_frame = None, ''
        if options.needs_gyroscope:
            imu = _imu_connection(bag, options)
            gyroscope, imu_frame = _read_gyroscope(bag, imu, options.stamps, skipped)
        rotations = _read_static_rotations(bag)
        streams = tuple(
            _open_stream(bag, image, rotations, imu_frame, options, skipped)
            for image in images)
        warnings = (bag.damage,) if bag.damage else ()
    assumptions = [f'image stamps mark the {options.stamp_reference} of the exposure']
    if options.stamps == 'received':
        assumptions.append('times are those of recording, not of the headers')
    if options.exposure_time_s is not None:
        assumptions.append(f'exposure time {options.exposure_time_s} s '
                           'for images without an ExposureTime message')
    return Recording(source, 'rosbag', 'full', streams, gyroscope, tuple(assumptions), skipped,
                     warnings)


class Bag(AnyReader):
    """
    An open rosbag2: a folder, with metadata.yaml or without, or a single .mcap or .db3 file.

    What can be read of a damaged one is; `damage` then says so, and is empty otherwise.

    :raises DataFormatError: whenever it cannot be read, in its methods too
    """

    def __init__(self, source: Path) -> None:
        self.source = source
        self.damage = ''
        if source.suffix == '.bag':
            raise DataFormatError(f'{source} is a bag of ROS 1; convert it by `rosbags-convert`')
        whole = source.is_file() or (source / 'metadata.yaml').exists()
        with _naming(source):
            super().__init__([source] if whole else _storage_files(source) or [source],
                             default_typestore=typestore())

    def open(self) -> None:
        """Read the bag's index and message definitions, or else the messages that are left."""
        try:
            with _naming(self.source):
                super().open()
        except DataFormatError as error:
            self._open_remains(error)

    def _open_remains(self, damage: DataFormatError) -> None:
        """Open the whole beginnings of the files; raise `damage` where there are none."""
        self.readers = []
        try:
            for path in _storage_files(self.source):
                reader = Reader(path)
                reader.storage = REMAINS[path.suffix](path)
                self.readers.append(reader)
            super().open()
            span_s = (self.end_time - self.start_time) * 1e-9
        except Exception as error:  # what broken bytes raise
            raise damage from error
        self.damage = (f'{damage}. It was read as far as it goes: {self.message_count} messages, '
                       f'{span_s:.1f} s')

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
        return (message for _, message in self.read_timed(connection))

    def read_timed(self, connection: Connection) -> Iterator[tuple[int, Any]]:
        """Time of recording, ns, and message of one topic."""
        for _, received_ns, data in self.messages(self._parts(connection)):
            yield received_ns, self.deserialize(data, connection.msgtype)

    def stamps_ns(self, connection: Connection) -> tuple[np.ndarray, np.ndarray]:
        """Header stamps and times of recording of one topic, read without deserialising it."""
        header_ns, received_ns = array('q'), array('q')
        with _naming(self.source):
            for _, time_ns, data in super().messages(self._parts(connection)):
                byte_order = '<' if data[1] & 1 else '>'
                seconds, nanoseconds = struct.unpack_from(f'{byte_order}iI', data, 4)
                header_ns.append(seconds * 1_000_000_000 + nanoseconds)
                received_ns.append(time_ns)
        return np.array(header_ns, dtype=np.int64), np.array(received_ns, dtype=np.int64)

    def _parts(self, connection: Connection) -> list[Connection]:
        """Find the connections of one topic, one for each file of the bag."""
        return [other for other in self.connections
                if (other.topic, other.msgtype) == (connection.topic, connection.msgtype)]


def _storage_files(source: Path) -> list[Path]:
    """
    Files of a bag in the order of their numbers.

    Of a folder without metadata.yaml, files are only taken for parts of one bag where they are
    named after it, as rosbag2 does.
    """
    if source.is_file():
        return [source] if source.suffix in REMAINS else []
    files = [path for path in source.iterdir() if path.suffix in REMAINS]
    named = re.compile(rf'{re.escape(source.name)}(_\d+)?')
    if not (source / 'metadata.yaml').is_file() and not all(
            named.fullmatch(path.stem) for path in files):
        return []
    return sorted(files, key=_file_number)


def _file_number(path: Path) -> int:
    """Number that rosbag2 gives to a file of a bag, as 1 in bag_1.mcap; 0 without one."""
    found = re.search(r'_(\d+)$', path.stem)
    return int(found.group(1)) if found else 0


@contextmanager
def _naming(source: Path) -> Iterator[None]:
    """Turn what broken bytes raise, which may come from SQLite or zstd, into one error."""
    try:
        yield
    except ImageAsImuError:
        raise
    except Exception as error:
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise DataFormatError(f'cannot read bag {source}: {reason}; is it truncated? '
                              'Try `ros2 bag reindex`') from error


def _image_connections(bag: Bag, options: RecordingOptions) -> list[Connection]:
    """Find the image topics that the options select; one, unless a glob selects several."""
    if options.image_topic:
        return [_connection(bag, _IMAGE_TYPES, options.image_topic, '--image-topic')]
    found = _connections(bag, _IMAGE_TYPES)
    if not found:
        raise DataFormatError(f'bag {bag.source} has no images: none of its topics is a '
                              f'sensor_msgs Image or CompressedImage; {_topics(bag)}; '
                              'record the camera too')
    if options.camera:
        chosen = [connection for connection in found
                  if fnmatchcase(connection.topic, options.camera)]
        if not chosen:
            raise ConfigError(f'no image topic of {bag.source} matches "{options.camera}"; '
                              f'there are: {", ".join(c.topic for c in found)}')
        return chosen
    topics = {connection.topic for connection in found}
    likely = [connection for connection in found
              if 'depth' not in connection.topic.lower() and _OWN_TOPICS not in connection.topic
              and connection.topic.removesuffix('/compressed') not in topics - {connection.topic}]
    if len(likely or found) > 1:
        raise DataFormatError(f'bag {bag.source} has several image topics: '
                              f'{", ".join(c.topic for c in found)}; choose by --image-topic')
    return likely or found


def _imu_connection(bag: Bag, options: RecordingOptions) -> Connection:
    """Find the gyroscope's topic; what this package published is not taken for one."""
    found = [connection.topic for connection in _connections(bag, (IMU_TYPE,))]
    others = [topic for topic in found if _OWN_TOPICS not in topic]
    if found and not others and options.imu_topic is None:
        raise DataFormatError(f'bag {bag.source} has no gyroscope to compare with: '
                              f'{", ".join(found)} is the output of visual_imu; record the '
                              'IMU too, or choose by --imu-topic')
    topic = options.imu_topic or (others[0] if len(others) == 1 else None)
    return _connection(bag, (IMU_TYPE,), topic, '--imu-topic')


def _connections(bag: Bag, msgtypes: tuple[str, ...]) -> list[Connection]:
    """Find the topics of some types that have messages, each once."""
    return list({connection.topic: connection for connection in bag.connections
                 if connection.msgtype in msgtypes and connection.msgcount > 0}.values())


def _connection(bag: Bag, msgtypes: tuple[str, ...], topic: str | None,
                option: str) -> Connection:
    """Find the one topic of a type, or the named one."""
    found = [connection for connection in _connections(bag, msgtypes)
             if topic in (None, connection.topic)]
    if not found:
        wanted = f'topic {topic} of type ' if topic else 'topic of type '
        raise DataFormatError(f'bag {bag.source} has no {wanted}{" or ".join(msgtypes)} with a '
                              f'message; {_topics(bag)}; record it too, or choose another by '
                              f'{option}')
    if len(found) > 1:
        raise DataFormatError(f'bag {bag.source} has several topics of type {msgtypes[0]}: '
                              f'{", ".join(c.topic for c in found)}; choose by {option}')
    return found[0]


def _topics(bag: Bag) -> str:
    return 'its topics are: ' + (
        ', '.join(f'{c.topic} ({c.msgcount} {c.msgtype})' for c in bag.connections) or 'none')


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
    return _connection(bag, (msgtype,), topic, option)


def _usable_stamps(stamps_ns: np.ndarray, what: str, topic: str,
                   skipped: dict[str, int]) -> np.ndarray:
    """
    Tell which messages can be put in order, (N,) bool; the others are counted in `skipped`.

    :raises DataFormatError: if none is stamped
    :raises SynchronizationError: if half of them or more would have to be left out
    """
    kept = stamps_ns > 0
    unstamped = int((~kept).sum())
    if unstamped == len(stamps_ns):
        raise DataFormatError(f'all {unstamped} {what}s on {topic} have zero stamps; let the '
                              'driver stamp them, or take the times of recording by '
                              '--stamps received')
    kept[kept] = longest_increasing(stamps_ns[kept])
    left_out = len(stamps_ns) - int(kept.sum())
    if 2 * left_out >= len(stamps_ns):
        bad = int(np.argmax(np.diff(stamps_ns) <= 0)) + 1
        raise SynchronizationError(
            f'{left_out} of {len(stamps_ns)} {what}s on {topic} have zero, repeated or unordered '
            f'stamps: the one of number {bad} (from 0) is {stamps_ns[bad]} ns, after '
            f'{stamps_ns[bad - 1]} ns; take the times of recording by --stamps received')
    if unstamped:
        skipped[f'{what} has a zero stamp'] = unstamped
    if left_out > unstamped:
        skipped[f'{what} has a repeated or unordered stamp'] = left_out - unstamped
    return kept


def _read_gyroscope(bag: Bag, connection: Connection, stamps: str,
                    skipped: dict[str, int]) -> tuple[Gyroscope, str]:
    """Read the gyroscope of an Imu topic and the name of its frame."""
    times_ns, rates, frame = array('q'), array('d'), ''
    for received_ns, message in bag.read_timed(connection):
        if message.angular_velocity_covariance[0] == -1.0:
            raise DataFormatError(f'{connection.topic} says that it has no angular velocity '
                                  '(covariance[0] is -1); choose another by --imu-topic')
        rate = message.angular_velocity
        times_ns.append(received_ns if stamps == 'received'
                        else stamp_to_ns(message.header.stamp))
        rates.extend((rate.x, rate.y, rate.z))
        frame = message.header.frame_id
    t_ns = np.array(times_ns, dtype=np.int64)
    kept = _usable_stamps(t_ns, 'gyroscope sample', connection.topic, skipped)
    rates_rad_s = np.array(rates, dtype=float).reshape(-1, 3)[kept]
    try:
        return finite_gyroscope(t_ns[kept], rates_rad_s, skipped), _frame_name(frame)
    except DataFormatError as error:
        raise DataFormatError(
            f'{connection.topic} in bag {bag.source}: {error}, but {len(t_ns)} messages hold '
            f'{int(np.isnan(rates_rad_s).any(axis=1).sum())} with NaN; check the driver of the '
            'IMU, or choose another by --imu-topic') from error


def _read_exposures(bag: Bag, image: Connection,
                    options: RecordingOptions) -> dict[int, tuple[float, float]]:
    """Exposure and readout times, s, by the stamp of the image; empty without such a topic."""
    if not _connections(bag, (EXPOSURE_TYPE,)) and options.exposure_topic is None:
        return {}
    connection = _companion(bag, image, EXPOSURE_TYPE, options.exposure_topic, '--exposure-topic')
    return {stamp_to_ns(message.header.stamp): (message.exposure_time, message.readout_time)
            for message in bag.read(connection)}


def _frame_name(frame_id: str) -> str:
    """Name of a frame as TF 2 has it, without the slash of earlier times."""
    return frame_id.lstrip('/')


def _read_static_rotations(bag: Bag) -> dict[str, dict[str, np.ndarray]]:
    """Rotations R_a_b of neighbouring frames on /tf_static: graph[a][b]."""
    graph: dict[str, dict[str, np.ndarray]] = {}
    for connection in _connections(bag, (TF_TYPE,)):
        if not connection.topic.endswith('tf_static'):
            continue
        for message in bag.read(connection):
            for transform in message.transforms:
                q = transform.transform.rotation
                parent, child = map(
                    _frame_name, (transform.header.frame_id, transform.child_frame_id))
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
    header_ns, received_ns = bag.stamps_ns(image)
    if not len(header_ns):
        raise DataFormatError(f'{image.topic} in bag {bag.source} has no message')
    stamps_ns = received_ns if options.stamps == 'received' else header_ns
    kept = _usable_stamps(stamps_ns, 'image', image.topic, skipped)
    intrinsics = _read_intrinsics(bag, image, options)
    first_intrinsics = next(iter(intrinsics.values()))
    frame = _frame_name(next(bag.read(image)).header.frame_id)
    R_gyro_camera = options.R_gyro_camera
    if R_gyro_camera is None and frame and imu_frame:
        R_gyro_camera = _rotation_between(rotations, imu_frame, frame)
    if R_gyro_camera is None:
        raise DataFormatError(
            f'bag {bag.source} does not tell the rotation from camera frame "{frame}" to '
            f'gyroscope frame "{imu_frame}": /tf_static connects '
            f'{", ".join(rotations) or "no frames"}; give it by --R R00,R01,..,R22')

    exposures = _read_exposures(bag, image, options)
    records = []
    for index in np.flatnonzero(kept).tolist():
        key = int(header_ns[index])
        exposure_s, readout_s = exposures.get(key, (options.exposure_time_s, 0.0))
        records.append(FrameRecord(
            mid_exposure_ns(int(stamps_ns[index]), exposure_s, readout_s,
                            options.stamp_reference),
            intrinsics.get(key, first_intrinsics), exposure_s, readout_s))
    if exposures and not any(key in exposures for key in header_ns.tolist()):
        skipped['exposure time has the stamp of no image'] = len(exposures)
    return Stream(image.topic, tuple(records), lambda: _read_images(bag.source, image, kept),
                  R_gyro_camera)


def _read_intrinsics(bag: Bag, image: Connection,
                     options: RecordingOptions) -> dict[int, CameraIntrinsics]:
    """Read the camera info that belongs to an image topic, by stamp."""
    if options.intrinsics_px is not None:
        return {0: _stated_intrinsics(bag, image, options.intrinsics_px)}
    try:
        connection = _companion(bag, image, CAMERA_INFO_TYPE, options.camera_info_topic,
                                '--camera-info-topic')
    except DataFormatError as error:
        raise DataFormatError(f'{error}, or state --intrinsics FX,FY,CX,CY') from error
    equal: dict[CameraIntrinsics, CameraIntrinsics] = {}
    intrinsics = {}
    try:
        for message in bag.read(connection):
            value = intrinsics_from_msg(message)
            intrinsics[stamp_to_ns(message.header.stamp)] = equal.setdefault(value, value)
    except InputError as error:
        raise DataFormatError(f'{connection.topic} in bag {bag.source}: {error}, or state '
                              '--intrinsics FX,FY,CX,CY') from error
    return intrinsics


def _stated_intrinsics(bag: Bag, image: Connection,
                       numbers: tuple[float, ...]) -> CameraIntrinsics:
    """Intrinsics that the user states, of the size of the first image that can be decoded."""
    model = 'plumb_bob' if len(numbers) > 4 else 'pinhole'
    for message in bag.read(image):
        try:
            height, width = _stored_image(message, image.msgtype).decode().shape[:2]
        except InputError:
            continue
        return CameraIntrinsics(width, height, *numbers[:4], model, numbers[4:])
    raise DataFormatError(f'none of the images on {image.topic} can be decoded')


def _read_images(source: Path, image: Connection, kept: np.ndarray) -> Iterator[StoredImage]:
    """Read the images of a topic one by one, those that are kept."""
    with Bag(source) as bag:
        for wanted, message in zip(kept, bag.read(image)):
            if wanted:
                yield _stored_image(message, image.msgtype)


def _stored_image(message: Any, msgtype: str) -> StoredImage:
    if msgtype == COMPRESSED_IMAGE_TYPE:
        data = bytes(message.data)
        return StoredImage(lambda: decode_compressed(data), data, message.format)
    return StoredImage(lambda: decode_image(
        message.encoding, message.width, message.height, message.step,
        bool(message.is_bigendian), message.data))
