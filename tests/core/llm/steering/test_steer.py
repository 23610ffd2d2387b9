"""Steering language models: the identities, on random models of many families."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from dsas_core import DSASError, Site, llm, visit
from dsas_core.llm.model.layers import device_of_input, roots_of
from dsas_core.probes import PrefixProbe
from tests.fixtures.checks import differ
from tests.fixtures.language_models import (
    DIFFERENT,
    IDS,
    LENGTH,
    close,
    concept_for,
    remembering,
    tiny,
    written,
)
from tests.fixtures.models import Counting
from tests.fixtures.visitors import Bare, Recorder


@pytest.mark.parametrize("family", DIFFERENT)
def test_identities(family: str) -> None:
    model = tiny(family)
    concept = concept_for(model)
    bare, base = Bare.of(model), written(model)
    with llm.steer(model, {concept: 1.0}) as steering:
        steered = written(model)
        assert steering.fired == sorted(map(str, concept.sites))
        steering.strengths[concept.name] = 0.0
        assert torch.equal(written(model), base), "strength 0 is exact"
        steering.strengths[concept.name] = -1.0
        assert differ(written(model), steered)
    assert differ(steered, base)
    assert Bare.of(model) == bare
    assert torch.equal(written(model), base), "detach leaves nothing"
    with llm.steer(model, {concept: 1.0}, gate="off"):
        assert torch.equal(written(model), base)


def test_a_detached_steering_is_freed_with_its_last_reference() -> None:
    """Its trace may be large, and must not wait for the garbage collector."""
    model = tiny("llama")
    gc.disable()
    try:
        with llm.steer(model, {concept_for(model): 1.0}, trace=True) as steering:
            model(IDS)
        trace = weakref.ref(steering.trace)
        del steering
        assert trace() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("family", DIFFERENT)
def test_cached_decoding_is_a_full_forward(family: str) -> None:
    model = tiny(family)
    with llm.steer(model, {concept_for(model): 1.0}):
        assert close(written(model), written(model, use_cache=False))


@pytest.mark.parametrize("phase", ["prompt", "generation"])
def test_phases_are_the_same_with_and_without_a_cache(phase: str) -> None:
    model = tiny("llama")
    concept = concept_for(model)
    base = written(model)
    with llm.steer(model, {concept: 1.0}, phase=phase):
        cached = written(model)
        assert close(cached, written(model, use_cache=False))
    assert differ(cached, base)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_phases_share_the_positions_between_them(cached: bool, side: str) -> None:
    """The prompt's last position writes the first token of the answer: it belongs to the generation."""
    model = tiny("llama")
    ids, mask = torch.zeros(2, 9, dtype=torch.long), torch.zeros(2, 9, dtype=torch.long)
    rows = [slice(2, 9) if side == "left" else slice(0, 7), slice(0, 9)]
    for row, (place, length) in enumerate(zip(rows, (7, 9), strict=True)):
        ids[row, place], mask[row, place] = IDS[row].repeat(2)[:length], 1
    steered: dict[str, list[list[bool]]] = {}
    for phase in ("prompt", "generation", "all"):
        with llm.steer(model, {concept_for(model): 1.0}, gate="on", phase=phase, trace=True) as steering:
            written(model, ids, mask, use_cache=cached, max_new_tokens=3)
        assert steering.trace is not None
        steered[phase] = [[token.max_h > 0 for token in steering.trace.tokens(row)] for row in (0, 1)]
    last = [8 if side == "left" else 6, 8]  # of each prompt
    for row in (0, 1):
        begin = [phase[row] for phase in steered.values()]
        assert [i for i, on in enumerate(begin[1]) if on] == [last[row], 9, 10]
        assert [i for i, on in enumerate(begin[0]) if on] == list(range(rows[row].start + 1, last[row]))
        assert begin[2] == [a or b for a, b in zip(*begin[:2], strict=True)]


