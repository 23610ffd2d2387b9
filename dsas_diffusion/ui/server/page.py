"""The page as the server runs it: calls that fail are one line in the log, and files are their visitor's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from ..page.session import log_failure
from .private_files import PrivateFiles, visitor_of


class Page(gr.Blocks):
    """`gr.Blocks` that can be called by strangers.

    Attributes:
        files: who may read which of the files that the page's events give out.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.files = PrivateFiles(Path(self.GRADIO_CACHE))

    async def process_api(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Run one event. Whatever a call gets wrong is one line in the log, where Gradio prints a traceback."""
        with self.files.in_use():
            try:
                output = await super().process_api(*args, **kwargs)
            except gr.Error as error:
                if error.print_exception:
                    log_failure("a call of the page", error)
                    error.print_exception = False
                raise
            except Exception as error:
                log_failure("a call of the page", error)
                raise gr.Error("the page cannot do that: reload it", print_exception=False) from None
            visitor = visitor_of(getattr(kwargs.get("request"), "cookies", {}), kwargs.get("session_hash"))
            self.files.give(_paths(output.get("data")), visitor)
        return output


def _paths(data: Any) -> set[str]:
    """The paths of all files in what an event returns to the browser.

    Of what an event yields after its first values, Gradio sends what has changed, as [operation, keys, value].

    Example:
        >>> _paths([{"path": "/a.png"}]), _paths([[["replace", [0, "path"], "/b.png"], ["replace", ["x"], "/c.png"]]])
        ({'/a.png'}, {'/b.png'})
    """
    if isinstance(data, dict):
        own = {data["path"]} if isinstance(data.get("path"), str) else set()
        return own.union(*map(_paths, data.values()))
    if isinstance(data, list) and len(data) == 3 and isinstance(data[1], list) and data[1][-1:] == ["path"]:
        return {data[2]} if isinstance(data[2], str) else set()
    return set[str]().union(*map(_paths, data)) if isinstance(data, list | tuple) else set()
