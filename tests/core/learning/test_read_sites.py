"""One gate for all sites of a root, read before any of them writes."""

from __future__ import annotations

import pytest

from dsas_core import Concept, Recipe, Site
from dsas_core.learning.capture import Capture
from dsas_core.learning.fit import fit_sites
from dsas_core.probes import TextProbe
from tests.fixtures.synthetic import captured, several

EARLY, EARLIER, FIRST, SECOND = (Site(f"model.{name}") for name in ("a", "b", "c", "d"))
RECIPE = Recipe(form="text")


def captures(early: float, earlier: float, first: float, second: float = 8.0) -> Capture:
    """Four sites in forward order, each with so much of the concept."""
    return several(
        dict(zip(["model.a", "model.b", "model.c", "model.d"], (early, earlier, first, second), strict=True))
    )


@pytest.mark.parametrize(("strengths", "best"), [((2.0, 8.0, 2.0), EARLIER), ((8.0, 2.0, 2.0), EARLY)])
def test_the_best_early_site_gates_all(strengths: tuple[float, float, float], best: Site) -> None:
    done: list[int] = []
    interventions, evidence = fit_sites(
        captures(*strengths), RECIPE, lambda: done.append(1), read_sites=[EARLY, EARLIER]
    )
    assert [item.site for item in interventions] == [FIRST, SECOND], "candidates are not steered"
    assert {item.probe_site for item in interventions} == {best}
    assert interventions[0].probes == interventions[1].probes
    assert isinstance(interventions[0].probes[0], TextProbe)
    by_site = {item.site: item for item in evidence}
    assert [by_site[str(site)].weight for site in (EARLY, EARLIER)] == [0, 0]
    for site in (FIRST, SECOND):
        assert by_site[str(site)].reads == str(best)
        assert by_site[str(site)].auroc == by_site[str(best)].auroc
    assert len(done) == 4


def test_the_first_site_reads_for_all_where_it_tells_most() -> None:
    """It has not written yet; a later one has been written to, however much it tells."""
    interventions, evidence = fit_sites(captures(2.0, 2.0, 5.0, 9.0), RECIPE, read_sites=[EARLY, EARLIER])
    assert [item.probe_site for item in interventions] == [None, FIRST]
    assert {item.site: item.reads for item in evidence if item.weight} == {str(FIRST): "", str(SECOND): str(FIRST)}


def test_without_candidates_each_site_has_its_own_gate() -> None:
    interventions, evidence = fit_sites(captures(8.0, 8.0, 8.0), RECIPE)
    assert [item.probe_site for item in interventions] == [None] * 4
    assert {item.reads for item in evidence} == {""}


def test_a_site_that_no_gate_reads_for_reads_nowhere() -> None:
    """Of a gate with one decision per prompt: sites before the one that reads are not steered."""
    capture = captures(2.0, 8.0, 8.0)
    interventions, evidence = fit_sites(capture, Recipe(gate="cast", form="latch", site_weight="none"))
    silent = {item.site for item in evidence} - {str(item.site) for item in interventions}
    assert silent
    assert {item.reads for item in evidence if item.site in silent} == {""}


def test_keeping_the_best_sites_keeps_the_candidates() -> None:
    interventions, _ = fit_sites(captures(8.0, 2.0, 2.0), Recipe(form="text", keep=1), read_sites=[EARLY, EARLIER])
    ((site, probe_site),) = ((item.site, item.probe_site) for item in interventions)
    assert site in (FIRST, SECOND)
    assert probe_site == EARLY


def test_causal_learning_reads_candidates_unsteered() -> None:
    capture, asked = captures(8.0, 2.0, 2.0), []

    def recapture(site: Site, learned: Concept) -> Capture:
        asked.append((site, list(learned.sites), {item.probe_site for item in learned.interventions}))
        return captured(site=site)

    fit_sites(capture, Recipe(form="text", mode="causal"), recapture=recapture, read_sites=[EARLY, EARLIER])
    assert asked == [(SECOND, [FIRST], {EARLY})]


def test_roots_do_not_read_for_one_another() -> None:
    capture = captures(8.0, 2.0, 2.0)
    other = Site("second.c")
    capture.rows.update(captured(site=other).rows)
    interventions, _ = fit_sites(capture, RECIPE, read_sites=[EARLY, EARLIER])
    assert {item.site: item.probe_site for item in interventions} == {FIRST: EARLY, SECOND: EARLY, other: None}
