"""Bags hold what the folders held, and broken bags are named."""

import re
from pathlib import Path

import numpy as np
import pytest
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import get_types_from_msg

from image_as_imu_ros.errors import (
    ConfigError,
    DataFormatError,
    ImageAsImuError,
)
from image_as_imu_ros.evaluation.rosbag_writer import write_rosbag
from image_as_imu_ros.evaluation.sources import RecordingOptions, open_recording
from image_as_imu_ros.evaluation.sources.recording import Recording
from image_as_imu_ros.evaluation.sources.rosbag import (
    EXPOSURE_DEFINITION,
    EXPOSURE_TYPE,
    typestore,
)

CHECKOUT = Path(__file__).resolve().parents[1]
R_GYRO_CAMERA = np.array([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])


@pytest.fixture
def recording(sequence_folder: Path) -> Recording:
    """Sequence folder whose gyroscope is said to be mounted as in an iPhone."""
    return open_recording(sequence_folder, options=RecordingOptions(R_gyro_camera=R_GYRO_CAMERA))


def without(topic: str):
    """Leave out all messages of a topic."""
    return lambda name, message: None if name == topic else message


@pytest.mark.parametrize(('name', 'storage', 'images'), [
    ('bag.mcap', None, 'raw'), ('bag.db3', None, 'compressed'), ('bag', 'sqlite3', 'raw'),
    ('bag_folder', None, 'compressed')])
def test_bag_equals_its_source(recording: Recording, tmp_path: Path, name: str,
                               storage: str | None, images: str):
    count = write_rosbag(recording, tmp_path / name, storage, images)
    bag = open_recording(tmp_path / name)
    (ours,), (theirs,) = bag.streams, recording.streams
    assert count == bag.frame_count == recording.frame_count == 24
    shift_ns = ours.records[0].stamp_ns - theirs.records[0].stamp_ns
    assert shift_ns == 1_200_000_000  # the gyroscope began at -0.2 s
    for own, source in zip(ours.records, theirs.records):
        assert abs(own.stamp_ns - source.stamp_ns - shift_ns) <= 1
        assert own.exposure_time_s == source.exposure_time_s
        assert own.intrinsics == source.intrinsics
    np.testing.assert_array_equal(bag.gyroscope.t_ns, recording.gyroscope.t_ns + shift_ns)
    np.testing.assert_array_equal(bag.gyroscope.angular_velocity_rad_s,
                                  recording.gyroscope.angular_velocity_rad_s)
    np.testing.assert_allclose(ours.R_gyro_camera, R_GYRO_CAMERA, atol=1e-12)
    for own, source in zip(ours.read(), theirs.read()):
        np.testing.assert_array_equal(own.decode(), source.decode())
        assert images == 'raw' or own.file_bytes == source.file_bytes


def test_messages_say_what_they_are(recording: Recording, tmp_path: Path):
    write_rosbag(recording, tmp_path / 'bag.mcap')
    first, times_ns = {}, []
    with AnyReader([tmp_path / 'bag.mcap']) as reader:
        for connection, time_ns, data in reader.messages():
            message = reader.deserialize(data, connection.msgtype)
            first.setdefault(connection.topic, message)
            times_ns.append(time_ns)
        counts = {topic: info.msgcount for topic, info in reader.topics.items()}
    assert times_ns == sorted(times_ns)
    assert counts == {'/camera/image_raw': 24, '/camera/camera_info': 24, '/imu/data': 240,
                      '/camera/exposure_time': 24, '/tf_static': 1}
    stamps = {topic: first[topic].header.stamp for topic in counts if topic != '/tf_static'}
    assert stamps['/camera/image_raw'] == stamps['/camera/camera_info'] == stamps[
        '/camera/exposure_time']
    assert stamps['/imu/data'].sec == 1
    imu, image = first['/imu/data'], first['/camera/image_raw']
    assert imu.orientation_covariance[0] == imu.linear_acceleration_covariance[0] == -1.0
    assert (imu.header.frame_id, image.header.frame_id) == ('imu_link', 'camera_optical_frame')
    assert (image.encoding, image.step) == ('rgb8', 960)
    assert first['/camera/exposure_time'].exposure_time == 0.01


