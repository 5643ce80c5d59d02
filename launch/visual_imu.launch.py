"""
Start the lifecycle node `visual_imu`; unless told otherwise, configure and activate it.

`rviz:=true` shows what it sees and says in RViz 2, and beside it the IMU `reference_imu_topic`.

The parameters of the node are launch arguments too. Precedence, lowest first: the node's default,
the file `params_file`, the launch argument.
"""

from pathlib import PurePosixPath

from ament_index_python.packages import get_package_share_directory
from launch import Action, LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, EmitEvent, OpaqueFunction, RegisterEventHandler
from launch.conditions import IfCondition
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from lifecycle_msgs.msg import Transition

from image_as_imu_ros.config import describe, ros_parameter_from_text, ros_parameters

PACKAGE = 'image_as_imu_ros'
CONFIG = f'{get_package_share_directory(PACKAGE)}/config'
PARAMS_FILE = f'{CONFIG}/visual_imu.yaml'

ARGUMENTS = {
    'namespace': ('', 'namespace of the node and of its relative topics'),
    'params_file': (PARAMS_FILE, 'ROS parameter file (YAML)'),
    'use_sim_time': ('', 'true takes the time from /clock, for simulation and bags'),
    'log_level': ('info', 'debug, info, warn, error or fatal'),
    'autostart': ('true', 'false leaves configuring and activating to others'),
    'image_topic': ('image', 'images to measure'),
    'camera_info_topic': ('', 'their intrinsics; empty for camera_info beside image_topic'),
    'exposure_topic': ('', 'their exposure times, with use_exposure_topic:=true; '
                           'empty for exposure_time beside image_topic'),
    'depth_topic': ('', 'their aligned depth, with use_depth_topic:=true; '
                        'empty for depth beside image_topic'),
    'rviz': ('false', 'true starts RViz 2 with a view of images, axes and rates'),
    'rviz_config': (f'{CONFIG}/visual_imu.rviz', 'what RViz 2 shows'),
    'fixed_frame': ('', 'frame that RViz 2 looks from; empty for the one in rviz_config'),
    'reference_imu_topic': ('imu/data_raw', 'a real IMU, whose rate RViz 2 shows beside ours'),
}
PARAMETERS = {name: describe(entry) for name, _, entry in ros_parameters()
              if name not in ARGUMENTS}


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments and start the node from them."""
    arguments = [DeclareLaunchArgument(name, default_value=default, description=description)
                 for name, (default, description) in ARGUMENTS.items()]
    arguments += [DeclareLaunchArgument(name, default_value='',
                                        description=f'{description}; empty: as in params_file')
                  for name, description in PARAMETERS.items()]
    return LaunchDescription([*arguments, OpaqueFunction(function=start)])


def start(context: LaunchContext) -> list[Action]:
    """
    Start the node, then let it change state as far as asked.

    :raises ConfigError: if a launch argument is not a value that its parameter can take
    """
    given = {name: LaunchConfiguration(name).perform(context)
             for name in (*ARGUMENTS, *PARAMETERS)}
    overrides = {name: ros_parameter_from_text(name, given[name])
                 for name in PARAMETERS if given[name]}
    overrides['autostart'] = False  # of the node itself: here its state is changed from outside
    clock = {}
    if given['use_sim_time']:
        clock['use_sim_time'] = IfCondition(given['use_sim_time']).evaluate(context)
    image_topic = PurePosixPath(given['image_topic'])
    info_topic = given['camera_info_topic'] or image_topic.with_name('camera_info')
    exposure_topic = given['exposure_topic'] or image_topic.with_name('exposure_time')
    depth_topic = given['depth_topic'] or image_topic.with_name('depth')
    node = LifecycleNode(
        package=PACKAGE, executable='visual_imu', name='visual_imu',
        namespace=given['namespace'], output='screen',
        parameters=[given['params_file'], overrides, clock],
        remappings=[('image', str(image_topic)), ('camera_info', str(info_topic)),
                    ('exposure_time', str(exposure_topic)), ('depth', str(depth_topic))],
        ros_arguments=['--log-level', f'visual_imu:={given["log_level"]}'])
    viewers = viewer(given, clock) if IfCondition(given['rviz']).evaluate(context) else []
    if not IfCondition(given['autostart']).evaluate(context):
        return [node, *viewers]
    activate_when_configured = RegisterEventHandler(OnStateTransition(
        target_lifecycle_node=node, start_state='configuring', goal_state='inactive',
        entities=[change_state(node, Transition.TRANSITION_ACTIVATE)]))
    return [activate_when_configured, node,
            change_state(node, Transition.TRANSITION_CONFIGURE), *viewers]


def viewer(given: dict[str, str], clock: dict[str, bool]) -> list[Action]:
    """RViz 2, and the node that turns angular velocities into arrows for it."""
    arguments = ['-d', given['rviz_config']]
    if given['fixed_frame']:
        arguments += ['-f', given['fixed_frame']]
    return [
        Node(package=PACKAGE, executable='imu_arrows', namespace=given['namespace'],
             parameters=[clock], remappings=[('estimate', 'visual_imu/imu/data_raw'),
                                             ('reference', given['reference_imu_topic'])]),
        Node(package='rviz2', executable='rviz2', name='rviz', namespace=given['namespace'],
             arguments=arguments, parameters=[clock])]


def change_state(node: LifecycleNode, transition_id: int) -> EmitEvent:
    """Action that asks the node for a transition, once its service is there."""
    return EmitEvent(event=ChangeState(
        lifecycle_node_matcher=matches_action(node), transition_id=transition_id))
