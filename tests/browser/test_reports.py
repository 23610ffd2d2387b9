"""Reports of an evaluation in a real browser: they fit the window, and on a phone nothing but their tables scrolls."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from dsas_core.evaluation import report
from dsas_core.evaluation.arms import ARMS
from dsas_core.evaluation.summary import Point, summarise
from tests.fixtures.browser import browser

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

LABELS = [(seed, f"prompt {i}") for seed in range(2) for i in range(3)]
#: figures that an evaluation of pictures has of every arm
FIGURES = (
    *("unchanged", "identical", "pixel_change", "latent_change", "change_outside_the_thing", "neighbours_kept"),
    *("frechet_judge", "kid_judge", "clip_score"),
)
#: elements that are wider than what they are in, but for what scrolls by itself
TOO_WIDE = """() => [...document.querySelectorAll("main *")]
    .filter(it => !it.closest(".wide") && !it.closest("svg") && it.scrollWidth > it.clientWidth + 1 && it.clientWidth)
    .map(it => it.tagName + " " + it.innerText.slice(0, 40))"""
#: tables that are wider than the window
SCROLLING = """() => [...document.querySelectorAll(".wide")].filter(it => it.scrollWidth > it.clientWidth + 1)
    .map(it => it.previousElementSibling.innerText + " " + it.scrollWidth)"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a report of every arm, with long names and a row of samples for each side."""
    folder = tmp_path_factory.mktemp("report")
    Image.new("RGB", (64, 64), "orange").save(folder / "picture.png")
    points = [Point(s, [s / 2] * 6, [0.1] * 6, dict.fromkeys(FIGURES, 112.345)) for s in (0.5, 1.0, 2.0)]
    arms = dict.fromkeys(ARMS, points)
    pictures = dict.fromkeys(["base", "asked", *(arm + times for arm in ARMS for times in ("", " ×2"))][:12])
    sample = {"prompt": "a banana to the left of a house " * 3}
    sample["pictures"] = dict.fromkeys(pictures, str(folder / "picture.png"))
    concept = {
        "name": "banana-blur",
        **summarise(arms, [0.1] * 6, [0.9] * 6, LABELS, LABELS, rounds=20),
        "wordings": [{"wording": "a {companion} {beside} a banana {new_place} " * 4, "pictures": 6, "dsas": 1.0}],
        "evidence": {"sites": [{"site": "unet." + "mid_block.attentions." * 4, "weight": 1.0, "auroc": 0.9}]},
        "samples": [sample, sample],
        "skipped": ["nothing " * 30],
    }
    document: dict[str, Any] = {"title": "banana-blur", "concepts": [concept], "command": "dsas eval " + "--o x " * 60}
    document |= {"seconds": 1.0, "machine": "x86_64, 2 cores", "versions": {"dsas": "0.1.0"}}
    report.write_report(folder, document)
    return f"file://{folder / 'report.html'}"


@pytest.mark.parametrize(("width", "scrolls"), [(1200, False), (390, True)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_report_fits_the_window(page: str, width: int, scrolls: bool, scheme: Any) -> None:
    with browser() as chromium:
        tab = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab.goto(page)
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        assert tab.evaluate(TOO_WIDE) == []
        assert bool(tab.evaluate(SCROLLING)) == scrolls, tab.evaluate(SCROLLING)
        first = tab.locator(".wide td").first
        tab.evaluate("document.querySelector('.wide').scrollLeft = 300")
        assert first.bounding_box()["x"] >= 0, "the name of a row stays"
