"""The validation set covers all speeds, repeats itself, and its labels are what is seen."""

import json

import cv2
import numpy as np
import pytest

from image_as_imu_ros.cli.main import main
from image_as_imu_ros.errors import DataFormatError
from image_as_imu_ros.evaluation import metrics
from image_as_imu_ros.evaluation.sources import open_recording
from image_as_imu_ros.synthesis.validation import write_validation

IMAGES = 25


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('photographs')
    rng = np.random.default_rng(0)
    for index in range(9):  # every eighth is held out
        image = cv2.resize(rng.integers(0, 256, (40, 60), np.uint8), (480, 320),
                           interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f'{index}.png'), image)
    return folder


@pytest.fixture(scope='module')
def validation_set(photographs, tmp_path_factory):
    folder = tmp_path_factory.mktemp('set') / 'validation'
    write_validation(folder, photographs, IMAGES)
    return folder


def test_every_stratum_has_its_share(validation_set):
    (stream,) = open_recording(validation_set).streams
    speeds = [np.linalg.norm(record.angular_velocity_reference_rad_s)
              for record in stream.records]
    shares, _ = np.histogram(speeds, metrics.SPEED_STRATA_RAD_S)
    assert shares.tolist() == [IMAGES / len(shares)] * len(shares)


def test_the_first_images_do_not_depend_on_how_many_there_are(
        validation_set, photographs, tmp_path):
    write_validation(tmp_path / 'few', photographs, 6)
    for name in ('000000.png', '000005.png'):
        assert (tmp_path / 'few' / 'frames' / name).read_bytes() \
            == (validation_set / 'frames' / name).read_bytes()


def test_a_fourth_of_the_images_shows_the_room_in_colour(validation_set):
    channels = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED).ndim
                for path in sorted((validation_set / 'frames').iterdir())]
    assert channels == [3] * 5 + [2] * 15 + [3] * 5


def test_an_existing_folder_is_kept(validation_set, photographs):
    with pytest.raises(DataFormatError, match='already exists'):
        write_validation(validation_set, photographs, 1)


def test_verb_writes_a_set_that_evaluate_scores_by_speed(photographs, tmp_path, capsys):
    assert main(['synthesize', str(tmp_path / 'set'), '--preset', 'validation',
                 '--assets', str(photographs), '--images', '5']) == 0
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
