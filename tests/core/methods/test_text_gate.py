"""The threshold of a gate that decides about whole texts, and the evidence of texts it was not fitted on."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from dsas_core import DSASError, Recipe, methods
from dsas_core.learning.capture import Activations
from dsas_core.learning.fit import fit_sites
from dsas_core.methods.base.cross_validation import LabelledRows
from dsas_core.methods.base.text_fit import TextThreshold, held_out_logits, tail_quantile
from dsas_core.probes import LinearProbe, TextProbe
from dsas_core.probes.running import text_scores
from tests.fixtures.synthetic import WIDTH, activations, captured

SHARES = (0.01, 0.02, 0.05, 0.2)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("shape", ["exponential", "normal"])
def test_about_the_share_of_fresh_texts_is_touched(shape: str, share: float) -> None:
    """Exactly so of an exponential tail, which is longer than most: of a normal distribution less is touched."""
    random = torch.Generator().manual_seed(0)
    draw = torch.Tensor.exponential_ if shape == "exponential" else torch.Tensor.normal_
    seen, fresh = (draw(torch.empty(size), generator=random) for size in (4000, 40000))
    touched = float((fresh > tail_quantile(seen, share)).double().mean())
    if shape == "exponential":
        assert touched == pytest.approx(share, rel=0.15)
    else:
        assert 0.15 * share < touched < 1.6 * share


def test_few_texts_place_it_nearly_as_well() -> None:
    random = torch.Generator().manual_seed(0)
    fresh = torch.empty(40000).exponential_(generator=random)
    touched = [
        float((fresh > tail_quantile(torch.empty(64).exponential_(generator=random), 0.02)).double().mean())
        for _ in range(200)
    ]
    assert 0.01 < float(np.median(touched)) < 0.04
    assert float(np.quantile(touched, 0.9)) < 0.1


def test_a_higher_share_touches_more_and_misses_less() -> None:
    random = torch.Generator().manual_seed(0)
    source, control = torch.randn(50, generator=random) + 2, torch.randn(80, generator=random)
    placed = TextThreshold(source, control)
    thresholds, shares = zip(*((placed.place(share)[0], placed.shares(share)) for share in SHARES), strict=True)
    assert list(thresholds) == sorted(thresholds, reverse=True)
    missed, touched = zip(*shares, strict=True)
    assert list(missed) == sorted(missed, reverse=True)
    assert list(touched) == sorted(touched)


def test_h_is_nearly_closed_on_usual_controls() -> None:
    control = torch.arange(100.0)
    threshold, temperature = TextThreshold(control + 200, control).place(0.02)
    h = ((control - threshold) / temperature).sigmoid()
    assert float((h < 0.02).double().mean()) >= 0.89
    assert TextThreshold(torch.ones(9), torch.zeros(9)).place(0.02)[1] > 0, "not even scores that are all equal divide"


def rows_of(texts: Sequence[torch.Tensor]) -> Activations:
    """Texts [tokens, width] as they are captured."""
    numbers = torch.arange(len(texts))
    return Activations(
        pooled=[torch.stack([text.mean(0) for text in texts])],
        prompts=[numbers],
        positions=[torch.cat([*texts])],
        position_prompts=[numbers.repeat_interleave(torch.tensor([len(text) for text in texts]))],
    )


def test_texts_that_a_probe_was_fitted_on_do_not_judge_it() -> None:
    """Random labels in many dimensions are learned by heart, and tell nothing of texts that were left out."""
    random = torch.Generator().manual_seed(0)
    tokens = [torch.randn(6, 200, generator=random) for _ in range(80)]
    source, control = tokens[:40], tokens[40:]
    data = LabelledRows(*(torch.stack([text.mean(0) for text in side]) for side in (source, control)))
    gate = methods.get("dsas", "gate")

    rows, labels = torch.cat([data.source, data.control]), np.repeat([1, 0], 40)

    def fit(train: np.ndarray) -> LinearProbe:
        sides = (rows[train[labels[train] == label]] for label in (1, 0))
        probe: LinearProbe = gate.fit(*sides, rank="ridge", scaler="std")
        return probe

    held_out = TextThreshold.of_logits(*held_out_logits(data, rows_of(source), rows_of(control), fit))
    assert 0.3 < held_out.evidence.auroc < 0.7
    probe = fit(np.arange(80))
    known = TextThreshold.of_logits(*([probe.logit(text)[:, 0] for text in side] for side in (source, control)))
    assert known.evidence.auroc > 0.95


def test_each_text_is_read_by_a_probe_that_was_fitted_without_it() -> None:
    rows = torch.arange(20.0)[:, None]
    data = LabelledRows(rows[:8], rows[8:])
    fitted: list[set[int]] = []

    def fit(train: np.ndarray) -> LinearProbe:
        fitted.append(set(train.tolist()))
        return LinearProbe(torch.zeros(1), torch.tensor(float(len(fitted))))

    texts = [row[None].expand(3, 1) for row in rows]
    source, control = held_out_logits(data, rows_of(texts[:8]), rows_of(texts[8:]), fit)
    assert [len(side) for side in (source, control)] == [8, 12]
    for text, logits in enumerate([*source, *control]):
        assert text not in fitted[int(logits[0]) - 1]


@functools.cache
def fitted() -> tuple[Any, Any]:
    interventions, evidence = fit_sites(captured(), Recipe(form="text"))
    return interventions[0], evidence[0]


def test_a_text_gate_tells_texts_apart_that_it_never_saw() -> None:
    intervention, evidence = fitted()
    (probe,) = intervention.probes
    assert isinstance(probe, TextProbe)
    assert (evidence.rank, evidence.scaler, evidence.weight) == ("ridge", "std", 1.0)
    assert evidence.auroc > 0.95
    assert 0 <= evidence.missed <= 0.2
    assert 0 <= evidence.touched <= 0.2
    source, control = (probe.score(activations(side, 200, 8.0, 99))[..., -1] for side in ("source", "control"))
    assert float((source[:, -1] > 0.5).double().mean()) > 0.8
    assert float((control[:, -1] > 0.5).double().mean()) < 0.1


def test_the_share_of_controls_is_the_recipes() -> None:
    thresholds = [
        float(fit_sites(captured(), Recipe(form="text", control_texts=share))[0][0].probes[0].threshold)
        for share in SHARES
    ]
    assert thresholds == sorted(thresholds, reverse=True)
    free = fit_sites(captured(), Recipe(form="text", control_h=None))[0][0].probes[0]
    own = fitted()[0].probes[0]
    assert torch.equal(free.inner.weight, own.inner.weight), "the limit moves the threshold alone"
    assert not torch.equal(free.threshold, own.threshold)


@pytest.mark.parametrize("share", [0.0, 0.5, -0.1, 1, "few", None])
def test_shares_that_are_none(share: Any) -> None:
    with pytest.raises(DSASError, match=r"control_texts .*: expected a share of control texts, above 0 and below 0\.5"):
        Recipe(control_texts=share)


def test_ridge_is_a_penalty_on_rare_directions() -> None:
    """A direction that hardly varies tells the sides apart by chance as well as any: it gets little of the weight."""
    random = torch.Generator().manual_seed(0)
    spread = torch.tensor([3.0, 3.0] + [0.01] * (WIDTH - 2))
    source, control = (torch.randn(30, WIDTH, generator=random) * spread for _ in range(2))
    source[:, 0] += 6
    gate = methods.get("dsas", "gate")
    plain, ridge = (gate.fit(source, control, rank=rank, scaler="none") for rank in (WIDTH, "ridge"))
    shares = [float(probe.weight[2:].norm() / probe.weight.norm()) for probe in (plain, ridge)]
    assert shares[1] < 0.1 < shares[0]
    with pytest.raises(DSASError, match="gate rank 'rigid': expected a positive number, lda, ridge or auto"):
        gate.fit(source, control, rank="rigid", scaler="none")


def test_scores_of_texts_are_those_that_steering_reads() -> None:
    random = torch.Generator().manual_seed(0)
    logits = [torch.randn(length, generator=random) for length in (3, 9, 1)]
    placed = TextThreshold.of_logits(logits, logits[:1])
    expected = [float(text_scores(z[None])[0][0, -1]) for z in logits]
    assert placed.source.tolist() == expected


@pytest.mark.parametrize(("apart", "missed", "touched"), [(6.0, 0.02, 0.015), (3.0, 0.26, 0.05), (0.5, 0.95, 0.13)])
def test_more_is_touched_where_most_would_be_missed_but_never_much(apart: float, missed: float, touched: float) -> None:
    random = torch.Generator().manual_seed(0)
    control, source = (torch.randn(400, generator=random) + shift for shift in (0.0, apart))
    found = TextThreshold(source, control).shares(0.01)
    assert found[0] <= missed
    assert found[1] <= touched
