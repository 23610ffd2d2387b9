"""From activations to interventions: fit the map and the gate of every site and timestep bin.

`site_fit` fits one site in one bin; here are the choice of sites, the sites that share one gate, and the result.

All sites learn from the unsteered model (mode "clean"), or each site learns while the sites before it already steer
(mode "causal", as AcT fits its maps, arXiv 2410.23054): its gate is then fitted on what it will read while steering.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from .. import methods
from ..concept.concept import Concept
from ..concept.evidence import SiteEvidence
from ..concept.intervention import Intervention
from ..errors import DSASError
from ..methods.base.cross_validation import Evidence
from ..model.sites import Site
from .capture import is_timeless
from .capture_store import Captured
from .envelopes import with_envelopes
from .recipe import Recipe
from .site_fit import SiteFit, fit_site, rows_at

#: captures one site anew while a concept, learned at the sites before it, steers
Recapture = Callable[[Site, Concept], Captured]


def fit_sites(
    capture: Captured,
    recipe: Recipe,
    done: Callable[[], object] = lambda: None,
    recapture: Recapture | None = None,
    read_sites: Collection[Site] = (),
) -> tuple[list[Intervention], list[SiteEvidence]]:
    """Fit an intervention at every captured site.

    Args:
        capture: activations of kinds "source", "target", "control", and perhaps of the others of `site_fit.KINDS`.
        recipe: how to fit.
        done: called after each site, for a progress bar.
        read_sites: sites that are only read, for one gate of all sites: of these and the first one that is steered, the
            site that tells source from control best.
        recapture: gives the activations of a site while the sites before it steer; needed in mode "causal".

    Returns:
        Interventions whose weight is above 0 in some bin, and the evidence of all sites, or of the `keep` best.

    Raises:
        DSASError: no site tells source from control; mode "causal" without `recapture`.

    Example:
        >>> import torch
        >>> from dsas_core.learning.capture import Capture
        >>> from dsas_core.model.hooks import Call
        >>> capture, _ = Capture(), torch.manual_seed(0)
        >>> for kind, shift in (("source", 3.0), ("target", 0.0), ("control", 0.0)):
        ...     capture.start(kind)
        ...     capture.begin("unet", Call(torch.ones(10), torch.arange(10)))
        ...     capture.visit(Site("unet.mid"), torch.randn(10, 4, 3) + shift)
        >>> interventions, evidence = fit_sites(capture, Recipe(form="token"))
        >>> str(interventions[0].site), evidence[0].balanced_accuracy
        ('unet.mid', 1.0)
    """
    causal = recipe.mode == "causal"
    if causal and recapture is None:
        raise DSASError("causal learning reads each site anew: pass recapture to fit_sites, or choose mode clean")
    sites = list(dict.fromkeys(site for site, _, _ in capture.rows))
    if recipe.keep is not None:
        kept = _best_sites(capture, [site for site in sites if site not in read_sites], recipe)
        for _ in range(len(sites) - len(kept) - len(read_sites)):
            done()
        sites = [site for site in sites if site in read_sites or site in kept]
    bins = range(len(capture.edges) + 1)
    fits: dict[Site, list[SiteFit]] = {}
    for site in sites:
        rows = capture
        if recapture is not None and causal and site not in read_sites:
            learned, _ = _join(fits, recipe, capture.timeless, read_sites)
            rows = recapture(site, Concept("learning", tuple(learned), capture.edges)) if learned else capture
        site_bins = range(1) if is_timeless(site, capture.timeless) else bins
        with _many_small_fits():
            site_fits = [fit_site(rows, site, bin_, recipe, site in read_sites) for bin_ in site_bins]
        fits[site] = site_fits * (len(bins) // len(site_bins))
        done()
    interventions, evidence = _join(fits, recipe, capture.timeless, read_sites)
    if not interventions:
        raise _no_site_steers(fits, evidence)
    if recipe.cloud:
        interventions = with_envelopes(interventions, capture, recipe.cloud)
    return interventions, evidence


@contextmanager
def _many_small_fits() -> Iterator[None]:
    """One thread, as several would mostly wait for one another; and no further checks of what `check_rows` let pass."""
    from sklearn import config_context
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), config_context(assume_finite=True, skip_parameter_validation=True):
        yield


def _join(
    fits: Mapping[Site, Sequence[SiteFit]],
    recipe: Recipe,
    timeless: Collection[str],
    read_sites: Collection[Site] = (),
) -> tuple[list[Intervention], list[SiteEvidence]]:
    """The interventions of all sites that have a weight, and the evidence of all sites."""
    steered = {site: fits[site] for site in fits if site not in read_sites}
    probe_sites: Mapping[Site, Site | None] = {}  # of a site whose gate reads elsewhere; None where it cannot
    if read_sites:
        probe_sites = _early_probe_site(fits, steered, read_sites)
    elif recipe.reads == "prompt":
        probe_sites = _text_probe_site(steered, timeless)
    elif recipe.resolved_gate.traits.per_prompt:
        probe_sites = _probe_site_by_root(steered)
    interventions: list[Intervention] = []
    evidence: list[SiteEvidence] = []
    for site, site_fits in fits.items():
        probe_site = probe_sites.get(site, site)
        probe_fits = site_fits if probe_site is None else fits[probe_site]
        weights = tuple(
            0.0 if probe_site is None or site in read_sites or own.refused else fit.evidence.weight
            for own, fit in zip(site_fits, probe_fits, strict=True)
        )
        reads = "" if probe_site in (site, None) else str(probe_site)
        evidence += [
            replace(fit.evidence, site=str(site), weight=weight, reads=reads, candidate=site in read_sites)
            for fit, weight in zip(probe_fits, weights, strict=True)
        ]
        if any(weights) and site not in read_sites:
            probes, maps = tuple(fit.probe for fit in probe_fits), tuple(fit.map for fit in site_fits)
            interventions.append(Intervention(site, probes, maps, weights, None if probe_site == site else probe_site))
    return interventions, evidence


def _no_site_steers(fits: Mapping[Site, Sequence[SiteFit]], evidence: Sequence[SiteEvidence]) -> DSASError:
    """The error that says why no site steers."""
    refused = {str(site): fit.refused for site, site_fits in fits.items() for fit in site_fits if fit.refused}
    if refused:
        reason = ": ".join(list(refused.items())[-1])
        return DSASError(f"no site is left to steer: at {len(refused)} the gate was refused, as at {reason}")
    best = max((item.balanced_accuracy for item in evidence), default=0.0)
    return DSASError(
        f"no site tells source from control prompts (best cross-validated balanced accuracy {best:.2f}): add prompts, "
        "make controls differ from sources only in the concept, or choose other sites"
    )


def _probe_site_by_root(fits: Mapping[Site, Sequence[SiteFit]]) -> dict[Site, Site | None]:
    """Where the gate of each site reads that decides once for all later sites of its root.

    Among the first half of a root's sites, in forward order, the one that tells source from control best. None for the
    sites before it: a gate must have read before a map writes.
    """
    probe_sites: dict[Site, Site | None] = {}
    for root in dict.fromkeys(site.root for site in fits):
        sites = [site for site in fits if site.root == root]
        best = _best_site(fits, sites[: (len(sites) + 1) // 2])
        place = sites.index(best)
        probe_sites |= dict.fromkeys(sites[:place], None) | dict.fromkeys(sites[place:], best)
    return probe_sites


def _early_probe_site(
    fits: Mapping[Site, Sequence[SiteFit]], steered: Mapping[Site, Sequence[SiteFit]], read_sites: Collection[Site]
) -> dict[Site, Site | None]:
    """For all sites of a root, the site before any write whose gate is right about most texts; of equals the latest."""
    probe_sites: dict[Site, Site | None] = {}
    for root in dict.fromkeys(site.root for site in steered):
        written = [site for site in steered if site.root == root]
        early = [site for site in fits if site in read_sites and site.root == root]
        candidates = [*early, *(site for site in written[:1] if site not in early)]
        best = max(enumerate(candidates), key=lambda item: (_reliability(fits[item[1]]), item[0]))[1]
        probe_sites |= dict.fromkeys(written, best)
    return probe_sites


def _reliability(fits: Sequence[SiteFit]) -> float:
    """Share of source texts that gates catch, minus that of control texts that they touch."""
    return round(sum(1 - (fit.evidence.missed or 0) - (fit.evidence.touched or 0) for fit in fits), 6)


def _text_probe_site(fits: Mapping[Site, Sequence[SiteFit]], timeless: Collection[str]) -> dict[Site, Site | None]:
    """For all sites that write, the site of a text encoder that tells source from control best; None for encoders'."""
    texts = [site for site in fits if is_timeless(site, timeless)]
    if not texts or len(texts) == len(fits):
        raise DSASError(
            'reads "prompt" needs sites that read, in a text encoder, and sites that write, in the denoiser: choose '
            'both, as sites=["text", "denoiser"]'
        )
    best = _best_site(fits, texts)
    return {site: None if site in texts else best for site in fits}


