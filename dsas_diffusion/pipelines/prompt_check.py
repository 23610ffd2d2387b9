"""What a pipeline can make of the words of a prompt."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

from .adapter import PipelineAdapter


@dataclass(frozen=True)
class Reading:
    """A prompt as the tokenizer reads it that reads most.

    Args:
        unknown_words: those that the model cannot know.
        tokens: of the prompt. tokens_read: how many of them it reads at most.
    """

    unknown_words: tuple[str, ...]
    tokens: int
    tokens_read: int

    @property
    def cut_off(self) -> bool:
        return self.tokens > self.tokens_read


def unknown_words(adapter: PipelineAdapter, prompts: Sequence[str]) -> tuple[str, ...]:
    """The words of prompts that the model cannot know, each once."""
    return reading(adapter, " ".join(dict.fromkeys(word for text in prompts for word in text.split()))).unknown_words


def reading(adapter: PipelineAdapter, prompt: str) -> Reading:
    """How a pipeline reads a prompt.

    In the built-in model's vocabulary every word is one token, and one that falls apart is unknown. Other vocabularies
    spell rare words in pieces that they know well.
    """
    tokenizer = max((one.tokenizer for one in adapter.tokens), key=lambda one: one.model_max_length)
    unknown: tuple[str, ...] = ()
    if adapter.is_builtin:
        words = dict.fromkeys(word.strip(string.punctuation) for word in prompt.split())
        unknown = tuple(word for word in words if len(tokenizer.tokenize(word)) > 1)
    room = tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()
    return Reading(unknown, len(tokenizer.tokenize(prompt)), room)
