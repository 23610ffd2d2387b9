"""The tokens of a prompt as one of a pipeline's text encoders reads them: their ids, and which of them count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch

from .families.prompt_templates import plain
from .families.spec import TextEncoder

POSITIONS = ("words", "all")
#: what a pipeline's `encode_prompt` is called with, besides the prompts, where nothing is said
NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True)
class PromptTokens:
    """What one text encoder of a pipeline makes of texts.

    Args:
        pipe: the pipeline. encoder: which of its text encoders.
    """

    pipe: Any
    encoder: TextEncoder

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer, taken out of a processor that has one for pictures as well."""
        there = getattr(self.pipe, self.encoder.tokenizer)
        return getattr(there, "tokenizer", there)

    def ids(self, texts: list[str], length: int | None = None, given: Mapping[str, Any] = NOTHING) -> torch.Tensor:
        """Token ids of texts, int64 [texts, positions]: padded, and cut off.

        Args:
            length: positions; None for as many as the tokenizer takes, which of some is beyond all memory.
            given: what the pipeline's `encode_prompt` is called with.
        """
        length = length or self.tokenizer.model_max_length
        options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
        return self.tokenizer(self._written(texts, given), **options).input_ids

    def spelled(self, text: str, given: Mapping[str, Any] = NOTHING) -> list[int]:
        """Token ids of a text as it stands within a prompt."""
        return self.tokenizer(self._written([text], given), add_special_tokens=False).input_ids[0]

    def worded(self, texts: Sequence[str], negative: bool, given: Mapping[str, Any] = NOTHING) -> list[str]:
        """Prompts, or negative prompts, behind what the pipeline puts in front of them."""
        return [self.encoder.wording(self.pipe, given, text, negative) for text in texts]

    def counted(
        self,
        ids: torch.Tensor,
        attended: torch.Tensor | None,
        negative: torch.Tensor,
        positions: str,
        given: Mapping[str, Any] = NOTHING,
    ) -> torch.Tensor:
        """Positions of texts that count, float [texts, positions]: see `batch_layout.BatchLayout`.

        Args:
            ids: token ids, int64 [texts, positions]. attended: the attention mask, of the same shape, if any.
            negative: which of them are negative prompts, bool [texts]. positions: "words" or "all".
        """
        in_front = torch.where(negative, self._in_front(True, given), self._in_front(False, given))
        real = torch.ones_like(ids) if attended is None else (attended != 0).long()
        mask = real * (real.cumsum(1) > in_front[:, None])
        tokenizer = self.tokenizer
        begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        if begin is not None:
            mask = mask * ~((ids == begin) & ((ids == begin).cumsum(1) == 1))
        if positions == "words":
            ends = (ids == end) & (mask != 0)
            mask = mask * ~(ends.cumsum(1) - ends.long() > 0)
            if tokenizer.pad_token_id not in (None, end):
                mask = mask * (ids != tokenizer.pad_token_id)
        return mask.float()

    def _written(self, texts: list[str], given: Mapping[str, Any]) -> list[str]:
        """Texts as the pipeline gives them to a tokenizer; what textual inversion has learned is several tokens."""
        if hasattr(self.pipe, "_text_preprocessing"):
            return self.pipe._text_preprocessing(texts, clean_caption=bool(given.get("clean_caption")))
        if hasattr(self.pipe, "maybe_convert_prompt"):
            return self.pipe.maybe_convert_prompt(texts, self.tokenizer)
        return texts

    def _in_front(self, negative: bool, given: Mapping[str, Any]) -> int:
        """How many tokens stand in front of any prompt: those that two prompts without a token in common begin with."""
        if self.encoder.wording is plain:
            return 0
        tokenizer = self.tokenizer
        texts = self.worded(["a", "1"], negative, given)
        own = bool(tokenizer.bos_token) and texts[0].startswith(tokenizer.bos_token)
        pair = zip(*tokenizer(texts, add_special_tokens=not own).input_ids, strict=False)
        return sum(1 for _ in takewhile(lambda ids: ids[0] == ids[1], pair))
