"""`illustrate(model, tokenizer, concept)`: answers for the concept's card, without it and with it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from ...concept.concept import Concept
from ...concept.samples import Samples
from ...errors import UnsupportedError
from ...learning.illustrate import sample_prompts
from ...steering.handle import refuse_steered
from ..model.conversations import pad_token, parse_turns
from ..model.layers import roots_of
from ..steering.steer import steer
from .reader import Reader, encode_all

STRENGTHS = (0.0, 1.0)


def illustrate(model: nn.Module, tokenizer: Any, concept: Concept) -> Concept:
    """Add answers to a concept's card, to a source prompt and a control prompt that it was not fitted on.

    Args:
        model: the transformers language model that the concept was learned on, or one like it.
        tokenizer: its tokenizer.
        concept: the concept; it is not changed.

    Returns:
        The concept with these samples, greedy answers at strengths 0 and 1, which its folder keeps and its card shows.

    Raises:
        DSASError: the concept records no prompts, or does not fit the model; a model with an encoder.

    Example:
        >>> from dsas_core import llm
        >>> concept = illustrate(*llm.load("builtin:chat"), llm.Concept.from_pretrained("builtin:rudeness"))
        >>> len(concept.samples.prompts), concept.samples.strengths
        (2, (0.0, 1.0))
    """
    if "encoder" in roots_of(model):
        raise UnsupportedError("samples are what a model writes behind a prompt: it needs a decoder-only model")
    refuse_steered(roots_of(model), "writing samples")
    prompts, _ = sample_prompts(concept)
    texts = encode_all(model, tokenizer, prompts)
    reader = Reader(model, pad_token(tokenizer), len(prompts))
    columns = []
    for strength in STRENGTHS:
        with steer(model, {concept: strength}):
            answers = reader.answers(texts)
        columns.append([str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip() for ids in answers])
    samples = Samples(tuple(map(_question, prompts)), STRENGTHS, tuple(zip(*columns, strict=True)))
    return replace(concept, samples=samples)


def _question(prompt: str) -> str:
    """A prompt without its answer."""
    conversation = parse_turns(prompt)
    if not conversation or conversation[-1]["role"] != "assistant":
        return prompt
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in conversation[:-1])
