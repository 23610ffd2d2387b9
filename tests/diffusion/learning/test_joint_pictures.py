"""Joint training on a tiny pipeline: the calls that are made again, and what is learned by them."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from dsas_core.learning.joint.runs import HELD_OUT
from dsas_core.learning.joint.visitor import JointVisitor, Pass
from dsas_core.learning.recipe import Recipe
from dsas_core.maps import TwoWayMap
from dsas_diffusion import DSASError, Lesson, learn
from tests.diffusion.learning.test_learn import PROMPTS

pytestmark = pytest.mark.usefixtures("one_unit")
SETTINGS: dict[str, Any] = {"count": 8, "steps": 4, "batch": 3, "seed": 5}
QUICK = {"training": {"steps": 4, "checks": 2, "moments": 4}}


@pytest.mark.parametrize("sites", ["denoiser", "text", None])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_calls_that_are_made_again_give_what_was_captured(tiny_pipe: Any, sites: str | None, guidance: float) -> None:
    """Row by row, in whatever batches; and at every step of which there is but one in a bin."""
    edges = (250.0, 500.0, 750.0) if sites == "denoiser" else ()
    lesson = Lesson(tiny_pipe, PROMPTS, sites=sites, guidance=guidance, edges=edges, **SETTINGS)
    capture = lesson.captured(Recipe())
    runs = lesson._joint_runs(Recipe(method="e2e-dsas", training={"moments": 4}))
    assert runs.moments == (4 if sites == "denoiser" else 1)
    assert runs.counts[f"{HELD_OUT}control"] == len(lesson.held_out["control"])
    visitor, prompts = JointVisitor(lesson.sites, edges), [3, 0, 5]
    with runs.placed(lesson.sites, visitor), torch.no_grad():
        for moment in range(runs.moments):
            one = Pass(None, 3)
            visitor.start(one)
            runs.run([("source", i) for i in prompts], moment)
            visitor.counted = None
            for site, means in one.means.items():
                captured = capture.rows[site, visitor.bin, "source"]
                at = [captured.gathered("prompts").tolist().index(i) for i in prompts]
                expected = captured.gathered("pooled")[at]
                torch.testing.assert_close(means, expected, atol=1e-4, rtol=1e-3)
    assert set(one.means) == set(lesson.sites)


def test_means_are_over_the_words_that_show_the_concept(tiny_pipe: Any) -> None:
    """Of a prompt that has none of them, over all."""
    lesson = Lesson(tiny_pipe, PROMPTS, **SETTINGS)
    runs = lesson._joint_runs(Recipe(method="lineas"))
    runs.labels = {"source": lambda prompt, count: [place == 2 and prompt != 1 for place in range(count)]}
    call, counted = runs._prepare([("source", 0), ("source", 1), ("target", 0)], 0)
    assert counted is not None
    assert len(call.steered) == 3
    assert counted[0].nonzero()[:, 0].tolist() == [2]
    assert bool((counted[1:] == 1).all())


@pytest.mark.parametrize(("method", "sites"), [("lineas", "denoiser"), ("e2e-dsas", "denoiser"), ("e2e-dsas", None)])
def test_what_trains_is_learned(tiny_pipe: Any, method: str, sites: str | None) -> None:
    parts = [part for root in ("unet", "text_encoder") for part in getattr(tiny_pipe, root).parameters()]
    before, asked = [part.clone() for part in parts], [part.requires_grad for part in parts]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        concept = learn(
            tiny_pipe, PROMPTS, method=method, sites=sites, recipe={**QUICK, "site_weight": "none"}, **SETTINGS
        )
    assert (concept.method, concept.gate) == (method, "dsas" if method == "lineas" else method)
    history = concept.evidence["training"]["history"]
    assert history[-1]["held_out"] <= history[0]["held_out"]
    steering = [item for item in concept.interventions if not item.read_only]
    assert {isinstance(part, TwoWayMap) for item in steering for part in item.maps} == {method == "lineas"}
    assert all(torch.equal(*pair) for pair in zip(before, parts, strict=True))
    assert asked == [part.requires_grad for part in parts]
    assert all(part.grad is None for part in parts)
    assert not any(part._forward_hooks for part in tiny_pipe.unet.modules())


def test_a_bin_that_no_moment_reaches_is_told(tiny_pipe: Any) -> None:
    recipe = {"training": {"steps": 2, "moments": 1}, "site_weight": "none"}
    with pytest.raises(
        DSASError, match=r"no moment of training is at timesteps 500 to 1000, a bin of unet\S* with a map"
    ):
        learn(tiny_pipe, PROMPTS, method="lineas", sites="denoiser", edges=(500.0,), recipe=recipe, **SETTINGS)


def test_sites_in_two_roots_are_refused(tiny_pipe: Any) -> None:
    with pytest.raises(DSASError, match="needs all sites in one root, and these are in text_encoder, unet: choose"):
        learn(
            tiny_pipe, PROMPTS, method="lineas", sites=["text", "denoiser"], recipe={"site_weight": "none"}, **SETTINGS
        )


def test_activations_are_computed_again_where_it_is_asked_for(tiny_pipe: Any) -> None:
    shifts = []
    for again in (False, True):
        recipe = {"training": {**QUICK["training"], "checkpointing": again}, "site_weight": "none"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            concept = learn(tiny_pipe, PROMPTS, method="lineas", sites="denoiser", recipe=recipe, **SETTINGS)
        assert concept.evidence["training"]["checkpointing"] is again
        steering = [item for item in concept.interventions if not item.read_only]
        shifts.append(torch.cat([item.maps[0].forward.shift for item in steering]))
    torch.testing.assert_close(*shifts, atol=1e-2, rtol=1e-2)
    assert not any(getattr(part, "gradient_checkpointing", False) for part in tiny_pipe.unet.modules())
