"""`python -m image_as_imu_ros` is the command `image-as-imu`."""

import sys

from image_as_imu_ros.cli.main import main

if __name__ == '__main__':
    sys.exit(main())
