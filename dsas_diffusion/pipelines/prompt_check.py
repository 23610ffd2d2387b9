"""Whether a pipeline knows the words of a prompt, and reads all of it."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .adapter import PipelineAdapter


@dataclass(frozen=True)
class PromptCheck:
    """A prompt as the tokenizer with the longest context reads it.

    Args:
        unknown_words: words that the model cannot know.
        tokens: how many the prompt has.
        tokens_read: how many are read at most.
    """

    unknown_words: tuple[str, ...]
    tokens: int
    tokens_read: int

    @property
    def cut_off(self) -> bool:
        return self.tokens > self.tokens_read


def unknown_words(adapter: PipelineAdapter, prompts: Sequence[str]) -> tuple[str, ...]:
    """The words of prompts that the model cannot know, each once.

    Example:
        >>> from dsas_diffusion import load_pipeline
        >>> from dsas_diffusion.pipelines.adapter import adapt
        >>> unknown_words(adapt(load_pipeline("builtin:emoji", device="cpu")), ["a banana", "a xylophone"])
        ('xylophone',)
    """
    if not adapter.is_builtin:
        return ()
    tokenizer = _longest(adapter)
    words = dict.fromkeys(word.strip(string.punctuation) for prompt in prompts for word in prompt.split())
    return tuple(word for word in words if len(tokenizer.tokenize(word)) > 1)


def check_prompt(adapter: PipelineAdapter, prompt: str) -> PromptCheck:
    """How a pipeline reads a prompt.

    In the built-in model's vocabulary every word is one token, and a word of several is unknown. Other vocabularies
    spell rare words in pieces that the model knows well.
    """
    tokenizer = _longest(adapter)
    length = tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()
    return PromptCheck(unknown_words(adapter, [prompt]), len(tokenizer.tokenize(prompt)), length)


def _longest(adapter: PipelineAdapter) -> Any:
    """The tokenizer that takes the longest prompts."""
    return max((tokens.tokenizer for tokens in adapter.tokens), key=lambda item: item.model_max_length)
