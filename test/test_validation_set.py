"""The validation set covers all speeds, repeats itself, and its labels are what is seen."""

import csv
import hashlib
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from photographing import write_box_room

from image_as_imu_ros.cli.main import main
from image_as_imu_ros.config import TrainingConfig
from image_as_imu_ros.errors import DataFormatError
from image_as_imu_ros.evaluation import metrics
from image_as_imu_ros.evaluation.sources import open_recording
from image_as_imu_ros.synthesis import keyframes as keyframe_module
from image_as_imu_ros.synthesis import mesh_rooms, validation
from image_as_imu_ros.synthesis.textures import HELD_OUT_ROOM, ROOM_FILE, image_files
from image_as_imu_ros.synthesis.validation import write_validation
from image_as_imu_ros.training.dataset import CropFactory

CHECKOUT = Path(__file__).resolve().parents[1]

pytest.importorskip('embreex', reason='needs embreex: pip install .[rooms]')
IMAGES = 25


@pytest.fixture(scope='module')
def assets(tmp_path_factory):
    """Photographs and panoramas, of which every eighth is held out, and two boxes as rooms."""
    folder = tmp_path_factory.mktemp('assets')
    rng = np.random.default_rng(0)
    for index in range(9):
        for name, shape in ((f'a{index}.hdr', (128, 256)), (f'b{index}.png', (320, 480))):
            noise = rng.integers(0, 256, (shape[0] // 8, shape[1] // 8, 3), np.uint8)
            image = cv2.resize(noise, shape[::-1], interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(folder / name), image.astype(np.float32) / 200
                        if name.endswith('.hdr') else image)
    for name in ('box', HELD_OUT_ROOM):
        write_box_room(folder / name, rng)
    return folder


@pytest.fixture(scope='module', autouse=True)
def small_views():
    """Views of rooms that are quick to render."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh_rooms, 'WIDTH_PX', 160)
        patch.setattr(mesh_rooms, 'HEIGHT_PX', 120)
        yield


@pytest.fixture(scope='module')
def validation_set(assets, tmp_path_factory):
    folder = tmp_path_factory.mktemp('set') / 'validation'
    write_validation(folder, assets, IMAGES)
    return folder


def test_every_stratum_has_its_share(validation_set):
    (stream,) = open_recording(validation_set).streams
    speeds = [np.linalg.norm(record.angular_velocity_reference_rad_s)
              for record in stream.records]
    shares, _ = np.histogram(speeds, metrics.SPEED_STRATA_RAD_S)
    assert shares.tolist() == [IMAGES / len(shares)] * len(shares)


def test_the_first_images_do_not_depend_on_how_many_there_are(validation_set, assets, tmp_path):
    write_validation(tmp_path / 'few', assets, 6)
    for name in ('000000.png', '000005.png'):
        assert (tmp_path / 'few' / 'frames' / name).read_bytes() \
            == (validation_set / 'frames' / name).read_bytes()


def test_rooms_panoramas_and_photographs_take_turns(validation_set):
    with (validation_set / 'frames.csv').open() as file:
        linear = np.array([[float(row[f'v{axis}']) for axis in 'xyz']
                           for row in csv.DictReader(file)])
    still = ~linear.any(axis=1)  # panoramas are infinitely far
    assert still.tolist() == [False] * 5 + [True] * 5 + [False] * 15


def test_levers_are_those_of_hands(validation_set):
    (stream,) = open_recording(validation_set).streams
    angular, linear = (np.stack([getattr(record, f'{kind}_velocity_reference_{unit}')
                                 for record in stream.records])
                       for kind, unit in (('angular', 'rad_s'), ('linear', 'm_s')))
    moving = linear.any(axis=1)
    levers_m = np.linalg.norm(linear, axis=1)[moving] / np.linalg.norm(angular, axis=1)[moving]
    # at the assumed distance of 2 m
    assert 0.02 < np.median(levers_m) < 0.5 and levers_m.max() < 2.5


def test_a_set_that_was_cut_off_goes_on_to_the_same_images(
        validation_set, assets, tmp_path, monkeypatch):
    folder = tmp_path / 'set'
    take, calls = validation.take, []

    def failing(shots):
        calls.append(len(shots))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return take(shots)

    monkeypatch.setattr(validation, 'take', failing)
    with pytest.raises(KeyboardInterrupt):
        write_validation(folder, assets, IMAGES)
    assert not folder.exists()
    table = tmp_path / 'set.partial' / 'frames.csv'
    table.write_text(table.read_text() + 'frames/000010.png,0.5,0.0')  # cut within a row
    write_validation(folder, assets, IMAGES)
    assert calls == [5] * 6
    assert not (tmp_path / 'set.partial').exists() and not (folder / 'views').exists()
    assert (folder / 'frames.csv').read_text() == (validation_set / 'frames.csv').read_text()
    for path in (validation_set / 'frames').iterdir():
        assert (folder / 'frames' / path.name).read_bytes() == path.read_bytes()


def test_another_set_of_assets_begins_anew(validation_set, assets, tmp_path, monkeypatch):
    folder = tmp_path / 'set'
    monkeypatch.setattr(validation, 'SEED', validation.SEED + 1)
    with monkeypatch.context() as patch:
        patch.setattr(validation, 'take', lambda shots: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_validation(folder, assets, 1)
    (tmp_path / 'set.partial' / 'frames.csv').write_text('x\ny\n')
    monkeypatch.undo()
    write_validation(folder, assets, 1)
    assert (folder / 'frames' / '000000.png').read_bytes() \
        == (validation_set / 'frames' / '000000.png').read_bytes()


def read_by_training(assets, keyframes, monkeypatch):
    """Names of the files that training on synthetic images opens."""
    opened = []
    imread, load = cv2.imread, keyframe_module.Keyframe.load
    monkeypatch.setattr(cv2, 'imread', lambda path, *rest: opened.append(path) or imread(
        path, *rest))
    monkeypatch.setattr(keyframe_module.Keyframe, 'load',
                        lambda path: opened.append(str(path)) or load(path))
    factory = CropFactory(TrainingConfig(width=64, height=64, rooms=0.5, procedural=0.0), assets,
                          False, keyframes)
    for index in range(40):
        factory.plan(index)
    monkeypatch.undo()
    return {Path(path) for path in opened}


def test_no_training_sees_what_the_set_shows(assets, validation_set, tmp_path, monkeypatch):
    shown = json.loads((validation_set / 'meta.json').read_text())['held_out']
    assert {name.split('/')[0] for name in shown} == {'a0.hdr', 'a8.hdr', 'b6.png', HELD_OUT_ROOM}
    mesh_rooms.write_keyframes(tmp_path / 'views', assets, 3)
    opened = read_by_training(assets, tmp_path / 'views', monkeypatch)
    assert {path.name[0] for path in opened} >= {'a', 'b', '0'}
    assert not {path for path in opened if HELD_OUT_ROOM in str(path)}
    assert not opened & {assets / name for name in shown}
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in opened}
    assert not digests & set(shown.values())


def test_nothing_of_the_real_assets_is_both_held_out_and_trained_on():
    folder = Path(os.environ.get('IMAGE_AS_IMU_ASSETS', CHECKOUT.parent / 'shared' / 'assets'))
    if not folder.is_dir():
        pytest.skip(f'no assets at {folder}; set IMAGE_AS_IMU_ASSETS')
    shown = validation.held_out_files(folder)
    trained = [*image_files(folder, held_out=False),
               *(room / ROOM_FILE for room in mesh_rooms.find_rooms(folder, held_out=False))]
    kinds = {path.relative_to(folder).parts[0] for path in shown}
    assert {'hdri_cc0', 'photos_kodak', 'scenes'} <= kinds
    digests = [{hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
               for paths in (shown, trained)]
    assert not digests[0] & digests[1]


@pytest.mark.parametrize('kind', ['*.hdr', '*.png'])
def test_a_missing_kind_of_scene_is_refused(assets, tmp_path, kind):
    copy = tmp_path / 'copy'
    shutil.copytree(assets, copy)
    for path in copy.glob(kind):
        path.unlink()
    with pytest.raises(DataFormatError, match='no held-out'):
        write_validation(tmp_path / 'set', copy, 1)


def test_an_existing_folder_is_kept(validation_set, assets):
    with pytest.raises(DataFormatError, match='already exists'):
        write_validation(validation_set, assets, 1)


def test_verb_writes_a_set_that_evaluate_scores_by_speed(assets, tmp_path, capsys):
    assert main(['synthesize', str(tmp_path / 'set'), '--preset', 'validation',
                 '--assets', str(assets), '--images', '5']) == 0
    assert main(['evaluate', str(tmp_path / 'set'), '--mode', 'single',
                 '--set', 'estimator.threads=1', '--output', str(tmp_path / 'result')]) == 0
    assert '12 to 25' in capsys.readouterr().out
    summary = json.loads((tmp_path / 'result' / 'summary.json').read_text())
    strata = summary['protocols']['interpolated']['oracle_sign_by_speed']
    assert sum(entry['frames'] for entry in strata) == summary['evaluated'] <= 5


def test_verb_wants_the_folder_of_photographs(tmp_path, capsys):
    assert main(['synthesize', str(tmp_path / 'set'), '--preset', 'validation']) == 1
    assert '--assets' in capsys.readouterr().err


def test_errors_are_told_apart_by_speed():
    reference = np.array([[0.5, 0, 0], [0, 4.0, 0], [0, 0, 5.0], [30.0, 0, 0]])
    estimate = reference * [[1.0], [1.1], [0.9], [1.0]]
    linear = np.tile([1.0, 0.0, 0.0], (4, 1))
    turned = np.array([[1.0, 0, 0], [0, 1.0, 0], [0, 1.0, 0], [1.0, 0, 0]])
    slow, middle = metrics.by_speed(estimate, reference, linear, turned)
    assert (slow['from_rad_s'], slow['frames'], slow['relative']) == (0.0, 1, 0.0)
    assert (middle['from_rad_s'], middle['to_rad_s'], middle['frames']) == (3.0, 6.0, 2)
    assert middle['relative'] == pytest.approx(0.1)
    assert middle['rotation_rmse_rad_s'] == pytest.approx(np.sqrt((0.16 + 0.25) / 2))
    assert middle['rotation_slope'] == pytest.approx((1.1 * 16 + 0.9 * 25) / 41)
    assert middle['translation_direction_deg'] == pytest.approx(90.0)
    unknown = np.full((4, 3), np.nan)
    assert metrics.by_speed(estimate, reference, linear, unknown)[0][
        'translation_direction_deg'] is None
