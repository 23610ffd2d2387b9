"""The map in CONTRIBUTING.md is that of the house."""

from __future__ import annotations

import re

from benchmarks.common.records import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
PACKAGES = ("dsas_core", "dsas_diffusion")


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading."""
    section = TEXT.split(f"## {heading}", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def paths(cell: str) -> list[str]:
    """Paths in backticks, but for those with a placeholder."""
    return [path for path in re.findall(r"`([\w./]+/[\w./]*)`", cell) if not re.search("NAME|ROOM", path)]


def test_what_the_map_names_is_there() -> None:
    missing = []
    for places, content, *_ in rows("The rooms"):
        folders = [ROOT / name for name in re.findall(r"`([^`]+)`", places)]
        missing += [str(folder) for folder in folders if not folder.exists()]
        for name in re.findall(r"`([\w/]+\.py|\w+/)`", content):
            inside = any(list(folder.rglob(name.rstrip("/"))) for folder in folders if folder.is_dir())
            if not inside and not (ROOT / name).exists():
                missing.append(f"{places}: {name}")
    assert missing == []


def test_every_folder_of_the_packages_is_on_the_map() -> None:
    told = {name.rstrip("/") for row in rows("The rooms") for name in re.findall(r"`([\w/{},]+/)`", " ".join(row))}
    last = {name.rpartition("/")[2] for name in told}
    folders = {file.parent for name in PACKAGES for file in (ROOT / name).rglob("__init__.py")} - {
        ROOT / name for name in PACKAGES
    }
    assert [str(folder.relative_to(ROOT)) for folder in sorted(folders) if folder.name not in last] == []


def test_files_to_open_are_there() -> None:
    missing = []
    for row in rows("To add or change something: open these files"):
        for path in paths(" ".join(row[1:])):
            if not any((ROOT / base / path).exists() for base in ("", *PACKAGES)):
                missing.append(f"{row[0]}: {path}")
    assert missing == []
