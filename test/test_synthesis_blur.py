"""Synthetic blur obeys the motion that it is labelled with."""

import cv2
import numpy as np
import pytest

from image_as_imu_ros.errors import DataFormatError
from image_as_imu_ros.geometry.motion_field import motion_field_matrix, pixel_grid
from image_as_imu_ros.synthesis import blur
from image_as_imu_ros.synthesis.textures import (
    HELD_OUT_EVERY,
    load_textures,
    procedural_texture,
)
from image_as_imu_ros.types import CameraIntrinsics

CAMERA = CameraIntrinsics(160, 128, 200.0, 200.0, 79.5, 63.5)
NOTHING = np.zeros(6)


@pytest.fixture(scope='module')
def texture():
    return procedural_texture(np.random.default_rng(4))


@pytest.fixture
def clean_camera(monkeypatch):
    """A camera that stores the collected light as it is, as float32."""
    monkeypatch.setattr(blur, 'expose', lambda rng, light: light)


class SteadyRandom:
    """A generator without the random change of velocity during the exposure."""

    def __init__(self, seed):
        self._rng = np.random.default_rng(seed)

    def __getattr__(self, name):
        return getattr(self._rng, name)

    def normal(self, loc=0.0, scale=1.0, size=None):
        drawn = self._rng.normal(loc, scale, size)
        return np.zeros(6) if size == 6 else drawn


def photograph(texture, motion, seed=0):
    return blur.render(SteadyRandom(seed), texture, CAMERA, np.array(motion, float), 8)


def spread_along(image, direction):
    """Power of the differences over 3 px in a direction."""
    dx, dy = (round(3 * part) for part in direction)
    moved = np.roll(image, (-dy, -dx), axis=(0, 1))
    return np.square((moved - image)[8:-8, 8:-8]).mean()


def test_no_motion_gives_the_same_sharp_image_however_often(texture, clean_camera):
    first, second = photograph(texture, NOTHING), photograph(texture, NOTHING)
    np.testing.assert_array_equal(first.gray, second.gray)
    np.testing.assert_array_equal(first.flow_px, 0)


def test_a_tiny_motion_hardly_changes_the_sharp_image(texture, clean_camera):
    still = photograph(texture, NOTHING).gray
    moved = photograph(texture, (1e-5, 0, 0, 0, 0, 0)).gray
    # the two scenes are sampled at other places, up to one part of a pixel
    assert np.abs(moved - still).mean() < 0.05 * still.std()


