"""Probes that see where pictures show the concept, on grids in which it was planted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsas_core import Site
from dsas_diffusion.learning.mask_fit import MaskFit, Unnamed, compact, fit_mask, pool_patches
from dsas_diffusion.steering.concept_masks import GRID

COARSE, FINE, BLIND = Site("unet.coarse"), Site("unet.fine"), Site("unet.blind")
WIDTH = 6
#: the channel of the thing
THING = 0


def noise(pictures: int, side: int, seed: int) -> torch.Tensor:
    return torch.randn(pictures, side * side, WIDTH, generator=torch.Generator().manual_seed(seed))


def places(pictures: int, seed: int = 0) -> np.ndarray:
    """Where the thing is in each picture: a square of half the side, bool [pictures, GRID, GRID]."""
    shown = np.zeros((pictures, GRID, GRID), bool)
    for mask, (row, column) in zip(shown, np.random.default_rng(seed).integers(0, 2, (pictures, 2)), strict=True):
        mask[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] = True
    return shown


def shown_on(shown: np.ndarray, side: int) -> torch.Tensor:
    """Places as [pictures, patches] of a grid."""
    step = GRID // side
    return torch.from_numpy(shown[:, ::step, ::step].copy()).flatten(1).float()


def grids(
    shown: np.ndarray, controls: int = 24, strength: float = 6.0, lookalike: float = 0.0, sites: Any = ((COARSE, 4),)
) -> tuple[dict[Site, torch.Tensor], dict[Site, torch.Tensor]]:
    """Source pictures with the thing at these places, and controls, in one patch of which something looks like it."""
    source, control = {}, {}
    for i, (site, side) in enumerate(sites):
        source[site], control[site] = noise(len(shown), side, i), noise(controls, side, 100 + i)
        source[site][..., THING] += strength * shown_on(shown, side)
        control[site][:, 0, THING] += lookalike
    return source, control


def seen(fitted: MaskFit, pictures: dict[Site, torch.Tensor]) -> np.ndarray:
    """Where the probes see the thing, bool [pictures, GRID, GRID]."""
    from dsas_diffusion.steering.concept_masks import on_picture

    logits = [
        on_picture(item.probes[0].logit(pictures[item.site])[..., 0], (GRID, GRID)) for item in fitted.interventions
    ]
    return np.stack([fitted.rule.apply(one) for one in torch.stack(logits).mean(0).numpy()]) > 0


def overlap(some: np.ndarray, others: np.ndarray) -> float:
    """Intersection over union."""
    return float((some & others).sum() / (some | others).sum())


@pytest.mark.parametrize("given_masks", [False, True])
def test_a_planted_thing_is_found(given_masks: bool) -> None:
    """In pictures that were not fitted on, too; and not in controls."""
    shown, others = places(12), places(12, seed=1)
    source, control = grids(shown)
    fitted = fit_mask(source, control, (1.0, 0.0), list(shown) if given_masks else None)
    assert (fitted.rule.sites, fitted.rule.missed, fitted.rule.touched) == ((str(COARSE),), 0.0, 0.0)
    assert fitted.rule.localises
    assert fitted.rule.covered == pytest.approx(0.25, abs=0.06)
    new, clean = grids(others)[0], {COARSE: noise(40, 4, 77)}
    assert overlap(seen(fitted, new), others) > 0.8
    assert seen(fitted, clean).any((1, 2)).mean() < 0.1
    (reader,) = fitted.interventions
    assert reader.read_only
    assert reader.weights == (1.0, 0.0)


def test_what_looks_alike_stays_below_the_threshold() -> None:
    """Controls come within the margin in places; none passes 0."""
    shown = places(16)
    source, control = grids(shown, strength=12.0, lookalike=7.0)
    fitted = fit_mask(source, control, (1.0,))
    logits = fitted.interventions[0].probes[0].logit(control[COARSE])[..., 0].flatten(1).amax(1)
    assert -fitted.rule.margin < float(logits.max()) < 0
    assert (fitted.rule.missed, fitted.rule.touched) == (0.0, 0.0)
    assert overlap(seen(fitted, source), shown) > 0.8


@pytest.mark.parametrize("side", [4, 16])
def test_the_site_that_sees_it_is_chosen_and_a_finer_one_added(side: int) -> None:
    """Coarse tells pictures apart best; what is finer than the best is added, and a blind one of its grid is not."""
    shown = places(12)
    source, control = grids(shown, sites=((BLIND, 4), (COARSE, 4), (FINE, side)))
    for pictures in (source, control):
        pictures[BLIND] = noise(len(pictures[BLIND]), 4, len(pictures[BLIND]))
    source[FINE][..., THING] -= 3 * shown_on(shown, side)  # less than at the coarse one
    fitted = fit_mask(source, control, (1.0,))
    assert fitted.rule.sites == ((str(COARSE), str(FINE)) if side > 4 else (str(COARSE),))
    assert [str(item.site) for item in fitted.interventions] == list(fitted.rule.sites)


@pytest.mark.parametrize("seed", range(3))
def test_sides_that_cannot_be_told_apart_have_no_place(seed: int) -> None:
    source, control = noise(12, 4, 2 * seed), noise(24, 4, 2 * seed + 1)
    assert not fit_mask({COARSE: source}, {COARSE: control}, (1.0,)).rule.localises


def test_what_covers_everything_has_no_place() -> None:
    source, control = grids(np.ones((12, GRID, GRID), bool))
    rule = fit_mask(source, control, (1.0,)).rule
    assert rule.covered > 0.9
    assert rule.missed == 0
    assert not rule.localises


@pytest.mark.parametrize("marked", ["nothing", "one picture", "a pixel"])
def test_masks_of_little_are_no_obstacle(marked: str) -> None:
    """Masks of nothing give a concept without a place; a thing that is smaller than a patch has the patch it is in."""
    masks: list[np.ndarray | None] = [None] * 12
    shown = places(12)
    if marked == "one picture":
        masks[5] = shown[5]
    if marked == "a pixel":
        masks = [np.zeros_like(mask) for mask in shown]
        for mask, place in zip(masks, shown, strict=True):
            mask.flat[place.argmax()] = True  # type: ignore[union-attr]
    source, control = grids(shown)
    fitted = fit_mask(source, control, (1.0,), masks)
    assert fitted.rule.localises is (marked != "nothing")
    if marked != "nothing":
        assert seen(fitted, source)[shown].mean() > 0.4


@pytest.mark.parametrize("pictures", [2, 3, 5])
def test_few_pictures(pictures: int) -> None:
    """Fewer than there are folds."""
    shown = places(pictures)
    fitted = fit_mask(*grids(shown, controls=pictures, strength=9.0), (1.0,))
    assert np.isfinite(fitted.rule.margin)
    assert fitted.rule.margin >= 0


@settings(max_examples=4, deadline=None)
@given(
    scale=st.sampled_from([2.0**-6, 0.5, 8.0, 2.0**10]),
    shift=st.floats(-4, 4),
    order=st.permutations(range(WIDTH)),
    seed=st.integers(0, 1),
)
def test_units_of_activations_do_not_matter(scale: float, shift: float, order: list[int], seed: int) -> None:
    """Nor where they are zero, nor the order of channels: they are standardised."""
    source, control = grids(places(8, seed))
    other = ({site: (x[..., order] + shift) * scale for site, x in side.items()} for side in (source, control))
    rule, again = fit_mask(source, control, (1.0,)).rule, fit_mask(*other, (1.0,)).rule
    assert again.sites == rule.sites
    assert again.margin == pytest.approx(rule.margin, rel=0.02, abs=0.02)
    assert (again.missed, again.touched) == (rule.missed, rule.touched)
    assert again.covered == pytest.approx(rule.covered, abs=0.02)


@settings(max_examples=5, deadline=None)
@given(order=st.permutations(range(8)), seed=st.integers(0, 1))
def test_the_probe_of_given_masks_does_not_hang_on_the_order_of_pictures(order: list[int], seed: int) -> None:
    """It is fitted on all; only what is held out, and with it the threshold, hangs on the folds."""
    shown = places(8, seed)
    source, control = grids(shown)
    fitted = fit_mask(source, control, (1.0,), list(shown))
    again = fit_mask({COARSE: source[COARSE][order]}, control, (1.0,), list(shown[order]))
    one, other = (item.interventions[0].probes[0].with_lower_bias(-item.rule.margin) for item in (fitted, again))
    assert torch.allclose(one.weight, other.weight, atol=1e-4)
    assert torch.allclose(one.bias, other.bias, atol=1e-4)


def test_pooling_averages_fine_grids() -> None:
    x = noise(2, 32, 0)
    pooled = pool_patches(x)
    assert pooled.shape == (2, GRID * GRID, WIDTH)
    four = x.unflatten(1, (32, 32))[:, :2, :2].mean((1, 2))
    assert torch.allclose(pooled[:, 0], four, atol=1e-6)
    assert pool_patches(noise(1, 4, 0)).shape == (1, 16, WIDTH), "small grids stay as they are"


def test_what_float16_cannot_hold_is_kept() -> None:
    x = noise(2, 4, 0)
    assert compact(x).dtype == torch.float16
    assert torch.equal(compact(x * 1e6), x * 1e6)


def test_pictures_of_unnamed_prompts_count_where_masks_are_known() -> None:
    """They show the thing more faintly, so that the threshold has to be lower to find them."""
    shown, faint = places(12), places(8, seed=2)
    source, control = grids(shown, strength=12.0)
    unnamed = {COARSE: torch.cat([grids(faint, strength=6.0)[0][COARSE], noise(24, 4, 55)])}
    known = [*faint, *[None] * 24]
    plain = fit_mask(source, control, (1.0,), list(shown))
    taught = fit_mask(source, control, (1.0,), list(shown), Unnamed(unnamed, known))
    assert plain.rule.unnamed is None
    assert (taught.rule.unnamed["pictures"], taught.rule.unnamed["showing"]) == (32, 8)
    assert taught.rule.unnamed["found"] == 1
    assert taught.rule.unnamed["touched"] <= 0.1
    assert taught.rule.missed == 0
    new = {COARSE: grids(places(8, seed=9), strength=6.0)[0][COARSE]}
    assert seen(taught, new).any((1, 2)).mean() >= seen(plain, new).any((1, 2)).mean()


@pytest.mark.parametrize("showing", [0, 4])
def test_unnamed_pictures_of_one_kind_alone(showing: int) -> None:
    """None of them, or all of them, show the thing: the threshold stays where it was."""
    source, control = grids(places(12))
    shown = places(4, seed=2)
    pictures = grids(shown)[0] if showing else {COARSE: noise(4, 4, 5)}
    known = list(shown) if showing else [None] * 4
    taught = fit_mask(source, control, (1.0,), list(places(12)), Unnamed(pictures, known))
    assert (taught.rule.unnamed["showing"], taught.rule.unnamed["touched"]) == (showing, 0)
    assert taught.rule.unnamed["found"] == (1 if showing else 0)
