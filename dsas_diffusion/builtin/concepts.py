"""Moved to `python -m benchmarks.builtin_models.concepts`, which is in the repository only; cards name this place."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    repository = Path(__file__).parents[2]
    if not (repository / "benchmarks" / "builtin_models").is_dir():
        sys.exit("this moved to benchmarks/builtin_models/concepts.py of the repository: run it there")
    sys.path.insert(0, str(repository))
    runpy.run_module("benchmarks.builtin_models.concepts", run_name="__main__")
