"""`dsas show` and `dsas doctor`: what a concept is, what it did to a picture, and what is concluded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dsas_core import Concept
from dsas_diffusion.cli.commands import doctor
from dsas_diffusion.pipelines import load
from tests.fixtures.checks import document_of


def test_show(dsas, concept: str) -> None:
    shown = document_of(dsas("show", concept, "--json"))
    saved = Concept.from_pretrained(concept)
    assert shown["unit"] == saved.unit
    assert shown["sites"] == saved.evidence["sites"]
    assert shown["bytes"]["concept.safetensors"] == (Path(concept) / "concept.safetensors").stat().st_size
    parts = [part for item in saved.interventions for part in (*item.probes, *item.maps)]
    assert shown["parameters"] == sum(tensor.numel() for part in parts for tensor in part.tensors()) > 0
    assert shown["mask_evidence"] == saved.evidence["mask"]
    code, text, _ = dsas("show", concept)
    assert code == 0
    assert f"place in pictures read at {saved.evidence['mask']['sites'][0]}" in text
    places = {steers: [str(item.site) for item in saved.interventions if item.read_only != steers] for steers in (1, 0)}
    assert (shown["steered_sites"], shown["watched_sites"]) == (places[1], places[0])
    assert f"steering at {len(places[1])} site" in text
    assert f", watching {len(places[0])} more" in text
    for expected in (
        "balanced accuracy",
        "AUROC",
        "control h",
        "rank",
        "parameters",
        "concept.safetensors",
        "provenance",
    ):
        assert expected in text


def test_show_without_evidence(dsas, concept: str, tmp_path: Path) -> None:
    replace(Concept.from_pretrained(concept), evidence={}, provenance={}).save_pretrained(tmp_path / "bare")
    code, text, _ = dsas("show", tmp_path / "bare")
    assert code == 0
    assert "no evidence was recorded" in text
    assert "place in pictures" not in text


def test_doctor(dsas, model: str, concept: str) -> None:
    arguments = ("doctor", "--model", model, "--concept", concept, "--prompt", "a banana", "--steps", 2)
    document = document_of(dsas(*arguments, "--json"))
    interventions = Concept.from_pretrained(concept).interventions
    for site, item in zip(document["sites"], interventions, strict=True):
        assert site["reached"]
        assert 0 <= site["mean_h"] <= site["max_h"] <= site["weight"] + 1e-6
        assert site["dose"] == pytest.approx(0 if item.read_only else document["unit"] * site["mean_h"])
        assert (site["relative_change"] > 0) == (site["mean_h"] > 0 and not item.read_only)
    assert document["conclusions"]
    code, text, _ = dsas(*arguments, "--strength", 0)
    assert code == 0
    assert "The strength is 0" in text
    assert "0.00 of 255" in text


def test_doctor_reports_conflicts_between_concepts(dsas, model: str, concept: str, tmp_path: Path) -> None:
    other = replace(Concept.from_pretrained(concept), name="other").save_pretrained(tmp_path / "other")
    command = ("doctor", "--model", model, "-c", concept, "-c", other, "-p", "a banana", "--steps", 2)
    document = document_of(dsas(*command, "--json"))
    assert document["beside"] == ["other"]
    assert {line["site"] for line in document["opposition"]} <= {site["site"] for site in document["sites"]}
    assert all(line["cosine"] == pytest.approx(1) and not line["opposed"] for line in document["opposition"])
    assert document["opposition"]
    assert "where shifts of two concepts go" in dsas(*command)[1]


def test_doctor_names_words_that_the_built_in_model_does_not_know(
    dsas, model: str, concept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(load.BUILTIN, "builtin:emoji", Path(model))
    prompt = "a xylophone, and a banana " + "on the grass " * 10
    document = document_of(dsas("doctor", "--concept", concept, "--prompt", prompt, "--steps", 1, "--json"))
    assert document["unknown_words"] == ["xylophone"]
    assert any("does not know xylophone" in line for line in document["conclusions"])
    assert any("cut off" in line for line in document["conclusions"])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"scores": (0.0, 0.01)}, "near 0 everywhere"),
        ({"scores": (0.1, 0.3)}, "low everywhere"),
        ({"scores": (1.0, 1.0)}, "near 1 on everything"),
        ({"scores": (0.2, 0.9)}, "1 of 1 sites fired"),
        ({"scores": (0.2, 0.9), "weight": 0.1}, "weights are small"),
        ({"scores": (0.2, 0.9), "pixel_difference": 0.3, "changed": False}, "dose is too small"),
        ({"scores": (0.2, 0.9), "reached": False}, "never reached"),
        ({"scores": (0.2, 0.9), "effect_reached_in_learning": False}, "expect less"),
    ],
)
def test_doctor_concludes(changes: dict[str, Any], expected: str) -> None:
    mean, highest = changes.pop("scores")
    site = {
        "site": "unet.x",
        "fired": highest >= doctor.FIRED,
        "mean_score": mean,
        "max_score": highest,
        "weight": changes.pop("weight", 0.9),
        "reached": changes.pop("reached", True),
    }
    document = {
        "strength": 1.0,
        "sites": [site],
        "pixel_difference": 9.0,
        "changed": True,
        "effect_reached_in_learning": True,
        "unknown_words": [],
        "tokens": 5,
        "tokens_read": 22,
    }
    assert any(expected in line for line in doctor.conclusions({**document, **changes}))
