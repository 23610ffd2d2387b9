"""The tab that writes: answers side by side, as several visitors ask for them; its handlers called as the page does."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import gradio as gr
import pytest

from dsas_core import Concept, DSASError, llm
from dsas_core.concept.samples import Samples
from dsas_core.llm.steering.answer import answer, encode_message
from dsas_diffusion.ui import build
from dsas_diffusion.ui.page import markup
from dsas_diffusion.ui.page.session import Session
from dsas_diffusion.ui.services.chat_service import MAX_CHARACTERS, ChatService, Question, Reply
from dsas_diffusion.ui.services.concepts import load_shipped
from dsas_diffusion.ui.services.picture_service import PictureService
from dsas_diffusion.ui.tabs.text import EXAMPLES, TextTab
from tests.fixtures.language_models import concept_for

RUDE, CALM = "you useless clown! my washer does not start.", "hello, my washer does not start. what can i do?"
LENGTH = 12


@pytest.fixture(scope="module")
def chat() -> tuple[Any, Any]:
    return llm.load("builtin:chat")


@pytest.fixture(scope="module")
def spoken(chat: tuple[Any, Any]) -> list[Concept]:
    """One that turns what is written, and one whose gate never opens."""
    strong = concept_for(chat[0], name="strong", range=(-0.93, 1.41))
    closed = replace(concept_for(chat[0], seed=1, weight=0.0), name="<b>closed</b>")
    samples = Samples((f"user: {CALM}", "user: is it late?"), (0.0, 1.0), (("a", "b"), ("a", "a")))
    return [replace(strong, unit=2.0, samples=samples), closed]


@pytest.fixture
def chat_service(chat: tuple[Any, Any], spoken: list[Concept]) -> Iterator[ChatService]:
    made = ChatService(*chat, "builtin:chat", spoken)
    yield made
    made.close()
    assert hooks(chat[0]) == 0


@pytest.fixture
def slow(chat: tuple[Any, Any]) -> Iterator[None]:
    """The model thinks a while about each token."""
    waits = chat[0].register_forward_pre_hook(lambda *_: time.sleep(0.02))
    yield
    waits.remove()


def hooks(model: Any) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def last_reply(chat_service: ChatService, message: str = RUDE, **more: Any) -> Reply:
    return list(chat_service.reply(Question(message, **{"length": LENGTH, **more})))[-1]


def soon(holds: Callable[[], bool]) -> bool:
    """Whether something comes true within seconds."""
    end = time.monotonic() + 20
    while not holds() and time.monotonic() < end:
        time.sleep(0.01)
    return holds()


# ---- without the page ---------------------------------------------------------------------------------------------


def test_both_answers_are_told_of_as_they_grow(chat_service: ChatService) -> None:
    seen: list[Reply] = []
    for reply in chat_service.reply(Question(RUDE, {"strong": 1.0}, length=LENGTH)):
        seen.append(reply)
        time.sleep(0.01)
    last = seen[-1]
    assert last.complete
    assert not any(reply.complete or reply.gates for reply in seen[:-1])
    assert all(last.base.text.startswith(reply.base.text) for reply in seen)
    steered = [reply.steered.text for reply in seen if reply.steered is not None]
    assert last.steered is not None
    assert all(last.steered.text.startswith(text) for text in steered)
    assert sorted(steered, key=len) == steered
    assert len(seen) > 3
    assert len(last.steered.ids) <= LENGTH
    assert min(last.base.speed, last.steered.speed) > 0


def test_the_base_is_what_the_model_says_and_is_kept(chat_service: ChatService, chat: tuple[Any, Any]) -> None:
    first, again = (
        last_reply(chat_service, strengths={"strong": 1.0}),
        last_reply(chat_service, strengths={"strong": 0.5}),
    )
    model, tokenizer = chat
    assert first.base.text == answer(model, tokenizer, encode_message(tokenizer, RUDE), LENGTH).text
    assert (first.cached, again.cached) == (False, True)
    assert again.base == first.base
    others = ({"message": CALM}, {"length": LENGTH - 1}, {"temperature": 1.0}, {"seed": 3})
    assert not any(last_reply(chat_service, **other).cached for other in others)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("asks", "same"),
    [
        ({"strengths": {"strong": 4.0}}, False),
        ({"strengths": {"strong": 4.0}, "gate": "on"}, False),
        ({"strengths": {"strong": 0.0}}, True),
        ({"strengths": {"strong": 1.0}, "gate": "off"}, True),
        ({"strengths": {"<b>closed</b>": 1.0}}, True),
    ],
    ids=["steered", "always on", "strength 0", "gate off", "gate closed"],
)
def test_what_is_not_steered_is_the_same_token_for_token(
    asks: dict[str, Any], same: bool, temperature: float, chat_service: ChatService
) -> None:
    reply = last_reply(chat_service, temperature=temperature, **asks)
    assert reply.same is same
    assert reply.steered is not None
    assert (reply.steered.ids == reply.base.ids) is same


def test_gates_are_read_on_message_and_answer(chat_service: ChatService, chat: tuple[Any, Any]) -> None:
    reply = last_reply(chat_service, strengths={"strong": 1.0})
    strong, closed = reply.gates
    assert reply.steered is not None
    assert "useless clown" in "".join(token.text for token in strong.message)
    assert strong.highest_h > 0.1 > closed.highest_h == 0
    ids = [token.id for token in (*strong.message, *strong.answer)]
    said = [*encode_message(chat[1], RUDE).input_ids[0].tolist(), *reply.steered.ids]
    assert ids == said[1 : len(ids) + 1], "all but the first token, and what the model has not read"
    assert len(ids) >= len(said) - 2


def test_a_model_with_an_encoder(chat: tuple[Any, Any]) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    small: Any = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 3}
    model = T5ForConditionalGeneration(T5Config(vocab_size=1100, eos_token_id=None, **small)).eval()
    reply = last_reply(
        ChatService(model, chat[1], "t5", [concept_for(model, name="strong")]), strengths={"strong": 0.0}
    )
    assert reply.same
    assert "useless clown" in "".join(token.text for token in reply.gates[0].message)
    assert len(reply.gates[0].answer) == LENGTH - 1


def test_several_at_once_get_their_own(chat_service: ChatService) -> None:
    asks = [(message, strength) for message in (RUDE, CALM) for strength in (0.0, 1.0)]
    alone = {ask: last_reply(chat_service, ask[0], strengths={"strong": ask[1]}) for ask in asks}
    chat_service._bases.clear()
    found: dict[Any, Reply] = {}

    def visit(ask: tuple[str, float]) -> None:
        found[ask] = last_reply(chat_service, ask[0], strengths={"strong": ask[1]})

    visitors = [threading.Thread(target=visit, args=(ask,)) for ask in asks]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    for ask in asks:
        ours, theirs = found[ask].steered, alone[ask].steered
        assert ours is not None
        assert theirs is not None
        assert (found[ask].base.ids, ours.ids) == (alone[ask].base.ids, theirs.ids)


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("steered", [False, True], ids=["in the base", "in the steered"])
def test_who_goes_away_frees_the_model(steered: bool, chat_service: ChatService, chat: tuple[Any, Any]) -> None:
    replies = chat_service.reply(Question(RUDE, {"strong": 1.0}, length=LENGTH))
    next(reply for reply in replies if (reply.steered is not None) is steered)
    assert chat_service._turn.locked()
    assert soon(lambda: (hooks(chat[0]) > 0) is steered)
    replies.close()
    assert soon(lambda: not chat_service._turn.locked())
    assert hooks(chat[0]) == 0
    assert len(chat_service._bases) == steered, "half an answer is not kept"
    assert last_reply(chat_service).complete


@pytest.mark.usefixtures("slow")
def test_closing_ends_what_is_being_written(chat_service: ChatService) -> None:
    replies = chat_service.reply(Question(RUDE, {"strong": 1.0}, length=LENGTH))
    next(replies)
    chat_service.close()
    assert not any(reply.complete for reply in replies)
    assert list(chat_service.reply(Question(CALM))) == []


def test_what_goes_wrong_in_the_thread_comes_out(chat_service: ChatService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsas_diffusion.ui.services.chat_service.answer", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        last_reply(chat_service)
    assert not chat_service._turn.locked()
    page, seen = Page(chat_service), []
    with pytest.raises(ZeroDivisionError):
        seen.extend(page.tab.write(page.data(Session())))
    assert "Writing failed" in Shown(*seen[-1]).problem


@pytest.mark.parametrize(
    ("asks", "told"),
    [
        ({"message": " "}, "there is no message"),
        ({"message": "a" * (MAX_CHARACTERS + 1)}, f"at most {MAX_CHARACTERS}"),
        ({"length": 0}, "expected 1 to"),
        ({"temperature": 9.0}, "expected 0 to 2"),
        ({"message": "hi " * 250}, "but the model takes 256 in all"),
        ({"strengths": {"kind": 1.0}}, "no concept 'kind': there are strong"),
    ],
)
def test_what_cannot_be_answered(asks: dict[str, Any], told: str, chat_service: ChatService) -> None:
    with pytest.raises(DSASError, match=told):
        last_reply(chat_service, **asks)


def test_concepts_that_do_not_fit(chat: tuple[Any, Any], spoken: list[Concept]) -> None:
    with pytest.raises(DSASError, match="two concepts are named"):
        ChatService(*chat, "builtin:chat", [spoken[0], spoken[0]])


def test_concepts_that_undo_one_another(chat: tuple[Any, Any], spoken: list[Concept]) -> None:
    made = ChatService(*chat, "builtin:chat", [spoken[0], replace(spoken[0], name="twin")])
    with pytest.warns(UserWarning, match="against one another"):
        reply = last_reply(made, strengths={"strong": 1.0, "twin": -1.0})
    assert reply.conflicts == (("strong", "twin"),)
    assert "<b>strong</b> and <b>twin</b> pull against one another" in markup.render_reply(reply)
    assert last_reply(made, strengths={"strong": 1.0, "twin": 1.0}).conflicts == ()


# ---- the page -----------------------------------------------------------------------------------------------------


class Page:
    """The tab, with what its components begin with."""

    def __init__(self, chat_service: ChatService) -> None:
        with gr.Blocks():
            self.tab = TextTab(chat_service, gr.State(Session()))

    def data(self, session: Session, strengths: tuple[float, ...] = (), **values: Any) -> dict[Any, Any]:
        held = {part: getattr(part, "value", None) for part in self.tab.inputs}
        held |= {self.tab.session: session, self.tab.length: LENGTH}
        held |= dict(zip(self.tab.sliders, strengths, strict=False))
        return held | {getattr(self.tab, name): value for name, value in values.items()}

    def write(self, session: Session, **values: Any) -> Shown:
        return Shown(*list(self.tab.write(self.data(session, **values)))[-1])


class Shown(NamedTuple):
    """What writing fills."""

    session: Session
    said: str
    problem: str
    told: str
    tokens: str

    @property
    def answers(self) -> tuple[str, str]:
        """The last answers, unsteered and steered."""
        base, steered = (side.split('answered">')[-1].split("</p>")[0] for side in self.said.split("</section>")[:2])
        return base, steered


@pytest.fixture
def page(chat_service: ChatService) -> Page:
    return Page(chat_service)


def test_writing(page: Page) -> None:
    session = Session()
    shown = page.write(session)
    assert shown.session is session
    base, steered = shown.answers
    assert base != steered
    assert "the answer is another one" in shown.told
    assert "tokens/s, steered" in shown.told
    assert "clown" in shown.tokens
    assert session.reply is not None
    assert session.reply.question.strengths == {"strong": 1.0, "<b>closed</b>": 0.0}


def test_a_closed_gate_is_explained_and_names_are_text(page: Page) -> None:
    shown = page.write(Session(), strengths=(0.0, 1.0))
    assert shown.answers[0] == shown.answers[1]
    closed = (
        "<b>&lt;b&gt;closed&lt;/b&gt;</b>: mean gate 0.00 on this message: the answer is the same, token for token."
    )
    assert closed in shown.told
    assert "<b>strong</b>: at 0 it changes nothing" in shown.told


def test_what_visitors_write_is_text(page: Page) -> None:
    shown = page.write(Session(), message="<img src=x onerror=alert(1)> my washer <script>")
    assert "does not know “img”" in shown.told
    for html in shown[1:]:
        assert "<img" not in html
        assert "<script" not in html
    token = llm.Token(1, 1, "<img>", {"<script>": 1.0}, {}, True)
    reply = page.tab.service.reply(page.tab.question(page.data(Session())))
    read = replace(list(reply)[-1].gates[0], message=(token,), concept="<script>")
    assert "<script" not in markup.render_tokens(read)
    assert "&lt;img&gt;" in markup.render_tokens(read)


def test_tokens_are_those_of_the_chosen_concept(page: Page) -> None:
    session = Session()
    assert "come here" in page.tab.color_tokens(session, "strong")
    page.write(session)
    strong, closed = (page.tab.color_tokens(session, name) for name in page.tab.service.concepts)
    assert "(h 0." in strong
    assert "(h 0." not in closed
    assert "closed&lt;/b&gt; in the message" in closed


def test_stop_tells_of_it_once_something_is_written(page: Page) -> None:
    session = Session()
    assert page.tab.describe_stop(session) == gr.skip()
    running = page.tab.write(page.data(session))
    next(running)
    running.close()
    assert "Stopped" in page.tab.describe_stop(session)
    page.write(session)
    assert page.tab.describe_stop(session) == gr.skip()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"message": ""}, "there is no message"),
        ({"seed": None}, "seed None: expected"),
        ({"length": math.nan}, "length nan: expected"),
        ({"strengths": (math.nan,)}, "strength nan: expected"),
    ],
)
def test_what_cannot_be_asked_is_told_and_the_answers_stay(values: dict[str, Any], told: str, page: Page) -> None:
    with pytest.warns(UserWarning, match=told):
        empty = page.write(Session(), **values)
    assert "The answer comes here" in empty.said
    assert told in empty.problem
    before = page.write(session := Session())
    with pytest.warns(UserWarning, match=told):
        after = page.write(session, **values)
    assert told in after.problem
    assert (after.said, after.told, after.tokens) == (before.said, before.told, before.tokens)


def test_the_first_message_shows_a_concept_that_ships_at_work(chat: tuple[Any, Any]) -> None:
    service = ChatService(*chat, "builtin:chat", load_shipped("builtin:chat"))
    page = Page(service)
    assert [slider.value for slider in page.tab.sliders] == [1, 0]
    shown = page.write(Session())
    assert shown.answers[0] != shown.answers[1]
    assert f"{page.tab.concept.value} in the steered answer" in shown.tokens
    assert "rgba" in shown.tokens, "tokens are coloured"
    service.close()


def test_examples_and_sliders_come_from_the_concepts(page: Page, chat: tuple[Any, Any]) -> None:
    assert page.tab._examples() == [*EXAMPLES, "is it late?"]
    first, second = page.tab.sliders
    assert (first.minimum, first.maximum, first.value) == pytest.approx((-0.95, 1.45, 1.0))
    assert second.value == 0
    assert page.tab.length.maximum == 256, "what the model takes"
    bare = Page(ChatService(*chat, "elsewhere"))
    assert bare.tab._examples() == []
    shown = bare.write(Session(), message=CALM)
    assert shown.answers[0] == shown.answers[1]
    assert "no concept to steer with" in shown.told


def test_a_conversation_goes_on_on_both_sides(page: Page, chat: tuple[Any, Any]) -> None:
    session = Session()
    first = page.write(session).answers
    shown = page.write(session, message=CALM)
    assert first[0] != first[1]
    for side, said in zip((0, 1), shown.said.split("</section>"), strict=False):
        assert (
            said.index("useless clown") < said.index(first[side]) < said.index(CALM) < said.index(shown.answers[side])
        )
    model, tokenizer = chat
    alone = answer(model, tokenizer, encode_message(tokenizer, CALM, [(RUDE, first[0])]), LENGTH).text
    assert shown.answers[0] == alone, "the unsteered side goes on with its own answers"
    assert session.reply is not None
    tokens = "".join(token.text for token in session.reply.gates[0].message)
    assert "what can i do" in tokens
    assert "clown" not in tokens, "the gate's reading is of the last message"
    with pytest.warns(UserWarning, match="begin a new one"):
        assert "the conversation has" in page.write(session, length=230).problem
    kept, said, problem, told, tokens = page.tab.begin_anew(session, None)
    assert kept.reply is None
    assert "The answer comes here" in said
    assert problem == ""
    assert page.write(session).answers == first


def test_half_an_answer_is_not_gone_on_from(page: Page) -> None:
    session = Session()
    running = page.tab.write(page.data(session))
    next(running)
    running.close()
    assert page.tab.question(page.data(session, message=CALM)).earlier == ()


def test_without_a_chat_template_each_message_is_the_first(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session()
    page.write(session)
    monkeypatch.setattr(page.tab.service.tokenizer, "chat_template", None)
    assert page.tab.question(page.data(session)).earlier == ()
    with pytest.raises(DSASError, match="no chat template"):
        encode_message(page.tab.service.tokenizer, CALM, [(RUDE, "no")])


def test_the_page_has_the_tab_where_there_is_a_language_model(
    service: PictureService, chat_service: ChatService
) -> None:
    def tabs(page: gr.Blocks) -> list[Any]:
        return [block.label for block in page.blocks.values() if isinstance(block, gr.Tab)]

    page = build(service, chat_service)
    assert tabs(page)[-1] == "Text"
    assert "Text" not in tabs(build(service))
    (writes,) = [fn for fn in page.fns.values() if fn.name == "write"]
    assert (writes.concurrency_id, writes.concurrency_limit, writes.api_visibility) == ("text", 1, "private")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--text-model", "none", "--text-concepts", "x"], 2, "--text-concepts needs a --text-model"),
        (["--text-model", "builtin:emoji"], 1, "builtin:emoji is no language model"),
        (["--text-concepts", "nowhere"], 1, "no concept at nowhere"),
    ],
)
def test_mistakes_at_the_start(
    arguments: list[str], code: int, told: str, dsas: Callable[..., tuple[int, str, str]]
) -> None:
    found, _, err = dsas("app", *arguments)
    assert (found, told in err) == (code, True), err
