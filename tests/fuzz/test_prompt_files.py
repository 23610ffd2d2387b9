"""Campaigns on prompt files and labelled data sets: valid ones are damaged, and then read, checked, drawn and kept."""

from __future__ import annotations

import copy
import csv
import datetime
import io
import json
import math
import re
import string
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from dsas_core.learning.prompts.draft import draft
from dsas_core.learning.prompts.hints import hints
from dsas_core.learning.prompts.kept import hash_content, record_prompts
from dsas_core.learning.prompts.prompt_file import load_prompts
from dsas_core.learning.prompts.prompt_set import SIDES, PromptSet
from dsas_core.llm.learning.datasets import prompt_set
from dsas_core.llm.learning.scored_texts import KINDS, read_scored
from dsas_core.llm.model.conversations import parse_turns

from .campaign import campaign, works_or_is_refused

# ---- valid files ---------------------------------------------------------------------------------------------------

WORDS = (
    ["a", "an", "the", "on", "apple", "hour", "unicorn", "va", "insultar", "uva", "é", "e\u0301", "日本", "שלום"]
    + ["مرحبا", "😀", "\u200f", "{{x}}", '{{"a": 1}}', "user:", "\nassistant:", "\n\t", "    ", "\r\n", "no"]
    + ["2024-01-01", "'", '"', "#"]
)  # fmt: skip
PARTS = ["alone", "unseen_source", "unnamed"]
NAMES = ["place", "other", "größe", "a.b", "0"]
PLACEHOLDERS = st.sampled_from([f"{{{name}}}" for name in NAMES[:3]])
words = st.sampled_from(WORDS)
templates = st.lists(words | PLACEHOLDERS, min_size=1, max_size=6).map(lambda parts: f"{' '.join(parts)} {{place}}")
values = st.lists(words.map(lambda word: f"{word}o"), min_size=1, max_size=3, unique=True)
settings_of_judges = st.fixed_dictionaries(
    {"builtin": st.fixed_dictionaries({"things": st.lists(words), "style": words})}
)


@st.composite
def contents(draw: Callable[..., Any]) -> dict[str, Any]:
    """Prompt files as they are meant, almost all of which are valid."""
    content: dict[str, Any] = {"name": draw(st.sampled_from(["it", "banana-blur", "1.x"]))}
    content["placeholders"] = {name: draw(values) for name in NAMES}
    content["placeholders"]["place"] = [f"{i} {draw(words)}" for i in range(draw(st.integers(8, 10)))]
    for side in SIDES:
        content[side] = draw(st.lists(templates, min_size=1, max_size=3))
    content["target"][0] = f"so {content['target'][0]}"
    optional = {
        "description": words.map(lambda word: f"It is {word}."),
        "source_unnamed": st.lists(templates, min_size=1, max_size=2),
        "spans": st.lists(words.map(lambda word: f"{word}s"), min_size=1, max_size=2),
        "evaluation": st.dictionaries(st.sampled_from(PARTS), st.lists(templates, min_size=1)),
        "judge": settings_of_judges | st.lists(settings_of_judges, max_size=2),
        "masks": settings_of_judges,
        "private": st.booleans(),
    }  # fmt: skip
    for key in draw(st.lists(st.sampled_from(sorted(optional)), unique=True)):
        content[key] = draw(optional[key])
    return content


# ---- damage --------------------------------------------------------------------------------------------------------


def deep(levels: int, of: Callable[[Any], Any] = lambda value: (value,)) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = of(value)
    return value


# what is odd in any place; what is deep is made of tuples, which `damaged` leaves alone
ODD: list[Any] = [None, True, False, 0, -1, 1.5, math.nan, math.inf, 10**30, 10**5000, datetime.date(2024, 1, 1), b"a"]
ODD += [
    "",
    " ",
    "\n",
    "\0",
    "\x1b[0m",
    "\ud800",
    "\u200b",
    "x" * 22_000,
    "../up",
    "a b",
    "no",
    "~",
    {"a", "b"},
    object(),
]
ODD += ["{", "}", "{}", "{{", "{x}", "{place}", "{{place}}", "{place:>10}", "{place!r}", "{other.a}", "{0}", "{a[0]}"]
ODD += [[], {}, [[]], [None], ["a", 1], {"a": 1}, {1: "a"}, {"a": ["b"]}, ["a", "a"], ("a",), {"a": {"b": [math.inf]}}]
ODD += [deep(50), deep(5000), (deep(5000, lambda value: {"a": value}),), {"e\u0301": ["x"], "é": ["y"]}]
ODD += [[f"text {i}" for i in range(2000)], ["{place} {other}" * 20]]
TOKENS = [
    "-",
    "?",
    ":",
    "{",
    "}",
    "[",
    "]",
    "'",
    '"',
    "#",
    "@",
    "`",
    "\\",
    "=",
    ",",
    ";",
    "|",
    "~",
    "*a",
    "2024-99-99",
    "0b_",
    "no",
    ".inf",
    "\\ud800",
    "{x}",
    "{{",
    "NaN",
    "1e999",
    "-1",
    "1:30:",
    "score",
]
TOKENS += [
    "&a ",
    "!!python/name:os.system ",
    "!x ",
    "!!str ",
    "!!int ",
    "<<: *a\n",
    "- ",
    "? ",
    ": ",
    "|\n",
    ">+\n",
    "[" * 2000,
]
TOKENS += [
    "%YAML 1.1\n",
    "---\n",
    "...\n",
    "9" * 5000,
    "\0",
    "\x07",
    "\x85",
    "\u2028",
    "\ufeff",
    "\u202e",
    "\t",
    "\r",
    "\n\n",
]
TOKENS += ["sep=;\n", '{"text": "a"}']


