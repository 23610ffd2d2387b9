"""The training of the built-in picture model, on a model of a few weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dsas_core.errors import ArtifactError
from dsas_core.utils import training
from dsas_diffusion.builtin.architecture import PRESETS
from dsas_diffusion.builtin.optimise import TrainingRun, optimise

STEPS = 9


class StoppedError(Exception):
    pass


def trained(folder: Path, stop: int | None = None, **changes: Any) -> dict[str, torch.Tensor]:
    """What the training of a small network ends with; it is stopped at a step of its own, if at all."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16))
    run = replace(TrainingRun(PRESETS["cpu"], folder, 3, 0, 1, torch.device("cpu")), **changes)
    steps = 0

    def loss(rng: np.random.Generator) -> torch.Tensor:
        nonlocal steps
        if steps == stop:
            raise StoppedError
        steps += 1
        inputs = torch.from_numpy(rng.standard_normal((8, 16), np.float32)).to(torch.bfloat16)
        return (network(inputs) - inputs).float().pow(2).mean()

    optimise(run, "copy", network, loss, STEPS, 1e-2)
    return network.state_dict()


@pytest.fixture(autouse=True)
def _checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_STEPS", 2)


def test_a_stopped_training_goes_on_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for folder in (whole, halves):
        folder.mkdir()
    expected = trained(whole)
    with pytest.raises(StoppedError):
        trained(halves, stop=5)
    with pytest.raises(ArtifactError, match="another run"):
        trained(halves, seed=4)
    found = trained(halves)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert [path.name for path in halves.iterdir()] == ["copy.safetensors"], "no checkpoint is left"
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_file(halves / "copy.safetensors").items())


def test_a_finished_stage_is_not_trained_again(tmp_path: Path) -> None:
    expected = trained(tmp_path)
    again = trained(tmp_path, stop=0)
    assert all(torch.equal(again[name], expected[name]) for name in expected)
