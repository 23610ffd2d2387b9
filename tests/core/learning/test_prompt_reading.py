"""Prompt files as they are read: encodings, YAML, content that is refused."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from dsas_core import DSASError
from dsas_core.learning.prompts.prompt_file import load_prompts
from dsas_core.llm.learning.scored_texts import Scored, read_scored
from tests.core.learning.test_prompt_texts import NUMBERS, bomb, content, refusal
from tests.fuzz.campaign import check_message


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings_with_a_mark_are_read(tmp_path: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding[-3:] in ("-le", "-be") else ""
    path = tmp_path / "file"
    path.write_bytes((mark + yaml.safe_dump(content("für 日 {n}"), allow_unicode=True)).encode(encoding))
    assert load_prompts(path).expanded("source")[0] == "für 日 10"
    path.write_bytes(f"{mark}text,score\r\nfür 日,0.5\r\n".encode(encoding))
    assert read_scored(path) == [Scored("für 日", 0.5)]
    path.write_bytes(f'{mark}{{"text": "für 日", "score": 1}}\n'.encode(encoding))
    assert read_scored(path) == [Scored("für 日", 1.0)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nsource: [für]".encode("latin-1"), "line 2 is not in UTF-8: byte 0xfc.*iconv -f LATIN1"),
        ("name: x\nsource: [a]".encode("utf-16-le"), "line 1: a byte is 0, as in UTF-16.*iconv"),
        ("name: [ü".encode("utf-16")[:-1], "is not in UTF-16"),
        (b"\x80\x04\x95\x00", "is not in UTF-8: byte 0x80"),
        ("name: a\nsource: [2024-99-99]", "line 2: '2024-99-99' is read as a date: put it in quotes"),
        ("name: a\nsource: [2024-01-01]", "line 2: '2024-01-01' is read as a date"),
        ("name: 2024-99-99", "line 1: '2024-99-99' is read as a date"),
        ("[" * 200_000, "line 1: more than 24 lists or mappings are within one another"),
        ("{a: " * 5_000, "more than 24 lists"),
        (f"name: a\nsource: [{'9' * 10_000}]", "line 2: '99.*' cannot be read as a number: put a text in quotes"),
        ("name: a\nsource: [0b_]", "line 2: '0b_' cannot be read as a number"),
        (bomb("[x]", "[{}]"), "it has more than 100,000 texts"),
        (bomb("{x: y}", "{{<<: [{}]}}"), "it has more than 100,000 texts"),
        (bomb("[x]", "[[{}]]", 500, 1), "more than 24 lists or mappings"),
        ("a: &a [*a]", r"line 1: \*a is within what it stands for"),
        ("a: *b", "undefined alias"),
        ("name: a\nname: b", "line 2: the key 'name' stands twice"),
        ('name: a\n"name": b', "line 2: the key 'name' stands twice"),
        ("placeholders:\n  place: [a]\n  place: [b]", "line 3: the key 'place' stands twice"),
        ("placeholders:\n  no: [a]", "line 2: the key 'no' is read as true or false, not as a text: put it in quotes"),
        ("placeholders:\n  on: [a]", "the key 'on' is read as true or false"),
        ("1: a", "the key '1' is read as a number"),
        ("1:30: a", "the key '1:30' is read as a number"),
        ("? [a]\n: b", "the key in brackets is read as a list"),
        ("!!python/object/apply:os.system ['true']", "is not YAML: it has the tag"),
        ("name: !!binary aGVsbG8=", "is not YAML: it has the tag !!binary"),
        ("name: !!int x", "it has the tag !!int"),
        ("name: !mine x", "it has the tag !mine"),
        ("source: [a, =]", "'=' is read as something else than a text"),
        ("name: a\n---\nname: b", "line 2 is not YAML: but found another document"),
        ('name: "a\\ud800"', "half a character"),
        (b"name: a\nsource: [a\x07]", "line 2 is not YAML: it holds the character"),
        ("", "expected a mapping"),
        ("\ufeff", "expected a mapping"),
        ("just a text", "expected a mapping.* found 'just a text'"),
        ("x" * 9_000_000, "has more than 8 MiB"),
        (f"name: {'x' * 22_000} y", "lacks source"),
        (f"? {'x' * 22_000}\n: y", "lacks name"),
    ],
    ids=range(38),
)  # fmt: skip
def test_files_that_are_refused_in_one_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    found = refusal(tmp_path, text)
    assert re.search(message, found), found


def test_aliases_and_merge_keys_are_read(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(
        "name: it\nplaceholders: {n: &n ['1', '2', '3', '4', '5', '6', '7', '8'], m: *n}\nsource: ['a {n}']\n"
        "target: ['b {m}']\ncontrol: ['c {n}']\njudge: {builtin: &j {style: x}}\nmasks: {other: {<<: *j, y: 1}}\n"
    )
    prompts = load_prompts(path)
    assert prompts.placeholders["m"] == prompts.placeholders["n"]
    assert prompts.masks == {"other": {"style": "x", "y": 1}}


def test_characters_beyond_the_first_plane_come_whole_from_json(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps(content("😀 {n}")))
    assert load_prompts(path).expanded("source")[0] == "😀 10"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": False}, "name must be a text, found False: put it in quotes"),
        ({"name": 12}, "name must be a text, found 12"),
        ({"name": "x" * 22_000 + "/"}, "must be letters, digits"),
        ({"description": 12}, "description must be a text"),
        ({"description": "a\0"}, "control character, U\\+0000"),
        ({"source": ["a {n}", True]}, "source: .*True is no text: put it in quotes"),
        ({"source": ["a {n}", None]}, "None is no text"),
        ({"source": ["a {n}", 1.5]}, "1.5 is no text"),
        ({"source": ["a {n}", 10**10_000]}, "thousands of digits is no text"),
        ({"source": False}, "expected a list of texts, found False"),
        ({"source": {"a": 1}}, "expected a list of texts"),
        ({"source": ["a {n}", "a\0"]}, "holds a control character, U\\+0000: leave it out"),
        ({"source": ["a {n}", "a\x1b[31m"]}, "U\\+001B"),
        ({"source": ["a {n}", "a\ud800"]}, "holds half a character, U\\+D800"),
        ({"source": ["a {n}", "\u200b\u200f \n"]}, "nothing is to be read"),
        ({"placeholders": {"n": [*NUMBERS, ""]}}, "placeholder n: expected a list of texts"),
        ({"placeholders": {"n": NUMBERS, 3: ["a"]}}, "the name 3 is no text"),
        ({"placeholders": {"n": NUMBERS, "\u00e9": ["a"], "e\u0301": ["b"]}}, "stands twice"),
        ({"placeholders": 0}, "placeholders must map names to lists"),
        ({"evaluation": {"source": ["a"]}}, "call it unseen_source"),
        ({"evaluation": {"a": 3}}, "evaluation a: expected a list of texts"),
        ({"evaluation": False}, "evaluation must map"),
        ({"spans": False}, "spans: expected a list of texts"),
        ({"judge": 0}, "judge must map one kind of judge"),
        ({"judge": [{}]}, "judge must map one kind of judge"),
        ({"judge": {"a": {}, "b": {}}}, "judge must map one kind of judge"),
        ({"judge": {"a": {"b": float("inf")}}}, "judge: expected finite numbers"),
        ({"judge": {"a": {"b": 10**400}}}, "judge: expected numbers below"),
        ({"judge": {"a": {1: 2}}}, "judge: expected keys that are texts"),
        ({"judge": {"a": {"b": {1}}}}, "judge: expected texts, numbers"),
        ({"masks": False}, "masks must map one kind"),
        ({"masks": {"a": "\udc00"}}, "half a character"),
        ({"private": None}, "private must be true or false"),
        ({"private": "yes"}, "private must be true or false"),
        ({"x" * 22_000: 1}, "has unknown xx"),
        ({3: 1}, "has unknown 3"),
    ],
    ids=range(36),
)  # fmt: skip
def test_content_that_is_refused_in_one_line(changes: dict[Any, Any], message: str) -> None:
    with pytest.raises(DSASError, match=message) as error:
        load_prompts(content("a {n}") | changes)
    check_message(str(error.value))


def deep(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("key", ["source", "judge", "masks", "placeholders", "evaluation", "name", "private"])
def test_deep_content_is_refused_in_one_line(key: str) -> None:
    for value in (deep(100_000), {"a": deep(100_000)}):
        with pytest.raises(DSASError) as error:
            load_prompts(content("a {n}") | {key: value})
        check_message(str(error.value))


@pytest.mark.parametrize("source", [3, None, b"a.yaml", ["a"], "x" * 5000, "a\0b", "/", "/dev/null", "\ud800"])
def test_what_is_no_prompt_file_at_all(source: Any) -> None:
    with pytest.raises(DSASError) as error:
        load_prompts(source)
    check_message(str(error.value))


def test_a_file_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_text("name: a")

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    for read in (load_prompts, read_scored):
        with pytest.raises(DSASError, match=r"cannot read .*: Permission denied"):
            read(path)


def test_an_expansion_beyond_all_numbers_is_refused() -> None:
    many = {f"p{i}": [f"v{j}" for j in range(50)] for i in range(3000)}
    with pytest.raises(DSASError, match=r"would give 10\^24 or more prompts"):
        load_prompts(content("".join(f"{{{name}}}" for name in many), placeholders={"n": NUMBERS, **many}))


@pytest.mark.slow
def test_the_largest_files_are_read_in_time(tmp_path: Path) -> None:
    path = tmp_path / "large"
    for text in ("a: [" + "x," * 99_000 + "]", "a: '" + "x y " * 2_000_000 + "'", "a: " + "x\n " * 2_000_000):
        start = time.process_time()
        refusal(tmp_path, text, path.name)
        assert time.process_time() - start < 20
