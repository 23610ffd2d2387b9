"""Every method in closed form and every gate, fitted on one capture of activations: seconds, evidence, size.

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
from benchmarks.common.records import PROMPTS, build_parser, provenance, record_path, write_record
from dsas_core import Concept, llm, methods
from dsas_core.concept.concept import TENSORS
from dsas_core.errors import DSASError
from dsas_core.learning.capture import Capture
from dsas_core.learning.fit import fit_sites
from dsas_core.learning.recipe import Recipe

GATES = ("dsas", "gaps", "product(dsas, gaps)", "cosine", "mlp(accept=true)", "quantile")


def fit(capture: Capture, recipe: Recipe) -> dict[str, Any]:
    """Fit a recipe on captured activations: its seconds, evidence and size, or why it was refused."""
    began = time.perf_counter()
    try:
        interventions, evidence = fit_sites(capture, recipe)
    except DSASError as error:
        return {"refused": str(error)}
    seconds = time.perf_counter() - began
    in_use = [site for site in evidence if site.weight > 0]
    with tempfile.TemporaryDirectory() as folder:
        concept = Concept("fitted", tuple(interventions), capture.edges, method=recipe.method, gate=str(recipe.gate))
        size = (concept.save_pretrained(Path(folder) / "concept") / TENSORS).stat().st_size
    return {
        "seconds": seconds,
        "sites": len(interventions),
        "auroc": statistics.median(site.auroc for site in in_use),
        "balanced_accuracy": statistics.median(site.balanced_accuracy for site in in_use),
        "control_h": statistics.median(site.control_h for site in in_use),
        "bytes": size,
    }


def fit_all(capture: Capture, seconds: float, base: Mapping[str, Any]) -> dict[str, Any]:
    """Fit every map and every gate on one capture."""
    maps = [method.name for method in methods.available() if method.kind in ("map", "both") and method.learned]
    figures: dict[str, Any] = {"capture_seconds": seconds, "maps": {}, "gates": {}}
    for name in maps:
        figures["maps"][name] = fit(capture, Recipe(**{**base, "method": name, "gate": "dsas"}))
        print(name, figures["maps"][name], flush=True)
    for name in GATES:
        figures["gates"][name] = fit(capture, Recipe(**{**base, "gate": name}))
        print(name, figures["gates"][name], flush=True)
    return figures


def main() -> None:
    args = build_parser(__doc__, record_path(__file__)).parse_args()
    torch.set_num_threads(1)
    tasks = {}
    base = {"form": "token", "pooling": "mean", "top_share": 0.25}
    text_learner = llm.Lesson(*llm.load("builtin:chat"), PROMPTS / "rudeness.yaml")
    began = time.perf_counter()
    capture = text_learner.captured(Recipe(**base))
    tasks["rudeness"] = fit_all(capture, time.perf_counter() - began, base)
    pipe = dsas.load_pipeline("builtin:emoji")
    picture_learner = dsas.Lesson(pipe, PROMPTS / "banana-blur.yaml", sites="denoiser", steps=8)
    began = time.perf_counter()
    capture = picture_learner.captured(Recipe())
    tasks["banana-blur"] = fit_all(capture, time.perf_counter() - began, {})
    write_record(args.out, {"tasks": tasks, **provenance()})


if __name__ == "__main__":
    main()
