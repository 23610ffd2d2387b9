"""The trace of a text: h and the change of direction per token, in a table, a terminal, or a page."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..errors import DSASError
from ..hooks import Call
from ..sites import Site
from ..trace import Record, Trace

#: from this h on a token is coloured
SEEN = 0.02
#: how opaque the red behind a token of h = 1 is on a page: dark text and light text can both be read on it
DEEPEST = 0.6
#: out of sight, and out of what is copied, but read to those who cannot see colours
UNSEEN = "position: absolute; clip-path: inset(50%); white-space: nowrap; user-select: none"


@dataclass(frozen=True)
class Token:
    """One token as the model read it.

    Args:
        position: its place in the row, pads counted. id: its number, or -1 where only embeddings were given.
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

    def record(self, concept: str, site: Site, call: Call, *seen: Any) -> Record:
        made = super().record(concept, site, call, *seen)
        self._parts[site.root][-1].records.append(made)
        return made

    def tokens(self, row: int = 0, concept: str | None = None, root: str | None = None) -> list[Token]:
        """The tokens of one row of the batch with their h, in order.

        Args:
            row: of the batch, as the model saw it (beam search moves rows about).
            concept: its name; may be left out when there is only one.
            root: "encoder" or "decoder" of a model that has both; the last one that was called otherwise.

        Raises:
            DSASError: no such row, nothing recorded, or several concepts and none named.
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
        found: dict[int, Token] = {}
        for part in parts:
            here = {str(r.site): r for r in part.records if r.concept == (concept or names[0])}
            h = {site: record.h[row].tolist() for site, record in here.items()}
            cosine = {site: record.cosine[row].tolist() for site, record in here.items()}
            ids = [-1] * part.mask.shape[1] if part.ids is None else part.ids[row].tolist()
            for place, (number, counted) in enumerate(zip(ids, part.mask[row].tolist(), strict=True)):
                found[part.start + place] = Token(
                    position=part.start + place,
                    id=number,
                    text="",
                    h={site: values[place] for site, values in h.items()},
                    cosine={site: values[place] for site, values in cosine.items()},
                    counted=bool(counted),
                )
        return self._spelled([found[position] for position in sorted(found)])

    def rows(self, root: str) -> int:
        """How many rows the last call of a root had."""
        return len(self._parts[root][-1].mask)

    def _spelled(self, tokens: list[Token]) -> list[Token]:
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


def as_terminal(tokens: list[Token]) -> str:
    """Tokens on a red background as deep as their highest h, for a terminal that takes 24-bit colours."""
    return "".join(blank + _painted(text, token.max_h) for blank, text, token in _words(tokens))


def _words(tokens: list[Token]) -> Iterator[tuple[str, str, Token]]:
    """Tokens that spell something: the blank before each, what it spells without it, and the token."""
    blank = False
    place = -1
    begun = False
    for token in tokens:
        text = token.text.strip()
        blank = blank or token.text != token.text.lstrip() or token.position < place
        if text:
            yield (" " if blank and begun else ""), text, token
            begun, blank = True, False
        blank = blank or (token.text != token.text.rstrip())
        place = token.position


def _painted(text: str, h: float) -> str:
    if h < SEEN:
        return text
    fade = round(255 - 175 * min(1.0, h))
    return f"\033[48;2;255;{fade};{fade}m\033[30m{text}\033[0m"


def as_html(tokens: list[Token]) -> str:
    """Tokens as a paragraph of HTML, for a light or a dark page.

    Each token's title tells its highest h and where that is; screen readers read h behind each token that is coloured.
    """
    pieces = []
    for blank, text, token in _words(tokens):
        where = max(token.h, key=lambda site: token.h[site], default="")
        title = html.escape(f"h {token.max_h:.2f} {where}")
        colour = f"rgba(214, 40, 40, {DEEPEST * min(1.0, token.max_h):.2f})"
        told = f'<small style="{UNSEEN}"> (h {token.max_h:.2f})</small>' if token.max_h >= SEEN else ""
        pieces.append(f'{blank}<span style="background: {colour}" title="{title}">{html.escape(text)}{told}</span>')
    return f"<p>{''.join(pieces)}</p>"


def as_svg(tokens: list[Token], columns: int = 80) -> str:
    """Tokens as a picture, `columns` characters to a line; another text begins on a new one."""
    across, down = 8.4, 24
    boxes: list[str] = []
    column = row = place = 0
    for blank, text, token in _words(tokens):
        column += len(blank) if column else 0
        if column + len(text) > columns or token.position < place:
            column, row = 0, row + 1
        place = token.position
        x, y = 8 + column * across, 8 + row * down
        width = len(text) * across
        boxes.append(
            f'<rect x="{x - 2:.1f}" y="{y}" width="{width + 4:.1f}" height="20" rx="3" fill="#d62828" '
            f'fill-opacity="{min(1.0, token.max_h):.2f}"><title>h {token.max_h:.2f}</title></rect>'
            f'<text x="{x:.1f}" y="{y + 15}" textLength="{width:.1f}">{html.escape(text)}</text>'
        )
        column += len(text)
    size = f'width="{16 + columns * across:.0f}" height="{16 + (row + 1) * down}"'
    style = 'font-family="monospace" font-size="14"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}><rect width="100%" height="100%" fill="white"/>'
        + "".join(boxes)
        + "</svg>\n"
    )
