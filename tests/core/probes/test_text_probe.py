"""The decision about a whole text: its strongest and its mean token, whatever the padding and however it is read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsas_core.probes import LinearProbe, TextProbe
from dsas_core.probes.linear import LOGIT_LIMIT
from dsas_core.probes.running import PRIOR_TOKENS, text_scores

WIDTH = 6
LOGITS = st.lists(st.floats(-20, 20, width=16), min_size=1, max_size=12)


def probe() -> TextProbe:
    random = torch.Generator().manual_seed(0)
    inner = LinearProbe(torch.randn(WIDTH, generator=random), torch.tensor(0.2))
    return TextProbe(inner, threshold=torch.tensor(1.5), temperature=torch.tensor(0.7), written=torch.tensor(1.0))


def texts(rows: int = 2, positions: int = 7) -> torch.Tensor:
    return torch.randn(rows, positions, WIDTH, generator=torch.Generator().manual_seed(1))


def final_score(logits: list[float]) -> float:
    return float(text_scores(torch.tensor([logits]))[0][0, -1])


@given(LOGITS)
def test_the_score_is_that_of_its_formula(logits: list[float]) -> None:
    scores = text_scores(torch.tensor([logits]))[0][0].tolist()
    for t, score in enumerate(scores, 1):
        so_far = logits[:t]
        assert score == pytest.approx(max(so_far) + sum(so_far) / (t + PRIOR_TOKENS), abs=1e-3)


@given(LOGITS, st.data(), st.floats(0, 10, width=16))
def test_the_score_rises_with_each_logit(logits: list[float], data: st.DataObject, by: float) -> None:
    place = data.draw(st.integers(0, len(logits) - 1))
    raised = [z + by * (i == place) for i, z in enumerate(logits)]
    assert final_score(raised) >= final_score(logits) - 1e-4


@given(LOGITS)
def test_the_order_of_the_tokens_does_not_matter(logits: list[float]) -> None:
    assert final_score(logits[::-1]) == pytest.approx(final_score(logits), abs=1e-3)


@given(LOGITS, st.integers(0, 5), st.integers(0, 5))
def test_padding_does_not_count(logits: list[float], left: int, right: int) -> None:
    padded = [19.0] * left + logits + [19.0] * right
    mask = torch.tensor([[0.0] * left + [1.0] * len(logits) + [0.0] * right])
    scores, state = text_scores(torch.tensor([padded]), mask)
    alone, expected = text_scores(torch.tensor([logits]))
    torch.testing.assert_close(scores[:, left : left + len(logits)], alone, atol=1e-4, rtol=0)
    torch.testing.assert_close(state, expected, atol=1e-4, rtol=0)


@given(LOGITS, st.data())
def test_two_calls_are_one(logits: list[float], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(logits)))
    whole, expected = text_scores(torch.tensor([logits]))
    state, parts = torch.zeros(1, 3), []
    for part in (logits[:cut], logits[cut:]):
        if part:
            scores, state = text_scores(torch.tensor([part]), None, state)
            parts.append(scores)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-4, rtol=0)
    torch.testing.assert_close(state, expected, atol=1e-4, rtol=0)


def test_logits_beyond_the_limit_are_those_at_the_limit() -> None:
    far = replace(probe(), inner=LinearProbe(torch.full((WIDTH,), 1e4), torch.tensor(0.0)))
    for sign in (-1, 1):
        x = sign * torch.ones(1, 3, WIDTH)
        _, state = far.step(x, None, None, torch.zeros(1, 3))
        assert float(state[0, 2]) == (sign + 1) * LOGIT_LIMIT
        assert far.score(x).unique().tolist() == pytest.approx([float(sign > 0)], abs=1e-12)


def test_all_of_a_prompt_has_the_h_of_its_end() -> None:
    x = texts()
    prompt = torch.tensor([[1.0] * 4 + [0.0] * 3] * 2)
    mask = torch.ones(2, 7)
    mask[0, 3] = mask[1, 0] = 0  # a shorter prompt, padded on the right, and one on the left
    h, _ = probe().step(x, mask, prompt, torch.zeros(2, 3))
    scores = text_scores(probe().inner.logit(x)[..., 0], mask)[0]
    by_position = probe().link(scores)
    for row, (first, end) in enumerate([(0, 2), (1, 3)]):
        counted = h[row, first : end + 1, 0]
        assert torch.equal(counted, by_position[row, end].expand_as(counted))
        torch.testing.assert_close(h[row, 4:, 0], by_position[row, 4:])


def test_what_is_written_does_not_change_the_prompt_and_is_judged_with_it() -> None:
    x = texts(1)
    prompt, nothing = torch.ones(1, 4), torch.zeros(1, 3)
    before, state = probe().step(x[:, :4], None, prompt, nothing)
    together, end = probe().step(x, None, torch.tensor([[1.0] * 4 + [0.0] * 3]), nothing)
    torch.testing.assert_close(before, together[:, :4])
    for i in range(4, 7):
        h, state = probe().step(x[:, i : i + 1], None, torch.zeros(1, 1), state)
        torch.testing.assert_close(h, together[:, i : i + 1])
    torch.testing.assert_close(state, end)


def test_a_row_is_read_alone_as_among_others() -> None:
    x = texts(3)
    torch.testing.assert_close(torch.cat([probe().score(x[i : i + 1]) for i in range(3)]), probe().score(x))


def test_a_row_without_a_position_has_no_part_in_it() -> None:
    h, state = probe().step(texts(), torch.tensor([[0.0] * 7, [1.0] * 7]), None, torch.zeros(2, 3))
    assert state[0].tolist() == [0, 0, 0]
    assert bool(h.isfinite().all())
    torch.testing.assert_close(h[1:], probe().score(texts()[1:]))


def test_the_complement_decides_the_opposite() -> None:
    x = texts()
    torch.testing.assert_close(probe().complement().score(x), 1 - probe().score(x))
    assert torch.equal(probe().complement().complement().score(x), probe().score(x))


def test_a_lower_bias_takes_more_of_a_text_to_open() -> None:
    lowered = probe().with_lower_bias(2.0)
    assert float(lowered.threshold) == 3.5
    scores = torch.linspace(-2, 7, 19)
    assert bool((lowered.link(scores) <= probe().link(scores)).all())
    assert bool((lowered.link(scores) < probe().link(scores)).any())


def test_a_sample_is_judged_by_its_positions() -> None:
    (x,) = texts(1)
    torch.testing.assert_close(probe().score_sample(x.mean(0), x), probe().score(x[None])[0, :, 0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_activations_in_half_precision_are_read_in_float32(dtype: torch.dtype) -> None:
    x = texts().to(dtype)
    h = probe().score(x)
    assert h.dtype == torch.float32
    torch.testing.assert_close(h, probe().score(x.float()), atol=2e-3, rtol=0)


def test_what_is_written_counts_only_where_it_is_to() -> None:
    inner = LinearProbe(torch.tensor([1.0]), torch.tensor(0.0))
    x, prompt = torch.tensor([[[-5.0], [-5.0], [9.0]]]), torch.tensor([[1.0, 1.0, 0.0]])
    texts, messages = (
        TextProbe(inner, torch.tensor(0.0), torch.tensor(0.5), written=torch.tensor(written)) for written in (1.0, 0.0)
    )
    empty = torch.zeros(1, texts.state_size)
    h, _ = texts.step(x, None, prompt, empty)
    assert h[0, 2] > 0.99 > 0.01 > h[0, 1], "the token behind the prompt opens the gate"
    h, state = messages.step(x, None, prompt, empty)
    assert torch.equal(h[0, 2], h[0, 1]), "the prompt alone decides"
    later, _ = messages.step(torch.full((1, 1, 1), 30.0), None, torch.zeros(1, 1), state)
    assert torch.equal(later[0, 0], h[0, 1])


def test_what_is_far_from_the_threshold_is_left_bit_for_bit() -> None:
    assert probe().link(torch.tensor([-5.0, 1.5, 9.0])).tolist() == [0.0, 0.5, 1.0]
