"""What prompt files say is what is trained on: texts, articles, braces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dsas_core import DSASError
from dsas_core.learning.prompts.draft import draft
from dsas_core.learning.prompts.prompt_file import load_prompts
from dsas_core.learning.prompts.prompt_set import MINIMUM, PromptSet
from dsas_core.learning.prompts.templates import as_same, expand
from tests.fuzz.campaign import check_message

NUMBERS = [str(n) for n in range(10, 10 + MINIMUM)]
#: a template of each language, in most of which "a" or "an" is a word, and values that begin with a vowel
LANGUAGES = {
    "Spanish": ("ese hombre te va a {x} ahora", ["insultar", "amar", "oír"]),
    "Portuguese": ("eu vi a {x} no jardim com ele", ["uva", "amiga", "irmã"]),
    "French": ("il a {x} dans la maison", ["oublié", "aimé", "un chat"]),
    "German": ("ich denke oft an {x} und an {x}", ["Berlin", "Omas Haus", "dich"]),
    "Italian": ("vado a {x} con mia sorella", ["imparare", "Asti", "casa"]),
    "Polish": ("kot a {x} to nie jest pies", ["osioł", "indyk", "ona"]),
    "Hungarian": ("nem láttam a {x} itt", ["autót", "kutyát", "iskolát"]),
    "Turkish": ("bir an {x} için durdu", ["önce", "ev", "ışık"]),
    "Irish": ("tá an {x} ag an doras", ["t-asal", "bean", "oileán"]),
    "Czech": ("pes a {x} jsou doma", ["ona", "kočka", "osel"]),
    "Hebrew": ("זה {x} טוב a {x}", ["תפוח", "apple", "יום"]),
    "Arabic": ("هذا {x} جميل", ["بيت", "كتاب", "orange"]),
    "Chinese": ("我看到 a {x} 在桌子上", ["苹果", "apple", "猫"]),
    "Japanese": ("これは{x}です。\n\ta {x}", ["りんご", "owl", "犬"]),
    "Hindi": ("यह a {x} है", ["सेब", "apple", "घर"]),
}


def content(template: str = "{n}", **changes: Any) -> dict[str, Any]:
    """A prompt file whose source has a template of interest."""
    sides = {"source": [template, "so {n}"], "target": ["to {n}"], "control": ["hm {n}"]}
    return {"name": "it", "placeholders": {"n": NUMBERS}, **sides} | changes


def bomb(first: str, more: str, levels: int = 9, times: int = 30) -> str:
    """A YAML file whose lines each stand for the one before, many times."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{i}: &a{i} {more.format(f'*a{i - 1}, ' * times)}" for i in range(1, levels)]
    return "\n".join(lines)


def refusal(tmp_path: Path, text: str | bytes, name: str = "bad.yaml") -> str:
    """The message with which a prompt file is refused."""
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DSASError) as error:
        load_prompts(path)
    check_message(str(error.value))
    return str(error.value)


# ---- texts stay as they are -------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
def test_other_languages_keep_their_words(language: str) -> None:
    template, values = LANGUAGES[language]
    found = [template.replace("{x}", value) for value in values]
    assert expand(template, {"x": values}) == found
    # beside English ones, too
    sides = content("a photo of a {n}", placeholders={"n": NUMBERS, "x": values})
    sides["source"].append(template)
    assert set(found) <= set(load_prompts(sides).expanded("source"))


