"""Joint training on models small enough to be known: what it finds, its gradients, and what its gates keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from dsas_core import Call, Site, methods
from dsas_core.learning.joint.objective import measure_loss
from dsas_core.learning.joint.runs import HELD_OUT, Row, frozen
from dsas_core.learning.joint.trainer import Aims
from dsas_core.learning.joint.visitor import JointVisitor, Pass, SteeredSite
from dsas_core.maps import AffineMap
from dsas_core.probes import ConstantProbe, Probe, RectifiedProbe
from dsas_core.utils.processes import Share
from tests.fixtures.joint import IDENTITY, WIDTH, ToyRuns, deep, gate, items, rows, trainer


def test_at_one_site_of_a_model_that_does_nothing_it_finds_linear_act() -> None:
    runs = ToyRuns(IDENTITY, rows())
    runs.rows |= {HELD_OUT + kind: runs.rows[kind] for kind in ("source", "target")}
    runs.counts = {kind: len(part) for kind, part in runs.rows.items()}
    (trained,), found = trainer(runs, items(["model.0"]), steps=600, rate=0.05, patience=99).run()
    means = [runs.rows[side].mean(1) for side in ("source", "target")]
    closed = methods.get("linear-act").fit(*means)
    torch.testing.assert_close(trained.maps[0].slope, closed.slope, atol=1e-3, rtol=0)
    torch.testing.assert_close(trained.maps[0].shift, closed.shift, atol=1e-3, rtol=0)
    assert found["history"][-1]["held_out"] < 0.01 * found["history"][0]["held_out"]


def test_a_mask_says_which_positions_are_steered_and_counted() -> None:
    mask = torch.ones(24, 4)
    mask[:, 2:] = 0
    masked = rows()
    (one,), _ = trainer(ToyRuns(IDENTITY, masked, mask), items(["model.0"])).run()
    cut = {kind: part[:, :2] for kind, part in masked.items()}
    runs = ToyRuns(IDENTITY, cut)
    scales = ToyRuns(IDENTITY, masked)
    other = trainer(scales, items(["model.0"]))
    other.runs = runs
    (two,), _ = other.run()
    torch.testing.assert_close(one.maps[0].shift, two.maps[0].shift)


def test_sites_learn_together() -> None:
    """The second site sees what the first one does, so that both move less than each alone would."""
    sites = ["model.0", "model.1", "model.2"]
    _, found = trainer(ToyRuns(deep(), rows()), items(sites), steps=120).run()
    assert set(found["moved_dimensions"]) == set(sites)
    history = found["history"]
    assert history[-1]["held_out"] < 0.3 * history[0]["held_out"]


@pytest.mark.parametrize("probe", [gate(), RectifiedProbe(gate().weight / 4, gate().bias / 4 + 0.5, clipped=False)])
def test_gradients_are_those_of_finite_differences(probe: Probe) -> None:
    runs = ToyRuns(deep().eval(), rows())
    training = trainer(runs, items(["model.0", "model.1"], probe), Aims(gates=True, gamma=0.7))
    parameters = list(training.parameters.parameters())
    for number, parameter in enumerate(parameters):  # away from where a gate's gradient is 0
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        parameter.data.add_(0.1 * noise)
    sites = [item.site for item in training.items]

    def total() -> torch.Tensor:
        loss = training._measure(0, "", range(12), range(12))
        assert float(loss.preservation) > 0
        return loss.total(0.7)

    with frozen(runs.roots), runs.placed(sites, training.visitor):
        total().backward()
        for parameter in parameters:
            for place in range(parameter.numel()):
                with torch.no_grad():
                    ends = []
                    for step in (1e-5, -1e-5):
                        parameter.view(-1)[place] += step
                        ends.append(float(total()))
                        parameter.view(-1)[place] -= step
                assert parameter.grad is not None
                found = float(parameter.grad.reshape(-1)[place])
                assert found == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-6, rel=1e-4)


def test_with_a_map_that_changes_nothing_the_gate_has_no_gradient_in_the_first_step() -> None:
    runs = ToyRuns(deep().eval(), rows())
    training = trainer(runs, items(["model.0"], gate()), Aims(gates=True))
    with frozen(runs.roots), runs.placed([Site("model.0")], training.visitor):
        training._measure(0, "", range(12), range(12)).total(1.0).backward()
    (map_,), (probe,) = training.parameters.maps[0:1], training.parameters.probes[0:1]
    assert all(
        torch.equal(part.grad, torch.zeros_like(part)) for part in probe[0].parameters() if part.grad is not None
    )
    assert float(map_[0].offset.grad.abs().min()) > 0


def test_a_relu_that_is_closed_everywhere_is_dead() -> None:
    dead = RectifiedProbe(
        torch.zeros(WIDTH, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64), clipped=False
    )
    training = trainer(ToyRuns(deep(), rows()), items(["model.0"], dead), Aims(gates=True))
    before = [part.detach().clone() for part in training.parameters.parameters()]
    training.run()
    assert all(torch.equal(*pair) for pair in zip(before, training.parameters.parameters(), strict=True))


def test_gates_keep_controls_the_more_gamma_says() -> None:
    found = {}
    for gamma in (0.0, 1.0, 100.0):
        runs = ToyRuns(deep(), rows())
        (item,), _ = trainer(runs, items(["model.1"], gate(2.0)), Aims(gates=True, gamma=gamma), steps=150).run()
        with torch.no_grad():
            x = runs.model[:2].eval()(runs.rows["control"])
            found[gamma] = float((item.probes[0].score(x) * item.maps[0].displacement(x)).square().mean())
    assert found[100.0] < found[1.0] < found[0.0]


def test_it_ends_early_where_nothing_gets_better_and_keeps_the_best() -> None:
    runs = ToyRuns(IDENTITY, rows())
    runs.rows[HELD_OUT + "target"] = runs.rows[HELD_OUT + "source"]  # so that every step makes it worse
    (item,), found = trainer(runs, items(["model.0"]), steps=100, checks=100, patience=3).run()
    assert found["steps"] == 3
    assert found["best"]["step"] == 0
    torch.testing.assert_close(item.maps[0].shift, torch.zeros(WIDTH, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_controls_are_kept_where_their_mask_counts_by_what_is_steered(weight: float) -> None:
    """Padding is neither moved nor counted, and the site's weight is part of h."""
    site, width = Site("model.0"), 3
    steered = SteeredSite([AffineMap(torch.full((width,), 2.0))], [ConstantProbe(0.5)], [weight])
    x, mask = torch.randn(2, 4, width), torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]])
    clean = x[1:].clone()
    clean[:, 2:] += 100  # what padding holds there says nothing
    visitor = JointVisitor([site], ())
    visitor.stopper.active = False
    visitor.start(Pass({site: steered}, sources=1, clean={site: clean}))
    visitor.begin("model", Call(torch.ones(2), torch.arange(2), None, mask))
    out = visitor.visit(site, x)
    assert out is not None
    torch.testing.assert_close(out - x, 2.0 * 0.5 * weight * mask[..., None].expand_as(x))
    torch.testing.assert_close(visitor.current.moved[site], torch.tensor([2 * weight**2, 2.0]))
    torch.testing.assert_close(visitor.current.means[site], (x[:1] + weight).mean(1))


