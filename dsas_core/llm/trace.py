"""The trace of a text: h and the change of direction per token, in a table, a terminal, or a page."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import DSASError
from ..trace import Trace


@dataclass(frozen=True)
class Token:
    """One token as the model read it.

    Args:
        position: its place in the row, pads counted. id: its number, or -1 where only embeddings were given.
        text: what it spells; "" without a tokenizer.
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
    """The tokens of one call."""

    start: int
    ids: torch.Tensor | None
    mask: torch.Tensor


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
        root = root or [name for name in self._parts if any(r.site.root == name for r in self.records)][-1]
        records = self.select(concept or names[0], root=root)
        by_site = {str(site): [r for r in records if r.site == site] for site in dict.fromkeys(r.site for r in records)}
        parts = self._parts[root]
        if not 0 <= row < len(parts[-1].mask):
            raise DSASError(f"no row {row}: the last call had {len(parts[-1].mask)}")
        found: dict[int, Token] = {}
        for number, part in enumerate(parts):
            here = {site: rows[number] for site, rows in by_site.items() if number < len(rows)}
            h = {site: record.h[row].tolist() for site, record in here.items()}
            cosine = {site: record.cosine[row].tolist() for site, record in here.items()}
            for place in range(part.mask.shape[1]):
                number_of = -1 if part.ids is None else int(part.ids[row, place])
                found[part.start + place] = Token(
                    position=part.start + place,
                    id=number_of,
                    text=self._spelled(number_of),
                    h={site: values[place] for site, values in h.items()},
                    cosine={site: values[place] for site, values in cosine.items()},
                    counted=bool(part.mask[row, place]),
                )
        return [found[position] for position in sorted(found)]

    def _spelled(self, number: int) -> str:
        return "" if self.tokenizer is None or number < 0 else str(self.tokenizer.decode([number]))


def as_terminal(tokens: list[Token]) -> str:
    """Tokens on a red background as deep as their highest h, for a terminal that takes 24-bit colours."""
    return " ".join(_painted(token.text.strip(), token.max_h) for token in tokens if token.text.strip())


def _painted(text: str, h: float) -> str:
    if h < 0.02:
        return text
    fade = round(255 - 175 * min(1.0, h))
    return f"\033[48;2;255;{fade};{fade}m\033[30m{text}\033[0m"


def as_html(tokens: list[Token]) -> str:
    """Tokens as a paragraph of HTML; each token's title tells its highest h and where it is."""
    pieces = []
    for token in tokens:
        if not token.text.strip():
            continue
        where = max(token.h, key=lambda site: token.h[site], default="")
        title = html.escape(f"h {token.max_h:.2f} {where}")
        colour = f"rgba(214, 40, 40, {min(1.0, token.max_h):.2f})"
        text = html.escape(token.text.strip())
        pieces.append(f'<span style="background: {colour}" title="{title}">{text}</span>')
    return f"<p>{' '.join(pieces)}</p>"


def as_svg(tokens: list[Token], columns: int = 80) -> str:
    """Tokens as a picture, `columns` characters to a line; another text begins on a new one."""
    across, down = 8.4, 24
    boxes: list[str] = []
    column = row = place = 0
    for token in tokens:
        text = token.text.strip()
        if not text:
            continue
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
        column += len(text) + 1
    size = f'width="{16 + columns * across:.0f}" height="{16 + (row + 1) * down}"'
    style = 'font-family="monospace" font-size="14"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}><rect width="100%" height="100%" fill="white"/>'
        + "".join(boxes)
        + "</svg>\n"
    )
