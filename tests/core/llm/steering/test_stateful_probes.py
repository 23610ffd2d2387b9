"""Gates of texts that go by what came before: prefixes and latches, with and without a cache."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

from dsas_core import Concept, DSASError, llm
from dsas_core.probes import LastProbe, LatchProbe, LinearProbe, PrefixProbe, RunningProbe
from dsas_core.steering.calls.call_state import CallState
from tests.fixtures.checks import differ
from tests.fixtures.language_models import (
    IDS,
    LENGTH,
    close,
    concept_for,
    condition_latch,
    remembering,
    text_probe,
    tiny,
    written,
)

KINDS = (PrefixProbe, text_probe, LatchProbe, LastProbe, condition_latch)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_what_is_remembered_is_the_same_with_and_without_a_cache(
    kind: Callable[[LinearProbe], RunningProbe], family: str
) -> None:
    model = tiny(family)
    base = written(model)
    with llm.steer(model, {remembering(model, kind): 1.0}) as steering:
        first = written(model)
        assert close(first, written(model, use_cache=False))
        assert torch.equal(first, written(model)), "a new text remembers nothing of the last one"
        steering.strengths["random"] = 0.0
        assert torch.equal(written(model), base)
    assert differ(first, base)


def test_a_prefix_is_read_as_the_mean_of_its_positions() -> None:
    x, inner = torch.randn(2, 5, 8), LinearProbe(torch.randn(8), torch.tensor(0.3))
    means = x.cumsum(1) / torch.arange(1, 6)[:, None]
    torch.testing.assert_close(PrefixProbe(inner).score(x), inner.score(means), rtol=1e-4, atol=1e-5)


def test_a_latch_decides_at_the_end_of_the_prompt() -> None:
    x, inner = torch.randn(2, 6, 8), LinearProbe(torch.randn(8), torch.tensor(0.3))
    mask, prompt = torch.ones(2, 6), torch.tensor([[1.0] * 4 + [0.0] * 2] * 2)
    mask[0, 3] = 0  # a shorter prompt, padded
    h, state = LatchProbe(inner).step(x, mask, prompt, torch.zeros(2, 3))
    decisions = torch.stack([inner.score(x[0, :3].mean(0)), inner.score(x[1, :4].mean(0))])
    expected = torch.zeros(2, 6, 1)
    expected[0, [2, 4, 5]], expected[1, 3:] = decisions[0], decisions[1]
    torch.testing.assert_close(h, expected)
    after, _ = LatchProbe(inner).step(x[:, :1], torch.ones(2, 1), torch.zeros(2, 1), state)
    torch.testing.assert_close(after[:, 0], decisions)


@pytest.mark.parametrize("kind", [LatchProbe, condition_latch])
def test_a_latch_decides_on_the_prompt_and_steers_what_is_written(kind: Callable[[LinearProbe], RunningProbe]) -> None:
    model = tiny("llama")
    base = written(model)
    with llm.steer(model, {remembering(model, kind): 1.0}, phase="generation", trace=True) as steering:
        assert differ(written(model), base)
    assert steering.trace is not None
    assert [token.max_h > 0 for token in steering.trace.tokens()] == [False] * 6 + [True] * LENGTH


@pytest.mark.parametrize("kind", [PrefixProbe, text_probe, LatchProbe, condition_latch])
@pytest.mark.parametrize(("family", "cache"), [("llama", "dynamic"), ("llama", "static"), ("windowed", "dynamic")])
def test_what_is_remembered_follows_beams(
    family: str, cache: str, kind: Callable[[LinearProbe], RunningProbe], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = tiny(family), []
    options: dict[str, Any] = {"cache_implementation": cache} if cache == "static" else {}
    take_rows = CallState.take_rows

    def note(state: CallState, root: str, rows: torch.Tensor) -> None:
        seen.append(rows.tolist())
        take_rows(state, root, rows)

    def beams(**more: Any) -> torch.Tensor:
        settings = {"max_new_tokens": 12, "num_beams": 4, "do_sample": False, "pad_token_id": 0}
        return model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), **settings, **more)

    monkeypatch.setattr(CallState, "take_rows", note)
    with llm.steer(model, {remembering(model, kind): 1.0}):
        found = beams(**options)
        assert seen, "beams changed places"
        if kind is PrefixProbe:  # without a cache, a reordered batch does not tell prompts from what was written
            assert torch.equal(found, beams(use_cache=False))


def _continue(model: Any, concept: Concept, prompts: torch.Tensor, rows: list[int], answers: torch.Tensor) -> Any:
    """Logits of answers behind cached prompts, whose rows were taken for them; and the trace."""
    from transformers import DynamicCache

    cache, logits = DynamicCache(), []
    with llm.steer(model, {concept: 1.0}, trace=True) as steering:
        model(prompts, past_key_values=cache)
        cache.batch_select_indices(torch.tensor(rows))
        for i in range(answers.shape[1]):
            logits.append(model(answers[:, i : i + 1], past_key_values=cache).logits)
    return torch.cat(logits, 1), steering.trace


@pytest.mark.parametrize("kind", [PrefixProbe, text_probe, LatchProbe, LastProbe, condition_latch])
@pytest.mark.parametrize("rows", [[0, 0, 0, 1, 1, 1], [0, 1, 0, 1], [1, 0], [1]])
def test_what_is_remembered_follows_the_rows_of_a_cached_prompt(
    rows: list[int], kind: Callable[[LinearProbe], RunningProbe]
) -> None:
    model = tiny("llama")
    concept, answers = remembering(model, kind), IDS.flatten()[: 2 * len(rows)].view(len(rows), 2)
    together, trace = _continue(model, concept, IDS, rows, answers)
    for place, row in enumerate(rows):
        alone, own = _continue(model, concept, IDS[row : row + 1], [0], answers[place : place + 1])
        assert close(together[place : place + 1], alone)
        ids, h = ([getattr(token, name) for token in trace.tokens(place)] for name in ("id", "mean_h"))
        assert ids == [*IDS[row].tolist(), *answers[place].tolist()]
        assert h == pytest.approx([token.mean_h for token in own.tokens()], abs=1e-3)


def test_answers_are_sampled_behind_a_prompt_that_was_read_once() -> None:
    from transformers import DynamicCache

    model, cache, prompt = tiny("llama"), DynamicCache(), IDS[:1]
    with llm.steer(model, {remembering(model, PrefixProbe): 1.0}):
        first = written(model, prompt)
        model(prompt[:, :-1], past_key_values=cache)
        cache.batch_repeat_interleave(3)
        assert close(written(model, prompt.repeat(3, 1), past_key_values=cache), first.repeat(3, 1, 1))


def _loop(model: Any, return_dict: bool = True) -> torch.Tensor:
    """What `written` does, by a loop of one's own on the cache that the model makes."""
    given: dict[str, Any] = {"input_ids": IDS}
    if model.config.is_encoder_decoder:
        start = torch.full((len(IDS), 1), model.config.decoder_start_token_id)
        read = model.get_encoder()(IDS, return_dict=return_dict)  # what models of transformers 4 add to their outputs
        given = {"encoder_outputs": read, "decoder_input_ids": start}
    new, cache, logits = list(given)[-1], None, []
    for _ in range(LENGTH):
        out = model(**given, past_key_values=cache, use_cache=True, return_dict=return_dict)
        scores, cache = (out.logits, out.past_key_values) if return_dict else out[:2]
        logits.append(scores[:, -1])
        given[new] = logits[-1].argmax(-1, keepdim=True)
    return torch.stack(logits, 1)