def _best_site(fits: Mapping[Site, Sequence[SiteFit]], sites: Sequence[Site]) -> Site:
    """The site that tells source from control best."""
    return max(sites, key=lambda site: _separation([fit.evidence for fit in fits[site]]))


def _separation(evidence: Sequence[SiteEvidence | Evidence]) -> tuple[float, float]:
    """Balanced accuracy summed over bins, then AUROC for sites that are equal in it."""
    return sum(item.balanced_accuracy for item in evidence), sum(item.auroc for item in evidence)


def _best_sites(capture: Captured, sites: list[Site], recipe: Recipe) -> list[Site]:
    """The `keep` sites that tell source from target best, cross-validated."""
    gate = methods.get("dsas", "gate")

    def separation(site: Site) -> tuple[float, float]:
        evidence = []
        for bin_ in range(len(capture.edges) + 1):
            rows = rows_at(capture, site, bin_)
            if "source" in rows and "target" in rows:
                sides = rows.get("moved", rows["source"]), rows["target"]
                groups = tuple(side.gathered("prompts").tolist() for side in sides)
                pooled = (side.gathered("pooled") for side in sides)
                cross_fitted = gate.cross_fit(*pooled, rank="lda", scaler="std", groups=groups, seed=recipe.seed)
                evidence.append(cross_fitted.evidence)
        accuracy, auroc = _separation(evidence)
        count = max(1, len(evidence))  # bins of a site that have both sides
        return accuracy / count, auroc / count

    with _many_small_fits():
        return sorted(sites, key=separation, reverse=True)[: recipe.keep]
