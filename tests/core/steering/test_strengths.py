"""No strength to tune: the formula, the identities, on random models."""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsas_core import Auto, Concept, DSASError, Intervention, Site, Steering, llm, visit
from dsas_core.maps import AffineMap, Map
from dsas_core.probes import AnyProbe, ConstantProbe, LinearProbe, PooledProbe, PrefixProbe, ProductProbe, QuantileProbe
from dsas_core.probes.combine import pool
from dsas_core.steering.interpolation import interpolate
from dsas_core.steering.solve import solve_strength
from dsas_diffusion import find_sites, steer
from tests.fixtures.checks import differ, same, vector
from tests.fixtures.concepts import MAPS, Turn, random_concept, random_map
from tests.fixtures.language_models import IDS, behind_first_layer, close, concept_for, tiny, written
from tests.fixtures.models import BANANA, DOG, Counting, build_flow_pipe, latents
from tests.fixtures.visitors import seen_at

SITE = Site("model.model.layers.0")
UNCAPPED = 1e6


def linear_of(item: Intervention, bin_: int = 0) -> LinearProbe:
    probe = item.probes[bin_]
    probe = probe.factors[0] if isinstance(probe, ProductProbe) else probe
    found = probe.inner if isinstance(probe, PooledProbe) else probe
    assert isinstance(found, LinearProbe)
    return found


def away(concept: Concept, name: str = "random") -> Concept:
    """A concept whose maps lower what its probes see, by 3 in the logit at strength 1, and turn a little."""

    def lowering(probe: LinearProbe) -> AffineMap:
        weight = probe.weight
        turn = torch.randn(len(weight), generator=torch.Generator().manual_seed(5)) * weight.norm() / len(weight) ** 0.5
        shift = -weight + turn - weight * (turn @ weight) / weight.square().sum()
        return AffineMap(3 * shift / weight.square().sum())

    items = tuple(
        replace(item, maps=tuple(lowering(linear_of(item, bin_)) for bin_ in range(len(item.maps))))
        for item in concept.interventions
    )
    return replace(concept, interventions=items, name=name)


# ---- the formula ----------------------------------------------------------------------------------------------------


def test_golden() -> None:
    probe = LinearProbe(vector(0.45, 2.4, -2), torch.tensor(6.35, dtype=torch.float64))
    x, transform = vector(2, -1, 0)[None], AffineMap(vector(-1, 0, 1))
    solved = solve_strength(x, transform, probe, 0.0, UNCAPPED)
    assert float(solved.strength) == pytest.approx(1.9795918367, abs=1e-10)
    moved = interpolate(x, [(transform, solved.strength, torch.ones(1, 1, dtype=x.dtype))])
    assert float(probe.logit(moved)) == pytest.approx(0, abs=1e-12)
    assert float(solve_strength(x, transform, probe, 0.0, 1.5).strength) == 1.5
    assert float(solve_strength(x, transform, probe, 4.85, UNCAPPED).strength) == pytest.approx(0, abs=1e-12)
    assert float(solve_strength(x, AffineMap(vector(1, 0, -1)), probe, 0.0, UNCAPPED).strength) == 0


@given(
    kind=st.sampled_from(MAPS),
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    target=st.floats(0.01, 0.99),
    pooled=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_logit_is_the_targets_where_it_was_above(
    kind: str, shape: list[int], target: float, pooled: bool, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=random, dtype=torch.float64)
    transform = random_map(kind, shape[-1], random).map_tensors(torch.Tensor.double)
    inner = LinearProbe(*(torch.randn(n, generator=random, dtype=torch.float64) for n in ((shape[-1],), ())))
    mask = (torch.rand(shape[:-1], generator=random) < 0.7).double() if pooled else None
    probe, logit = PooledProbe(inner) if pooled else inner, Auto(target).logit
    solved = solve_strength(x, transform, probe, logit, UNCAPPED, mask)
    h = torch.ones_like(x[..., :1]) if mask is None else mask[..., None]
    moved = interpolate(x, [(transform, solved.strength, h)])
    before, after = probe.logit(x, mask), probe.logit(moved, mask)
    reached = (solved.strength > 0) & (solved.strength < UNCAPPED)
    tolerance = 1e-9 * (1 + solved.strength)
    assert ((after - logit).abs() < tolerance)[reached].all()
    assert torch.equal(solved.above, before > logit)
    assert torch.equal(solved.unreachable, solved.above & (solved.strength == 0))
    still = (solved.strength == 0).expand_as(h)[..., 0]
    assert torch.equal(moved[still], x[still]), "at or below the target nothing changes, bit for bit"


def test_the_pooled_target_is_the_means() -> None:
    random = torch.Generator().manual_seed(0)
    x, mask = torch.randn(2, 5, 4, generator=random), torch.tensor([[1.0] * 5, [0, 0, 1, 1, 1]])
    inner = LinearProbe(torch.ones(4), torch.tensor(8.0))
    transform = AffineMap(torch.full((4,), -1.0), torch.tensor([0.9, 1.0, 1.1, 1.0]))
    solved = solve_strength(x, transform, PooledProbe(inner), 0.0, UNCAPPED, mask)
    assert solved.strength.shape == (2, 1, 1)
    moved = interpolate(x, [(transform, solved.strength, mask[..., None])])
    assert torch.allclose(inner.logit(pool(moved, mask)), torch.zeros(2, 1, 1), atol=1e-5)


def test_half_precision_is_computed_in_float32() -> None:
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).half()
    probe, transform = LinearProbe(torch.ones(8), torch.tensor(4.0)), AffineMap(-torch.ones(8))
    half, whole = (solve_strength(one, transform, probe, 0.0, 9.0).strength for one in (x, x.float()))
    assert half.dtype == torch.float32
    assert torch.equal(half, whole)


