"""What a newcomer waits for: a concept of two phrases, and a quick evaluation, on the built-in model.

    python -m benchmarks.cost.first_concept

A concept is drafted and learned as the demo does it, whose estimates of the seconds to come are compared with those
that did come; then `dsas eval --quick` evaluates a concept that ships. Both are told in seconds, and relative to
drawing as many pictures: what the denoiser was called for, in guided pictures of as many steps, is drawn again bare, in
batches. Writes benchmarks/results/first_concept.json.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch.nn.modules.module import register_module_forward_pre_hook

import dsas_diffusion as dsas
from benchmarks.common.records import build_parser, provenance, record_path, write_record
from dsas_core.learning.prompts.prompt_file import load_prompts
from dsas_diffusion.cli import main as run_command
from dsas_diffusion.generation.pictures import latents_of
from dsas_diffusion.generation.settings import settings_of
from dsas_diffusion.pipelines.adapter import adapt
from dsas_diffusion.ui.services.learning_job import Learning, LearnRequest
from dsas_diffusion.ui.services.picture_service import PictureService

MODEL, SOURCE, TARGET, SHIPPED = "builtin:emoji", "guitar", "blurred guitar", "builtin:banana-blur"
#: pictures that are drawn together
BATCH = 8
#: between these shares of the time, estimates count
TOLD = 0.1, 0.9
#: an estimate is right within this share of what was to come
RIGHT = 1 / 3


@contextmanager
def counting_rows() -> Iterator[list[int]]:
    """Rows of every call of a denoiser within the block."""
    rows: list[int] = []

    def count(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        if isinstance(module, UNet2DConditionModel):
            rows.append(len(args[0]))

    handle = register_module_forward_pre_hook(count)
    try:
        yield rows
    finally:
        handle.remove()


def measure(pipe: Any, work: Callable[[], Any]) -> dict[str, Any]:
    """Seconds of some work, and how often the time of drawing the pictures that it called the denoiser for."""
    settings = settings_of(pipe)
    with counting_rows() as rows:
        began, busy = time.monotonic(), time.process_time()
        work()
        seconds, busy = time.monotonic() - began, time.process_time() - busy
    count = round(sum(rows) / (2 * settings.steps))
    prompts = [f"a {SOURCE} and a dog"] * count
    began, bare_busy = time.monotonic(), time.process_time()
    for start in range(0, count, BATCH):
        batch = prompts[start : start + BATCH]
        latents_of(adapt(pipe), batch, range(start, start + len(batch)), settings, BATCH)
    bare, bare_busy = time.monotonic() - began, time.process_time() - bare_busy
    ratios = {"over bare": seconds / bare, "processor time over bare": busy / bare_busy}
    return {"seconds": seconds, "pictures": count, "bare seconds": bare, **ratios}


def learn_as_the_demo(pipe: Any) -> list[tuple[float, float]]:
    """Learn a concept of two phrases; seconds so far and to come, as they were told."""
    service = PictureService(pipe, MODEL, [])
    request = LearnRequest(load_prompts(dsas.draft(pipe, SOURCE, TARGET)))
    told = []
    with Learning(service, request) as learning:
        for progress in learning.watch():
            told.append((progress.seconds, float("nan") if progress.left is None else progress.left))
        learning.concept()
    service.close()
    return told


def judge_estimates(told: list[tuple[float, float]]) -> dict[str, float]:
    """How right estimates were: share within a third of what was to come, and quantiles of estimate over truth.

    Example:
        >>> judge_estimates([(1.0, 9.0), (5.0, 5.0), (8.0, 4.0), (10.0, 0.0)])["right within a third"]
        0.6666666666666666
    """
    total = told[-1][0]
    ratios = np.array([left / (total - now) for now, left in told if TOLD[0] <= now / total <= TOLD[1]])
    low, middle, high = np.quantile(ratios, [0.05, 0.5, 0.95])
    right = float((np.abs(ratios - 1) <= RIGHT).mean())
    return {"right within a third": right, "5 %": low, "median": middle, "95 %": high}


def main() -> None:
    parser = build_parser(__doc__, record_path(__file__))
    args = parser.parse_args()
    pipe, told = dsas.load_pipeline(MODEL, device="cpu"), []
    learning = measure(pipe, lambda: told.extend(learn_as_the_demo(pipe)))
    with tempfile.TemporaryDirectory() as folder:
        command = ["eval", "--concept", SHIPPED, "--out", f"{folder}/report", "--quick", "--json"]
        evaluation = measure(pipe, lambda: run_command(command))
    figures = {"learning": {**learning, "estimates": judge_estimates(told)}, "evaluation": evaluation}
    write_record(args.out, {**figures, **provenance()})
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
