"""From statistics to interventions: fit the map and the gate of every site and timestep bin.

`site_fit` fits one of them; here is which sites, which of them reads for another, and what becomes of it all.

Sites learn all from the unsteered model ("clean"), or each behind those that the model comes to before it, which steer
already ("causal", as AcT fits its maps, arXiv 2410.23054): what a gate reads while steering is then what it learned on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from .. import methods
from ..concept.concept import Concept
from ..concept.evidence import SiteEvidence
from ..concept.intervention import Intervention
from ..errors import DSASError
from ..model.fingerprints import describe_module, fingerprint
from ..model.sites import Roots, Site
from .capture import Captured
from .envelopes import with_envelopes
from .prompts.prompt_set import PromptSet
from .recipe import Recipe
from .site_fit import SiteFit, fit_site, rows_at

#: captures anew at one site, with what was learned before it steering
Recapture = Callable[[Site, Concept], Captured]


def fit_sites(
    capture: Captured,
    recipe: Recipe,
    done: Callable[[], object] = lambda: None,
    heatmap_sites: Collection[Site] = (),
    recapture: Recapture | None = None,
) -> tuple[list[Intervention], list[SiteEvidence]]:
    """Fit an intervention at every captured site.

    Args:
        capture: rows of kinds "source", "target", "control", and perhaps of the others, see `site_fit`.
        done: called after each site, for a progress bar.
        heatmap_sites: sites that are only to be read, for the trace.
        recapture: what a causal recipe asks for the activations of each site behind the first that steers.

    Returns:
        Interventions whose weight is above 0 in some bin, and the evidence of all sites, or of those to `keep`.

    Raises:
        DSASError: no site tells source from control; a causal recipe without `recapture`.
    """
    from threadpoolctl import threadpool_limits

    causal = recipe.mode == "causal"
    if causal and recapture is None:
        raise DSASError("causal learning reads each site anew: pass recapture to fit_sites, or choose mode clean")
    sites = list(dict.fromkeys(site for site, _, _ in capture.rows))
    if recipe.keep is not None:
        kept = _best_sites(capture, [site for site in sites if site not in heatmap_sites], recipe)
        for _ in range(len(sites) - len(kept) - len(heatmap_sites)):
            done()
        sites = [site for site in sites if site in heatmap_sites or site in kept]
    bins = range(len(capture.edges) + 1)
    fits: dict[Site, list[SiteFit]] = {}
    heatmap_recipe = replace(recipe, rank="lda", scaler="std")
    for site in sites:
        own = heatmap_recipe if site in heatmap_sites else recipe  # what only draws a heat-map is not worth a search
        here = range(1) if site.root in capture.timeless else bins
        rows = capture
        if recapture is not None and causal and site not in heatmap_sites:
            learned, _ = _joined(fits, recipe, heatmap_sites, capture.timeless)
            rows = recapture(site, Concept("learning", tuple(learned), capture.edges)) if learned else capture
        with threadpool_limits(1):  # many small problems: threads would mostly wait for one another
            fits[site] = [fit_site(rows, site, bin_, own) for bin_ in here] * (len(bins) // len(here))
        done()
    interventions, evidence = _joined(fits, recipe, heatmap_sites, capture.timeless)
    if all(intervention.read_only for intervention in interventions):
        raise _nothing_left(fits, evidence, heatmap_sites)
    if recipe.cloud:
        interventions = with_envelopes(interventions, capture, recipe.cloud)
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
        learned_on={root: describe_module(module) for root, module in steered.items()},
        evidence={"sites": [asdict(item) for item in evidence]},
        provenance={"prompts": content.to_dict(), **file, "recipe": asdict(recipe), **provenance},
    )


def _touched(interventions: Sequence[Intervention]) -> list[Site]:
    """Every site that is read or written."""
    return [site for item in interventions for site in (item.site, item.probe_site) if site is not None]


def _joined(
    fits: Mapping[Site, Sequence[SiteFit]], recipe: Recipe, heatmap_sites: Collection[Site], timeless: Collection[str]
) -> tuple[list[Intervention], list[SiteEvidence]]:
    """What was fitted at each site as interventions, of those with a weight, and the evidence of all."""
    steered = {site: fits[site] for site in fits if site not in heatmap_sites}
    readers: Mapping[Site, Site | None] = _readers(steered) if recipe.resolved_gate.traits.per_prompt else {}
    if recipe.reads == "prompt":
        readers = _prompt_reader(steered, timeless)
    interventions: list[Intervention] = []
    evidence: list[SiteEvidence] = []
    for site, fitted in fits.items():
        reads = readers.get(site, site)
        read = fitted if reads is None else fits[reads]
        left_out = [reads is None or (bool(own.refused) and site not in heatmap_sites) for own in fitted]
        weights = tuple(0.0 if out else fit.evidence.weight for out, fit in zip(left_out, read, strict=True))
        evidence += [
            replace(fit.evidence, site=str(site), weight=weight) for fit, weight in zip(read, weights, strict=True)
        ]
        if any(weights):
            probes, maps = tuple(fit.probe for fit in read), tuple(own.map for own in fitted)
            found = Intervention(site, probes, maps, weights, None if reads == site else reads)
            interventions.append(found.as_read_only() if site in heatmap_sites else found)
    return interventions, evidence


def _nothing_left(
    fits: Mapping[Site, Sequence[SiteFit]], evidence: Sequence[SiteEvidence], heatmap_sites: Collection[Site]
) -> DSASError:
    """Why no site steers."""
    steered = {str(site): fitted for site, fitted in fits.items() if site not in heatmap_sites}
    refused = {site: fit.refused for site, fitted in steered.items() for fit in fitted if fit.refused}
    if refused:
        reason = ": ".join(list(refused.items())[-1])
        return DSASError(f"no site is left to steer: at {len(refused)} the gate was refused, as at {reason}")
    best = max((item.balanced_accuracy for item in evidence if item.site in steered), default=0.0)
    return DSASError(
        f"no site tells source from control prompts (best cross-validated balanced accuracy {best:.2f}): add prompts, "
        "make controls differ from sources only in the concept, or choose other sites"
    )


def _readers(fits: Mapping[Site, Sequence[SiteFit]]) -> dict[Site, Site | None]:
    """Where each site's gate reads that is asked at one site of each root for it and all behind it.

    Of the first half of a root's sites, in the order in which they come by, that which tells source from control best.
    None for the sites before it: a gate must have read before a map writes.
    """

    readers: dict[Site, Site | None] = {}
    for root in dict.fromkeys(site.root for site in fits):
        here = [site for site in fits if site.root == root]
        best = max(here[: (len(here) + 1) // 2], key=lambda site: _separation(fits[site]))
        place = here.index(best)
        readers |= dict.fromkeys(here[:place], None) | dict.fromkeys(here[place:], best)
    return readers


def _prompt_reader(fits: Mapping[Site, Sequence[SiteFit]], timeless: Collection[str]) -> dict[Site, Site | None]:
    """The site of a text encoder that tells source from control best, for all others; None for text encoders' own."""
    texts = [site for site in fits if site.root in timeless]
    if not texts or len(texts) == len(fits):
        raise DSASError(
            'reads "prompt" needs sites that read, in a text encoder, and sites that write, in the denoiser: choose '
            'both, as sites=["text", "denoiser"]'
        )
    best = max(texts, key=lambda site: _separation(fits[site]))
    return {site: None if site in texts else best for site in fits}


