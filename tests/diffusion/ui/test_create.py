"""The tabs that draw, their handlers called as the page calls them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from dsas_core import Concept, DSASError
from dsas_diffusion import Schedule
from dsas_diffusion.generation.strips import overlay
from dsas_diffusion.pipelines.prompt_check import PromptCheck
from dsas_diffusion.ui.page import markup
from dsas_diffusion.ui.page.controls import MIN_SIDE, enlarge
from dsas_diffusion.ui.page.session import MAX_OWN_CONCEPTS, Session, report_errors
from dsas_diffusion.ui.services import picture_service
from dsas_diffusion.ui.services.chat_service import Turn
from dsas_diffusion.ui.services.drawing import Drawing, Order
from dsas_diffusion.ui.services.picture_service import PictureService
from dsas_diffusion.ui.tabs.advanced import make_schedule
from dsas_diffusion.ui.tabs.where import ALL_LAYERS, show_steered
from tests.diffusion.ui.conftest import SETTINGS, Page, Shown, make_service
from tests.fixtures.concepts import unseen
from tests.fixtures.judges import random_banana_with_place

service = pytest.fixture(make_service, scope="module")


@pytest.fixture(scope="module")
def page(service: PictureService) -> Page:
    return Page(service)


def test_drawing(page: Page) -> None:
    session = Session()
    steps = list(page.create.draw(page.data(session, prompt="a banana", strengths=[0.0, 1.0])))
    assert len(steps) == 3, "the base first, and how many there are at last"
    kept, base, steered, compare, problem, told, seed, _ = steps[1]
    assert kept is session
    assert compare == gr.skip(), "what is not seen is not sent"
    assert problem == ""
    assert base.size == (MIN_SIDE, MIN_SIDE)
    assert not np.array_equal(np.asarray(base), np.asarray(steered))
    assert "patches" in told
    assert seed == 7
    assert session.drawing is not None
    assert dict(session.drawing.order.strengths) == {"words": 0.0, "patches": 1.0, "closed": 0.0}


def test_seeds_are_kept_or_thrown(page: Page) -> None:
    assert page.draw(Session(), seed=3).seed == 3
    thrown = {page.draw(Session(), seed=3, locked=False).seed for _ in range(2)}
    assert len(thrown) == 2
    assert 3 not in thrown


def test_live_mode_draws_when_a_slider_is_let_go(page: Page) -> None:
    released = [fn for fn in page.blocks.fns.values() if any(event == "release" for _, event in fn.targets)]
    assert len(released) == 1
    assert not any(fn.fn for fn in released), "a slider alone asks nothing of the server, and nobody waits"
    session = Session()
    assert len(list(page.create.draw_live(page.data(session, strengths=[0.0, 1.0], locked=False)))) == 3
    assert session.drawing is not None
    assert session.drawing.order.seed == 7, "sliders never throw the dice"


def test_everything_asked_for_is_ordered(page: Page) -> None:
    asked = page.create.order(
        page.data(
            Session(), prompt="a dog", seed=5, gate="on", branch="both", combine="blend", kind="window", first=900,
            last=100, sites=["up.0"], guidance=2,
        )
    )  # fmt: skip
    assert (asked.prompt, asked.seed, asked.gate, asked.branch, asked.combine) == ("a dog", 5, "on", "both", "blend")
    assert asked.settings.steps == 2
    assert asked.settings.guidance == 2.0
    assert asked.schedule is not None
    assert asked.schedule.points == Schedule.between(900, 100).points
    assert asked.sites == ("up.0",)
    assert page.create.order(page.data(Session(), prompt="a dog")).schedule is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": None}, "seed None"),
        ({"seed": -1}, "seed -1"),
        ({"seed": math.nan}, "seed nan"),
        ({"steps": math.nan}, "steps nan: expected a number"),
        ({"guidance": math.inf}, "guidance inf"),
        ({"strengths": [math.nan]}, "strength nan"),
        ({"strengths": [None]}, "strength None"),
        ({"strengths": [0, 0, 0, 1.0]}, "left alone for more than an hour"),
        ({"prompt": ""}, "no prompt"),
        ({"kind": "window", "first": 100, "last": 900}, "1000 >= start > stop"),
        ({"kind": "linear", "first": None}, "two numbers"),
    ],
)
def test_what_cannot_be_ordered(page: Page, values: dict[str, Any], message: str) -> None:
    with pytest.raises(DSASError, match=message):
        page.create.order(page.data(Session(), **values))


@pytest.mark.parametrize(
    ("values", "message"),
    [({"prompt": ""}, "no prompt"), ({"kind": "window", "first": 100, "last": 900}, "1000 &gt;= start &gt; stop")],
)
def test_what_cannot_be_drawn_is_told_and_the_picture_stays(page: Page, values: dict[str, Any], message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        empty = page.draw(Session(), **values)
    assert (empty.base, empty.steered, empty.seed) == (None, None, gr.skip())
    assert message in empty.problem
    before = page.draw(session := Session(), strengths=[0, 1.0])
    with pytest.warns(UserWarning, match=message):
        after = page.draw(session, **values)
    assert message in after.problem
    assert after.told == before.told, "what is said is of the picture that is shown"
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(before[1:3], after[1:3], strict=True))


def test_schedules_are_drawn_and_what_is_wrong_with_them_told(page: Page) -> None:
    first, last, line = page.create.advanced.reset_ends("window")
    assert (first["value"], last["value"], first["visible"]) == (800.0, 200.0, True)
    assert "<polyline" in line
    assert page.create.advanced.reset_ends("constant")[0]["visible"] is False
    assert "start &gt; stop" in page.create.advanced.draw_schedule("window", 1, 2)
    assert make_schedule("cosine", 0, 1).points == Schedule.cosine(0, 1).points


def test_every_visitor_has_concepts_of_their_own(page: Page, service: PictureService, concepts: list[Concept]) -> None:
    mine, yours = Session(), Session()
    mine.add(replace(concepts[1], name="mine"), service)
    here, there = page.create.slots(mine), page.create.slots(yours)
    assert [update.get("label") for update in here[:4]] == ["words", "patches", "closed", "mine"]
    assert [update["visible"] for update in there[:-1]] == [True] * 3 + [False] * MAX_OWN_CONCEPTS
    assert "mine" in page.draw(mine, strengths=[0, 0, 0, 1.0]).told
    assert "mine" not in page.draw(yours, strengths=[0, 0, 1.0]).told
    assert page.strip.slots(mine, "mine")[0]["value"] == "mine"
    assert page.strip.slots(yours, "mine")[0]["value"] == "words"
    assert page.strip.slots(mine, None, ["mine", "gone"])[1]["value"] == ["mine"]


def test_there_is_room_for_a_few(service: PictureService, concepts: list[Concept]) -> None:
    session = Session()
    for i in range(MAX_OWN_CONCEPTS):
        session.add(replace(concepts[1], name=f"own-{i}"), service)
    session.add(replace(concepts[1], name="own-0", unit=2.0), service)
    assert session.my_concepts["own-0"].unit == 2.0
    with pytest.raises(DSASError, match=f"room for {MAX_OWN_CONCEPTS}"):
        session.add(replace(concepts[1], name="one-more"), service)
    with pytest.raises(DSASError, match="there is a concept 'patches' already"):
        Session().add(concepts[1], service)


def test_room_that_was_taken_meanwhile_is_taken(
    service: PictureService, concepts: list[Concept], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An uploaded concept is tried on a picture, which takes a while: learning may end before."""
    session = Session()

    def fill(concept: Concept) -> None:
        for i in range(MAX_OWN_CONCEPTS):
            session.add(replace(concepts[1], name=f"own-{i}"), service)

    monkeypatch.setattr(service, "try_concept", fill)
    with pytest.raises(DSASError, match=f"room for {MAX_OWN_CONCEPTS}"):
        session.add(replace(concepts[1], name="uploaded"), service, uploaded=True)
    assert len(session.my_concepts) == MAX_OWN_CONCEPTS


