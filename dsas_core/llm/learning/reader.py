"""Running a language model over prompts: activations, answers, predictions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import nn

from ...errors import PromptError, UnsupportedError
from ...learning.capture import Capture
from ...model.compilation import is_compiled
from ...model.early_exit import FinishedError, Stopper
from ...model.hooks import Call, DescribeCall, Visit, visit
from ...model.sites import Site
from ...probes.combine import pool
from ...utils.meter import TokenCount
from ...utils.numbers import number
from ..model.call_inputs import CACHE_NAMES
from ..model.conversations import Batch, Encoded, encode, pad_batch
from ..model.layers import (
    device_of_input,
    end_tokens,
    find_sites,
    logits_options,
    max_positions,
    roots_of,
    takes_positions,
)

#: positions that are read, over those that are no padding, are at most so many
PADDING = 1.2
#: so many batches of prompts are answered at once: each token takes a pass, which is hardly longer with more rows, and
#: less is kept of it than of one that reads whole texts with the head
ANSWERED = 3
#: tokens of an answer
LENGTH = 40
#: called with the numbers of the prompts of each batch, after it was read
OnBatch = Callable[[list[int]], object]
#: options of `generate` for one greedy answer to each prompt, whatever the model's own defaults
GREEDY = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1, "return_dict_in_generate": False}


def encode_all(model: nn.Module, tokenizer: Any, prompts: Sequence[str]) -> list[Encoded]:
    """Tokenise prompts.

    Raises:
        PromptError: one that is longer than the model takes, or that the chat template refuses.
    """
    limit = max_positions(model)
    return [encode(tokenizer, prompt, limit) for prompt in prompts]


def have_answers(texts: Mapping[str, Sequence[Encoded]]) -> bool:
    """Whether each source and target prompt ends with an assistant's turn."""
    return all(text.answer < len(text.ids) for side in ("source", "target") for text in texts[side])


