"""Datasets on disk hold what was drawn, whoever wrote which part of them, and when."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import torchrun
from scipy.integrate import trapezoid
from scipy.spatial.transform import Rotation

from image_as_imu_ros.cli.main import main
from image_as_imu_ros.config import DatasetConfig, TrainingConfig, load
from image_as_imu_ros.errors import ConfigError, DataFormatError
from image_as_imu_ros.evaluation.contact_sheet import ARROW_COLOUR, TILE_WIDTH_PX
from image_as_imu_ros.geometry.motion_field import motion_field_matrix, pixel_grid
from image_as_imu_ros.processes import process_of_torchrun
from image_as_imu_ros.synthesis.shards import Shards
from image_as_imu_ros.training.dataset import CropFactory, ShardFactory, make_factory
from image_as_imu_ros.training.drawn_scenes import DrawnScenes

CHECKOUT = Path(__file__).resolve().parents[1]
IMAGES, BLOCK = 10, 4
SMALL = ('width=96', 'height=64', f'block={BLOCK}')


def synthesize(folder: Path, layout: str = 'webdataset', *settings: str) -> int:
    """Write a small dataset of drawn textures."""
    return main(['synthesize', str(folder), '--format', layout, '--images', str(IMAGES),
                 *(f'--set={setting}' for setting in (*SMALL, *settings))])


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path."""
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob('*') if path.is_file()}


@pytest.fixture(scope='module')
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('shards') / 'dataset'
    assert synthesize(folder) == 0
    return folder


