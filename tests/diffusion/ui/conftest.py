"""Concepts and a service for the tests of the demo."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from dsas_core import Concept
from dsas_diffusion import find_sites
from dsas_diffusion.generation.settings import Settings
from dsas_diffusion.ui.services.picture_service import PictureService
from tests.fixtures.concepts import random_concept
from tests.fixtures.models import bases
from tests.fixtures.visitors import seen_at

SETTINGS = Settings(steps=2, guidance=3.0)


@pytest.fixture(scope="session")
def concepts(tiny_pipe: Any) -> list[Concept]:
    """One that steers words and watches the picture, one that steers the picture, one whose gate never opens."""
    words, patches = find_sites(tiny_pipe, "text"), find_sites(tiny_pipe, "cross")
    seen = seen_at(tiny_pipe, [*words, *patches])
    base = bases(tiny_pipe)
    by_words = random_concept(seen, name="words", base=base)
    kept = tuple(item if item.site in words else item.as_read_only() for item in by_words.interventions)
    in_patches = {site: seen[site] for site in patches}
    return [
        replace(by_words, interventions=kept, description="<i>words</i>"),
        random_concept(in_patches, name="patches", seed=1, base=base, range=(-0.93, 1.41)),
        random_concept(in_patches, name="closed", seed=2, base=base, weight=0.0),
    ]


def make_service(tiny_pipe: Any, concepts: list[Concept]) -> Iterator[PictureService]:
    """A service that is closed in the end."""
    service = PictureService(tiny_pipe, "tiny", concepts)
    service.defaults = SETTINGS
    yield service
    service.close()


service = pytest.fixture(make_service)
