"""docs/demo-*.png: the demo as it looks, light, dark and on a phone, with a picture drawn.

make screenshots                 # installs Playwright and Chromium where they are missing
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.common.records import DOCS, build_parser
from tests.fixtures.browser import Demo, browser, serving

DESKTOP = {"width": 1240, "height": 1060}
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 1000}, "device_scale_factor": 2, "is_mobile": True}
#: milliseconds until the page stands still
SETTLED = 800


def main() -> None:
    build_parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder) / "log") as server, browser() as chromium:
        for look, options in (("light", {"viewport": DESKTOP}), ("dark", {"viewport": DESKTOP}), ("phone", PHONE)):
            theme = "dark" if look == "dark" else "light"
            demo = Demo(chromium, f"{server.address}?__theme={theme}", **options)
            demo.draw()
            demo.page.wait_for_timeout(SETTLED)
            _take_screenshot(demo, f"demo-{look}", full_page=False)
            if look == "light":
                for tab in ("Where", "Learn", "Text"):
                    demo.tab(tab)
                    if tab == "Text":
                        demo.page.locator("#text-send").click()
                        demo.page.get_by_text("tokens/s, steered").wait_for()
                    demo.page.wait_for_timeout(SETTLED)
                    _take_screenshot(demo, f"demo-{tab.split()[0].lower()}", full_page=True)
            demo.close()


def _take_screenshot(demo: Demo, name: str, full_page: bool) -> None:
    path = DOCS / f"{name}.png"
    demo.page.screenshot(path=str(path), full_page=full_page)
    Image.open(path).convert("RGB").save(path, optimize=True)
    print(f"{path}: {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
