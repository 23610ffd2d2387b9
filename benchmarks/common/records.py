"""Paths, command lines and records of the benchmarks.

A record is a JSON file in benchmarks/results/: the figures, then their provenance (`command`, `seconds`, `machine` and
`versions`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dsas_core.utils.saving.files import as_json
from dsas_core.utils.versions import versions

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PROMPTS = ROOT / "prompts"
DOCS = ROOT / "docs"
OUTPUTS = ROOT / "outputs"
#: packages whose versions are in every record, where they are installed
PACKAGES = ("dsas-diffusion", "diffusers", "transformers", "scikit-learn")


def record_path(module: str) -> Path:
    """The path of a benchmark's record, from its `__file__`: quality/concept.py writes results/concept.json."""
    return RESULTS / f"{Path(module).stem.removesuffix('_page')}.json"


def build_parser(
    doc: str | None, out: Path | None = None, *, seed: bool = False, seeds: int | None = None
) -> argparse.ArgumentParser:
    """The argument parser of a benchmark; the docstring of the module is the help text.

    Args:
        doc: the docstring of the module.
        out: default of `--out`; None for no such option.
        seed: whether there is an option `--seed`, default 0.
        seeds: default of `--seeds`; None for no such option. Seeds are 0, 1, …, each in a process of its own.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if seed:
        parser.add_argument("--seed", type=int, default=0)
    if seeds is not None:
        parser.add_argument("--seeds", type=int, default=seeds, help="seeds 0, 1, …")
        parser.add_argument("--workers", type=int, default=os.cpu_count(), help="seeds at a time, a thread each")
    if out is not None:
        parser.add_argument("--out", type=Path, default=out, help=f"default: {out.relative_to(ROOT)}")
    return parser


def format_command(*arguments: object, module: str | None = None) -> str:
    """The command that reproduces a record.

    Args:
        arguments: of the module; without any, and without a `module`, those of the running program.
        module: the module to run; None for the running program.
    """
    if module is None:
        spec = sys.modules["__main__"].__spec__
        module, arguments = (spec.name if spec else sys.argv[0]), arguments or tuple(sys.argv[1:])
    return shlex.join(["python", "-m", module, *map(str, arguments)])


def describe_machine() -> str:
    """Processor, number of cores, and number of threads that torch uses."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.is_file() else []
    name = names[0].partition(":")[2].strip() if names else platform.processor()
    parts = [name, platform.machine(), f"{os.cpu_count()} cores", f"{torch.get_num_threads()} used"]
    return ", ".join(dict.fromkeys(filter(None, parts)))


def provenance(*packages: str, began: float | None = None, command: str | None = None) -> dict[str, Any]:
    """The provenance of a record: command, seconds, machine and versions.

    Args:
        packages: packages to list beside PACKAGES.
        began: `time.monotonic()` at the start; None leaves `seconds` out.
        command: the command that reproduces the record; None for that of the running program.
    """
    seconds = {} if began is None else {"seconds": round(time.monotonic() - began, 1)}
    environment = {"machine": describe_machine(), "versions": versions(*PACKAGES, *packages)}
    return {"command": command or format_command(), **seconds, **environment}


def write_record(path: Path, document: Mapping[str, Any]) -> None:
    """Write a record; create its folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(as_json(document) + "\n")
    print(f"wrote {path}")


def read_record(path: Path) -> dict[str, Any]:
    """A record; empty where there is none yet."""
    return json.loads(path.read_text()) if path.is_file() else {}


def update_record(path: Path, name: str, entry: Mapping[str, Any]) -> None:
    """Write one entry, of a model, into a record of several; the others stay."""
    write_record(path, {**read_record(path), name: entry})
