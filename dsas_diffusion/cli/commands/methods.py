"""`dsas methods`: list the methods and gates that concepts can be learned with."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import yaml

from dsas_core.methods import available
from dsas_core.methods.gates.combine import KINDS

from ..output import print_table

#: kind of a method -> the options of `dsas learn` that take it
OPTIONS = {"map": "--method", "gate": "--gate", "both": "--method, --gate"}
#: the option that takes a method which is not learned
DIVERSE = "--diverse"


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Name, kind, summary, options and settings of every method."""
    return [asdict(method) for method in available()]


def report(document: list[dict[str, Any]]) -> None:
    """Print tables of the methods and of their options, and the gates with their settings."""
    print_table(
        ("name", "use as", ""),
        [(d["name"], OPTIONS[d["kind"]] if d["learned"] else DIVERSE, d["line"]) for d in document],
    )
    options = [
        (method["name"], f"{name}={_as_yaml(option['default'])}", option["takes"])
        for method in document
        for name, option in method["options"].items()
    ]
    gates = [f"{method['name']}({_format(method['settings'])})" for method in document if method["settings"]]
    print()
    print_table(("of", "--option (its default)", "values"), options)
    print(f"\nGates with their settings: {', '.join(gates)}")
    print(f'Gates of gates: {", ".join(f"{kind}(…)" for kind in KINDS)}, such as "product(dsas, gaps(soft=true))"')


def _format(options: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name}=…" if option["default"] is None else f"{name}={_as_yaml(option['default'])}"
        for name, option in options.items()
    )


def _as_yaml(value: object) -> str:
    return yaml.safe_dump(value).split("\n")[0]
