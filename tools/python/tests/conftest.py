"""One BLAS thread: the matrices here are tiny, and spinning threads are slow on a busy machine."""

import os

for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"