# ---- where it is seen, and where it steered -------------------------------------------------------------------------


def test_where(page: Page, service: PictureService) -> None:
    session = Session()
    page.draw(session, strengths=[0.5, 1.0])
    concept, site, step, seen, told, steered, changed, steps = page.where.begin(session, "patches")
    assert concept["choices"] == ["words", "patches"]
    assert (concept["value"], site["value"], step["maximum"]) == ("patches", ALL_LAYERS, 2)
    assert "the mean of all steps" in told
    assert "All concepts together" in changed
    assert seen.size == steered.size == (MIN_SIDE, MIN_SIDE)
    assert steps.count("<tr>") == 1 + 4
    one, told_of_one = page.where.show_seen(session, "patches", site["choices"][1], 2)
    assert "step 2 of the 2" in told_of_one
    assert not np.array_equal(np.asarray(one), np.asarray(seen))
    assert page.where.begin(session, "gone")[0]["value"] == "words"


def test_where_it_is_seen_is_read_without_steering(page: Page) -> None:
    """Behind a steered layer, probes read what steering made of the picture."""
    session = Session()
    pictures = []
    for strength in (0.25, 1.0):
        page.draw(session, strengths=[0, strength])
        pictures.append(page.where.begin(session, "patches")[3])
    assert np.array_equal(*map(np.asarray, pictures))


