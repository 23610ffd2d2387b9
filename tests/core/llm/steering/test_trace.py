"""The trace of a text, and drawing its tokens by their h."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
import torch

from dsas_core import Call, DSASError, Site, llm
from dsas_core.llm import TextTrace, Token, as_html, as_svg, as_terminal
from tests.fixtures.language_models import IDS, LENGTH, concept_for, tiny, written

TOKENS = [
    Token(position, position, text, {"a": h, "b": h / 2}, {"a": 1.0, "b": 1.0}, True)
    for position, (text, h) in enumerate([("you", 0.0), (" <fo", 0.9), ("ol>", 0.8), (" ", 0.5), ("hello", 0.01)])
]


def test_a_terminal_shows_what_was_seen() -> None:
    shown = as_terminal(TOKENS)
    assert shown.startswith("you \033[48;2;255;")
    assert re.sub(r"\033\[[\d;]*m", "", shown) == "you <fool> hello", "parts of a word stay together"


class Pieces:
    """A tokenizer that spells pieces of words; one alone loses the blank before it, as SentencePiece's do."""

    pieces = ("_my", "_wash", "er", "!", "_fool")

    def decode(self, numbers: list[int]) -> str:
        return "".join(self.pieces[number] for number in numbers).replace("_", " ").strip()


def test_tokens_spell_the_text_together() -> None:
    trace, ids = TextTrace(Pieces()), torch.arange(5)[None]
    site, call = Site("model.layers.0"), Call(torch.ones(1), torch.zeros(1, dtype=torch.long))
    for start, part in ((0, ids[:, :3]), (3, ids[:, 3:4]), (4, ids[:, 4:])):
        x = torch.ones(1, part.shape[1], 2)
        trace.note_tokens("model", start, part, torch.ones_like(part))
        if start != 3:  # a site that one call does not reach
            trace.record("rude", site, call, part[..., None] / 10, x, x)
    tokens = trace.tokens()
    assert "".join(token.text for token in tokens) == "my washer! fool"
    assert [token.h.get(str(site)) for token in tokens] == pytest.approx([0, 0.1, 0.2, None, 0.4])


def test_a_row_is_open_where_its_gate_was_at_any_token() -> None:
    trace, x, call = TextTrace(), torch.ones(4, 2, 3), Call(torch.ones(4), torch.arange(4))
    nan = float("nan")  # of a model that overflows
    for start, h in ((0, [[0, 0], [0, 0.1], [0, 0], [0, 0]]), (2, [[0, 0], [0, 0], [1.0, 0], [0, nan]])):
        trace.note_tokens("model", start, None, torch.ones(4, 2))
        trace.record("blur", Site("model.layers.0"), call, torch.tensor(h)[..., None], x, x)
    assert trace.opened() == [False, True, True, True]
    trace.take_rows("model", torch.tensor([0, 0, 3]))
    assert trace.opened() == [False, False, True], "rows that are dropped, repeated or moved take theirs with them"
    with pytest.raises(DSASError, match="the trace is empty"):
        TextTrace().opened()


def test_a_page_is_well_formed_and_as_deep_as_h() -> None:
    paragraph = ElementTree.fromstring(as_html(TOKENS))
    assert [span.text for span in paragraph] == ["you", "<fo", "ol>", "hello"]
    assert [span.tail for span in paragraph] == [" ", None, " ", None]
    assert paragraph[1].get("title") == "h 0.90 a"
    assert "0.54" in (paragraph[1].get("style") or ""), "h = 1 is not opaque: the text can be read on it"


def test_who_sees_no_colours_is_read_h() -> None:
    told = ["".join(small.text or "" for small in span) for span in ElementTree.fromstring(as_html(TOKENS))]
    assert told == ["", " (h 0.90)", " (h 0.80)", ""]


def test_a_picture_breaks_lines_and_texts() -> None:
    names = {"s": "http://www.w3.org/2000/svg"}
    places = {}
    for name, tokens, columns in (("wide", TOKENS, 80), ("narrow", TOKENS, 7), ("two", TOKENS + TOKENS[:1], 80)):
        texts = ElementTree.fromstring(as_svg(tokens, columns)).findall("s:text", names)
        places[name] = [text.get("y") for text in texts]
        assert [text.text for text in texts][:4] == ["you", "<fo", "ol>", "hello"]
    assert len(set(places["wide"])) == 1
    assert len(set(places["narrow"])) == 3
    assert places["two"][-1] != places["two"][0], "another text begins on a new line"


def test_a_stream_knows_each_token_as_it_comes() -> None:
    model = tiny("llama")
    known: list[int] = []

    class Streamer:
        def put(self, value: torch.Tensor) -> None:
            if steering.trace is not None and steering.trace.records:
                known.append(len(steering.trace.tokens()))

        def end(self) -> None:
            known.append(-1)

    with llm.steer(model, {concept_for(model): 1.0}, trace=True) as steering:
        written(model, IDS[:1], streamer=Streamer())
    assert known == [*range(7, 7 + LENGTH), -1]


def test_the_trace_tells_tokens_and_their_change() -> None:
    model = tiny("llama")
    concept = concept_for(model)
    with llm.steer(model, {concept: 1.0}, trace=True) as steering:
        written(model)
    assert steering.trace is not None
    tokens = steering.trace.tokens(row=1)
    assert [token.id for token in tokens[:7]] == IDS[1].tolist()
    assert [token.position for token in tokens] == list(range(7 + LENGTH - 1))
    assert not tokens[0].counted
    assert tokens[0].max_h == 0
    assert all(0 < token.max_h <= 1 and min(token.cosine.values()) < 1 for token in tokens[1:])
    assert set(tokens[1].h) == set(map(str, concept.sites))
    with pytest.raises(DSASError, match="no row 2: the last call had 2"):
        steering.trace.tokens(row=2)
