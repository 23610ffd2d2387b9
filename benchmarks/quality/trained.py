"""Methods that train beside one that is fitted: fronts over seeds, and what their settings change.

    make trained                                  # learn, measure, and write the record; stop it and go on at will
    python -m benchmarks.quality.trained --summary    # the record again, from outputs/trained

Every combination is learned and measured by `dsas eval --grid` on the same prompts and strengths. With four seeds of
learning: each method as it is, on two concepts of texts, and on one of pictures at the denoiser. With one seed, on the
first: each map with the offline gate and with the trained one, γ, the activation, and the penalty of LinEAS. Fronts are
hypervolumes of effect and cost; intervals are t-intervals of 95 % over seeds, of differences seed by seed.
Writes benchmarks/results/trained.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from benchmarks.common.records import OUTPUTS, build_parser, provenance, record_path, write_record

OUT = OUTPUTS / "trained"
TEXTS = [{"prompts": f"prompts/{name}.yaml", "models": ["builtin:chat"]} for name in ("rudeness", "address-to-trade")]
PICTURES = [{"prompts": "prompts/banana-blur.yaml", "models": ["builtin:emoji"], "sites": ["denoiser"]}]
MEASURE = {"count": 8, "seeds": 2, "strengths": [0.5, 1, 1.5, 2], "arms": ["dsas", "on"], "robustness": False}
TEXT_MEASURE = {**MEASURE, "count": 16, "seeds": 1}
#: of the denoiser, whose steps take longer
PICTURE_TRAINING = {"steps": 150, "batch": 16}
#: name of a grid -> its concepts and combinations
GRIDS: Mapping[str, Mapping[str, Any]] = {
    "texts": {"concepts": TEXTS, "methods": ["caa", "lineas", "e2e-dsas"], "measure": TEXT_MEASURE},
    "pairs": {
        "concepts": TEXTS[:1],
        "methods": ["caa", "lineas", "e2e-dsas"],
        "gates": ["dsas", "e2e-dsas"],
        "measure": TEXT_MEASURE,
    },
    "pictures": {"concepts": PICTURES, "methods": ["caa"], "measure": MEASURE},
    "pictures-trained": {
        "concepts": PICTURES,
        "methods": ["lineas", "e2e-dsas"],
        "recipes": {"short": {"training": PICTURE_TRAINING}},
        "measure": MEASURE,
    },
    "gamma": {
        "concepts": TEXTS[:1],
        "methods": ["e2e-dsas"],
        "recipes": {f"gamma {gamma:g}": {"options": {"gamma": gamma}} for gamma in (0.1, 0.3, 1.0, 3.0, 10.0)},
        "measure": TEXT_MEASURE,
    },
    "activation": {
        "concepts": TEXTS[:1],
        "methods": ["e2e-dsas"],
        "recipes": {name: {"options": {"activation": name}} for name in ("sigmoid", "relu", "clipped")},
        "measure": TEXT_MEASURE,
    },
    "sparse": {
        "concepts": TEXTS[:1],
        "methods": ["lineas"],
        "recipes": {f"l1 {l1:g}": {"options": {"l1": l1}} for l1 in (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)},
        "measure": TEXT_MEASURE,
    },
}
#: grids -> how many seeds of learning; one of the others
SEEDS = {"texts": 4, "pictures": 4, "pictures-trained": 4}


def run_grid(name: str, seed: int) -> None:
    """Learn and measure one grid with one seed of learning."""
    grid = {"title": name, **GRIDS[name], "learn": {"count": 48, "steps": 8, "seed": seed}}
    file = OUT / f"{name}-{seed}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(grid, sort_keys=False))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "dsas_diffusion.cli"]
    command += ["eval", "--grid", str(file), "--out", str(OUT / f"{name}-{seed}"), "--quiet"]
    subprocess.run(command, check=True)


def read_cells(name: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Every concept of a grid in every seed, with its figures."""
    cells = []
    for seed in seeds:
        folder = OUT / f"{name}-{seed}"
        for concept in json.loads((folder / "report.json").read_text())["concepts"]:
            card = json.loads((folder / concept["name"] / "concept" / "config.json").read_text())
            training = card["evidence"].get("training", {})
            points = {arm: found["points"] for arm, found in concept["arms"].items()}
            at_one = {arm: next(point for point in found if point["strength"] == 1) for arm, found in points.items()}
            cells.append(
                {
                    "grid": name,
                    "seed": seed,
                    **{key: concept[key] for key in ("task", "name", "method", "gate", "unit")},
                    "fronts": {arm: found["hypervolume"]["value"] for arm, found in concept["arms"].items()},
                    "at_one": {
                        arm: {
                            key: point[key]["value"] if isinstance(point[key], dict) else point[key]
                            for key in ("effect", "cost")
                        }
                        for arm, point in at_one.items()
                    },
                    "seconds": card["evidence"].get("cost", {}).get("seconds", {}),
                    "memory": card["evidence"].get("cost", {}).get("peak_memory"),
                    "training": {
                        key: training[key] for key in ("steps", "memory", "best", "moved_dimensions") if training
                    },
                }
            )
    return cells


