"""The state of one visitor: concepts of their own, the last picture, the last answer. Nobody else sees any of it."""

from __future__ import annotations

import functools
import html
import inspect
import logging
import os
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError, quote

from ..services.chat_service import Reply
from ..services.drawing import Drawing
from ..services.picture_service import PictureService
from . import markup

#: sliders that are ready for concepts which a visitor learns or uploads
MAX_OWN_CONCEPTS = 6
#: drawings that a visitor can go back to
MAX_HISTORY = 24
#: seconds for which a visitor's session is kept
SESSION_SECONDS = 3600

_log = logging.getLogger("dsas.ui")


@dataclass(frozen=True)
class Past:
    """A drawing that was made, with what the components held that asked for it."""

    drawing: Drawing
    held: tuple[Any, ...]

    @property
    def asked(self) -> tuple[Any, ...]:
        """What it is of: a slider's strength is another concept's once one before it was forgotten."""
        return self.held, {name: strength for name, strength in self.drawing.order.strengths.items() if strength}


@dataclass
class Session:
    """One visitor's state.

    Args:
        my_concepts: those that this visitor learned or uploaded, by name.
        newest: name of the one that has come since sliders were last set; they begin with it alone at work.
        slots: names of all concepts, in the order of the sliders when these were last set.
        drawing: the picture that is shown.
        history: the pictures that were drawn, the newest first.
        batch: those that were drawn at once, the last time that it were several.
        reply: the last answer, with the conversation before it.
    """

    my_concepts: dict[str, Concept] = field(default_factory=dict)
    newest: str | None = None
    slots: list[str] = field(default_factory=list)
    drawing: Drawing | None = None
    history: list[Past] = field(default_factory=list)
    batch: list[Past] = field(default_factory=list)
    reply: Reply | None = None

    def concepts(self, service: PictureService) -> dict[str, Concept]:
        """All that this visitor can use, in the order of the sliders: everybody's, then their own."""
        return {**service.concepts, **self.my_concepts}

    def add(self, concept: Concept, service: PictureService, *, uploaded: bool = False) -> None:
        """Add a concept of the visitor's own, in place of one of the same name.

        Args:
            concept: which one.
            service: whose model it is for.
            uploaded: it was not learned here, so it is tried on a picture first.

        Raises:
            DSASError: it does not fit the model, everybody has one of its name, or there are too many.
        """
        self.check_room(concept.name, service)
        service.check(concept)
        if uploaded:
            service.try_concept(concept)
            self.check_room(concept.name, service)  # learning may have filled it meanwhile
        self.my_concepts[concept.name] = concept
        self.newest = concept.name

    def show(self, drawing: Drawing, held: Iterable[Any]) -> Past:
        """Make a drawing the one that is shown, and the first of the history, where it is kept without its trace."""
        self.drawing = drawing
        past = Past(replace(drawing, trace=None), tuple(held))
        others = [other for other in self.history if other.asked != past.asked]
        self.history = [past, *others][:MAX_HISTORY]
        return past

    def check_room(self, name: str, service: PictureService) -> None:
        """Raise a DSASError where another concept of the visitor's own, of this name, cannot be added."""
        if name in service.concepts:
            raise DSASError(f"there is a concept {name!r} already: give yours another name")
        if name not in self.my_concepts and len(self.my_concepts) >= MAX_OWN_CONCEPTS:
            raise DSASError(f"there is room for {MAX_OWN_CONCEPTS} concepts of your own: forget one on the tab Learn")


def warn(error: DSASError) -> None:
    """Show an error and leave the page as it is: Gradio blanks the outputs of a handler that raises."""
    import gradio as gr

    gr.Warning(html.escape(str(error), quote=False), duration=12, title="Not done")


def until_failure(
    updates: Iterable[tuple[Any, ...]], last: Callable[[str], tuple[Any, ...]], unforeseen: str
) -> Iterator[tuple[Any, ...]]:
    """Updates of components, and after an error one more: or the page would say for ever that work goes on.

    Args:
        updates: as a handler yields them.
        last: makes the last update of a piece of HTML that says what went wrong.
        unforeseen: what that says of an error that is none of ours, which is raised again for `report_errors`.
    """
    try:
        yield from updates
    except DSASError as error:
        warn(error)
        yield last(markup.render_note(str(error), "warned"))
    except Exception:
        yield last(markup.render_note(unforeseen, "warned"))
        raise


def report_errors(handler: Callable[..., Any]) -> Callable[..., Any]:
    """The event handler, with its errors as messages on the page; those that are none of ours go to the server's log.

    Gradio shows messages as HTML, and ours quote what people wrote: they are escaped.
    """
    if not inspect.isgeneratorfunction(handler):
        return _errors_as_messages(handler.__name__)(handler)

    @functools.wraps(handler)
    def stepwise(*args: Any) -> Iterator[Any]:
        with _errors_as_messages(handler.__name__):
            yield from handler(*args)

    return stepwise


def log_failure(what: str, error: BaseException) -> None:
    """Write one line about an error that is none of ours into the server's log; with DSAS_DEBUG, where it came from."""
    reason = " ".join(str(error).split())
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({Path(place[0].filename).name}:{place[0].lineno})" if place else ""
    details = error if os.environ.get("DSAS_DEBUG") else None
    _log.error("%s failed: %s: %s%s", what, type(error).__name__, quote(reason, 200), where, exc_info=details)


@contextmanager
def _errors_as_messages(name: str) -> Iterator[None]:
    import gradio as gr

    try:
        yield
    except gr.Error:
        raise
    except DSASError as error:
        message = html.escape(str(error), quote=False)
        raise gr.Error(message, duration=12, print_exception=False) from None
    except Exception as error:
        log_failure(name, error)
        message = f"{type(error).__name__}; the server's log has more"
        raise gr.Error(message, duration=12, print_exception=False) from None
