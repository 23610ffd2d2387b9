"""Joint training on a tiny pipeline: the calls that are made again, and what is learned by them."""

from __future__ import annotations

import copy
import warnings
from typing import Any
from unittest.mock import ANY

import diffusers
import pytest
import torch

from dsas_core.learning.joint.runs import HELD_OUT
from dsas_core.learning.joint.visitor import JointVisitor, Pass
from dsas_core.learning.prompts.prompt_set import PromptSet
from dsas_core.learning.recipe import Recipe
from dsas_core.maps import TwoWayMap
from dsas_diffusion import DSASError, Lesson, learn
from dsas_diffusion.learning.joint_runs import CallKeeper, _find_by_row
from tests.diffusion.learning.test_learn import PROMPTS
from tests.diffusion.steering.test_identities_by_family import ROLES, pipe_of
from tests.fixtures.pipelines import FAMILIES, SIZE, brief

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


TAILS = ("", " and a dog on the grass near a house", " in a house", ", a plum and a cat")
LENGTHS = {
    side: [f"a {size}{thing}{tail}" for size in ("", "big ") for tail in TAILS]
    for side, thing in (("source", "banana"), ("target", "pear"), ("control", "cat"))
}


OTHERS = [(name, "denoiser") for name in FAMILIES if name not in ("sd", "sdxl")]


@pytest.mark.parametrize(("family", "part"), [*OTHERS, ("qwen", "text")])
def test_every_family_is_called_again_as_it_was(family: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its calls are given by row, prompts of one length or another in a batch, and sites in either stream."""
    pipe = pipe_of(family)
    monkeypatch.setattr(type(pipe), "__call__", brief(pipe, family))
    prompts = PromptSet("it", **LENGTHS)
    sites = [role for role in ROLES[family] if role not in ("text", "embeddings")] if part == "denoiser" else part
    moments = 2 if part == "denoiser" else 1
    lesson = Lesson(pipe, prompts, sites=sites, count=8, steps=2, size=SIZE, edges=(), batch=1, seed=3)
    drawn = [("source", i) for i in range(len(lesson.fitting["source"]))]
    drawn += [("control", i) for i in range(len(lesson.fitting["control"]))]
    found = []
    for batch in (1, 2, 3):
        lesson.batch = batch
        runs = lesson._joint_runs(Recipe(method="e2e-dsas", training={"moments": 2}))
        assert runs.moments == moments
        visitor = JointVisitor(lesson.sites, ())
        with runs.placed(lesson.sites, visitor), torch.no_grad():
            for rows in ([drawn], [[row] for row in drawn])[:: 1 if batch == 2 else -1]:
                means: dict[Any, torch.Tensor] = {}
                for some in rows:
                    for group in runs.groups(some, moments - 1):
                        one = Pass(None, len(group))
                        visitor.start(one)
                        runs.run([some[i] for i in group], moments - 1)
                        for site, mean in one.means.items():
                            means |= {(some[i], site): row for i, row in zip(group, mean, strict=True)}
                found.append(means)
    for means in found[1:]:
        assert means.keys() == found[0].keys()
        for key, mean in means.items():
            torch.testing.assert_close(mean, found[0][key], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("scheduler", "steps"), [("HeunDiscreteScheduler", 4), ("KDPM2DiscreteScheduler", 7)])
def test_moments_are_spread_over_timesteps(ddim_pipe: Any, scheduler: str, steps: int, tmp_path: Any) -> None:
    """Those of Heun come twice, and between those of KDPM2 there are others."""
    pipe = copy.copy(ddim_pipe)
    pipe.scheduler = getattr(diffusers, scheduler).from_config(ddim_pipe.scheduler.config)
    lesson = Lesson(pipe, PROMPTS, sites="denoiser", edges=(), **SETTINGS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for moments in (2, 100):
            runs = lesson._joint_runs(Recipe(method="lineas", training={"moments": moments}))
            timesteps = [float(kept.call.timestep) for kept, _ in runs.keeper.kept["source", 0]]
            assert len(timesteps) == len(set(timesteps)) == runs.moments == min(moments, steps)
            assert timesteps == sorted(timesteps, reverse=True)
            if moments == 2:
                assert timesteps[0] > 500 > timesteps[1]


def row(*sizes: int) -> list[tuple[int, torch.Tensor]]:
    return [(size, torch.zeros(size, 3)) for size in sizes]


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([{"x": x, "residuals": [torch.zeros(12, 2)] * 12} for _, x in row(12)], [True] * 12),
        ([{"x": x, "boxes": [torch.zeros(16, 2)] * n} for n, x in row(16, 3)], True),
        ([{"x": x, "ids": torch.zeros(2, 3)} for _, x in row(2, 1)], False),
        ([{"x": x, "mask": None if n == 2 else torch.ones(n, 4)} for n, x in row(2, 1)], True),
        ([{"x": x, "turns": (torch.zeros(5, 2), torch.zeros(5, 2))} for _, x in row(2, 3)], [False, False]),
        ([{"x": x, "sizes": [[(1, 2, 2)]] * n} for n, x in row(2, 3)], True),
    ],
)
def test_what_has_rows_is_told_from_what_is_as_long(calls: list[dict[str, Any]], expected: Any) -> None:
    found = _find_by_row([(call, len(call["x"])) for call in calls])
    assert found.pop("x") is True
    assert list(found.values()) == [expected]


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


def test_a_prompt_whose_calls_are_unknown_and_other_timesteps_are_refused(tiny_pipe: Any) -> None:
    lesson = Lesson(tiny_pipe, PROMPTS, sites="denoiser", **SETTINGS)
    runs = lesson._joint_runs(Recipe(method="lineas", training={"moments": 2}))
    del runs.keeper.kept["target", 1]
    with pytest.raises(DSASError, match="'unet' was not called at every step for target prompt 1, and joint training"):
        runs.groups([("target", 0), ("target", 1)], 0)
    keeper = CallKeeper("unet", 2)
    for timesteps in ((900.0, 500.0), (900.0, 400.0)):
        keeper.start("source", 4)
        keeper._steps = {timestep: {("source", 0): ANY} for timestep in timesteps}
    with pytest.raises(DSASError, match="'unet' is called at other timesteps for source prompts from 4 on"):
        keeper.finish()
