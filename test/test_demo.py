"""`image-as-imu demo`: the whole path in the processes and over the wire that users have."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy')

CHECKOUT = Path(__file__).resolve().parents[1]
SECONDS = 1.6
RATE = 0.1
"""Slow motion: other work on the machine of the tests shall not decide about them."""


def run_demo(*arguments):
    return subprocess.run([sys.executable, '-m', 'image_as_imu_ros', 'demo', *arguments],
                          cwd=CHECKOUT, capture_output=True, text=True, timeout=170)


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    output = tmp_path_factory.mktemp('demo') / 'demo'
    result = run_demo('--seconds', str(SECONDS), '--seed', '2', '--rate', str(RATE),
                      '--set', 'estimator.threads=1', '--output', str(output))
    assert result.returncode == 0, result.stderr
    return output, result.stdout, json.loads((output / 'summary.json').read_text())


def test_nearly_every_image_gives_an_imu_message(demo):
    _, printed, summary = demo
    assert summary['frames'] == round(30 * SECONDS)
    assert 0.8 * summary['frames'] <= summary['imu_messages'] <= summary['frames']
    assert f'{summary["frames"]} images in, {summary["imu_messages"]} Imu messages out' in printed
    assert 0 < summary['frame_ms']['p50'] < 1000


def test_messages_follow_the_gyroscope(demo):
    _, _, summary = demo
    errors = np.array(summary['protocols']['interpolated']['rotation_rmse_rad_s'])
    assert (errors < 0.8 * np.array(summary['zero_rotation_rmse_rad_s'])).all()
    assert summary['sign_accuracy'] > 0.8


def test_results_are_there_to_look_at(demo):
    output, _, _ = demo
    plot = cv2.imread(str(output / 'angular_velocity.png'))
    assert plot.std() > 10
    sheet = cv2.imread(str(output / 'contact_sheet.jpg'))
    assert sheet.shape[1] == 4 * 480 and sheet.std() > 10
    rows = (output / 'estimates.csv').read_text().splitlines()
    assert len(rows) == 1 + json.loads((output / 'summary.json').read_text())['imu_messages']


def test_a_node_that_cannot_start_ends_the_demo_with_its_reason(demo, tmp_path):
    source = demo[0] / 'recording'
    result = run_demo('--source', str(source), '--output', str(tmp_path / 'demo'),
                      '--weights', str(tmp_path / 'missing.safetensors'))
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith('image-as-imu demo: the node ended with status 1')
    assert 'missing.safetensors' in last
