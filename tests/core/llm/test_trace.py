"""Drawing tokens by their h."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from dsas_core.llm import Token, as_html, as_svg, as_terminal

TOKENS = [
    Token(position, position, text, {"a": h, "b": h / 2}, {"a": 1.0, "b": 1.0}, True)
    for position, (text, h) in enumerate([("you", 0.0), ("<fool>", 0.9), (" ", 0.5), ("hello", 0.01)])
]


def test_a_terminal_shows_what_was_seen() -> None:
    shown = as_terminal(TOKENS)
    assert shown.startswith("you \033[48;2;255;")
    assert re.sub(r"\033\[[\d;]*m", "", shown) == "you <fool> hello"


def test_a_page_is_well_formed_and_as_deep_as_h() -> None:
    paragraph = ElementTree.fromstring(as_html(TOKENS))
    assert [span.text for span in paragraph] == ["you", "<fool>", "hello"]
    assert paragraph[1].get("title") == "h 0.90 a"
    assert "0.90" in (paragraph[1].get("style") or "")


def test_a_picture_breaks_lines_and_texts() -> None:
    names = {"s": "http://www.w3.org/2000/svg"}
    places = {}
    for name, tokens, columns in (("wide", TOKENS, 80), ("narrow", TOKENS, 6), ("two", TOKENS + TOKENS[:1], 80)):
        texts = ElementTree.fromstring(as_svg(tokens, columns)).findall("s:text", names)
        places[name] = [text.get("y") for text in texts]
        assert [text.text for text in texts][:3] == ["you", "<fool>", "hello"]
    assert len(set(places["wide"])) == 1
    assert len(set(places["narrow"])) == 3
    assert places["two"][-1] != places["two"][0], "another text begins on a new line"
