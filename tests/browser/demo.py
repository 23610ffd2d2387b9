"""The demo as people meet it: a server of its own, and a browser that reads what the page shows."""

from __future__ import annotations

import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
#: a browser that looks nothing up in a network
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
#: milliseconds that anything on the page may take on a busy machine
PATIENCE = 60_000


@dataclass
class Server:
    """A running demo: its address, and what it has printed."""

    address: str
    log: Path
    ready: float

    def printed(self) -> str:
        return self.log.read_text()


@contextmanager
def serving(log: Path, *arguments: str) -> Iterator[Server]:
    """`python app.py` on a free port, ended as a system ends it; it must leave in order."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "app.py", "--port", str(port), "--quiet", *arguments],
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )
    try:
        while "serving at" not in log.read_text():
            assert process.poll() is None, f"the demo ended: {log.read_text()}"
            assert time.monotonic() - began < 180, f"the demo does not begin: {log.read_text()}"
            time.sleep(0.1)
        yield Server(f"http://127.0.0.1:{port}/", log, time.monotonic() - began)
        process.terminate()
        assert process.wait(30) == 0, log.read_text()
    finally:
        process.kill()


@contextmanager
def browser() -> Iterator[Any]:
    """Chromium, as the system has it."""
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=FLAGS)
        try:
            yield chromium
        finally:
            chromium.close()


class Demo:
    """One visitor's page."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(address)
        self.page.locator("#draw").wait_for()

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def ask(self, prompt: str, seed: int | None = None) -> None:
        self.page.locator("#prompt textarea, #prompt input").first.fill(prompt)
        if seed is not None:
            self.page.locator("#seed input").fill(str(seed))

    def slide(self, number: int, strength: float) -> None:
        """Set a slider by its number, as by typing; it lets go."""
        box = self.page.locator(f"#strength-{number} input[type=number]")
        box.fill(f"{strength:g}")
        box.press("Tab")

    def press(self) -> str | None:
        """Press Draw; which drawing was explained before."""
        before = self.drawing()
        self.page.locator("#draw").click()
        return before

    def drawing(self) -> str | None:
        """Which drawing is explained."""
        told = self.page.locator("#explain [data-at]")
        return told.get_attribute("data-at") if told.count() else None

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        """Press Draw, and wait; the unsteered pixels and the steered ones."""
        self.wait_for_drawing(self.press())
        return self.pictures()

    def wait_for_drawing(self, before: str | None) -> None:
        """Wait until another drawing is explained, and both its pictures are there."""
        self.page.wait_for_function(
            """before => { const told = document.querySelector('#explain [data-at]');
                return told && told.dataset.at !== before && !told.innerText.includes('steering …') }""",
            arg=before,
        )
        self.page.wait_for_function(
            "() => { const shown = [...document.querySelectorAll('#compare img')];"
            "return shown.length >= 2 && shown.every(image => image.complete) }"
        )

    def explained(self) -> str:
        return str(self.page.locator("#explain").inner_text())

    def pictures(self) -> tuple[np.ndarray, np.ndarray]:
        """What the picture slider holds: unsteered and steered."""
        base, steered = (self.pixels(src) for src in self.sources("#compare img")[:2])
        return base, steered

    def sources(self, selector: str) -> list[str]:
        return [image.get_attribute("src") for image in self.page.locator(selector).all()]

    def pixels(self, src: str) -> np.ndarray:
        """The pixels of a picture of this visitor's."""
        answer = self.context.request.get(src)
        assert answer.ok, f"{src}: {answer.status}"
        return np.asarray(Image.open(io.BytesIO(answer.body())).convert("RGB"))

    def places(self) -> dict[str, float]:
        """How far down the page things begin."""
        names = ("#prompt", "#draw", "#compare", "#explain", "#strength-0", "#gate")
        return {name: self.page.locator(name).bounding_box()["y"] for name in names}

    def told(self) -> str:
        """The text of the message that has popped up."""
        toast = self.page.locator(".toast-body").last
        toast.wait_for()
        return re.sub(r"\s+", " ", toast.inner_text())

    def close(self) -> None:
        self.context.close()
