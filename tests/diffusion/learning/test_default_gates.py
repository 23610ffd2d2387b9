"""Methods that bring a gate of their own, learned and steering in pictures."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from dsas_core import Concept, DSASError, Intervention, Recipe, Site, methods, visit
from dsas_core.learning.capture import Capture
from dsas_core.learning.fit import fit_sites
from dsas_core.maps import AffineMap
from dsas_core.probes import LastProbe, LinearProbe
from dsas_diffusion import find_sites, learn, steer
from dsas_diffusion.pipelines.adapter import adapt
from dsas_diffusion.pipelines.batch_layout import BatchLayout
from tests.fixtures.checks import differ, same
from tests.fixtures.language_models import condition_latch
from tests.fixtures.models import latents
from tests.fixtures.visitors import seen_at

Pictured = tuple[Any, Capture, list[Site]]

BOTH = tuple(  # that are fitted
    method.name
    for method in methods.available()
    if method.kind == "both" and method.learned and not methods.mapping(method.name).traits.trained
)
SHOWN, OTHER = ("a banana {}", "a {} and a banana"), ("a dog {}", "a {} and a lemon")


@pytest.fixture(scope="module")
def pictured(tiny_pipe: Any) -> Pictured:
    """A tiny pipeline, and what it makes of bananas and of other things, in two bins of timesteps."""
    sites = [*find_sites(tiny_pipe, "text"), *find_sites(tiny_pipe, "cross")[:2]]
    words = ("on a table", "at night", "in the snow", "on the grass", "hat", "car")
    capture = Capture((500.0,))
    roots = {"unet": tiny_pipe.unet, "text_encoder": tiny_pipe.text_encoder}
    with BatchLayout(adapt(tiny_pipe)) as rows, visit(roots, sites, capture, rows.describe()):
        for kind, templates in (("source", SHOWN), ("target", ("a blurred banana {}",) * 2), ("control", OTHER)):
            capture.start(kind)
            prompts = [template.format(word) for template, word in itertools.product(templates, words)]
            latents(tiny_pipe, prompts, seeds=range(len(prompts)))
    return tiny_pipe, capture, sites


@pytest.mark.parametrize("part", ["text_encoder", "unet"])
@pytest.mark.parametrize("name", [*BOTH, "casteer add"])
def test_pictures(pictured: Pictured, name: str, part: str, tmp_path: Path) -> None:
    pipe, whole, _ = pictured
    method, _, mode = name.partition(" ")
    options: dict[str, Any] = {"mode": mode} if mode else {"alpha": 0.5} if method == "mera" else {}
    capture = Capture(whole.edges)
    capture.timeless = whole.timeless
    capture.rows.update({key: rows for key, rows in whole.rows.items() if key[0].root == part})
    recipe = Recipe(method=method, site_weight="none", options=options)
    interventions, _ = fit_sites(capture, recipe)
    concept = Concept("banana", tuple(interventions), (500.0,), method=method, gate=str(recipe.gate))
    loaded = Concept.from_pretrained(concept.save_pretrained(tmp_path / "it"))
    assert loaded == concept

    prompts, seeds = ["a banana at night", "a dog on a table"], [0, 1]
    base = latents(pipe, prompts, seeds)
    with steer(pipe, {loaded: 0.0}, trace=True) as steering:
        assert torch.equal(latents(pipe, prompts, seeds), base)
        steering.strengths["banana"] = 3.0
        steered = latents(pipe, prompts, seeds)
        assert steering.trace is not None
        said = torch.cat([record.h.flatten() for record in steering.trace.select("banana")])
        assert set(said.unique().tolist()) <= {0.0, 1.0}
        singles = [latents(pipe, [prompt], [seed]) for prompt, seed in zip(prompts, seeds, strict=True)]
        assert same(steered, torch.cat(singles))
        steering.strengths["banana"] = -3.0
        assert differ(latents(pipe, prompts, seeds), steered)
    assert differ(steered, base)
    assert torch.equal(latents(pipe, prompts, seeds), base)


def test_forms_of_texts_are_not_for_pictures(pictured: Pictured) -> None:
    pipe, _, sites = pictured
    prompts = {"name": "it", "source": list("abcdefgh"), "target": list("ijklmnop"), "control": list("qrstuvwx")}
    for recipe, name in (({"form": "last"}, "gate form 'last'"), ({"pooling": "leading"}, "pooling 'leading'")):
        with pytest.raises(DSASError, match=f"{name} is of texts that are written: choose another for pictures"):
            learn(pipe, prompts, method="fairsteer", recipe=recipe)
    width = seen_at(pipe, sites[-1:])[sites[-1]].shape[-1]
    inner = LinearProbe(torch.ones(width), torch.tensor(0.0))
    for probe in (LastProbe(inner), condition_latch(inner)):
        item = Intervention(sites[-1], (probe,), (AffineMap(torch.ones(width)),), (1.0,))
        with steer(pipe, {Concept("it", (item,)): 1.0}), pytest.raises(DSASError, match="'unet' is given no such"):
            latents(pipe, "a banana")
