"""
Write a recording as a rosbag2, without ROS.

Topics: `/camera/image_raw` (or `/camera/image_raw/compressed`), `/camera/camera_info`,
`/camera/exposure_time` (of this package's type ExposureTime), `/imu/data` (the gyroscope in its
own frame `imu_link`) and `/tf_static` (from `imu_link` to `camera_optical_frame`). Image stamps
mark the START of the exposure, as most camera drivers do; camera info and exposure carry the
same stamp. Without a gyroscope the last two are absent. Messages are stored at the time when
they would arrive: images when they are read out, gyroscope samples at once.
"""

from __future__ import annotations

import heapq
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import StoragePlugin, Writer
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from image_as_imu_ros.errors import ConfigError, DataFormatError, InputError
from image_as_imu_ros.evaluation.sources.recording import (
    FrameRecord,
    Gyroscope,
    Recording,
    StoredImage,
    Stream,
    half_duration_ns,
)
from image_as_imu_ros.evaluation.sources.rosbag import (
    CAMERA_INFO_TYPE,
    COMPRESSED_IMAGE_TYPE,
    EXPOSURE_TYPE,
    IMAGE_TYPE,
    IMU_TYPE,
    TF_TYPE,
    typestore,
)
from image_as_imu_ros.types import CameraIntrinsics

IMAGE_FORMS = ('raw', 'compressed')
STORAGES = ('mcap', 'sqlite3')
CAMERA_FRAME = 'camera_optical_frame'
IMU_FRAME = 'imu_link'
EARLIEST_STAMP_NS = 1_000_000_000
"""Recordings that begin before, as at zero, are shifted: ROS takes zero stamps for unset."""

_SINGLE_FILE_STORAGES = {'.mcap': 'mcap', '.db3': 'sqlite3'}
_LATCHED = Qos(
    QosHistory.KEEP_LAST, 1, QosReliability.RELIABLE, QosDurability.TRANSIENT_LOCAL,
    QosTime(0, 0), QosTime(0, 0), QosLiveliness.AUTOMATIC, QosTime(0, 0), False)

logger = logging.getLogger(__name__)
logger.addHandler(logging.NullHandler())


class _Message(NamedTuple):
    """A message, where it goes and when it arrives."""

    arrival_ns: int
    topic: str
    content: Any


def write_rosbag(recording: Recording, output: Path, storage: str | None = None,
                 images: str = 'raw', overwrite: bool = False, progress: bool = False) -> int:
    """
    Write a recording of one camera as a rosbag2.

    :param output: a .mcap or .db3 file, or a folder to be made
    :param storage: `mcap` or `sqlite3`; None takes what the output's suffix says, or MCAP
    :param images: `raw`, or `compressed`, which copies the bytes of JPEG and PNG files
    :returns: number of images written; unreadable ones are left out with a warning
    :raises ConfigError: if the output exists, the storage contradicts its suffix or the
        recording has several cameras
    :raises DataFormatError: if no image can be read
    """
    if len(recording.streams) != 1:
        raise ConfigError(
            'a bag takes one camera, but the recording has '
            f'{", ".join(stream.camera for stream in recording.streams)}; choose by --camera')
    with new_bag(output, storage, overwrite) as writer:
        return _write(recording, writer, images, progress)


@contextmanager
def new_bag(output: Path, storage: str | None = None, overwrite: bool = False) -> Iterator[Writer]:
    """
    Open a rosbag2 for writing, which appears when it is complete.

    :param output: a .mcap or .db3 file, or a folder to be made
    :param storage: `mcap` or `sqlite3`; None takes what the output's suffix says, or MCAP
    :raises ConfigError: if the output exists or the storage contradicts its suffix
    """
    single_file = _SINGLE_FILE_STORAGES.get(output.suffix)
    if storage and single_file and storage != single_file:
        raise ConfigError(f'{output.name} names {single_file} storage, not {storage}')
    storage = storage or single_file or 'mcap'
    if output.exists() and not overwrite:
        raise ConfigError(f'{output} exists; choose another name or --overwrite')
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix='.convert_') as scratch:
        bag = Path(scratch) / (output.stem if single_file else output.name)
        with Writer(bag, version=9, storage_plugin=StoragePlugin[storage.upper()]) as writer:
            yield writer
        if output.is_dir():
            shutil.rmtree(output)
        os.replace(next(bag.glob(f'*{output.suffix}')) if single_file else bag, output)


