"""One cache, several texts: copies of a prompt's cache, tokens that are taken back, candidates that are dropped."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from dsas_core import DSASError, llm
from dsas_core.errors import UnsupportedError
from tests.core.llm.steering.test_calls import GATES, concept_of, newest, scores
from tests.fixtures.language_models import IDS, LENGTH, close, concept_for, tiny, written

QUESTIONS = (IDS[1:, :2], IDS[1:, 2:5])


def answered(model: Any, question: torch.Tensor, cache: Any) -> torch.Tensor:
    """Logits of what is asked behind a cached prompt, and of three tokens that are written then."""
    logits = [model(question, past_key_values=cache).logits]
    for _ in range(3):
        logits.append(model(newest(logits[-1]), past_key_values=cache).logits)
    return torch.cat(logits, 1)


@pytest.mark.parametrize("way", ["copy", "crop"])
@pytest.mark.parametrize("gate", GATES)
def test_answers_behind_one_prompt_are_those_behind_their_own(gate: str, way: str) -> None:
    from transformers import DynamicCache

    model = tiny("llama")
    with llm.steer(model, {concept_of(model, gate): 1.0}, phase="generation", trace=True) as steering:
        expected = []
        for question in QUESTIONS:
            cache = DynamicCache()
            model(IDS[:1], past_key_values=cache)
            expected.append((answered(model, question, cache), scores(steering)))
        prompt = DynamicCache()
        model(IDS[:1], past_key_values=prompt)
        for question, (logits, h) in zip(QUESTIONS * 2, expected * 2, strict=True):
            cache = copy.deepcopy(prompt) if way == "copy" else prompt
            assert close(answered(model, question, cache), logits)
            assert scores(steering) == pytest.approx(h, abs=1e-3)
            if way == "crop":
                prompt.crop(-(question.shape[1] + 3))


@pytest.mark.parametrize("gate", GATES)
def test_candidates_that_are_dropped_leave_nothing(gate: str) -> None:
    """Three candidates for each token are read, and one is kept, as in contrastive search."""
    from transformers import DynamicCache

    model, cache = tiny("llama"), DynamicCache()
    with llm.steer(model, {concept_of(model, gate): 1.0}, trace=True) as steering:
        logits = model(IDS[:1], past_key_values=cache).logits
        for _ in range(LENGTH):
            best = logits[:, -1].topk(3).indices.T
            cache.batch_repeat_interleave(3)
            logits = model(best, past_key_values=cache).logits[:1]
            cache.batch_select_indices(torch.tensor([0]))
        h = scores(steering)
        written(model, IDS[:1], max_new_tokens=LENGTH + 1)
        assert h == pytest.approx(scores(steering), abs=1e-3)


@pytest.mark.parametrize("gate", GATES)
def test_a_quantized_cache_is_followed(gate: str) -> None:
    import transformers

    if not hasattr(transformers.cache_utils, "Fp8QuantizedLayer"):
        pytest.skip("an older cache")
    model = tiny("llama")
    with llm.steer(model, {concept_of(model, gate): 1.0}, trace=True) as steering:
        written(model)
        h, cache = scores(steering), transformers.QuantizedCache("fp8", model.config)
        ids = IDS
        for _ in range(LENGTH):
            ids = newest(model(ids, past_key_values=cache).logits)
        assert scores(steering)[:8] == pytest.approx(h[:8], abs=0.05)
        cache.reorder_cache(torch.tensor([1, 1]))
        model(ids[[1, 1]], past_key_values=cache)
        assert scores(steering) == pytest.approx(scores(steering, 1), abs=1e-5)


@pytest.mark.parametrize("loop", ["forward", "inner"])
def test_a_part_of_the_model_alone_is_refused(loop: str) -> None:
    model = tiny("llama")
    with llm.steer(model, {concept_for(model): 1.0}):
        model(IDS)
        with pytest.raises(DSASError, match="'model' itself was not called"):
            _ = model.forward(IDS) if loop == "forward" else model.model(IDS)


def test_rows_of_a_cache_that_shows_no_keys_are_refused_where_they_matter() -> None:
    from transformers import DynamicCache

    model, cache = tiny("llama"), DynamicCache()
    with llm.steer(model, {concept_of(model, "prefix"): 1.0}):
        model(IDS, past_key_values=cache)
        cache.layers[-1].keys = cache.layers[-1].keys[:, :, :0]
        with pytest.raises(UnsupportedError, match="which of 2 rows each of 2 continues"):
            model(IDS[:, :1], past_key_values=cache)