class Reader:
    """Runs a model over prompts in batches.

    Args:
        model: a transformers language model.
        pad: the token to pad with.
        batch: prompts per forward pass, at most. Prompts of about the same length share one, so that little of it is
            padding (`PADDING`); what comes of it is in the order that the prompts were given in. More are answered at
            once (`ANSWERED`).
        positions: the most positions, padding included, whose logits are computed at once, because those of a large
            vocabulary fill memory; None for as many as a batch has.
        steered: sites that are steered, where activations are read if the model's layers are not found.

    Attributes:
        tokens: counts what went through the model.

    Example:
        >>> from dsas_core import llm
        >>> model, tokenizer = llm.load("builtin:chat")
        >>> reader = Reader(model, tokenizer.pad_token_id, batch=2)
        >>> texts = encode_all(model, tokenizer, ["user: hello!\\nassistant: hello to you."])
        >>> reader.states(texts).shape[0], len(reader.answers(texts)[0]) > 0
        (1, True)
    """

    def __init__(
        self, model: nn.Module, pad: int, batch: int, positions: int | None = None, steered: Sequence[Site] = ()
    ) -> None:
        self.model, self.pad, self.batch, self.positions = model, pad, number("batch", batch), positions
        self.steered, self.device, self.limit = tuple(steered), device_of_input(model), max_positions(model)
        self.tokens = TokenCount()

    def batches(self, texts: Sequence[Encoded]) -> Iterator[Batch]:
        """The prompts in order, padded on the right."""
        for start in range(0, len(texts), self.batch):
            yield pad_batch(texts[start : start + self.batch], self.pad)

    def batches_by_length(
        self, texts: Sequence[Encoded], padding: float = PADDING, most: int | None = None, positions: int | None = None
    ) -> Iterator[tuple[list[int], Batch]]:
        """The prompts in batches of about the same length, longest first, with the index of each prompt.

        Args:
            texts: prompts.
            padding: the most positions that a batch may have, over those of its prompts.
            most: the most prompts of a batch; None for `batch`.
            positions: the most positions of a batch, padding included, if it has more than one prompt; None for any.
        """
        left = sorted(range(len(texts)), key=lambda i: -len(texts[i].ids))
        while left:
            longest, tokens, rows = len(texts[left[0]].ids), 0, 0
            fit = len(left) if positions is None else max(1, positions // longest)
            while rows < min(most or self.batch, fit, len(left)):
                tokens += len(texts[left[rows]].ids)
                if (rows + 1) * longest > padding * tokens:
                    break
                rows += 1
            chosen, left = left[:rows], left[rows:]
            yield chosen, pad_batch([texts[i] for i in chosen], self.pad)

    def describe(self, mask: torch.Tensor) -> dict[str, DescribeCall]:
        """A description of the forward pass, for every root: all rows steered, positions of `mask` counted."""
        here = mask.to(self.device)
        call = Call(torch.ones(len(here), device=self.device), torch.arange(len(here), device=self.device), None, here)
        return {root: lambda args, kwargs: call for root in roots_of(self.model)}

    def run(self, batch: Batch) -> torch.Tensor:
        """Logits [rows, positions, vocabulary]; a model with an encoder reads the prompt there."""
        logits: torch.Tensor = self._call(batch).logits
        return logits

    def read(self, batch: Batch, gradients: bool = False) -> None:
        """Run the model for the sake of its hidden states: as far as `stop_after` lets it, and without the head."""
        with suppress(FinishedError):
            self._call(batch, gradients, **logits_options(self.model, 1))

    def stop_after(self, sites: Sequence[Site]) -> Visit:
        """Let one `read` end at the last of some sites. Visitors that are placed later see it before."""
        roots = roots_of(self.model)
        # a compiled graph cannot be left halfway; before transformers 5, outputs that the configuration asks for leave
        # their wrappers on a model that is
        asked = any(getattr(self.model.config, name, False) for name in ("output_hidden_states", "output_attentions"))
        stops = not asked and not any(map(is_compiled, roots.values()))
        return visit(roots, sites if stops else [], Stopper(sites))

    def _call(self, batch: Batch, gradients: bool = False, **options: Any) -> Any:
        ids, mask = batch.ids.to(self.device), batch.mask.to(self.device)
        more = {"decoder_input_ids": ids[:, :1]} if "encoder" in roots_of(self.model) else {"use_cache": False}
        self.tokens.add(run=ids.numel(), needed=int(batch.mask.sum()))
        with torch.set_grad_enabled(gradients):
            return self.model(input_ids=ids, attention_mask=mask, **more, **options)

    def capture(
        self,
        texts: Sequence[Encoded],
        sites: Sequence[Site],
        selections: Sequence[tuple[str, str]],
        seed: int = 0,
        done: Callable[[int], object] = lambda count: None,
        tokens: int = 32,
    ) -> Capture:
        """Capture activations, of several kinds from one forward pass.

        Args:
            texts: the prompts, the same for every kind.
            sites: where to capture.
            selections: each kind, and which of its tokens are captured (`conversations.TOKEN_SELECTIONS`).
            seed: of the sampling of positions.
            done: called with the number of prompts of each batch that was read.
            tokens: how many positions of each prompt to keep at most.
        """
        captures = {kind: Capture(positions_per_row=tokens, seed=seed) for kind, _ in selections}
        for kind, capture in captures.items():
            capture.start(kind)
        for chosen, batch in self.batches_by_length(texts):
            with ExitStack() as visits:
                visits.enter_context(self.stop_after(sites))
                for kind, selection in selections:
                    captures[kind].choose(chosen)
                    described = self.describe(batch.token_mask(selection))
                    visits.enter_context(visit(roots_of(self.model), sites, captures[kind], described))
                self.read(batch)
            done(len(chosen))
        together = Capture(seed=seed)
        for capture in captures.values():
            together.absorb(capture)
        for rows in together.rows.values():
            rows.sort()
        return together

    def predictions(
        self, texts: Sequence[Encoded], on_batch: OnBatch = lambda chosen: None, written: bool = False
    ) -> list[torch.Tensor]:
        """Log-probabilities of the next token at every token that counts, [tokens, vocabulary] for each text.

        Args:
            texts: prompts.
            written: read each answer with the cache of its prompt, as in generation, so that gates that decide at the
                end of a prompt are open there; one text at a time.
            on_batch: called after each batch.
        """
        alone = (([i], pad_batch([text], self.pad)) for i, text in enumerate(texts))
        predictions: dict[int, torch.Tensor] = {}
        for chosen, batch in alone if written else self.batches_by_length(texts, positions=self.positions):
            counted = batch.token_mask("all") > 0
            logits = self._run_written(batch)[counted.to(self.device)] if written else self._logits_at(batch, counted)
            predictions |= zip(chosen, logits.float().log_softmax(-1).split(counted.sum(1).tolist()), strict=True)
            on_batch(chosen)
        return [predictions[i] for i in range(len(texts))]

    @torch.no_grad()
    def _run_written(self, batch: Batch) -> torch.Tensor:
        """Logits [1, positions, vocabulary] of one prompt, and of its answer read with the prompt's cache.

        The answer's first token runs alone: several would count as more of the prompt (`llm.model.call_describer`). So
        do the others where several at once would forget what a recurrent layer has read.
        """
        (answer, end), logits, place = batch.answers[0], [], 0
        cache: dict[str, Any] = {}
        while place < end:
            alone = place == answer or _is_recurrent(cache)
            stop = answer if place < answer else place + 1 if alone else end
            self.tokens.add(run=stop - place, needed=stop - place)
            told = {"attention_mask": batch.mask[:, :stop].to(self.device)}
            told = told if place == 0 or "past_key_values" in cache else {}  # states take no mask of what was before
            if takes_positions(self.model):
                told["position_ids"] = torch.arange(place, stop, device=self.device)[None]
            out = self.model(input_ids=batch.ids[:, place:stop].to(self.device), use_cache=True, **told, **cache)
            cache, place = _cache_of(self.model, out), stop
            logits.append(out.logits)
        return torch.cat(logits, 1)

    def losses(self, texts: Sequence[Encoded], selection: str = "all") -> torch.Tensor:
        """Mean loss of the next token in each text, in nats: float32 [n].

        Args:
            texts: prompts.
            selection: the tokens that predict, see `conversations.TOKEN_SELECTIONS`.
        """
        losses = torch.zeros(len(texts))
        for chosen, batch in self.batches_by_length(texts, positions=self.positions):
            counted = batch.token_mask(selection)[:, :-1] * batch.mask[:, 1:]
            here = counted > 0
            logits = self._logits_at(batch, nn.functional.pad(here, (0, 1))).float().cpu()
            found = nn.functional.cross_entropy(logits, batch.ids[:, 1:][here], reduction="none")
            sums = torch.zeros_like(counted).masked_scatter_(here, found).sum(1)
            losses[chosen] = sums / counted.sum(1).clamp_min(1)
        return losses

    def _logits_at(self, batch: Batch, counted: torch.Tensor) -> torch.Tensor:
        """Logits [n, vocabulary] at the positions that a mask counts, row by row; the head reads little else."""
        columns = counted.any(0).nonzero()[:, 0]
        logits: torch.Tensor = self._call(batch, False, **logits_options(self.model, columns.tolist())).logits
        kept = counted[:, columns] if logits.shape[1] == len(columns) else counted
        return logits[kept.to(logits.device)]

    @torch.no_grad()
    def answers(
        self,
        texts: Sequence[Encoded],
        on_batch: OnBatch = lambda chosen: None,
        length: int | None = None,
        **sampling: Any,
    ) -> list[tuple[int, ...]]:
        """The model's greedy answers to each prompt's context, end tokens cut off.

        Args:
            texts: prompts.
            length: the most tokens of an answer; None for `LENGTH`.
            on_batch: called after each batch.
            sampling: options of `generate` in place of `GREEDY`'s.

        Raises:
            PromptError: a context that leaves no room for an answer.
        """
        answers: dict[int, tuple[int, ...]] = {}
        model: Any = self.model
        ends = torch.tensor([self.pad, *end_tokens(model)])
        contexts = [Encoded(text.ids[: text.answer][::-1], 1) for text in texts]  # so that the padding is on the left
        for chosen, batch in self.batches_by_length(contexts, math.inf, ANSWERED * self.batch):
            ids, mask = batch.ids.flip(1).to(self.device), batch.mask.flip(1).to(self.device)
            longest = length or LENGTH
            room = min(longest, self.limit - ids.shape[1]) if self.limit else longest
            if room < 1:
                raise PromptError(
                    f"a prompt fills all {self.limit} tokens that the model takes: shorten it to be answered"
                )
            options = {"max_new_tokens": room, "pad_token_id": self.pad, **GREEDY, **sampling}
            out = model.generate(input_ids=ids, attention_mask=mask, **options)
            for i, row in zip(chosen, out[:, ids.shape[1] :].cpu(), strict=True):
                stop = torch.isin(row, ends).nonzero()
                answers[i] = tuple(row[: int(stop[0]) if len(stop) else len(row)].tolist())
            written = sum(len(answers[i]) for i in chosen)
            self.tokens.add(out.numel(), int(batch.mask.sum()) + written, passes=out.shape[1] - ids.shape[1])
            on_batch(chosen)
        return [answers[i] for i in range(len(texts))]

    def states(self, texts: Sequence[Encoded]) -> torch.Tensor:
        """Mean activation over each answer at the output of every layer, side by side: float32 [n, layers x width].

        Where the layers are not found, at the sites that are steered.
        """
        rows: dict[int, torch.Tensor] = {}
        roots, sites = roots_of(self.model), sites_of(self, "block")
        for chosen, batch in self.batches_by_length(texts):
            recorder = _MeanRecorder(batch.token_mask("answer").to(self.device))
            with self.stop_after(sites), visit(roots, sites, recorder):
                self.read(batch)
            rows |= zip(chosen, torch.cat(recorder.means, 1).cpu(), strict=True)
        return torch.stack([rows[i] for i in range(len(texts))])


def _cache_of(model: nn.Module, output: Any) -> dict[str, Any]:
    """What a model has kept of what it read, as the argument that it takes it by; its own kind of cache."""
    cache = {name: output[name] for name in CACHE_NAMES if output.get(name) is not None}
    if not cache:
        raise UnsupportedError(
            f"{type(model).__name__} keeps no cache of what it has read, with which gates that decide at a prompt's "
            "end are tried: learn with form token"
        )
    return cache


def _is_recurrent(cache: Mapping[str, Any]) -> bool:
    """Whether a cache, as `_cache_of` returns it, holds states in place of keys."""
    held = cache.get("past_key_values")
    layers = [held, *getattr(held, "layers", ())]
    return bool(cache) and (held is None or any(hasattr(layer, "conv_states") for layer in layers))


def sites_of(reader: Reader, group: str | None = None) -> list[Site]:
    """Sites of a group in a reader's model; where its layers are not found, those that are steered.

    Raises:
        UnsupportedError: the layers are not found, and the reader was told of no sites.
    """
    try:
        return find_sites(reader.model, group)
    except UnsupportedError:
        if not reader.steered:
            raise
        return list(reader.steered)


class _MeanRecorder:
    """A visitor that keeps means over the positions of a mask."""

    def __init__(self, mask: torch.Tensor) -> None:
        self.mask = mask
        self.means: list[torch.Tensor] = []

    def begin(self, root: str, call: Call) -> None:
        """Every row counts."""

    def visit(self, site: Site, x: torch.Tensor) -> None:
        self.means.append(pool(x.detach(), self.mask.to(x.device))[:, 0])
