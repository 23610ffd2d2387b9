"""One site in one timestep bin: fit its map and its gate, with cross-validated evidence.

A capture may hold activations of more kinds than source, target and control: "context", positions of control prompts
that the gate reads while steering, though nothing is pooled over them; "moved", of source prompts for the map alone,
where the gate reads other positions than the map moves; "cloud", of target prompts for their ellipse alone, where more
positions are moved than the map is fitted on; "unseen_source" and "unseen_control", of another domain, on which the
finished gate is tested.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from .. import methods
from ..concept.evidence import SiteEvidence, UnseenEvidence
from ..concept.format import round_map
from ..errors import DSASError, UnsupportedError
from ..maps import IdentityMap, Map
from ..methods.base.gate_fit import GateFit
from ..methods.base.map_rows import split_rows
from ..model.sites import Site
from ..probes import LastProbe, Probe
from .capture import Activations
from .capture_store import Captured
from .prompts.prompt_set import SIDES
from .recipe import Recipe

#: kinds of activations of another domain
UNSEEN = ("unseen_source", "unseen_control")
#: every kind of activations that a capture may hold
KINDS = (*SIDES, "context", "moved", "cloud", *UNSEEN)
#: a gate has fired where h is above this
FIRED = 0.5


class SiteFit(NamedTuple):
    """Probe and map of one site in one bin.

    Args:
        probe: when to steer.
        map: how to steer.
        evidence: on held-out prompts.
        refused: why the gate must not steer there, or "".
    """

    probe: Probe
    map: Map
    evidence: SiteEvidence
    refused: str


def rows_at(capture: Captured, site: Site, bin_: int) -> dict[str, Activations]:
    """The activations captured at a site in a bin, by kind."""
    return {kind: capture.rows[site, bin_, kind] for kind in KINDS if (site, bin_, kind) in capture.rows}


def fit_site(capture: Captured, site: Site, bin_: int, recipe: Recipe, gate_only: bool = False) -> SiteFit:
    """Fit one site in one timestep bin; it is refused where the gate is, or the gate that the map is made from.

    Args:
        capture: activations of source, target and control prompts, and perhaps of other `KINDS`.
        site: the site to fit.
        bin_: index of the timestep bin.
        recipe: how to fit.
        gate_only: the site is read and not steered: its map changes nothing.

    Raises:
        DSASError: nothing was captured there.
        UnsupportedError: activations are not finite.
    """
    rows = rows_at(capture, site, bin_)
    missing = [kind for kind in SIDES if kind not in rows]
    if missing:
        raise DSASError(
            f"nothing was captured at {site} in timestep bin {bin_} for {', '.join(missing)}: "
            "use more steps or fewer bins"
        )
    for kind, activations in rows.items():
        if not bool(activations.gathered("pooled").isfinite().all()):
            raise UnsupportedError(
                f"{site}: activations of {kind} prompts are NaN or infinite: load the model in float32 or bfloat16, or "
                "leave the site out"
            )
    source = rows["source"]
    fitted = recipe.resolved_gate.fit_on(source, _controls(rows), recipe)
    (probe, after), (as_fitted, before) = fitted.place_at(recipe.control_h), fitted.place_at(None)
    transform, refused = (IdentityMap(), "") if gate_only else fit_map(rows, recipe, probe, fitted)
    missed, touched = fitted.shares or (None, None)
    evidence = SiteEvidence(
        site=str(site),
        bin=bin_,
        weight=0.0 if fitted.refused else _weight(fitted, recipe),
        balanced_accuracy=fitted.evidence.balanced_accuracy,
        auroc=fitted.evidence.auroc,
        rank=fitted.evidence.rank,
        scaler=fitted.evidence.scaler,
        unseen=_test_unseen(rows, probe, as_fitted),
        missed=missed,
        touched=touched,
        **_doses(after, before),  # type: ignore[arg-type]  # mypy would give them to every field
    )
    read = LastProbe(probe) if recipe.form == "last" else probe
    return SiteFit(read, transform, evidence, fitted.refused or refused)


def fit_map(
    rows: Mapping[str, Activations], recipe: Recipe, probe: Probe, fitted: GateFit | None = None
) -> tuple[Map, str]:
    """The map of a site, and why the gate that it was made from must not steer there, or "".

    Args:
        rows: the activations of a site and bin, by kind.
        recipe: how to fit.
        probe: the gate of the site, fitted before.
        fitted: the fit that the gate is of; None where it came otherwise.
    """
    method = methods.mapping(recipe.method)
    if method.traits.from_gate:
        own = methods.gate(methods.default_gate(recipe.method, recipe.options))
        if fitted is None or own != recipe.resolved_gate:
            fitted = own.fit_on(rows["source"], _controls(rows), recipe)
        return method.from_probe(fitted.place_at(None)[0]), fitted.refused
    moved = rows.get("moved", rows["source"])
    transform = method.fit_on(moved, rows["target"], probe, recipe.pooling, **recipe.options)
    return round_map(transform, moved.gathered("pooled")), ""  # not one of the gate, whose plane has to stay the gate's


def _controls(rows: Mapping[str, Activations]) -> list[Activations]:
    """The activations that a gate must stay closed on."""
    return [rows[kind] for kind in ("control", "context") if kind in rows]


def _weight(fitted: GateFit, recipe: Recipe) -> float:
    """The site's weight: all or nothing where the gate decides about texts, as h is near 0 or 1 then."""
    if fitted.sharp and recipe.site_weight == "soft":
        return float(fitted.evidence.lower > 0.5)
    return recipe.resolved_gate.weight(fitted.evidence, recipe.site_weight)


def _doses(after: torch.Tensor, before: torch.Tensor) -> dict[str, float]:
    """Mean h and share of h above 0.5, of h [n, 1 or width] after and before the threshold was placed."""
    return {
        f"control_{name}{when}": float(value.mean())
        for when, h in (("", after), ("_before", before))
        for name, value in (("h", h), ("fired", (h.mean(-1) > FIRED).float()))
    }


def _test_unseen(rows: Mapping[str, Activations], probe: Probe, as_fitted: Probe) -> UnseenEvidence | None:
    """A gate, with its threshold placed and as it was fitted, on prompts of another domain; None without any."""
    if any(kind not in rows for kind in UNSEEN):
        return None
    from sklearn.metrics import roc_auc_score

    source_h, control_h = ([probe.score_sample(*row) for row in split_rows(rows[kind])] for kind in UNSEEN)
    source, control = (torch.stack([h.max() for h in side]) for side in (source_h, control_h))
    labels = torch.cat([torch.ones(len(source)), torch.zeros(len(control))])
    hits = [float((source > FIRED).float().mean()), float((control <= FIRED).float().mean())]
    before = [as_fitted.score_sample(*row) for row in split_rows(rows["unseen_control"])]
    return UnseenEvidence(
        balanced_accuracy=sum(hits) / 2,
        missed=1 - hits[0],
        touched=1 - hits[1],
        auroc=float(roc_auc_score(labels.numpy(), torch.cat([source, control]).numpy())),
        **_doses(torch.cat(control_h)[:, None], torch.cat(before)[:, None]),
    )
