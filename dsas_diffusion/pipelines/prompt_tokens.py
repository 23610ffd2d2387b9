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
#: how CLIP's tokens end where a word does
END_OF_WORD = "</w>"
#: where no arguments of a pipeline's `encode_prompt` are known besides the prompts
NO_ARGUMENTS: Mapping[str, Any] = {}


@dataclass(frozen=True)
class PromptTokens:
    """How one text encoder of a pipeline tokenises texts. `arguments` are those that `encode_prompt` is called with.

    Args:
        pipe: the pipeline.
        encoder: which of its text encoders.

    Example:
        >>> from dsas_diffusion import load_pipeline
        >>> pipe = load_pipeline("builtin:emoji", device="cpu")
        >>> tokens = PromptTokens(pipe, TextEncoder())
        >>> ids = tokens.ids(["a banana"], length=5)
        >>> tokens.tokenizer.convert_ids_to_tokens(ids[0].tolist())
        ['<|startoftext|>', 'a</w>', 'banana</w>', '<|endoftext|>', '<|endoftext|>']
        >>> tokens.position_mask(ids, None, torch.tensor([False]), "words").tolist()
        [[0.0, 1.0, 1.0, 1.0, 0.0]]
    """

    pipe: Any
    encoder: TextEncoder

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer, taken out of a processor that has one for pictures as well."""
        part = getattr(self.pipe, self.encoder.tokenizer)
        return getattr(part, "tokenizer", part)

    def ids(
        self, texts: list[str], length: int | None = None, arguments: Mapping[str, Any] = NO_ARGUMENTS
    ) -> torch.Tensor:
        """Token ids of texts, int64 [texts, positions]: padded, and cut off.

        Args:
            texts: prompts in their template.
            length: positions; None for as many as the tokenizer takes, which for some is more than memory holds.
            arguments: of `encode_prompt`.
        """
        length = length or self.tokenizer.model_max_length
        options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
        return self.tokenizer(self._preprocess(texts, arguments), **options).input_ids

    def ids_within_prompt(self, text: str, arguments: Mapping[str, Any] = NO_ARGUMENTS) -> list[int]:
        """Token ids of a text as they are within a prompt, without special tokens."""
        return self.tokenizer(self._preprocess([text], arguments), add_special_tokens=False).input_ids[0]

    def find_words(
        self, words: Sequence[str], ids: Sequence[int], arguments: Mapping[str, Any] = NO_ARGUMENTS
    ) -> list[int]:
        """Positions in a prompt of the tokens of words or phrases, where whole words begin and end.

        Args:
            words: to look for.
            ids: token ids of the prompt, as `ids` returns them.
            arguments: of `encode_prompt`.

        Example:
            >>> from dsas_diffusion import load_pipeline
            >>> tokens = PromptTokens(load_pipeline("builtin:emoji", device="cpu"), TextEncoder())
            >>> tokens.find_words(["dog", "cat"], tokens.ids(["a dog and a cat"])[0].tolist())
            [2, 5]
        """
        tokenizer = self.tokenizer
        tokens = tokenizer.convert_ids_to_tokens(list(ids))
        whole = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
        # a word begins behind a special token or the end of another; the first token is the start token
        begins = [i for i in range(1, len(ids)) if ids[i - 1] in whole or tokens[i - 1].endswith(END_OF_WORD)]
        sought = [self.ids_within_prompt(word, arguments) for word in words]
        found = {i + k for word in sought for i in begins if ids[i : i + len(word)] == word for k in range(len(word))}
        return sorted(found)

    def whole_ids(self, texts: Sequence[str], negative: bool, arguments: Mapping[str, Any]) -> list[list[int]]:
        """Token ids of prompts, or negative prompts, as the text encoder reads them, but not cut off.

        Args:
            texts: prompts.
            negative: whether they are negative prompts.
            arguments: of `encode_prompt`.

        Returns:
            For each text its ids, without padding and special tokens but those of the template.
        """
        prepared = self.apply_template(self._preprocess(list(texts), arguments), negative, arguments)
        return [list(ids) for ids in self.tokenizer(prepared, add_special_tokens=False).input_ids]

    def apply_template(
        self, texts: Sequence[str], negative: bool, arguments: Mapping[str, Any] = NO_ARGUMENTS
    ) -> list[str]:
        """Prompts, or negative prompts, in the template of the text encoder."""
        return [self.encoder.prompt_template(self.pipe, arguments, text, negative) for text in texts]

    def position_mask(
        self,
        ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        negative: torch.Tensor,
        positions: str,
        arguments: Mapping[str, Any] = NO_ARGUMENTS,
    ) -> torch.Tensor:
        """Which positions of texts count, see `batch_layout.BatchLayout`.

        Args:
            ids: token ids, int64 [texts, positions].
            attention_mask: of the same shape, or None.
            negative: which of the texts are negative prompts, bool [texts].
            positions: "words" or "all".
            arguments: of `encode_prompt`.

        Returns:
            float [texts, positions], 1 for positions that count.
        """
        prefix = torch.where(negative, self._prefix_length(True, arguments), self._prefix_length(False, arguments))
        mask = torch.ones_like(ids) if attention_mask is None else (attention_mask != 0).long()
        mask = mask * (mask.cumsum(1) > prefix[:, None])
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

    def _preprocess(self, texts: list[str], arguments: Mapping[str, Any]) -> list[str]:
        """Texts as the pipeline gives them to a tokenizer; a concept of textual inversion becomes several tokens."""
        if hasattr(self.pipe, "_text_preprocessing"):
            return self.pipe._text_preprocessing(texts, clean_caption=bool(arguments.get("clean_caption")))
        if hasattr(self.pipe, "maybe_convert_prompt"):
            return self.pipe.maybe_convert_prompt(texts, self.tokenizer)
        return texts

    def _prefix_length(self, negative: bool, arguments: Mapping[str, Any]) -> int:
        """How many tokens the template has before any prompt: those that two prompts of no common token begin with."""
        if self.encoder.prompt_template is plain:
            return 0
        tokenizer = self.tokenizer
        texts = self.apply_template(["a", "1"], negative, arguments)
        has_bos = bool(tokenizer.bos_token) and texts[0].startswith(tokenizer.bos_token)
        pair = zip(*tokenizer(texts, add_special_tokens=not has_bos).input_ids, strict=False)
        return sum(1 for _ in takewhile(lambda ids: ids[0] == ids[1], pair))
