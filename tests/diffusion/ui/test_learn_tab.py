"""The Learn tab on a tiny pipeline: a concept becomes a slider of one visitor; cancelled, it leaves nothing."""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

import dsas_diffusion as dsas
from dsas_core import Concept, DSASError
from dsas_core.learning.prompts.prompt_file import load_prompts
from dsas_core.learning.prompts.prompt_set import SIDES
from dsas_core.utils.progress import Progress, heartbeat, progress_bar, progress_to
from dsas_diffusion import ui
from dsas_diffusion.pipelines.prompt_check import unknown_words
from dsas_diffusion.ui.page.session import Session, report_errors
from dsas_diffusion.ui.services import keeping, learning_job
from dsas_diffusion.ui.services.drawing import Order
from dsas_diffusion.ui.services.learning_job import Learning, share_done
from dsas_diffusion.ui.services.picture_service import PictureService
from dsas_diffusion.ui.services.uploads import zip_concept
from dsas_diffusion.ui.tabs.create import CreateTab
from dsas_diffusion.ui.tabs.learn import LearnTab
from dsas_diffusion.ui.tabs.prompt_form import LISTS, PHRASES
from dsas_diffusion.ui.tabs.strip import StripTab
from tests.diffusion.ui.conftest import make_service
from tests.fixtures.visitors import Bare

TOKEN = "hf_abcdefghijklmnop"


def tab_of(service: PictureService, saves: Path | None = None) -> LearnTab:
    with gr.Blocks():
        create = CreateTab(service, gr.State(Session()))
        return LearnTab(create, StripTab(create), gr.BrowserState([]), saves)


service = pytest.fixture(make_service, scope="module")


@pytest.fixture(scope="module")
def made(service: PictureService, tmp_path_factory: pytest.TempPathFactory) -> LearnTab:
    return tab_of(service, tmp_path_factory.mktemp("learn") / "saves")


@pytest.fixture
def tab(made: LearnTab, monkeypatch: pytest.MonkeyPatch) -> LearnTab:
    monkeypatch.setattr(Learning.watch, "__defaults__", (0.02,))
    return made


def asked(tab: LearnTab, session: Session, **changes: Any) -> dict[Any, Any]:
    """What the components hold when somebody presses Learn."""
    parts = {**vars(tab), **vars(tab.prompts), **dict(zip(SIDES, tab.prompts.sides, strict=True))}
    parts["sites"] = tab.sites
    defaults = {"kind": PHRASES, "first": "banana", "second": "blurred banana", "name": "", "method": "caa", "gate": ""}
    defaults |= {"sites": "text", "count": 8, "steps": 2, "source": None, "target": None, "control": None}
    return {tab.create.session: session, **{parts[name]: value for name, value in (defaults | changes).items()}}


def visitor(name: str = "somebody") -> Any:
    return SimpleNamespace(session_hash=name)


def end(running: Iterator[Any]) -> Any:
    return list(running)[-1]


def test_what_is_learned_is_shown_and_is_a_slider_of_this_visitor(
    tab: LearnTab, service: PictureService, one_unit: None
) -> None:
    session, other = Session(), Session()
    bare = Bare.of(service.pipe.unet)
    seen = list(report_errors(tab.learn)(asked(tab, session), visitor()))
    bars = [float(found) for line in seen for found in re.findall(r'aria-valuenow="(\d+)"', line[0])]
    assert bars == sorted(bars)
    assert "to go" in "".join(line[0] for line in seen)
    told, start, stop, kept, picture, evidence, which, take, packed = seen[-1]
    assert "Learned banana-to-blurred-banana" in told
    assert (start["interactive"], stop["interactive"]) == (True, False)
    assert kept is session
    assert list(session.my_concepts) == ["banana-to-blurred-banana"]
    assert not other.my_concepts
    assert picture["value"].width > 400
    for expected in ("balanced accuracy", "unit 1"):
        assert expected in evidence
    assert (which["value"], take["visible"]) == ("banana-to-blurred-banana", True)
    assert Path(packed["value"]).suffix == ".zip"
    (concept,) = session.my_concepts.values()
    assert concept.provenance["model"] == "tiny"
    sliders = [update for update in tab.slots(session, None) if update.get("label") == concept.name]
    assert len(sliders) == 1
    order = Order("a banana on a table", 1, service.defaults, {concept.name: 2.0}, gate="on")
    *_, drawing = service.draw(order, session.concepts(service))
    assert drawing.steered is not None
    assert Bare.of(service.pipe.unet) == bare

    assert "Saved as" in tab.my_concepts.export.save_to_server(session, concept.name)
    assert tab.my_concepts.export.saves is not None
    assert Concept.from_pretrained(tab.my_concepts.export.saves / concept.name) == concept
    with pytest.raises(gr.Error, match="is saved already"):
        report_errors(tab.my_concepts.export.save_to_server)(session, concept.name)
    with pytest.raises(gr.Error, match="choose one of your concepts"):
        report_errors(tab.my_concepts.export.save_to_server)(other, concept.name)


