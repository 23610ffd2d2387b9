"""Every method in closed form, and every gate, fitted on one reading of the prompts: seconds, evidence, size.

    python -m benchmarks.cost.fits

Rudeness on the built-in language model, bananas at the denoiser of the built-in picture model, 48 prompts a side. Maps
are fitted with the DSAS gate, gates with the map of CAA. Writes benchmarks/results/fits.json.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import dsas_diffusion as dsas
from benchmarks.common.records import PROMPTS, made_with, parser_of, results_of, write
from dsas_core import Concept, llm, methods
from dsas_core.concept.concept import TENSORS
from dsas_core.errors import DSASError
from dsas_core.learning.capture import Capture
from dsas_core.learning.fit import fit_sites
from dsas_core.learning.recipe import Recipe

GATES = ("dsas", "gaps", "product(dsas, gaps)", "cosine", "mlp(accept=true)", "quantile")


def fitted(capture: Capture, recipe: Recipe) -> dict[str, Any]:
    """What a recipe comes to on captured rows."""
    began = time.perf_counter()
    try:
        interventions, evidence = fit_sites(capture, recipe)
    except DSASError as error:
        return {"refused": str(error)}
    seconds = time.perf_counter() - began
    found = [one for one in evidence if one.weight > 0]
    with tempfile.TemporaryDirectory() as folder:
        concept = Concept("fitted", tuple(interventions), capture.edges, method=recipe.method, gate=str(recipe.gate))
        size = (concept.save_pretrained(Path(folder) / "concept") / TENSORS).stat().st_size
    return {
        "seconds": seconds,
        "sites": len(interventions),
        "auroc": statistics.median(one.auroc for one in found),
        "balanced_accuracy": statistics.median(one.balanced_accuracy for one in found),
        "control_h": statistics.median(one.control_h for one in found),
        "bytes": size,
    }


def measured(capture: Capture, seconds: float, base: Mapping[str, Any]) -> dict[str, Any]:
    """Every map and every gate on one capture."""
    maps = [described.name for described in methods.available() if described.kind in ("map", "both")]
    found: dict[str, Any] = {"capture_seconds": seconds, "maps": {}, "gates": {}}
    for name in maps:
        found["maps"][name] = fitted(capture, Recipe(**{**base, "method": name, "gate": "dsas"}))
        print(name, found["maps"][name], flush=True)
    for name in GATES:
        found["gates"][name] = fitted(capture, Recipe(**{**base, "gate": name}))
        print(name, found["gates"][name], flush=True)
    return found


def main() -> None:
    args = parser_of(__doc__, results_of(__file__)).parse_args()
    torch.set_num_threads(1)
    found = {}
    base = {"form": "token", "pooling": "mean", "top_share": 0.25}
    lesson = llm.Lesson(*llm.load("builtin:chat"), PROMPTS / "rudeness.yaml")
    began = time.perf_counter()
    capture = lesson.captured(Recipe(**base))
    found["rudeness"] = measured(capture, time.perf_counter() - began, base)
    drawn = dsas.Lesson(dsas.load_pipeline("builtin:emoji"), PROMPTS / "banana-blur.yaml", sites="denoiser", steps=8)
    began = time.perf_counter()
    capture = drawn.captured(Recipe())
    found["banana-blur"] = measured(capture, time.perf_counter() - began, {})
    write(args.out, {"tasks": found, **made_with()})


if __name__ == "__main__":
    main()
