"""The DSAS gate: standardise or not -> project -> logistic regression, folded into one weight and bias.

"Dynamically Scaled Activation Steering", arXiv 2512.03661, in our implementation: the paper projects on 5 principal
components (`rank=5, scaler="none"`); here scaler and projection are chosen per site by cross-validation, because few
components lose a concept that other variation outweighs. Accuracy is always of held-out prompts, never in-sample.

In learning, `Recipe.form` says on which rows the regression is fitted, and how it is read:

- "paper": fitted on the mean over positions, read at each position, as DSAS describes it.
- "pooled": fitted on the mean, read on the mean: one decision for the whole picture or text.
- "token": fitted on positions, read at each position. Which positions of a source prompt show the concept is not
  known; multiple-instance rounds estimate it: the positions that the last probe scores highest are taken as positive.
- "product": token times pooled: the concept must be in the picture, and at this position.
- "prefix": of texts; fitted on the mean, read on the mean of the positions so far. "latch": read once, on the mean of
  the prompt.
- "text": of texts; fitted on the mean, read at each token: the strongest and the mean token decide about the text. Its
  threshold is placed on whole control texts (`methods.base.text_fit`). "message": the same of conversations, where the
  prompt decides alone, and what is answered does not count.
- "last": of texts; as token, but fitted and read at the prompt's last token and at each token that is generated.

Evidence is of prompts, at the granularity at which the gate steers: of "pooled", "product" and "latch" by the mean, of
"text" by its score, of the others by the prompt's highest logit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from ...errors import DSASError
from ...probes import LatchProbe, LinearProbe, PooledProbe, PrefixProbe, ProductProbe, fold
from ..base.checks import check_rows
from ..base.cross_validation import Evidence, LabelledRows, PromptIds, evidence_from_scores, highest_by_prompt
from ..base.discriminant import discriminant
from ..base.gate import CrossFitted, Gate, cast_probe, pooled_rows
from ..base.gate_fit import (
    GateFit,
    GateRows,
    GateSettings,
    HByShift,
    h_by_shift,
    make_placer,
    position_rows,
    shift_up_to,
)
from ..base.map_rows import split_rows
from ..base.text_fit import TextThreshold, fit_text_gate, held_out_logits, highest_mean, judge_by_prompts
from ..base.traits import GateTraits

#: a projection: a number of principal components, or "lda", the shrunken discriminant (uses the labels)
Rank = int | str
#: inverse of the penalty of "ridge", for rows of mean square length 1
RIDGE = 6.0
#: projections to choose among
CANDIDATE_RANKS: tuple[Rank, ...] = (5, 16, 48, "lda")
CANDIDATE_SCALERS = ("none", "std")
#: forms that decide about whole texts
WHOLE_TEXT_FORMS = ("text", "message")
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
        text_form="text",
    )

    def reads_positions(self, form: str) -> bool:
        return form in ("token", "product", "last")

    def fit(
        self,
        source: torch.Tensor,
        control: torch.Tensor,
        *,
        rank: Rank = "auto",
        scaler: str = "auto",
        groups: PromptIds | None = None,
        seed: int = 0,
    ) -> LinearProbe:
        """Fit on rows.

        Args:
            source: [n, width], where h is to be 1.
            control: [m, width], where h is to be 0.
            rank: principal components to keep, "lda", "ridge" for all of them under a penalty, or "auto": chosen by
                cross-validation.
            scaler: "std", "none", or "auto": chosen by cross-validation.
            groups: the prompts of the rows in cross-validation, see `Gate.cross_fit`.
            seed: of the folds.

        Returns:
            A LinearProbe, `weight` [width] and `bias` [], in the dtype of the source. With both rank and scaler given
            there is nothing to choose, and nothing is cross-validated.

        Raises:
            DSASError: another rank or scaler, or rows that are not finite or not of one width.
            PromptError: fewer prompts of a side than folds, where there is something to choose.
        """
        if "auto" in (rank, scaler):
            return self.cross_fit(source, control, rank=rank, scaler=scaler, groups=groups, seed=seed).probe
        rows = torch.cat(check_rows(source=source, control=control)).numpy()
        labels = np.repeat([1, 0], [len(source), len(control)])
        return cast_probe(_fit_folded(decompose(rows, scaler), labels, rank), source.dtype)

    def cross_fit_rows(self, data: LabelledRows, rank: Rank = "auto", scaler: str = "auto") -> CrossFitted[LinearProbe]:
        """As `fit`, with the evidence and the held-out logits of the best (rank, scaler)."""
        tensor, labels, _, folds = data.split()
        rows = tensor.numpy()
        ranks = CANDIDATE_RANKS if rank == "auto" else (rank,)
        scalers = CANDIDATE_SCALERS if scaler == "auto" else (scaler,)
        logits = {(rank, scaler): np.zeros(len(rows)) for scaler in scalers for rank in ranks}
        for train, test in folds:
            for scaler in scalers:
                decomposition = decompose(rows[train], scaler)
                for rank in ranks:
                    probe = _fit_folded(decomposition, labels[train], rank)
                    logits[rank, scaler][test] = rows[test] @ probe.weight.numpy() + probe.bias.item()

        def loss(candidate: tuple[Rank, str]) -> float:
            """Mean cross-entropy of held-out rows, both sides alike."""
            signed = np.where(labels == 1, logits[candidate], -logits[candidate])
            share = 0.5 / np.bincount(labels)[labels]
            return float((share * np.logaddexp(0, -signed)).sum())

        rank, scaler = best = min(logits, key=loss)
        evidence = evidence_from_scores(logits[best], (logits[best] > 0) == (labels == 1), labels, data.sizes, *best)
        probe = cast_probe(_fit_folded(decompose(rows, scaler), labels, rank), data.source.dtype)
        source, control = torch.from_numpy(logits[best]).split([len(data.source), len(data.control)])
        return CrossFitted(probe, evidence, source, control, h_by_shift(control))

    def fit_on(self, source: GateRows, controls: Sequence[GateRows], settings: GateSettings) -> GateFit:
        control, form, target = controls[0], settings.form, settings.control_h
        data = pooled_rows(source, control, settings)
        rank, scaler = settings.rank, settings.scaler
        if form in WHOLE_TEXT_FORMS:  # few texts decide about all: the smoothest fit transfers best
            rank, scaler = "ridge" if rank == "auto" else rank, "std" if scaler == "auto" else scaler
        pooled = self.cross_fit_rows(data, rank, scaler)
        linear, evidence, scores = pooled.probe, pooled.evidence, pooled.scores(data.prompts)
        if form in WHOLE_TEXT_FORMS:
            written = form == "text"  # then all of a control text may open it
            held_out = held_out_logits(data, source, controls[-1 if written else 0], _fit_means(data, evidence))
            threshold, share = TextThreshold.of_logits(*held_out), settings.control_texts
            return fit_text_gate(linear, threshold, evidence.rank, evidence.scaler, share, written)
        if form in _ROW_FORMS:
            control_h = h_by_shift(pooled.control_logits)
            fit = GateFit(make_placer(_ROW_FORMS[form](linear), control_h), evidence, scores, per_row=True)
            return self._judge(fit, data, source, controls, settings, control_h) if form == "prefix" else fit
        if form == "paper":
            control_h = h_by_shift(linear.logit(torch.cat([rows.gathered("positions") for rows in controls]))[:, 0])
            fit = GateFit(make_placer(linear, control_h), evidence, scores)
            return self._judge(fit, data, source, controls, settings, control_h)
        single, positions = self._fit_positions(linear, source, controls, settings)
        logits = single.control_logits[: sum(len(rows.gathered("positions")) for rows in controls)]
        if form == "product":
            counts = torch.tensor(control.sampled)
            factor = pooled.control_logits.sigmoid().to(logits).repeat_interleave(counts)
            probe, h = ProductProbe((single.probe, PooledProbe(linear))), h_by_shift(logits[: len(factor)], factor)
            return GateFit(make_placer(probe, h), evidence, scores)
        control_h = h_by_shift(logits)
        least = shift_up_to(single.source_logits, settings.source_h if settings.supervised else None)
        fit = GateFit(make_placer(single.probe, control_h, least=least), evidence, scores)
        if not settings.supervised:
            return self._judge(fit, data, source, controls, settings, control_h)
        fit = replace(fit, scores=single.scores(positions.prompts, len(control.gathered("position_prompts"))))
        source_ids, control_ids = positions.prompts
        highest = highest_by_prompt(single.source_logits, source_ids)
        control_highest = highest_by_prompt(logits, control_ids[: len(logits)])
        return judge_by_prompts(fit, highest, control_highest, control_h, target, least)

    def _judge(
        self,
        fit: GateFit,
        data: LabelledRows,
        source: GateRows,
        controls: Sequence[GateRows],
        settings: GateSettings,
        control_h: HByShift,
    ) -> GateFit:
        """The fit with evidence of whole prompts, read as it will be by a probe that was fitted without them."""
        fit_means = _fit_means(data, fit.evidence)

        def fit_positions(train: np.ndarray) -> LinearProbe:
            sides = [source, *controls]
            first, *others = ([tokens for _, tokens in split_rows(rows)] for rows in sides)
            texts = [first[i] for i in train if i < len(first)]
            control = torch.cat([side[i - len(first)] for side in others for i in train if i >= len(first)])
            chosen = self._choose_positions(fit_means(train), texts, control, settings)
            return self.fit(torch.cat(texts)[chosen], control, **_settings_of_positions(settings))

        fit_fold = fit_means if settings.form in ("paper", "prefix") else fit_positions
        highest = highest_mean if settings.form == "prefix" else torch.max
        held_out = held_out_logits(data, source, controls[-1], fit_fold)
        scores, control_scores = (
            highest_by_prompt(torch.stack([highest(text) for text in side]), prompts)
            for side, prompts in zip(held_out, data.prompts, strict=True)
        )
        return judge_by_prompts(fit, scores, control_scores, control_h, settings.control_h)

    def _fit_positions(
        self, start: LinearProbe, source: GateRows, controls: Sequence[GateRows], settings: GateSettings
    ) -> tuple[CrossFitted[LinearProbe], LabelledRows]:
        """A probe of single positions, and the positions it was fitted on.

        Which positions of the source show the concept is known, or estimated by multiple-instance rounds.
        """
        positive = data = position_rows(source, controls, settings)
        if not settings.supervised:
            chosen = self._choose_positions(start, data.source.split(source.sampled), data.control, settings)
            prompts = source.gathered("position_prompts")[chosen].tolist()
            positive = replace(data, source=data.source[chosen], groups=(prompts, data.prompts[1]))
        return self.cross_fit_rows(positive, **_settings_of_positions(settings)), positive

    def _choose_positions(
        self, start: LinearProbe, texts: Sequence[torch.Tensor], control: torch.Tensor, settings: GateSettings
    ) -> torch.Tensor:
        """Indices of the source positions that show the concept, by multiple-instance rounds from a first probe on."""
        source = torch.cat([*texts])

        def highest(probe: LinearProbe) -> torch.Tensor:
            """Indices of the positions of each row that the probe scores highest."""
            chosen, begin = [], 0
            for row in texts:
                count = max(1, round(settings.top_share * len(row)))
                chosen.append(probe.logit(row)[:, 0].topk(count).indices + begin)
                begin += len(row)
            return torch.cat(chosen)

        for _ in range(settings.rounds - 1):
            start = self.fit(source[highest(start)], control, **_settings_of_positions(settings))
        return highest(start)


def _settings_of_positions(settings: GateSettings) -> dict[str, Any]:
    """Rank and scaler of a fit on positions, which are too many to try several."""
    return {
        "rank": "lda" if settings.rank == "auto" else settings.rank,
        "scaler": "std" if settings.scaler == "auto" else settings.scaler,
    }


def _fit_means(data: LabelledRows, chosen: Evidence) -> Callable[[np.ndarray], LinearProbe]:
    """Fits a probe on some of the rows, by their indices, as it was chosen for all."""
    rows, labels, _, _ = data.split()
    return lambda train: _fit_folded(decompose(rows[train].numpy(), chosen.scaler), labels[train], chosen.rank)


class Decomposition(NamedTuple):
    """Standardised rows and their principal components.

    Args:
        mean: [width], of the rows.
        scale: [width], what the rows are divided by.
        standard: [n, width], the standardised rows.
        components: [k, width], see `principal_components`.
    """

    mean: np.ndarray
    scale: np.ndarray
    standard: np.ndarray
    components: np.ndarray


def decompose(rows: np.ndarray, scaler: str) -> Decomposition:
    """Standardise rows [n, width] by a scaler, "std" or "none", and find their principal components.

    Raises:
        DSASError: another scaler.
    """
    if scaler not in CANDIDATE_SCALERS:
        raise DSASError(f"gate scaler {scaler!r}: expected auto, {' or '.join(CANDIDATE_SCALERS)}")
    mean = rows.mean(0)
    scale = np.maximum(rows.std(0), 1e-6) if scaler == "std" else np.ones(rows.shape[1])
    standard = (rows - mean) / scale
    return Decomposition(mean, scale, standard, principal_components(standard))


def project(standard: np.ndarray, components: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows [n, width] on components [k, width], each at a standard deviation of 1: [n, k]; and the deviations [k]."""
    projected = standard @ components.T
    spread = np.maximum(projected.std(0), 1e-12)
    return projected / spread, spread


