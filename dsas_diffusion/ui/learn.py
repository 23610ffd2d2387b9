"""The tab that learns a concept, from two phrases or from lists of prompts; it becomes a slider of this visitor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from dsas_core import methods
from dsas_core.draft import draft
from dsas_core.errors import DSASError
from dsas_core.hints import hints
from dsas_core.prompts import SIDES, PromptSet, read

from ..vocabulary import unknown_words
from . import look
from .controls import number, one_line
from .create import CreateTab
from .files import PROMPT_FILES, concept_files, name_of, prompt_file
from .learning import Learning, Unwanted, Wish, content_of, lines
from .own import OwnConcepts
from .session import Session, friendly
from .strip import StripTab
from .studio import MOST_CHARACTERS, MOST_STEPS

PHRASES, LISTS = "two phrases", "prompt lists"
#: prompts a side; a whole prompt file may have more, which are drawn from
FEWEST, MOST, USUAL = 8, 48, 24
#: denoising steps: timestep bins need one each
LEAST_STEPS = 2
#: letters of a phrase, and of a list of prompts
MOST_PHRASE, MOST_LIST = 120, 60_000
SITES = {"what suits the model": "", "text encoders": "text", "denoiser": "denoiser"}
NOTHING = "Nothing is learned yet: say what to change into what, and press “Learn”."
FINE = "Nothing to object to."


class LearnTab:
    """Components and handlers of the tab.

    Args:
        create, strip: the tabs that a new concept comes to. saves: the folder in which visitors may save, if any.
    """

    def __init__(self, create: CreateTab, strip: StripTab, saves: Path | None = None) -> None:
        self.studio, self.session, self.create, self.strip = create.studio, create.session, create, strip
        #: by the browser's session: what is being learned for it
        self._running: dict[str, Learning] = {}
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                self._ask()
            with gr.Column(scale=6, min_width=300):
                self.progress = gr.HTML(look.note(NOTHING), elem_id="learn-progress")
                self.own = OwnConcepts(self.studio, self.session, saves)
        self._wire()

    def _ask(self) -> None:
        self.kind = gr.Radio([PHRASES, LISTS], value=PHRASES, label="Learn from", elem_id="learn-kind")
        with gr.Row(elem_id="learn-phrases") as self.phrases:
            self.first = one_line("What to change", "banana", "learn-from", MOST_PHRASE)
            self.second = one_line("What into", "blurred banana", "learn-to", MOST_PHRASE)
        with gr.Column(visible=False, elem_id="learn-lists") as self.lists:
            told = {"source": "shows it", "target": "shows what it should become", "control": "must stay as it is"}
            self.sides = [
                gr.Textbox(
                    label=f"{side.capitalize()}: {told[side]}, a prompt a line",
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
        with gr.Row():
            self.start = gr.Button("Learn", variant="primary", elem_id="learn-start")
            self.stop = gr.Button("Cancel", interactive=False, elem_id="learn-cancel")
        with gr.Accordion("How", open=False):
            self.method = gr.Dropdown(_described("map"), value="caa", label="Method", elem_id="learn-method")
            gates = [("the method's own, else dsas", ""), *_described("gate")]
            self.gate = gr.Dropdown(gates, value="", label="Gate", elem_id="learn-gate")
            self.sites = gr.Dropdown(list(SITES.items()), value="", label="Where", elem_id="learn-sites")
            self.count = gr.Slider(
                FEWEST,
                MOST,
                USUAL,
                step=1,
                label="Source prompts",
                info="controls are twice as many",
                elem_id="learn-n",
            )
            self.steps = gr.Slider(
                LEAST_STEPS,
                MOST_STEPS,
                max(LEAST_STEPS, self.studio.usual.steps),
                step=1,
                label="Denoising steps",
                elem_id="learn-steps",
            )
        with gr.Accordion("Use a concept you have", open=False, elem_id="learn-bring"):
            gr.Markdown("The `config.json` and the `concept.safetensors` of its folder, both at once.")
            self.brought = gr.File(
                label="config.json and concept.safetensors",
                show_label=False,
                file_count="multiple",
                file_types=[".json", ".safetensors"],
                height=140,
                elem_id="learn-upload",
            )

    # ---- events -----------------------------------------------------------------------------------------------------

    def _wire(self) -> None:
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        own: dict[str, Any] = {"api_visibility": "private"}
        said: list[Any] = [self.kind, self.first, self.second, *self.sides, self.count]
        gr.on(
            [part.change for part in said], friendly(self.advise), said, self.hints, trigger_mode="always_last", **quick
        )
        self.kind.change(lambda kind: _shown(kind == PHRASES), self.kind, [self.phrases, self.lists], **quick)
        self.file.upload(friendly(self.fill), self.file, [*self.sides, self.name], **own)
        result = [self.session, *self.own.parts]
        learned = self.start.click(
            friendly(self.learn),
            {self.session, *said, self.name, self.method, self.gate, self.sites, self.steps},
            [self.progress, self.start, self.stop, *result],
            concurrency_id="learn",
            concurrency_limit=1,
            show_progress="minimal",
            show_progress_on=self.progress,
            **own,
        )
        self.stop.click(self.cancel, None, None, **quick)
        brought = self.brought.upload(
            friendly(self.bring), [self.session, self.brought], [self.brought, self.progress, *result], **own
        )
        for event in (learned, brought):
            event.success(
                friendly(self.slots),
                [self.session, self.strip.concept],
                [*self.create.sliders, self.create.sites, self.strip.concept],
                show_progress="hidden",
                **own,
            )

    def advise(self, kind: str, *said: Any) -> str:
        """What could be better about the prompts, as far as words tell."""
        *texts, count = said
        first, second, source, target, control = (text or "" for text in texts)
        if kind == PHRASES and not (first.strip() and second.strip()):
            return ""
        if kind == LISTS and not (source + target + control).strip():
            return look.note(f"At least {FEWEST} prompts on each side, one to a line.")
        try:
            sides: Mapping[str, Sequence[str]] = (
                _drafted(first, second, None).draw(int(number(count, "prompts")))
                if kind == PHRASES
                else _listed(source, target, control)
            )
            found = [*hints(sides), *self._unknown(sides)]
        except DSASError as error:
            found = [str(error)]
        return look.advice(found, FINE)

    def _unknown(self, sides: Mapping[str, Sequence[str]]) -> list[str]:
        """Words of the prompts that the model cannot know."""
        words = unknown_words(self.studio.pipe, [text for texts in sides.values() for text in texts])
        return [look.unknown(words[:5])] if words else []

    def fill(self, path: str | None) -> tuple[str, ...]:
        """The lists, and the name, from a prompt file: as many prompts as may be learned from."""
        found = prompt_file(path)
        drawn = found.draw(MOST)
        return *("\n".join(" ".join(text.split()) for text in drawn[side]) for side in SIDES), found.name

    def wish(self, data: Mapping[Any, Any]) -> Wish:
        """What the components ask for.

        Raises:
            DSASError: it cannot be learned.
        """
        name = (data[self.name] or "").strip()
        if name:
            name_of(name)
        if data[self.kind] == PHRASES:
            prompts = _drafted(data[self.first] or "", data[self.second] or "", name or None)
        else:
            if not name:
                raise DSASError("the concept has no name: give it one, of letters, digits, '.', '_' and '-'")
            sides = _listed(*(data[side] or "" for side in self.sides))
            prompts = read(content_of(name, "Learned from prompt lists.", sides))
        name_of(prompts.name)
        data[self.session].check_room(prompts.name, self.studio)
        count, steps = int(number(data[self.count], "prompts")), int(number(data[self.steps], "steps"))
        if not FEWEST <= count <= MOST or not LEAST_STEPS <= steps <= MOST_STEPS:
            ranges = f"{FEWEST} to {MOST}, and {LEAST_STEPS} to {MOST_STEPS}"
            raise DSASError(f"{count} prompts, {steps} steps: expected {ranges}")
        if data[self.sites] not in SITES.values():
            raise DSASError(f"where {data[self.sites]!r}: expected one of {', '.join(SITES)}")
        return Wish(prompts, data[self.method], data[self.gate] or None, data[self.sites] or None, steps, count)

    def learn(self, data: Mapping[Any, Any], request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """How far it is, twice a second; at last the concept, its evidence, and before and after."""
        session: Session = data[self.session]
        visitor = str(request.session_hash)
        rest = (session, *(gr.skip() for _ in range(5)))
        busy, free = (_active(False), _active(True)), (_active(True), _active(False))
        wish = self.wish(data)
        try:
            with Learning(self.studio, wish) as learning:
                self._running[visitor] = learning
                for now in learning.watch():
                    stage = "stopping" if learning.cancelled else now.stage
                    yield look.progress(stage, now.share, now.seconds, now.left, now.count), *busy, *rest
                concept = learning.concept()
            session.add(concept, self.studio)
            told = f"Learned {concept.name} in {now.seconds:.0f} s: its slider is on the first tab, yours alone. "
            told += "It goes when you reload the page: download it to keep it."
            yield look.note(told, "done"), *free, session, *self.own.shown(session, concept.name)
        except Unwanted:
            yield look.note("Cancelled: nothing was learned."), *free, *rest
        except Exception as error:
            told = str(error) if isinstance(error, DSASError) else "Learning failed."
            yield look.note(told, "warned"), *free, *rest
            raise
        finally:
            self._running.pop(visitor, None)

    def cancel(self, request: gr.Request) -> None:
        """End what is being learned for this visitor."""
        learning = self._running.get(str(request.session_hash))
        if learning is not None:
            learning.cancel()

    def bring(self, session: Session, paths: Sequence[str] | str | None) -> tuple[Any, ...]:
        """A concept that the visitor has."""
        concept = concept_files(paths)
        session.check_room(concept.name, self.studio)
        self.studio.check(concept)
        self.studio.try_out(concept)
        session.add(concept, self.studio)
        told = look.note(
            f"{concept.name} is there: its slider is on the first tab, yours alone, until you reload.", "done"
        )
        return None, told, session, *self.own.shown(session, concept.name)

    def slots(self, session: Session, strip: str | None) -> list[Any]:
        """Sliders, layers and the strip's choices, for the concepts that there are now."""
        return [*self.create.slots(session), self.strip.slots(session, strip)]