def t_interval(values: Sequence[float]) -> dict[str, float | None]:
    """The mean of a few numbers, and its t-interval of 95 %; a single one has none.

    Example:
        >>> t_interval([1.0, 1.0, 1.0]), t_interval([1.0])["low"]
        ({'value': 1.0, 'low': 1.0, 'high': 1.0}, None)
    """
    from scipy.stats import t

    found = np.array(values)
    mean = float(found.mean())
    if len(found) < 2:
        return {"value": mean, "low": None, "high": None}
    half = float(t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / len(found) ** 0.5)
    return {"value": mean, "low": mean - half, "high": mean + half}


def summarise(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each combination over seeds, and how far its gated front is above that of CAA with the DSAS gate."""
    combinations: dict[tuple[str, str], list[Mapping[str, Any]]] = {}  # by grid and name
    for cell in cells:
        combinations.setdefault((cell["grid"], cell["name"]), []).append(cell)
    base = {
        (cell["task"], cell["seed"]): cell["fronts"]["dsas"]
        for cell in cells
        if (cell["method"], cell["gate"]) == ("caa", "dsas")
    }
    rows = []
    for (_, name), found in combinations.items():
        task = found[0]["task"]
        row = {"task": task, "name": name, **{key: found[0][key] for key in ("grid", "method", "gate")}}
        row["unit"] = t_interval([cell["unit"] for cell in found])
        for arm in ("dsas", "on"):
            row[f"front_{arm}"] = t_interval([cell["fronts"][arm] for cell in found])
            for key in ("effect", "cost"):
                row[f"{key}_{arm}"] = t_interval([cell["at_one"][arm][key] for cell in found])
        pairs = [cell["fronts"]["dsas"] - base[task, cell["seed"]] for cell in found if (task, cell["seed"]) in base]
        row["above_caa"] = t_interval(pairs) if pairs else None
        row["seconds"] = float(np.mean([sum(cell["seconds"].values()) for cell in found]))
        row["training_seconds"] = float(np.mean([cell["seconds"].get("training", 0.0) for cell in found]))
        row["activations"] = max((cell["training"].get("memory", 0) for cell in found), default=0)
        moved = [sum(cell["training"].get("moved_dimensions", {}).values()) for cell in found]
        row["moved_dimensions"] = float(np.mean(moved))
        rows.append(row)
    return rows


def main() -> None:
    parser = build_parser(__doc__, record_path(__file__))
    parser.add_argument("--summary", action="store_true", help="measure nothing, write the record of what there is")
    parser.add_argument("--grids", nargs="+", choices=tuple(GRIDS), default=tuple(GRIDS))
    args = parser.parse_args()
    for name in () if args.summary else args.grids:
        for seed in range(SEEDS.get(name, 1)):
            run_grid(name, seed)
    cells = []
    for name in args.grids:
        seeds = range(SEEDS.get(name, 1))
        done = [seed for seed in seeds if (OUT / f"{name}-{seed}" / "report.json").is_file()]
        cells += read_cells(name, done)
    reports = [json.loads(path.read_text()) for path in sorted(OUT.glob("*/report.json"))]
    seconds = {"seconds": round(sum(report["seconds"] for report in reports), 1)}  # of measuring; concepts tell theirs
    command = "python -m benchmarks.quality.trained"
    write_record(args.out, {"rows": summarise(cells), "cells": cells, **provenance(command=command), **seconds})


if __name__ == "__main__":
    main()
