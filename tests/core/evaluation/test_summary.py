"""From measurements to figures and reports, on measurements whose truth is known."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from dsas_core import DSASError
from dsas_core.evaluation import ARMS, Point, report, summarise

BASE, ASKED = [0.0, 0.0, 0.2, 0.0], [1.0, 0.8, 1.0, 0.6]
SEEDS = [(0, "a"), (0, "b"), (1, "a"), (1, "b")]


def points(target_scores: list[float], cost: float) -> list[Point]:
    """Half of what is shown at strength 0.5, all of it at 1."""
    return [
        Point(strength, [value * strength for value in target_scores], [cost * strength] * 4, {"unchanged": 1 - cost})
        for strength in (0.5, 1.0)
    ]


def figures(**arms: Any) -> dict[str, Any]:
    return summarise(arms, BASE, ASKED, SEEDS, SEEDS, rounds=60)


def test_effects_are_relative_to_words() -> None:
    result = figures(dsas=points(ASKED, 0.1), on=points(ASKED, 0.6))
    assert result["relative"]
    assert (result["base"], result["asked"]) == (pytest.approx(0.05), pytest.approx(0.85))
    half, whole = (point["effect"]["value"] for point in result["arms"]["dsas"]["points"])
    assert whole == pytest.approx(1)
    assert half == pytest.approx((0.425 - 0.05) / 0.8)
    assert result["arms"]["dsas"]["points"][1]["cost"] == pytest.approx({"value": 0.1, "low": 0.1, "high": 0.1})
    equal = result["at_equal_effect"]["on"]
    assert equal["ratio"] == pytest.approx(1 / 6)
    assert result["arms"]["dsas"]["hypervolume"]["value"] > result["arms"]["on"]["hypervolume"]["value"]


def test_a_free_point_is_held_against_the_swept_front() -> None:
    """At half the cost of the point at 1 the front reaches half of the effect; a free point does or does not."""
    free = [Point(target, [value * share for value in ASKED], [0.05] * 4) for target, share in ((0.5, 0.8), (0.1, 0.3))]
    result = summarise({"dsas": points(ASKED, 0.1)}, BASE, ASKED, SEEDS, SEEDS, rounds=60, free=free)["auto"]
    assert [line["target"] for line in result] == [0.5, 0.1]
    half = (0.425 - 0.05) / 0.8
    for line, share in zip(result, (0.8, 0.3), strict=True):
        effect = (0.85 * share - 0.05) / 0.8
        assert (line["effect"]["value"], line["over"]["value"]) == pytest.approx((effect, effect - half))
    assert result[1]["over"]["high"] < 0 < result[0]["over"]["low"]
    assert figures(dsas=points(ASKED, 0.1))["auto"] == []


def test_words_that_do_nothing_are_no_measure() -> None:
    result = summarise({"dsas": points(ASKED, 0.1)}, BASE, BASE, SEEDS, SEEDS, rounds=20)
    assert not result["relative"]
    assert result["arms"]["dsas"]["points"][1]["effect"]["value"] == pytest.approx(0.85 - 0.05)
    without = summarise({"dsas": points([1.0] * 4, 0.1)}, BASE, None, SEEDS, SEEDS, rounds=20)
    assert without["asked"] is None
    assert without["arms"]["dsas"]["points"][1]["effect"]["value"] == pytest.approx(1)


def test_nothing_to_judge_by() -> None:
    with pytest.raises(DSASError, match="0 source and 4 control prompts to judge by: each side needs one"):
        summarise({"dsas": []}, [], None, [], SEEDS)


@pytest.fixture
def document(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    more = {
        "baselines": {
            "asked in words": {"shown": sum(ASKED) / len(ASKED), "cost": 0.0},
            "negative prompt": {"shown": sum(BASE) / len(BASE), "cost": 0.4, "unchanged": 0.25},
        },
        "judges": [{"judge": "redness", "base": 0.1, "dsas": 0.7}],
        "evidence": {"sites": [{"site": f"unet.{i}", "weight": i / 10, "auroc": 0.9} for i in range(9)]},
        "wordings": [{"wording": "a {dog}", "pictures": 4, "dsas": 1.0}],
        "samples": [{"side": "source", "prompt": "a <dog>", "pictures": {"base": str(tmp_path / "a.png")}}],
        "skipped": ["lpips: no weights"],
        "robustness": [{"steps": 8, "shown": 0.9}],
    }
    arms = {name: points(ASKED, 0.1 if name == "dsas" else 0.6) for name in ARMS}
    arms["random_direction"] = points(BASE, 0.2)
    free = [Point(0.25, ASKED, [0.05] * 4)]
    summary = summarise(arms, BASE, ASKED, SEEDS, SEEDS, rounds=20, free=free)
    concept = {"name": "grey & <dog>", **summary, **more}
    about = {"command": "dsas eval", "seconds": 3.0, "machine": "x", "versions": {"torch": "2"}}
    return {"title": "Some dogs", "concepts": [concept], **about}


def test_a_report_in_three_forms(document: dict[str, Any], tmp_path: Path) -> None:
    document["concepts"][0]["strange"] = float("nan")
    paths = report.write_report(tmp_path, document)
    assert [path.name for path in paths] == ["report.json", "report.md", "report.html"]
    stored = json.loads(paths[0].read_text())
    assert stored["concepts"][0]["strange"] is None
    markdown = paths[1].read_text()
    assert "| DSAS | 1.000 [1.00, 1.00] | 0.100 [0.10, 0.10] | 0.900 |" in markdown
    assert "| asked in words | 1.000 | 0.000 | – | – |" in markdown
    assert "| negative prompt | 0.000 | 0.400 | 0.250 | – |" in markdown
    assert "| judge | no steering | DSAS |" in markdown
    assert "| 0.250 | 1.000 [1.00, 1.00] | 0.050 [0.05, 0.05] |" in markdown
    assert "| a {dog} | 4 | 1.000 |" in markdown
    assert "the 6 best of 9" in markdown
    assert "| unet.8 | – | 0.800 | – | 0.900 | – | – | – |" in markdown
    assert "unet.2" not in markdown
    assert "Not measured: lpips: no weights." in markdown
    assert "| random direction | – | – | – | – |" in markdown, "it never has an effect to compare at"
    page = paths[2].read_text()
    assert "a &lt;dog&gt;" in page
    assert "<h2>grey &amp; &lt;dog&gt;</h2>" in page
    assert 'src="data:image/png;base64,' in page
    assert not re.search(r'(src|href)="(?!data:)[^#]', page), "the page needs nothing else"


def test_the_plot_shows_every_arm(document: dict[str, Any]) -> None:
    drawn = report.plot(document["concepts"][0])
    ElementTree.fromstring(drawn)
    assert all(line in drawn for line in (*ARMS.values(), "asked in words", "negative prompt"))
    assert drawn == report.plot(document["concepts"][0]), "the same figures give the same file"


@pytest.mark.parametrize(
    ("cost", "words"),
    [(0.1, "DSAS is the better front"), (0.9, "gating does not help here"), (0.6, "cannot be told apart")],
)
def test_plain_words(cost: float, words: str) -> None:
    arms = {"dsas": points(ASKED, cost), "on": points(ASKED, 0.6)}
    result = {"name": "x", **summarise(arms, BASE, ASKED, SEEDS, SEEDS, rounds=60)}
    assert any(words in line for line in report.plain_words(result))


def test_an_oracle_is_no_control() -> None:
    arms = {name: points(ASKED, 0.1) for name in ("dsas", "on", "oracle")} | {"complement": points(BASE, 0.1)}
    lines = report.plain_words({"name": "x", **summarise(arms, BASE, ASKED, SEEDS, SEEDS, rounds=60)})
    assert not any("control arm" in line for line in lines)
    assert any(line.startswith("A gate that is told which prompts show the concept") for line in lines)
