"""Sites that learn behind sites that steer, on a stack of two whose truth is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dsas_core import Call, Concept, DSASError, Recipe, Site, Steering
from dsas_core.learning.capture import Capture
from dsas_core.learning.fit import fit_sites
from dsas_core.model.hooks import visit

WIDTH, POSITIONS, COUNT = 8, 6, 40
FIRST, SECOND = Site("model.first"), Site("model.second")
CONCEPT = 4 * nn.functional.one_hot(torch.tensor(3), WIDTH).float()
WANTED = 2 * nn.functional.one_hot(torch.tensor(6), WIDTH).float()


class Stack(nn.Module):
    """Two layers that pass on what they get, the second twice as much."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Identity(), nn.Linear(WIDTH, WIDTH, bias=False)
        nn.init.eye_(self.second.weight)
        self.second.weight.data *= 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.second(self.first(x))
        return out


def inputs(kind: str) -> torch.Tensor:
    """Sources show the concept at each position, targets what is wanted in its place, controls neither."""
    x = torch.randn(COUNT, POSITIONS, WIDTH, generator=torch.Generator().manual_seed(len(kind)))
    return x + {"source": CONCEPT, "target": WANTED, "control": torch.zeros(WIDTH)}[kind]


def walk(sites: list[Site], recipe: Recipe, learned: Concept | None = None) -> tuple[Capture, Stack]:
    stack, capture = Stack(), Capture()
    tell = {"model": lambda args, kwargs: Call(torch.ones(COUNT), torch.arange(COUNT))}
    for kind in ("source", "target", "control"):
        capture.start(kind)
        with visit(stack, sites, capture, tell):
            if learned is not None and recipe.steers(kind):
                with Steering({learned: 1.0}).attach({"model": stack}, tell):
                    stack(inputs(kind))
            else:
                stack(inputs(kind))
    return capture, stack


def shifts(recipe: Recipe) -> dict[Site, torch.Tensor]:
    first, _ = walk([FIRST, SECOND], recipe)
    fitted, _ = fit_sites(first, recipe, recapture=lambda site, learned: walk([site], recipe, learned)[0])
    return {item.site: item.maps[0].tensors()[0] for item in fitted}


PLAIN = {"gate": "on", "pooling": "mean"}


@pytest.mark.parametrize(
    ("recipe", "left"),
    [
        (Recipe(**PLAIN), 1.0),
        (Recipe(**PLAIN, mode="causal"), 0.0),
        (Recipe(**PLAIN, mode="causal", target_rows="steered"), 1.0),
    ],
    ids=["clean", "causal", "targets steered too"],
)
def test_what_is_left_to_do_at_the_second_site(recipe: Recipe, left: float) -> None:
    """The first site does it all: there is nothing left, unless the targets were moved as well, or nothing was."""
    found = shifts(recipe)
    expected = WANTED - CONCEPT
    torch.testing.assert_close(found[FIRST], expected, atol=0.2, rtol=0)
    torch.testing.assert_close(found[SECOND], 2 * left * expected, atol=0.4, rtol=0)


def test_the_first_site_learns_the_same_in_either_mode() -> None:
    clean, causal = (shifts(Recipe(mode=mode)) for mode in ("clean", "causal"))
    assert torch.equal(clean[FIRST], causal[FIRST])
    assert not torch.equal(clean[SECOND], causal[SECOND])


def test_gates_learn_what_they_will_read() -> None:
    """A causal gate's control and source rows are those that come by while the sites before it steer."""
    recipe = Recipe(mode="causal")
    asked: list[tuple[Site, list[Site]]] = []

    def recapture(site: Site, learned: Concept) -> Capture:
        asked.append((site, list(learned.sites)))
        return walk([site], recipe, learned)[0]

    fitted, evidence = fit_sites(walk([FIRST, SECOND], recipe)[0], recipe, recapture=recapture)
    assert asked == [(SECOND, [FIRST])]
    behind = walk([SECOND], recipe, Concept("learning", tuple(fitted[:1])))[0].rows[SECOND, 0, "source"]
    clean = walk([SECOND], recipe)[0].rows[SECOND, 0, "source"]
    moved = behind.gathered("pooled") - clean.gathered("pooled")
    assert float((moved @ CONCEPT).mean()) < 0
    assert {found.site for found in evidence} == {str(FIRST), str(SECOND)}


@pytest.mark.parametrize("fields", [{"mode": "backward"}, {"target_rows": "moved"}])
def test_modes_that_there_are_not(fields: dict[str, str]) -> None:
    with pytest.raises(
        DSASError, match=r"learning mode '.*expected one of clean, causal, joint, and one of clean, steered"
    ):
        Recipe(**fields)


def test_causal_learning_without_a_way_to_read_anew() -> None:
    recipe = Recipe(mode="causal")
    with pytest.raises(DSASError, match="reads each site anew: pass recapture"):
        fit_sites(walk([FIRST, SECOND], recipe)[0], recipe)


def test_a_gate_that_is_asked_once_is_not_learned_causally() -> None:
    with pytest.raises(DSASError, match="gate 'cast' is asked at one site for all behind it"):
        Recipe(method="cast", mode="causal")
