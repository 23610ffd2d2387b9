"""`dsas methods`: list the methods and gates that concepts can be learned with."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import yaml

from dsas_core.methods import available
from dsas_core.methods.gates.combine import KINDS

from ..output import table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing to choose."""


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Name, kind, line, options and settings of every method."""
    return [asdict(described) for described in available()]


def report(document: list[dict[str, Any]]) -> None:
    """A table."""
    table(("name", "use as", ""), [(d["name"], _OPTIONS[d["kind"]], d["line"]) for d in document])
    options = [
        (method["name"], f"{name}={_written(option['default'])}", option["takes"])
        for method in document
        for name, option in method["options"].items()
    ]
    settings = [f"{method['name']}({_settings(method['settings'])})" for method in document if method["settings"]]
    print()
    table(("of", "--option (its default)", "values"), options)
    print(f"\nGates with their settings: {', '.join(settings)}")
    print(f'Gates of gates: {", ".join(f"{kind}(…)" for kind in KINDS)}, such as "product(dsas, gaps(soft=true))"')


def _settings(options: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name}=…" if option["default"] is None else f"{name}={_written(option['default'])}"
        for name, option in options.items()
    )


def _written(value: object) -> str:
    return yaml.safe_dump(value).split("\n")[0]


_OPTIONS = {"map": "--method", "gate": "--gate", "both": "--method, --gate"}
