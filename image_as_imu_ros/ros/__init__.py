"""The ROS 2 node; nothing outside this package imports rclpy."""

import os

# The solver's matrices are small: BLAS threads would only wait for each other and for torch's.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
