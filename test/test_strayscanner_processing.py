"""What `image-as-imu strayscanner` makes of a folder of the app, and of the paper's recording."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from image_as_imu_ros.cli.main import main
from image_as_imu_ros.errors import ConfigError
from image_as_imu_ros.evaluation.sources import open_recording
from image_as_imu_ros.evaluation.strayscanner_processing import (
    PICKERS,
    fft_energy,
    laplacian_variance,
    process_strayscanner,
)

SIZE_PX = (640, 480)
ROWS = 9
BLURRED = (1, 4, 5)


@pytest.fixture
def app_folder(make_app_folder) -> Path:
    """Folder as the StrayScanner app writes it, with some images blurred along x."""
    random = np.random.default_rng(3)
    sharp = [cv2.resize(random.integers(0, 256, (120, 160, 1)).astype(np.uint8).repeat(3, -1),
                        SIZE_PX) for _ in range(ROWS - 1)]
    return make_app_folder([cv2.blur(image, (61, 1)) if number in BLURRED else image
                            for number, image in enumerate(sharp)])


def table(path: Path) -> np.ndarray:
    """Numbers of a CSV file below its header."""
    return np.genfromtxt(path, delimiter=',', skip_header=1)


@pytest.mark.parametrize('picker', PICKERS)
def test_folder_of_the_app_is_prepared(app_folder: Path, tmp_path: Path, capsys, picker: str):
    out, blurred = tmp_path / 'out', tmp_path / 'blurred'
    assert main(['strayscanner', str(app_folder), str(out), '--fine-tuning', str(blurred),
                 '--picker', picker]) == 0
    assert f'{ROWS - 1} images, 0 unreadable; {len(BLURRED)} blurred' in capsys.readouterr().out
    velocities = table(out / 'velocities.csv')
    np.testing.assert_allclose(velocities[1:-1, 1:4], [[0.9, 0.0, 0.0]] * (ROWS - 3), atol=1e-6)
    np.testing.assert_array_equal(velocities[[0, -1], 1:4], 0.0)
    np.testing.assert_allclose(velocities[0, 4:], [1.3, 0.2, -0.3])  # the sample at 100.03 s
    poses = table(out / 'opencv_poses.csv')
    np.testing.assert_allclose(poses[2, 1:], [0.09, 0, 0, 1, 0, 0, 0], atol=1e-12)
    assert sorted(path.name for path in out.glob('*.png')) == ['blur.png', 'velocities.png']
    picked = np.genfromtxt(out / 'blur.csv', delimiter=',', names=True)[f'blurred_{picker}']
    assert tuple(np.flatnonzero(picked)) == BLURRED

    # Both results are recordings that the other commands take, alike in all but the images.
    whole, part = open_recording(out).streams[0], open_recording(blurred).streams[0]
    raw = open_recording(app_folder).streams[0]
    np.testing.assert_allclose(whole.records[0].intrinsics.matrix,
                               raw.records[0].intrinsics.matrix, atol=1e-6)
    assert [record.stamp_ns for record in part.records] == [
        whole.records[k].stamp_ns for k in BLURRED]
    for own, source in zip(whole.read(), raw.read()):
        assert np.abs(own.decode().astype(int) - source.decode()).mean() < 6
    np.testing.assert_array_equal(next(part.read()).decode(), list(whole.read())[1].decode())


def test_an_interrupted_run_is_completed(app_folder: Path, tmp_path: Path):
    out = tmp_path / 'out'
    process_strayscanner(app_folder, out)
    files = {path: path.read_bytes() for path in out.rglob('*') if path.is_file()}
    kept, *lost = sorted((out / 'rgb_320x224').iterdir())
    times = kept.stat().st_mtime_ns
    for path in (*lost[2:], out / 'velocities.csv', out / 'blur.csv'):
        path.unlink()
    assert process_strayscanner(app_folder, out).images == ROWS - 1
    assert {path: path.read_bytes() for path in out.rglob('*') if path.is_file()} == files
    assert kept.stat().st_mtime_ns == times


def test_folders_of_others_are_left_alone(app_folder: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match='folder to be read'):
        process_strayscanner(app_folder, app_folder)
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'notes.txt').write_text('precious')
    with pytest.raises(ConfigError, match='not written by `image-as-imu strayscanner`'):
        process_strayscanner(app_folder, tmp_path / 'mine')
    process_strayscanner(app_folder, tmp_path / 'out')
    with pytest.raises(ConfigError, match='stray by fft below 6.3, not .* laplacian below 300'):
        process_strayscanner(app_folder, tmp_path / 'out', picker='laplacian')
    assert [path.name for path in (tmp_path / 'mine').iterdir()] == ['notes.txt']


def test_unreadable_images_are_left_out(app_folder: Path, tmp_path: Path):
    (app_folder / 'rgb.mp4').unlink()
    (app_folder / 'rgb').mkdir()
    random = np.random.default_rng(5)
    for image in range(3):
        pixels = random.integers(0, 256, (*SIZE_PX[::-1], 3)).astype(np.uint8)
        cv2.imwrite(str(app_folder / 'rgb' / f'{image:06d}.jpg'), pixels)
    cut = app_folder / 'rgb' / '000001.jpg'
    cut.write_bytes(cut.read_bytes()[:500])
    done = process_strayscanner(app_folder, tmp_path / 'out')
    assert (done.images, done.unreadable) == (2, 1)
    assert json.loads((tmp_path / 'out' / 'processing.json').read_text())['unreadable'] == 1


def test_blur_lowers_both_measures():
    sharp = np.random.default_rng(1).integers(0, 256, (224, 320)).astype(np.uint8)
    for measure in (fft_energy, laplacian_variance):
        values = [measure(cv2.blur(sharp, (width, 1))) for width in (1, 5, 15, 45)]
        assert values == sorted(values, reverse=True)


def test_dining_comes_out_as_the_paper_has_it(data_folder: Path, tmp_path: Path):
    source = data_folder / 'strayscanner_dining'
    if not source.is_dir():
        pytest.skip(f'{source} is absent')
    raw = tmp_path / 'dining'
    (raw / 'rgb').mkdir(parents=True)
    for name in ('camera_matrix.csv', 'odometry.csv', 'imu.csv', 'rgb/000000.jpg',
                 'rgb/000060.jpg'):
        shutil.copy(source / name, raw / name)
    process_strayscanner(raw, tmp_path / 'out')
    for name in ('velocities.csv', 'opencv_poses.csv'):
        np.testing.assert_allclose(table(tmp_path / 'out' / name), table(source / name),
                                   rtol=0, atol=1e-8)
    for name in ('camera_matrix_320x224.csv', 'rgb_320x224/000000.jpg', 'rgb_320x224/000060.jpg'):
        own, theirs = tmp_path / 'out' / name, source / name
        if name.endswith('.csv'):
            assert own.read_text().split() == theirs.read_text().split()
        else:
            difference = cv2.imread(str(own)).astype(int) - cv2.imread(str(theirs))
            assert np.abs(difference).mean() < 2.0  # JPEG noise
