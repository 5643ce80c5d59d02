"""Bags that something is wrong with: what is said about them, and what is still made of them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import StoragePlugin, Writer
from scipy.spatial.transform import Rotation

from image_as_imu_ros.cli.main import main
from image_as_imu_ros.errors import DataFormatError, SynchronizationError
from image_as_imu_ros.evaluation.evaluate import score
from image_as_imu_ros.evaluation.overview import COLUMNS, failed_row, overview
from image_as_imu_ros.evaluation.rosbag_writer import write_rosbag
from image_as_imu_ros.evaluation.sources import RecordingOptions, open_recording
from image_as_imu_ros.evaluation.sources.rosbag import TF_TYPE, typestore
from image_as_imu_ros.evaluation.sync import interpolated
from image_as_imu_ros.types import EstimateStatus, MotionEstimate

FRAMES = 24
IMAGES = '/camera/image_raw/compressed'
CLOCK_AHEAD_S = 1234.567


@pytest.fixture
def bag(sequence_folder: Path, tmp_path: Path) -> Path:
    """Whole bag of 24 images and 240 samples of a gyroscope at 200 Hz in camera axes."""
    write_rosbag(open_recording(sequence_folder), tmp_path / 'bag.mcap', images='compressed')
    return tmp_path / 'bag.mcap'


def change_every(topic: str, step: int, change: Callable) -> Callable:
    """Apply `change` to every `step`-th message of a topic, beginning with the third."""
    seen = iter(range(10_000))

    def changed(name, message):
        if name == topic and next(seen) % step == min(2, step - 1):
            return change(message)
        return message
    return changed


def set_stamp(sec: int, nanosec: int = 0) -> Callable:
    """Give a message another stamp."""
    def change(message):
        message.header.stamp.sec, message.header.stamp.nanosec = sec, nanosec
        return message
    return change


def with_clock_ahead(topic: str, seconds: float) -> Callable:
    """Move the stamps of a topic."""
    def change(name, message):
        if name == topic:
            total_ns = (message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
                        + round(seconds * 1e9))
            message.header.stamp.sec, message.header.stamp.nanosec = divmod(total_ns, 10**9)
        return message
    return change


def estimates_of(recording, offset_s: float = 0.0) -> list[MotionEstimate]:
    """Exact estimates of a recording's frames; its gyroscope's clock runs ahead by the offset."""
    stamps_ns = np.array([record.stamp_ns for record in recording.streams[0].records])
    rates = interpolated(recording.gyroscope, stamps_ns + round(offset_s * 1e9))
    return [MotionEstimate(int(stamp_ns), 0.01, rate, np.zeros(3), np.eye(6), True, 5.0, 0.8, 7.0,
                           0.9, EstimateStatus.OK) for stamp_ns, rate in zip(stamps_ns, rates)]


@pytest.mark.parametrize('name', ['bag.mcap', 'bag.db3'])
@pytest.mark.parametrize('share', [0.0, 0.005])
def test_a_bag_without_a_whole_message_is_named(sequence_folder: Path, tmp_path: Path, name: str,
                                                share: float):
    write_rosbag(open_recording(sequence_folder), tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:int(share * len(content))])
    with pytest.raises(DataFormatError, match=rf'cannot read bag .*{name}: .*truncated'):
        open_recording(tmp_path / name)


@pytest.mark.parametrize(('name', 'filled'), [('bag.mcap', False), ('bag.mcap', True),
                                              ('bag.db3', False)])
def test_a_truncated_bag_is_read_as_far_as_it_goes(sequence_folder: Path, tmp_path: Path,
                                                   name: str, filled: bool):
    source = open_recording(sequence_folder)
    write_rosbag(source, tmp_path / name)
    content = (tmp_path / name).read_bytes()
    kept = content[:int(0.7 * len(content))]
    (tmp_path / name).write_bytes(kept.ljust(len(content), b'\0') if filled else kept)
    recording = open_recording(tmp_path / name)
    (warning,) = recording.warnings
    assert 'truncated' in warning and 'read as far as it goes' in warning
    assert FRAMES // 2 <= recording.frame_count < FRAMES
    for own, theirs in zip(recording.streams[0].read(), source.streams[0].read()):
        np.testing.assert_array_equal(own.decode(), theirs.decode())
    assert len(list(recording.streams[0].read())) == recording.frame_count
    assert score(estimates_of(recording), recording).metrics['evaluated'] >= FRAMES // 2


def test_a_folder_without_metadata_is_a_bag(sequence_folder: Path, tmp_path: Path):
    source = open_recording(sequence_folder)
    write_rosbag(source, tmp_path / 'run')
    (tmp_path / 'run' / 'metadata.yaml').unlink()
    recording = open_recording(tmp_path / 'run')
    assert (recording.frame_count, recording.warnings) == (FRAMES, ())
    (file,) = (tmp_path / 'run').iterdir()
    shutil.copy(file, tmp_path / 'run' / 'run_0.mcap')
    file.unlink()
    later = bag_in_two_files(tmp_path / 'run' / 'run_0.mcap', tmp_path)
    assert open_recording(later).frame_count == FRAMES


def bag_in_two_files(bag: Path, folder: Path) -> Path:
    """Split a bag as rosbag2 does, in a folder without metadata.yaml."""
    store = typestore()
    (folder / 'split').mkdir()
    with AnyReader([bag]) as reader:
        messages = list(reader.messages())
        for part, half in enumerate((messages[:200], messages[200:])):
            scratch = folder / f'part{part}'
            with Writer(scratch, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
                new = {connection.id: writer.add_connection(
                    connection.topic, connection.msgtype, typestore=store)
                    for connection in reader.connections}
                for connection, time_ns, data in half:
                    writer.write(new[connection.id], time_ns, data)
            shutil.copy(scratch / f'part{part}.mcap', folder / 'split' / f'split_{part}.mcap')
    return folder / 'split'


@pytest.mark.parametrize(('topic', 'what', 'step'), [
    (IMAGES, 'image', 6), ('/imu/data', 'gyroscope sample', 12)])
def test_some_bad_stamps_are_left_out_and_counted(bag: Path, tmp_path: Path, rewrite_bag,
                                                  topic: str, what: str, step: int):
    whole = open_recording(bag)
    stamps = {record.stamp_ns: stored.file_bytes for record, stored in zip(
        whole.streams[0].records, whole.streams[0].read())}
    for name, stamp, reason in (('zero', (0, 0), f'{what} has a zero stamp'),
                                ('late', (9, 0), f'{what} has a repeated or unordered stamp'),
                                ('early', (1, 1), f'{what} has a repeated or unordered stamp')):
        changed = open_recording(rewrite_bag(bag, tmp_path / f'{name}_{step}', change_every(
            topic, step, set_stamp(*stamp))))
        lost = (FRAMES if what == 'image' else 240) // step
        count = changed.skipped[reason]
        assert lost - 1 <= count <= lost, name  # the last of all may come late
        frames = FRAMES - (count if what == 'image' else 0)
        images = list(changed.streams[0].read())
        assert len(images) == changed.frame_count == frames
        kept = [stored.file_bytes == stamps[record.stamp_ns] for record, stored in zip(
            changed.streams[0].records, images) if record.stamp_ns in stamps]
        assert all(kept) and len(kept) >= frames - 1  # a late last one is none of the old stamps


@pytest.mark.parametrize('topic', [IMAGES, '/imu/data'])
def test_bags_without_usable_stamps_take_those_of_recording(bag: Path, tmp_path: Path,
                                                            rewrite_bag, topic: str):
    zero = rewrite_bag(bag, tmp_path / 'zero', change_every(topic, 1, set_stamp(0)))
    with pytest.raises(DataFormatError, match=rf'all \d+ .* on {topic} have zero stamps.*'
                                              '--stamps received'):
        open_recording(zero)
    same = rewrite_bag(bag, tmp_path / 'same', change_every(topic, 1, set_stamp(7)))
    with pytest.raises(SynchronizationError, match=r'number 1 .from 0. is 7000000000 ns, after '
                                                   r'7000000000 ns.*--stamps received'):
        open_recording(same)
    received = open_recording(zero, options=RecordingOptions(stamps='received', R_gyro_camera=(
        np.eye(3)), exposure_time_s=0.01, stamp_reference='end'))
    assert received.frame_count == FRAMES
    whole = open_recording(bag)  # whose images were written when their exposure ended
    differences = [own.stamp_ns - theirs.stamp_ns for own, theirs in zip(
        received.streams[0].records, whole.streams[0].records)]
    assert np.abs(differences).max() <= 1
    np.testing.assert_array_equal(received.gyroscope.t_ns, whole.gyroscope.t_ns)


def test_nan_samples_are_left_out(bag: Path, tmp_path: Path, rewrite_bag):
    def blind(message):
        message.angular_velocity.x = float('nan')
        return message

    some = open_recording(rewrite_bag(bag, tmp_path / 'some', change_every(
        '/imu/data', 10, blind)))
    assert some.skipped == {'gyroscope sample is not finite': 24}
    assert score(estimates_of(some), some).metrics['evaluated'] == FRAMES
    with pytest.raises(DataFormatError, match=r'/imu/data .* 0 usable samples; .* 240 messages '
                                              r'hold 240 with NaN; check the driver'):
        open_recording(rewrite_bag(bag, tmp_path / 'all', change_every('/imu/data', 1, blind)))


def test_frames_in_a_hole_of_nan_are_not_scored(bag: Path, tmp_path: Path, rewrite_bag):
    def blind_for_a_while(topic, message):
        if topic == '/imu/data' and 300_000_000 < (
                message.header.stamp.sec - 1) * 10**9 + message.header.stamp.nanosec < 600_000_000:
            message.angular_velocity.z = float('nan')
        return message

    recording = open_recording(rewrite_bag(bag, tmp_path / 'hole', blind_for_a_while))
    metrics = score(estimates_of(recording), recording).metrics
    assert 0 < metrics['evaluated'] < FRAMES - 7
    assert recording.skipped['gyroscope sample is not finite'] >= 59


def test_an_imu_at_10_hz_is_called_too_slow(bag: Path, tmp_path: Path, rewrite_bag):
    whole = open_recording(bag)
    assert whole.warnings == ()
    seen = iter(range(1000))
    slow = open_recording(rewrite_bag(
        bag, tmp_path / 'slow', lambda topic, message: None
        if topic == '/imu/data' and next(seen) % 20 else message))
    (warning,) = slow.warnings
    assert '10.0 samples a second for 30.0 images' in warning and '100 Hz or more' in warning
    # The floor that it states is what the interpolation really errs by, within a factor of 2.
    stamps_ns = np.array([record.stamp_ns for record in slow.streams[0].records])
    inside = stamps_ns < slow.gyroscope.t_ns[-1]
    error = interpolated(slow.gyroscope, stamps_ns[inside]) - interpolated(
        whole.gyroscope, stamps_ns[inside])
    ratio = slow.gyroscope.interpolation_error_rad_s / np.sqrt((error ** 2).mean(axis=0))
    assert (ratio > 0.5).all() and (ratio < 2.0).all()
    assert score(estimates_of(slow), slow).metrics['warnings'] == [warning]


@pytest.mark.parametrize('mode', ['stream', 'single'])
def test_clocks_that_differ_are_brought_together(bag: Path, tmp_path: Path, rewrite_bag,
                                                 mode: str):
    path = rewrite_bag(bag, tmp_path / 'apart', with_clock_ahead('/imu/data', CLOCK_AHEAD_S))
    estimates = estimates_of(open_recording(bag))
    if mode == 'single':
        estimates = [estimate.negated() if row % 2 else estimate
                     for row, estimate in enumerate(estimates)]
    apart = open_recording(path)
    with pytest.raises(SynchronizationError, match=r'images 1\.\d+ to 1\.\d+ s, gyroscope 1235\.'
                                                   r'\d+ to .*--time-offset auto'):
        score(estimates, apart, mode)
    found = score(estimates, open_recording(
        path, options=RecordingOptions(time_offset_s='auto')), mode).metrics
    assert found['time_offset_applied_s'] == pytest.approx(CLOCK_AHEAD_S, abs=2e-3)
    assert found['evaluated'] == FRAMES
    assert max(found['protocols']['interpolated']['rotation_rmse_oracle_sign_rad_s']) < 0.1
    told = score(estimates, open_recording(
        path, options=RecordingOptions(time_offset_s=CLOCK_AHEAD_S)), mode).metrics
    np.testing.assert_allclose(
        told['protocols']['interpolated']['rotation_rmse_oracle_sign_rad_s'], 0.0, atol=1e-6)


def test_a_small_offset_is_stated_and_applied_on_demand(bag: Path, tmp_path: Path, rewrite_bag):
    path = rewrite_bag(bag, tmp_path / 'apart', with_clock_ahead('/imu/data', 0.02))
    estimates = estimates_of(open_recording(bag))
    stated = score(estimates, open_recording(path)).metrics
    assert stated['time_offset_s'] == pytest.approx(0.02, abs=1e-3)
    assert stated['time_offset_applied_s'] == 0.0
    assert any('+0.020 s' in text and '--time-offset auto' in text for text in stated['warnings'])
    applied = score(estimates, open_recording(
        path, options=RecordingOptions(time_offset_s='auto'))).metrics
    assert applied['time_offset_applied_s'] == pytest.approx(0.02, abs=1e-3)
    assert applied['time_offset_s'] == pytest.approx(0.0, abs=1e-3)
    assert applied['warnings'] == []


def test_an_unclear_offset_is_not_applied(bag: Path):
    recording = open_recording(bag, options=RecordingOptions(time_offset_s='auto'))
    random = np.random.default_rng(8)
    noise = [MotionEstimate(record.stamp_ns, 0.01, random.standard_normal(3), np.zeros(3),
                            np.eye(6), True, 5.0, 0.8, 7.0, 0.9, EstimateStatus.OK)
             for record in recording.streams[0].records]
    with pytest.raises(SynchronizationError, match=r'offset is not clear.*--time-offset S'):
        score(noise, recording)
    with pytest.raises(SynchronizationError, match='from 5 frames'):
        score(noise[:5], recording)


def test_rotation_along_a_chain_of_static_transforms(bag: Path, tmp_path: Path, rewrite_bag):
    store = typestore()
    make = store.types.__getitem__
    turns = Rotation.from_euler('xyz', [[10, 20, 30], [-40, 50, 5], [70, -15, 25]], degrees=True)

    def chained(topic, message):
        """imu_link <- base -> head -> camera, the first against the direction of the search."""
        if topic != '/tf_static':
            return message
        (first,) = message.transforms
        links = (('base', 'imu_link', turns[0]), ('/base', 'head', turns[1]),
                 ('head', 'camera_optical_frame', turns[2]))
        return make(TF_TYPE)([
            make('geometry_msgs/msg/TransformStamped')(
                make('std_msgs/msg/Header')(first.header.stamp, parent), child,
                make('geometry_msgs/msg/Transform')(
                    first.transform.translation,
                    make('geometry_msgs/msg/Quaternion')(*turn.as_quat())))
            for parent, child, turn in links])

    recording = open_recording(rewrite_bag(bag, tmp_path / 'chain', chained))
    expected = (turns[0].inv() * turns[1] * turns[2]).as_matrix()
    np.testing.assert_allclose(recording.streams[0].R_gyro_camera, expected, atol=1e-12)


def test_intrinsics_may_be_stated(bag: Path, tmp_path: Path, rewrite_bag):
    path = rewrite_bag(bag, tmp_path / 'none', lambda topic, message: None
                       if topic == '/camera/camera_info' else message)
    stated = open_recording(path, options=RecordingOptions(intrinsics_px=(
        300.0, 301.0, 159.5, 119.5, 0.1, 0.0, 0.0, 0.0))).streams[0].records[0].intrinsics
    assert (stated.width_px, stated.height_px, stated.fy_px) == (320, 240, 301.0)
    assert (stated.distortion_model, stated.distortion) == ('plumb_bob', (0.1, 0.0, 0.0, 0.0))


def test_own_output_depth_and_compressed_twins_are_not_taken(
        sequence_folder: Path, bag: Path, tmp_path: Path):
    store = typestore()
    write_rosbag(open_recording(sequence_folder), tmp_path / 'raw.mcap')
    twins = {'/imu/data': ['/imu/data', '/visual_imu/imu/data_raw'],
             '/camera/image_raw': ['/camera/image_raw', '/camera/depth/image_raw',
                                   '/visual_imu/overlay']}
    with Writer(tmp_path / 'more', version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        for source, wanted in ((tmp_path / 'raw.mcap', lambda topic: True),
                               (bag, lambda topic: topic == IMAGES)):
            with AnyReader([source]) as reader:
                for connection in filter(lambda c: wanted(c.topic), reader.connections):
                    new = [writer.add_connection(topic, connection.msgtype, typestore=store)
                           for topic in twins.get(connection.topic, [connection.topic])]
                    for _, time_ns, data in reader.messages([connection]):
                        for target in new:
                            writer.write(target, time_ns, data)
    recording = open_recording(tmp_path / 'more')
    assert (recording.streams[0].camera, recording.frame_count) == ('/camera/image_raw', FRAMES)
    own = open_recording(tmp_path / 'more', options=RecordingOptions(
        imu_topic='/visual_imu/imu/data_raw'))
    assert len(own.gyroscope.t_ns) == 240
    with pytest.raises(DataFormatError, match='no topic /imu/other'):
        open_recording(tmp_path / 'more', options=RecordingOptions(imu_topic='/imu/other'))


def test_own_output_is_no_reference(bag: Path, tmp_path: Path):
    store = typestore()
    with AnyReader([bag]) as reader, Writer(
            tmp_path / 'own', version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        for connection in reader.connections:
            new = writer.add_connection(
                connection.topic.replace('/imu/data', '/visual_imu/imu/data_raw'),
                connection.msgtype, typestore=store)
            for _, time_ns, data in reader.messages([connection]):
                writer.write(new, time_ns, data)
    with pytest.raises(DataFormatError, match='is the output of visual_imu; record the IMU too'):
        open_recording(tmp_path / 'own')


def test_several_recordings_make_one_table(sequence_folder: Path, tmp_path: Path, capsys):
    frames = sequence_folder / 'frames.csv'
    frames.write_text(''.join(frames.read_text().splitlines(keepends=True)[:6]))
    folder, output = tmp_path / 'runs', tmp_path / 'out'
    (folder / 'deeper').mkdir(parents=True)
    write_rosbag(open_recording(sequence_folder), folder / 'first.mcap', images='compressed')
    shutil.copy(folder / 'first.mcap', folder / 'deeper' / 'second.mcap')
    (folder / 'broken.mcap').write_bytes(b'')
    (folder / 'notes.txt').write_text('not a recording')
    assert main(['evaluate', str(folder), str(folder / 'first.mcap'), '--mode', 'single',
                 '--output', str(output), '--set', 'estimator.threads=1']) == 1
    captured = capsys.readouterr()
    assert '1 of 3 recordings could not be evaluated: broken' in captured.err.splitlines()[-1]

    table = json.loads((output / 'overview.json').read_text())
    broken, *rows = table['recordings']
    assert [row['recording'] for row in rows] == ['second', 'first']
    assert 'cannot read bag' in broken['error'] and broken['rmse_rad_s_vector'] is None
    summary = json.loads((output / 'first' / 'summary.json').read_text())
    rmse = summary['protocols']['interpolated']['rotation_rmse_oracle_sign_rad_s']
    for row in (*rows, table['mean'], table['worst']):
        np.testing.assert_allclose([row[f'rmse_rad_s_{axis}'] for axis in 'xyz'], rmse)
        assert row['rmse_rad_s_vector'] == pytest.approx(np.linalg.norm(rmse))
    lines = (output / 'overview.csv').read_text().splitlines()
    assert [line.split(',')[0] for line in lines] == ['recording', 'broken', 'second', 'first',
                                                      'mean', 'worst']
    for word in ('cannot read bag', 'second', 'first', 'mean', 'worst',
                 '/'.join(f'{value:.3f}' for value in rmse)):
        assert word in captured.out


def test_the_worst_of_several_is_the_one_farthest_from_ideal():
    def row(name: str, rmse: float, slope: float, coverage: float) -> dict:
        return dict.fromkeys(COLUMNS) | {
            'recording': name, 'rmse_rad_s_vector': rmse, 'slope_x': slope,
            'coverage_95': coverage, 'warnings': []}

    table = overview([row('a', 1.0, 1.05, 0.99), row('b', 3.0, 0.8, 0.93),
                      failed_row('c', Path('c'), DataFormatError('cut'))], 'stream', 'compact')
    assert table['mean']['rmse_rad_s_vector'] == 2.0
    assert table['mean']['slope_x'] == pytest.approx(0.925)
    assert (table['worst']['rmse_rad_s_vector'], table['worst_recording']) == (3.0, 'b')
    assert (table['worst']['slope_x'], table['worst']['coverage_95']) == (0.8, 0.99)
    assert table['worst']['nees_mean'] is None


def test_a_folder_without_recordings_is_named(tmp_path: Path, capsys):
    assert main(['evaluate', str(tmp_path)]) == 1
    assert 'no known recording and holds none' in capsys.readouterr().err
