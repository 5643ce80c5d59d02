"""The parameter file with the real node, and the launch file where launch_ros is installed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

rclpy = pytest.importorskip('rclpy')

from launching import interrupt, launch, needs_launch  # noqa: E402
from lifecycle_msgs.msg import State  # noqa: E402
from lifecycle_msgs.srv import GetState  # noqa: E402
from rcl_interfaces.srv import GetParameters  # noqa: E402

from image_as_imu_ros.config import VisualImuConfig, ros_parameters  # noqa: E402
from image_as_imu_ros.ros.parameters import NodeParameters  # noqa: E402

CHECKOUT = Path(__file__).resolve().parents[1]
LAUNCH_FILE = CHECKOUT / 'launch' / 'visual_imu.launch.py'
PARAMS_FILE = CHECKOUT / 'config' / 'visual_imu.yaml'
DEADLINE_S = 90.0

@pytest.fixture
def observer() -> Iterator[rclpy.node.Node]:
    """Node that looks at others."""
    rclpy.init()
    node = rclpy.create_node('observer')
    yield node
    node.destroy_node()
    rclpy.try_shutdown()


class Launched:
    """The launch file, run in a process of its own, and a view on the node that it starts."""

    def __init__(self, observer: rclpy.node.Node, log: Path, *arguments: str) -> None:
        self.observer = observer
        self.log = log
        self.clients: dict[str, rclpy.client.Client] = {}
        self.process = launch(LAUNCH_FILE, log, *arguments)

    def call(self, kind: type, name: str, request: object) -> object:
        """Answer of one of the node's services; None if it does not come in time."""
        if name not in self.clients:
            self.clients[name] = self.observer.create_client(kind, f'/cam/visual_imu/{name}')
        assert self.clients[name].wait_for_service(DEADLINE_S), self.log.read_text()
        future = self.clients[name].call_async(request)
        rclpy.spin_until_future_complete(self.observer, future, timeout_sec=5.0)
        return future.result()

    def state(self) -> int | None:
        """Present state of the lifecycle; None if the node is too busy to answer."""
        answer = self.call(GetState, 'get_state', GetState.Request())
        return answer and answer.current_state.id

    def wait_for(self, reached: Callable[[], bool]) -> None:
        """Wait until something holds; fail with the log after the deadline."""
        deadline = time.monotonic() + DEADLINE_S
        while not reached():
            assert time.monotonic() < deadline, self.log.read_text()
            rclpy.spin_once(self.observer, timeout_sec=0.1)

    def stop(self) -> int:
        """Interrupt as Ctrl-C does; exit status of the launch."""
        return interrupt(self.process)


@pytest.fixture
def launched(observer: rclpy.node.Node, tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    """Start the launch file with arguments; ended after the test."""
    runs: list[Launched] = []

    def start(*arguments: str) -> Launched:
        runs.append(Launched(observer, tmp_path / f'launch_{len(runs)}.log', *arguments))
        return runs[-1]

    yield start
    for run in runs:
        if run.process.poll() is None:
            run.stop()


def test_parameter_file_gives_the_defaults_in_any_namespace() -> None:
    rclpy.init(args=['--ros-args', '--params-file', str(PARAMS_FILE), '-r', '__ns:=/cam'])
    try:
        node = rclpy.create_node('in_file', automatically_declare_parameters_from_overrides=True)
        assert {name for name, _, _ in ros_parameters()} <= set(node.get_parameters_by_prefix(''))
        node.destroy_node()
        node = rclpy.create_node('renamed')
        assert NodeParameters(node).config == VisualImuConfig()
        node.destroy_node()
    finally:
        rclpy.try_shutdown()


@needs_launch
def test_launch_file_activates_the_node_with_the_values_given(
        launched: Callable[..., Launched], tmp_path: Path) -> None:
    params_file = tmp_path / 'mine.yaml'
    params_file.write_text('/**:\n  ros__parameters:\n    exposure_time: 0.02\n'
                           '    stream: {max_gap: 0.25}\n')
    run = launched('namespace:=cam', f'params_file:={params_file}', 'exposure_time:=5e-3',
                   'estimator.device:=cpu', 'image_topic:=/front/image_raw')
    run.wait_for(lambda: run.state() == State.PRIMARY_STATE_ACTIVE)
    names = ['exposure_time', 'stream.max_gap', 'estimator.device', 'stamp_reference']
    values = run.call(GetParameters, 'get_parameters', GetParameters.Request(names=names)).values
    assert values[0].double_value == 0.005, 'a launch argument beats the file'
    assert values[1].double_value == 0.25, 'the file beats the default'
    assert values[2].string_value == 'cpu'
    assert values[3].string_value == VisualImuConfig().node.stamp_reference
    run.wait_for(lambda: {'/front/image_raw', '/front/camera_info'} <= {
        topic for topic, _ in run.observer.get_subscriber_names_and_types_by_node(
            'visual_imu', '/cam')})
    assert run.stop() == 0, run.log.read_text()


@needs_launch
def test_launch_file_leaves_the_node_alone_without_autostart(
        launched: Callable[..., Launched]) -> None:
    run = launched('namespace:=cam', 'autostart:=false')
    run.wait_for(lambda: run.state() == State.PRIMARY_STATE_UNCONFIGURED)
    run.wait_for(lambda: run.process.poll() is None)
    assert run.stop() == 0, run.log.read_text()


@needs_launch
def test_node_stays_up_unconfigured_when_its_weights_are_missing(
        launched: Callable[..., Launched]) -> None:
    run = launched('namespace:=cam', 'estimator.weights:=no_such_weights')
    run.wait_for(lambda: 'cannot configure' in run.log.read_text())
    run.wait_for(lambda: run.state() == State.PRIMARY_STATE_UNCONFIGURED)
    assert 'no_such_weights' in run.log.read_text()
    assert run.stop() == 0, run.log.read_text()


@needs_launch
def test_launch_refuses_a_bad_argument(launched: Callable[..., Launched]) -> None:
    run = launched('exposure_time:=abc')
    assert run.process.wait(timeout=DEADLINE_S) == 1
    assert "exposure_time: 'abc' is a str, expected float" in run.log.read_text()
