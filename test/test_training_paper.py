"""The paper's stages: what the network is taught, by which data, and recordings' labels."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import torchrun
from safetensors.torch import load_file
from torch import nn

from image_as_imu_ros.cli.main import main
from image_as_imu_ros.cli.train import RECIPES
from image_as_imu_ros.config import TrainingConfig, load
from image_as_imu_ros.errors import ConfigError, DataFormatError, WeightsError
from image_as_imu_ros.evaluation.sources.strayscanner import R_GYRO_CAMERA
from image_as_imu_ros.geometry.flow_solver import sample_pixels, solve_flow
from image_as_imu_ros.geometry.motion_field import motion_field_matrix
from image_as_imu_ros.model import reference
from image_as_imu_ros.model.architectures import Reference, build_network
from image_as_imu_ros.model.weights import export_weights
from image_as_imu_ros.training import dataset
from image_as_imu_ros.training.checkpoint import read_checkpoint, start_from
from image_as_imu_ros.training.dataset import (
    MAX_MEAN_FLOW_PX,
    CropBatches,
    DenseFactory,
    LabelledFactory,
)
from image_as_imu_ros.training.losses import pose_loss, resigned, solve_pose
from image_as_imu_ros.training.objectives import DenseObjective
from image_as_imu_ros.training.pseudo_labels import DenseSample, read_label
from image_as_imu_ros.training.train import train
from image_as_imu_ros.types import CameraIntrinsics

CAMERA = CameraIntrinsics(96, 72, 80.0, 80.0, 47.5, 35.5)
SMALL = {'architecture': 'reference', 'width': 96, 'height': 64, 'batch': 2, 'workers': 0,
         'validation': 1, 'ema_crops': 1.0, 'procedural': 1.0, 'checkpoint_minutes': 1000.0}
FEW_CHANNELS = {'WIDTHS': (8, 8, 16, 16), 'DEPTHS': (1, 2, 1, 1), 'HAM_CHANNELS': 16}
TURN_RAD_S = np.array([1.0, -2.0, 3.0])
"""Of the recording, in camera axes."""


@pytest.fixture(scope='module', autouse=True)
def small_network():
    """The reference network with few channels, whose checkpoints are not half a gigabyte."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in FEW_CHANNELS.items():
            patch.setattr(reference, name, value)
        yield
    cv2.setNumThreads(-1)


@pytest.fixture(scope='module')
def network():
    torch.manual_seed(0)
    return build_network('reference').eval()


