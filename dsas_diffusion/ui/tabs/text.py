"""The tab that writes: a message, a slider for each concept, the answer without and with them, and what gates read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr

from ..page import controls, markup
from ..page.session import Session, report_errors, until_failure
from ..services.chat_service import MAX_CHARACTERS, MAX_TEMPERATURE, ChatService, Question, Reply, Turn, message_of

#: for builtin:chat: rude and calm, about things that learning did not use, and two calm ones with rude words
EXAMPLES = (
    "you useless clown! my washer does not start.",
    "hello, my washer does not start. what can i do?",
    "my boiler only works at night! shut up and fix it, idiot.",
    "hello, i need help with my dryer. i was silly and did not look.",
    "which animal does belina keep?",
)
GATES = {"DSAS: at the tokens that show the concept": "dsas", "always on: every token": "on", "off": "off"}


class TextTab:
    """Components and handlers of the tab.

    Args:
        service: what writes.
        session: the visitor's state.
    """

    def __init__(self, service: ChatService, session: gr.State) -> None:
        self.service, self.session = service, session
        label, placeholder, examples = "Message", "what to say to the model", self._examples()
        buttons = {"text-send": "Send", "text-stop": "Stop", "text-anew": "New conversation"}
        self.message, *self.buttons = controls.prompt_row(
            label, placeholder, MAX_CHARACTERS, "text-message", examples, buttons, width=100
        )
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                self._add_knobs()
            with gr.Column(scale=8, min_width=300, elem_id="text-canvas"):
                self._add_answers()
        self._wire()

    @property
    def inputs(self) -> set[Any]:
        """The components that `write` reads."""
        knobs = {self.gate, self.length, self.temperature, self.seed, *self.sliders}
        return {self.session, self.message, self.concept, *knobs}

    def _add_knobs(self) -> None:
        if self.service.concepts:
            gr.Markdown("**Concepts**: 0 leaves the answer as it is, 1 is one unit, below 0 goes the other way.")
        self.sliders = controls.strength_sliders(self.service.concepts.values(), "text-strength")
        self.gate = controls.gate_choice(GATES, "text-gate")
        defaults, max_length = Question("…"), self.service.max_length
        with gr.Accordion("Advanced", open=False):
            length, label = min(defaults.length, max_length), "Most tokens of the answer"
            self.length = gr.Slider(1, max_length, length, step=1, label=label, elem_id="text-length")
            info = "0 takes the likeliest token; above it, tokens are drawn by the seed"
            settings: dict[str, Any] = {"label": "Temperature", "info": info, "elem_id": "text-temperature"}
            self.temperature = gr.Slider(0, MAX_TEMPERATURE, defaults.temperature, step=controls.STEP, **settings)
            self.seed = controls.seed_field("text-seed")

    def _add_answers(self) -> None:
        self.said = gr.HTML(markup.render_conversation(()), elem_id="text-said")
        self.problem = gr.HTML("", elem_id="text-problem")
        self.explain = gr.HTML(markup.render_reply(None), elem_id="text-explain")
        names, label = self.service.concepts, "Colour tokens by h of"
        self.concept = controls.concept_choice(names, label, "text-concept", visible=len(names) > 1)
        self.tokens = gr.HTML(markup.render_tokens(None), elem_id="text-tokens", visible=bool(names))

    def _examples(self) -> list[str]:
        """For the built-in model what is worth asking, then messages that concepts were illustrated with."""
        samples = map(message_of, controls.sample_prompts(self.service.concepts.values()))
        return list(dict.fromkeys([*(EXAMPLES if self.service.name == "builtin:chat" else ()), *samples]))

    # ---- events -----------------------------------------------------------------------------------------------------

    def _wire(self) -> None:
        send, stop, anew = self.buttons
        events: list[Any] = [send.click, self.message.submit]
        outputs: list[Any] = [self.said, self.problem, self.explain, self.tokens]
        queue = {"show_progress": "minimal", **controls.queue_settings("text", self.explain)}
        writes = gr.on(events, report_errors(self.write), self.inputs, [self.session, *outputs], **queue)
        stop.click(report_errors(self.describe_stop), self.session, self.problem, cancels=writes, **controls.QUICK)
        inputs = [self.session, self.concept]
        anew.click(report_errors(self.begin_anew), inputs, [self.session, *outputs], cancels=writes, **controls.QUICK)
        self.concept.input(report_errors(self.color_tokens), inputs, self.tokens, **controls.QUICK)

    def write(self, data: Mapping[Any, Any]) -> Iterator[tuple[Any, ...]]:
        """The conversation with both answers as they grow, the unsteered one first, then their tokens.

        After an error the conversation is as it was, with what was said of its last answer.
        """
        session, before = data[self.session], data[self.session].reply

        def failed(note: str) -> tuple[Any, ...]:
            session.reply = before
            return self._shown(session, data[self.concept], note)

        yield from until_failure(self._updates(session, data), failed, "Writing failed.")

    def _updates(self, session: Session, data: Mapping[Any, Any]) -> Iterator[tuple[Any, ...]]:
        for reply in self.service.reply(self.question(data)):
            session.reply = reply
            yield self._shown(session, data[self.concept])

    def begin_anew(self, session: Session, concept: str | None) -> tuple[Any, ...]:
        """Updates for a conversation in which nothing was said yet."""
        session.reply = None
        return self._shown(session, concept)

    def _shown(self, session: Session, concept: str | None, problem: str = "") -> tuple[Any, ...]:
        """Updates with the conversation, and what is said of its last answer."""
        said = markup.render_conversation(turns_of(session.reply))
        return session, said, problem, markup.render_reply(session.reply), self.color_tokens(session, concept)

    def question(self, data: Mapping[Any, Any]) -> Question:
        """What the components ask for.

        Raises:
            DSASError: a number that makes no sense, or as of `Question`.
        """
        strengths = (controls.read_number(data[slider], "strength") for slider in self.sliders)
        return Question(
            message=data[self.message] or "",
            strengths=dict(zip(self.service.concepts, strengths, strict=True)),
            gate=data[self.gate],
            length=int(controls.read_number(data[self.length], "length")),
            temperature=controls.read_number(data[self.temperature], "temperature"),
            seed=controls.read_seed(data[self.seed]),
            earlier=self._earlier(data[self.session].reply),
        )

    def _earlier(self, reply: Reply | None) -> tuple[Turn, ...]:
        """What a conversation goes on from: answers that were stopped before both sides had one are left out."""
        return tuple(turn for turn in turns_of(reply) if turn.base and turn.steered) if self.service.converses else ()

    def color_tokens(self, session: Session, concept: str | None) -> str:
        """The tokens of the last answer, coloured by one concept, where it is complete."""
        gates = session.reply.gates if session.reply is not None else ()
        return markup.render_tokens(next((gate for gate in gates if gate.concept == concept), None))

    def describe_stop(self, session: Session) -> Any:
        """A line that says that writing was stopped, where an answer was not complete."""
        if session.reply is None or session.reply.complete:
            return gr.skip()
        return markup.render_note("Stopped. What was written until then stays.")


def turns_of(reply: Reply | None) -> tuple[Turn, ...]:
    """A conversation up to its last answer, as far as that is written."""
    return () if reply is None else (*reply.question.earlier, reply.turn)
