"""Prompt files: reading, checking, expanding, drawing, drafting."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dsas_core import DSASError
from dsas_core.errors import PromptError
from dsas_core.learning.prompts.draft import draft, everyday
from dsas_core.learning.prompts.held_out import neighbours_in
from dsas_core.learning.prompts.prompt_file import load_prompts
from dsas_core.learning.prompts.prompt_set import CONTROLS, MINIMUM, PromptSet, held_out_from

REPOSITORY = Path(__file__).parents[3]

GOOD: dict[str, Any] = {
    "name": "banana-blur",
    "description": "Blurs bananas.",
    "placeholders": {
        "place": ["on the grass", "on a table", "at night", "in the snow"],
        "other": ["dog", "apple", "orange"],
    },
    "source": ["a banana {place}", "a banana and a {other} {place}"],
    "target": ["a blurred banana {place}", "a blurred banana and a {other} {place}"],
    "control": ["a {other} {place}"],
    "evaluation": {"alone": ["a banana at night"], "beside": "a banana and a dog in the snow"},
}


def changed(**changes: Any) -> dict[str, Any]:
    """The good content with other values; None takes a key away."""
    content = copy.deepcopy(GOOD) | changes
    return {key: value for key, value in content.items() if value is not None}


def test_a_valid_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "banana.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    prompts = load_prompts(path)
    assert prompts == load_prompts(str(path)) == load_prompts(GOOD)
    assert load_prompts(prompts) is prompts
    assert prompts.name == "banana-blur"
    assert len(prompts.expanded("source")) == 4 + 12
    assert prompts.expanded("beside") == ["a banana and a dog in the snow"]


def test_plain_data_and_back() -> None:
    prompts = load_prompts(GOOD)
    assert load_prompts(prompts.to_dict()) == prompts
    assert "evaluation" not in load_prompts(changed(evaluation=None)).to_dict()


@pytest.mark.parametrize("path", sorted((REPOSITORY / "prompts").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_files_are_valid_and_keep_their_evaluation_apart(path: Path) -> None:
    prompts = load_prompts(path)
    assert prompts.name == path.stem
    drawn = prompts.draw(48)
    assert {side: len(drawn[side]) for side in ("source", "target")} == {"source": 48, "target": 48}
    assert len(drawn["control"]) == (26 if path.stem == "everything-blurred" else 96)
    for part in prompts.evaluation:
        assert not set(prompts.expanded(part)) & {text for texts in drawn.values() for text in texts}


def test_articles_fit_their_nouns() -> None:
    texts = load_prompts(GOOD).expanded("control")
    assert "an apple at night" in texts
    assert "an orange on a table" in texts
    assert "a dog on a table" in texts
    assert not any("a apple" in text or "a orange" in text for text in texts)


def test_one_value_is_never_used_twice_in_a_prompt() -> None:
    prompts = load_prompts(
        changed(
            placeholders={**GOOD["placeholders"], "second": ["dog", "cat"]},
            control=["a {other} and a {second}"] * 2 + ["a {other} {place}"],
        )
    )
    assert "a dog and a cat" in prompts.expanded("control")
    assert not any(text.count("dog") > 1 for text in prompts.expanded("control"))


def test_duplicates_go_and_spaces_stay() -> None:
    texts = load_prompts(changed(control=["a {other} {place}"] * 2 + ["a  {other}  {place} "])).expanded("control")
    assert len(texts) == len(set(texts)) == 24
    assert "a  dog  at night " in texts


def test_source_and_target_are_drawn_in_pairs() -> None:
    drawn = load_prompts(GOOD).draw(10)
    assert len(drawn["source"]) == len(drawn["target"]) == 10
    assert [text.replace("banana", "blurred banana") for text in drawn["source"]] == drawn["target"]


def test_templates_that_do_not_match_are_drawn_apart() -> None:
    drawn = load_prompts(changed(target=["a blurred banana and a {other} {place}"])).draw(10)
    assert len(drawn["source"]) == len(drawn["target"]) == 10
    assert all(text.startswith("a blurred banana") for text in drawn["target"])


@given(count=st.integers(MINIMUM, 40), seed=st.integers(0, 1000))
def test_drawing_gives_what_was_asked_for_as_far_as_it_lasts(count: int, seed: int) -> None:
    prompts = load_prompts(GOOD)
    drawn = prompts.draw(count, seed)
    kept_out = {text for part in prompts.evaluation for text in prompts.expanded(part)}
    for side, texts in drawn.items():
        wanted, available = (count, 14) if side != "control" else (CONTROLS * count, 12)
        assert len(texts) == len(set(texts)) == min(wanted, available)  # pairs lose both prompts when one is kept out
        assert set(texts) <= set(prompts.expanded(side)) - kept_out
    assert prompts.draw(count, seed) == drawn


def test_templates_are_drawn_evenly_and_mixed() -> None:
    texts = load_prompts(changed(evaluation=None)).draw(8)["source"]
    alone = [" and " not in text for text in texts]
    assert sum(alone) == 4
    assert alone not in (sorted(alone), sorted(alone)[::-1])


def test_seeds_draw_differently_and_avoided_prompts_stay_out() -> None:
    prompts = load_prompts(GOOD)
    first = prompts.draw(8, 0)
    assert prompts.draw(8, 1) != first
    rest = prompts.draw(100, 0, avoid=first["source"][:5])
    assert len(rest["source"]) == 14 - 5
    assert not set(rest["source"]) & set(first["source"][:5])


def test_of_more_templates_than_prompts_any_may_be_drawn() -> None:
    """Not the first ones, whatever the seed: files may be in an order."""
    sides = {side: [f"{side} {n}" for n in range(100)] for side in ("source", "target", "control")}
    prompts = load_prompts({"name": "it", **sides})
    drawn = [prompts.draw(20, seed) for seed in range(8)]
    for side, size in (("source", 20), ("control", 40)):
        assert all(len(found[side]) == size for found in drawn)
        assert len({text for found in drawn for text in found[side]}) > 75
    assert [text.split()[1] for text in drawn[0]["source"]] == [text.split()[1] for text in drawn[0]["target"]]


def test_nothing_left_to_draw_raises() -> None:
    prompts = load_prompts(GOOD)
    with pytest.raises(DSASError, match="control has 0 prompts outside the evaluation, at least 8"):
        prompts.draw(8, avoid=prompts.expanded("control"))


@pytest.mark.parametrize("judge", [None, {"builtin": {"things": ["banana"]}}, [{"clip": {}}, {"builtin": {}}]])
def test_judges_and_masks_come_back_as_they_were_written(judge: Any) -> None:
    content = changed(judge=judge, masks={"segmentation": {"model": "a/b", "labels": ["banana"]}})
    found = load_prompts(content)
    assert len(found.judges) == (2 if isinstance(judge, list) else bool(judge))
    assert {key: found.to_dict().get(key) for key in ("judge", "masks")} == {
        key: content.get(key) for key in ("judge", "masks")
    }
    assert load_prompts(found.to_dict()) == found


def test_prompts_that_do_not_name_the_thing() -> None:
    prompts = load_prompts(changed(source_unnamed=["a fruit {place}"], evaluation={"unnamed": ["a fruit at night"]}))
    drawn = prompts.draw_unnamed(9)
    assert sorted(drawn) == ["a fruit in the snow", "a fruit on a table", "a fruit on the grass"]
    assert load_prompts(prompts.to_dict()) == prompts
    assert "source_unnamed" not in load_prompts(GOOD).to_dict()
    assert load_prompts(GOOD).draw_unnamed(9) == []


@pytest.mark.parametrize(
    ("source", "first"),
    [("a ripe banana", "a fruit {place}"), ("dog", "an animal {place}"), ("quux", None)],
)
def test_a_draft_names_the_kind_of_a_thing(source: str, first: str | None) -> None:
    prompts = load_prompts(draft(source, f"blurred {source}"))
    assert next(iter(prompts.source_unnamed), None) == first
    assert not any(source.split()[-1] in text for text in prompts.expanded("source_unnamed"))


def test_wordings_are_the_templates_that_fresh_prompts_come_from() -> None:
    prompts = load_prompts(GOOD)
    told = prompts.wordings("source")
    assert set(told.values()) == set(prompts.source)
    assert all(told[text] in prompts.source for text in prompts.fresh(4)["source"])
    unseen = load_prompts(changed(evaluation={"unseen_source": ["one banana {place}"]}))
    assert set(unseen.wordings("source").values()) == {"one banana {place}"}
    assert all(text in unseen.wordings("source") for text in unseen.fresh(4)["source"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "expected a mapping with name, source, target and control"),
        (None, "expected a mapping"),
        (changed(source_unnamed=["a fruit {nowhere}"]), "source_unnamed template .*nowhere"),
        (changed(source=None), "lacks source; known are control, description, evaluation"),
        (changed(name=""), "lacks name"),
        (changed(target=[]), "lacks target"),
        (changed(sauce=["a"], source=None), "lacks source and has unknown sauce"),
        (changed(name="ba na na"), "name 'ba na na' must be letters, digits"),
        (changed(name="../up"), "must be letters, digits"),
        (changed(placeholders=["place"]), "placeholders must map names to lists"),
        (
            changed(placeholders={**GOOD["placeholders"], "place": []}),
            r"placeholder place: expected a list of texts, found \[\]",
        ),
        (
            changed(placeholders={**GOOD["placeholders"], "other": [1]}),
            r"placeholder other: expected a list of texts, found \[1\]",
        ),
        (changed(evaluation=["a banana"]), "evaluation must map names to lists"),
        (changed(evaluation={"alone": [" "]}), "evaluation alone: expected a list of texts"),
        (changed(source={"a": "b"}), "source: expected a list of texts"),
        (
            changed(source=["a {colour} banana"]),
            r"source template 'a \{colour\} banana' uses \{colour\}, which placeholders",
        ),
        (changed(evaluation={"new": ["a {thing}"]}), r"new template 'a \{thing\}' uses \{thing\}"),
        (
            changed(judge="builtin"),
            "judge must map one kind of judge to its settings, or list several; found 'builtin'",
        ),
        (changed(judge=[{"builtin": {}}, "clip"]), "judge must map one kind"),
        (changed(masks=["left"]), r"masks must map one kind to its settings, found \['left'\]"),
        (changed(control=["a {} {place}"]), r"uses \{\}, which placeholders does not define"),
        (changed(control=["a {other"]), r"template 'a \{other': expected '\}'"),
        (changed(control=["a {other:>{width}} {place}"]), r"template 'a \{other:>\{width\}\} \{place\}'"),
        (changed(control=["a {other:d} {place}"]), r"template 'a \{other:d\} \{place\}'"),
        (changed(source=["a banana"]), "source gives 1 prompts, at least 8 are needed: add templates or placeholder"),
        (changed(target=GOOD["source"]), "source and target are identical, so there is nothing to learn"),
    ],
)
def test_bad_content_says_what_is_wrong(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(DSASError, match=message) as error:
        load_prompts(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"name: [unclosed", "is not YAML"),
        (b"\xff\xfe\x00", "is not in UTF-16"),
        (b"!!python/object/apply:os.system ['true']", "is not YAML: it has the tag"),
        (b"", "expected a mapping"),
    ],
)
def test_bad_bytes(text: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(text)
    with pytest.raises(DSASError, match=message) as error:
        load_prompts(path)
    assert "\n" not in str(error.value)


def test_a_missing_file(tmp_path: Path) -> None:
    for path, found in ((tmp_path / "none.yaml", "no prompt file"), (tmp_path, "is a folder: write a prompt file")):
        with pytest.raises(DSASError, match=found):
            load_prompts(path)


def known_words(*words: str) -> Callable[[str], bool]:
    known = {*words, "on", "the", "grass", "at", "night", "a", "photo", "of", "and", "above"}
    return lambda text: set(text.split()) <= known


@pytest.mark.parametrize(
    ("source", "target"),
    [("banana", "blurred banana"), ("the dog", "an elephant"), ("red car", "car made of glass"), ("quux", "grey quux")],
)
def test_a_draft_is_a_valid_prompt_file(source: str, target: str) -> None:
    content = draft(source, target)
    prompts = load_prompts(yaml.safe_load(yaml.safe_dump(content)))
    drawn = prompts.draw(48)
    assert {side: len(texts) for side, texts in drawn.items()} == {"source": 48, "target": 48, "control": 96}
    noun, wanted = source.removeprefix("the "), target.split()[-1]
    assert all(noun in text for text in drawn["source"])
    assert all(wanted in text for text in drawn["target"])
    assert not any(noun in text for text in drawn["control"])
    assert prompts.spans == (noun,)


def test_a_kind_stands_for_its_members() -> None:
    prompts = load_prompts(draft("fruit", "grey fruit"))
    source, target = prompts.expanded("source"), prompts.expanded("target")
    assert {"a banana on the grass", "an apple on the grass"} <= set(source)
    assert {"a grey banana on the grass", "a grey apple on the grass"} <= set(target)
    controls = f" {' '.join(prompts.expanded('control'))} "
    assert not any(f" {fruit} " in controls for fruit in prompts.spans)
    assert not any("pear" in text for text in load_prompts(draft("fruit", "pear")).expanded("source"))


def test_a_draft_puts_the_change_on_controls() -> None:
    controls = load_prompts(draft("banana", "blurred banana")).expanded("control")
    assert any("blurred lemon" in text for text in controls)
    assert not any("a pear" in text for text in load_prompts(draft("banana", "pear")).expanded("control"))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_fifth_of_the_nouns_of_a_draft_is_held_out(seed: int) -> None:
    content = draft("banana", "blurred banana", seed=seed)
    prompts, unseen = load_prompts(content), content["placeholders"]["unseen"]
    assert len(unseen) == (len(unseen) + len(content["placeholders"]["other"])) // 5
    drawn = prompts.draw(48)
    for side, texts in drawn.items():
        first = held_out_from(len(texts))
        has = [any(f" {noun} " in f"{text} " for noun in unseen) for text in texts]
        assert not any(has[:first]), side
        assert sum(has[first:]) > 0.6 * (len(texts) - first), side
        assert len(set(texts)) == len(texts), "nothing is both fitted on and held out"
    assert unseen != draft("banana", "blurred banana", seed=seed + 2)["placeholders"]["unseen"]
    assert sorted(set(filter(None, neighbours_in(prompts, drawn["source"])))) == sorted(
        {noun for text in drawn["source"] for noun in unseen if f" {noun} " in text}
    )


def test_a_draft_uses_what_a_model_knows() -> None:
    known = known_words("banana", "dog", "cat", "guitar", "car", "pear", "grey")
    placeholders = draft("banana", "grey banana", known=known)["placeholders"]
    assert {*placeholders["other"], *placeholders["unseen"]} == {"dog", "cat", "guitar", "car", "pear"}
    assert placeholders["place"] == ["on the grass", "at night"]
    assert placeholders["beside"] == ["and", "above"]
    assert set(draft("banana", "grey banana")["placeholders"]["alike"]) <= set(everyday()["things"]["fruit"])


def test_look_alikes_are_what_a_model_takes_for_alike() -> None:
    content = draft("banana", "grey banana", alike=lambda phrase, nouns: [float(noun == "violin") for noun in nouns])
    listed = content["placeholders"]
    assert "violin" in [listed["alike"][0], *listed["unseen"]]


@pytest.mark.parametrize("part", ["source", "target", "control"])
def test_held_out_prompts_are_of_every_side(part: str) -> None:
    content = draft("banana", "grey banana")
    del content["held_out"][part]
    with pytest.raises(PromptError, match=r"held_out has .*: expected templates of each of source, target, control"):
        load_prompts(content)


def test_there_are_many_nouns() -> None:
    nouns = [noun for things in everyday()["things"].values() for noun in things]
    assert len(nouns) == len(set(nouns)) >= 300
    assert len(everyday()["things"]) >= 15


def test_a_draft_is_named_after_its_phrases_or_as_asked() -> None:
    assert draft("a banana", "blurred banana!")["name"] == "banana-to-blurred-banana"
    assert draft("a", "b c", name="mine")["name"] == "mine"


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("", "blurred banana", "two phrases are needed"),
        ("banana", "  ", "two phrases are needed"),
        ("Banana", "a banana", "both phrases are 'Banana'"),
    ],
)
def test_a_draft_of_nothing(source: str, target: str, message: str) -> None:
    with pytest.raises(DSASError, match=message):
        draft(source, target)


def test_a_prompt_set_checks_itself() -> None:
    texts = tuple(f"a banana number {i}" for i in range(MINIMUM))
    with pytest.raises(DSASError, match="identical"):
        PromptSet("name", texts, texts[::-1], texts)


def test_what_would_expand_without_end_is_refused_before_it_does() -> None:
    values = {f"p{i}": [f"v{j}" for j in range(50)] for i in range(8)}
    everything = [" ".join(f"{{{name}}}" for name in values)]
    with pytest.raises(DSASError, match=r"would give 39,\d{3},\d{3},\d{3},\d{3} prompts"):
        load_prompts(changed(placeholders={**GOOD["placeholders"], **values}, control=everything))


def test_the_public_module() -> None:
    import dsas_core

    assert dsas_core.prompts.read is dsas_core.prompts.load_prompts is load_prompts
    assert dsas_core.prompts.draft is draft
