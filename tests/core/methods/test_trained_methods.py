"""Methods that train: their distances and penalties, where training begins, and what they are on rows alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsas_core import DSASError, methods
from dsas_core.errors import UnsupportedError
from dsas_core.learning.recipe import Recipe
from dsas_core.maps import AffineMap, ProjectionMap, TwoWayMap
from dsas_core.methods.training.optimal_transport import shrink, wasserstein
from dsas_core.methods.training.parts import Scale, TrainedMap, TrainedProbe
from dsas_core.probes import LinearProbe, PooledProbe, RectifiedProbe


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def test_golden_distance() -> None:
    assert wasserstein(column(3, 1, 2, 6), column(0, 4, 8, 2)).item() == pytest.approx(1.5, abs=1e-9)


def test_the_distance_of_different_counts_is_that_of_repeated_rows() -> None:
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(6, 3, generator=random).double(), torch.randn(4, 3, generator=random).double()
    repeated = wasserstein(a.repeat_interleave(2, 0), b.repeat_interleave(3, 0))
    torch.testing.assert_close(wasserstein(a, b), repeated, atol=1e-12, rtol=0)


def test_golden_shrinkage() -> None:
    u = torch.tensor([3, -0.05, 0.4], dtype=torch.float64)
    expected = torch.tensor([2.7277143275, 0, 0.2821773442], dtype=torch.float64)
    torch.testing.assert_close(shrink(u, 0.1, l1=1.0, group=1.0), expected, atol=1e-9, rtol=0)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6), st.floats(0, 2), st.floats(0, 2))
def test_shrinkage_is_the_proximal_map(values: list[float], l1: float, group: float) -> None:
    """No point near it has a lower penalty and distance together."""
    u = torch.tensor(values, dtype=torch.float64)

    def cost(y: torch.Tensor) -> float:
        return float((y - u).square().sum() / 2 + l1 * y.abs().sum() + group * len(u) ** 0.5 * y.norm())

    best = shrink(u, 1.0, l1, group)
    random = torch.Generator().manual_seed(0)
    for size in (1e-3, 1e-1, 1.0):
        others = [best + size * torch.randn(len(u), generator=random).double() for _ in range(8)]
        assert all(cost(best) <= cost(other) + 1e-9 for other in others)


@pytest.mark.parametrize("counts", [(48, 48), (40, 56)])
def test_at_one_site_alone_lineas_is_linear_act(counts: tuple[int, int]) -> None:
    """Whatever the spread of dimensions: here over four orders of magnitude."""
    random, scale = torch.Generator().manual_seed(0), torch.logspace(-2, 2, 16)
    source, target = (torch.randn(count, 16, generator=random, dtype=torch.float64) * scale for count in counts)
    source, target = source + torch.logspace(-1, 3, 16), 2 * target + 3
    trained, closed = methods.get("lineas").fit(source, target).forward, methods.get("linear-act").fit(source, target)
    moved = (trained.apply(source, 1.0) - closed.apply(source, 1.0)) / target.std(0)
    assert float(moved.abs().max()) < 1e-3
    torch.testing.assert_close(trained.slope, closed.slope, atol=1e-3, rtol=0)


def test_penalties_leave_dimensions_and_sites_alone() -> None:
    random = torch.Generator().manual_seed(0)
    source = torch.randn(20, 4, generator=random, dtype=torch.float64)
    target = source + 0.01 * torch.randn(20, 4, generator=random, dtype=torch.float64)
    target[:, 0] += 8
    moved = {
        penalty: TrainedMap(
            methods.get("lineas").fit(source, target, **penalty_of(penalty)).forward, Scale(source, target)
        )
        for penalty in ("none", "l1", "group")
    }
    assert moved["l1"].moved_dimensions() == 1
    assert moved["none"].moved_dimensions() > 1
    assert moved["group"].moved_dimensions() == 0


def test_a_dimension_without_a_gradient_does_not_take_the_others_along() -> None:
    """Its step has no bound, and says nothing of the group's."""
    source = torch.randn(20, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    source[:, 0] = 0
    target = 1.5 * source + 3
    target[:, 0] = 0
    plain, grouped = (methods.get("lineas").fit(source, target, group=group).forward for group in (0.0, 1e-9))
    torch.testing.assert_close(grouped.shift, plain.shift, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(grouped.slope[1:], plain.slope[1:], atol=1e-6, rtol=1e-6)


def penalty_of(name: str) -> dict[str, float]:
    return {"none": {}, "l1": {"l1": 0.02}, "group": {"group": 10.0}}[name]


def test_negative_strengths_move_by_the_inverse() -> None:
    forward = AffineMap(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 0.0]))
    two_way, x = TwoWayMap.of(forward), torch.randn(3, 2)
    there_and_back = two_way.apply(two_way.apply(x, 1.0), -1.0)
    torch.testing.assert_close(there_and_back[:, 0], x[:, 0])
    torch.testing.assert_close(two_way.apply(x, 1.0), forward.apply(x, 1.0))
    # of a slope of 0 there is no inverse: it goes on in the opposite direction
    torch.testing.assert_close(two_way.apply(x, -1.0)[:, 1], forward.apply(x, -1.0)[:, 1])
    assert torch.equal(two_way.apply(x, 0.0), x)
    each = two_way.apply(x, torch.tensor([1.0, -1.0, 0.0])[:, None])
    torch.testing.assert_close(each, torch.stack([two_way.apply(x[i], s) for i, s in enumerate((1.0, -1.0, 0.0))]))


