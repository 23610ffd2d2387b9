"""What a language model does with texts, steered or not: continuations, losses, answers to questions, gates."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from benchmarks.real_text.texts import Question
from dsas_core import llm
from dsas_core.concept.concept import Concept
from dsas_core.errors import PromptError
from dsas_core.llm.learning.reader import GREEDY, Reader
from dsas_core.llm.model.conversations import Encoded, encode, pad_batch, pad_token
from dsas_core.llm.model.layers import end_tokens, max_positions

#: tokens of a batch that is read, padding included: logits of large vocabularies fill memory
TOKENS = 512
#: prompts of a batch that is continued
ROWS = 64
#: tokens of a window of WikiText
WINDOW = 256

#: called with the indices of the texts of each batch before it runs
OnRows = Callable[[Sequence[int]], None]


class ModelReader:
    """Reads and continues texts in batches of about one length.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer.

    Example:
        >>> reader = ModelReader(*llm.load("builtin:chat", device="cpu"))
        >>> [ids] = reader.continue_texts(reader.encode(["user: who are you?"]), tokens=6)
        >>> reader.decode(ids)
        'i am the help desk.'
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.pad, self.limit = pad_token(tokenizer), max_positions(model)
        self._reader = Reader(model, self.pad, ROWS)
        self._ends = torch.tensor([self.pad, *end_tokens(model)])

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Tokenise plain texts or conversations."""
        return [encode(self.tokenizer, text, self.limit) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, in one piece."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    @torch.no_grad()
    def continue_texts(
        self, prompts: Sequence[Encoded], tokens: int, on_rows: OnRows | None = None, temperature: float = 0.0
    ) -> list[tuple[int, ...]]:
        """Continuations, without end tokens.

        Args:
            prompts: texts, or conversations that end with the user's turn.
            tokens: the most tokens of a continuation.
            on_rows: see `OnRows`.
            temperature: of sampling, with torch's global generator; 0 for greedy continuations.

        Raises:
            PromptError: a prompt that leaves no room for them.
        """
        longest = max(len(prompt.ids) for prompt in prompts)
        if self.limit and longest + tokens > self.limit:
            raise PromptError(
                f"a prompt of {longest} tokens and {tokens} more, the model takes {self.limit}: ask fewer"
            )
        written: dict[int, tuple[int, ...]] = {}
        for rows in _batch_rows(prompts, lambda count, _: count <= ROWS):
            if on_rows is not None:
                on_rows(rows)
            reverse = pad_batch([Encoded(prompts[row].ids[::-1], 1) for row in rows], self.pad)  # pads on the left
            ids, mask = (part.flip(1).to(self._reader.device) for part in (reverse.ids, reverse.mask))
            options: dict[str, Any] = {"max_new_tokens": tokens, "pad_token_id": self.pad, **GREEDY}
            if temperature > 0:
                options |= {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
            out = self.model.generate(input_ids=ids, attention_mask=mask, **options)[:, ids.shape[1] :].cpu()
            for row, new in zip(rows, out, strict=True):
                stop = torch.isin(new, self._ends).nonzero()
                written[row] = tuple(new[: int(stop[0]) if len(stop) else len(new)].tolist())
        return [written[row] for row in range(len(prompts))]

    def losses(self, texts: Sequence[Encoded], written: bool = False, on_rows: OnRows | None = None) -> list[float]:
        """Negative log-likelihood of each text, in nats, from the token `answer` on.

        Args:
            texts: tokens, `answer` of which is 2 or more: the first token is never read, so the second not steered for.
            written: read the second half of each text with the cache of the first, as in generation, so that gates that
                decide at the end of a prompt are open there; slow.
            on_rows: see `OnRows`.
        """
        if written:
            return [self._written_loss(text, on_rows, row) for row, text in enumerate(texts)]
        losses: dict[int, float] = {}
        for rows in _batch_rows(texts, lambda count, longest: count * longest <= TOKENS):
            if on_rows is not None:
                on_rows(rows)
            batch = pad_batch([texts[row] for row in rows], self.pad)
            for row, logits in zip(rows, self._reader.run(batch), strict=True):  # a row at a time, for memory
                start, ids = texts[row].answer, texts[row].ids
                losses[row] = _loss(logits[start - 1 : len(ids) - 1].float(), ids[start:])
        return [losses[row] for row in range(len(texts))]

    def _written_loss(self, text: Encoded, on_rows: OnRows | None, row: int) -> float:
        if on_rows is not None:
            on_rows([row])
        [predictions] = self._reader.predictions([Encoded(text.ids, max(1, len(text.ids) // 2))], written=True)
        return _loss(predictions[text.answer - 2 : -1], text.ids[text.answer :])  # nothing is predicted at the first

    def windows(self, paragraphs: Sequence[str], tokens: int) -> list[Encoded]:
        """The first tokens of running text, in windows that begin like any text."""
        begin = list(self.tokenizer("").input_ids)[:1]
        ids: list[int] = []
        for paragraph in paragraphs:
            if len(ids) >= tokens:
                break
            ids += self.tokenizer(paragraph, add_special_tokens=False).input_ids
        size = min(WINDOW, self.limit or WINDOW) - len(begin)
        parts = [(*begin, *ids[start : start + size]) for start in range(0, min(tokens, len(ids)), size)]
        return [Encoded(part, 2) for part in parts if len(part) > 2]

    def answer_questions(self, questions: Sequence[Question]) -> list[bool]:
        """Which questions are answered right: by the answer of the highest log-likelihood per character."""
        options, lengths = [], []
        for question in questions:
            context = self.tokenizer(f"Question: {question.text}\nAnswer:").input_ids
            for answer in question.answers:
                ids = self.tokenizer(f" {answer}", add_special_tokens=False).input_ids
                options.append(Encoded((*context, *ids), len(context)))
                lengths.append(len(answer))
        scores = iter([loss / length for loss, length in zip(self.losses(options), lengths, strict=True)])
        right = []
        for question in questions:
            own = [next(scores) for _ in question.answers]
            right.append(own.index(min(own)) == question.right)
        return right

    @torch.no_grad()
    def gates(self, concept: Concept, texts: Sequence[Encoded]) -> list[tuple[float, float]]:
        """The highest and the mean h of each text over its positions.

        A position's h is the mean over the sites that steer, whatever their weights.
        """
        weights = {item.site: item.weights[0] for item in concept.interventions if not item.read_only}
        steered = [site for site, weight in weights.items() if weight > 0]
        head = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(self.model.forward).parameters else {}
        found: dict[int, tuple[float, float]] = {}
        for rows in _batch_rows(texts, lambda count, longest: count * longest <= TOKENS):
            batch = pad_batch([texts[row] for row in rows], self.pad)
            ids, mask = batch.ids.to(self._reader.device), batch.mask.to(self._reader.device)
            with llm.steer(self.model, {concept: 0.0}, trace=True) as steering:
                self.model(input_ids=ids, attention_mask=mask, use_cache=False, **head)
                assert steering.trace is not None
                records = steering.trace.select(concept.name, sites=steered)
                scores = torch.stack([record.h / weights[record.site] for record in records]).mean(0)
            counted = batch.token_mask("all")
            means = (scores * counted).sum(1) / counted.sum(1).clamp_min(1)
            found |= dict(zip(rows, zip((scores * counted).amax(1).tolist(), means.tolist(), strict=True), strict=True))
        return [found[row] for row in range(len(texts))]


def count_tokens(texts: Sequence[Encoded]) -> int:
    """The tokens that `ModelReader.losses` counts.

    Example:
        >>> count_tokens([Encoded((1, 2, 3, 4), 2)])
        2
    """
    return sum(len(text.ids) - text.answer for text in texts)


def _loss(logits: torch.Tensor, ids: Sequence[int]) -> float:
    """Negative log-likelihood of tokens by the logits at the positions before them."""
    targets = torch.tensor(ids, device=logits.device)
    return float((logits.logsumexp(-1) - logits.gather(1, targets[:, None])[:, 0]).sum())


def _batch_rows(texts: Sequence[Encoded], fits: Callable[[int, int], bool]) -> Iterator[list[int]]:
    """Indices of texts in batches, by length, the longest first.

    Args:
        texts: the texts.
        fits: whether a number of texts, the longest of which has so many tokens, is a batch.
    """
    rows: list[int] = []
    for row in sorted(range(len(texts)), key=lambda row: -len(texts[row].ids)):
        if rows and not fits(len(rows) + 1, len(texts[rows[0]].ids)):
            yield rows
            rows = []
        rows.append(row)
    if rows:
        yield rows
