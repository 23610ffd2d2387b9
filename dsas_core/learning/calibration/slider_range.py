"""Calibration: what a strength of 1 is, and between which ends a slider is useful.

The part that pictures and texts share. The caller makes the trials: it steers with a strength, on held-out prompts, and
measures a `Trial`. Drift alone would not end the range of a good gate, as controls stay whatever happens elsewhere; and
an output that has fallen apart may have moved no farther than one that is as it should be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...concept.concept import Concept
from ...utils.numbers import optional
from ..prompts.kept import kept_prompts, prompts_are_missing
from ..prompts.prompt_file import load_prompts
from ..prompts.prompt_set import COUNT, PromptSet
from .unit import TRIALS, Trial, Trials, choose, units_of

#: the ends are multiples of this part of a unit
STEP = 0.25
#: no end is further out than so many units
MAX_UNITS = 4.0
#: limit of displacement, relative to asking in words and to 1 unit: with the built-in models a banana has become a dog
#: at 1.24, and answers repeat one word at 1.75
MAX_DISPLACEMENT = 1.2
#: limit of novelty, relative to the unsteered model's own outputs and to 1 unit: with the built-in model bananas and
#: pears lose their shape at 1.1 to 1.2
MAX_NOVELTY = 1.1
#: of the effect at 1 unit, what a higher strength may lose
MAX_EFFECT_LOSS = 0.1
#: a slider ends where neither effect nor displacement would still change by more than this
SATURATION_TOL = 0.05
#: less displacement than this is not visible
VISIBLE = 0.1
#: how many strengths are tried at most
MAX_TRIALS = TRIALS + 2 * math.ceil(math.log2(MAX_UNITS / STEP + 1))
#: names of the fields of a trial in the evidence
KEYS = ("effect", "drift", "reach", "strangeness")


def prompts_of(
    concept: Concept,
    prompts: str | Path | Mapping[str, Any] | PromptSet | None = None,
    count: int | None = None,
    seed: int | None = None,
) -> tuple[dict[str, list[str]], int]:
    """The prompts of each side that a concept was learned from, drawn as learning drew them, and the seed.

    So the quarter that `split_held_out` holds out is the one that nothing was fitted on. Other prompts are drawn by
    `count` and `seed`, without those that the concept was fitted on; the concept's own are drawn by its own count and
    seed whatever these are.

    Args:
        concept: a learned concept.
        prompts: a prompt file, or its content; None for the concept's own. Of a concept that keeps hashes, the file
            that it was learned from stands for its own.
        count: source and target prompts; None for as many as learning drew.
        seed: of the choice; None for that of learning.

    Raises:
        PromptError: the concept does not record its prompts, or only hashes of them, and none are given.

    Example:
        >>> drawn, seed = prompts_of(Concept.from_pretrained("builtin:banana-blur"))
        >>> sorted(drawn), seed
        (['control', 'source', 'target'], 0)
    """
    count, seed = optional("count", count), optional("seed", seed)
    own, kept = concept.provenance, kept_prompts(concept)
    recorded = all(isinstance(own.get(name), int) for name in ("count", "seed"))
    learned_count, learned_seed = (int(own["count"]), int(own["seed"])) if recorded else (COUNT, 0)
    chosen_seed = learned_seed if seed is None else seed
    if prompts is None:
        if kept is None or kept.content is None:
            raise prompts_are_missing(concept)
        return dict(kept.drawn), chosen_seed
    given = load_prompts(prompts)
    if kept is not None and kept.are_of(given) and (count, seed) == (None, None):
        return given.draw(learned_count, learned_seed), chosen_seed
    used = kept.used_in(given, fitted_only=True) if kept is not None else []
    return given.draw(learned_count if count is None else count, chosen_seed, used), chosen_seed


def find_range(
    concept: Concept,
    attempt: Callable[[float], Trial],
    drift: float,
    done: Callable[[], object] = lambda: None,
    choose_unit: Callable[[Callable[[float], Trial]], tuple[float, dict[str, Any]]] | None = None,
) -> Concept:
    """Measure a concept's unit and the ends of its range anew, with all trials in its evidence.

    An end is a multiple of a quarter of a unit, at most 4, found by bisection: the strength is useful there and not a
    quarter further out. Useful means that the drift is within the limit, or the harm where trials tell it; that
    displacement and novelty are at most `MAX_DISPLACEMENT` and `MAX_NOVELTY` (times those of 1 unit, where they are
    above 1); and, above 1 unit, that no more than `MAX_EFFECT_LOSS` of the effect there is lost. Where outputs are the
    same (`SATURATION_TOL`) at a smaller strength that was tried, that is the end; where no change is visible, 0 is.

    Args:
        concept: the concept; it is not changed.
        attempt: returns what a map strength of either sign does.
        drift: the limit.
        done: called after each trial, for a progress bar; there are at most `MAX_TRIALS`.
        choose_unit: chooses the unit by such an `attempt`, and returns it with a summary; None for `unit.choose`.

    Returns:
        The concept; its range is None where both ends are 0. Samples, which are by strength, are left out.

    Example:
        >>> concept = Concept.from_pretrained("builtin:banana-blur")
        >>> attempt = lambda strength: Trial(strength, float(strength > 2), abs(strength) / 2, novelty=1.0)
        >>> ranged = find_range(concept, attempt, drift=0.1)
        >>> ranged.unit, ranged.range
        (1.1, (-2.0, 1.75))
    """
    trials = Trials(attempt, done)
    if choose_unit is None:
        unit, summary = choose(lambda strength: trials[strength][:2], drift, units=units_of(concept.method))
    else:
        unit, summary = choose_unit(lambda strength: trials[strength])
    max_displacement = MAX_DISPLACEMENT * max(1.0, trials[unit].displacement)
    max_novelty = MAX_NOVELTY * max(1.0, trials[unit].novelty)
    min_effect = min(1.0, trials[unit].effect) - MAX_EFFECT_LOSS

    def useful(strength: float) -> bool:
        trial = trials[strength]
        harmless = trial.is_harmless(drift)
        within = harmless and trial.displacement <= max_displacement and trial.novelty <= max_novelty
        return within and (strength <= unit or trial.effect >= min_effect)

    low, high = (_end(sign * unit, trials, useful) for sign in (-1, 1))
    range_evidence = {
        "drift_limit": drift,
        "reach_limit": max_displacement,
        "strangeness_limit": max_novelty,
        "trials": [
            {
                "strength": round(strength / unit, 12),  # parts of a unit come out whole, as ends do
                **dict(zip(KEYS, trial[: len(KEYS)], strict=True)),
                "useful": useful(strength),
            }
            for strength, trial in sorted(trials.items())
        ],
    }
    evidence: Mapping[str, Any] = {**concept.evidence, "unit": summary, "range": range_evidence}
    ends = (low, high) if low < high else None
    return replace(concept, unit=unit, range=ends, evidence=evidence, samples=None)


def _end(unit: float, trials: Trials, useful: Callable[[float], bool]) -> float:
    """The end of one side; `unit` has its sign."""
    tried = list(trials)
    beyond = [strength / unit for strength in tried if strength / unit > 0 and not useful(strength)]
    inside, outside = 0, min([round(MAX_UNITS / STEP) + 1, *(math.ceil(place / STEP - 1e-9) for place in beyond)])
    places = [round(1 / STEP)] if unit in tried else []
    while outside - inside > 1:
        middle = (inside + outside) // 2
        places.append(middle)
        inside, outside = (middle, outside) if useful(middle * STEP * unit) else (inside, middle)
    if inside == 0 or trials[inside * STEP * unit].displacement < VISIBLE:
        return 0.0
    end = trials[inside * STEP * unit]

    def same(place: int) -> bool:
        trial = trials[place * STEP * unit]
        return max(abs(trial.effect - end.effect), abs(trial.displacement - end.displacement)) <= SATURATION_TOL

    first = min(place for place in (*places, inside) if place <= inside and same(place))
    return math.copysign(first * STEP, unit)
