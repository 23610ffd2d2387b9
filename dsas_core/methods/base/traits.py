"""The traits of gates and of map methods: what `learn` and `steer` have to know of a method beside its formula.

A gate or map method declares its own, `traits = GateTraits(...)`; no caller asks which class it is. A behaviour that no
other method has is a method of `Gate` or `MapMethod` that the new class overrides, in its own file. What callers decide
by is a field here, with the decision itself where it is about fitting or refusing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ...errors import DSASError, PromptError
from .gate_fit import GateSettings

#: why `learn` refuses what couples rows: what follows its name
COUPLED = (
    "goes by several runs of one prompt, and learning runs each prompt once: nothing of it is learned, stars() makes "
    "its concept"
)


@dataclass(frozen=True)
class GateTraits:
    """The traits of a gate.

    Args:
        summary: one line, as `dsas methods` lists it.
        fitted_on: rows that `learn` fits it on: "positions", each sampled position a row, or "pooled", the mean over
            the positions of each prompt. Either way it is read at single positions, unless its form says otherwise.
        reads_activations: False for a gate whose h is the same everywhere. Its site weight is 1, and `learn` does not
            warn of its evidence.
        uses_other_positions: h depends on the other positions of a row in the call. Refused for texts, whose tokens
            are written one by one, unless one decision is made on the whole prompt.
        per_prompt: one decision per row, by its mean. `learn` reads it at the site that separates source from control
            best, and lets it gate that site and the later ones. Which site that is, is known after all sites are
            fitted, so mode "causal" is refused.
        text_form: the form (`Recipe.form`) in which `learn` has the gate read texts, unless the recipe says otherwise.
        fixed_threshold: the method places its threshold itself. `Recipe.control_h` does not move it, and the site
            weight "soft" is 1 where balanced accuracy is above chance by three standard errors, else 0.
        allows_state: False for a gate that cannot be read in the forms with state, "prefix" and "latch".
        trained: it is trained together with its map, and `fit` gives where that begins; mode "joint" alone.
        couples_rows: h goes by the other runs of a prompt. Then a batch of two is not two singles, and `learn`, which
            runs each prompt once, refuses it.

    Example:
        >>> GateTraits("one decision per prompt", uses_other_positions=True).obstacle_to_texts("token")
        'goes by all positions at once, and tokens are written one by one: choose another'
    """

    summary: str
    fitted_on: Literal["positions", "pooled"] = "positions"
    reads_activations: bool = True
    uses_other_positions: bool = False
    per_prompt: bool = False
    text_form: str = "token"
    fixed_threshold: bool = False
    allows_state: bool = True
    trained: bool = False
    couples_rows: bool = False

    def obstacle_to(self, settings: GateSettings, reads_positions: bool) -> str | None:
        """Why the gate cannot be learned by a recipe: what follows its name; None where it can.

        Args:
            settings: of the recipe.
            reads_positions: whether, in the recipe's form, the gate is fitted on single positions.
        """
        if self.couples_rows:
            return COUPLED
        if settings.supervised and not reads_positions:
            return (
                f"(form {settings.form!r}) is fitted on means over positions, so that marked positions cannot tell it "
                "anything: choose dsas in form token or product, gaps or mlp"
            )
        if settings.mode == "causal" and self.per_prompt:
            return (
                "is asked at one site for all behind it, which is known when all have learned: choose mode clean, or "
                "another gate"
            )
        return None

    def obstacle_to_texts(self, form: str) -> str | None:
        """Why the gate cannot read texts as they are written, in a form: what follows its name; None where it can."""
        if not self.uses_other_positions or (self.per_prompt and form == "latch"):
            return None
        way_out = "choose form latch" if self.per_prompt else "choose another"
        return f"goes by all positions at once, and tokens are written one by one: {way_out}"


@dataclass(frozen=True)
class MapTraits:
    """The traits of a map method.

    Args:
        summary: one line, as `dsas methods` lists it.
        default_gate: the name of the gate where none is chosen; see `MapMethod.default_gate`.
        min_rows: rows that are needed of each side.
        paired: row i of the target belongs to row i of the source, so both have as many.
        from_gate: the map is made of the probe that the method's own gate was fitted to, also where another gate is in
            use; see `MapMethod.from_probe`.
        max_sites: how many sites `learn` steers unless `Recipe.keep` says; None for all.
        has_unit: False where the method defines a strength of 1 itself, so that `learn` chooses no unit.
        trained: maps of all sites are trained together, mode "joint" alone; see `learning.joint`.
        couples_rows: as for gates.

    Example:
        >>> MapTraits("add a vector").has_unit
        True
    """

    summary: str
    default_gate: str = "dsas"
    min_rows: int = 1
    paired: bool = False
    from_gate: bool = False
    max_sites: int | None = None
    has_unit: bool = True
    trained: bool = False
    couples_rows: bool = False

    def check_rows(self, name: str, source: torch.Tensor, target: torch.Tensor) -> None:
        """Check that there are enough rows to fit the map on.

        Args:
            name: of the method, for errors.
            source: [n, width].
            target: [m, width].

        Raises:
            DSASError: too few rows.
            PromptError: the method is fitted on pairs, and the sides differ in length.
        """
        for side, rows in (("source", source), ("target", target)):
            if len(rows) < self.min_rows:
                raise DSASError(f"{side}: {name} needs at least {self.min_rows} rows, found {len(rows)}")
        if self.paired and len(source) != len(target):
            raise PromptError(
                f"{name} is fitted on pairs, so it needs as many target rows as source rows, found {len(target)} and "
                f"{len(source)}: write the prompts as pairs, or choose a method without pairs (caa)"
            )
