"""`dsas doctor`: tell why a concept changes nothing, or everything, in the picture or answer of one prompt."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from dsas_core import llm
from dsas_core.concept.concept import Concept
from dsas_core.concept.intervention import Intervention
from dsas_core.llm.steering.answer import answer, asked, unknown_words
from dsas_core.steering.trace import Record

from ...generation.compare import UNCHANGED, change
from ...generation.pictures import pictures_of, seeds_for
from ...generation.settings import settings_of
from ...pipelines.adapter import adapt
from ...pipelines.prompt_check import check_prompt
from ...steering.steer import steer
from .. import arguments
from ..argument_types import number
from ..output import table, warn_unknown_words

#: a gate has fired when its score, before the site's weight, is at least this somewhere
FIRED = 0.5
#: below this a score is "near 0"; a mean score of one minus this is "near 1"
NEAR = 0.05
SMALL_WEIGHT = 0.2
#: tokens of an answer
LENGTH = 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which concept on which prompt."""
    arguments.add_model(parser)
    parser.add_argument(
        "--concept",
        "-c",
        action="append",
        required=True,
        metavar="FOLDER",
        help=f"{arguments.CONCEPT}; repeatable: the first is looked at, with the others beside it",
    )
    parser.add_argument("--prompt", "-p", required=True, help="the prompt to look at")
    parser.add_argument("--strength", type=number, default=1.0, help="of the concept (default 1)")
    arguments.add_words(parser)
    arguments.add_generation(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Draw or answer the prompt with and without the concept; what happened at each site, and what that means."""
    concepts = list(arguments.read_concepts([(name, args.strength) for name in args.concept]))
    document = (_answer if llm.is_language_model(args.model) else _draw)(args, concepts)
    return {**document, "conclusions": conclusions(document)}


def _answer(args: argparse.Namespace, concepts: Sequence[Concept]) -> dict[str, Any]:
    """What happened in the answer to a message."""
    arguments.refuse_generation(args)
    if args.words:
        args.usage(f"{args.model} is a language model, which draws nothing: it takes no --words")
    model, tokenizer = arguments.language_model(args)
    inputs = asked(tokenizer, args.prompt).to(model.device)
    with llm.steer(model, dict.fromkeys(concepts, args.strength), trace=True) as steering:
        steered = answer(model, tokenizer, inputs, LENGTH).text
        observed = _observed(args, concepts, steering)
    base = answer(model, tokenizer, inputs, LENGTH).text
    tokens = inputs.input_ids.shape[1]
    return {
        **observed,
        "base": base,
        "steered": steered,
        "changed": base != steered,
        "unknown_words": unknown_words(tokenizer, args.prompt),
        "tokens": tokens,
        "tokens_read": tokens,
    }


def _draw(args: argparse.Namespace, concepts: Sequence[Concept]) -> dict[str, Any]:
    """What happened in the picture of a prompt."""
    adapter = adapt(arguments.pipeline(args, steps_bar=True))
    settings = settings_of(adapter, args.steps, args.guidance, args.size)
    generation = adapter, [args.prompt], seeds_for([args.prompt], args.seed), settings
    words = arguments.words_by_name(args.words)
    with steer(adapter, dict.fromkeys(concepts, args.strength), words=words, trace=True) as steering:
        steered = pictures_of(*generation)
        observed = _observed(args, concepts, steering)
    difference = change(pictures_of(*generation), steered)[0]
    return {
        **observed,
        "seed": args.seed,
        "steps": settings.steps,
        "guidance": settings.guidance,
        "size": settings.size,
        "words": words.get(concepts[0].name, []),
        "pixel_difference": float(difference),
        "changed": bool(difference > UNCHANGED),
        **asdict(check_prompt(adapter, args.prompt)),
    }


def _observed(args: argparse.Namespace, concepts: Sequence[Concept], steering: Any) -> dict[str, Any]:
    """What was asked for, what each site of the first concept saw and did, and how the concepts go together."""
    concept, *others = concepts
    unit = concept.evidence.get("unit") or {}
    return {
        "concept": concept.name,
        "prompt": args.prompt,
        "strength": args.strength,
        "unit": concept.unit,
        "sites": [_site(concept, item, args.strength, steering) for item in concept.interventions],
        "beside": [other.name for other in others],
        "opposition": [{**asdict(pair), "site": str(pair.site)} for pair in steering.conflicts()],
        "effect_reached_in_learning": unit.get("reached") if unit.get("trials") else None,
    }


def report(document: dict[str, Any]) -> None:
    """A table of the sites, and the conclusions."""
    columns = ("site", "fired", "mean h", "max h", "weight", "dose", "relative change")
    table(columns, [[site[column.replace(" ", "_")] for column in columns] for site in document["sites"]])
    print("dose: strength × unit × mean h, 0 where a site is only watched; h counts the site's weight")
    if document["opposition"]:
        print("\nwhere shifts of two concepts go; opposed below -0.5, as their strengths are alike")
        headings = ("site", "first", "second", "cosine", "opposed")
        table(headings, [[pair[heading] for heading in headings] for pair in document["opposition"]])
    print(f"\nstrength {document['strength']:g}, unit {document['unit']:g}")
    if "pixel_difference" in document:
        print(f"the picture differs from the unsteered one by {document['pixel_difference']:.2f} of 255 on average\n")
    else:
        print(f"unsteered: {document['base']}\nsteered:   {document['steered']}\n")
    for conclusion in document["conclusions"]:
        print(f"- {conclusion}")


def conclusions(document: dict[str, Any]) -> list[str]:
    """What the numbers mean, in plain language, the most likely reason first."""
    lines: list[str] = []
    sites, unchanged = document["sites"], not document["changed"]
    kind = "picture" if "pixel_difference" in document else "answer"
    tool = "dsas generate" if kind == "picture" else "dsas chat"
    fired = [site for site in sites if site["fired"]]
    if document["strength"] == 0:
        lines.append("The strength is 0, so nothing can change.")
    unreached = [site["site"] for site in sites if not site["reached"]]
    if unreached:
        lines.append(f"{len(unreached)} of {len(sites)} sites were never reached by the model: {', '.join(unreached)}.")
    highest = max((site["max_score"] for site in sites), default=0.0)
    if not fired:
        near = "near 0 everywhere" if highest < NEAR else "low everywhere"
        unseen = (
            "The gate does not see the concept in this prompt, which is right where it is not there; where it is, "
            f"--gate on of `{tool}` steers all the same."
        )
        if document.get("words"):
            words = ", ".join(document["words"])
            unseen = f"The gate does not see the concept where the picture looks at {words}, or the prompt lacks that."
        score = f"highest score {highest:.2f} before its site's weight, and one fires at {FIRED}"
        lines.append(f"No site fired: h is {near} ({score}). {unseen}")
    elif fmean(site["mean_score"] for site in sites) > 1 - NEAR:
        lines.append(
            f"h is near 1 on everything: the gate does not choose, and the whole {kind} is steered. That is right for "
            "the gate `on`; otherwise learn again with controls that are more like this prompt."
        )
    else:
        lines.append(f"{len(fired)} of {len(sites)} sites fired.")
    heaviest = max((site["weight"] for site in sites), default=0.0)
    if heaviest < SMALL_WEIGHT:
        lines.append(
            f"The weights are small (at most {heaviest:.2f}): while learning, no site told the concept from its "
            "controls well. See `dsas show`; more prompts or other sites may help."
        )
    if unchanged and fired and document["strength"] != 0:
        lines.append(
            f"Sites fired, yet the {kind} hardly changed: there was nothing to change in it, or the dose is too small. "
            "Try a larger --strength."
        )
    if not unchanged:
        much = f", by {document['pixel_difference']:.1f} of 255 on average" if kind == "picture" else ""
        lines.append(f"The {kind} changed{much}.")
    if document["effect_reached_in_learning"] is False:
        lines.append("While learning, no unit did all that is wanted without changing controls: expect less.")
    if document["unknown_words"]:
        warning = warn_unknown_words(document["unknown_words"])
        lines.append(f"{warning[0].upper()}{warning[1:]}.")
    if document["tokens"] > document["tokens_read"]:
        lines.append(
            f"The prompt has {document['tokens']} tokens, of which the model reads {document['tokens_read']}: its end "
            "is cut off."
        )
    return lines


def _site(concept: Concept, item: Intervention, strength: float, steering: Any) -> dict[str, Any]:
    """What one site saw and did, over all steps and positions."""
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
