"""The card: all of it from the concept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dsas_core import Concept, Site
from dsas_core.concept.card import render_card
from dsas_core.concept.samples import Samples
from dsas_core.errors import ArtifactError
from tests.fixtures.concepts import random_concept

EVIDENCE: dict[str, Any] = {
    "sites": [
        {"site": "unet.mid", "bin": 0, "balanced_accuracy": 0.9, "auroc": 0.95, "control_h": 0.01},
        {"site": "unet.mid", "bin": 1, "balanced_accuracy": 0.8, "auroc": 0.85, "control_h": 0.03},
        {"site": "unet.seen", "bin": 0, "balanced_accuracy": 0.6, "auroc": 0.65, "control_h": 0.5},
    ],
    "unit": {
        "trials": [{"unit": 1.5, "effect": 0.7, "drift": 0.02}],
        "reached": False,
        "drift_limit": 0.05,
        "eyes_accuracy": 0.6,
    },
}
PROVENANCE = {
    "model": "somebody/pictures",
    "command": "dsas learn --prompts p.yaml",
    "prompts_sha256": "ab12",
    "seed": 3,
}


def concept(**fields: Any) -> Concept:
    about: dict[str, Any] = {"evidence": EVIDENCE, "provenance": PROVENANCE, "unit": 1.5, "base": {"unet": "0"}}
    about["learned_on"] = {"unet": {"class": "UNet", "parameters": 12345, "sample": []}}
    return random_concept({Site("unet.mid"): 4}, edges=(500.0,), **{**about, **fields})


def test_it_tells_evidence_limits_and_where_it_comes_from() -> None:
    text = render_card(concept())
    front = yaml.safe_load(text.split("---")[1])
    assert front["library_name"] == "dsas"
    assert (front["base_model"], front["pipeline_tag"]) == ("somebody/pictures", "text-to-image")
    for expected in (
        "| `unet.mid` | 1 | 0.800 | 0.850 | 0.0300 |",
        "learned on somebody/pictures (unet UNet of 12,345 parameters)",
        "unit 1.5: the best of those tried, as far as effects can be told",
        "balanced accuracy 0.60, too poorly to trust",
        "no range yet",
        "mean h over the sites that steer is 0.0200, and 0.0300 at most (`unet.mid`)",
        "dsas learn --prompts p.yaml",
        "SHA-256 of the prompt file: `ab12`",
        "import dsas_diffusion as dsas",
    ):
        assert expected in text
    assert "range -0.5 to 2: useful strengths" in render_card(concept(range=(-0.5, 2.0)))


def test_it_tells_nothing_that_the_concept_does_not() -> None:
    bare = render_card(concept(evidence={}, provenance={}, learned_on={}, base={"model": "0"}))
    assert "None recorded." in bare
    assert "from dsas_core import llm" in bare
    for absent in ("base_model", "pipeline_tag", "learned on", "SHA-256", "control prompts", "strip.webp", "unet UNet"):
        assert absent not in bare


MASK = {
    "sites": ["unet.up.0", "unet.up.1"],
    "missed": 0.05,
    "touched": 0.0,
    "covered": 0.125,
    "growth": 0.03,
    "seed": 4.0,
}


def test_it_tells_where_the_place_in_pictures_is_read() -> None:
    for evidence in (EVIDENCE, {}):
        assert "place in pictures" not in render_card(concept(evidence=evidence)).lower()
        told = render_card(concept(evidence={**evidence, "mask": MASK}))
        assert "\n\nPlace in pictures read at unet.up.0 and unet.up.1: on held-out prompts it misses 5 % of" in told
        assert "touches 0 % of control pictures; the mask covers 12.5 % of a picture, and grows by 3 % of" in told


@pytest.mark.parametrize("damaged", [{}, {**MASK, "missed": "few"}, {**MASK, "sites": [1]}, [MASK], "unet.up"])
def test_a_mask_that_no_card_can_show_is_refused(damaged: Any, tmp_path: Path) -> None:
    folder = concept().save_pretrained(tmp_path / "it")
    config = json.loads((folder / "config.json").read_text())
    config["evidence"]["mask"] = damaged
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="damaged"):
        Concept.from_pretrained(folder)


def test_many_rows_are_folded_up_and_equal_ones_told_once() -> None:
    rows = [{**EVIDENCE["sites"][0], "site": f"unet.{i}"} for i in range(30)]
    text = render_card(concept(evidence={"sites": rows * 2}))
    assert "<summary>30 rows</summary>" in text
    assert text.count("`unet.7`") == 1


def test_samples_are_shown() -> None:
    pictures = Samples(("a [banana]", "a dog"), (0.0, 1.0), strip=b"picture")
    assert "![a \\[banana\\]; a dog](strip.webp)" in render_card(concept(samples=pictures))
    assert "picture" not in repr(pictures), "a file's bytes are for nobody's eyes"
    texts = Samples(("user: where?", "user: when?"), (0.0, 1.0), (("there | here", "over\nthere"), ("now", "now")))
    text = render_card(concept(samples=texts))
    assert "| user: where? | 0 | there \\| here |" in text
    assert "| user: where? | 1 | over there |" in text
    assert Samples.from_dict(texts.to_dict()) == texts
    assert Samples.from_dict(pictures.to_dict(), b"picture") == pictures


def test_samples_of_another_unit_are_not_kept() -> None:
    drawn = concept(samples=Samples(("a", "b"), (0.0, 1.0), strip=b"picture"))
    assert drawn.with_unit(2.0).samples is None
