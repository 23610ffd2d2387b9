"""Tags in prompts: what they set, what is left of the prompt, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

import dsas_diffusion as dsas
from dsas_core.errors import PromptError

AUTO = dsas.Auto(0.3)


@pytest.mark.parametrize(
    ("text", "clean", "strengths"),
    [
        ("<dsas:x:0.5> a banana", "a banana", {"x": 0.5}),
        ("a banana <dsas:x>", "a banana", {"x": 1.0}),
        ("a <dsas:x:-2> banana", "a banana", {"x": -2.0}),
        ("a banana<dsas:x>", "a banana", {"x": 1.0}),
        ("a <dsas:x>, b", "a, b", {"x": 1.0}),
        ("a, <dsas:x>, b", "a, b", {"x": 1.0}),
        ("a, <dsas:x>", "a", {"x": 1.0}),
        ("<dsas:x>, a", "a", {"x": 1.0}),
        ("a, <dsas:x>, <dsas:y:2>, b", "a, b", {"x": 1.0, "y": 2.0}),
        ("a <dsas:x><dsas:y> b", "a b", {"x": 1.0, "y": 1.0}),
        ("a (red <dsas:x>) b", "a (red) b", {"x": 1.0}),
        ("one\n<dsas:x>\ntwo", "one\ntwo", {"x": 1.0}),
        ("<dsas:x>", "", {"x": 1.0}),
        ("a < DSAS : my folder : auto:0.3 > b", "a b", {"my folder": AUTO}),
        ("a <dsas:user/name:auto> b", "a b", {"user/name": dsas.Auto()}),
        ("a <dsas:builtin:dog-grey> b", "a b", {"builtin:dog-grey": 1.0}),
        ("a <dsas:builtin:dog-grey:.5> b", "a b", {"builtin:dog-grey": 0.5}),
        ("a <dsas:dog-grey:2> b", "a b", {"builtin:dog-grey": 2.0}),
        (r"a <dsas:C:\mine\x:2> b", "a b", {r"C:\mine\x": 2.0}),
        ("a <lora:film:0.8> <dsas:x> b", "a <lora:film:0.8> b", {"x": 1.0}),
    ],
)  # fmt: skip
def test_a_prompt_is_what_it_would_be_without_its_tags(text: str, clean: str, strengths: dict[str, object]) -> None:
    assert dsas.parse_prompt(text) == (clean, strengths)
    assert dsas.parse_prompt(clean) == (clean, {})


@pytest.mark.parametrize("text", ["", "  a  banana, ", "<lora:x:1> a", "a <dsas-x:1> b", "1 < 2 > 0", "<dsasx>"])
def test_what_is_no_tag_of_ours_stays_as_it_is(text: str) -> None:
    assert dsas.parse_prompt(text) == (text, {})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a <dsas:x:0.5", "which no > ends"),
        ("a <dsas:x <lora:y>", "which no > ends"),
        ("a <dsas>", "which names no concept"),
        ("a <dsas x>", "which names no concept"),
        ("a <dsas: :1>", "which names no concept"),
        ("a <dsas::1>", "which names no concept"),
        ("a <dsas:builtin:>", "which names no concept"),
        ("a <dsas:builtin: :1>", "which names no concept"),
        ("a <dsas:x:>", "expected a number from -1e+06 to 1e+06, found ''"),
        ("a <dsas:x:much>", "found 'much'; or auto"),
        ("a <dsas:x:1:2>", "found '1:2'"),
        ("a <dsas:x:nan>", "found 'nan'"),
        ("a <dsas:x:1_0>", "found '1_0'"),
        ("a <dsas:x:auto:2>", "a probability between 0 and 1"),
        ("<dsas:x> a <dsas:x:2>", "sets the concept 'x' twice"),
        ("<dsas:dog-grey> a <dsas:builtin:dog-grey>", "sets the concept 'builtin:dog-grey' twice"),
    ],
)
def test_a_malformed_tag_is_told(text: str, found: str) -> None:
    with pytest.raises(PromptError) as caught:
        dsas.parse_prompt(text)
    assert found in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_at_hand_comes_first_and_then_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a <dsas:dog-grey>"
    assert dsas.parse_prompt(text, ["dog-grey"])[1] == {"dog-grey": 1.0}
    monkeypatch.chdir(tmp_path)
    assert dsas.parse_prompt(text)[1] == {"builtin:dog-grey": 1.0}
    Path("dog-grey").mkdir()
    assert dsas.parse_prompt(text)[1] == {"dog-grey": 1.0}
