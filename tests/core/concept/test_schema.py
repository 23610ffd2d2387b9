"""What a concept may hold, whoever wrote it: names, numbers, sites, shapes, values; files that are something else."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsas_core import Concept, DSASError, Intervention, Site, Steering
from dsas_core.concept.builtin import shipped
from dsas_core.concept.concept import CONFIG, TENSORS
from dsas_core.concept.samples import STRIP, check_picture
from dsas_core.concept.schema import check_concept
from dsas_core.errors import ArtifactError, ModelMismatchError, UnavailableError
from dsas_core.learning.capture import Capture
from dsas_core.learning.learner import Learner
from dsas_core.maps import AffineMap
from dsas_core.maps.envelope import EllipticEnvelope
from dsas_core.probes import ConstantProbe, CosineProbe, LinearProbe
from dsas_core.utils.tensorclass import KINDS, LARGEST, undeclared_fields
from tests.core.steering.test_identities import steered
from tests.fixtures.every_part import ALL_MAPS, MAPS, PARTS_OF_MAPS, PROBES, make_concept, make_strip

Damage = Callable[[dict[str, Any], dict[str, torch.Tensor]], object]
WIDTH, SITE = 12, Site("model.0")


def damaged(folder: Path, damage: Damage, whole: Concept | None = None) -> Path:
    """A saved concept whose settings and tensors are changed."""
    (whole or make_concept("linear", "affine", 1)).save_pretrained(folder)
    config, tensors = json.loads((folder / CONFIG).read_text()), load_file(folder / TENSORS)
    damage(config, tensors)
    (folder / CONFIG).write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / TENSORS)
    return folder


def refused(name: Any, expected: str) -> None:
    with pytest.raises(ArtifactError, match=expected) as error:
        Concept.from_pretrained(name)
    assert str(error.value).isprintable()
    assert len(str(error.value)) <= 500


def set_(*keys: Any, value: Any) -> Damage:
    """A damage that replaces one value in the settings."""

    def change(config: dict[str, Any], _: object) -> None:
        place: Any = config
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


def tensor(ending: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    """A damage that changes one tensor."""

    def damage(_: object, tensors: dict[str, torch.Tensor]) -> None:
        name = next(name for name in tensors if name.endswith(ending))
        tensors[name] = change(tensors[name].float())

    return damage


def fill(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: torch.full_like(tensor, value)


def nested(levels: int) -> dict[str, Any]:
    """A probe within others."""
    return {"kind": "complement", "inner": nested(levels - 1)} if levels else {"kind": "constant", "value": 0.5}


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        # shapes
        (tensor("maps.shift", lambda t: t[..., :1]), "slope of affine has shape .*, expected .width. with width 1"),
        (tensor("maps.slope", lambda t: t[..., :1]), "slope of affine has shape .1., expected .width. with width"),
        (tensor("probes.weight", lambda t: t[..., :1]), "weight of linear has shape .1., expected .width. with width"),
        (tensor("maps.shift", lambda t: t[..., :0]), "shift of affine is empty"),
        (tensor("probes.bias", lambda t: t[:, None]), "bias of linear has shape .1., expected .."),
        (tensor("probes.weight", lambda t: t[:, None]), "weight of linear has shape .1, 8., expected .width."),
        (tensor("clouds.axes", lambda t: t[..., :1, :]), "spread of cloud has shape .2., expected .rank. with rank 1"),
        (tensor("maps.shift", lambda t: t[0]), "need tensors of as many bins, or of one"),
        (tensor("maps.shift", lambda t: t.sum()), "need tensors of as many bins, or of one"),
        (set_("interventions", 0, "site", "channels", value=[0, 4]), "has 4 channels, and its probe or map is 8 wide"),
        # values
        (tensor("maps.slope", fill(3e38)), r"slope of affine must be from -1e\+12 to 1e\+12, found 3e\+38"),
        (tensor("probes.weight", fill(3e38)), r"weight of linear must be from -1e\+24 to 1e\+24"),
        (tensor("clouds.spread", fill(0.0)), "spread of cloud must be from 1e-20 to"),
        (tensor("clouds.axes", fill(7.0)), "axes of cloud must have length 1, found"),
        (set_("interventions", 0, "weights", 0, value=1.5), "weight at .* must be a number from 0 to 1, found 1.5"),
        (set_("interventions", 0, "weights", 0, value=-0.1), "weight at .* must be a number from 0 to 1"),
        (set_("interventions", 0, "weights", 0, value=True), "must be a number, found True"),
        (set_("interventions", 0, "weights", value=[1.0]), "1 edges need 2 bins at each site, and one has 1"),
        (set_("unit", value=1e300), "unit must be a number above 0"),
        (set_("unit", value=True), "unit must be a number, found True"),
        (set_("edges", value=[1000.5]), "edges must be up to 999 numbers between 0 and 1000"),
        (set_("edges", value=[-5]), "edges must be up to 999 numbers between 0 and 1000"),
        (set_("range", value=[1.0, -1.0]), "range must be two numbers, from 0 or below to 0 or above"),
        (set_("range", value=[0.5, 1.0]), "range must be two numbers, from 0 or below to 0 or above"),
        (set_("range", value=[-1e30, 1e30]), "range must be two numbers"),
        (set_("range", value=[0, 0]), "range must be two numbers"),
        (set_("range", value=[0]), "range must be two numbers"),
        (set_("edges", value=[float(i) for i in range(1, 999)]), "998 edges need 999 bins at each site"),
        (
            set_("edges", value=[float(i) for i in range(1, 99999)]),
            "interventions in 99999 bins: expected 20000 in all",
        ),
        # names
        *[
            (set_("name", value=name), "is such as no folder may have")
            for name in ("", ".", "..", "../x", "a/b", "a\\b", "x" * 201, "é" * 101, "a\nb", " a", "-a", ".a", "a:b", 7)
        ],
        (set_("method", value=""), "method must be a line of text"),
        (set_("gate", value="a\x1b[31m"), "gate must be a line of text"),
        (set_("description", value="a\x1b[31m"), "description must be a text"),
        # sites
        (set_("interventions", 0, "site", "path", value=["unet"]), "a site.path must be a text"),
        (set_("interventions", 0, "site", "path", value=""), "the path of a site must be a line of text"),
        (set_("interventions", 0, "site", "index", value=-1), "index of site .* must be a count"),
        (set_("interventions", 0, "site", "index", value=True), "index of site .* must be a count"),
        (set_("interventions", 0, "site", "tokens", value=[3, 1]), "tokens of site .* must be two whole numbers"),
        (set_("interventions", 0, "site", "tokens", value=[0.5, 1]), "tokens of site .* must be two whole numbers"),
        (set_("interventions", 0, "site", "channels", value=[0, 1, 2]), "channels of site .* must be two whole"),
        (set_("interventions", 0, "site", "channels", value="ab"), "channels of site .* must be two whole"),
        (set_("interventions", 0, "site", "colour", value=1), "a site has no field colour"),
        # structure
        (set_("interventions", 0, "probes", "kind", value=[]), "knows no kind"),
        (set_("interventions", 0, "probes", "kind", value="oracle"), "knows no kind 'oracle'"),
        (set_("interventions", 0, "probes", "colour", value=1), "linear has weight, bias, found"),
        (set_("interventions", 0, "probes", "weight", "tensor", value={}), "there is no tensor {}"),
        (set_("interventions", 0, "probes", value={"kind": "product", "factors": []}), "factors of product must be"),
        (
            set_("interventions", 0, "probes", value={"kind": "constant", "value": 7}),
            "value of constant must be from 0",
        ),
        (set_("interventions", 0, "probes", value={"kind": "constant", "value": True}), "value of constant must be"),
        (set_("interventions", 0, "maps", value=7), "expected a probe, a map or a cloud, found 7"),
        (set_("interventions", 0, "colour", value=7), "an intervention has an unknown colour"),
        (set_("interventions", 0, value=[]), "must be a mapping"),
        (set_("interventions", value={}), "interventions must be a list"),
        (set_("colour", value=7), "it has an unknown colour"),
        (lambda config, tensors: tensors.update(spare=torch.zeros(2)), "1 tensors that no probe or map .* uses"),
        (set_("interventions", 0, "probes", value=nested(9)), "more than 8 probes are within one another"),
        (
            set_("interventions", 0, "probes", value={"kind": "product", "factors": [nested(0)] * 101}),
            "101 probes are within one: expected up to 100",
        ),
        (
            set_(
                "interventions",
                0,
                "probes",
                value={"kind": "complement", "inner": {"kind": "last", "inner": nested(0)}},
            ),
            "a probe of kind last follows a text, which it cannot within another probe",
        ),
        # what is shown
        (set_("evidence", "unit", "trials", 0, "effect", value="much"), "effect must be a number"),
        (set_("evidence", "mask", "sites", value="unet"), "evidence.mask.sites must be a list"),
        (set_("evidence", "cost", "seconds", value=[]), "evidence.cost.seconds must be a mapping"),
        (set_("learned_on", "unet", value={}), "learned_on.unet lacks class"),
        (set_("base", "unet", value=7), "base.unet must be a line of text"),
        (set_("provenance", "prompts", value="/etc/passwd"), "provenance.prompts must be a mapping"),
        (set_("provenance", "prompts", "source", value=7), "provenance.prompts.source must be a list"),
        (set_("provenance", "x", value="\ud800"), "half a character"),
        (set_("provenance", "x", value=10**400), "expected numbers up to"),
        (set_("samples", "prompts", value="ab"), "samples.prompts must be a list"),
        (set_("samples", "strengths", value=[1, 0]), "samples.strengths must ascend"),
        (set_("samples", "texts", value=[["a"]]), "samples.texts must be a list of texts for each prompt"),
    ],
)
def test_what_no_concept_holds_is_refused(damage: Damage, expected: str, tmp_path: Path) -> None:
    refused(damaged(tmp_path / "it", damage), expected)


@pytest.mark.parametrize("edges", [[700.0, 200.0], [200.0, 200.0], [-0.0, 200.0], [200.0, 1e4], [True, 200.0]])
def test_edges_ascend_within_the_timesteps(edges: list[float], tmp_path: Path) -> None:
    three_bins = make_concept("linear", "affine", 5)
    refused(damaged(tmp_path / "it", set_("edges", value=edges), three_bins), "edges.* must (ascend|be)")


@pytest.mark.parametrize(
    "content",
    [
        b'{"format": 2, "format": 2}',
        b'\xef\xbb\xbf{"format": 2}',
        '{"format": 2}'.encode("utf-16"),
        b'{"format": NaN}',
        b'{"format": 1e400}',
        b'{"format": true}',
        b'{"format": 2.0}',
        b'{"format": ' + b"9" * 5000 + b"}",
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b"\xff",
        b"",
    ],
)
def test_what_is_not_plain_json_is_refused(content: bytes, tmp_path: Path) -> None:
    folder = make_concept("linear", "affine", 1).save_pretrained(tmp_path / "it")
    (folder / CONFIG).write_bytes(content)
    refused(folder, CONFIG)


@pytest.mark.parametrize("name", [CONFIG, TENSORS, STRIP])
@pytest.mark.parametrize("place", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero"), None])
@pytest.mark.timeout(20)
def test_what_is_no_file_is_not_read(name: str, place: Callable[[Path], Any] | None, tmp_path: Path) -> None:
    folder = make_concept("linear", "affine", 1).save_pretrained(tmp_path / "it")
    (folder / name).unlink()
    (place or (lambda path: path.symlink_to(path)))(folder / name)
    if name == STRIP:
        assert Concept.from_pretrained(folder).samples.strip == b""
    else:
        refused(folder, f"it has no {name}")


def test_links_are_followed_as_the_cache_of_the_hub_has_them(tmp_path: Path) -> None:
    folder = make_concept("linear", "affine", 1).save_pretrained(tmp_path / "it")
    expected = Concept.from_pretrained(folder)
    (tmp_path / "snapshot").mkdir()
    for name in (CONFIG, TENSORS, STRIP):
        (tmp_path / "snapshot" / name).symlink_to(folder / name)
    assert Concept.from_pretrained(tmp_path / "snapshot") == expected


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "a/" * 3000, 7, None, b"x", ["x"]])
def test_a_name_that_no_folder_can_have(name: Any) -> None:
    with pytest.raises(UnavailableError, match="no concept at"):
        Concept.from_pretrained(name)


def test_files_of_two_saves_do_not_make_a_concept(tmp_path: Path) -> None:
    one = make_concept("linear", "affine", 1).save_pretrained(tmp_path / "one")
    other = make_concept("mlp", "affine", 1).save_pretrained(tmp_path / "other")
    shutil.copy(other / TENSORS, one / TENSORS)
    refused(one, "there is no tensor")


@pytest.mark.parametrize(
    "content",
    [
        b"x",
        b"GIF89a" + b"x" * 30,
        make_strip()[:-3],
        make_strip() + b"xyz",
        make_strip().replace(b"VP8 ", b"XXXX").replace(b"VP8L", b"XXXX"),
        b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\x3f\0" * 2,  # 16384 x 16384
    ],
)
def test_a_picture_that_cannot_be_shown_is_refused(content: bytes, tmp_path: Path) -> None:
    folder = make_concept("linear", "affine", 1).save_pretrained(tmp_path / "it")
    (folder / STRIP).write_bytes(content)
    refused(folder, STRIP)


def test_pictures_of_all_kinds_of_webp_are_read() -> None:
    import io

    from PIL import Image

    for options in ({}, {"lossless": True}, {"exif": b"x"}):
        content = io.BytesIO()
        Image.new("RGB", (300, 7)).save(content, "WEBP", **options)
        check_picture(content.getvalue())
    for concept in shipped("builtin:emoji"):
        check_picture((concept.folder / STRIP).read_bytes())


# ---- parts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_declares_what_its_fields_hold(kind: str) -> None:
    assert not undeclared_fields(KINDS[kind])


def test_every_kind_is_tried() -> None:
    assert set(KINDS) == {*PROBES, *MAPS, *PARTS_OF_MAPS, EllipticEnvelope.kind}


@pytest.mark.parametrize("kind", sorted({**PROBES, **ALL_MAPS}))
def test_every_tensor_of_every_kind_is_checked(kind: str) -> None:
    """Each alone is of another size or rank, or out of bounds; all are refused."""
    made = make_concept(kind, "affine", 1) if kind in PROBES else make_concept("linear", kind, 1)
    item = made.interventions[0]
    field = "probes" if kind in PROBES else "maps"
    part = getattr(item, field)[0]
    changes = (lambda t: t[None], lambda t: t[..., None], lambda t: t[..., :1], lambda t: t[..., :0], fill(1e30))
    for number, whole in enumerate(part.tensors()):
        for change in (*changes, fill(float("nan")), fill(float("-inf"))):
            if whole.ndim or change not in changes[2:4]:
                left = iter(range(len(part.tensors())))
                broken = part.map_tensors(lambda t, n=number, c=change, left=left: c(t) if next(left) == n else t)
                changed = replace(item, **{field: (broken, *getattr(item, field)[1:])})
                with pytest.raises(ValueError, match=r"must be from|has shape|is empty|must have length 1"):
                    check_concept(replace(made, interventions=(changed, *made.interventions[1:])))


def pair(*probes: Any, shift: torch.Tensor | None = None, **fields: Any) -> Concept:
    shift = torch.ones(WIDTH) if shift is None else shift
    bins = len(probes) or 1
    edges = tuple(100.0 * i for i in range(1, bins))
    item = Intervention(SITE, probes or (ConstantProbe(),), (AffineMap(shift),) * bins, (1.0,) * bins, **fields)
    return Concept("pair", (item,), edges)


@pytest.mark.parametrize("width", [1, 2, WIDTH - 1, WIDTH + 1])
def test_a_map_of_another_width_is_no_broadcast(width: int) -> None:
    """Also one that was never in a file."""
    with pytest.raises(ModelMismatchError, match=rf"is {width} wide at model\.0, and .* has {WIDTH} channels"):
        steered(pair(shift=torch.ones(width)), torch.zeros(1, 3, WIDTH), 1.0)


def test_shapes_that_do_not_agree_do_not_attach() -> None:
    probe = LinearProbe(torch.ones(1), torch.tensor(0.0))
    with pytest.raises(DSASError, match=r"weight of linear has shape .1., expected .width. with width 12"):
        steered(pair(probe), torch.zeros(1, 3, WIDTH), 1.0)
    with pytest.raises(DSASError, match=r"shift of affine has shape .1, 12., expected .width."):
        steered(pair(shift=torch.ones(1, WIDTH)), torch.zeros(1, 3, WIDTH), 1.0)


def test_bins_of_two_kinds_do_not_attach() -> None:
    """The parameters of one would be read as the other's, and settings would be those of the first bin."""
    linear, cosine = (kind(torch.ones(WIDTH) / 9, torch.tensor(0.0)) for kind in (LinearProbe, CosineProbe))
    for probes in ((linear, cosine), (ConstantProbe(1.0), ConstantProbe(0.0))):
        with pytest.raises(DSASError, match=r"the timestep bins of model\.0 differ in more than the values"):
            steered(pair(*probes), torch.zeros(1, 3, WIDTH), 1.0)