@pytest.mark.parametrize("phase", ["generation", "all"])
@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("t5", None),
        *itertools.product(
            ["llama", "gemma2", "gpt2"], [None, PrefixProbe, text_probe, LatchProbe, LastProbe, condition_latch]
        ),
    ],
)
def test_a_decoding_loop_of_ones_own_is_steered_as_generate_is(
    family: str, kind: Callable[[LinearProbe], RunningProbe] | None, phase: str
) -> None:
    model = tiny(family)
    concept = concept_for(model) if kind is None else remembering(model, kind)
    base = written(model)
    with llm.steer(model, {concept: 1.0}, phase=phase, trace=True) as steering:
        traces, found = [], []
        for write in (written, _loop):
            found.append(write(model))
            assert steering.trace is not None
            traces.append([token.mean_h for token in steering.trace.tokens(1)])
        assert close(_loop(model, return_dict=False), found[0])
    assert torch.equal(found[0].argmax(-1), found[1].argmax(-1))
    assert close(*found)
    assert traces[1] == pytest.approx(traces[0], abs=1e-3)
    assert differ(found[0], base)


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_texts_that_take_turns_are_remembered_apart(kind: Any) -> None:
    model = tiny("llama")
    concept = concept_for(model) if kind is None else remembering(model, kind)
    with llm.steer(model, {concept: 1.0}, phase="generation", trace=True) as steering:
        expected = []
        for ids in IDS:
            written(model, ids[None])
            assert steering.trace is not None
            expected.append([token.mean_h for token in steering.trace.tokens()])
        outputs = [model(ids[None]) for ids in IDS]
        for _ in range(LENGTH - 1):
            for place, out in enumerate(outputs):
                outputs[place] = model(out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values)
                h = [token.mean_h for token in steering.trace.tokens()]
                assert h == pytest.approx(expected[place][: len(h)], abs=1e-3)


