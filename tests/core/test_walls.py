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