def _separation(fitted: Sequence[SiteFit]) -> tuple[float, float]:
    """How well a site tells source from control: balanced accuracy over its bins, then AUROC."""
    evidence = [fit.evidence for fit in fitted]
    return sum(item.balanced_accuracy for item in evidence), sum(item.auroc for item in evidence)


def _best_sites(capture: Captured, sites: list[Site], recipe: Recipe) -> list[Site]:
    """The `keep` sites that tell source from target best: cross-validated balanced accuracy, its mean over bins."""
    from threadpoolctl import threadpool_limits

    gate = methods.get("dsas", "gate")

    def separation(site: Site) -> tuple[float, float]:
        """Balanced accuracy, and AUROC for sites that are equal in it."""
        evidence = []
        for bin_ in range(len(capture.edges) + 1):
            rows = rows_at(capture, site, bin_)
            if "source" in rows and "target" in rows:
                sides = rows.get("moved", rows["source"]), rows["target"]
                groups = tuple(side.gathered("prompts").tolist() for side in sides)
                pooled = (side.gathered("pooled") for side in sides)
                fitted = gate.cross_fit(*pooled, rank="lda", scaler="std", groups=groups, seed=recipe.seed)
                evidence.append(fitted.evidence)
        count = max(1, len(evidence))
        return sum(item.balanced_accuracy for item in evidence) / count, sum(item.auroc for item in evidence) / count

    with threadpool_limits(1):
        return sorted(sites, key=separation, reverse=True)[: recipe.keep]
