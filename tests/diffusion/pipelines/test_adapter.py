"""What is known of a pipeline, asked in one place."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dsas_core.errors import UnavailableError
from dsas_diffusion.generation.pictures import latents_of
from dsas_diffusion.generation.settings import Settings, settings_of
from dsas_diffusion.pipelines.adapter import PipelineAdapter, adapt, find_sites
from dsas_diffusion.pipelines.load import BUILTIN
from dsas_diffusion.steering.steer import steer
from tests.fixtures.checks import same


def test_an_adapter_is_made_once(tiny_pipe: Any) -> None:
    adapter = adapt(tiny_pipe)
    assert isinstance(adapter, PipelineAdapter)
    assert adapt(adapter) is adapter
    assert adapter.pipe is tiny_pipe


def test_parts_are_looked_up_when_they_are_asked_for(ddim_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = adapt(ddim_pipe)
    assert adapter.denoiser is ddim_pipe.unet
    monkeypatch.setattr(ddim_pipe, "unet", torch.compile(ddim_pipe.unet, backend="eager"))
    assert adapter.roots["unet"] is ddim_pipe.unet is not adapter.denoiser
    monkeypatch.setattr(ddim_pipe, "text_encoder", None)
    assert adapter.text_encoders == []
    assert set(adapter.roots) == {"unet"}
    with pytest.raises(UnavailableError, match="text_encoder is not loaded"):
        adapter.check_loaded()


def test_an_adapter_is_taken_in_place_of_its_pipeline(tiny_pipe: Any) -> None:
    adapter = adapt(tiny_pipe)
    assert find_sites(adapter, "cross") == find_sites(tiny_pipe, "cross") == adapter.find_sites("cross")
    assert {adapter.role_of(site) for site in adapter.find_sites("cross")} == {"cross"}
    assert settings_of(adapter) == settings_of(tiny_pipe)
    settings = Settings(2, 3.0)
    assert same(latents_of(adapter, ["a dog"], [1], settings), latents_of(adapt(tiny_pipe), ["a dog"], [1], settings))
    with pytest.raises(ValueError, match="expected"):
        steer(adapter, {})


def test_the_built_in_model_is_known_by_its_name(tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not adapt(tiny_pipe).is_builtin
    monkeypatch.setattr(type(tiny_pipe), "name_or_path", str(BUILTIN["builtin:emoji"]))
    assert adapt(tiny_pipe).is_builtin
    assert adapt(tiny_pipe).name == "builtin:emoji"