def test_evaluation_of_bag_and_folder_agree(sequence_folder: Path, tmp_path: Path):
    from image_as_imu_ros.config import EstimatorConfig
    from image_as_imu_ros.estimator import VisualGyroscope
    from image_as_imu_ros.evaluation.evaluate import evaluate
    gyroscope = VisualGyroscope(EstimatorConfig(device='cpu'))
    folder = open_recording(sequence_folder)
    write_rosbag(folder, tmp_path / 'bag.mcap', images='compressed')
    from_folder, from_bag = (evaluate(recording, gyroscope, 'stream').metrics for recording in (
        folder, open_recording(tmp_path / 'bag.mcap')))
    assert from_folder['evaluated'] == from_bag['evaluated'] > 15
    for protocol, values in from_folder['protocols'].items():
        np.testing.assert_allclose(from_bag['protocols'][protocol]['rotation_rmse_rad_s'],
                                   values['rotation_rmse_rad_s'], atol=1e-3)


def test_unreadable_images_and_unknown_exposures_are_left_out(
        sequence_folder: Path, tmp_path: Path, caplog):
    (sequence_folder / 'frames' / '0003.jpg').write_bytes(b'')
    table = sequence_folder / 'frames.csv'
    table.write_text(table.read_text().replace(',0.01,', ',,'))
    recording = open_recording(sequence_folder)
    assert write_rosbag(recording, tmp_path / 'bag') == 23
    assert 'image left out' in caplog.text and '0003.jpg' in caplog.text
    bag = open_recording(tmp_path / 'bag')
    assert {record.exposure_time_s for record in bag.streams[0].records} == {None}
    told = open_recording(tmp_path / 'bag', options=RecordingOptions(exposure_time_s=0.004))
    start_ns = bag.streams[0].records[0].stamp_ns
    assert told.streams[0].records[0].stamp_ns == start_ns + 2_000_000
    end = open_recording(tmp_path / 'bag', options=RecordingOptions(
        exposure_time_s=0.004, stamp_reference='end'))
    assert end.streams[0].records[0].stamp_ns == start_ns - 2_000_000


def test_frames_of_impossible_exposure_are_left_out(sequence_folder: Path, tmp_path: Path):
    table = sequence_folder / 'frames.csv'
    table.write_text(table.read_text().replace('0000.jpg,0.005000000,0.01,',
                                               '0000.jpg,0.005000000,inf,'))
    assert write_rosbag(open_recording(sequence_folder), tmp_path / 'bag') == 23


def test_frames_own_references_serve_as_gyroscope(sequence_folder: Path, tmp_path: Path):
    (sequence_folder / 'gyro.csv').unlink()
    table = sequence_folder / 'frames.csv'
    header, *rows = table.read_text().splitlines()
    table.write_text('\n'.join([f'{header},wx,wy,wz', *(f'{row},1,2,3' for row in rows)]))
    write_rosbag(open_recording(sequence_folder), tmp_path / 'bag.mcap')
    bag = open_recording(tmp_path / 'bag.mcap')
    np.testing.assert_array_equal(bag.gyroscope.angular_velocity_rad_s, [[1.0, 2.0, 3.0]] * 24)
    np.testing.assert_allclose(bag.streams[0].R_gyro_camera, np.eye(3))


def test_output_is_not_overwritten_unasked(recording: Recording, tmp_path: Path):
    (tmp_path / 'bag.mcap').write_text('precious')
    with pytest.raises(ConfigError, match='exists'):
        write_rosbag(recording, tmp_path / 'bag.mcap')
    with pytest.raises(ConfigError, match='names mcap storage, not sqlite3'):
        write_rosbag(recording, tmp_path / 'bag.mcap', 'sqlite3', overwrite=True)
    assert (tmp_path / 'bag.mcap').read_text() == 'precious'
    write_rosbag(recording, tmp_path / 'bag.mcap', overwrite=True)
    assert open_recording(tmp_path / 'bag.mcap').frame_count == 24
    assert sorted(path.name for path in tmp_path.iterdir()) == ['bag.mcap', 'swing']


@pytest.mark.parametrize(('topic', 'message'), [
    ('/camera/image_raw', 'has no images'),
    ('/imu/data', 'has no topic of type sensor_msgs/msg/Imu with a message; its topics are: .*'
                  '/camera/image_raw .24 sensor_msgs/msg/Image.*record it too.*--imu-topic'),
    ('/camera/camera_info', 'no topic of type sensor_msgs/msg/CameraInfo.*--intrinsics'),
    ('/tf_static', r'does not tell the rotation .*connects no frames.*--R'),
])
def test_bags_without_what_is_needed(recording: Recording, tmp_path: Path, rewrite_bag, topic: str,
                                     message: str):
    write_rosbag(recording, tmp_path / 'bag')
    with pytest.raises(DataFormatError, match=message):
        open_recording(rewrite_bag(tmp_path / 'bag', tmp_path / 'without', without(topic)))