@pytest.fixture(scope='module')
def table(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('table') / 'dataset'
    assert synthesize(folder, 'csv') == 0
    return folder


def test_shards_are_read_by_webdataset(shards):
    webdataset = pytest.importorskip('webdataset', reason='needs webdataset, of requirements-test')
    paths = [str(shards / f'shard-{number:06d}.tar') for number in range(3)]
    dataset = webdataset.WebDataset(paths, shardshuffle=False).decode('rgb8')
    samples = list(dataset)
    assert [sample['__key__'] for sample in samples] == [f'{n:09d}' for n in range(IMAGES)]
    global_shutters = []
    for sample in samples:
        facts = sample['json']
        assert sample['png'].shape == (64, 96, 3) and facts['source'] == 'drawn scene'
        times_s, velocities = np.split(sample['velocities.npy'].astype(float), [1], axis=1)
        assert times_s[-1, 0] == -times_s[0, 0] == pytest.approx(facts['exposure_time_s'] / 2)
        mean = trapezoid(velocities, times_s[:, 0], axis=0) / facts['exposure_time_s']
        stated = facts['angular_velocity_rad_s'] + facts['linear_velocity_m_s']
        # vibration is faster than the instants
        assert np.abs(mean - stated).max() < 0.1 * np.abs(velocities).max() + 1e-3
        turn, shift = (facts['exposure_time_s'] * np.array(facts[name]) for name in (
            'angular_velocity_rad_s', 'linear_velocity_m_s'))
        assert np.linalg.norm(facts['angular_velocity_rad_s']) < 25.01
        camera = Shards(shards)[int(sample['__key__'])].intrinsics
        matrix = motion_field_matrix(pixel_grid(96, 64, 1), camera)
        inverse_depth = sample['inverse_depth.npy'].astype(float)
        if facts['readout_time_s']:
            continue  # each row has a motion of its own
        expected = matrix[..., :3] @ turn + matrix[..., 3:] @ shift * inverse_depth[..., None]
        np.testing.assert_allclose(sample['flow.npy'].astype(float).transpose(1, 2, 0), expected,
                                   atol=0.05)
        global_shutters.append(facts)
    assert len(global_shutters) >= 3


def test_images_of_shards_are_those_that_training_draws(shards):
    config = TrainingConfig(width=96, height=64, shards=str(shards))
    drawn = CropFactory(config, None, held_out=False)
    held_out = make_factory(config, None, (), held_out=True)
    training = make_factory(config, None, (), held_out=False)
    assert isinstance(training, ShardFactory) and len(training) == IMAGES - 1 == 9
    assert held_out.files == [9]
    seen = set()
    for index in range(len(training)):
        number = training.file(index)
        seen.add(number)
        sample, expected = training.crop(index), drawn.crop(number)
        np.testing.assert_array_equal(sample.gray, expected.gray)
        assert sample.intrinsics == expected.intrinsics
        np.testing.assert_allclose(sample.motion[:3], expected.motion[:3], atol=1e-9)
        # the centre of a cell lies between pixels
        assert np.abs(sample.flow_px - expected.flow_px).max() < 0.02 * (
            1 + np.abs(expected.flow_px).max())
    assert seen == set(range(9))
    np.testing.assert_array_equal(held_out.crop(0).gray, drawn.crop(9).gray)


def test_every_image_is_of_its_number_alone(shards, tmp_path):
    assert main(['synthesize', str(tmp_path / 'more'), '--format', 'webdataset', '--images', '3',
                 *(f'--set={setting}' for setting in ('width=96', 'height=64', 'block=2'))]) == 0
    more, all_of_them = Shards(tmp_path / 'more'), Shards(shards)
    for index in (2, 0):
        np.testing.assert_array_equal(more[index].image, all_of_them[index].image)
        np.testing.assert_array_equal(more[index].flow_px, all_of_them[index].flow_px)


KILLED = """
import os, signal, sys
from image_as_imu_ros.cli.main import main
from image_as_imu_ros.training.drawn_scenes import DrawnScenes
draw = DrawnScenes.draw
def kill_at(source, index):
    if index == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return draw(source, index)
DrawnScenes.draw = kill_at
main(sys.argv[1:])
"""


def test_a_killed_run_is_completed_as_if_nothing_had_happened(shards, tmp_path):
    folder = tmp_path / 'dataset'
    command = ['synthesize', str(folder), '--format', 'webdataset', '--images', str(IMAGES),
               *(f'--set={setting}' for setting in SMALL)]
    result = subprocess.run([sys.executable, '-c', KILLED, *command], cwd=CHECKOUT,
                            env={**os.environ, 'OMP_NUM_THREADS': '1'}, capture_output=True,
                            text=True, timeout=300, check=False)
    assert result.returncode == -signal.SIGKILL, result.stderr
    whole = [path for path in contents(folder) if not path.startswith('.')]
    assert sorted(whole) == ['dataset.json', 'shard-000000.tar']
    written_at = (folder / 'shard-000000.tar').stat().st_mtime_ns
    assert main(command) == 0
    assert (folder / 'shard-000000.tar').stat().st_mtime_ns == written_at
    assert contents(folder) == contents(shards)


def test_a_table_is_completed_as_if_nothing_had_happened(table, tmp_path, monkeypatch):
    folder, draw = tmp_path / 'dataset', DrawnScenes.draw

    def interrupted(source, index):
        if index == 6:
            raise KeyboardInterrupt
        return draw(source, index)

    monkeypatch.setattr(DrawnScenes, 'draw', interrupted)
    assert synthesize(folder, 'csv') == 130
    assert [path.name for path in (folder / 'parts').iterdir()] == ['part-000000.csv']
    assert not (folder / 'dataset.csv').exists()
    monkeypatch.undo()
    assert synthesize(folder, 'csv') == 0
    assert contents(folder) == contents(table)


def test_processes_of_torchrun_share_the_work(shards, tmp_path):
    folder = tmp_path / 'dataset'
    result = torchrun('-m', 'image_as_imu_ros', 'synthesize', folder, '--format', 'webdataset',
                      '--images', IMAGES, *(f'--set={setting}' for setting in SMALL))
    assert result.returncode == 0, result.stderr
    assert f'{IMAGES} images, 0 left out' in result.stdout
    assert contents(folder) == contents(shards)


def test_each_process_writes_its_own_blocks_alone(shards, tmp_path, monkeypatch, capsys):
    folder = tmp_path / 'dataset'
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setenv('RANK', '1')
    assert synthesize(folder) == 0
    assert 'process 1 of 2 has done its part, others have not yet' in capsys.readouterr().out
    assert sorted(contents(folder)) == ['dataset.json', 'shard-000001.tar']
    monkeypatch.setenv('RANK', '0')
    assert synthesize(folder) == 0
    assert contents(folder) == contents(shards)
    monkeypatch.setenv('RANK', '2')
    with pytest.raises(ConfigError, match='RANK=2 and WORLD_SIZE=2'):
        process_of_torchrun()


def test_table_is_that_of_the_paper(table, shards):
    with (table / 'dataset.csv').open(newline='') as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert ','.join(reader.fieldnames) == (
        'blurred,flow,depth,image1,image2,ts1,ts2,fx,fy,cx,cy,bRa_qx,bRa_qy,bRa_qz,bRa_qw,'
        'bta_x,bta_y,bta_z,avg_px_dist,max_px_dist')
    images = Shards(shards)
    assert len(rows) == len(images) == IMAGES
    for row, image in zip(rows, (images[index] for index in range(IMAGES))):
        blurred = cv2.imread(str(table / row['blurred']), cv2.IMREAD_UNCHANGED)
        if blurred.ndim == 3:
            blurred = blurred[..., ::-1]
        np.testing.assert_array_equal(blurred, image.image)
        flow = np.load(table / row['flow'])
        np.testing.assert_allclose(flow, image.flow_px, atol=0.05)
        np.testing.assert_allclose(np.load(table / row['depth']) * image.inverse_depth_per_m, 1,
                                   rtol=2e-3)
        length = np.linalg.norm(flow, axis=0)
        assert float(row['avg_px_dist']) == pytest.approx(length.mean(), rel=1e-5)
        assert float(row['max_px_dist']) == pytest.approx(length.max(), rel=1e-5)
        assert float(row['fx']) == image.intrinsics.fx_px
        assert float(row['ts2']) - float(row['ts1']) == pytest.approx(image.exposure_time_s)
        assert row['image1'] == row['image2'] == ''
        rotation = Rotation.from_quat([float(row[f'bRa_q{axis}']) for axis in 'xyzw'])
        np.testing.assert_allclose(rotation.as_matrix(), image.T_end_start[:3, :3], atol=1e-9)
        np.testing.assert_allclose([float(row[f'bta_{axis}']) for axis in 'xyz'],
                                   image.T_end_start[:3, 3])


def test_pose_of_an_exposure_is_that_of_the_path(shards):
    config = TrainingConfig(width=96, height=64)
    images, factory = Shards(shards), CropFactory(config, None, held_out=False)
    for index in range(3):
        image, path = images[index], factory.crop(index).path
        rotations, places = path.pose(path.exposure_s * np.array([-0.5, 0.5]))
        start, end = Rotation.from_rotvec(rotations)
        point = np.array([0.3, -0.2, 2.0])  # in the axes at mid-exposure
        distance_m = np.linalg.norm(image.linear_velocity_m_s) / np.linalg.norm(
            path.mean_motion(np.zeros(()))[3:] / path.exposure_s)
        ends = [axes.inv().apply(point - distance_m * place)
                for axes, place in zip((start, end), places)]
        np.testing.assert_allclose(image.T_end_start @ [*ends[0], 1.0], [*ends[1], 1.0],
                                   atol=1e-9)


def test_contact_sheet_shows_every_image_with_arrows(shards):
    sheet = cv2.imread(str(shards / 'contact_sheet.jpg'))[..., ::-1].astype(int)
    assert sheet.shape == (3 * TILE_WIDTH_PX * 64 // 96, 4 * TILE_WIDTH_PX, 3)
    yellow = np.abs(sheet - ARROW_COLOUR).sum(axis=-1) < 90
    tiles = yellow.reshape(3, -1, 4, TILE_WIDTH_PX).sum(axis=(1, 3)).ravel()
    assert (tiles[:IMAGES] > 20).all() and not tiles[IMAGES:].any()


def test_another_dataset_is_not_mixed_in(shards, tmp_path, capsys):
    assert synthesize(shards, 'webdataset', 'seed=2') == 1
    assert 'holds a dataset with seed 1, not 2' in capsys.readouterr().err
    (tmp_path / 'mine.txt').touch()
    assert synthesize(tmp_path) == 1
    assert 'is not empty and holds no dataset' in capsys.readouterr().err


@pytest.mark.parametrize(('arguments', 'message'), [
    (['--format', 'csv', '--blend'], 'give --recordings'),
    (['--format', 'csv', '--recordings', 'x', '--assets', 'x'], 'are for drawn scenes'),
    (['--format', 'csv', '--set', 'frames_apart=3'], 'frames_apart: 3 is odd'),
    (['--format', 'csv', '--preset', 'keyframes'], 'leave out --preset keyframes'),
    (['--recordings', 'x'], '--recordings is for datasets: give --format')])
def test_options_that_do_not_fit_are_refused(arguments, message, tmp_path, capsys):
    assert main(['synthesize', str(tmp_path / 'x'), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'x').exists()


def test_shards_train_either_kind_of_network(shards, tmp_path, capsys):
    settings = [f'--set={setting}' for setting in (
        f'shards={shards}', 'crops=8', 'batch=4', 'width=96', 'height=64', 'workers=0')]
    assert main(['train', str(tmp_path / 'run'), *settings]) == 0
    assert 'validation loss' in capsys.readouterr().out
    config = load(TrainingConfig, None, tuple(text.removeprefix('--set=') for text in settings))
    config = TrainingConfig(**{**vars(config), 'architecture': 'reference'})
    factory = make_factory(config, None, (), held_out=True)
    rgb, flow, depth, motion, matrix = factory.collate([factory.crop(0)])
    image = Shards(shards)[9]
    np.testing.assert_allclose(flow[0], image.flow_px)
    np.testing.assert_allclose(1.0 / depth[0], image.inverse_depth_per_m, rtol=1e-6)
    np.testing.assert_allclose(motion[0], image.motion, rtol=1e-6)
    assert rgb.shape == (1, 3, 64, 96)
    assert main(['train', str(tmp_path / 'run2'), *settings, '--set=width=64']) == 1
    assert 'have 96x64 px, not 64x64' in capsys.readouterr().err
    assert main(['train', str(tmp_path / 'run2'), *settings, '--assets', str(tmp_path)]) == 1
    assert 'shards: they are instead of' in capsys.readouterr().err


def test_damaged_shards_are_named(shards, tmp_path):
    with pytest.raises(DataFormatError, match=r'no images in shards'):
        Shards(tmp_path)
    whole = (shards / 'shard-000000.tar').read_bytes()
    (tmp_path / 'shard-000000.tar').write_bytes(whole[:len(whole) // 2])
    with pytest.raises(DataFormatError, match=r'shard-000000\.tar'):
        Shards(tmp_path)[1]
    (tmp_path / 'shard-000000.tar').write_bytes(whole.replace(b'\x89PNG', b'\x89JPG'))
    with pytest.raises(DataFormatError, match=r'image 3 of .*shard-000000\.tar'):
        Shards(tmp_path)[3]


def test_settings_are_kept_beside_the_dataset(shards):
    settings = json.loads((shards / 'dataset.json').read_text())
    assert settings['images'] == IMAGES and settings['seed'] == DatasetConfig().seed
    assert settings['source'] == 'drawn scenes' and settings['photographs'] == 0
