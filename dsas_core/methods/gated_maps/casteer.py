"""CASteer: erase a concept by its projection on one direction, or add it, at each position, site and timestep bin.

    erase, reflect:  T(x; s) = x - s * β * max(u . x, 0) * u,   u = unit(mean(source) - mean(target)), β = 1 or 2
    add:             T(x; s) = x' * |x| / |x'|,  x' = x + s * α * u',   u' = unit(mean(target) - mean(source))

Gaintseva et al., "CASteer: Cross-Attention Steering for Controllable Concept Erasure", arXiv 2503.09630; released code.
At s = 1 "erase" removes the component along u and "reflect" negates it, which keeps the length; the paper erases with
β = 2. In "add" `alpha` is the paper's 10 by default. The source shows what is erased; for "add" the target shows what
is added. Meant for the outputs of cross-attention (`sites="cross"`). A negative strength of "erase" and "reflect"
amplifies the concept where it is, which the paper does not do; of "add" it moves in the opposite direction.

The gate is h = max(u . x, 0) / |x| with u = unit(mean(source) - mean(control)), for other maps: at threshold 0, which
`cosine` places on controls. CASteer itself does not scale by it: in "erase" and "reflect" the clip at 0 is the gate
already, and "add" has none. So where no gate is chosen, this map has "on", and is CASteer exactly.

Traps: activations have a large mean in common, whose product with u may have either sign, so that all positions or none
are moved; α is in units of the model's activations; one direction per bin, where the paper has one per step.
"""

from __future__ import annotations

import torch

from ...maps import Map, ProjectionMap, TurnMap
from ...probes import CosineProbe
from ..base.gate import Gate
from ..base.map_method import MapMethod, Option, one_of
from ..base.traits import GateTraits, MapTraits
from ..maps.caa import unit


class CASteer(MapMethod):
    """Erasure by projection, and addition at constant length. Options `mode` and `alpha`, see above.

    Example:
        >>> source, target = torch.tensor([[2.0, 1.0], [4.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
        >>> CASteer().fit(source, target).apply(torch.tensor([[5.0, 1.0]]), 1.0)
        tensor([[0., 1.]])
    """

    traits = MapTraits(
        "take away what points from target to source, or add what points back (arXiv 2503.09630)", default_gate="on"
    )
    options = {
        "mode": one_of("erase", "reflect", "add"),
        "alpha": Option(10.0, "a number above 0", lambda value: type(value) in (int, float) and value > 0),
    }

    def _fit(self, source: torch.Tensor, target: torch.Tensor, *, mode: str, alpha: float) -> Map:
        direction = unit(source.mean(0) - target.mean(0))
        if mode == "add":
            return TurnMap(-alpha * direction)
        zero = torch.zeros((), dtype=source.dtype)
        return ProjectionMap(direction, zero, factor=2.0 if mode == "reflect" else 1.0)


class PositiveCosine(Gate):
    """The cosine of a position to the source's direction, 0 where it is negative.

    Example:
        >>> probe = PositiveCosine().fit(torch.tensor([[2.0, 1.0], [4.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
        >>> probe.score(torch.tensor([[3.0, 4.0], [-3.0, 4.0]]))[:, 0]
        tensor([0.6000, 0.0000])
    """

    traits = GateTraits(
        "cosine to the mean difference where that is above 0: how much of a position is the concept",
        fixed_threshold=True,
    )

    def _fit(self, source: torch.Tensor, control: torch.Tensor) -> CosineProbe:
        direction = unit(source.mean(0) - control.mean(0))
        return CosineProbe(direction, torch.zeros((), dtype=torch.float64))
