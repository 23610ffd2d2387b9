"""The DSAS gate: standardise or not -> project -> logistic regression, folded into one weight and bias.

"Dynamically Scaled Activation Steering", arXiv 2512.03661, in our implementation: the paper projects on 5 principal
components (`rank=5, scaler="none"`); here scaler and projection are chosen per site by cross-validation, because few
components lose a concept that other variation outweighs. Accuracy is always of held-out prompts, never in-sample.

In learning, `Recipe.form` says on which rows the regression is fitted, and how it is read:

- "paper": fitted on the mean over positions, read at each position, as DSAS describes it.
- "pooled": fitted on the mean, read on the mean: one decision for the whole picture or text.
- "token": fitted on positions, read at each position. Which positions of a source prompt show the concept is not
  known; they are found by multiple-instance rounds: those that the last probe scores highest are taken as positive.
- "product": token times pooled: the concept must be in the picture, and here.
- "prefix": of texts; fitted on the mean, read on the mean of the positions so far. "latch": read once, on the mean of
  the prompt.
- "last": of texts; token, read at the prompt's last token and at each that is written, and fitted on these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...errors import DSASError
from ...probes import LatchProbe, LinearProbe, PooledProbe, PrefixProbe, ProductProbe, fold
from ..base.checks import check_rows
from ..base.cross_validation import Evidence, PromptIds, evidence_from_scores, evidence_of, split_folds
from ..base.gate import CrossFitted, Gate
from ..base.gate_fit import GateFit, GateRows, GateSettings, lowered_h, placing, position_rows
from ..base.traits import GateTraits

#: projections to choose among: ranks of principal components, and "lda", the shrunken discriminant (uses the labels)
CANDIDATE_RANKS: tuple[int | str, ...] = (5, 16, 48, "lda")
CANDIDATE_SCALERS = ("none", "std")
#: forms with one decision for all positions, or for all so far -> their probes
_ROW_FORMS = {"pooled": PooledProbe, "prefix": PrefixProbe, "latch": LatchProbe}


class DSAS(Gate):
    """The logistic gate of DSAS.

    Example:
        >>> random = torch.Generator().manual_seed(0)
        >>> control = torch.randn(20, 4, generator=random)
        >>> source = torch.randn(20, 4, generator=random) + torch.tensor([6.0, 0, 0, 0])
        >>> fitted = DSAS().cross_fit(source, control)
        >>> fitted.evidence.balanced_accuracy
        1.0
        >>> [round(float(fitted.probe.score(rows).mean()), 1) for rows in (source, control)]
        [0.9, 0.1]
    """

    traits = GateTraits(
        "logistic regression of source against control activations, folded (arXiv 2512.03661)",
        fitted_on="pooled",
    )

    def reads_positions(self, form: str) -> bool:
        return form in ("token", "product", "last")

    def fit(
        self,
        source: torch.Tensor,
        control: torch.Tensor,
        *,
        rank: int | str = "auto",
        scaler: str = "auto",
        groups: PromptIds | None = None,
        seed: int = 0,
    ) -> LinearProbe:
        """Fit on rows.

        Args:
            source: [n, width], where h is to be 1.
            control: [m, width], where h is to be 0.
            rank: principal components to keep, "lda", or "auto": chosen by cross-validation.
            scaler: "std", "none", or "auto".
            groups: the prompt of each source and each control row, so that a prompt's rows share a fold; by default
                every row is its own.
            seed: of the folds.

        Returns:
            A LinearProbe, `weight` [width] and `bias` [], in the dtype of the source. With both rank and scaler given
            there is nothing to choose, and nothing is cross-validated.

        Raises:
            DSASError: another rank or scaler, or rows that are not finite or not of one width.
        """
        if rank != "auto" and scaler != "auto":
            positive, negative = check_rows("source", source), check_rows("control", control, source.shape[-1])
            labels = np.repeat([1, 0], [len(positive), len(negative)])
            weight, bias = _fit_folded(torch.cat([positive, negative]).numpy(), labels, rank, scaler)
            return LinearProbe(weight.to(source.dtype), bias.to(source.dtype))
        return self.cross_fit(source, control, rank=rank, scaler=scaler, groups=groups, seed=seed).probe

    def cross_fit(
        self,
        source: torch.Tensor,
        control: torch.Tensor,
        *,
        rank: int | str = "auto",
        scaler: str = "auto",
        groups: PromptIds | None = None,
        seed: int = 0,
    ) -> CrossFitted[LinearProbe]:
        """As `fit`, with the cross-validated evidence and the held-out logits that it comes from."""
        positive, negative = check_rows("source", source), check_rows("control", control, source.shape[-1])
        both, labels, prompts, folds = split_folds(positive, negative, groups, seed)
        rows = both.numpy()
        ranks = CANDIDATE_RANKS if rank == "auto" else (rank,)
        scalers = CANDIDATE_SCALERS if scaler == "auto" else (scaler,)
        chosen, evidence, logits = _choose(rows, labels, prompts, folds, ranks, scalers)
        weight, bias = _fit_folded(rows, labels, *chosen)
        probe = LinearProbe(weight.to(source.dtype), bias.to(source.dtype))
        source_logits, control_logits = torch.from_numpy(logits).split([len(positive), len(negative)])
        return CrossFitted(probe, evidence, source_logits, control_logits, lowered_h(control_logits))

    def fit_on(self, source: GateRows, controls: Sequence[GateRows], settings: GateSettings) -> GateFit:
        control, form = controls[0], settings.form
        groups = source.gathered("prompts").tolist(), control.gathered("prompts").tolist()
        pooled = self.cross_fit(
            source.gathered("pooled"),
            control.gathered("pooled"),
            rank=settings.rank,
            scaler=settings.scaler,
            groups=groups,
            seed=settings.seed,
        )
        linear, scores = pooled.probe, pooled.scores(groups)
        if form in _ROW_FORMS:
            at = placing(_ROW_FORMS[form](linear), lowered_h(pooled.control_logits))
            return GateFit(at, pooled.evidence, scores, per_row=True)
        if form == "paper":
            logits = linear.logit(torch.cat([rows.gathered("positions") for rows in controls]))[:, 0]
            return GateFit(placing(linear, lowered_h(logits)), pooled.evidence, scores)
        single, owners = self._fit_positions(linear, source, controls, settings)
        token, count = single.probe, sum(len(rows.gathered("positions")) for rows in controls)
        logits = single.control_logits[:count]
        if form in ("token", "last"):
            at = placing(token, lowered_h(logits))
            if not settings.supervised:
                return GateFit(at, pooled.evidence, scores)
            scores = single.scores(owners, len(control.gathered("position_prompts")))
            return GateFit(at, evidence_of(*scores), scores)
        counts = torch.tensor(control.sampled)
        factor = pooled.control_logits.sigmoid().to(logits).repeat_interleave(counts)
        probe = ProductProbe((token, PooledProbe(linear)))
        return GateFit(placing(probe, lowered_h(logits[: int(counts.sum())], factor)), pooled.evidence, scores)

    def _fit_positions(
        self, start: LinearProbe, source: GateRows, controls: Sequence[GateRows], settings: GateSettings
    ) -> tuple[CrossFitted[LinearProbe], PromptIds]:
        """A probe of single positions, and whose they are.

        Which positions of the source show the concept is given, or found by multiple-instance rounds.
        """
        rank = "lda" if settings.rank == "auto" else settings.rank
        scaler = "std" if settings.scaler == "auto" else settings.scaler
        (positions, negatives), groups = position_rows(source, controls, settings)

        def highest(probe: LinearProbe) -> torch.Tensor:
            """Indices of the positions of each row of each call that the probe scores highest."""
            chosen, begin = [], 0
            for row in positions.split(source.sampled):
                count = max(1, round(settings.top_share * len(row)))
                chosen.append(probe.logit(row)[:, 0].topk(count).indices + begin)
                begin += len(row)
            return torch.cat(chosen)

        if not settings.supervised:
            probe = start
            for _ in range(settings.rounds - 1):
                probe = self.fit(positions[highest(probe)], negatives, rank=rank, scaler=scaler)
            positive = highest(probe)
            positions, groups = positions[positive], (source.gathered("position_prompts")[positive].tolist(), groups[1])
        fitted = self.cross_fit(positions, negatives, rank=rank, scaler=scaler, groups=groups, seed=settings.seed)
        return fitted, groups


def _choose(
    rows: np.ndarray,
    labels: np.ndarray,
    prompts: np.ndarray,
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    ranks: Sequence[int | str],
    scalers: Sequence[str],
) -> tuple[tuple[int | str, str], Evidence, np.ndarray]:
    """The (rank, scaler) whose held-out logits separate best, its evidence, and those logits."""
    candidates = [(rank, scaler) for scaler in scalers for rank in ranks]
    logits = {candidate: np.zeros(len(rows)) for candidate in candidates}
    for train, test in folds:
        bases: dict[str, Any] = {}
        for rank, scaler in candidates:
            weight, bias = _fit_folded(rows[train], labels[train], rank, scaler, bases)
            logits[rank, scaler][test] = rows[test] @ weight.numpy() + bias.item()

    def loss(candidate: tuple[int | str, str]) -> float:
        signed = np.where(labels == 1, logits[candidate], -logits[candidate])
        share = np.where(labels == 1, 0.5 / (labels == 1).sum(), 0.5 / (labels == 0).sum())
        return float((share * np.logaddexp(0, -signed)).sum())

    best = min(candidates, key=loss)
    hits = (logits[best] > 0) == (labels == 1)
    sizes = [len(np.unique(prompts[labels == label])) for label in (1, 0)]
    evidence = evidence_from_scores(logits[best], hits, labels, sizes, *best)
    return best, evidence, logits[best]


def _fit_folded(
    rows: np.ndarray, labels: np.ndarray, rank: int | str, scaler: str, bases: dict[str, Any] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [width] and bias [] in float64. `bases` remembers the decomposition that several ranks share."""
    from sklearn.linear_model import LogisticRegression

    bases = {} if bases is None else bases
    if scaler not in CANDIDATE_SCALERS:
        raise DSASError(f"gate scaler {scaler!r}: expected auto, {' or '.join(CANDIDATE_SCALERS)}")
    if scaler not in bases:
        mean = rows.mean(0)
        scale = np.maximum(rows.std(0), 1e-6) if scaler == "std" else np.ones(rows.shape[1])
        standard = (rows - mean) / scale
        bases[scaler] = mean, scale, standard, principal(standard)
    mean, scale, standard, vectors = bases[scaler]
    if rank == "lda":
        components = (_discriminant(standard @ vectors.T, labels) @ vectors)[None]
    elif isinstance(rank, int) and rank > 0:
        components = vectors[:rank]
    else:
        raise DSASError(f"gate rank {rank!r}: expected a positive number, lda or auto")
    projected = standard @ components.T
    spread = np.maximum(projected.std(0), 1e-12)
    model = LogisticRegression(C=1.0, class_weight="balanced", solver="newton-cholesky").fit(projected / spread, labels)
    arrays = (mean, scale, np.zeros_like(mean), components, model.coef_[0] / spread)
    center, deviation, pca_mean, basis, coef = (torch.from_numpy(np.array(array)) for array in arrays)
    return fold(center, deviation, pca_mean, basis, coef, float(model.intercept_[0]))


def principal(rows: np.ndarray) -> np.ndarray:
    """Principal components of centred rows, largest first, without those of no variance.

    Args:
        rows: [n, width], of mean 0.

    Returns:
        [k, width], orthonormal.

    Example:
        >>> abs(principal(np.array([[1.0, 0.0], [-1.0, 0.0]])))
        array([[1., 0.]])
    """
    if len(rows) < rows.shape[1]:
        _, deviations, vectors = np.linalg.svd(rows, full_matrices=False)
        values = deviations**2 / len(rows)
    else:
        values, columns = np.linalg.eigh(rows.T @ rows / len(rows))
        values, vectors = values[::-1], columns.T[::-1]
    kept = max(1, int((values > 1e-12 * max(float(values[0]), 1e-300)).sum()))
    return vectors[:kept]


def _discriminant(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The direction of linear discriminant analysis with Ledoit-Wolf shrinkage, unit length."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    fitted = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=[0.5, 0.5]).fit(rows, labels)
    direction = fitted.coef_[0]
    return direction / max(float(np.linalg.norm(direction)), 1e-300)