@pytest.mark.parametrize("extreme", [math.inf, -math.inf, math.nan, 1e38])
def test_what_is_not_finite_gives_no_strength_beyond_the_cap(extreme: float) -> None:
    x = torch.tensor([[extreme, 1.0]])
    solved = solve_strength(
        x, AffineMap(torch.tensor([-1e-38, 0])), LinearProbe(torch.ones(2), torch.tensor(0.0)), 0, 2.0
    )
    assert 0 <= float(solved.strength) <= 2


# ---- auto, at work --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["linear", "product"])
@pytest.mark.parametrize("target", [0.3, 0.5])
def test_in_a_model_the_probe_ends_at_the_target(form: str, target: float) -> None:
    model = tiny("llama")
    concept = away(concept_for(model, "model.model.layers.0", form=form))
    item = concept.interventions[0]
    if form == "product":  # a second factor of 1 leaves the step whole
        item = replace(item, probes=(ProductProbe((linear_of(item), ConstantProbe(1.0))),))
        concept = replace(concept, interventions=(item,))
    seen: list[torch.Tensor] = []

    class Behind:
        def begin(self, root: str, call: Any) -> None: ...
        def visit(self, site: Site, x: torch.Tensor) -> None:
            seen.append(x.clone())

    with visit({"model": model}, [SITE], Behind()), torch.no_grad():
        model(IDS)
        with llm.steer(model, {concept: Auto(target, cap=1000)}, trace=True) as steering:
            model(IDS)
            assert steering.trace is not None
            (record,) = steering.trace.records
    logits = [linear_of(item).logit(x)[:, 1:, 0] for x in seen]  # the first token is never steered
    above = logits[0] > Auto(target).logit
    assert 0 < int(above.sum()) < above.numel()
    assert torch.allclose(logits[1][above], torch.tensor(Auto(target).logit), atol=1e-4)
    assert torch.equal(seen[1][:, 1:][~above], seen[0][:, 1:][~above])
    assert torch.equal(seen[1][:, 0], seen[0][:, 0])
    assert record.chosen is not None
    assert record.unreachable is not None
    assert torch.equal(record.chosen[:, 1:] > 0, above)
    assert not record.unreachable.any()
    assert torch.allclose(record.h[:, 1:], item.probes[0].score(seen[0])[:, 1:, 0], atol=1e-6), "h is the probe's"
    assert steering.unreachable() == {"random": {str(SITE): 0.0}}


def test_weight_other_factors_and_schedule_take_their_share_of_the_way() -> None:
    model = tiny("llama")
    concept = away(concept_for(model, "model.model.layers.0"))
    item = concept.interventions[0]
    half = replace(concept, interventions=(replace(item, weights=(0.5,)),))
    gated = ProductProbe((ConstantProbe(0.5), linear_of(item)))
    other = replace(concept, interventions=(replace(item, probes=(gated,)),))
    out = {}
    for name, one in {"whole": concept, "weight": half, "factor": other}.items():
        with llm.steer(model, {one: Auto(cap=1000)}):
            out[name] = behind_first_layer(model)
    base = behind_first_layer(model)
    assert torch.allclose(out["weight"] - base, (out["whole"] - base) / 2, atol=1e-5)
    assert torch.equal(out["factor"], out["weight"])
    assert differ(out["whole"], base)


