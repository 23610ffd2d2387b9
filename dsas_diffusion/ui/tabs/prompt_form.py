"""The form for what a concept is learned from: two phrases or lists of prompts, and a name; with hints while typing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from dsas_core.errors import DSASError, PromptError
from dsas_core.learning.prompts.draft import draft
from dsas_core.learning.prompts.hints import hints
from dsas_core.learning.prompts.prompt_file import load_prompts
from dsas_core.learning.prompts.prompt_set import SIDES, PromptSet

from ...learning.drafting import known_to
from ...pipelines.prompt_check import unknown_words
from ..page import markup
from ..page.controls import PRIVATE, QUICK, line_field, read_number
from ..page.session import report_errors
from ..services.drawing import MAX_CHARACTERS
from ..services.picture_service import PictureService
from ..services.uploads import PROMPT_FILES, check_name, read_prompts

PHRASES, LISTS = "two phrases", "prompt lists"
#: prompts a side; a whole prompt file may have more, which are drawn from
MIN_PROMPTS, MAX_PROMPTS = 8, 48
#: letters of a phrase, and of a list of prompts
MAX_PHRASE, MAX_LIST = 120, 60_000
#: what was looked at where there is no hint
CHECKED = "{} prompts were checked: their number, repetitions, length, look-alikes among the controls{}."
#: what the prompts of each side are
MEANING = {"source": "shows it", "target": "shows what it should become", "control": "must stay as it is"}


class PromptForm:
    """Components and handlers, created within the page's layout.

    Args:
        service: whose model the words are for.
    """

    def __init__(self, service: PictureService) -> None:
        self.service = service
        self.kind = gr.Radio([PHRASES, LISTS], value=PHRASES, label="Learn from", elem_id="learn-kind")
        with gr.Row(elem_id="learn-phrases") as self.phrases:
            self.first = line_field("What to change", "banana", "learn-from", MAX_PHRASE)
            self.second = line_field("What into", "blurred banana", "learn-to", MAX_PHRASE)
        with gr.Column(visible=False, elem_id="learn-lists") as self.lists:
            box: dict[str, Any] = {"lines": 5, "max_lines": 10, "max_length": MAX_LIST}
            labels = {side: f"{side.capitalize()}: {MEANING[side]}, a prompt a line" for side in SIDES}
            self.sides = [gr.Textbox(label=labels[side], elem_id=f"learn-{side}", **box) for side in SIDES]
            label = "Fill from a prompt file (YAML or JSON)"
            self.file = gr.UploadButton(label, file_types=list(PROMPT_FILES), size="sm", elem_id="learn-file")
        self.name = line_field("Name (made from the phrases, if empty)", "", "learn-name", 64)
        self.hints = gr.HTML("", elem_id="learn-hints")

    @property
    def inputs(self) -> set[Any]:
        """The components that `prompts` reads."""
        return {self.kind, self.first, self.second, *self.sides, self.name}

    def wire(self, count: gr.Slider) -> None:
        """Have hints appear while people type; `count` is how many prompts are drawn."""
        inputs: list[Any] = [self.kind, self.first, self.second, *self.sides, count]
        changed = [component.change for component in inputs]
        gr.on(changed, report_errors(self.advise), inputs, self.hints, trigger_mode="always_last", **QUICK)
        self.kind.change(self.switch, self.kind, [self.phrases, self.lists], **QUICK)
        self.file.upload(report_errors(self.fill), self.file, [*self.sides, self.name], **PRIVATE)

    @staticmethod
    def switch(kind: str) -> list[Any]:
        """Updates of the two forms, of which one is shown."""
        return [gr.update(visible=kind == choice) for choice in (PHRASES, LISTS)]

    def advise(self, kind: str, *values: Any) -> str:
        """What could be better about the prompts, as far as their words show."""
        *texts, count = values
        first, second, *lists = (text or "" for text in texts)
        if kind == PHRASES and not (first.strip() and second.strip()):
            return ""
        if kind == LISTS and not "".join(lists).strip():
            return markup.render_note(f"At least {MIN_PROMPTS} prompts on each side, one to a line.")
        try:
            if kind == PHRASES:
                _check_phrases(first, second)
                # look-alikes by the lists: asking the model would wait until nothing is drawn
                prompts = load_prompts(draft(first, second, known=known_to(self.service.adapter)))
                sides: Mapping[str, Sequence[str]] = prompts.draw(int(read_number(count, "prompts")))
            else:
                sides = _split(lists)
            unknown = unknown_words(self.service.adapter, [text for texts in sides.values() for text in texts])
            advice = [*hints(sides), *([markup.describe_unknown(unknown[:5])] if unknown else [])]
            *some, last = (f"{len(texts)} {side}" for side, texts in sides.items())
            known = ", words that the model knows" if self.service.adapter.is_builtin else ""
            checked = CHECKED.format(f"{', '.join(some)} and {last}", known)
        except DSASError as error:
            advice, checked = [str(error)], ""
        return markup.render_advice(advice, checked)

    def fill(self, path: str | None) -> tuple[str, ...]:
        """The lists and the name from a prompt file, with as many prompts as can be learned from."""
        prompts = read_prompts(path)
        sides = prompts.draw(MAX_PROMPTS)
        return *("\n".join(" ".join(text.split()) for text in sides[side]) for side in SIDES), prompts.name

    def prompts(self, data: Mapping[Any, Any]) -> PromptSet:
        """What the components ask to learn from.

        Raises:
            DSASError: nothing can be learned from it.
        """
        name = (data[self.name] or "").strip()
        if name:
            check_name(name)
        if data[self.kind] == PHRASES:
            phrases = data[self.first] or "", data[self.second] or ""
            _check_phrases(*phrases)
            prompts = load_prompts(self.service.draft_prompts(*phrases, name or None))
        elif name:
            sides = _split([data[side] or "" for side in self.sides])
            # these braces are no placeholders
            texts = {side: [text.replace("{", "{{").replace("}", "}}") for text in sides[side]] for side in sides}
            prompts = load_prompts({"name": name, "description": "Learned from prompt lists.", **texts})
        else:
            raise PromptError("the concept has no name: give it one, of letters, digits, '.', '_' and '-'")
        check_name(prompts.name)
        return prompts


def _check_phrases(*phrases: str) -> None:
    for phrase in phrases:
        if len(phrase) > MAX_PHRASE:
            raise PromptError(f"a phrase has {len(phrase)} letters: at most {MAX_PHRASE} are taken")
        if "{" in phrase or "}" in phrase:
            raise PromptError("a phrase has braces, which stand for placeholders: leave them out")


def _split(texts: Sequence[str]) -> dict[str, list[str]]:
    """The prompts in the three text boxes, one to a line."""
    for text in texts:
        if len(text) > MAX_LIST:
            raise PromptError(f"a list has {len(text)} letters: at most {MAX_LIST} are taken; leave some prompts out")
    lists = [list(filter(None, map(str.strip, text.splitlines()))) for text in texts]
    longest = max((len(prompt) for prompts in lists for prompt in prompts), default=0)
    if longest > MAX_CHARACTERS:
        raise PromptError(f"a prompt has {longest} letters: at most {MAX_CHARACTERS} are taken")
    return dict(zip(SIDES, lists, strict=True))
