"""Monitoring: records how much texts show a concept, one JSON line per row of each request, without steering.

Strengths are 0, so that the model's output is unchanged, bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Self

from torch import nn

from ...concept.concept import Concept
from ...errors import DSASError
from ...steering.strengths import load_concepts
from ...utils.saving.files import open_to_append
from ..model.layers import roots_of
from .steer import TextSteering
from .trace import TextTrace


class Monitor:
    """Writes a line for each row of each request of a model. A context manager; `close` writes the last request.

    A line has `request`, `row`, `tokens` (number of tokens that were read), and for each concept `mean_h` and `max_h`
    over tokens and sites, and where the maximum is (`position`, `token`, `site`).

    Args:
        model: a transformers language model.
        concepts: concepts, or their folders, Hub names or builtin:NAME.
        file: a path to append to, or an open text file.
        tokenizer: tokenizer of the model, for the texts of tokens; None leaves them empty.
        force: accept concepts that were learned on another architecture.

    Raises:
        ModelMismatchError: a concept does not fit the model.
        DSASError: the file cannot be written.

    Example:
        >>> import io
        >>> from dsas_core import llm
        >>> from dsas_core.llm.steering.answer import answer, encode_message
        >>> model, tokenizer = llm.load("builtin:chat", device="cpu")
        >>> lines = io.StringIO()
        >>> with Monitor(model, ["builtin:rudeness"], lines, tokenizer):
        ...     text = answer(model, tokenizer, encode_message(tokenizer, "you fool!"), 5).text
        >>> json.loads(lines.getvalue())["rudeness"]["max_h"] > 0.9
        True
    """

    def __init__(
        self,
        model: nn.Module,
        concepts: Sequence[Concept | str | Path],
        file: str | Path | IO[str],
        tokenizer: Any = None,
        force: bool = False,
    ) -> None:
        chosen = load_concepts(dict.fromkeys(concepts, 0.0), roots_of(model), force=force)
        self.requests = 0
        self._trace = TextTrace(tokenizer)
        self._names = [concept.name for concept in chosen]
        self.steering = TextSteering(chosen, trace=self._trace, on_text=self._flush, read_only=True)
        self.steering.attach_to_model(model)
        try:
            self._opened = None if hasattr(file, "write") else open_to_append(Path(file))  # type: ignore[arg-type]
        except OSError as error:
            self.steering.detach()
            raise DSASError(f"cannot write {file}: {error.strerror}") from None
        self._file: Any = self._opened or file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write the last request and remove all hooks. Can be called again."""
        self.steering.detach()
        self._flush()
        self._trace.clear()
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _flush(self, root: str | None = None) -> None:
        """Write the lines of the request that the trace holds; where there is an encoder, its text begins a request."""
        if not self._trace.records or root == "decoder":
            return
        try:
            self._file.write("".join(f"{json.dumps(line)}\n" for line in self._lines()))
            self._file.flush()
        except OSError as error:
            name = getattr(self._file, "name", "the monitor's file")
            raise DSASError(f"cannot write {name}: {error.strerror}; make room, or monitor into another file") from None
        self.requests += 1

    def _lines(self) -> list[dict[str, Any]]:
        roots = dict.fromkeys(record.site.root for record in self._trace.records)
        counts = {root: self._trace.rows(root) for root in roots}
        rows = max(counts.values())  # with beams and samples, a decoder has several rows for each of the encoder's
        lines = []
        for row in range(rows):
            line: dict[str, Any] = {"request": self.requests, "row": row}
            for name in self._names:
                texts = (self._trace.tokens(row * counts[root] // rows, name, root) for root in roots)
                tokens = [token for text in texts for token in text if token.counted]
                line["tokens"] = len(tokens)
                top = max(tokens, key=lambda token: token.max_h, default=None)
                line[name] = {
                    "mean_h": round(sum(token.mean_h for token in tokens) / max(1, len(tokens)), 6),
                    "max_h": round(top.max_h, 6) if top else 0.0,
                    "position": top.position if top else None,
                    "token": top.text.strip() if top else "",
                    "site": top.max_site if top else "",
                }
            lines.append(line)
        return lines
