"""How much an evaluation measures: prompts, seeds, strengths, arms."""

from __future__ import annotations

from dataclasses import dataclass

from ..concept.concept import Concept
from ..errors import DSASError, PromptError, quote
from ..learning.prompts.kept import kept_prompts
from ..learning.prompts.prompt_set import PromptSet
from ..steering.strengths import Auto
from ..utils.numbers import KINDS, accepts
from .arms import ARMS

#: strengths at which every arm is measured, in units of the concept
STRENGTHS = (0.5, 1.0, 1.5, 2.0)


@dataclass(frozen=True)
class Plan:
    """The extent of an evaluation.

    Args:
        count: prompts a side.
        seeds: noise seeds that every prompt is drawn with, where outputs are random.
        strengths: the grid of all arms, in units of the concept, ascending; 1 must be among them.
        arms: names in `ARMS`; "dsas" must be among them.
        robustness: measure also under other settings than the concept was learned with.
        targets: target probabilities; for each, DSAS that chooses its own strength (`Auto`) is measured too.
        preserve: of pictures: True or "latents" for arms that leave everything else as it is without steering.

    Raises:
        DSASError: an unknown arm or way to preserve, a grid that does not ascend from above 0 or lacks 1, too few
            prompts or seeds, or a target that is no probability.

    Example:
        >>> Plan(count=4, seeds=1, arms=("dsas", "on")).strengths
        (0.5, 1.0, 1.5, 2.0)
    """

    count: int = 12
    seeds: int = 2
    strengths: tuple[float, ...] = STRENGTHS
    arms: tuple[str, ...] = tuple(ARMS)
    robustness: bool = True
    targets: tuple[float, ...] = ()
    preserve: bool | str = False

    def __post_init__(self) -> None:
        if set(self.arms) - set(ARMS) or "dsas" not in self.arms:
            raise DSASError(f"arms {', '.join(self.arms)}: expected dsas, and others of {', '.join(ARMS)}")
        numbers = all(accepts("strength", strength) for strength in self.strengths)
        ascending = (
            numbers and list(self.strengths) == sorted(set(self.strengths)) and min(self.strengths, default=0) > 0
        )
        if not ascending or 1.0 not in self.strengths:
            listed = ", ".join(map(quote, self.strengths))
            raise DSASError(
                f"strengths {listed}: expected ascending numbers above 0, to {KINDS['strength'].high:g}, 1 among them"
            )
        if not accepts("count", self.count) or self.count < 2 or not accepts("seeds", self.seeds):
            raise DSASError(
                f"{quote(self.count)} prompts, {quote(self.seeds)} seeds: expected at least 2 prompts and 1 seed (to "
                f"{KINDS['count'].high} and {KINDS['seeds'].high})"
            )
        if self.preserve not in (False, True, "latents"):
            raise DSASError(f"preserve {self.preserve!r}: expected true, false or latents")
        object.__setattr__(self, "targets", tuple(Auto(target).target for target in self.targets))

    def prompts(self, concept: Concept, prompts: PromptSet) -> dict[str, list[str]]:
        """Held-out prompts by side (`PromptSet.fresh`), without those that the concept was learned from.

        Raises:
            PromptError: no prompts are left for a side.
        """
        seed, learned = (int(concept.provenance.get(key, 0)) for key in ("seed", "count"))
        kept = kept_prompts(concept)
        if kept is not None:
            used = kept.used_in(prompts)
        else:  # of a concept that says nothing of its prompts, the file is taken for the one that it was learned from
            used = [text for side in prompts.draw(learned, seed).values() for text in side] if learned else []
        chosen = prompts.fresh(self.count, seed, used)
        for side in ("source", "control"):
            if not chosen[side]:
                raise PromptError(
                    f"prompt file {prompts.name!r} has no {side} prompts that learning did not use: add templates, "
                    f"placeholder values, or unseen_{side} to its evaluation"
                )
        return chosen
