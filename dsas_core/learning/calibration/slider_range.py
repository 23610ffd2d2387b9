"""Calibration: what a strength of 1 is, and between which ends a slider is of use.

The family-free part. Who calls it makes the trials: it steers with a strength, on prompts that nothing was fitted on,
and measures the effect, the drift of control prompts, the displacement: how far results move, over how far asking in
words moves them; and their novelty: how far they are from all that the unsteered model makes. Drift alone would let a
good gate's slider go on for ever, as controls stay whatever happens elsewhere; and what has fallen apart may have moved
no farther than what is as it should be.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ...concept.concept import Concept
from ...errors import PromptError
from ..prompts.prompt_set import COUNT, PromptSet, load_prompts, split_held_out
from .unit import TRIALS, choose, units_of

#: the ends are multiples of this part of a unit
STEP = 0.25
#: no end is further out than so many units
MAX_UNITS = 4.0
#: results may move so much farther than asking in words, or 1 unit, moves them: with the built-in models a banana has
#: become a dog at 1.24, and answers repeat one word at 1.75
MAX_DISPLACEMENT = 1.2
#: nor may they be so much farther from what the unsteered model makes than its own, or than those of 1 unit: with the
#: built-in model bananas and pears lose their shape at 1.1 to 1.2
MAX_NOVELTY = 1.1
#: of the effect at 1 unit, what a higher strength may lose
MAX_EFFECT_LOSS = 0.1
#: a slider ends where neither effect nor displacement would still change by more than this
SATURATION_TOL = 0.05
#: less displacement than this nobody sees
VISIBLE = 0.1
#: how many strengths are tried at most
MAX_TRIALS = TRIALS + 2 * math.ceil(math.log2(MAX_UNITS / STEP + 1))


#: what the evidence calls the fields of a trial
KEYS = ("effect", "drift", "reach", "strangeness")


class Trial(NamedTuple):
    """What a strength does on held-out prompts.

    Args:
        effect: on sources; 1 is all that is wanted. drift: of controls, in the family's measure.
        displacement: how far sources move, over how far asking in words moves them.
        novelty: how far sources are from what the unsteered model makes, over how far its own are.
    """

    effect: float
    drift: float
    displacement: float
    novelty: float


def prompts_of(
    concept: Concept,
    prompts: str | Path | Mapping[str, Any] | PromptSet | None = None,
    count: int | None = None,
    seed: int | None = None,
) -> tuple[dict[str, list[str]], int]:
    """The prompts of each side that a concept was learned from, drawn as learning drew them, and the seed.

    So the quarter that `prompts.held_back` keeps is the one that nothing was fitted on. Other prompts are drawn by
    `count` and `seed`, which default to those of learning, without those that the concept was fitted on; the concept's
    own are drawn by its own whatever these are.

    Raises:
        PromptError: the concept has no prompts with it, and none are given.
    """
    own: Mapping[str, Any] = concept.provenance
    tells = all(isinstance(own.get(name), int) for name in ("count", "seed"))
    learned_count, learned_seed = (int(own["count"]), int(own["seed"])) if tells else (COUNT, 0)
    chosen = learned_seed if seed is None else seed
    drawn = load_prompts(own["prompts"]).draw(learned_count, learned_seed) if tells and own.get("prompts") else {}
    given = None if prompts is None else load_prompts(prompts)
    if given is not None and (given.to_dict() != own.get("prompts") or (count, seed) != (None, None)):
        used = [text for texts in split_held_out(drawn)[0].values() for text in texts]
        return given.draw(learned_count if count is None else count, chosen, used), chosen
    if not drawn:
        raise PromptError(
            f"concept {concept.name!r} does not tell from which prompts it was learned: give a prompt file (--prompts)"
        )
    return drawn, chosen


def find_range(
    concept: Concept, attempt: Callable[[float], Trial], drift: float, done: Callable[[], object] = lambda: None
) -> Concept:
    """The concept with its unit and the ends of its range found anew, and all trials in its evidence.

    The unit is what `unit.choose` finds. An end is a multiple of a quarter of a unit, at most 4, found by bisection:
    the strength is useful there and not a quarter further out. Useful means that the drift is within the limit; that
    displacement and novelty are at most `FAR` and `STRANGE` (times those of 1 unit, where they are above 1); and, above
    1 unit, that no more than `LOST` of the effect there is gone. Where results are the same (`STILL`) at a smaller
    strength that was tried, that is the end; where nothing is to be seen, 0 is.

    Args:
        attempt: tells what a map strength does, of either sign.
        drift: the limit.
        done: called after each trial, for a progress bar; there are at most `MOST_TRIALS`.

    Returns:
        The range is None where both ends are 0. Samples, which are by strength, are left out.
    """
    trials: dict[float, Trial] = {}

    def tried(strength: float) -> Trial:
        if strength not in trials:
            trial = attempt(strength)
            if not math.isfinite(sum(trial)):  # the steered model overflowed
                trial = Trial(0.0, *[sys.float_info.max] * 3)
            trials[strength] = trial
            done()
        return trials[strength]

    unit, summary = choose(lambda strength: tried(strength)[:2], drift, units=units_of(concept.method))
    max_displacement = MAX_DISPLACEMENT * max(1.0, tried(unit).displacement)
    max_novelty = MAX_NOVELTY * max(1.0, tried(unit).novelty)
    min_effect = min(1.0, tried(unit).effect) - MAX_EFFECT_LOSS

    def useful(strength: float) -> bool:
        trial = tried(strength)
        within = trial.drift <= drift and trial.displacement <= max_displacement and trial.novelty <= max_novelty
        return within and (strength <= unit or trial.effect >= min_effect)

    low, high = (_end(sign * unit, tried, useful, list(trials)) for sign in (-1, 1))
    range_evidence = {
        "drift_limit": drift,
        "reach_limit": max_displacement,
        "strangeness_limit": max_novelty,
        "trials": [
            {"strength": strength / unit, **dict(zip(KEYS, trials[strength], strict=True)), "useful": useful(strength)}
            for strength in sorted(trials)
        ],
    }
    evidence: Mapping[str, Any] = {**concept.evidence, "unit": summary, "range": range_evidence}
    ends = (low, high) if low < high else None
    return replace(concept, unit=unit, range=ends, evidence=evidence, samples=None)


def _end(unit: float, tried: Callable[[float], Trial], useful: Callable[[float], bool], known: list[float]) -> float:
    """The end of one side; `unit` has its sign, `known` are map strengths that were tried already."""
    beyond = [strength / unit for strength in known if strength / unit > 0 and not useful(strength)]
    inside, outside = 0, min([round(MAX_UNITS / STEP) + 1, *(math.ceil(place / STEP - 1e-9) for place in beyond)])
    places = [round(1 / STEP)] if unit in known else []
    while outside - inside > 1:
        middle = (inside + outside) // 2
        places.append(middle)
        inside, outside = (middle, outside) if useful(middle * STEP * unit) else (inside, middle)
    if inside == 0 or tried(inside * STEP * unit).displacement < VISIBLE:
        return 0.0
    end = tried(inside * STEP * unit)

    def same(place: int) -> bool:
        trial = tried(place * STEP * unit)
        return max(abs(trial.effect - end.effect), abs(trial.displacement - end.displacement)) <= SATURATION_TOL

    first = min(place for place in (*places, inside) if place <= inside and same(place))
    return math.copysign(first * STEP, unit)
