"""
Start the lifecycle node `visual_imu`, which then configures and activates itself.

Every parameter of the node is also a launch argument. Precedence, lowest first: the node's
default, the file `params_file`, the launch argument.
"""

from pathlib import PurePosixPath

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode

from image_as_imu_ros.config import describe, ros_parameter_from_text, ros_parameters

PACKAGE = 'image_as_imu_ros'
PARAMS_FILE = f'{get_package_share_directory(PACKAGE)}/config/visual_imu.yaml'

ARGUMENTS = {
    'namespace': ('', 'namespace of the node and of its relative topics'),
    'params_file': (PARAMS_FILE, 'ROS parameter file (YAML)'),
    'use_sim_time': ('', 'true takes the time from /clock, for simulation and bags'),
    'log_level': ('info', 'debug, info, warn, error or fatal'),
    'image_topic': ('image', 'images to measure'),
    'camera_info_topic': ('', 'their intrinsics; empty for camera_info beside image_topic'),
    'exposure_topic': ('exposure_time', 'their exposure times, where use_exposure_topic is true'),
}
PARAMETERS = {name: describe(entry) for name, _, entry in ros_parameters()}


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments and start the node from them."""
    arguments = [DeclareLaunchArgument(name, default_value=default, description=description)
                 for name, (default, description) in ARGUMENTS.items()]
    arguments += [
        DeclareLaunchArgument(name, default_value='true' if name == 'autostart' else '',
                              description=f'{description}; empty: as in params_file')
        for name, description in PARAMETERS.items()]
    return LaunchDescription([*arguments, OpaqueFunction(function=start_node)])


def start_node(context: LaunchContext) -> list[LifecycleNode]:
    """
    Make the node's action.

    :raises ConfigError: if a launch argument is not a value that its parameter can take
    """
    given = {name: LaunchConfiguration(name).perform(context)
             for name in (*ARGUMENTS, *PARAMETERS)}
    overrides = {name: ros_parameter_from_text(name, given[name])
                 for name in PARAMETERS if given[name]}
    if given['use_sim_time']:
        overrides['use_sim_time'] = given['use_sim_time'].lower() == 'true'
    image_topic = given['image_topic']
    info_topic = given['camera_info_topic'] or str(
        PurePosixPath(image_topic).with_name('camera_info'))
    return [LifecycleNode(
        package=PACKAGE, executable='visual_imu', name='visual_imu',
        namespace=given['namespace'], output='screen',
        parameters=[given['params_file'], overrides],
        remappings=[('image', image_topic), ('camera_info', info_topic),
                    ('exposure_time', given['exposure_topic'])],
        ros_arguments=['--log-level', f'visual_imu:={given["log_level"]}'])]
