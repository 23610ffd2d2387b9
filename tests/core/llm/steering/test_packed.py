"""Several texts in one row: packed, or in continuous batching."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from dsas_core import llm
from dsas_core.errors import UnsupportedError
from tests.core.llm.steering.test_calls import concept_of
from tests.fixtures.language_models import (
    IDS,
    close,
    concept_for,
    tiny,
)

PARTS = [IDS[0].tolist(), IDS[1, :4].tolist(), IDS[1, 2:].tolist()]


def batched(model: Any) -> list[Any]:
    import transformers

    if not hasattr(transformers, "ContinuousBatchingConfig"):
        pytest.skip("an older generate_batch")
    small = transformers.ContinuousBatchingConfig(num_blocks=8, block_size=16, max_batch_tokens=64)
    settings = transformers.GenerationConfig(max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=60)
    found = model.generate_batch(
        PARTS, generation_config=settings, continuous_batching_config=small, progress_bar=False
    )
    return [found[name] for name in sorted(found)]


@pytest.mark.parametrize(
    "phase", ["generation", *(pytest.param(phase, marks=pytest.mark.slow) for phase in ("prompt", "all"))]
)
def test_continuous_batching_steers_each_text_by_itself(phase: str) -> None:
    model = copy.deepcopy(tiny("llama"))
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    base = [out.generated_tokens for out in batched(model)]
    with llm.steer(model, {concept_for(model): 2.0}, phase=phase):
        alone = [model.generate(torch.tensor([part]), **settings)[0, len(part) :].tolist() for part in PARTS]
        assert [out.generated_tokens for out in batched(model)] == alone
    assert alone != base


def packed(kind: str) -> dict[str, Any]:
    """Two texts of 7 and 5 tokens in one row, told in one of several ways."""
    lengths = (7, 5)
    blocks = torch.block_diag(*(torch.ones(length, length).tril() for length in lengths)).bool()[None, None]
    places = torch.cat([torch.arange(length) for length in lengths])[None]
    ids = torch.cat([IDS[:1], IDS[1:, :5]], 1)
    ways: dict[str, dict[str, Any]] = {
        "positions": {"position_ids": places, "attention_mask": blocks},
        "mask": {"attention_mask": blocks},
        "additive": {"attention_mask": torch.zeros(1, 1, 12, 12).masked_fill(~blocks, -1e9), "position_ids": places},
        "lengths": {"position_ids": places, "attention_mask": blocks, "cu_seq_lens_q": torch.tensor([0, 7, 12])},
        "numbers": {"attention_mask": blocks, "position_ids": places, "seq_idx": torch.tensor([[0] * 7 + [1] * 5])},
    }
    return {"input_ids": ids, "use_cache": False, **ways[kind]}


@pytest.mark.parametrize("kind", ["positions", "mask", "additive", "lengths", "numbers"])
def test_packed_texts_are_steered_each_by_itself(kind: str) -> None:
    model = tiny("llama")
    with llm.steer(model, {concept_for(model): 1.0}):
        logits = model(**packed(kind)).logits
        assert close(logits[:, :7], model(IDS[:1]).logits)
        assert close(logits[:, 7:], model(IDS[1:, :5]).logits) or kind == "mask"  # positions go on
    with llm.steer(model, {concept_for(model): 1.0}, gate="on"):
        on = model(**packed(kind)).logits
    base = model(**packed(kind)).logits
    assert [int(i) for i in ((on - base).abs().amax(-1)[0] < 1e-5).nonzero()] == [0, 7]


@pytest.mark.parametrize("kind", ["positions", "mask", "lengths"])
@pytest.mark.parametrize(
    ("gate", "settings", "strength", "reason"),
    [
        ("latch", {}, 1.0, "need a row for each"),
        ("last", {}, 1.0, "need a row for each"),
        ("prefix", {}, 1.0, "need a row for each"),
        ("token", {"trace": True}, 1.0, "need a row for each"),
        ("token", {"phase": "generation"}, 1.0, "where each one's prompt ends"),
        ("token", {}, [1.0, 0.0], "strengths are given for each row"),
    ],
)
def test_what_needs_a_row_for_each_text_says_so(
    kind: str, gate: str, settings: dict[str, Any], strength: Any, reason: str
) -> None:
    model = tiny("llama")
    with (
        llm.steer(model, {concept_of(model, gate): strength}, **settings),
        pytest.raises(UnsupportedError, match=f"one row holds several texts.*{reason}.*a row of its own"),
    ):
        model(**packed(kind))
