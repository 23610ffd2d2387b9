"""From statistics to interventions: fit the map and the gate of every site and timestep bin.

`gating` fits the gate and places its threshold, `methods` the map. A capture may hold rows of more kinds:
"context", positions of control prompts that the gate will meet, though nothing is pooled over them; "moved", rows of
source prompts for the map alone, where the gate reads other positions than the map moves; "cloud", of target prompts
for the clouds alone, where more is moved than the map is fitted on; "unseen_source" and "unseen_control", of another
domain, on which the finished gate is tested.

Sites learn all from the unsteered model ("clean"), or each behind those that the model comes to before it, which steer
already ("causal", as AcT fits its maps, arXiv 2410.23054): what a gate reads while steering is then what it learned on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch

from . import methods
from .capture import Captured, Rows, Shown
from .cloud import clouded
from .concept import Concept, Intervention
from .errors import DSASError
from .fingerprints import fingerprint, portrait
from .gating import fit_gate
from .layout import rounded
from .maps import Map
from .probes import ConstantProbe, LastProbe, PooledConditionProbe, PooledProbe, Probe, ProductProbe, RunningProbe
from .prompts import SIDES, PromptSet
from .recipe import Recipe
from .sites import Roots, Site

#: the target shows what the gate looks for where its highest h is at least this much of the source's
STILL_SHOWN = 0.5
#: of the positions of a source prompt, the fewest that a concept is taken to be at
SMALLEST_SHARE = 0.02
#: kinds of rows of another domain
UNSEEN = ("unseen_source", "unseen_control")
#: every kind of rows that a capture may hold
KINDS = (*SIDES, "context", "moved", "cloud", *UNSEEN)
#: a gate has fired where h is above this
FIRED = 0.5


@dataclass(frozen=True)
class UnseenEvidence:
    """The finished gate on prompts of a domain that learning never saw; a prompt's score is its highest h.

    A prompt counts as told when its score is above 0.5, and a control position as fired. "before" is before the bias
    was moved.
    """

    balanced_accuracy: float
    auroc: float
    control_h: float
    control_h_before: float
    control_fired: float
    control_fired_before: float


@dataclass(frozen=True)
class SiteEvidence:
    """Cross-validated evidence of one site and bin.

    `control_h` is the mean h of control positions that the probe was not fitted on, `control_fired` the share of them
    with h above 0.5; both also before the bias was moved. `unseen` is None where no prompts of another domain were
    captured.
    """

    site: str
    bin: int
    weight: float
    balanced_accuracy: float
    auroc: float
    rank: int | str
    scaler: str
    control_h: float
    control_h_before: float
    control_fired: float
    control_fired_before: float
    unseen: UnseenEvidence | None = None


#: captures anew at one site, with what was learned before it steering
Recapture = Callable[[Site, Concept], Captured]


def fit_sites(
    capture: Captured,
    recipe: Recipe,
    done: Callable[[], object] = lambda: None,
    watched: Collection[Site] = (),
    recapture: Recapture | None = None,
    shown: Shown | None = None,
) -> tuple[list[Intervention], list[SiteEvidence]]:
    """Fit an intervention at every captured site.

    Args:
        capture: rows of kinds "source", "target", "control", and perhaps of the others, see above.
        done: called after each site, for a progress bar.
        watched: sites that are only to be read, for the trace.
        recapture: what a causal recipe asks for the activations of each site behind the first that steers.
        shown: which positions of source prompts show the concept, for supervision by positions.

    Returns:
        Interventions whose weight is above 0 in some bin, and the evidence of all sites, or of those to `keep`.

    Raises:
        DSASError: no site tells source from control; a causal recipe without `recapture`.
    """
    from threadpoolctl import threadpool_limits

    causal = recipe.mode == "causal"
    if causal and recapture is None:
        raise DSASError("causal learning reads each site anew: pass recapture to fit_sites, or choose mode clean")

    def marked(rows: Captured) -> Captured:
        if shown is not None:
            rows.mark("source", shown)
        return rows

    marked(capture)
    sites = list(dict.fromkeys(site for site, _, _ in capture.rows))
    if recipe.keep is not None:
        kept = _best(capture, [site for site in sites if site not in watched], recipe)
        for _ in range(len(sites) - len(kept) - len(watched)):
            done()
        sites = [site for site in sites if site in watched or site in kept]
    bins = range(len(capture.edges) + 1)
    fits: dict[Site, list[_Fit]] = {}
    simple = replace(recipe, rank="lda", scaler="std")
    for site in sites:
        own = simple if site in watched else recipe  # what only draws a heat-map is not worth a search
        here = range(1) if site.root in capture.timeless else bins
        rows = capture
        if recapture is not None and causal and site not in watched:
            learned, _ = _joined(fits, recipe, watched, capture.timeless)
            rows = marked(recapture(site, Concept("learning", tuple(learned), capture.edges))) if learned else capture
        with threadpool_limits(1):  # many small problems: threads would mostly wait for one another
            fits[site] = [_fit_bin(rows, site, bin_, own) for bin_ in here] * (len(bins) // len(here))
        done()
    interventions, evidence = _joined(fits, recipe, watched, capture.timeless)
    if all(intervention.watches for intervention in interventions):
        raise _nothing_left(fits, evidence, watched)
    if recipe.cloud:
        interventions = clouded(interventions, capture, recipe.cloud)
    return interventions, evidence


def as_concept(
    interventions: Sequence[Intervention],
    evidence: Sequence[SiteEvidence],
    recipe: Recipe,
    content: PromptSet,
    roots: Roots,
    edges: tuple[float, ...] = (),
    **provenance: Any,
) -> Concept:
    """What was fitted on the prompts of a file, before its unit is chosen.

    Args:
        roots: of the model. provenance: what there is to tell beside prompts and recipe.
    """
    steered = {root: roots[root] for root in sorted({site.root for site in _touched(interventions)})}
    file = {"prompts_sha256": content.sha256} if content.sha256 else {}
    return Concept(
        name=content.name,
        description=content.description,
        interventions=tuple(interventions),
        edges=edges,
        method=recipe.method,
        gate=str(recipe.gate),
        base={root: fingerprint(module) for root, module in steered.items()},
        learned_on={root: portrait(module) for root, module in steered.items()},
        evidence={"sites": [asdict(found) for found in evidence]},
        provenance={"prompts": content.to_dict(), **file, "recipe": asdict(recipe), **provenance},
    )


def _touched(interventions: Sequence[Intervention]) -> list[Site]:
    """Every site that is read or written."""
    return [site for item in interventions for site in (item.site, item.reads) if site is not None]


class _Fit(NamedTuple):
    """What was fitted at one site in one bin; `refused` is why it must not steer there, or ""."""

    probe: Probe
    map: Map
    evidence: SiteEvidence
    refused: str


def _joined(
    fits: Mapping[Site, Sequence[_Fit]], recipe: Recipe, watched: Collection[Site], timeless: Collection[str]
) -> tuple[list[Intervention], list[SiteEvidence]]:
    """What was fitted at each site as interventions, of those with a weight, and the evidence of all."""
    steered = {site: fits[site] for site in fits if site not in watched}
    readers: Mapping[Site, Site | None] = _readers(steered) if recipe.worn.once else {}
    if recipe.reads == "prompt":
        readers = _prompt_reader(steered, timeless)
    interventions: list[Intervention] = []
    evidence: list[SiteEvidence] = []
    for site, fitted in fits.items():
        reads = readers.get(site, site)
        read = fitted if reads is None else fits[reads]
        left_out = [reads is None or (bool(own.refused) and site not in watched) for own in fitted]
        weights = tuple(0.0 if out else one.evidence.weight for out, one in zip(left_out, read, strict=True))
        evidence += [
            replace(one.evidence, site=str(site), weight=weight) for one, weight in zip(read, weights, strict=True)
        ]
        if any(weights):
            probes, maps = tuple(one.probe for one in read), tuple(own.map for own in fitted)
            found = Intervention(site, probes, maps, weights, None if reads == site else reads)
            interventions.append(found.watching() if site in watched else found)
    return interventions, evidence


def _nothing_left(
    fits: Mapping[Site, Sequence[_Fit]], evidence: Sequence[SiteEvidence], watched: Collection[Site]
) -> DSASError:
    """Why no site steers."""
    steered = {str(site): fitted for site, fitted in fits.items() if site not in watched}
    refused = {site: one.refused for site, fitted in steered.items() for one in fitted if one.refused}
    if refused:
        reason = ": ".join(list(refused.items())[-1])
        return DSASError(f"no site is left to steer: at {len(refused)} the gate was refused, as at {reason}")
    best = max((found.balanced_accuracy for found in evidence if found.site in steered), default=0.0)
    return DSASError(
        f"no site tells source from control prompts (best cross-validated balanced accuracy {best:.2f}): add prompts, "
        "make controls differ from sources only in the concept, or choose other sites"
    )


def _readers(fits: Mapping[Site, Sequence[_Fit]]) -> dict[Site, Site | None]:
    """Where each site's gate reads that is asked at one site of each root for it and all behind it.

    Of the first half of a root's sites, in the order in which they come by, that which tells source from control best.
    None for the sites before it: a gate must have read before a map writes.
    """

    readers: dict[Site, Site | None] = {}
    for root in dict.fromkeys(site.root for site in fits):
        here = [site for site in fits if site.root == root]
        best = max(here[: (len(here) + 1) // 2], key=lambda site: _told(fits[site]))
        place = here.index(best)
        readers |= dict.fromkeys(here[:place], None) | dict.fromkeys(here[place:], best)
    return readers


def _prompt_reader(fits: Mapping[Site, Sequence[_Fit]], timeless: Collection[str]) -> dict[Site, Site | None]:
    """The site of a text encoder that tells source from control best, for all others; None for text encoders' own."""
    texts = [site for site in fits if site.root in timeless]
    if not texts or len(texts) == len(fits):
        raise DSASError(
            'reads "prompt" needs sites that read, in a text encoder, and sites that write, in the denoiser: choose '
            'both, as sites=["text", "denoiser"]'
        )
    best = max(texts, key=lambda site: _told(fits[site]))
    return {site: None if site in texts else best for site in fits}


