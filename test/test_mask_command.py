"""A recording of a moving camera tells what of its images is the robot itself."""

import dataclasses

import numpy as np
from conftest import write_sequence_folder
from test_mask import SHOWN, with_hood

from image_as_imu_ros.cli.main import main
from image_as_imu_ros.geometry.world_mask import read_mask


def test_the_command_finds_what_never_changes(tmp_path, blurred_sequence, capsys):
    folder, mask = tmp_path / 'hood', tmp_path / 'mask.png'
    hooded = dataclasses.replace(blurred_sequence, frames=[
        dataclasses.replace(frame, image=with_hood(frame.image))
        for frame in blurred_sequence.frames])
    write_sequence_folder(folder, hooded, lambda _: np.zeros(3))
    (folder / 'frames' / '0003.jpg').write_bytes(b'no image')
    assert main(['mask', str(folder), str(mask)]) == 0
    assert f'of 320x240 px: {mask}' in capsys.readouterr().out
    found, hidden = ~read_mask(str(mask)), ~SHOWN
    assert (found & hidden).sum() > 0.95 * (found | hidden).sum()
    assert main(['mask', str(folder), str(mask)]) == 1
    assert '--overwrite' in capsys.readouterr().err


def test_the_command_masks_nothing_where_all_moves(sequence_folder, tmp_path, capsys):
    assert main(['mask', str(sequence_folder), str(tmp_path / 'mask.png')]) == 0
    assert 'masked 0.0%' in capsys.readouterr().out


def test_a_camera_that_stands_still_tells_no_mask(tmp_path, blurred_sequence, capsys):
    rng, (first, *_) = np.random.default_rng(0), blurred_sequence.frames
    frames = [dataclasses.replace(frame, image=np.clip(
        first.image + rng.normal(0.0, 2.0, first.image.shape), 0, 255).astype(np.uint8))
        for frame in blurred_sequence.frames]
    for name, kept, complaint in (('still', frames, 'moves too little'),
                                  ('short', frames[:5], 'has 5 images')):
        write_sequence_folder(tmp_path / name, dataclasses.replace(blurred_sequence, frames=kept),
                              lambda _: np.zeros(3))
        assert main(['mask', str(tmp_path / name), str(tmp_path / 'mask.png')]) == 1
        assert complaint in capsys.readouterr().err
    assert not (tmp_path / 'mask.png').exists()