@pytest.fixture(scope='module')
def weights_file(network, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('weights') / 'reference.safetensors'
    export_weights(network.state_dict(), path, {'architecture': 'reference'})
    return path


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """StrayScanner folder of five small images that turns and moves steadily."""
    folder = tmp_path / 'stray'
    (folder / 'rgb').mkdir(parents=True)
    np.savetxt(folder / 'camera_matrix.csv', CAMERA.matrix, delimiter=', ')
    (folder / 'odometry.csv').write_text(
        'timestamp, frame, x, y, z, qx, qy, qz, qw, exposure\n' + ''.join(
            f'{100 + row / 30:.9f}, {row:06d}, {0.03 * row}, 0, 0, 0, 0, 0, 1, 0.02\n'
            for row in range(6)))
    turn = ', '.join(f'{rate:.3f}' for rate in R_GYRO_CAMERA @ TURN_RAD_S)
    (folder / 'imu.csv').write_text(
        'timestamp, a_x, a_y, a_z, alpha_x, alpha_y, alpha_z\n' + ''.join(
            f'{99.9 + k / 100:.9f}, 0.0, 0.0, 9.8, {turn}\n' for k in range(60)))
    random = np.random.default_rng(0)
    for image in range(5):
        small = random.integers(0, 256, (9, 12, 3), np.uint8)
        cv2.imwrite(str(folder / 'rgb' / f'{image:06d}.png'), cv2.resize(small, (96, 72)))
    return folder


def field_of(matrix: np.ndarray, depth_m: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """Flow (N, 2) of the motion (w T, v T) at pixels of the given depth, (N,)."""
    turn = np.tile(motion[:3], (len(depth_m), 1))
    return np.einsum('nij,nj->ni', matrix, np.hstack([turn, motion[3:] / depth_m[:, None]]))


def test_pose_is_that_of_the_solver_in_use_and_can_be_differentiated():
    random = np.random.default_rng(2)
    pixels = sample_pixels(96, 72)
    matrix = motion_field_matrix(pixels, CAMERA)
    depth_m = random.uniform(1.0, 4.0, len(pixels))
    motions = random.normal(0.0, 0.05, (2, 6))
    exact = np.stack([field_of(matrix, depth_m, motion) for motion in motions])
    noisy = exact + random.normal(0.0, 0.5, exact.shape)
    many = torch.from_numpy(np.stack([depth_m] * 2)), torch.from_numpy(np.stack([matrix] * 2))
    np.testing.assert_allclose(solve_pose(torch.from_numpy(exact), *many), motions, atol=1e-5)
    expected = [solve_flow(flow, depth_m, matrix) for flow in noisy]
    np.testing.assert_allclose(
        solve_pose(torch.from_numpy(noisy), *many),
        [s.motion * ([1.0] * 3 + [s.depth_m] * 3) for s in expected], atol=1e-5)
    flow = torch.from_numpy(noisy[:1, :40]).requires_grad_()
    depth = torch.from_numpy(depth_m[None, :40]).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda flow, depth: solve_pose(flow, depth, many[1][:1, :40]).double(), (flow, depth),
        eps=1e-3, atol=1e-3, rtol=1e-2)


def test_pixels_of_impossible_depth_do_not_count_in_the_pose():
    pixels = sample_pixels(96, 72)
    matrix = motion_field_matrix(pixels, CAMERA)
    motion, depth_m = np.array([0.05, 0.0, 0.1, 0.02, 0.0, 0.0]), np.full(len(pixels), 2.0)
    flow = field_of(matrix, depth_m, motion)
    flow[::3], depth_m[::3] = 50.0, np.inf
    batch = [torch.from_numpy(array)[None] for array in (flow, depth_m, matrix)]
    np.testing.assert_allclose(solve_pose(*batch)[0], motion, atol=1e-5)
    hopeless = solve_pose(batch[0], torch.full_like(batch[1], torch.inf), batch[2])
    assert torch.isfinite(hopeless).all()


def test_truth_takes_the_side_of_each_prediction_and_unknowns_cost_nothing():
    truth = torch.tensor([[1.0, -2.0], [3.0, torch.nan]])
    turned = resigned(truth, torch.tensor([[-1.0, 1.0], [1.0, -9.0]]))
    assert torch.equal(turned[0], -truth[0]) and turned[1, 0] == 3.0
    truth = torch.tensor([[1.0, 2.0, 2.0, 0.0, 0.0, 2.0], [0.0, 0.0, 3.0, *[torch.nan] * 3]])
    loss = pose_loss(torch.zeros(2, 6), truth)
    assert loss.item() == pytest.approx((9 + 9) / 6 + 10 * 4 / 3)


def test_synthetic_flow_depth_and_motion_agree():
    factory = DenseFactory(TrainingConfig(**SMALL), None, held_out=True)
    for index in range(6):
        sample = factory.crop(index)
        assert sample.rgb.shape == (64, 96, 3) and sample.depth_m.shape == (64, 96)
        pixels = sample_pixels(96, 64)
        x, y = pixels.T
        depth_m = sample.depth_m[y, x]
        flow = field_of(motion_field_matrix(pixels, sample.intrinsics), depth_m, sample.motion)
        np.testing.assert_allclose(sample.flow_px[:, y, x].T, flow, atol=1e-2)
        assert np.linalg.norm(sample.flow_px, axis=0).mean() < 1.3 * MAX_MEAN_FLOW_PX
        assert 0.1 < depth_m.min() and depth_m.max() < 130.0


def test_recorded_images_are_retaken_as_the_paper_augments(tmp_path, monkeypatch):
    rgb = cv2.resize(np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8), (96, 64))
    sample = DenseSample(rgb, np.zeros((2, 64, 96)), np.ones((64, 96)), np.zeros(6), CAMERA)
    monkeypatch.setattr(dataset, 'label_files', lambda folder: [tmp_path / 'one'] * 8)
    monkeypatch.setattr(dataset, 'read_label', lambda path: sample)
    config = TrainingConfig(**SMALL)
    factory = LabelledFactory(config, (tmp_path,), held_out=False)
    changed = [factory.crop(index).rgb for index in range(40)]
    assert all(image.shape == rgb.shape and image.dtype == np.uint8 for image in changed)
    # brightness, noise or colour always change, what is shown does not
    assert not any(np.array_equal(image, rgb) for image in changed)
    assert min(np.corrcoef(image.mean(-1).ravel(), rgb.mean(-1).ravel())[0, 1]
               for image in changed) > 0.8
    means = [image.mean() for image in changed]
    assert 0.8 * rgb.mean() < min(means) < rgb.mean() < max(means) < 1.2 * rgb.mean()
    grays = sum(bool((np.ptp(image.astype(int), axis=-1) < 3).all()) for image in changed)
    assert 2 <= grays <= 16
    np.testing.assert_array_equal(changed[3], factory.crop(3).rgb)
    held_out = LabelledFactory(config, (tmp_path,), held_out=True)
    np.testing.assert_array_equal(held_out.crop(0).rgb, rgb)


