"""Modules of the packages that are now programs of the repository; each leaves a stub that calls this."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def run_in_repository(module: str) -> None:
    """Run a module of the repository that the packages lie in; without one, exit with a line that says where it is.

    Args:
        module: its full name, such as "benchmarks.builtin_models.concepts".
    """
    repository = Path(__file__).parents[2]
    file = f"{module.replace('.', '/')}.py"
    if not (repository / file).is_file():
        sys.exit(f"this has moved to {file} of the repository, which is not here: run python -m {module} there")
    sys.path.insert(0, str(repository))
    runpy.run_module(module, run_name="__main__", alter_sys=True)
