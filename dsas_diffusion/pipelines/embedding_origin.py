"""Whether embeddings that a denoiser is given are of prompts or of negative prompts.

They are told by the tensors that were encoded in this generation, by the memory of those, such as of one half of a
batch, and by their values where these are not the same for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .text_reading import NEGATIVE, PROMPT


class EmbeddingOrigins:
    """The embeddings of one generation whose prompts are known.

    Example:
        >>> origins, both = EmbeddingOrigins(), torch.arange(8.0).view(2, 2, 2)
        >>> origins.replace_blocks([both[:1], both[1:]], (NEGATIVE, PROMPT))
        >>> origins.find(both[:1]), origins.find(both[1:].clone()), origins.find(both[1:] + 9)
        ('negative', 'prompt', None)
    """

    def __init__(self) -> None:
        self._known: list[tuple[torch.Tensor, str]] = []
        self._blocks: list[tuple[torch.Tensor, str]] = []  # of the last call with several

    def add(self, embeds: Any, role: str) -> None:
        """Note what embeddings are of, a tensor or a list of them; None for no embeddings."""
        for part in _tensors(embeds):
            if not any(role == of and _in_same_memory(known, part) for known, of in self._known):
                self._known.append((part, role))

    def replace_blocks(self, blocks: Sequence[Any], roles: Sequence[str]) -> None:
        """Note what the blocks of a call are of, in place of those of the call before."""
        pairs = zip(blocks, roles, strict=True)
        self._blocks = [(part, role) for embeds, role in pairs for part in _tensors(embeds)]

    def find(self, embeds: Any, by_values: bool = True) -> str | None:
        """What embeddings are of; None where it is not known, or where both have the same."""
        parts = embeds if isinstance(embeds, list) else [embeds]
        found = {self._find_one(part, by_values) for part in parts}
        return found.pop() if len(found) == 1 else None

    def knows(self, embeds: Any) -> bool:
        """Whether embeddings are of prompts or of negative prompts, or of both."""
        candidates = [known for known, _ in (*self._known, *self._blocks)]
        return all(
            any(_in_same_memory(known, part) for known in candidates)
            or any(_are_equal(known, part) for known in candidates)
            for part in _tensors(embeds)
        )

    def _find_one(self, embeds: Any, by_values: bool) -> str | None:
        if not isinstance(embeds, torch.Tensor):
            return None
        candidates = [*self._known, *self._blocks]
        roles = {role for known, role in candidates if _in_same_memory(known, embeds)}
        if not roles and by_values:
            roles = {role for known, role in candidates if _are_equal(known, embeds)}
        return roles.pop() if len(roles) == 1 else None


def _tensors(embeds: Any) -> list[torch.Tensor]:
    return [part for part in (embeds if isinstance(embeds, list) else [embeds]) if isinstance(part, torch.Tensor)]


def _in_same_memory(known: torch.Tensor, embeds: torch.Tensor) -> bool:
    return known is embeds or (
        known.data_ptr() == embeds.data_ptr() != 0
        and (known.shape, known.stride(), known.dtype) == (embeds.shape, embeds.stride(), embeds.dtype)
        and known.device == embeds.device
    )


def _are_equal(known: torch.Tensor, embeds: torch.Tensor) -> bool:
    return known.shape == embeds.shape and torch.equal(known.to(embeds), embeds)


def is_alike(found: Sequence[str | None], blocks: Sequence[str]) -> bool:
    """Whether what is found of all blocks is a layout in another order.

    Example:
        >>> is_alike([PROMPT, NEGATIVE], [NEGATIVE, PROMPT]), is_alike([PROMPT, None], [NEGATIVE, PROMPT])
        (True, False)
    """
    return sorted(map(str, found)) == sorted(PROMPT if block != NEGATIVE else block for block in blocks)