class Fields(nn.Module):
    """Flow and depth of one batch as parameters, to see where the losses lead."""

    def __init__(self, flow: torch.Tensor, depth: torch.Tensor) -> None:
        super().__init__()
        self.flow, self.depth = nn.Parameter(flow), nn.Parameter(depth)

    def forward(self, rgb: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the parameters."""
        return self.flow, self.depth


@pytest.mark.parametrize('stage, parts', [
    ('paper_stage1', {'flow', 'depth'}), ('paper_stage2', {'flow', 'depth', 'pose'}),
    ('paper_stage3', {'flow', 'depth', 'pose'})])
def test_losses_of_each_stage_vanish_at_the_truth_of_either_sign(stage, parts):
    objective = DenseObjective(load(TrainingConfig, RECIPES / f'{stage}.yaml'))
    factory = DenseFactory(TrainingConfig(**SMALL), None, held_out=True)
    batch = factory.collate([factory.crop(index) for index in range(2)])
    true_flow, true_depth = batch[1:3]
    signs = torch.tensor([1.0, -1.0])[:, None, None, None]
    at_truth = objective.losses(Fields(signs * true_flow, true_depth), batch, seed=0)
    assert set(at_truth) == parts
    assert at_truth['flow'] + at_truth['depth'] < 1e-6
    assert at_truth.get('pose', 0.0) <= 1e-6 * objective.config.pose_weight
    off = objective.losses(Fields(signs * true_flow + 2.0, true_depth + 3.0), batch, seed=0)
    assert off['flow'].item() == pytest.approx(2e-4, rel=1e-3)
    assert off['depth'].item() == pytest.approx(3e-3, rel=1e-3)
    if 'pose' in parts:
        turn = objective.losses(Fields(1.5 * true_flow, true_depth), batch, seed=0)['pose']
        rotation, translation = (0.5 * batch[3]).square().split(3, dim=1)
        expected = objective.config.pose_weight * (rotation.mean() + 10 * translation.mean())
        assert turn.item() == pytest.approx(expected.item(), rel=0.05)


def test_pose_loss_alone_leads_to_the_motion():
    config = TrainingConfig(**SMALL, flow_weight=0.0, depth_weight=0.0, pose_weight=1000.0)
    factory = DenseFactory(config, None, held_out=True)
    batch = factory.collate([factory.crop(index) for index in (4, 5)])
    torch.manual_seed(0)
    fields = Fields(torch.randn(batch[1].shape), batch[2])
    optimizer = torch.optim.Adam([fields.flow], lr=0.1)
    losses = []
    for _ in range(200):
        loss = DenseObjective(config).losses(fields, batch, seed=0)['pose']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    at_rest = DenseObjective(config).losses(Fields(0 * batch[1], batch[2]), batch, seed=0)['pose']
    assert losses[-1] < 0.03 * losses[0] and losses[-1] < 0.2 * at_rest


def test_recipes_are_the_papers():
    stages = [load(TrainingConfig, RECIPES / f'paper_stage{number}.yaml') for number in (1, 2, 3)]
    assert {stage.architecture for stage in stages} == {'reference'}
    assert [stage.pose_weight for stage in stages] == [0.0, 1000.0, 1.0]
    assert [(s.flow_weight, s.depth_weight) for s in stages] == [(1e-4, 1e-3)] * 3
    assert [stage.batch for stage in stages] == [32, 8, 8]
    assert [stage.learning_rate for stage in stages] == [1e-4, 1e-5, 1e-5]
    assert stages[0].schedule == 'one-cycle' and stages[2].epochs == 20
    assert [(s.warmup, s.decay) for s in stages[1:]] == [(0.0, 0.0)] * 2
    assert {stage.gradient_norm for stage in stages} == {1.0}


def test_recording_is_labelled_once_and_trains_the_third_stage(recording, weights_file, tmp_path,
                                                               capsys):
    labels = tmp_path / 'labels'
    command = ['pseudo-labels', str(recording), str(labels), '--image-size', 'full', '--weights',
               str(weights_file)]
    assert main(command) == 0
    assert '5 labelled images of 5' in capsys.readouterr().out
    sample = read_label(labels / '0_000002.npz')
    np.testing.assert_allclose(sample.motion[:3], 0.02 * TURN_RAD_S, atol=1e-6)
    np.testing.assert_allclose(sample.motion[3:], [0.02 * 0.9, 0, 0], atol=1e-6)
    assert np.isnan(read_label(labels / '0_000000.npz').motion[3:]).all()
    assert sample.intrinsics == CAMERA and sample.rgb.shape == (72, 96, 3)
    original = cv2.imread(str(recording / 'rgb' / '000002.png'))[..., ::-1]
    np.testing.assert_array_equal(sample.rgb, original)

    # an interrupted run goes on with what is missing
    kept = (labels / '0_000001.npz').stat().st_mtime_ns
    (labels / '0_000003.npz').unlink()
    assert main(command) == 0
    assert '5 labelled' in capsys.readouterr().out
    assert (labels / '0_000001.npz').stat().st_mtime_ns == kept
    assert not list(labels.glob('.*'))

    # four images to train on, one to validate, each once a pass
    config = load(TrainingConfig, RECIPES / 'paper_stage3.yaml', (
        'batch=2', 'epochs=1', 'workers=0', f'initial={weights_file}', 'learning_rate=0'))
    assert len(LabelledFactory(config, (labels,), held_out=False)) == 4
    score = train(config, tmp_path / 'run', labels=(labels,))
    state = read_checkpoint(tmp_path / 'run' / 'checkpoint.pt', 'reference')
    assert state['crops'] == 4 and np.isfinite(score.loss)
    assert state['config']['crops'] == 4
    name = 'll_enc.conv1.conv.weight'  # the rate was zero, so that it stays as it was
    torch.testing.assert_close(state['network'][name], load_file(weights_file)[name].float())

    (labels / 'labels.json').write_text(json.dumps({'weights_sha256': '0'}))
    assert main(command) == 1
    assert 'other weights' in capsys.readouterr().err


RUN_SMALL = f"""
import sys
from image_as_imu_ros.model import reference
for name, value in {FEW_CHANNELS!r}.items():
    setattr(reference, name, value)
from image_as_imu_ros.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_labels_are_the_same_in_batches_and_by_processes(recording, weights_file, tmp_path,
                                                         capsys):
    other, script = tmp_path / 'other', tmp_path / 'small.py'
    shutil.copytree(recording, other)
    (other / 'rgb' / '000001.png').write_bytes(b'')
    script.write_text(RUN_SMALL)

    def command(name: str) -> list[str]:
        return ['pseudo-labels', str(recording), str(other), str(tmp_path / name), '--image-size',
                'full', '--weights', str(weights_file)]

    assert main(command('one')) == 0
    assert '4 labelled images of 5 in' in capsys.readouterr().out
    assert main([*command('batch'), '--batch', '4']) == 0
    result = torchrun(script, *command('two'))
    assert result.returncode == 0, result.stderr
    assert result.stdout.count('labelled images of 5') == 2
    files = sorted(path.relative_to(tmp_path / 'one') for path in (tmp_path / 'one').rglob('*.*'))
    assert len(files) == 9 + 2  # labels, and what they were made of
    for name in ('two', 'batch'):
        assert sorted(path.relative_to(tmp_path / name)
                      for path in (tmp_path / name).rglob('*.*')) == files
    for file in files:
        expected = tmp_path / 'one' / file
        assert (tmp_path / 'two' / file).read_bytes() == expected.read_bytes()
        if file.suffix == '.npz':
            with np.load(tmp_path / 'batch' / file) as found, np.load(expected) as alone:
                for name in alone:  # batches may change last bits, of float16 then
                    np.testing.assert_allclose(found[name], alone[name], rtol=2e-3, atol=1e-5)


def test_images_seen_together_have_the_same_flow_and_depth(network):
    images = np.random.default_rng(0).random((3, 64, 96, 3), np.float32)
    seen = Reference(network, 'cpu')
    for image, (flow_px, depth_m) in zip(images, seen.observe(list(images))):
        (alone_px, alone_m), = seen.observe([image])
        np.testing.assert_allclose(flow_px, alone_px, atol=1e-5)
        np.testing.assert_allclose(depth_m, alone_m, rtol=1e-5)
        assert flow_px.shape == (*depth_m.shape, 2)


def test_each_pass_over_the_labels_has_every_image_in_another_order(tmp_path):
    for index in range(9):
        (tmp_path / f'0_{index:06d}.npz').touch()
    factory = LabelledFactory(TrainingConfig(**SMALL), (tmp_path,), held_out=False)
    held_out = LabelledFactory(TrainingConfig(**SMALL), (tmp_path,), held_out=True)
    orders = [tuple(factory.order(epoch)) for epoch in range(3)]
    assert len(set(orders)) == 3
    assert all(sorted(order) == list(range(8)) for order in orders)
    assert [path.name for path in held_out.files] == ['0_000008.npz']
    with pytest.raises(DataFormatError, match='cannot read label .*0_000008.npz'):
        held_out.crop(0)


def test_labels_of_a_network_without_depth_are_refused(recording, tmp_path, capsys):
    assert main(['pseudo-labels', str(recording), str(tmp_path / 'out'), '--weights',
                 str(Path(__file__).parents[1] / 'image_as_imu_ros' / 'model' / 'shipped'
                     / 'compact.safetensors')]) == 1
    assert 'pseudo labels need "reference"' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('changes, labels, message', [
    ({'epochs': 2}, (), 'epochs: synthetic images have no end'),
    ({'architecture': 'compact-2'}, ('somewhere',), 'teach the reference network')])
def test_settings_that_do_not_fit_the_data_are_refused(tmp_path, changes, labels, message):
    config = TrainingConfig(**{**SMALL, **changes})
    with pytest.raises(ConfigError, match=message):
        train(config, tmp_path / 'run', labels=tuple(map(Path, labels)))
    assert not (tmp_path / 'run').exists()


def test_first_stage_starts_from_an_encoder_and_the_second_from_the_first(network, tmp_path):
    encoder = {**network.backbone.state_dict(), 'head.weight': torch.zeros(1000, 16)}
    torch.save({'state_dict': encoder}, tmp_path / 'mscan_b.pth')
    config = TrainingConfig(**{**SMALL, 'crops': 2, 'initial': str(tmp_path / 'mscan_b.pth')},
                            learning_rate=0.0)
    train(config, tmp_path / 'first')
    first = read_checkpoint(tmp_path / 'first' / 'checkpoint.pt')['average']
    name = 'backbone.block2.1.mlp.fc1.weight'
    torch.testing.assert_close(first[name], network.state_dict()[name])
    decoder = 'flow_decoder.linear_pred_flow.weight'
    assert not torch.equal(first[decoder], network.state_dict()[decoder])

    again = build_network('reference')
    start_from(again, tmp_path / 'first' / 'checkpoint.pt')
    torch.testing.assert_close(again.state_dict()[decoder], first[decoder])
    del encoder['norm3.weight']
    torch.save(encoder, tmp_path / 'mscan_b.pth')
    with pytest.raises(WeightsError, match='does not fit the encoder.*norm3.weight'):
        start_from(again, tmp_path / 'mscan_b.pth')


def test_dense_batches_fit_the_network_and_its_pictures(network):
    config = TrainingConfig(**SMALL, crops=2)
    (batch,) = CropBatches(config, None, start=0)
    assert [tuple(tensor.shape) for tensor in batch] == [
        (2, 3, 64, 96), (2, 2, 64, 96), (2, 64, 96), (2, 6), (2, len(sample_pixels(96, 64)), 2, 6)]
    with torch.no_grad():
        picture = DenseObjective(config).picture(network, batch)
    assert picture.shape == (3, 2 * 64, 5 * 96) and 0.0 <= picture.min() and picture.max() <= 1.0
    truth = picture[:, :, 2 * 96:3 * 96]
    assert truth.max() > 0.05
