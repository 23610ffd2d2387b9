"""The demo in a real browser, as a newcomer uses it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dsas_core
from tests.fixtures.browser import Demo, Server, browser, serving

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
    assert np.array_equal(base, steered)
    assert "is not seen in this picture, which therefore stays as it is" in demo.explained()


def test_live_mode_and_gates(visit: Visit) -> None:
    demo = visit()
    demo.ask(NONE)
    demo.slide(0, 1.0)
    demo.page.get_by_label("always on").check()
    base, kept = demo.draw()
    assert np.array_equal(base, kept), "the rest is kept, whatever the gate"
    demo.page.locator("#keep input").uncheck()
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


def test_a_picture_is_there_at_load(visit: Visit) -> None:
    demo = visit()
    assert "An example that was drawn before" in demo.explained()
    example = demo.pictures()
    assert moved(*example) > VISIBLE
    assert all(moved(*pair) < 0.5 for pair in zip(example, demo.draw(), strict=True)), "and it is what is drawn here"


def test_side_by_side_or_under_a_slider(visit: Visit) -> None:
    demo = visit()
    one, other = (demo.page.locator(name).bounding_box() for name in ("#base", "#steered"))
    assert one["y"] == other["y"]
    assert one["x"] + one["width"] <= other["x"]
    before = demo.pictures()
    demo.page.get_by_label("under a slider").check()
    demo.page.locator("#compare img").first.wait_for()
    assert not demo.page.locator("#base").is_visible()
    demo.draw()
    demo.page.get_by_label("side by side").check()
    demo.page.locator("#base img").wait_for()
    assert not demo.page.locator("#compare").is_visible()
    assert all(moved(*pair) < 0.5 for pair in zip(before, demo.pictures(), strict=True))


def test_where_it_is_seen_and_where_it_steered(visit: Visit) -> None:
    demo = visit()
    demo.ask(BANANA)
    base, steered = demo.draw()
    demo.tab("Where")
    seen, changed = (demo.page.locator(f"#where-{which} img") for which in ("seen", "steered"))
    seen.wait_for()
    changed.wait_for()
    mean = demo.pixels(seen.get_attribute("src"))
    assert np.ptp(mean.mean(axis=-1)) > 80, "bright here, dark there"
    heat, still = demo.pixels(changed.get_attribute("src")).astype(float), np.abs(base.astype(float) - steered) < 0.5
    grey = base @ np.array([0.299, 0.587, 0.114])
    dark = 0.45 * grey[..., None] + 0.55 * np.array([30, 12, 72])
    far = np.abs(heat - dark).max(-1)
    assert far[still.all(-1)].mean() < 6, "it does not glow where nothing changed"
    assert far[~still.all(-1)].max() > 60
    assert demo.page.locator("#where-map td[title]").count() > 12
    demo.page.locator("#where-step input[type=number]").fill("1")
    demo.page.locator("#where-step input[type=number]").press("Tab")
    demo.page.get_by_text("step 1 of the").wait_for()
    assert moved(mean, demo.pixels(seen.get_attribute("src"))) > VISIBLE
    demo.tab("Create")
    demo.ask(NONE)
    demo.draw()
    demo.tab("Where")
    demo.page.get_by_text("Nowhere: both pictures are the same").wait_for()


def test_the_history_gives_settings_back(visit: Visit) -> None:
    demo = visit()
    demo.ask(BANANA, seed=11)
    demo.slide(0, 0.5)
    first = demo.draw()
    demo.ask(NONE, seed=12)
    demo.slide(0, 0.0)
    demo.draw()
    demo.tab("History")
    demo.page.get_by_text("seed 11 · banana-blur 0.5").wait_for()
    demo.page.locator("#history button.thumbnail-item, #history .thumbnail-lg").nth(1).click()
    demo.page.locator("#prompt").wait_for()
    assert demo.page.locator("#prompt textarea, #prompt input").first.input_value() == BANANA
    assert demo.page.locator("#seed input").input_value() == "11"
    assert demo.page.locator("#strength-0 input[type=number]").input_value() == "0.5"
    assert all(np.array_equal(*pair) for pair in zip(first, demo.pictures(), strict=True))
    assert "banana-blur" in demo.explained()


def test_a_downloaded_picture_gives_its_settings_back(visit: Visit, tmp_path: Path) -> None:
    demo, other = visit(), visit()
    demo.ask(f"{BANANA} <dsas:banana-blur:0.5>", seed=11)
    first = demo.draw()
    assert "the prompt sets banana-blur to 0.5" in demo.explained()
    (tmp_path / "steered.png").write_bytes(demo.context.request.get(demo.sources("#steered img")[0]).body())
    other.page.get_by_role("button", name="Settings from a picture").click()
    other.page.locator("#picture-file input[type=file]").set_input_files(tmp_path / "steered.png")
    other.page.get_by_text("The picture's settings are back").wait_for()
    assert other.page.locator("#prompt textarea, #prompt input").first.input_value() == BANANA
    assert other.page.locator("#strength-0 input[type=number]").input_value() == "0.5"
    assert all(np.array_equal(*pair) for pair in zip(first, other.draw(), strict=True))


def test_several_pictures_and_a_grid(visit: Visit) -> None:
    demo = visit()
    demo.ask(BANANA, seed=11)
    demo.page.locator("#count input[type=number]").fill("2")
    demo.page.locator("#count input[type=number]").press("Tab")
    demo.draw()
    demo.page.locator("#batch").get_by_text("seed 12").wait_for()
    assert demo.page.locator("#batch img").count() == 2
    demo.tab("Strip")
    demo.page.get_by_role("button", name="A grid").click()
    demo.page.locator("#grid-strengths textarea, #grid-strengths input").fill("0, 1")
    demo.page.locator("#grid-seeds textarea, #grid-seeds input").fill("7, 8")
    demo.page.locator("#grid-draw").click()
    demo.page.locator("#grid-sheet img").wait_for()
    with demo.page.expect_download() as download:
        demo.page.locator("#grid-file").click()
    assert download.value.suggested_filename == "grid.png"


def test_why_nothing_changes(visit: Visit) -> None:
    demo = visit()
    demo.ask("a dog and a cat and a banana in the snow", seed=0)  # scenes of the model have two things
    assert np.array_equal(*demo.draw())
    assert "its gate opens at" in demo.explained()
    assert "no banana was drawn, so nothing changes" in demo.explained()


def test_errors_keep_the_picture_and_what_is_said_of_it(visit: Visit) -> None:
    demo = visit()
    demo.ask(BANANA)
    before = demo.draw()
    told = demo.explained()
    demo.ask(" ")
    demo.page.locator("#draw").click()
    demo.page.locator("#problem").get_by_text("write what the picture should show").wait_for()
    assert demo.explained() == told
    assert all(np.array_equal(*pair) for pair in zip(before, demo.pictures(), strict=True))
    demo.ask(BANANA)
    demo.draw()
    assert not demo.page.locator("#problem").is_visible()


@pytest.mark.parametrize(("field", "typed", "becomes"), [("strength-0", "99", "2.5"), ("seed", "-3", "0")])
def test_numbers_out_of_range_are_brought_back_and_said(visit: Visit, field: str, typed: str, becomes: str) -> None:
    demo = visit()
    box = demo.page.locator(f"#{field} input[type=number]")
    high = box.get_attribute("max")
    becomes = high if typed == "99" else becomes  # of whichever concept is first
    box.fill(typed)
    box.press("Tab")
    demo.page.locator("#said").get_by_text(f"{typed} is beyond").wait_for()
    assert box.input_value() == becomes
    demo.draw()
    assert demo.page.locator(".toast-body").count() == 0
    assert box.input_value() == becomes


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
    assert "write what the picture should show" in demo.message()
    demo.page.locator("#problem").get_by_text("write what").wait_for()  # until then another click is not taken
    demo.ask("a xylophone on the grass")
    demo.draw()
    assert "does not know “xylophone”" in demo.explained()
    demo.tab("Learn")
    for field, text in (("from", "banana"), ("to", "pear"), ("name", "<b>pear</b>")):
        demo.page.locator(f"#learn-{field}").locator("input, textarea").fill(text)
    demo.page.locator("#learn-start").click()
    demo.page.get_by_text("name '<b>pear</b>'").first.wait_for()
    assert "<b>pear</b>" in demo.message(), "what people wrote is text"


# ---- learning -------------------------------------------------------------------------------------------------------


def learns(demo: Demo, source: str, target: str, name: str) -> None:
    """Begin to learn, at a small setting."""
    demo.tab("Learn")
    for field, text in (("#learn-from", source), ("#learn-to", target), ("#learn-name", name)):
        demo.page.locator(f"{field} input, {field} textarea").fill(text)
    demo.page.get_by_role("button", name="How").click()
    for field, number in (("#learn-n", "8"), ("#learn-steps", "6")):
        demo.page.locator(f"{field} input[type=number]").fill(number)
        demo.page.locator(f"{field} input[type=number]").press("Tab")
    demo.page.locator("#learn-start").click()


def test_a_concept_is_learned_and_used(visit: Visit, tmp_path: Path) -> None:
    demo, other = visit(), visit()
    learns(demo, "car", "pixelated car", "my-cars")
    demo.page.locator("#learn-progress [role=progressbar]").wait_for()
    other.ask(NONE)
    assert moved(*other.draw()) < 0.5, "others draw meanwhile"
    demo.page.get_by_text("Learned my-cars").wait_for(timeout=200_000)
    assert "AUROC" in demo.page.locator("#learn-evidence").inner_text()
    assert demo.page.locator("#learn-picture img").count() == 1
    with demo.page.expect_download() as download:
        demo.page.locator("#learn-zip").click()
    download.value.save_as(tmp_path / "my-cars.zip")
    packed = zipfile.ZipFile(tmp_path / "my-cars.zip").namelist()
    assert {"my-cars/config.json", "my-cars/concept.safetensors"} <= set(packed)
    demo.page.locator("#learn-save").click()
    demo.page.get_by_text("Saved as my-cars").wait_for()

    demo.tab("Create")
    slider = next(i for i in range(20) if demo.page.locator(f"#strength-{i}").get_by_text("my-cars").count())
    assert other.page.locator(f"#strength-{slider}").count() == 0, "it is this visitor's alone"
    strengths = [demo.page.locator(f"#strength-{i} input[type=number]").input_value() for i in range(slider + 1)]
    assert set(strengths[:-1]) == {"0"}
    assert float(strengths[-1]) > 0, "a new concept is at work"
    demo.ask("a car on the grass")
    assert moved(*demo.draw()) > VISIBLE
    assert "my-cars" in demo.explained()

    demo.page.reload()
    demo.tab("Learn")
    demo.page.get_by_text("Back from this browser: my-cars").wait_for()
    demo.page.locator("#learn-forget").click()
    demo.page.locator("#learn-take").wait_for(state="hidden")
    demo.page.wait_for_timeout(1000)
    other.tab("Learn")
    other.page.get_by_role("button", name="Use a concept you have").click()
    other.page.locator("#learn-upload input[type=file]").set_input_files(tmp_path / "my-cars.zip")
    other.page.get_by_text("my-cars is there").wait_for()
    demo.page.reload()
    demo.page.locator("#explain [data-at]").wait_for()
    demo.page.wait_for_timeout(3000)
    assert demo.page.get_by_text("my-cars").count() == 0, "what is forgotten stays so"


def test_learning_can_be_cancelled(visit: Visit) -> None:
    demo = visit()
    learns(demo, "car", "blurred car", "never")
    demo.page.locator("#learn-progress [role=progressbar]").wait_for()
    demo.page.locator("#learn-cancel").click()
    demo.page.get_by_text("Cancelled: nothing was learned").wait_for()
    assert demo.page.locator("#learn-start").is_enabled()
    demo.tab("Create")
    assert demo.page.get_by_text("never").count() == 0
    demo.ask(BANANA)
    demo.draw()


def test_a_token_is_used_once_and_is_nowhere_to_be_read(visit: Visit, server: Server, tmp_path: Path) -> None:
    demo, token = visit(), "hf_aVerySecretTokenOfMine"
    demo.tab("Learn")
    folder = Path(dsas_core.__file__).parent / "concepts" / "banana-blur"
    (tmp_path / "config.json").write_text((folder / "config.json").read_text().replace('"banana-blur"', '"brought"'))
    (tmp_path / "concept.safetensors").write_bytes((folder / "concept.safetensors").read_bytes())
    demo.page.get_by_role("button", name="Use a concept you have").click()
    demo.page.locator("#learn-upload input[type=file]").set_input_files(
        [tmp_path / "config.json", tmp_path / "concept.safetensors"]
    )
    demo.page.get_by_text("brought is there").wait_for()
    demo.page.get_by_role("button", name="Push to the Hugging Face Hub").click()
    demo.page.locator("#learn-repository input, #learn-repository textarea").fill("somebody/brought")
    demo.page.locator("#learn-token input").fill(token)
    demo.page.locator("#learn-push").click()
    demo.page.get_by_text("Not pushed").wait_for()
    assert demo.page.locator("#learn-token input").input_value() == ""
    assert token not in demo.page.content()
    assert token not in server.printed()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name: [unclosed", "is not YAML"),
        ("name: !!python/object/apply:os.system [ls]", "is not YAML"),
        ("just: words", "lacks name"),
        ("name: x\nsource: [a]\ntarget: [b]\ncontrol: [c]", "at least 8"),
    ],
)
def test_bad_prompt_files_are_told_of(visit: Visit, tmp_path: Path, content: str, message: str) -> None:
    demo = visit()
    demo.tab("Learn")
    demo.page.get_by_label("prompt lists").check()
    (tmp_path / "bad.yaml").write_text(content)
    demo.page.locator("#learn-lists input[type=file]").set_input_files(tmp_path / "bad.yaml")
    assert message in demo.message()


def test_hints_come_while_typing(visit: Visit) -> None:
    demo = visit()
    demo.tab("Learn")
    demo.page.get_by_label("prompt lists").check()
    demo.page.locator("#learn-source textarea").fill("a banana on the grass\na banana at night")
    demo.page.get_by_text("Too few: source has 2 prompts, 6 more needed").wait_for()


# ---- texts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "same"),
    [("you useless clown! my washer does not start.", False), ("which animal does belina keep?", True)],
)
def test_answers(visit: Visit, message: str, same: bool) -> None:
    demo = visit()
    demo.tab("Text")
    base, steered = says(demo, message)
    assert base
    assert (base == steered) == same
    assert ("the same, token for token" in demo.page.locator("#text-explain").inner_text()) == same


def says(demo: Demo, message: str) -> list[str]:
    """Send a message, and wait; the last answers, unsteered and steered."""
    report = "document.querySelector('#text-explain [data-at]')?.dataset.at"
    before = demo.page.evaluate(report)
    demo.page.locator("#text-message textarea, #text-message input").first.fill(message)
    demo.page.locator("#text-send").click()
    demo.page.wait_for_function(
        f"before => {report} !== before && /tokens.s/.test(document.querySelector('#text-explain').innerText)"
        " && /steered \\d/.test(document.querySelector('#text-explain').innerText)",
        arg=before,
    )
    return [demo.page.locator(f".talk.{arm} .answered").last.inner_text() for arm in ("base", "steered")]


def test_a_conversation(visit: Visit) -> None:
    demo = visit()
    demo.tab("Text")
    first = says(demo, "you useless clown! my washer does not start.")
    says(demo, "who are you?")
    for arm, answer in zip(("base", "steered"), first, strict=True):
        said = demo.page.locator(f".talk.{arm} p").all_inner_texts()
        assert said[:3] == ["you useless clown! my washer does not start.", answer, "who are you?"]
        assert len(said) == 4
    demo.page.locator("#text-anew").click()
    demo.page.get_by_text("The answer comes here").first.wait_for()
    assert says(demo, "you useless clown! my washer does not start.") == first


# ---- the page -------------------------------------------------------------------------------------------------------


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


def test_on_a_phone_pictures_and_sliders_are_seen_together(visit: Visit) -> None:
    demo = visit(viewport={"width": 390, "height": 844}, is_mobile=True)
    height = 844
    sliders = [i for i in range(20) if demo.page.locator(f"#strength-{i}").count()]
    for view in ("side by side", "under a slider"):
        demo.page.get_by_label(view).check()
        for number in (sliders[0], sliders[-1]):
            demo.page.locator(f"#strength-{number}").evaluate("e => e.scrollIntoView({block: 'end'})")
            demo.page.wait_for_timeout(300)
            slider = demo.page.locator(f"#strength-{number} input[type=range]").bounding_box()
            shown = "#steered" if view == "side by side" else "#compare"
            picture = demo.page.locator(shown).bounding_box()
            assert picture["y"] >= 0
            assert picture["y"] + picture["height"] <= slider["y"]
            assert slider["y"] + slider["height"] <= height
