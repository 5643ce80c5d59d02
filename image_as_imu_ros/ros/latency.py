"""Latency of the node over DDS: from the image's stamp to the Imu message."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
import threading
import time
from typing import Any

import rclpy
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Imu
from tqdm import tqdm

from image_as_imu_ros.config import VisualImuConfig, ros_parameters
from image_as_imu_ros.errors import ConfigError, ImageAsImuError
from image_as_imu_ros.evaluation.benchmark import commit, load_average, machine
from image_as_imu_ros.ros.diagnostics import PERCENTILES, Monitor
from image_as_imu_ros.ros.node import VisualImu, autostart, fit_for_images
from image_as_imu_ros.ros.player import LARGE_IMAGES_PROFILE
from image_as_imu_ros.ros.replay import PACKAGE_PARENT
from image_as_imu_ros.threads import NetworkThreads

WARM_UP = 60
START_LIMIT_S = 60.0
NAMESPACE = f'benchmark_{os.getpid()}'
"""Apart from the images of whatever else runs on the machine."""


def measure_latency(config: VisualImuConfig, size: tuple[int, int], images: int,
                    rate: float = 30.0, encoding: str = 'rgb8') -> dict[str, Any]:
    """
    Have a camera in another process publish images, and time the node's answers.

    The camera stamps each image as it leaves, with Fast DDS' profile for large images. `latency`
    is from that stamp until the Imu message is published, `processing` from the image's arrival,
    `overhead` the latency less what the estimator itself took, and `waiting` the part of it while
    the estimator was busy with images before, as where it cannot keep up with the rate.

    :param size: width and height of the images, px
    :param images: images timed, after `WARM_UP` others
    :param rate: images per second
    :param encoding: rgb8 or mono8
    :returns: settings, machine and load, images received, dropped and answered, and p50, p95,
        p99 of each time in ms
    :raises ConfigError: if the rate is out of range
    :raises ImageAsImuError: if the node does not start or no image is answered
    """
    if not 0.1 <= rate <= 1000:
        raise ConfigError(f'rate {rate} is outside [0.1, 1000] Hz')
    os.environ.setdefault('FASTDDS_DEFAULT_PROFILES_FILE', str(LARGE_IMAGES_PROFILE))
    fit_for_images()
    config = dataclasses.replace(config, node=dataclasses.replace(
        config.node, exposure_time=0.01, stamp_reference='middle'))
    monitor = Monitor(window_s=images / rate)
    context = Context()
    rclpy.init(context=context)
    spinner = None
    try:
        node = VisualImu(monitor, context=context, namespace=NAMESPACE, parameter_overrides=[
            Parameter(name, value=getattr(getattr(config, section), entry.name))
            for name, section, entry in ros_parameters()])
        if not autostart(node):
            raise ImageAsImuError(monitor.failure)
        listener = rclpy.create_node('listener', context=context, namespace=NAMESPACE)
        listener.create_subscription(Imu, 'visual_imu/imu/data_raw', lambda _: None,
                                     QoSProfile(depth=10))
        spinner = threading.Thread(target=_spin, args=(context, node, listener))
        spinner.start()
        result = _film(monitor, size, images, rate, encoding)
    finally:
        context.try_shutdown()
        if spinner is not None:
            spinner.join()
            node.destroy_node()
    return {
        'mode': 'dds', 'image_size': f'{size[0]}x{size[1]}', 'encoding': encoding,
        'rate_hz': rate, 'weights': config.estimator.weights,
        'runtime': config.estimator.runtime,
        'threads': NetworkThreads(config.estimator.threads).least, 'machine': machine('cpu'),
        'commit': commit(), 'load_average': load_average(),
        **result}


def _spin(context: Context, *nodes: Any) -> None:
    executor = SingleThreadedExecutor(context=context)
    for node in nodes:
        executor.add_node(node)
    try:
        executor.spin()
    except ExternalShutdownException:
        pass


def _film(monitor: Monitor, size: tuple[int, int], images: int, rate: float,
          encoding: str) -> dict[str, Any]:
    """Run the camera and take the times of the last images."""
    camera = subprocess.Popen(
        [sys.executable, '-m', 'image_as_imu_ros.ros.simulated_camera', '--width', str(size[0]),
         '--height', str(size[1]), '--rate', str(rate), '--encoding', encoding,
         '--namespace', NAMESPACE],
        cwd=PACKAGE_PARENT, stdout=subprocess.DEVNULL)
    try:
        end_s = time.monotonic() + START_LIMIT_S + WARM_UP / rate
        while monitor.totals()['received'] < WARM_UP:
            if time.monotonic() > end_s or camera.poll() is not None:
                raise ImageAsImuError('the images of the camera process do not arrive')
            time.sleep(0.1)
        before = monitor.totals()
        # seldom, as all that wakes up meanwhile takes its turn beside the node
        for _ in tqdm(range(math.ceil(images / rate)), 'timing over DDS', unit='s'):
            time.sleep(1.0)
        after, values = monitor.totals(), monitor.times_ms()
    finally:
        camera.kill()
        camera.wait()
    if not values:
        raise ImageAsImuError('no image was answered by an Imu message; the machine is too slow '
                              'or too busy')
    counts = {name: after[name] - before[name] for name in after}
    return {'images': counts['published'], 'counts': counts,
            'ms': {name: dict(zip((f'p{percentile}' for percentile in PERCENTILES), times))
                   for name, times in values.items()}}
