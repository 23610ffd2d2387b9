"""`dsas doctor`: tell why a concept changes nothing, or everything, in the picture or answer of one prompt."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from dsas_core import llm
from dsas_core.concept.concept import Concept
from dsas_core.concept.intervention import Intervention
from dsas_core.llm.steering.answer import answer, encode_message, find_unknown_words
from dsas_core.steering.trace import Record

from ...generation.compare import UNCHANGED, change
from ...generation.pictures import pictures_of, seeds_for
from ...pipelines.prompt_check import check_prompt
from ...steering.steer import steer
from .. import arguments
from ..output import print_records, unknown_words_message

#: a gate has fired when its score, before the site's weight, is at least this somewhere
FIRED = 0.5
#: below this a score is "near 0"; a mean score of one minus this is "near 1"
NEAR = 0.05
#: weights below this hardly steer
SMALL_WEIGHT = 0.2
ANSWER_TOKENS = 60
#: name -> text
CONCLUSIONS: Mapping[str, str] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Draw or answer the prompt with and without the concept.

    Returns:
        Scores and changes at each site, and conclusions from them.
    """
    concepts = list(arguments.read_concepts([(source, args.strength) for source in args.concept]))
    document = (_answer if llm.is_language_model(args.model) else _draw)(args, concepts)
    return {**document, "conclusions": conclusions(document)}


def _answer(args: argparse.Namespace, concepts: Sequence[Concept]) -> dict[str, Any]:
    """Steer the answer to a message."""
    arguments.refuse_generation(args, args.model)
    if args.words:
        args.usage(f"{args.model} is a language model, which draws nothing: it takes no --words")
    model, tokenizer = arguments.open_language_model(args)
    inputs = encode_message(tokenizer, args.prompt).to(model.device)
    with llm.steer(model, dict.fromkeys(concepts, args.strength), trace=True) as steering:
        steered = answer(model, tokenizer, inputs, ANSWER_TOKENS).text
        observations = _observe(args, concepts, steering)
    base = answer(model, tokenizer, inputs, ANSWER_TOKENS).text
    tokens = inputs.input_ids.shape[1]
    return {
        **observations,
        "base": base,
        "steered": steered,
        "changed": base != steered,
        "unknown_words": find_unknown_words(tokenizer, args.prompt),
        "tokens": tokens,
        "tokens_read": tokens,
    }


def _draw(args: argparse.Namespace, concepts: Sequence[Concept]) -> dict[str, Any]:
    """Steer the picture of a prompt."""
    adapter, settings = arguments.open_for_drawing(args)
    generation = adapter, [args.prompt], seeds_for([args.prompt], args.seed), settings
    words = arguments.words_by_concept(args.words)
    with steer(adapter, dict.fromkeys(concepts, args.strength), words=words, trace=True) as steering:
        steered = pictures_of(*generation)
        observations = _observe(args, concepts, steering)
    difference = change(pictures_of(*generation), steered)[0]
    return {
        **observations,
        "seed": args.seed,
        **arguments.values_of(settings, *arguments.SETTINGS),
        "words": words.get(concepts[0].name, []),
        "pixel_difference": float(difference),
        "changed": bool(difference > UNCHANGED),
        **asdict(check_prompt(adapter, args.prompt)),
    }


def _observe(args: argparse.Namespace, concepts: Sequence[Concept], steering: Any) -> dict[str, Any]:
    """The request, scores and changes at each site of the first concept, and conflicts between concepts."""
    concept, *others = concepts
    unit = concept.evidence.get("unit") or {}
    return {
        "concept": concept.name,
        "prompt": args.prompt,
        "strength": args.strength,
        "unit": concept.unit,
        "sites": [_observe_site(concept, item, args.strength, steering) for item in concept.interventions],
        "beside": [other.name for other in others],
        "opposition": [{**asdict(pair), "site": str(pair.site)} for pair in steering.conflicts()],
        "effect_reached_in_learning": unit.get("reached") if unit.get("trials") else None,
    }


