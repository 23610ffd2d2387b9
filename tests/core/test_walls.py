"""What the packages may import, and who may touch a model."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
HEAVY = ("diffusers", "transformers", "sklearn", "huggingface_hub", "gradio", "matplotlib", "torch._dynamo")


@pytest.mark.parametrize("package", ["dsas_core", "dsas_diffusion"])
def test_importing_a_package_brings_in_nothing_heavy(package: str) -> None:
    code = f"import sys, torch, {package}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert sorted(set(HEAVY) & set(run.stdout.split())) == []


def sources(*packages: str) -> dict[str, str]:
    files = (path for package in packages for path in (REPOSITORY / package).rglob("*.py"))
    return {str(path.relative_to(REPOSITORY)): path.read_text() for path in files}


def imported(text: str) -> set[str]:
    """Top-level names of every import in a source, also inside functions."""
    nodes = list(ast.walk(ast.parse(text)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.split(".")[0] for name in names}


def import_graph(*packages: str) -> dict[str, set[str]]:
    """Module -> modules of the packages that it imports, also inside functions; imports for type checkers aside."""
    files = {name.removesuffix(".py").replace("/", "."): text for name, text in sources(*packages).items()}
    modules = {name.removesuffix(".__init__"): (name, text) for name, text in files.items()}
    graph: dict[str, set[str]] = {}
    for module, (name, text) in modules.items():
        tree = ast.parse(text)
        branches = [node for node in ast.walk(tree) if isinstance(node, ast.If)]
        typing = [node for node in branches if "TYPE_CHECKING" in ast.dump(node.test)]
        skipped = {id(child) for node in typing for child in ast.walk(node)}
        found = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and id(node) not in skipped:
                above = name.split(".")[: -node.level] if node.level else []
                base = ".".join([*above, *([node.module] if node.module else [])])
                found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base for alias in node.names}
            elif isinstance(node, ast.Import) and id(node) not in skipped:
                found |= {alias.name for alias in node.names}
        own = {module[:end] for end in range(len(module) + 1) if module[end : end + 1] in ("", ".")}  # and its packages
        graph[module] = (found & set(modules)) - own
    return graph


def test_no_modules_import_one_another_in_a_circle() -> None:
    graph = import_graph("dsas_core", "dsas_diffusion")
    while leaves := {module for module, others in graph.items() if not others & set(graph)}:
        graph = {module: others for module, others in graph.items() if module not in leaves}
    circles = {module: sorted(others & set(graph)) for module, others in graph.items()}
    assert circles == {}, "these import one another, or what does"


def test_only_one_file_registers_hooks() -> None:
    found = [name for name, text in sources("dsas_core", "dsas_diffusion").items() if "register_forward" in text]
    assert found == ["dsas_core/hooks.py"]


def test_the_core_knows_no_diffusion_and_nobody_unpickles() -> None:
    core = sources("dsas_core")
    assert [name for name, text in core.items() if {"diffusers", "dsas_diffusion"} & imported(text)] == []
    everything = core | sources("dsas_diffusion")
    unpickling = [
        name for name, text in everything.items() if re.search(r"\bpickle\.|torch\.load\(|yaml\.load\(", text)
    ]
    assert [name for name in unpickling if "/builtin/" not in name] == [], "training reads its own checkpoints"