def copied(value: Any) -> Any:
    """A value of its own, so that damage does not reach the next case; what is too deep is shared."""
    try:
        return copy.deepcopy(value)
    except RecursionError:
        return value


@st.composite
def damaged(draw: Callable[..., Any], of: Any) -> Any:
    """Plain data, up to three places of which are replaced, taken away or doubled."""
    content = copied(draw(of))
    for _ in range(draw(st.integers(0, 3))):
        parent, key, value = None, None, content
        while isinstance(value, dict | list) and value and (parent is None or draw(st.booleans())):
            keys = sorted(value, key=str) if isinstance(value, dict) else range(len(value))
            parent, key = value, draw(st.sampled_from(keys))
            value = value[key]
        if parent is None:
            return content
        match draw(st.sampled_from(["replace", "delete", "swap", "rename"])):
            case "delete":
                del parent[key]
            case "swap":
                parent[key] = copied(content.get(draw(st.sampled_from([*SIDES, "name", "judge", "evaluation"]))))
            case "rename" if isinstance(parent, dict):
                new = draw(st.sampled_from(["sauce", "source", "", "a b", 1, None, True, "é", "x" * 5000]))
                parent[new] = parent.pop(key)
            case _:
                parent[key] = copied(draw(st.sampled_from(ODD)))
    return content


def write(content: Any, form: str) -> str | None:
    """Plain data as a file; None where that cannot hold it."""
    try:
        if form == "json":
            return json.dumps(content, ensure_ascii=len(str(content)) % 2 == 0)
        return yaml.safe_dump(
            content, allow_unicode=True, sort_keys=False, default_style="|" if form == "block" else None
        )
    except (yaml.YAMLError, RecursionError, TypeError, ValueError):
        return None


@st.composite
def damaged_bytes(draw: Callable[..., Any], of: Any) -> bytes:
    """A text, damaged in up to four places, in any encoding, and its bytes damaged in up to two."""
    text = draw(of)
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 30)))
        token = draw(st.sampled_from([*TOKENS, text[start:end] * 2, ""]))
        text = text[:start] + token + text[end if draw(st.booleans()) else start :]
    encoding = draw(
        st.sampled_from(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "utf-16-le", "latin-1", "utf-32", "cp1252"])
    )
    content = bytearray(text.encode(encoding, "replace"))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        if not content:
            break
        at = draw(st.integers(0, len(content) - 1))
        match draw(st.sampled_from(["flip", "cut", "drop", "insert"])):
            case "flip":
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del content[at:]
            case "drop":
                del content[at : at + draw(st.integers(1, 9))]
            case _:
                content[at:at] = bytes(draw(st.lists(st.integers(0, 255), max_size=4)))
    return bytes(content)


#: braces of a template that texts are compared with
MOST_COMPARED = 12

# ---- what must hold of what is accepted ----------------------------------------------------------------------------


def check(prompts: PromptSet) -> None:
    """What is accepted is drawn as it is written, and comes back as it was."""
    for part in (*SIDES, "source_unnamed", "spans", *prompts.evaluation):
        templates = getattr(prompts, part, None) or prompts.evaluation.get(part, ())
        # of many placeholders in a row, a regular expression tries every division of a text
        patterns = [pattern_of(t) for t in templates if t.count("{") <= MOST_COMPARED]
        texts = prompts.expanded(part)
        for text in texts[:: 1 + len(texts) // 50]:  # each is compared with all templates
            assert text.strip()
            assert text.encode()
            assert "\0" not in text
            if len(patterns) == len(templates):
                assert any(pattern.fullmatch(text) for pattern in patterns), (text, templates)
            assert "{b}" not in text
    content = prompts.to_dict()
    assert load_prompts(content) == prompts
    assert load_prompts(json.loads(json.dumps(content))).to_dict() == content  # as a concept keeps it
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "again.yaml")
        path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8", newline="")
        assert load_prompts(path) == prompts
    json.dumps([record_prompts(prompts, 8, 0, keep) for keep in ("all", "hash")], allow_nan=False)
    hash_content(prompts)
    for drawn in (prompts.draw(8, 1), prompts.fresh(8, 1)):
        assert all(isinstance(hint, str) for hint in hints(drawn))
        for texts in drawn.values():
            for text in texts:
                parse_turns(text)


