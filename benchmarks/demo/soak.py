"""Several visitors at once for minutes: no error, and nobody gets another's picture.

    make soak                        # 8 visitors, 3 minutes

Each visitor is a browser page of its own. In every round all press Draw at once, each with a prompt, a seed and sliders
drawn at random; what each page then shows must be, to the pixel, what the service draws alone, in another process. In
the second half of the time, 200 calls whose answers nobody listens for are made before each round.

Writes benchmarks/results/soak.json; exits with 1 where anything was wrong.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import httpx
import numpy as np
import torch

from benchmarks.common.records import build_parser, provenance, record_path, write_record
from dsas_diffusion import load_pipeline
from dsas_diffusion.ui.page.controls import enlarge
from dsas_diffusion.ui.services.concepts import load_shipped
from dsas_diffusion.ui.services.drawing import Order
from dsas_diffusion.ui.services.picture_service import PictureService
from tests.fixtures.browser import Demo, browser, page_call, serving

PROMPTS = ("a banana and a dog on the grass", "a red car on the beach", "an apple and a banana", "a dog in the snow")
SEEDS = (1, 2)
STRENGTHS = (0.0, 0.5, 1.0)
#: calls before a round that nobody listens to
UNHEARD = 200
#: largest difference of pixels, of 255, from the picture drawn in another process
TOLERANCE = 2


def main() -> int:
    parser = build_parser(__doc__, record_path(__file__), seed=True)
    parser.add_argument("--visitors", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=3.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    choose = random.Random(args.seed)
    service = PictureService(load_pipeline("builtin:emoji"), "builtin:emoji", load_shipped("builtin:emoji"))
    names = list(service.concepts)[:2]

    @cache
    def expected(prompt: str, seed: int, strengths: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
        given = dict(zip(names, strengths, strict=True))
        order = Order(prompt, seed, service.defaults, given, preserve=service.can_preserve)  # as the page's box is
        drawing = list(service.draw(order, service.concepts))[-1]
        assert drawing.steered is not None
        return tuple(np.asarray(enlarge(picture)) for picture in (drawing.base, drawing.steered))  # type: ignore[return-value]

    draws, errors, wrong_pictures, refused = 0, [], 0, 0
    waits: dict[bool, list[float]] = {False: [], True: []}  # by whether there were calls that nobody listens to
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder) / "log") as server, browser() as chromium:
        visitors = [Demo(chromium, server.address) for _ in range(args.visitors)]
        begin = time.monotonic()
        while (elapsed := time.monotonic() - begin) < 60 * args.minutes:
            crowded = elapsed > 30 * args.minutes
            refused += call_unheard(server.address, draws) if crowded else 0
            orders = []
            for demo in visitors:
                order = choose.choice(PROMPTS), choose.choice(SEEDS), tuple(choose.choice(STRENGTHS) for _ in names)
                demo.ask(order[0], order[1])
                for number, strength in enumerate(order[2]):
                    demo.slide(number, strength)
                orders.append(order)
            began = time.monotonic()
            before = [demo.press() for demo in visitors]
            for demo, order, mark in zip(visitors, orders, before, strict=True):
                try:
                    demo.wait_for_drawing(mark)
                    waits[crowded].append(time.monotonic() - began)
                    differs = [
                        np.abs(displayed.astype(int) - pixels).max() > TOLERANCE
                        for displayed, pixels in zip(demo.pictures(), expected(*order), strict=True)
                    ]
                    wrong_pictures += any(differs)
                except Exception as error:
                    errors.append(f"{type(error).__name__}: {str(error).splitlines()[0]}")
                draws += 1
        errors += [error for demo in visitors for error in demo.errors]
        errors += [line for line in server.printed().splitlines() if "Traceback" in line or "Error" in line]
    document = {
        "visitors": args.visitors,
        "minutes": args.minutes,
        "draws": draws,
        "errors": errors,
        "mixed": wrong_pictures,
        "seconds_from_click": describe(waits[False]),
        "seconds_from_click_beside_unheard_calls": describe(waits[True]),
        "unheard_calls_refused": refused,
        "seed": args.seed,
        **provenance("gradio", "playwright"),
    }
    write_record(args.out, document)
    print(json.dumps(document, indent=2))
    return 1 if errors or wrong_pictures or not draws else 0


def describe(seconds: list[float]) -> dict[str, float]:
    """Median and highest of some waits."""
    return {"median": round(statistics.median(seconds), 1), "highest": round(max(seconds), 1)}


def call_unheard(address: str, number: int) -> int:
    """Ask for drawings without listening for them; how many of the calls were refused."""
    with httpx.Client(base_url=address, timeout=60) as client:
        call = page_call(client, "draw", "")
        calls = [{**call, "session_hash": f"unheard {number} {i}"} for i in range(UNHEARD)]
        return sum(client.post("/gradio_api/queue/join", json=body).status_code == 503 for body in calls)


if __name__ == "__main__":
    sys.exit(main())
