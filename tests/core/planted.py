"""Activations whose truth is known."""

from __future__ import annotations

import functools

import torch

from dsas_core import Call, Site, llm, visit
from dsas_core.capture import Capture
from dsas_core.llm.layers import roots_of
from tests.core.llm.models import VOCABULARY, tiny

SITE = Site("unet.mid")
WIDTH, POSITIONS, SHOWN = 12, 20, 5
CONCEPT = torch.nn.functional.one_hot(torch.tensor(7), WIDTH).float()
MOVE = torch.linspace(-1, 1, WIDTH)
#: a direction in rows without positions
PLANTED = torch.nn.functional.normalize(torch.linspace(-1, 2, WIDTH).double(), dim=0)


def activations(kind: str, count: int, strength: float, seed: int) -> torch.Tensor:
    """Rows whose first SHOWN positions hold the concept, but for controls; there, targets are moved by MOVE."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(count, POSITIONS, WIDTH, generator=random)
    if kind != "control":
        x[:, :SHOWN] += strength * CONCEPT
    if kind == "target":
        x[:, :SHOWN] += MOVE
    return x


def captured(strength: float = 8.0, count: int = 24, edges: tuple[float, ...] = (), site: Site = SITE) -> Capture:
    capture = Capture(edges, positions_per_row=16)
    for i, kind in enumerate(("source", "target", "control")):
        capture.start(kind)
        for j, timestep in enumerate([*edges, 0.0]):
            capture.begin(site.root, Call(torch.ones(count), torch.arange(count), torch.tensor(timestep)))
            capture.visit(site, activations(kind, count, strength, 10 * i + j))
    return capture


def several(strengths: dict[str, float]) -> Capture:
    """Sites in the order in which they come by, each with so much of the concept."""
    capture = Capture(positions_per_row=16)
    for path, strength in strengths.items():
        capture.rows.update(captured(strength=strength, site=Site(path)).rows)
    return capture


def gaussian(count: int, along: float, seed: int) -> torch.Tensor:
    """Rows of a standard normal whose mean is so far along the planted direction."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, WIDTH, generator=random, dtype=torch.float64) + along * PLANTED


WORDS = torch.randint(3, VOCABULARY - 1, (24, 9), generator=torch.Generator().manual_seed(1))


@functools.cache
def seen() -> tuple[Capture, Site]:
    """What a tiny model makes of texts that are full of low numbers (source), and of others."""
    model, site = tiny("llama"), llm.find_sites(tiny("llama"))[0]
    capture = Capture()
    texts = {"source": 3 + WORDS % 12, "target": 20 + WORDS % 12, "control": 30 + WORDS % 25}
    for kind, ids in texts.items():
        capture.start(kind)
        capture.begin(site.root, Call(torch.ones(len(ids)), torch.arange(len(ids))))
        with visit(roots_of(model), [site], capture):
            model(ids)
    return capture, site