def test_where_it_steered_is_dark_where_nothing_changed() -> None:
    base = Image.new("RGB", (64, 64), (90, 120, 200))
    steered = base.copy()
    steered.paste((0, 0, 0), (8, 8, 24, 24))
    order = Order("a dog", 1, SETTINGS, {"patches": 1.0})
    drawing = Drawing(order, PromptCheck((), 2, 77), base, 1.0, False, steered)
    picture, told = show_steered(drawing)
    small = np.asarray(picture.resize((64, 64), Image.Resampling.BOX), np.float32)
    dark = np.asarray(overlay(base, np.zeros((64, 64))), np.float32)
    lit = np.abs(small - dark).max(-1) > 12
    inside = np.zeros((64, 64), bool)
    inside[7:25, 7:25] = True  # enlarging blurs the edge
    assert lit[10:22, 10:22].all()
    assert not lit[~inside].any()
    assert "6 % of the picture" in told
    same, told = show_steered(replace(drawing, steered=base))
    assert np.array_equal(np.asarray(same), np.asarray(enlarge(base))), "no glow at all"
    assert "Nowhere: both pictures are the same" in told


def test_a_trace_that_is_gone_is_read_again(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_service, "MAX_TRACE_BYTES", 0)
    mine, yours = Session(), Session()
    for session in (mine, yours):
        page.draw(session, strengths=[0, 1.0])
        assert page.where.begin(session, "patches")[3] is not None
    assert page.where.begin(mine, "patches")[3] is not None
    mine.drawing = yours.drawing = None


def test_words_have_no_place_in_the_picture(page: Page, service: PictureService, concepts: list[Concept]) -> None:
    text = tuple(item for item in concepts[0].interventions if not item.read_only)
    session = Session()
    session.add(replace(concepts[0], name="text", interventions=text), service)
    page.draw(session, strengths=[0, 0, 0, 1.0])
    *_, seen, told, steered, _, steps = page.where.begin(session, None)
    assert seen is None
    assert "reads words alone" in told
    assert steered is not None, "but it changed the picture somewhere"
    assert "read once, before drawing" in steps


def test_nothing_was_drawn_yet(page: Page) -> None:
    *_, seen, told, steered, changed, steps = page.where.begin(Session(), None)
    assert seen is steered is None
    assert "Draw a picture" in told
    assert "Draw a picture" in changed
    assert "No gate" in steps


# ---- strip ----------------------------------------------------------------------------------------------------------


def test_a_strip_from_end_to_end(page: Page) -> None:
    data = {**page.data(Session(), prompt="a banana"), page.strip.concept: "patches", page.strip.count: 3}
    problem, told, gallery, moving, strip, webp, gif = page.strip.draw(data, lambda *_, **__: None)
    assert problem == ""
    assert [caption for _, caption in gallery] == ["-0.95", "0: off", "+1.45"]
    assert "patches from -0.95 to 1.45" in told
    for name, suffix, kind in ((moving, "webp", "WEBP"), (strip["value"], "png", "PNG"), (gif["value"], "gif", "GIF")):
        assert name.endswith(suffix)
        assert Image.open(name).format == kind
    assert webp["value"] == moving
    with pytest.warns(UserWarning, match="choose a concept"):
        problem, *rest = page.strip.draw({**data, page.strip.concept: None})
    assert "choose a concept" in problem
    assert rest == [gr.skip()] * 6, "the strip stays, with the line on it"


# ---- what is told ---------------------------------------------------------------------------------------------------


def test_texts_from_outside_are_text(page: Page, service: PictureService, concepts: list[Concept]) -> None:
    session = Session()
    prompt = 'a <img src=x onerror=alert(1)> & "b"'
    told = page.draw(session, prompt=prompt, strengths=[0, 1.0]).told
    for text in (
        told,
        markup.render_conversation([Turn(prompt, prompt, prompt)]),
        markup.render_evidence(replace(concepts[1], evidence={"sites": [{"site": prompt}]})),
        markup.render_note(prompt, '"><script>'),
    ):
        assert "<img" not in text
        assert "<script" not in text
        assert "<b>" not in text.replace("<b>patches</b>", "")


def test_the_evidence_tells_what_stays(concepts: list[Concept]) -> None:
    part, site = {"changed": 3, "pictures": 24}, {"site": "unet:input:encoder_hidden_states"}
    kept = {"alone": part, "beside": part, "without": {"changed": 1, "pictures": 9}, "neighbours": {"rabbit": part}}
    told = markup.render_evidence(replace(concepts[1], evidence={"sites": [site], "kept": kept}))
    assert "beside it 3 of 24 (rabbit 3 of 24), without it 1 of 9" in told
    assert "<td>embeddings</td>" in told


