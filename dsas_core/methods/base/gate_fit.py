"""What a gate is fitted on in learning, and what comes of it: a probe whose threshold is placed on controls.

A probe that was fitted on means has its threshold in the wrong place for positions. So it is lowered until the mean h
of control positions that it was not fitted on is at most `Recipe.control_h`. h of each dimension counts by its mean
over dimensions, here and in all evidence.

Where it is known which positions of source prompts show the concept (supervision "positions": words of a text, masks
of a picture), gates that are fitted on positions take these for the concept, and the others of the same prompts for
what it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ...errors import PromptError
from ...probes import Probe
from .cross_validation import Evidence, PromptIds

#: a gate that is still open when it is lowered so far keeps its threshold
MAX_SHIFT = 1e6


class GateRows(Protocol):
    """Captured activations of one kind of prompt, see `capture.Rows`."""

    labels: list[torch.Tensor]

    def gathered(self, name: str) -> torch.Tensor: ...

    @property
    def sampled(self) -> list[int]: ...


class GateSettings(Protocol):
    """What gates ask of a `Recipe`."""

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
    def mode(self) -> str: ...
    @property
    def supervised(self) -> bool: ...


@dataclass(frozen=True)
class GateFit:
    """A gate that was fitted at one site, its threshold still to be placed.

    Args:
        at: of `Recipe.control_h` (None: where the fit put the threshold), the probe with its threshold placed, and h
            of controls by probes that had not seen them, [n, 1 or width]: of positions, those of control prompts
            first, or of rows (`per_row`).
        evidence: on prompts that the probe was not fitted on.
        scores: mean h of source and of control prompts that the probe had not seen, [n] and [m].
        per_row: the gate decides on means, once per row.
        refused: why it must not steer here, or "".
    """

    at: Callable[[float | None], tuple[Probe, torch.Tensor]]
    evidence: Evidence
    scores: tuple[torch.Tensor, torch.Tensor]
    per_row: bool = False
    refused: str = ""


def placing(
    probe: Probe, control_h: Callable[[float], torch.Tensor], fixed: bool = False
) -> Callable[[float | None], tuple[Probe, torch.Tensor]]:
    """`GateFit.at` of a probe.

    Args:
        probe: as it was fitted.
        control_h: h of controls, by how far the probe is lowered.
        fixed: the threshold stays where the fit put it.
    """

    def at(target: float | None) -> tuple[Probe, torch.Tensor]:
        shift = place_threshold(control_h, None if fixed else target)
        return probe.with_lower_bias(shift), control_h(shift)

    return at


def lowered_h(logits: torch.Tensor, factor: torch.Tensor | None = None) -> Callable[[float], torch.Tensor]:
    """h of held-out logits [n], times a factor [n] that does not move, by how far the gate is lowered: [n, 1]."""
    factor = torch.ones_like(logits) if factor is None else factor
    return lambda shift: (factor * (logits - shift).sigmoid())[:, None]


def place_threshold(h: Callable[[float], torch.Tensor], target: float | None) -> float:
    """How far to lower a gate so that its mean h is at most a target.

    Args:
        h: h(shift), [n, 1 or width], which falls with the shift.
        target: None leaves the gate where it is.

    Returns:
        The shift; 0 when the mean is low enough already, `target` is None, or lowering does not get it there.

    Example:
        >>> logits = torch.tensor([0.0, 2.0])
        >>> shift = place_threshold(lowered_h(logits), target=0.25)
        >>> round(float((logits - shift).sigmoid().mean()), 4)
        0.25
    """
    if target is None or float(h(0.0).mean()) <= target or float(h(MAX_SHIFT).mean()) > target:
        return 0.0
    low, shift = 0.0, 60.0
    while float(h(shift).mean()) > target:
        low, shift = shift, 2 * shift
    for _ in range(50):
        middle = (low + shift) / 2
        low, shift = (middle, shift) if float(h(middle).mean()) > target else (low, middle)
    return shift


def position_rows(
    source: GateRows, controls: Sequence[GateRows], settings: GateSettings
) -> tuple[tuple[torch.Tensor, torch.Tensor], PromptIds]:
    """Positions to fit a gate on, and whose they are.

    Args:
        source: rows of source prompts.
        controls: those of control prompts, and perhaps of their context.
        settings: of the recipe; whether it is known which positions show the concept.

    Returns:
        Positions for h = 1 and for h = 0, [n, width] and [m, width], with the prompt of each. Under supervision the
        source's unmarked ones come last of the latter.

    Raises:
        PromptError: no position is marked.
    """
    positions, negatives = source.gathered("positions"), torch.cat([rows.gathered("positions") for rows in controls])
    owners = source.gathered("position_prompts")
    others = torch.cat([rows.gathered("position_prompts") for rows in controls]).tolist()
    if not settings.supervised:
        return (positions, negatives), (owners.tolist(), others)
    marked = source.gathered("labels") if source.labels else torch.zeros(len(positions), dtype=torch.bool)
    if not marked.any():
        raise PromptError("supervision by positions: no position of a source prompt is marked as showing the concept")
    # control prompts are numbered after the sources; unmarked positions are to be of the same prompts as those marked
    behind = owners[~marked] - 1 - int(owners[marked].max())
    rows = positions[marked], torch.cat([negatives, positions[~marked]])
    return rows, (owners[marked].tolist(), [*others, *behind.tolist()])