def test_of_a_prompt_that_is_read_in_chunks_the_end_of_each_may_write() -> None:
    from transformers import DynamicCache

    model, cache = tiny("llama"), DynamicCache()
    with llm.steer(model, {concept_for(model): 1.0}, gate="on", phase="generation", trace=True) as steering:
        for ids in (IDS[:, :4], IDS[:, 4:], IDS[:, :1]):
            model(ids, past_key_values=cache)
    assert steering.trace is not None
    assert [i for i, token in enumerate(steering.trace.tokens()) if token.max_h > 0] == [3, 6, 7]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("pads", [0, 3])
def test_static_cache_agrees(family: str, pads: int) -> None:
    model = tiny(family)
    ids = torch.cat([torch.zeros(2, pads, dtype=torch.long), IDS, IDS], 1)  # longer than Gemma's window
    with llm.steer(model, {concept_for(model): 1.0}):
        mask = (ids > 0).long()
        assert close(written(model, ids, mask), written(model, ids, mask, cache_implementation="static"))


@pytest.mark.parametrize("kind", [None, PrefixProbe])
def test_inference_mode_and_gradients_may_alternate(kind: Any) -> None:
    model = tiny("llama")
    concept = concept_for(model) if kind is None else remembering(model, kind)
    with llm.steer(model, {concept: 1.0}):
        with torch.inference_mode():
            first = model(IDS).logits.clone()
        assert close(model(IDS).logits, first)
        with torch.inference_mode():
            assert close(model(IDS).logits, first)
        inputs = model.get_input_embeddings()(IDS).requires_grad_()
        for _ in range(2):
            model(inputs_embeds=inputs).logits.sum().backward()


def test_what_follows_a_rows_end_is_padding() -> None:
    model = tiny("llama")
    end = int(written(model, IDS[:1]).argmax(-1)[0, 1])
    own = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = end
    try:
        with llm.steer(model, {concept_for(model): 0.0}, trace=True) as steering:
            written(model)
    finally:
        model.generation_config.eos_token_id = own
    assert steering.trace is not None
    tokens = steering.trace.tokens(0)
    place = next(token.position for token in tokens if token.position >= 7 and token.id == end)
    assert [token.counted for token in tokens[1:]] == [token.position <= place for token in tokens[1:]]


def test_a_cache_that_was_filled_before_begins_a_text_of_its_own() -> None:
    from transformers import DynamicCache

    model, cache = tiny("llama"), DynamicCache()
    model(IDS[:, :3], past_key_values=cache)
    texts: list[int] = []
    with llm.steer(model, {concept_for(model): 1.0}, phase="prompt", trace=True) as steering:
        for _ in range(2):
            model(IDS[:, 3:], past_key_values=copy.deepcopy(cache))
            assert steering.trace is not None
            texts.append(len(steering.trace.tokens()))
    assert texts == [4, 4], "each request is one text"
    with (
        llm.steer(model, {remembering(model, PrefixProbe): 1.0}),
        pytest.raises(DSASError, match="holds 3 tokens that the gate did not read"),
    ):
        model(IDS[:, 3:], past_key_values=cache)


def test_strengths_for_other_prompts_are_refused() -> None:
    model = tiny("llama")
    with (
        llm.steer(model, {concept_for(model): [0.0, 1.0]}),
        pytest.raises(DSASError, match="strengths are given for 2 prompts, but the call has 1 rows"),
    ):
        model(IDS[:1])


def test_heads_are_told_apart() -> None:
    model = tiny("llama")
    with llm.steer(model, {concept_for(model, "heads"): 1.0}, trace=True) as steering:
        model(IDS)
    assert steering.trace is not None
    assert len(steering.trace.tokens()[1].h) == 8