def _write(recording: Recording, writer: Writer, images: str, progress: bool) -> int:
    """Write all topics in order of arrival; returns the number of images."""
    (stream,) = recording.streams
    gyroscope, R_gyro_camera = _gyroscope(recording, stream)
    image_topic, image_type = {
        'raw': ('/camera/image_raw', IMAGE_TYPE),
        'compressed': ('/camera/image_raw/compressed', COMPRESSED_IMAGE_TYPE)}[images]
    types = {image_topic: image_type, '/camera/camera_info': CAMERA_INFO_TYPE,
             '/camera/exposure_time': EXPOSURE_TYPE}
    earliest_ns = _start_ns(stream.records[0])
    if gyroscope is not None:
        types |= {'/imu/data': IMU_TYPE, '/tf_static': TF_TYPE}
        earliest_ns = min(int(gyroscope.t_ns[0]), earliest_ns)
    shift_ns = max(0, EARLIEST_STAMP_NS - earliest_ns)
    if shift_ns:
        logger.info('stamps are shifted by %.3f s, so that the first is not before 1 s',
                    shift_ns * 1e-9)
    build = _MessageBuilder(shift_ns)
    connections = {
        topic: writer.add_connection(
            topic, msgtype, typestore=build.store,
            offered_qos_profiles=[_LATCHED] if topic == '/tf_static' else ())
        for topic, msgtype in types.items()}
    sources = [_frame_messages(build, stream, image_topic, images == 'compressed', progress)]
    if gyroscope is not None:
        sources.insert(0, (
            _Message(t_ns, '/imu/data', build.imu(t_ns, rate)) for t_ns, rate in zip(
                gyroscope.t_ns.tolist(), gyroscope.angular_velocity_rad_s.tolist())))
        sources.insert(0, iter([_Message(
            earliest_ns, '/tf_static', build.static_transform(earliest_ns, R_gyro_camera))]))
    count = 0
    for arrival_ns, topic, content in heapq.merge(
            *sources, key=lambda message: message.arrival_ns):
        data = build.store.serialize_cdr(content, types[topic])
        writer.write(connections[topic], arrival_ns + shift_ns, data)
        count += topic == image_topic
    if not count:
        raise DataFormatError(f'no image of {recording.source} could be read')
    return count


def _gyroscope(recording: Recording, stream: Stream) -> tuple[Gyroscope | None, np.ndarray]:
    """Take the gyroscope, or the frames' own references as one in the camera's axes, or none."""
    if recording.gyroscope is not None and stream.R_gyro_camera is not None:
        return recording.gyroscope, stream.R_gyro_camera
    known = [record for record in stream.records
             if record.angular_velocity_reference_rad_s is not None]
    if not known:
        return None, np.eye(3)
    return Gyroscope(
        np.array([record.stamp_ns for record in known], dtype=np.int64),
        np.array([record.angular_velocity_reference_rad_s for record in known])), np.eye(3)


def _start_ns(record: FrameRecord) -> int:
    """Start of the exposure of the first row: the inverse of `mid_exposure_ns`."""
    return record.stamp_ns - half_duration_ns(record.exposure_time_s, record.readout_time_s)


def _frame_messages(build: _MessageBuilder, stream: Stream, image_topic: str, compressed: bool,
                    progress: bool) -> Iterator[_Message]:
    """Camera info, exposure and image of each frame, when the image has been read out."""
    frames = zip(stream.records, stream.read())
    for record, stored in tqdm(frames, total=len(stream.records), unit='image',
                               disable=None if progress else True):
        start_ns = _start_ns(record)
        arrival_ns = 2 * record.stamp_ns - start_ns
        try:
            pixels = record.with_image(stored.decode()).image
        except InputError as error:
            logger.warning('image left out: %s', error)
            continue
        image = (build.compressed_image(start_ns, pixels, stored) if compressed
                 else build.image(start_ns, pixels))
        yield _Message(arrival_ns, '/camera/camera_info',
                       build.camera_info(start_ns, record.intrinsics))
        if record.exposure_time_s is not None:
            yield _Message(arrival_ns, '/camera/exposure_time', build.exposure(start_ns, record))
        yield _Message(arrival_ns, image_topic, image)


