"""Training learns, is reproducible, and goes on after an interruption as if uninterrupted."""

import csv
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from conftest import torchrun

from image_as_imu_ros.cli.main import main
from image_as_imu_ros.config import TrainingConfig
from image_as_imu_ros.errors import ConfigError, WeightsError
from image_as_imu_ros.geometry.displacement_bins import BINS, bin_displacements, interpolation
from image_as_imu_ros.geometry.motion_field import motion_field_matrix, pixel_grid
from image_as_imu_ros.model.network import CompactNetwork
from image_as_imu_ros.model.reference import ReferenceNetwork
from image_as_imu_ros.model.weights import export_weights, load_weights
from image_as_imu_ros.training import dataset
from image_as_imu_ros.training import train as training
from image_as_imu_ros.training.checkpoint import (
    read_checkpoint,
    start_from_teacher,
    write_checkpoint,
)
from image_as_imu_ros.training.dataset import CropBatches, CropFactory
from image_as_imu_ros.training.losses import (
    RIVALS,
    distribution_loss,
    motion_loss,
    rival_motions,
    teaching_loss,
)
from image_as_imu_ros.training.objectives import objective_for
from image_as_imu_ros.training.pictures import double_angle, flow_picture
from image_as_imu_ros.training.train import learning_rate, train
from image_as_imu_ros.types import CameraIntrinsics

CHECKOUT = Path(__file__).resolve().parents[1]
TINY = {'width': 64, 'height': 64, 'batch': 8, 'workers': 0, 'validation': 4,
        'ema_crops': 64.0, 'checkpoint_minutes': 1000.0, 'procedural': 1.0}


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    torch.set_num_threads(1)
    yield
    cv2.setNumThreads(-1)


def test_learning_rate_rises_holds_and_falls():
    config = TrainingConfig(crops=1000, learning_rate=0.01, warmup=0.1, decay=0.5)
    rates = [learning_rate(config, crops) for crops in (0, 50, 100, 300, 500, 750, 1000)]
    assert rates == pytest.approx([0, 0.005, 0.01, 0.01, 0.01, 0.005, 0])


def test_learning_rate_without_warm_up_and_decay_is_constant():
    config = TrainingConfig(crops=1000, learning_rate=0.01, warmup=0.0, decay=0.0)
    assert {learning_rate(config, crops) for crops in (0, 500, 1000)} == {0.01}


def test_one_cycle_is_that_of_torch():
    config = TrainingConfig(crops=1000, learning_rate=0.01, schedule='one-cycle')
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=1001)
    for crops in range(1001):
        expected = scheduler.get_last_lr()[0]
        assert learning_rate(config, crops) == pytest.approx(expected, abs=1e-4), crops
        if crops < 1000:
            optimizer.step()
            scheduler.step()


def test_cosine_rises_and_falls_to_zero():
    config = TrainingConfig(crops=1000, learning_rate=0.01, warmup=0.2, schedule='cosine')
    rates = [learning_rate(config, crops) for crops in (0, 100, 200, 400, 600, 1000)]
    assert rates == pytest.approx([0, 0.005, 0.01, 0.01 * (2 + 2 ** 0.5) / 4, 0.005, 0], abs=1e-9)


def test_loss_of_ignorance_is_the_logarithm_of_the_bins():
    assert distribution_loss(torch.zeros(2, 3, 4, BINS), torch.ones(2, 3, 4, 2)).item() \
        == pytest.approx(math.log(BINS))


def test_loss_is_lowest_at_the_truth_of_either_sign():
    generator = torch.Generator().manual_seed(0)
    flow_px = 20 * torch.randn(2, 3, 4, 2, generator=generator)
    bins, weights = interpolation(flow_px)
    truth = torch.zeros(2, 3, 4, BINS).scatter_add(-1, bins, weights)
    logits = (truth + 1e-9).log()
    at_truth = distribution_loss(logits, flow_px).item()
    assert distribution_loss(logits, -flow_px).item() == pytest.approx(at_truth, abs=1e-3)
    for _ in range(20):
        other = (truth + 0.05 * torch.rand(truth.shape, generator=generator)).log()
        assert distribution_loss(other, flow_px) > at_truth
    assert distribution_loss(logits, 1.3 * flow_px) > at_truth + 1


