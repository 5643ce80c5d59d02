"""Plays a bag to the node in a process of its own and collects what it publishes."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import yaml
from sensor_msgs.msg import Imu

import image_as_imu_ros
from image_as_imu_ros.config import VisualImuConfig
from image_as_imu_ros.errors import ImageAsImuError
from image_as_imu_ros.msg import MotionEstimate as MotionEstimateMsg
from image_as_imu_ros.ros.conversions import stamp_to_ns
from image_as_imu_ros.ros.recorder import Recorder
from image_as_imu_ros.types import EstimateStatus, MotionEstimate

TOPICS = {'image': '/camera/image_raw', 'camera_info': '/camera/camera_info',
          'exposure_time': '/camera/exposure_time'}
"""The node's inputs, and where the bags of `image-as-imu convert` have them."""

IMU_TOPIC = '/visual_imu/imu/data_raw'
MOTION_TOPIC = '/visual_imu/motion'
START_LIMIT_S = 180.0
STOP_LIMIT_S = 10.0
POLL_PERIOD_S = 0.1
SILENCE_S = 1.0
"""After the last image, the node is done when it has been silent for so long."""

PACKAGE_PARENT = Path(image_as_imu_ros.__file__).resolve().parents[1]
"""Processes start here, so that they run the same code as this one."""


@dataclass(frozen=True)
class Replay:
    """
    What came over the wire.

    `estimates` holds one entry per Imu message. `processing_s`, (N,), is the time from the
    arrival of an image in the node to the message's publication.
    """

    estimates: tuple[MotionEstimate, ...]
    processing_s: np.ndarray


def replay(bag: Path, config: VisualImuConfig, folder: Path, rate: float = 1.0) -> Replay:
    """
    Start the node, play a bag to it and record its messages.

    :param bag: as written by `write_rosbag`
    :param config: of the node, which must start itself
    :param folder: existing; takes node.yaml, the parameters, and node.log, the output of the node
    :param rate: speed of the replay, 1 as recorded
    :raises ImageAsImuError: if the node does not start, dies or publishes nothing, or the bag
        cannot be played
    """
    parameters = folder / 'node.yaml'
    values = dataclasses.asdict(config)
    parameters.write_text(yaml.safe_dump(
        {'/**': {'ros__parameters': {**values.pop('node'), **values}}}, sort_keys=False))
    remaps = [word for name, topic in TOPICS.items() for word in ('-r', f'{name}:={topic}')]
    log = folder / 'node.log'
    with (Recorder({IMU_TOPIC: Imu, MOTION_TOPIC: MotionEstimateMsg}) as recorder,
          log.open('w') as output,
          _running('image_as_imu_ros.ros.node', '--ros-args', '--params-file',
                   str(parameters.resolve()), *remaps, output=output) as node):
        _wait_until_active(node, recorder, log)
        with _running('image_as_imu_ros', 'play', str(bag.resolve()),
                      '--rate', str(rate), '--wait-for-subscribers', '30') as player:
            if player.wait() != 0:
                raise ImageAsImuError(f'the player failed with status {player.returncode}')
        _wait_for_silence(recorder)
        if node.poll() is not None:
            raise ImageAsImuError(f'the node died during the replay; see {log}')
    motions = {stamp_to_ns(message.header.stamp): message
               for _, message in recorder.messages[MOTION_TOPIC]}
    imus = [message for _, message in recorder.messages[IMU_TOPIC]]
    if not imus:
        raise ImageAsImuError(f'the node published no Imu message; see {log}')
    own_motions = [motions[stamp_to_ns(imu.header.stamp)] for imu in imus]
    return Replay(
        tuple(_estimate(imu, motion) for imu, motion in zip(imus, own_motions)),
        np.array([motion.processing_latency for motion in own_motions]))


@contextlib.contextmanager
def _running(module: str, *arguments: str, output: IO[str] | None = None
             ) -> Iterator[subprocess.Popen[str]]:
    """Run a module in a process of its own, which ends with the block at the latest."""
    process = subprocess.Popen([sys.executable, '-m', module, *arguments], cwd=PACKAGE_PARENT,
                               stdout=output, stderr=output and subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_active(node: subprocess.Popen[str], recorder: Recorder, log: Path) -> None:
    """Wait for the node's subscription to images, which it has while it is active."""
    end_s = time.monotonic() + START_LIMIT_S
    while not recorder.node.count_subscribers(TOPICS['image']):
        if node.poll() is not None:
            last = ([''] + log.read_text().strip().splitlines())[-1]
            raise ImageAsImuError(f'the node ended with status {node.returncode}: {last} '
                                  f'(all of it in {log})')
        if time.monotonic() > end_s:
            raise ImageAsImuError(f'the node is not active after {START_LIMIT_S} s; see {log}')
        time.sleep(POLL_PERIOD_S)


def _wait_for_silence(recorder: Recorder) -> None:
    """Wait until messages have ceased to come."""
    quiet_since_s, known = time.monotonic(), -1
    while time.monotonic() - quiet_since_s < SILENCE_S:
        count = sum(map(len, recorder.messages.values()))
        if count != known:
            quiet_since_s, known = time.monotonic(), count
        time.sleep(POLL_PERIOD_S)


def _estimate(imu: Imu, motion: MotionEstimateMsg) -> MotionEstimate:
    """Join an Imu message with what only the motion message of the same stamp can carry."""
    covariance = np.array(motion.covariance).reshape(6, 6)
    covariance[3:, 3:] = np.array(imu.angular_velocity_covariance).reshape(3, 3)
    angular, linear = imu.angular_velocity, motion.linear_velocity
    return MotionEstimate(
        stamp_ns=stamp_to_ns(imu.header.stamp), exposure_time_s=motion.exposure_time or None,
        angular_velocity_rad_s=np.array([angular.x, angular.y, angular.z]),
        linear_velocity_m_s=np.array([linear.x, linear.y, linear.z]), covariance=covariance,
        sign_resolved=motion.sign_resolved, sign_margin=motion.sign_margin,
        quality=motion.quality, blur_extent_px=motion.blur_extent_px,
        inlier_share=motion.inlier_share, status=EstimateStatus(motion.status))
