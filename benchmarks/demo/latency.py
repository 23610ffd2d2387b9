"""How long people wait for the demo: until it serves, until the page can be used, for a first picture, for a slider.

    make test-browser                # once: installs Playwright and Chromium
    .venv/bin/python -m benchmarks.demo.latency --rounds 7

Every round has a new visitor with prompts of their own, so that no picture is kept from before: the first picture after
a click (base and steered), then the picture after a slider was moved and Draw pressed again. Seconds by the clock as a
browser on the same machine sees them. The server has one thread for tensors.

Writes benchmarks/results/latency.json.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.common.records import ROOT, build_parser, provenance, record_path, write_record
from tests.fixtures.browser import Demo, browser, serving

IMPORTS = (
    "import gradio, transformers.models.clip.modeling_clip, dsas_diffusion.ui; from diffusers import DiffusionPipeline"
)


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = build_parser(__doc__, record_path(__file__))
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    imports = seconds(lambda: subprocess.run([sys.executable, "-c", IMPORTS], check=True, cwd=ROOT, env=environment))
    times_by_name: dict[str, list[float]] = {"interactive": [], "first_picture": [], "slider": []}
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder) / "log") as server, browser() as chromium:
        for i in range(args.rounds + 1):
            demo = Demo(chromium, server.address)
            response = demo.page.evaluate("() => performance.getEntriesByType('navigation')[0].responseStart")
            interactive = demo.page.evaluate("() => performance.now()")
            demo.ask("a banana and a dog on the grass", seed=100 + i)
            times = {"interactive": (interactive - response) / 1000, "first_picture": seconds(demo.draw)}
            demo.slide(0, 0.5)
            times["slider"] = seconds(demo.draw)
            demo.close()
            if i:  # the first visitor warms the server up
                for name, value in times.items():
                    times_by_name[name].append(value)
            print({name: round(value, 2) for name, value in times.items()}, flush=True)
        summary = {
            name: {"median": round(statistics.median(values), 2), "highest": round(max(values), 2)}
            for name, values in times_by_name.items()
        }
        document = {
            "imports": round(imports, 1),
            "serving_after_imports": round(server.ready - imports, 1),
            **summary,
            "rounds": args.rounds,
            **provenance("gradio", "playwright"),
        }
    write_record(args.out, document)
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
