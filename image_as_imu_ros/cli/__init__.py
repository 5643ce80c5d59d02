"""The command `image-as-imu`: one module per verb."""

from image_as_imu_ros.threads import keep_threads_quiet

keep_threads_quiet()