@pytest.mark.parametrize("how", ["cancel", "gone", "unwatched"])
@pytest.mark.parametrize("copied", [True, False], ids=["copy", "shared"])
def test_a_learning_that_nobody_wants_ends_and_leaves_nothing(
    tab: LearnTab, service: PictureService, monkeypatch: pytest.MonkeyPatch, how: str, copied: bool
) -> None:
    pipe, lock = service.pipeline_for_learning() if copied else (service.pipe, service._turn)
    monkeypatch.setattr(service, "pipeline_for_learning", lambda: (pipe, lock))
    session, bare = Session(), [Bare.of(pipe.unet), Bare.of(pipe.text_encoder)]
    running = tab.learn(asked(tab, session, count=48, steps=4), visitor())
    next(running)
    learning = tab._running["somebody"]
    while "1 of" not in next(running)[0]:
        pass
    tab.cancel(visitor("somebody else"))
    assert not learning.cancelled
    if how == "cancel":
        tab.cancel(visitor())
        assert "Cancelled" in end(running)[0]
    elif how == "gone":
        running.close()
    else:
        monkeypatch.setattr(learning_job, "PATIENCE", 0.0)
    assert learning.join(20)
    running.close()
    assert [Bare.of(pipe.unet), Bare.of(pipe.text_encoder)] == bare
    assert not lock.locked()
    assert not session.my_concepts
    assert not tab._running
    assert len(list(service.draw(Order("a dog", 1, service.defaults, {"patches": 1.0}), service.concepts))) == 2


def test_two_visitors_cannot_end_or_see_each_others_learning(tab: LearnTab, one_unit: None) -> None:
    first, second = Session(), Session()
    one = tab.learn(asked(tab, first, count=48), visitor("one"))
    two = tab.learn(asked(tab, second, first="dog", second="cat", gate="on"), visitor("two"))
    next(one), next(two)
    tab.cancel(visitor("one"))
    assert "Cancelled" in end(one)[0]
    assert "Learned dog-to-cat" in end(two)[0]
    assert (list(first.my_concepts), list(second.my_concepts)) == ([], ["dog-to-cat"])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"first": "", "second": ""}, "two phrases are needed"),
        ({"first": "x" * 121}, "121 letters"),
        ({"first": "{place}"}, "braces"),
        ({"second": "the banana"}, "nothing to learn"),
        ({"name": "../../x"}, "name '../../x'"),
        ({"name": "patches"}, "already"),
        ({"kind": LISTS}, "no name"),
        ({"kind": LISTS, "name": "x", "source": "a\nb"}, "prompts"),
        ({"method": "none"}, "none"),
        ({"gate": "product(dsas, __import__('os'))"}, "gate"),
        ({"sites": ".*"}, "expected one of"),
        ({"count": 10_000}, "expected 8 to 48"),
        ({"steps": 0}, "expected 8 to 48"),
    ],
)
def test_what_cannot_be_learned_is_told_before_anything_runs(
    tab: LearnTab, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], expected: str
) -> None:
    monkeypatch.setattr(Learning, "__enter__", lambda _: pytest.fail("began"))
    with pytest.raises(gr.Error, match=re.escape(expected)):
        end(report_errors(tab.learn)(asked(tab, Session(), **changes), visitor()))


