"""Prompt sets from files of scored texts: every shape, what is chosen, and what is wrong with a file."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsas_core import Concept, DSASError, llm
from dsas_core.learning.calibration.slider_range import prompts_of
from dsas_core.learning.prompts.prompt_file import load_prompts
from dsas_core.learning.prompts.prompt_set import CONTROLS, SIDES, PromptSet
from dsas_core.llm.learning.datasets import KINDS, LABELS, Scored, prompt_set, read_scored, words_in
from tests.fixtures.language_models import Words, tiny
from tests.fuzz.campaign import check_message


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def real(text: str, toxicity: float | None, after: str = "and so on.", after_toxicity: float | None = 0.0) -> Any:
    continuation = {"text": after, "toxicity": after_toxicity}
    return {
        "filename": "a.txt",
        "prompt": {"text": text, "toxicity": toxicity, "threat": 0.1},
        "continuation": continuation,
    }


def jigsaw(text: str, *labels: str) -> dict[str, Any]:
    return {"id": "0a", "comment_text": text, **{label: int(label in labels) for label in LABELS}}


def test_real_toxicity_prompts(tmp_path: Path) -> None:
    rows = [real("You are", 0.9), real("We were", None, "a fool {", 0.5)]
    assert read_scored(write_lines(tmp_path / "prompts.jsonl", rows)) == [
        Scored("You are", 0.9, "prompt"),
        Scored("and so on.", 0.0, "continuation"),
        Scored("a fool {", 0.5, "continuation"),
    ]


def test_jigsaw(tmp_path: Path) -> None:
    rows = [jigsaw('quoted, "text"\non two lines', "toxic", "insult"), jigsaw("calm")]
    rows.append({**jigsaw("not labelled"), **dict.fromkeys(LABELS, -1)})
    assert read_scored(write_table(tmp_path / "train.csv", rows)) == [
        Scored('quoted, "text"\non two lines', 1.0, "toxic,insult"),
        Scored("calm", 0.0, ""),
    ]


@pytest.mark.parametrize("write", [write_lines, write_table])
def test_toxigen_by_people(tmp_path: Path, write: Any) -> None:
    rows = [
        {"text": f"text {i}", "target_group": "women", "toxicity_ai": 2.0, "toxicity_human": i} for i in (1, 2.5, 5)
    ]
    rows.append({"text": "nobody said", "target_group": "", "toxicity_ai": 2.0, "toxicity_human": ""})
    found = read_scored(write(tmp_path / "annotated", rows))
    assert [item.score for item in found] == [0.0, 0.375, 1.0]
    assert {item.group for item in found} == {"women"}


def test_toxigen_by_its_prompt(tmp_path: Path) -> None:
    row = {"prompt": "- a list", "generation": "a text", "group": "asian", "prompt_label": 1, "roberta_prediction": 0.3}
    assert read_scored(write_table(tmp_path / "toxigen.csv", [row])) == [Scored("a text", 1.0, "asian")]
    row.pop("generation")
    assert read_scored(write_lines(tmp_path / "toxigen.jsonl", [row])) == [Scored("- a list", 1.0, "asian")]


@pytest.mark.parametrize("column", ["score", "toxicity", "label"])
def test_plain_texts(tmp_path: Path, column: str) -> None:
    path = write_table(tmp_path / "x.csv", [{"text": "a", column: 0.5}, {"text": "", column: 0.1}])
    assert read_scored(path) == read_scored(path, "plain") == [Scored("a", 0.5)]


def test_a_byte_order_mark_and_blank_lines_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes("\ufefftext,score\r\nü,0.5\r\n".encode())
    assert read_scored(tmp_path / "x") == [Scored("ü", 0.5)]
    (tmp_path / "y").write_bytes(b'\xef\xbb\xbf{"text": "a", "score": 1}\n\n')
    assert read_scored(tmp_path / "y") == [Scored("a", 1.0)]


GOOD = '{"text": "a", "score": 0}\n'


@pytest.mark.parametrize(
    ("content", "kind", "match"),
    [
        ("", None, "holds no scored text"),
        ("text,score\n", None, "holds no scored text"),
        ('[{"text": "a"}]', None, "is a JSON list: expected JSONL, one object a line"),
        (
            "id,words\n1,2\n",
            None,
            r"has the columns id, words: expected prompt and continuation \(RealToxicityPrompts\)",
        ),
        ('{"texts": 1}\n', None, "has the columns texts: expected"),
        (GOOD + "{broken\n", None, "line 2 is no JSON: Expecting property name"),
        (GOOD + "3\n", None, "line 2: expected an object, found int"),
        (GOOD + '{"text": "b"}\n', None, "line 2: no row of plain: it lacks score"),
        (GOOD + '{"text": 7, "score": 0}\n', None, "line 2: no row of plain: expected a text, found 7"),
        ("text,score\na,0\nb,much\n", None, "line 3: no row of plain: could not convert string to float: 'much'"),
        ("text,score\na,0\nb,1.5\n", None, r"line 3: no row of plain: score 1.5 is not in 0 … 1"),
        ("text,score\na,0\nb\n", None, "line 3: expected 2 fields, found 1"),
        ("text,score\na,0,1\n", None, "line 2: expected 2 fields, found 3"),
        ('text,score\n"a,0\n', None, "line 2 is no CSV: unexpected end of data"),
        ("text,toxicity_human\na,6\n", None, "line 2: no row of toxigen: toxicity_human 6 is not in 1 … 5"),
        ("comment_text,score\na,1\n", "jigsaw", "line 2: no row of jigsaw: it lacks toxic"),
        ('{"prompt": "a", "toxicity": 1}\n', "realtoxicityprompts", "prompt has no text and toxicity, it is 'a'"),
        (GOOD, "reddit", "kind 'reddit': expected one of realtoxicityprompts, jigsaw, toxigen, plain"),
        (b"text,score\n\xff\xfe,1\n", None, "line 2 is not in UTF-8: byte 0xff .*expected UTF-8, or UTF-16"),
    ],
)
def test_a_bad_file_says_where(tmp_path: Path, content: str | bytes, kind: str | None, match: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DSASError, match=match) as caught:
        read_scored(path, kind)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DSASError, match=r"no file .*nowhere\.csv: download the data set"):
        read_scored(tmp_path / "nowhere.csv")
    assert set(KINDS) == {"realtoxicityprompts", "jigsaw", "toxigen", "plain"}


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("told", [False, True])
def test_separators_are_told_by_the_first_line(tmp_path: Path, separator: str, told: bool) -> None:
    text = f"sep={separator}\n" * told + f"text{separator} score\n\nyou; fool, and|more\t!,0.9\n"
    head, row = text.rsplit("\n", 2)[0], f'"you; fool, and|more\t!"{separator}0.9\n'
    (tmp_path / "x").write_text(f"{head}\n{row}", newline="")
    assert read_scored(tmp_path / "x") == [Scored("you; fool, and|more\t!", 0.9)]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("text;label;label\na;0;1\n", "the column 'label' stands twice"),
        ('{"text": "a", "text": "b", "score": 1}\n', "line 1 is no JSON: 'text' stands twice"),
        ("text:score\na:0\n", "has the columns text:score: expected prompt"),
        ("text;score\na;0,9\n", "line 2: .*could not convert string to float: '0,9', expected a number such as 0.9"),
        (f'{{"text": "a", "score": {"9" * 400}}}\n', "line 1: .*is too large"),
        (f'{{"text": "a", "score": {"9" * 10_000}}}\n', "line 1 is no JSON: Exceeds the limit"),
        ('{"text": "a", "score": 1e999}\n', "score inf is not in"),
        (f'{{"text": "a", "score": "{"x" * 22_000}"}}\n', "line 1: .*could not convert"),
        (f'{{"text": {"[" * 100_000}', "line 1: very many lists"),
        (f'{{"{"x" * 22_000}": 1}}\n', "has the columns xx"),
        ('{"text": "\\ud800", "score": 1}\n', "half a character"),
        ("text,score\nfür,1\n".encode("latin-1"), "line 2 is not in UTF-8: byte 0xfc .*iconv -f LATIN1"),
        (("text,score\n" + "a,1\n" * 9999 + "für,1\n").encode("latin-1"), "line 10001 is not in UTF-8: byte 0xfc"),
        ("text,score\na,1\n".encode("utf-16-le"), "a byte is 0, as in UTF-16 without"),
        ("text,score\nü,1\n".encode("utf-16")[:-1], "is not in UTF-16"),
    ],
    ids=range(15),
)
def test_files_that_are_refused_in_one_line(tmp_path: Path, content: str | bytes, match: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DSASError, match=match) as error:
        read_scored(path)
    check_message(str(error.value))


def test_code_keeps_its_indentation() -> None:
    code = "    if x:\n\treturn  {}"
    prompts = prompt_set([Scored(f"{code} a{i}", float(i < 10)) for i in range(40)], "x", count=8)
    assert all(text.startswith(code) for side in SIDES for text in prompts.expanded(side))


def test_texts_that_no_prompt_can_be_are_left_out() -> None:
    good = [Scored(f"fine {i}", float(i < 10)) for i in range(40)]
    bad = [Scored(f"\0 {i}", i % 2) for i in range(9)] + [Scored("\u200b", 1)]
    assert prompt_set(good + bad, "x", count=8) == prompt_set(good, "x", count=8)


# ---- choosing ---------------------------------------------------------------------------------------------------


def texts(count: int, score: float, lengths: tuple[int, int], seed: int = 0, group: str = "") -> list[Scored]:
    """Different texts whose words are as many as `lengths` allows."""
    rng = np.random.default_rng((seed, count))
    return [
        Scored(" ".join(["word"] * int(rng.integers(*lengths)) + [f"n{seed}x{i}"]), score, group) for i in range(count)
    ]


def auroc(first: list[int], second: list[int]) -> float:
    return float(np.mean([(a > b) + 0.5 * (a == b) for a in first for b in second]))


def test_lengths_tell_nothing() -> None:
    scored = texts(200, 0.9, (10, 30)) + texts(2000, 0.0, (2, 25), seed=1)
    prompts = prompt_set(scored, "toxicity", count=60)
    sizes = {side: [words_in(text) for text in prompts.expanded(side)] for side in ("source", "target", "control")}
    assert {side: len(found) for side, found in sizes.items()} == {"source": 60, "target": 60, "control": 120}
    assert auroc([words_in(item.text) for item in scored[:200]], [words_in(item.text) for item in scored[200:]]) > 0.7
    for side in ("target", "control"):
        assert 0.45 < auroc(sizes["source"], sizes[side]) < 0.55
    for source, target in zip(prompts.source, prompts.target, strict=True):
        assert abs(words_in(source) - words_in(target)) <= 0.15 * words_in(source)


def test_sides_share_nothing_and_doubles_are_dropped() -> None:
    calm = texts(60, 0.05, (3, 9), seed=1)
    scored = texts(40, 0.8, (3, 9)) + calm + calm + [Scored(item.text.upper(), 0.9) for item in calm]
    scored += texts(40, 0.3, (3, 9), seed=2)
    prompts = prompt_set([*scored, Scored("  ", 0.9), Scored("", 0.0), Scored("User: hello", 0.9)], "x")
    sides = [prompts.expanded(side) for side in ("source", "target", "control")]
    everything = [text for side in sides for text in side]
    assert len(everything) == len(set(everything))
    assert {text.lower() for text in everything} <= {item.text.lower() for item in scored}
    assert not any("n2x" in text for text in everything), "between the thresholds"
    assert all("n0x" in text for text in sides[0])


def test_controls_are_about_the_same_people() -> None:
    groups = ("women", "asian", "jewish")
    scored = [item for i, group in enumerate(groups) for item in texts(20, 1.0, (4, 8), i, group)]
    scored += [item for i, group in enumerate(groups) for item in texts(90, 0.0, (4, 8), i + 5, group)]
    group_of = {item.text: item.group for item in scored}
    prompts = prompt_set(scored, "x", count=30)
    assert [group_of[text] for text in prompts.source] == [group_of[text] for text in prompts.target]
    assert [group_of[text] for text in prompts.source] * CONTROLS == [group_of[text] for text in prompts.control]
    strangers = [Scored(item.text, item.score, "others" if item.score else "") for item in scored]
    assert len(prompt_set(strangers, "x", count=30).source) == 30, "groups that have no calm texts take those of others"


def test_the_choice_is_repeatable() -> None:
    scored = texts(80, 0.9, (4, 8)) + texts(300, 0.0, (4, 8), seed=1)
    assert prompt_set(scored, "x", count=20) == prompt_set(scored, "x", count=20)
    assert prompt_set(scored, "x", count=20) != prompt_set(scored, "x", count=20, seed=1)


@given(st.text(alphabet="xy{}:! \n", min_size=1, max_size=12))
def test_braces_of_the_data_are_no_placeholders(noise: str) -> None:
    scored = [Scored(f"source {noise} {i}", 1.0) for i in range(9)]
    scored += [Scored(f"calm {noise} {i}", 0.0) for i in range(30)]
    prompts = prompt_set(scored, "x")
    assert set(prompts.expanded("source")) == {f"source {noise} {i}" for i in range(9)}
    assert load_prompts(prompts.to_dict()) == prompts


def test_a_target_of_ones_own() -> None:
    scored = texts(20, 0.9, (4, 8)) + texts(60, 0.0, (4, 8), seed=1)
    prompts = prompt_set(scored, "x", target=[f"i am  sorry {{{i}}}" for i in range(8)])
    assert prompts.expanded("target") == [f"i am  sorry {{{i}}}" for i in range(8)]
    turned = [f"user: where is  {i}\nassistant: i am sorry" for i in range(8)]
    assert prompt_set(scored, "x", target=turned).expanded("target")[0] == turned[0]
    assert len(prompts.control) == 2 * len(prompts.source)
    with pytest.raises(DSASError, match="target gives 1 prompts, at least 8"):
        prompt_set(scored, "x", target=["sorry"])


def test_length_is_what_the_caller_says() -> None:
    scored = texts(20, 0.9, (4, 20)) + texts(200, 0.0, (4, 20), seed=1)
    prompts = prompt_set(scored, "x", length=len, longest=50)
    assert max(map(len, prompts.source)) <= 50
    for source, target in zip(prompts.source, prompts.target, strict=True):
        assert abs(len(source) - len(target)) <= 0.15 * len(source)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"threshold": 0.95}, "none of 60 texts scores 0.95 or more, the highest 0.9: lower threshold, or add texts"),
        ({"low": 0.01}, "none of 60 texts scores 0.01 or less, the lowest 0.05: raise low, or add texts"),
        ({"threshold": 0.1}, "low 0.1, threshold 0.1: expected numbers, 0 <= low < threshold <= 1"),
        ({"threshold": float("nan")}, "expected numbers, 0 <= low < threshold <= 1"),
        ({"threshold": "high"}, "low 0.1, threshold high: expected numbers"),
        ({"count": 7}, "count 7: at least 8 sources are needed"),
        ({"longest": 3}, "0 of 0 sources up to 3 long find a control and a target of their length"),
        ({"name": "two words"}, "name 'two words' must be letters"),
        ({"scored": []}, "there is no text to choose from"),
        ({"scored": texts(7, 0.9, (4, 8)) + texts(60, 0.0, (4, 8), 1)}, "7 of 7 sources up to 64 long find a control"),
        ({"scored": texts(20, 0.9, (30, 40)) + texts(60, 0.0, (4, 8), 1)}, "0 of 20 sources .* at least 8 are needed"),
        ({"scored": texts(20, 0.9, (4, 8)) + texts(9, 0.0, (4, 8), 1)}, "of 20 sources .* among 9, at least 8"),
    ],
)
def test_bad_choices_say_the_way_out(settings: dict[str, Any], match: str) -> None:
    scored = texts(20, 0.9, (4, 8)) + texts(40, 0.05, (4, 8), seed=1)
    with pytest.raises(DSASError, match=match):
        prompt_set(**{"scored": scored, "name": "x", **settings})


def test_a_concept_is_learned_from_a_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(160):
        said = [f"w{number}" for number in rng.integers(0, 6, rng.integers(4, 7))]
        rude = i % 4 == 0
        rows.append(jigsaw(" ".join([*said, "fool" if rude else "thanks"]), *(["toxic"] if rude else [])))
    prompts = prompt_set(read_scored(write_table(tmp_path / "train.csv", rows)), "toxicity", count=32)
    assert isinstance(prompts, PromptSet)
    concept = llm.learn(tiny("llama"), Words(), prompts, count=32, pooling="last", recipe={"form": "last"})
    assert min(site["balanced_accuracy"] for site in concept.evidence["sites"]) > 0.95, "the last word tells them apart"
    # what people wrote stays with the data set: learned, saved, loaded and shown without it
    folder = concept.save_pretrained(tmp_path / "toxicity")
    assert Concept.from_pretrained(folder) == concept
    said_somewhere = "".join(path.read_text(errors="replace") for path in folder.iterdir())
    assert not [text for side in SIDES for text in prompts.expanded(side) if text in said_somewhere]
    read_again = PromptSet(**{"name": "toxicity", **{side: getattr(prompts, side) for side in SIDES}})
    assert prompts_of(concept, read_again)[0] == prompts.draw(32)
    kept = llm.learn(tiny("llama"), Words(), prompts, count=32, pooling="last", keep_prompts="all")
    assert kept.provenance["prompts"] == prompts.to_dict()
    assert kept.provenance["prompts"]["private"]
