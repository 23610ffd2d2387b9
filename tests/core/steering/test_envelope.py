"""Staying where targets are: the cloud against scikit-learn, the cap against a search, the identities, in models."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsas_core import Auto, Concept, DSASError, Intervention, Recipe, Site, llm, visit
from dsas_core.learning.envelopes import fit_envelope, fit_envelopes
from dsas_core.maps import AffineMap, Map
from dsas_core.maps.envelope import RANK, EllipticEnvelope
from dsas_core.steering.interpolation import interpolate
from dsas_core.steering.solve import strength_within
from dsas_diffusion import find_sites, steer
from tests.fixtures.checks import differ, same
from tests.fixtures.concepts import MAPS, Turn, random_concept, random_map
from tests.fixtures.language_models import IDS, close, concept_for, tiny, written
from tests.fixtures.models import BANANA, DOG, Counting, build_flow_pipe, latents
from tests.fixtures.visitors import seen_at

SITE = Site("model.model.layers.0")


def rows(count: int, width: int, seed: int = 0, decay: float = 0.5) -> torch.Tensor:
    """Activations whose deviations fall off, turned and moved."""
    random = torch.Generator().manual_seed(seed)
    turned = torch.linalg.qr(torch.randn(width, width, generator=random, dtype=torch.float64)).Q
    scales = decay ** torch.arange(width, dtype=torch.float64)
    drawn = torch.randn(count, width, generator=random, dtype=torch.float64)
    return (drawn * scales) @ turned + torch.randn(width, generator=random, dtype=torch.float64)


def with_clouds(concept: Concept, seen: dict[Site, torch.Tensor], wide: float = 1.0) -> Concept:
    """A concept whose clouds are those of activations that were seen, their radii times `wide`."""

    def clouded(item: Intervention) -> Intervention:
        found = fit_envelope(seen[item.site].flatten(0, -2).double(), 3)
        return replace(item, clouds=(replace(found, radius=found.radius * wide),) * len(item.maps))

    return replace(concept, interventions=tuple(map(clouded, concept.interventions)))


def activations(model: Any, *sites: Site, **settings: Any) -> dict[Site, torch.Tensor]:
    """Activations of a language model, steered by the given settings."""
    found: dict[Site, torch.Tensor] = {}

    class Behind:
        def begin(self, root: str, call: Any) -> None: ...
        def visit(self, site: Site, x: torch.Tensor) -> None:
            found[site] = x.clone()

    with visit({"model": model}, sites, Behind()), torch.no_grad():
        if settings:
            with llm.steer(model, settings.pop("concepts"), **settings):
                model(IDS)
        else:
            model(IDS)
    return found


# ---- the cloud ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "decay"), [(6, 0.5), (12, 0.9), (12, 0.99)])
def test_the_distance_is_that_of_probabilistic_pca(width: int, decay: float) -> None:
    from sklearn.decomposition import PCA

    x = rows(200, width, decay=decay)
    cloud = fit_envelope(x, 4)
    rank = len(cloud.axes)
    reference = PCA(rank).fit(x.numpy())
    moved = x.numpy() - reference.mean_
    expected = (moved @ reference.get_precision() * moved).sum(1) ** 0.5
    assert cloud.distance(x)[:, 0].numpy() == pytest.approx(expected, rel=1e-9)
    assert float((cloud.distance(x) <= cloud.radius).double().mean()) == pytest.approx(0.95, abs=0.01)
    explained = PCA().fit(x.numpy()).explained_variance_ratio_.cumsum()
    assert rank == min(4, int((explained < 0.9).sum()) + 1)


def test_with_all_components_it_is_the_mahalanobis_distance() -> None:
    from sklearn.covariance import EmpiricalCovariance

    x = rows(50, 4, decay=0.99)
    cloud = fit_envelope(x, 99)
    assert len(cloud.axes) == 3, "the fourth direction is all that is left out"
    squared = EmpiricalCovariance().fit(x.numpy()).mahalanobis(x.numpy()) * 49 / 50
    assert cloud.distance(x)[:, 0].square().numpy() == pytest.approx(squared, rel=1e-9)


def test_bins_have_clouds_of_one_shape_and_few_or_equal_activations_are_no_trouble() -> None:
    shapes = {
        tuple(t.shape for t in cloud.tensors()) for cloud in fit_envelopes([rows(40, 8, 1, 0.2), rows(9, 8, 2, 0.9)])
    }
    assert len(shapes) == 1
    constant = torch.ones(5, 4).double()
    for x in (rows(2, 8), constant, rows(30, 1)):
        cloud = fit_envelope(x)
        assert all(bool(t.isfinite().all()) for t in cloud.map_tensors(torch.Tensor.float).tensors())
        assert bool(cloud.distance(x).isfinite().all())
    with pytest.raises(DSASError, match="two activations at least"):
        fit_envelope(rows(1, 8))


# ---- the cap --------------------------------------------------------------------------------------------------------


@given(
    kind=st.sampled_from(MAPS),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    strength=st.integers(-30, 30),
    each=st.booleans(),
    outside=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_cap_is_where_a_search_finds_it(
    kind: str, shape: list[int], strength: int, each: bool, outside: bool, seed: int
) -> None:
    random, width = torch.Generator().manual_seed(seed), 5
    cloud = fit_envelope(rows(60, width, seed % 1000, 0.8), 2)
    x = cloud.mean + (6.0 if outside else 0.4) * torch.randn(*shape, width, generator=random, dtype=torch.float64)
    transform = random_map(kind, width, random).map_tensors(torch.Tensor.double)
    h = torch.rand(*shape, width if each else 1, generator=random, dtype=torch.float64)
    found = strength_within(
        x, transform, torch.full((1,) * (len(shape) + 1), float(strength), dtype=torch.float64), h, cloud
    )

    limit = cloud.distance(x).maximum(cloud.radius)
    steps = torch.linspace(0, 1, 4001, dtype=torch.float64) * strength
    moved = h * transform.displacement(x)
    inside = cloud.distance(x + steps[:, None].reshape(-1, *[1] * x.ndim) * moved) <= limit * (1 + 1e-9)
    last = inside.long().cumprod(0).sum(0) - 1  # the steps before the first outside
    searched = steps[last]
    assert found.shape == searched.shape
    assert ((found - searched).abs() <= abs(strength) / 4000 + 1e-6 * abs(strength)).all()
    assert (cloud.distance(x + found * moved) <= limit * (1 + 1e-7)).all()
    free = last == 4000
    assert torch.equal(found[free].abs() >= abs(strength) * (1 - 2e-4), torch.ones_like(found[free], dtype=torch.bool))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_where_it_does_not_bind_nothing_differs_by_a_bit(dtype: torch.dtype) -> None:
    cloud = fit_envelope(rows(60, 8)).map_tensors(torch.Tensor.float)
    vast = replace(cloud, radius=torch.tensor(1e9))
    x, h = torch.randn(2, 5, 8).to(dtype), torch.rand(2, 5, 1)
    transform = AffineMap(torch.randn(8), torch.rand(8))
    for strength in (torch.tensor([1.7, -0.3])[:, None, None], torch.zeros(2, 1, 1)):
        capped = strength_within(x, transform, strength, h, vast)
        plain, same_as = (interpolate(x, [(transform, s, h)]) for s in (strength, capped))
        assert torch.equal(plain, same_as)
    tight = replace(cloud, radius=torch.tensor(0.0))
    held = strength_within(x, transform, torch.full((2, 1, 1), 9.0), torch.zeros_like(h), tight)
    assert torch.equal(held, torch.full_like(held, 9.0)), "where h is 0 nothing moves, and nothing binds"


@pytest.mark.parametrize("extreme", [math.inf, math.nan, 3e38])
def test_what_is_not_finite_is_left_to_the_strength(extreme: float) -> None:
    cloud = fit_envelope(rows(60, 2)).map_tensors(torch.Tensor.float)
    x = torch.tensor([[extreme, 1.0]])
    found = strength_within(x, AffineMap(torch.ones(2)), torch.ones(1, 1), torch.zeros(1, 1), cloud)
    assert torch.equal(found, torch.ones(1, 1))


# ---- at work --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [30.0, -30.0, Auto(0.01, 1000)])
def test_in_a_model_positions_stay_within_or_go_no_farther_out(strength: Any) -> None:
    model = tiny("llama")
    base = activations(model, SITE)
    concept = with_clouds(concept_for(model, "model.model.layers.0", kind="additive"), base)
    free, held = (activations(model, SITE, concepts={concept: strength}, within=w)[SITE] for w in (None, "target"))
    (cloud,) = concept.interventions[0].clouds
    limit = cloud.distance(base[SITE]).maximum(cloud.radius)
    assert (cloud.distance(held) <= limit * 1.0001).all()
    assert (cloud.distance(free) > limit).any()
    assert differ(held, base[SITE]), "they move all the same"
    assert torch.equal(held[:, 0], base[SITE][:, 0]), "the first token is never steered"


def test_identities_in_a_language_model(tmp_path: Path) -> None:
    model = tiny("llama")
    plain = concept_for(model, form="product")
    sites = plain.sites
    concept, vast = (with_clouds(plain, activations(model, *sites), wide) for wide in (1.0, 1e6))
    base = written(model)
    with llm.steer(model, {plain: 2.0}):
        free = written(model)
    with llm.steer(model, {vast: 2.0}, within="target"):
        assert torch.equal(written(model), free)
    with llm.steer(model, {concept: 2.0}):
        assert torch.equal(written(model), free), "a cloud that nobody asks for changes nothing"
    for gate, expected in ((None, None), ("on", None), ("off", base)):
        with llm.steer(model, {concept: 2.0}, within="target", gate=gate) as steering:
            held = written(model)
            assert torch.equal(held, base) if expected is not None else differ(held, base)
            steering.strengths["random"] = 0.0
            assert torch.equal(written(model), base)
    with llm.steer(model, {concept: 2.0}, within="target"):
        held = written(model)
        assert differ(held, free)
        assert close(torch.cat([written(model, IDS[row : row + 1]) for row in range(len(IDS))]), held)
        padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), IDS], 1)
        assert close(written(model, padded, (padded > 0).long()), held)
    loaded = Concept.from_pretrained(concept.save_pretrained(tmp_path / "c"))
    assert loaded == concept != plain
    with llm.steer(model, {loaded: 2.0}, within="target"):
        assert torch.equal(written(model), held)
    assert torch.equal(written(model), base)


@pytest.mark.usefixtures("fresh_graphs")
@pytest.mark.slow
def test_one_compiled_graph_serves_every_strength_and_bin(tmp_path: Path) -> None:
    pipe = build_flow_pipe(tmp_path, shallow=True)
    seen = seen_at(pipe, find_sites(pipe, "cross")[-2:])
    first, second = (
        with_clouds(random_concept(seen, name=name, seed=seed, unit=0.5, edges=(500.0,)), seen)
        for seed, name in enumerate(("first", "second"))
    )
    knobs = [(0.0, 0.0), (3.0, 0.0), (-2.0, 1.0)]
    made = []
    for compiled in (False, True):
        counting = Counting()
        with steer(pipe, {first: 0.0, second: 0.0}, combine="blend", within="target") as steering:
            if compiled:
                pipe.unet = torch.compile(pipe.unet, backend=counting, fullgraph=True)
            made.append([])
            for knob in knobs:
                steering.strengths.update(first=knob[0], second=knob[1])
                made[-1].append(latents(pipe, [BANANA, DOG], (1, 2)))
            assert counting.graphs == compiled
    assert all(same(a, b) for a, b in zip(*made, strict=True))
    assert not same(made[0][1], made[0][0])
    assert not same(made[0][2], made[0][1])


# ---- bad input ------------------------------------------------------------------------------------------------------


def curved(concept: Concept) -> Concept:
    turn: Map = Turn(torch.ones(()))
    return replace(concept, interventions=tuple(replace(item, maps=(turn,)) for item in concept.interventions))


def test_what_cannot_be_kept_within_is_refused_with_the_way_out() -> None:
    model = tiny("llama")
    plain = concept_for(model, "model.model.layers.0")
    for concept, message in (
        (plain, rf"'random' cannot be kept within its targets: .* learn it again with --cloud, .*\"cloud\": {RANK}"),
        (curved(with_clouds(plain, activations(model, SITE))), "Turn is not linear in its strength"),
    ):
        with pytest.raises(DSASError, match=message):
            llm.steer(model, {concept: 1.0}, within="target")
        with llm.steer(model, {concept: 1.0}, within="target", gate="off"):
            pass
    with pytest.raises(DSASError, match="within 'source': expected None, or target"):
        llm.steer(model, {plain: 1.0}, within="source")
    for cloud in (-1, 1.5, True, "all"):
        with pytest.raises(DSASError, match="expected a number of components"):
            Recipe(cloud=cloud)  # type: ignore[arg-type]


def test_a_file_with_half_of_its_clouds_is_damaged(tmp_path: Path) -> None:
    seen = {SITE: torch.randn(2, 9, 16)}
    concept = with_clouds(random_concept(seen, edges=(500.0,)), seen)
    file = concept.save_pretrained(tmp_path / "c") / "config.json"
    config = json.loads(file.read_text())
    config["interventions"][0]["clouds"] = [config["interventions"][0]["clouds"]]
    file.write_text(json.dumps(config))
    with pytest.raises(DSASError, match="needs a cloud in every bin, or none at all"):
        Concept.from_pretrained(tmp_path / "c")
    assert isinstance(concept.interventions[0].clouds[0], EllipticEnvelope)
