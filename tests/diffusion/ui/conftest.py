"""Concepts and a service for the tests of the demo."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import zip_longest
from typing import Any, NamedTuple

import gradio as gr
import httpx
import pytest

from dsas_core import Concept
from dsas_diffusion import find_sites, ui
from dsas_diffusion.generation.settings import Settings
from dsas_diffusion.ui.page.session import Session
from dsas_diffusion.ui.services.picture_service import PictureService
from dsas_diffusion.ui.tabs.create import CreateTab
from dsas_diffusion.ui.tabs.history import HistoryTab
from dsas_diffusion.ui.tabs.strip import StripTab
from dsas_diffusion.ui.tabs.where import WhereTab
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


@pytest.fixture(scope="module")
def served(tiny_pipe: Any, concepts: list[Concept]) -> Iterator[gr.Blocks]:
    """The page, at work."""
    service = PictureService(tiny_pipe, "tiny", concepts)
    service.defaults = SETTINGS
    page = ui.build(service)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ui, "MAX_UPLOAD_BYTES", 1000)
        ui.serve(page, "127.0.0.1", None)
    yield page
    page.close(verbose=False)
    service.close()


@pytest.fixture(scope="module")
def client(served: gr.Blocks) -> Iterator[httpx.Client]:
    """Somebody who knows the address."""
    with httpx.Client(base_url=str(served.local_url), timeout=30) as client:
        yield client


class Page:
    """The three tabs, with what their components begin with."""

    def __init__(self, service: PictureService) -> None:
        with gr.Blocks() as self.blocks:
            state = gr.State(Session())
            with gr.Tabs() as tabs, gr.Tab("a tab") as tab:
                self.create = CreateTab(service, state)
                self.where = WhereTab(self.create, tab)
                self.strip = StripTab(self.create)
                self.history = HistoryTab(self.create, tabs, tab)

    def data(self, session: Session, **values: Any) -> dict[Any, Any]:
        """What components hold, those named with other values; `strengths` by number."""
        create = self.create
        held = {part: getattr(part, "value", None) for part in {*create.inputs, create.live}}
        strengths = values.pop("strengths", [])
        held |= dict(zip_longest(create.sliders, strengths, fillvalue=0.0))
        named = {**vars(create.advanced), **vars(create), **vars(create.seed), **vars(create.canvas)}
        held |= {create.session: session, named["steps"]: 2, create.prompt: "a banana and a dog"}
        return held | {named[name]: value for name, value in values.items()}

    def draw(self, session: Session, **values: Any) -> Shown:
        """Draw, and return the last values of all that drawing fills."""
        *before, last = self.create.draw(self.data(session, **values))
        if last[-1] == gr.skip():  # it failed
            return Shown(*last)
        return Shown(*before[-1][:-1], last[-1])


class Shown(NamedTuple):
    """What drawing fills."""

    session: Session
    base: Any
    steered: Any
    compare: Any
    problem: str
    told: str
    seed: Any
    batch: Any
