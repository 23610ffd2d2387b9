"""`dsas learn --method flas`: train a network for many concepts, or make a concept of a network and a text."""

from __future__ import annotations

import argparse
import re
from dataclasses import fields, replace
from functools import partial
from typing import Any

from dsas_core import llm
from dsas_core.concept.format import FILES, save_concept
from dsas_core.concept.storage.own_files import recognise_concept
from dsas_core.errors import quote
from dsas_core.llm.flas.folder import CONFIG, TENSORS
from dsas_core.llm.flas.training import Settings

from .arguments import open_model, shows_progress
from .concept_report import describe_concept
from .output import check_output_folder

METHOD = "flas"
#: options of training, and of a concept
TRAINING = ("layer", *(field.name for field in fields(Settings) if field.name != "seed"))
OF_CONCEPTS = ("gating", "steps")


def learn_flas(args: argparse.Namespace) -> dict[str, Any]:
    """Train a network from --concepts, or make the concept of --to with the one in --network.

    Returns:
        What was written, and where it is.
    """
    if args.method != METHOD:
        args.usage(f"--concepts and --network are of the method {METHOD}, and --method is {args.method}")
    if args.concepts is None and args.network is None:
        args.usage("--method flas takes --concepts FILE to train a network, or --network FOLDER with --to TEXT")
    if not llm.is_language_model(args.model):
        args.usage(f"{METHOD} steers language models, and {args.model} is none: pass --model builtin:chat, or another")
    known = TRAINING if args.concepts is not None else OF_CONCEPTS
    if unknown := set(dict(args.option)) - set(known):
        args.usage(f"{METHOD} takes {', '.join(known)} as --option here, found {quote(min(unknown))}")
    return _train(args) if args.concepts is not None else _make_concept(args)


def _train(args: argparse.Namespace) -> dict[str, Any]:
    if args.gate is not None or args.target is not None:
        args.usage("a network has neither gate nor text: pass --gate and --to with --network, to make a concept of it")
    folder = check_output_folder(args.out, f"{re.escape(CONFIG)}|{re.escape(TENSORS)}", args.overwrite)
    concepts = llm.flas.load_examples(args.concepts)
    settings = {"seed": args.seed, **dict(args.option)}
    model, tokenizer = open_model(args)
    network = llm.flas.train(model, tokenizer, concepts, show_progress=shows_progress(args), **settings)
    network = replace(network, model=args.model)
    llm.flas.save(network, folder, overwrite=args.overwrite)
    told = {name: network.settings[name] for name in ("concepts", "examples", "losses")}
    return {"first": True, "out": args.out, "network": repr(network), "layer": network.layer, **told}


def _make_concept(args: argparse.Namespace) -> dict[str, Any]:
    if args.target is None:
        args.usage("--network goes with --to, the text of the concept, as in --to 'talk like a pirate'")
    known = partial(recognise_concept, overwrite=args.overwrite)
    folder = check_output_folder(args.out, "|".join(map(re.escape, FILES)), args.overwrite, known)
    network = llm.flas.load(args.network)
    model, tokenizer = open_model(args)
    options = {"name": args.name, "gate": args.gate or "on", **dict(args.option)}
    concept = network.concept(model, tokenizer, args.target, **options)
    concept = replace(concept, provenance={**concept.provenance, "command": args.command})
    save_concept(concept, folder, overwrite=args.overwrite)
    return {"first": True, "out": args.out, "drafted": False, **describe_concept(concept, folder)}


def report_network(document: dict[str, Any]) -> None:
    """Print how well a network was trained, and where it is."""
    losses = document["losses"]
    print(f"{document['network']}: {document['examples']} examples of {document['concepts']} concepts")
    print(f"loss of the answers: {losses[0]:.3f} at first, {losses[-1]:.3f} at last")
    print(f"\nsaved in {document['out']}; make a concept with --method flas --network {document['out']} --to TEXT")
