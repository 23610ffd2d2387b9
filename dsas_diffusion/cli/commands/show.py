"""`dsas show`: tell what a concept is made of, and on what evidence; or which come with the package."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from dsas_core.concept.builtin import folder_of, shipped
from dsas_core.concept.concept import Concept

from ..arguments import CONCEPT
from ..concept_report import describe_concept, report_concept
from ..output import table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which concept."""
    parser.add_argument("concept", metavar="FOLDER", nargs="?", help=f"{CONCEPT}; none lists the built-in ones")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Read the concept and describe it, or list those that come with the package."""
    if args.concept is None:
        return {"builtin": [{**asdict(concept), "folder": str(concept.folder)} for concept in shipped()]}
    return describe_concept(Concept.from_pretrained(args.concept), folder_of(args.concept))


def report(document: dict[str, Any]) -> None:
    """What it is and on what evidence, or a list of concepts."""
    if "builtin" not in document:
        report_concept(document)
        return
    columns = ("name", "model", "description")
    table(columns, [[concept[column] for column in columns] for concept in document["builtin"]])
