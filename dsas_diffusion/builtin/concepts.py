"""Moved to `python -m benchmarks.builtin_models.concepts`, which is in the repository only; cards name this place."""

from dsas_core.utils.moved import run_in_repository

if __name__ == "__main__":
    run_in_repository("benchmarks.builtin_models.concepts")