@pytest.mark.parametrize(
    ("template", "value", "text"),
    [
        ("a photo of a {x}", "apple", "a photo of an apple"),
        ("A {x} on the table", "owl", "An owl on the table"),
        ("there is an {x}", "dog", "there is a dog"),
        ("there is an {x}", "apple", "there is an apple"),
        ("a {y} sees a apple on a {x}", "island", "a dog sees a apple on an island"),  # not filled: not touched
        ("that is a\n{x}", "hour", "that is an\nhour"),
        ('he said: "a {x} with milk"', "egg", 'he said: "an egg with milk"'),
        *(
            (f"this is {article} {{x}}", value, f"this is {right} {value}")
            for value, right in {
                "hour": "an",
                "honest man": "an",
                "house": "a",
                "unicorn": "a",
                "uninvited guest": "an",
                "unidentified bird": "an",
                "umbrella": "an",
                "user": "a",
                "usher": "an",
                "European": "a",
                "u-turn": "a",
                "x-ray": "an",
                "one-eyed cat": "a",
                "onion": "an",
                "8-ball": "an",
                "11-year-old": "an",
                "180": "a",
                "18": "an",
                "FBI agent": "an",
                "UFO": "a",
                "HTML page": "an",
                "Italian": "an",
                "élan": "an",
                '"owl"': "an",
            }.items()
            for article in ("a", "an")
        ),
        ("this plan a {x} the best", "is", "this plan a is the best"),
        ("the word a {x} here", "is", "the word a is here"),
        ("there is vitamin a {x} with it", "intake", "there is vitamin a intake with it"),
        ("there is vitamin A {x} with it", "intake", "there is vitamin A intake with it"),
        ("the RAM: this is a {x}", "RAM", "the RAM: this is a RAM"),
        ("what is a-{x}, with that", "o", "what is a-o, with that"),
        ("{y}a {x} of this", "o", "doga o of this"),
        ("the banana {x}", "owl", "the banana owl"),
        ("this is a {x}", "яблоко", "this is a яблоко"),
    ],
)
def test_the_article_in_front_of_a_placeholder(template: str, value: str, text: str) -> None:
    assert expand(template, {"x": [value], "y": ["dog"]}) == [text]


@pytest.mark.parametrize(
    "text", ["va a insultar {n}", "plan a is {n}", "a u-turn, a hour, an dog {n}", "a uva e a irmã {n}"]
)
def test_what_is_not_filled_is_not_mended(text: str) -> None:
    assert expand(text, {"n": NUMBERS}) == [text.replace("{n}", number) for number in NUMBERS]


def test_the_file_tells_the_language_of_templates_that_do_not() -> None:
    values = {"n": NUMBERS, "x": ["uva", "uomo", "idea"]}
    sides = {"source": ["a {x} in Roma {n}"], "target": ["so {n}"]}
    for around, article in (("that is {n}", "an"), ("este es {n}", "a"), ("hm {n}", "a")):
        control = ["a {x}", "llama a {x}", "hm {n}", around]
        prompts = load_prompts({"name": "it", "placeholders": values, **sides, "control": control})
        assert f"{article} uomo in Roma 10" in prompts.expanded("source")
        assert {f"{article} idea", "llama a idea"} <= set(prompts.expanded("control"))


@pytest.mark.parametrize(
    "changes",
    [
        {"source": "a text"},
        {"evaluation": {"alone": "a text"}},
        {"placeholders": {"n": "12345678"}, "source": ("a {n}",)},
    ],
)
def test_texts_in_place_of_lists_are_refused(changes: dict[str, Any]) -> None:
    texts = tuple(f"text {n}" for n in NUMBERS)
    with pytest.raises(DSASError, match="expected a"):
        PromptSet(**{"name": "it", "source": texts, "target": texts[1:], "control": texts, **changes})


CODE = "def f(x):\n\tif x:\n\t\treturn  x   # {n}\n    \n\telse:\r\n        return {{1: 2}}  "


def test_code_keeps_its_indentation(tmp_path: Path) -> None:
    wanted = [CODE.replace("{n}", n).replace("{{", "{").replace("}}", "}") for n in NUMBERS]
    path = tmp_path / "code.yaml"
    for text in (yaml.safe_dump(content(CODE)), json.dumps(content(CODE))):
        path.write_text(text)
        assert load_prompts(path).expanded("source")[:MINIMUM] == wanted


def test_a_block_ends_without_the_line_break_that_its_style_puts_there(tmp_path: Path) -> None:
    path = tmp_path / "block.yaml"
    rest = yaml.safe_dump({key: value for key, value in content().items() if key != "source"})
    for style, end in (("|", ""), ("|-", ""), ("|+", "\n"), (">", "")):
        path.write_text(f"{rest}source:\n- {style}\n  user: {{n}}\n  \tcode\n- x {{n}}\n")
        assert load_prompts(path).expanded("source")[0] == f"user: 10\n\tcode{end}"


def is_seen(text: str) -> bool:
    return any(character.isprintable() and not character.isspace() for character in text)


pieces = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="{}"), max_size=8)


