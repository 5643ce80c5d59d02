"""Synthetic blur obeys the motion that it is labelled with."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch
from photographing import EXPOSURE_S, NO_SHUTTER_EFFECTS, steady_path
from scipy.spatial.transform import Rotation

from image_as_imu_ros.errors import DataFormatError
from image_as_imu_ros.geometry.motion_field import motion_field_matrix, pixel_grid
from image_as_imu_ros.synthesis import blur, exposure, motion, sensor
from image_as_imu_ros.synthesis.exposure import FlatScene, integrate, views
from image_as_imu_ros.synthesis.motion import CameraPath, sample_camera, sample_motion, sample_path
from image_as_imu_ros.synthesis.sensor import PLAIN, SensorConfig
from image_as_imu_ros.synthesis.textures import (
    HELD_OUT_EVERY,
    HELD_OUT_ROOM,
    TONES,
    Texture,
    _strands,
    image_files,
    load_textures,
    procedural_texture,
    tinted,
)
from image_as_imu_ros.types import CameraIntrinsics

CAMERA = CameraIntrinsics(160, 128, 200.0, 200.0, 74.0, 68.0)
FRONTAL = np.array([0.0, 0.0, 1.0])
MARGIN_PX = 60
PAN, ROLL = (0.02, 0.1, 0, 0, 0, 0), (0, 0, 0.15, 0, 0, 0)
SLIDE, MIXED = (0, 0, 0, 0.06, -0.05, 0), (0.05, -0.06, 0.1, 0.02, 0.03, -0.05)


def scene_of(picture, normal=FRONTAL):
    """A plane with a gray picture that reaches MARGIN_PX beyond the image."""
    to_scene = np.array([[1, 0, MARGIN_PX], [0, 1, MARGIN_PX], [0, 0, 1.0]])
    light = np.repeat(picture.astype(np.float32)[..., None], 3, axis=-1)
    return FlatScene(light, to_scene, np.asarray(normal, float))


def dots(every_px=32, first_px=20, size=3):
    """Bright squares on black."""
    picture = np.zeros((128 + 2 * MARGIN_PX, 160 + 2 * MARGIN_PX), np.float32)
    for row, column in np.ndindex(size, size):
        picture[first_px + row::every_px, first_px + column::every_px] = 1.0
    return picture


def gathered(scene, path, parameters=PLAIN):
    """Light of one channel."""
    exposures = [views(scene, CAMERA, path, parameters)]
    return integrate(exposures, CAMERA.width_px, CAMERA.height_px)[0, 1].numpy()


def streaks(light):
    """Mass, centroid and covariance of what is isolated and wholly inside."""
    count, places, boxes, _ = cv2.connectedComponentsWithStats((light > 1e-4).astype(np.uint8))
    for number in range(1, count):
        x, y, width, height = boxes[number][:4]
        if x > 1 and y > 1 and x + width < CAMERA.width_px - 1 \
                and y + height < CAMERA.height_px - 1:
            rows, columns = np.nonzero(places == number)
            weights = light[rows, columns]
            points = np.stack([columns, rows], axis=1)
            yield (weights.sum(), np.average(points, axis=0, weights=weights),
                   np.cov(points.T, aweights=weights, ddof=0))


@pytest.mark.parametrize('drawn', [PAN, ROLL, SLIDE, MIXED])
@pytest.mark.parametrize('normal', [FRONTAL, (0.3, -0.2, 1.0)])
def test_length_and_direction_of_the_blur_are_those_of_the_label(drawn, normal):
    scene, path = scene_of(dots(), normal), steady_path(None, drawn, EXPOSURE_S)
    labels = blur._labels(CAMERA, path, np.asarray(normal), 0.0, 1)
    own = np.mean([covariance for _, _, covariance in streaks(gathered(
        scene, steady_path(None, np.zeros(6), EXPOSURE_S)))], axis=0)
    found = list(streaks(gathered(scene, path)))
    assert len(found) >= 4
    lengths = []
    for _, (x, y), covariance in found:
        expected = labels.flow_px[round(y), round(x)]
        # a line of even density has a twelfth of its squared length as variance
        power, axes = np.linalg.eigh(12 * (covariance - own))
        lengths.append((np.sqrt(power[1]), np.linalg.norm(expected)))
        if lengths[-1][1] < 2:  # nearly a point, about which the image turns
            continue
        assert np.sqrt(power[1]) == pytest.approx(np.linalg.norm(expected), abs=0.6, rel=0.05)
        across = axes[:, 0] @ expected
        assert abs(across) < 0.05 * np.linalg.norm(expected) + 0.1
    seen, labelled = np.sum(lengths, axis=0)
    assert seen == pytest.approx(labelled, rel=0.02) and labelled / len(found) > 3


@pytest.mark.parametrize('drawn', [PAN, ROLL, MIXED])
def test_light_is_conserved(drawn):
    scene = scene_of(dots())
    still = gathered(scene, steady_path(None, np.zeros(6), EXPOSURE_S))
    masses = [mass for mass, _, _ in streaks(still)]
    assert masses == pytest.approx([9.0] * len(masses), rel=1e-4)
    for mass, _, _ in streaks(gathered(scene, steady_path(None, drawn, EXPOSURE_S))):
        # what comes nearer or aside grows, as the pinhole camera has it
        assert mass == pytest.approx(9.0, rel=0.12)
    flat = scene_of(np.full_like(dots(), 0.7))
    np.testing.assert_allclose(gathered(flat, steady_path(None, drawn, EXPOSURE_S)), 0.7,
                               rtol=1e-5)


@pytest.mark.parametrize('seed', range(6))
def test_blur_does_not_tell_the_direction_of_time(seed):
    rng = np.random.default_rng(seed)
    path = sample_path(rng, np.array(MIXED), EXPOSURE_S)
    back = CameraPath.follow(path.exposure_s, path.times_s, -path.velocity[::-1])
    scene = scene_of(cv2.GaussianBlur(rng.random((248, 280), np.float32), (0, 0), 1.0))
    forward, backward = gathered(scene, path), gathered(scene, back)
    still = gathered(scene, steady_path(None, np.zeros(6), EXPOSURE_S))
    assert np.abs(forward - backward).mean() < 0.01 * np.abs(forward - still).mean()
    np.testing.assert_allclose(
        *(sign * blur._labels(CAMERA, each, FRONTAL, 0.0, 8).flow_px
          for sign, each in ((1, path), (-1, back))), atol=0.02)


def test_streaks_of_the_smallest_lamps_are_even():
    light = gathered(scene_of(dots(every_px=400, first_px=130)),
                     steady_path(None, (0, 0.2, 0, 0, 0, 0), EXPOSURE_S))
    row = light.max(axis=0)
    inside = row > 0.5 * row.max()
    middle = np.flatnonzero(inside)[4:-4]
    assert len(middle) > 20
    # lines of the scene's samples show by a little, gaps between instants would by half
    assert row[middle].std() < 0.05 * row[middle].mean()


def test_more_instants_change_next_to_nothing(monkeypatch):
    drawn = tinted(np.random.default_rng(0), procedural_texture(np.random.default_rng(4)))
    texture = Texture.of_light(drawn)
    errors = []
    for seed in range(6):
        shot = blur.plan(np.random.default_rng(seed), texture, CAMERA,
                         np.array([0.05, 0.15, 0.1, 0, 0, 0]), 8, NO_SHUTTER_EFFECTS)
        usual = gathered(shot.scene, shot.path)
        with monkeypatch.context() as patch:
            patch.setattr(exposure, 'MAX_STEP_SAMPLES', exposure.MAX_STEP_SAMPLES / 6)
            fine = gathered(shot.scene, shot.path)
        errors.append((usual - fine).std() / fine.std())
        with monkeypatch.context() as patch:
            patch.setattr(exposure, 'MAX_STEP_SAMPLES', 6 * exposure.MAX_STEP_SAMPLES)
            ghosts = (gathered(shot.scene, shot.path) - fine).std() / fine.std()
        assert ghosts > 4 * errors[-1]
    assert max(errors) < 0.015


def test_rolling_shutter_skews_by_readout_times_rate():
    readout_s, rate_px_s = 0.02, 1500.0
    picture = np.zeros((248, 280), np.float32)
    picture[:, 135:138] = 1.0
    slide = np.array([0, 0, 0, -rate_px_s * EXPOSURE_S / CAMERA.fx_px, 0, 0])
    path = steady_path(None, slide, EXPOSURE_S, readout_s)
    light = gathered(scene_of(picture), path, dataclasses.replace(PLAIN, readout_s=readout_s))
    centres = (light * np.arange(160)).sum(axis=1) / light.sum(axis=1)
    skew, _ = np.polyfit(np.arange(128), centres, 1)
    assert skew * 128 == pytest.approx(readout_s * rate_px_s, rel=0.01)
    upright = gathered(scene_of(picture), steady_path(None, slide, EXPOSURE_S))
    assert np.ptp((upright * np.arange(160)).sum(axis=1) / upright.sum(axis=1)) < 0.01


def test_rows_of_a_rolling_shutter_have_their_own_labels():
    readout_s = 0.03
    times_s = np.linspace(-0.02, 0.02, 65)
    velocity = np.zeros((65, 6))
    velocity[:, 1] = 5.0 + 100.0 * times_s  # speeds up evenly
    path = CameraPath.follow(EXPOSURE_S, times_s, velocity)
    labels = blur._labels(CAMERA, path, np.zeros(3), readout_s, 8)
    rows_s = exposure.row_times_s(CAMERA, readout_s).reshape(-1, 8).mean(axis=1)
    middle = labels.field[:, 9] @ np.eye(6)[1]
    np.testing.assert_allclose(labels.flow_px[:, 9, 0] / middle[:, 0],
                               EXPOSURE_S * (5.0 + 100.0 * rows_s), rtol=1e-3)
    assert labels.motion[1] == pytest.approx(EXPOSURE_S * 5.0)


@pytest.mark.parametrize('mains_hz', [50, 60])
def test_flicker_bands_have_the_mains_period(mains_hz):
    readout_s = 0.03
    parameters = dataclasses.replace(PLAIN, readout_s=readout_s, flicker_hz=2.0 * mains_hz,
                                     flicker_depth=0.5, flicker_phase_rad=0.4)
    scene = scene_of(np.ones((248, 280)))
    profile = gathered(scene, steady_path(None, np.zeros(6), 1e-3, readout_s), parameters)[:, 80]
    waves = 2 * mains_hz * readout_s  # down the image
    phase = 2 * np.pi * waves * ((np.arange(128) + 0.5) / 128 - 0.5)
    basis = np.stack([np.ones(128), np.cos(phase), np.sin(phase)], axis=1)
    (mean, cosine, sine), residual = np.linalg.lstsq(basis, profile)[:2]
    assert mean == pytest.approx(1.0, abs=1e-3) and residual.item() < 1e-6
    # an exposure of a tenth of the period averages a little of it away
    assert np.hypot(cosine, sine) == pytest.approx(0.5 * np.sinc(2 * mains_hz * 1e-3), rel=1e-3)
    assert np.arctan2(-sine, cosine) == pytest.approx(0.4, abs=1e-3)
    whole = gathered(scene, steady_path(None, np.zeros(6), 0.5 / mains_hz, readout_s), parameters)
    assert np.ptp(whole) < 1e-4


def test_lamps_saturate_into_streaks_after_the_integral():
    length_px = 30.0
    path = steady_path(None, (0, length_px / CAMERA.fx_px, 0, 0, 0, 0), EXPOSURE_S)
    light = torch.from_numpy(gathered(scene_of(50.0 * dots(every_px=400, first_px=130)), path))
    image = sensor.develop(light.expand(1, 3, -1, -1), [CAMERA], [PLAIN])[0, 0].numpy()
    saturated = (image == 255).sum(axis=1).max()
    assert saturated == pytest.approx(length_px * 1.05, abs=4)
    # had the lamp been cut before, three of thirty pixels' worth of light were left
    assert (255 * (3 / length_px) ** (1 / 2.2)) < 100


def with_shutter(seed):
    """A planned photograph in which all rows have their own time and light."""
    rng = np.random.default_rng(seed)
    texture = Texture.of_light(tinted(rng, procedural_texture(rng)))
    config = SensorConfig(rolling_share=0.5, flicker_share=1.0)
    return blur.plan(rng, texture, CAMERA, sample_motion(rng, 200.0), 8, config)


def assert_gathers_alike(device):
    shots = [with_shutter(seed) for seed in range(6)]
    assert {bool(shot.sensor.readout_s) for shot in shots} == {False, True}
    exposures = [views(shot.scene, CAMERA, shot.path, shot.sensor) for shot in shots]
    one = integrate(exposures, 160, 128)
    other = exposure.gather_by_torch(exposures, 160, 128, device).cpu()
    assert (one - other).abs().mean() < 1e-4 * one.mean()


def test_torch_gathers_what_opencv_does():
    assert_gathers_alike('cpu')


@pytest.mark.gpu
def test_a_gpu_gathers_and_develops_what_the_cpu_does():
    if not torch.cuda.is_available():
        pytest.skip('no CUDA device')
    assert_gathers_alike('cuda')
    shots = [with_shutter(seed) for seed in range(4)]
    one, other = (np.stack([sample.rgb for sample in blur.take(shots, device)]).astype(float)
                  for device in ('cpu', 'cuda'))
    # their generators' noise differs, by a few levels
    assert np.abs(one - other).mean() < 5 and np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.97


class Level:
    """A generator that looks straight ahead."""

    def normal(self, loc, scale, size=None):
        return np.zeros(np.shape(scale))


def test_panoramas_turn_exactly_about_the_camera():
    # a smooth function of the direction, whatever the grid
    height, width = 512, 1024
    longitude = (np.arange(width) - (width - 1) / 2) * 2 * np.pi / width
    latitude = ((np.arange(height) - (height - 1) / 2) * np.pi / height)[:, None]
    ways = np.stack([np.cos(latitude) * np.sin(longitude),
                     np.sin(latitude) * np.ones_like(longitude),
                     np.cos(latitude) * np.cos(longitude)], axis=-1)

    def brightness(way):
        x, y, z = np.moveaxis(way, -1, 0)
        return 1.0 + 0.5 * np.sin(9 * x) * np.cos(8 * y) + 0.4 * np.sin(7 * z + 3 * x)

    panorama = np.repeat(brightness(ways)[..., None], 3, axis=-1).astype(np.float32)
    grid = pixel_grid(160, 128, 1)
    rays = np.concatenate([grid, np.ones((128, 160, 1))], axis=-1) \
        @ np.linalg.inv(CAMERA.matrix).T
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    path = steady_path(None, (0.1, -0.2, 0.3, 0, 0, 0), EXPOSURE_S)
    corners = np.array([[-0.5, -0.5, 1], [159.5, -0.5, 1], [-0.5, 127.5, 1], [159.5, 127.5, 1]])
    wandering = exposure.homographies(CAMERA, path, np.zeros(3), path.times_s) @ corners.T
    wandering = (wandering[:, :2] / wandering[:, 2:]).transpose(0, 2, 1).reshape(-1, 2)
    scene = blur._part_of_panorama(Level(), Texture([panorama], panorama=True), CAMERA, wandering)
    expected = np.mean([brightness(Rotation.from_rotvec(share * np.array([0.1, -0.2, 0.3])).apply(
        rays.reshape(-1, 3))) for share in (np.arange(60) + 0.5) / 60 - 0.5], axis=0)
    error = gathered(scene, path) - expected.reshape(128, 160)
    assert np.abs(error).max() < 0.01


def test_panoramas_are_infinitely_far():
    panorama = np.random.default_rng(0).random((128, 256, 3), np.float32)
    shot = blur.plan(np.random.default_rng(1), Texture([panorama], panorama=True), CAMERA,
                     np.array(MIXED), 8, NO_SHUTTER_EFFECTS)
    assert shot.labels.motion[3:].tolist() == [0, 0, 0] and not shot.labels.inverse_depth.any()
    np.testing.assert_allclose(shot.labels.motion[:3], MIXED[:3], atol=1e-9)


def test_displacement_of_a_rotation_does_not_depend_on_the_scene():
    rotation = np.array([0.04, -0.06, 0.1])
    expected = motion_field_matrix(pixel_grid(160, 128, 8), CAMERA)[..., :3] @ rotation
    for seed in range(3):
        rng = np.random.default_rng(seed)
        labels = blur._labels(CAMERA, sample_path(rng, np.array([*rotation, 0, 0, 0]), 0.02),
                              blur._tilted(rng, CAMERA), 0.0, 8)
        np.testing.assert_allclose(labels.flow_px, expected, atol=1e-4)


@pytest.mark.parametrize('seed', range(12))
def test_mean_of_every_kind_of_motion_is_the_one_drawn(seed):
    rng = np.random.default_rng(seed)
    path = sample_path(rng, np.array(MIXED), 0.012, readout_s=0.02)
    np.testing.assert_allclose(path.mean_motion(np.zeros(())), MIXED, atol=1e-9)
    inside = np.abs(path.times_s) <= 0.006
    np.testing.assert_allclose(path.velocity[inside].mean(axis=0) * 0.012, MIXED, atol=0.01)
    # orientations from finer steps of the same velocities
    fine_s = np.linspace(path.times_s[0], path.times_s[-1], 8001)
    rates = np.stack([np.interp((fine_s[1:] + fine_s[:-1]) / 2, path.times_s, column)
                      for column in path.velocity[:, :3].T], axis=1)
    turned = Rotation.identity()
    for rate in rates[4000:]:
        turned = turned * Rotation.from_rotvec(rate * (fine_s[1] - fine_s[0]))
    np.testing.assert_allclose(path.rotation_rad[-1], turned.as_rotvec(), atol=2e-4)


def test_sampled_motions_cover_still_to_long_and_cameras_are_valid():
    rng = np.random.default_rng(0)
    lengths_px, speeds, exposures_s, focals_px, offsets_px, levers = [], [], [], [], [], []
    for _ in range(400):
        camera = sample_camera(rng, 160, 128)
        drawn = sample_motion(rng, camera.fx_px)
        exposure_s = motion.sample_exposure(rng, drawn[:3])
        field = motion_field_matrix(pixel_grid(160, 128, 8), camera)
        lengths_px.append(np.median(np.linalg.norm(field @ drawn, axis=-1)))
        speeds.append(np.linalg.norm(drawn[:3]) / exposure_s)
        levers.append(np.linalg.norm(drawn[3:]) / np.linalg.norm(drawn[:3]))
        exposures_s.append(exposure_s)
        focals_px.append(camera.fx_px)
        whole = sample_camera(rng, *motion.IMAGE_PX)
        offsets_px.append((whole.cx_px - 159.5, whole.cy_px - 111.5))
    assert np.percentile(lengths_px, 5) < 1 and np.percentile(lengths_px, 95) > 25
    assert np.max(lengths_px) < 110
    assert max(speeds) <= 25.0 + 1e-9 and np.percentile(speeds, 95) > 10
    assert 0.5e-3 <= min(exposures_s) < 2e-3 and 0.025 < max(exposures_s) <= 0.033
    assert min(focals_px) < 130 and max(focals_px) > 450
    assert np.std(offsets_px, axis=0) == pytest.approx(6.0, abs=1.0)
    # of the distance, per angle: a hand's lever is a small part of it
    assert 0.05 < np.median(levers) < 0.3


def test_drawn_textures_have_detail():
    for seed in range(8):
        drawn = procedural_texture(np.random.default_rng(seed), 200)
        assert drawn.shape == (200, 200) and drawn.dtype == np.float32
        assert np.isfinite(drawn).all() and drawn.min() >= 0
        assert drawn.std() > 0.1 * drawn.mean()


def test_strands_lie_side_by_side():
    for seed in range(5):
        canvas = np.full((320, 320), 0.5, np.float32)
        _strands(np.random.default_rng(seed), canvas)
        assert np.isfinite(canvas).all() and (canvas != 0.5).mean() > 0.05
        slopes = [cv2.Sobel(canvas, cv2.CV_32F, dx, dy) for dx, dy in ((1, 0), (0, 1))]
        xx, yy, xy = (cv2.blur(a * b, (15, 15)) for a, b in (
            (slopes[0], slopes[0]), (slopes[1], slopes[1]), (slopes[0], slopes[1])))
        drawn = xx + yy > 1e-3
        coherence = np.hypot(xx - yy, 2 * xy)[drawn] / (xx + yy)[drawn]
        assert np.median(coherence) > 0.5  # 0.25 where 15x15 pixels have all directions


def test_every_eighth_photograph_is_held_out(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(2 * HELD_OUT_EVERY):
        cv2.imwrite(str(tmp_path / f'{index:02d}.png'),
                    rng.integers(0, 256, (40, 50 + index, 3), np.uint8))
    widths = {held_out: [texture.levels[0].shape[1]
                         for texture in load_textures(tmp_path, held_out)]
              for held_out in (True, False)}
    assert widths[True] == [50, 58]
    assert sorted(widths[True] + widths[False]) == list(range(50, 66))


def test_textures_of_the_held_out_room_are_shown_by_nobody(tmp_path):
    for room in ('a', HELD_OUT_ROOM):
        folder = tmp_path / room / 'textures'
        folder.mkdir(parents=True)
        (folder.parent / 'scene.npz').touch()
        for index in range(9):
            (folder / f'{index}.png').touch()
    training, held_out = (image_files(tmp_path, each) for each in (False, True))
    assert len(training) == 7 and held_out == []
    assert all(path.parts[-3] == 'a' for path in training)


def test_photographs_become_linear_light(tmp_path):
    image = np.zeros((300, 300, 3), np.uint8)
    image[:150, :, 2] = 186  # half the red light of white
    cv2.imwrite(str(tmp_path / 'a.png'), image)
    (texture,) = load_textures(tmp_path, held_out=True)
    assert [level.shape[0] for level in texture.levels] == [300, 150, 75]
    for level in texture.levels:
        light = TONES[level]
        assert light[2:20].mean(axis=(0, 1)) == pytest.approx([0.5, 0, 0], abs=0.01)
        assert light[-20:-2].max() == 0


def test_folders_without_usable_photographs_are_refused(tmp_path):
    with pytest.raises(DataFormatError, match='no image'):
        load_textures(tmp_path, held_out=False)
    (tmp_path / 'broken.jpg').write_bytes(b'not an image')
    with pytest.raises(DataFormatError, match='broken.jpg'):
        load_textures(tmp_path, held_out=True)
