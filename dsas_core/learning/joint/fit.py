"""Joint learning: fit where training begins, train, and put together what was asked for of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ... import methods
from ...concept.evidence import SiteEvidence
from ...concept.format import round_map
from ...concept.intervention import Intervention
from ...errors import DSASError, UnsupportedError
from ...methods.gated_maps.e2e_dsas import E2EGate
from ...methods.training.parts import Scale
from ...model.sites import Site
from ...utils.processes import Share
from ..capture import Capture, is_timeless
from ..capture_store import Captured
from ..fit import fit_sites
from ..recipe import Recipe
from ..site_fit import FIRED, fit_map, rows_at
from .checkpoint import Checkpoint
from .parameters import by_bin
from .runs import JointRuns
from .settings import training_settings
from .trainer import Aims, JointTrainer

#: a gate that is trained, and the map that is trained with it
TOGETHER = "e2e-dsas"


def trained_recipe(recipe: Recipe) -> Recipe:
    """The recipe of what is trained: of a trained gate with another map, or the reverse, of both together.

    Example:
        >>> trained_recipe(Recipe(method="caa", gate="e2e-dsas(gamma=0.1)")).method
        'e2e-dsas'
    """
    gate = recipe.resolved_gate
    if isinstance(gate, E2EGate) and recipe.method != TOGETHER:
        return replace(recipe, method=TOGETHER, options={})
    if recipe.method == TOGETHER and not isinstance(gate, E2EGate):
        return replace(recipe, gate=methods.default_gate(TOGETHER, recipe.options), form="token")
    return recipe


def fit_jointly(
    capture: Captured,
    recipe: Recipe,
    runs: JointRuns,
    *,
    folder: str | Path | None = None,
    about: Mapping[str, Any],
    share: Share,
    done: Callable[[], object] = lambda: None,
    read_sites: Collection[Site] = (),
    show_progress: bool = False,
) -> tuple[list[Intervention], list[SiteEvidence], dict[str, Any]]:
    """Train the maps, and perhaps the gates, of all captured sites together.

    Args:
        capture: see `fit.fit_sites`.
        recipe: of mode "joint".
        runs: runs the prompts.
        folder: where the training is kept, so that an interrupted one goes on; None for nowhere.
        about: what the training depends on beside the recipe, as plain data.
        share: of this process.
        done: called after each site that is fitted, for a progress bar.
        read_sites: see `fit.fit_sites`.
        show_progress: whether to show a progress bar of the training.

    Returns:
        The interventions, the evidence of all sites, and what was measured in training.

    Raises:
        DSASError: no site tells source from control; a loss that is not finite.
        UnsupportedError: sites in several roots, or kinds of maps, gates or models that cannot be trained.
    """
    own, everything, all_read = trained_recipe(recipe), capture, read_sites
    gates = isinstance(own.resolved_gate, E2EGate)
    if gates:  # each site has its own, and what is only read is none of them
        capture, read_sites = _without(capture, read_sites), ()
    trainer, evidence = make_trainer(capture, own, runs, folder, about, share, done, read_sites, show_progress)
    trained, found = trainer.run()
    trained = [_finished(item, own.method, _moved(capture, item)) for item in trained]
    if gates:
        evidence = [_with_doses(item, trained, capture) for item in evidence]
    if own == recipe:
        return trained, evidence, found
    if own.gate == recipe.gate:  # the gate alone
        if not methods.mapping(recipe.method).traits.trained:
            mapped = [_with_map(item, capture, recipe) for item in trained]
            return _that_steer(mapped, recipe), evidence, found
        apart, beside = replace(recipe, gate="on"), None if folder is None else Path(folder) / "map"
        maps, _, found["map"] = fit_jointly(capture, apart, runs, folder=beside, about=about, share=share)
        by_site = {item.site: item.maps for item in maps}
        return [replace(item, maps=by_site[item.site]) for item in trained], evidence, found
    others, evidence = fit_sites(everything, recipe, lambda: None, None, all_read)
    by_site = {item.site: item.maps for item in trained}
    joined = [replace(item, maps=by_site[item.site]) for item in others if item.site in by_site]
    return _that_steer(joined, recipe), evidence, found


def _that_steer(items: Sequence[Intervention], recipe: Recipe) -> list[Intervention]:
    """The interventions that have a weight, which some must."""
    steering = [item for item in items if any(item.weights)]
    if not steering:
        raise DSASError(
            f"gate {recipe.gate!r} and map {recipe.method!r}, one of which is trained, steer at no site together: "
            "choose another of the two, or other sites"
        )
    return steering


def make_trainer(
    capture: Captured,
    recipe: Recipe,
    runs: JointRuns,
    folder: str | Path | None,
    about: Mapping[str, Any],
    share: Share,
    done: Callable[[], object] = lambda: None,
    read_sites: Collection[Site] = (),
    show_progress: bool = False,
) -> tuple[JointTrainer, list[SiteEvidence]]:
    """What trains the sites of a recipe, from where they begin, and the evidence of that; see `fit_jointly`."""
    items, evidence = fit_sites(capture, recipe, done, None, read_sites)
    roots = sorted({item.site.root for item in items})
    if len(roots) > 1:
        raise UnsupportedError(
            f"joint training needs all sites in one root, and these are in {', '.join(roots)}: choose sites in one of "
            "them (sites)"
        )
    known = {"recipe": _plain(recipe), "sites": [str(item.site) for item in items], "edges": list(capture.edges)}
    trainer = JointTrainer(
        items,
        capture.edges,
        {item.site: _scales(capture, item) for item in items},
        _aims(recipe),
        training_settings(recipe.training),
        runs,
        recipe.seed,
        Checkpoint(folder, {**known, **about}),
        share,
        show_progress,
    )
    return trainer, evidence


def _without(capture: Captured, sites: Collection[Site]) -> Captured:
    """What was captured at all other sites."""
    if not sites:
        return capture
    assert isinstance(capture, Capture)  # only texts have sites that are read alone
    kept = Capture(capture.edges, seed=capture.seed)
    kept.timeless |= capture.timeless
    kept.rows.update({key: rows for key, rows in capture.rows.items() if key[0] not in sites})
    return kept


def _plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as a training depends on it: whether activations are computed again changes nothing."""
    training = replace(training_settings(recipe.training), checkpointing=None)
    return {**asdict(recipe), "training": asdict(training)}


