"""Recordings evaluated together, in batches or by processes, give what each gives alone."""

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import BlurredSequence, torchrun, write_sequence_folder

from image_as_imu_ros.cli.main import main
from image_as_imu_ros.config import StreamConfig, VisualImuConfig
from image_as_imu_ros.errors import DataFormatError, InputError, SynchronizationError
from image_as_imu_ros.evaluation.estimation import (
    Estimates,
    estimate_motion,
    estimate_shares,
    joined,
    shares_of,
)
from image_as_imu_ros.evaluation.predictor import Predictor
from image_as_imu_ros.evaluation.sources import Recording, open_recording
from image_as_imu_ros.evaluation.sources.recording import StoredImage
from image_as_imu_ros.processes import Process

CHECKOUT = Path(__file__).resolve().parents[1]
FIRST, SECOND = 7, 5
"""Images of two recordings; those of the second are smaller."""


@pytest.fixture(scope='module')
def folders(tmp_path_factory, blurred_sequence: BlurredSequence) -> list[Path]:
    """Two recordings that can be evaluated, and one whose images cannot be decoded."""
    frames, folder = blurred_sequence.frames, tmp_path_factory.mktemp('recordings')
    small = [replace(frame, image=cv2.resize(frame.image, (160, 120), None, 0, 0, cv2.INTER_AREA),
                     start_s=frame.start_s - frames[FIRST].start_s)
             for frame in frames[FIRST:FIRST + SECOND]]
    sequences = {
        'first': replace(blurred_sequence, frames=frames[:FIRST]),
        'second': replace(blurred_sequence, frames=small, focal_px=blurred_sequence.focal_px / 2),
        'broken': replace(blurred_sequence, frames=small[:2])}
    for name, sequence in sequences.items():
        write_sequence_folder(folder / name, sequence, lambda time_s: np.array([1.0, -2.0, 0.5]))
    (folder / 'first' / 'frames' / '0002.jpg').write_bytes(b'')
    for path in (folder / 'broken' / 'frames').iterdir():
        path.write_bytes(b'')
    return [folder / name for name in sequences]


@pytest.fixture(scope='module')
def recordings(folders: list[Path]) -> list[Recording]:
    return [open_recording(folder) for folder in folders]


def in_lines(estimates: Estimates) -> list[list[float] | None]:
    """Velocities of all frames in turn."""
    return [estimate and [*estimate.angular_velocity_rad_s, *estimate.linear_velocity_m_s]
            for stream in estimates.streams for estimate in stream.estimates]


@pytest.mark.parametrize('mode', ['single', 'stream'])
def test_batches_give_what_images_give_one_by_one(recordings, gyroscope, mode):
    config = StreamConfig(smoothing_frames=2)
    *parts, failure = estimate_shares(recordings, shares_of(recordings, mode), gyroscope, mode,
                                      config, batch=4)
    for recording, part in zip(recordings, parts):
        alone = estimate_motion(recording, gyroscope, mode, config)
        together = joined(recording, [part])
        assert together.skipped == alone.skipped
        assert len(together.times_ms) == len(alone.times_ms) and min(together.times_ms) > 0.0
        for found, expected in zip(in_lines(together), in_lines(alone)):
            assert (found is None) == (expected is None)
            if found is not None:
                sign = np.sign(np.dot(found, expected)) if mode == 'single' else 1.0
                np.testing.assert_allclose(sign * np.array(found), expected,
                                           atol=1e-3 * np.linalg.norm(expected))
    assert sum(parts[0].skipped.values()) == 1
    with pytest.raises(DataFormatError, match='no frame of .*broken could be estimated: 1 x'):
        joined(recordings[2], [failure])


def test_time_of_a_batch_is_shared_evenly(recordings, gyroscope):
    frames = [record.with_image(stored.decode()) for record, stored in zip(
        recordings[1].streams[0].records, recordings[1].streams[0].read())]
    observations = gyroscope.observe_all(frames)
    assert len({observation.timing_ms['network'] for observation in observations}) == 1
    for observation in observations:
        assert observation.elapsed_ms == sum(observation.timing_ms.values())


