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

from image_as_imu_ros.config import VisualImuConfig, changeable_in, ros_parameters
from image_as_imu_ros.ros.parameters import NodeParameters

JUNK = '/ neither this nor that'
"""Text that no parameter takes."""

CASES = [(name, entry) for name, _, entry in ros_parameters()]
by_name = pytest.mark.parametrize('name, entry', CASES, ids=[name for name, _ in CASES])
changeable = [case for case in CASES if not case[1].metadata['read_only']]
bound = [case for case in changeable if case[1].metadata['changes_in'] != 'any state']


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
    return values + ([JUNK, 0] if isinstance(entry.default, str) else ['text'])


def other_value(entry: dataclasses.Field) -> object:
    """A good value that is not the default."""
    if entry.metadata['one_of']:
        return next(value for value in entry.metadata['one_of'] if value != entry.default)
    if isinstance(entry.default, bool):
        return not entry.default
    if isinstance(entry.default, str):
        pattern = (entry.metadata['matching'] or ('.*',))[0]
        return next(text for text in ('other', 'other.png') if re.fullmatch(pattern, text))
    return next(bound for bound in entry.metadata['range'] if bound != entry.default)


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


@by_name
def test_each_parameter_is_described_and_bounded(name, entry):
    assert len(entry.metadata['description'].split()) >= 2
    low, high = entry.metadata['range']
    if not isinstance(entry.default, (bool, str)):  # text is tried out below
        assert low is not None and high is not None and low <= entry.default <= high


def test_read_only_parameters_stay(context):
    node, _ = make_node(context)
    (result,) = node.set_parameters([Parameter('autostart', value=True)])
    assert not result.successful
    assert 'autostart' in result.reason


@pytest.mark.parametrize('name, entry', changeable, ids=[name for name, _ in changeable])
def test_what_can_change_changes_and_is_told_to_the_node(context, name, entry):
    told = []
    node = Node('parameters_under_test', context=context)
    parameters = NodeParameters(node, changed=told.append)
    (result,) = node.set_parameters([Parameter(name, value=other_value(entry))])
    assert result.successful, result.reason
    assert told[-1] == parameters.config != VisualImuConfig()


@pytest.mark.parametrize('name, entry', bound, ids=[name for name, _ in bound])
def test_what_the_state_does_not_allow_is_refused_with_the_remedy(context, name, entry):
    state = 'unconfigured'
    node = Node('parameters_under_test', context=context)
    NodeParameters(node, lambda: state)
    refusals = {}
    for state in ('active', 'inactive', 'unconfigured'):  # noqa: B007  of the lambda
        (same,) = node.set_parameters([Parameter(name, value=entry.default)])
        assert same.successful, 'what stays as it is may be set in any state'
        (result,) = node.set_parameters([Parameter(name, value=other_value(entry))])
        refusals[state] = '' if result.successful else result.reason
        node.set_parameters([Parameter(name, value=entry.default)])
    assert name in refusals['active'] and 'deactivate' in refusals['active']
    assert ('clean up' in refusals['inactive']) == (changeable_in(entry) == 'unconfigured')
    assert not refusals['unconfigured']


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