def _aims(recipe: Recipe) -> Aims:
    gate, options = recipe.resolved_gate, recipe.options
    l1, group = (float(options.get(name, 0.0)) for name in ("l1", "group"))
    if isinstance(gate, E2EGate):
        return Aims(gates=True, gamma=float(gate.gamma), l1=l1, group=group)
    return Aims(l1=l1, group=group)


def _bins(capture: Captured, site: Site, item: Intervention) -> Sequence[int]:
    return [0] if is_timeless(site, capture.timeless) else range(len(item.maps))


def _gathered(capture: Captured, item: Intervention, kind: str, name: str) -> torch.Tensor:
    """The rows of a kind at a site, of all its bins."""
    rows = [rows_at(capture, item.site, bin_) for bin_ in _bins(capture, item.site, item)]
    return torch.cat([part[kind].gathered(name) for part in rows if kind in part])


def _moved(capture: Captured, item: Intervention) -> torch.Tensor:
    """The means over positions that a site's map is for."""
    bins = _bins(capture, item.site, item)
    elsewhere = any("moved" in rows_at(capture, item.site, bin_) for bin_ in bins)  # than where the gate reads
    return _gathered(capture, item, "moved" if elsewhere else "source", "pooled")


def _scales(capture: Captured, item: Intervention) -> tuple[Scale, Scale]:
    """The scales of a site's map, by means over positions, and of its gate, by positions."""
    of_map = Scale(_moved(capture, item), _gathered(capture, item, "target", "pooled"))
    sides = (_gathered(capture, item, kind, "positions") for kind in ("source", "control"))
    return of_map, Scale(*sides)


def _finished(item: Intervention, method: str, rows: torch.Tensor) -> Intervention:
    """A trained intervention as it is kept: rounded as far as the map does the same with the rows that it is for."""
    finish = methods.mapping(method).finish
    return replace(item, maps=tuple(by_bin(item.maps, lambda part: finish(round_map(part, rows)))))


def _with_map(item: Intervention, capture: Captured, recipe: Recipe) -> Intervention:
    """A trained gate with a map that is fitted by it; of weight 0 in bins where that is refused."""
    bins = _bins(capture, item.site, item)
    fitted = [
        fit_map(rows_at(capture, item.site, bin_ if len(bins) > 1 else 0), recipe, probe)
        for bin_, probe in enumerate(item.probes)
    ]
    weights = (0.0 if refused else weight for (_, refused), weight in zip(fitted, item.weights, strict=True))
    return replace(item, maps=tuple(transform for transform, _ in fitted), weights=tuple(weights))


def _with_doses(evidence: SiteEvidence, trained: Sequence[Intervention], capture: Captured) -> SiteEvidence:
    """The evidence of a site with the trained gate's h of control positions; before it, that of where it began."""
    item = next((item for item in trained if str(item.site) == evidence.site), None)
    if item is None:
        return evidence
    bin_ = evidence.bin if len(item.probes) > evidence.bin else 0
    positions = rows_at(capture, item.site, evidence.bin)["control"].gathered("positions")
    with torch.no_grad():
        h = item.probes[bin_].score(positions).float()
    return replace(
        evidence,
        control_h_before=evidence.control_h,
        control_fired_before=evidence.control_fired,
        control_h=float(h.mean()),
        control_fired=float((h > FIRED).float().mean()),
    )
