"""The traits of gates and of map methods: what `learn` and `steer` have to know of one beside its formula.

A gate or map method declares its own, `traits = GateTraits(...)`; nobody asks which class it is. A new kind of
behaviour is a method of `Gate` or `MapMethod` that the new class overrides. What others must decide by is a field
here, with what they do by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class GateTraits:
    """The traits of a gate.

    Args:
        summary: one line, as `dsas methods` lists it.
        fitted_on: rows that `learn` fits it on: "positions", each sampled position a row, or "pooled", the mean over
            the positions of each prompt. Either way it is read at single positions, unless its form says otherwise.
        reads_activations: False for a gate that is the same everywhere. Its site weight is 1, and `learn` does not warn
            of its evidence.
        uses_other_positions: h depends on the other positions of a row in the call. Refused for texts, whose tokens
            are written one by one, unless one decision is made on the whole prompt.
        per_prompt: one decision per row, by its mean. `learn` reads it at the site that tells best and lets it gate
            that site and those behind; which site that is, is known when all have learned, so not in mode "causal".
        text_form: the form (`Recipe.form`) in which `learn` has the gate read texts, unless the recipe says.
        fixed_threshold: the method places its threshold itself and knows no partial trust. `Recipe.control_h` does not
            move it, and the site weight "soft" is 1 where balanced accuracy is above chance by three standard errors,
            else 0.
        allows_state: False for a gate that cannot be read in the forms with state, "prefix" and "latch".

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
        min_rows: rows that are needed of each side.
        paired: row i of the target belongs to row i of the source, so both have as many.
        from_gate: the map is made of what the method's own gate was fitted to, also where another gate is in use; see
            `MapMethod.from_probe`.
        max_sites: how many sites `learn` steers unless `Recipe.keep` says; None for all.
        has_unit: False where a strength of 1 is the method's own, so that `learn` has no unit to choose.

    Example:
        >>> MapTraits("add a vector").has_unit
        True
    """

    summary: str
    min_rows: int = 1
    paired: bool = False
    from_gate: bool = False
    max_sites: int | None = None
    has_unit: bool = True
