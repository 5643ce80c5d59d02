"""What is exported says the same when it is read back, by other programs where there are some."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from rosbags.highlevel import AnyReader
from scipy.spatial.transform import Rotation

from image_as_imu_ros.cli.main import main
from image_as_imu_ros.errors import DataFormatError
from image_as_imu_ros.evaluation import export
from image_as_imu_ros.evaluation.motion_track import MotionTrack, track_motion
from image_as_imu_ros.evaluation.rosbag_writer import write_rosbag
from image_as_imu_ros.evaluation.sources import RecordingOptions, open_recording
from image_as_imu_ros.evaluation.sources.recording import FrameRecord, Recording, Stream
from image_as_imu_ros.evaluation.sources.rosbag import typestore
from image_as_imu_ros.evaluation.sources.video import open_video

EXPOSURE_S = 0.01
GYROFLOW_FROM_CAMERA = np.array([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])


def true_rate(time_s: np.ndarray) -> np.ndarray:
    """Rate of the test images in camera axes, (N, 3) rad/s."""
    return np.stack([3.0 * np.cos(9.0 * time_s), 4.0 * np.cos(7.0 * time_s + 0.5),
                     2.0 * np.cos(11.0 * time_s + 1.0)], axis=1)


def true_rotation(start_s: float, end_s: float) -> Rotation:
    """Rotation of the camera between two times."""
    edges_s = np.linspace(start_s, end_s, 400)
    middles_s, step_s = (edges_s[:-1] + edges_s[1:]) / 2, edges_s[1] - edges_s[0]
    total = Rotation.identity()
    for turn in true_rate(middles_s) * step_s:
        total = total * Rotation.from_rotvec(turn)
    return total


@pytest.fixture(scope='module')
def track(gyroscope, blurred_frames) -> MotionTrack:
    """Motion of the first 16 test images."""
    from image_as_imu_ros.evaluation.sources.recording import StoredImage
    frames = blurred_frames[:16]
    stream = Stream('camera', tuple(FrameRecord(
        frame.stamp_ns, frame.intrinsics, frame.exposure_time_s) for frame in frames),
        lambda: (StoredImage(lambda frame=frame: frame.image) for frame in frames), None)
    return track_motion(Recording(Path('swing'), 'sequence', 'full', (stream,), None), gyroscope)


def test_rotations_between_images_are_sharp(track):
    assert len(track.gaps) == 15 and len(track.estimates) == 16 and not track.skipped
    for gap in track.gaps:
        true = true_rotation(gap.start_ns * 1e-9, gap.end_ns * 1e-9)
        error = (Rotation.from_rotvec(gap.rotation_rad) * true.inv()).magnitude()
        assert error < 0.004  # of 0.1 to 0.2 rad
        assert error < 6 * np.sqrt(np.trace(gap.covariance))


def test_csv_has_every_estimate(track, tmp_path):
    export.write_csv(track, tmp_path / 'rates.csv')
    with (tmp_path / 'rates.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(track.estimates)
    for row, estimate in zip(rows, track.estimates):
        assert int(row['timestamp_ns']) == estimate.stamp_ns
        np.testing.assert_allclose([float(row[name]) for name in ('wx', 'wy', 'wz')],
                                   estimate.angular_velocity_rad_s, rtol=1e-7)
        np.testing.assert_allclose(float(row['cov_wx_wz']), estimate.covariance[3, 5], rtol=1e-7)
        assert row['status'] == estimate.status.name
        assert bool(int(row['sign_resolved'])) == estimate.sign_resolved


def test_tum_is_the_orientation(track, tmp_path):
    export.write_tum(track, tmp_path / 'swing.tum')
    rows = np.loadtxt(tmp_path / 'swing.tum')
    assert rows.shape == (16, 8) and not rows[:, 1:4].any()
    np.testing.assert_allclose(rows[:, 0], [e.stamp_ns * 1e-9 for e in track.estimates], atol=1e-9)
    true = true_rotation(rows[0, 0], rows[-1, 0])
    drift = (Rotation.from_quat(rows[-1, 4:]) * true.inv()).magnitude()
    assert np.degrees(drift) < 1.0


def test_gcsv_is_read_by_gyroflows_parser_in_its_axes(track, tmp_path):
    telemetry_parser = pytest.importorskip('telemetry_parser')
    path = tmp_path / 'swing.gcsv'
    records = (replace(track.stream.records[0], readout_time_s=0.012), *track.stream.records[1:])
    export.write_gcsv(replace(track, stream=replace(track.stream, records=records)), path,
                      'swing.mp4')
    parser = telemetry_parser.Parser(str(path))
    assert parser.model == 'image as imu ros'
    metadata = parser.telemetry()[0]['Default']['Metadata']
    assert metadata['videofilename'] == 'swing.mp4'
    assert float(metadata['frame_readout_time']) == 12.0  # ms
    samples = parser.normalized_imu()
    times_s = 1e-3 * np.array([sample['timestamp_ms'] for sample in samples])
    rates = np.radians([sample['gyro'] for sample in samples])
    np.testing.assert_allclose(np.diff(times_s), 0.005, atol=1e-6)
    assert times_s[0] == 0.0 and times_s[-1] > 0.49
    inner = slice(8, -8)  # the ends of a spline are less certain
    true = true_rate(times_s + 0.005) @ GYROFLOW_FROM_CAMERA.T  # the first image is at 5 ms
    error = np.sqrt(np.mean((rates - true)[inner] ** 2))
    assert error < 0.15  # measured: 0.06, of 3.3 rms


def test_what_is_unknown_is_bridged_by_the_rates_or_refused(track, tmp_path):
    whole = export.orientation_track(track)[1][-1]
    without = MotionTrack(track.stream, track.estimates, track.gaps[:5] + track.gaps[6:], {})
    bridged = export.orientation_track(without)[1][-1]
    assert 0.0 < (whole * bridged.inv()).magnitude() < 0.1
    nothing = MotionTrack(track.stream, track.estimates[:1], (), {})
    with pytest.raises(DataFormatError, match='nothing is known of the motion'):
        export.write_tum(nothing, tmp_path / 'nothing.tum')


@pytest.mark.parametrize('name', ['out.mcap', 'out.db3'])
def test_bag_keeps_every_message_and_gains_ours(sequence_folder, gyroscope, tmp_path, name):
    table = sequence_folder / 'frames.csv'
    table.write_text('\n'.join(table.read_text().splitlines()[:7]) + '\n')
    source = tmp_path / 'source.mcap'
    write_rosbag(open_recording(sequence_folder), source, images='compressed')
    recording = open_recording(source)
    track = track_motion(recording, gyroscope)
    output = tmp_path / name
    assert export.write_bag(track, source, output) == 5
    store = typestore()

    def messages(path: Path) -> dict[str, list[tuple[int, bytes]]]:
        found: dict[str, list[tuple[int, bytes]]] = {}
        with AnyReader([path], default_typestore=store) as reader:
            for connection, time_ns, data in reader.messages():
                found.setdefault(connection.topic, []).append((time_ns, bytes(data)))
        return found

    before, after = messages(source), messages(output)
    ours = after.pop(export.IMU_TOPIC)
    assert after == before
    usable = [estimate for estimate in track.estimates if estimate.usable]
    for (time_ns, data), estimate in zip(ours, usable):
        imu = store.deserialize_cdr(data, 'sensor_msgs/msg/Imu')
        assert imu.header.frame_id == 'camera_optical_frame'
        assert imu.header.stamp.sec * 10**9 + imu.header.stamp.nanosec == estimate.stamp_ns
        assert abs(time_ns - estimate.stamp_ns) < 20_000_000
        rate = imu.angular_velocity
        np.testing.assert_array_equal([rate.x, rate.y, rate.z], estimate.angular_velocity_rad_s)
        np.testing.assert_array_equal(imu.angular_velocity_covariance.reshape(3, 3),
                                      estimate.covariance[3:, 3:])
        assert imu.orientation_covariance[0] == imu.linear_acceleration_covariance[0] == -1.0
    again = open_recording(output, options=RecordingOptions(imu_topic='/imu/data'))
    assert again.frame_count == recording.frame_count


@pytest.fixture
def video(blurred_sequence, tmp_path) -> Path:
    """The first 8 test images as a video."""
    path = tmp_path / 'clip.avi'
    height, width = blurred_sequence.frames[0].image.shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 30.0, (width, height))
    if not writer.isOpened():
        pytest.skip('this OpenCV writes no video')
    for frame in blurred_sequence.frames[:8]:
        writer.write(frame.image[..., ::-1])
    writer.release()
    return path


def test_video_has_times_and_intrinsics(video):
    recording = open_video(video, (300.0, 310.0, None, 100.0), (0.1, 0.0, 0.0, 0.0), 0.01, 0.02)
    (stream,) = recording.streams
    np.testing.assert_allclose([record.stamp_ns for record in stream.records],
                               np.arange(8) / 30 * 1e9, atol=1e6)
    record = stream.records[0]
    assert (record.intrinsics.fx_px, record.intrinsics.fy_px) == (300.0, 310.0)
    assert (record.intrinsics.cx_px, record.intrinsics.cy_px) == (159.5, 100.0)
    assert (record.exposure_time_s, record.readout_time_s) == (0.01, 0.02)
    assert len([stored.decode() for stored in stream.read()]) == 8


def test_command_exports_a_video_without_a_gyroscope(video, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    source = ['export', str(video), '--fx', '300']
    assert main([*source, '--format', 'gcsv', '--exposure', '0.01']) == 0
    assert 'of 8 images' in capsys.readouterr().out
    assert (tmp_path / 'clip.gcsv').read_text().startswith('GYROFLOW IMU LOG\nversion,1.3\n')
    assert main([*source, '--format', 'gcsv']) == 1
    assert 'exists' in capsys.readouterr().err
    assert main([*source, '--format', 'bag', '--exposure', '0.01']) == 0
    with AnyReader([tmp_path / 'clip_visual.mcap'], default_typestore=typestore()) as reader:
        counts = {connection.topic: connection.msgcount for connection in reader.connections}
    assert counts[export.IMU_TOPIC] >= 6 and '/imu/data' not in counts
    assert counts['/camera/image_raw/compressed'] == 8
    assert main(['export', str(video), '--format', 'csv']) == 1
    assert '--fx' in capsys.readouterr().err
