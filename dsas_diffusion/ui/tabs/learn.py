"""The tab that learns a concept, from two phrases or from lists of prompts; it becomes a slider of this visitor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from dsas_core import methods
from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError

from ..page import markup
from ..page.controls import PRIVATE, QUICK, SILENT, queue_settings, read_number
from ..page.session import Session, report_errors
from ..services.drawing import MAX_STEPS
from ..services.keeping import pack, unpack
from ..services.learning_job import Learning, LearningCancelled, LearnRequest
from ..services.uploads import read_concept
from .create import CreateTab
from .my_concepts import MyConceptsTab
from .prompt_form import MAX_PROMPTS, MIN_PROMPTS, PromptForm
from .strip import StripTab

#: prompts a side, and denoising steps at least: timestep bins need one each
DEFAULT_PROMPTS, MIN_STEPS = 24, 2
SITES = {"what suits the model": "", "text encoders": "text", "denoiser": "denoiser"}
NOTHING = "Nothing is learned yet: say what to change into what, and press “Learn”."


class LearnTab:
    """Components and handlers of the tab.

    Args:
        create: a tab on which a new concept is to be chosen.
        strip: another.
        kept: what the visitor's browser keeps of their concepts.
        saves: the folder in which visitors may save; None for none.
    """

    def __init__(self, create: CreateTab, strip: StripTab, kept: gr.BrowserState, saves: Path | None = None) -> None:
        self.create, self.strip, self.kept = create, strip, kept
        #: what is being learned, by the browser's session
        self._running: dict[str, Learning] = {}
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                self.prompts = PromptForm(create.service)
                with gr.Row():
                    self.start = gr.Button("Learn", variant="primary", elem_id="learn-start")
                    self.stop = gr.Button("Cancel", interactive=False, elem_id="learn-cancel")
                self._add_settings()
                self._add_upload()
            with gr.Column(scale=6, min_width=300):
                self.progress = gr.HTML(markup.render_note(NOTHING), elem_id="learn-progress")
                self.my_concepts = MyConceptsTab(create.service, create.session, saves)
        self._wire(create.session)

    def _add_settings(self) -> None:
        default_steps = max(MIN_STEPS, self.create.service.defaults.steps)
        with gr.Accordion("How", open=False):
            self.method = gr.Dropdown(_choices("map"), value="caa", label="Method", elem_id="learn-method")
            gates = [("the method's own, else dsas", ""), *_choices("gate")]
            self.gate = gr.Dropdown(gates, value="", label="Gate", elem_id="learn-gate")
            self.sites = gr.Dropdown(list(SITES.items()), value="", label="Where", elem_id="learn-sites")
            count: dict[str, Any] = {
                "label": "Source prompts",
                "info": "controls are twice as many",
                "elem_id": "learn-n",
            }
            self.count = gr.Slider(MIN_PROMPTS, MAX_PROMPTS, DEFAULT_PROMPTS, step=1, **count)
            steps: dict[str, Any] = {"label": "Denoising steps", "elem_id": "learn-steps"}
            self.steps = gr.Slider(MIN_STEPS, MAX_STEPS, default_steps, step=1, **steps)

    def _add_upload(self) -> None:
        with gr.Accordion("Use a concept you have", open=False, elem_id="learn-bring"):
            gr.Markdown("The zip file that you downloaded, or `config.json` and `concept.safetensors` of its folder.")
            files: dict[str, Any] = {"file_count": "multiple", "file_types": [".zip", ".json", ".safetensors"]}
            label = "zip file, or config.json and concept.safetensors"
            self.upload = gr.File(label=label, show_label=False, height=140, elem_id="learn-upload", **files)

    # ---- events -----------------------------------------------------------------------------------------------------

    def _wire(self, session: gr.State) -> None:
        self.prompts.wire(self.count)
        result = [session, *self.my_concepts.parts]
        inputs = {session, *self.prompts.inputs, self.method, self.gate, self.sites, self.count, self.steps}
        outputs = [self.progress, self.start, self.stop, *result]
        queue = {"show_progress": "minimal", **queue_settings("learn", self.progress)}
        learned = self.start.click(report_errors(self.learn), inputs, outputs, **queue)
        self.stop.click(self.cancel, None, None, **QUICK)
        outputs = [self.upload, self.progress, *result]
        uploaded = self.upload.upload(report_errors(self.add_uploaded), [session, self.upload], outputs, **PRIVATE)
        forgotten = self.my_concepts.forgets(session)
        for event in (learned, uploaded, forgotten):
            followed = event.success(report_errors(self.slots), self._slot_inputs(session), self._choices, **SILENT)
            followed.then(report_errors(self.keep), session, [self.kept, self.my_concepts.kept_told], **SILENT)

    @property
    def _choices(self) -> list[Any]:
        """The components that `slots` fills."""
        return [*self.create.sliders, self.create.advanced.sites, *self.strip.choices]

    def _slot_inputs(self, session: gr.State) -> list[Any]:
        """The components that `slots` reads."""
        return [session, *self.strip.choices, *self.create.sliders]

    def bring_back(self, then: Callable[..., Any]) -> None:
        """Have the concepts come back that the browser keeps, after the event that `then` follows.

        They are counted in the browser: a page that has none asks for nothing, and waits in no queue.
        """
        session, count = (
            self.create.session,
            gr.Number(0, visible="hidden", label="kept concepts", elem_id="kept-count"),
        )
        then(None, self.kept, count, js="(kept) => (kept || []).length", **QUICK)
        outputs = [self.progress, session, *self.my_concepts.parts]
        queue = {**SILENT, "concurrency_id": "pipe", "concurrency_limit": 1}
        back = count.change(report_errors(self.take_kept), [session, self.kept], outputs, **queue)
        back.then(report_errors(self.slots), self._slot_inputs(session), self._choices, **SILENT)

    def request(self, data: Mapping[Any, Any]) -> LearnRequest:
        """What the components ask for.

        Raises:
            DSASError: it cannot be learned.
        """
        prompts = self.prompts.prompts(data)
        data[self.create.session].check_room(prompts.name, self.create.service)
        count, steps = int(read_number(data[self.count], "prompts")), int(read_number(data[self.steps], "steps"))
        if not MIN_PROMPTS <= count <= MAX_PROMPTS or not MIN_STEPS <= steps <= MAX_STEPS:
            ranges = f"{MIN_PROMPTS} to {MAX_PROMPTS}, and {MIN_STEPS} to {MAX_STEPS}"
            raise DSASError(f"{count} prompts, {steps} steps: expected {ranges}")
        if data[self.sites] not in SITES.values():
            raise DSASError(f"where {data[self.sites]!r}: expected one of {', '.join(SITES)}")
        return LearnRequest(prompts, data[self.method], data[self.gate] or None, data[self.sites] or None, steps, count)

    def learn(self, data: Mapping[Any, Any], request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Updates with how far it is, twice a second; at last the concept with its evidence and samples."""
        session: Session = data[self.create.session]
        visitor = str(request.session_hash)
        rest = (session, *(gr.skip() for _ in self.my_concepts.parts))
        on, off = gr.update(interactive=True), gr.update(interactive=False)
        busy, free = (off, on), (on, off)  # start and stop
        learn_request = self.request(data)
        try:
            with Learning(self.create.service, learn_request) as learning:
                self._running[visitor] = learning
                for now in learning.watch():
                    yield markup.render_progress(now), *busy, *rest
                concept = learning.concept()
            session.add(concept, self.create.service)
            message = f"Learned {concept.name} in {now.seconds:.0f} s: its slider is on the first tab, at one unit, "
            message += f"yours alone. {_suggest(concept)}"
            yield markup.render_note(message, "done"), *free, session, *self.my_concepts.updates(session, concept.name)
        except LearningCancelled:
            yield markup.render_note("Cancelled: nothing was learned."), *free, *rest
        except Exception as error:
            message = str(error) if isinstance(error, DSASError) else "Learning failed."
            yield markup.render_note(message, "warned"), *free, *rest
            raise
        finally:
            self._running.pop(visitor, None)

    def cancel(self, request: gr.Request) -> None:
        """End learning for this visitor."""
        learning = self._running.get(str(request.session_hash))
        if learning is not None:
            learning.cancel()

    def add_uploaded(self, session: Session, paths: Sequence[str] | str | None) -> tuple[Any, ...]:
        """Updates for a concept that the visitor uploaded."""
        concept = read_concept(paths)
        session.add(concept, self.create.service, uploaded=True)
        message = f"{concept.name} is there: its slider is on the first tab, at one unit, yours alone. "
        told = markup.render_note(message + _suggest(concept), "done")
        return None, told, session, *self.my_concepts.updates(session, concept.name)

    def keep(self, session: Session) -> tuple[list[str], str]:
        """What the browser is to keep of the visitor's concepts, and a line on it."""
        kept, left_out = pack(session.my_concepts.values())
        told = "This browser keeps your concepts when you reload the page. " * bool(kept)
        if left_out:
            told += f"Too large for it to keep: {', '.join(left_out)}; download what you want to have again."
        return kept, markup.render_note(told, "warned" if left_out else "") if told else ""

    def take_kept(self, session: Session, kept: Any) -> tuple[Any, ...]:
        """Updates for the concepts that the browser has kept; those that cannot be used any more are told of."""
        concepts, problems = unpack(kept)
        for concept in concepts:
            try:
                session.add(concept, self.create.service, uploaded=True)
            except DSASError as error:
                problems.append(str(error))
        session.newest = None
        if not concepts and not problems:
            return tuple(gr.skip() for _ in range(2 + len(self.my_concepts.parts)))
        told = f"Back from this browser: {', '.join(session.my_concepts)}. " * bool(session.my_concepts)
        told = markup.render_note(told + " ".join(problems), "warned" if problems else "done")
        return told, session, *self.my_concepts.updates(session, next(iter(session.my_concepts), None))

    def slots(
        self, session: Session, strip: str | None, of_grid: list[str] | None = None, *strengths: float
    ) -> list[Any]:
        """Updates of sliders, layers and choices of the tab Strip, for the concepts that the visitor has."""
        return [*self.create.slots(session, strengths), *self.strip.slots(session, strip, of_grid)]


def _suggest(concept: Concept) -> str:
    """A prompt to see a concept at work on."""
    return f"Try it on “{concept.samples.prompts[0]}”." if concept.samples is not None else ""


def _choices(kind: str) -> list[tuple[str, str]]:
    """(Name and summary, name) of each method or gate, without the gate `off`."""
    learned = (method for method in methods.available() if method.learned)
    available = (method for method in learned if method.kind in (kind, "both") and method.name != "off")
    return [(f"{method.name}: {method.line}", method.name) for method in available]
