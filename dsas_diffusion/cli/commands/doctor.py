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
from ...pipelines.prompt_check import reading
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
    inputs = asked(tokenizer, args.prompt).to(model.device)
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
        "unknown_words": unknown_words(tokenizer, args.prompt),
        "tokens": tokens,
        "tokens_read": tokens,
    }


def _draw(args: argparse.Namespace, concepts: Sequence[Concept]) -> dict[str, Any]:
    """Steer the picture of a prompt."""
    pipe = arguments.open_pipeline(args, steps_bar=True)
    settings = settings_of(pipe, args.steps, args.guidance, args.size)
    generation = pipe, [args.prompt], seeds_for([args.prompt], args.seed), settings
    words = arguments.words_by_concept(args.words)
    with steer(pipe, dict.fromkeys(concepts, args.strength), words=words, trace=True) as steering:
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
        **asdict(reading(pipe, args.prompt)),
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
    """What the numbers mean, in plain language, the most likely reason first."""
    sites, changed, strength = document["sites"], document["changed"], document["strength"]
    is_picture = "pixel_difference" in document
    kind = "picture" if is_picture else "answer"
    unreached = [site["site"] for site in sites if not site["reached"]]
    fired = any(site["fired"] for site in sites)
    weight = max((site["weight"] for site in sites), default=0.0)
    amount = f", by {document['pixel_difference']:.1f} of 255 on average" if is_picture else ""
    unknown = unknown_words_message(document["unknown_words"])
    texts = (
        (strength == 0, "The strength is 0, so nothing can change."),
        (unreached, f"{len(unreached)} of {len(sites)} sites were never reached by the model: {', '.join(unreached)}."),
        (True, _conclude_on_gates(document, kind)),
        (
            weight < SMALL_WEIGHT,
            f"The weights are small (at most {weight:.2f}): while learning, no site told the concept from its controls "
            "well. See `dsas show`; more prompts or other sites may help.",
        ),
        (
            not changed and fired and strength != 0,
            f"Sites fired, yet the {kind} hardly changed: there was nothing to change in it, or the dose is too small. "
            "Try a larger --strength.",
        ),
        (changed, f"The {kind} changed{amount}."),
        (
            document["effect_reached_in_learning"] is False,
            "While learning, no unit did all that is wanted without changing controls: expect less.",
        ),
        (document["unknown_words"], f"{unknown[0].upper()}{unknown[1:]}."),
        (
            document["tokens"] > document["tokens_read"],
            f"The prompt has {document['tokens']} tokens, of which the model reads {document['tokens_read']}: its end "
            "is cut off.",
        ),
    )
    return [text for applies, text in texts if applies]


def _conclude_on_gates(document: dict[str, Any], kind: str) -> str:
    """Whether gates fired nowhere, everywhere, or somewhere."""
    sites = document["sites"]
    fired = [site for site in sites if site["fired"]]
    if fired and fmean(site["mean_score"] for site in sites) > 1 - NEAR:
        return (
            f"h is near 1 on everything: the gate does not choose, and the whole {kind} is steered. That is right for "
            "the gate `on`; otherwise learn again with controls that are more like this prompt."
        )
    if fired:
        return f"{len(fired)} of {len(sites)} sites fired."
    highest = max((site["max_score"] for site in sites), default=0.0)
    near = "near 0 everywhere" if highest < NEAR else "low everywhere"
    score = f"highest score {highest:.2f} before its site's weight, and one fires at {FIRED}"
    if document.get("words"):
        words = ", ".join(document["words"])
        reason = f"The gate does not see the concept where the picture looks at {words}, or the prompt lacks that."
    else:
        reason = (
            "The gate does not see the concept in this prompt, which is right where it is not there; where it is, "
            f"--gate on of `dsas {'generate' if kind == 'picture' else 'chat'}` steers all the same."
        )
    return f"No site fired: h is {near} ({score}). {reason}"


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
