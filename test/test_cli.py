"""The command: what it prints, what it writes, and how it fails."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from image_as_imu_ros.cli.main import main

CAMERA = ['--fx', '300', '--fy', '300']


def fails(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """Run a command that must fail with one line on stderr, and return that line."""
    assert main([str(argument) for argument in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ''
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith(f'image-as-imu {arguments[0]}: ')
    return lines[0]


def run_json(capsys: pytest.CaptureFixture, *arguments: object) -> dict:
    """Output of `run --json`."""
    assert main(['run', '--json', *(str(argument) for argument in arguments)]) == 0
    return json.loads(capsys.readouterr().out)


def test_run_states_both_signs_with_deviations(sequence_folder: Path, blurred_sequence, capsys):
    image = sequence_folder / 'frames' / '0000.jpg'
    result = run_json(capsys, image, *CAMERA, '--exposure', '0.01')
    one, other = (np.array(hypothesis['angular_velocity_rad_s'])
                  for hypothesis in result['hypotheses'])
    np.testing.assert_array_equal(one, -other)
    assert result['sign_resolved'] is False
    assert min(result['angular_velocity_stddev_rad_s']) > 0.0
    truth = blurred_sequence.frames[0].angular_velocity_rad_s
    assert abs(one @ truth) > 0.9 * np.linalg.norm(one) * np.linalg.norm(truth)

    assert main(['run', str(image), *CAMERA, '--exposure', '0.01']) == 0
    text = capsys.readouterr().out
    for value in one:
        assert f'{value:+.3f}' in text and f'{-value:+.3f}' in text


def test_run_rotates_vectors_and_covariance(sequence_folder: Path, capsys):
    arguments = [sequence_folder / 'frames' / '0000.jpg', *CAMERA, '--exposure', '0.01']
    plain = run_json(capsys, *arguments)
    turned = run_json(capsys, *arguments, '--R=0,-1,0,-1,0,0,0,0,-1')
    x, y, z = plain['hypotheses'][0]['angular_velocity_rad_s']
    np.testing.assert_allclose(turned['hypotheses'][0]['angular_velocity_rad_s'], [-y, -x, -z],
                               atol=1e-9)
    sx, sy, sz = plain['angular_velocity_stddev_rad_s']
    np.testing.assert_allclose(turned['angular_velocity_stddev_rad_s'], [sy, sx, sz])


def test_run_takes_the_image_centre_as_principal_point(sequence_folder: Path, capsys):
    arguments = [sequence_folder / 'frames' / '0000.jpg', *CAMERA, '--exposure', '0.01']
    assert run_json(capsys, *arguments) == run_json(
        capsys, *arguments, '--cx', '159.5', '--cy', '119.5')


@pytest.mark.parametrize(('arguments', 'message'), [
    (['--fx', '0', '--fy', '300', '--exposure', '0.01'], 'focal length fx=0.0'),
    (['--fx', 'nan', '--fy', '300', '--exposure', '0.01'], 'not finite'),
    ([*CAMERA, '--exposure', '0'], 'exposure time 0.0 s'),
    ([*CAMERA, '--exposure', 'nan'], 'exposure time nan s'),
    ([*CAMERA, '--exposure', '-0.01'], 'exposure time -0.01 s'),
    ([*CAMERA, '--exposure', '0.01', '--weights', 'absent'], 'absent'),
    ([*CAMERA, '--exposure', '0.01', '--set', 'estimator.speed=3'], 'unknown setting "speed"'),
])
def test_run_names_bad_values(sequence_folder: Path, capsys, arguments: list[str], message: str):
    assert message in fails(capsys, 'run', sequence_folder / 'frames' / '0000.jpg', *arguments)


def test_run_names_bad_images(tmp_path: Path, capsys):
    image = tmp_path / 'image.jpg'
    assert 'No such file' in fails(capsys, 'run', image, *CAMERA, '--exposure', '0.01')
    image.write_bytes(b'not an image')
    assert 'cannot be decoded' in fails(capsys, 'run', image, *CAMERA, '--exposure', '0.01')


@pytest.mark.parametrize('arguments', [
    [], ['fly'], ['run', 'image.jpg'], ['run', 'image.jpg', *CAMERA, '--exposure', 'long'],
    ['run', 'image.jpg', *CAMERA, '--exposure', '1', '--R', '1,2,3'],
    ['run', 'image.jpg', *CAMERA, '--exposure', '1', '--R', '1,0,0,0,1,0,0,0,-1'],
    ['evaluate', 'folder', '--mode', 'both'], ['convert', 'folder']])
def test_usage_errors_exit_with_2(arguments: list[str], capsys):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert 'usage:' in capsys.readouterr().err


@pytest.mark.parametrize('mode', ['single', 'stream'])
def test_evaluate_writes_a_report_and_prints_its_table(sequence_folder: Path, tmp_path: Path,
                                                       capsys, monkeypatch, mode: str):
    monkeypatch.chdir(tmp_path)
    assert main(['evaluate', str(sequence_folder), '--mode', mode]) == 0
    printed = capsys.readouterr().out
    summary = json.loads((tmp_path / 'results' / f'swing_{mode}' / 'summary.json').read_text())
    assert (summary['kind'], summary['mode'], summary['frames']) == ('sequence', mode, 24)
    assert summary['weights'] == summary['config']['estimator']['weights'] == 'compact'
    assert f'frames {summary["frames"]}  evaluated {summary["evaluated"]}' in printed
    values = summary['protocols']['interpolated']
    assert (values['rotation_rmse_rad_s'] is None) == (mode == 'single')
    assert min(values['rotation_slope']) > 0.3
    assert summary['frame_ms']['p50'] > 0.0


def test_evaluate_pools_cameras(sequence_folder: Path, tmp_path: Path):
    table = sequence_folder / 'frames.csv'
    header, *rows = table.read_text().splitlines()
    table.write_text('\n'.join([f'{header},camera,wx,wy,wz'] + [
        f'{row},{camera},1,2,3' for camera in ('left', 'rear:c') for row in rows[:4]]))
    arguments = ['evaluate', str(sequence_folder), '--mode', 'single', '--output']
    assert main([*arguments, str(tmp_path / 'both')]) == 0
    assert main([*arguments, str(tmp_path / 'rear'), '--camera', 'rear*']) == 0
    both, rear = (json.loads((tmp_path / name / 'summary.json').read_text())
                  for name in ('both', 'rear'))
    assert (both['frames'], rear['frames']) == (8, 4)
    assert both['evaluated'] == 2 * rear['evaluated']
    np.testing.assert_allclose(
        both['protocols']['interpolated']['rotation_rmse_oracle_sign_rad_s'],
        rear['protocols']['interpolated']['rotation_rmse_oracle_sign_rad_s'], atol=1e-3)
    np.testing.assert_allclose(both['zero_rotation_rmse_rad_s'], [1.0, 2.0, 3.0])
    assert {path.name for path in (tmp_path / 'both').glob('angular*')} == {
        'angular_velocity_left.png', 'angular_velocity_rear_c.png'}
    cameras = [line.split(',')[-1]
               for line in (tmp_path / 'both' / 'estimates.csv').read_text().splitlines()]
    assert cameras == ['camera', *['left'] * 4, *['rear:c'] * 4]


def test_evaluate_skips_bad_frames_and_counts_them(sequence_folder: Path, tmp_path: Path, capsys):
    (sequence_folder / 'frames' / '0005.jpg').write_bytes(b'')
    table = sequence_folder / 'frames.csv'
    text = table.read_text()
    for name, exposure in (('0006.jpg,0.205000000', '-1'), ('0007.jpg,0.238333333', '0.05')):
        assert f'{name},0.01,' in text
        text = text.replace(f'{name},0.01,', f'{name},{exposure},')
    table.write_text(text)
    output = tmp_path / 'out'
    assert main(['evaluate', str(sequence_folder), '--mode', 'single',
                 '--output', str(output)]) == 0
    skipped = json.loads((output / 'summary.json').read_text())['skipped']
    assert sorted(skipped.values()) == [1, 1, 1]
    assert any('0005.jpg' in reason for reason in skipped)
    assert any('exposure time -1.0 s' in reason for reason in skipped)
    assert any('exposure time 0.05 s is longer' in reason for reason in skipped)


def test_evaluate_of_unknown_exposures(sequence_folder: Path, tmp_path: Path, capsys):
    table = sequence_folder / 'frames.csv'
    table.write_text(table.read_text().replace(',0.01,', ',,'))
    output = ['--output', str(tmp_path / 'out')]
    assert main(['evaluate', str(sequence_folder), '--mode', 'single', *output]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert '24 x exposure time is unknown' in error
    assert not (tmp_path / 'out').exists()
    assert main(['evaluate', str(sequence_folder), '--mode', 'stream', *output]) == 0


def test_evaluate_and_convert_name_bad_sources(sequence_folder: Path, tmp_path: Path, capsys):
    empty = tmp_path / 'empty'
    empty.mkdir()
    for source, message in ((tmp_path / 'absent', 'does not exist'),
                            (empty, 'no known recording')):
        assert message in fails(capsys, 'evaluate', source, '--output', tmp_path / 'out')
        assert message in fails(capsys, 'convert', source, tmp_path / 'out.mcap')
    assert 'image size "small"' in fails(
        capsys, 'evaluate', sequence_folder, '--image-size', 'small')
    assert 'called "rear"' in fails(capsys, 'evaluate', sequence_folder, '--camera', 'rear')


def test_convert_then_evaluate_the_bag(sequence_folder: Path, tmp_path: Path, capsys):
    bag = tmp_path / 'bag.mcap'
    assert main(['convert', str(sequence_folder), str(bag), '--images', 'compressed']) == 0
    assert '24 of 24 images' in capsys.readouterr().out
    assert 'exists' in fails(capsys, 'convert', sequence_folder, bag)
    assert main(['evaluate', str(bag), '--output', str(tmp_path / 'out')]) == 0
    assert json.loads((tmp_path / 'out' / 'summary.json').read_text())['kind'] == 'rosbag'


def test_the_module_is_the_command():
    result = subprocess.run([sys.executable, '-m', 'image_as_imu_ros', '--help'],
                            capture_output=True, text=True, timeout=60, check=True)
    for verb in ('run', 'evaluate', 'convert', 'play', 'demo', 'train', 'benchmark', 'weights'):
        assert verb in result.stdout
