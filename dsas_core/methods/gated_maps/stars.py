"""STARS: runs of one prompt are pushed apart by offsets of one length that are orthogonal to one another.

    T(x; s) = x + s * V(x of all runs at this position),    VᵀV = c * σ_max² * I

"Exploring Diverse Generation Paths via Inference-time Stiefel Activation Steering", arXiv 2601.22010; V is in
`maps.stiefel`. It is for several answers to one prompt, or several pictures of it, that differ; no concept is brought
in or taken out. Nothing is learned: `stars(...)` makes the concept of some sites, and `learn` refuses the method, as it
runs each prompt once. A strength of 1 is the method with its c.

Options: `c`, the squared length of an offset as a share of the largest squared singular value of the runs (the paper's
0.1 and 0.5); `seed` of the random columns that V begins with.

The paper has no gate. The gate here is ours: it opens where the runs are alike (`probes.AgreementProbe`), so that what
differs already is left alone; `least` is the mean cosine at which it is shut. The map's own gate is `on`.

Traps: runs go by one another, so a batch of two is not two singles, and each run needs the others in its batch; the
other identities hold. Offsets are as long as a share of what they are added to: correctness falls as c grows (the
paper's own figures, too). Positions of different runs do not correspond once their answers differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ...errors import DSASError
from ...maps import StiefelMap
from ...maps.stiefel import MAX_SEED
from ...probes import AgreementProbe
from ..base.gate import Gate
from ..base.map_method import MapMethod, Option
from ..base.traits import GateTraits, MapTraits


def _is_scale(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 100


def _is_seed(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_SEED


class STARS(MapMethod):
    """Orthogonal offsets of the runs of a prompt. Options `c` and `seed`; rows are not looked at.

    Example:
        >>> STARS().fit(torch.zeros(2, 8), torch.zeros(2, 8), c=0.1)
        StiefelMap(scale=0.1, seed=0)
    """

    traits = MapTraits(
        "push runs of one prompt apart by orthogonal offsets; nothing is learned (arXiv 2601.22010)",
        default_gate="on",
        has_unit=False,
        couples_rows=True,
    )
    options = {
        "c": Option(0.5, "a number above 0, up to 100", _is_scale),
        "seed": Option(0, f"a number from 0 to {MAX_SEED}", _is_seed),
    }

    def _fit(self, source: torch.Tensor, target: torch.Tensor, *, c: float, seed: int) -> StiefelMap:
        return StiefelMap(float(c), seed)


@dataclass(frozen=True)
class Agreement(Gate):
    """Open where the runs of a prompt are alike; rows are not looked at.

    Args:
        least: the mean cosine of two runs at which h is 0.

    Raises:
        DSASError: another number.

    Example:
        >>> Agreement(0.5).fit(torch.zeros(2, 8), torch.zeros(2, 8))
        AgreementProbe(least=0.5)
    """

    traits = GateTraits("where the runs of one prompt are alike; nothing is learned", couples_rows=True)

    least: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.least, bool) or not isinstance(self.least, int | float) or not 0 <= self.least <= 0.999:
            raise DSASError(f"gate stars: least {self.least}: expected a cosine from 0 to 0.999")

    def _fit(self, source: torch.Tensor, control: torch.Tensor) -> AgreementProbe:
        return AgreementProbe(float(self.least))
