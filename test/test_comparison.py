"""Rivals in the same run: real methods, their files, and that these are taken up again."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from image_as_imu_ros.cli.main import main
from image_as_imu_ros.config import VisualImuConfig
from image_as_imu_ros.errors import ConfigError, DataFormatError, SynchronizationError
from image_as_imu_ros.evaluation.comparison import (
    PAPER_PREDICTIONS,
    comparison_of,
    rivals_of,
    run_methods,
)
from image_as_imu_ros.evaluation.comparison_table import comparison_table
from image_as_imu_ros.evaluation.estimation import Estimates, StreamEstimates
from image_as_imu_ros.evaluation.evaluate import Evaluation, score_estimates
from image_as_imu_ros.evaluation.interframe import interframe_rates
from image_as_imu_ros.evaluation.predictions import (
    COLUMNS,
    read_estimates,
    read_velocities,
    write_estimates,
)
from image_as_imu_ros.evaluation.predictor import Predictor
from image_as_imu_ros.evaluation.provenance import recording_sha256
from image_as_imu_ros.evaluation.sources import Recording, RecordingOptions, open_recording
from image_as_imu_ros.evaluation.sources.recording import FrameRecord, StoredImage, Stream
from image_as_imu_ros.types import CameraIntrinsics, EstimateStatus, MotionEstimate

CAMERA = CameraIntrinsics(320, 240, 300.0, 300.0, 159.5, 119.5)


def unestimated(recording: Recording) -> Evaluation:
    """Evaluation of an estimator that answered nothing."""
    return score_estimates(recording, 'stream', Estimates(tuple(
        StreamEstimates(stream, (None,) * len(stream.records)) for stream in recording.streams),
        (), {}))


def rate(t_s: np.ndarray) -> np.ndarray:
    """Angular velocity of the recording `sequence_folder`, rad/s (test/conftest.py)."""
    return np.stack([3.0 * np.cos(9.0 * t_s), 4.0 * np.cos(7.0 * t_s + 0.5),
                     2.0 * np.cos(11.0 * t_s + 1.0)], axis=-1)


def rounded(content: Any) -> Any:
    """JSON content without the last bits of its numbers: the order of summation may differ."""
    return json.loads(json.dumps(content), parse_float=lambda text: float(f'{float(text):.9g}'))


def write_known_trajectory(path: Path, seconds: float) -> Path:
    """Poses of that motion as a TUM file, at 200 Hz."""
    matrix, rows = np.eye(3), []
    for step in range(round(seconds / 1e-4)):
        if step % 50 == 0:
            rows.append([step * 1e-4, 0, 0, 0, *Rotation.from_matrix(matrix).as_quat()])
        matrix = matrix @ cv2.Rodrigues(rate((step + 0.5) * 1e-4) * 1e-4)[0]
    np.savetxt(path, rows, fmt='%.12f')
    return path


def test_one_command_compares_and_takes_up_what_it_left(sequence_folder: Path, tmp_path: Path,
                                                        capsys):
    pytest.importorskip('evo', reason='pip install evo')
    table = sequence_folder / 'frames.csv'
    header, *rows = table.read_text().splitlines()
    exact = [','.join(f'{value:.9f}' for value in rate(float(row.split(',')[1]))) for row in rows]
    table.write_text('\n'.join([f'{header},wx,wy,wz', *(
        f'{row},{rates}' for row, rates in zip(rows, exact))]) + '\n')
    poses = write_known_trajectory(tmp_path / 'poses.txt', 0.9)
    output = tmp_path / 'out'
    command = ['evaluate', str(sequence_folder), '--output', str(output), '--compare',
               'zero,single,interframe', '--trajectory', f'known-motion={poses}',
               '--set', 'estimator.threads=1']
    assert main(command) == 0
    printed = capsys.readouterr().out
    first = json.loads((output / 'summary.json').read_text())
    methods = first['comparison']['methods']
    assert list(methods) == ['zero', 'single', 'stream', 'interframe', 'known-motion']
    rmse = {name: method['protocols']['interpolated']['rotation_rmse_rad_s']
            for name, method in methods.items()}
    assert max(rmse['known-motion']) < 1e-3
    np.testing.assert_allclose(rmse['zero'], first['zero_rotation_rmse_rad_s'])
    assert rmse['stream'] == first['protocols']['interpolated']['rotation_rmse_rad_s']
    assert rmse['single'] is None and methods['single']['sign_accuracy'] is None
    assert max(np.array(rmse['interframe']) / rmse['zero']) < 0.4
    for name, method in methods.items():
        assert method['title'] in printed
        with (output / method['predictions']).open() as file:
            assert file.readline().startswith('# {')
            assert tuple(next(csv.reader(file))[:7]) == COLUMNS
        assert not method['from_cache'], name

    assert main(command) == 0
    second = json.loads((output / 'summary.json').read_text())
    for name, method in second['comparison']['methods'].items():
        assert method.pop('from_cache'), name
        methods[name].pop('from_cache')
        assert rounded(method) == rounded(methods[name])
    assert second['frame_ms'] == first['frame_ms']  # timed in the first run alone
    assert rounded(second['protocols']) == rounded(first['protocols'])
    assert second['weights_sha256'] == first['weights_sha256'] is not None


def test_changed_images_or_settings_are_estimated_anew(sequence_folder: Path, tmp_path: Path):
    recording = open_recording(sequence_folder)
    before = recording_sha256(recording)
    assert before == recording_sha256(open_recording(sequence_folder))
    other_exposure = replace(recording, streams=(replace(recording.streams[0], records=tuple(
        replace(record, exposure_time_s=0.02) for record in recording.streams[0].records)),))
    assert recording_sha256(other_exposure) != before
    evaluation, config = unestimated(recording), VisualImuConfig()
    rivals = rivals_of(sequence_folder, False, ('interframe',), (), ())
    notes = []
    for gap_s in (0.5, 0.5, 0.01):
        config = replace(config, stream=replace(config.stream, max_gap=gap_s))
        predictor = Predictor(recording, config, tmp_path)
        methods = run_methods(evaluation, rivals, predictor)
        notes.append(methods[1].cached)
    assert notes == [False, True, False]
    assert not methods[1].parts[0].has_estimate.any()  # all frames are further apart
    (sequence_folder / 'frames' / '0003.jpg').write_bytes(
        (sequence_folder / 'frames' / '0004.jpg').read_bytes())
    assert recording_sha256(open_recording(sequence_folder)) != before


def test_published_figures_of_dining_come_out(data_folder: Path, tmp_path: Path):
    folder = data_folder / 'strayscanner_dining'
    if not folder.is_dir():
        pytest.skip(f'{folder} is absent')
    recording = open_recording(folder)
    rivals = rivals_of(folder, False, ('zero', 'paper'), (), (
        ('copy', folder / PAPER_PREDICTIONS),))
    assert 'paper' in rivals_of(folder, True, (), (), ()).methods
    evaluation = unestimated(recording)
    comparison = comparison_of(run_methods(
        evaluation, rivals, Predictor(recording, VisualImuConfig(), tmp_path)), recording)
    published = {name: method['protocols']['published']
                 for name, method in comparison['methods'].items() if not method['failure']}
    np.testing.assert_allclose(published['zero']['rotation_rmse_rad_s'], [4.59, 1.53, 3.67],
                               atol=0.01)
    np.testing.assert_allclose(published['paper']['rotation_rmse_rad_s'], [0.81, 0.48, 1.28],
                               atol=0.01)
    assert published['paper']['frames'] == 175
    assert published['copy'] == published['paper']
    low, high = published['paper']['rotation_rmse_vector_95_rad_s']
    assert low < published['paper']['rotation_rmse_vector_rad_s'] < high
    text = comparison_table(comparison)
    assert '0.87   0.50   1.33' in text and '0.81   0.48   1.28' in text


def test_a_method_that_fails_says_why_and_does_not_run_twice(sequence_folder: Path,
                                                             tmp_path: Path):
    """A camera that only turns leaves structure from motion nothing to triangulate."""
    pytest.importorskip('pycolmap', reason='pip install pycolmap')
    recording = open_recording(sequence_folder)
    short = replace(recording, streams=(replace(
        recording.streams[0], records=recording.streams[0].records[:8]),))
    evaluation = unestimated(short)
    failures = []
    for _ in range(2):
        predictor = Predictor(short, VisualImuConfig(), tmp_path)
        methods = run_methods(evaluation, rivals_of(
            sequence_folder, False, ('pycolmap', 'paper'), (), ()), predictor)
        by_name = {method.name: method for method in methods}
        failures.append(by_name['pycolmap'].failure)
    assert 'COLMAP found no model' in failures[0] and failures[0] == failures[1]
    assert 'pycolmap' in predictor.reused
    assert 'paper_base_model_predictions.csv do not exist' in by_name['paper'].failure
    assert 'pycolmap): failed' in comparison_table(comparison_of(methods, short))


def test_rivals_are_checked():
    with pytest.raises(ConfigError, match='"orbslam" is not one of'):
        rivals_of(Path(), False, ('orbslam',), (), ())
    with pytest.raises(ConfigError, match='two methods are called "zero"'):
        rivals_of(Path(), False, ('zero',), (('zero', Path('a')),), ())
    with pytest.raises(SystemExit):
        main(['evaluate', 'folder', '--trajectory', 'poses.txt'])


def test_interframe_rotation_has_the_sign_and_axes_of_the_camera(blurred_sequence):
    frames = blurred_sequence.frames[:10]
    records = tuple(FrameRecord(round((frame.start_s + 0.005) * 1e9), CAMERA, 0.01)
                    for frame in frames)
    images = [StoredImage(lambda image=frame.image: image) for frame in frames]
    stream = Stream('camera', records, lambda: iter(images), None)
    rates = interframe_rates(stream, 0.5)
    truth = np.array([frame.angular_velocity_rad_s for frame in frames])
    error = np.linalg.norm((rates - truth)[1:-1], axis=1)
    assert np.median(error) < 0.3
    assert np.isnan(interframe_rates(stream, 0.01)).all()


def test_estimates_survive_their_file(sequence_folder: Path, tmp_path: Path):
    recording = open_recording(sequence_folder, options=RecordingOptions(
        R_gyro_camera=np.array([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])))
    random = np.random.default_rng(5)
    (stream,) = recording.streams
    factor = random.standard_normal((6, 6))
    made = [MotionEstimate(record.stamp_ns, 0.01, random.standard_normal(3),
                           random.standard_normal(3), factor @ factor.T, True, 3.0, 0.5, 9.0, 0.7,
                           EstimateStatus.OK) for record in stream.records]
    made[3], made[4] = None, replace(made[4], exposure_time_s=None, sign_resolved=False,
                                     status=EstimateStatus.SIGN_UNRESOLVED)
    estimates = Estimates((StreamEstimates(stream, tuple(made)),), (1.5, 2.5), {'reason': 2})
    path = tmp_path / 'predictions' / 'stream.csv'
    write_estimates(path, estimates, {'key': 'k'})
    back = read_estimates(path, recording)
    assert (back.times_ms, back.skipped) == ((1.5, 2.5), {'reason': 2})
    for one, other in zip(made, back.streams[0].estimates):
        if one is None:
            assert other is None
            continue
        np.testing.assert_allclose(other.angular_velocity_rad_s, one.angular_velocity_rad_s,
                                   rtol=1e-14)
        np.testing.assert_array_equal(other.linear_velocity_m_s, one.linear_velocity_m_s)
        np.testing.assert_allclose(other.covariance, one.covariance, rtol=1e-14)
        assert (other.status, other.sign_resolved, other.exposure_time_s, other.stamp_ns) == (
            one.status, one.sign_resolved, one.exposure_time_s, one.stamp_ns)
    (velocities,) = read_velocities(path, recording)
    np.testing.assert_allclose(velocities.angular_rad_s[0],
                               stream.R_gyro_camera @ made[0].angular_velocity_rad_s)


def test_predictions_of_others_are_matched_by_their_stamps(sequence_folder: Path, tmp_path: Path):
    recording = open_recording(sequence_folder)
    stamps_ns = [record.stamp_ns for record in recording.streams[0].records]
    path = tmp_path / 'other.csv'
    path.write_text('# made elsewhere\ntimestamp,alpha_x,alpha_y,alpha_z\n'
                    + ''.join(f'{stamp_ns * 1e-9 + 0.0004:.9f},1,2,3\n'
                              for stamp_ns in stamps_ns[2:5]))
    (velocities,) = read_velocities(path, recording)
    np.testing.assert_array_equal(np.isfinite(velocities.angular_rad_s[:, 0]).nonzero()[0],
                                  [2, 3, 4])
    path.write_text('timestamp,alpha_x,alpha_y,alpha_z\n1000,1,2,3\n')
    with pytest.raises(SynchronizationError, match='none of 1 rows'):
        read_velocities(path, recording)
    path.write_text('timestamp,alpha_x\n1,1\n')
    with pytest.raises(DataFormatError, match='no column "alpha_y"'):
        read_velocities(path, recording)