def pattern_of(template: str) -> re.Pattern[str]:
    """What a template may become: its text as it is, but for articles and placeholders, by Python's own parser."""
    pattern = ""
    for text, name, _, _ in string.Formatter().parse(template):
        literal = re.escape(text)
        if name is not None:
            literal = re.sub(r"(?<=[aA])n?((?:\\?\s)+)$", r"n?\1", literal) + "(.+)"
        pattern += literal
    return re.compile(pattern, re.DOTALL)


# ---- campaigns -----------------------------------------------------------------------------------------------------


@campaign(3000, content=damaged(contents()), form=st.sampled_from(["mapping", "yaml", "block", "json"]))
def test_prompt_files_of_odd_structure(content: Any, form: str) -> None:
    text = None if form == "mapping" else write(content, form)
    with works_or_is_refused():
        if text is None:
            prompts = load_prompts(content)
        else:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "prompts.yaml")
                path.write_bytes(text.encode("utf-8", "surrogatepass"))
                prompts = load_prompts(path)
        check(prompts)


@campaign(3000, content=damaged_bytes(contents().map(lambda content: write(content, "yaml"))))
def test_damaged_prompt_files(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder, works_or_is_refused():
        path = Path(folder, "prompts.yaml")
        path.write_bytes(content)
        check(load_prompts(path))


@campaign(500, source=st.lists(words, max_size=3).map(" ".join), target=st.lists(words, max_size=3).map(" ".join))
def test_drafts_of_any_phrases(source: str, target: str) -> None:
    with works_or_is_refused():
        check(load_prompts(draft(source, target, "it")))


TEXTS = st.lists(words, min_size=1, max_size=5).map(" ".join)
SCORES = st.sampled_from([0, 1, 0.0, 0.05, 0.9, "0.5", True, None])
ROWS: dict[str, Any] = {
    "plain": st.fixed_dictionaries({"text": TEXTS, "score": SCORES, "group": words}),
    "jigsaw": st.fixed_dictionaries({"comment_text": TEXTS, "toxic": SCORES, "insult": st.sampled_from([0, 1, -1])}),
    "toxigen": st.fixed_dictionaries({"text": TEXTS, "toxicity_human": st.sampled_from([1, 3.5, 5]), "group": words}),
    "realtoxicityprompts": st.fixed_dictionaries(
        {part: st.fixed_dictionaries({"text": TEXTS, "toxicity": SCORES}) for part in ("prompt", "continuation")}
    ),
}  # fmt: skip


@st.composite
def data_sets(draw: Callable[..., Any]) -> str:
    """CSV or JSONL of each kind, a few rows of which are odd."""
    kind = draw(st.sampled_from(sorted(ROWS)))
    row = ROWS[kind] if draw(st.booleans()) else damaged(ROWS[kind])
    rows = draw(st.lists(row, min_size=1, max_size=4))
    if kind == "plain":  # enough to choose from
        rows += [{"text": f"text {i}", "score": int(i % 4 == 0), "group": ""} for i in range(48)]
    if kind == "realtoxicityprompts" or draw(st.booleans()):
        lines = [write(row, "json") or "{}" for row in rows]
        return "\n".join(line.encode("utf-8", "replace").decode() for line in lines)
    names = list(dict.fromkeys(str(name) for row in rows for name in row))
    file = io.StringIO()
    table = csv.writer(file, delimiter=draw(st.sampled_from(",;\t|")))
    table.writerow(names)
    for row in rows:
        given = {str(name): value for name, value in row.items()}
        table.writerow([csv_value(given.get(name)) for name in names])
    return file.getvalue().encode("utf-8", "replace").decode()


def csv_value(value: Any) -> str:
    try:
        return str(value)
    except (ValueError, RecursionError):
        return "9" * 5000


@campaign(
    2000,
    content=damaged_bytes(data_sets()) | data_sets().map(str.encode),
    kind=st.sampled_from([None, None, None, *KINDS]),
)
def test_damaged_data_sets(content: bytes, kind: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder, works_or_is_refused():
        path = Path(folder, "texts")
        path.write_bytes(content)
        scored = read_scored(path, kind)
        assert scored
        assert all(item.text and item.text.encode() and 0 <= item.score <= 1 for item in scored)
        check(prompt_set(scored, "it"))
