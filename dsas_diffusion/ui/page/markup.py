"""The pieces of HTML on the demo's page, from the templates beside this file.

Whatever is put into a template (names, prompts, tokens) is escaped, and nowhere else is HTML made. What Gradio takes as
HTML is escaped as well: messages by `session.report_errors`, what stands below a slider by `strip_markdown`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import FunctionLoader, StrictUndefined
from jinja2.utils import markupsafe

from dsas_core import llm
from dsas_core.concept.concept import Concept
from dsas_core.concept.evidence import describe_kept, describe_unit
from dsas_core.model.sites import Site
from dsas_core.utils.templates import create_environment

from ...pipelines.sites import site_name
from ...steering.schedule import Schedule
from ..services.chat_service import Reply, TokenReading, Turn
from ..services.drawing import Drawing
from ..services.learning_job import LearnProgress

TEMPLATES = Path(__file__).with_name("templates")
#: characters that Gradio's Markdown takes as marks -> characters that look like them
_PLAIN = str.maketrans("*`[]", "\u2217\u02cb\uff3b\uff3d")


def render_drawing(drawing: Drawing | None) -> str:
    """What each concept's gate read, what became of the picture, and how long it took."""
    return _render("drawing", result=drawing)


def render_reply(reply: Reply | None) -> str:
    """What each concept's gate read of a message, what became of the answer, and how fast it was written."""
    return _render("reply", result=reply)


def render_conversation(turns: Sequence[Turn]) -> str:
    """A conversation without steering and one with it, beside one another."""
    return _render("conversation", sides={"Unsteered": "base", "Steered": "steered"}, turns=turns)


def render_tokens(gate: TokenReading | None) -> str:
    """The tokens of a message and of the steered answer, coloured by one concept's h."""
    if gate is None:
        return render_note("The message and the answer come here, token by token, red where the gate opened.")
    # llm.as_html escapes its tokens
    message, answer = (markupsafe.Markup(llm.as_html(list(tokens))) for tokens in (gate.message, gate.answer))
    return _render("tokens", concept=gate.concept, message=message, answer=answer)


def render_steps(mean_h: Mapping[Site, Mapping[float | None, float]]) -> str:
    """Mean h by layer and timestep (None: read once, before drawing), a table of coloured cells."""
    times = list(dict.fromkeys(time for steps in mean_h.values() for time in steps if time is not None))
    return _render("steps", times=times, layers=[(site_name(site), steps) for site, steps in mean_h.items()])


def render_schedule(schedule: Schedule) -> str:
    """A schedule as a line over the timestep."""
    edges = [(1000.0, schedule.points[-1][1]), *reversed(schedule.points), (0.0, schedule.points[0][1])]
    factors = [factor for _, factor in edges]
    return _render("schedule", edges=edges, low=min(0.0, *factors), high=max(1.0, *factors))


def render_evidence(concept: Concept) -> str:
    """What was measured while a concept was learned: a table of its layers, and how its unit was chosen."""
    columns = {"balanced accuracy": "balanced_accuracy", "AUROC": "auroc", "weight": "weight", "control h": "control_h"}
    if concept.edges:
        columns = {"bin": "bin"} | columns
    sites = concept.evidence.get("sites", ())
    rows = [(site_name(str(site.get("site", ""))), *map(site.get, columns.values())) for site in sites]
    return _render(
        "evidence",
        illustrated=concept.samples is not None,
        headings=["layer", *columns],
        rows=list({str(row): row for row in rows}.values()),
        unit=describe_unit(concept.unit, concept.evidence.get("unit")).splitlines(),
        kept=describe_kept(concept.evidence.get("kept")),
    )


def render_advice(hints: Sequence[str], checked: str) -> str:
    """Hints as a list; where there are none, a line on what was `checked`."""
    return _render("advice", hints=hints, checked=checked)


def render_progress(progress: LearnProgress) -> str:
    """A bar of the share of work that is done, and the same in words."""
    return _render("progress", progress=progress)


def render_note(text: str, kind: str = "") -> str:
    """A paragraph of plain text; `kind` is its class, "quiet" if none is given.

    Example:
        >>> render_note("a < b")
        '<p class="quiet" role="status">a &lt; b</p>'
    """
    return _render("note", text=text, kind=kind)


def describe_unknown(words: Sequence[str]) -> str:
    """What the built-in model does with words that it does not know; plain text.

    Example:
        >>> describe_unknown(["xylophone", "zebra"])
        'This model does not know “xylophone”, “zebra”: it takes them for something else.'
    """
    return f"This model does not know {', '.join(f'“{word}”' for word in words)}: it takes them for something else."


def strip_markdown(text: str) -> str:
    """Plain text on one line, without what Gradio makes links, code and bold of; it knows no escape."""
    return " ".join(text.split()).translate(_PLAIN)


def _render(name: str, **values: Any) -> str:
    return _ENVIRONMENT.get_template(f"{name}.html").render(values)


def _mean_h(tokens: Sequence[llm.Token]) -> float:
    return sum(token.mean_h for token in tokens) / max(1, len(tokens))


_ENVIRONMENT = create_environment(
    FunctionLoader(lambda name: re.sub(r"\n\s*", "", (TEMPLATES / name).read_text(encoding="utf-8"))),
    escape=True,
    undefined=StrictUndefined,
)
_ENVIRONMENT.filters["mean_h"] = _mean_h
_ENVIRONMENT.globals["describe_unknown"] = describe_unknown
HEADING = _render("heading")
