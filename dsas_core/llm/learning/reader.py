"""Running a language model over prompts: activations, answers, predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ...errors import PromptError
from ...model.hooks import Call, DescribeCall, visit
from ...model.sites import Site
from ...probes.combine import pool
from ..model.conversations import Batch, Encoded, batched, encode
from ..model.layers import device_of_input, ends_of, find_sites, positions_of, roots_of

#: tokens of an answer
LENGTH = 40


def encode_all(model: nn.Module, tokenizer: Any, prompts: Sequence[str]) -> list[Encoded]:
    """Prompts in tokens, each no longer than the model takes."""
    limit = positions_of(model)
    return [encode(tokenizer, prompt, limit) for prompt in prompts]


def have_answers(texts: Mapping[str, Sequence[Encoded]]) -> bool:
    """Whether each source and target prompt ends with an assistant's turn."""
    return all(text.answer < len(text.ids) for side in ("source", "target") for text in texts[side])


class Reader:
    """Runs a model over prompts in batches.

    Args:
        model: a transformers language model. pad: the token to pad with. batch: prompts per forward pass.
    """

    def __init__(self, model: nn.Module, pad: int, batch: int) -> None:
        self.model, self.pad, self.batch = model, pad, batch
        self.device = device_of_input(model)
        self.limit = positions_of(model)

    def batches(self, texts: Sequence[Encoded]) -> Iterator[Batch]:
        """The prompts in order, padded on the right."""
        for start in range(0, len(texts), self.batch):
            yield batched(texts[start : start + self.batch], self.pad)

    def describe(self, mask: torch.Tensor) -> dict[str, DescribeCall]:
        """Every root reads the positions of `mask`."""
        here = mask.to(self.device)
        call = Call(torch.ones(len(here), device=self.device), torch.arange(len(here), device=self.device), None, here)
        return {root: lambda args, kwargs: call for root in roots_of(self.model)}

    @torch.no_grad()
    def run(self, piece: Batch) -> torch.Tensor:
        """Logits [rows, positions, vocabulary]; a model with an encoder reads the prompt there."""
        ids, mask = piece.ids.to(self.device), piece.mask.to(self.device)
        more = {"decoder_input_ids": ids[:, :1]} if "encoder" in roots_of(self.model) else {"use_cache": False}
        logits: torch.Tensor = self.model(input_ids=ids, attention_mask=mask, **more).logits
        return logits

    def predictions(self, texts: Sequence[Encoded], written: bool = False) -> list[torch.Tensor]:
        """Log-probabilities of the next token at every token that counts, [tokens, vocabulary] by batch.

        With `written`, each answer is read on the cache of its prompt, as the model reads what it writes: gates that go
        by where a prompt ends are open there then. One text at a time.
        """
        pieces = (batched([text], self.pad) for text in texts) if written else self.batches(texts)
        predictions = []
        for piece in pieces:
            logits = (self._written(piece) if written else self.run(piece)).float()
            predictions.append(logits.log_softmax(-1)[piece.counted("all").to(logits.device) > 0])
        return predictions

    @torch.no_grad()
    def _written(self, piece: Batch) -> torch.Tensor:
        """Logits [1, positions, vocabulary] of one prompt, and of the answer that is read behind it.

        The answer's first token comes alone: several would count as more of the prompt (`tokens`).
        """
        from transformers import DynamicCache

        (answer, _), cache, logits = piece.answers[0], DynamicCache(), []
        for part in piece.ids.to(self.device).tensor_split([answer, answer + 1], dim=1):
            if part.shape[1]:
                length = cache.get_seq_length() + part.shape[1]
                mask = torch.ones(1, length, dtype=torch.long, device=self.device)
                out = self.model(input_ids=part, attention_mask=mask, past_key_values=cache, use_cache=True)
                logits.append(out.logits)
        return torch.cat(logits, 1)

    @torch.no_grad()
    def answers(self, texts: Sequence[Encoded]) -> list[tuple[int, ...]]:
        """What the model answers to each prompt's context, greedily: up to LENGTH tokens, end tokens cut off.

        Raises:
            PromptError: a context that leaves no room for an answer.
        """
        answers = []
        model: Any = self.model
        ends = torch.tensor([self.pad, *ends_of(model)])
        for start in range(0, len(texts), self.batch):
            contexts = [Encoded(text.ids[: text.answer][::-1], 1) for text in texts[start : start + self.batch]]
            piece = batched(contexts, self.pad)  # reversed, so that the padding is on the left
            ids, mask = piece.ids.flip(1).to(self.device), piece.mask.flip(1).to(self.device)
            room = min(LENGTH, self.limit - ids.shape[1]) if self.limit else LENGTH
            if room < 1:
                raise PromptError(
                    f"a prompt fills all {self.limit} tokens that the model takes: shorten it to be answered"
                )
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=room,
                do_sample=False,
                num_beams=1,
                num_return_sequences=1,
                return_dict_in_generate=False,
                pad_token_id=self.pad,
            )
            for row in out[:, ids.shape[1] :].cpu():
                stop = torch.isin(row, ends).nonzero()
                answers.append(tuple(row[: int(stop[0]) if len(stop) else len(row)].tolist()))
        return answers

    def states(self, texts: Sequence[Encoded]) -> torch.Tensor:
        """Mean activation over each answer at the output of every layer, side by side: float32 [n, layers x width]."""
        rows = []
        roots, sites = roots_of(self.model), find_sites(self.model, "block")
        for piece in self.batches(texts):
            recorder = _MeanRecorder(piece.counted("answer").to(self.device))
            with visit(roots, sites, recorder):
                self.run(piece)
            rows.append(torch.cat(recorder.means, 1).cpu())
        return torch.cat(rows)


class _MeanRecorder:
    """A visitor that keeps means over the positions of a mask."""

    def __init__(self, mask: torch.Tensor) -> None:
        self.mask = mask
        self.means: list[torch.Tensor] = []

    def begin(self, root: str, call: Call) -> None:
        """Every row counts."""

    def visit(self, site: Site, x: torch.Tensor) -> None:
        self.means.append(pool(x.detach(), self.mask.to(x.device))[:, 0])