@pytest.mark.parametrize("kind", [None, PrefixProbe])
def test_rows_that_continue_none_are_refused_where_that_matters(kind: Any) -> None:
    from transformers import DynamicCache

    model, cache = tiny("llama"), DynamicCache()
    concept = concept_for(model) if kind is None else remembering(model, kind)
    expected: Any = (
        nullcontext() if kind is None else pytest.raises(DSASError, match="which of 2 rows each of 6 continues")
    )
    with llm.steer(model, {concept: 1.0}, trace=True) as steering:
        model(IDS, past_key_values=cache)
        cache.batch_repeat_interleave(3)
        cache.layers[-1].keys = cache.layers[-1].keys + 1
        with expected:
            model(IDS.flatten()[:6, None], past_key_values=cache)
            assert steering.trace is not None
            assert len(steering.trace.tokens(5)) == 1


def test_two_probes_of_one_concept_at_one_site_remember_apart() -> None:
    model = tiny("llama")
    concept, other = (remembering(model, kind) for kind in (PrefixProbe, LatchProbe))
    both = replace(concept, interventions=(*concept.interventions, *other.interventions))
    apart = {concept: 1.0, replace(other, name="other"): 1.0}
    with llm.steer(model, {both: 1.0}):
        together = written(model)
    with llm.steer(model, apart):
        assert close(written(model), together)


def test_tokens_that_are_taken_back_are_refused_unless_a_part_of_the_prompt_ended_there() -> None:
    from transformers import DynamicCache

    model, cache = tiny("llama"), DynamicCache()
    with llm.steer(model, {remembering(model, PrefixProbe): 1.0}):
        model(IDS[:, :5], past_key_values=cache)
        expected = model(IDS[:, 5:6], past_key_values=cache).logits
        cache.crop(-1)
        assert close(model(IDS[:, 5:6], past_key_values=cache).logits, expected)
        model(IDS[:, 6:], past_key_values=cache)
        cache.crop(-1)
        with pytest.raises(DSASError, match="tokens were taken back"):
            model(IDS[:, 5:6], past_key_values=cache)


@pytest.mark.parametrize("kind", [LastProbe, LatchProbe, condition_latch])
def test_what_was_given_before_the_prompts_last_token_is_left_alone(
    kind: Callable[[LinearProbe], RunningProbe],
) -> None:
    model = tiny("llama")
    base = model(IDS).logits
    with llm.steer(model, {remembering(model, kind): 1.0}):
        steered = model(IDS).logits
    assert torch.equal(steered[:, :-1], base[:, :-1])
    assert differ(steered[:, -1], base[:, -1])


def test_a_gate_that_reads_the_last_token_remembers_nothing_and_follows_beams() -> None:
    model = tiny("llama")
    with llm.steer(model, {remembering(model, LastProbe): 1.0}) as steering:
        assert not steering.stateful
        written(model, max_new_tokens=12, num_beams=4)


@pytest.mark.parametrize("kind", [LatchProbe, condition_latch])
def test_a_latch_where_no_prompt_ends_says_so(kind: Callable[[LinearProbe], RunningProbe]) -> None:
    model = tiny("t5")
    with (
        llm.steer(model, {remembering(model, kind): 1.0}),
        pytest.raises(DSASError, match=r"decides at a prompt's end, at decoder.*: learn at encoder sites"),
    ):
        written(model)
