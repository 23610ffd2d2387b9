"""The tokens of a trace, coloured by h: for a terminal, a page, or a picture."""

from __future__ import annotations

import html
from collections.abc import Iterator

from .trace import Token

#: from this h on a token is coloured
MIN_H = 0.02
#: how opaque the red behind a token of h = 1 is on a page: dark text and light text can both be read on it
MAX_OPACITY = 0.6
#: out of sight, and out of what is copied, but read to those who cannot see colours
VISUALLY_HIDDEN = "position: absolute; clip-path: inset(50%); white-space: nowrap; user-select: none"


def as_terminal(tokens: list[Token]) -> str:
    """Tokens on a red background as deep as their highest h, for a terminal that takes 24-bit colours.

    Args:
        tokens: of `TextTrace.tokens`.
    """
    return "".join(blank + _paint(text, token.max_h) for blank, text, token in _words(tokens))


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


def _paint(text: str, h: float) -> str:
    if h < MIN_H:
        return text
    fade = round(255 - 175 * min(1.0, h))
    return f"\033[48;2;255;{fade};{fade}m\033[30m{text}\033[0m"


def as_html(tokens: list[Token]) -> str:
    """Tokens as a paragraph of HTML, for a light or a dark page.

    Each token's title tells its highest h and where that is; screen readers read h behind each token that is coloured.

    Args:
        tokens: of `TextTrace.tokens`.

    Example:
        >>> as_html([Token(0, 5, "hello", {"layer": 0.0}, {"layer": 1.0}, True)])
        '<p><span style="background: rgba(214, 40, 40, 0.00)" title="h 0.00 layer">hello</span></p>'
    """
    pieces = []
    for blank, text, token in _words(tokens):
        where = max(token.h, key=lambda site: token.h[site], default="")
        title = html.escape(f"h {token.max_h:.2f} {where}")
        colour = f"rgba(214, 40, 40, {MAX_OPACITY * min(1.0, token.max_h):.2f})"
        spoken = f'<small style="{VISUALLY_HIDDEN}"> (h {token.max_h:.2f})</small>' if token.max_h >= MIN_H else ""
        pieces.append(f'{blank}<span style="background: {colour}" title="{title}">{html.escape(text)}{spoken}</span>')
    return f"<p>{''.join(pieces)}</p>"


def as_svg(tokens: list[Token], columns: int = 80) -> str:
    """Tokens as a picture in SVG; another text begins on a new line.

    Args:
        tokens: of `TextTrace.tokens`, of one text or of several behind one another.
        columns: characters to a line.
    """
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
