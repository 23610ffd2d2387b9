"""Gates of gates, by name: "product(dsas, gaps)", "complement(dsas)", "any(dsas, cosine)", "all(dsas, mlp)".

    product: h = h1 * h2 * …    any: max (OR)    all: min (AND)    complement: 1 - h

(the conditions of CAST, arXiv 2409.05907, and fuzzy sets). Every part is fitted as it is when it stands alone; evidence
is of the parts' held-out scores of prompts, put together in the same way, of a complement that of what it is the
complement of. `gating` tells whose thresholds are placed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce

import torch

from ..errors import DSASError
from ..probes import AllProbe, AnyProbe, ComplementProbe, Probe, ProductProbe
from ._gate import Evidence, Fitted, Gate, Groups, by_prompt, evidence_of, logit_of

KINDS = ("product", "any", "all", "complement")


@dataclass(frozen=True)
class Combined(Gate):
    """The gate that `kind` makes of its parts."""

    kind: str
    parts: tuple[Gate, ...]
    line: str = field(init=False, default="a combination of gates")
    looks: bool = field(init=False)
    whole: bool = field(init=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS or (len(self.parts) == 1) != (self.kind == "complement") or not self.parts:
            wanted = "one gate" if self.kind == "complement" else "two gates or more"
            raise DSASError(f"gate {self.kind} takes {wanted}, found {len(self.parts)}")
        object.__setattr__(self, "looks", any(part.looks for part in self.parts))
        object.__setattr__(self, "whole", any(part.whole for part in self.parts))

    def probe(self, probes: Sequence[Probe]) -> Probe:
        """The probe made of the parts' probes."""
        if self.kind == "complement":
            return ComplementProbe(probes[0])
        kinds: dict[str, Callable[[tuple[Probe, ...]], Probe]] = {"any": AnyProbe, "all": AllProbe}
        return kinds.get(self.kind, ProductProbe)(tuple(probes))

    def h(self, said: Sequence[torch.Tensor]) -> torch.Tensor:
        """h made of the parts' h."""
        if self.kind == "complement":
            return 1 - said[0]
        kinds = {"any": torch.maximum, "all": torch.minimum}
        return reduce(kinds.get(self.kind, torch.mul), said)

    def h_lowered(self, said: Sequence[Callable[[float], torch.Tensor]], shift: float) -> torch.Tensor:
        """h made of the parts' h with `shift` taken off the combination's evidence, as its probe's `lowered` does."""
        moved = {"product": 1, "complement": 0}.get(self.kind, len(said))
        return self.h([part(shift if place < moved else 0.0) for place, part in enumerate(said)])

    def shares(self, target: float | None) -> list[float | None]:
        """The mean h on controls to place each part's threshold for, so that the combination's is at most `target`.

        None leaves a threshold where it is. A complement's own mean is what its part leaves: there is no such limit.
        """
        if target is None or self.kind != "any":
            return [target, *([None] * (len(self.parts) - 1))]
        return [target / len(self.parts)] * len(self.parts)

    def evidence(self, parts: Sequence[Evidence], scores: tuple[torch.Tensor, torch.Tensor]) -> Evidence:
        """From the parts' evidence, and held-out scores of source and control prompts by the combination."""
        return parts[0] if self.kind == "complement" else evidence_of(*scores)

    def fit(self, source: torch.Tensor, control: torch.Tensor) -> Probe:
        return self.probe([part.fit(source, control) for part in self.parts])

    def cross_fit(
        self, source: torch.Tensor, control: torch.Tensor, *, groups: Groups | None = None, seed: int = 0
    ) -> Fitted[Probe]:
        fits = [part.cross_fit(source, control, groups=groups, seed=seed) for part in self.parts]
        sides = [[fit.source_logits for fit in fits], [fit.control_logits for fit in fits]]
        h = [self.h([logits.sigmoid() for logits in side]) for side in sides]
        means = [by_prompt(side, groups[i] if groups else range(len(side))) for i, side in enumerate(h)]
        evidence = self.evidence([fit.evidence for fit in fits], (means[0], means[1]))
        source_logits, control_logits = (logit_of(side[:, None]) for side in h)
        said = [fit.control_h for fit in fits]
        probe = self.probe([fit.probe for fit in fits])
        return Fitted(probe, evidence, source_logits, control_logits, lambda shift: self.h_lowered(said, shift))
