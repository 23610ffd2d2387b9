"""What people look up is documented: every public name, probe, map, gate and method, with an example that runs.

The examples themselves run as doctests of the packages (`--doctest-modules` in pyproject.toml).
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dsas_core
import dsas_diffusion
from dsas_core import llm, maps, methods, probes
from dsas_core.methods.base.gate import Gate
from dsas_core.methods.base.map_method import MapMethod

PACKAGES = (dsas_core, dsas_diffusion)


def subclasses(kind: type) -> Iterator[type]:
    for own in kind.__subclasses__():
        if own.__module__.startswith(("dsas_core", "dsas_diffusion")):
            yield own
            yield from subclasses(own)


def public() -> dict[str, Any]:
    """Whatever users find by name: exported functions and classes, and every probe, map, gate and method."""
    for module in pkgutil.walk_packages(methods.__path__, "dsas_core.methods."):
        importlib.import_module(module.name)
    names = {
        f"{module.__name__}.{name}": getattr(module, name)
        for module in (dsas_core, dsas_core.prompts, llm, dsas_diffusion, probes, maps, methods)
        for name in module.__all__
    }
    kinds = [kind for base in (probes.Probe, maps.Map, Gate, MapMethod) for kind in subclasses(base)]
    names |= {f"{kind.__module__}.{kind.__qualname__}": kind for kind in kinds if not kind.__name__.startswith("_")}
    ours = {
        name: value
        for name, value in names.items()
        if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__.startswith("dsas")
    }
    unique = {id(value): (name, value) for name, value in ours.items()}
    return dict(unique.values())


PUBLIC = public()


def needs_no_example(value: Any) -> bool:
    """Errors, and bases that are only subclassed: what comes of them has its own example."""
    return inspect.isclass(value) and (issubclass(value, Exception) or bool(value.__subclasses__()))


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_a_summary_and_an_example(name: str) -> None:
    value = PUBLIC[name]
    doc = value.__doc__ or ""
    assert doc.strip(), "no docstring"
    assert needs_no_example(value) or ">>>" in doc, "no example"


@pytest.mark.parametrize("name", [name for name, value in PUBLIC.items() if inspect.isfunction(value)])
def test_a_public_function_tells_its_arguments(name: str) -> None:
    value = PUBLIC[name]
    taken = [each for each in inspect.signature(value).parameters.values() if each.kind is not each.VAR_KEYWORD]
    doc = value.__doc__ or ""
    untold = [each.name for each in taken if not re.search(rf"^\s+\*?{each.name}( \(.*\))?: ", doc, re.MULTILINE)]
    assert len(taken) == 1 or untold == [], "say what they are, one a line, under Args:"


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            doc = ast.get_docstring(node)
            if doc:
                yield node.lineno, doc


def test_arguments_are_told_one_a_line() -> None:
    crowded = []
    for package in PACKAGES:
        for path in sorted(Path(package.__path__[0]).rglob("*.py")):
            for line, doc in docstrings(path):
                _, _, section = doc.partition("Args:\n")
                args = section.split("\n\n")[0]
                crowded += [f"{path}:{line} {hit}" for hit in re.findall(r"^ {4}(\w+(?:, \w+)+): ", args, re.MULTILINE)]
    assert crowded == []