@dataclass(frozen=True)
class Two(Share):
    """The first of two processes, of which the other's numbers are known."""

    processes: int = 2
    others: Sequence[torch.Tensor] = ()

    def gather(self, rows: torch.Tensor, own: Sequence[int], count: int) -> torch.Tensor:
        return rows

    def add(self, number: torch.Tensor) -> torch.Tensor:
        return number + self.others[number.ndim == 0]


def test_positions_of_controls_count_alike_in_whichever_process_they_are() -> None:
    """A process with long controls, and one with a short one."""
    site, means = Site("model.0"), torch.zeros(2, 3, requires_grad=True)
    whole = Pass({}, 2, means={site: means}, moved={site: torch.tensor([6.0 + 5.0, 3.0 + 1.0])})
    own = Pass({}, 2, means={site: means}, moved={site: torch.tensor([6.0, 3.0])})
    share = Two(others=[torch.tensor([1.0]), torch.tensor(5.0 / 4.0)])
    losses = [
        measure_loss(one, {site: means}, among, [0, 1], 2, preserve=True)
        for one, among in ((whole, Share()), (own, share))
    ]
    torch.testing.assert_close(losses[0].preservation, torch.tensor(11 / 4))
    torch.testing.assert_close(losses[1].preservation, losses[0].preservation)


def test_what_is_held_out_is_run_in_batches_and_the_longest_first() -> None:
    """The loss is that of all at once; memory is planned by the longest prompts."""
    seen: list[list[Row]] = []

    class Watched(ToyRuns):
        def length(self, row: Row) -> int:
            return row[1]

        def run(self, rows: Sequence[Row], moment: int) -> None:
            seen.append(list(rows))
            super().run(rows, moment)

    found = {}
    for batch in (3, 12):
        given = rows()
        given |= {HELD_OUT + kind: given[kind][:8] for kind in ("source", "target", "control")}
        training = trainer(Watched(deep(), given), items(["model.1"], gate()), Aims(gates=True), batch=batch, steps=1)
        seen.clear()
        found[batch] = training.run()[1]["history"][0]["held_out"]
        assert max(map(len, seen)) <= 2 * batch
        assert seen[1] == [("source", 11), ("source", 10), ("control", 11), ("control", 10)]
    assert found[3] == pytest.approx(found[12], rel=1e-12)