def test_what_loads_is_saved_again(tmp_path: Path) -> None:
    for number, kind in enumerate(PROBES):
        whole = make_concept(kind, list(ALL_MAPS)[number % len(ALL_MAPS)], number)
        loaded = Concept.from_pretrained(whole.save_pretrained(tmp_path / kind))
        assert loaded == whole
        assert Concept.from_pretrained(loaded.save_pretrained(tmp_path / f"{kind}-again")) == whole


def test_numbers_that_are_not_finite_become_unknown(tmp_path: Path) -> None:
    evidence = {"sites": [{"site": "unet.mid", "auroc": float("nan"), "control_h": float("inf")}]}
    whole = make_concept("linear", "affine", 0, evidence=evidence)
    assert whole.evidence["sites"][0]["auroc"] is None
    assert Concept.from_pretrained(whole.save_pretrained(tmp_path / "it")) == whole


def test_evidence_that_json_cannot_hold() -> None:
    loop: dict[str, Any] = {}
    loop["x"] = loop
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for evidence in (loop, {"x": deep}):
        with pytest.raises(ArtifactError, match=r"evidence of a concept cannot be written as JSON"):
            make_concept("linear", "affine", 0, evidence=evidence)


@pytest.mark.parametrize(
    "change",
    [
        {"name": ".."},
        {"edges": (2000.0,)},
        {"range": (1.0, -1.0)},
        {"method": 7},
        {"evidence": {"unit": {"trials": 7}}},
    ],
)
def test_the_same_is_refused_when_it_is_saved(change: dict[str, Any], tmp_path: Path) -> None:
    whole = replace(make_concept("linear", "affine", 1), **change)
    with pytest.raises(ArtifactError, match="cannot be saved, as it could not be read again"):
        whole.save_pretrained(tmp_path / "it")