def report(document: dict[str, Any]) -> None:
    """Print a table of the sites, and the conclusions."""
    columns = ("site", "fired", "mean h", "max h", "weight", "dose", "relative change")
    print_records({column: column.replace(" ", "_") for column in columns}, document["sites"])
    print("dose: strength × unit × mean h, 0 where a site is only watched; h counts the site's weight")
    if document["opposition"]:
        print("\nwhere shifts of two concepts go; opposed below -0.5, as their strengths are alike")
        print_records(("site", "first", "second", "cosine", "opposed"), document["opposition"])
    print(f"\nstrength {document['strength']:g}, unit {document['unit']:g}")
    if "pixel_difference" in document:
        print(f"the picture differs from the unsteered one by {document['pixel_difference']:.2f} of 255 on average\n")
    else:
        print(f"unsteered: {document['base']}\nsteered:   {document['steered']}\n")
    for conclusion in document["conclusions"]:
        print(f"- {conclusion}")


def conclusions(document: dict[str, Any]) -> list[str]:
    """What the numbers mean, in plain language, the most likely reason first.

    Args:
        document: the result of `run`, without its conclusions.
    """
    sites, changed, words = document["sites"], document["changed"], document.get("words")
    is_picture = "pixel_difference" in document
    unreached = [site["site"] for site in sites if not site["reached"]]
    fired = sum(site["fired"] for site in sites)
    everywhere = fired and fmean(site["mean_score"] for site in sites) > 1 - NEAR
    weight = max((site["weight"] for site in sites), default=0.0)
    highest = max((site["max_score"] for site in sites), default=0.0)
    unknown = unknown_words_message(document["unknown_words"])
    values = {
        **document,
        "command": "dsas generate" if is_picture else "dsas chat",
        "fired": fired,
        "highest": highest,
        "kind": "picture" if is_picture else "answer",
        "near": "near 0 everywhere" if highest < NEAR else "low everywhere",
        "sites": len(sites),
        "threshold": FIRED,
        "unknown_words": unknown[0].upper() + unknown[1:],
        "unreached": len(unreached),
        "unreached_names": ", ".join(unreached),
        "weight": weight,
        "words": ", ".join(words or ()),
    }
    applies = {
        "strength_0": document["strength"] == 0,
        "unreached": unreached,
        "not_fired": not fired and not words,
        "not_fired_at_words": not fired and words,
        "fired_everywhere": everywhere,
        "fired": fired and not everywhere,
        "small_weights": weight < SMALL_WEIGHT,
        "hardly_changed": not changed and fired and document["strength"] != 0,
        "picture_changed": changed and is_picture,
        "answer_changed": changed and not is_picture,
        "effect_not_reached": document["effect_reached_in_learning"] is False,
        "unknown_words": document["unknown_words"],
        "cut_off": document["tokens"] > document["tokens_read"],
    }
    return [CONCLUSIONS[name].format(**values) for name, holds in applies.items() if holds]


def _observe_site(concept: Concept, item: Intervention, strength: float, steering: Any) -> dict[str, Any]:
    """Scores and changes at one site, over all steps and positions."""
    site, trace = str(item.site), steering.trace
    records = [record for record in trace.select(concept.name, site) if record.h.numel()]
    mean_h, max_h = trace.mean_h(concept.name, site), trace.highest_h(concept.name, site)
    counted = sum(_masked(r, r.h.new_ones(r.h.shape)).sum().item() for r in records)
    weight = max(item.weights)
    return {
        "site": site,
        "reached": site in steering.fired,
        "fired": max_h >= FIRED * weight > 0,
        "mean_h": mean_h,
        "max_h": max_h,
        "weight": weight,
        "mean_score": mean_h / (weight or 1),
        "max_score": max_h / (weight or 1),
        "dose": 0.0 if item.read_only else strength * concept.unit * mean_h,
        "relative_change": sum(_masked(r, r.change).sum().item() for r in records) / max(1.0, counted),
    }


def _masked(record: Record, values: Any) -> Any:
    return values if record.mask is None else values * record.mask
