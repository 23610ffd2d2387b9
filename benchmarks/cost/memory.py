"""Peak memory of learning, relative to that of its generations alone; each is measured in its own process.

    OMP_NUM_THREADS=2 python -m benchmarks.cost.memory

The model is a random, narrower UNet with the blocks of SDXL (70 cross-attention layers). Activations of all of them are
captured and stored in a folder (`store`). Writes benchmarks/results/memory.json.
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
from benchmarks.common.records import PROMPTS, ROOT, build_parser, provenance, record_path, write_record
from benchmarks.cost.model_shapes import build_xl_unet
from dsas_core.learning.recipe import Recipe
from dsas_diffusion.generation.pictures import latent_batches, seeds_for
from dsas_diffusion.pipelines.adapter import adapt

COUNT, STEPS, BATCH = 12, 4, 4


def build_pipeline(width: int) -> Any:
    """The built-in pipeline around a random UNet of SDXL's shape, with `width` channels instead of 320."""
    pipe = dsas.load_pipeline("builtin:emoji")
    config = pipe.unet.config
    pipe.unet = build_xl_unet(width, 2 * config.sample_size, pipe.text_encoder.config.hidden_size, config.in_channels)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run_arm(arm: str, width: int, seed: int) -> dict[str, float]:
    """Peak resident memory of this process in MiB, before and after the work of an arm."""
    pipe = build_pipeline(width)
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {"sites": "cross", "count": COUNT, "steps": STEPS, "batch": BATCH, "seed": seed}
        learner = dsas.Lesson(pipe, PROMPTS / "banana-blur.yaml", store=Path(folder) / "read", **settings)
        loaded = peak_memory()
        if arm == "learning":
            capture = learner.captured(Recipe())
            assert {site for site, _, _ in capture.rows} == set(learner.sites)
        else:
            for texts in learner.fitting.values():
                for _ in latent_batches(adapt(pipe), texts, seeds_for(texts, seed), learner.settings, BATCH):
                    pass
        written = sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))
    return {"loaded": loaded, "peak": peak_memory(), "written": written / 2**20, "sites": len(learner.sites)}


def peak_memory() -> float:
    """Peak resident memory of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = build_parser(__doc__, record_path(__file__), seed=True)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        print(json.dumps(run_arm(args.arm, args.width, args.seed)))
        return
    report: dict[str, Any] = {}
    settings = ["--width", str(args.width), "--seed", str(args.seed)]
    for arm in ("generating", "learning"):
        command = [sys.executable, "-m", __spec__.name, "--arm", arm, *settings]
        completed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
        report[arm] = json.loads(completed.stdout.splitlines()[-1])
    report["ratio"] = report["learning"]["peak"] / report["generating"]["peak"]
    report |= {"width": args.width, "seed": args.seed, **provenance()}
    write_record(args.out, report)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
