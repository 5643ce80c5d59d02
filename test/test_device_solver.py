"""The solver for the device finds what the one for single images finds, and waits for nothing."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass

import cv2
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from image_as_imu_ros.config import TrainingConfig
from image_as_imu_ros.geometry.blur_solver import FINALISTS, LENGTH_RATIOS, Hills
from image_as_imu_ros.geometry.device_objective import angle, inverted
from image_as_imu_ros.geometry.motion_field import motion_field_matrix
from image_as_imu_ros.model.architectures import DeviceDistributions, open_network
from image_as_imu_ros.model.device_features import DeviceHills, FeatureTables
from image_as_imu_ros.model.device_features import hill_features as device_hill_features
from image_as_imu_ros.model.device_solver import (
    FIELDS,
    DeviceSolver,
    distinct,
    leading,
    to_solutions,
)
from image_as_imu_ros.model.length_features import hill_features
from image_as_imu_ros.model.weights import load_weights
from image_as_imu_ros.training.dataset import CropFactory

IMAGES = 24
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason='torch sees no GPU')


@dataclass(frozen=True)
class Seen:
    """Images of known cameras, and the distributions of their cells."""

    images: np.ndarray
    votes: np.ndarray
    matrices: np.ndarray

    def tensors(self, rows=slice(None), device='cpu', starts=None):
        """What `DeviceSolver` takes, of some of the images."""
        images, votes, matrices = (torch.from_numpy(array[rows]).float().to(device)
                                   for array in (self.images, self.votes, self.matrices))
        if starts is None:
            starts = np.full((len(images), 6), np.nan)
        return (images, votes, matrices, torch.from_numpy(starts).to(device),
                FeatureTables.of(*images.shape[1:], *votes.shape[1:3], device))


@pytest.fixture(scope='module')
def network():
    return load_weights('compact').network


@pytest.fixture(scope='module')
def one_by_one(network):
    return open_network(network, 'cpu', 'torch')


@pytest.fixture(scope='module')
def together(network):
    return DeviceDistributions(network, 'cpu', 'torch')


@pytest.fixture(scope='module')
def solver(network):
    return DeviceSolver(copy.deepcopy(network.critic)).requires_grad_(False)


@pytest.fixture(scope='module')
def seen(one_by_one):
    """Simulated images of drawn textures, each of another camera."""
    scenes = CropFactory(TrainingConfig(width=320, height=224), None, held_out=True)
    samples = [scenes.crop(index) for index in range(IMAGES)]
    images = np.stack([sample.gray for sample in samples]).astype(np.float32) / 255.0
    matrices = np.stack([motion_field_matrix(one_by_one.points(sample.intrinsics),
                                             sample.intrinsics) for sample in samples])
    votes = np.stack([votes for _, votes in one_by_one.observe(images)])
    return Seen(images, votes, matrices)


@pytest.fixture(scope='module')
def expected(one_by_one, seen):
    return one_by_one.solve_all(list(zip(seen.images, seen.votes)), seen.matrices,
                                [None] * IMAGES)


def difference(found, expected):
    """Of two rotations of either sign, relative."""
    found, expected = found.motion[:3], expected.motion[:3]
    return min(np.linalg.norm(found - expected), np.linalg.norm(found + expected)) \
        / np.linalg.norm(expected)


def agreeing(found, expected):
    """Pairs of solutions whose motions differ by less than 1 %."""
    return [pair for pair in zip(found, expected) if difference(*pair) < 0.01]


def same_hills(found, expected):
    """Whether both leave the same other motions open, and find them about as likely."""
    return len(found.alternatives) == len(expected.alternatives) and all(
        difference(one, other) < 0.01 and abs(one.log_posterior - other.log_posterior) < 0.5
        for one, other in zip((found, *found.alternatives), (expected, *expected.alternatives)))


def test_motions_and_covariances_are_those_of_the_solver_of_single_images(together, seen,
                                                                          expected):
    found = together.solve_all(together.observe(seen.images), seen.matrices, [None] * IMAGES)
    pairs = agreeing(found, expected)
    # measured: 23 of 24, the other a blur of 0.2 px; a last bit may lead either to stop elsewhere
    assert len(pairs) >= 0.9 * IMAGES
    # of an image that leaves other hills open, each has another likelihood too
    alike = [pair for pair in pairs if same_hills(*pair)]
    assert len(alike) >= 0.75 * len(pairs)
    for one, other in alike:
        scale = np.abs(other.covariance).max()
        np.testing.assert_allclose(one.covariance, other.covariance, atol=0.03 * scale)
        for name in FIELDS:
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=0.02, abs=0.05)


@pytest.fixture(scope='module')
def usable(seen):
    """Cells (h, w) that a bonnet and an arm leave."""
    usable = np.ones(seen.votes.shape[1:3], bool)
    usable[19:] = usable[5:, 27:32] = False
    return usable


def test_masked_cells_tell_either_solver_as_little(together, one_by_one, seen, usable):
    garbled = np.where(usable[..., None], seen.votes, seen.votes[:, ::-1, ::-1])
    tensors = [tuple(map(torch.from_numpy, output)) for output in zip(seen.images, garbled)]
    found = together.solve_all(tensors, seen.matrices, [None] * IMAGES, usable)
    expected = one_by_one.solve_all(list(zip(seen.images, seen.votes)), seen.matrices,
                                    [None] * IMAGES, usable)
    pairs = agreeing(found, expected)
    assert len(pairs) >= 0.9 * IMAGES
    for one, other in pairs:
        assert one.inlier_share == pytest.approx(other.inlier_share, abs=0.02)
        scale = np.abs(other.covariance).max()
        if same_hills(one, other):
            np.testing.assert_allclose(one.covariance, other.covariance, atol=0.03 * scale)


def test_the_critic_sees_no_masked_cells_on_either(seen, usable):
    motions = np.array([[0.02, -0.03, 0.05, 0.0, 0.01, 0.0], [0.1, 0.2, -0.1, 0.0, 0.0, 0.0]])
    hills = Hills(motions, np.array([-3.0, -4.5]), np.zeros((2, len(LENGTH_RATIOS))))
    images, votes, matrices, *_ = seen.tensors(slice(0, 1))
    tables = FeatureTables.of(*images.shape[1:], *votes.shape[1:3], 'cpu', usable.tobytes())
    found = device_hill_features(images, matrices.flatten(1, 2), DeviceHills(*(
        torch.from_numpy(each[None]) for each in dataclasses.astuple(hills))), tables)
    expected, of_all = (hill_features(seen.images[0], seen.matrices[0], hills, each)
                        for each in (usable, None))
    np.testing.assert_allclose(found[0], expected, atol=1e-3)
    assert np.abs(expected - of_all).max() > 0.01


def test_starts_are_taken_where_there_are_any(together, one_by_one, seen):
    # far from every hill, so that an image without much blur may follow
    starts = [None if index % 2 else np.array([0.3, -0.2, 0.4, 0.0, 0.05, 0.0])
              for index in range(8)]
    outputs = list(zip(seen.images[:8], seen.votes[:8]))
    tensors = [(torch.from_numpy(image), torch.from_numpy(votes)) for image, votes in outputs]
    found = together.solve_all(tensors, seen.matrices[:8], starts)
    expected = one_by_one.solve_all(outputs, seen.matrices[:8], starts)
    assert len(agreeing(found, expected)) >= 7


def test_images_of_a_batch_do_not_know_of_each_other(solver, seen):
    batch, other = (solver(*seen.tensors([0, 1, 2, 3, *company])) for company in
                    ([4, 5, 6, 7], [8, 9, 10, 11]))
    # in batches of other sizes sums of another order lead close calls to stop elsewhere
    torch.testing.assert_close(other[:4], batch[:4], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(other[4:], batch[4:], rtol=1e-2)


def test_one_matrix_does_for_images_of_one_camera(solver, seen):
    images, votes, matrices, *others = seen.tensors(slice(0, 3))
    one, same = matrices[:1], matrices[:1].expand_as(matrices).contiguous()
    torch.testing.assert_close(solver(images, votes, one, *others),
                               solver(images, votes, same, *others), rtol=1e-6, atol=1e-9)


def test_features_are_those_of_the_critic(seen):
    motions = np.array([[0.02, -0.03, 0.05, 0.0, 0.01, 0.0], [0.1, 0.2, -0.1, 0.0, 0.0, 0.0]])
    heights, rng = np.array([-3.0, -4.5]), np.random.default_rng(0)
    profiles = rng.normal(-20.0, 10.0, (2, len(LENGTH_RATIOS)))
    images, _, matrices, _, tables = seen.tensors(slice(0, 2))
    for hills in (motions, motions[0] * [[1.0], [1.1]]):  # of which the latter share derivatives
        found = device_hill_features(images, matrices.flatten(1, 2), DeviceHills(*(
            torch.from_numpy(np.stack([each, each])) for each in (hills, heights, profiles))),
            tables)
        for index in range(2):
            truth = hill_features(seen.images[index], seen.matrices[index],
                                  Hills(hills, heights, profiles))
            np.testing.assert_allclose(found[index], truth, atol=1e-3)


def test_rows_are_solved_from_what_the_device_keeps(together, one_by_one, seen):
    images, votes = torch.from_numpy(seen.images[1]), torch.from_numpy(seen.votes[1])
    starts = np.array([[0.05, 0.02, 0.0, 0.0, 0.0, 0.0]])
    found, expected = (
        architecture.solve_rows(output, seen.matrices[1], slice(50, 120), starts)[0]
        for architecture, output in ((together, (images, votes)),
                                     (one_by_one, (seen.images[1], seen.votes[1]))))
    np.testing.assert_array_equal(found.motion, expected.motion)


def test_on_a_device_nothing_comes_down_and_nothing_depends_on_values(solver, seen):
    """Torch refuses, without a GPU, what mixes devices or asks for a value of one."""
    images, votes, matrices, starts, tables = seen.tensors(slice(0, 2))
    on_gpu = copy.deepcopy(solver)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        def pretended(tensor):
            return mode.from_tensor(tensor).to('cuda')

        for module in on_gpu.modules():
            for tensors in (module._buffers, module._parameters):
                tensors.update({name: pretended(tensor) for name, tensor in tensors.items()
                                if tensor is not None})
        found = on_gpu(*map(pretended, (images, votes, matrices, starts)),
                       FeatureTables(*map(pretended, tables)))
        assert found.device.type == 'cuda' and len(found) == 2
        with pytest.raises(RuntimeError, match='device'):
            on_gpu(images, *map(pretended, (votes, matrices, starts)),
                   FeatureTables(*map(pretended, tables)))


def test_a_compiler_can_take_it_as_a_whole(solver, seen):
    whole = torch.compile(solver, backend='eager', fullgraph=True)
    torch.testing.assert_close(whole(*seen.tensors(slice(0, 2))),
                               solver(*seen.tensors(slice(0, 2))))


def test_angles_are_those_of_opencv():
    x, y = np.random.default_rng(0).normal(0.0, 9.0, (2, 1000)).astype(np.float32)
    x[:30], y[20:50] = 0.0, 0.0
    _, expected = cv2.cartToPolar(x, y, angleInDegrees=True)
    found = angle(torch.from_numpy(x), torch.from_numpy(y))
    np.testing.assert_allclose(found, expected.ravel(), atol=1e-3)


def test_hills_are_apart_and_may_be_fewer():
    turns = torch.tensor([[1.0, 0.0, 0.0], [-1.05, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.double)
    motions = torch.nn.functional.pad(torch.stack([turns, turns[[0, 1, 1]]]), (0, 3))
    found, exist = distinct(motions, torch.tensor([[2.0, 3.0, 1.0]] * 2))
    assert found.shape == (2, FINALISTS, 6)
    assert exist.tolist() == [[True, True], [True, False]]
    torch.testing.assert_close(found[0], motions[0, 1:])


def test_inverses_and_leading_eigenvectors_are_those_of_torch():
    random = torch.randn(50, 6, 9, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    definite = random @ random.mT
    torch.testing.assert_close(inverted(definite), torch.linalg.inv(definite))
    symmetric = definite[:, :3, :3] - 6.0 * torch.eye(3, dtype=torch.double)
    values, vectors = torch.linalg.eigh(symmetric)
    found, largest = leading(symmetric), values[:, -1].clamp(min=0.0)
    torch.testing.assert_close(found[:, :, None] * found[:, None],
                               largest[:, None, None] * vectors[:, :, -1:] @ vectors[:, :, -1:].mT)


@pytest.mark.gpu
@NO_GPU
def test_a_gpu_finds_what_the_cpu_finds(solver, seen, expected):
    """Run: python -m pytest -m gpu test/test_device_solver.py."""
    on_gpu = copy.deepcopy(solver).to('cuda')
    found, on_cpu = (
        to_solutions(each(*seen.tensors(device=device)).cpu().numpy(), np.ones(6))
        for each, device in ((on_gpu, 'cuda'), (solver, 'cpu')))
    assert len(agreeing(found, on_cpu)) >= 0.9 * IMAGES


@pytest.mark.gpu
@NO_GPU
def test_a_gpu_is_never_waited_for(solver, seen):
    """Run: python -m pytest -m gpu test/test_device_solver.py."""
    on_gpu, tensors = copy.deepcopy(solver).to('cuda'), seen.tensors(device='cuda')
    on_gpu(*tensors)  # torch's libraries wait when they start
    torch.cuda.set_sync_debug_mode('error')
    try:
        found = on_gpu(*tensors)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert found.isfinite()[:, 0].all()
