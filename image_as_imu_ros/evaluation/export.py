"""
Write a camera's motion for other programs: CSV, TUM, Gyroflow's .gcsv, or into a rosbag2.

CSV and bag hold the angular velocity at each image. TUM and .gcsv hold the orientation, which
follows the rotations between images, and its rate.
"""

from __future__ import annotations

import csv
import heapq
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rosbags.interfaces import Connection
from rosbags.typesys.store import Typestore
from scipy.spatial.transform import Rotation, RotationSpline

from image_as_imu_ros.errors import ConfigError, DataFormatError
from image_as_imu_ros.evaluation.motion_track import MotionTrack
from image_as_imu_ros.evaluation.report import ESTIMATE_COLUMNS, estimate_row
from image_as_imu_ros.evaluation.rosbag_writer import new_bag
from image_as_imu_ros.evaluation.sources.rosbag import IMU_TYPE, Bag, typestore
from image_as_imu_ros.files import write_atomically
from image_as_imu_ros.types import MotionEstimate

FORMATS = {'csv': '.csv', 'tum': '.tum', 'gcsv': '.gcsv', 'bag': '.mcap'}
"""Formats and the suffixes of their files."""

IMU_TOPIC = '/visual_imu/imu/data_raw'
GCSV_RATE_HZ = 200.0
GCSV_ORIENTATION = 'yxz'
"""Gyroflow's axes from a camera's optical ones: its x is our -y, its y our -x, its z our -z."""
GCSV_TIME_S = 1e-6
GCSV_RATE_RAD_S = 1e-5
"""Units of the integers in a .gcsv file."""


