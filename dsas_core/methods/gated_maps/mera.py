"""MERA: the smallest shift after which a linear probe says that an error is no likelier than α; none where it does.

    T(x; s) = x + s * v*(x),   v*(x) = ((logit α - z) / |w|^2) * w where z = w . x + b > logit α, else 0.

"Mechanistic Error Reduction with Abstention for Language Models", arXiv 2510.13290; released code, without the 1e-8
that it adds to the ratio. The paper's error is 1 - p(correct), and its probe a regression on the error's logit, without
intercept. Here the error is the unwanted concept: the probe is a logistic regression (raw rows, ridge penalty 1) of
source against control rows, and exp(z) the concept's odds. So the map is made of the gate's probe: `learn` fits it on
control rows also where another gate is in use, and `fit` takes them as the target.

There is no strength to choose: 1 is the method, and the unit. s scales it; a negative one increases errors where there
are some. `alpha` None is calibrated: of 0.1, 0.2 … 0.9 that with the largest gain on held-out prompts, the share of
source rows above it minus that of control rows, of equal gains the lowest α, which moves furthest. It abstains, so that
the site is not steered, unless half the gain (balanced accuracy above chance) exceeds Hoeffding's bound at 95 % for
nine candidates, sqrt(log(2 * 9 / 0.05) (1/n + 1/m) / 8) for n and m prompts: about 0.25 for 24 a side. A given α is not
tested.

The gate is h = 1 where z > logit α, where the map moves anyway: with its own gate MERA is the map alone. With another
gate, that one decides; `strength="auto"` moves to the plane of the gate in use.

Traps: w separates source from control, which need not be the direction from one to the other. The probe is fitted on
means and read at positions, and α is calibrated on rows, not positions: the evidence says how often control positions
fire.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...errors import DSASError
from ...maps import ProjectionMap
from ...probes import LinearProbe, Probe, StepProbe
from ..base.cross_validation import FOLDS, Evidence, LabelledRows, mean_by_prompt
from ..base.gate import CrossFitted, Gate, RefusedError
from ..base.logistic_regression import fit_logistic
from ..base.map_method import MapMethod, Option
from ..base.traits import GateTraits, MapTraits

#: candidates for α, and the error probability allowed for the gain
ALPHAS = tuple(place / 10 for place in range(1, 10))
DOUBT = 0.05


def _is_alpha(value: object) -> bool:
    return value is None or (isinstance(value, float) and 0 < value < 1)


class MERA(MapMethod):
    """The smallest shift to the plane where the probability is α. Option `alpha`; None calibrates it.

    Example:
        >>> source, control = torch.tensor([[3.0], [4.0], [5.0], [4.0], [4.0]]), torch.zeros(5, 1)
        >>> transform = MERA().fit(source, control, alpha=0.5)
        >>> [bool(transform.apply(x, 1.0) == x) for x in (torch.tensor([[4.0]]), torch.tensor([[0.0]]))]
        [False, True]
    """

    traits = MapTraits(
        "the smallest shift that makes the concept as unlikely as a calibrated probability (arXiv 2510.13290)",
        min_rows=FOLDS,
        from_gate=True,
        has_unit=False,
    )
    options = {"alpha": Option(None, "null or a number between 0 and 1", _is_alpha)}

    def default_gate(self, **options: Any) -> str:
        alpha = options.get("alpha")
        return "mera" if alpha is None else f"mera(alpha={alpha!r})"

    def from_probe(self, probe: Any) -> ProjectionMap:
        return projection(probe.inner, probe.threshold)

    def _fit(self, source: torch.Tensor, target: torch.Tensor, *, alpha: float | None) -> ProjectionMap:
        try:
            return self.from_probe(CalibratedProbe(alpha).fit(source, target))
        except RefusedError:
            return ProjectionMap(torch.zeros_like(source[0]), torch.zeros((), dtype=source.dtype))


@dataclass(frozen=True)
class CalibratedProbe(Gate):
    """Above the plane where the probability is `alpha`.

    Args:
        alpha: in (0, 1); None to calibrate it, or to abstain.

    Raises:
        DSASError: another alpha.

    Example:
        >>> source, control = torch.tensor([[3.0], [4.0], [5.0], [4.0], [4.0]]), torch.zeros(5, 1)
        >>> CalibratedProbe(0.5).fit(source, control).score(torch.tensor([[4.0], [0.0]]))[:, 0]
        tensor([1., 0.])
    """

    traits = GateTraits(
        "where a linear probe's probability is above a calibrated one", fitted_on="pooled", fixed_threshold=True
    )

    alpha: float | None = None

    def __post_init__(self) -> None:
        if not _is_alpha(self.alpha):
            raise DSASError(f"gate mera: alpha {self.alpha}: expected a number between 0 and 1")

    def fit(self, source: torch.Tensor, control: torch.Tensor) -> Probe:
        """Fit on rows [n, width]; see `Gate.fit`.

        Raises:
            RefusedError: no α gains anything, and none was given.
        """
        return self.cross_fit(source, control).probe if self.alpha is None else super().fit(source, control)

    def cross_fit_rows(self, data: LabelledRows) -> CrossFitted[Any]:
        """See `Gate.cross_fit`.

        Raises:
            RefusedError: as `fit`.
        """
        if self.alpha is not None:
            return super().cross_fit_rows(data)
        rows, labels, _, folds = data.split()
        z = torch.zeros(len(rows), dtype=torch.float64)
        for train, test in folds:
            weight, bias = fit_logistic(*(rows[train[labels[train] == label]] for label in (0, 1)))
            z[test] = rows[test] @ weight + bias
        sides = z.split([len(data.source), len(data.control)])
        alpha, gain, bound = calibrate_alpha(*zip(sides, data.prompts, strict=True))
        fitted = replace(self, alpha=alpha).cross_fit_rows(data)
        if gain / 2 <= bound:
            raise RefusedError(
                f"gate mera abstains: at no alpha the share of held-out source rows above it exceeds that of control "
                f"rows by more than {2 * bound:.2f} (best {gain:.2f} at {alpha:g}): add prompts, or give it an alpha",
                fitted,
            )
        return fitted

    def weight(self, evidence: Evidence, rule: str) -> float:
        """1 where alpha was calibrated: a site without a gain is refused."""
        return 1.0 if self.alpha is None and rule == "soft" else super().weight(evidence, rule)

    def _fit(self, source: torch.Tensor, control: torch.Tensor) -> StepProbe:
        assert self.alpha is not None
        threshold = torch.tensor(self.alpha, dtype=torch.float64).logit()
        return StepProbe(LinearProbe(*fit_logistic(control, source)), threshold)


def projection(probe: LinearProbe, threshold: torch.Tensor) -> ProjectionMap:
    """The smallest shift to the plane where a probe's logit is a threshold.

    Args:
        probe: of any width.
        threshold: [], a logit.

    Example:
        >>> plane = projection(LinearProbe(torch.tensor([0.0, 2.0]), torch.tensor(0.0)), torch.tensor(4.0))
        >>> plane.apply(torch.tensor([[1.0, 9.0]]), 1.0)
        tensor([[1., 2.]])
    """
    length = probe.weight.norm().clamp_min(torch.finfo(probe.weight.dtype).tiny)
    return ProjectionMap(probe.weight / length, (probe.bias - threshold) / length)


def calibrate_alpha(source: tuple[torch.Tensor, Any], control: tuple[torch.Tensor, Any]) -> tuple[float, float, float]:
    """Choose α by its gain on held-out rows.

    Args:
        source: logits [n], and the prompt of each.
        control: logits [m], and the prompt of each.

    Returns:
        α, its gain, and the bound that half of the gain has to exceed.

    Example:
        >>> source, control = torch.tensor([3.0, 4.0]), torch.tensor([-3.0, -4.0])
        >>> alpha, gain, bound = calibrate_alpha((source, [0, 1]), (control, [0, 1]))
        >>> alpha, gain
        (0.1, 1.0)
    """
    shares = []
    for z, prompts in (source, control):
        above = [(z > math.log(alpha / (1 - alpha))).double() for alpha in ALPHAS]
        shares.append(torch.stack([mean_by_prompt(fires, prompts) for fires in above]))  # [alphas, prompts]
    gains = shares[0].mean(1) - shares[1].mean(1)
    best = int(gains.argmax())
    tries = math.log(2 * len(ALPHAS) / DOUBT)
    bound = math.sqrt(tries * sum(1 / side.shape[1] for side in shares) / 8)
    return ALPHAS[best], float(gains[best]), bound
