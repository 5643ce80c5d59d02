"""ROS parameters of the typed config: declared, checked and read back, never listed twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

from image_as_imu_ros.config import VisualImuConfig, describe, from_dict, ros_parameters
from image_as_imu_ros.errors import ConfigError


def declare_parameters(node: Node) -> None:
    """
    Declare a parameter for every field of VisualImuConfig and refuse bad values from then on.

    :raises rclpy.exceptions.ParameterException: if an override is out of range or of the wrong
        type
    """
    node.add_on_set_parameters_callback(_check)
    for name, _, entry in ros_parameters():
        node.declare_parameter(name, entry.default, _descriptor(entry))


def read_config(node: Node) -> VisualImuConfig:
    """Config of the parameters' present values."""
    values: dict[str, dict[str, Any]] = {}
    for name, section, entry in ros_parameters():
        values.setdefault(section, {})[entry.name] = node.get_parameter(name).value
    return from_dict(VisualImuConfig, values)


def _descriptor(entry: dataclasses.Field) -> ParameterDescriptor:
    """What `ros2 param describe` and rqt show of a field."""
    low, high = entry.metadata['range']
    descriptor = ParameterDescriptor(
        description=describe(entry), read_only=entry.metadata['read_only'])
    if entry.metadata['one_of']:
        descriptor.additional_constraints = f'one of: {", ".join(entry.metadata["one_of"])}'
    if isinstance(entry.default, float):
        descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
    elif isinstance(entry.default, int) and low is not None:
        descriptor.integer_range = [IntegerRange(from_value=low, to_value=high)]
    return descriptor


def _check(parameters: Iterable[Parameter]) -> SetParametersResult:
    """Refuse values that the config refuses; parameters of others (QoS overrides) pass."""
    known = {name: (section, entry) for name, section, entry in ros_parameters()}
    for parameter in parameters:
        if parameter.name in known:
            section, entry = known[parameter.name]
            try:
                from_dict(VisualImuConfig, {section: {entry.name: parameter.value}})
            except ConfigError as error:
                prefix = parameter.name[:-len(entry.name)]
                return SetParametersResult(successful=False, reason=f'{prefix}{error}')
    return SetParametersResult(successful=True)
