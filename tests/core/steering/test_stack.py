"""Many concepts computed at once: what they do together is what each does by itself, and what is 0 costs nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dsas_core import Call, Concept, Intervention, Site, Steering
from dsas_core.errors import ModelMismatchError
from dsas_core.maps import AffineMap
from dsas_core.probes import ConstantProbe, LinearProbe
from dsas_core.steering.trace import Trace
from tests.fixtures.checks import same_but_rounding
from tests.fixtures.concepts import random_concept

WIDTH = 6
SITES = {Site("model.0"): WIDTH, Site("model.1", tokens=(1, None)): WIDTH, Site("model.2"): WIDTH}
MASK = torch.tensor([[1.0, 1, 1, 1, 1], [0, 1, 1, 1, 0], [1, 0, 0, 1, 1]])
ROWS = {"steered": torch.tensor([1.0, 0.0, 1.0]), "prompts": torch.tensor([0, 1, 1])}


class Plus(nn.Module):
    """So that what is done at one site changes what the next one sees."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x.flip(-1) / 3


class Counting(TorchDispatchMode):
    """Counts operators."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def model_of(count: int = 3) -> nn.Sequential:
    return nn.Sequential(*[Plus() for _ in range(count)])


@contextmanager
def attached(steering: Steering, call: Call) -> Iterator[nn.Module]:
    model = model_of()
    with torch.no_grad(), steering.attach({"model": model}, {"model": lambda args, kwargs: call}):
        yield model


def run(
    concepts: Mapping[Concept, Any],
    x: torch.Tensor,
    *,
    apart: bool = False,
    mask: torch.Tensor | None = MASK,
    timestep: float | None = 600.0,
    **options: Any,
) -> torch.Tensor:
    """What a model makes of x with concepts, computed together or, as whoever wants a trace has it, each apart."""
    call = Call(**ROWS, timestep=None if timestep is None else torch.tensor(timestep), mask=mask)
    steering = Steering(concepts, trace=Trace() if apart else None, **options)
    assert (steering._state.choice is None) == apart
    with attached(steering, call) as model:
        out: torch.Tensor = model(x)
        return out


def concept_of(number: int, form: str, kind: str, edges: tuple[float, ...], some: int, weight: float) -> Concept:
    sites = dict(list(SITES.items())[some:])
    return random_concept(
        sites, form=form, kind=kind, edges=edges, name=f"c{number}", seed=number, unit=0.7, weight=weight
    )


DRAWN = st.tuples(
    st.sampled_from(["linear", "constant", "product"]),  # the last is none of those that are stacked
    st.sampled_from(["additive", "affine", "support"]),
    st.sampled_from([(), (500.0,), (300.0, 700.0)]),
    st.integers(0, 2),
    st.sampled_from([1.0, 0.4, 0.0]),
)
STRENGTHS = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(-2, 2), st.lists(st.floats(-2, 2), min_size=2, max_size=3))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(DRAWN, STRENGTHS), min_size=1, max_size=4),
    st.sampled_from([None, 100.0, 600.0]),
    st.booleans(),
)
def test_together_is_what_each_does(drawn: list[Any], timestep: float | None, masked: bool) -> None:
    concepts = {concept_of(i, *parts): strength for i, (parts, strength) in enumerate(drawn)}
    x = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(1))
    mask = MASK if masked else None
    together, apart = (run(concepts, x, apart=way, timestep=timestep, mask=mask) for way in (False, True))
    assert same_but_rounding(together, apart)
    untouched = ROWS["steered"] == 0
    assert torch.equal(together[untouched], model_of()(x)[untouched]), "rows that are not steered"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_in_other_precisions(dtype: torch.dtype) -> None:
    concepts = {concept_of(i, "linear", "affine", (), 0, 1.0): 1.0 for i in range(3)}
    x = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)
    together, apart = run(concepts, x), run(concepts, x, apart=True)
    assert together.dtype == dtype
    torch.testing.assert_close(together, apart, **({} if dtype != torch.float64 else {"rtol": 1e-6, "atol": 1e-6}))


@pytest.mark.parametrize("hurts", [math.inf, math.nan])
def test_what_steers_nothing_touches_nothing(hurts: float) -> None:
    """Neither rows that are not steered, nor masked positions, nor where strength, weight or gate is 0, bit for bit."""
    x = torch.randn(3, 5, WIDTH)
    x[1], x[0, 2], x[2, 0, 0] = hurts, -0.0, -0.0
    mask = MASK.clone()
    mask[0, 2] = 0
    concept = random_concept({Site("model.0"): WIDTH}, name="it")
    clean = model_of()(x)
    moved = run({concept: 1.0}, x, mask=mask)
    assert torch.equal(moved[1].view(torch.int32), clean[1].view(torch.int32))
    assert torch.equal(moved[0, 2].view(torch.int32), clean[0, 2].view(torch.int32))
    assert not torch.equal(moved[0, 0], clean[0, 0])
    for options in ({"gate": "off"}, {"strength": 0.0}, {"strength": [0.0, 0.0]}):
        strength = options.pop("strength", 1.0)
        off = run({concept: strength}, x, mask=mask, **options)
        assert torch.equal(off.view(torch.int32), clean.view(torch.int32))
    silent = replace(concept, interventions=tuple(replace(item, weights=(0.0,)) for item in concept.interventions))
    assert torch.equal(run({silent: 1.0}, x[:, :1], mask=None)[0], model_of()(x[:, :1])[0])


def test_a_map_that_overflows_hurts_none_where_it_is_closed() -> None:
    probe, transform = LinearProbe(torch.ones(WIDTH), torch.tensor(0.0)), AffineMap(torch.full((WIDTH,), math.inf))
    far = Concept("far", (Intervention(Site("model.0"), (probe,), (transform,), (1.0,)),))
    near = random_concept({Site("model.0"): WIDTH}, name="near")
    x = torch.randn(3, 5, WIDTH)
    both, alone = (run(concepts, x, mask=None) for concepts in ({far: [0.0, 1.0], near: 1.0}, {near: 1.0}))
    assert same_but_rounding(both[0], alone[0])


def count_operators(steering: Steering | None, x: torch.Tensor) -> int:
    with nullcontext(model_of()) if steering is None else attached(steering, Call(**ROWS, mask=MASK)) as model:
        model(x)  # which makes the stack
        with torch.no_grad(), Counting() as counting:
            model(x)
    return counting.counts.total()


def test_operators_do_not_grow_with_concepts_and_those_of_strength_0_cost_none() -> None:
    x = torch.randn(3, 5, WIDTH)

    def added(count: int, resting: int) -> int:
        concepts = [concept_of(i, "linear", "affine", (500.0,), 0, 1.0) for i in range(count + resting)]
        steering = Steering({concept: float(i < count) for i, concept in enumerate(concepts)})
        return count_operators(steering, x) - count_operators(None, x)

    assert added(0, 5) <= 3, "views of the part of a tensor that a site is"
    assert added(1, 0) == added(8, 0) == added(8, 8) <= 100


def test_strengths_move_between_calls_and_in_the_midst_of_them() -> None:
    """A concept that rests is there when it is wanted, and the other way round."""
    pair = [concept_of(i, "linear", "affine", (), 0, 1.0) for i in range(2)]
    x, steering = torch.randn(3, 5, WIDTH), Steering({pair[0]: 1.0, pair[1]: 0.0})
    with attached(steering, Call(**ROWS)) as model:
        for given in ((1.0, 0.0), (0.0, 0.0), (0.5, -1.0), ([0.0, 1.0], 0.0), (0.0, 2.0)):
            steering.set_strengths(dict(zip(("c0", "c1"), given, strict=True)))
            expected = run(dict(zip(pair, given, strict=True)), x, apart=True, mask=None, timestep=None)
            assert same_but_rounding(model(x), expected)
            steering.disable()
            assert torch.equal(model(x), model_of()(x))
            steering.enable()
            with steering.muted() as told:
                assert torch.equal(model(x), model_of()(x))
            assert {name for name, prompts in told.items() if prompts} == {
                name for name, strength in zip(("c0", "c1"), given, strict=True) if strength != 0.0
            }


def test_with_gradients_each_is_computed_by_itself() -> None:
    concept, x = concept_of(0, "linear", "affine", (), 0, 1.0), torch.randn(3, 5, WIDTH, requires_grad=True)
    model, call = model_of(), Call(**ROWS, mask=MASK)
    with Steering({concept: 1.0}).attach({"model": model}, {"model": lambda args, kwargs: call}):
        out = model(x)
        (grad,) = torch.autograd.grad(out.sum(), x)
        with torch.no_grad():
            assert same_but_rounding(model(x), out.detach())
    assert bool(grad.isfinite().all())


def test_what_autograd_has_saved_is_not_written_over() -> None:
    """Not by a call in which the concept is computed with others, and one behind it where it is by itself again."""
    concept = concept_of(0, "linear", "affine", (500.0,), 0, 1.0)
    x, seen = torch.randn(3, 5, WIDTH, requires_grad=True), []
    for interrupted in (False, True):
        model, now, steering = model_of(), {"timestep": 600.0}, Steering({concept: 1.0})

        def describe(args: object, kwargs: object, now: dict[str, float] = now) -> Call:
            return Call(**ROWS, timestep=torch.tensor(now["timestep"]))

        with steering.attach({"model": model}, {"model": describe}):
            out = model(x)
            if interrupted:
                now["timestep"] = 100.0
                with torch.no_grad():
                    model(x)
                    steering.strengths["c0"] = "auto"
                    model(x)
            seen.append(torch.autograd.grad(out.sum(), x)[0])
    assert torch.equal(*seen)


def test_one_that_is_of_another_width_is_told_among_others() -> None:
    fits = random_concept({Site("model.0"): WIDTH}, name="fits")
    other = random_concept({Site("model.0"): 9}, name="other")
    with pytest.raises(ModelMismatchError, match=r"concept 'other' is 9 wide at model\.0, and this model's activation"):
        run({fits: 1.0, other: 1.0}, torch.randn(3, 5, WIDTH), mask=None)


def test_what_rests_takes_no_memory_beside_its_own() -> None:
    """Tensors of a concept are copied when it first steers, and one stack is kept."""
    concepts = [concept_of(i, "linear", "affine", (500.0,), 0, 1.0) for i in range(20)]
    steering = Steering({concept: float(i == 0) for i, concept in enumerate(concepts)})
    with attached(steering, Call(**ROWS, timestep=torch.tensor(600.0))) as model:
        for name in ("c0", "c1", "c2"):
            steering.set_strengths({concept.name: float(concept.name == name) for concept in concepts})
            model(torch.randn(3, 5, WIDTH))
    assert not any("current" in vars(concept) for concept in steering._attached)
    assert [selection.stack.names for _, selection in steering._state.choice._chosen.values()] == [("c2",)]


def test_a_constant_gate_of_a_half_is_part_of_the_map() -> None:
    shift = torch.randn(WIDTH)
    concept = Concept("half", (Intervention(Site("model.2"), (ConstantProbe(0.5),), (AffineMap(shift),), (0.5,)),))
    x = torch.randn(3, 5, WIDTH)
    moved = run({concept: 2.0}, x, mask=None)
    torch.testing.assert_close(moved[0], model_of()(x)[0] + 0.5 * shift)
