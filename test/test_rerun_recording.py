"""The recording for the Rerun viewer, read back by its own tool."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from image_as_imu_ros.evaluation.evaluate import score
from image_as_imu_ros.evaluation.rerun_recording import write_rerun
from image_as_imu_ros.evaluation.sources import open_recording
from image_as_imu_ros.types import EstimateStatus, MotionEstimate

pytest.importorskip('rerun', reason='pip install rerun-sdk')


def test_images_flow_estimate_and_reference_are_on_one_timeline(sequence_folder: Path,
                                                                tmp_path: Path):
    recording = open_recording(sequence_folder)
    evaluation = score([MotionEstimate(
        record.stamp_ns, 0.01, np.array([1.0, 2.0, 3.0]), np.zeros(3), np.eye(6), True, 5.0, 0.8,
        7.0, 0.9, EstimateStatus.OK) for record in recording.streams[0].records], recording)
    path = tmp_path / 'folder' / 'swing.rrd'
    write_rerun(evaluation, (), path, 2.0)
    tool = [Path(sys.executable).parent / 'rerun', 'rrd']
    subprocess.run([*tool, 'verify', path], check=True, timeout=120)

    def printed(*options: str) -> str:
        return subprocess.run([*tool, 'print', *options, path], check=True, timeout=120,
                              text=True, capture_output=True).stdout

    rows = Counter()
    for count, entity in re.findall(r'with (\d+) rows .* - (/\S+) - data', printed()):
        rows[entity] += int(count)
    for entity in ('/camera/0', '/camera/0/flow', '/angular_velocity/x/estimate/0',
                   '/angular_velocity/z/reference/0'):
        assert rows[entity] == 24, rows
    assert rows['/angular_velocity/y/gyroscope'] == len(recording.gyroscope.t_ns)
    for entity in ('/camera/0/flow', '/angular_velocity/x/estimate/0'):
        assert 'index_name: time' in printed('-vv', '--entity', entity)