@pytest.mark.parametrize("family", [family for family in DIFFERENT if family != "t5"])
def test_rows_do_not_know_each_other(family: str) -> None:
    model = tiny(family)
    short, long_ = IDS[:1, :4], IDS[1:]
    padded = torch.cat([torch.cat([torch.zeros(1, 3, dtype=torch.long), short], 1), long_])
    mask = torch.ones_like(padded)
    mask[0, :3] = 0
    with llm.steer(model, {concept_for(model): [1.0, 0.5]}):
        together = written(model, padded, mask)
    with llm.steer(model, {concept_for(model): 1.0}):
        assert close(written(model, short)[0], together[0])
    with llm.steer(model, {concept_for(model): 0.5}):
        assert close(written(model, long_)[0], together[1])


def test_padding_on_either_side_agrees() -> None:
    model = tiny("llama")
    pads = torch.zeros(1, 3, dtype=torch.long)
    left, right = torch.cat([pads, IDS[:1]], 1), torch.cat([IDS[:1], pads], 1)
    with llm.steer(model, {concept_for(model): 1.0}):
        on_left = model(left, attention_mask=(left > 0).long(), position_ids=_positions(left)).logits[:, 3:]
        on_right = model(right, attention_mask=(right > 0).long()).logits[:, :-3]
    assert close(on_left, on_right)


def _positions(ids: torch.Tensor) -> torch.Tensor:
    return ((ids > 0).cumsum(1) - 1).clamp_min(0)


def test_pads_and_the_first_token_are_neither_read_nor_written() -> None:
    model = tiny("llama")
    site = Site("model.model.layers.0")
    concept = concept_for(model, "model.model.layers.0")
    ids = torch.cat([torch.zeros(2, 2, dtype=torch.long), IDS], 1)
    mask = (ids > 0).long()
    recorder = Recorder()
    with visit(roots_of(model), [site], recorder):
        model(ids, attention_mask=mask)
    before = recorder.seen[site][0]
    behind = Recorder()
    steering = llm.steer(model, {concept: 1.0}, gate="on", trace=True)
    with visit(roots_of(model), [Site("model.model.layers.1", side="input")], behind), steering:
        model(ids, attention_mask=mask)
    after = behind.seen[Site("model.model.layers.1", side="input")][0]
    moved = (after - before).abs().amax(-1) > 1e-4
    assert moved.tolist() == [[False] * 3 + [True] * 6] * 2
    assert steering.trace is not None
    assert [token.counted for token in steering.trace.tokens(1)] == moved[1].tolist()


