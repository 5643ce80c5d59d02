"""Recordings of each kind, and what is said about broken ones."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from image_as_imu_ros.errors import ConfigError, DataFormatError, InputError, SynchronizationError
from image_as_imu_ros.evaluation.sources import RecordingOptions, open_recording
from image_as_imu_ros.evaluation.sources.recording import mid_exposure_ns
from image_as_imu_ros.evaluation.sources.strayscanner import R_GYRO_CAMERA

FULL_PX = (640, 480)
FULL_MATRIX = [[500.0, 0.0, 318.0], [0.0, 500.0, 242.0], [0.0, 0.0, 1.0]]
ROWS = 7


@pytest.fixture
def app_folder(tmp_path: Path) -> Path:
    """Folder as the StrayScanner app writes it: a video, poses without exposure, imu.csv."""
    folder = tmp_path / 'stray'
    folder.mkdir()
    np.savetxt(folder / 'camera_matrix.csv', FULL_MATRIX, delimiter=', ')
    poses = ''.join(
        f'{100 + row / 30:.9f}, {row:06d}, {0.03 * row}, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0\n'
        for row in range(ROWS))
    (folder / 'odometry.csv').write_text(
        f'timestamp, frame, x, y, z, qx, qy, qz, qw\n{poses}')
    samples = ''.join(f'{99.9 + k / 100:.9f}, 0.0, 0.0, 9.8, {0.1 * k:.3f}, 0.2, -0.3\n'
                      for k in range(60))
    (folder / 'imu.csv').write_text(
        f'timestamp, a_x, a_y, a_z, alpha_x, alpha_y, alpha_z\n{samples}')
    video = cv2.VideoWriter(
        str(folder / 'rgb.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 30, FULL_PX)
    for image in range(ROWS - 1):
        video.write(np.full((FULL_PX[1], FULL_PX[0], 3), 30 + 30 * image, np.uint8))
    video.release()
    return folder


def images_of(recording) -> list[np.ndarray]:
    """All decoded images of the first stream."""
    return [stored.decode() for stored in recording.streams[0].read()]


def rewrite(path: Path, before: str, after: str) -> None:
    """Replace a text that must be there."""
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def test_app_folder_pairs_image_k_with_row_k_plus_1(app_folder: Path):
    recording = open_recording(app_folder)
    (stream,) = recording.streams
    assert recording.kind == 'strayscanner'
    assert [record.stamp_ns for record in stream.records] == [
        round((100 + row / 30) * 1e9) for row in range(1, ROWS)]
    levels = [int(np.median(image)) for image in images_of(recording)]
    np.testing.assert_allclose(levels, 30 + 30 * np.arange(ROWS - 1), atol=4)
    np.testing.assert_array_equal(stream.R_gyro_camera, R_GYRO_CAMERA)


def test_app_folder_is_cropped_as_the_paper_does(app_folder: Path):
    (stream,) = open_recording(app_folder).streams
    camera = stream.records[0].intrinsics
    scale = 336 / 640
    assert (camera.width_px, camera.height_px) == (320, 224)
    assert camera.fx_px == pytest.approx(500 * scale)
    assert camera.cx_px == pytest.approx(318 * scale - 8)
    assert camera.cy_px == pytest.approx(242 * scale - 14)
    assert images_of(open_recording(app_folder))[0].shape == (224, 320, 3)


def test_full_size_keeps_the_images_and_their_matrix(app_folder: Path):
    recording = open_recording(app_folder, options=RecordingOptions(image_size='full'))
    camera = recording.streams[0].records[0].intrinsics
    assert (camera.width_px, camera.height_px, camera.cx_px) == (640, 480, 318.0)
    assert images_of(recording)[0].shape == (480, 640, 3)


def test_exposure_is_assumed_and_said_so(app_folder: Path):
    recording = open_recording(app_folder)
    assert recording.streams[0].records[0].exposure_time_s == 0.01
    assert '0.01 s' in recording.assumptions[0]
    other = open_recording(app_folder, options=RecordingOptions(exposure_time_s=0.005))
    assert other.streams[0].records[0].exposure_time_s == 0.005


def test_empty_exposure_cells_are_assumed(app_folder: Path):
    lines = (app_folder / 'odometry.csv').read_text().splitlines()
    exposures = ['exposure', '0.004', '0.005', '', *['0.006'] * (ROWS - 3)]
    (app_folder / 'odometry.csv').write_text(
        '\n'.join(f'{line}, {exposure}' for line, exposure in zip(lines, exposures)))
    recording = open_recording(app_folder)
    assert [record.exposure_time_s for record in recording.streams[0].records] == [
        0.005, 0.01, 0.006, 0.006, 0.006, 0.006]
    assert len(recording.assumptions) == 1


def test_linear_velocity_comes_from_the_poses(app_folder: Path):
    records = open_recording(app_folder).streams[0].records
    np.testing.assert_allclose(records[2].linear_velocity_reference_m_s, [0.9, 0, 0], atol=1e-6)
    assert records[0].linear_velocity_reference_m_s is None


def test_gyroscope_samples_that_are_not_finite_are_dropped_and_counted(app_folder: Path):
    rewrite(app_folder / 'imu.csv', ' 1.500, 0.2,', ' nan, 0.2,')
    recording = open_recording(app_folder)
    assert len(recording.gyroscope.t_ns) == 59
    assert recording.skipped == {'gyroscope sample is not finite': 1}


def test_truncated_video_or_missing_images(app_folder: Path):
    (app_folder / 'rgb.mp4').write_bytes((app_folder / 'rgb.mp4').read_bytes()[:200])
    with pytest.raises(DataFormatError, match=r'rgb.mp4 cannot be decoded'):
        open_recording(app_folder)
    (app_folder / 'rgb.mp4').unlink()
    with pytest.raises(DataFormatError, match='has no images'):
        open_recording(app_folder)


@pytest.mark.parametrize(('file', 'before', 'after', 'error', 'message'), [
    ('odometry.csv', ' qw', ' qz', DataFormatError, 'no column "qw"'),
    ('imu.csv', 'alpha_y', 'beta', DataFormatError, 'no column "alpha_y"'),
    ('imu.csv', '99.910000000', '99.990000000', SynchronizationError, 'gyroscope sample 2'),
    ('imu.csv', '99.910000000', '99.900000000', SynchronizationError, 'gyroscope sample 1'),
    ('imu.csv', '99.910000000', 'soon', DataFormatError, '"soon" is not a number'),
    ('odometry.csv', '100.066666667', 'nan', DataFormatError, 'row 3: timestamp is not a finite'),
    ('odometry.csv', '100.066666667', '100.9', SynchronizationError, 'image of camera'),
    ('odometry.csv', '0.0, 1.0\n', '0.0, 0.0\n', DataFormatError, 'quaternion'),
    ('odometry.csv', ', 0.0, 1.0\n', '\n', DataFormatError, '7 values for 9 columns'),
])
def test_broken_tables_are_named(app_folder: Path, file: str, before: str, after: str, error: type,
                                 message: str):
    rewrite(app_folder / file, before, after)
    with pytest.raises(error, match=message):
        open_recording(app_folder)


def test_an_unreadable_image_does_not_spoil_the_others(app_folder: Path):
    (app_folder / 'rgb.mp4').unlink()
    (app_folder / 'rgb').mkdir()
    (app_folder / 'rgb' / '000000.jpg').write_bytes(b'')
    with pytest.raises(DataFormatError, match='none of 1 images'):
        open_recording(app_folder)
    cv2.imwrite(str(app_folder / 'rgb' / '000003.jpg'), np.zeros((*FULL_PX[::-1], 3), np.uint8))
    recording = open_recording(app_folder)
    first, second = recording.streams[0].read()
    with pytest.raises(InputError):
        first.decode()
    frame = recording.streams[0].records[1].with_image(second.decode())
    assert frame.stamp_ns == round((100 + 4 / 30) * 1e9)


def test_sequence_rows_become_frames(sequence_folder: Path, blurred_sequence):
    recording = open_recording(sequence_folder)
    (stream,) = recording.streams
    assert (recording.kind, recording.name, recording.frame_count) == ('sequence', 'swing', 24)
    assert stream.records[3].stamp_ns == round((3 / 30 + 0.005) * 1e9)
    frame = stream.records[3].with_image(images_of(recording)[3])
    difference = frame.image.astype(int) - blurred_sequence.frames[3].image
    assert np.abs(difference).mean() < 3
    np.testing.assert_array_equal(stream.R_gyro_camera, np.eye(3))


def test_sequence_of_several_cameras(sequence_folder: Path):
    table = sequence_folder / 'frames.csv'
    header, *rows = table.read_text().splitlines()
    lines = [f'{header},camera,model,wx,wy,wz']
    for camera, model in (('front', 'fisheye624'), ('front:c', 'pinhole'), ('rear', 'radtan')):
        lines += [f'{row},{camera},{model},0.1,,0.3' if camera == 'front:c'
                  else f'{row},{camera},{model},0.1,0.2,0.3' for row in rows[:5]]
    table.write_text('\n'.join(lines))
    (sequence_folder / 'meta.json').write_text(json.dumps({'distortion_radtan': [0.1, 0, 0, 0]}))
    recording = open_recording(sequence_folder)
    front, rear = recording.streams
    assert (front.camera, rear.camera) == ('front:c', 'rear')
    assert recording.skipped == {'camera model "fisheye624" is not supported': 5}
    assert front.records[0].angular_velocity_reference_rad_s is None
    np.testing.assert_array_equal(rear.records[0].angular_velocity_reference_rad_s,
                                  [0.1, 0.2, 0.3])
    assert rear.records[0].intrinsics.distortion == (0.1, 0.0, 0.0, 0.0)
    assert rear.R_gyro_camera is None  # gyro.csv is in the axes of the first camera
    only = open_recording(sequence_folder, options=RecordingOptions(camera='re*'))
    assert [stream.camera for stream in only.streams] == ['rear']
    with pytest.raises(ConfigError, match=r'called "up".*front:c'):
        open_recording(sequence_folder, options=RecordingOptions(camera='up'))


def test_sequence_may_tell_its_readout_time(sequence_folder: Path):
    def readout_s() -> float:
        return open_recording(sequence_folder).streams[0].records[3].readout_time_s

    assert readout_s() == 0.0
    (sequence_folder / 'meta.json').write_text(json.dumps({'readout_time_s': 0.025}))
    assert readout_s() == 0.025
    (sequence_folder / 'meta.json').write_text(json.dumps({'readout_time_s': -1}))
    with pytest.raises(DataFormatError, match='readout_time_s'):
        readout_s()


def test_unknown_exposure_stays_unknown_unless_told(sequence_folder: Path):
    rewrite(sequence_folder / 'frames.csv', ',0.01,320', ',,320')
    assert open_recording(sequence_folder).streams[0].records[0].exposure_time_s is None
    told = open_recording(sequence_folder, options=RecordingOptions(exposure_time_s=0.02))
    assert told.streams[0].records[0].exposure_time_s == 0.02


@pytest.mark.parametrize(('before', 'after', 'error', 'message'), [
    ('t_mid', 'time', DataFormatError, 'no column "t" or "t_mid"'),
    ('fx', 'f', DataFormatError, 'no column "fx"'),
    ('0.038333333', '0.005', SynchronizationError, 'image of camera'),
    (',300.0,300.0,', ',0,0,', DataFormatError, '24 x focal length fx=0.0'),
    (',300.0,300.0,', ',nan,nan,', DataFormatError, 'no usable image'),
])
def test_broken_sequences_are_named(sequence_folder: Path, before: str, after: str, error: type,
                                    message: str):
    rewrite(sequence_folder / 'frames.csv', before, after)
    with pytest.raises(error, match=message):
        open_recording(sequence_folder)


def test_sequence_without_any_reference(sequence_folder: Path):
    (sequence_folder / 'gyro.csv').unlink()
    with pytest.raises(DataFormatError, match='nothing to compare with'):
        open_recording(sequence_folder)


def test_missing_and_truncated_images_fail_alone(sequence_folder: Path):
    files = sorted((sequence_folder / 'frames').iterdir())
    files[1].unlink()
    files[2].write_bytes(files[2].read_bytes()[:-100])
    stored = list(open_recording(sequence_folder).streams[0].read())
    assert stored[0].decode().shape == stored[3].decode().shape == (240, 320, 3)
    with pytest.raises(InputError, match=r'0001.jpg: No such file'):
        stored[1].decode()
    with pytest.raises(InputError, match=r'0002.jpg: JPEG of \d+ bytes is truncated'):
        stored[2].decode()


def test_sources_that_are_nothing(tmp_path: Path, sequence_folder: Path):
    with pytest.raises(DataFormatError, match='does not exist'):
        open_recording(tmp_path / 'absent')
    (tmp_path / 'empty').mkdir()
    for kind, message in (
            ('auto', 'no known recording'), ('sequence', r'cannot read .*frames.csv'),
            ('strayscanner', 'cannot read'), ('rosbag', 'cannot read bag')):
        with pytest.raises(DataFormatError, match=message):
            open_recording(tmp_path / 'empty', kind)
    with pytest.raises(DataFormatError, match=r'neither a folder nor a .mcap'):
        open_recording(sequence_folder / 'frames.csv')
    with pytest.raises(ConfigError, match='image size "320x224" is for StrayScanner'):
        open_recording(sequence_folder, options=RecordingOptions(image_size='320x224'))
    with pytest.raises(ConfigError, match='topics are for rosbags'):
        open_recording(sequence_folder, options=RecordingOptions(imu_topic='/imu'))


def test_stamp_references_meet_at_the_centre_row():
    start, end = 1_000_000_000, 1_000_000_000 + 12_000_000 + 20_000_000
    assert mid_exposure_ns(start, 0.012, 0.02, 'start') == 1_016_000_000
    assert mid_exposure_ns(end, 0.012, 0.02, 'end') == 1_016_000_000
    assert mid_exposure_ns(1_016_000_000, 0.012, 0.02, 'middle') == 1_016_000_000
    assert mid_exposure_ns(start, None, 0.0, 'start') == start
    assert mid_exposure_ns(start, float('nan'), 0.0, 'start') == start


def test_dining_facts(data_folder: Path, tmp_path: Path):
    folder = data_folder / 'strayscanner_dining'
    if not folder.is_dir():
        pytest.skip(f'{folder} is absent')
    recording = open_recording(folder)
    records = recording.streams[0].records
    assert (recording.frame_count, recording.image_size) == (176, '320x224')
    assert records[0].stamp_ns == 304167_141733500
    assert sum(r.stamp_ns < recording.gyroscope.t_ns[0] for r in records) == 4
    untracked = [k for k, r in enumerate(records) if r.linear_velocity_reference_m_s is None]
    assert untracked == [0, 1, 2, 171, 172, 173, 174, 175]
    full = open_recording(folder, options=RecordingOptions(image_size='full'))
    assert full.streams[0].records[0].intrinsics.fx_px == pytest.approx(1430.8768)

    # The app's own files alone give the same intrinsics, stamps and nearly the same velocities.
    raw = tmp_path / 'raw'
    (raw / 'rgb').mkdir(parents=True)
    for name in ('camera_matrix.csv', 'odometry.csv', 'imu.csv', 'rgb/000000.jpg',
                 'rgb/000100.jpg'):
        shutil.copy(folder / name, raw / name)
    ours = open_recording(raw).streams[0]
    for own, processed in zip(ours.records, (records[0], records[100])):
        assert own.stamp_ns == processed.stamp_ns
        for field in ('width_px', 'height_px', 'fx_px', 'fy_px', 'cx_px', 'cy_px'):
            assert getattr(own.intrinsics, field) == pytest.approx(
                getattr(processed.intrinsics, field), abs=1e-6)
    np.testing.assert_allclose(ours.records[1].linear_velocity_reference_m_s,
                               records[100].linear_velocity_reference_m_s, atol=0.005)
    image = next(ours.read()).decode().astype(float)
    processed_image = next(recording.streams[0].read()).decode()
    assert np.abs(image - processed_image).mean() < 5
