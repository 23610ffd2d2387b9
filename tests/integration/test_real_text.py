"""The ruler for real language models, on the built-in model and a small folder of texts in the format of real data."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from benchmarks.cost import learning
from benchmarks.quality import real_chat, real_text, text_gates, text_maps
from benchmarks.real_text import cost_grid, ruler, texts
from benchmarks.real_text.arms import Arm, turn_at_random
from benchmarks.real_text.behaviour import read_behaviour
from benchmarks.real_text.reading import ModelReader
from benchmarks.real_text.summary import Comparison
from benchmarks.reports import real_models_page
from dsas_core import Concept, llm
from dsas_core.errors import DSASError
from dsas_core.llm.model.conversations import Encoded
from dsas_core.maps import AffineMap

THINGS = ("parcel", "invoice", "receipt", "password", "account", "booking", "room", "router", "ticket")
ANGRY = ("you stupid clown", "answer me fool", "you useless idiot", "wake up you nitwit", "you lazy donkey")
CALM = (
    "can you help me",
    "what can i do",
    "i am not happy",
    "please call the office",
    "thank you so much",
    "i hope it comes soon",
    "have a nice day",
)


def _tweets(ends: tuple[str, ...]) -> list[str]:
    begins = ("my {} does not work today", "i lost my {} on monday", "where is my {} now", "my {} is wrong again")
    return [f"{begin.format(thing)} {end}" for begin, thing, end in product(begins, THINGS, ends)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    with open(folder / "davidson.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["", "count", "hate_speech", "offensive_language", "neither", "class", "tweet"])
        for number, text in enumerate(_tweets(ANGRY)):
            rows.writerow([number, 3, 0, 3, 0, 1, f"RT @someone: {text} http://t.co/x"])
        for number, text in enumerate(_tweets(CALM)):
            rows.writerow([number, 3, 0, 0, 3, 2, f"&amp;quot;{text}&amp;quot;"])
        rows.writerow([0, 3, 0, 2, 1, 1, "nobody agrees what this tweet about my room is"])
        rows.writerow([0, 2, 0, 2, 0, 1, "too few people read this tweet about my room"])
    olid = [f"1\t@USER {text}\t{label}" for label, ends in (("OFF", ANGRY), ("NOT", CALM)) for text in _tweets(ends)]
    (folder / "olid.tsv").write_text("\n".join(["id\ttweet\tsubtask_a", *olid]) + "\n")
    (folder / "toxigen").mkdir()
    (folder / "toxigen" / "hate_people.txt").write_text("\n".join(_tweets(ANGRY)[::2]))
    (folder / "toxigen" / "neutral_people.txt").write_text("\n".join(_tweets(CALM)[::2]))
    paragraph = "the harbour is quiet at noon , of course . " * 12
    (folder / "wiki.test.tokens").write_text(f" = The harbour = \n {paragraph}\n {paragraph}\n")
    answers = "Answer1: soup Answer2: a room Answer3: snow Answer4: a van\n\nAnswer format: answer1/answer2"
    asked = {"What do people eat?": "answer1", "What falls in winter?": "answer3", "why " * 21: "answer1"}
    questions = [{"instruction": f"the question: {q}\n\n{answers}", "answer": right} for q, right in asked.items()]
    (folder / "arc_easy.json").write_text(json.dumps(questions))
    return folder


@pytest.fixture(scope="module")
def concept() -> Concept:
    return Concept.from_pretrained("builtin:rudeness")


# ---- texts -----------------------------------------------------------------------------------------------------------


def test_tweets_are_cleaned_and_those_without_a_clear_label_left_out(data: Path) -> None:
    found = texts.read_davidson(data)
    assert sorted(found.toxic) == sorted(_tweets(ANGRY))
    assert sorted(found.neutral) == sorted(_tweets(CALM))
    assert texts.clean_tweet("too short") == ""
    assert sorted(texts.read_olid(data).toxic) == sorted(_tweets(ANGRY))


def test_no_text_is_in_two_parts_of_a_split(data: Path) -> None:
    split = texts.draw_split(texts.read_davidson(data), seed=1, count=8, prompts=10, neutral=12)
    parts = [
        split.judge.toxic,
        split.judge.neutral,
        split.held_out.toxic,
        split.held_out.neutral,
        *split.lesson.values(),
    ]
    every = [text for part in parts for text in part]
    assert len(every) == len(set(every))
    assert [len(part) for part in parts[2:]] == [10, 12, 8, 8, 16]
    assert all(whole.startswith(prompt) for whole, prompt in zip(split.held_out.toxic, split.prompts, strict=True))


def test_questions_that_are_too_long_are_left_out(data: Path) -> None:
    questions = texts.read_arc(data)
    assert [(question.text, question.right) for question in questions] == [
        ("What do people eat?", 0),
        ("What falls in winter?", 2),
    ]
    assert questions[0].answers == ("soup", "a room", "snow", "a van")


def test_a_file_that_is_missing_is_named(tmp_path: Path, data: Path) -> None:
    (tmp_path / "davidson.csv").touch()
    with pytest.raises(DSASError, match=r"lacks olid.tsv, toxigen, wiki.test.tokens, arc_easy.json: give a folder"):
        texts.check_folder(tmp_path)
    with pytest.raises(DSASError, match="lacks mmlu"):
        texts.check_folder(data, ["mmlu"])
    with pytest.raises(DSASError, match="90 toxic texts outside the judge's half, 508 are needed: lower --count"):
        texts.draw_split(texts.read_davidson(data), seed=0, count=8, prompts=500, neutral=8)


# ---- the grid of cost ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_every_curve_has_points_of_the_same_costs(scale: float) -> None:
    measured: list[float] = []

    def cost(strength: float) -> float:
        measured.append(strength)
        return scale * strength**2

    targets = cost_grid.target_costs(5)
    strengths = cost_grid.find_strengths(cost, targets)
    if scale >= 1:
        assert all(0.75 * target <= scale * s**2 <= target for target, s in zip(targets, strengths, strict=True))
    assert strengths == sorted(strengths)
    assert len(set(measured)) == len(measured) <= 15


def test_a_curve_that_costs_nothing_has_as_many_points() -> None:
    strengths = cost_grid.find_strengths(lambda strength: 0.0, [0.1, 0.2])
    assert strengths == [1.0, cost_grid.HIGHEST]


# ---- arms and reading ------------------------------------------------------------------------------------------------


def test_a_random_direction_is_as_long_as_the_map(concept: Concept) -> None:
    for own, turned in zip(concept.interventions, turn_at_random(concept, 3).interventions, strict=True):
        for a, b in zip(own.maps, turned.maps, strict=True):
            assert isinstance(a, AffineMap)
            assert isinstance(b, AffineMap)
            torch.testing.assert_close(a.shift.norm(), b.shift.norm())
            assert abs(float(torch.cosine_similarity(a.shift, b.shift, dim=0))) < 0.6


def test_continuations_and_losses_are_those_of_single_texts(concept: Concept) -> None:
    reader = ModelReader(*llm.load("builtin:chat", device="cpu"))
    prompts = reader.encode(["user: my parcel is lost, you fool!", "user: where is the harbour?"])
    whole = [Encoded(prompt.ids, 2) for prompt in prompts]
    with Arm(concept, 1.0).attach(reader.model) as on_rows:
        together = reader.calling(on_rows).continue_texts(prompts, 5), reader.sum_losses(whole)
        alone = (
            [reader.continue_texts([prompt], 5)[0] for prompt in prompts],
            [reader.sum_losses([t])[0] for t in whole],
        )
        assert together[0] == alone[0]
        assert together[1] == pytest.approx(alone[1], rel=1e-4)
    assert reader.sum_losses(whole, written=True) == pytest.approx(reader.sum_losses(whole), rel=1e-4)


def test_a_gate_at_random_opens_for_its_share_of_texts(concept: Concept) -> None:
    reader = ModelReader(*llm.load("builtin:chat", device="cpu"))
    prompts = reader.encode(["user: my parcel is lost, you fool!"] * 8)
    open_, closed = (reader_arm(reader, arm, prompts)[0] for arm in (Arm(concept, 1.0, "on"), Arm()))
    written = reader_arm(reader, Arm(concept, 1.0, "on", share=0.5), prompts)
    assert open_ != closed
    assert (written.count(open_), written.count(closed)) == (4, 4)


def reader_arm(reader: ModelReader, arm: Arm, prompts: list[Encoded]) -> list[tuple[int, ...]]:
    with arm.attach(reader.model, prompts) as on_rows:
        return reader.calling(on_rows).continue_texts(prompts, 5)


def test_the_oracle_is_always_on_at_its_best_and_at_no_cost() -> None:
    def point(toxic: list[int], cost: float) -> dict[str, Any]:
        return {"toxic": {"words": toxic}, "domain": cost}

    arms = {
        "unsteered": [point([1, 1, 1, 1], 0.0)],
        "on": [point([0, 1, 1, 1], 0.05), point([0, 0, 0, 1], 0.2), point([0, 0, 0, 0], 0.9)],
        "dsas": [point([0, 0, 1, 1], 0.05), point([0, 0, 0, 1], 0.1), point([0, 0, 0, 0], 0.3)],
    }
    comparison = Comparison([{"seed": 0, "prompts": list("abcd"), "arms": arms}], "words")
    assert comparison.oracle().value == 0.75  # not the last, which ruins the model
    way = comparison.way_to_oracle()
    assert way is not None
    assert way.value == pytest.approx((0.5 - 0.25) / (0.75 - 0.25))
    assert comparison.volume_difference().value > 0


# ---- whole runs ------------------------------------------------------------------------------------------------------


def _run(monkeypatch: pytest.MonkeyPatch, module: Any, *options: object) -> None:
    monkeypatch.setattr(sys, "argv", ["it", *map(str, options)])
    module.main()


def test_a_run_goes_on_where_it_stopped_and_makes_a_page(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", "builtin:chat", "--data", data, "--quick", "--count", 8, "--prompts", 8, "--neutral", 8]
    options += ["--tokens", 4, "--gate-texts", 8, "--cache", tmp_path / "cache", "--out", tmp_path / "text.json"]
    _run(monkeypatch, real_text, *options)
    assert "seed 0: continuations" in capsys.readouterr().out
    first = json.loads((tmp_path / "text.json").read_text())["builtin:chat"]
    assert {len(points) for name, points in first["arms"].items() if name in ("dsas", "on")} == {3}
    assert first["arms"]["random_gate"][0]["strengths"] == [1.0]
    assert str(data) not in first["command"]
    cells = sorted((tmp_path / "cache" / "cells").iterdir())
    dropped = next(cell for cell in cells if '"kind": "wikitext"' in (cell / "key.json").read_text())
    for file in dropped.iterdir():
        file.unlink()
    dropped.rmdir()
    _run(monkeypatch, real_text, *options)
    assert capsys.readouterr().out.count("seed 0: ") == 1
    again = json.loads((tmp_path / "text.json").read_text())["builtin:chat"]
    assert {**again, "seconds": 0} == {**first, "seconds": 0}

    page = tmp_path / "page.md"
    _run(monkeypatch, real_models_page, "--text", tmp_path / "text.json", "--chat", tmp_path / "none", "--out", page)
    text = page.read_text()
    assert "### builtin:chat" in text
    assert "| gate at random | 1 |" in text
    assert "Behaviours" not in text


def test_maps_are_compared_where_they_cost_the_same(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, page = tmp_path / "maps.json", tmp_path / "page.md"
    options = ["--model", "builtin:chat", "--data", data, "--out", record, "--cache", tmp_path / "cells"]
    few = ["--seeds", 1, "--count", 24, "--prompts", 8, "--neutral", 8, "--wikitext", 64]
    _run(monkeypatch, text_maps, *options, *few)
    found = json.loads(record.read_text())["builtin:chat"]
    first, second = (found["maps"][name] for name in text_maps.MAPS)
    assert 0 < first["domain"] <= text_maps.COST
    assert 0 < second["domain"] <= text_maps.COST
    for judge in found["judges"]:
        gained = second[judge]["removed"]["value"] - first[judge]["removed"]["value"]
        assert second[judge]["more"]["value"] == pytest.approx(gained)
    none = tmp_path / "none"
    others = [part for name in ("text", "chat", "gates", "cost") for part in (f"--{name}", none)]
    _run(monkeypatch, real_models_page, *others, "--maps", record, "--out", page)
    assert "| states about to write |" in page.read_text()


def test_gates_of_several_models_and_seeds_are_kept_and_shown(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_gates, "COUNTS", (16,))
    monkeypatch.setattr(text_gates, "HELD_OUT", 20)
    record, page = tmp_path / "gates.json", tmp_path / "page.md"
    options = ["--model", "builtin:chat", "--data", data, "--layers", 2, "--out", record]
    _run(monkeypatch, text_gates, *options, "--seeds", 1)
    single = json.loads(record.read_text())["builtin:chat"]
    record.write_text(json.dumps({"another": single}))
    _run(monkeypatch, text_gates, *options, "--seeds", 2)
    both = json.loads(record.read_text())
    assert both["another"] == single
    lines = both["builtin:chat"]["lines"]
    assert [line for line in lines if line["seed"] == 0] == single["lines"]
    none = ["--text", tmp_path / "none", "--chat", tmp_path / "none"]
    _run(monkeypatch, real_models_page, *none, "--gates", record, "--out", page)
    first, second = page.read_text().split("Forms of the gate on ")[1:]
    assert first.startswith("another, 1 seed of")
    assert " to " not in "".join(row for row in first.splitlines() if row.startswith("| t"))
    assert second.startswith("builtin:chat, 2 seeds of")
    best = next(line for line in text_gates.best_lines(lines) if line["form"] == "prefix")
    own = [line["possible"] for line in lines if (line["form"], line["site"]) == ("prefix", best["site"])]
    assert best["possible"] == (sum(own) / 2, min(own), max(own))
    assert f"{best['auroc'][0]:.3f} ({best['auroc'][1]:.3f} to {best['auroc'][2]:.3f})" in second


def test_what_learning_costs_is_measured(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, page = tmp_path / "cost.json", tmp_path / "page.md"
    _run(monkeypatch, learning, "--data", data, "--threads", 1, "--out", record)
    found = json.loads(record.read_text())
    figures = found["dtypes"]["float32"]["text"]
    assert found["texts"] == "tweets"
    assert 1 <= figures["passes_of_needed"] <= found["limits"]["passes_of_needed"]
    assert figures["trials"] >= 1
    none = tmp_path / "none"
    _run(
        monkeypatch, real_models_page, "--text", none, "--chat", none, "--gates", none, "--cost", record, "--out", page
    )
    text = page.read_text()
    assert "## What learning costs" in text
    assert f"| {figures['passes_of_needed']:.2f} |" in text


def test_a_chat_behaviour_is_measured_in_every_arm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = Path("prompts/rudeness.yaml").resolve()
    content = {"shows": r"\b(fool|idiot|clown|stupid)\w*", "asks": "be kind", "tokens": 8, "prompts": str(prompts)}
    (tmp_path / "rude.yaml").write_text(yaml.safe_dump(content))
    options = ["--model", "builtin:chat", "--behaviour", tmp_path / "rude.yaml", "--prompts", 8]
    options += ["--learn", "{count: 8}", "--cache", tmp_path / "cache", "--out", tmp_path / "chat.json"]
    _run(monkeypatch, real_chat, *options)
    found = json.loads((tmp_path / "chat.json").read_text())["builtin:chat"]["behaviours"]["rudeness"]
    assert set(found["arms"]) == {"unsteered", "asked", "dsas", "on"}
    assert len(found["arms"]["dsas"]["texts"]) == 8
    assert found["arms"]["unsteered"]["identical"] == 1.0
    page = tmp_path / "page.md"
    _run(monkeypatch, real_models_page, "--text", tmp_path / "none", "--chat", tmp_path / "chat.json", "--out", page)
    assert "### builtin:chat: rudeness" in page.read_text()


@pytest.mark.parametrize("path", real_chat.BEHAVIOURS, ids=lambda path: path.stem)
def test_a_behaviour_that_ships_has_prompts_enough(path: Path) -> None:
    behaviour = read_behaviour(path)
    drawn = behaviour.prompts.draw(48)
    assert {side: len(prompts) for side, prompts in drawn.items()} == {"source": 48, "target": 48, "control": 96}
    answers = {side: [text.partition("assistant:")[2] for text in prompts] for side, prompts in drawn.items()}
    assert all(behaviour.find(answers["source"]))
    assert not any(behaviour.find([*answers["target"], *answers["control"]]))
    assert len(behaviour.prompts.expanded("unseen_source")) >= 40
    assert len(behaviour.prompts.expanded("unseen_control")) >= 40


def test_a_behaviour_with_unknown_keys_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("shows: x\n")
    with pytest.raises(DSASError, match="expected the keys asks, prompts, shows, tokens"):
        read_behaviour(tmp_path / "x.yaml")
    with pytest.raises(DSASError, match="no file"):
        read_behaviour(tmp_path / "y.yaml")


def test_cells_of_one_model_are_not_taken_for_those_of_another(tmp_path: Path) -> None:
    model, _ = llm.load("builtin:chat", device="cpu")
    ruler.open_store(tmp_path, model)
    changed, _ = llm.load("builtin:chat", device="cpu")
    with torch.no_grad():
        next(changed.parameters()).add_(1)
    with pytest.raises(DSASError, match="another model"):
        ruler.open_store(tmp_path, changed)


def test_quick_lowers_only_what_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["it", "--model", "m/x", "--data", "d", "--quick", "--prompts", "9"])
    args: argparse.Namespace = real_text.read_options()
    assert (args.seeds, args.prompts, args.points) == (1, 9, 2)
    assert args.cache.name == "x"
