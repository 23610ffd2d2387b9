"""LinEAS: affine maps of all sites, trained together so that what the sites give looks as if targets had been read.

    T(x; s) = x + s * ((ω - 1) x + β),   loss = mean over sites and dimensions of W2²(what source prompts give, target)

"LinEAS: End-to-end Learning of Activation Steering with a Distributional Loss", arXiv 2503.10679. Activations are means
over the positions of each prompt; those of target prompts are the unsteered model's. ω begins at 1 and β at 0. A
strength of 1 transports all the way; negative ones move by the inverse, (x - β) / ω, which brings in what the map takes
out (`maps.TwoWayMap`).

- `l1` and `group` are penalties of the sparse group lasso, by a proximal step after each step of the optimiser: the
  first leaves dimensions alone, the second whole sites. Here they are of ω - 1 and of the displacement of the mean row
  in standard deviations, so that a penalty says the same at every site; the paper's are of β as it is.

Choices of ours: AdamW where the paper has SGD with a rate of 0.1; parameters in units of the rows
(`training.parts`), as the spread of dimensions differs by orders of magnitude; source prompts in batches, against all
target prompts, by exact quantile functions where the counts differ.

Traps: means over positions say little of a concept that few positions show; the map moves every position, so a gate is
where it gains most. Trained always on, it is then read through whichever gate is chosen; `e2e-dsas` trains both.
"""

from __future__ import annotations

from typing import Any

import torch

from ...maps import AffineMap, Map, TwoWayMap
from ...probes import Probe
from ..base.gate_fit import GateRows
from ..base.map_method import MapMethod, Option
from ..base.traits import MapTraits
from ..training.parts import train_on_rows

#: penalties of the sparse group lasso
PENALTY = Option(0.0, "a number from 0 up", lambda value: type(value) in (int, float) and 0 <= value < 1e6)


def identity(width: int, dtype: torch.dtype = torch.float64) -> AffineMap:
    """The affine map that changes nothing, where training begins.

    Example:
        >>> identity(2).apply(torch.ones(1, 2), 1.0).tolist()
        [[1.0, 1.0]]
    """
    return AffineMap(torch.zeros(width, dtype=dtype), torch.ones(width, dtype=dtype))


class LinEAS(MapMethod):
    """Affine maps that are trained together. Options `l1` and `group`, see above.

    `fit` trains on the rows of one site alone, where the optimum is that of `linear-act`; in learning, all sites are
    trained together (`learning.joint`).

    Example:
        >>> source, target = torch.tensor([[0.0], [2.0]]), torch.tensor([[9.0], [5.0]])
        >>> [round(x, 2) for x in LinEAS().fit(source, target).apply(source, 1.0)[:, 0].tolist()]
        [5.0, 9.0]
    """

    traits = MapTraits(
        "affine maps of all sites, trained together on distances of distributions (arXiv 2503.10679)",
        min_rows=2,
        trained=True,
    )
    options = {"l1": PENALTY, "group": PENALTY}

    def fit_on(self, source: GateRows, target: GateRows, probe: Probe, pooling: str, **options: Any) -> Map:
        """Where training begins: a map that changes nothing."""
        return identity(source.gathered("pooled").shape[1], torch.float32)

    def finish(self, trained: Map) -> Map:
        assert isinstance(trained, AffineMap)
        return TwoWayMap.of(trained)

    def _fit(self, source: torch.Tensor, target: torch.Tensor, *, l1: float, group: float, **others: Any) -> Map:
        return self.finish(train_on_rows(identity(source.shape[1]), source, target, l1, group))