def test_a_batch_of_beams_belongs_to_its_prompts() -> None:
    model = tiny("llama")
    concept = concept_for(model)

    def beams(ids: torch.Tensor) -> torch.Tensor:
        mask = torch.ones_like(ids)
        return model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=LENGTH, do_sample=False, pad_token_id=0, num_beams=3
        )

    with llm.steer(model, {concept: [0.0, 1.0]}):
        both = beams(IDS)
    assert torch.equal(both[0], beams(IDS[:1])[0])
    with llm.steer(model, {concept: 1.0}):
        assert torch.equal(both[1], beams(IDS[1:])[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_stays_finite_and_exact_at_zero(dtype: torch.dtype) -> None:
    model = copy.deepcopy(tiny("llama")).to(dtype)
    concept = concept_for(model)
    base = written(model)
    with llm.steer(model, {concept: 1.0}) as steering:
        assert written(model).isfinite().all()
        steering.strengths[concept.name] = 0.0
        assert torch.equal(written(model), base)


@pytest.mark.usefixtures("fresh_graphs")
def test_compiled_in_one_graph() -> None:
    model = copy.deepcopy(tiny("llama"))
    concept = concept_for(model)
    base = model(IDS).logits
    with llm.steer(model, {concept: 1.0}) as steering:
        expected = model(IDS).logits
        counting = Counting()
        model.model = torch.compile(model.model, backend=counting, fullgraph=True)
        assert close(model(IDS).logits, expected)
        steering.strengths[concept.name] = 0.0
        assert close(model(IDS).logits, base)
        assert counting.graphs == 1


@pytest.mark.usefixtures("fresh_graphs")
def test_sites_that_a_call_does_not_come_to_are_told_in_that_call() -> None:
    """Whoever took the hook away, or where torch compiled another model of the class before, without hooks."""
    bare, model = tiny.__wrapped__("llama"), tiny.__wrapped__("llama")  # on the others transformers may have left hooks
    counting, base = Counting(), model(IDS).logits
    bare.model = torch.compile(bare.model, backend=counting)
    assert close(bare(IDS).logits, base)
    concept = concept_for(model)
    with llm.steer(model, {concept: 1.0}) as steering:
        expected, inner, hooks = model(IDS).logits, model.model, model.model.layers[0]._forward_hooks
        model.model = torch.compile(inner, backend=counting)
        with pytest.warns(UserWarning, match=r"not reached.*call torch\.compiler\.reset\(\)"):
            assert close(model(IDS).logits, base)
        torch.compiler.reset()
        assert close(model(IDS).logits, expected)
        assert differ(expected, base)
    model.model = inner
    with llm.steer(model, {concept: 1.0}) as steering:
        hooks.clear()
        with pytest.warns(UserWarning, match=r"not reached.* model\.model\.layers\.0 \(its hook was removed"):
            model(IDS)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            model(IDS)  # once
        assert steering.fired == ["model.model.layers.1"]


def test_adapters_stay_at_work() -> None:
    peft = pytest.importorskip("peft")
    model = copy.deepcopy(tiny("llama"))
    concept = concept_for(model)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "o_proj"], init_lora_weights=False))
    base = wrapped(IDS).logits
    assert [str(site) for site in llm.find_sites(wrapped, "attention")] == [
        f"model.model.layers.{i}.self_attn" for i in range(2)
    ]
    with llm.steer(wrapped, {concept: 1.0}):
        assert differ(wrapped(IDS).logits, base)
    assert torch.equal(wrapped(IDS).logits, base)


def test_layers_that_accelerate_keeps_elsewhere(tmp_path: Path) -> None:
    from accelerate import dispatch_model

    model = copy.deepcopy(tiny("llama"))
    concept, base = concept_for(model), written(model)
    with llm.steer(model, {concept: 1.0}):
        steered = written(model)
    places = dict.fromkeys(("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb"), "disk")
    dispatch_model(model, {**places, "model.layers.1": "cpu", "lm_head": "cpu"}, "cpu", offload_dir=str(tmp_path))
    assert device_of_input(model).type == "cpu"
    with llm.steer(model, {concept: 1.0}, trace=True) as steering:
        assert close(written(model), steered)
        assert steering.fired == sorted(map(str, concept.sites))
    assert close(written(model), base)


def test_a_concept_of_another_model_is_refused_unless_forced() -> None:
    concept = concept_for(tiny("llama"))
    with pytest.raises(DSASError, match=r"fingerprint \w{16}, this one is \w{16}"):
        llm.steer(tiny("qwen2"), {concept: 1.0})
    with llm.steer(tiny("qwen2"), {concept: 1.0}, force=True):
        written(tiny("qwen2"))


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), [1.0, float("nan")]])
def test_strengths_are_finite(strength: Any) -> None:
    with pytest.raises(DSASError, match="finite"):
        llm.steer(tiny("llama"), {concept_for(tiny("llama")): strength})


def test_a_text_past_the_models_length_is_refused() -> None:
    model = tiny("llama")
    with (
        llm.steer(model, {concept_for(model): 1.0}),
        pytest.raises(DSASError, match="65 tokens, but the model takes 64: shorten the prompt or the answer"),
    ):
        written(model, IDS.repeat(1, 9), max_new_tokens=4)


def test_an_unknown_phase_is_refused() -> None:
    with pytest.raises(DSASError, match="phase 'answer': expected one of prompt, generation, all"):
        llm.steer(tiny("llama"), {concept_for(tiny("llama")): 1.0}, phase="answer")
