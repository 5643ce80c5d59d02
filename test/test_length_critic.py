"""The critic knows the length of a blur once the solver knows where the motion goes."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from image_as_imu_ros.cli.main import main
from image_as_imu_ros.geometry.alignment import with_blur
from image_as_imu_ros.geometry.blur_solver import (
    CHOICES,
    LENGTH_RATIOS,
    BlurSolution,
    Hills,
    solve_blur,
)
from image_as_imu_ros.geometry.displacement_bins import BINS, STRIDE_PX
from image_as_imu_ros.geometry.motion_field import motion_field_matrix, pixel_grid
from image_as_imu_ros.model.length_critic import Correlation, LengthCritic
from image_as_imu_ros.model.length_features import hill_features
from image_as_imu_ros.model.steered_derivatives import (
    NOISE_ENERGY,
    STEERED,
    SteeredDerivatives,
    nearest_of_half,
)
from image_as_imu_ros.model.weights import load_weights, read_tensors
from image_as_imu_ros.model.weights_files import SHIPPED
from image_as_imu_ros.training.fit_critic import NOT_A_HILL, critic_loss, median_error
from image_as_imu_ros.types import CameraIntrinsics

CAMERA = CameraIntrinsics(320, 224, 250.0, 250.0, 159.5, 111.5)
CELLS = pixel_grid(320, 224, STRIDE_PX)
MATRIX = motion_field_matrix(CELLS, CAMERA)
MOTIONS = [[0.06, 0.0, 0.0, 0.0, 0.0, 0.0], [0.05, -0.06, 0.0, 0.0, 0.0, 0.0],
           [0.03, 0.05, 0.3, 0.0, 0.0, 0.0]]


@pytest.fixture(scope='module')
def sharp():
    rng = np.random.default_rng(3)
    image = np.full((224, 320), 0.5, np.float32)
    for _ in range(900):
        centre, radius = rng.integers((0, 0), (320, 224)).tolist(), int(rng.integers(1, 12))
        cv2.circle(image, centre, radius, float(rng.random()), -1, cv2.LINE_AA)
    return image


def steered_correlations(image, flow_px):
    derivatives = SteeredDerivatives(image, float(np.median(np.linalg.norm(flow_px, axis=1))))
    return derivatives.correlations(CELLS.reshape(-1, 2), flow_px, LENGTH_RATIOS)


@pytest.mark.parametrize('motion', MOTIONS)
def test_derivatives_correlate_least_at_the_length_of_the_blur(sharp, motion):
    image = with_blur(sharp, CAMERA, np.array(motion))
    flow_px = (MATRIX @ motion).reshape(-1, 2)
    channels = steered_correlations(image, flow_px)
    assert channels.shape == (STEERED, len(LENGTH_RATIOS)) and np.isfinite(channels).all()
    assert LENGTH_RATIOS[channels[0].argmin()] == pytest.approx(1.0, abs=0.2)
    half = steered_correlations(image, flow_px / 2)
    assert LENGTH_RATIOS[half[0].argmin()] == pytest.approx(2.0, abs=0.3)


def test_both_signs_of_a_motion_look_the_same(sharp):
    image = with_blur(sharp, CAMERA, np.array(MOTIONS[1]))
    flow_px = (MATRIX @ MOTIONS[1]).reshape(-1, 2)
    forward, backward = (steered_correlations(image, sign * flow_px)
                         for sign in (1, -1))
    np.testing.assert_allclose(forward, backward, atol=1e-4)


def test_ends_beyond_the_image_are_not_looked_at(sharp):
    derivatives = SteeredDerivatives(sharp, 20.0)
    corner_px, middle_px = np.array([[4.0, 4.0]]), np.array([[160.0, 112.0]])
    flow_px = np.array([[20.0, 0.0]])
    shown, whole = (derivatives.correlations(where, flow_px, LENGTH_RATIOS)
                    for where in (corner_px, middle_px))
    fit = LENGTH_RATIOS * 10.0 <= 4.0
    np.testing.assert_array_equal(shown[-1], 1.0 + fit)
    np.testing.assert_array_equal(whole[-1], 2.0)
    assert not shown[:-1, ~fit].any() and whole[1:-1].any(axis=0).all()


def test_compiled_loops_are_the_plain_formula(sharp):
    """One lag of a few points that see all of it, written out with exact bilinear weights."""
    typical_px, ratio = 12.0, 0.7
    centres_px = np.array([[60.5, 50.25], [160.0, 112.0], [250.0, 80.0]])
    flow_px = np.array([[8.0, 5.0], [-3.0, 11.0], [12.0, -1.0]])
    smooth = cv2.GaussianBlur(sharp, (0, 0), 1.2).astype(float)
    gy, gx = (cv2.Sobel(smooth, -1, *order, ksize=3, scale=0.125) for order in ((0, 1), (1, 0)))
    gxx, gxy, gyy = (cv2.Sobel(of, -1, *order, ksize=3, scale=0.125)
                     for of, order in ((gx, (1, 0)), (gx, (0, 1)), (gy, (0, 1))))
    energies = [cv2.blur(energy.reshape(112, 2, 160, 2).mean(axis=(1, 3)), (7, 7)) for energy in
                (gx ** 2 + gy ** 2, gxx ** 2 + 2 * gxy ** 2 + gyy ** 2)]

    def at(x, y):
        column, row = int(x), int(y)
        weights = np.outer([1 + row - y, y - row], [1 + column - x, x - column])
        return [(of[row:row + 2, column:column + 2] * weights).sum()
                for of in (gx, gy, gxy, 0.5 * (gyy - gxx))]

    products, powers, relative = np.zeros((3, 3)), np.zeros((3, 3)), np.zeros((3, 3))
    for point, (centre, flow) in enumerate(zip(centres_px, flow_px)):
        angle = np.arctan2(flow[1], flow[0])
        ends = []
        for side in (1, -1):
            first_x, first_y, mixed, difference = at(*(centre + side * ratio / 2 * flow))
            ends.append([np.cos(angle) * first_x + np.sin(angle) * first_y,
                         np.cos(angle) * first_y - np.sin(angle) * first_x,
                         np.cos(2 * angle) * mixed + np.sin(2 * angle) * difference])
        products[:, point] = np.prod(ends, axis=0)
        powers[:, point] = np.mean(np.square(ends), axis=0)
        column, row = nearest_of_half(centre)
        relative[:, point] = [1 / (energies[kind][row, column] + NOISE_ENERGY)
                              for kind in (0, 0, 1)]
    expected = np.stack([products.sum(axis=1) / (powers.sum(axis=1) + 4e-9),
                         (relative * products).sum(axis=1) / 4,
                         (relative * powers).sum(axis=1) / 4], axis=1).ravel()
    found = SteeredDerivatives(sharp, typical_px).correlations(
        centres_px, flow_px, np.array([ratio], np.float32))
    np.testing.assert_allclose(found[:, 0], [*expected, 4 / 3], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('flow', [np.nan, np.inf, 1e30])
def test_nothing_is_seen_along_a_flow_that_leads_nowhere(sharp, flow):
    found = SteeredDerivatives(sharp, 12.0).correlations(
        np.array([[160.0, 112.0]]), np.array([[flow, 1.0]]), LENGTH_RATIOS)
    np.testing.assert_array_equal(found[-1], 1.0)


def test_correlation_is_the_convolution_that_weights_are_kept_for():
    torch.manual_seed(0)
    ours, plain = Correlation(5, 7, 9), torch.nn.Conv1d(5, 7, 9, padding=4)
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(2, 5, 32)
    torch.testing.assert_close(ours(x), plain(x))


@pytest.mark.parametrize('hills', [1, 2, 3])
def test_traced_critic_judges_any_number_of_hills_alike(hills):
    torch.manual_seed(0)
    critic = LengthCritic().eval()
    features = torch.rand(1, hills, critic.scale.num_features, len(LENGTH_RATIOS))
    with torch.no_grad():
        torch.testing.assert_close(critic.traced()(features), critic(features))


@pytest.mark.parametrize('error', [0.5, 0.7, 1.5, 2.0])
@pytest.mark.parametrize('motion', MOTIONS)
def test_shipped_critic_mends_hills_of_the_wrong_length(sharp, motion, error):
    image = with_blur(sharp, CAMERA, np.array(motion))
    hills = Hills(error * np.array([motion]), np.zeros(1), np.zeros((1, len(LENGTH_RATIOS))))
    features = torch.from_numpy(hill_features(image, MATRIX, hills))
    with torch.no_grad():
        logits = load_weights('compact').network.critic(features[None])[0, 0]
    chosen = LENGTH_RATIOS[CHOICES][int(logits.argmax())]
    assert chosen * error == pytest.approx(1.0, abs=0.2)


def test_solver_takes_the_length_that_the_judge_chooses():
    rng = np.random.default_rng(0)
    noise = rng.normal(0.0, 0.1, (*MATRIX.shape[:2], BINS)).astype(np.float32)
    logs = np.log(np.exp(noise) / np.exp(noise).sum(axis=-1, keepdims=True))
    seen = []

    def judge(hills):
        seen.append(hills)
        scores = np.full((len(hills.motions), len(LENGTH_RATIOS[CHOICES])), -20.0)
        scores[-1, 3:6] = -1.5, -1.0, -1.5
        scores[0, 20] = -4.0
        return scores

    plain, judged = solve_blur(logs, MATRIX), solve_blur(logs, MATRIX, judge=judge)
    np.testing.assert_allclose(seen[0].motions[0], plain.motion)
    ratio = np.linalg.norm(judged.motion) / np.linalg.norm(seen[0].motions[-1])
    assert ratio == pytest.approx(LENGTH_RATIOS[CHOICES][4], rel=0.01)
    second = np.linalg.norm(judged.alternatives[0].motion) / np.linalg.norm(plain.motion)
    assert second == pytest.approx(LENGTH_RATIOS[CHOICES][20], rel=0.01)
    assert judged.log_posterior > judged.alternatives[0].log_posterior


def test_hill_at_rest_is_judged_too(sharp):
    motions = np.array([MOTIONS[0], [0.0] * 6])
    hills = Hills(motions, np.zeros(2), np.zeros((2, len(LENGTH_RATIOS))))
    assert np.isfinite(hill_features(sharp, MATRIX, hills)).all()


def test_fit_learns_which_hill_is_right():
    torch.manual_seed(0)
    rng = np.random.default_rng(1)
    critic = LengthCritic()
    channels = critic.scale.num_features
    features = rng.normal(0.0, 0.1, (64, 3, channels, len(LENGTH_RATIOS))).astype(np.float32)
    errors = np.full((64, 3, len(LENGTH_RATIOS[CHOICES])), 1.0, np.float32)
    errors[:, 2] = NOT_A_HILL
    hill, choice = rng.integers(0, 2, 64), rng.integers(0, errors.shape[2], 64)
    errors[np.arange(64), hill, choice] = 0.0
    features[np.arange(64), hill, 0, choice + CHOICES.start] -= 2.0  # the dip
    features, errors = torch.from_numpy(features), torch.from_numpy(errors)
    assert median_error(critic.eval(), features, errors) == 1.0
    optimizer = torch.optim.AdamW(critic.train().parameters(), 3e-3)
    for _ in range(150):
        loss = critic_loss(critic(features), errors)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5 and median_error(critic.eval(), features, errors) == 0.0


def test_verb_writes_weights_that_can_be_read(tmp_path, sharp, capsys):
    for index in range(2):  # every eighth is held out
        cv2.imwrite(str(tmp_path / f'{index}.png'), cv2.resize(255 * sharp, None, fx=2, fy=2))
    output = tmp_path / 'fitted.safetensors'
    assert main(['weights', 'fit-critic', str(SHIPPED / 'compact.safetensors'), str(output),
                 '--assets', str(tmp_path), '--images', '5']) == 0
    assert 'median' in capsys.readouterr().out
    tensors, metadata = read_tensors(output)
    before, _ = read_tensors(SHIPPED / 'compact.safetensors')
    assert metadata['critic_images'] == '5'
    assert not torch.equal(tensors['critic.length_prior'], before['critic.length_prior'])
    torch.testing.assert_close(tensors['template.weight'], before['template.weight'])


def test_average_of_two_lengths_lies_between_them_and_says_so():
    def solution(length, height):
        return BlurSolution(length * np.array([0.1, 0.0, 0.0, 0.0, 0.0, 0.0]), 1e-6 * np.eye(6),
                            -1.0, 1.0, 1.0, 20.0, log_posterior=height)

    close_call = replace(solution(1.0, 0.0), alternatives=(solution(-2.0, -np.log(3.0)),))
    averaged = close_call.averaged()
    assert averaged.motion[0] == pytest.approx(0.125)  # signs mean nothing
    assert averaged.covariance[0, 0] == pytest.approx(3 / 16 * 0.1 ** 2 + 1e-6)
    clear = replace(solution(1.0, 0.0), alternatives=(solution(2.0, -30.0),)).averaged()
    assert clear.motion[0] == pytest.approx(0.1)
    assert clear.covariance[0, 0] == pytest.approx(1e-6, rel=0.01)
