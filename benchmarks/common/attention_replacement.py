"""Attention replacement: a picture of a rewritten prompt that attends as the picture of the plain prompt does.

A baseline for U-Nets after the idea of prompt-to-prompt (Hertz et al. 2022, arXiv 2208.01626). Both prompts are
denoised from the same noise, in one batch. In the first steps each cross-attention map of the rewritten prompt,

    M = softmax(Q Kᵀ · scale),

takes the columns of tokens that both prompts share from the map of the plain one, and self-attention is that of the
plain one altogether; what is asked for in words comes from the values and from the columns of the new tokens. Rows of
replaced maps are not scaled to a sum of 1 again, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any

import torch
from torch import nn

from dsas_diffusion.steering.preserve import Generation

#: share of the steps in which attention is replaced: of .1, .3, .5, .8 and 1, on a dozen prompts of banana-blur and of
#: fruit-to-pear each, all showed the edit in every picture, and from .8 on nothing more was kept
SHARE = 0.8


def align_tokens(plain: Sequence[int], rewritten: Sequence[int]) -> list[int]:
    """The place in the plain prompt of each token of the rewritten one, or -1 for new ones.

    Words that are swapped one for one stand for each other.

    Example:
        >>> align_tokens([1, 5, 7, 2, 0], [1, 5, 9, 7, 2]), align_tokens([1, 5, 2], [1, 6, 2])
        ([0, 1, -1, 2, 3], [0, 1, 2])
    """
    places = [-1] * len(rewritten)
    for kind, a, a_end, b, b_end in SequenceMatcher(None, plain, rewritten, autojunk=False).get_opcodes():
        if kind == "equal" or (kind == "replace" and a_end - a == b_end - b):
            places[b:b_end] = range(a, a_end)
    return places


class ReplacingProcessor:
    """An attention processor of diffusers; rows are negative and plain prompts, each followed by their rewritten ones.

    Args:
        places: of `align_tokens`, int64 [prompts, tokens].

    Attributes:
        replaces: whether it does so now.
    """

    def __init__(self, places: torch.Tensor) -> None:
        self.places = places[:, None, None]  # [prompts, heads, positions, tokens]
        self.replaces = True

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None, **_: Any
    ) -> torch.Tensor:
        is_self = encoder_hidden_states is None
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        inputs = ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        q, k, v = (layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for layer, x in inputs)
        maps = (q @ k.transpose(-1, -2) * attn.scale).softmax(-1)  # [rows, heads, positions, tokens]
        if self.replaces:
            *others, plain, rewritten = maps.chunk(4)
            if is_self:
                rewritten = plain
            else:
                places = self.places.expand_as(rewritten)
                rewritten = torch.where(places < 0, rewritten, plain.gather(-1, places.clamp_min(0)))
            maps = torch.cat([*others, plain, rewritten])
        return attn.to_out[1](attn.to_out[0]((maps @ v).transpose(1, 2).flatten(-2)))


def generate_replaced(
    pipe: Any,
    prompts: Sequence[str],
    *,
    rewritten: Sequence[str],
    generator: Sequence[torch.Generator],
    num_inference_steps: int,
    share: float = SHARE,
    **options: Any,
) -> Generation:
    """Pictures of the rewritten prompts.

    Args:
        pipe: with CLIP's tokenizer and a UNet of transformer blocks, guided by negative prompts.
        prompts: the plain ones.
        rewritten: one for each.
        generator: one for each.
        num_inference_steps: of denoising.
        share: of the steps in which attention is replaced.
        options: further arguments of the pipeline.

    Example:
        >>> from dsas_diffusion import load_pipeline
        >>> pipe, noise = load_pipeline("builtin:emoji", device="cpu"), torch.Generator().manual_seed(7)
        >>> steps = {"generator": [noise], "num_inference_steps": 2}
        >>> generate_replaced(pipe, ["a dog"], rewritten=["a grey dog"], **steps).images[0].size
        (64, 64)
    """
    texts = [*prompts, *rewritten]
    ids = pipe.tokenizer(texts, padding="max_length", truncation=True).input_ids
    places = [align_tokens(a, b) for a, b in zip(ids[: len(prompts)], ids[len(prompts) :], strict=True)]
    processor = ReplacingProcessor(torch.tensor(places, device=pipe.unet.device))
    processor.replaces = share > 0

    def after_step(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        processor.replaces = step + 1 < share * num_inference_steps
        return tensors

    states = [one.get_state() for one in generator]
    twins = [torch.Generator(one.device).set_state(state) for one, state in zip(generator, states, strict=True)]
    before: dict[str, nn.Module] = pipe.unet.attn_processors
    pipe.unet.set_attn_processor(processor)
    try:
        made = pipe(
            texts,
            generator=[*generator, *twins],
            num_inference_steps=num_inference_steps,
            callback_on_step_end=after_step,
            **options,
        )
    finally:
        pipe.unet.set_attn_processor(before)
    return Generation(made.images[len(prompts) :])
