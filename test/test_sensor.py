"""The camera model does to light what optics, statistics and codecs say."""

import dataclasses
import math
import sys

import cv2
import numpy as np
import pytest
import torch

from image_as_imu_ros.errors import ConfigError
from image_as_imu_ros.synthesis import sensor
from image_as_imu_ros.synthesis.sensor import PLAIN, RETAKE, SensorConfig, develop, draw
from image_as_imu_ros.types import CameraIntrinsics

CAMERA = CameraIntrinsics(96, 64, 60.0, 60.0, 50.0, 30.0)


def of(**changes):
    return [dataclasses.replace(PLAIN, **changes)]


def drawn(seed, config=SensorConfig()):
    return draw(config, torch.Generator().manual_seed(seed))


def flat(level):
    return torch.full((1, 3, 64, 96), level)


@pytest.fixture(scope='module')
def photograph():
    """Smooth colourful shapes, (1, 3, 64, 96) linear."""
    noise = np.random.default_rng(0).random((8, 12, 3), np.float32)
    return torch.from_numpy(cv2.resize(noise, (96, 64), interpolation=cv2.INTER_CUBIC)
                            .clip(0.02, 1)).permute(2, 0, 1)[None]


def test_draws_depend_on_the_generator_alone_and_stay_in_range():
    cameras = [drawn(seed) for seed in range(400)]
    assert drawn(7) == cameras[7] and len(set(cameras)) == 400
    config = SensorConfig()
    for name in ('level', 'vignetting', 'full_well_e', 'saturation', 'gamma', 'denoise_px'):
        low, high = getattr(config, name)
        values = [getattr(camera, name) for camera in cameras]
        assert low <= min(values) and max(values) <= high
        assert max(values) - min(values) > 0.8 * (high - low)
    for name, share in (('readout_s', config.rolling_share), ('jpeg_quality', config.jpeg_share),
                        ('flicker_depth', config.flicker_share), ('mono', config.mono_share),
                        ('bayer', config.bayer_share), ('defocus_px', config.defocus_share),
                        ('aberration', config.aberration_share), ('h264_qp', 0.0)):
        assert np.mean([bool(getattr(camera, name)) for camera in cameras]) \
            == pytest.approx(share, abs=0.08), name


def test_draws_take_as_many_numbers_whatever_comes():
    after = []
    for config in (SensorConfig(), RETAKE):
        generator = torch.Generator().manual_seed(3)
        draw(config, generator)
        after.append(torch.rand(1, generator=generator).item())
    assert after[0] == after[1]


def test_a_camera_without_faults_encodes_what_it_sees(photograph):
    image = develop(photograph, [CAMERA], [PLAIN])
    assert image.dtype == torch.uint8
    expected = 255 * photograph.clamp(0, 1) ** (1 / sensor.GAMMA)
    assert (image - expected).abs().max() <= 0.501


def test_images_of_a_batch_are_those_taken_alone(photograph):
    cameras = [drawn(seed) for seed in range(24)]
    light = photograph.repeat(24, 1, 1, 1) * torch.linspace(0.2, 3, 24)[:, None, None, None]
    before = light.clone()
    together = develop(light, [CAMERA] * 24, cameras)
    assert torch.equal(light, before)
    assert torch.equal(together, develop(light, [CAMERA] * 24, cameras))
    for index, camera in enumerate(cameras):
        alone = develop(light[index:index + 1], [CAMERA], [camera])[0]
        # rounding may fall to the other side
        assert (alone.int() - together[index].int()).abs().float().mean() < 0.01


def test_every_drawn_camera_shows_the_scene(photograph):
    gray = sensor.luma(photograph)[0, 0].numpy() ** (1 / 2.2)
    for seed in range(60):
        image = develop(photograph, [CAMERA], [drawn(seed)])
        assert np.corrcoef(sensor.luma(image)[0, 0].numpy().ravel(), gray.ravel())[0, 1] > 0.7


def test_metering_reaches_the_level_and_does_not_mind_lamps(photograph):
    metered = sensor.meter(photograph, of(level=0.2))
    assert metered.mean().item() == pytest.approx(0.2, rel=0.1)
    with_lamp = photograph.clone()
    with_lamp[..., :2, :2] = 500.0
    ratio = sensor.meter(with_lamp, of(level=0.2)) / with_lamp / (metered / photograph)
    assert ratio.mean().item() == pytest.approx(1.0, abs=0.5)


