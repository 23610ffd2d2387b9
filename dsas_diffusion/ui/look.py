"""How the demo looks: its theme, its style sheet, and the pieces of HTML that it draws.

Whatever comes from outside (names, prompts, tokens) is escaped here, and nowhere else is HTML made.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from dsas_core.card import unit_in_words
from dsas_core.concept import Concept
from dsas_core.sites import Site

from ..schedule import Schedule
from ..sites import site_name
from .studio import Drawing, Seen

#: fonts that every system has: nothing is fetched from elsewhere
FONTS = ["ui-sans-serif", "system-ui", "sans-serif"]
FIXED = ["ui-monospace", "Menlo", "Consolas", "monospace"]

CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
#heading { padding: .4rem 0; }
#heading h1 { font-size: 1.5rem; margin: 0; }
#heading p { margin: .15rem 0 0; color: var(--body-text-color-subdued); }
#compare { min-height: 340px; }
#explain { min-height: 4.5rem; }
.told { margin: 0; padding: 0; list-style: none; }
.told li { padding: .3rem 0 .3rem .7rem; border-left: 3px solid var(--border-color-primary); margin-bottom: .35rem; }
.told li.steered { border-color: #d65858; }
.told li.untouched { border-color: #4f9a68; }
.told li.warned { border-color: #c98a1b; }
p.warned { border-left: 3px solid #c98a1b; padding-left: .7rem; }
p.quiet, caption.quiet { color: var(--body-text-color-subdued); font-size: .9em; margin: .2rem 0; }
.chips { gap: .4rem !important; flex-wrap: wrap !important; }
.chips button { flex: 0 1 auto !important; min-width: 0 !important; font-weight: 400; border-radius: 999px;
  white-space: normal; text-align: left; }
.scroll { overflow-x: auto; }
.scroll table, .scroll td, .scroll th { border: 0 !important; }
.scroll caption { text-align: left; }
table.steps { border-collapse: separate !important; border-spacing: 2px; font-size: .8rem; width: auto; margin: 0; }
table.steps th { font-weight: 400; text-align: left; white-space: nowrap; padding: 0 .5rem 0 0; }
table.steps td { width: 1.9rem; min-width: 1.1rem; height: 1.3rem; border-radius: 3px; padding: 0; font-size: .7rem; }
table.facts { border-collapse: collapse !important; width: 100%; font-size: .9rem; margin: 0; }
table.facts th, table.facts td { text-align: left; padding: .3rem .6rem; }
table.facts tr + tr { border-top: 1px solid var(--border-color-primary); }
table.facts td.number { font-variant-numeric: tabular-nums; text-align: right; }
figure.schedule { margin: 0; color: var(--body-text-color); }
figure.schedule figcaption { color: var(--body-text-color-subdued); font-size: .8rem; }
.bar { height: .6rem; border-radius: 999px; background: var(--border-color-primary); overflow: hidden; }
.bar > div { height: 100%; background: var(--color-accent); transition: width .3s; }
@media (max-width: 640px) { #compare { min-height: 300px; } .gradio-container { padding: .5rem !important; } }
"""


def theme() -> Any:
    """Quiet, light and dark, with nothing that is fetched from elsewhere."""
    import gradio as gr

    plain = {f"block_{part}_background_fill": "transparent" for part in ("title", "label")}
    plain |= {f"block_{part}_background_fill_dark": "transparent" for part in ("title", "label")}
    ink = {f"block_{part}_text_color": "*body_text_color" for part in ("title", "label")}
    ink |= {f"block_{part}_text_color_dark": "*body_text_color" for part in ("title", "label")}
    return gr.themes.Soft(
        primary_hue="indigo", secondary_hue="indigo", neutral_hue="slate", font=FONTS, font_mono=FIXED
    ).set(**plain, **ink, block_title_padding="0", block_shadow="none", block_border_width="1px")


