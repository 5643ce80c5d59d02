"""ROS parameters of the typed config: declared, checked and followed, never listed twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

from image_as_imu_ros.config import VisualImuConfig, changeable_in, describe, ros_parameters
from image_as_imu_ros.errors import ConfigError


class NodeParameters:
    """
    Declares a parameter for every setting, and keeps `config` equal to their values.

    Values that the config refuses are refused, by name and with the reason, and so are changes
    that the present state of the lifecycle does not allow.

    :param state: tells the node's: 'active', 'inactive', 'unconfigured' or one in between
    :param changed: called with the new config after each change
    :raises rclpy.exceptions.ParameterException: if an override is out of range or of the wrong
        type
    """

    def __init__(self, node: Node, state: Callable[[], str] = lambda: 'unconfigured',
                 changed: Callable[[VisualImuConfig], None] = lambda _: None) -> None:
        self.config = VisualImuConfig()
        self._state, self._on_change = state, changed
        self._fields = {name: (section, entry) for name, section, entry in ros_parameters()}
        self._applies_when_checked = not hasattr(node, 'add_post_set_parameters_callback')
        node.add_on_set_parameters_callback(self._check)
        if not self._applies_when_checked:  # Humble has no callback after the fact
            node.add_post_set_parameters_callback(self._apply)
        for name, (_, entry) in self._fields.items():
            node.declare_parameter(name, entry.default, _descriptor(entry))

    def _changed(self, parameters: Iterable[Parameter]) -> VisualImuConfig:
        """
        Config after a change; parameters of others (QoS overrides) do not matter.

        :raises ConfigError: if a value is out of range, contradicts another or cannot change now
        """
        config = self.config
        for parameter in parameters:
            if parameter.name not in self._fields:
                continue
            section, entry = self._fields[parameter.name]
            self._check_state(parameter, getattr(getattr(config, section), entry.name))
            try:
                changed = dataclasses.replace(
                    getattr(config, section), **{entry.name: parameter.value})
            except ConfigError as error:
                prefix = parameter.name[:-len(entry.name)]
                raise ConfigError(f'{prefix}{error}') from error
            config = dataclasses.replace(config, **{section: changed})
        return config

    def _check_state(self, parameter: Parameter, present: Any) -> None:
        """
        Let a value change only where the node can follow.

        :raises ConfigError: if the node must be deactivated, or cleaned up too, before
        """
        needed = self._fields[parameter.name][1].metadata['changes_in']
        state = self._state()
        if needed == 'any state' or parameter.value == present or state in (
                needed, 'unconfigured'):
            return
        remedy = 'deactivate' if needed == 'inactive' else 'deactivate and clean up'
        raise ConfigError(f'{parameter.name}: cannot change while the node is {state}; '
                          f'{remedy} first')

    def _check(self, parameters: list[Parameter]) -> SetParametersResult:
        """Accept or refuse a change."""
        try:
            config = self._changed(parameters)
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        if self._applies_when_checked:
            self._take(config)
        return SetParametersResult(successful=True)

    def _apply(self, parameters: list[Parameter]) -> None:
        """Take over a change that was accepted."""
        self._take(self._changed(parameters))

    def _take(self, config: VisualImuConfig) -> None:
        self.config = config
        self._on_change(config)


def _descriptor(entry: dataclasses.Field) -> ParameterDescriptor:
    """What `ros2 param describe` and rqt show of a field."""
    low, high = entry.metadata['range']
    descriptor = ParameterDescriptor(
        description=describe(entry), read_only=entry.metadata['read_only'])
    constraints = []
    if entry.metadata['one_of']:
        constraints.append(f'one of: {", ".join(entry.metadata["one_of"])}')
    if entry.metadata['matching']:
        constraints.append(entry.metadata['matching'][1])
    if changeable_in(entry) != 'any state':
        constraints.append(f'changes in: {changeable_in(entry)}')
    descriptor.additional_constraints = '; '.join(constraints)
    if isinstance(entry.default, float):
        descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
    elif isinstance(entry.default, int) and low is not None:
        descriptor.integer_range = [IntegerRange(from_value=low, to_value=high)]
    return descriptor