def test_rotation_may_come_from_the_command_line(recording: Recording, tmp_path: Path,
                                                 rewrite_bag):
    write_rosbag(recording, tmp_path / 'bag')
    bag = rewrite_bag(tmp_path / 'bag', tmp_path / 'without', without('/tf_static'))
    told = open_recording(bag, options=RecordingOptions(R_gyro_camera=np.eye(3)))
    np.testing.assert_array_equal(told.streams[0].R_gyro_camera, np.eye(3))


def test_bags_with_bad_stamps_or_cameras(recording: Recording, tmp_path: Path, rewrite_bag):
    write_rosbag(recording, tmp_path / 'bag')

    def zero_stamps(topic, message):
        if topic == '/camera/image_raw':
            message.header.stamp.sec = message.header.stamp.nanosec = 0
        return message

    def uncalibrated(topic, message):
        if topic == '/camera/camera_info':
            message.k = np.zeros(9)
        return message

    for name, change, text in (
            ('zero', zero_stamps, 'all 24 images on /camera/image_raw have zero stamps'),
            ('camera', uncalibrated, 'uncalibrated')):
        with pytest.raises(DataFormatError, match=text):
            open_recording(rewrite_bag(tmp_path / 'bag', tmp_path / name, change))


def test_damaged_bytes_never_raise_another_error(recording: Recording, tmp_path: Path):
    random = np.random.default_rng(4)
    for name in ('bag.mcap', 'bag.db3'):
        write_rosbag(recording, tmp_path / name, images='compressed')
        content = np.frombuffer((tmp_path / name).read_bytes(), np.uint8)
        size = content.size
        for start, stop in 3 * [(0, size), (0, 20_000), (size - 5000, size)]:
            damaged = content.copy()
            damaged[random.integers(start, stop, 20)] ^= 0x55
            (tmp_path / f'damaged_{name}').write_bytes(damaged.tobytes())
            try:
                bag = open_recording(tmp_path / f'damaged_{name}')
                assert len(list(bag.streams[0].read())) == bag.frame_count
            except ImageAsImuError as error:
                assert len(str(error).splitlines()) == 1


def test_topics_must_be_named_where_there_are_several(recording: Recording, tmp_path: Path):
    write_rosbag(recording, tmp_path / 'bag')
    store = typestore()
    with AnyReader([tmp_path / 'bag']) as reader, Writer(
            tmp_path / 'two', version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
        for connection in reader.connections:
            topics = [connection.topic]
            if connection.topic.startswith('/camera/'):
                topics.append(connection.topic.replace('/camera/', '/rear/'))
            new = [writer.add_connection(topic, connection.msgtype, typestore=store)
                   for topic in topics]
            for _, time_ns, data in reader.messages([connection]):
                for target in new:
                    writer.write(target, time_ns, data)
    with pytest.raises(DataFormatError, match=r'several image topics: .*--image-topic'):
        open_recording(tmp_path / 'two')
    for options in (RecordingOptions(camera='/rear/*'),
                    RecordingOptions(image_topic='/rear/image_raw')):
        (stream,) = open_recording(tmp_path / 'two', options=options).streams
        assert (stream.camera, stream.records[0].exposure_time_s) == ('/rear/image_raw', 0.01)
    both = open_recording(tmp_path / 'two', options=RecordingOptions(camera='*'))
    assert len(both.streams) == 2
    with pytest.raises(DataFormatError, match='no topic /up of type'):
        open_recording(tmp_path / 'two', options=RecordingOptions(image_topic='/up'))
    with pytest.raises(ConfigError, match='no image topic'):
        open_recording(tmp_path / 'two', options=RecordingOptions(camera='/up/*'))


def test_exposure_definition_is_that_of_the_package():
    text = (CHECKOUT / 'msg' / 'ExposureTime.msg').read_text()
    stated = get_types_from_msg(text, EXPOSURE_TYPE)
    assert stated[EXPOSURE_TYPE][1] == get_types_from_msg(
        EXPOSURE_DEFINITION, EXPOSURE_TYPE)[EXPOSURE_TYPE][1]
    assert not re.search('#', EXPOSURE_DEFINITION)