def test_descriptions_are_no_markdown(page: Page, service: PictureService, concepts: list[Concept]) -> None:
    session = Session()
    session.add(replace(concepts[1], name="mine", description="![a](http://x)\n`b` **c** d"), service)
    told = page.create.slots(session)[3]["info"]
    assert not set("*`[]\n") & set(told)
    assert told.endswith(" d")


def test_what_fails_half_way_is_told_where_it_was_to_be(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page.create.service, "_steered", lambda *_: 1 / 0)
    seen: list[Any] = []
    with pytest.raises(ZeroDivisionError):
        seen.extend(page.create.draw(page.data(Session(), strengths=[0, 1.0])))
    first, last = Shown(*seen[0]), Shown(*seen[-1])
    assert "steering …" in first.told
    assert "Drawing failed" in last.problem
    assert "steering …" not in last.told, "nothing goes on"


def test_what_is_explained(page: Page) -> None:
    session = Session()
    closed = page.draw(session, strengths=[0, 0, 1.0]).told
    assert "mean gate 0.00 on this prompt" in closed
    assert "the picture is untouched, bit for bit" in closed
    assert "times the base" in closed
    assert "always on" in page.draw(session, strengths=[0, 1.0], gate="on").told
    assert "its gate is off" in page.draw(session, strengths=[0, 1.0], gate="off").told
    assert "All sliders are at 0" in page.draw(session).told
    assert "kept from before" in page.draw(session).told


def test_prompts_that_are_cut_off(page: Page) -> None:
    assert "tokens, of which the model reads the first" in page.draw(Session(), prompt="a dog and " * 30).told


def test_errors_are_messages(caplog: pytest.LogCaptureFixture) -> None:
    @report_errors
    def known() -> None:
        raise DSASError("the way out of <img src=x>")

    @report_errors
    def unforeseen() -> Iterator[int]:
        yield 1
        raise ValueError("a secret path")

    with pytest.raises(gr.Error) as shown_error:
        known()
    assert shown_error.value.message == "the way out of &lt;img src=x&gt;", "Gradio shows messages as HTML"
    assert caplog.text == ""
    steps = unforeseen()
    assert next(steps) == 1
    with pytest.raises(gr.Error) as shown_error:
        next(steps)
    assert "secret" not in str(shown_error.value)
    assert "a secret path" in caplog.text


def test_small_pictures_are_enlarged() -> None:
    assert enlarge(Image.new("RGB", (64, 64))).size == (512, 512)
    large = Image.new("RGB", (768, 512))
    assert enlarge(large) is large


# ---- the rest of the picture is kept ---------------------------------------------------------------------------------


def test_the_rest_is_kept_by_default_where_a_concept_has_a_place(
    page: Page, service: PictureService, tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert page.create.preserve.value is False, "none of these concepts has a place"
    assert page.create.order(page.data(Session(), preserve=True)).preserve
    monkeypatch.setattr(service, "concepts", {"banana": random_banana_with_place(tiny_pipe), **service.concepts})
    other, session = Page(service), Session()
    assert other.create.preserve.value is True
    told = other.draw(session, strengths=[1.0]).told
    assert session.drawing is not None
    assert session.drawing.area
    assert f"The rest is kept: {100 * session.drawing.area:.0f} % of the picture may change." in told
    assert "always on, where it is seen" in other.draw(session, strengths=[1.0], gate="on").told
    assert "patches</b> has no place in the picture, so the rest of it is not kept" in (
        other.draw(session, strengths=[1.0, 0, 1.0]).told
    )
    assert "no place" not in other.draw(session, strengths=[0, 0, 1.0], preserve=False).told
    data = {**other.data(Session(), prompt="a banana"), other.strip.count: 3}
    told = [other.strip.draw({**data, other.strip.concept: n}, lambda *_, **__: None)[1] for n in ("banana", "patches")]
    assert ["no place in the picture" in line for line in told] == [False, True]


def test_what_is_not_seen_is_told(page: Page, service: PictureService, tiny_pipe: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(service, "concepts", {"banana": unseen(random_banana_with_place(tiny_pipe))})
    other, session = Page(service), Session()
    assert "<b>banana</b> is not seen in this picture, which therefore stays as it is" in (
        other.draw(session, strengths=[1.0]).told
    )
    seen, steered = other.where.begin(session, "banana")[4:7:2]
    assert "Nowhere for sure" in seen
    assert "Nowhere: both pictures are the same" in steered


def test_a_pipeline_that_cannot_has_no_such_box(service: PictureService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "can_preserve", False)
    box = Page(service).create.preserve
    assert (box.visible, box.value) == (False, False)
