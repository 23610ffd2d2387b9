"""A small neural gate, where one is needed: standardise -> PCA -> one hidden layer -> logit, folded into two layers.

    h = sigmoid(v . relu(W x + c) + b),   `rank` 32 components, `hidden` 16 units, L2 penalty `alpha`,

as scikit-learn's MLPClassifier fits it on positions, its bias then moved to equal priors. A network that is fitted on a
few dozen prompts fits them whatever they are. So one is refused unless it earns its place: unless its AUROC on held-out
prompts beats that of the linear gate, on the same rows, by two standard errors (of their difference, over bootstrap
samples of prompts). `learn` leaves a site out where it is refused; `accept` takes it anyway, for comparisons.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...errors import DSASError
from ...probes import MLPProbe, Probe
from ..base.cross_validation import PromptIds
from ..base.gate import CrossFitted, Gate, RefusedError
from ..base.traits import GateTraits
from .dsas import DSAS, principal

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

    def cross_fit(
        self, source: torch.Tensor, control: torch.Tensor, *, groups: PromptIds | None = None, seed: int = 0
    ) -> CrossFitted[Any]:
        """As `fit`, with evidence, see `Gate.cross_fit`."""
        fitted = super().cross_fit(source, control, groups=groups, seed=seed)
        if self.accept:
            return fitted
        linear = DSAS().cross_fit(source, control, groups=groups, seed=seed)
        own, simple, error = _compared(fitted, linear, groups, seed)
        if own - simple <= STANDARD_ERRORS * error:
            raise RefusedError(
                f"gate mlp: its AUROC on held-out prompts, {own:.3f}, does not beat the linear gate's {simple:.3f} "
                f"by {STANDARD_ERRORS} standard errors of {error:.3f}: use dsas, or mlp(accept=true) to compare",
                fitted,
            )
        return fitted

    def _fit(self, source: torch.Tensor, control: torch.Tensor) -> MLPProbe:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPClassifier

        rows = torch.cat([source, control]).numpy()
        labels = np.repeat([1, 0], [len(source), len(control)])
        mean, scale = rows.mean(0), np.maximum(rows.std(0), 1e-6)
        basis = principal((rows - mean) / scale)[: self.rank]
        projected = (rows - mean) / scale @ basis.T
        spread = np.maximum(projected.std(0), 1e-12)
        network = MLPClassifier((self.hidden,), alpha=self.alpha, solver="lbfgs", max_iter=ITERATIONS, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            network.fit(projected / spread, labels)
        inner = (basis / spread[:, None] / scale).T @ network.coefs_[0]  # [width, hidden]
        bias = network.intercepts_[1][0] - np.log(len(source) / len(control))
        arrays = (inner.T, network.intercepts_[0] - mean @ inner, network.coefs_[1][:, 0], bias)
        return MLPProbe(*(torch.tensor(array, dtype=torch.float64) for array in arrays))


def _compared(
    own: CrossFitted[Any], linear: CrossFitted[Any], groups: PromptIds | None, seed: int
) -> tuple[float, float, float]:
    """AUROC of both gates on held-out rows, and the standard error of the difference over prompts."""
    from scipy.stats import rankdata

    sides = [[fit.source_logits.numpy(), fit.control_logits.numpy()] for fit in (own, linear)]
    owners = [np.asarray(ids) for ids in groups] if groups else [np.arange(len(side)) for side in sides[0]]

    def auroc(pair: list[np.ndarray], rows: list[np.ndarray]) -> float:
        source, control = (side[places] for side, places in zip(pair, rows, strict=True))
        ranks = rankdata(np.concatenate([source, control]))
        return float((ranks[: len(source)].sum() / len(source) - (len(source) + 1) / 2) / len(control))

    random = np.random.default_rng(seed)
    by_owner = [[np.flatnonzero(ids == one) for one in np.unique(ids)] for ids in owners]
    gains = []
    for _ in range(RESAMPLES):
        drawn = [np.concatenate([rows[i] for i in random.integers(len(rows), size=len(rows))]) for rows in by_owner]
        gains.append(auroc(sides[0], drawn) - auroc(sides[1], drawn))
    every = [np.arange(len(side)) for side in sides[0]]
    return auroc(sides[0], every), auroc(sides[1], every), float(np.std(gains))
