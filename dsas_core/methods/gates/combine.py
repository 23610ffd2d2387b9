"""Gates of gates, by name: "product(dsas, gaps)", "complement(dsas)", "any(dsas, cosine)", "all(dsas, mlp)".

    product: h = h1 * h2 * …    any: max (OR)    all: min (AND)    complement: 1 - h

(the conditions of CAST, arXiv 2409.05907, and fuzzy sets). Every part is fitted as it is when it stands alone. Evidence
is of the parts' held-out scores of prompts, combined in the same way; a complement has the evidence of its part.

Thresholds are placed part by part, as one shift for all would mix their units: of a product and of `all` the first
part's, as the others can only close it further; of `any` every part's, for its share of `Recipe.control_h`; of a
complement that of its part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import NamedTuple

import torch

from ...errors import DSASError
from ...probes import AllProbe, AnyProbe, ComplementProbe, Probe, ProductProbe
from ..base.cross_validation import Evidence, LabelledRows, evidence_of, logit_of, mean_by_prompt
from ..base.gate import CrossFitted, Gate
from ..base.gate_fit import GateFit, GateRows, GateSettings
from ..base.traits import GateTraits


class _Kind(NamedTuple):
    """How probes, and their h, are combined.

    Args:
        probe: the probe of the parts' probes.
        h: h of the parts' h.
        lowered: of how many parts, from the first, a lower bias of the combination is that of the part; None for all.
    """

    probe: Callable[[tuple[Probe, ...]], Probe]
    h: Callable[[list[torch.Tensor]], torch.Tensor]
    lowered: int | None = None


KINDS = {
    "product": _Kind(ProductProbe, partial(reduce, torch.mul), lowered=1),
    "any": _Kind(AnyProbe, partial(reduce, torch.maximum)),
    "all": _Kind(AllProbe, partial(reduce, torch.minimum)),
    "complement": _Kind(lambda probes: ComplementProbe(*probes), lambda h: 1 - h[0], lowered=0),
}


@dataclass(frozen=True)
class Combined(Gate):
    """A combination of gates.

    Args:
        kind: one of `KINDS`.
        parts: one gate of a complement, else two or more.

    Raises:
        DSASError: another kind, or too few or too many parts.

    Example:
        >>> from dsas_core import methods
        >>> gate = methods.gate("complement(on)")
        >>> gate.fit(torch.zeros(2, 3), torch.zeros(2, 3)).score(torch.zeros(1, 3))
        tensor([[0.]])
    """

    kind: str
    parts: tuple[Gate, ...]
    traits: GateTraits = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS or (len(self.parts) == 1) != (self.kind == "complement") or not self.parts:
            expected = "one gate" if self.kind == "complement" else "two gates or more"
            raise DSASError(f"gate {self.kind} takes {expected}, found {len(self.parts)}")
        if any(part.traits.trained for part in self.parts):
            raise DSASError(
                f"gate {self.kind}(…): a part is trained together with its map, and no combination is: choose e2e-dsas "
                "by itself, or parts that are fitted"
            )
        traits = GateTraits(
            "a combination of gates",
            reads_activations=any(part.traits.reads_activations for part in self.parts),
            uses_other_positions=any(part.traits.uses_other_positions for part in self.parts),
            allows_state=False,
            couples_rows=any(part.traits.couples_rows for part in self.parts),
        )
        object.__setattr__(self, "traits", traits)

    def reads_positions(self, form: str) -> bool:
        return any(part.reads_positions(form) for part in self.parts)

    def fit(self, source: torch.Tensor, control: torch.Tensor) -> Probe:
        return KINDS[self.kind].probe(tuple(part.fit(source, control) for part in self.parts))

    def cross_fit_rows(self, data: LabelledRows) -> CrossFitted[Probe]:
        fits = [part.cross_fit_rows(data) for part in self.parts]
        combine_probes, combine, lowered = KINDS[self.kind]
        source = combine([fit.source_logits.sigmoid() for fit in fits])
        control = combine([fit.control_logits.sigmoid() for fit in fits])

        def control_h(shift: float) -> torch.Tensor:
            """With `shift` taken off the combination's logit, as its probe's `with_lower_bias` does."""
            moved = len(fits[:lowered])
            return combine([fit.control_h(shift if place < moved else 0.0) for place, fit in enumerate(fits)])

        scores = map(mean_by_prompt, (source, control), data.prompts)
        evidence = self._evidence([fit.evidence for fit in fits], *scores)
        probe = combine_probes(tuple(fit.probe for fit in fits))
        return CrossFitted(probe, evidence, logit_of(source[:, None]), logit_of(control[:, None]), control_h)

    def fit_on(self, source: GateRows, controls: Sequence[GateRows], settings: GateSettings) -> GateFit:
        parts = [part.fit_on(source, controls, settings) for part in self.parts]
        counts = torch.tensor(controls[0].sampled)
        combine_probes, combine, _ = KINDS[self.kind]

        def place_at(target: float | None) -> tuple[Probe, torch.Tensor]:
            placed = [part.place_at(share) for part, share in zip(parts, self._targets(target), strict=True)]
            rows = [
                h.repeat_interleave(counts, 0) if part.per_row else h
                for part, (_, h) in zip(parts, placed, strict=True)
            ]
            shared = min(map(len, rows))  # some are of control prompts only, and not of their context
            return combine_probes(tuple(probe for probe, _ in placed)), combine([h[:shared] for h in rows])

        scores = combine([part.scores[0] for part in parts]), combine([part.scores[1] for part in parts])
        evidence = self._evidence([part.evidence for part in parts], *scores)
        return GateFit(place_at, evidence, scores, refused=next((part.refused for part in parts if part.refused), ""))

    def _targets(self, target: float | None) -> list[float | None]:
        """The mean h on controls to place each part's threshold for, so that the combination's is at most `target`.

        None leaves a threshold where it is. A complement is 1 minus its part, so for it there is no such limit.
        """
        if target is None or self.kind != "any":
            return [target, *([None] * (len(self.parts) - 1))]
        return [target / len(self.parts)] * len(self.parts)

    def _evidence(self, parts: list[Evidence], source: torch.Tensor, control: torch.Tensor) -> Evidence:
        """The combination's evidence, of the parts' and of its own scores of held-out source and control prompts."""
        return parts[0] if self.kind == "complement" else evidence_of(source, control)
