"""`illustrate(model, tokenizer, concept)`: answers for the concept's card, without it and with it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from ..calibration import prompts_of
from ..concept import Concept
from ..errors import DSASError
from ..samples import Samples
from ..unit import held_back
from .layers import positions_of, roots_of
from .prompts import encode, pad_token, turns
from .reader import Reader
from .steer import steer

STRENGTHS = (0.0, 1.0)


def illustrate(model: nn.Module, tokenizer: Any, concept: Concept) -> Concept:
    """Write what a concept does, to a source prompt and a control prompt that it was not fitted on.

    Args:
        model: the transformers language model that the concept was learned on, or one that is like it. tokenizer: its
            own.
        concept: the concept; it is not changed.

    Returns:
        The concept with these samples, greedy answers at strengths 0 and 1, which its folder keeps and its card shows.

    Raises:
        DSASError: the concept tells no prompts, or does not fit the model; a model with an encoder.
    """
    if "encoder" in roots_of(model):
        raise DSASError("samples are what a model writes behind a prompt: it needs a decoder-only model")
    drawn, _ = prompts_of(concept, None, None, None)
    _, held_out = held_back(drawn)
    prompts, limit = [held_out[side][0] for side in ("source", "control")], positions_of(model)
    encoded = [encode(tokenizer, prompt, limit) for prompt in prompts]
    reader = Reader(model, pad_token(tokenizer), len(prompts))
    columns = []
    for strength in STRENGTHS:
        with steer(model, {concept: strength}):
            said = reader.answers(encoded)
        columns.append([str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip() for ids in said])
    texts = tuple(zip(*columns, strict=True))
    return replace(concept, samples=Samples(tuple(map(_asked, prompts)), STRENGTHS, texts))


def _asked(prompt: str) -> str:
    """A prompt without the answer that stands in it."""
    said = turns(prompt)
    if not said or said[-1]["role"] != "assistant":
        return prompt
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in said[:-1])