@pytest.mark.parametrize("slope", [None, torch.tensor([2.0, 0.5])])
def test_parameters_are_the_map_and_the_probe_that_they_begin_with(slope: torch.Tensor | None) -> None:
    random = torch.Generator().manual_seed(0)
    scale = Scale(torch.randn(9, 2, generator=random) * 50 + 7, torch.randn(9, 2, generator=random))
    start = AffineMap(torch.tensor([3.0, -1.0]), slope)
    x = torch.randn(5, 2, generator=random)
    torch.testing.assert_close(TrainedMap(start, scale)().apply(x, 1.0), start.apply(x, 1.0))
    for probe in (
        LinearProbe(torch.tensor([1.0, -2.0]), torch.tensor(0.5)),
        RectifiedProbe(torch.tensor([0.1, 0.2]), torch.tensor(0.5), clipped=False),
    ):
        torch.testing.assert_close(TrainedProbe(probe, scale)().score(x), probe.score(x))


def test_kinds_that_cannot_be_trained_are_told() -> None:
    scale = Scale(torch.zeros(1, 2), torch.ones(1, 2))
    with pytest.raises(
        UnsupportedError, match="affine maps, dimension by dimension, and this is a ProjectionMap: choose"
    ):
        TrainedMap(ProjectionMap(torch.tensor([1.0, 0.0]), torch.tensor(0.0)), scale)
    with pytest.raises(
        UnsupportedError, match="read single positions, and this is a PooledProbe: choose the gate e2e-"
    ):
        TrainedProbe(PooledProbe(LinearProbe(torch.ones(2), torch.tensor(0.0))), scale)


@pytest.mark.parametrize(
    ("activation", "expected"), [("sigmoid", [0.0474, 0.9526]), ("relu", [0.0, 1.25]), ("clipped", [0.0, 1.0])]
)
def test_the_gate_begins_as_the_offline_one(activation: str, expected: list[float]) -> None:
    """A ReLU as its tangent, which is open where the sigmoid is, so that it is not dead."""
    gate = methods.gate(f"e2e-dsas(activation={activation})")
    offline = LinearProbe(torch.tensor([1.0]), torch.tensor(0.0))
    h = gate._activated(offline).score(torch.tensor([[-3.0], [3.0]]))[:, 0]
    torch.testing.assert_close(h, torch.tensor(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "lineas", "mode": "clean"}, "mode 'clean': lineas with the gate 'dsas' is trained: leave mode out"),
        ({"method": "caa", "training": {"steps": 5}}, "caa with the gate 'dsas' is not trained: choose mode joint"),
        ({"method": "lineas", "training": {"steps": 0}}, "training steps 0: expected a whole number from 1 to"),
        ({"method": "lineas", "training": {"pace": 1}}, "expected settings by name, of steps, optimiser, rate"),
        ({"method": "lineas", "training": {"rate": -1}}, "training rate -1: expected a number above 0"),
        ({"method": "lineas", "training": {"optimiser": "lion"}}, "training optimiser 'lion': expected adamw or sgd"),
        ({"method": "lineas", "options": {"l1": -1}}, "LinEAS option l1: expected a number from 0 up, found -1"),
        ({"method": "e2e-dsas", "options": {"activation": "tanh"}}, "expected sigmoid, relu or clipped, found 'tanh'"),
        ({"gate": "e2e-dsas(gamma=-1)"}, "gate e2e-dsas: activation 'sigmoid', gamma -1"),
        (
            {"gate": "e2e-dsas", "form": "pooled"},
            "is trained at single positions, and not in form 'pooled': choose form",
        ),
        (
            {"method": "e2e-dsas", "gate": "e2e-dsas", "options": {"gamma": 3.0}},
            "gamma 3.0 of e2e-dsas, and gamma 1.0 of the gate 'e2e-dsas': give it to the gate, or leave the gate out",
        ),
        ({"gate": "product(e2e-dsas, gaps)"}, "a part is trained together with its map, and no combination is: choose"),
    ],
)
def test_recipes_of_what_trains_are_checked(given: dict[str, object], message: str) -> None:
    with pytest.raises(DSASError, match=message.replace("(", r"\(").replace(")", r"\)")):
        Recipe(**given)  # type: ignore[arg-type]


def test_what_trains_implies_the_mode() -> None:
    assert Recipe(method="lineas").mode == "joint"
    assert Recipe(gate="e2e-dsas").mode == "joint"
    assert Recipe(method="e2e-dsas", options={"activation": "relu", "gamma": 0.5}).gate == (
        "e2e-dsas(activation=relu, gamma=0.5)"
    )
    assert Recipe().mode == "clean"
