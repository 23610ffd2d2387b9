"""Single-threaded processes: threads of several processes would compete for the same cores."""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def single_thread_pool(workers: int) -> ProcessPoolExecutor:
    """A process pool in which torch and the BLAS library of scikit-learn use one thread per process."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))


def map_seeds(run_seed: Callable[[int, argparse.Namespace], Result], args: argparse.Namespace) -> list[Result]:
    """What a function returns for each seed, several at a time where there are workers for them.

    Args:
        run_seed: takes a seed, and `args`; of a module, as other processes import it.
        args: with `seeds` and `workers`.
    """
    workers = min(args.workers, args.seeds)
    if workers == 1:
        return [run_seed(seed, args) for seed in range(args.seeds)]
    with single_thread_pool(workers) as pool:
        return list(pool.map(run_seed, range(args.seeds), [args] * args.seeds))