@pytest.mark.parametrize("form", ["linear", "pooled", "product"])
def test_identities_in_a_language_model(form: str, tmp_path: Path) -> None:
    model = tiny("llama")
    concept = away(concept_for(model, form=form))
    base = written(model)
    with llm.steer(model, {concept: "auto"}) as steering:
        assert steering.strengths[concept.name] == Auto()
        steered = written(model)
        assert differ(steered, base)
        if form == "linear":  # a pooled probe reads tokens one by one while they are written
            assert close(written(model, use_cache=False), steered)
        singles = torch.cat([written(model, IDS[row : row + 1]) for row in range(len(IDS))])
        assert close(singles, steered)
        padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), IDS], 1)
        assert close(written(model, padded, (padded > 0).long()), steered)
        steering.strengths[concept.name] = Auto(1 - 1e-9)
        assert torch.equal(written(model), base), "nothing is above the target"
        steering.strengths[concept.name] = 0.0
        assert torch.equal(written(model), base)
        steering.strengths[concept.name] = "auto"
        assert torch.equal(written(model), steered)
    assert torch.equal(written(model), base)
    with llm.steer(model, {Concept.from_pretrained(concept.save_pretrained(tmp_path / "c")): "auto"}):
        assert torch.equal(written(model), steered)
    with llm.steer(model, {concept: "auto"}, gate="off"):
        assert torch.equal(written(model), base)


def test_the_cap_is_in_units_of_the_concept() -> None:
    model = tiny("llama")
    concept = away(concept_for(model, "model.model.layers.0"))
    for unit, cap in ((0.1, 2.0), (0.2, 1.0), (0.1, 1.0)):
        with llm.steer(model, {concept.with_unit(unit): Auto(0.01, cap)}, trace=True) as steering:
            model(IDS)
            assert steering.trace is not None
            assert float(steering.trace.records[0].chosen.max()) == pytest.approx(unit * cap)  # type: ignore[union-attr]


@pytest.mark.parametrize("edges", [(), (500.0,)], ids=["one bin", "two bins"])
@pytest.mark.parametrize("group", ["text", "cross"])
def test_identities_in_a_pipeline(tiny_pipe: Any, group: str, edges: tuple[float, ...]) -> None:
    concept = away(random_concept(seen_at(tiny_pipe, find_sites(tiny_pipe, group)), edges=edges, unit=0.5))
    base = latents(tiny_pipe, [BANANA, DOG], seeds=(1, 2))
    with steer(tiny_pipe, {concept: "auto"}) as steering:
        made = latents(tiny_pipe, [BANANA, DOG], seeds=(1, 2))
        for i, (prompt, seed) in enumerate(((BANANA, 1), (DOG, 2))):
            assert same(made[i : i + 1], latents(tiny_pipe, prompt, seeds=(seed,)))
        steering.strengths["random"] = [0.0, 0.7]
        apart = latents(tiny_pipe, [BANANA, DOG], seeds=(1, 2))
    assert differ(made, base)
    assert torch.equal(apart[0], base[0])
    assert differ(apart[1], base[1])


@pytest.mark.usefixtures("fresh_graphs")
def test_one_compiled_graph_serves_every_target_and_number(tmp_path: Path) -> None:
    pipe = build_flow_pipe(tmp_path, shallow=True)
    sites = find_sites(pipe, "cross")
    first = away(random_concept(seen_at(pipe, sites), form="product", unit=0.5), "first")
    second = random_concept(seen_at(pipe, sites), name="second", seed=1, unit=0.5)
    knobs: list[tuple[Any, Any]] = [("auto", 0.0), (Auto(0.2, 1.0), [0.3, -1.2]), (Auto(0.7), 1.0)]

    def run(steering: Steering, knob: tuple[Any, Any]) -> torch.Tensor:
        steering.strengths.update(first=knob[0], second=knob[1])
        return latents(pipe, [BANANA, DOG], (1, 2))

    made = []
    for compiled in (False, True):
        with steer(pipe, {first: "auto", second: 0.0}, combine="blend") as steering:
            counting = Counting()
            if compiled:
                pipe.unet = torch.compile(pipe.unet, backend=counting, fullgraph=True)
            made.append([run(steering, knob) for knob in knobs])
            assert counting.graphs == compiled
            made[-1].append(run(steering, (0.5, 0.5)))  # a number after auto: another graph, and right
    assert all(same(a, b) for a, b in zip(*made, strict=True))
    assert all(differ(a, b) for a, b in itertools.combinations(made[0], 2))


