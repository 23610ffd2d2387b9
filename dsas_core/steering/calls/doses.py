"""Map strengths of the rows of a call: what the user gave, in units of the maps, over time, where rows are steered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ...errors import DSASError
from ...model.hooks import Call
from ..binding import BoundConcept
from ..strengths import Schedule, Strengths


class GivenDoses:
    """The strengths that the user gave, by row.

    Args:
        concepts: the attached concepts.
        strengths: of the user.
        schedules: concept name -> strength over the timestep.
    """

    def __init__(
        self, concepts: Sequence[BoundConcept], strengths: Strengths, schedules: Mapping[str, Schedule]
    ) -> None:
        self.strengths, self._schedules = strengths, schedules
        self._units = {concept.name: concept.unit for concept in concepts}

    def of_rows(self, names: Sequence[str], call: Call, *, disabled: bool) -> torch.Tensor:
        """Map strengths of each row by concept, [batch, concepts]; for `Auto` a factor on the solved strength.

        Args:
            names: of the concepts.
            call: its rows, and its timestep.
            disabled: let all count as 0.

        Raises:
            DSASError: strengths for fewer prompts than the call has.
        """
        device = call.steered.device
        if disabled:
            return torch.zeros(len(call.steered), len(names), device=device)
        units = [1.0 if self.strengths.auto_of(name) else self._units[name] for name in names]  # 1: reach the target
        doses = self._by_prompt(names, call.prompts) * torch.tensor(units)
        doses = doses.to(device) * call.steered[:, None]
        timed = [name for name in names if name in self._schedules]
        if timed and call.timestep is not None:
            factors = {name: self._schedules[name](call.timestep.float()).to(doses).reshape(()) for name in timed}
            doses = doses * torch.stack([factors.get(name, doses.new_ones(())) for name in names])
        return doses

    def _by_prompt(self, names: Sequence[str], prompts: torch.Tensor) -> torch.Tensor:
        """The strengths of concepts by row, [rows, concepts]; [1, concepts] where they are the same for all rows."""
        values = [self.strengths.values_of(name) for name in names]
        listed = {name: len(part) for name, part in zip(names, values, strict=True) if len(part) > 1}
        if not listed:
            return torch.cat(values)[None]
        few, count = min(listed, key=lambda name: listed[name]), int(prompts.max()) + 1
        if listed[few] < count:
            raise DSASError(f"strength of {few!r} is given for {listed[few]} prompts, but the call has {count}")
        by_prompt = torch.stack([part.expand(count) if len(part) == 1 else part[:count] for part in values], 1)
        return by_prompt[prompts.cpu()]