def test_a_failure_is_told_and_gives_the_buttons_back(
    tab: LearnTab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("<b>disk on fire</b>")

    monkeypatch.setattr(Learning, "_learn", broken)
    seen: list[Any] = []
    with pytest.raises(gr.Error, match="RuntimeError; the server's log has more"):
        seen.extend(report_errors(tab.learn)(asked(tab, Session()), visitor()))
    told, start, stop, *_ = seen[-1]
    assert "Learning failed" in told
    assert (start["interactive"], stop["interactive"]) == (True, False)
    assert "disk on fire" in caplog.text
    assert not tab._running


def test_phrases_are_drafted_for_the_model(tab: LearnTab, service: PictureService) -> None:
    """As `dsas learn` does: of the words that it knows."""
    found = tab.request(asked(tab, Session())).prompts
    assert found.to_dict() == load_prompts(dsas.draft(service.pipe, "banana", "blurred banana")).to_dict()
    assert not unknown_words(service.adapter, [text for side in SIDES for text in found.expanded(side)])


def test_lists_are_prompts_as_they_stand(tab: LearnTab) -> None:
    texts = {side: "\n".join(f"{side} {i} {{not a placeholder}}\n" for i in range(9)) for side in ("source", "target")}
    request = tab.request(
        asked(tab, Session(), kind=LISTS, name="mine", control="c <b>\n" * 3 + texts["source"], **texts)
    )
    assert request.prompts.expanded("source")[0] == "source 0 {not a placeholder}"
    assert len(request.prompts.expanded("control")) == 10


def test_hints_come_while_typing_and_are_text(tab: LearnTab) -> None:
    def advice(kind: str, *texts: str | None) -> str:
        return report_errors(tab.prompts.advise)(kind, *(*texts, None, None, None, None, None)[:5], 8)

    assert advice(PHRASES, "banana", None) == ""
    phrases = advice(PHRASES, "banana", "blurred banana")
    assert "8 source, 8 target and 16 control prompts were checked" in phrases
    assert "does not know" not in phrases
    assert "nothing to learn" in advice(PHRASES, "banana", "a banana")
    assert "At least 8" in advice(LISTS)
    listed = advice(LISTS, None, None, "<script>alert(1)</script>", "a dog", "<script>alert(1)</script>")
    assert "Too few: source has 1 prompt" in listed
    assert "<script>" not in listed
    assert "&lt;script&gt;" in listed


def test_a_prompt_file_fills_the_lists(tab: LearnTab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    (tmp_path / "banana-blur.yaml").write_bytes(Path("prompts/banana-blur.yaml").read_bytes())
    source, target, control, name = tab.prompts.fill(str(tmp_path / "banana-blur.yaml"))
    assert name == "banana-blur"
    assert [len(text.splitlines()) for text in (source, target, control)] == [48, 48, 96]
    pairs = zip(source.splitlines(), target.splitlines(), strict=True)
    assert all(a == b.replace("blurred ", "") for a, b in pairs)
    (tmp_path / "bad.yaml").write_text("a: !!python/name:os.system")
    with pytest.raises(gr.Error, match="is not YAML"):
        report_errors(tab.prompts.fill)(str(tmp_path / "bad.yaml"))


def test_a_concept_that_somebody_has_becomes_their_slider(
    tab: LearnTab, concepts: list[Concept], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    session = Session()

    def bring(visitor: Session, name: str) -> Any:
        folder = replace(concepts[1], name=name).save_pretrained(tmp_path / name, overwrite=True)
        both = [str(folder / file) for file in ("config.json", "concept.safetensors")]
        return report_errors(tab.add_uploaded)(visitor, both)

    with pytest.raises(gr.Error, match="already"):
        bring(session, "patches")
    assert "mine is there" in bring(session, "mine")[1]
    assert [update.get("value") for update in tab.slots(session, None)[:4]] == [0, 0, 0, 1.0]
    (tmp_path / "mine.zip").write_bytes(zip_concept(session.my_concepts["mine"]))
    other = Session()
    assert "mine is there" in report_errors(tab.add_uploaded)(other, [str(tmp_path / "mine.zip")])[1]
    assert other.my_concepts == session.my_concepts
    monkeypatch.setattr(tab.create.service, "try_concept", lambda _: 1 / 0)
    with pytest.raises(gr.Error):
        bring(unlucky := Session(), "mine")
    assert not unlucky.my_concepts, "what cannot be used is not kept"


def test_concepts_stay_in_the_browser(tab: LearnTab, concepts: list[Concept], monkeypatch: pytest.MonkeyPatch) -> None:
    mine, again = Session(), Session()
    for name in ("one", "two"):
        mine.add(replace(concepts[1], name=name), tab.create.service)
    kept, told = tab.keep(mine)
    assert "This browser keeps your concepts" in told
    message, session, _, evidence, which, frame, packed = tab.take_kept(again, json.loads(json.dumps(kept)))
    assert "Back from this browser: one, two" in message
    assert session.my_concepts == mine.my_concepts
    assert (which["value"], frame["visible"]) == ("one", True)
    assert "layer" in evidence
    assert Path(packed["value"]).suffix == ".zip"
    assert "value" not in tab.slots(again, None)[0], "sliders stay as they are"
    assert tab.take_kept(Session(), [])[0] == gr.skip()
    monkeypatch.setattr(keeping, "MAX_KEPT", len(kept[0]) + 9)
    kept, told = tab.keep(mine)
    assert len(kept) == 1
    assert "Too large for it to keep: two; download" in told
    forgotten = tab.my_concepts.forget(mine, "one")
    assert list(forgotten[0].my_concepts) == ["two"]
    assert tab.my_concepts.forget(mine, "two")[4]["visible"] is False
    assert tab.keep(mine) == ([], "")
    with pytest.raises(DSASError, match="choose one of your concepts"):
        tab.my_concepts.forget(mine, "two")


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        (["no base64!"], "damaged"),
        (["ä"], "damaged"),
        ([base64.b64encode(b"PK" * 40).decode()], "no zip file"),
        ([7], "no text"),
        (["A" * 700_000], "more than 600000 letters"),
        (["patches"], "already"),
    ],
)
def test_what_a_browser_kept_is_checked_as_uploads_are(
    tab: LearnTab, concepts: list[Concept], kept: list[Any], expected: str
) -> None:
    session = Session()
    if kept == ["patches"]:
        kept = [base64.b64encode(zip_concept(concepts[1])).decode()]
    message, *_ = tab.take_kept(session, kept)
    assert expected in message
    assert not session.my_concepts
    assert tab.take_kept(session, {"not": "a list"})[0] == gr.skip()


@pytest.mark.parametrize("raises", [True, False], ids=["refused", "pushed"])
def test_a_token_is_used_once_and_is_nowhere_afterwards(
    tab: LearnTab,
    concepts: list[Concept],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    raises: bool,
) -> None:
    used = []

    def push(self: Concept, repository: str, *, token: str, private: bool) -> str:
        used.append((repository, token, private))
        if raises:
            raise RuntimeError(f"401 for Bearer {token} <b>")
        return f"https://hub/{repository}?{token}"

    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(Concept, "push_to_hub", push)
    session = Session(my_concepts={"patches": concepts[1]})
    told, field = report_errors(tab.my_concepts.export.publish)(session, "patches", "user/name", f" {TOKEN} ", True)
    assert used == [("user/name", TOKEN, True)]
    assert field == ""
    assert ("Not pushed: 401 for Bearer … &lt;b&gt;" if raises else "Pushed: https://hub/user/name?…") in told
    captured = capfd.readouterr()
    for place in (told, caplog.text, captured.out, captured.err, repr(vars(tab)), repr(session)):
        assert TOKEN not in place


@pytest.mark.parametrize(
    ("repository", "token", "expected"),
    [
        ("../x", TOKEN, "as user/name"),
        ("/etc/passwd", TOKEN, "as user/name"),
        ("alone", TOKEN, "as user/name"),
        ("a/b/c", TOKEN, "as user/name"),
        ("user/na me", TOKEN, "as user/name"),
        ("user/name", "", "expected a token"),
        ("user/name", f"{TOKEN}\r\nX: y", "expected a token"),
    ],
)
def test_bad_repositories_and_tokens_go_nowhere(
    tab: LearnTab, concepts: list[Concept], monkeypatch: pytest.MonkeyPatch, repository: str, token: str, expected: str
) -> None:
    monkeypatch.setattr(Concept, "push_to_hub", lambda *_, **__: pytest.fail("pushed"))
    told, field = tab.my_concepts.export.publish(
        Session(my_concepts={"patches": concepts[1]}), "patches", repository, token, True
    )
    assert expected in told
    assert TOKEN not in told
    assert field == ""


def test_without_a_folder_nothing_can_be_saved(service: PictureService) -> None:
    ids = [block.elem_id for block in ui.build(service).blocks.values()]
    assert "learn-start" in ids
    assert "learn-save" not in ids


def test_shares_rise_from_nothing_to_all() -> None:
    stages = (
        *(("capturing", 4), ("fitting", 7), ("drawing held-out pictures", 2), ("choosing the unit", 11)),
        *(("measuring what stays", 3), ("drawing samples", 4)),
    )
    shares = [share_done(Progress(label, done, total), 8) for label, total in stages for done in range(total + 1)]
    assert shares[0] == 0
    assert shares[-1] == 1
    assert shares == sorted(shares)
    assert share_done(Progress("something else", 1, 1), 8) == 0


def test_a_pulse_tells_the_listener_again() -> None:
    heard: list[Progress] = []
    heartbeat()
    with progress_to(heard.append):
        heartbeat()
        with progress_bar(2, "work") as bar:
            heartbeat()
            bar.update()
    heartbeat()
    assert [one.done for one in heard] == [0, 0, 1]
