"""A concept, and the folder that it is saved in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dsas_core import Concept, Site
from tests.fixtures.concepts import random_concept

SITES = {Site("unet.mid"): 4, Site("text_encoder.layers.1", side="input", tokens=(1, None)): 3}


def concept(**fields: Any) -> Concept:
    evidence = {"sites": [{"site": "unet.mid", "balanced_accuracy": 0.9, "auroc": 0.95, "control_h": 0.01}]}
    return random_concept(SITES, **{"edges": (500.0,), "evidence": evidence, "provenance": {"seed": 0}, **fields})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return concept().save_pretrained(tmp_path / "random")
