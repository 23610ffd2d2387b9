"""The pieces of HTML that the demo draws.

Whatever comes from outside (names, prompts, tokens) is escaped here, and nowhere else is HTML made. What Gradio itself
makes HTML of is escaped as well: messages in `session.friendly`, what stands below a slider by `unmarked`.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from itertools import takewhile

from dsas_core import llm
from dsas_core.concept.concept import Concept
from dsas_core.concept.evidence import describe_unit
from dsas_core.model.sites import Site

from ...pipelines.sites import site_name
from ...steering.schedule import Schedule
from ..services.chat_service import Reply, TokenReading
from ..services.drawing import Drawing, GateReading

#: what is less than this is 0.00
SHOWN = 0.005
#: marks -> characters that look like them
_UNMARKED = str.maketrans("*`[]", "\u2217\u02cb\uff3b\uff3d")
#: a concept whose gate stays below this does next to nothing
IDLE = 0.1
HEADING = (
    "<h1>DSAS: concept sliders</h1><p>Steer a concept, leave the rest alone. A small probe at each layer says where "
    "the concept is; only there the picture changes.</p>"
)


def explained(drawing: Drawing | None) -> str:
    """What each concept's gate said, and what became of the picture; how long it took."""
    if drawing is None:
        return '<p class="quiet">Nothing is drawn before you ask: write a prompt, move a slider, press “Draw”.</p>'
    lines = [_picture_line(drawing, gate) for gate in drawing.gates]
    if len(drawing.gates) > 1 and not drawing.untouched:
        lines.append(_item("", f"Together: {_moved(drawing)}."))
    if drawing.steered is None:
        lines = [_item("", "steering …")]
    elif not lines:
        lines = [_item("", "All sliders are at 0: both pictures are the unsteered one.")]
    check = drawing.prompt_check
    warnings = [_(unknown(check.unknown_words))] if check.unknown_words else []
    if check.cut_off:
        warnings.append(
            f"The prompt has {check.tokens} tokens, of which the model reads the first {check.tokens_read}."
        )
    lines += [*map(_pulling, drawing.opposed), *(_item("warned", warning) for warning in warnings)]
    return _report(lines, drawing.at, _timing(drawing))


def _picture_line(drawing: Drawing, gate: GateReading) -> str:
    name = f"<b>{_(gate.concept)}</b>"
    if drawing.order.gate == "off":
        return _item("untouched", f"{name}: its gate is off, so nothing is steered.")
    if drawing.order.gate == "on":
        return _item("steered", f"{name}: always on, everything is steered; {_moved(drawing)}.")
    summary = f"{name}: mean gate {gate.mean_h:.2f} on this prompt, {gate.highest_h:.2f} where it is highest"
    if drawing.untouched:
        exactly = f" ({drawing.moved:.2f} of 255)" if drawing.moved else ", bit for bit"
        return _item("untouched", f"{summary}: the picture is untouched{exactly}.")
    if gate.highest_h < IDLE:
        return _item("untouched", f"{summary}: it has next to nothing to do here.")
    words = f" It opens at {_(_quoted(gate.words))}." if gate.words else ""
    return _item("steered", f"{summary}{f'; {_moved(drawing)}' if len(drawing.gates) == 1 else ''}.{words}")


def unknown(words: Sequence[str]) -> str:
    """What the built-in model does with words that it does not know; plain text."""
    return f"This model does not know {_quoted(words)}: it takes them for something else."


def _quoted(words: Sequence[str]) -> str:
    return ", ".join(f"“{word}”" for word in words)


def _moved(drawing: Drawing) -> str:
    return f"the picture moved by {drawing.moved:.1f} of 255"


def _timing(drawing: Drawing) -> str:
    base = f"base {drawing.base_seconds:.1f} s{' (kept from before)' if drawing.cached else ''}"
    if drawing.trace is None:
        return base
    return f"{base}, steered {drawing.seconds:.1f} s: {drawing.seconds / drawing.base_seconds:.2f} times the base"


def _pulling(pair: tuple[str, str]) -> str:
    first, second = pair
    return _item("warned", f"<b>{_(first)}</b> and <b>{_(second)}</b> pull against one another with these strengths.")


def _item(kind: str, content: str) -> str:
    return f'<li class="{kind}">{content}</li>'


