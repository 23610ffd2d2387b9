"""From statistics to interventions: fit the map and the gate of every site and timestep bin.

The gate's direction comes from logistic regression (methods/dsas.py); this file decides on which rows it is fitted and
how it is read:

- "paper": fitted on the mean over positions, read at each position, as DSAS describes it.
- "pooled": fitted on the mean, read on the mean: one decision for the whole picture or text.
- "token": fitted on positions, read at each position. Which positions of a source prompt show the concept is not
  known; they are found by multiple-instance rounds: those that the last probe scores highest are taken as positive.
- "product": token times pooled: the concept must be in the picture, and here.
- "prefix": of texts; fitted on the mean, read on the mean of the positions so far. "latch": read once, on the mean of
  the prompt.

A probe fitted on means has its threshold in the wrong place for positions, so the bias is moved until the mean h of
control positions that the probe was not fitted on is at most `control_h`. A capture may hold rows of more kinds:
"context", positions of control prompts that the gate will meet, though nothing is pooled over them; "moved", rows of
source prompts for the map alone, where the gate reads other positions than the map moves; "unseen_source" and
"unseen_control", of another domain, on which the finished gate is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from . import methods
from .capture import Capture, Rows
from .concept import Intervention
from .errors import DSASError
from .maps import Map
from .methods.dsas import Evidence
from .probes import LatchProbe, LinearProbe, PooledProbe, PrefixProbe, Probe, ProductProbe, RunningProbe
from .sites import Site

FORMS = ("paper", "pooled", "token", "product", "prefix", "latch")
POOLINGS = ("gated", "mean")
WEIGHTS = ("soft", "threshold", "none")
#: the target shows what the gate looks for where its highest h is at least this much of the source's
STILL_SHOWN = 0.5
#: of the positions of a source prompt, the fewest that a concept is taken to be at
SMALLEST_SHARE = 0.02
#: kinds of rows of another domain
UNSEEN = ("unseen_source", "unseen_control")
#: a gate has fired where h is above this
FIRED = 0.5


@dataclass(frozen=True)
class Recipe:
    """How a concept is fitted.

    Args:
        method, gate: names in `dsas_core.methods`.
        form: how a `dsas` gate is fitted and read, see above.
        rank, scaler: projection of the gate's regression; "auto" chooses by cross-validation.
        site_weight: "soft", "threshold" or "none"; see `methods.dsas.Evidence.weight`.
        control_h: mean h to allow on held-out control positions; None leaves the bias where the regression put it.
        pooling: what the map is fitted on: "gated" for means over positions weighted by the gate (where the concept
            is; of targets that no longer show it, see `_map_rows`), "mean" for plain means, the form of the paper.
        top_share: share of a source prompt's positions that a multiple-instance round takes as showing the concept.
        rounds: multiple-instance rounds.
        seed: of the cross-validation folds.
    """

    method: str = "caa"
    gate: str = "dsas"
    form: str = "product"
    rank: int | str = "auto"
    scaler: str = "auto"
    site_weight: str = "soft"
    control_h: float | None = 0.01
    pooling: str = "gated"
    top_share: float = 0.1
    rounds: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        methods.get(self.method, "map")
        methods.get(self.gate, "gate")
        if self.site_weight not in WEIGHTS or self.rounds < 1 or not 0 < self.top_share <= 1:
            raise DSASError(
                f"site_weight {self.site_weight!r}, rounds {self.rounds}, top_share {self.top_share}: expected one of "
                f"{', '.join(WEIGHTS)}, at least 1 round, and a share in (0, 1]"
            )
        if self.form not in FORMS or self.pooling not in POOLINGS:
            raise DSASError(
                f"gate form {self.form!r}, pooling {self.pooling!r}: expected one of {', '.join(FORMS)}, and one of "
                f"{', '.join(POOLINGS)}"
            )


def recipe_of(given: Mapping[str, Any] | None, **settings: Any) -> Recipe:
    """A recipe of settings and of what the user gave on top of them.

    Raises:
        DSASError: a field that recipes do not have, or a value that they do not take.
    """
    unknown = sorted(set(given or {}) - {field.name for field in fields(Recipe)})
    if unknown:
        known = ", ".join(field.name for field in fields(Recipe))
        raise DSASError(f"recipe has no field {', '.join(unknown)}; it has {known}")
    return Recipe(**{**settings, **(given or {})})


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


def fit_sites(
    capture: Capture, recipe: Recipe, done: Callable[[], object] = lambda: None, watched: Collection[Site] = ()
) -> tuple[list[Intervention], list[SiteEvidence]]:
    """Fit an intervention at every captured site.

    Args:
        capture: rows of kinds "source", "target", "control", and perhaps of the others, see above.
        done: called after each site, for a progress bar.
        watched: sites that are only to be read, for the trace.

    Returns:
        Interventions whose weight is above 0 in some bin, and the evidence of all sites.

    Raises:
        DSASError: no site tells source from control.
    """
    from threadpoolctl import threadpool_limits

    sites = list(dict.fromkeys(site for site, _, _ in capture.rows))
    bins = range(len(capture.edges) + 1)
    interventions: list[Intervention] = []
    evidence: list[SiteEvidence] = []
    simple = replace(recipe, rank="lda", scaler="std")
    for site in sites:
        own = simple if site in watched else recipe  # what only draws a heat-map is not worth a search
        here = range(1) if site.root in capture.timeless else bins
        with threadpool_limits(1):  # many small problems: threads would mostly wait for one another
            fitted = [_fit_bin(capture, site, bin_, own) for bin_ in here]
        fitted *= len(bins) // len(here)
        evidence += [found for _, _, found in fitted]
        weights = tuple(found.weight for _, _, found in fitted)
        if any(weights):
            probes, maps = tuple(probe for probe, _, _ in fitted), tuple(transform for _, transform, _ in fitted)
            fitted_here = Intervention(site, probes, maps, weights)
            interventions.append(fitted_here.watching() if site in watched else fitted_here)
        done()
    if all(intervention.watches for intervention in interventions):
        steered = {str(site) for site in sites if site not in watched}
        best = max((found.balanced_accuracy for found in evidence if found.site in steered), default=0.0)
        raise DSASError(
            f"no site tells source from control prompts (best cross-validated balanced accuracy {best:.2f}): add "
            "prompts, make controls differ from sources only in the concept, or choose other sites"
        )
    return interventions, evidence


def _fit_bin(capture: Capture, site: Site, bin_: int, recipe: Recipe) -> tuple[Probe, Map, SiteEvidence]:
    kinds = ("source", "target", "control")
    missing = [kind for kind in kinds if (site, bin_, kind) not in capture.rows]
    if missing:
        raise DSASError(
            f"nothing was captured at {site} in timestep bin {bin_} for {', '.join(missing)}: "
            "use more steps or fewer bins"
        )
    source, target, control = (capture.rows[site, bin_, kind] for kind in kinds)
    gate = methods.get(recipe.gate, "gate")
    moved = capture.rows.get((site, bin_, "moved"), source)
    if recipe.gate != "dsas":
        transform = methods.get(recipe.method, "map").fit(moved.gathered("pooled"), target.gathered("pooled"))
        probe = gate.fit(source.gathered("pooled"), control.gathered("pooled"))
        h = probe.score(control.gathered("pooled"))
        mean, fired = float(h.mean()), float((h > FIRED).float().mean())
        return probe, transform, SiteEvidence(str(site), bin_, 1.0, 0.5, 0.5, 0, "none", mean, mean, fired, fired)
    pooled = gate.cross_fit(
        source.gathered("pooled"),
        control.gathered("pooled"),
        rank=recipe.rank,
        scaler=recipe.scaler,
        groups=(source.gathered("prompts").tolist(), control.gathered("prompts").tolist()),
        seed=recipe.seed,
    )
    met = [control, *([capture.rows[site, bin_, "context"]] if (site, bin_, "context") in capture.rows else [])]
    formed, calibration = _formed(pooled.probe, pooled.control_logits, source, met, recipe)
    probe = formed(calibration.shift)
    transform = methods.get(recipe.method, "map").fit(*_map_rows(moved, target, probe, recipe.pooling))
    found: Evidence = pooled.evidence
    evidence = SiteEvidence(
        site=str(site),
        bin=bin_,
        weight=found.weight(recipe.site_weight),
        balanced_accuracy=found.balanced_accuracy,
        auroc=found.auroc,
        rank=found.rank,
        scaler=found.scaler,
        control_h=calibration.h,
        control_h_before=calibration.h_before,
        control_fired=calibration.fired,
        control_fired_before=calibration.fired_before,
        unseen=_unseen(capture, site, bin_, probe, formed(0.0)),
    )
    return probe, transform, evidence


def _unseen(capture: Capture, site: Site, bin_: int, probe: Probe, before: Probe) -> UnseenEvidence | None:
    """A finished gate, and the same before its bias was moved, on prompts of another domain; None without any."""
    shown_rows, kept_rows = (capture.rows.get((site, bin_, kind)) for kind in UNSEEN)
    if shown_rows is None or kept_rows is None:
        return None
    from sklearn.metrics import roc_auc_score

    shown, kept = ([_scores(probe, row) for row in _by_row(rows)] for rows in (shown_rows, kept_rows))
    source, control = (torch.stack([h.max() for h in side]) for side in (shown, kept))
    labels = torch.cat([torch.ones(len(source)), torch.zeros(len(control))])
    told = [float((source > FIRED).float().mean()), float((control <= FIRED).float().mean())]
    after, first = torch.cat(kept), torch.cat([_scores(before, row) for row in _by_row(kept_rows)])
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
    positions = rows.gathered("positions").split([len(group) for group in _calls(rows)])
    return list(zip(rows.gathered("pooled"), positions, strict=True))


def _scores(probe: Probe, row: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """h of a row's positions [k], or [1] of its mean for a probe that reads means."""
    pooled, positions = row
    if isinstance(probe, RunningProbe | PooledProbe):
        return probe.inner.score(pooled[None])[:, 0]
    return probe.score(positions[None])[0, :, 0]


