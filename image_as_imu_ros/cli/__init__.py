"""The command `image-as-imu`: one module per verb."""

import os

# As of the node: the solver's matrices are small, and BLAS threads would wait for torch's.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
