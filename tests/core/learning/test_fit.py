"""From captured rows to interventions, on activations whose truth is known."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from dsas_core import Call, Concept, DSASError, Recipe, Site, Steering
from dsas_core.learning.fit import fit_sites
from dsas_core.learning.recipe import FORMS
from dsas_core.methods.base.gate_fit import place_threshold
from dsas_core.probes import ConstantProbe, LinearProbe, PooledProbe, ProductProbe
from dsas_core.steering.trace import Trace
from tests.fixtures.synthetic import CONCEPT, MOVE, POSITIONS, SHOWN, SITE, WIDTH, activations, captured, several


@functools.cache
def fitted(form: str, control_h: float | None = 0.01, pooling: str = "gated") -> tuple[Any, Any]:
    interventions, evidence = fit_sites(captured(), Recipe(form=form, control_h=control_h, pooling=pooling))
    return interventions[0], evidence[0]


@pytest.mark.parametrize(
    ("form", "kind"),
    [("paper", LinearProbe), ("pooled", PooledProbe), ("token", LinearProbe), ("product", ProductProbe)],
)
def test_each_form_tells_source_from_control(form: str, kind: type) -> None:
    intervention, evidence = fitted(form)
    assert isinstance(intervention.probes[0], kind)
    assert evidence.balanced_accuracy > 0.95
    assert intervention.weights == (evidence.weight,)
    assert evidence.weight > 0.8
    source, control = (activations(side, 40, 8.0, 99) for side in ("source", "control"))
    h_source, h_control = (intervention.probes[0].score(x).expand(-1, POSITIONS, 1) for x in (source, control))
    assert float(h_control.mean()) < 0.03
    assert float(h_source[:, :SHOWN].mean()) > 0.3
    assert evidence.control_h <= 0.01 + 1e-6


@pytest.mark.parametrize("form", ["paper", "token", "product"])
def test_forms_that_read_positions_find_where_the_concept_is(form: str) -> None:
    probe = fitted(form)[0].probes[0]
    h = probe.score(activations("source", 40, 8.0, 99))
    assert float(h[:, :SHOWN].mean()) > 10 * float(h[:, SHOWN:].mean())


@pytest.mark.parametrize("form", ["paper", "token", "product"])
def test_the_map_is_the_mean_difference_where_the_concept_is(form: str) -> None:
    torch.testing.assert_close(fitted(form)[0].maps[0].shift, MOVE, atol=0.35, rtol=0)


def test_the_map_of_plain_means_is_that_of_all_positions() -> None:
    everywhere = MOVE * SHOWN / POSITIONS
    torch.testing.assert_close(fitted("token", pooling="mean")[0].maps[0].shift, everywhere, atol=0.2, rtol=0)
    interventions, _ = fit_sites(captured(count=200), Recipe(gate="on"))
    torch.testing.assert_close(interventions[0].maps[0].shift, everywhere, atol=0.1, rtol=0)


def test_a_constant_gate_needs_no_evidence() -> None:
    interventions, evidence = fit_sites(captured(strength=0.0), Recipe(gate="on"))
    assert isinstance(interventions[0].probes[0], ConstantProbe)
    assert interventions[0].weights == (1.0,)
    assert evidence[0].control_h == 1


def test_without_calibration_the_bias_stays_where_the_regression_put_it() -> None:
    loose, tight = fitted("paper", None)[0].probes[0], fitted("paper")[0].probes[0]
    assert torch.equal(loose.weight, tight.weight)
    assert loose.bias > tight.bias


def test_every_timestep_bin_has_its_own_fit() -> None:
    calls = []
    interventions, evidence = fit_sites(captured(edges=(300.0, 700.0)), Recipe(form="pooled"), lambda: calls.append(1))
    (intervention,) = interventions
    assert len(intervention.probes) == len(intervention.maps) == len(intervention.weights) == 3
    assert [found.bin for found in evidence] == [0, 1, 2]
    assert len({float(probe.inner.bias) for probe in intervention.probes}) == 3
    assert calls == [1]


def test_a_site_that_tells_nothing_is_left_out_and_kept_as_evidence() -> None:
    capture, blind = captured(), Site("unet.blind")
    capture.rows.update(captured(strength=0.0, site=blind).rows)
    interventions, evidence = fit_sites(capture, Recipe(form="pooled"))
    assert [item.site for item in interventions] == [SITE]
    assert {found.site for found in evidence} == {str(SITE), str(blind)}


@pytest.mark.parametrize("form", FORMS)
def test_chance_raises_and_says_what_to_do(form: str) -> None:
    with pytest.raises(DSASError, match=r"no site tells source from control .*accuracy 0\.\d\d\): add prompts"):
        fit_sites(captured(strength=0.0), Recipe(form=form))


def test_a_bin_that_no_step_reached_raises() -> None:
    capture = captured()
    capture.edges = (500.0,)
    with pytest.raises(
        DSASError, match=r"nothing was captured at unet\.mid in timestep bin 1 for source, target, control"
    ):
        fit_sites(capture, Recipe())


@pytest.mark.parametrize(("kind", "value"), [("source", "nan"), ("target", "inf"), ("control", "-inf")])
def test_activations_that_are_no_numbers_name_their_site(kind: str, value: str) -> None:
    capture = captured()
    capture.rows[SITE, 0, kind].pooled[0][3, 1] = float(value)
    with pytest.raises(DSASError, match=rf"unet\.mid: activations of {kind} prompts are NaN or infinite: load"):
        fit_sites(capture, Recipe())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"form": "words"}, "gate form 'words'.*: expected one of paper, pooled, token, product"),
        ({"pooling": "max"}, "pooling 'max': expected .* one of gated, mean"),
        ({"method": "dsas"}, "no map named 'dsas'"),
        ({"gate": "caa"}, "no gate named 'caa'"),
    ],
)
def test_bad_recipes(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DSASError, match=message):
        Recipe(**fields)


def test_calibration_lowers_the_logits_just_enough() -> None:
    logits, factor = torch.randn(500) * 4, torch.rand(500)
    shift = place_threshold(lambda shift: (factor * (logits - shift).sigmoid())[:, None], 0.01)
    assert shift > 0
    assert float((factor * (logits - shift).sigmoid()).mean()) == pytest.approx(0.01, abs=1e-6)


@pytest.mark.parametrize("target", [None, 0.9])
def test_calibration_leaves_alone_what_is_low_enough(target: float | None) -> None:
    logits = torch.randn(50, 1)
    assert place_threshold(lambda shift: (logits - shift).sigmoid(), target) == 0


def test_calibration_leaves_alone_what_it_cannot_lower() -> None:
    assert place_threshold(lambda shift: torch.full((9, 1), 0.1), 0.01) == 0
    far = torch.tensor([[500.0], [-500.0]])
    assert 499 < place_threshold(lambda shift: (far - shift > 0).double(), 0.01) < 501


def test_evidence_tells_what_calibration_did() -> None:
    found, loose = fitted("paper")[1], fitted("paper", None)[1]
    assert found.control_h <= 0.01 < found.control_h_before == loose.control_h == loose.control_h_before
    assert found.control_fired < found.control_fired_before == loose.control_fired


def test_a_concept_that_only_watches_steers_nothing() -> None:
    concept = Concept("watcher", tuple(item.as_read_only() for item in fit_sites(captured(), Recipe(form="pooled"))[0]))
    assert Steering({concept: 1.0}).sites == []
    assert Steering({concept: 1.0}, trace=Trace()).sites == [SITE]


@pytest.mark.parametrize("form", FORMS)
def test_the_finished_gate_is_tested_on_another_domain(form: str) -> None:
    capture = captured()
    assert fit_sites(capture, Recipe(form=form))[1][0].unseen is None
    for kind, strength in (("source", 8.0), ("control", 0.0)):
        capture.start(f"unseen_{kind}")
        capture.begin(SITE.root, Call(torch.ones(10), torch.arange(10), torch.tensor(0.0)))
        capture.visit(SITE, activations(kind, 10, strength, 50))
    evidence = fit_sites(capture, Recipe(form=form))[1][0]
    unseen = evidence.unseen
    assert unseen is not None
    assert unseen.auroc > 0.95
    assert unseen.balanced_accuracy > 0.8
    assert unseen.control_h <= unseen.control_h_before
    assert unseen.control_fired <= unseen.control_fired_before
    assert unseen.control_h == pytest.approx(evidence.control_h, abs=0.03), "it is the same domain here"


@pytest.mark.parametrize("form", ["token", "product", "paper"])
def test_a_target_that_replaces_the_concept_is_still_found(form: str) -> None:
    """Target positions show something else where the concept was, which the gate does not look for."""
    other = torch.nn.functional.one_hot(torch.tensor(2), WIDTH).float()
    capture = captured()
    for rows in (rows for (_, _, kind), rows in capture.rows.items() if kind == "target"):
        rows.pooled = [x + SHOWN / POSITIONS * 8 * (other - CONCEPT) for x in rows.pooled]
        swapped = [places < SHOWN for places in rows.places]
        rows.positions = [
            x + 8 * mask.float()[:, None] * (other - CONCEPT) for x, mask in zip(rows.positions, swapped, strict=True)
        ]
    expected = 8 * (other - CONCEPT) + MOVE
    shift = fit_sites(capture, Recipe(form=form))[0][0].maps[0].tensors()[0]
    assert torch.cosine_similarity(shift, expected, dim=0) > 0.95
    assert 0.7 < float(shift.norm() / expected.norm()) < 1.4, "as long as the change is where it is"


@pytest.mark.parametrize("form", ["paper", "token", "prefix"])
def test_evidence_is_of_prompts_where_the_gate_reads_positions(form: str) -> None:
    """A concept at a few positions moves the mean little; what counts is where the gate opens."""
    found = fit_sites(captured(), Recipe(form=form))[1][0]
    assert found.missed is not None
    assert found.touched is not None
    assert found.missed < 0.1, "8 standard deviations are hard to miss"
    assert found.auroc > 0.95
    loose = fit_sites(captured(), Recipe(form=form, control_h=None))[1][0]
    assert loose.touched is not None
    assert loose.touched > found.touched or loose.touched == 0, "the threshold that was placed counts"
    assert (loose.auroc, loose.rank) == (found.auroc, found.rank), "AUROC knows no threshold"


def test_a_gate_that_opens_somewhere_in_every_control_is_no_good() -> None:
    """Controls show the concept at one position, though their means do not tell."""
    capture = captured()
    rows = capture.rows[SITE, 0, "control"]
    first = [places == places.min() for places in rows.places]
    rows.positions = [x + 12 * mask.float()[:, None] * CONCEPT for x, mask in zip(rows.positions, first, strict=True)]
    pooled, paper = (fit_sites(capture, Recipe(form=form, site_weight="none"))[1][0] for form in ("pooled", "paper"))
    assert pooled.auroc > 0.95
    assert paper.auroc < 0.7
    assert pooled.missed is pooled.touched is None, "it decides by means"


@pytest.mark.parametrize("form", ["paper", "token", "prefix"])
def test_evidence_of_prompts_finds_nothing_where_nothing_is(form: str) -> None:
    """Positions that a gate chooses by itself are not held out, so they are chosen anew without each prompt."""
    sites = several({f"unet.{i}": 1e-9 * i for i in range(6)})
    for i, rows in enumerate(sites.rows.values()):
        rows.positions = [x + torch.randn(x.shape, generator=torch.Generator().manual_seed(i)) for x in rows.positions]
    evidence = fit_sites(sites, Recipe(form=form, site_weight="none"))[1]
    assert 0.35 < sum(found.auroc for found in evidence) / len(evidence) < 0.58