def _drafted(first: str, second: str, name: str | None) -> PromptSet:
    for phrase in (first, second):
        if len(phrase) > MOST_PHRASE:
            raise DSASError(f"a phrase has {len(phrase)} letters: at most {MOST_PHRASE} are taken")
        if "{" in phrase or "}" in phrase:
            raise DSASError("a phrase has braces, which stand for placeholders: leave them out")
    return read(draft(first, second, name))


def _listed(*texts: str) -> dict[str, list[str]]:
    """The prompts in the three text boxes."""
    for text in texts:
        if len(text) > MOST_LIST:
            raise DSASError(f"a list has {len(text)} letters: at most {MOST_LIST} are taken; leave some prompts out")
    sides = {side: lines(text) for side, text in zip(SIDES, texts, strict=True)}
    longest = max((text for prompts in sides.values() for text in prompts), key=len, default="")
    if len(longest) > MOST_CHARACTERS:
        raise DSASError(f"a prompt has {len(longest)} letters: at most {MOST_CHARACTERS} are taken")
    return sides


def _described(kind: str) -> list[tuple[str, str]]:
    """Names of methods or gates, with a line about each; the gate that steers nothing is left out."""
    found = (one for one in methods.available() if one.kind in (kind, "both") and one.name != "off")
    return [(f"{one.name}: {one.line}", one.name) for one in found]


def _shown(phrases: bool) -> tuple[Any, Any]:
    return gr.update(visible=phrases), gr.update(visible=not phrases)


def _active(is_so: bool) -> Any:
    return gr.update(interactive=is_so)