def test_processes_share_all_frames_and_streams_stay_whole(recordings):
    for mode in ('single', 'stream'):
        shares = [shares_of(recordings, mode, Process(rank, 3)) for rank in range(3)]
        for number, recording in enumerate(recordings):
            rows = [row for share in shares for row in share[number][0]]
            assert sorted(rows) == list(range(recording.frame_count))
        loads = [sum(len(share[0]) for share in of_all) for of_all in shares]
        if mode == 'single':
            assert max(loads) - min(loads) <= 1
        else:
            assert sorted(loads) == sorted([FIRST, SECOND, 2])


@pytest.mark.parametrize('mode', ['single', 'stream'])
def test_a_recording_that_breaks_off_leaves_the_others_alone(recordings, gyroscope, mode):
    def damaged() -> Iterator[StoredImage]:
        yield from list(stream.read())[:3]
        raise SynchronizationError('the clock stood still')

    stream = recordings[0].streams[0]
    torn = replace(recordings[0], streams=(replace(stream, read=damaged),))
    together = [torn, recordings[1]]
    failure, part = estimate_shares(together, shares_of(together, mode), gyroscope, mode, batch=8)
    assert isinstance(failure, SynchronizationError)
    assert len(joined(recordings[1], [part]).times_ms) == SECOND


def test_images_missing_at_the_end_are_counted_once(recordings, gyroscope):
    stream = recordings[1].streams[0]
    short = replace(recordings[1], streams=(
        replace(stream, read=lambda: iter(list(stream.read())[:3])),))
    parts = [next(estimate_shares([short], shares_of([short], 'single', Process(rank, 2)),
                                  gyroscope, 'single')) for rank in range(2)]
    estimates = joined(short, parts)
    assert estimates.skipped == {'image is missing at the end of the recording': SECOND - 3}
    assert [line is not None for line in in_lines(estimates)] == [True] * 3 + [False] * 2


def assert_alike(one: Any, other: Any, where: str, least: float = 1e-4) -> None:
    """
    Compare JSON content or rows but for what differs from run to run.

    Processors and threads add up in other orders, which estimates have shown in the fourth digit.

    :param least: difference that is allowed for the smallest of numbers
    """
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one.keys() - {'frame_ms', 'frame_ms_p50', 'ms_per_frame', 'command'}:
            assert_alike(one[key], other[key], f'{where}: {key}', least)
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for each in zip(one, other):
            assert_alike(*each, where, least)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-2, abs=least, nan_ok=True), where
    else:
        assert one == other, where


def value_of(text: str) -> float | str:
    """The number that a text tells, if any; but stamps and counts are to be exact."""
    try:
        return text if text.isdecimal() else float(text)
    except ValueError:
        return text


def rows_of(path: Path) -> list[list[float | str]]:
    """Rows of a table but for the note in its first line, where the times are."""
    with path.open(newline='') as file:
        return [list(map(value_of, row)) for row in csv.reader(file)
                if not row[0].startswith('#')]


def test_two_processes_write_what_one_writes(folders, tmp_path, capsys):
    command = ['evaluate', *map(str, folders), '--compare', 'single', '--set',
               'estimator.threads=1', '--output']
    one, two = tmp_path / 'one', tmp_path / 'two'
    assert main([*command, str(one)]) == 1
    printed = capsys.readouterr().out
    result = torchrun('-m', 'image_as_imu_ros', *command, two)
    assert result.returncode == 1
    assert_alike(*([value_of(word) for word in re.split('[ /\n]+', text)]
                   for text in (result.stdout.replace(str(two), str(one)), printed)), 'printed',
                 least=2e-3)  # three decimals
    assert '1 of 3 recordings could not be evaluated: broken' in result.stderr
    for name in ('overview.json', 'first/summary.json', 'second/summary.json'):
        assert_alike(*(json.loads((each / name).read_text()) for each in (two, one)), name)
    tables = [path.relative_to(one) for path in one.glob('*/**/*.csv')]
    assert {path.name for path in tables} == {'estimates.csv', 'stream.csv', 'single.csv'}
    for table in tables:
        assert_alike(*(rows_of(each / table) for each in (two, one)), str(table))
    assert not list(two.rglob('.*'))  # no share is left over