def _told(fitted: Sequence[_Fit]) -> tuple[float, float]:
    """How well a site tells source from control: balanced accuracy over its bins, then AUROC."""
    found = [one.evidence for one in fitted]
    return sum(one.balanced_accuracy for one in found), sum(one.auroc for one in found)


def _best(capture: Captured, sites: list[Site], recipe: Recipe) -> list[Site]:
    """The `keep` sites that tell source from target best: cross-validated balanced accuracy, its mean over bins."""
    from threadpoolctl import threadpool_limits

    judge = methods.get("dsas", "gate")

    def told(site: Site) -> tuple[float, float]:
        """Balanced accuracy, and AUROC for sites that are equal in it."""
        found = []
        for bin_ in range(len(capture.edges) + 1):
            rows = _rows_at(capture, site, bin_)
            if "source" in rows and "target" in rows:
                sides = rows.get("moved", rows["source"]), rows["target"]
                groups = tuple(side.gathered("prompts").tolist() for side in sides)
                pooled = (side.gathered("pooled") for side in sides)
                fitted = judge.cross_fit(*pooled, rank="lda", scaler="std", groups=groups, seed=recipe.seed)
                found.append(fitted.evidence)
        count = max(1, len(found))
        return sum(one.balanced_accuracy for one in found) / count, sum(one.auroc for one in found) / count

    with threadpool_limits(1):
        return sorted(sites, key=told, reverse=True)[: recipe.keep]