@pytest.fixture
def scene():
    """Field of two cameras, their motions, and the cells' distributions around the truth."""
    camera = CameraIntrinsics(160, 128, 250.0, 250.0, 79.5, 63.5)
    field = torch.from_numpy(motion_field_matrix(pixel_grid(160, 128, 8), camera)).float()
    field = field.expand(2, -1, -1, -1, -1)
    motion = torch.tensor([[0.05, -0.02, 0.1, 0.0, 0.0, 0.0], [-0.01, 0.1, -0.2, 0.01, 0.0, 0.02]])
    flow_px = torch.einsum('bhwij,bj->bhwi', field, motion)
    bins = torch.from_numpy(bin_displacements())
    lengths, bin_lengths = flow_px.norm(dim=-1, keepdim=True), bins.norm(dim=-1)
    longer = torch.log1p(lengths) - torch.log1p(bin_lengths)
    aside = (flow_px[..., :1] * bins[:, 1] - flow_px[..., 1:] * bins[:, 0]) \
        / (lengths * bin_lengths + 1.0)
    logits = -(longer ** 2 + aside ** 2) / 0.3 ** 2
    return logits, field, motion


def test_motion_loss_tells_the_truth_from_its_rivals(scene):
    votes, field, motion = scene
    rivals = rival_motions(motion, torch.full((2,), 250.0), torch.Generator().manual_seed(0))
    informed = motion_loss(votes, field, motion, rivals).item()
    assert informed < 0.35
    assert motion_loss(votes, field, -motion, -rivals).item() \
        == pytest.approx(informed, abs=1e-4)
    assert motion_loss(torch.zeros_like(votes), field, motion, rivals).item() \
        == pytest.approx(math.log(2.0), abs=1e-4)
    assert motion_loss(votes, field, 1.5 * motion, rivals) > 2 * informed
    assert motion_loss(votes, field, motion[[1, 0]], rivals[[1, 0]]) > 2 * informed


def test_a_teacher_is_followed_in_all_that_its_sums_can_tell():
    random = torch.Generator().manual_seed(0)
    logits, votes = torch.randn(2, 1, 3, 4, BINS, generator=random)
    constant = torch.randn(1, 3, 4, 1, generator=random)
    # neither distributions nor sums over an image depend on a constant of each cell
    assert teaching_loss(logits, votes, (logits + constant, votes + constant)) < 1e-5
    others = torch.randn(2, 1, 3, 4, BINS, generator=random)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=others[0]),
        torch.distributions.Categorical(logits=logits)).mean() + 2.0  # variance of a difference
    assert teaching_loss(logits, votes, tuple(others)) == pytest.approx(expected.item(), abs=0.1)


def test_rivals_lie_around_the_truth_as_likely_longer_as_shorter():
    motion = torch.tensor([[0.02, 0.05, 0.1, 0.01, 0.0, 0.0]]).expand(400, -1)
    focal_px = torch.full((400,), 250.0)
    draw = [rival_motions(motion, focal_px, torch.Generator().manual_seed(seed))
            for seed in (3, 3, 4)]
    assert torch.equal(draw[0], draw[1]) and not torch.equal(draw[0], draw[2])
    assert draw[0].shape == (400, RIVALS, 6)
    scale = torch.tensor([250.0, 250.0, 250.0 / 3])
    length = (draw[0][..., :3] * scale).norm(dim=-1)
    true_length = (motion[0, :3] * scale).norm()
    assert 0.45 < (length > true_length).float().mean() < 0.55
    near = (length / true_length).log().abs().flatten().quantile(0.2)
    assert near < 0.1 and length.max() > 3 * true_length and length.min() < true_length / 3


def test_rivals_of_rest_are_finite():
    rivals = rival_motions(torch.zeros(3, 6), torch.full((3,), 250.0),
                           torch.Generator().manual_seed(0))
    assert torch.isfinite(rivals).all()


def test_crops_depend_on_seed_and_number_alone():
    config = TrainingConfig(**TINY)
    factory = CropFactory(config, None, held_out=False)
    in_order = [factory.crop(index) for index in (0, 1, 300)]
    again = CropFactory(config, None, held_out=False)
    for index, sample in zip((300, 1, 0), reversed(in_order)):
        np.testing.assert_array_equal(again.crop(index).gray, sample.gray)
        np.testing.assert_array_equal(again.crop(index).field, sample.field)
        np.testing.assert_array_equal(again.crop(index).motion, sample.motion)
    others = [CropFactory(TrainingConfig(**TINY, seed=2), None, held_out=False),
              CropFactory(config, None, held_out=True)]
    for other in others:
        assert not np.array_equal(other.crop(0).gray, in_order[0].gray)


