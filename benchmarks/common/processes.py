"""Single-threaded processes: threads of several processes would compete for the same cores."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor


def single_thread_pool(workers: int) -> ProcessPoolExecutor:
    """A process pool in which torch and the BLAS library of scikit-learn use one thread per process."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
