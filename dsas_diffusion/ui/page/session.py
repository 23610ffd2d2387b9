"""What one visitor has: concepts of their own, the last picture, the last answer. Nobody else sees any of it."""

from __future__ import annotations

import functools
import html
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError

from ..services.chat_service import Reply
from ..services.drawing import Drawing
from ..services.picture_service import PictureService
from . import markup

#: sliders that are ready for concepts which a visitor learns or uploads
MAX_OWN_CONCEPTS = 6
#: seconds until what a visitor has left behind is forgotten
FORGOTTEN = 3600

_log = logging.getLogger("dsas.ui")


@dataclass
class Session:
    """One visitor's state."""

    own: dict[str, Concept] = field(default_factory=dict)
    drawing: Drawing | None = None
    looked_at: Drawing | None = None  # that of which it is shown where it was steered
    reply: Reply | None = None

    def concepts(self, studio: PictureService) -> dict[str, Concept]:
        """All that this visitor can use, in the order of the sliders: everybody's, then their own."""
        return {**studio.concepts, **self.own}

    def add(self, concept: Concept, studio: PictureService, *, foreign: bool = False) -> None:
        """Keep a concept of the visitor's own, in place of one of the same name; one from elsewhere is tried out.

        Raises:
            DSASError: it does not fit the model, bears the name of one that everybody has, or there are too many.
        """
        self.check_room(concept.name, studio)
        studio.check(concept)
        if foreign:
            studio.try_out(concept)
        self.own[concept.name] = concept

    def check_room(self, name: str, studio: PictureService) -> None:
        """Raise a DSASError where there is no room for another concept of the visitor's own, of this name."""
        if name in studio.concepts:
            raise DSASError(f"there is a concept {name!r} already: give yours another name")
        if name not in self.own and len(self.own) >= MAX_OWN_CONCEPTS:
            raise DSASError(f"there is room for {MAX_OWN_CONCEPTS} concepts of your own: reload the page to begin anew")


def warn(error: DSASError) -> None:
    """Tell of an error and leave what is there: Gradio blanks what a handler that raises was to fill."""
    import gradio as gr

    gr.Warning(html.escape(str(error), quote=False), duration=12, title="Not done")


def until_failure(
    updates: Iterable[tuple[Any, ...]], last: Callable[[str], tuple[Any, ...]], unforeseen: str
) -> Iterator[tuple[Any, ...]]:
    """Updates of components, and after an error one more: or the page would say for ever that work goes on.

    Args:
        last: makes the last update of a piece of HTML that tells what went wrong.
        unforeseen: what to tell of an error that nobody has foreseen, which goes on to `friendly`.
    """
    try:
        yield from updates
    except DSASError as error:
        warn(error)
        yield last(markup.note(str(error), "warned"))
    except Exception:
        yield last(markup.note(unforeseen, "warned"))
        raise


def report_errors(handler: Callable[..., Any]) -> Callable[..., Any]:
    """An event handler whose errors are messages on the page; what nobody has foreseen goes to the server's log.

    Gradio shows messages as HTML, and ours quote what people wrote: they are escaped.
    """
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def stepwise(*args: Any) -> Iterator[Any]:
            with _errors_as_messages(handler.__name__):
                yield from handler(*args)

        return stepwise

    @functools.wraps(handler)
    def whole(*args: Any) -> Any:
        with _errors_as_messages(handler.__name__):
            return handler(*args)

    return whole


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
        _log.error("%s failed", name, exc_info=error)
        message = f"{type(error).__name__}; the server's log has more"
        raise gr.Error(message, duration=12, print_exception=False) from None
