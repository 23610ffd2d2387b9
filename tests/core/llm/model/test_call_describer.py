"""What the arguments of a call tell of its positions, whatever they are called, and what they do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dsas_core.errors import DSASError, UnsupportedError
from dsas_core.llm.model.call_describer import CallDescriber
from tests.fixtures.language_models import IDS


class Held:
    """A cache of no known kind."""

    def __init__(self, length: int | None, filled: bool = True) -> None:
        self.length, self.states = length, torch.full((2, 4), float(filled))

    def get_seq_length(self) -> int:
        if self.length is None:
            raise ValueError("this cache does not count")
        return self.length


class Opaque:
    """A cache that tells nothing at all."""

    def __init__(self) -> None:
        self.blocks = [torch.ones(2, 4)]


def keys(length: int) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """A cache as old transformers had it."""
    states = torch.arange(2 * 3 * 8 * 4.0).view(2, 3, 8, 4)[:, :, :length]
    return ((states, states), (2 * states, states))


def read(describer: CallDescriber, *calls: dict[str, Any], output: Any = None) -> list[list[list[float]]]:
    """The first row's mask and prompt positions of each call."""
    describe, found = describer.describe("model"), []
    for arguments in calls:
        made = describe((), arguments)
        describer.finish("model", output)
        assert made.mask is not None
        assert made.prompt is not None
        found.append([made.mask[0].tolist(), made.prompt[0].tolist()])
    return found


@pytest.mark.parametrize("name", ["past_key_values", "cache_params", "memory", "inference_params"])
@pytest.mark.parametrize("phase", ["prompt", "generation", "all"])
def test_a_cache_is_known_by_what_it_is(name: str, phase: str) -> None:
    cache = Held(0)
    describer = CallDescriber(phase)
    describe = describer.describe("model")
    first = describe((), {"input_ids": IDS, name: cache})
    cache.length = 7
    second = describe((), {"input_ids": IDS[:, :1], name: cache})
    steered = {"prompt": ([0, 1, 1, 1, 1, 1, 0], [0]), "generation": ([0] * 6 + [1], [1]), "all": ([0] + [1] * 6, [1])}
    assert (first.mask[0].tolist(), second.mask[0].tolist()) == steered[phase]
    assert second.prompt[0].tolist() == [0]


def test_a_tuple_of_keys_is_known_by_them() -> None:
    texts: list[str] = []
    describer = CallDescriber(on_text=texts.append, on_rows=lambda root, rows: None)
    describe = describer.describe("model")
    describe((), {"input_ids": IDS[:, :3]})
    describer.finish("model", (torch.zeros(2, 3, 5), keys(3)))
    for length in (3, 4, 5):
        call = describe((), {"input_ids": IDS[:, :1], "past_key_values": keys(length)})
        assert (call.mask.tolist(), call.prompt.tolist()) == ([[1.0], [1.0]], [[0.0], [0.0]])
        describer.finish("model", (torch.zeros(2, 1, 5), keys(length + 1)))
    assert texts == ["model"]


def test_a_state_without_a_length_has_that_of_its_text() -> None:
    state = Held(None, filled=False)
    describe = CallDescriber("generation").describe("model")
    describe((), {"input_ids": IDS, "state": state})
    state.states.fill_(1)
    assert describe((), {"input_ids": IDS[:, :1], "state": state}).mask.tolist() == [[1.0], [1.0]]


@pytest.mark.parametrize("drafts", [1, 3])
def test_positions_whose_logits_are_asked_for_write(drafts: int) -> None:
    cache = Held(0)
    describe = CallDescriber("generation").describe("model")
    first = describe((), {"input_ids": IDS, "past_key_values": cache, "logits_to_keep": drafts + 1})
    assert first.mask[0].tolist() == [0] * (6 - drafts) + [1] * (drafts + 1)
    cache.length = 7 - drafts  # all were rejected
    again = {"input_ids": IDS[:, : drafts + 1], "past_key_values": cache, "logits_to_keep": drafts + 1}
    assert describe((), again).mask[0].tolist() == [1] * (drafts + 1)