def test_batches_go_on_where_they_are_told_to():
    config = TrainingConfig(crops=24, **TINY)
    batch = list(CropBatches(config, None, start=0))[2]
    gray, field, motion, flow_px = batch
    (resumed,) = CropBatches(config, None, start=16)
    assert gray.shape == (8, 1, 64, 64) and gray.dtype == torch.uint8
    assert field.shape == (8, 8, 8, 2, 6) and motion.shape == (8, 6)
    assert flow_px.shape == (8, 8, 8, 2)
    for tensor, again in zip(batch, resumed):
        assert torch.equal(tensor, again)
    factory = CropFactory(config, None, held_out=False)
    (plans,) = CropBatches(config, None, start=16, finished=False)
    for tensor, again in zip(batch, factory.collate(factory.finish(plans))):
        assert torch.equal(tensor, again)


def test_short_training_learns(tmp_path, monkeypatch):
    pans = 0.06 * np.eye(6)[:2]  # few motions, so that little training goes a long way
    monkeypatch.setattr(dataset, 'sample_motion', lambda rng, focal_px: rng.choice(pans))
    config = TrainingConfig(crops=240, learning_rate=3e-3, **{**TINY, 'validation': 32})
    score = train(config, tmp_path)
    (row,) = csv.reader((tmp_path / 'log.csv').open())
    cells, motions = map(float, row[3:5])
    assert int(row[0]) == 240 and cells + motions == pytest.approx(score.loss, abs=1e-2)
    # an untrained network knows nothing: log(505) = 6.2 nats, and 4 log 2 = 2.8
    assert cells < 4.5 and motions < 2.4


def test_interrupted_training_ends_with_the_same_weights(tmp_path):
    config = TrainingConfig(crops=24, **TINY)
    train(config, tmp_path / 'whole')
    # out of time after every step, until the whole is done
    steps = 0
    checkpoint = tmp_path / 'parts' / 'checkpoint.pt'
    while not checkpoint.exists() or read_checkpoint(checkpoint)['crops'] < 24:
        train(config, tmp_path / 'parts', max_minutes=0.0)
        steps += 1
    assert steps == 3
    whole, parts = (read_checkpoint(tmp_path / name / 'checkpoint.pt')
                    for name in ('whole', 'parts'))
    for key in ('network', 'average'):
        assert whole[key].keys() == parts[key].keys()
        for name, tensor in whole[key].items():
            assert torch.equal(tensor, parts[key][name]), f'{key} {name}'


@pytest.mark.parametrize('kind', ['checkpoint.pt', 'weights.safetensors'])
def test_training_starts_from_the_average_of_another_run(tmp_path, kind):
    train(TrainingConfig(crops=8, **TINY), tmp_path / 'first')
    first = read_checkpoint(tmp_path / 'first' / 'checkpoint.pt')['average']
    initial = tmp_path / 'first' / kind
    if kind.endswith('.safetensors'):
        export_weights(first, initial, {})
    train(TrainingConfig(crops=8, learning_rate=0.0, initial=str(initial), **TINY),
          tmp_path / 'second')
    second = read_checkpoint(tmp_path / 'second' / 'checkpoint.pt')['network']
    torch.testing.assert_close(second['head.2.weight'], first['head.2.weight'],
                               atol=1e-3, rtol=1e-3)


WIDTHS = (16, 16, 16, 16)


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    """Weights of a network that tells cells apart, without having learnt anything."""
    return some_weights(tmp_path_factory.mktemp('teacher') / 'teacher.safetensors', 3)


def some_weights(path, seed):
    torch.manual_seed(seed)
    network = CompactNetwork(WIDTHS)
    torch.nn.init.normal_(network.head[2].weight, std=0.5)
    export_weights(network.state_dict(), path, {'widths': str(list(WIDTHS))})
    return path


def test_a_network_of_low_rank_learns_from_its_teacher(teacher):
    config = TrainingConfig(**TINY, teacher=str(teacher))
    factory, objective = CropFactory(config, None, False), objective_for(config)
    batch = factory.collate([factory.crop(index) for index in range(4)])
    torch.manual_seed(4)
    network = CompactNetwork(WIDTHS, ranks=(0, 4, 4, 4, 4))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    divergences = []
    for _ in range(40):
        parts = objective.losses(network, batch, 0)
        assert set(parts) == {'cells', 'motions', 'teacher'}
        divergences.append(parts['teacher'].item())
        optimizer.zero_grad()
        parts['teacher'].backward()
        optimizer.step()
    assert divergences[-1] < 0.5 * divergences[0]


