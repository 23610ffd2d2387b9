"""What a concept is learned from: two phrases, or lists of prompts, and its name; with hints while people type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from dsas_core.errors import DSASError, PromptError
from dsas_core.learning.prompts.draft import draft
from dsas_core.learning.prompts.hints import hints
from dsas_core.learning.prompts.prompt_set import SIDES, PromptSet, load_prompts

from ...pipelines.prompt_check import unknown_words
from ..page import markup
from ..page.controls import PRIVATE, QUICK, number, one_line
from ..page.session import report_errors
from ..services.drawing import MOST_CHARACTERS
from ..services.picture_service import PictureService
from ..services.uploads import PROMPT_FILES, name_of, prompt_file

PHRASES, LISTS = "two phrases", "prompt lists"
#: prompts a side; a whole prompt file may have more, which are drawn from
FEWEST, MOST = 8, 48
#: letters of a phrase, and of a list of prompts
MOST_PHRASE, MOST_LIST = 120, 60_000
FINE = "Nothing to object to."
#: what the prompts of each side are
MEANING = {"source": "shows it", "target": "shows what it should become", "control": "must stay as it is"}


class PromptForm:
    """Components and handlers, made within the page's layout; `studio` has the model that the words are for."""

    def __init__(self, studio: PictureService) -> None:
        self.studio = studio
        self.kind = gr.Radio([PHRASES, LISTS], value=PHRASES, label="Learn from", elem_id="learn-kind")
        with gr.Row(elem_id="learn-phrases") as self.phrases:
            self.first = one_line("What to change", "banana", "learn-from", MOST_PHRASE)
            self.second = one_line("What into", "blurred banana", "learn-to", MOST_PHRASE)
        with gr.Column(visible=False, elem_id="learn-lists") as self.lists:
            self.sides = [
                gr.Textbox(
                    label=f"{side.capitalize()}: {MEANING[side]}, a prompt a line",
                    lines=5,
                    max_lines=10,
                    max_length=MOST_LIST,
                    elem_id=f"learn-{side}",
                )
                for side in SIDES
            ]
            self.file = gr.UploadButton(
                "Fill from a prompt file (YAML or JSON)", file_types=list(PROMPT_FILES), size="sm", elem_id="learn-file"
            )
        self.name = one_line("Name (made from the phrases, if empty)", "", "learn-name", 64)
        self.hints = gr.HTML("", elem_id="learn-hints")

    @property
    def inputs(self) -> set[Any]:
        """The components that `prompts` reads."""
        return {self.kind, self.first, self.second, *self.sides, self.name}

    def wire(self, count: gr.Slider) -> None:
        """Have hints come while people type; `count` says how many prompts are drawn."""
        written: list[Any] = [self.kind, self.first, self.second, *self.sides, count]
        changed = [part.change for part in written]
        gr.on(changed, report_errors(self.advise), written, self.hints, trigger_mode="always_last", **QUICK)
        self.kind.change(
            lambda kind: [gr.update(visible=kind == choice) for choice in (PHRASES, LISTS)],
            self.kind,
            [self.phrases, self.lists],
            **QUICK,
        )
        self.file.upload(report_errors(self.fill), self.file, [*self.sides, self.name], **PRIVATE)

    def advise(self, kind: str, *written: Any) -> str:
        """What could be better about the prompts, as far as words tell."""
        *texts, count = written
        first, second, *lists = (text or "" for text in texts)
        if kind == PHRASES and not (first.strip() and second.strip()):
            return ""
        if kind == LISTS and not "".join(lists).strip():
            return markup.note(f"At least {FEWEST} prompts on each side, one to a line.")
        try:
            if kind == PHRASES:
                sides: Mapping[str, Sequence[str]] = _draft(first, second, None).draw(int(number(count, "prompts")))
            else:
                sides = _split(lists)
            unknown = unknown_words(self.studio.adapter, [text for texts in sides.values() for text in texts])
            advice = [*hints(sides), *([markup.unknown(unknown[:5])] if unknown else [])]
        except DSASError as error:
            advice = [str(error)]
        return markup.advice(advice, FINE)

    def fill(self, path: str | None) -> tuple[str, ...]:
        """The lists, and the name, from a prompt file: as many prompts as may be learned from."""
        prompts = prompt_file(path)
        sides = prompts.draw(MOST)
        return *("\n".join(" ".join(text.split()) for text in sides[side]) for side in SIDES), prompts.name

    def prompts(self, data: Mapping[Any, Any]) -> PromptSet:
        """What the components ask to learn from.

        Raises:
            DSASError: nothing can be learned from it.
        """
        name = (data[self.name] or "").strip()
        if name:
            name_of(name)
        if data[self.kind] == PHRASES:
            prompts = _draft(data[self.first] or "", data[self.second] or "", name or None)
        elif name:
            sides = _split([data[side] or "" for side in self.sides])
            # braces are letters like others
            texts = {side: [text.replace("{", "{{").replace("}", "}}") for text in sides[side]] for side in sides}
            prompts = load_prompts({"name": name, "description": "Learned from prompt lists.", **texts})
        else:
            raise PromptError("the concept has no name: give it one, of letters, digits, '.', '_' and '-'")
        name_of(prompts.name)
        return prompts


def _draft(first: str, second: str, name: str | None) -> PromptSet:
    for phrase in (first, second):
        if len(phrase) > MOST_PHRASE:
            raise PromptError(f"a phrase has {len(phrase)} letters: at most {MOST_PHRASE} are taken")
        if "{" in phrase or "}" in phrase:
            raise PromptError("a phrase has braces, which stand for placeholders: leave them out")
    return load_prompts(draft(first, second, name))


def _split(texts: Sequence[str]) -> dict[str, list[str]]:
    """The prompts in the three text boxes, one to a line."""
    for text in texts:
        if len(text) > MOST_LIST:
            raise PromptError(f"a list has {len(text)} letters: at most {MOST_LIST} are taken; leave some prompts out")
    sides = {
        side: [line.strip() for line in text.splitlines() if line.strip()]
        for side, text in zip(SIDES, texts, strict=True)
    }
    longest = max((len(prompt) for prompts in sides.values() for prompt in prompts), default=0)
    if longest > MOST_CHARACTERS:
        raise PromptError(f"a prompt has {longest} letters: at most {MOST_CHARACTERS} are taken")
    return sides