def test_natural_vignetting_is_the_fourth_power_of_the_cosine():
    light = sensor.optics(flat(1.0), [CAMERA], of(vignetting=1.0))[0, 0]
    x, y = np.meshgrid(np.arange(96), np.arange(64))
    angle = np.arctan(np.hypot(x - 50.0, y - 30.0) / 60.0)
    np.testing.assert_allclose(light, np.cos(angle) ** 4, rtol=1e-4)


def test_red_and_blue_are_magnified_apart_about_the_principal_point():
    light = torch.zeros(1, 3, 64, 96)
    light[..., 5:8, 85:88] = 1.0
    by = 0.02
    seen = sensor.optics(light, [CAMERA], of(aberration=by))[0].numpy()
    x, y = np.meshgrid(np.arange(96), np.arange(64))
    places = [np.array([(channel * x).sum(), (channel * y).sum()]) / channel.sum()
              for channel in seen]
    away = np.array([86.0 - 50.0, 6.0 - 30.0])
    np.testing.assert_allclose(places[0] - places[1], by * away, atol=0.02)
    np.testing.assert_allclose(places[2] - places[1], -by * away, atol=0.02)


def test_defocus_keeps_the_light_and_spreads_it_over_a_disc():
    light = torch.zeros(1, 3, 64, 96)
    light[..., 30, 40] = 1.0
    seen = sensor.optics(light, [CAMERA], of(defocus_px=1.5))[0, 1]
    assert seen.sum().item() == pytest.approx(1.0, rel=1e-5)
    x, y = np.meshgrid(np.arange(96) - 40, np.arange(64) - 30)
    radius_px = math.sqrt(2 * float((seen * torch.from_numpy(x**2 + y**2)).sum()))
    assert radius_px == pytest.approx(1.5, abs=0.3)


def test_optics_may_follow_the_integral(photograph):
    lens = of(vignetting=1.2, aberration=1e-3, defocus_px=1.2)
    instants = [torch.roll(photograph, shift, dims=3) for shift in range(6)]
    one = sensor.optics(torch.stack(instants).mean(dim=0), [CAMERA], lens)
    other = torch.stack([sensor.optics(each, [CAMERA], lens) for each in instants]).mean(dim=0)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', ['mono', 'bayer', 'reduced'])
def test_noise_has_the_variance_of_electrons(kind):
    well, read = 2000.0, 12.0
    for level in (0.05, 0.5):
        raw = sensor.collect(flat(level), of(
            full_well_e=well, read_noise_e=read, mono=kind == 'mono', bayer=kind == 'bayer',
            noise_seed=5))
        if kind == 'bayer':  # where green was measured, not interpolated
            raw = raw[:, 1, ::2, 1::2]
        assert raw.mean().item() == pytest.approx(level, rel=0.01)
        assert raw.std().item() * well == pytest.approx(
            math.sqrt(level * well + read ** 2), rel=0.07)


def test_light_saturates_before_the_balance():
    lamp = flat(20.0)
    lamp[:, 1:] = 0.1
    camera = of(sensitivity=(0.5, 1.0, 0.5), balance=(2.0, 1.0, 2.0))
    raw = sensor.collect(lamp, camera)
    assert raw[0, :, 3, 4].tolist() == pytest.approx([2.0, 0.1, 0.1])
    gray = sensor.collect(flat(0.3), camera)
    np.testing.assert_allclose(gray, 0.3, rtol=1e-5)


def test_mosaic_is_exact_on_ramps_and_wrong_at_edges():
    x, y = torch.meshgrid(torch.arange(96.0), torch.arange(64.0), indexing='xy')
    ramp = torch.stack([0.2 + 0.002 * x, 0.5 - 0.003 * y, 0.1 + 0.001 * (x + y)])[None]
    for phase in range(4):
        seen = sensor.demosaic(ramp, [phase])
        np.testing.assert_allclose(seen[..., 2:-2, 2:-2], ramp[..., 2:-2, 2:-2], atol=1e-5)
    edge = flat(0.1)
    edge[..., 48:] = 0.9
    colour = np.ptp(sensor.demosaic(edge, [0]).numpy(), axis=1)
    assert colour[0, :, 46:50].max() > 0.1 and colour[0, :, :44].max() < 1e-5
    phases = sensor.demosaic(edge.repeat(2, 1, 1, 1), [0, 3])
    assert not torch.allclose(phases[0], phases[1])


