"""What a gate is fitted on in learning, and the result: a probe whose threshold is then placed on control prompts.

A probe that was fitted on means over positions has its threshold in the wrong place for single positions. So its logit
is lowered until the mean h of held-out control positions is at most `Recipe.control_h`. Where h differs by dimension,
its mean over dimensions counts, here and in all evidence.

Where it is known which positions of source prompts show the concept (supervision "positions": words of a text, masks
of a picture), gates that are fitted on positions take these as source, and the other positions of the same prompts as
control.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ...errors import PromptError
from ...probes import Probe
from .cross_validation import Evidence, LabelledRows

#: share of the positions that show the concept which keep `Recipe.source_h`
NEARLY_ALL = 0.95
#: a gate that is still open when it is lowered so far keeps its threshold
MAX_SHIFT = 1e6

#: held-out h of controls, [n, 1 or width], by the shift that is taken off the gate's logit
HByShift = Callable[[float], torch.Tensor]
#: a probe with its threshold placed, and held-out h of controls, by `Recipe.control_h` (None: as it was fitted)
Placer = Callable[[float | None], tuple[Probe, torch.Tensor]]


class GateRows(Protocol):
    """Captured activations of one kind of prompt, see `learning.capture.Activations`."""

    labels: list[torch.Tensor]

    def gathered(self, name: str) -> torch.Tensor: ...

    @property
    def sampled(self) -> list[int]: ...


class GateSettings(Protocol):
    """What gates read of a `Recipe`, see there."""

    @property
    def form(self) -> str: ...
    @property
    def rank(self) -> int | str: ...
    @property
    def scaler(self) -> str: ...
    @property
    def top_share(self) -> float: ...
    @property
    def rounds(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def mode(self) -> str | None: ...
    @property
    def supervised(self) -> bool: ...
    @property
    def control_h(self) -> float | None: ...
    @property
    def source_h(self) -> float | None: ...
    @property
    def control_texts(self) -> float: ...


@dataclass(frozen=True)
class GateFit:
    """A gate that was fitted at one site, its threshold still to be placed.

    Args:
        place_at: takes `Recipe.control_h` (None leaves the threshold where the fit put it); returns the probe with its
            threshold placed, and held-out h of controls, [n, 1 or width]: of positions, those of control prompts
            first, or of rows (`per_row`).
        evidence: on prompts that the probe was not fitted on.
        scores: mean h of held-out source and control prompts, [n] and [m].
        per_row: the gate decides on means, once per row.
        refused: why it must not steer at this site, or "".
        shares: of held-out source prompts that the gate misses, and of control prompts that it touches, with its
            threshold placed; None where it was not measured prompt by prompt.
        sharp: h is near 0 or 1, so that the site has all of the weight or none.
    """

    place_at: Placer
    evidence: Evidence
    scores: tuple[torch.Tensor, torch.Tensor]
    per_row: bool = False
    refused: str = ""
    shares: tuple[float, float] | None = None
    sharp: bool = False


def make_placer(probe: Probe, control_h: HByShift, fixed: bool = False, least: float = 0.0) -> Placer:
    """`GateFit.place_at` of a probe.

    Args:
        probe: as it was fitted.
        control_h: held-out h of controls.
        fixed: the threshold stays where the fit put it.
        least: the shift that is taken off its logit at least, wherever a threshold is placed, see `shift_up_to`.
    """

    def place_at(target: float | None) -> tuple[Probe, torch.Tensor]:
        shift = place_threshold(control_h, None if fixed else target, least)
        return probe.with_lower_bias(shift), control_h(shift)

    return place_at


def h_by_shift(logits: torch.Tensor, factor: torch.Tensor | float = 1.0) -> HByShift:
    """h of held-out logits [n] by the shift that is taken off them, times a fixed factor [n]: [n, 1]."""
    return lambda shift: (factor * (logits - shift).sigmoid())[:, None]


def place_threshold(h: HByShift, target: float | None, least: float = 0.0) -> float:
    """The shift to take off a gate's logit so that its mean h is at most a target.

    Args:
        h: h(shift), [n, 1 or width], which falls with the shift.
        target: a mean h; None leaves the gate where it is.
        least: the shift is no smaller, wherever a threshold is placed.

    Returns:
        The shift; the least one when the mean is low enough already, or no shift up to `MAX_SHIFT` suffices; 0 when
        `target` is None.

    Example:
        >>> logits = torch.tensor([0.0, 2.0])
        >>> shift = place_threshold(h_by_shift(logits), target=0.25)
        >>> round(float((logits - shift).sigmoid().mean()), 4)
        0.25
    """
    if target is None:
        return 0.0

    def too_high(shift: float) -> bool:
        return float(h(shift).mean()) > target

    if not too_high(0.0) or too_high(MAX_SHIFT):
        return least
    low, shift = 0.0, 60.0
    while too_high(shift):
        low, shift = shift, 2 * shift
    for _ in range(50):
        middle = (low + shift) / 2
        low, shift = (middle, shift) if too_high(middle) else (low, middle)
    return max(shift, least)


def shift_up_to(logits: torch.Tensor, h: float | None) -> float:
    """The largest shift that leaves nearly all (`NEARLY_ALL`) of some logits [n] at an h; 0 where there is none.

    Example:
        >>> round(shift_up_to(torch.tensor([8.0, 9.0]), 0.5), 2), shift_up_to(torch.tensor([-1.0]), 0.5)
        (8.05, 0.0)
    """
    if h is None:
        return 0.0
    return max(0.0, float(logits.double().quantile(1 - NEARLY_ALL)) - math.log(h / (1 - h)))


def position_rows(source: GateRows, controls: Sequence[GateRows], settings: GateSettings) -> LabelledRows:
    """Positions to fit a gate on, with the prompt of each.

    Args:
        source: activations of source prompts.
        controls: those of control prompts, and perhaps of their context.
        settings: of the recipe; `supervised` says whether it is known which positions show the concept.

    Returns:
        Positions of source and of control. Under supervision the source's unmarked positions come last of the latter.

    Raises:
        PromptError: no position is marked.
    """
    positions, negatives = source.gathered("positions"), torch.cat([rows.gathered("positions") for rows in controls])
    prompts = source.gathered("position_prompts")
    others = torch.cat([rows.gathered("position_prompts") for rows in controls]).tolist()
    if not settings.supervised:
        return LabelledRows(positions, negatives, (prompts.tolist(), others), settings.seed)
    marked = source.gathered("labels") if source.labels else torch.zeros(len(positions), dtype=torch.bool)
    if not marked.any():
        raise PromptError("supervision by positions: no position of a source prompt is marked as showing the concept")
    # control prompts are numbered after the sources; unmarked positions are to be of the same prompts as those marked
    same = prompts[~marked] - 1 - int(prompts[marked].max())
    groups = prompts[marked].tolist(), [*others, *same.tolist()]
    return LabelledRows(positions[marked], torch.cat([negatives, positions[~marked]]), groups, settings.seed)
