"""The benchmark states its settings and orders its percentiles; how fast it is depends on you."""

import json
import os

import pytest
import torch

from image_as_imu_ros.cli.main import main
from image_as_imu_ros.evaluation import benchmark as module
from image_as_imu_ros.synthesis.room import RecordingConfig


@pytest.fixture
def quick_recordings(monkeypatch):
    """Recordings that are simulated in a moment."""
    monkeypatch.setattr(module, 'RecordingConfig',
                        lambda **kwargs: RecordingConfig(width=128, height=96, **kwargs))
    monkeypatch.setattr(module, 'SIMULATED_SIZE', (128, 96))


@pytest.mark.parametrize('mode, stages', [
    ('single', {'decode', 'preprocess', 'front end', 'network', 'solve', 'fuse', 'whole'}),
    ('stream', {'decode', 'preprocess', 'front end', 'network', 'solve', 'align', 'fuse',
                'whole', 'interval'})])
def test_result_tells_settings_machine_and_times(quick_recordings, tmp_path, capsys, mode, stages):
    result_file = tmp_path / 'times.json'
    assert main(['benchmark', '--mode', mode, '--frames', '6', '--size', '160x120',
                 '--json', str(result_file), '--set', 'estimator.device=cpu',
                 '--set', 'estimator.threads=1']) == 0
    result = json.loads(result_file.read_text())
    assert set(result) == {'mode', 'image_size', 'batch', 'images', 'weights', 'device',
                           'runtime', 'machine', 'threads', 'versions', 'commit', 'load_average',
                           'images_per_s', 'cpu_ms', 'peak_memory_mib', 'ms'}
    assert (result['mode'], result['image_size'], result['images']) == (mode, '160x120', 6)
    assert (result['weights'], result['device'], result['threads']) == ('compact', 'cpu', 1)
    assert 'cores' in result['machine'] and result['versions']['torch']
    assert result['images_per_s'] > 0 and result['cpu_ms'] > 0
    assert 50 < result['peak_memory_mib']['process'] < 4000
    assert set(result['ms']) == stages
    for times in result['ms'].values():
        assert 0 <= times['p50'] <= times['p95'] <= times['p99']
    assert result['ms']['whole']['p50'] >= result['ms']['network']['p50']
    table = capsys.readouterr().out
    assert all(stage in table for stage in stages)


def test_batches_of_several_sizes_are_timed_in_one_table(quick_recordings, tmp_path, capsys):
    result_file = tmp_path / 'times.json'
    assert main(['benchmark', '--mode', 'single', '--frames', '3', '--batch', '2',
                 '--size', '128x96', '160x120', '--json', str(result_file),
                 '--set', 'estimator.device=cpu', '--set', 'estimator.threads=1']) == 0
    results = json.loads(result_file.read_text())
    assert [result['image_size'] for result in results] == ['128x96', '160x120']
    assert all((result['batch'], result['images']) == (2, 4) for result in results)
    head, *rows = capsys.readouterr().out.splitlines()[-3:]
    assert head.startswith('median ms') and 'front end' in head
    assert [row.split()[0] for row in rows] == ['128x96', '160x120']
    for row, result in zip(rows, results):
        assert float(row.split()[-1]) == result['ms']['whole']['p50']


def test_batches_must_hold_an_image(capsys):
    assert main(['benchmark', '--batch', '0']) == 1
    assert 'batch 0' in capsys.readouterr().err


