"""
Replay a bag to `visual_imu`, compare it with the bag's IMU and, with `rviz:=true`, watch it.

With `lossless:=true` the bag waits for the node, so that a slow machine measures every image.
All nodes go by the bag's time (`use_sim_time`); the player publishes /clock. Unless told
otherwise, everything ends with the bag. Every argument of visual_imu.launch.py works here too.
"""

import sys

from ament_index_python.packages import get_package_share_directory
from launch import Action, LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
    TimerAction,
)
from launch.conditions import IfCondition
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from image_as_imu_ros.errors import ConfigError

PACKAGE = 'image_as_imu_ros'
VISUAL_IMU = f'{get_package_share_directory(PACKAGE)}/launch/visual_imu.launch.py'
WAIT_FOR_NODE_S = 120
LAST_WORDS_S = 2.0
"""From the end of the bag to that of the nodes, so that the last image is answered."""

ARGUMENTS = {
    'bag': (None, 'rosbag2 folder, or a .mcap or .db3 file'),
    'player': ('image-as-imu', 'image-as-imu waits for the node and needs no rosbag2; ros2 is '
                               '`ros2 bag play`, started after start_delay'),
    'rate': ('1.0', 'speed of the replay'),
    'lossless': ('false', 'true holds the bag before each image until the one before is answered; '
                          'with the player image-as-imu, in the time of the bag'),
    'loop': ('false', 'true starts again at the end of the bag'),
    'start_delay': ('20', 'how long `ros2 bag play` waits for the node to load [s]'),
    'end_with_bag': ('true', 'false leaves the nodes running after the bag'),
    'compare': ('true', 'false leaves out the comparison with reference_imu_topic'),
    'image_topic': ('/camera/image_raw', 'images in the bag'),
    'reference_imu_topic': ('/imu/data', "the bag's IMU"),
    'namespace': ('', 'namespace of the nodes'),
    'use_sim_time': ('true', "the bag's time; false takes the wall clock's"),
}
FLAGS = ('lossless', 'loop', 'end_with_bag', 'compare', 'use_sim_time')


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments, then start the nodes and the player."""
    arguments = [DeclareLaunchArgument(name, default_value=default, description=description)
                 for name, (default, description) in ARGUMENTS.items()]
    visual_imu = IncludeLaunchDescription(PythonLaunchDescriptionSource(VISUAL_IMU))
    return LaunchDescription([*arguments, visual_imu, OpaqueFunction(function=start)])


def start(context: LaunchContext) -> list[Action]:
    """Start the comparison and the player; end with the player."""
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    is_set = {name: IfCondition(given[name]).evaluate(context) for name in FLAGS}
    actions: list[Action] = []
    if is_set['compare']:
        actions.append(Node(
            package=PACKAGE, executable='imu_compare', name='imu_compare',
            namespace=given['namespace'], output='screen',
            parameters=[{'use_sim_time': is_set['use_sim_time']}],
            remappings=[('visual', 'visual_imu/imu/data_raw'),
                        ('imu', given['reference_imu_topic'])]))
    player = ExecuteProcess(cmd=player_command(given, is_set), name='player', output='screen')
    actions.append(player)
    if is_set['end_with_bag']:
        actions.append(RegisterEventHandler(OnProcessExit(target_action=player, on_exit=[
            TimerAction(period=LAST_WORDS_S, actions=[
                EmitEvent(event=Shutdown(reason='the bag has ended'))])])))
    return actions


def player_command(given: dict[str, str], is_set: dict[str, bool]) -> list[str]:
    """Words of the command that plays the bag."""
    loop = ['--loop'] if is_set['loop'] else []
    if given['player'] == 'ros2':
        if is_set['lossless']:
            raise ConfigError('lossless: "true" needs player:=image-as-imu; `ros2 bag play` does '
                              'not wait for answers')
        clock = ['--clock', '100'] if is_set['use_sim_time'] else []
        return ['ros2', 'bag', 'play', given['bag'], '--rate', given['rate'], '--delay',
                given['start_delay'], *clock, *loop]
    clock = ['--clock'] if is_set['use_sim_time'] else ['--restamp', 'now']
    motion = f'/{given["namespace"]}/visual_imu/motion'.replace('//', '/')
    answers = ['--answers', motion] if is_set['lossless'] else []
    return [sys.executable, '-m', PACKAGE, 'play', given['bag'], '--rate', given['rate'],
            '--wait-for-subscribers', str(WAIT_FOR_NODE_S), *clock, *loop, *answers]
