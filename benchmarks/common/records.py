"""Where a benchmark writes what it measured, and what each record says of how it was made.

A record is a JSON file in benchmarks/results/: the figures, then `command`, `seconds`, `machine` and `versions`.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dsas_core.utils.files import as_json
from dsas_core.utils.versions import versions

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PROMPTS = ROOT / "prompts"
DOCS = ROOT / "docs"
OUTPUTS = ROOT / "outputs"
#: versions that every record tells, where they are installed
PACKAGES = ("dsas-diffusion", "diffusers", "transformers", "scikit-learn")


def results_of(module: str) -> Path:
    """The record of a benchmark, by its `__file__`: quality/concept.py writes results/concept.json."""
    return RESULTS / f"{Path(module).stem.removesuffix('_page')}.json"


def parser_of(
    doc: str | None, out: Path | None = None, *, seed: bool = False, seeds: int | None = None
) -> argparse.ArgumentParser:
    """A benchmark's arguments: its docstring is the help.

    Args:
        doc: the docstring of the module.
        out: where it writes unless `--out` says otherwise; None for those that don't choose.
        seed: whether there is a `--seed`, 0 unless given.
        seeds: how many there are unless `--seeds` says otherwise; 0, 1, …, each in a process of its own.
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


def command_of(*arguments: object, module: str | None = None) -> str:
    """The command that makes a record again: `module`, else the one that runs, with its arguments."""
    if module is None:
        spec = sys.modules["__main__"].__spec__
        module, arguments = (spec.name if spec else sys.argv[0]), tuple(sys.argv[1:])
    return shlex.join(["python", "-m", module, *map(str, arguments)])


def machine() -> str:
    """Processor, cores, and how many threads torch takes of them."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.is_file() else []
    name = names[0].partition(":")[2].strip() if names else platform.processor()
    parts = [name, platform.machine(), f"{os.cpu_count()} cores", f"{torch.get_num_threads()} used"]
    return ", ".join(dict.fromkeys(filter(None, parts)))


def made_with(*packages: str, began: float | None = None, command: str | None = None) -> dict[str, Any]:
    """What a record says of how it was made.

    Args:
        packages: whose versions matter beside those of PACKAGES.
        began: `time.monotonic()` of when it began; None leaves `seconds` out.
        command: None for the one that runs.
    """
    seconds = {} if began is None else {"seconds": round(time.monotonic() - began, 1)}
    about = {"machine": machine(), "versions": versions(*PACKAGES, *packages)}
    return {"command": command or command_of(), **seconds, **about}


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Write a record; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(as_json(document) + "\n")
    print(f"wrote {path}")