def test_maps_that_do_not_help_are_told_of() -> None:
    model = tiny("llama")
    concept = away(concept_for(model, "model.model.layers.0"))
    item = concept.interventions[0]
    turned = replace(item, maps=(AffineMap(-item.maps[0].shift),))  # type: ignore[attr-defined]
    base = written(model)
    with (
        pytest.warns(UserWarning, match=rf"strength auto of 'random': at {SITE} the map does not lower") as caught,
        llm.steer(model, {replace(concept, interventions=(turned,)): "auto"}) as steering,
    ):
        assert torch.equal(written(model), base)
    assert len([warning for warning in caught if "auto" in str(warning.message)]) == 1
    assert steering.unreachable() == {"random": {str(SITE): 1.0}}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        steering.detach()


def test_a_pipeline_is_let_go_of_though_the_warning_is_an_error(tiny_pipe: Any) -> None:
    concept = away(random_concept(seen_at(tiny_pipe, find_sites(tiny_pipe, "cross"))))
    items = [replace(item, maps=(AffineMap(-item.maps[0].shift),)) for item in concept.interventions]  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        steering = steer(tiny_pipe, {replace(concept, interventions=tuple(items)): "auto"})
        latents(tiny_pipe, BANANA, num_inference_steps=1)
        with pytest.raises(UserWarning, match="does not lower"):
            steering.detach()
    assert "encode_prompt" not in vars(tiny_pipe)


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [0, 1, -0.5, 2.0, math.nan, "half"])
def test_a_target_is_a_probability(target: Any) -> None:
    with pytest.raises(DSASError, match=r"the target is a probability between 0 and 1, found") as caught:
        Auto(target)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cap", [0, -1.0, math.inf, math.nan, "much"])
def test_a_cap_is_a_number_of_units(cap: Any) -> None:
    with pytest.raises(DSASError, match=r"the cap is a finite number of units above 0, found"):
        Auto(cap=cap)


LINEAR, PLAIN = LinearProbe(torch.ones(4), torch.tensor(0.0)), AffineMap(torch.ones(4))


@pytest.mark.parametrize(
    ("probe", "transform", "message"),
    [
        (ConstantProbe(), PLAIN, "at unet.mid, ConstantProbe has no hyperplane"),
        (QuantileProbe(LINEAR), PLAIN, "at unet.mid, QuantileProbe has no hyperplane"),
        (AnyProbe((LINEAR, LINEAR)), PLAIN, "at unet.mid, AnyProbe has no hyperplane"),
        (PrefixProbe(LINEAR), PLAIN, "at unet.mid, PrefixProbe has no hyperplane"),
        (ProductProbe((ConstantProbe(),)), PLAIN, "at unet.mid, ProductProbe has no hyperplane"),
        (LINEAR, Turn(torch.tensor(1.0)), "at unet.mid, Turn is not linear in its strength"),
    ],
)
def test_what_cannot_choose_its_strength(probe: Any, transform: Map, message: str) -> None:
    concept = Concept("yellow", (Intervention(Site("unet.mid"), (probe,), (transform,), (1.0,)),))
    with pytest.raises(DSASError, match=f"concept 'yellow' cannot take the strength auto: {message}") as caught:
        Steering({concept: "auto"})
    assert "\n" not in str(caught.value)
    steering = Steering({concept: 1.0})
    with pytest.raises(DSASError, match=message):
        steering.strengths["yellow"] = Auto(0.3)
    assert steering.strengths["yellow"] == 1.0


def test_who_looks_elsewhere_or_nowhere_cannot_either() -> None:
    concept = random_concept({Site("unet.mid"): 4})
    with pytest.raises(DSASError, match="the gate 'on' reads nothing"):
        Steering({concept: "auto"}, gate="on")
    item = replace(concept.interventions[0], probe_site=Site("unet.down"))
    with pytest.raises(DSASError, match=r"unet.mid is gated by what unet.down shows"):
        Steering({replace(concept, interventions=(item,)): "auto"})
    unused = replace(concept.interventions[0], probes=(ConstantProbe(),), weights=(0.0,))
    Steering({replace(concept, interventions=(*concept.interventions, unused)): "auto"})


@pytest.mark.parametrize("value", ["automatic", ["auto", 1.0], [], math.inf, None, "1"])
def test_other_strengths_are_refused(value: Any) -> None:
    with pytest.raises(DSASError, match="expected a finite number, or one per prompt, or 'auto'; found"):
        Steering({random_concept({Site("unet.mid"): 4}): value})