def test_mono_cameras_see_no_colour(photograph):
    for seed in range(40):
        camera = drawn(seed, SensorConfig(mono_share=1.0))
        image = develop(photograph, [CAMERA], [dataclasses.replace(camera, jpeg_quality=0)])
        assert torch.equal(image[:, 0], image[:, 1]) and torch.equal(image[:, 0], image[:, 2])


def test_denoising_flattens_grain_and_keeps_edges():
    generator = torch.Generator().manual_seed(0)
    edge = flat(0.2)
    edge[..., 48:] = 0.7
    grainy = (edge + 0.01 * torch.randn(1, 1, 64, 96, generator=generator)).clamp(0, 1)
    before, after = (sensor.finish(grainy, of(gamma=1.0, denoise=strength, denoise_level=0.04,
                                              denoise_px=1.5))[0, 0] for strength in (0.0, 1.0))
    assert after[:, :40].std() < 0.6 * before[:, :40].std()
    assert (after[:, 48:50].mean() - after[:, 46:48].mean()).item() > 0.45


def test_sharpening_overshoots_at_edges():
    edge = flat(0.3)
    edge[..., 48:] = 0.6
    sharp = sensor.finish(edge, of(gamma=1.0, sharpen=0.8, sharpen_px=1.0))[0, 0]
    assert sharp.max() > 0.63 and sharp.min() < 0.27 and sharp[5, 5].item() == pytest.approx(0.3)


@pytest.mark.parametrize('quality', [30, 60, 90])
def test_jpeg_loses_what_libjpeg_does(photograph, quality):
    generator = torch.Generator().manual_seed(1)
    image = (255 * (photograph ** 0.45 + 0.03 * torch.randn(
        photograph.shape, generator=generator)).clamp(0, 1)).round()
    ours = sensor.jpeg(image.clone(), of(jpeg_quality=quality))[0].permute(1, 2, 0).numpy()
    rgb = image[0].permute(1, 2, 0).numpy().astype(np.uint8)
    coded = cv2.imencode('.jpg', rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    theirs = cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1].astype(float)
    lost = np.abs(theirs - rgb).mean()
    assert np.abs(ours - rgb).mean() == pytest.approx(lost, rel=0.03)
    assert np.abs(ours - theirs).mean() < 0.25 * lost


def test_h264_loses_more_the_coarser_it_is(photograph):
    pytest.importorskip('av', reason="needs PyAV: pip install '.[video]'")
    image = (255 * photograph ** 0.45).round()
    errors = [(sensor.h264(image.clone(), of(h264_qp=qp)) - image).abs().mean().item()
              for qp in (10, 24, 38)]
    assert 0 < errors[0] < errors[1] < errors[2] < 12
    again = sensor.h264(image.clone(), of(h264_qp=24))
    assert torch.equal(again, sensor.h264(image.clone(), of(h264_qp=24)))


def test_without_pyav_its_remedy_is_named(photograph, monkeypatch):
    monkeypatch.setitem(sys.modules, 'av', None)
    with pytest.raises(ConfigError, match=r"pip install 'image_as_imu_ros\[video\]'"):
        develop(photograph, [CAMERA], of(h264_qp=23))


def test_finished_pictures_are_retaken_about_as_bright(photograph):
    image = develop(photograph, [CAMERA], [PLAIN])
    means = []
    for seed in range(30):
        again = sensor.retake(image, [CAMERA], [drawn(seed, RETAKE)])
        means.append(again.float().mean().item() / image.float().mean().item())
        both = again.float().mean(1).ravel(), image.float().mean(1).ravel()
        assert np.corrcoef(*both)[0, 1] > 0.8
    assert 0.8 < min(means) < 0.97 and 1.03 < max(means) < 1.2
