"""`dsas methods`: list the methods and gates that concepts can be learned with."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from dsas_core.methods import available

from .output import table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing to choose."""


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Name, kind, line and options of every method."""
    return [asdict(described) for described in available()]


def report(document: list[dict[str, Any]]) -> None:
    """A table."""
    table(("name", "use as", ""), [(d["name"], _OPTIONS[d["kind"]], d["line"]) for d in document])
    options = [
        (method["name"], f"{name}={_written(option['default'])}", option["takes"])
        for method in document
        for name, option in method["options"].items()
    ]
    print()
    table(("of", "--option (its default)", "values"), options)


def _written(value: object) -> str:
    return "null" if value is None else str(value)


_OPTIONS = {"map": "--method", "gate": "--gate", "both": "--method, --gate"}