def _report(items: Sequence[str], at: float, times: str) -> str:
    """A list that is read out when it changes; the same words once more are a change, by their time."""
    return f'<ul class="told" role="status" data-at="{at}">{"".join(items)}</ul><p class="quiet">{times}</p>'


def replied(reply: Reply | None) -> str:
    """What each concept's gate said of a message, and what became of the answer; how fast it was written."""
    if reply is None:
        return '<p class="quiet">Nothing is written before you ask: write a message, move a slider, press “Send”.</p>'
    lines = [_text_line(reply, gate) for gate in reply.gates]
    if reply.steered is None:
        lines = [_item("", "writing without steering …")]
    elif not reply.whole:
        lines = [_item("", "writing again, steered …")]
    elif not lines:
        lines = [_item("", "There is no concept to steer with: name one with --text-concepts.")]
    lines += map(_pulling, reply.opposed)
    if reply.unknown:
        lines.append(_item("warned", f"This model does not know {_(_quoted(reply.unknown))}, and cannot heed it."))
    return _report(lines, reply.at, _speeds(reply))


def _text_line(reply: Reply, gate: TokenReading) -> str:
    name, summary = f"<b>{_(gate.concept)}</b>", f"mean gate {_mean(gate.message):.2f} on this message"
    if _mean(gate.answer) >= SHOWN:
        summary += f", {_mean(gate.answer):.2f} on the answer"
    result = "the answer is the same, token for token" if reply.same else _parting(reply)
    if reply.question.gate == "off":
        return _item("untouched", f"{name}: its gate is off, so nothing is steered.")
    if gate.strength == 0:
        return _item("", f"{name}: at 0 it changes nothing; {summary}.")
    if reply.question.gate == "on":
        return _item("steered", f"{name}: always on, every token is steered; {result}.")
    highest = f", {gate.highest_h:.2f} where it is highest" if gate.highest_h >= SHOWN else ""
    return _item("untouched" if reply.same else "steered", f"{name}: {summary}{highest}: {result}.")


def _parting(reply: Reply) -> str:
    assert reply.steered is not None
    pairs = zip(reply.base.ids, reply.steered.ids, strict=False)
    same = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    return f"the answer is another one from token {same + 1} on" if same else "the answer is another one"


def _mean(tokens: Sequence[llm.Token]) -> float:
    return sum(token.mean_h for token in tokens) / max(1, len(tokens))


def _speeds(reply: Reply) -> str:
    if not reply.base.ids:
        return ""
    base = f"base {reply.base.speed:.0f} tokens/s"
    if reply.steered is None or not reply.gates:
        return base
    if reply.cached:  # the machine may have been busier, or less so, then: no ratio
        return f"{base} when it was written, steered {reply.steered.speed:.0f}"
    return f"{base}, steered {reply.steered.speed:.0f}: {reply.steered.speed / reply.base.speed:.2f} times the base"


def spelled(gate: TokenReading | None) -> str:
    """The tokens of a message and of the steered answer, on red as deep as one concept's h."""
    if gate is None:
        return note("The message and the answer come here, token by token, red where the gate opened.")
    # llm.as_html escapes what it is given
    parts = {"the message": llm.as_html(list(gate.message)), "the steered answer": llm.as_html(list(gate.answer))}
    content = "".join(f"<h4>{_(gate.concept)} in {name}</h4>{tokens}" for name, tokens in parts.items())
    return f'<div class="tokens">{content}</div>'


def steps_map(mean_h: Mapping[Site, Mapping[float | None, float]]) -> str:
    """Mean h by layer and timestep, a table of coloured cells."""
    if not mean_h:
        return '<p class="quiet">No gate has read anything yet: draw a picture with a slider off 0.</p>'
    times = list(dict.fromkeys(t for steps in mean_h.values() for t in steps if t is not None))
    head = "".join(f"<td>{t:.0f}</td>" if i % 3 == 0 else "<td></td>" for i, t in enumerate(times))
    rows = []
    for site, steps in mean_h.items():
        name = _(site_name(site))
        if None in steps:
            cells = _cell(steps[None], f"{name}, read once, before drawing", len(times) or 1)
        else:
            cells = "".join(_cell(steps[t], f"{name}, timestep {t:.0f}") if t in steps else "<td></td>" for t in times)
        rows.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    return (
        '<div class="scroll"><table class="steps"><caption class="quiet">mean h by layer (rows) and timestep '
        f'(1000 is noise)</caption><tr><th scope="col"></th>{head}</tr>{"".join(rows)}</table></div>'
    )


