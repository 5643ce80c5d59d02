"""The ROS 2 node; nothing outside this package imports rclpy."""