def test_training_starts_from_the_teacher(tmp_path, teacher):
    train(TrainingConfig(crops=8, learning_rate=0.0, teacher=str(teacher), widths=WIDTHS,
                         ranks=(0, 16, 16, 16, 32), **TINY), tmp_path)
    (row,) = csv.reader((tmp_path / 'log.csv').open())
    assert float(row[5]) < 0.01  # but for the statistics of the batch norms


def test_a_network_of_full_rank_starts_as_its_teacher(teacher):
    whole = load_weights(str(teacher)).network
    network = CompactNetwork(WIDTHS, ranks=(16, 0, 16, 16, 32)).eval()
    start_from_teacher(network, whole, 'teacher')
    gray = torch.rand(1, 1, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for output, expected in zip(network(gray), whole(gray)):
            torch.testing.assert_close(output, expected, atol=1e-3, rtol=1e-3)
    for name, tensor in whole.critic.state_dict().items():  # which is not trained
        assert torch.equal(network.critic.state_dict()[name], tensor), name


def test_a_teacher_of_other_widths_is_refused(tmp_path, teacher):
    with pytest.raises(WeightsError, match='teacher.safetensors does not fit compact-4'):
        train(TrainingConfig(crops=8, teacher=str(teacher), ranks=(0, 4, 4, 4, 4), **TINY),
              tmp_path)


@pytest.mark.parametrize('teacher, architecture', [
    ('paper', 'compact-4'), ('compact', 'reference')])
def test_what_cannot_teach_is_refused(tmp_path, teacher, architecture):
    if teacher == 'paper':
        teacher = str(tmp_path / 'paper.safetensors')
        export_weights(ReferenceNetwork().state_dict(), Path(teacher),
                       {'architecture': 'reference'})
    with pytest.raises(ConfigError, match='teacher: ".*" cannot teach'):
        train(TrainingConfig(crops=8, architecture=architecture, teacher=teacher, **TINY),
              tmp_path / 'run')


@pytest.mark.parametrize('content', [b'', b'not a checkpoint', None])
def test_damaged_checkpoint_is_refused_and_kept(tmp_path, content):
    checkpoint = tmp_path / 'checkpoint.pt'
    if content is None:  # cut short while it was copied
        write_checkpoint(checkpoint, {'architecture': CompactNetwork.architecture,
                                               'network': {'weight': torch.zeros(1000)}})
        content = checkpoint.read_bytes()[:2000]
    checkpoint.write_bytes(content)
    with pytest.raises(WeightsError, match='cannot read checkpoint .*checkpoint.pt') as refusal:
        train(TrainingConfig(crops=8, **TINY), tmp_path)
    assert '\n' not in str(refusal.value)
    assert checkpoint.read_bytes() == content


def test_checkpoint_of_another_network_is_refused(tmp_path):
    write_checkpoint(tmp_path / 'checkpoint.pt', {'architecture': 'grand-9'})
    with pytest.raises(WeightsError, match='grand-9'):
        train(TrainingConfig(crops=8, **TINY), tmp_path)


def test_verb_trains_with_settings_from_a_file_and_the_command_line(tmp_path, capsys):
    settings = tmp_path / 'tiny.yaml'
    settings.write_text('crops: 16\nwidth: 64\nheight: 64\nbatch: 8\nworkers: 0\n')
    assert main(['train', str(tmp_path / 'run'), '--config', str(settings),
                 '--set', 'validation=8']) == 0
    assert 'validation loss' in capsys.readouterr().out
    state = read_checkpoint(tmp_path / 'run' / 'checkpoint.pt')
    assert state['crops'] == 16 and state['config']['validation'] == 8
    assert main(['train', str(tmp_path / 'run'), '--set', 'crop=16']) == 1
    assert 'crop' in capsys.readouterr().err


def test_overfitting_recovers_a_known_motion_with_the_solver(tmp_path, monkeypatch, capsys):
    known = np.array([[0.06, 0.0, 0.15, 0.0, 0.0, 0.0], [0.0, 0.07, -0.15, 0.0, 0.0, 0.0]])
    monkeypatch.setattr(dataset, 'sample_motion', lambda rng, focal_px: known[rng.integers(2)])
    settings = {**TINY, 'crops': 400, 'batch': 4, 'width': 128, 'height': 96,
                'learning_rate': 3e-3, 'overfit_share': 0.14}
    command = ['train', str(tmp_path), '--overfit', '4']
    for name, value in settings.items():
        command += ['--set', f'{name}={value}']
    assert main(command) == 0
    state = read_checkpoint(tmp_path / 'checkpoint.pt')
    assert state['crops'] < 400, 'the loss did not fall'
    # an untrained network says next to nothing: loss 9 nats, error 100 %
    assert state['validation_loss'] < 2.5 and state['rotation_error'] < 0.2
    assert 'on the images trained on' in capsys.readouterr().out


def test_tensorboard_gets_scalars_and_pictures(tmp_path):
    reader = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    train(TrainingConfig(crops=16, tensorboard=True, **TINY), tmp_path)
    events = reader.EventAccumulator(str(tmp_path)).Reload()
    assert {'training_loss/cells', 'training_loss/sum', 'learning_rate', 'crops_per_s',
            'held_out_loss/motions', 'rotation_error'} <= set(events.Tags()['scalars'])
    (picture,) = events.Images('held_out')
    assert (picture.step, picture.height, picture.width) == (16, 4 * 64, 3 * 64)


@pytest.mark.parametrize('missing, setting, extra', [
    ('accelerate', 'seed=1', 'train'), ('torch.utils.tensorboard', 'tensorboard=true',
                                        'tensorboard')])
def test_what_is_not_installed_is_named(tmp_path, monkeypatch, capsys, missing, setting, extra):
    monkeypatch.setitem(sys.modules, missing, None)
    tiny = [word for name, value in TINY.items() for word in ('--set', f'{name}={value}')]
    assert main(['train', str(tmp_path), *tiny, '--set', setting]) == 1
    assert f"pip install 'image_as_imu_ros[{extra}]'" in capsys.readouterr().err
    assert not (tmp_path / 'checkpoint.pt').exists()


def test_pictures_show_either_sign_alike_and_length_as_brightness():
    flow_px = torch.tensor([[10.0, 0.0], [-10.0, 0.0], [0.0, 10.0], [20.0, 0.0], [0.0, 0.0]])
    colours = flow_picture(double_angle(flow_px)[None, None])[0, :, 0].T
    torch.testing.assert_close(colours[0], colours[1])
    torch.testing.assert_close(colours[3], 2 * colours[0])
    torch.testing.assert_close(colours[0], torch.tensor([1 / 3, 0.0, 0.0]))
    torch.testing.assert_close(colours[2], torch.tensor([0.0, 1 / 3, 1 / 3]))
    assert not colours[4].any()


TRAIN_AND_NOTE = """
import os, sys
from pathlib import Path
from image_as_imu_ros.config import TrainingConfig
from image_as_imu_ros.training import dataset
from image_as_imu_ros.training.train import train
folder, settings = Path(sys.argv[1]), eval(sys.argv[2])
plan = dataset.CropFactory.plan
def noted(factory, index):
    if factory.seed == 2:  # not those held out
        with (folder / f'crops_{os.environ["RANK"]}').open('a') as file:
            file.write(f'{index}\\n')
    return plan(factory, index)
dataset.CropFactory.plan = noted
train(TrainingConfig(**settings), folder / 'run', max_minutes=0.0)
"""


def test_two_processes_share_the_crops_and_one_goes_on_without_them(tmp_path, monkeypatch):
    settings, script = {**TINY, 'crops': 24, 'seed': 1}, tmp_path / 'train.py'
    script.write_text(TRAIN_AND_NOTE)
    result = torchrun(script, tmp_path, repr(settings))
    assert result.returncode == 0, result.stderr
    shares = [(tmp_path / f'crops_{rank}').read_text().split() for rank in (0, 1)]
    assert shares == [['0', '1', '2', '3'], ['4', '5', '6', '7']]
    assert read_checkpoint(tmp_path / 'run' / 'checkpoint.pt')['crops'] == 8
    assert len((tmp_path / 'run' / 'log.csv').read_text().splitlines()) == 1

    seen, plan = [], CropFactory.plan
    monkeypatch.setattr(CropFactory, 'plan', lambda factory, index: (
        seen.append(index) if factory.seed == 2 else None, plan(factory, index))[1])
    train(TrainingConfig(**settings), tmp_path / 'run')
    assert seen == list(range(8, 24))
    assert read_checkpoint(tmp_path / 'run' / 'checkpoint.pt')['crops'] == 24


def test_batches_that_processes_cannot_share_are_refused(tmp_path, monkeypatch):
    trio = SimpleNamespace(process_index=0, num_processes=3, is_main_process=True)
    monkeypatch.setattr(training, 'make_accelerator', lambda device: trio)
    with pytest.raises(ConfigError, match='8 images cannot be shared evenly by 3 processes'):
        train(TrainingConfig(crops=8, **TINY), tmp_path)
