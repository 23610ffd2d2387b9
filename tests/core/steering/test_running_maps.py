"""Maps of texts that go by what came before: with and without a cache, padded, in batches, beams and turns."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from dsas_core import Call, Concept, DSASError, Intervention, Site, Steering, llm
from dsas_core.errors import UnsupportedError
from dsas_core.llm.model.layers import find_sites
from dsas_core.maps.flow import FlowMap
from dsas_core.probes import ConstantProbe, LinearProbe, PrefixProbe, Probe
from dsas_core.steering.interpolation import interpolate
from tests.fixtures.checks import differ
from tests.fixtures.flows import random_flow
from tests.fixtures.language_models import IDS, LENGTH, tiny, written

WIDTH = 8


def flowing(model: Any, probe: Probe | None = None, **settings: Any) -> Concept:
    """A random flow behind the first layer of a tiny model."""
    width = model.config.get_text_config().hidden_size
    site = find_sites(model, "block")[0]
    probe = ConstantProbe(1.0) if probe is None else probe
    return Concept("flow", (Intervention(site, (probe,), (random_flow(width, **settings),), (1.0,)),))


def gate(model: Any, seed: int = 0) -> LinearProbe:
    weight = torch.randn(model.config.get_text_config().hidden_size, generator=torch.Generator().manual_seed(seed))
    return LinearProbe(weight, torch.tensor(0.0))


def close(first: torch.Tensor, second: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return torch.allclose(first, second, rtol=tolerance, atol=tolerance)


def in_parts(flow: FlowMap, x: torch.Tensor, sizes: list[int], mask: torch.Tensor | None = None) -> torch.Tensor:
    state, moved, start = flow.begin(len(x)), [], 0
    for size in sizes:
        part = slice(start, start + size)
        out, state = flow.step(x[:, part], 0.7, None if mask is None else mask[:, part], None, state)
        moved.append(out)
        start += size
    return torch.cat(moved, 1)


# ---- the map --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_parts_of_a_text_are_moved_as_the_whole(blocks: int, cap: float | None) -> None:
    flow, x = random_flow(WIDTH, blocks=blocks, cap=cap), torch.randn(2, 7, WIDTH)
    whole = flow.apply(x, 0.7)
    assert differ(whole, x)
    for sizes in ([7], [1] * 7, [4, 1, 2]):
        torch.testing.assert_close(in_parts(flow, x, sizes), whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(flow.apply(x[0], 0.7), whole[0])


@pytest.mark.parametrize("left", [True, False])
def test_padding_makes_no_difference(left: bool) -> None:
    flow, x = random_flow(WIDTH), torch.randn(1, 5, WIDTH)
    pads, mask = 100 * torch.randn(1, 3, WIDTH), torch.ones(1, 5)
    padded = torch.cat([pads, x] if left else [x, pads], 1)
    mask = torch.cat([torch.zeros(1, 3), mask] if left else [mask, torch.zeros(1, 3)], 1)
    kept = slice(3, None) if left else slice(5)
    torch.testing.assert_close(in_parts(flow, padded, [4, 4], mask)[:, kept], flow.apply(x, 0.7), atol=1e-5, rtol=1e-5)


def test_without_time_nothing_moves_and_backwards_is_another_way() -> None:
    flow, x = random_flow(WIDTH), torch.randn(2, 4, WIDTH)
    assert torch.equal(flow.apply(x, 0.0), x)
    assert differ(flow.apply(x, -0.5) - x, x - flow.apply(x, 0.5))
    rows = flow.apply(x, torch.tensor([0.0, 0.5])[:, None, None])
    assert torch.equal(rows[0], x[0])
    torch.testing.assert_close(rows[1], flow.apply(x[1], 0.5))


def test_eulers_method_converges_to_the_flow_with_order_one() -> None:
    flow, x = random_flow(WIDTH, scale=0.3).map_tensors(torch.Tensor.double), torch.randn(1, 4, WIDTH).double()
    start = flow.begin(1)

    def velocity(h: torch.Tensor, time: float) -> torch.Tensor:  # a single step reads the velocity at time 0
        from dsas_core.maps.flow import _positions

        positions, _ = _positions(torch.ones(1, 4).double(), start[0].double())
        own = random_flow(WIDTH, scale=0.3, steps=1).map_tensors(torch.Tensor.double)
        return own._velocity(h, torch.tensor([[[time]]]).double(), positions, iter(own.begin(1)[1:]))[0]

    exact, count = x, 100
    for i in range(count):  # Runge and Kutta's fourth order
        length, time = 1.4 / count, 1.4 * i / count
        a = velocity(exact, time)
        b = velocity(exact + length / 2 * a, time + length / 2)
        c = velocity(exact + length / 2 * b, time + length / 2)
        exact = exact + length / 6 * (a + 2 * b + 2 * c + velocity(exact + length * c, time + length))
    errors = [float((replace(flow, steps=n).apply(x, 0.7) - exact).norm()) for n in (20, 40, 400)]
    assert errors[2] < 1e-2 * float((exact - x).norm())
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.3)


def test_both_ways_to_gate_have_the_same_ends() -> None:
    x = torch.randn(2, 4, WIDTH)
    by_ends, by_time = random_flow(WIDTH), random_flow(WIDTH, by_time=True)
    shut, full = torch.zeros(2, 4, 1), torch.ones(2, 4, 1)
    for flow in (by_ends, by_time):
        assert torch.equal(interpolate(x, [(flow, 0.6, shut)]), x)
        torch.testing.assert_close(interpolate(x, [(flow, 0.6, full)]), by_ends.apply(x, 0.6))
    half = torch.full((2, 4, 1), 0.5)
    moved = [interpolate(x, [(flow, 0.6, half)]) for flow in (by_ends, by_time)]
    torch.testing.assert_close(moved[0], torch.lerp(x, by_ends.apply(x, 0.6), half))
    torch.testing.assert_close(moved[1], by_ends.apply(x, 0.3))
    assert differ(*moved)


# ---- on a model -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("by_time", [False, True])
def test_cached_decoding_equals_a_full_forward(family: str, by_time: bool) -> None:
    model = tiny(family)
    base = written(model)
    with llm.steer(model, {flowing(model, gate(model), by_time=by_time): 0.5}) as steering:
        first = written(model)
        assert close(first, written(model, use_cache=False))
        assert torch.equal(first, written(model)), "a new text remembers nothing of the last one"
        steering.strengths["flow"] = 0.0
        assert torch.equal(written(model), base)
    assert torch.equal(written(model), base)
    assert differ(first, base)


def test_a_closed_gate_changes_nothing_and_an_open_one_is_the_map() -> None:
    model = tiny("llama")
    base = model(IDS).logits
    x = []
    concept = flowing(model, gate(model))
    site, flow = concept.interventions[0].site, concept.interventions[0].maps[0]
    assert isinstance(flow, FlowMap)
    with llm.steer(model, {concept: 0.5}, gate="off"):
        assert torch.equal(model(IDS).logits, base)
    layer = model.get_submodule(site.path.removeprefix("model."))
    handles = [layer.register_forward_hook(lambda *given: x.append(given[-1]))]
    model(IDS)
    with llm.steer(model, {concept: 0.5}, gate="on"):
        handles.append(layer.register_forward_hook(lambda *given: x.append(given[-1])))
        model(IDS)
    for handle in handles:
        handle.remove()
    before, after = (part[0] if isinstance(part, tuple) else part for part in (x[0], x[-1]))
    assert torch.equal(after[:, 0], before[:, 0]), "the first token is not steered"
    first = torch.zeros(IDS.shape)
    first[:, 0] = 1
    alone, _ = flow.step(before, 0.5, 1 - first, first, flow.begin(len(IDS)))
    torch.testing.assert_close(after[:, 1:], alone[:, 1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("left", [True, False])
def test_a_padded_batch_equals_its_rows(left: bool) -> None:
    model = tiny("llama")
    lengths = (4, 7)
    ids, mask = torch.zeros_like(IDS), torch.zeros_like(IDS)
    for row, length in enumerate(lengths):
        place = slice(7 - length, None) if left else slice(length)
        ids[row, place], mask[row, place] = IDS[row, :length], 1
    with llm.steer(model, {flowing(model, gate(model)): 0.5}):
        together = written(model, ids, mask) if left else model(ids, attention_mask=mask).logits
        for row, length in enumerate(lengths):
            alone = IDS[row : row + 1, :length]
            if left:
                assert close(together[row : row + 1], written(model, alone))
            else:
                assert close(together[row : row + 1, :length], model(alone).logits)


@pytest.mark.parametrize("phase", ["generation", "prompt"])
def test_what_is_not_steered_is_read_all_the_same(phase: str) -> None:
    """Else what follows it would be moved as in another text."""
    model = tiny("llama")
    with llm.steer(model, {flowing(model, gate(model)): 0.5}, phase=phase):
        assert close(written(model), written(model, use_cache=False))


def test_a_strength_that_changes_in_a_text_finds_what_was_read_without_it() -> None:
    from transformers import DynamicCache

    model = tiny("llama")
    concept = flowing(model, by_time=True)
    outputs = []
    for sizes in ((4, 3), (1, 1, 1, 1, 3)):
        cache, start = DynamicCache(), 0
        with llm.steer(model, {concept: 0.0}) as steering:
            for size in sizes:
                steering.strengths["flow"] = 0.5 if start >= 4 else 0.0
                out = model(IDS[:, start : start + size], past_key_values=cache).logits
                start += size
        outputs.append(out)
    assert close(*outputs)


@pytest.mark.parametrize("rows", [[0, 0, 0, 1, 1, 1], [0, 1, 0, 1], [1, 0], [1]])
def test_the_state_follows_the_rows_of_a_cached_prompt(rows: list[int]) -> None:
    from transformers import DynamicCache

    model, answers = tiny("llama"), IDS.flatten()[: 2 * len(rows)].view(len(rows), 2)
    concept = flowing(model, gate(model))

    def go_on(prompts: torch.Tensor, taken: list[int], written: torch.Tensor) -> torch.Tensor:
        cache = DynamicCache()
        with llm.steer(model, {concept: 0.5}):
            model(prompts, past_key_values=cache)
            cache.batch_select_indices(torch.tensor(taken))
            return torch.cat([model(written[:, i : i + 1], past_key_values=cache).logits for i in range(2)], 1)

    together = go_on(IDS, rows, answers)
    for place, row in enumerate(rows):
        assert close(together[place : place + 1], go_on(IDS[row : row + 1], [0], answers[place : place + 1]))


def test_beams_are_the_same_with_and_without_a_cache() -> None:
    model = tiny("llama")
    settings: dict[str, Any] = {"max_new_tokens": 8, "num_beams": 3, "do_sample": False, "pad_token_id": 0}
    with llm.steer(model, {flowing(model, gate(model)): 0.5}):
        found = [
            model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), use_cache=cached, **settings)
            for cached in (True, False)
        ]
    assert torch.equal(*found)


def test_texts_that_take_turns_are_kept_apart() -> None:
    model = tiny("llama")
    with llm.steer(model, {flowing(model, PrefixProbe(gate(model))): 0.5}):
        expected = [written(model, ids[None]) for ids in IDS]
        outputs = [model(ids[None]) for ids in IDS]
        found = [[out.logits[:, -1]] for out in outputs]
        for _ in range(LENGTH - 1):
            for place, out in enumerate(outputs):
                token = found[place][-1].argmax(-1, keepdim=True)
                outputs[place] = model(token, past_key_values=out.past_key_values)
                found[place].append(outputs[place].logits[:, -1])
    for place in range(len(IDS)):
        assert close(torch.stack(found[place], 1), expected[place])


def test_tokens_that_are_taken_back_are_refused() -> None:
    from transformers import DynamicCache

    model, cache = tiny("llama"), DynamicCache()
    with llm.steer(model, {flowing(model): 0.5}):
        model(IDS, past_key_values=cache)
        model(IDS[:, :1], past_key_values=cache)
        model(IDS[:, :1], past_key_values=cache)
        cache.crop(-1)
        with pytest.raises(DSASError, match="tokens were taken back"):
            model(IDS[:, :1], past_key_values=cache)


def test_drafts_are_refused() -> None:
    model = tiny("llama")
    settings: dict[str, Any] = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
    with (
        llm.steer(model, {flowing(model): 0.5}),
        pytest.raises(UnsupportedError, match="assisted decoding"),
    ):
        model.generate(input_ids=IDS[:1].repeat(1, 2), prompt_lookup_num_tokens=3, **settings)


def test_chunks_static_caches_and_inference_mode_make_no_difference() -> None:
    model = tiny("llama")
    with llm.steer(model, {flowing(model, gate(model)): 0.5}, trace=True) as steering:
        first = written(model)
        assert steering.trace is not None
        assert len(steering.trace.tokens(1)) == IDS.shape[1] + LENGTH - 1
        assert close(written(model, prefill_chunk_size=3), first)
        assert close(written(model, cache_implementation="static"), first, 1e-4)
        with torch.inference_mode():
            assert torch.equal(written(model), first)


def test_a_compiled_model_is_moved_as_the_model_is() -> None:
    model = copy.deepcopy(tiny("llama"))
    with llm.steer(model, {flowing(model, gate(model)): 0.5}):
        expected = model(IDS).logits
        assert close(torch.compile(model, backend="eager")(IDS).logits, expected)


def test_steerings_of_one_model_add_up() -> None:
    """Each has its own state; together they are what one steering with both is."""
    model = tiny("llama")
    first, second = flowing(model, gate(model)), replace(flowing(model, seed=1), name="second")
    with llm.steer(model, {first: 0.5, second: 0.3}):
        expected = written(model)
    with llm.steer(model, {first: 0.5}), llm.steer(model, {second: 0.3}):
        assert close(written(model), expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_computes_the_same_gradient(reentrant: bool) -> None:
    model = copy.deepcopy(tiny("llama"))
    embedded = model.get_input_embeddings()(IDS)

    def gradient(checkpointed: bool) -> torch.Tensor:
        x = embedded.detach().clone().requires_grad_()
        with llm.steer(model, {flowing(model, gate(model)): 0.5}):
            if checkpointed:
                model.train()  # where transformers checkpoints
                model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            try:
                model(inputs_embeds=x, use_cache=False).logits.square().mean().backward()
            finally:
                model.gradient_checkpointing_disable()
                model.eval()
        assert x.grad is not None
        return x.grad

    torch.testing.assert_close(gradient(True), gradient(False), atol=1e-6, rtol=1e-4)


def test_a_gradient_passes_through_what_is_kept_of_earlier_calls() -> None:
    from transformers import DynamicCache

    model, gradients = tiny("llama"), []
    for sizes in ((7,), (4, 3)):
        x, cache, start, outputs = model.get_input_embeddings()(IDS).requires_grad_(), DynamicCache(), 0, []
        with llm.steer(model, {flowing(model, gate(model)): 0.5}):
            for size in sizes:
                part = x[:, start : start + size]
                outputs.append(model(inputs_embeds=part, past_key_values=cache).logits)
                start += size
            torch.cat(outputs, 1)[:, -1].square().mean().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


def test_what_is_no_text_is_refused() -> None:
    site = Site("model.0")
    concept = Concept("flow", (Intervention(site, (ConstantProbe(1.0),), (random_flow(WIDTH),), (1.0,)),))
    model, call = torch.nn.Sequential(torch.nn.Identity()), Call(torch.ones(1), torch.arange(1), torch.tensor(500.0))
    with (
        Steering({concept: 0.5}).attach({"model": model}, {"model": lambda args, kwargs: call}),
        pytest.raises(UnsupportedError, match="goes by a text that is written"),
    ):
        model(torch.randn(1, 4, WIDTH))


def test_it_is_saved_and_loaded(tmp_path: Any) -> None:
    model = tiny("llama")
    concept = flowing(model, gate(model), blocks=2, by_time=True, cap=30.0)
    loaded = Concept.from_pretrained(concept.save_pretrained(tmp_path / "flow"))
    assert loaded == concept
    outputs = []
    for each in (concept, loaded):
        with llm.steer(model, {each: 0.5}):
            outputs.append(model(IDS).logits)
    assert torch.equal(*outputs)
