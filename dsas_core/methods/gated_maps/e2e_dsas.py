"""E2E-DSAS: gate and map of every site, trained together: steer what shows the concept, keep what does not.

    x' = x + h(x) ((ω - 1) x + β),   h = φ(w . x + b)
    loss = Δ(source steered, target) + γ * preservation,   preservation = mean of (x' - x)² over control prompts

"Dynamically Scaled Activation Steering", arXiv 2512.03661, in our implementation: neither code nor all of the formula
is public. Δ is that of `lineas`. Preservation is the mean over the positions that count, dimensions and sites, so that
both terms are squared activations per dimension; both are reported. Target prompts are read unsteered.

- `activation` is φ: "sigmoid", "relu", or "clipped", a ReLU that ends at 1.
- `gamma` is γ. Small, controls move; large, the cheapest gate is one that never opens.
- `l1` and `group`: of `lineas`.

Training begins with the gate that is fitted offline (`dsas`, at single positions), and a map that changes nothing. With
that map h has no effect, so the gate's gradient is exactly 0 in the first step and the map leads; and a ReLU gate that
is 0 everywhere is dead: neither it nor its map would ever move. A ReLU begins as the tangent of the sigmoid, z / 4 +
1 / 2.

The gate can be had without the map (`--method caa --gate e2e-dsas`), and the map without the gate (`--method e2e-dsas
--gate dsas`): both are trained all the same.

Traps: gate and map share one scale, half the h and twice the map are the same; with a ReLU h may exceed 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...errors import DSASError
from ...maps import Map
from ...probes import LinearProbe, Probe, RectifiedProbe
from ..base.gate import Gate
from ..base.gate_fit import GateFit, GateRows, GateSettings
from ..base.map_method import one_of
from ..base.traits import GateTraits, MapTraits
from ..gates.dsas import DSAS
from ..maps.lineas import PENALTY, LinEAS

ACTIVATIONS = ("sigmoid", "relu", "clipped")


class E2EMap(LinEAS):
    """The map of E2E-DSAS. Options `activation`, `gamma`, `l1` and `group`, see above.

    Example:
        >>> E2EMap().default_gate(activation="relu")
        'e2e-dsas(activation=relu)'
    """

    traits = MapTraits(
        "affine maps and gates of all sites, trained together, which keep control prompts (arXiv 2512.03661)",
        default_gate="e2e-dsas",
        min_rows=2,
        trained=True,
    )
    options = {
        "activation": one_of(*ACTIVATIONS),
        "gamma": replace(PENALTY, default=1.0),
        **LinEAS.options,
    }

    def finish(self, trained: Map) -> Map:
        """The map as it is: what its gate opens for is not what the inverse would be wanted for."""
        return trained

    def default_gate(self, **options: Any) -> str:
        given = {name: options[name] for name in ("activation", "gamma") if name in options}
        changed = [f"{name}={value}" for name, value in given.items() if value != self.options[name].default]
        return f"e2e-dsas({', '.join(changed)})" if changed else "e2e-dsas"


@dataclass(frozen=True)
class E2EGate(Gate):
    """The gate of E2E-DSAS at single positions; `fit` gives where its training begins.

    Args:
        activation: "sigmoid", "relu" or "clipped".
        gamma: how much control prompts count, from 0 up.

    Raises:
        DSASError: another value.

    Example:
        >>> source, control = torch.tensor([[3.0], [4.0], [5.0], [4.0], [4.0]]), torch.zeros(5, 1)
        >>> E2EGate("clipped").fit(source, control).score(torch.tensor([[9.0], [-5.0]]))[:, 0]
        tensor([1., 0.])
    """

    traits = GateTraits("a gate that is trained together with its map (arXiv 2512.03661)", trained=True)

    activation: str = "sigmoid"
    gamma: float = 1.0

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS or not PENALTY.fits(self.gamma):
            raise DSASError(
                f"gate e2e-dsas: activation {self.activation!r}, gamma {self.gamma!r}: expected one of "
                f"{', '.join(ACTIVATIONS)}, and a number from 0 up"
            )

    def obstacle_to(self, settings: GateSettings) -> str | None:
        if settings.form in ("token", "product"):  # the defaults of texts and pictures
            return super().obstacle_to(settings)
        return f"is trained at single positions, and not in form {settings.form!r}: choose form token"

    def fit_on(self, source: GateRows, controls: Sequence[GateRows], settings: GateSettings) -> GateFit:
        """The offline gate, at single positions, with its evidence; its threshold is placed as any other's."""
        fitted = DSAS().fit_on(source, controls, replace(settings, form="token"))  # type: ignore[type-var]

        def place_at(target: float | None) -> tuple[Probe, torch.Tensor]:
            probe, h = fitted.place_at(target)
            return self._activated(probe), h

        return replace(fitted, place_at=place_at)

    def _fit(self, source: torch.Tensor, control: torch.Tensor) -> Probe:
        return self._activated(DSAS().fit(source, control, rank="lda", scaler="std"))

    def _activated(self, probe: Probe) -> LinearProbe | RectifiedProbe:
        """The probe with this activation, where it began as a logistic one."""
        assert isinstance(probe, LinearProbe)
        if self.activation == "sigmoid":
            return probe
        return RectifiedProbe(probe.weight / 4, probe.bias / 4 + 0.5, clipped=self.activation == "clipped")