def test_a_share_that_is_done_is_taken_up(recordings, gyroscope, tmp_path):
    recording, process = recordings[1], Process(1, 2)
    (share,), (other,) = (shares_of([recording], 'single', each)
                          for each in (process, Process(0, 2)))
    part = next(estimate_shares([recording], [share], gyroscope, 'single'))
    predictor, fresh = (Predictor(recording, VisualImuConfig(), tmp_path, fresh)
                        for fresh in (False, True))
    assert not predictor.has_part('single', share, process)
    predictor.write_part('single', share, process, part)
    assert predictor.has_part('single', share, process)
    assert not predictor.has_part('single', other, process)
    assert not fresh.has_part('single', share, process)
    assert in_lines(predictor.read_part('single', process)) == [
        line and pytest.approx(line) for line in in_lines(part)]
    predictor.write_part('single', share, process, InputError('out of order'))
    assert not predictor.has_part('single', share, process)
    predictor.keep_estimates('single', [predictor.read_part('single', process), part])
    with pytest.raises(DataFormatError, match='out of order'):
        predictor.estimates('single')


FAIL_IN_SECOND = """
import os, sys
from image_as_imu_ros.cli.main import main
from image_as_imu_ros.estimator import VisualGyroscope
prepare = VisualGyroscope.prepare
def failing(self, frame):
    if os.environ['RANK'] == '1':
        raise MemoryError('as if there were no more')
    return prepare(self, frame)
VisualGyroscope.prepare = failing
sys.exit(main(sys.argv[1:]))
"""


def test_a_process_that_fails_ends_all_with_an_error(folders, tmp_path):
    script = tmp_path / 'failing.py'
    script.write_text(FAIL_IN_SECOND)
    result = torchrun(script, 'evaluate', folders[0], '--mode', 'single', '--output',
                      tmp_path / 'out', '--set', 'estimator.threads=1')
    assert result.returncode == 1
    assert 'as if there were no more' in result.stderr
    assert not (tmp_path / 'out' / 'summary.json').exists()


WAIT = """
import os, signal, sys
from image_as_imu_ros.errors import ImageAsImuError
from image_as_imu_ros.processes import cores_of_process, joined_processes
with joined_processes() as process:
    if process.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        process.wait_for_all()
    except ImageAsImuError as error:
        sys.exit(f'{error}; GPU {os.environ["CUDA_VISIBLE_DEVICES"]}, {cores_of_process()} cores')
"""


def test_a_process_that_is_killed_is_noticed_without_torchrun():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    environment = {**os.environ, 'WORLD_SIZE': '2', 'LOCAL_WORLD_SIZE': '99', 'MASTER_PORT':
                   str(port), 'MASTER_ADDR': '127.0.0.1', 'CUDA_VISIBLE_DEVICES': '5,3'}
    processes = [subprocess.Popen(
        [sys.executable, '-c', WAIT], cwd=CHECKOUT, stderr=subprocess.PIPE, text=True,
        env={**environment, 'RANK': str(rank), 'LOCAL_RANK': str(rank + 2)}) for rank in (0, 1)]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, -signal.SIGKILL]
    assert 'another process has ended before its part was done' in errors[0]
    assert 'GPU 5, 1 cores' in errors[0]


@pytest.mark.parametrize('text', ['0', '-1', '1.5', 'many'])
def test_a_batch_holds_an_image_or_more(text, capsys):
    with pytest.raises(SystemExit) as exit:
        main(['evaluate', 'recording', '--batch', text])
    assert exit.value.code == 2
    assert 'is not a number from 1 on' in capsys.readouterr().err