MASK = torch.ones(2, 7)
CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "without input_ids and inputs_embeds"),
    "unknown cache": ({"input_ids": IDS, "memory": Opaque()}, "Opaque does not tell how many tokens"),
    "uncounted cache": ({"input_ids": IDS, "past_key_values": Held(None)}, "Held does not tell how many tokens"),
    "states": ({"input_ids": IDS, "state": [torch.ones(2, 4)]}, "list does not tell how many tokens"),
    "two caches": ({"input_ids": IDS, "past_key_values": Held(3), "cache_params": Held(4)}, "each holds earlier"),
    "no cache": ({"input_ids": IDS, "cache_position": torch.arange(5, 12)}, "5 tokens come before, but no cache"),
    "wide mask": ({"input_ids": IDS, "attention_mask": torch.ones(2, 9)}, "2 tokens come before, but no cache"),
    "narrow mask": ({"input_ids": IDS, "attention_mask": torch.ones(2, 5)}, "does not tell which of 7 positions"),
    "strange mask": ({"input_ids": IDS, "attention_mask": Opaque()}, "'Opaque' does not tell which of 7 positions"),
    "later positions": ({"input_ids": IDS, "position_ids": torch.arange(5, 12)[None]}, "positions begin at 5, but"),
    "tree": (
        {"input_ids": IDS[:, :3], "past_key_values": Held(4), "position_ids": torch.tensor([[4, 5, 5]])},
        "positions repeat or go back",
    ),
    "restart on a cache": (
        {"input_ids": IDS[:, :3], "past_key_values": Held(4), "position_ids": torch.tensor([[4, 0, 1]])},
        "begin again within a row that continues a cache",
    ),
    "packed cache": (
        {"input_ids": IDS[:1, :2], "cache": Opaque(), "cu_seq_lens_q": torch.tensor([0, 1, 2])},
        "pass position_ids, which tell where",
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_what_a_call_does_not_tell_is_refused_in_one_line(case: str) -> None:
    arguments, reason = CALLS[case]
    describe = CallDescriber().describe("model")
    with pytest.raises(UnsupportedError, match=reason) as caught:
        describe((), arguments)
    assert len(str(caught.value)) <= 500


@pytest.mark.parametrize(
    ("settings", "refused"),
    [({}, False), ({"phase": "generation"}, True), ({"by_prompt": True}, True)],
)
def test_all_logits_do_not_tell_where_the_prompt_ends(settings: dict[str, Any], refused: bool) -> None:
    describe = CallDescriber(**settings).describe("model")
    arguments = {"input_ids": IDS, "logits_to_keep": 7}
    if refused:
        with pytest.raises(UnsupportedError, match="logits_to_keep=7 asks for the logits of all tokens"):
            describe((), arguments)
    else:
        assert describe((), arguments).prompt[0].tolist() == [1] * 7


def test_padding_is_not_taken_for_texts_that_begin_again() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    for pad in (0, 1):
        places = (mask.cumsum(1) - 1).masked_fill(mask == 0, pad)
        [[counted, _]] = read(CallDescriber(), {"input_ids": IDS, "attention_mask": mask, "position_ids": places})
        assert counted == [0, 0, 0, 1, 1, 1, 1]
    with pytest.raises(DSASError, match="pass attention_mask where there is padding"):
        read(CallDescriber(), {"input_ids": IDS, "position_ids": (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)})


def test_pictures_and_text_have_positions_of_several_kinds() -> None:
    places = torch.tensor([[0, 1, 1, 1, 1, 3, 4], [0, 1, 1, 2, 2, 3, 4], [0, 1, 2, 1, 2, 3, 4]])[:, None].expand(
        -1, 2, -1
    )
    [[counted, _]] = read(CallDescriber(), {"input_ids": IDS, "position_ids": places})
    assert counted == [0, 1, 1, 1, 1, 1, 1]