@settings(max_examples=60)
@given(
    sentence=st.sampled_from([template.split("{x}")[0] for template, _ in LANGUAGES.values()]),
    before=pieces,
    space=st.sampled_from(["", " ", "\t", "\n    ", "  "]),
    after=pieces,
    values=st.lists(
        pieces.filter(lambda text: any(c.isprintable() and not c.isspace() for c in text)), min_size=1, unique=True
    ),
)
def test_whatever_stands_around_placeholders_stays(
    sentence: str, before: str, space: str, after: str, values: list[str]
) -> None:
    template = f"{sentence}{before}{space}{{n}}{space}{after}"
    prompts = load_prompts(content(f"{template} {{x}}", placeholders={"n": NUMBERS, "x": values}))
    texts = set(prompts.expanded("source"))
    wanted = [f"{sentence}{before}{space}{n}{space}{after} {value}" for n in NUMBERS for value in values if n != value]
    assert set(map(as_same, wanted)) <= set(map(as_same, texts))
    assert load_prompts(prompts.to_dict()) == prompts
    assert load_prompts(yaml.safe_load(yaml.safe_dump(prompts.to_dict(), allow_unicode=True))) == prompts


def test_two_spellings_of_a_text_are_one_prompt() -> None:
    composed, taken_apart = "caf\u00e9 {n}", "cafe\u0301 {n}"
    assert len(load_prompts(content(composed, source=[composed, taken_apart])).expanded("source")) == MINIMUM
    with pytest.raises(DSASError, match="identical"):
        load_prompts(content(source=[composed], target=[taken_apart]))
    named = content("{caf\u00e9} {n}", placeholders={"n": NUMBERS, "cafe\u0301": ["x"]})
    assert "x 10" in load_prompts(named).expanded("source")
    kept_out = load_prompts(content(composed, evaluation={"alone": [taken_apart.replace("{n}", n) for n in NUMBERS]}))
    assert not any("caf" in text for text in kept_out.draw(20)["source"])


def test_a_draft_takes_phrases_as_they_are() -> None:
    prompts = load_prompts(draft("umbrella {x}", "a unicorn"))
    assert "an umbrella {x} at night" in prompts.expanded("source")
    assert "a photo of a unicorn at night" in prompts.expanded("target")


# ---- braces -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "values", "text"),
    [
        ('{{"a": 1}} {x}', ["b"], '{"a": 1} b'),
        ("{{{x}}}", ["b"], "{b}"),
        ("f({x})", ["{{}}"], "f({})"),
        ("{x}", ["{{b}}"], "{b}"),
        ("{größe} {x}", ["b"], "L b"),
        ("{a.b} {0} {x}", ["b"], "dot zero b"),
    ],
)
def test_braces_that_are_text_are_written_twice(template: str, values: list[str], text: str) -> None:
    assert expand(template, {"x": values, "größe": ["L"], "a.b": ["dot"], "0": ["zero"]}) == [text]


@pytest.mark.parametrize(
    ("template", "value", "message"),
    [
        ('{"a": 1} {n}', "v", "without ':' and '!'.*written twice"),
        ("{n:>10}", "v", "without ':' and '!'"),
        ("{n:}", "v", "without ':' and '!'"),
        ("{n!r}", "v", "without ':' and '!'"),
        ("{n", "v", r"expected '}' behind '{', at character 1"),
        ("n}", "v", r"expected '{' in front of '}'"),
        ("{n.real}", "v", r"uses \{n.real\}, which placeholders does not define"),
        ("{n[0]}", "v", "does not define"),
        ("{0}", "v", "does not define"),
        ("{}", "v", "does not define"),
        ("{ n }", "v", "does not define"),
        ("{{n}} {n}", "v", r"would keep \{n\} as it is, though it is a placeholder"),
        ("{{ n }} {n}", "v", "would keep"),
        ("{x} {n}", "a {b}", "placeholder x: value 'a {b}' holds a placeholder.*written twice"),
        ("{x} {n}", "a {n}", "holds a placeholder"),
        ("{x} {n}", "a {{n}}", "would keep"),
        ("{x} {n}", '{"a": 1}', "placeholder x: value .*written twice"),
        ("{x} {n}", "a }", "written twice"),
    ],
)
def test_other_braces_are_refused(template: str, value: str, message: str) -> None:
    placeholders = {"n": NUMBERS, "x": [value]}
    with pytest.raises(DSASError, match=message) as error:
        load_prompts(content(template, placeholders=placeholders))
    check_message(str(error.value))
    with pytest.raises(DSASError, match=message):
        expand(template, placeholders)
    with pytest.raises(DSASError, match=message):
        PromptSet("it", (template,), ("to {n}",), ("hm {n}",), placeholders=placeholders)
