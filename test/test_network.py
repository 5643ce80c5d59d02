"""The network's fixed features show direction and length of a blur."""

import cv2
import numpy as np
import pytest
import torch

from image_as_imu_ros.geometry.alignment import with_blur
from image_as_imu_ros.geometry.displacement_bins import BINS, bin_displacements
from image_as_imu_ros.model.compiled_front_ends import (
    DIRECTIONS,
    LEVELS,
    derivative_correlation,
    directional_structure,
)
from image_as_imu_ros.model.network import (
    CompactNetwork,
    DerivativeCorrelation,
    DirectionalStructure,
)
from image_as_imu_ros.types import CameraIntrinsics

CAMERA = CameraIntrinsics(320, 224, 250.0, 250.0, 159.5, 111.5)
LAGS_PX = [level.reduction * lag for level in LEVELS for lag in level.lags_px]


@pytest.fixture(scope='module')
def sharp():
    rng = np.random.default_rng(0)
    image = np.zeros((224, 320), np.float32)
    for _ in range(400):
        centre, radius = rng.integers((0, 0), (320, 224)).tolist(), int(rng.integers(2, 15))
        cv2.circle(image, centre, radius, float(rng.random()), -1, cv2.LINE_AA)
    return image


def blurred(image, direction, length_px):
    """As by a pan that moves the image along a direction (of DIRECTIONS), (1, 1, H, W)."""
    angle = np.pi * direction / DIRECTIONS
    turn = length_px / CAMERA.fx_px
    motion = np.array([np.sin(angle) * turn, -np.cos(angle) * turn, 0.0, 0.0, 0.0, 0.0])
    return torch.from_numpy(with_blur(image, CAMERA, motion))[None, None]


@pytest.mark.parametrize('direction', range(DIRECTIONS))
@pytest.mark.parametrize('length_px', [14, 18, 28])
def test_correlation_dips_where_the_lag_is_the_length_of_the_blur(sharp, direction, length_px):
    features = DerivativeCorrelation()(blurred(sharp, direction, length_px))
    along = features.mean(dim=(0, 2, 3)).unflatten(0, (DIRECTIONS, -1))[direction]
    lowest = LAGS_PX[int(along.argmin())]
    assert length_px / 1.45 < lowest < 1.45 * length_px
    assert along.min() < -0.04 and along[0] > 0.15


@pytest.mark.parametrize('length_px', [8, 14, 20, 30, 42])
@pytest.mark.parametrize('direction', [0, 3])
def test_matched_filter_alone_finds_length_and_direction(sharp, direction, length_px):
    correlation = DerivativeCorrelation()
    features = correlation(blurred(sharp, direction, length_px)).mean(dim=(0, 2, 3))
    score = correlation.matched_filter() @ features
    u, v = bin_displacements()[1 + int(score[1:].argmax())].tolist()
    turn = (np.arctan2(v, u) - np.pi * direction / DIRECTIONS + np.pi / 2) % np.pi - np.pi / 2
    assert abs(turn) < 0.4  # one direction of the features
    assert length_px / 1.3 < np.hypot(u, v) < 1.3 * length_px


def test_features_do_not_depend_on_brightness(sharp):
    image = 0.5 * blurred(sharp, 2, 15)
    for features in (DerivativeCorrelation(), DirectionalStructure()):
        torch.testing.assert_close(features(image + 0.4), features(image), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize('images, height, width', [(1, 224, 320), (3, 72, 104), (1, 8, 16)])
@pytest.mark.parametrize('compiled, module', [
    (directional_structure, DirectionalStructure),
    (derivative_correlation, DerivativeCorrelation)])
def test_compiled_features_are_those_of_torch(sharp, compiled, module, images, height, width):
    random = np.random.default_rng(images)
    noise = random.random((images, height, width), np.float32)
    blurs = blurred(sharp, 3, 20)[0, :, :height, :width].numpy().repeat(images, axis=0)
    for gray in (noise, blurs + 0.05 * noise, np.ascontiguousarray(noise[:, ::-1]).round()):
        found, expected = compiled(gray), module()(torch.from_numpy(gray)[:, None]).numpy()
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_network_on_the_cpu_is_given_compiled_features(sharp):
    gray = blurred(sharp, 1, 12)[..., :96, :160]
    for view in (gray, gray.flip(-1), gray.expand(2, -1, -1, -1)):
        for found, module in zip(CompactNetwork().front_ends(view),
                                 (directional_structure, derivative_correlation)):
            np.testing.assert_array_equal(found, module(view[:, 0].contiguous().numpy()))


def test_network_answers_for_each_cell_of_any_size(sharp):
    network = CompactNetwork().eval()
    for height, width in ((224, 320), (64, 72), (128, 200)):
        with torch.no_grad():
            own, votes = network(torch.from_numpy(sharp[:height, :width].copy())[None, None])
        assert own.shape == votes.shape == (1, height // 8, width // 8, BINS)
        assert torch.isfinite(own).all() and torch.isfinite(votes).all()
