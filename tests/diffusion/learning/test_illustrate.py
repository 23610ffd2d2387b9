"""A concept on another model than its own, and the samples of its card."""

from __future__ import annotations

import copy
import io
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

import dsas_diffusion as dsas
from dsas_core import Concept
from tests.fixtures.visitors import Bare


@pytest.fixture(scope="module")
def pipe(model: str) -> Any:
    return dsas.load_pipeline(model)


@pytest.fixture(scope="module")
def learned(concept: str) -> Concept:
    return Concept.from_pretrained(concept)


def test_a_finetuned_model_is_told_of_once_and_another_one_refused(pipe: Any, learned: Concept, ddim_pipe: Any) -> None:
    tuned = copy.copy(pipe)
    tuned.unet = copy.deepcopy(pipe.unet)
    with torch.no_grad():
        for parameter in tuned.unet.parameters():
            parameter *= 1.1
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for there in (pipe, tuned, tuned):
            dsas.steer(there, {learned: 1.0}).detach()
    (only,) = [str(one.message) for one in told if "other weights" in str(one.message)]
    assert f"was learned on {learned.provenance['model']}" in only
    assert "in its unet:" in only
    apart = r"another unet than this.*that was UNet2DConditionModel of [\d,]+ parameters, this is UNet2DCond"
    with pytest.raises(dsas.DSASError, match=apart):
        dsas.steer(ddim_pipe, {learned: 1.0})


def test_samples_go_by_the_range_and_leave_all_as_it_was(pipe: Any, learned: Concept) -> None:
    bare = Bare.of(pipe.unet)
    drawn = dsas.illustrate(pipe, replace(learned, range=(-0.5, 1.5), samples=None))
    assert Bare.of(pipe.unet) == bare
    assert drawn.samples is not None
    assert drawn.samples.strengths == (-0.5, 0.0, 1.0, 1.5)
    assert drawn.samples.prompts == learned.samples.prompts  # type: ignore[union-attr]
    assert Image.open(io.BytesIO(drawn.samples.strip)).format == "WEBP"
    assert replace(drawn, samples=None) == replace(learned, range=(-0.5, 1.5), samples=None)
    again = dsas.illustrate(pipe, replace(learned, range=(-0.5, 1.5)))
    assert again.samples == drawn.samples, "the same pictures"
    with pytest.raises(dsas.DSASError, match="does not tell from which prompts"):
        dsas.illustrate(pipe, replace(learned, provenance={}))
