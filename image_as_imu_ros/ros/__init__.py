"""The ROS 2 node; nothing outside this package imports rclpy."""

from image_as_imu_ros.threads import keep_threads_quiet

keep_threads_quiet()
