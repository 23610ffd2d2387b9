"""The artifact: save and load, what damaged files say."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dsas_core import Concept, DSASError, Intervention, Site
from dsas_core.concept.concept import CARD, CONFIG, TENSORS
from dsas_core.concept.format import ROUNDING, round_map, round_to_half
from dsas_core.concept.storage import reading
from dsas_core.errors import ArtifactError
from dsas_core.maps import AffineMap
from dsas_core.probes import ConstantProbe, LinearProbe
from tests.core.concept.conftest import concept
from tests.fixtures.concepts import FORMS, MAPS, random_concept


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("edges", [(), (200.0, 700.0)], ids=["one bin", "three bins"])
def test_what_is_saved_is_loaded(form: str, kind: str, edges: tuple[float, ...], tmp_path: Path) -> None:
    whole = concept(form=form, kind=kind, edges=edges, unit=1 / 3, weight=0.1, description="naïve, “quoted”")
    loaded = Concept.from_pretrained(whole.save_pretrained(tmp_path / "it"))
    assert loaded == whole
    assert loaded.unit == whole.unit
    assert loaded.sites == whole.sites
    assert loaded.interventions[0].weights == whole.interventions[0].weights
    x = torch.randn(2, 5, 4)
    for ours, theirs in zip(whole.interventions[0].probes, loaded.interventions[0].probes, strict=True):
        assert torch.equal(ours.score(x), theirs.score(x))
    for ours, theirs in zip(whole.interventions[0].maps, loaded.interventions[0].maps, strict=True):
        assert torch.equal(ours.apply(x, 0.7), theirs.apply(x, 0.7))


def test_values_are_rounded_before_they_are_used(tmp_path: Path) -> None:
    probe = LinearProbe(torch.rand(4, dtype=torch.float64), torch.rand((), dtype=torch.float64))
    whole = Concept("it", (Intervention(Site("unet.mid"), (probe,), (AffineMap(torch.rand(4).half()),), (1.0,)),))
    assert whole.interventions[0].probes[0].weight.dtype == torch.float32
    assert Concept.from_pretrained(whole.save_pretrained(tmp_path / "it")) == whole


# ---- how it lies in its folder --------------------------------------------------------------------------------------


def as_format_1(whole: Concept, folder: Path) -> Path:
    """The folder that version 0.1 wrote."""
    from safetensors.torch import save_file

    interventions, content = whole.by_bins()
    folder.mkdir()
    save_file({name: tensor.clone() for name, tensor in content.items()}, folder / TENSORS)
    (folder / CONFIG).write_text(json.dumps({"format": 1, **whole.settings(), "interventions": interventions}))
    return folder


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", MAPS)
def test_folders_of_format_1_are_read(form: str, kind: str, tmp_path: Path) -> None:
    whole = concept(form=form, kind=kind)
    assert "bins" in json.loads((as_format_1(whole, tmp_path / "old") / CONFIG).read_text())["interventions"][0]
    assert Concept.from_pretrained(tmp_path / "old") == whole


def test_a_digest_goes_by_what_is_stored_not_how(tmp_path: Path) -> None:
    probe = LinearProbe(torch.tensor([1 / 3, -2.0]), torch.tensor(0.1))
    probes, maps = (probe, probe.with_lower_bias(1.0)), (AffineMap(torch.tensor([0.5, 1e-3])),) * 2
    whole = Concept("it", (Intervention(Site("unet.mid"), probes, maps, (1.0, 0.25)),), edges=(500.0,), unit=0.75)
    assert whole.digest == "efcc8e29032bc915", "evaluations that were kept are known by it"
    assert Concept.from_pretrained(as_format_1(whole, tmp_path / "old")).digest == whole.digest
    assert Concept.from_pretrained(whole.save_pretrained(tmp_path / "new")).digest == whole.digest


def stored(whole: Concept, folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(whole.save_pretrained(folder) / TENSORS)


def test_bins_are_stacked_and_equal_ones_are_stored_once(tmp_path: Path) -> None:
    content = stored(concept(edges=(200.0, 700.0)), tmp_path / "apart")
    assert content["0.unet.mid.probes.weight"].shape == (3, 4)
    probe, transform = LinearProbe(torch.ones(4), torch.tensor(0.5)), AffineMap(torch.ones(4))
    alike = Concept("it", (Intervention(Site("unet.mid"), (probe,) * 3, (transform,) * 3, (1.0,) * 3),), (1.0, 2.0))
    assert stored(alike, tmp_path / "alike")["0.unet.mid.maps.shift"].shape == (1, 4)
    assert Concept.from_pretrained(tmp_path / "alike") == alike


def test_bins_that_are_not_alike_are_stored_one_by_one(tmp_path: Path) -> None:
    probes = ConstantProbe(0.5), ConstantProbe(0.25), LinearProbe(torch.ones(4), torch.tensor(0.5))
    item = Intervention(Site("unet.mid"), probes, (AffineMap(torch.rand(4)),) * 3, (1.0,) * 3)
    whole = Concept("it", (item,), (1.0, 2.0))
    assert Concept.from_pretrained(whole.save_pretrained(tmp_path / "it")) == whole


def test_tensors_are_float16_where_that_is_exact(tmp_path: Path) -> None:
    exact, fine = torch.randn(4).half().float(), torch.randn(4)
    item = Intervention(Site("unet.mid"), (LinearProbe(fine, torch.tensor(0.1)),), (AffineMap(exact, fine),), (1.0,))
    content = stored(Concept("it", (item,)), tmp_path / "it")
    assert {name.removeprefix("0.unet.mid."): tensor.dtype for name, tensor in content.items()} == {
        "probes.weight": torch.float32,
        "probes.bias": torch.float32,
        "maps.shift": torch.float16,
        "maps.slope": torch.float32,
    }
    loaded = Concept.from_pretrained(tmp_path / "it")
    assert loaded == Concept("it", (item,))
    assert loaded.interventions[0].maps[0].shift.dtype == torch.float32


@pytest.mark.parametrize(
    ("tensor", "halved"),
    [
        (torch.linspace(-3, 3, 50), True),
        (torch.tensor([1.0, 3e-7]), True),  # the second is not held in full, and of no weight beside the first
        (torch.tensor([1e-7, 3e-7]), False),
        (torch.tensor([1.0, 1e5]), False),
        (torch.tensor(1 / 3), False),
        (torch.zeros(3), True),
        (torch.tensor([1.0, torch.nan]), False),
    ],
)
def test_maps_are_rounded_where_that_loses_nothing(tensor: torch.Tensor, halved: bool) -> None:
    made = round_to_half(tensor)
    assert made.dtype == tensor.dtype
    if halved:
        assert torch.equal(made, tensor.half().float())
        assert (made - tensor).norm() <= 2**-11 * tensor.norm()
    else:
        assert torch.equal(made, tensor) or tensor.isnan().any()
    assert torch.equal(round_to_half(made).nan_to_num(), made.nan_to_num()), "twice is as once"


@pytest.mark.parametrize("mean", [0.0, 30.0, 3000.0, 3e6])
@pytest.mark.parametrize("slope", [None, 0.9993, 0.3])
def test_a_rounded_map_moves_rows_as_before(mean: float, slope: float | None) -> None:
    """Slope and shift rounded apart would miss by more than rows differ, where these lie far from 0."""
    random = torch.Generator().manual_seed(0)
    rows = mean + torch.randn(20, 4, generator=random, dtype=torch.float64)
    shift = torch.full((4,), 3.0 + (0 if slope is None else (1 - slope) * mean))
    exact = AffineMap(shift, None if slope is None else torch.full((4,), slope))
    rounded = round_map(exact, rows)
    assert isinstance(rounded, AffineMap)
    moved, before = (part.map_tensors(torch.Tensor.double).apply(rows, 1.0) - rows for part in (rounded, exact))
    assert (moved - before).norm() <= ROUNDING * before.norm()
    if rounded.slope is not None and mean < 1e6:
        assert torch.equal(rounded.slope, rounded.slope.half().float())
    if mean < 100:
        assert torch.equal(rounded.shift, rounded.shift.half().float())


def test_slices_of_one_module_are_sites_of_their_own(tmp_path: Path) -> None:
    heads = {Site("unet.mid", channels=(0, 4)): 4, Site("unet.mid", channels=(4, 8)): 4}
    whole = random_concept(heads)
    loaded = Concept.from_pretrained(whole.save_pretrained(tmp_path / "it"))
    for ours, theirs in zip(whole.interventions, loaded.interventions, strict=True):
        assert ours.site == theirs.site
        assert torch.equal(ours.maps[0].shift, theirs.maps[0].shift)
    assert loaded == whole


def test_tensors_that_share_memory_can_be_saved(tmp_path: Path) -> None:
    table = torch.randn(3, 4)
    probe, transform = LinearProbe(table[0], torch.tensor(0.0)), AffineMap(table[1], table[2])
    intervention = Intervention(Site("unet.mid"), (probe, probe), (transform, transform), (1.0, 1.0))
    whole = Concept("it", (intervention,), edges=(500.0,))
    assert Concept.from_pretrained(whole.save_pretrained(tmp_path / "it")) == whole


@pytest.mark.parametrize(
    "change",
    [{"name": "b"}, {"unit": 2.0}, {"seed": 1}, {"weight": 0.5}, {"kind": "additive"}, {"description": "x"}],
    ids=str,
)
def test_what_differs_is_not_equal(change: dict[str, Any]) -> None:
    assert concept() == concept()
    assert concept(**change) != concept()
    assert concept() != "random"


def test_another_unit_is_another_concept() -> None:
    assert concept().with_unit(4).unit == 4.0
    assert concept().with_unit(4) == concept(unit=4.0)


def test_a_folder_has_three_files_and_no_pickle(saved: Path) -> None:
    assert {path.name for path in saved.iterdir()} == {CONFIG, TENSORS, CARD}
    assert [path for path in saved.parent.iterdir() if path != saved] == []
    config = json.loads((saved / CONFIG).read_text())
    assert config["format"] == 2
    assert config["interventions"][1]["site"] == {"path": "text_encoder.layers.1", "side": "input", "tokens": [1, None]}
    card = (saved / CARD).read_text()
    assert "library_name: dsas" in card
    assert "| `unet.mid` | 0.900 | 0.950 | 0.0100 |" in card


def test_loading_never_unpickles(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("pickle was used")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, forbidden)
    assert Concept.from_pretrained(saved) == concept()
    torch_file = b"\x80\x02}q\x00."  # a pickle where the tensors should be
    (saved / TENSORS).write_bytes(torch_file)
    with pytest.raises(DSASError, match="is damaged or cut short"):
        Concept.from_pretrained(saved)


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """A damage that edits the configuration."""

    def damage(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        change(config)
        (folder / CONFIG).write_text(json.dumps(config))

    return damage


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """A damage that edits the tensors."""

    def damage(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        content = load_file(folder / TENSORS)
        change(content)
        save_file(content, folder / TENSORS)

    return damage


def cut(folder: Path) -> None:
    whole = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(whole[: len(whole) // 2])


def first(config: dict[str, Any]) -> dict[str, Any]:
    return config["interventions"][0]


def header_alone(shape: list[int]) -> bytes:
    """A safetensors file of one empty tensor of a shape."""
    header = json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "concept.safetensors is damaged or cut short"),
        (lambda folder: (folder / TENSORS).write_bytes(b""), "is damaged or cut short"),
        (lambda folder: (folder / TENSORS).unlink(), "is no concept: it has no concept.safetensors"),
        (lambda folder: (folder / CONFIG).unlink(), "is no concept: it has no config.json"),
        (lambda folder: (folder / CONFIG).write_text('{"format": 1,'), "config.json is damaged"),
        (lambda folder: (folder / CONFIG).write_bytes(b"\xff\xfe"), "config.json is damaged"),
        (lambda folder: (folder / CONFIG).write_text("[1, 2]"), "format list, this version reads formats 1 and 2"),
        (edited(lambda config: config.update(format=3)), "format 3, this version reads formats 1 and 2"),
        (edited(lambda config: config.pop("format")), "format None"),
        (edited(lambda config: config.pop("interventions")), "config.json is damaged: it lacks interventions"),
        (edited(lambda config: config.pop("name")), "config.json is damaged"),
        (edited(lambda config: config.update(colour="red")), "config.json is damaged.*colour"),
        (edited(lambda config: config.update(edges=[100.0, 500.0])), "2 edges need 3 bins at each site"),
        (edited(lambda config: config.update(unit=float("nan"))), "it has NaN, which is no number of JSON"),
        (edited(lambda config: config.update(unit="much")), "config.json is damaged"),
        (edited(lambda config: config.update(unit=0)), "unit must be a number above 0, from 1e-06 to 1e\\+06, found 0"),
        (edited(lambda config: config.update(range="01")), "range must be a list, found '01'"),
        (edited(lambda config: config.update(range=["0", "1"])), "range.0. must be a number, found '0'"),
        (edited(lambda config: config.update(edges="5")), "edges must be a list, found '5'"),
        (edited(lambda config: config.update(name=7)), "config.json is damaged"),
        (edited(lambda config: config.update(interventions=[])), "config.json is damaged"),
        (edited(lambda config: config["interventions"][0]["site"].update(side="left")), "side is input or output"),
        (
            edited(lambda config: first(config)["probes"].update(kind="os.system")),
            "this version knows no kind 'os.system' of probe or map",
        ),
        (edited(lambda config: first(config)["probes"].update(bias="high")), "config.json is damaged"),
        (edited(lambda config: first(config).update(probes=first(config)["maps"])), "config.json is damaged"),
        (edited(lambda config: first(config).update(maps=None)), "config.json is damaged"),
        (edited(lambda config: first(config).update(weights=[1.0, float("inf")])), "config.json is damaged"),
        (tensors(lambda content: content.popitem()), "config.json is damaged: there is no tensor"),
        (tensors(lambda content: next(iter(content.values())).fill_(float("nan"))), "holds NaN or infinite values"),
        (tensors(lambda content: content.update(extra=torch.zeros(2, dtype=torch.int64))), "holds I64: expected"),
        (lambda folder: (folder / TENSORS).write_bytes(b"\x80\x04}q\x00." + b"\0" * 60), "it is a pickle"),
        (lambda folder: (folder / CONFIG).write_text("[" * 100_000), "config.json is damaged: it is not JSON"),
        (edited(lambda config: config.update(evidence=json.loads("[" * 40 + "]" * 40))), "more than 24 lists"),
        (edited(lambda config: config.update(base=None)), "base must be a mapping, found None"),
        (edited(lambda config: config.update(evidence={"sites": [1]})), "evidence.sites.0. must be a mapping, found 1"),
        (
            edited(lambda config: config.update(evidence={"sites": [{"site": "a", "auroc": 10**400}]})),
            "expected numbers up to",
        ),
        (lambda folder: (folder / TENSORS).write_bytes(header_alone([0, 2**40, 2**40])), "is damaged or cut short"),
        (edited(lambda config: config.update(name="../x")), "name '../x' is such as no folder may have"),
        (edited(lambda config: first(config).update(maps=[])), "in every bin"),
    ],
)
def test_what_is_damaged_says_so(saved: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(saved)
    with pytest.raises(ArtifactError, match=message) as error:
        Concept.from_pretrained(saved)
    assert str(saved) in str(error.value) or "site" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_header_may_be_of_any_length(saved: Path) -> None:
    """Also one whose length begins with the byte that a pickle does."""
    content, expected = (saved / TENSORS).read_bytes(), Concept.from_pretrained(saved)
    length = int.from_bytes(content[:8], "little")
    padding = (0x80 - length) % 0x100
    header = (length + padding).to_bytes(8, "little") + content[8 : 8 + length] + b" " * padding
    assert header[:1] == b"\x80"
    (saved / TENSORS).write_bytes(header + content[8 + length :])
    assert Concept.from_pretrained(saved) == expected


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    for broken in (concept(name="a/b"), concept(unit=float("inf")), concept(unit=0.0), replace(concept(), edges=())):
        with pytest.raises(ArtifactError, match="cannot be saved, as it could not be read again"):
            broken.save_pretrained(tmp_path / "it")
    assert list(tmp_path.iterdir()) == []


def test_files_are_read_up_to_a_size(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (CONFIG, TENSORS):
        with monkeypatch.context() as patch:
            patch.setitem(reading.MAX_BYTES, name, 10)
            with pytest.raises(ArtifactError, match=f"{name} is larger than 0 MB"):
                Concept.from_pretrained(saved)


def test_a_folder_that_is_not_empty_is_kept(saved: Path) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    other = concept(name="other")
    with pytest.raises(DSASError, match="is there and not empty: choose another folder, or pass overwrite"):
        other.save_pretrained(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    other.save_pretrained(saved, overwrite=True)
    assert Concept.from_pretrained(saved) == other
    assert [path for path in saved.parent.iterdir() if path != saved] == []


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "it").mkdir()
    assert Concept.from_pretrained(concept().save_pretrained(tmp_path / "it")) == concept()


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("name", ["fsync", "rename"])
@pytest.mark.parametrize("old", [False, True])
def test_a_full_disk_leaves_nothing_half_written(
    name: str, old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "it"
    if old:
        concept(name="old").save_pretrained(folder)
    monkeypatch.setattr(os, name, no_space)
    with pytest.raises(DSASError, match=r"cannot write .*it: No space left on device"):
        concept().save_pretrained(folder, overwrite=True)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == ([folder] if old else [])
    if old:
        assert Concept.from_pretrained(folder) == concept(name="old")


@pytest.mark.parametrize("name", [CONFIG, TENSORS, CARD])
def test_a_file_that_cannot_be_replaced_leaves_the_old_concept(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real = concept(name="old").save_pretrained(tmp_path / "it"), os.replace
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def broken(source: Any, destination: Any) -> None:
        if Path(destination) == folder / name and "new" in Path(source).parts:
            no_space()
        real(source, destination)

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(DSASError, match="cannot write"):
        concept(name="new").save_pretrained(folder, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DSASError, match="cannot write"):
        concept().save_pretrained(tmp_path / "file" / "it")
    with pytest.raises(DSASError, match="is there and not empty"):
        concept().save_pretrained(tmp_path / "file")
