"""The tab that writes: a message, a slider for each concept, the answer without and with them, and what gates read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr

from dsas_core.errors import DSASError

from . import look
from .controls import MOST_SEED, STEP, chips, field, number, seed_of, strength_slider
from .session import Session, friendly, toast
from .talk import MOST_CHARACTERS, MOST_TEMPERATURE, Question, Reply, Talk, message_of

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

    def __init__(self, talk: Talk, session: gr.State) -> None:
        self.talk, self.session = talk, session
        self._ask()
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                self._knobs()
            with gr.Column(scale=6, min_width=300, elem_id="text-canvas"):
                self._show()
        self.asked = {self.session, self.message, self.gate, self.length, self.temperature, self.seed, self.concept}
        self.asked |= set(self.sliders)
        self._wire()

    def _ask(self) -> None:
        examples = self._examples()
        with gr.Row(equal_height=True):
            self.message = field(examples, "Message", "what to say to the model", MOST_CHARACTERS, "text-message")
            self.send = gr.Button("Send", variant="primary", elem_id="text-send", scale=1, min_width=100)
            self.stop = gr.Button("Stop", elem_id="text-stop", scale=1, min_width=100)
        chips(examples, self.message)

    def _knobs(self) -> None:
        if self.talk.concepts:
            gr.Markdown("**Concepts**: 0 leaves the answer as it is, 1 is one unit, below 0 goes the other way.")
        self.sliders = [
            strength_slider(concept, i == 0, f"text-strength-{i}")
            for i, concept in enumerate(self.talk.concepts.values())
        ]
        self.gate = gr.Radio(list(GATES.items()), value="dsas", label="Gate", elem_id="text-gate")
        usual = Question("…")
        with gr.Accordion("Advanced", open=False):
            self.length = gr.Slider(
                1,
                self.talk.longest,
                min(usual.length, self.talk.longest),
                step=1,
                label="Most tokens of the answer",
                elem_id="text-length",
            )
            self.temperature = gr.Slider(
                0,
                MOST_TEMPERATURE,
                usual.temperature,
                step=STEP,
                label="Temperature",
                info="0 takes the likeliest token; above it, tokens are drawn by the seed",
                elem_id="text-temperature",
            )
            self.seed = gr.Number(7, label="Seed", precision=0, minimum=0, maximum=MOST_SEED, elem_id="text-seed")

    def _show(self) -> None:
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
        self.explain = gr.HTML(look.replied(None), elem_id="text-explain")
        known = list(self.talk.concepts)
        self.concept = gr.Dropdown(
            known,
            value=next(iter(known), None),
            label="Colour tokens by h of",
            visible=len(known) > 1,
            elem_id="text-concept",
        )
        self.tokens = gr.HTML(look.spelled(None), elem_id="text-tokens", visible=bool(known))

    def _examples(self) -> list[str]:
        """What is known to be worth asking, then messages that concepts were illustrated with: held out, too."""
        samples = (concept.samples for concept in self.talk.concepts.values())
        told = [message_of(prompt) for one in samples if one is not None for prompt in one.prompts]
        return list(dict.fromkeys([*(EXAMPLES if self.talk.name == "builtin:chat" else ()), *told]))

    # ---- events -----------------------------------------------------------------------------------------------------

    def _wire(self) -> None:
        written = gr.on(
            [self.send.click, self.message.submit],
            friendly(self.write),
            self.asked,
            [self.session, self.base, self.steered, self.explain, self.tokens],
            concurrency_id="text",
            concurrency_limit=1,
            show_progress="minimal",
            show_progress_on=self.explain,
            api_visibility="private",
        )
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        self.stop.click(friendly(self.stopped), self.session, self.explain, cancels=written, **quick)
        self.concept.input(friendly(self.spell), [self.session, self.concept], self.tokens, **quick)

    def write(self, data: Mapping[Any, Any]) -> Iterator[tuple[Any, ...]]:
        """Both answers as they grow, the base first, then their tokens."""
        session: Session = data[self.session]
        try:
            for reply in self.talk.reply(self.question(data)):
                session.reply = reply
                steered = reply.steered.text if reply.steered is not None else ""
                yield session, reply.base.text, steered, look.replied(reply), self.spell(session, data[self.concept])
        except DSASError as error:
            toast(error)
            yield session, gr.skip(), gr.skip(), look.note(str(error), "warned"), gr.skip()
        except Exception:  # or the page would say for ever that it writes
            yield session, gr.skip(), gr.skip(), look.note("Writing failed.", "warned"), gr.skip()
            raise

    def question(self, data: Mapping[Any, Any]) -> Question:
        """What the components ask for.

        Raises:
            DSASError: a number that makes no sense, or as of `Question`.
        """
        strengths = (number(data[slider], "strength") for slider in self.sliders)
        return Question(
            message=data[self.message] or "",
            strengths=dict(zip(self.talk.concepts, strengths, strict=True)),
            gate=data[self.gate],
            length=int(number(data[self.length], "length")),
            temperature=number(data[self.temperature], "temperature"),
            seed=seed_of(data[self.seed]),
        )

    def spell(self, session: Session, concept: str | None) -> str:
        """The tokens of the last answer by one concept, where it is whole."""
        read = session.reply.read if session.reply is not None else ()
        return look.spelled(next((one for one in read if one.concept == concept), None))

    def stopped(self, session: Session) -> Any:
        """That it ends here, where something was being written."""
        reply: Reply | None = session.reply
        if reply is None or reply.whole:
            return gr.skip()
        return look.note("Stopped. What was written until then stays.")
