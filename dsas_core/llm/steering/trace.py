"""The trace of a text: h, and the cosine between steered and unsteered activation, for each token."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ...errors import DSASError
from ...model.hooks import Call
from ...model.sites import Site
from ...steering.trace import Record, Trace


@dataclass(frozen=True)
class Token:
    """One token that the model has read.

    Args:
        position: its position in the row, padding included.
        id: its id, or -1 where the model was called with embeddings.
        text: what it adds to the text, with the blank before it if there is one; "" without a tokenizer.
        h: site -> the gate there times the site's weight.
        cosine: site -> cosine between unsteered and steered activation; 1 is unchanged.
        counted: whether it is neither padding nor the row's first token.

    Example:
        >>> token = Token(1, 7, " fool", {"a": 0.5, "b": 1.0}, {"a": 1.0, "b": 0.9}, True)
        >>> token.mean_h, token.max_h, token.max_site
        (0.75, 1.0, 'b')
    """

    position: int
    id: int
    text: str
    h: Mapping[str, float]
    cosine: Mapping[str, float]
    counted: bool

    @property
    def mean_h(self) -> float:
        """Mean h over the sites; 0 without a site."""
        return sum(self.h.values()) / max(1, len(self.h))

    @property
    def max_h(self) -> float:
        """Highest h; 0 without a site."""
        return max(self.h.values(), default=0.0)

    @property
    def max_site(self) -> str:
        """The site with the highest h; "" without a site."""
        return max(self.h, key=lambda site: self.h[site], default="")


@dataclass(frozen=True)
class _CallTokens:
    """The tokens of one call, and their records.

    Args:
        start: position of the first token.
        ids: int64 [rows, positions], or None.
        mask: [rows, positions].
        rows: for each row of the batch as it is now, its row in this call.
        records: of the call.
        kept: how many of its tokens have not been taken back.
    """

    start: int
    ids: torch.Tensor | None
    mask: torch.Tensor
    rows: torch.Tensor
    records: list[Record] = field(default_factory=list)
    kept: int = sys.maxsize


EMPTY = "the trace is empty: run the model inside the steer() block first"


class TextTrace(Trace):
    """Records of the last text of each root; the next prompt replaces them.

    Args:
        tokenizer: tokenizer of the model; without one, tokens have no text.

    Example:
        >>> TextTrace().records
        []
    """

    def __init__(self, tokenizer: Any = None) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self._calls: dict[str, list[_CallTokens]] = {}

    def begin_text(self, root: str) -> None:
        """Begin a new text of a root: the records of its last one are removed."""
        self._calls[root] = []
        self.records = [record for record in self.records if record.site.root != root]

    def note_tokens(self, root: str, start: int, ids: torch.Tensor | None, mask: torch.Tensor) -> None:
        """Keep the tokens of a call, before its activations are recorded.

        Args:
            root: name of the root.
            start: position of the first token.
            ids: int64 [batch, positions], or None.
            mask: [batch, positions], 1 for tokens that are read.
        """
        ids = None if ids is None else ids.detach().cpu()
        tokens = _CallTokens(start, ids, mask.detach().cpu(), torch.arange(len(mask)))
        self._calls.setdefault(root, []).append(tokens)

    def take_rows(self, root: str, rows: torch.Tensor) -> None:
        """Let the tokens of a text follow rows of its batch that were repeated, dropped or reordered.

        Args:
            root: name of the root.
            rows: for each row from now on, the index of the row that it continues, int64 [batch].
        """
        rows = rows.cpu()
        self._calls[root] = [replace(call, rows=call.rows[rows]) for call in self._calls[root]]

    def take_back(self, root: str, length: int) -> None:
        """Leave out what was read from position `length` on: rejected drafts, or a prompt that another one replaces."""
        calls = self._calls.get(root, [])
        self._calls[root] = [
            call if call.start + call.mask.shape[1] <= length else replace(call, kept=max(0, length - call.start))
            for call in calls
        ]

    def save(self, root: str) -> tuple[list[_CallTokens], list[Record]]:
        """What is recorded of the text of a root."""
        return list(self._calls.get(root, [])), [record for record in self.records if record.site.root == root]

    def load(self, root: str, saved: tuple[list[_CallTokens], list[Record]]) -> None:
        """Continue with what `save` returned."""
        self._calls[root] = list(saved[0])
        self.records = [record for record in self.records if record.site.root != root] + saved[1]

    def record(self, concept: str, site: Site, call: Call, *activations: Any) -> Record:
        record = super().record(concept, site, call, *activations)
        self._calls[site.root][-1].records.append(record)
        return record

    def tokens(self, row: int = 0, concept: str | None = None, root: str | None = None) -> list[Token]:
        """The tokens of one row of the batch with their h, in order.

        Args:
            row: index of the row in the model's batch, as it was in the last call. Of a beam, these are the tokens that
                it has read, whichever rows it was in.
            concept: name of the concept; may be left out where there is only one.
            root: "encoder" or "decoder" of a model that has both; None for the last one that was called.

        Raises:
            DSASError: no such row or concept, nothing recorded, or several concepts and none named.

        Example:
            >>> from dsas_core import llm
            >>> from dsas_core.llm.steering.answer import answer, encode_message
            >>> model, tokenizer = llm.load("builtin:chat", device="cpu")
            >>> with llm.steer(model, {"builtin:rudeness": 1.0}, trace=True, tokenizer=tokenizer) as steering:
            ...     inputs = encode_message(tokenizer, "my parcel has not arrived, you fool!")
            ...     written = answer(model, tokenizer, inputs, 1)
            >>> max(steering.trace.tokens(), key=lambda token: token.max_h).text
            ' fool'
        """
        names = list(dict.fromkeys(record.concept for record in self.records))
        if concept is None and len(names) > 1:
            raise DSASError(f"the trace holds {', '.join(names)}: say which, tokens(concept=…)")
        if concept is not None:
            self.check_name(concept)
        if not names or not self._calls:
            raise DSASError(EMPTY)
        root = root or [name for name, calls in self._calls.items() if any(call.records for call in calls)][-1]
        if not 0 <= row < self.rows(root):
            raise DSASError(f"no row {row}: the last call had {self.rows(root)}")
        by_position: dict[int, Token] = {}
        for call in self._calls[root]:
            records = {str(r.site): r for r in call.records if r.concept == (concept or names[0])}
            place = int(call.rows[row])
            h = {site: record.h[place].tolist() for site, record in records.items()}
            cosine = {site: record.cosine[place].tolist() for site, record in records.items()}
            ids = [-1] * call.mask.shape[1] if call.ids is None else call.ids[place].tolist()
            for i, (token_id, counted) in enumerate(zip(ids, call.mask[place].tolist(), strict=True)):
                if i >= call.kept:
                    break
                by_position[call.start + i] = Token(
                    position=call.start + i,
                    id=token_id,
                    text="",
                    h={site: values[i] for site, values in h.items()},
                    cosine={site: values[i] for site, values in cosine.items()},
                    counted=bool(counted),
                )
        return self._add_texts([by_position[position] for position in sorted(by_position)])

    def rows(self, root: str) -> int:
        """Number of rows of the last call of a root."""
        return len(self._calls[root][-1].mask)

    def opened(self) -> list[bool]:
        """Whether a gate was open at some token of each row of the batch, as it was in the last call.

        Raises:
            DSASError: nothing recorded.

        Example:
            >>> from dsas_core import llm
            >>> model, tokenizer = llm.load("builtin:chat", device="cpu")
            >>> with llm.steer(model, {"builtin:rudeness": 1.0}, trace=True) as steering:
            ...     out = model(**tokenizer("user: you fool!", return_tensors="pt"))
            >>> steering.trace.opened()
            [True]
        """
        calls = [call for root in self._calls.values() for call in root]
        read = [(call.rows, record.h[:, : call.kept]) for call in calls if call.kept for record in call.records]
        highest = [h.abs().amax(1)[rows] for rows, h in read]
        if not highest:
            raise DSASError(EMPTY)
        return (torch.stack(highest).amax(0) != 0).tolist()  # what is not a number is not closed

    def _add_texts(self, tokens: list[Token]) -> list[Token]:
        """Set the text of each token: what it adds to that of the token before it when both are decoded together."""
        if self.tokenizer is None:
            return tokens
        with_texts, before, last = [], "", None
        for token in tokens:
            alone = str(self.tokenizer.decode([token.id])) if token.id >= 0 else ""
            pair = str(self.tokenizer.decode([last, token.id])) if last is not None and token.id >= 0 else alone
            text = pair[len(before) :] if last is not None and pair.startswith(before) else alone
            with_texts.append(replace(token, text=text))
            before, last = alone, token.id if token.id >= 0 else None
        return with_texts
