"""Heat-maps of h over the tokens of a trace: for a terminal, in HTML, or in SVG."""

from __future__ import annotations

import html
from collections.abc import Iterator

from .trace import Token

#: lowest h at which a token is coloured
MIN_H = 0.02
#: opacity of the red behind a token of h = 1 in HTML; dark and light text can be read on it
MAX_OPACITY = 0.6
#: style of text for screen readers, which is neither visible nor copied
VISUALLY_HIDDEN = "position: absolute; clip-path: inset(50%); white-space: nowrap; user-select: none"


def as_terminal(tokens: list[Token]) -> str:
    """Colour tokens for a terminal with 24-bit colours: the higher h, the deeper the red behind them.

    Args:
        tokens: output of `TextTrace.tokens`.

    Example:
        >>> print(as_terminal([Token(0, 5, "hello", {"layer": 0.0}, {"layer": 1.0}, True)]))
        hello
    """
    return "".join(blank + _paint(text, token.max_h) for blank, text, token in _words(tokens))


def _words(tokens: list[Token]) -> Iterator[tuple[str, str, Token]]:
    """Tokens with text: the blank before each, its text without blanks, and the token."""
    blank = begun = False
    position = -1
    for token in tokens:
        text = token.text.strip()
        blank = blank or token.text != token.text.lstrip() or token.position < position
        if text:
            yield (" " if blank and begun else ""), text, token
            begun, blank = True, False
        blank = blank or token.text != token.text.rstrip()
        position = token.position


def _paint(text: str, h: float) -> str:
    if h < MIN_H:
        return text
    fade = round(255 - 175 * min(1.0, h))
    return f"\033[48;2;255;{fade};{fade}m\033[30m{text}\033[0m"


def as_html(tokens: list[Token]) -> str:
    """Colour tokens in a paragraph of HTML, for light and dark pages.

    The title of each token has its highest h and the site of it; screen readers read h behind each coloured token.

    Args:
        tokens: output of `TextTrace.tokens`.

    Example:
        >>> as_html([Token(0, 5, "hello", {"layer": 0.0}, {"layer": 1.0}, True)])
        '<p><span style="background: rgba(214, 40, 40, 0.00)" title="h 0.00 layer">hello</span></p>'
    """
    pieces = []
    for blank, text, token in _words(tokens):
        title = html.escape(f"h {token.max_h:.2f} {token.max_site}")
        colour = f"rgba(214, 40, 40, {MAX_OPACITY * min(1.0, token.max_h):.2f})"
        spoken = f'<small style="{VISUALLY_HIDDEN}"> (h {token.max_h:.2f})</small>' if token.max_h >= MIN_H else ""
        pieces.append(f'{blank}<span style="background: {colour}" title="{title}">{html.escape(text)}{spoken}</span>')
    return f"<p>{''.join(pieces)}</p>"


def as_svg(tokens: list[Token], columns: int = 80) -> str:
    """Draw coloured tokens as SVG; each text begins on a new line.

    Args:
        tokens: output of `TextTrace.tokens`, of one text or of several, concatenated.
        columns: characters per line.

    Example:
        >>> as_svg([Token(0, 5, "hello", {"layer": 0.5}, {"layer": 1.0}, True)])[:63]
        '<svg xmlns="http://www.w3.org/2000/svg" width="688" height="40"'
    """
    character_width, line_height = 8.4, 24
    boxes: list[str] = []
    column = row = position = 0
    for blank, text, token in _words(tokens):
        column += len(blank) if column else 0
        if column + len(text) > columns or token.position < position:
            column, row = 0, row + 1
        position = token.position
        x, y = 8 + column * character_width, 8 + row * line_height
        width = len(text) * character_width
        boxes.append(
            f'<rect x="{x - 2:.1f}" y="{y}" width="{width + 4:.1f}" height="20" rx="3" fill="#d62828" '
            f'fill-opacity="{min(1.0, token.max_h):.2f}"><title>h {token.max_h:.2f}</title></rect>'
            f'<text x="{x:.1f}" y="{y + 15}" textLength="{width:.1f}">{html.escape(text)}</text>'
        )
        column += len(text)
    size = f'width="{16 + columns * character_width:.0f}" height="{16 + (row + 1) * line_height}"'
    style = 'font-family="monospace" font-size="14"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}><rect width="100%" height="100%" fill="white"/>'
        + "".join(boxes)
        + "</svg>\n"
    )
