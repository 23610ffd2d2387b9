"""What a call is, however a text is decoded: loops of one's own, drafts, states, tokens of the model's."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from dsas_core import Concept, llm
from dsas_core.errors import UnsupportedError
from dsas_core.llm.steering.steer import TextSteering
from dsas_core.probes import LastProbe, LatchProbe, PrefixProbe
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

#: gates: of single tokens, of what came before, of the prompt, of where it ends
GATES: dict[str, Any] = {
    "token": None,
    "prefix": PrefixProbe,
    "text": text_probe,
    "latch": LatchProbe,
    "last": LastProbe,
    "condition": condition_latch,
}
PHASES = ("prompt", "generation", "all")

Logits = Iterator[torch.Tensor]


def concept_of(model: Any, gate: str) -> Concept:
    return concept_for(model) if GATES[gate] is None else remembering(model, GATES[gate])


def scores(steering: TextSteering, row: int = 0) -> list[float]:
    assert steering.trace is not None
    return [token.mean_h for token in steering.trace.tokens(row)]


def newest(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, -1:].argmax(-1)


# ---- loops of one's own: each yields the logits of one token -------------------------------------------------------


def returned(model: Any, **first: Any) -> Logits:
    """The cache that the model returns, under the name that it returns it by."""
    out = model(**(first or {"input_ids": IDS}), use_cache=True)
    while True:
        yield out.logits[:, -1]
        name = next(name for name in ("past_key_values", "cache_params", "state") if name in out)
        out = model(newest(out.logits), use_cache=True, **{name: out[name]})


def given(model: Any, make: Callable[[Any], Any], **options: Any) -> Logits:
    """A cache that is made before, with position_ids."""
    cache, ids, past = make(model.config), IDS, 0
    while True:
        places = torch.arange(past, past + ids.shape[1]).expand(len(ids), -1)
        logits = model(ids, past_key_values=cache, position_ids=places, **options).logits
        yield logits[:, -1]
        ids, past = newest(logits), past + ids.shape[1]


def dynamic(model: Any) -> Logits:
    from transformers import DynamicCache

    return given(model, lambda config: DynamicCache())


def of_config(model: Any) -> Logits:
    from transformers import DynamicCache

    return given(model, lambda config: DynamicCache(config=config))


def static(model: Any) -> Logits:
    from transformers import StaticCache

    return given(model, lambda config: StaticCache(config=config, max_cache_len=32))


def asked(model: Any) -> Logits:
    from transformers import DynamicCache

    return given(model, lambda config: DynamicCache(), logits_to_keep=1)


def copied(model: Any) -> Logits:
    """A copy of the cache for each step, as in a search."""
    out = model(IDS, use_cache=True)
    while True:
        yield out.logits[:, -1]
        out = model(newest(out.logits), past_key_values=copy.deepcopy(out.past_key_values))


def by_position(model: Any) -> Logits:
    """All arguments without their names."""
    out = model(IDS, torch.ones_like(IDS), use_cache=True)
    while True:
        yield out.logits[:, -1]
        out = model(newest(out.logits), None, None, out.past_key_values)


def again(model: Any) -> Logits:
    """All tokens in each call."""
    ids = IDS
    while True:
        logits = model(ids, use_cache=False).logits
        yield logits[:, -1]
        ids = torch.cat([ids, newest(logits)], 1)


def embedded(model: Any) -> Logits:
    return returned(model, inputs_embeds=model.get_input_embeddings()(IDS))


def shuffled(model: Any) -> Logits:
    """All tokens in each call, and rows that change places, as without a cache in a beam search."""
    ids, order = IDS, torch.tensor([0, 1])
    while True:
        logits = model(ids[order], use_cache=False).logits[order]
        yield logits[:, -1]
        ids, order = torch.cat([ids, newest(logits)], 1), order.flip(0)


LOOPS = [
    *(("llama", loop) for loop in (returned, dynamic, of_config, static, asked, copied, by_position, again, embedded)),
    *((family, loop) for family in ("windowed", "gemma2") for loop in (returned, of_config, static, copied)),
    *((family, returned) for family in ("mamba", "mamba2", "falcon_mamba")),
    *((family, of_config) for family in ("recurrent_gemma",)),
    ("mamba", again),
    ("llama", shuffled),
]


def crossed(things: Any, every: int) -> list[Any]:
    """Each thing with each gate and phase; of them one of `every` in the short run, spread over all."""
    return [
        pytest.param(*thing, gate, phase, marks=[] if (i + j + k) % every == 0 else [pytest.mark.slow])
        for i, thing in enumerate(things)
        for j, gate in enumerate(GATES)
        for k, phase in enumerate(PHASES)
    ]


@pytest.mark.parametrize(("family", "loop", "gate", "phase"), crossed(LOOPS, 12))
def test_every_way_to_decode_is_steered_as_generate_is(
    family: str, loop: Callable[[Any], Logits], gate: str, phase: str
) -> None:
    model = tiny(family)
    with torch.no_grad(), llm.steer(model, {concept_of(model, gate): 1.0}, phase=phase, trace=True) as steering:
        expected, h = written(model), [scores(steering, row) for row in (0, 1)]
        logits = torch.stack(list(itertools.islice(loop(model), LENGTH)), 1)
        assert close(logits, expected)
        for row in (0, 1):
            assert scores(steering, row) == pytest.approx(h[row], abs=1e-3)


@pytest.mark.parametrize("family", ["mamba", "mamba2", "falcon_mamba", "recurrent_gemma", "rwkv"])
def test_what_a_model_with_states_writes_is_steered(family: str) -> None:
    """RWKV in transformers mixes the rows of a batch behind the prompt: one row."""
    model, ids = tiny(family), IDS[:1]
    base = written(model, ids)
    concept = concept_for(model)
    with llm.steer(model, {concept: 1.0}, gate="on", phase="generation", trace=True) as steering:
        assert differ(written(model, ids), base)
        assert [h > 0 for h in scores(steering)] == [False] * 6 + [True] * LENGTH
        steering.strengths[concept.name] = 0.0
        assert torch.equal(written(model, ids), base)


@pytest.mark.parametrize("gate", ["prefix", "text", "latch", "condition"])
@pytest.mark.parametrize("family", ["mamba", "recurrent_gemma"])
def test_beams_of_a_model_with_states_are_followed(family: str, gate: str) -> None:
    model = tiny(family)
    settings = {"max_new_tokens": 8, "num_beams": 3, "do_sample": False, "pad_token_id": 0}
    with llm.steer(model, {concept_of(model, gate): 1.0}):
        both = model.generate(IDS, attention_mask=torch.ones_like(IDS), **settings)
        for row in (0, 1):
            alone = model.generate(IDS[row : row + 1], attention_mask=torch.ones_like(IDS[:1]), **settings)
            assert torch.equal(both[row], alone[0])


def test_a_state_that_does_not_tell_its_length_is_refused_where_it_was_filled_elsewhere() -> None:
    model = tiny("mamba")
    state = model(IDS, use_cache=True).cache_params
    with (
        llm.steer(model, {concept_for(model): 1.0}),
        pytest.raises(UnsupportedError, match=r"does not tell how many tokens it holds.*steer before the text begins"),
    ):
        model(IDS[:, :1], cache_params=state)


# ---- drafts ---------------------------------------------------------------------------------------------------------


def near(model: Any) -> Any:
    """A copy that is not quite the model, whose drafts are right now and then."""
    other, random = copy.deepcopy(model), torch.Generator().manual_seed(1)
    for parameter in other.parameters():
        parameter.add_(0.02 * torch.randn(parameter.shape, generator=random))
    return other


DRAFTS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "assistant": lambda model: {"assistant_model": near(model)},
    "copy": lambda model: {"assistant_model": copy.deepcopy(model)},
    "lookup": lambda model: {"prompt_lookup_num_tokens": 3},
    "static": lambda model: {"cache_implementation": "static"},
}


@pytest.mark.parametrize(("drafts", "gate", "phase"), crossed([(name,) for name in DRAFTS], 6))
def test_drafts_change_nothing(drafts: str, gate: str, phase: str) -> None:
    """The greedy text, and h of its tokens, are those of plain decoding, or the gate is refused."""
    model, prompt = tiny("llama"), torch.cat([IDS[:1], IDS[:1, :3]], 1)
    options = DRAFTS[drafts](model)
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    with llm.steer(model, {concept_of(model, gate): 2.0}, phase=phase, trace=True) as steering:
        expected, h = model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings), scores(steering)
        before = gate in ("prefix", "text")  # what goes by the prompt alone is always steered
        refused = contextlib.suppress(UnsupportedError) if before else contextlib.nullcontext()
        found = None
        with refused:
            found = model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings, **options)
        if found is None:
            return
        assert torch.equal(found, expected)
        assert scores(steering)[: len(h)] == pytest.approx(h, abs=1e-3)


def test_a_prompt_in_equal_chunks_does_not_tell_its_end() -> None:
    model, concept = tiny("llama"), remembering(tiny("llama"), LatchProbe)
    with llm.steer(model, {concept: 1.0}):
        with pytest.raises(UnsupportedError, match="one token follows a prompt of 2 chunks of 3 tokens each"):
            written(model, prefill_chunk_size=3)
        assert written(model, prefill_chunk_size=4).isfinite().all()


def test_a_further_turn_on_the_cache_of_the_last_is_a_prompt() -> None:
    from transformers import DynamicCache

    model, cache = tiny("llama"), DynamicCache()
    with llm.steer(model, {concept_for(model): 1.0}, gate="on", phase="generation", trace=True) as steering:
        for ids in (IDS[:1, :3], torch.cat([IDS[:1], IDS[:1]], 1)):
            model.generate(
                ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=3, pad_token_id=0
            )
        # a prompt of 3 tokens, 2 that were written and read, 9 of the next turn, 2 that were written
        assert [i for i, h in enumerate(scores(steering)) if h > 0] == [2, 3, 4, 13, 14, 15]


@pytest.mark.parametrize("gate", ["token", "latch"])
def test_turns_of_the_same_size_are_no_chunks_of_one_prompt(gate: str) -> None:
    from transformers import DynamicCache

    model, cache = tiny("llama"), DynamicCache()
    with llm.steer(model, {concept_of(model, gate): 1.0}, phase="generation"):
        for length in (4, 10):  # of the latter 6 are read already
            ids = IDS[:1].repeat(1, 2)[:, :length]
            made = model.generate(
                ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=3, pad_token_id=0
            )
            assert (made.shape[1], cache.get_seq_length()) == (length + 3, length + 2)


def test_a_turn_that_follows_an_end_token_is_steered() -> None:
    from transformers import DynamicCache

    model, cache = copy.deepcopy(tiny("llama")), DynamicCache()
    model.generation_config.eos_token_id = 5
    with torch.no_grad(), llm.steer(model, {concept_for(model): 1.0}, gate="on", trace=True) as steering:
        model(IDS[:1, :3], past_key_values=cache)
        for token in (10, 5):
            model(torch.tensor([[token]]), past_key_values=cache)
        model(IDS[:1, 3:6], past_key_values=cache, logits_to_keep=1)
        model(IDS[:1, :1], past_key_values=cache, logits_to_keep=1)
        assert [i for i, h in enumerate(scores(steering)) if h > 0] == list(range(1, 9))


def test_the_same_model_may_draft_with_its_first_layers() -> None:
    model = copy.deepcopy(tiny("deep"))
    concept = concept_for(model, [f"layers.{place}" for place in (3, 12)])
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    with llm.steer(model, {concept: 1.0}, phase="generation", trace=True) as steering:
        expected, h = model.generate(IDS[:1], attention_mask=torch.ones_like(IDS[:1]), **settings), scores(steering)
        with pytest.warns(UserWarning, match="not reached"):
            found = model.generate(IDS[:1], attention_mask=torch.ones_like(IDS[:1]), assistant_early_exit=6, **settings)
        assert torch.equal(found, expected)
        assert scores(steering)[: len(h)] == pytest.approx(h, abs=1e-3)


# ---- tokens that no one gave ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", GATES)
def test_a_model_that_adds_tokens_of_its_own_is_refused(gate: str) -> None:
    model = tiny("cpmant")
    with (
        llm.steer(model, {concept_of(model, gate): 1.0}),
        pytest.raises(UnsupportedError, match=r"11 positions reach model\.cpmant\.encoder\.layers\.0, but.* with 7"),
    ):
        written(model)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("tuner", ["PromptTuningConfig", "PromptEncoderConfig", "PrefixTuningConfig"])
def test_virtual_tokens_of_an_adapter_are_no_part_of_the_text(tuner: str, gate: str) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    settings = {"encoder_hidden_size": 16} if tuner == "PromptEncoderConfig" else {}
    config = getattr(peft, tuner)(task_type="CAUSAL_LM", num_virtual_tokens=3, **settings)
    concept, inner = concept_of(tiny("llama"), gate), copy.deepcopy(tiny("llama"))
    model = peft.get_peft_model(inner, config).eval().requires_grad_(False)
    mask = torch.ones_like(IDS)
    mask[0, :2] = 0  # padding between what the adapter adds and the text
    with llm.steer(model, {concept: 1.0}, force=True, trace=True) as steering:
        model.generate(input_ids=IDS, attention_mask=mask, max_new_tokens=3, do_sample=False, pad_token_id=0)
        assert steering.trace is not None
        for row, pads in ((0, 2), (1, 0)):
            tokens = steering.trace.tokens(row)[-9:]  # 7 of the prompt, 2 that were written and read
            assert [token.counted for token in tokens] == [False] * (pads + 1) + [True] * (8 - pads)
            assert not any(token.counted for token in steering.trace.tokens(row)[:-9])
        inner(input_ids=IDS)
        assert [token.counted for token in steering.trace.tokens()] == [False] + [True] * 6
        with model.disable_adapter():
            model(input_ids=IDS)  # PEFT calls its forward, past the hooks of the model itself
        assert [token.counted for token in steering.trace.tokens()] == [False] + [True] * 6
