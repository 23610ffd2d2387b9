"""Moved to `python -m benchmarks.builtin_models.train_language`, which is in the repository only."""

from dsas_core.utils.moved import run_in_repository

if __name__ == "__main__":
    run_in_repository("benchmarks.builtin_models.train_language")
