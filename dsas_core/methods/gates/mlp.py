"""A small neural gate: standardise -> PCA -> one hidden layer -> logit, folded into two layers.

    h = sigmoid(v . relu(W x + c) + b),   `rank` 32 components, `hidden` 16 units, L2 penalty `alpha`,

as scikit-learn's MLPClassifier fits it on positions, its bias then moved to equal priors. A network can fit a few dozen
prompts whatever they are. So it is refused unless its AUROC on held-out prompts beats that of the linear gate, on the
same rows, by two standard errors (of their difference, over bootstrap samples of prompts). `learn` leaves out a site
where it is refused; `accept` takes it anyway, for comparisons.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...errors import DSASError
from ...probes import MLPProbe, Probe
from ..base.cross_validation import LabelledRows
from ..base.gate import CrossFitted, Gate, RefusedError
from ..base.traits import GateTraits
from ..maps.aura import auroc
from .dsas import DSAS, decompose, project

#: of the network's fit, which stops early rather than late
ITERATIONS = 100
RESAMPLES = 200
STANDARD_ERRORS = 2


@dataclass(frozen=True)
class MLP(Gate):
    """A network with one hidden layer, refused where a linear gate does as well.

    Args:
        rank: principal components that it reads.
        hidden: units of the hidden layer.
        alpha: L2 penalty.
        accept: take it also where the linear gate does as well.

    Raises:
        DSASError: a rank or hidden below 1, or alpha below 0.

    Example:
        >>> source, control = torch.tensor([[3.0], [4.0], [5.0]]), torch.tensor([[0.0], [1.0], [-1.0]])
        >>> probe = MLP(alpha=0.1, accept=True).fit(source, control)
        >>> (probe.score(torch.tensor([[4.0], [0.0]]))[:, 0] > 0.5).tolist()
        [True, False]
    """

    traits = GateTraits("a small neural network, where it beats the linear gate on held-out prompts; refused elsewhere")

    rank: int = 32
    hidden: int = 16
    alpha: float = 10.0
    accept: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1 or self.hidden < 1 or self.alpha < 0:
            raise DSASError(
                f"gate mlp: rank {self.rank}, hidden {self.hidden}, alpha {self.alpha}: expected at least 1, 1 and 0"
            )

    def fit(self, source: torch.Tensor, control: torch.Tensor) -> Probe:
        """Fit on rows [n, width]; see `Gate.fit`.

        Raises:
            RefusedError: it does not beat the linear gate, and `accept` is not set.
        """
        return super().fit(source, control) if self.accept else self.cross_fit(source, control).probe

    def cross_fit_rows(self, data: LabelledRows) -> CrossFitted[Any]:
        """As `fit`, with evidence, see `Gate.cross_fit`."""
        fitted = super().cross_fit_rows(data)
        if self.accept:
            return fitted
        own, linear, error = _compare(fitted, DSAS().cross_fit_rows(data), data)
        if own - linear <= STANDARD_ERRORS * error:
            raise RefusedError(
                f"gate mlp: its AUROC on held-out prompts, {own:.3f}, does not beat the linear gate's {linear:.3f} "
                f"by {STANDARD_ERRORS} standard errors of {error:.3f}: use dsas, or mlp(accept=true) to compare",
                fitted,
            )
        return fitted

    def _fit(self, source: torch.Tensor, control: torch.Tensor) -> MLPProbe:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPClassifier

        rows = decompose(torch.cat([source, control]).numpy(), "std")
        basis = rows.components[: self.rank]
        projected, spread = project(rows.standard, basis)
        network = MLPClassifier((self.hidden,), alpha=self.alpha, solver="lbfgs", max_iter=ITERATIONS, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            network.fit(projected, np.repeat([1, 0], [len(source), len(control)]))
        inner = (basis / spread[:, None] / rows.scale).T @ network.coefs_[0]  # [width, hidden]
        bias = network.intercepts_[1][0] - np.log(len(source) / len(control))
        arrays = (inner.T, network.intercepts_[0] - rows.mean @ inner, network.coefs_[1][:, 0], bias)
        return MLPProbe(*(torch.tensor(array, dtype=torch.float64) for array in arrays))


def _compare(own: CrossFitted[Any], linear: CrossFitted[Any], data: LabelledRows) -> tuple[float, float, float]:
    """AUROC of both gates on held-out rows, and the standard error of the difference over prompts."""
    random = np.random.default_rng(data.seed)
    by_prompt = [[np.flatnonzero(np.asarray(ids) == prompt) for prompt in np.unique(ids)] for ids in data.prompts]
    samples = [[np.arange(len(ids)) for ids in data.prompts]]  # all rows, then bootstrap samples of prompts
    for _ in range(RESAMPLES):
        samples.append([np.concatenate([p[i] for i in random.integers(len(p), size=len(p))]) for p in by_prompt])
    (first, *own_rest), (second, *linear_rest) = (
        [
            float(auroc(fit.source_logits[source, None], fit.control_logits[control, None]))
            for source, control in samples
        ]
        for fit in (own, linear)
    )
    return first, second, float(np.std(np.subtract(own_rest, linear_rest)))