def _rows_at(capture: Captured, site: Site, bin_: int) -> dict[str, Rows]:
    """What was captured at a site in a bin, by kind."""
    return {kind: capture.rows[site, bin_, kind] for kind in KINDS if (site, bin_, kind) in capture.rows}


def _fit_bin(capture: Captured, site: Site, bin_: int, recipe: Recipe) -> _Fit:
    """One site and bin; it is refused where the gate is, or that of which the map is made."""
    rows = _rows_at(capture, site, bin_)
    missing = [kind for kind in SIDES if kind not in rows]
    if missing:
        raise DSASError(
            f"nothing was captured at {site} in timestep bin {bin_} for {', '.join(missing)}: "
            "use more steps or fewer bins"
        )
    for kind, found in rows.items():
        if not bool(found.gathered("pooled").isfinite().all()):
            raise DSASError(
                f"{site}: activations of {kind} prompts are NaN or infinite: load the model in float32 or bfloat16, or "
                "leave the site out"
            )
    source, moved = rows["source"], rows.get("moved", rows["source"])
    met = [rows[kind] for kind in ("control", "context") if kind in rows]
    gate = recipe.worn
    gated = fit_gate(gate, source, met, recipe)
    (probe, after), (loose, before) = gated.at(recipe.control_h), gated.at(None)
    method, refused = methods.mapping(recipe.method), gated.refused
    if method.of_gate:
        own = methods.gate(methods.own_gate(recipe.method, recipe.options))
        judged = gated if gate == own else fit_gate(own, source, met, recipe)
        transform, refused = method.of(judged.at(None)[0]), refused or judged.refused
    else:
        transform = method.fit(*_map_rows(moved, rows["target"], probe, recipe.pooling), **recipe.options)
        transform = transform.map_tensors(rounded)  # not one of the gate, whose plane has to stay the gate's
    told = gated.evidence
    evidence = SiteEvidence(
        site=str(site),
        bin=bin_,
        weight=0.0 if gated.refused else gate.weight(told, recipe.site_weight),
        balanced_accuracy=told.balanced_accuracy,
        auroc=told.auroc,
        rank=told.rank,
        scaler=told.scaler,
        control_h=float(after.mean()),
        control_h_before=float(before.mean()),
        control_fired=_fired(after),
        control_fired_before=_fired(before),
        unseen=_unseen(rows, probe, loose),
    )
    return _Fit(LastProbe(probe) if recipe.form == "last" else probe, transform, evidence, refused)


