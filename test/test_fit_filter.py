"""The fitted filter tells true motions from rivals, and the network then carries it."""

import math

import cv2
import numpy as np
import pytest
import torch

from image_as_imu_ros.cli.main import main
from image_as_imu_ros.geometry.displacement_bins import bin_displacements
from image_as_imu_ros.model.network import (
    ANGLES,
    RATIOS,
    CompactNetwork,
    DerivativeCorrelation,
    filter_table,
)
from image_as_imu_ros.model.weights import SHIPPED, read_tensors
from image_as_imu_ros.training.fit_filter import fit_filter

IGNORANCE = 3 * math.log(2.0)


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('photographs')
    rng = np.random.default_rng(0)
    for index in range(9):  # every eighth is held out
        image = np.full((480, 640), 128, np.uint8)
        for _ in range(500):
            centre, radius = rng.integers((0, 0), (640, 480)).tolist(), int(rng.integers(2, 40))
            cv2.circle(image, centre, radius, int(rng.integers(0, 256)), -1, cv2.LINE_AA)
        cv2.imwrite(str(folder / f'{index}.png'), image)
    return folder


def test_table_of_a_displacement_is_where_its_lag_and_direction_are():
    indices, weights = filter_table(bin_displacements()[1:])
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
    assert weights.min() >= 0 and indices.min() >= 0 and indices.max() < ANGLES * RATIOS
    angle = ((indices // RATIOS) * weights).sum(dim=-1)
    along, across = torch.tensor([[18.0, 0.0]]), torch.tensor([[0.0, 18.0]])
    for displacement, expected in ((along, 0.0), (across, 4.0)):
        indices, weights = filter_table(displacement)
        angle = ((indices // RATIOS) * weights).sum(dim=-1)
        assert angle[0, 0].numpy() == pytest.approx(expected, abs=1e-4)
    ratio = ((indices % RATIOS) * weights).sum(dim=-1)[0, 0]
    logarithm = DerivativeCorrelation.MATCH_START + DerivativeCorrelation.MATCH_STEP * ratio
    torch.testing.assert_close(logarithm.exp() * 19.0, DerivativeCorrelation.lags_px(),
                               rtol=1e-3, atol=1e-2)


def test_fit_makes_an_untrained_network_tell_motions_apart(photographs):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = CompactNetwork()
    before = network.template.weight.detach().clone()
    loss = fit_filter(network, photographs, images=80, seed=1)
    assert loss < IGNORANCE
    assert not torch.equal(network.template.weight, before)


def test_verb_writes_weights_that_can_be_read(photographs, tmp_path, capsys):
    output = tmp_path / 'fitted.safetensors'
    assert main(['weights', 'fit', str(SHIPPED / 'compact.safetensors'), str(output),
                 '--assets', str(photographs), '--images', '2']) == 0
    assert 'nats' in capsys.readouterr().out
    tensors, metadata = read_tensors(output)
    assert metadata['filter_images'] == '2' and tensors['template.weight'].abs().sum() > 0
