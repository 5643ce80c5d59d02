"""The command `image-as-imu`: one module per verb."""
