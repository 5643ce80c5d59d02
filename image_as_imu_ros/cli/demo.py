"""`image-as-imu demo`: from a recording over ROS 2 to a plot against the gyroscope."""

from __future__ import annotations

import argparse
from pathlib import Path

from image_as_imu_ros.cli.options import (
    add_config_arguments,
    add_recording_arguments,
    read_config,
    read_recording_options,
)
from image_as_imu_ros.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument('--source', type=Path, metavar='DIR',
                        help='recording to use instead of a simulated one: StrayScanner or '
                             'sequence folder, or a bag')
    parser.add_argument('--output', type=Path, default=Path('demo'), metavar='DIR',
                        help='folder of the results (default: demo); its own files are replaced')
    parser.add_argument('--seconds', type=float, default=10.0, metavar='S',
                        help='length of the simulated recording (default: 10)')
    parser.add_argument('--seed', type=int, default=0, metavar='N',
                        help='seed of the simulated recording (default: 0)')
    parser.add_argument('--rate', type=float, default=1.0, metavar='R',
                        help='speed of the replay; 1 is as recorded (default)')
    add_recording_arguments(parser)
    add_config_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """
    Make or open a recording, send it through the node and score what comes back.

    :raises ImageAsImuError: if ROS is missing or a step fails
    """
    import logging
    import os
    import shutil
    import signal
    from dataclasses import asdict, replace

    import cv2
    import numpy as np

    from image_as_imu_ros.evaluation.contact_sheet import contact_sheet
    from image_as_imu_ros.evaluation.evaluate import score
    from image_as_imu_ros.evaluation.report import table_of, write_report
    from image_as_imu_ros.evaluation.rosbag_writer import write_rosbag
    from image_as_imu_ros.evaluation.sources import open_recording
    from image_as_imu_ros.synthesis.room import RecordingConfig, write_recording
    try:
        from image_as_imu_ros.ros.replay import replay as replay_bag
    except ModuleNotFoundError as error:
        raise ConfigError(f'the demo needs ROS 2 ({error}); run `make install`, or source your '
                          'ROS installation') from error
    logger = logging.getLogger(__name__)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it ends the node as well
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    config, options = read_config(arguments), read_recording_options(arguments)
    if Path(config.estimator.weights).is_file():  # the node runs in another folder
        weights = str(Path(config.estimator.weights).resolve())
        config = replace(config, estimator=replace(config.estimator, weights=weights))
    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    source = arguments.source
    if source is None:
        source = output / 'recording'
        shutil.rmtree(source, ignore_errors=True)
        logger.info('1/4 filming a simulated room with a shaken camera: %s', source)
        write_recording(RecordingConfig(seed=arguments.seed, duration=arguments.seconds), source)
    recording = open_recording(source, arguments.kind, options)

    bag = output / f'{recording.name}.mcap'
    logger.info('2/4 writing the bag: %s', bag)
    images = write_rosbag(recording, bag, overwrite=True, progress=True)

    exposure_known = any(record.exposure_time_s is not None
                         for stream in recording.streams for record in stream.records)
    config = replace(config, node=replace(
        config.node, autostart=True, max_latency=0.0, use_exposure_topic=exposure_known))
    logger.info('3/4 starting the node and playing the bag to it: %s', output / 'node.log')
    replay = replay_bag(bag, config, output, arguments.rate)

    logger.info('4/4 comparing with the gyroscope')
    evaluation = score(replay.estimates, open_recording(bag))
    latency_ms = dict(zip(('p50', 'p95', 'p99'),
                          np.percentile(1e3 * replay.processing_s, (50, 95, 99)).tolist()))
    evaluation = replace(evaluation, metrics={
        **evaluation.metrics, 'source': str(source), 'kind': recording.kind,
        'image_size': recording.image_size, 'frames': images,
        'imu_messages': len(replay.estimates), 'frame_ms': latency_ms})
    summary = write_report(evaluation, output, config.estimator.weights, asdict(config))
    sheet = contact_sheet(evaluation, config.estimator.scene_depth)
    cv2.imwrite(str(output / 'contact_sheet.jpg'), sheet[..., ::-1])
    print(table_of(summary))
    print(f'{images} images in, {summary["imu_messages"]} Imu messages out')
    print(f'report: {output / "report.html"}, {output / "contact_sheet.jpg"}')