def write_csv(track: MotionTrack, output: Path) -> None:
    """Write every estimate, with the columns of `evaluate`'s estimates.csv."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator='\n')
    writer.writerow(ESTIMATE_COLUMNS)
    for estimate in track.estimates:
        writer.writerow([*estimate_row(estimate), track.stream.camera])
    write_atomically(output, buffer.getvalue().encode())


def write_tum(track: MotionTrack, output: Path) -> None:
    """
    Write the orientation at each image as a trajectory in the TUM format, at rest in space.

    :raises DataFormatError: if nothing is known of the motion
    """
    stamps_ns, orientations = orientation_track(track)
    lines = ['# timestamp tx ty tz qx qy qz qw: camera optical axes in those of the first image']
    for stamp_ns, quaternion in zip(stamps_ns.tolist(), orientations.as_quat()):
        seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
        lines.append(f'{seconds}.{nanoseconds:09d} 0 0 0 '
                     + ' '.join(f'{value:.9f}' for value in quaternion))
    write_atomically(output, ('\n'.join(lines) + '\n').encode())


def write_gcsv(track: MotionTrack, output: Path, video_name: str = '') -> None:
    """
    Write the rates as the gyroscope log that Gyroflow reads beside a video of the same name.

    Time 0 is the middle of the first image's exposure.

    :raises DataFormatError: if nothing is known of the motion

    Source: https://docs.gyroflow.xyz/app/technical-details/gcsv-format, version 1.3.
    """
    stamps_ns, orientations = orientation_track(track)
    first = track.stream.records[0]
    times_s = (stamps_ns - first.stamp_ns) * 1e-9
    steps = np.arange(np.ceil(times_s[0] * GCSV_RATE_HZ),
                      np.floor(times_s[-1] * GCSV_RATE_HZ + 1e-6) + 1) / GCSV_RATE_HZ
    steps = steps.clip(times_s[0], times_s[-1])
    rates = RotationSpline(times_s, orientations)(steps, 1)
    header = ['GYROFLOW IMU LOG', 'version,1.3', 'id,image_as_imu_ros',
              f'orientation,{GCSV_ORIENTATION}']
    if video_name:
        header.append(f'videofilename,{video_name}')
    if first.readout_time_s:
        header += [f'frame_readout_time,{1e3 * first.readout_time_s:.4f}',
                   'frame_readout_direction,0']
    header += [f'tscale,{GCSV_TIME_S:.6f}', f'gscale,{GCSV_RATE_RAD_S:.5f}', 't,gx,gy,gz']
    rows = np.column_stack([np.rint(steps / GCSV_TIME_S), np.rint(rates / GCSV_RATE_RAD_S)])
    lines = header + [','.join(map(str, row)) for row in rows.astype(np.int64).tolist()]
    write_atomically(output, ('\n'.join(lines) + '\n').encode())


def orientation_track(track: MotionTrack) -> tuple[np.ndarray, Rotation]:
    """
    Follow the orientation from the first image on.

    Between two images that do not match, the mean of the rates at both counts; where those are
    unknown too, the camera is taken to rest.

    :returns: stamps (N,) ns, and the camera's axes in those of the first image, N rotations
    :raises DataFormatError: with fewer than two images, or if no motion at all is known
    """
    gaps = {(gap.start_ns, gap.end_ns): gap.rotation_rad for gap in track.gaps}
    if not gaps and not any(estimate.usable for estimate in track.estimates):
        raise DataFormatError(f'nothing is known of the motion of {track.stream.camera}: its '
                              'images have no texture or do not overlap')
    orientations = [Rotation.identity()]
    for before, after in zip(track.estimates, track.estimates[1:]):
        turn = gaps.get((before.stamp_ns, after.stamp_ns))
        if turn is None:
            rates = [estimate.angular_velocity_rad_s for estimate in (before, after)
                     if estimate.usable]
            elapsed_s = (after.stamp_ns - before.stamp_ns) * 1e-9
            turn = elapsed_s * np.mean(rates, axis=0) if rates else np.zeros(3)
        orientations.append(orientations[-1] * Rotation.from_rotvec(turn))
    stamps_ns = np.array([estimate.stamp_ns for estimate in track.estimates], dtype=np.int64)
    return stamps_ns, Rotation.concatenate(orientations)


def write_bag(track: MotionTrack, source: Path, output: Path, overwrite: bool = False) -> int:
    """
    Copy a bag, with the angular velocity added as an Imu topic in the images' frame.

    The messages are those of the node; they are stored at the time of their images' middle.

    :param track: of the bag, whose camera is called by its image topic
    :param source: rosbag2
    :returns: number of Imu messages added
    :raises ConfigError: if the output exists, is the source, or the source has the topic already
    :raises DataFormatError: if the bag cannot be read
    """
    if output.exists() and output.resolve() == source.resolve():
        raise ConfigError(f'{output} is the source itself; choose another name')
    usable = [estimate for estimate in track.estimates if estimate.usable]
    with Bag(source) as bag:
        if any(connection.topic == IMU_TOPIC for connection in bag.connections):
            raise ConfigError(f'{source} has a topic {IMU_TOPIC} already')
        image = next(connection for connection in bag.connections
                     if connection.topic == track.stream.camera)
        frame = next(bag.read(image)).header.frame_id
        delay_ns = _delay_ns(bag, image)
        with new_bag(output, overwrite=overwrite) as writer:
            copies = {connection.id: writer.add_connection(
                connection.topic, connection.msgtype, typestore=bag.typestore,
                msgdef=connection.msgdef.data or None, rihs01=connection.digest or None,
                serialization_format=connection.ext.serialization_format,
                offered_qos_profiles=connection.ext.offered_qos_profiles)
                for connection in bag.connections}
            store = typestore()  # the bag's own has only its types
            ours = writer.add_connection(IMU_TOPIC, IMU_TYPE, typestore=store)
            added = ((estimate.stamp_ns + delay_ns, ours, store.serialize_cdr(
                _imu(store, estimate, frame), IMU_TYPE)) for estimate in usable)
            for time_ns, connection, data in heapq.merge(
                    _copied(bag, copies), added, key=lambda message: message[0]):
                writer.write(connection, time_ns, data)
    return len(usable)


def _copied(bag: Bag, copies: dict[int, Connection]) -> Iterator[tuple[int, Connection, bytes]]:
    """Messages of a bag for the connections of its copy."""
    for connection, time_ns, data in bag.messages():
        yield time_ns, copies[connection.id], data


def _delay_ns(bag: Bag, image: Connection) -> int:
    """Typical time from an image's stamp to when it was recorded."""
    header_ns, received_ns = bag.stamps_ns(image)
    return int(np.median(received_ns - header_ns))


def _imu(store: Typestore, estimate: MotionEstimate, frame: str) -> object:
    """An estimate as the node publishes it (REP-145), for a bag."""
    types = store.types
    absent = np.zeros(9)
    absent[0] = -1.0
    vector, time = types['geometry_msgs/msg/Vector3'], types['builtin_interfaces/msg/Time']
    stamp = time(*divmod(estimate.stamp_ns, 1_000_000_000))
    return types[IMU_TYPE](
        types['std_msgs/msg/Header'](stamp, frame),
        types['geometry_msgs/msg/Quaternion'](0.0, 0.0, 0.0, 1.0), absent,
        vector(*estimate.angular_velocity_rad_s.tolist()),
        estimate.covariance[3:, 3:].ravel(), vector(0.0, 0.0, 0.0), absent)
