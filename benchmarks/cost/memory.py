"""Peak memory of learning over that of the bare generations that it makes, each in a process of its own.

    OMP_NUM_THREADS=2 python -m benchmarks.cost.memory

A random UNet with the blocks of SDXL (70 cross-attention layers), narrower, is read at every one of them; what is read
is kept in a folder (`store`). Writes benchmarks/results/memory.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import dsas_diffusion as dsas
from benchmarks.common.records import PROMPTS, ROOT, made_with, parser_of, results_of, write
from benchmarks.cost.model_shapes import xl_unet
from dsas_core.learning.recipe import Recipe
from dsas_diffusion.generation.pictures import latent_batches, seeds_for
from dsas_diffusion.pipelines.adapter import adapt

COUNT, STEPS, BATCH = 12, 4, 4


def pipeline(width: int) -> Any:
    """The built-in pipeline around a random UNet of SDXL's shape, with `width` channels instead of 320."""
    pipe = dsas.load_pipeline("builtin:emoji")
    own = pipe.unet.config
    pipe.unet = xl_unet(width, 2 * own.sample_size, pipe.text_encoder.config.hidden_size, own.in_channels)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(arm: str, width: int, seed: int) -> dict[str, float]:
    """Peak resident memory, in MiB, of this process before and after it has done its work."""
    pipe = pipeline(width)
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {"sites": "cross", "count": COUNT, "steps": STEPS, "batch": BATCH, "seed": seed}
        lesson = dsas.Lesson(pipe, PROMPTS / "banana-blur.yaml", store=Path(folder) / "read", **settings)
        loaded = peak()
        if arm == "learning":
            capture = lesson.captured(Recipe())
            assert {site for site, _, _ in capture.rows} == set(lesson.sites)
        else:
            for texts in lesson.fitting.values():
                for _ in latent_batches(adapt(pipe), texts, seeds_for(texts, seed), lesson.settings, BATCH):
                    pass
        written = sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))
    return {"loaded": loaded, "peak": peak(), "written": written / 2**20, "sites": len(lesson.sites)}


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = parser_of(__doc__, results_of(__file__), seed=True)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        print(json.dumps(run(args.arm, args.width, args.seed)))
        return
    report: dict[str, Any] = {}
    settings = ["--width", str(args.width), "--seed", str(args.seed)]
    for arm in ("generating", "learning"):
        command = [sys.executable, "-m", __spec__.name, "--arm", arm, *settings]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
        report[arm] = json.loads(done.stdout.splitlines()[-1])
    report["ratio"] = report["learning"]["peak"] / report["generating"]["peak"]
    report |= {"width": args.width, "seed": args.seed, **made_with()}
    write(args.out, report)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