def _fired(h: torch.Tensor) -> float:
    """The share of positions, of h [n, 1 or width], that have fired."""
    return float((h.mean(-1) > FIRED).float().mean())


def _unseen(rows: Mapping[str, Rows], probe: Probe, before: Probe) -> UnseenEvidence | None:
    """A finished gate, and the same before it was lowered, on prompts of another domain; None without any."""
    if any(kind not in rows for kind in UNSEEN):
        return None
    from sklearn.metrics import roc_auc_score

    shown, kept = ([_scores(probe, row) for row in _by_row(rows[kind])] for kind in UNSEEN)
    source, control = (torch.stack([h.max() for h in side]) for side in (shown, kept))
    labels = torch.cat([torch.ones(len(source)), torch.zeros(len(control))])
    told = [float((source > FIRED).float().mean()), float((control <= FIRED).float().mean())]
    after, first = torch.cat(kept), torch.cat([_scores(before, row) for row in _by_row(rows["unseen_control"])])
    return UnseenEvidence(
        balanced_accuracy=sum(told) / 2,
        auroc=float(roc_auc_score(labels.numpy(), torch.cat([source, control]).numpy())),
        control_h=float(after.mean()),
        control_h_before=float(first.mean()),
        control_fired=float((after > FIRED).float().mean()),
        control_fired_before=float((first > FIRED).float().mean()),
    )


def _by_row(rows: Rows) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The mean [width] of each row, and its sampled positions [k, width]."""
    positions = rows.gathered("positions").split(rows.sampled)
    return list(zip(rows.gathered("pooled"), positions, strict=True))


def _scores(probe: Probe, row: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """h of a row's positions [k], or [1] of its mean for a probe that reads means."""
    pooled, positions = row
    if isinstance(probe, RunningProbe | PooledProbe | PooledConditionProbe):
        return probe.inner.score(pooled[None])[:, 0]
    return probe.score(positions[None])[0].mean(-1).expand(len(positions))


def _map_rows(source: Rows, target: Rows, probe: Probe, pooling: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What the map is fitted on, [rows, width] of each side: means over positions, or means weighted by the gate.

    Where the target no longer shows what the gate looks for (a cat in the dog's place), its weights would pick
    positions at random. There plain means tell the change, all of which is at the share of the positions that the gate
    picks in the source; so their difference is divided by that share.
    """
    if pooling == "mean" or isinstance(probe, RunningProbe | ConstantProbe):
        return source.gathered("pooled"), target.gathered("pooled")
    read = probe
    while isinstance(read, ProductProbe):
        read = read.factors[0]
    weighted, highest, share = _weighted(source, read)
    others, still, _ = _weighted(target, read)
    if still >= STILL_SHOWN * highest:
        return weighted, others
    plain, changed = source.gathered("pooled"), target.gathered("pooled")
    centre, share = plain.mean(0), max(share, SMALLEST_SHARE)
    return centre + (plain - centre) / share, centre + (changed - centre) / share


def _weighted(rows: Rows, read: Probe) -> tuple[torch.Tensor, float, float]:
    """Means over positions weighted by a gate, [rows, width]; the rows' mean highest h, and their mean h.

    A row at none of whose positions the gate fires counts by its plain mean.
    """
    means, h = [], []
    for plain, positions in _by_row(rows):
        scores = read.score(positions).mean(-1, keepdim=True).expand(len(positions), 1)
        weighted = (scores * positions).sum(0) / scores.sum().clamp_min(1e-6)
        means.append(weighted if bool((scores > 0).any()) else plain)
        h.append(scores)
    highest, share = (float(torch.stack([reduce(one) for one in h]).mean()) for reduce in (torch.max, torch.mean))
    return torch.stack(means), highest, share
