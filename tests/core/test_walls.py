"""The walls of the house: what may import what, who may touch a model, and how large a piece may be.

CONTRIBUTING.md explains them.
"""

from __future__ import annotations

import ast
import graphlib
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("dsas_core", "dsas_diffusion")
HEAVY = (
    "diffusers",
    "transformers",
    "jinja2",
    "sklearn",
    "scipy",
    "huggingface_hub",
    "gradio",
    "matplotlib",
    "torch._dynamo",
)

#: rooms of each package, from the ground floor up: a room imports from its own floor and from those below
FLOORS = {
    "dsas_core": (
        ("errors",),
        ("utils",),
        ("model",),
        ("probes", "maps"),
        ("methods", "concept"),
        ("steering",),
        ("learning",),
        ("evaluation",),
        ("llm",),
    ),
    "dsas_core.llm": (("model",), ("steering",), ("learning", "flas"), ("builtin",), ("evaluation",)),
    "dsas_diffusion": (
        ("pipelines", "builtin"),
        ("generation",),
        ("steering",),
        ("drawing",),
        ("vision",),
        ("learning",),
        ("evaluation",),
        ("ui",),
        ("cli",),
    ),
}

#: entries of a folder, lines of a file, code lines of a function, lines and attributes of a class; what is larger
#: says why in a comment `# size: ...`, in the file's first lines or right above the definition
MOST_ENTRIES, MOST_LINES, MOST_FUNCTION_LINES, MOST_CLASS_LINES, MOST_ATTRIBUTES = 12, 400, 60, 250, 15
#: folders that list things of one kind, and may have more
CATALOGUES = ("probes", "maps", "gates", "gated_maps", "families", "commands", "tabs", "concepts")


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for package in PACKAGES for path in sorted((REPOSITORY / package).rglob("*.py"))}


def imports(name: str, path: Path) -> Iterator[str]:
    """Every module that a file imports, by its full name, also inside functions."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in FILES else base


GRAPH = {name: {other for other in imports(name, path) if other != name} for name, path in FILES.items()}


def room(module: str, house: str) -> str | None:
    """The room of a package that a module is in; None where it is in another package, or in none of its rooms."""
    if not module.startswith(f"{house}."):
        return None
    return module.removeprefix(f"{house}.").split(".")[0]


def test_no_import_circles() -> None:
    ours = {name: others & set(FILES) for name, others in GRAPH.items()}
    try:
        graphlib.TopologicalSorter(ours).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"modules import each other: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("house", FLOORS)
def test_rooms_import_from_their_own_floor_and_below(house: str) -> None:
    floor = {name: number for number, rooms in enumerate(FLOORS[house]) for name in rooms}
    upwards = []
    for module, others in GRAPH.items():
        for other in others:
            above, below = room(other, house), room(module, house)
            if above in floor and below in floor and floor[above] > floor[below]:
                upwards.append(f"{module} imports {other}")
    assert upwards == []


@pytest.mark.parametrize("house", FLOORS)
def test_every_room_has_its_floor(house: str) -> None:
    folder = REPOSITORY / house.replace(".", "/")
    rooms = {path.name for path in folder.iterdir() if (path / "__init__.py").is_file()}
    known = {name for rooms_of_floor in FLOORS[house] for name in rooms_of_floor}
    assert rooms - known == set(), "say in FLOORS what it may import"
    assert known - rooms - {"errors"} == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_brings_in_nothing_heavy(package: str) -> None:
    code = f"import sys, torch, {package}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert sorted(set(HEAVY) & set(run.stdout.split())) == []


def test_only_one_file_registers_hooks() -> None:
    registering = [name for name, path in FILES.items() if "register_forward" in path.read_text()]
    assert registering == ["dsas_core.model.hooks"]


def test_the_core_knows_no_diffusion_and_nobody_unpickles() -> None:
    knowing = [
        name
        for name, others in GRAPH.items()
        if name.startswith("dsas_core") and {"diffusers", "dsas_diffusion"} & {other.split(".")[0] for other in others}
    ]
    assert knowing == []
    unpickling = [
        name for name, path in FILES.items() if re.search(r"\bpickle\.|torch\.load\(|yaml\.load\(", path.read_text())
    ]
    assert unpickling == []


# ---- sizes ----------------------------------------------------------------------------------------------------------


def excused(lines: list[str], line: int) -> bool:
    """Whether a comment right above a line, or above its decorators, says why what begins there is large."""
    at = line - 2
    while at >= 0 and lines[at].lstrip().startswith(("#", "@")):
        if "# size:" in lines[at]:
            return True
        at -= 1
    return False


def code_lines(text: str) -> set[int]:
    """The numbers of lines that hold code: no blank lines, no comments, no docstrings."""
    held: set[int] = set()
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            held.update(range(token.start[0], token.end[0] + 1))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            held -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return held


def attributes(node: ast.ClassDef) -> set[str]:
    """The attributes that methods of a class set on `self`, and its annotated fields."""
    stored = {
        part.attr
        for part in ast.walk(node)
        if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store)
        if isinstance(part.value, ast.Name) and part.value.id == "self"
    }
    fields = {
        part.target.id for part in node.body if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
    }
    return stored | fields


def too_large(path: Path) -> Iterator[str]:
    text = path.read_text()
    lines, held, name = text.splitlines(), code_lines(text), path.relative_to(REPOSITORY)
    if len(lines) > MOST_LINES and not any("# size:" in line for line in lines[:40]):
        yield f"{name}: {len(lines)} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            count = len(held & set(range(node.body[0].lineno, (node.end_lineno or 0) + 1)))
            if count > MOST_FUNCTION_LINES and not excused(lines, node.lineno):
                yield f"{name}:{node.lineno} {node.name}: {count} code lines"
        elif isinstance(node, ast.ClassDef) and not excused(lines, node.lineno):
            count, known = (node.end_lineno or 0) - node.lineno + 1, attributes(node)
            if count > MOST_CLASS_LINES:
                yield f"{name}:{node.lineno} {node.name}: {count} lines"
            if len(known) > MOST_ATTRIBUTES:
                yield f"{name}:{node.lineno} {node.name}: {len(known)} attributes"


@pytest.mark.parametrize("package", PACKAGES)
def test_files_functions_and_classes_hold_one_idea(package: str) -> None:
    assert [line for path in sorted((REPOSITORY / package).rglob("*.py")) for line in too_large(path)] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_folders_can_be_taken_in_at_a_glance(package: str) -> None:
    full = {}
    for folder in [REPOSITORY / package, *(path for path in (REPOSITORY / package).rglob("*") if path.is_dir())]:
        if folder.name in CATALOGUES or folder.name == "__pycache__" or not (folder / "__init__.py").is_file():
            continue
        modules = {path for path in folder.glob("*.py") if path.name != "__init__.py"}
        modules -= {path for path in modules if path.read_text().startswith('"""Moved to')}
        entries = [*modules, *(path for path in folder.iterdir() if (path / "__init__.py").is_file())]
        if len(entries) > MOST_ENTRIES:
            full[str(folder.relative_to(REPOSITORY))] = len(entries)
    assert full == {}
