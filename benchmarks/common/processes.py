"""Processes of one thread each: threads of several processes on the same cores would wait for one another."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor


def single_threaded(workers: int) -> ProcessPoolExecutor:
    """A pool whose processes compute in one thread each: torch, and the algebra that scikit-learn runs on."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
