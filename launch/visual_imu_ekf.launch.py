"""
Start `visual_imu` and fuse what it says in the filter of robot_localization.

The camera's place on the robot is told by camera_x to camera_yaw, as the pose of its body axes
(x forward, y left, z up) in base_frame; who publishes that transform already says
`publish_camera_tf:=false`. Every argument of visual_imu.launch.py works here too.
"""

from ament_index_python.packages import get_package_share_directory
from launch import Action, LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.conditions import IfCondition
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from image_as_imu_ros.ros.transforms import optical_transform

PACKAGE = 'image_as_imu_ros'
SHARE = get_package_share_directory(PACKAGE)
SIMULATED_TIME_FILE = f'{SHARE}/config/ekf_simulated_time.yaml'
POSE = ('camera_x', 'camera_y', 'camera_z', 'camera_roll', 'camera_pitch', 'camera_yaw')

ARGUMENTS = {
    'ekf_params_file': (f'{SHARE}/config/ekf.yaml', 'parameters of the filter (YAML)'),
    'fuse_twist': ('true', 'also fuse the linear velocity, to the scale of the assumed scene '
                           'depth; false where something else, such as wheels, measures it'),
    'publish_camera_tf': ('true', 'false where another node publishes the transform between '
                                  'base_frame and camera_frame'),
    'base_frame': ('base_link', "the robot's frame, as base_link_frame in ekf_params_file"),
    'camera_frame': ('camera_optical_frame', "the frame_id of the camera's images"),
    'namespace': ('', 'namespace of the nodes and of their relative topics'),
    'use_sim_time': ('false', 'true takes the time from /clock, for simulation and bags'),
}


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments and start the nodes from them."""
    arguments = [DeclareLaunchArgument(name, default_value=default, description=description)
                 for name, (default, description) in ARGUMENTS.items()]
    arguments += [DeclareLaunchArgument(
        name, default_value='0.0', description=f'{name[-1] if len(name) == 8 else name[7:]} of '
        f'the camera in base_frame [{"m" if len(name) == 8 else "rad"}]') for name in POSE]
    visual_imu = IncludeLaunchDescription(PythonLaunchDescriptionSource(
        f'{SHARE}/launch/visual_imu.launch.py'))
    return LaunchDescription([*arguments, visual_imu, OpaqueFunction(function=start)])


def start(context: LaunchContext) -> list[Action]:
    """Publish the camera's place and run the filter."""
    given = {name: LaunchConfiguration(name).perform(context) for name in (*ARGUMENTS, *POSE)}
    clock = {'use_sim_time': IfCondition(given['use_sim_time']).evaluate(context)}
    simulated = [SIMULATED_TIME_FILE] if clock['use_sim_time'] else []
    transform = optical_transform(*(float(given[name]) for name in POSE))
    t, q = transform.translation, transform.rotation
    pose = {'--x': t.x, '--y': t.y, '--z': t.z, '--qx': q.x, '--qy': q.y, '--qz': q.z, '--qw': q.w,
            '--frame-id': given['base_frame'], '--child-frame-id': given['camera_frame']}
    twist = {}
    if IfCondition(given['fuse_twist']).evaluate(context):
        twist = {'twist0': 'visual_imu/twist', 'twist0_queue_size': 10,
                 'twist0_config': [i in (6, 7, 8) for i in range(15)]}
    return [
        Node(package='tf2_ros', executable='static_transform_publisher',
             name='camera_transform', namespace=given['namespace'], parameters=[clock],
             arguments=[str(word) for pair in pose.items() for word in pair],
             condition=IfCondition(given['publish_camera_tf'])),
        Node(package='robot_localization', executable='ekf_node', name='ekf_filter_node',
             namespace=given['namespace'], output='screen',
             parameters=[given['ekf_params_file'], *simulated, twist,
                         {'base_link_frame': given['base_frame']}, clock])]
