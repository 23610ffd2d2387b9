"""What comes with pictures on the page: views, history, the example, settings in files, several at once, grids."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dsas_core import Concept, DSASError
from dsas_diffusion import load_pipeline
from dsas_diffusion.drawing.picture_files import encode_picture, read_all_settings, read_settings
from dsas_diffusion.drawing.picture_settings import DrawnConcept, HowSteered, PictureSettings
from dsas_diffusion.generation.compare import change
from dsas_diffusion.generation.settings import Settings, settings_of
from dsas_diffusion.ui.page.controls import MAX_SEED, MIN_SIDE, enlarge
from dsas_diffusion.ui.page.session import MAX_HISTORY, MAX_OWN_CONCEPTS, Session
from dsas_diffusion.ui.services.concepts import load_shipped
from dsas_diffusion.ui.services.drawing import GateReading
from dsas_diffusion.ui.services.example import load_example, save_example
from dsas_diffusion.ui.services.grid import MAX_CELLS
from dsas_diffusion.ui.services.picture_service import PictureService
from dsas_diffusion.ui.tabs.canvas import SIDE_BY_SIDE, SLIDER
from dsas_diffusion.ui.tabs.from_picture import FromPicture
from dsas_diffusion.ui.tabs.where import ALL_LAYERS
from tests.diffusion.ui.conftest import Page, Shown, make_service

service = pytest.fixture(make_service, scope="module")


@pytest.fixture(scope="module")
def page(service: PictureService) -> Page:
    return Page(service)


def test_pictures_are_side_by_side_or_under_a_slider(page: Page) -> None:
    session = Session()
    shown = page.draw(session, strengths=[0, 1.0], view=SLIDER)
    assert shown.base == shown.steered == gr.skip()
    assert [picture.size for picture in shown.compare] == [(MIN_SIDE, MIN_SIDE)] * 2
    pair, base, steered, compare = page.create.canvas.switch(session, SIDE_BY_SIDE)
    assert (pair["visible"], compare["visible"]) == (True, False)
    assert not np.array_equal(np.asarray(base), np.asarray(steered))
    pair, base, _, compare = page.create.canvas.switch(session, SLIDER)
    assert (pair["visible"], compare["visible"], base) == (False, True, gr.skip())
    assert len(compare["value"]) == 2


def test_the_history_gives_pictures_and_settings_back(page: Page) -> None:
    session, create = Session(), page.create
    assert page.history.show(session)[1] == []
    page.draw(session, prompt="a dog", strengths=[0.5, 1.0], seed=3, kind="linear", first=0.5, last=1.0)
    first = session.drawing
    page.draw(session, prompt="a cat", seed=4)
    page.draw(session, prompt="a cat", seed=4)
    told, pictures = page.history.show(session)
    assert "choose one" in told
    assert [caption for _, caption in pictures] == [
        "seed 4 · unsteered · a cat", "seed 3 · words 0.5 · patches 1 · a dog",
    ]  # fmt: skip
    assert all(past.drawing.trace is None for past in session.history), "large, and not needed"
    kept, tabs, *updates = page.history.go_back(session, SIDE_BY_SIDE, SimpleNamespace(index=1))
    assert kept is session
    assert tabs["selected"] == "create"
    assert session.drawing is session.history[1].drawing
    assert first is not None
    assert np.array_equal(np.asarray(updates[0]), np.asarray(enlarge(first.base)))
    held = dict(zip(create.held, updates[len(create.canvas.outputs) :], strict=True))
    assert (held[create.prompt], held[create.seed.seed], held[create.advanced.kind]) == ("a dog", 3, "linear")
    assert [held[slider] for slider in create.sliders[:2]] == [0.5, 1.0]
    assert (held[create.advanced.first]["value"], held[create.advanced.first]["visible"]) == (0.5, True)
    with pytest.raises(DSASError, match="no longer kept"):
        page.history.go_back(session, SIDE_BY_SIDE, SimpleNamespace(index=9))
    for seed in range(MAX_HISTORY + 3):
        session.show(first, [seed])
    assert len(session.history) == MAX_HISTORY


def test_the_example_is_what_the_model_draws(tmp_path: Path) -> None:
    for service in make_service(load_pipeline("builtin:emoji", device="cpu"), load_shipped("builtin:emoji")):
        service.defaults = settings_of(service.pipe)
        page, session = Page(service), Session()
        create = page.create
        _, base, steered, *_, told = create.begin(session, SIDE_BY_SIDE)
        assert base.size == steered.size == (MIN_SIDE, MIN_SIDE)
        assert "An example that was drawn before" in told
        kept = session.drawing
        assert kept is not None
        drawn = save_example(service, create.first_order(), tmp_path)
        assert change([kept.base, kept.steered], [drawn.base, drawn.steered]).max() < 1.0
        assert (kept.order, kept.gates[0].words, kept.area) == (drawn.order, drawn.gates[0].words, drawn.area)
        assert kept.moved == pytest.approx(drawn.moved, abs=0.2)
        seen, read = page.where.show_seen(session, "banana-blur", ALL_LAYERS, 1)
        assert seen is not None
        assert "step 1 of the 6 that are read, timestep 499" in read, "its probes of patches read the late steps alone"
        other = replace(create.first_order(), seed=8)
        assert load_example(service, other) is None, "of something else it is no example"
        shown = next(name for name, strength in create.first_order().strengths.items() if strength)
        service.concepts[shown] = service.concepts[shown].with_unit(0.5)
        assert load_example(service, create.first_order()) is None, "nor of another concept of that name"


def test_without_an_example_the_page_begins_empty(page: Page) -> None:
    session, base, steered, *_, told = page.create.begin(Session(), SIDE_BY_SIDE)
    assert session.drawing is base is steered is None
    assert "Nothing is drawn before you ask" in told


def test_a_new_concept_begins_at_one_unit_and_the_others_at_0(
    page: Page, service: PictureService, concepts: list[Concept]
) -> None:
    session = Session()
    session.add(replace(concepts[1], name="mine", range=(-1.0, 0.6)), service)
    updates = page.create.slots(session)
    assert [update["value"] for update in updates[:-1]] == pytest.approx([0, 0, 0, 0.6, *[0] * (MAX_OWN_CONCEPTS - 1)])
    assert "value" not in page.create.slots(session)[0], "once"


def test_strengths_stay_with_their_concepts_when_one_is_forgotten(
    page: Page, service: PictureService, concepts: list[Concept]
) -> None:
    session = Session()
    for name in ("one", "two"):
        session.add(replace(concepts[1], name=name), service)
        page.create.slots(session)
    strengths = [0.0, 0.25, 0.0, 0.5, 1.0]
    page.draw(session, strengths=strengths)
    del session.my_concepts["one"]
    updates = page.create.slots(session, [*strengths, *[0.0] * (MAX_OWN_CONCEPTS - 2)])
    assert [update["value"] for update in updates[:-1]] == [0.0, 0.25, 0.0, 1.0, *[0] * (MAX_OWN_CONCEPTS - 1)]
    held = page.create.restore(session, session.history[0], SIDE_BY_SIDE)[-len(page.create.held) :]
    values = [update["value"] if isinstance(update, dict) else update for update in held]
    again = page.create.order({**page.data(session), **dict(zip(page.create.held, values, strict=True))})
    assert again.strengths["two"] == 1.0


def test_the_history_keeps_what_another_concept_drew_from_the_same_slider(
    page: Page, service: PictureService, concepts: list[Concept]
) -> None:
    session = Session()
    for name in ("one", "two"):
        session.add(replace(concepts[1], name=name), service)
    page.draw(session, strengths=[0.0, 0.0, 0.0, 0.5])
    del session.my_concepts["one"]
    for _ in range(2):  # alike: kept once
        page.draw(session, strengths=[0.0, 0.0, 0.0, 0.5])
    drawn = [past.drawing.order.strengths for past in session.history]
    assert [(it.get("one"), it["two"]) for it in drawn] == [(None, 0.5), (0.5, 0.0)]


# ---- why nothing changes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preserve", [True, False])
def test_what_was_not_drawn_is_the_reason(page: Page, monkeypatch: pytest.MonkeyPatch, preserve: bool) -> None:
    """Known of the built-in model alone, whose judge tells what is in a picture."""
    service, session = page.create.service, Session()
    gate = GateReading("words", 1.0, 0.2, 0.9, ("banana", "a"))
    picture = Image.new("RGB", (64, 64), "white")
    assert service._look_for(gate, picture) == gate, "of another model nothing is known"
    monkeypatch.setattr(type(service.adapter), "is_builtin", True)
    found = service._look_for(gate, picture)
    assert (found.absent, found.drawn) == (("banana",), ())
    page.draw(session, strengths=[0, 0, 1.0])
    assert session.drawing is not None
    session.drawing = replace(session.drawing, gates=(found,), area=0.0 if preserve else None, moved=0.0)
    told = page.create.canvas.show(session.drawing, SIDE_BY_SIDE)[-1]
    assert "opens at “banana”, “a”, but no banana was drawn" in told
    seen = replace(found, absent=(), drawn=("banana",))
    told = page.create.canvas.show(replace(session.drawing, gates=(seen,)), SIDE_BY_SIDE)[-1]
    assert "no banana was drawn" not in told
    assert ("probes do not see it" in told) == preserve


# ---- tags -----------------------------------------------------------------------------------------------------------


def test_tags_set_strengths(page: Page, service: PictureService, concepts: list[Concept]) -> None:
    session = Session()
    shown = page.draw(session, prompt="a dog <dsas:patches:1.2> <dsas:words:9>", strengths=[0.5, 0.5])
    assert session.drawing is not None
    assert session.drawing.order.prompt == "a dog"
    assert session.drawing.order.strengths["patches"] == 1.2
    assert session.drawing.order.strengths["words"] == 2.0
    assert "the prompt sets patches to 1.2, whatever its slider" in shown.told
    assert "the tag of words: 9 is beyond -1 to 2, so it is 2" in shown.told
    assert session.history[0].held[0] == "a dog <dsas:patches:1.2> <dsas:words:9>", "as it was written"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a dog <dsas:nobody>", "names the concept 'nobody': there are words, patches, closed"),
        ("a dog <dsas:../secret:1>", "names the concept '../secret'"),
        ("a dog <dsas:builtin:rudeness>", "names the concept 'builtin:rudeness'"),
        ("a dog <dsas:words> <dsas:words:2>", "twice"),
        ("a dog <dsas:words:auto>", "expected a number on this page"),
        ("a dog <dsas:words", "which no > ends"),
    ],
)
def test_bad_tags(page: Page, prompt: str, expected: str) -> None:
    with pytest.raises(DSASError, match=expected):
        page.create.order(page.data(Session(), prompt=prompt))


# ---- negative prompt, size, several at once --------------------------------------------------------------------------


def test_a_negative_prompt_and_a_size(page: Page, service: PictureService) -> None:
    session, usual = Session(), service.adapter.usual_size
    page.draw(session, strengths=[0, 1.0])
    plain = session.drawing
    assert plain is not None
    assert plain.order.settings.size is None, "the usual size is none"
    page.draw(session, strengths=[0, 1.0], negative=" a cat ", width=2 * usual)
    drawing = session.drawing
    assert drawing is not None
    assert drawing.order.negative == "a cat"
    assert drawing.base.size == (2 * plain.base.width, plain.base.height)
    page.draw(session, strengths=[0, 1.0], negative="a cat")
    assert not session.drawing.cached
    assert change([plain.base], [session.drawing.base])[0] > 0
    with pytest.raises(DSASError, match="multiple"):
        page.create.order(page.data(Session(), width=usual + 1))


def test_several_pictures_at_once(page: Page) -> None:
    session, create = Session(), page.create
    steps = list(create.draw(page.data(session, strengths=[0, 1.0], seed=MAX_SEED, count=3)))
    batch = steps[-1][-1]
    assert [caption for _, caption in batch["value"]] == [f"seed {MAX_SEED}", "seed 0", "seed 1"]
    assert batch["visible"]
    assert [past.drawing.order.seed for past in session.history] == [1, 0, MAX_SEED]
    shown = create.show_one(session, SIDE_BY_SIDE, SimpleNamespace(index=1))
    assert dict(zip(create.held, shown[len(create.canvas.outputs) :], strict=True))[create.seed.seed] == 0
    assert session.drawing is session.batch[1].drawing
    with pytest.raises(DSASError, match="no longer kept"):
        create.show_one(session, SIDE_BY_SIDE, SimpleNamespace(index=3))
    assert page.draw(session, strengths=[0, 1.0]).batch["visible"] is False
    with pytest.warns(UserWarning, match="expected 1 to 4"):
        page.draw(session, count=5)


# ---- settings in files ---------------------------------------------------------------------------------------------


def as_file(picture: Image.Image) -> bytes:
    """A picture of the page as Gradio writes it."""
    note, content = PngInfo(), io.BytesIO()
    for key, value in picture.info.items():
        note.add_text(key, value)
    picture.save(content, "PNG", pnginfo=note)
    return content.getvalue()


@pytest.fixture
def bring(service: PictureService, page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Drop a file on the page: what is said, and component -> value."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    with gr.Blocks():
        tab = FromPicture(service, page.create.session, page.create.held, page.create.advanced)

    def take(session: Session, content: bytes) -> tuple[str, dict[Any, Any]]:
        (tmp_path / "picture.png").write_bytes(content)
        _, told, *updates = tab.take(session, str(tmp_path / "picture.png"))
        values = [update["value"] if isinstance(update, dict) else update for update in updates]
        return told, dict(zip(page.create.held, values, strict=True))

    return take


def test_a_picture_gives_its_settings_back(page: Page, bring: Callable[..., Any]) -> None:
    session, create = Session(), page.create
    asked = {"prompt": "a dog", "strengths": [0.5, 1.0], "seed": 3, "kind": "window", "first": 900.0, "last": 100.0}
    asked |= {"negative": "a cat", "combine": "blend", "branch": "both", "gate": "on", "guidance": 4.0}
    shown = page.draw(session, **asked)
    first = session.drawing
    told, values = bring(session, as_file(shown.steered))
    assert "settings are back" in told
    assert "warned" not in told
    again = create.order({**page.data(session), **values})
    assert first is not None
    assert replace(again, schedule=None) == replace(first.order, schedule=None)
    assert again.schedule is not None
    assert again.schedule.points == first.order.schedule.points
    base = read_settings(as_file(shown.base))
    assert (base.concepts, base.prompt, base.noise_seed) == ((), "a dog", 3), "the other one was not steered"
    only_there = page.draw(session, strengths=[0, 1.0], sites=["up.0"])
    assert "dsas" not in only_there.steered.info, "no command draws that"


def test_what_a_picture_asks_for_that_is_not_here_is_told(page: Page, bring: Callable[..., Any]) -> None:
    concepts = DrawnConcept("a/b", "gone", 1.0), DrawnConcept("patches", "patches", 7.0)
    how = HowSteered(schedule=((0, 0.3), (500, 1.0), (1000, 0.1)), within="target", interpolate_bins=True)
    settings = Settings(500, 3.0, scheduler="DDIMScheduler")
    options: dict[str, Any] = {"concepts": concepts, "how": how, "preserve": "latents"}
    made = PictureSettings("other/model", "a dog", 2**40, settings, **options)
    told, values = bring(Session(), encode_picture(Image.new("RGB", (8, 8)), made.to_dict()))
    for expected in (
        "the concept &#x27;gone&#x27; is not here",
        "drawn with &#x27;other/model&#x27;",
        "schedule is not one",
        "DDIMScheduler",
        "within is not on this page",
        "strength of patches: 7 is beyond -0.95 to 1.45, so it is 1.45",
        "interpolation of bins is not on this page",
        "not by latents",
        f"seed: {2**40} is beyond 0 to {MAX_SEED}, so it is {MAX_SEED}",
        "steps: 500 is beyond 1 to 100, so it is 100",
    ):
        assert expected in told
    assert values[page.create.sliders[1]] == pytest.approx(1.45)
    assert page.create.order({**page.data(Session()), **values}).settings.steps == 100


@pytest.mark.parametrize("seed", [4_025_430_000, MAX_SEED, 2**63 - 1])
def test_seeds_that_the_command_line_derives_come_back(page: Page, bring: Callable[..., Any], seed: int) -> None:
    made = PictureSettings("tiny", "a dog", seed, Settings(2, 3.0), preserve="off")
    told, values = bring(Session(), encode_picture(Image.new("RGB", (8, 8)), made.to_dict()))
    assert values[page.create.seed.seed] == min(seed, MAX_SEED)
    assert (f"seed: {seed} is beyond 0 to {MAX_SEED}" in told) is (seed > MAX_SEED), "in digits"
    assert (values[page.create.preserve], "mask" in told) == (False, False), "off is no file's name"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "no picture"),
        (b"\x89PNG\r\n", "no picture"),
        (as_file(Image.new("RGB", (8, 8))), "no settings"),
        (b"x" * (32 * 2**20 + 1), "larger than 32 MB"),
    ],
)
def test_foreign_pictures_are_refused(bring: Callable[..., Any], content: bytes, expected: str) -> None:
    with pytest.raises(DSASError, match=expected):
        bring(Session(), content)


# ---- grids ----------------------------------------------------------------------------------------------------------


def test_a_grid(page: Page) -> None:
    form, session, seen = page.strip.grid, Session(), []
    data = page.data(session, prompt="a dog", strengths=[0.5, 1.0], seed=5)
    data |= {form.strengths: "0, 1", form.seeds: "5 6 7", form.concepts: ["patches", "words"]}
    problem, sheet, file = form.draw(data, lambda done, **_: seen.append(done))
    assert problem == ""
    assert seen == [(2, 12), (4, 12), (6, 12), (8, 12), (10, 12), (12, 12)]
    cells = read_all_settings(Path(file["value"]).read_bytes())
    assert len(cells) == 12
    assert {(it.noise_seed, it.concepts[0].name, it.concepts[0].strength) for it in cells} == {
        (seed, name, strength) for seed in (5, 6, 7) for name in ("patches", "words") for strength in (0.0, 1.0)
    }
    assert sheet.width > 300
    shown = page.draw(session, prompt="a dog", strengths=[0, 1.0], seed=5)
    (made,) = page.create.service.draw_row([cells[1]], page.create.service.concepts)
    assert change([session.drawing.steered], [made])[0] < 1.0, "the same picture as on the first tab"
    assert isinstance(shown, Shown)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"strengths": "0, x"}, "expected numbers, as 0, 0.5, 1"),
        ({"strengths": "0, inf"}, "expected numbers"),
        ({"strengths": ""}, "are 0 pictures"),
        ({"strengths": "0 " * 9, "seeds": "1 2 3 4 5 6 7 8"}, f"are 72 pictures: expected 1 to {MAX_CELLS}"),
        ({"strengths": "0 0"}, "twice"),
        ({"seeds": "-1"}, "seed -1"),
        ({"concepts": ["gone"]}, "'gone' is not here"),
        ({"concepts": []}, "are 0 pictures"),
        ({"strengths": "0" * 500}, "500 letters"),
    ],
)
def test_what_makes_no_grid(page: Page, values: dict[str, Any], expected: str) -> None:
    form = page.strip.grid
    data = {**page.data(Session()), form.strengths: "0 1", form.seeds: "1", form.concepts: ["patches"]}
    data |= {getattr(form, name): value for name, value in values.items()}
    with pytest.warns(UserWarning, match=expected):
        problem, *rest = form.draw(data)
    assert "warned" in problem
    assert rest == [gr.skip()] * 2, "the last sheet stays"
