"""`dsas show`: tell what a concept is made of, and on what evidence; or which come with the package."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from dsas_core.concept.builtin import folder_of, shipped
from dsas_core.concept.concept import Concept

from ..concept_report import describe_concept, report_concept
from ..output import print_records


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Read a concept and describe it, or list those that come with the package."""
    if args.concept is None:
        return {"builtin": [{**asdict(concept), "folder": str(concept.folder)} for concept in shipped()]}
    return describe_concept(Concept.from_pretrained(args.concept), folder_of(args.concept))


def report(document: dict[str, Any]) -> None:
    """Print the concept, or the list of concepts."""
    if "builtin" in document:
        print_records(("name", "model", "description"), document["builtin"])
    else:
        report_concept(document)
