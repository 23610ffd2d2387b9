"""What a language model does with texts, steered or not: continuations, losses, answers to questions, gates."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import torch

from benchmarks.real_text.texts import Question
from dsas_core import llm
from dsas_core.concept.concept import Concept
from dsas_core.errors import PromptError
from dsas_core.llm.learning.reader import Reader
from dsas_core.llm.model.conversations import Batch, Encoded, encode, pad_token

#: positions of a batch whose logits are read
POSITIONS = 512
#: prompts of a batch
ROWS = 64
#: tokens of a window of WikiText
WINDOW = 256

#: called with the indices of the texts of each batch before it runs
OnRows = Callable[[Sequence[int]], None]


class ModelReader(Reader):
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
        super().__init__(model, pad_token(tokenizer), ROWS, POSITIONS)
        self.tokenizer = tokenizer
        self._on_rows: OnRows | None = None

    def calling(self, on_rows: OnRows | None) -> Self:
        """The same reader with a call before each batch."""
        reader = copy.copy(self)
        reader._on_rows = on_rows
        return reader

    def batches_by_length(
        self, texts: Sequence[Encoded], *limits: Any, **named: Any
    ) -> Iterator[tuple[list[int], Batch]]:
        """As of `Reader`, with the call before each batch."""
        for rows, batch in super().batches_by_length(texts, *limits, **named):
            if self._on_rows is not None:
                self._on_rows(rows)
            yield rows, batch

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Tokenise plain texts or conversations."""
        return [encode(self.tokenizer, text, self.limit) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, in one piece."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def continue_texts(
        self, prompts: Sequence[Encoded], tokens: int, temperature: float = 0.0
    ) -> list[tuple[int, ...]]:
        """Continuations, without end tokens.

        Args:
            prompts: texts, or conversations that end with the user's turn.
            tokens: the most tokens of a continuation.
            temperature: of sampling, with torch's global generator; 0 for greedy continuations.

        Raises:
            PromptError: a prompt that leaves no room for them.
        """
        longest = max(len(prompt.ids) for prompt in prompts)
        if self.limit and longest + tokens > self.limit:
            raise PromptError(
                f"a prompt of {longest} tokens and {tokens} more, the model takes {self.limit}: ask fewer"
            )
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
        return self.answers([Encoded(prompt.ids, len(prompt.ids)) for prompt in prompts], length=tokens, **sampling)

    def sum_losses(self, texts: Sequence[Encoded], written: bool = False) -> list[float]:
        """Negative log-likelihood of each text, in nats, from the token `answer` on.

        Args:
            texts: tokens, `answer` of which is 2 or more: the first token is never read, so the second not steered for.
            written: read the second half of each text with the cache of the first, as in generation, so that gates that
                decide at the end of a prompt are open there; slow.
        """
        if written:
            return [self._written_loss(text, row) for row, text in enumerate(texts)]
        means = self.losses(texts, "answer").tolist()
        return [mean * (len(text.ids) - text.answer) for mean, text in zip(means, texts, strict=True)]

    def _written_loss(self, text: Encoded, row: int) -> float:
        if self._on_rows is not None:
            self._on_rows([row])
        [predictions] = self.predictions([Encoded(text.ids, max(1, len(text.ids) // 2))], written=True)
        targets = torch.tensor(text.ids[text.answer :], device=predictions.device)
        return -float(predictions[text.answer - 2 : -1].gather(1, targets[:, None]).sum())  # the first predicts nothing

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
        scores = iter([loss / length for loss, length in zip(self.sum_losses(options), lengths, strict=True)])
        right = []
        for question in questions:
            own = [next(scores) for _ in question.answers]
            right.append(own.index(min(own)) == question.right)
        return right

    def gates(self, concept: Concept, texts: Sequence[Encoded]) -> list[tuple[float, float]]:
        """The highest and the mean h of each text over its positions.

        A position's h is the mean over the sites that steer, whatever their weights.
        """
        weights = {item.site: item.weights[0] for item in concept.interventions if not item.read_only}
        steered = [site for site, weight in weights.items() if weight > 0]
        found: dict[int, tuple[float, float]] = {}
        for rows, batch in self.batches_by_length(texts):
            with llm.steer(self.model, {concept: 0.0}, trace=True) as steering:
                self.read(batch)
                assert steering.trace is not None
                records = steering.trace.select(concept.name, sites=steered)
                scores = torch.stack([record.h / weights[record.site] for record in records]).mean(0)
            counted = batch.token_mask("all")
            means = (scores * counted).sum(1) / counted.sum(1).clamp_min(1)
            found |= dict(zip(rows, zip((scores * counted).amax(1).tolist(), means.tolist(), strict=True), strict=True))
        return [found[row] for row in range(len(texts))]


def count_tokens(texts: Sequence[Encoded]) -> int:
    """The tokens that `ModelReader.sum_losses` counts.

    Example:
        >>> count_tokens([Encoded((1, 2, 3, 4), 2)])
        2
    """
    return sum(len(text.ids) - text.answer for text in texts)
