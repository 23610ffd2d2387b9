"""Size of concepts on disk, and time to save and to load them, in the shapes of known models.

    OMP_NUM_THREADS=1 python -m benchmarks.cost.artifacts

Random probes and maps of the right shapes at every cross-attention (of FLUX every attention), rounded as learning
rounds them, with evidence of every site and bin as learning records it. Times are the minimum of many rounds, because
other work on the machine only adds to them; beside it the median, and the minimum of processor time.

Writes benchmarks/results/artifacts.json.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.records import build_parser, provenance, record_path, write_record
from dsas_core import Concept, Intervention, Site
from dsas_core.concept.concept import CARD, CONFIG, TENSORS
from dsas_core.concept.format import round_to_half
from dsas_core.maps import AffineMap
from dsas_core.model.fingerprints import describe_module
from dsas_core.probes import LinearProbe

#: model -> pattern of its sites, and the number of sites of each width
MODELS = {
    "SD1.5": ("unet.up_blocks.1.attentions.0.transformer_blocks.{}.attn2", {320: 5, 640: 5, 1280: 6}),
    "SDXL": ("unet.up_blocks.0.attentions.0.transformer_blocks.{}.attn2", {640: 10, 1280: 60}),
    "FLUX": ("transformer.single_transformer_blocks.{}.attn", {3072: 57}),
}
MAPS = ("add", "affine")
BINS = (1, 10)


def build_concept(model: str, kind: str, bins: int, seed: int) -> Concept:
    """A random concept in the shape of a model."""
    random = torch.Generator().manual_seed(seed)
    path, widths = MODELS[model]
    site_widths = [width for width, count in widths.items() for _ in range(count)]
    sites = [(Site(path.format(i)), width) for i, width in enumerate(site_widths)]

    def probe(width: int) -> LinearProbe:
        return LinearProbe(torch.randn(width, generator=random), torch.randn((), generator=random))

    def transform(width: int) -> AffineMap:
        shift = torch.randn(width, generator=random)
        slope = 1 + 0.1 * torch.randn(width, generator=random) if kind == "affine" else None
        return AffineMap(shift, slope).map_tensors(round_to_half)

    def items(make: Callable[[int], Any], width: int) -> tuple[Any, ...]:
        return tuple(make(width) for _ in range(bins))

    evidence = [
        {
            "site": str(site),
            "bin": i,
            "weight": 0.9312345678,
            "balanced_accuracy": 0.9512345678,
            "auroc": 0.9812345678,
            "rank": "lda",
            "scaler": "std",
            "control_h": 0.0098765432,
            "control_h_before": 0.0298765432,
            "control_fired": 0.0012345678,
            "control_fired_before": 0.0112345678,
            "unseen": None,
        }
        for site, _ in sites
        for i in range(bins)
    ]
    return Concept(
        name=model.lower(),
        interventions=tuple(
            Intervention(site, items(probe, width), items(transform, width), (1.0,) * bins) for site, width in sites
        ),
        edges=tuple(1000.0 * i / bins for i in range(1, bins)),
        learned_on={
            sites[0][0].root: describe_module(torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(32))))
        },
        evidence={"sites": evidence},
    )


def measure_time(work: Callable[[], object], rounds: int) -> dict[str, float]:
    """Milliseconds of wall time, minimum and median, and the minimum of processor time."""
    times, processor_times = [], []
    for _ in range(rounds):
        began, began_processor = time.perf_counter(), time.process_time()
        work()
        times.append(1000 * (time.perf_counter() - began))
        processor_times.append(1000 * (time.process_time() - began_processor))
    figures = {"best": min(times), "median": statistics.median(times), "processor": min(processor_times)}
    return {name: round(value, 1) for name, value in figures.items()}


def main() -> None:
    parser = build_parser(__doc__, record_path(__file__), seed=True)
    parser.add_argument("--rounds", type=int, default=25)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as parent:
        for model in MODELS:
            for kind in MAPS:
                for bins in BINS:
                    concept, folder = build_concept(model, kind, bins, args.seed), Path(parent) / "concept"

                    def save(concept: Concept = concept, folder: Path = folder) -> None:
                        concept.save_pretrained(folder, overwrite=True)

                    def load(folder: Path = folder) -> Concept:
                        return Concept.from_pretrained(folder)

                    save_ms, load_ms = measure_time(save, args.rounds), measure_time(load, args.rounds)
                    assert load() == concept
                    sizes = {name: (folder / name).stat().st_size for name in (TENSORS, CONFIG, CARD)}
                    times = {"save_ms": save_ms, "load_ms": load_ms}
                    rows.append({"model": model, "map": kind, "bins": bins, "bytes": sizes, **times})
                    kib = ", ".join(f"{name} {size / 1024:.0f} KiB" for name, size in sizes.items())
                    print(f"{model} {kind} {bins}: {kib}; save {save_ms}, load {load_ms}", flush=True)
    report = {
        "seed": args.seed,
        "rounds": args.rounds,
        "concepts": rows,
        **provenance("safetensors"),
    }
    write_record(args.out, report)


if __name__ == "__main__":
    main()
