"""A prompt file drafted from two phrases for a pipeline: of nouns that it knows, and those most like the thing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from dsas_core.learning.prompts.draft import draft as draft_for_any

from ..pipelines.adapter import PipelineAdapter, adapt
from ..pipelines.prompt_check import unknown_words

#: texts that are encoded at once
BATCH = 32


def draft(pipe: Any, source: str, target: str, name: str | None = None, *, seed: int = 0) -> dict[str, Any]:
    """Draft the content of a prompt file from two phrases, for a pipeline.

    See `dsas_core.prompts.draft`. Words that the pipeline cannot know are left out, and look-alikes are the things
    whose names its text encoder takes to be most like the source.

    Args:
        pipe: a diffusers pipeline of a known family.
        source: what to change, "banana"; a kind of things stands for each of them, "fruit".
        target: what to change it into, "blurred banana".
        name: of the concept; None for one made of the phrases.
        seed: of the choice of nouns that are held out.

    Returns:
        Content that `learn` takes and YAML can hold.

    Raises:
        PromptError: an empty phrase, or two that are the same.

    Example:
        >>> from dsas_diffusion import load_pipeline
        >>> content = draft(load_pipeline("builtin:emoji", device="cpu"), "guitar", "blurred guitar")
        >>> content["source"][0], len(content["placeholders"]["unseen"])
        ('a guitar {place}', 6)
    """
    adapter = adapt(pipe)

    def alike(phrase: str, nouns: Sequence[str]) -> list[float]:
        return likeness(adapter, phrase, nouns)

    encodes = bool(adapter.text_encoders)
    return draft_for_any(source, target, name, known=known_to(adapter), alike=alike if encodes else None, seed=seed)


def known_to(adapter: PipelineAdapter) -> Callable[[str], bool] | None:
    """Whether a pipeline knows the words of a text, as a function of the text; None for one that knows all.

    Example:
        >>> from dsas_diffusion import load_pipeline
        >>> known = known_to(adapt(load_pipeline("builtin:emoji", device="cpu")))
        >>> known("a banana"), known("a xylophone")
        (True, False)
    """
    return (lambda text: not unknown_words(adapter, [text])) if adapter.is_builtin else None


@torch.no_grad()
def likeness(adapter: PipelineAdapter, phrase: str, nouns: Sequence[str]) -> list[float]:
    """How alike a phrase is to each of some nouns: the cosine of what a text encoder's last layer makes of them.

    What all have in common is taken off before.

    Args:
        adapter: of the pipeline.
        phrase: the phrase.
        nouns: the nouns.
    """
    tokens = adapter.tokens[0]
    encoder = adapter.roots[tokens.encoder.part]
    device = next(encoder.parameters()).device
    ids = tokens.ids([phrase, *nouns], length=min(tokens.tokenizer.model_max_length, 16))
    end = torch.tensor(tokens.tokenizer.all_special_ids)
    states = []
    for part in ids.split(BATCH):
        hidden = encoder(input_ids=part.to(device))[0].float().cpu()
        words = ~torch.isin(part, end)
        states.append((hidden * words[..., None]).sum(1) / words.sum(1, keepdim=True).clamp_min(1))
    means = torch.cat(states)
    means = torch.nn.functional.normalize(means - means.mean(0), dim=1)
    similarity: list[float] = (means[1:] @ means[0]).tolist()
    return similarity