class _MessageBuilder:
    """Builds messages of a rosbags typestore; stamps are shifted by a constant."""

    def __init__(self, shift_ns: int) -> None:
        self.store = typestore()
        self._shift_ns = shift_ns

    def static_transform(self, stamp_ns: int, R_imu_camera: np.ndarray) -> Any:
        """Rotation of the camera in the gyroscope's frame; their distance is left at zero."""
        x, y, z, w = Rotation.from_matrix(R_imu_camera).as_quat().tolist()
        transform = self._new('geometry_msgs/msg/Transform',
                              self._new('geometry_msgs/msg/Vector3', 0.0, 0.0, 0.0),
                              self._new('geometry_msgs/msg/Quaternion', x, y, z, w))
        return self._new(TF_TYPE, [self._new(
            'geometry_msgs/msg/TransformStamped', self._header(stamp_ns, IMU_FRAME), CAMERA_FRAME,
            transform)])

    def imu(self, stamp_ns: int, rate_rad_s: list[float]) -> Any:
        """Gyroscope sample; orientation and acceleration are flagged as absent (REP-145)."""
        absent, unknown = np.zeros(9), np.zeros(9)
        absent[0] = -1.0
        return self._new(
            IMU_TYPE, self._header(stamp_ns, IMU_FRAME),
            self._new('geometry_msgs/msg/Quaternion', 0.0, 0.0, 0.0, 1.0), absent,
            self._new('geometry_msgs/msg/Vector3', *rate_rad_s), unknown,
            self._new('geometry_msgs/msg/Vector3', 0.0, 0.0, 0.0), absent)

    def image(self, stamp_ns: int, pixels: np.ndarray) -> Any:
        """Raw image of (H, W) gray or (H, W, 3) RGB pixels."""
        height, width = pixels.shape[:2]
        encoding = ('mono' if pixels.ndim == 2 else 'rgb') + str(8 * pixels.itemsize)
        data = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder('<'), copy=False))
        return self._new(
            IMAGE_TYPE, self._header(stamp_ns, CAMERA_FRAME), height, width, encoding, 0,
            data.nbytes // height, data.view(np.uint8).ravel())

    def compressed_image(self, stamp_ns: int, pixels: np.ndarray, stored: StoredImage) -> Any:
        """Compressed image: the file's own bytes, or else a PNG of the pixels."""
        data, form = stored.file_bytes, stored.file_format
        if data is None:
            bgr = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
            data, form = cv2.imencode('.png', bgr)[1].tobytes(), 'png'
        return self._new(COMPRESSED_IMAGE_TYPE, self._header(stamp_ns, CAMERA_FRAME), form,
                         np.frombuffer(data, np.uint8))

    def camera_info(self, stamp_ns: int, intrinsics: CameraIntrinsics) -> Any:
        """Camera info of images that are not rectified."""
        model, distortion = intrinsics.distortion_model, intrinsics.distortion
        if model == 'pinhole':
            model, distortion = 'plumb_bob', (0.0,) * 5
        projection = np.zeros((3, 4))
        projection[:, :3] = intrinsics.matrix
        return self._new(
            CAMERA_INFO_TYPE, self._header(stamp_ns, CAMERA_FRAME), intrinsics.height_px,
            intrinsics.width_px, model, np.array(distortion), intrinsics.matrix.ravel(),
            np.eye(3).ravel(), projection.ravel(), 0, 0,
            self._new('sensor_msgs/msg/RegionOfInterest', 0, 0, 0, 0, False))

    def exposure(self, stamp_ns: int, record: FrameRecord) -> Any:
        """Exposure time of the image with this stamp."""
        return self._new(EXPOSURE_TYPE, self._header(stamp_ns, CAMERA_FRAME),
                         record.exposure_time_s, record.readout_time_s)

    def _header(self, stamp_ns: int, frame_id: str) -> Any:
        seconds, nanoseconds = divmod(stamp_ns + self._shift_ns, 1_000_000_000)
        return self._new('std_msgs/msg/Header',
                         self._new('builtin_interfaces/msg/Time', seconds, nanoseconds), frame_id)

    def _new(self, msgtype: str, *fields: Any) -> Any:
        """Make a message from its fields in the order of its definition."""
        return self.store.types[msgtype](*fields)
