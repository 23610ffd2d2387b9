"""The tab that writes: a message, a slider for each concept, the answer without and with them, and what gates read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr

from ..page import controls, markup
from ..page.session import Session, report_errors, until_failure
from ..services.chat_service import MOST_CHARACTERS, MOST_TEMPERATURE, ChatService, Question, Reply, message_of

#: for builtin:chat: rude and calm, about things that learning has not seen, and two calm ones with rude words
EXAMPLES = (
    "you useless clown! my washer does not start.",
    "hello, my washer does not start. what can i do?",
    "my boiler only works at night! shut up and fix it, idiot.",
    "hello, i need help with my dryer. i was silly and did not look.",
    "which animal does belina keep?",
)
GATES = {"DSAS: at the tokens that show the concept": "dsas", "always on: every token": "on", "off": "off"}


class TextTab:
    """Components and handlers of the tab."""

    def __init__(self, talk: ChatService, session: gr.State) -> None:
        self.talk, self.session = talk, session
        self._add_message()
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                self._add_knobs()
            with gr.Column(scale=6, min_width=300, elem_id="text-canvas"):
                self._add_answers()
        self._wire()

    @property
    def inputs(self) -> set[Any]:
        """The components that `write` reads."""
        knobs = {self.gate, self.length, self.temperature, self.seed, *self.sliders}
        return {self.session, self.message, self.concept, *knobs}

    def _add_message(self) -> None:
        examples = self._examples()
        with gr.Row(equal_height=True):
            self.message = controls.field(
                examples, "Message", "what to say to the model", MOST_CHARACTERS, "text-message"
            )
            self.send = gr.Button("Send", variant="primary", elem_id="text-send", scale=1, min_width=100)
            self.stop = gr.Button("Stop", elem_id="text-stop", scale=1, min_width=100)
        controls.chips(examples, self.message)

    def _add_knobs(self) -> None:
        if self.talk.concepts:
            gr.Markdown("**Concepts**: 0 leaves the answer as it is, 1 is one unit, below 0 goes the other way.")
        self.sliders = controls.strength_sliders(self.talk.concepts.values(), "text-strength")
        self.gate = gr.Radio(list(GATES.items()), value="dsas", label="Gate", elem_id="text-gate")
        usual = Question("…")
        with gr.Accordion("Advanced", open=False):
            longest, label = self.talk.longest, "Most tokens of the answer"
            length = min(usual.length, longest)
            self.length = gr.Slider(1, longest, length, step=1, label=label, elem_id="text-length")
            self.temperature = gr.Slider(
                0,
                MOST_TEMPERATURE,
                usual.temperature,
                step=controls.STEP,
                label="Temperature",
                info="0 takes the likeliest token; above it, tokens are drawn by the seed",
                elem_id="text-temperature",
            )
            self.seed = controls.seed_field("text-seed")

    def _add_answers(self) -> None:
        with gr.Row():
            self.base, self.steered = (
                gr.Textbox(
                    label=label,
                    lines=6,
                    max_lines=16,
                    interactive=False,
                    buttons=["copy"],
                    elem_id=f"text-{name}",
                    min_width=240,
                )
                for name, label in (("base", "Unsteered"), ("steered", "Steered"))
            )
        self.explain = gr.HTML(markup.replied(None), elem_id="text-explain")
        names, label = self.talk.concepts, "Colour tokens by h of"
        self.concept = controls.concept_choice(names, label, "text-concept", visible=len(names) > 1)
        self.tokens = gr.HTML(markup.spelled(None), elem_id="text-tokens", visible=bool(names))

    def _examples(self) -> list[str]:
        """What is known to be worth asking, then messages that concepts were illustrated with: held out, too."""
        samples = map(message_of, controls.sample_prompts(self.talk.concepts.values()))
        return list(dict.fromkeys([*(EXAMPLES if self.talk.name == "builtin:chat" else ()), *samples]))

    # ---- events -----------------------------------------------------------------------------------------------------

    def _wire(self) -> None:
        writes = gr.on(
            [self.send.click, self.message.submit],
            report_errors(self.write),
            self.inputs,
            [self.session, self.base, self.steered, self.explain, self.tokens],
            show_progress="minimal",
            **controls.one_at_a_time("text", self.explain),
        )
        self.stop.click(report_errors(self.stopped), self.session, self.explain, cancels=writes, **controls.QUICK)
        self.concept.input(report_errors(self.spell), [self.session, self.concept], self.tokens, **controls.QUICK)

    def write(self, data: Mapping[Any, Any]) -> Iterator[tuple[Any, ...]]:
        """Both answers as they grow, the base first, then their tokens."""
        session, skip = data[self.session], gr.skip()
        updates = self._updates(session, data)
        yield from until_failure(updates, lambda note: (session, skip, skip, note, skip), "Writing failed.")

    def _updates(self, session: Session, data: Mapping[Any, Any]) -> Iterator[tuple[Any, ...]]:
        for reply in self.talk.reply(self.question(data)):
            session.reply = reply
            steered = reply.steered.text if reply.steered is not None else ""
            yield session, reply.base.text, steered, markup.replied(reply), self.spell(session, data[self.concept])

    def question(self, data: Mapping[Any, Any]) -> Question:
        """What the components ask for.

        Raises:
            DSASError: a number that makes no sense, or as of `Question`.
        """
        strengths = (controls.number(data[slider], "strength") for slider in self.sliders)
        return Question(
            message=data[self.message] or "",
            strengths=dict(zip(self.talk.concepts, strengths, strict=True)),
            gate=data[self.gate],
            length=int(controls.number(data[self.length], "length")),
            temperature=controls.number(data[self.temperature], "temperature"),
            seed=controls.seed_of(data[self.seed]),
        )

    def spell(self, session: Session, concept: str | None) -> str:
        """The tokens of the last answer by one concept, where it is whole."""
        gates = session.reply.gates if session.reply is not None else ()
        return markup.spelled(next((gate for gate in gates if gate.concept == concept), None))

    def stopped(self, session: Session) -> Any:
        """That it ends here, where something was being written."""
        reply: Reply | None = session.reply
        if reply is None or reply.whole:
            return gr.skip()
        return markup.note("Stopped. What was written until then stays.")
