"""
Node `imu_arrows`: angular velocities as arrows, for viewers that have no display of Imu messages.

RViz 2 shows `geometry_msgs/TwistStamped`, but neither `sensor_msgs/Imu` (without rviz_imu_plugin)
nor twists with a covariance.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import rclpy
from geometry_msgs.msg import TwistStamped
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Imu

TOPICS = ('estimate', 'reference')
"""Imu messages come in under these names, and go out as ~/NAME."""


class ImuArrows(Node):
    """Turns the angular velocity of each Imu into a twist without a linear part."""

    def __init__(self) -> None:
        super().__init__('imu_arrows')
        for topic in TOPICS:
            publisher = self.create_publisher(TwistStamped, f'~/{topic}', 10)
            self.create_subscription(Imu, topic, self._forward_to(publisher.publish),
                                     qos_profile_sensor_data)

    def _forward_to(self, publish: Callable[[TwistStamped], None]) -> Callable[[Imu], None]:
        def forward(msg: Imu) -> None:
            twist = TwistStamped(header=msg.header)
            twist.twist.angular = msg.angular_velocity
            publish(twist)
        return forward


def main(args: list[str] | None = None) -> int:
    """Run the node until it is interrupted."""
    rclpy.init(args=args)
    try:
        rclpy.spin(ImuArrows())
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        rclpy.try_shutdown()
    return 0


if __name__ == '__main__':
    sys.exit(main())
