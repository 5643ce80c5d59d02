"""The network computes what it should, and only sound weights are loaded."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from image_as_imu_ros.cli.main import main
from image_as_imu_ros.cli.train import RECIPES
from image_as_imu_ros.config import EstimatorConfig, TrainingConfig, load
from image_as_imu_ros.errors import ConfigError, WeightsError
from image_as_imu_ros.estimator import VisualGyroscope
from image_as_imu_ros.geometry.displacement_bins import BINS
from image_as_imu_ros.model import weights, weights_files
from image_as_imu_ros.model.architectures import build_network
from image_as_imu_ros.model.compiled_front_ends import structure_offsets
from image_as_imu_ros.model.network import (
    WHOLE,
    CellDistributions,
    CompactNetwork,
    DirectionalStructure,
)
from image_as_imu_ros.model.runtimes import TorchRuntime
from image_as_imu_ros.training.checkpoint import write_checkpoint


@pytest.fixture(scope='module')
def network():
    return some_network(WHOLE)


def some_network(ranks):
    """A network with batch statistics as after some training, in evaluation mode."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = CompactNetwork(ranks=ranks)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2.0)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    return network.eval()


@pytest.fixture(scope='module')
def gray():
    return torch.rand(2, 1, 72, 104, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def file(network, tmp_path):
    path = tmp_path / 'mine.safetensors'
    weights.export_weights(network.state_dict(), path, {'licence': 'MIT'})
    return path


@pytest.fixture
def shipped(file, monkeypatch):
    """A folder of shipped weights that holds `mine`."""
    monkeypatch.setattr(weights_files, 'SHIPPED', file.parent)
    digest = weights.export_weights(load_file(file), file, {})
    (file.parent / 'mine.json').write_text(json.dumps({'sha256': digest, 'licence': 'MIT'}))
    return file


@pytest.mark.parametrize('height, width', [(64, 64), (72, 104), (240, 320), (176, 320)])
def test_every_cell_of_eight_pixels_gets_a_distribution(network, height, width):
    with torch.no_grad():
        own, votes = network(torch.rand(1, 1, height, width))
    assert own.shape == votes.shape == (1, height // 8, width // 8, BINS)
    assert torch.isfinite(own).all() and torch.isfinite(votes).all()


def test_flat_images_give_finite_distributions(network):
    with torch.no_grad():
        for image in (torch.zeros(1, 1, 64, 64), torch.ones(1, 1, 64, 64)):
            assert all(torch.isfinite(output).all() for output in network(image))


def test_structure_is_high_across_stripes_and_independent_of_contrast():
    stripes = torch.arange(64.0).mul(2 * np.pi / 8).sin().mul(0.4).add(0.5)
    image = stripes.expand(64, 64)[None, None]
    front_end = DirectionalStructure()
    features, paler = front_end(image), front_end(0.5 + 0.3 * (image - 0.5))
    offsets = structure_offsets()
    across, along = (features[0, offsets.index(offset), 8, 8] for offset in ((4, 4, 0), (4, 0, 4)))
    assert across > along + 5  # half a period apart against no change at all, in nats
    moving = [index for index, (_, dx, _) in enumerate(offsets) if dx % 8]
    relative = [values[0, moving, 8, 8] - values[0, moving[0], 8, 8]
                for values in (features, paler)]
    np.testing.assert_allclose(*relative, atol=1e-2)


@pytest.mark.parametrize('ranks', [WHOLE, (0, 16, 24, 32, 32), (16, 0, 24, 32, 0)])
def test_fusing_batch_norms_keeps_the_function(gray, ranks):
    network = some_network(ranks)
    fused = network.fused()
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for block in (fused.stage8, fused.up8)
                   for m in block.modules())
    with torch.no_grad():
        for output, expected in zip(fused(gray), network(gray)):
            np.testing.assert_allclose(output, expected, atol=1e-4)


def test_exported_weights_compute_the_same_but_for_half_precision(network, gray, file):
    loaded = weights.load_weights(str(file))
    assert loaded.file.metadata == {'licence': 'MIT', 'architecture': CompactNetwork.architecture}
    with torch.no_grad():
        (_, expected), (_, got) = network(gray), loaded.network(gray)
    assert (got - expected).abs().max() < 0.02 * expected.std()


def test_shipped_weights_are_intact_and_described():
    assert 'compact' in weights_files.shipped_names()
    for name in weights_files.shipped_names():
        assert weights_files.verify(name) == weights_files.description(name)['sha256']
        assert weights_files.description(name)['licence']


def test_shipped_weights_load_by_name(shipped):
    assert weights_files.shipped_names() == ['mine']
    assert weights_files.find_weights('mine').name == 'mine'
    assert weights.load_weights('mine').network.architecture == CompactNetwork.architecture


def test_tampered_shipped_weights_are_refused(shipped):
    data = bytearray(shipped.read_bytes())
    data[-1] ^= 1
    shipped.write_bytes(data)
    with pytest.raises(WeightsError, match='mine.safetensors is damaged: sha256'):
        weights.load_weights('mine')


def test_unknown_name_is_answered_with_those_that_are_shipped(shipped):
    with pytest.raises(WeightsError, match='no weights "huge"; shipped: mine'):
        weights.load_weights('huge')


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(WeightsError, match='absent.safetensors'):
        weights.load_weights(str(tmp_path / 'absent.safetensors'))


@pytest.mark.parametrize('length', [0, 5, 1000, -1])
def test_truncated_file_is_refused(file, length):
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(WeightsError, match='cannot read weights .*mine.safetensors'):
        weights.load_weights(str(file))


@pytest.mark.parametrize('metadata', [None, {'architecture': 'grand-9'}])
def test_other_architecture_is_refused(file, metadata):
    save_file(load_file(file), file, metadata)
    named = metadata['architecture'] if metadata else 'None'
    known = f'"{CompactNetwork.architecture}", "reference" and "timm:NAME"'
    with pytest.raises(WeightsError, match=f'architecture "{named}" is unknown.*{known}'):
        weights.load_weights(str(file))


@pytest.mark.parametrize('widths', ['7', '[32, 64]', 'wide', '["a", 1, 1, 1]', '[0, 1, 1, 1]'])
def test_senseless_widths_are_refused(file, widths):
    save_file(load_file(file), file,
              {'architecture': CompactNetwork.architecture, 'widths': widths})
    with pytest.raises(WeightsError, match='cannot use weights .*mine.safetensors'):
        weights.load_weights(str(file))


@pytest.mark.parametrize('ranks', ['7', '[0, 8]', '[0, 0, 0, -1, 0]', '[0, 33, 0, 0, 0]',
                                   '[0, 1.5, 0, 0, 0]', '[0, 0, 0, 0, 129]'])
def test_senseless_ranks_are_refused(file, ranks):
    save_file(load_file(file), file,
              {'architecture': CompactNetwork.architecture, 'ranks': ranks})
    with pytest.raises(WeightsError, match='cannot use weights .*mine.safetensors'):
        weights.load_weights(str(file))


def test_a_backbone_of_low_rank_is_refused():
    with pytest.raises(ConfigError, match='ranks: .* of a compact network, at most'):
        build_network('timm:resnet10t', ranks=(0, 8, 8, 8, 8))


@pytest.mark.parametrize('architecture, ranks', [
    (CompactNetwork.architecture, WHOLE), (CompactNetwork.architecture, (4, 0, 8, 8, 6)),
    ('timm:resnet10t', WHOLE)])
def test_networks_of_any_width_and_backbone_come_back_and_estimate(
        architecture, ranks, own_cache, tmp_path, blurred_frames):
    widths = (16, 24, 32, 40)
    network = build_network(architecture, widths, ranks)
    weights.export_weights(network.state_dict(), tmp_path / 'out.safetensors', {
        'architecture': architecture, 'widths': json.dumps(widths), 'ranks': json.dumps(ranks)})
    gyroscope = VisualGyroscope(EstimatorConfig(
        weights=str(tmp_path / 'out.safetensors'), device='cpu', threads=1))
    assert gyroscope.weights.architecture == architecture
    assert np.isfinite(gyroscope.estimate(blurred_frames[0]).angular_velocity_rad_s).all()
    loaded = weights.load_weights(str(tmp_path / 'out.safetensors')).network
    assert loaded.architecture == architecture and loaded.head[0].in_channels == 24
    # traced with a small square image, used with others
    distributions = CellDistributions(loaded, half=False)
    image = torch.rand(1, 1, 104, 136, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(TorchRuntime(distributions, 'cpu')(image),
                                   distributions(image), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('name', ['no_such_model', 'vit_tiny_patch16_224',
                                  'swin_tiny_patch4_window7_224'])
def test_unsuited_backbones_are_refused(name):
    with pytest.raises(ConfigError, match=f'architecture "timm:{name}" cannot be built'):
        build_network(f'timm:{name}')


def test_the_accurate_network_fits_into_20_mb():
    recipe = load(TrainingConfig, RECIPES / 'accurate.yaml')
    network = build_network(recipe.architecture, recipe.widths)
    assert 8e6 < sum(parameter.numel() for parameter in network.parameters()) < 10e6


def test_weights_that_lack_a_layer_are_refused(file):
    tensors = load_file(file)
    del tensors['head.2.bias']
    save_file(tensors, file, {'architecture': CompactNetwork.architecture})
    with pytest.raises(WeightsError, match='does not fit compact-.*head.2.bias'):
        weights.load_weights(str(file))


def test_verb_exports_the_average_of_a_checkpoint(network, gray, tmp_path, capsys):
    checkpoint, output = tmp_path / 'checkpoint.pt', tmp_path / 'out.safetensors'
    write_checkpoint(checkpoint, {
        'architecture': CompactNetwork.architecture, 'average': network.state_dict(),
        'crops': 640, 'config': {'seed': 4}, 'validation_loss': 2.5})
    assert main(['weights', 'export', str(checkpoint), str(output), '--note', 'licence=MIT']) == 0
    assert 'sha256' in capsys.readouterr().out
    metadata = weights.load_weights(str(output)).file.metadata
    assert metadata['widths'] == '[32, 64, 96, 128]' and metadata['ranks'] == '[0, 0, 0, 0, 0]'
    assert metadata['crops'] == '640' and metadata['licence'] == 'MIT'
    assert json.loads(metadata['config']) == {'seed': 4}


def test_verbs_list_and_verify_the_shipped_weights(shipped, capsys):
    assert main(['weights', 'list']) == 0
    assert '"licence": "MIT"' in capsys.readouterr().out
    assert main(['weights', 'verify']) == 0
    assert f'mine: {weights_files.verify("mine")}' in capsys.readouterr().out
    shutil.copy(shipped, shipped.with_name('copy.safetensors'))
    (shipped.parent / 'copy.json').write_text('{"sha256": "0"}')
    assert main(['weights', 'verify']) == 1
    assert 'damaged' in capsys.readouterr().err
