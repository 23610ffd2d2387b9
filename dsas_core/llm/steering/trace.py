"""The trace of a text: h and the change of direction of each token."""

from __future__ import annotations

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
    """One token as the model read it.

    Args:
        position: its place in the row, pads counted.
        id: its number, or -1 where only embeddings were given.
        text: what it adds to the text, with the blank before it where there is one; "" without a tokenizer.
        h: by site, the gate there times the site's weight.
        cosine: by site, between the activation before and behind the change; 1 is unchanged.
        counted: whether it is neither padding nor the row's first token.
    """

    position: int
    id: int
    text: str
    h: Mapping[str, float]
    cosine: Mapping[str, float]
    counted: bool

    @property
    def mean_h(self) -> float:
        return sum(self.h.values()) / max(1, len(self.h))

    @property
    def max_h(self) -> float:
        return max(self.h.values(), default=0.0)


@dataclass(frozen=True)
class _Part:
    """The tokens of one call, and what was recorded of them."""

    start: int
    ids: torch.Tensor | None
    mask: torch.Tensor
    records: list[Record] = field(default_factory=list)


class TextTrace(Trace):
    """Records of the last text of each root; a new one begins when a new prompt comes in.

    Args:
        tokenizer: spells the tokens; without one they have numbers only.
    """

    def __init__(self, tokenizer: Any = None) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self._parts: dict[str, list[_Part]] = {}

    def begin_text(self, root: str) -> None:
        """A new text begins at a root: what was recorded of its last one goes."""
        self._parts[root] = []
        self.records = [record for record in self.records if record.site.root != root]

    def note_tokens(self, root: str, start: int, ids: torch.Tensor | None, mask: torch.Tensor) -> None:
        """The tokens of a call whose records follow, from position `start` on."""
        part = _Part(start, None if ids is None else ids.detach().cpu(), mask.detach().cpu())
        self._parts.setdefault(root, []).append(part)

    def record(self, concept: str, site: Site, call: Call, *activations: Any) -> Record:
        record = super().record(concept, site, call, *activations)
        self._parts[site.root][-1].records.append(record)
        return record

    def tokens(self, row: int = 0, concept: str | None = None, root: str | None = None) -> list[Token]:
        """The tokens of one row of the batch with their h, in order.

        Args:
            row: of the batch, as the model saw it (beam search moves rows about).
            concept: its name; may be left out when there is only one.
            root: "encoder" or "decoder" of a model that has both; the last one that was called otherwise.

        Raises:
            DSASError: no such row, nothing recorded, or several concepts and none named.

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
        if not names or not self._parts:
            raise DSASError("the trace is empty: run the model inside the steer() block first")
        root = root or [name for name, parts in self._parts.items() if any(part.records for part in parts)][-1]
        parts = self._parts[root]
        if not 0 <= row < self.rows(root):
            raise DSASError(f"no row {row}: the last call had {self.rows(root)}")
        by_position: dict[int, Token] = {}
        for part in parts:
            here = {str(r.site): r for r in part.records if r.concept == (concept or names[0])}
            h = {site: record.h[row].tolist() for site, record in here.items()}
            cosine = {site: record.cosine[row].tolist() for site, record in here.items()}
            ids = [-1] * part.mask.shape[1] if part.ids is None else part.ids[row].tolist()
            for place, (number, counted) in enumerate(zip(ids, part.mask[row].tolist(), strict=True)):
                by_position[part.start + place] = Token(
                    position=part.start + place,
                    id=number,
                    text="",
                    h={site: values[place] for site, values in h.items()},
                    cosine={site: values[place] for site, values in cosine.items()},
                    counted=bool(counted),
                )
        return self._spell([by_position[position] for position in sorted(by_position)])

    def rows(self, root: str) -> int:
        """How many rows the last call of a root had."""
        return len(self._parts[root][-1].mask)

    def _spell(self, tokens: list[Token]) -> list[Token]:
        """Tokens with what each adds to the text that it and the one before it spell together."""
        if self.tokenizer is None:
            return tokens
        spelled, before, last = [], "", None
        for token in tokens:
            alone = str(self.tokenizer.decode([token.id])) if token.id >= 0 else ""
            pair = str(self.tokenizer.decode([last, token.id])) if last is not None and token.id >= 0 else alone
            text = pair[len(before) :] if last is not None and pair.startswith(before) else alone
            spelled.append(replace(token, text=text))
            before, last = alone, token.id if token.id >= 0 else None
        return spelled