def _fit_folded(rows: Decomposition, labels: np.ndarray, rank: Rank) -> LinearProbe:
    """The logistic regression of projected rows, folded into weight [width] and bias [] of float64."""
    from sklearn.linear_model import LogisticRegression

    if rank == "lda":
        direction = discriminant(rows.standard @ rows.components.T, labels)
        components = (direction @ rows.components)[None]
    elif rank == "ridge":
        components = rows.components
    elif isinstance(rank, int) and rank > 0:
        components = rows.components[:rank]
    else:
        raise DSASError(f"gate rank {rank!r}: expected a positive number, lda, ridge or auto")
    if rank == "ridge":  # every direction counts by how far it spreads, so that the penalty falls on the rare ones
        spread = np.sqrt(np.mean((rows.standard**2).sum(1)))
        projected, penalty = rows.standard @ components.T / spread, RIDGE
    else:
        (projected, spread), penalty = project(rows.standard, components), 1.0
    model = LogisticRegression(C=penalty, class_weight="balanced", solver="newton-cholesky").fit(projected, labels)
    arrays = rows.mean, rows.scale, np.zeros_like(rows.mean), components, model.coef_[0] / spread, model.intercept_[0]
    return LinearProbe(*fold(*(torch.from_numpy(np.array(array)) for array in arrays)))


def principal_components(rows: np.ndarray) -> np.ndarray:
    """Principal components of centred rows, largest first, without those of no variance.

    Args:
        rows: [n, width], of mean 0.

    Returns:
        [k, width], orthonormal.

    Example:
        >>> abs(principal_components(np.array([[1.0, 0.0], [-1.0, 0.0]])))
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
