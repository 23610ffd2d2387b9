"""The demo in a real browser, as a newcomer uses it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.browser.demo import Demo, Server, browser, serving

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

BANANA, NONE = "a banana and a dog on the grass", "a red car on the beach"
#: of 255, mean: what a picture moves by when a banana in it is blurred, at least
VISIBLE = 1.0
Visit = Callable[..., Demo]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with serving(folder / "log", "--saves", str(folder / "saves")) as server:
        yield server
    assert "Traceback" not in server.printed()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as chromium:
        yield chromium


@pytest.fixture
def visit(server: Server, chromium: Any) -> Iterator[Visit]:
    """Come to the page, once for each visitor."""
    visitors: list[Demo] = []

    def come(path: str = "", **options: Any) -> Demo:
        visitors.append(Demo(chromium, server.address + path, **options))
        return visitors[-1]

    yield come
    for visitor in visitors:
        assert visitor.errors == []
        visitor.close()


def moved(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference, of 255."""
    return float(np.abs(a.astype(float) - b).mean())


def test_a_slider_moves_the_steered_picture_and_leaves_the_base(visit: Visit) -> None:
    demo = visit()
    assert "Nothing is drawn before you ask" in demo.explained()
    demo.ask(BANANA)
    demo.slide(0, 1.0)
    base, steered = demo.draw()
    assert moved(base, steered) > VISIBLE
    demo.slide(0, 0.5)
    again, weaker = demo.draw()
    assert np.array_equal(base, again)
    assert VISIBLE / 4 < moved(base, weaker) < moved(base, steered)
    assert "kept from before" in demo.explained()
    demo.slide(0, 0.0)
    base, off = demo.draw()
    assert np.array_equal(base, off)


def test_a_prompt_without_the_concept_is_untouched(visit: Visit) -> None:
    demo = visit()
    demo.ask(NONE)
    demo.slide(0, 1.0)
    base, steered = demo.draw()
    assert moved(base, steered) < 0.5
    assert "untouched" in demo.explained()


def test_live_mode_and_gates(visit: Visit) -> None:
    demo = visit()
    demo.ask(NONE)
    demo.slide(0, 1.0)
    demo.page.get_by_label("always on").check()
    base, everywhere = demo.draw()
    assert moved(base, everywhere) > VISIBLE
    before = demo.drawing()
    demo.slide(0, 0.75)
    demo.page.locator("#live input").check()
    demo.page.wait_for_timeout(1500)
    assert demo.drawing() == before, "nothing is drawn before live mode is on"
    demo.slide(0, 0.5)
    demo.wait_for_drawing(before)
    assert 0 < moved(*demo.pictures()) < moved(base, everywhere)


def test_where_it_steered(visit: Visit) -> None:
    demo = visit()
    demo.ask(BANANA)
    demo.draw()
    demo.tab("Where it steered")
    heat = demo.page.locator("#where-picture img")
    heat.wait_for()
    mean = demo.pixels(heat.get_attribute("src"))
    assert np.ptp(mean.mean(axis=-1)) > 80, "bright here, dark there"
    assert demo.page.locator("#where-map td[title]").count() > 12
    demo.page.locator("#where-step input[type=number]").fill("1")
    demo.page.locator("#where-step input[type=number]").press("Tab")
    demo.page.get_by_text("step 1 of").wait_for()
    assert moved(mean, demo.pixels(heat.get_attribute("src"))) > VISIBLE


def test_a_strip_and_its_files(visit: Visit, tmp_path: Path) -> None:
    demo = visit()
    demo.ask(BANANA)
    demo.tab("Strip")
    demo.page.locator("#strip-count input[type=number]").fill("3")
    demo.page.locator("#strip-draw").click()
    demo.page.get_by_text("0: off").wait_for()
    for button, suffix in (("#strip-png", ".png"), ("#strip-webp", ".webp"), ("#strip-gif", ".gif")):
        with demo.page.expect_download() as download:
            demo.page.locator(button).click()
        assert download.value.suggested_filename.endswith(suffix)
        download.value.save_as(tmp_path / suffix)
        assert (tmp_path / suffix).stat().st_size > 1000


def test_two_visitors_get_their_own(visit: Visit) -> None:
    one, other = visit(), visit()
    one.ask(BANANA, seed=11)
    other.ask("a banana on a table", seed=12)
    one.slide(0, 1.0)
    other.slide(0, 0.25)
    alone = [demo.draw() for demo in (one, other)]
    before = [demo.press() for demo in (one, other)]
    for demo, mark, (base, steered) in zip((one, other), before, alone, strict=True):
        demo.wait_for_drawing(mark)
        assert all(np.array_equal(a, b) for a, b in zip(demo.pictures(), (base, steered), strict=True))
    assert moved(*alone[0]) > moved(*alone[1])


def test_mistakes_are_told_kindly(visit: Visit) -> None:
    demo = visit()
    demo.ask(" ")
    demo.page.locator("#draw").click()
    assert "write what the picture should show" in demo.told()
    demo.ask("a xylophone on the grass")
    demo.draw()
    assert "does not know “xylophone”" in demo.explained()
    demo.tab("Learn")
    for field, text in (("from", "banana"), ("to", "pear"), ("name", "<b>pear</b>")):
        demo.page.locator(f"#learn-{field}").locator("input, textarea").fill(text)
    demo.page.locator("#learn-start").click()
    demo.page.get_by_text("name '<b>pear</b>'").first.wait_for()
    assert "<b>pear</b>" in demo.told(), "what people wrote is text"


@pytest.mark.parametrize(
    "options", [{"viewport": {"width": 390, "height": 844}}, {"viewport": {"width": 1280, "height": 800}}]
)
def test_the_page_fits_and_can_be_used_by_keyboard(visit: Visit, options: dict[str, Any]) -> None:
    demo = visit(**options)
    wide = demo.page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, "nothing sticks out"
    unnamed = demo.page.evaluate(
        """() => [...document.querySelectorAll('input, textarea, button, [role=tab]')].filter(e => e.offsetParent
            && !(e.labels?.length || e.ariaLabel || e.title || e.innerText.trim() || e.getAttribute('aria-labelledby')
            || e.closest('label'))).map(e => e.outerHTML.slice(0, 120))"""
    )
    assert unnamed == []
    demo.page.locator("#prompt textarea, #prompt input").first.focus()
    before, places = demo.drawing(), demo.places()
    demo.page.keyboard.press("Enter")
    demo.wait_for_drawing(before)
    assert demo.places() == pytest.approx(places, abs=12), "nothing jumps when the picture comes"
