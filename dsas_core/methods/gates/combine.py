"""Gates of gates, by name: "product(dsas, gaps)", "complement(dsas)", "any(dsas, cosine)", "all(dsas, mlp)".

    product: h = h1 * h2 * …    any: max (OR)    all: min (AND)    complement: 1 - h

(the conditions of CAST, arXiv 2409.05907, and fuzzy sets). Every part is fitted as it is when it stands alone; evidence
is of the parts' held-out scores of prompts, put together in the same way, of a complement that of what it is the
complement of.

Thresholds are placed part by part, as one shift for all would mix their units: of a product and of `all` the first
part's, as the others can only close it further; of `any` every part's, for its share of `Recipe.control_h`; of a
complement that of what it is the complement of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce

import torch

from ...errors import DSASError
from ...probes import AllProbe, AnyProbe, ComplementProbe, Probe, ProductProbe
from ..base.cross_validation import Evidence, PromptIds, by_prompt, evidence_of, logit_of
from ..base.gate import CrossFitted, Gate
from ..base.gate_fit import GateFit, GateRows, GateSettings
from ..base.traits import GateTraits

KINDS = ("product", "any", "all", "complement")


@dataclass(frozen=True)
class Combined(Gate):
    """The gate that `kind` makes of its parts.

    Args:
        kind: one of `KINDS`.
        parts: one gate of a complement, else two or more.

    Raises:
        DSASError: another kind, or not as many parts.

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
            wanted = "one gate" if self.kind == "complement" else "two gates or more"
            raise DSASError(f"gate {self.kind} takes {wanted}, found {len(self.parts)}")
        traits = GateTraits(
            "a combination of gates",
            reads_activations=any(part.traits.reads_activations for part in self.parts),
            uses_other_positions=any(part.traits.uses_other_positions for part in self.parts),
            allows_state=False,
        )
        object.__setattr__(self, "traits", traits)

    def reads_positions(self, form: str) -> bool:
        return any(part.reads_positions(form) for part in self.parts)

    def probe(self, probes: Sequence[Probe]) -> Probe:
        """The probe made of the parts' probes."""
        if self.kind == "complement":
            return ComplementProbe(probes[0])
        kinds: dict[str, Callable[[tuple[Probe, ...]], Probe]] = {"any": AnyProbe, "all": AllProbe}
        return kinds.get(self.kind, ProductProbe)(tuple(probes))

    def h(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """h made of the parts' h."""
        if self.kind == "complement":
            return 1 - parts[0]
        kinds = {"any": torch.maximum, "all": torch.minimum}
        return reduce(kinds.get(self.kind, torch.mul), parts)

    def lowered_h(self, parts: Sequence[Callable[[float], torch.Tensor]], shift: float) -> torch.Tensor:
        """h with `shift` taken off the combination's logit, as its probe's `with_lower_bias` does.

        Args:
            parts: h of each part, by how far it is lowered.
            shift: of the combination.
        """
        moved = {"product": 1, "complement": 0}.get(self.kind, len(parts))
        return self.h([part(shift if place < moved else 0.0) for place, part in enumerate(parts)])

    def shares(self, target: float | None) -> list[float | None]:
        """The mean h on controls to place each part's threshold for, so that the combination's is at most `target`.

        None leaves a threshold where it is. A complement's own mean is what its part leaves: there is no such limit.
        """
        if target is None or self.kind != "any":
            return [target, *([None] * (len(self.parts) - 1))]
        return [target / len(self.parts)] * len(self.parts)

    def evidence(self, parts: Sequence[Evidence], scores: tuple[torch.Tensor, torch.Tensor]) -> Evidence:
        """The combination's evidence.

        Args:
            parts: the evidence of each.
            scores: held-out scores of source and of control prompts by the combination.
        """
        return parts[0] if self.kind == "complement" else evidence_of(*scores)

    def fit(self, source: torch.Tensor, control: torch.Tensor) -> Probe:
        return self.probe([part.fit(source, control) for part in self.parts])

    def cross_fit(
        self, source: torch.Tensor, control: torch.Tensor, *, groups: PromptIds | None = None, seed: int = 0
    ) -> CrossFitted[Probe]:
        fits = [part.cross_fit(source, control, groups=groups, seed=seed) for part in self.parts]
        sides = [[fit.source_logits for fit in fits], [fit.control_logits for fit in fits]]
        h = [self.h([logits.sigmoid() for logits in side]) for side in sides]
        means = [by_prompt(side, groups[i] if groups else range(len(side))) for i, side in enumerate(h)]
        evidence = self.evidence([fit.evidence for fit in fits], (means[0], means[1]))
        source_logits, control_logits = (logit_of(side[:, None]) for side in h)
        control_h = [fit.control_h for fit in fits]
        probe = self.probe([fit.probe for fit in fits])
        return CrossFitted(
            probe, evidence, source_logits, control_logits, lambda shift: self.lowered_h(control_h, shift)
        )

    def fit_on(self, source: GateRows, controls: Sequence[GateRows], settings: GateSettings) -> GateFit:
        parts = [part.fit_on(source, controls, settings) for part in self.parts]
        counts = torch.tensor(controls[0].sampled)

        def at(target: float | None) -> tuple[Probe, torch.Tensor]:
            placed = [part.at(share) for part, share in zip(parts, self.shares(target), strict=True)]
            by_position = [
                h.repeat_interleave(counts, 0) if part.per_row else h
                for part, (_, h) in zip(parts, placed, strict=True)
            ]
            shared = min(map(len, by_position))  # some are of control prompts only, and not of the context
            return self.probe([probe for probe, _ in placed]), self.h([h[:shared] for h in by_position])

        scores = self.h([part.scores[0] for part in parts]), self.h([part.scores[1] for part in parts])
        evidence = self.evidence([part.evidence for part in parts], scores)
        return GateFit(at, evidence, scores, refused=next((part.refused for part in parts if part.refused), ""))