@pytest.mark.parametrize('motion', [(0, 0.1, 0, 0, 0, 0), (0.05, -0.05, 0.1, 0.01, 0.02, -0.01)])
def test_blur_does_not_tell_the_direction_of_time(texture, clean_camera, motion):
    forward, backward = (photograph(texture, sign * np.array(motion)) for sign in (1, -1))
    np.testing.assert_allclose(backward.gray, forward.gray, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(backward.flow_px, -forward.flow_px, rtol=1e-5)
    still = photograph(texture, NOTHING).gray
    assert np.abs(forward.gray - still).mean() > 0.1 * still.std()


@pytest.mark.parametrize('motion, along, across', [
    ((0, 0.1, 0, 0, 0, 0), (1, 0), (0, 1)), ((0.1, 0, 0, 0, 0, 0), (0, 1), (1, 0)),
    ((0, 0, 0, 0.1, 0, 0), (1, 0), (0, 1))])
def test_blur_lies_along_the_labelled_displacement(texture, clean_camera, motion, along, across):
    sharp, blurred = photograph(texture, NOTHING), photograph(texture, motion)
    flow_px = blurred.flow_px[6:10, 8:12].mean(axis=(0, 1))
    assert abs(flow_px @ along) > 15 > 3 > abs(flow_px @ across)
    lost_along, lost_across = (spread_along(blurred.gray, direction)
                               / spread_along(sharp.gray, direction)
                               for direction in (along, across))
    assert lost_along < 0.6 * lost_across


def test_displacement_of_a_rotation_does_not_depend_on_the_scene(texture):
    rotation = np.array([0.04, -0.06, 0.1])
    expected = motion_field_matrix(pixel_grid(160, 128, 8), CAMERA)[..., :3] @ rotation
    for seed in range(3):
        sample = photograph(texture, (*rotation, 0, 0, 0), seed)
        np.testing.assert_allclose(sample.flow_px, expected, atol=1e-4)


def test_length_of_the_blur_is_that_of_the_label(clean_camera, monkeypatch):
    # bright dots on black: each becomes a line as long as the displacement
    dots = np.zeros((200, 240), np.float32)
    for row, column in np.ndindex(3, 3):
        dots[20 + row::40, 20 + column::40] = 1.0
    monkeypatch.setattr(blur, '_scene', lambda rng, texture, width, height: cv2.resize(
        dots, (int(width * blur.OVERSAMPLING), int(height * blur.OVERSAMPLING)),
        interpolation=cv2.INTER_NEAREST))
    sample = photograph(dots, (0, 0.1, 0, 0, 0, 0))
    _, _, boxes, centres = cv2.connectedComponentsWithStats(
        (sample.gray > 0.02 * sample.gray.max()).astype(np.uint8))
    inner = [(box, centre) for box, centre in zip(boxes[1:], centres[1:])
             if box[0] > 0 and box[0] + box[2] < 160 and box[1] > 0 and box[1] + box[3] < 128]
    assert len(inner) >= 4
    for box, (x, y) in inner:
        expected_px = abs(motion_field_matrix(np.array([x, y]), CAMERA)[0, 1]) * 0.1
        # a dot is three samples wide itself
        assert expected_px < box[2] < expected_px + 6
        assert box[3] <= 6


def test_sampled_motions_cover_still_to_long_and_cameras_are_valid():
    rng = np.random.default_rng(0)
    lengths_px = []
    for _ in range(400):
        camera = blur.sample_camera(rng, 160, 128)
        motion = blur.sample_motion(rng, camera.fx_px)
        field = motion_field_matrix(pixel_grid(160, 128, 8), camera)
        lengths_px.append(np.median(np.linalg.norm(field @ motion, axis=-1)))
    assert np.percentile(lengths_px, 5) < 1 and np.percentile(lengths_px, 95) > 25
    assert np.max(lengths_px) < 150


def test_camera_model_stays_within_the_range_of_eight_bits():
    rng = np.random.default_rng(0)
    light = np.linspace(0, 1.5, 64 * 64, dtype=np.float32).reshape(64, 64)
    for _ in range(20):
        image = blur.expose(rng, light)
        assert image.dtype == np.uint8 and image.shape == light.shape
        assert np.corrcoef(image.ravel(), np.minimum(light, 1).ravel())[0, 1] > 0.8


def test_drawn_textures_have_detail():
    for seed in range(8):
        drawn = procedural_texture(np.random.default_rng(seed), 200)
        assert drawn.shape == (200, 200) and drawn.dtype == np.float32
        assert np.isfinite(drawn).all() and drawn.min() >= 0
        assert drawn.std() > 0.1 * drawn.mean()


def test_every_eighth_photograph_is_held_out(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(2 * HELD_OUT_EVERY):
        cv2.imwrite(str(tmp_path / f'{index:02d}.png'),
                    rng.integers(0, 256, (40, 50 + index, 3), np.uint8))
    widths = {held_out: [image.shape[1] for image in load_textures(tmp_path, held_out)]
              for held_out in (True, False)}
    assert widths[True] == [50, 58]
    assert sorted(widths[True] + widths[False]) == list(range(50, 66))


def test_photographs_become_linear_light(tmp_path):
    image = np.zeros((40, 40, 3), np.uint8)
    image[:20] = 186  # half the light of white
    cv2.imwrite(str(tmp_path / 'a.png'), image)
    (texture,) = load_textures(tmp_path, held_out=True)
    assert texture[:20].mean() == pytest.approx(0.5, abs=0.01)
    assert texture[20:].max() == 0


def test_folders_without_usable_photographs_are_refused(tmp_path):
    with pytest.raises(DataFormatError, match='no image'):
        load_textures(tmp_path, held_out=False)
    (tmp_path / 'broken.jpg').write_bytes(b'not an image')
    with pytest.raises(DataFormatError, match='broken.jpg'):
        load_textures(tmp_path, held_out=True)
