"""The tab that learns a concept, from two phrases or from lists of prompts; it becomes a slider of this visitor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from dsas_core import methods
from dsas_core.errors import DSASError

from ..page import markup
from ..page.controls import PRIVATE, QUICK, number, one_at_a_time
from ..page.session import Session, report_errors
from ..services.drawing import MOST_STEPS
from ..services.learning_job import Learning, LearnRequest, Unwanted
from ..services.uploads import concept_files
from .create import CreateTab
from .my_concepts import MyConceptsTab
from .prompt_form import FEWEST, MOST, PromptForm
from .strip import StripTab

#: prompts a side, and denoising steps at least: timestep bins need one each
USUAL, LEAST_STEPS = 24, 2
SITES = {"what suits the model": "", "text encoders": "text", "denoiser": "denoiser"}
NOTHING = "Nothing is learned yet: say what to change into what, and press “Learn”."


class LearnTab:
    """Components and handlers of the tab.

    Args:
        create, strip: the tabs that a new concept comes to. saves: the folder in which visitors may save, if any.
    """

    def __init__(self, create: CreateTab, strip: StripTab, saves: Path | None = None) -> None:
        self.create, self.strip = create, strip
        #: by the browser's session: what is being learned for it
        self._running: dict[str, Learning] = {}
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                self.prompts = PromptForm(create.studio)
                with gr.Row():
                    self.start = gr.Button("Learn", variant="primary", elem_id="learn-start")
                    self.stop = gr.Button("Cancel", interactive=False, elem_id="learn-cancel")
                self._add_settings()
                self._add_upload()
            with gr.Column(scale=6, min_width=300):
                self.progress = gr.HTML(markup.note(NOTHING), elem_id="learn-progress")
                self.own = MyConceptsTab(create.studio, create.session, saves)
        self._wire(create.session)

    def _add_settings(self) -> None:
        usual_steps = max(LEAST_STEPS, self.create.studio.usual.steps)
        with gr.Accordion("How", open=False):
            self.method = gr.Dropdown(_choices("map"), value="caa", label="Method", elem_id="learn-method")
            gates = [("the method's own, else dsas", ""), *_choices("gate")]
            self.gate = gr.Dropdown(gates, value="", label="Gate", elem_id="learn-gate")
            self.sites = gr.Dropdown(list(SITES.items()), value="", label="Where", elem_id="learn-sites")
            twice = "controls are twice as many"
            self.count = gr.Slider(FEWEST, MOST, USUAL, step=1, label="Source prompts", info=twice, elem_id="learn-n")
            self.steps = gr.Slider(
                LEAST_STEPS, MOST_STEPS, usual_steps, step=1, label="Denoising steps", elem_id="learn-steps"
            )

    def _add_upload(self) -> None:
        with gr.Accordion("Use a concept you have", open=False, elem_id="learn-bring"):
            gr.Markdown("The `config.json` and the `concept.safetensors` of its folder, both at once.")
            self.upload = gr.File(
                label="config.json and concept.safetensors",
                show_label=False,
                file_count="multiple",
                file_types=[".json", ".safetensors"],
                height=140,
                elem_id="learn-upload",
            )

    # ---- events -----------------------------------------------------------------------------------------------------

    def _wire(self, session: gr.State) -> None:
        self.prompts.wire(self.count)
        result = [session, *self.own.parts]
        learned = self.start.click(
            report_errors(self.learn),
            {session, *self.prompts.inputs, self.method, self.gate, self.sites, self.count, self.steps},
            [self.progress, self.start, self.stop, *result],
            show_progress="minimal",
            **one_at_a_time("learn", self.progress),
        )
        self.stop.click(self.cancel, None, None, **QUICK)
        brought = self.upload.upload(
            report_errors(self.bring), [session, self.upload], [self.upload, self.progress, *result], **PRIVATE
        )
        for event in (learned, brought):
            event.success(
                report_errors(self.slots),
                [session, self.strip.concept],
                [*self.create.sliders, self.create.advanced.sites, self.strip.concept],
                show_progress="hidden",
                **PRIVATE,
            )

    def request(self, data: Mapping[Any, Any]) -> LearnRequest:
        """What the components ask for.

        Raises:
            DSASError: it cannot be learned.
        """
        prompts = self.prompts.prompts(data)
        data[self.create.session].check_room(prompts.name, self.create.studio)
        count, steps = int(number(data[self.count], "prompts")), int(number(data[self.steps], "steps"))
        if not FEWEST <= count <= MOST or not LEAST_STEPS <= steps <= MOST_STEPS:
            ranges = f"{FEWEST} to {MOST}, and {LEAST_STEPS} to {MOST_STEPS}"
            raise DSASError(f"{count} prompts, {steps} steps: expected {ranges}")
        if data[self.sites] not in SITES.values():
            raise DSASError(f"where {data[self.sites]!r}: expected one of {', '.join(SITES)}")
        return LearnRequest(prompts, data[self.method], data[self.gate] or None, data[self.sites] or None, steps, count)

    def learn(self, data: Mapping[Any, Any], request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """How far it is, twice a second; at last the concept, its evidence, and before and after."""
        session: Session = data[self.create.session]
        visitor = str(request.session_hash)
        rest = (session, *(gr.skip() for _ in self.own.parts))
        busy, free = (_active(False), _active(True)), (_active(True), _active(False))
        wanted = self.request(data)
        try:
            with Learning(self.create.studio, wanted) as learning:
                self._running[visitor] = learning
                for now in learning.watch():
                    stage = "stopping" if learning.cancelled else now.stage
                    yield markup.progress(stage, now.share, now.seconds, now.left, now.count), *busy, *rest
                concept = learning.concept()
            session.add(concept, self.create.studio)
            message = f"Learned {concept.name} in {now.seconds:.0f} s: its slider is on the first tab, yours alone. "
            message += "It goes when you reload the page: download it to keep it."
            yield markup.note(message, "done"), *free, session, *self.own.updates(session, concept.name)
        except Unwanted:
            yield markup.note("Cancelled: nothing was learned."), *free, *rest
        except Exception as error:
            message = str(error) if isinstance(error, DSASError) else "Learning failed."
            yield markup.note(message, "warned"), *free, *rest
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
        session.add(concept, self.create.studio, foreign=True)
        message = f"{concept.name} is there: its slider is on the first tab, yours alone, until you reload."
        return None, markup.note(message, "done"), session, *self.own.updates(session, concept.name)

    def slots(self, session: Session, strip: str | None) -> list[Any]:
        """Sliders, layers and the strip's choices, for the concepts that there are now."""
        return [*self.create.slots(session), self.strip.slots(session, strip)]


def _choices(kind: str) -> list[tuple[str, str]]:
    """Names of methods or gates, with a line about each; the gate that steers nothing is left out."""
    available = (method for method in methods.available() if method.kind in (kind, "both") and method.name != "off")
    return [(f"{method.name}: {method.line}", method.name) for method in available]


def _active(is_so: bool) -> Any:
    return gr.update(interactive=is_so)