def _map_rows(source: Rows, target: Rows, probe: Probe, pooling: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What the map is fitted on, [rows, width] of each side: means over positions, or means weighted by the gate.

    Where the target no longer shows what the gate looks for (a cat in the dog's place), its weights would pick
    positions at random. There plain means tell the change, all of which is at the share of the positions that the gate
    picks in the source; so their difference is divided by that share.
    """
    if pooling == "mean" or isinstance(probe, RunningProbe):
        return source.gathered("pooled"), target.gathered("pooled")
    read = probe.factors[0] if isinstance(probe, ProductProbe) else probe
    weighted, highest, share = _weighted(source, read)
    others, still, _ = _weighted(target, read)
    if still >= STILL_SHOWN * highest:
        return weighted, others
    plain, changed = source.gathered("pooled"), target.gathered("pooled")
    centre, share = plain.mean(0), max(share, SMALLEST_SHARE)
    return centre + (plain - centre) / share, centre + (changed - centre) / share


def _weighted(rows: Rows, read: Probe) -> tuple[torch.Tensor, float, float]:
    """Means over positions weighted by a gate, [rows, width]; the rows' mean highest h, and their mean h."""
    means, h = [], []
    for _, positions in _by_row(rows):
        scores = read.score(positions).expand(len(positions), 1)
        means.append((scores * positions).sum(0) / scores.sum().clamp_min(1e-6))
        h.append(scores)
    highest, share = (float(torch.stack([reduce(one) for one in h]).mean()) for reduce in (torch.max, torch.mean))
    return torch.stack(means), highest, share


def _formed(
    pooled: LinearProbe, pooled_control: torch.Tensor, source: Rows, met: Sequence[Rows], recipe: Recipe
) -> tuple[Callable[[float], Probe], Calibration]:
    """The gate in the recipe's form, given how far to lower its bias; and how far that is."""
    if recipe.form in ("pooled", "prefix", "latch"):
        kinds: dict[str, type[PooledProbe | RunningProbe]] = {"prefix": PrefixProbe, "latch": LatchProbe}
        kind = kinds.get(recipe.form, PooledProbe)
        return lambda shift: kind(_shifted(pooled, shift)), calibrate(pooled_control, None, recipe.control_h)
    if recipe.form == "paper":
        logits = pooled.logit(torch.cat([rows.gathered("positions") for rows in met]))[:, 0]
        return lambda shift: _shifted(pooled, shift), calibrate(logits, None, recipe.control_h)
    token, logits = _token_probe(pooled, source, met, recipe)
    if recipe.form == "token":
        return lambda shift: _shifted(token, shift), calibrate(logits, None, recipe.control_h)
    by_row = pooled_control.sigmoid().to(logits)
    counts = torch.tensor([len(rows) for rows in _calls(met[0])])
    factor = by_row.repeat_interleave(counts)
    return (
        lambda shift: ProductProbe((_shifted(token, shift), PooledProbe(pooled))),
        calibrate(logits[: int(counts.sum())], factor, recipe.control_h),
    )


def _token_probe(
    start: LinearProbe, source: Rows, met: Sequence[Rows], recipe: Recipe
) -> tuple[LinearProbe, torch.Tensor]:
    """A probe of single positions, by multiple-instance rounds, and held-out logits of what it meets in controls."""
    shown, kept = source.gathered("positions"), torch.cat([rows.gathered("positions") for rows in met])
    gate = methods.get("dsas", "gate")
    rank = "lda" if recipe.rank == "auto" else recipe.rank
    scaler = "std" if recipe.scaler == "auto" else recipe.scaler
    ends = torch.tensor([len(rows) for rows in _calls(source)]).cumsum(0).tolist()

    def highest(probe: LinearProbe) -> torch.Tensor:
        """Indices of the positions of each row of each call that the probe scores highest."""
        chosen, begin = [], 0
        for end in ends:
            count = max(1, round(recipe.top_share * (end - begin)))
            chosen.append(probe.logit(shown[begin:end])[:, 0].topk(count).indices + begin)
            begin = end
        return torch.cat(chosen)

    probe = start
    for _ in range(recipe.rounds - 1):
        probe = gate.fit(shown[highest(probe)], kept, rank=rank, scaler=scaler)
    positive = highest(probe)
    prompts = torch.cat([rows.gathered("position_prompts") for rows in met])
    groups = (source.gathered("position_prompts")[positive].tolist(), prompts.tolist())
    fitted = gate.cross_fit(shown[positive], kept, rank=rank, scaler=scaler, groups=groups, seed=recipe.seed)
    return fitted.probe, fitted.control_logits


def _calls(rows: Rows) -> list[torch.Tensor]:
    """The sampled positions of each row of each call, in the order of `pooled`."""
    groups = []
    for prompts in rows.position_prompts:
        changes = (prompts.diff() != 0).nonzero().flatten() + 1
        groups += list(prompts.tensor_split(changes.tolist()))
    return groups


@dataclass(frozen=True)
class Calibration:
    """How far to lower a gate's logits, and what that does: mean h of control positions and the share above 0.5."""

    shift: float
    h: float
    h_before: float
    fired: float
    fired_before: float


def calibrate(logits: torch.Tensor, factor: torch.Tensor | None, target: float | None) -> Calibration:
    """Lower logits so that the mean of factor * sigmoid(logits - shift) is at most `target`.

    The shift is 0 when the mean is low enough already, or `target` is None. A factor of None is 1.
    """
    factor = torch.ones_like(logits) if factor is None else factor

    def h(shift: float) -> torch.Tensor:
        return factor * (logits - shift).sigmoid()

    shift = 0.0
    if target is not None and float(h(0.0).mean()) > target:
        low, shift = 0.0, 60.0
        for _ in range(50):
            middle = (low + shift) / 2
            low, shift = (middle, shift) if float(h(middle).mean()) > target else (low, middle)
    after, before = h(shift), h(0.0)
    shares = [float((values > FIRED).float().mean()) for values in (after, before)]
    return Calibration(shift, float(after.mean()), float(before.mean()), *shares)


def _shifted(probe: LinearProbe, shift: float) -> LinearProbe:
    return replace(probe, bias=probe.bias - shift)
