"""
Start one `visual_imu` per camera of a stereo pair, each in its camera's namespace.

With `ekf:=true` the filter of robot_localization fuses both; the robot's TF must then lead from
base_link to both cameras. Every argument of visual_imu.launch.py, such as `exposure_time`, works
here too and goes to both nodes. More cameras are more names in `cameras`.
"""

from ament_index_python.packages import get_package_share_directory
from launch import Action, LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    GroupAction,
    IncludeLaunchDescription,
    OpaqueFunction,
)
from launch.conditions import IfCondition
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

PACKAGE = 'image_as_imu_ros'
SHARE = get_package_share_directory(PACKAGE)

ARGUMENTS = {
    'cameras': ('left right', 'namespaces of the cameras, parted by spaces'),
    'image_name': ('image_raw', 'image topic within each namespace, with camera_info beside it'),
    'ekf': ('false', 'true fuses the cameras in ekf_node'),
    'ekf_params_file': (f'{SHARE}/config/ekf.yaml', 'parameters of the filter (YAML)'),
    'use_sim_time': ('false', 'true takes the time from /clock'),
}


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments and start the nodes from them."""
    arguments = [DeclareLaunchArgument(name, default_value=default, description=description)
                 for name, (default, description) in ARGUMENTS.items()]
    return LaunchDescription([*arguments, OpaqueFunction(function=start)])


def start(context: LaunchContext) -> list[Action]:
    """Start a node for each camera, and the filter if asked."""
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    cameras = given['cameras'].split()
    actions: list[Action] = [
        GroupAction([IncludeLaunchDescription(
            PythonLaunchDescriptionSource(f'{SHARE}/launch/visual_imu.launch.py'),
            launch_arguments={'namespace': camera, 'image_topic': given['image_name']}.items())])
        for camera in cameras]
    if IfCondition(given['ekf']).evaluate(context):
        rates = [index in (9, 10, 11) for index in range(15)]
        inputs = {}
        for index, camera in enumerate(cameras):
            inputs |= {f'imu{index}': f'/{camera}/visual_imu/imu/data_raw',
                       f'imu{index}_config': rates, f'imu{index}_queue_size': 10}
        use_sim_time = IfCondition(given['use_sim_time']).evaluate(context)
        simulated = [f'{SHARE}/config/ekf_simulated_time.yaml'] if use_sim_time else []
        actions.append(Node(
            package='robot_localization', executable='ekf_node', name='ekf_filter_node',
            output='screen', parameters=[given['ekf_params_file'], *simulated, inputs,
                                         {'use_sim_time': use_sim_time}]))
    return actions