def explained(drawing: Drawing | None) -> str:
    """What each concept's gate said, and what became of the picture; how long it took."""
    if drawing is None:
        return '<p class="quiet">Nothing is drawn before you ask: write a prompt, move a slider, press “Draw”.</p>'
    lines = [_line(drawing, seen) for seen in drawing.seen]
    if drawing.steered is None:
        lines = [_item("", "steering …")]
    elif not lines:
        lines = [_item("", "All sliders are at 0: both pictures are the unsteered one.")]
    lines += [
        _item("warned", f"<b>{_(first)}</b> and <b>{_(second)}</b> pull against one another with these strengths.")
        for first, second in drawing.opposed
    ]
    return f'<ul class="told">{"".join(lines)}</ul><p class="quiet">{_timing(drawing)}</p>'


def _line(drawing: Drawing, seen: Seen) -> str:
    name = f"<b>{_(seen.concept)}</b>"
    said = f"mean gate {seen.mean_h:.2f} on this prompt, {seen.highest_h:.2f} where it is highest"
    if drawing.order.gate == "off":
        return _item("untouched", f"{name}: its gate is off, so nothing is steered.")
    if drawing.order.gate == "on":
        return _item("steered", f"{name}: always on, everything is steered; {_moved(drawing)}.")
    if drawing.untouched:
        return _item("untouched", f"{name}: {said}: the picture is untouched{_if_moved(drawing)}.")
    words = ", ".join(f"“{_(word)}”" for word in seen.words)
    at = f" It opens at {words}." if words else ""
    return _item("steered", f"{name}: {said}; {_moved(drawing)}.{at}")


def _moved(drawing: Drawing) -> str:
    return f"the picture moved by {drawing.moved:.1f} of 255"


def _if_moved(drawing: Drawing) -> str:
    return f" ({drawing.moved:.2f} of 255)" if drawing.moved else ", bit for bit"


def _timing(drawing: Drawing) -> str:
    base = f"base {drawing.base_seconds:.1f} s{' (kept from before)' if drawing.cached else ''}"
    if drawing.trace is None:
        return base
    return f"{base}, steered {drawing.seconds:.1f} s: {drawing.seconds / drawing.base_seconds:.2f} times the base"


def _item(kind: str, content: str) -> str:
    return f'<li class="{kind}">{content}</li>'


def steps_map(found: Mapping[Site, Mapping[float | None, float]]) -> str:
    """Mean h by layer and timestep, a table of coloured cells."""
    if not found:
        return '<p class="quiet">No gate has read anything yet: draw a picture with a slider off 0.</p>'
    times = list(dict.fromkeys(t for steps in found.values() for t in steps if t is not None))
    head = "".join(f"<td>{t:.0f}</td>" if i % 3 == 0 else "<td></td>" for i, t in enumerate(times))
    rows = []
    for site, steps in found.items():
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
    told = ", ".join(f"{factor:g} at {t:g}" for t, factor in (edges[0], edges[-1]))
    return (
        f'<figure class="schedule"><svg viewBox="0 0 248 62" width="248" height="62" role="img" aria-label="strength '
        f'over the timestep: {told}"><line x1="4" y1="56" x2="244" y2="56" stroke="currentColor" opacity=".25"/>'
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
    told = unit_in_words(concept.unit, concept.evidence.get("unit")).splitlines()
    return (
        (note(strip) if concept.samples is not None else "")
        + facts(["layer", *binned, *columns], list(dict.fromkeys(map(tuple, rows))))
        + note("Cross-validated; control h is the mean gate on what must stay as it is.")
        + "".join(note(line) for line in told)
    )


def advice(hints: Sequence[str], fine: str) -> str:
    """Hints as a list, or that there is nothing to say."""
    if not hints:
        return f'<ul class="told" role="status">{_item("untouched", _(fine))}</ul>'
    return f'<ul class="told" role="status">{"".join(_item("warned", _(hint)) for hint in hints)}</ul>'


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


def _(text: str) -> str:
    return html.escape(text, quote=True)
