"""What is masked tells nothing: neither the robot's own parts nor what lies outside an image."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import BlurredSequence
from test_alignment import CAMERA, SCENE, blurred_view, motion, view
from test_blur_solver import MATRIX, log_probability
from test_relative_blur import aligned

from image_as_imu_ros.config import EstimatorConfig, StreamConfig, VisualImuConfig, load
from image_as_imu_ros.errors import ConfigError, InputError
from image_as_imu_ros.estimator import VisualGyroscope
from image_as_imu_ros.evaluation.metrics import oracle_signs, rmse
from image_as_imu_ros.geometry.alignment import PairAligner
from image_as_imu_ros.geometry.blur_solver import solve_blur
from image_as_imu_ros.geometry.camera import WorkingCamera
from image_as_imu_ros.geometry.parallax import match_points
from image_as_imu_ros.geometry.relative_blur import RelativeBlurSolver
from image_as_imu_ros.geometry.world_mask import MARGIN_PX, WorldMask, fitted_mask, read_mask
from image_as_imu_ros.model.distributions import solve_band
from image_as_imu_ros.stream import StreamEstimator
from image_as_imu_ros.types import CameraIntrinsics, Frame

TOP = 132
HOOD = np.s_[TOP:]
"""Lower 45 % of the images."""
SHOWN = np.ones((240, 320), bool)
SHOWN[HOOD] = False


def with_hood(image: np.ndarray) -> np.ndarray:
    """The image where a sharp, textured part of the vehicle hides its lower end."""
    hood = cv2.resize(SCENE[:300, :400], (320, 240))[HOOD]
    image = image.copy()
    image[HOOD] = hood if image.dtype == np.float32 else np.rint(255 * hood)[..., None]
    return image


def written(path: Path, shown: np.ndarray) -> str:
    """Path of a mask file."""
    cv2.imwrite(str(path), np.where(shown, 255, 0).astype(np.uint8))
    return str(path)


def masked_gyroscope(mask: str) -> VisualGyroscope:
    return VisualGyroscope(EstimatorConfig(device='cpu', threads=1, mask=mask))


@pytest.fixture(scope='module')
def masked(tmp_path_factory) -> VisualGyroscope:
    return masked_gyroscope(written(tmp_path_factory.mktemp('mask') / 'hood.png', SHOWN))


@pytest.fixture(scope='module')
def hooded_frames(blurred_frames) -> list[Frame]:
    return [dataclasses.replace(frame, image=with_hood(frame.image)) for frame in blurred_frames]


def streamed(gyroscope: VisualGyroscope, frames: list[Frame]) -> np.ndarray:
    """Rates of a stream, (N, 3)."""
    stream = StreamEstimator(gyroscope)
    return np.array([stream.process(frame).angular_velocity_rad_s for frame in frames])


def test_a_stream_does_not_see_what_is_masked(gyroscope, masked, hooded_frames,
                                              blurred_sequence: BlurredSequence):
    reference = np.array([frame.angular_velocity_rad_s for frame in blurred_sequence.frames])
    error, without = (np.linalg.norm(rmse(streamed(each, hooded_frames)[1:], reference[1:]))
                      for each in (masked, gyroscope))
    # measured: 0.13 and 1.29 rad/s, and 0.10 without a hood
    assert error < 0.2 and without > 5.0 * error


def test_an_image_by_itself_does_not_either(gyroscope, masked, hooded_frames,
                                            blurred_sequence: BlurredSequence):
    reference = np.array([frame.angular_velocity_rad_s for frame in blurred_sequence.frames])[::3]
    errors = []
    for each in (masked, gyroscope):
        rates = np.array([estimate.angular_velocity_rad_s
                          for estimate in map(each.estimate, hooded_frames[::3])])
        errors.append(np.linalg.norm(rmse(rates * oracle_signs(rates, reference), reference)))
    # measured: 0.39 and 0.86 rad/s
    assert errors[0] < 0.5 and errors[1] > 1.5 * errors[0]


def test_white_masks_change_nothing(gyroscope, blurred_frames, tmp_path):
    white = masked_gyroscope(written(tmp_path / 'white.png', np.ones((240, 320), bool)))
    np.testing.assert_array_equal(streamed(white, blurred_frames[:5]),
                                  streamed(gyroscope, blurred_frames[:5]))


def test_what_cannot_be_read_is_refused_with_the_remedy(tmp_path):
    no_image = tmp_path / 'mask.png'
    no_image.write_text('white')
    folder = tmp_path / 'folder.png'
    folder.mkdir()
    for path in (no_image, tmp_path / 'missing.png', folder):
        with pytest.raises(ConfigError, match=f'{path}.*black where'):
            masked_gyroscope(str(path))
    with pytest.raises(ConfigError, match='ends in .png'):
        masked_gyroscope(str(tmp_path / 'mask.txt'))
    black = written(tmp_path / 'black.png', np.zeros((240, 320), bool))
    with pytest.raises(ConfigError, match='white on 0.0% only'):
        masked_gyroscope(black)


def test_none_may_be_said_on_the_command_line():
    assert load(VisualImuConfig, None, ('estimator.mask=',)).estimator.mask == ''


def test_any_image_file_is_a_mask(tmp_path):
    gray = np.full((48, 64, 3), 127, np.uint8)
    gray[:24] = 128
    for name, image in (('colour.png', gray), ('gray.pgm', gray[..., 0]),
                        ('deep.png', gray[..., 0].astype(np.uint16) << 8)):
        cv2.imwrite(str(tmp_path / name), image)
        shown = read_mask(str(tmp_path / name))
        assert shown[:24].all() and not shown[24:].any()


def test_masks_fit_images_of_their_aspect_ratio():
    small = SHOWN[::2, ::2]
    np.testing.assert_array_equal(fitted_mask(small, 320, 240), SHOWN)
    np.testing.assert_array_equal(fitted_mask(SHOWN, 320, 240), SHOWN)
    with pytest.raises(InputError, match='320x240 px but the image 320x200'):
        fitted_mask(SHOWN, 320, 200)


def test_masks_that_do_not_fit_or_leave_too_little_are_told_of_each_image(
        blurred_frames, tmp_path):
    wide = masked_gyroscope(written(tmp_path / 'wide.png', np.ones((240, 427), bool)))
    with pytest.raises(InputError, match='427x240'):
        wide.observe(blurred_frames[0])
    slit = np.zeros((240, 320), bool)
    slit[::3] = True  # a third of the pixels, but of no cell
    with pytest.raises(InputError, match='0.0% of the image show'):
        masked_gyroscope(written(tmp_path / 'slit.png', slit)).observe(blurred_frames[0])


def test_working_pixels_are_usable_where_all_that_they_are_made_of_is():
    shown = np.ones((480, 640), bool)
    shown[200:210, 300:310] = False
    camera = WorkingCamera(CameraIntrinsics(640, 480, 500.0, 500.0, 319.5, 239.5), 320, shown)
    row, column = np.nonzero(~camera.usable)
    assert (row.min(), row.max()) == (100 - MARGIN_PX, 104 + MARGIN_PX)
    assert (column.min(), column.max()) == (150 - MARGIN_PX, 154 + MARGIN_PX)


def test_what_lies_outside_of_a_wide_image_is_masked():
    barrel = CameraIntrinsics(640, 480, 500.0, 500.0, 319.5, 239.5, 'plumb_bob',
                              (-0.3, 0.1, 0.0, 0.0))
    assert WorkingCamera(barrel, 320).usable is None
    pincushion = dataclasses.replace(barrel, distortion=(0.3, 0.0, 0.0, 0.0))
    usable = WorkingCamera(pincushion, 320).usable
    assert not usable[0, 0] and not usable[-1, -1] and usable[120, 160]
    fisheye = dataclasses.replace(barrel, distortion_model='equidistant', fx_px=170.0,
                                  fy_px=170.0, cx_px=240.0, distortion=(0.6, 0.0, 0.0, 0.0))
    usable = WorkingCamera(fisheye, 320).usable
    assert not usable[120, 0] and usable[120, -1]


def test_the_world_goes_on_smoothly_where_it_is_hidden():
    image = (255 * with_hood(view((0.0, 0.0, 0.0)).astype(np.float32))).astype(np.uint8)
    plain = WorkingCamera(CAMERA, 320).working_image(image)
    colour = WorkingCamera(CAMERA, 320, SHOWN).colour_image(np.dstack([image] * 3))
    filled = WorkingCamera(CAMERA, 320, SHOWN).working_image(image)
    np.testing.assert_array_equal(filled[SHOWN], plain[SHOWN])
    np.testing.assert_allclose(colour, np.dstack([filled] * 3), atol=1e-6)
    steps = [np.abs(np.diff(each[TOP - 1:], axis=0)).mean(axis=1) for each in (filled, plain)]
    assert steps[0][0] < 0.5 * steps[1][0]  # without an edge
    assert steps[0][10:].mean() < 0.1 * steps[1][10:].mean()
    assert filled[HOOD].min() > plain[SHOWN].min() and filled[HOOD].max() < plain[SHOWN].max()


def test_what_is_hidden_leaves_no_trace_however_it_lies():
    for share in (0.02, 0.5, 0.97):
        shown = np.random.default_rng(0).random((240, 320)) > share
        filled = WorldMask(shown).filled(np.where(shown, 0.7, 1e3).astype(np.float32))
        np.testing.assert_allclose(filled, 0.7, rtol=1e-5)


def test_masked_cells_tell_a_solver_nothing():
    usable = np.zeros(MATRIX.shape[:2], bool)
    usable[:, :20] = True
    votes = log_probability(motion((0.05, -0.03, 0.1)))
    garbled = np.where(usable[..., None], votes, votes[::-1, ::-1])
    left, found = solve_blur(votes[:, :20], MATRIX[:, :20]), \
        solve_blur(garbled, MATRIX, usable=usable)
    for name in ('motion', 'covariance', 'log_likelihood', 'information', 'inlier_share',
                 'extent_px', 'log_posterior'):
        np.testing.assert_array_equal(getattr(found, name), getattr(left, name))


def test_masked_cells_tell_nothing_in_a_band():
    usable = np.ones(MATRIX.shape[:2], bool)
    usable[21:] = False
    votes, starts = log_probability(motion((0.05, -0.03, 0.1))), motion((0.04, -0.03, 0.1))[None]
    garbled = np.where(usable[..., None], votes, votes[::-1, ::-1])
    found, = solve_band(garbled, MATRIX, slice(120, 200), starts, usable)
    expected, = solve_band(votes[:21], MATRIX[:21], slice(120, 200), starts)
    np.testing.assert_array_equal(found.motion, expected.motion)
    np.testing.assert_array_equal(found.covariance, expected.covariance)
    assert solve_band(garbled, MATRIX, slice(176, 224), starts, usable) == []


def test_images_are_aligned_by_what_is_not_masked():
    turn = (0.03, -0.08, 0.04)
    images = [with_hood(view(each).astype(np.float32)) for each in ((0.0, 0.0, 0.0), turn)]
    usable = cv2.erode(SHOWN.astype(np.uint8), np.ones((9, 9))).view(bool)
    found = PairAligner(CAMERA, usable).align(*images, None, None, [])
    np.testing.assert_allclose(found.motion[:3], turn, atol=3e-3)
    assert found.similarity > 0.9
    assert found.matches.at_later[:, 1].max() < TOP and found.matches.at_earlier[:, 1].max() < TOP


def test_points_do_not_end_where_it_is_masked():
    later, shift = view((0.0, 0.0, 0.0)), np.float32([[1, 0, 0], [0, 1, 30], [0, 0, 1]])
    earlier = cv2.warpPerspective(later, shift, (320, 240), borderMode=cv2.BORDER_REFLECT)
    everywhere, matches = (match_points(earlier, later, shift.astype(float), usable)
                           for usable in (None, SHOWN))
    assert (everywhere.at_earlier[:, 1] > TOP + 2).any()
    assert len(matches.doubt) > 20
    assert matches.at_earlier[:, 1].max() < TOP


def test_blurs_are_compared_where_neither_image_is_masked():
    before, after, turn = (0.02, -0.03, 0.0), (0.03, 0.02, 0.0), (0.03, 0.06, 0.05)
    images = [blurred_view(*each).astype(np.float32) for each in (((0, 0, 0), before),
                                                                  (turn, after))]
    guess = motion(before), 1.2 * motion(after)
    found = []
    for pair, usable in ((images, SHOWN), ([with_hood(image) for image in images], SHOWN),
                         ([with_hood(image) for image in images], None)):
        told = RelativeBlurSolver(CAMERA, usable).compare(*pair, aligned(turn), *guess)
        found.append(np.linalg.solve(told.information[3:6, 3:6] + np.eye(3),
                                     told.vector[3:6] - told.information[3:6, :3] @ before))
    errors = [np.linalg.norm(each - after) for each in found]
    assert errors[1] < 1.2 * errors[0] + 1e-3
    assert errors[2] > 2.0 * errors[1]


def test_rows_of_a_rolling_shutter_are_measured_beside_a_mask(masked, blurred_frames):
    stream = StreamEstimator(masked, StreamConfig(subframe_rates=4))
    for frame in blurred_frames[:4]:
        stream.process(dataclasses.replace(frame, image=with_hood(frame.image),
                                           readout_time_s=0.02))
    assert len(stream.bands) == 4
    for band in stream.bands:
        assert np.isfinite(band.angular_velocity_rad_s).all()
        assert np.linalg.eigvalsh(band.covariance[3:, 3:]).min() > 0.0
