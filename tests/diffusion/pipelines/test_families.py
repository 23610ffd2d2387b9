"""Families: which sites a pipeline has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from dsas_core import DSASError
from dsas_core.model.sites import Site
from dsas_diffusion import calibrate, find_sites, learn, steer
from dsas_diffusion.pipelines.adapter import adapt
from dsas_diffusion.pipelines.families.table import FAMILIES
from dsas_diffusion.pipelines.prompt_check import check_prompt
from tests.diffusion.learning.test_learn import PROMPTS
from tests.fixtures.concepts import random_concept
from tests.fixtures.visitors import seen_at


def paths(sites: list[Site]) -> list[str]:
    return [site.path for site in sites]


@pytest.mark.parametrize(
    ("group", "count", "layout", "ending"),
    [("cross", 7, "last", "attn2"), ("self", 7, "last", "attn1"), ("text", 2, "last", ""), ("block", 15, "first", "")],
)
def test_groups_of_sites(ddim_pipe: Any, group: str, count: int, layout: str, ending: str) -> None:
    sites = find_sites(ddim_pipe, group)
    assert len(sites) == len(set(sites)) == count
    assert {site.layout for site in sites} == {layout}
    assert all(site.path.endswith(ending) for site in sites)
    assert {site.root for site in sites} == {"text_encoder" if group == "text" else "unet"}


def test_the_default_is_the_embeddings(ddim_pipe: Any) -> None:
    text, cross = find_sites(ddim_pipe, "text"), find_sites(ddim_pipe, "cross")
    assert find_sites(ddim_pipe) == find_sites(ddim_pipe, "embeddings") != text
    assert find_sites(ddim_pipe, ["text", "cross"]) == text + cross
    assert find_sites(ddim_pipe, "denoiser") == cross


def test_patterns_and_lists_each_site_once(ddim_pipe: Any) -> None:
    one = r"unet\.mid_block\.attentions\.0\.transformer_blocks\.0\.attn2"
    assert paths(find_sites(ddim_pipe, one)) == ["unet.mid_block.attentions.0.transformer_blocks.0.attn2"]
    assert find_sites(ddim_pipe, [one, "cross", one])[0] == find_sites(ddim_pipe, one)[0]
    assert len(find_sites(ddim_pipe, [one, "cross", one])) == 7
    assert find_sites(ddim_pipe, r"unet\.conv_in") == [Site("unet.conv_in", layout="first")]
    assert find_sites(ddim_pipe, r"unet\.mid_block\.resnets\.0")[0].layout == "first"
    assert find_sites(ddim_pipe, r".*mid_block.*\.norm2") == [
        Site("unet.mid_block.attentions.0.transformer_blocks.0.norm2"),
        Site("unet.mid_block.resnets.0.norm2", layout="first"),
        Site("unet.mid_block.resnets.1.norm2", layout="first"),
    ]


@pytest.mark.parametrize("pattern", ["crosses", ["cross", r"unet\.nowhere"]])
def test_what_matches_nothing_lists_what_there_is(ddim_pipe: Any, pattern: Any) -> None:
    nearest = r"comes nearest \(N a number\): .*unet.*roles of this .*: embeddings.*names: 'down\.0\.0\.0' and"
    with pytest.raises(DSASError, match=f"no site matches .*{nearest}") as raised:
        find_sites(ddim_pipe, pattern)
    assert len(str(raised.value)) < 800


def test_a_compiled_pipeline_has_the_same_sites(ddim_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = find_sites(ddim_pipe)
    monkeypatch.setattr(ddim_pipe, "unet", torch.compile(ddim_pipe.unet, backend="eager"))
    assert find_sites(ddim_pipe) == before
    assert set(adapt(ddim_pipe).roots) == {"unet", "text_encoder"}


@pytest.mark.parametrize("part", ["tokenizer", "scheduler"])
def test_a_missing_part_is_named(ddim_pipe: Any, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ddim_pipe, part, None)
    with pytest.raises(DSASError, match=f"the pipeline lacks {part}; a Stable Diffusion pipeline has unet"):
        find_sites(ddim_pipe)


@pytest.mark.parametrize("part", ["text_encoder", "vae"])
def test_what_is_not_loaded_is_no_obstacle_to_steering_but_to_drawing_from_prompts(
    ddim_pipe: Any, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    concept = random_concept(seen_at(ddim_pipe, find_sites(ddim_pipe, "cross")))
    monkeypatch.setattr(ddim_pipe, part, None)
    with steer(ddim_pipe, {concept: 1.0}):
        pass
    for wants in (lambda: learn(ddim_pipe, PROMPTS, sites="cross"), lambda: calibrate(ddim_pipe, concept, PROMPTS)):
        with pytest.raises(DSASError, match=f"the pipeline's {part} is not loaded, and drawing from prompts takes it"):
            wants()
    if part == "text_encoder":
        with pytest.raises(
            DSASError, match=r"no sites of the role 'text': it has embeddings, cross, self, block, decoder$"
        ):
            find_sites(ddim_pipe, "text")
        with pytest.raises(DSASError, match="no text encoder, whose tokens are asked for"):
            check_prompt(adapt(ddim_pipe), "a dog")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("guidance", "uncond,cond", "guidance 'uncond,cond', expected one of"),
        ("negative_encoding", "", "negative_encoding '', expected one of"),
        ("sequence", "image", "sequence 'image', expected one of"),
        ("default", ("crosses",), "names roles without sites: crosses"),
        ("cross_attention", "crossing", "names roles without sites: crossing"),
    ],
)
def test_what_no_family_can_have_is_refused(field: str, value: Any, message: str) -> None:
    """A slip of the pen in the table would steer other rows than those of the prompt."""
    with pytest.raises(DSASError, match=message):
        replace(FAMILIES["UNet2DConditionModel"][0], **{field: value})