def _cell(h: float, title: str, span: int = 1) -> str:
    # most patches never show the concept, so means are small: the root tells them apart
    return (
        f'<td colspan="{span}" title="{title}: {h:.3f}" aria-label="{title}: {h:.3f}" '
        f'style="background: rgba(214, 66, 88, {0.06 + 0.94 * math.sqrt(min(1.0, max(0.0, h))):.2f})"></td>'
    )


def drawn_schedule(schedule: Schedule) -> str:
    """A schedule as a line over the timestep, from noise on the left to the picture on the right."""
    low = min(0.0, *(factor for _, factor in schedule.points))
    high = max(1.0, *(factor for _, factor in schedule.points))
    edges = [(1000.0, schedule.points[-1][1]), *reversed(schedule.points), (0.0, schedule.points[0][1])]
    line = " ".join(f"{(1000 - t) / 1000 * 240 + 4:.1f},{56 - (f - low) / (high - low) * 48:.1f}" for t, f in edges)
    ends = ", ".join(f"{factor:g} at {t:g}" for t, factor in (edges[0], edges[-1]))
    return (
        f'<figure class="schedule"><svg viewBox="0 0 248 62" width="248" height="62" role="img" aria-label="strength '
        f'over the timestep: {ends}"><line x1="4" y1="56" x2="244" y2="56" stroke="currentColor" opacity=".25"/>'
        f'<polyline points="{line}" fill="none" stroke="var(--color-accent)" stroke-width="2.5"/></svg>'
        "<figcaption>factor of the strength: noise (1000) → picture (0)</figcaption></figure>"
    )


def facts(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table of texts and numbers."""
    head = "".join(f'<th scope="col">{_(heading)}</th>' for heading in headings)
    body = "".join(f"<tr>{''.join(map(_fact, row))}</tr>" for row in rows)
    return f'<div class="scroll"><table class="facts"><tr>{head}</tr>{body}</table></div>'


def _fact(value: object) -> str:
    if isinstance(value, float):
        return f'<td class="number">{value:.3f}</td>'
    return f"<td>{'–' if value is None else _(str(value))}</td>"


def evidence(concept: Concept) -> str:
    """What was measured while a concept was learned: a table of its layers, and how its unit was chosen."""
    columns = {"balanced accuracy": "balanced_accuracy", "AUROC": "auroc", "weight": "weight", "control h": "control_h"}
    binned = {"bin": "bin"} if concept.edges else {}
    rows = [
        [site_name(str(site.get("site", ""))), *(site.get(key) for key in (binned | columns).values())]
        for site in concept.evidence.get("sites", ())
    ]
    strip = "The pictures are of prompts kept back: one that shows it, one that must stay as it is."
    unit = describe_unit(concept.unit, concept.evidence.get("unit")).splitlines()
    return (
        (note(strip) if concept.samples is not None else "")
        + facts(["layer", *binned, *columns], list({str(row): row for row in rows}.values()))
        + note("Cross-validated; control h is the mean gate on what must stay as it is.")
        + "".join(note(line) for line in unit)
    )


def advice(hints: Sequence[str], fine: str) -> str:
    """Hints as a list, or that there is nothing to say."""
    items = [_item("warned", _(hint)) for hint in hints] or [_item("untouched", _(fine))]
    return f'<ul class="told" role="status">{"".join(items)}</ul>'


def progress(stage: str, share: float, seconds: float, left: float | None, count: str = "") -> str:
    """A bar of how far work has come, and in words."""
    percent = f"{100 * min(1.0, max(0.0, share)):.0f}"
    remaining = "" if left is None else f", about {_seconds(left)} to go"
    return (
        f'<div class="bar" role="progressbar" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{percent}" '
        f'aria-label="{_(stage)}"><div style="width: {percent}%"></div></div>'
        f'<p class="quiet"><b>{_(stage)}</b>{f" {_(count)}" if count else ""}<br>'
        f"{_seconds(seconds)} so far{remaining}</p>"
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def note(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{_(kind or "quiet")}" role="status">{_(text)}</p>'


def unmarked(text: str) -> str:
    """Plain text on one line, without what Gradio makes links, code and bold of; it knows no escape."""
    return " ".join(text.split()).translate(_UNMARKED)


def _(text: str) -> str:
    return html.escape(text, quote=True)
