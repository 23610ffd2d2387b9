"""Map methods: the rows and options that they refuse, options in recipes, and the choice of sites to keep."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dsas_core import Call, DSASError, Recipe, Site, methods
from dsas_core.learning.capture import Capture
from dsas_core.learning.fit import fit_sites
from dsas_core.learning.recipe import recipe_of
from dsas_core.maps import Map
from tests.core.methods.test_maps import MAPS, WIDTH, fit

GOOD = torch.randn(6, 4)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (torch.zeros(6), GOOD, r"source: expected floating rows \[n, width\]"),
        (GOOD, torch.zeros(6, 4).long(), "target: expected floating rows .* found torch.int64"),
        (GOOD, torch.zeros(0, 4), "target: expected floating rows"),
        (GOOD, torch.zeros(6, 5), "target: expected width 4 as in the source rows, found 5"),
        (GOOD.index_fill(0, torch.tensor(2), float("nan")), GOOD, "source: rows hold NaN"),
        (GOOD, GOOD.index_fill(0, torch.tensor(2), float("inf")), "target: rows hold NaN or infinite"),
    ],
)
def test_bad_rows(name: str, first: torch.Tensor, second: torch.Tensor, message: str) -> None:
    with pytest.raises(DSASError, match=message):
        fit(name, first, second)


@pytest.mark.parametrize("name", [name for name in MAPS if methods.get(name, "map").traits.min_rows > 1])
def test_too_few_rows(name: str) -> None:
    with pytest.raises(
        DSASError, match=rf"target: \w+ needs at least {methods.get(name, 'map').traits.min_rows} rows, found 1"
    ):
        fit(name, GOOD, GOOD[:1])


def test_only_what_needs_pairs_refuses_unequal_counts() -> None:
    for name in MAPS:
        if methods.get(name, "map").traits.paired:
            with pytest.raises(DSASError, match=r"pairs, so it needs .* found 5 and 6: write the prompts as pairs"):
                fit(name, GOOD, GOOD[:5])
        else:
            assert isinstance(fit(name, GOOD, GOOD[:5] + 1), Map)
    assert [name for name in MAPS if methods.get(name, "map").traits.paired] == ["austeer"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("caa", {"normalise": "max"}, "CAA option normalise: expected none, unit or mean norm, found 'max'"),
        ("iti", {"direction": "pca"}, "ITI option direction: expected mass mean or classifier, found 'pca'"),
        ("linear-act", {"support": "all"}, "LinearAcT option support: expected null or observed, found 'all'"),
        ("mean-act", {"spatial": None}, "expected elementwise or mean shift, found None"),
        ("caa", {"support": None}, r"CAA has no option 'support'; it has normalise \(none, unit or mean norm\)"),
        ("aura", {"top": 3}, "AurA has no option 'top'; it has none"),
        *(
            ("mera", {"alpha": a}, "MERA option alpha: expected null or a number between 0 and 1")
            for a in (0, 1.0, "x")
        ),
        ("casteer", {"mode": "turn"}, "CASteer option mode: expected erase, reflect or add, found 'turn'"),
        ("casteer", {"alpha": True}, "CASteer option alpha: expected a number above 0, found True"),
        *(("sadi", {"top": top}, "SADI option top: expected a number") for top in (0, -1, 0.0, 1.5, True, "all", [3])),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DSASError, match=message):
        fit(name, GOOD, GOOD, **options)
    with pytest.raises(DSASError, match=message):
        Recipe(method=name, options=options)


# ---- recipes --------------------------------------------------------------------------------------------------------


def test_recipes_hold_options() -> None:
    assert recipe_of({"options": {"top": 3}}, method="sadi").options == {"top": 3}
    with pytest.raises(DSASError, match=r"options of caa: expected names with values, found \['unit'\]"):
        Recipe(options=["unit"])  # type: ignore[arg-type]
    for keep in (0, -1, 2.5):
        with pytest.raises(DSASError, match="expected how many sites to steer, from 1 up, or None"):
            Recipe(keep=keep)  # type: ignore[arg-type]


def test_methods_list_their_options() -> None:
    described = {method.name: method for method in methods.available()}
    assert described["caa"].options == {"normalise": {"default": "none", "takes": "none, unit or mean norm"}}
    assert described["aura"].options == {}


def captured(apart: dict[str, float], count: int = 20) -> Capture:
    """Sites whose targets are so far from their sources; controls are far from sources everywhere."""
    capture = Capture(positions_per_row=4)
    for seed, kind in enumerate(("source", "target", "control")):
        capture.start(kind)
        capture.begin("lm", Call(torch.ones(count), torch.arange(count)))
        for place, distance in apart.items():
            x = torch.randn(count, 6, WIDTH, generator=torch.Generator().manual_seed(seed))
            x[..., 0] += {"source": 0.0, "target": distance, "control": 8.0}[kind]
            capture.visit(Site(f"lm.{place}", channels=(0, WIDTH)), x)
    return capture


def test_options_reach_the_map() -> None:
    recipe = Recipe(method="sadi", gate="on", form="paper", pooling="mean", options={"top": 2})
    (intervention,), _ = fit_sites(captured({"a": 4.0}), recipe)
    slope = intervention.maps[0].tensors()[1]
    assert (slope != 1).sum() == 2


@pytest.mark.parametrize("gate", ["on", "dsas"])
def test_only_the_sites_that_tell_best_are_kept(gate: str) -> None:
    capture = captured({"a": 0.0, "b": 4.0, "c": 0.0, "d": 6.0})
    steps: list[int] = []
    recipe = Recipe(method="iti", gate=gate, form="paper", pooling="mean", keep=2)
    interventions, evidence = fit_sites(capture, recipe, lambda: steps.append(1))
    assert [item.site.path for item in interventions] == ["lm.b", "lm.d"]
    assert {found.site for found in evidence} == {str(item.site) for item in interventions}
    assert len(steps) == 4
