"""ROS parameters are the typed config: same names, defaults, bounds and refusals."""

import dataclasses
import re

import pytest

pytest.importorskip('rclpy')

import rclpy
from rclpy.context import Context
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.parameter import Parameter

from image_as_imu_ros.config import VisualImuConfig, ros_parameters
from image_as_imu_ros.ros.parameters import NodeParameters

CASES = [(name, entry) for name, _, entry in ros_parameters()]
by_name = pytest.mark.parametrize('name, entry', CASES, ids=[name for name, _ in CASES])
changeable = [case for case in CASES if not case[1].metadata['read_only']]


@pytest.fixture
def context():
    context = Context()
    rclpy.init(context=context)
    yield context
    context.shutdown()


def make_node(context: Context, **overrides) -> tuple[Node, NodeParameters]:
    node = Node('parameters_under_test', context=context, parameter_overrides=[
        Parameter(name, value=value) for name, value in overrides.items()])
    return node, NodeParameters(node)


def unacceptable_values(entry: dataclasses.Field) -> list:
    """Values just outside a field's bounds, outside its choices, and of another type."""
    low, high = entry.metadata['range']
    step = 1 if isinstance(entry.default, int) else 1e-3
    values = [low - step] if low is not None else []
    values += [high + step] if high is not None else []
    values += [float('nan')] if isinstance(entry.default, float) else []
    values += ['neither'] if entry.metadata['one_of'] else []
    return values + [0 if isinstance(entry.default, str) else 'text']


def test_defaults_are_those_of_the_config(context):
    assert make_node(context)[1].config == VisualImuConfig()


def test_overrides_arrive_in_their_section(context):
    overrides = {'estimator.working_size': 256, 'exposure_time': 0.004}
    config = make_node(context, **overrides)[1].config
    assert config.estimator.working_size == 256
    assert config.node.exposure_time == 0.004


@by_name
def test_descriptors_say_what_the_config_says(context, name, entry):
    descriptor = make_node(context)[0].describe_parameter(name)
    assert descriptor.description.startswith(entry.metadata['description'])
    assert entry.metadata['unit'] in descriptor.description
    assert descriptor.read_only == entry.metadata['read_only']
    for choice in entry.metadata['one_of']:
        assert choice in descriptor.additional_constraints
    if entry.metadata['range'] != (None, None):
        (bounds,) = descriptor.floating_point_range or descriptor.integer_range
        assert (bounds.from_value, bounds.to_value) == entry.metadata['range']


@by_name
def test_bad_overrides_are_refused_by_name(context, name, entry):
    for value in unacceptable_values(entry):
        with pytest.raises(ParameterException, match=re.escape(name)):
            make_node(context, **{name: value})


@pytest.mark.parametrize('name, entry', changeable, ids=[name for name, _ in changeable])
def test_bad_values_at_run_time_are_refused_and_change_nothing(context, name, entry):
    node, parameters = make_node(context)
    for value in unacceptable_values(entry):
        (result,) = node.set_parameters([Parameter(name, value=value)])
        assert not result.successful
        assert name in result.reason or 'type' in result.reason
    assert node.get_parameter(name).value == entry.default
    assert parameters.config == VisualImuConfig()


def test_read_only_parameters_stay(context):
    node, _ = make_node(context)
    (result,) = node.set_parameters([Parameter('estimator.weights', value='other')])
    assert not result.successful
    assert 'estimator.weights' in result.reason


@pytest.mark.parametrize('distribution', ['humble', 'later'])
def test_changes_at_run_time_are_followed(context, distribution, monkeypatch):
    if distribution == 'humble':
        monkeypatch.delattr(Node, 'add_post_set_parameters_callback')
    node, parameters = make_node(context)
    (result,) = node.set_parameters([Parameter('stamp_reference', value='end')])
    assert result.successful
    assert parameters.config.node.stamp_reference == 'end'


def test_parameters_of_others_pass(context):
    node, _ = make_node(context)
    node.declare_parameter('qos_overrides./image.subscription.depth', 1)
    assert node.set_parameters(
        [Parameter('qos_overrides./image.subscription.depth', value=5)])[0].successful
