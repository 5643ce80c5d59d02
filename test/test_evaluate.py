"""Scoring of estimates that are known, and the files that come of it."""

import csv
import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from image_as_imu_ros.config import StreamConfig, VisualImuConfig
from image_as_imu_ros.errors import ConfigError, SynchronizationError
from image_as_imu_ros.evaluation import sync
from image_as_imu_ros.evaluation.comparison import rivals_of, run_methods
from image_as_imu_ros.evaluation.evaluate import Evaluation, evaluate, score
from image_as_imu_ros.evaluation.predictor import Predictor
from image_as_imu_ros.evaluation.report import table_of, write_report
from image_as_imu_ros.evaluation.sources import open_recording
from image_as_imu_ros.evaluation.sources.recording import FrameRecord, Gyroscope, Recording, Stream
from image_as_imu_ros.types import CameraIntrinsics, EstimateStatus, MotionEstimate

CAMERA = CameraIntrinsics(320, 240, 300.0, 300.0, 159.5, 119.5)
R_GYRO_CAMERA = np.array([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
SIGMA_RAD_S = 0.2
PERIOD_NS = 10_000_000
PLOTS = ('angular_velocity.png', 'consistency.png', 'error_over_speed.png', 'gain.png')


def make_recording(frames: int = 60, **changes) -> Recording:
    """Frames each 33 ms from 1 s on, within a 100 Hz gyroscope's record in its own axes."""
    t_s = np.arange(0.5, 1.5 + frames / 30, 0.01)
    rates = np.stack([3 * np.sin(7 * t_s), 2 * np.cos(5 * t_s + 1), np.sin(11 * t_s + 2)], axis=1)
    records = tuple(
        FrameRecord(1_000_000_000 + 33_000_000 * k, CAMERA, 0.01,
                    linear_velocity_reference_m_s=np.array([1.0, 2.0, 3.0]),
                    linear_velocity_stored_m_s=np.array([1.0, 2.0, 2.0]))
        for k in range(frames))
    values = {'gyroscope': Gyroscope(np.round(t_s * 1e9).astype(np.int64), rates),
              'streams': (Stream('camera', records, lambda: iter(()), R_GYRO_CAMERA),), **changes}
    return Recording(Path('recording'), 'sequence', 'full', **values)


def perfect_estimates(recording: Recording) -> list[MotionEstimate]:
    """Interpolated gyroscope in camera axes, as a stream gives it."""
    stamps_ns = np.array([record.stamp_ns for record in recording.streams[0].records])
    rates = sync.interpolated(recording.gyroscope, stamps_ns) @ R_GYRO_CAMERA
    covariance = np.diag([1.0] * 3 + [SIGMA_RAD_S**2] * 3)
    return [MotionEstimate(int(stamp_ns), 0.01, rate, np.array([1.0, 2.0, 3.0]), covariance, True,
                           5.0, 0.8, 7.0, 0.9, EstimateStatus.OK)
            for stamp_ns, rate in zip(stamps_ns, rates)]


def test_perfect_estimates_score_perfectly():
    recording = make_recording()
    scores = score(perfect_estimates(recording), recording).metrics
    interpolated, paper = (scores['protocols'][name] for name in ('interpolated', 'paper'))
    np.testing.assert_allclose(interpolated['rotation_rmse_rad_s'], 0.0, atol=1e-9)
    np.testing.assert_allclose(interpolated['rotation_slope'], 1.0)
    np.testing.assert_allclose(interpolated['translation_rmse_m_s'], 0.0)
    np.testing.assert_allclose(paper['translation_rmse_m_s'], [0.0, 0.0, 1.0])
    assert max(paper['rotation_rmse_rad_s']) > 0.01  # the nearest sample is not at the frame
    assert scores['sign_accuracy'] == scores['coverage_95'] == 1.0
    assert scores['nees_mean'] == pytest.approx(0.0, abs=1e-9)
    assert scores['time_offset_s'] == pytest.approx(0.0, abs=1e-4)
    assert (scores['frames'], scores['evaluated']) == (60, 60)
    reference = sync.interpolated(recording.gyroscope, np.array([
        record.stamp_ns for record in recording.streams[0].records]))
    np.testing.assert_allclose(scores['zero_rotation_rmse_rad_s'],
                               np.sqrt((reference**2).mean(axis=0)))
    assert scores['frame_ms'] == {'p50': None, 'p95': None, 'p99': None}


def test_paper_protocol_takes_the_nearest_sample_and_drops_the_last_frame():
    recording = make_recording()
    estimates = perfect_estimates(recording)
    stamps_ns = np.array([estimate.stamp_ns for estimate in estimates])
    nearest = sync.nearest(recording.gyroscope, stamps_ns)
    estimates = [replace(estimate, angular_velocity_rad_s=R_GYRO_CAMERA.T @ rate)
                 for estimate, rate in zip(estimates, nearest)]
    estimates[-1] = replace(estimates[-1], angular_velocity_rad_s=np.full(3, 99.0))
    scores = score(estimates, recording).metrics
    np.testing.assert_allclose(scores['protocols']['paper']['rotation_rmse_rad_s'], 0.0, atol=1e-9)
    assert min(scores['protocols']['interpolated']['rotation_rmse_rad_s']) > 1.0


def test_wrong_signs_show_in_the_stream_and_not_with_the_oracle():
    recording = make_recording()
    estimates = [estimate.negated() if k % 4 == 0 else estimate
                 for k, estimate in enumerate(perfect_estimates(recording))]
    scores = score(estimates, recording).metrics
    values = scores['protocols']['interpolated']
    assert min(values['rotation_rmse_rad_s']) > 0.5
    np.testing.assert_allclose(values['rotation_rmse_oracle_sign_rad_s'], 0.0, atol=1e-9)
    np.testing.assert_allclose(values['translation_rmse_oracle_sign_m_s'], 0.0, atol=1e-9)
    assert min(values['translation_rmse_m_s']) > 0.5
    assert scores['sign_accuracy'] == pytest.approx(0.75, abs=0.02)


def test_missing_estimates_count_as_zero_in_a_stream_and_are_left_out_of_single():
    recording = make_recording()
    estimates = perfect_estimates(recording)
    reference = sync.interpolated(
        recording.gyroscope, np.array([estimate.stamp_ns for estimate in estimates]))
    estimates[7] = replace(estimates[7], status=EstimateStatus.NO_SIGNAL)
    estimates[9] = replace(estimates[9], sign_resolved=False,
                           status=EstimateStatus.SIGN_UNRESOLVED)
    given = [estimate for k, estimate in enumerate(estimates) if k not in (3, 4, 5)]
    stream, single = (score(given, recording, mode).metrics for mode in ('stream', 'single'))
    missing = np.zeros((60, 3))
    missing[[3, 4, 5, 7, 9]] = reference[[3, 4, 5, 7, 9]]
    np.testing.assert_allclose(stream['protocols']['interpolated']['rotation_rmse_rad_s'],
                               np.sqrt((missing**2).mean(axis=0)))
    np.testing.assert_allclose(stream['protocols']['interpolated']['rotation_slope'], 1.0)
    assert (stream['evaluated'], single['evaluated']) == (55, 56)
    values = single['protocols']['interpolated']
    np.testing.assert_allclose(values['rotation_rmse_oracle_sign_rad_s'], 0.0, atol=1e-9)
    assert values['rotation_rmse_rad_s'] is values['translation_rmse_m_s'] is None
    assert single['sign_accuracy'] is None
    assert stream['statuses'] == {'OK': 55, 'NO_SIGNAL': 1, 'SIGN_UNRESOLVED': 1}


def test_frames_outside_the_gyroscope_are_not_scored():
    recording = make_recording()
    first_ns = recording.streams[0].records[10].stamp_ns + PERIOD_NS - 1
    gyro = recording.gyroscope
    late = gyro.t_ns >= first_ns
    recording = replace(recording, gyroscope=Gyroscope(
        gyro.t_ns[late], gyro.angular_velocity_rad_s[late]))
    estimates = perfect_estimates(make_recording())
    estimates[:10] = [replace(estimate, angular_velocity_rad_s=np.full(3, 99.0))
                      for estimate in estimates[:10]]
    scores = score(estimates, recording).metrics
    covered = [record.stamp_ns >= recording.gyroscope.t_ns[0] - PERIOD_NS
               for record in recording.streams[0].records]
    assert scores['evaluated'] == sum(covered) < 60
    for values in scores['protocols'].values():
        assert max(values['rotation_rmse_rad_s']) < 0.3


def test_a_frames_own_reference_wins():
    recording = make_recording()
    (stream,) = recording.streams
    own = np.array([0.0, 0.0, 5.0])
    records = tuple(replace(record, angular_velocity_reference_rad_s=own)
                    for record in stream.records)
    recording = replace(recording, streams=(replace(stream, records=records),))
    estimates = [replace(estimate, angular_velocity_rad_s=own)
                 for estimate in perfect_estimates(recording)]
    scores = score(estimates, recording).metrics
    for values in scores['protocols'].values():
        np.testing.assert_allclose(values['rotation_rmse_rad_s'], 0.0, atol=1e-12)
        assert values['rotation_slope'] == [None, None, pytest.approx(1.0)]


def test_stamps_of_estimates_must_meet_frames():
    recording = make_recording()
    estimates = perfect_estimates(recording)
    moved = [replace(estimate, stamp_ns=estimate.stamp_ns + 900_000) for estimate in estimates]
    assert score(moved, recording).metrics['evaluated'] == 60
    moved[0] = replace(moved[0], stamp_ns=5)
    scores = score(moved, recording).metrics
    assert scores['evaluated'] == 59
    assert scores['skipped'] == {'estimate has the stamp of no image': 1}
    with pytest.raises(SynchronizationError, match='same clock'):
        score([replace(estimate, stamp_ns=5) for estimate in estimates], recording)
    with pytest.raises(ConfigError, match='mode "both"'):
        score(estimates, recording, 'both')
    with pytest.raises(ConfigError, match='several|belong to one camera'):
        score(estimates, replace(recording, streams=recording.streams * 2))


def test_no_overlap_with_the_gyroscope_is_said():
    recording = make_recording()
    gyro = recording.gyroscope
    recording = replace(recording, gyroscope=Gyroscope(
        gyro.t_ns + 10**12, gyro.angular_velocity_rad_s))
    with pytest.raises(SynchronizationError, match='within the record of its gyroscope'):
        score(perfect_estimates(recording), recording)


@pytest.fixture
def evaluation() -> Evaluation:
    """Evaluation with one estimate missing."""
    recording = make_recording()
    return score(perfect_estimates(recording)[1:], recording)


def test_report_holds_every_promised_figure(evaluation: Evaluation, tmp_path: Path):
    folder = tmp_path / 'results' / 'report'
    summary = write_report(evaluation, folder, 'compact', {'stream': {}})
    assert json.loads((folder / 'summary.json').read_text()) == summary
    assert set(summary) >= {
        'source', 'kind', 'mode', 'weights', 'image_size', 'frames', 'evaluated', 'protocols',
        'zero_rotation_rmse_rad_s', 'time_offset_s', 'sign_accuracy', 'nees_mean', 'coverage_95',
        'frame_ms', 'config'}
    assert set(summary['frame_ms']) == {'p50', 'p95', 'p99'}
    assert set(summary['protocols']) == {'paper', 'interpolated'}
    for values in summary['protocols'].values():
        assert set(values) == {
            'rotation_rmse_rad_s', 'rotation_rmse_oracle_sign_rad_s', 'rotation_slope',
            'rotation_rmse_bias_removed_rad_s', 'translation_rmse_m_s',
            'translation_rmse_oracle_sign_m_s', 'oracle_sign_by_speed'}
        assert all(len(numbers) == 3 for numbers in values.values())
    assert summary['intervals'].keys() == summary['protocols'].keys()
    assert summary['versions']['numpy'] == np.__version__
    for name in PLOTS:
        assert (folder / name).read_bytes().startswith(b'\x89PNG')
    page = (folder / 'report.html').read_text()
    assert page.count('data:image/png;base64,') == len(PLOTS)
    assert 'http' not in page
    assert 'interpolated: slope' in table_of(summary)


def test_estimates_file_has_the_promised_columns(evaluation: Evaluation, tmp_path: Path):
    write_report(evaluation, tmp_path, 'compact', {})
    with (tmp_path / 'estimates.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    columns = list(rows[0])
    assert columns[:8] == ['timestamp_ns', 'exposure_time_s', 'wx', 'wy', 'wz', 'vx', 'vy', 'vz']
    assert columns[8:29][::6] == ['cov_vx_vx', 'cov_vy_vy', 'cov_vz_wx', 'cov_wy_wy']
    assert columns[29:32] == ['sign_resolved', 'quality', 'status']
    assert len(rows) == 59
    estimate = evaluation.streams[0].estimates[1]
    assert int(rows[0]['timestamp_ns']) == estimate.stamp_ns
    np.testing.assert_allclose([float(rows[0][name]) for name in ('wx', 'wy', 'wz')],
                               estimate.angular_velocity_rad_s, rtol=1e-8)
    assert float(rows[0]['cov_wz_wz']) == pytest.approx(SIGMA_RAD_S**2)
    assert (rows[0]['sign_resolved'], rows[0]['status']) == ('1', 'OK')


def test_report_replaces_its_own_files_alone(evaluation: Evaluation, tmp_path: Path):
    (tmp_path / 'angular_velocity_old_camera.png').write_text('stale')
    (tmp_path / 'notes.txt').write_text('mine')
    write_report(evaluation, tmp_path, 'compact', {})
    write_report(evaluation, tmp_path, 'compact', {})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*PLOTS, 'estimates.csv', 'notes.txt', 'report.html', 'summary.json'])


def test_smoothing_gives_every_frame_its_own_later_and_better_estimate(
        gyroscope, sequence_folder):
    recording = open_recording(sequence_folder)
    causal, smoothed = (evaluate(recording, gyroscope, 'stream', StreamConfig(
        smoothing_frames=frames)) for frames in (0, 2))
    stamps_ns = [record.stamp_ns for record in recording.streams[0].records]
    for evaluation in (causal, smoothed):
        assert [each.stamp_ns for each in evaluation.streams[0].estimates] == stamps_ns
    assert smoothed.metrics['evaluated'] > causal.metrics['evaluated']  # the first one, too
    errors = [np.linalg.norm(each.metrics['protocols']['interpolated']['rotation_rmse_rad_s'])
              for each in (causal, smoothed)]
    assert errors[1] < errors[0]


def find_browser() -> str:
    """A browser that runs without a screen; skips where there is none."""
    for name in ('chromium', 'chromium-browser', 'google-chrome'):
        if shutil.which(name):
            return name
    pytest.skip('no chromium or google-chrome is installed')


def test_a_browser_shows_the_whole_report(sequence_folder: Path, tmp_path: Path):
    """All pictures load, no script or style is missing, nothing but tables may scroll."""
    browser = find_browser()
    recording = open_recording(sequence_folder)
    stamps_ns = np.array([record.stamp_ns for record in recording.streams[0].records])
    rates = sync.interpolated(recording.gyroscope, stamps_ns)
    covariance = np.diag([1.0] * 3 + [SIGMA_RAD_S**2] * 3)
    evaluation = score([MotionEstimate(
        int(stamp_ns), 0.01, 1.1 * rate, np.zeros(3), covariance, True, 5.0, 0.8, 7.0, 0.9,
        EstimateStatus.OK) for stamp_ns, rate in zip(stamps_ns, rates)], recording)
    rivals = rivals_of(sequence_folder, False, ('zero', 'interframe'), (), ())
    methods = run_methods(evaluation, rivals,
                          Predictor(recording, VisualImuConfig(), tmp_path / 'report'))
    write_report(evaluation, tmp_path / 'report', 'compact', {}, methods, 'the <command>')
    page = (tmp_path / 'report' / 'report.html').read_text()
    probe = tmp_path / 'probe.html'
    probe.write_text(page + """<script>
        const pictures = [...document.images];
        document.title = JSON.stringify({
            pictures: pictures.length,
            loaded: pictures.filter(image => image.complete && image.naturalWidth > 300).length,
            rows: document.querySelectorAll('table')[0].rows.length,
            overflow: document.documentElement.scrollWidth > window.innerWidth,
            text: document.body.innerText.includes('the <command>')});
        </script>""")
    screenshot = tmp_path / 'screenshot.png'
    result = subprocess.run(
        [browser, '--headless', '--no-sandbox', '--disable-gpu', '--window-size=1300,3000',
         f'--user-data-dir={tmp_path / "profile"}', f'--screenshot={screenshot}', '--dump-dom',
         probe.as_uri()],
        capture_output=True, text=True, timeout=170, check=False)
    found = re.search(r'<title>(.*?)</title>', result.stdout, re.S)
    assert found, result.stderr[-2000:]
    count = page.count('data:image/png')
    assert json.loads(html.unescape(found.group(1))) == {
        'pictures': count, 'loaded': count, 'rows': 4, 'overflow': False, 'text': True}
    assert 'worst_frames.png' in page and 'methods.png' in page
