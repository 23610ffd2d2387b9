"""What the README says is what was measured."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def results() -> Any:
    """benchmarks/results.py, which is a script and in no package."""
    spec = importlib.util.spec_from_file_location("results", ROOT / "benchmarks" / "results.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_results_is_the_generated_one(results: Any) -> None:
    document = json.loads(results.FIGURES.read_text())
    readme = (ROOT / "README.md").read_text()
    assert results.readme_with(readme, results.overview(document)) == readme, "run benchmarks/results.py"
    assert results.MARKS[0] in readme
    assert results.overview(document) in (ROOT / "docs" / "results.md").read_text()
    assert len(document["concepts"]) >= 11


def test_files_that_the_readme_names_are_there() -> None:
    readme = (ROOT / "README.md").read_text()
    linked = re.findall(r"\]\(([^)#:]+)\)", readme)
    assert linked
    assert [path for path in linked if not (ROOT / path).exists()] == []
    scripts = re.findall(r"(benchmarks/\w+\.(?:py|yaml))", readme)
    assert [path for path in scripts if not (ROOT / path).exists()] == []