def test_cold_start_is_that_of_fresh_processes(quick_recordings, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(module, 'COLD_STARTS', 1)
    result_file = tmp_path / 'start.json'
    assert main(['benchmark', '--cold-start', '--json', str(result_file), '--size', '128x96',
                 '--set', 'estimator.threads=1', '--set', 'estimator.runtime=torch']) == 0
    result = json.loads(result_file.read_text())
    assert len(result['seconds']) == 1 and 0 < result['cpu_seconds'][0]
    assert (result['mode'], result['runtime'], result['threads']) == ('cold start', 'torch', 1)
    assert 'first estimate after' in capsys.readouterr().out


def test_a_start_that_fails_is_told(quick_recordings, tmp_path, capsys):
    assert main(['benchmark', '--cold-start', '--size', '128x96',
                 '--weights', str(tmp_path / 'none.safetensors')]) == 1
    assert 'none.safetensors' in capsys.readouterr().err


def test_other_weights_are_timed_beside(quick_recordings, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(module, 'COMPARED_WARM_UP', 1)
    result_file = tmp_path / 'times.json'
    assert main(['benchmark', '--mode', 'single', '--frames', '2', '--size', '128x96',
                 '--compare', 'reference', '--json', str(result_file),
                 '--set', 'estimator.device=cpu', '--set', 'estimator.threads=1']) == 0
    result = json.loads(result_file.read_text())
    compared = result['compared']
    assert (result['weights'], compared['weights']) == ('compact', 'reference, random')
    assert (result['images'], compared['images']) == (2, 2)
    assert set(compared['ms']) == set(result['ms']) - {'front end'}  # it has none
    for stage, ratio in result['ratio'].items():
        assert ratio == pytest.approx(
            compared['ms'][stage]['p50'] / result['ms'][stage]['p50'], abs=0.06)
    table = capsys.readouterr().out
    assert 'weights reference, random, 2 images' in table and 'ratio of medians' in table


def test_frames_have_the_size_that_was_asked_for(quick_recordings):
    frames = module.simulated_frames(3, (320, 240))
    assert len(frames) == 3
    assert all(frame.image.shape == (240, 320, 3) for frame in frames)
    assert frames[0].intrinsics.fx_px == pytest.approx(250 * 320 / 128)
    assert frames[0].stamp_ns < frames[1].stamp_ns


def test_size_must_be_width_times_height(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(['benchmark', '--size', 'large'])
    assert exit_.value.code == 2
    assert '"large" is not of the form 640x480' in capsys.readouterr().err


@pytest.mark.parametrize('rate', ['0', 'nan', '-3'])
def test_a_rate_out_of_range_is_refused_by_name(rate, capsys):
    pytest.importorskip('rclpy')
    pytest.importorskip('image_as_imu_ros.msg')
    assert main(['benchmark', '--dds', '--rate', rate]) == 1
    assert 'rate' in capsys.readouterr().err


@pytest.mark.parametrize('encoding', ['rgb8', 'mono8'])
def test_latency_over_dds_tells_times_counts_and_load(encoding, tmp_path, capsys):
    pytest.importorskip('rclpy')
    pytest.importorskip('image_as_imu_ros.msg')
    result_file = tmp_path / 'latency.json'
    assert main(['benchmark', '--dds', '--frames', '60', '--size', '96x72', '--rate', '20',
                 '--encoding', encoding, '--json', str(result_file),
                 '--set', 'estimator.device=cpu', '--set', 'estimator.threads=1']) == 0
    result = json.loads(result_file.read_text())
    assert (result['mode'], result['image_size'], result['rate_hz']) == ('dds', '96x72', 20.0)
    assert result['encoding'] == encoding
    # two images may be in work when the count begins
    assert 0 < result['images'] <= result['counts']['received'] + 2
    assert set(result['ms']) == {'latency', 'processing', 'overhead', 'waiting'}
    for name, times in result['ms'].items():
        assert 0 <= times['p50'] <= times['p95'] <= times['p99']
        assert times['p50'] > 0 or name == 'waiting'
    assert result['ms']['waiting']['p50'] <= result['ms']['overhead']['p50']
    assert result['ms']['overhead']['p50'] < result['ms']['latency']['p50']
    assert result['ms']['processing']['p50'] <= result['ms']['latency']['p50']
    assert len(result['load_average']) == 3
    assert 'overhead' in capsys.readouterr().out


def time_synthesis(tmp_path, *words):
    """Run the verb and read what it writes."""
    assert main(['benchmark', '--mode', 'synthesis', '--json', str(tmp_path / 's.json'),
                 *words]) == 0
    return json.loads((tmp_path / 's.json').read_text())


def test_synthesis_is_timed_by_stage_and_altogether(tmp_path, capsys):
    result = time_synthesis(tmp_path, '--size', '96x64', '--frames', '32', '--workers', '0')
    assert 'images/s on cpu' in capsys.readouterr().out
    assert result['images'] == 32 and result['image_size'] == '96x64'
    assert result['images_per_s'] > 0 and all(value > 0 for value in result['cpu_ms'].values())


@pytest.mark.gpu
def test_a_large_gpu_makes_1500_images_a_second(tmp_path):
    """Beside 16 cores: `pytest -m gpu test/test_benchmark.py`."""
    if not torch.cuda.is_available():
        pytest.skip('no CUDA device')
    if torch.cuda.get_device_properties(0).total_memory < 70e9 or os.cpu_count() < 16:
        pytest.skip('stated for an 80 GB GPU and 16 cores')
    result = time_synthesis(tmp_path, '--size', '320x224', '--frames', '9600', '--device', 'cuda',
                            '--workers', '16')
    assert result['images_per_s'] >= 1500


def test_synthesis_on_a_gpu_that_is_not_there_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert main(['benchmark', '--mode', 'synthesis', '--device', 'cuda']) == 1
    assert 'no GPU' in capsys.readouterr().err