def test_values_that_methods_reach_are_far_within_bounds() -> None:
    assert 1e3 * max(float(t.abs().max()) for c in shipped() for t in parts_of(c.name)) < LARGEST


def parts_of(name: str) -> list[torch.Tensor]:
    return [t for item in Concept.from_pretrained(name).interventions for m in item.maps for t in m.tensors()]


def test_what_float16_cannot_hold_is_told_when_it_attaches() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH)).half()
    concept = pair(shift=torch.full((WIDTH,), 1e5))
    with pytest.warns(UserWarning, match=r"'pair' moves activations by up to 1e\+05 at model\.0, and float16"):
        Steering({concept: 1.0}).attach({"model": model}, {}).detach()
    with warnings.catch_warnings(action="error"):
        Steering({concept: 1.0}).attach({"model": model.bfloat16()}, {}).detach()


@pytest.mark.parametrize("text", ["a\u3000b", "خانه\u200cها", "👩\u200d🎨", "\u200fא", "a\u00a0b\r\n\tc"])
def test_descriptions_are_written_in_any_language(text: str) -> None:
    concept = replace(Concept.from_pretrained("builtin:banana-blur"), description=text)
    check_concept(concept)


def test_what_could_not_be_saved_is_not_learned() -> None:
    """It is refused before the long work."""
    for edges in ((0.0,), (1000.0,), (-1.0, 500.0)):
        with pytest.raises(DSASError, match="between 0 and 1000"):
            Capture(edges)
    about: dict[str, Any] = {"model_name": "", "settings": {}, "count": 2, "seed": 0, "show_progress": False}
    content: Any = SimpleNamespace(name="x" * 201)
    with pytest.raises(DSASError, match=r"prompt file: name .* it is longer than 200 bytes"):
        Learner.__init__(SimpleNamespace(), content, {}, [], **about)  # type: ignore[arg-type]
