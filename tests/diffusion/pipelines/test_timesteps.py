"""What goes by the timestep: parameters of several bins, and a gate that was asked before there was one."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from dsas_core import Call, Concept, DSASError, Intervention, Site, visit
from dsas_core.learning.recipe import Recipe
from dsas_core.probes import ConstantProbe, LinearProbe, PooledProbe
from dsas_core.steering.binding import BoundConcept
from dsas_core.steering.steering import Steering
from dsas_diffusion import find_sites, learn, steer
from dsas_diffusion.pipelines.adapter import adapt
from dsas_diffusion.pipelines.batch_layout import BatchLayout
from tests.diffusion.learning.test_learn import PROMPTS
from tests.diffusion.steering.test_identities_by_family import BANANA, DOG, base_of, concept_of, pipe_of
from tests.fixtures.checks import same
from tests.fixtures.concepts import random_concept
from tests.fixtures.models import bases
from tests.fixtures.pipelines import SIZE, WIDTH, latents

SITE = Site("unet.somewhere")


@pytest.mark.parametrize("edges", [(500.0,), (300.0, 700.0)])
def test_between_the_middles_of_two_bins_parameters_are_between_theirs(edges: tuple[float, ...]) -> None:
    concept = random_concept({SITE: 8}, edges=edges, kind="affine")
    attached = BoundConcept(concept, None, False, interpolate=True)
    ends = [0.0, *edges, 1000.0]
    middles = [(low + high) / 2 for low, high in pairwise(ends)]

    def at(timestep: float, attached: BoundConcept = attached) -> torch.Tensor:
        attached.select_bin(torch.tensor(timestep), torch.device("cpu"))
        (entry,) = attached.current.on(torch.device("cpu"))
        return torch.cat([t.flatten() for t in (*entry.probe.tensors(), *entry.map.tensors(), entry.weight)])

    own = [torch.cat([t.flatten() for t in (*p.tensors(), *m.tensors(), torch.ones(()))]) for p, m in parts(concept)]
    for middle, bank in zip(middles, own, strict=True):
        assert torch.allclose(at(middle), bank, atol=1e-6)
    assert torch.allclose(at((middles[0] + middles[1]) / 2), (own[0] + own[1]) / 2, atol=1e-6)
    assert torch.allclose(at(0.0), own[0])
    assert torch.allclose(at(1000.0), own[-1])
    assert torch.allclose(at(edges[0] - 1, BoundConcept(concept, None, False)), own[0])


def parts(concept: Concept) -> list[Any]:
    (item,) = concept.interventions
    return list(zip(item.probes, item.maps, strict=True))


def test_interpolated_bins_in_a_pipeline() -> None:
    pipe, concept = pipe_of("sd"), concept_of("sd", "cross")
    assert len(concept.edges) == 1
    same_bins = [
        replace(item, probes=(item.probes[0],) * 2, maps=(item.maps[0],) * 2, weights=(item.weights[0],) * 2)
        for item in concept.interventions
    ]
    alike = replace(concept, interventions=tuple(same_bins))
    made = {}
    for name, one, blended in [
        ("apart", concept, False),
        ("blended", concept, True),
        ("one", alike, False),
        ("alike", alike, True),
    ]:
        with steer(pipe, {one: 1.0}, interpolate_bins=blended):
            made[name] = latents(pipe, "sd", BANANA)
    assert not same(made["apart"], made["blended"])
    assert same(made["one"], made["alike"]), "between two that are the same there is nothing else"
    with pytest.raises(DSASError, match="clouds of two timestep bins"):
        Steering({concept: 1.0}, within="target", interpolate_bins=True)


# ---- read in a text encoder, written in the denoiser ----------------------------------------------------------------


def across(family: str, probe: Any, role: str) -> Concept:
    """A random map at every site of a role, gated by what a layer of the text encoder shows."""
    pipe, concept = pipe_of(family), concept_of(family, role)
    (reads,) = find_sites(pipe, "text.0" if family != "flux" else "text_2.0")
    items = tuple(
        Intervention(item.site, (probe,) * len(item.maps), item.maps, item.weights, reads)
        for item in concept.interventions
    )
    return replace(concept, interventions=items, base=bases(pipe))


@pytest.mark.parametrize(("family", "role"), [("sd", "cross"), ("sdxl", "cross"), ("flux", "image"), ("sana", "cross")])
def test_a_gate_in_the_text_opens_maps_in_the_denoiser_by_prompt(family: str, role: str) -> None:
    """Of two prompts in one batch, each as often as it likes, the one that the probe knows is steered."""
    pipe = pipe_of(family)
    weight, texts = torch.randn(WIDTH, generator=torch.Generator().manual_seed(3)) * 4, [BANANA, DOG]
    seen = means(family, across(family, PooledProbe(LinearProbe(weight, torch.zeros(()))), role), texts)
    z = [float(mean @ weight) for mean in seen]
    assert abs(z[0] - z[1]) > 1e-3
    steep = 2000 / (z[0] - z[1])  # h is 1 for the first prompt and 0 for the second
    gate = PooledProbe(LinearProbe(weight * steep, torch.tensor(-steep * (z[0] + z[1]) / 2)))
    concept, bare = across(family, gate, role), concept_of(family, role)
    on = replace(
        bare, interventions=tuple(replace(i, probes=(ConstantProbe(1.0),) * len(i.maps)) for i in bare.interventions)
    )
    with steer(pipe, {concept: 1.0}):
        made = latents(pipe, family, [BANANA, DOG], (1, 2))
        images = latents(pipe, family, [DOG, BANANA], (1, 1, 2, 2), num_images_per_prompt=2)
    with steer(pipe, {on: 1.0}):
        everything = latents(pipe, family, [BANANA, DOG], (1, 2))
    base = latents(pipe, family, [BANANA, DOG], (1, 2))
    scale = float(base.std())
    assert same(made[:1] / scale, everything[:1] / scale)
    assert same(made[1:] / scale, base[1:] / scale)
    assert not same(made[:1] / scale, base[:1] / scale)
    plain = latents(pipe, family, [DOG, BANANA], (1, 1, 2, 2), num_images_per_prompt=2)
    assert same(images[:2] / scale, plain[:2] / scale)
    assert not same(images[2:] / scale, plain[2:] / scale)


def means(family: str, concept: Concept, prompts: list[str]) -> list[torch.Tensor]:
    """The mean over counted positions of each prompt, where a concept reads."""
    pipe, found = pipe_of(family), []
    site = concept.interventions[0].probe_site
    assert site is not None

    class Mean:
        def begin(self, root: str, call: Call) -> None:
            self.calls = {**getattr(self, "calls", {}), root: call}

        def visit(self, site: Site, x: torch.Tensor) -> None:
            call = self.calls[site.root]
            assert call.mask is not None
            if call.steered.any():
                found.extend((x * call.mask[..., None]).sum(1) / call.mask.sum(1, keepdim=True))

    with BatchLayout(adapt(pipe)) as layout, visit(adapt(pipe).roots, [site], Mean(), layout.describe()):
        latents(pipe, family, prompts, (1, 2))
    return found


def test_without_a_text_there_is_nothing_to_ask() -> None:
    pipe = pipe_of("sd")
    concept = across("sd", PooledProbe(LinearProbe(torch.ones(WIDTH), torch.zeros(()))), "cross")
    ready, negative = pipe.encode_prompt(BANANA, "cpu", 1, True)
    with steer(pipe, {concept: 1.0}):
        latents(pipe, "sd", BANANA)
        with (
            pytest.warns(UserWarning, match="prompt_embeds were given"),
            pytest.raises(DSASError, match="must read before"),
        ):
            pipe(prompt_embeds=ready, negative_prompt_embeds=negative, num_inference_steps=1, output_type="latent")
    assert torch.equal(latents(pipe, "sd", BANANA), base_of("sd"))


@pytest.mark.usefixtures("one_unit")
def test_learning_to_read_the_prompt() -> None:
    pipe = pipe_of("sd")
    shown = "a dog and a banana on a table"
    recipe = {"reads": "prompt", "form": "pooled"}
    concept = learn(pipe, PROMPTS, sites=["text", "denoiser"], count=8, steps=2, size=SIZE, recipe=recipe)
    assert {item.site.root for item in concept.interventions} == {"unet"}
    (reads,) = {item.probe_site for item in concept.interventions if not item.read_only}
    assert reads is not None
    assert reads.root == "text_encoder"
    assert set(concept.base) == {"unet", "text_encoder"}
    with steer(pipe, {concept: 1.0}):
        steered = latents(pipe, "sd", shown)
    assert not torch.equal(steered, latents(pipe, "sd", shown))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sites": "denoiser", "recipe": {"reads": "prompt", "form": "pooled"}}, "needs sites that read"),
        ({"sites": ["text", "denoiser"], "recipe": {"reads": "prompt"}}, "for prompt form pooled and mode clean"),
        ({"recipe": {"reads": "tea leaves"}}, "reads 'tea leaves'"),
    ],
)
def test_what_cannot_read_the_prompt(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DSASError, match=message):
        learn(pipe_of("sd"), PROMPTS, count=8, steps=1, size=SIZE, edges=(), **settings)
    assert Recipe().reads == "site"
