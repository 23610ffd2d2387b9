"""How well gates tell toxic from neutral texts: the forms of the gate `dsas`, at layers of a real language model.

    python -m benchmarks.quality.text_gates --model models/smollm2 --data FOLDER

The data folder is described in benchmarks/real_text/texts.py. Tweets are read once; then a gate is fitted at each layer
in each form, for several numbers of source texts (a quarter fewer than `--count` of `learn`, which holds some out), and
tried on tweets that it was not fitted on. A text is touched where h is above 0.5 at any token. Recall is given where
the fit puts the threshold, and at the threshold that touches 2 % of the held-out neutral texts: what scores allow.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common.records import build_parser, provenance, record_path, update_record
from benchmarks.real_text.measure import find_auroc
from benchmarks.real_text.reading import ModelReader
from benchmarks.real_text.texts import check_folder, draw_split, format_data_command, read_davidson
from dsas_core import llm, methods
from dsas_core.learning.capture import Activations
from dsas_core.learning.recipe import Recipe
from dsas_core.methods.base.map_rows import split_rows
from dsas_core.probes import Probe, TextProbe
from dsas_core.probes.running import text_scores

#: forms that are compared: the paper's, and those that read every token of a text
FORMS = ("paper", "token", "prefix", "text")
#: numbers of source texts that gates are fitted on; controls are twice as many
COUNTS = (24, 48, 96)
#: figures of a gate: AUROC, recall and share of neutral texts touched where it is placed, recall at `SHARE` touched
FIGURES = ("auroc", "recall", "touched", "possible")
#: held-out texts a side
HELD_OUT = 300
#: share of neutral texts that the second recall allows to be touched
SHARE = 0.02
#: tokens kept of each text
TOKENS = 128


def first_rows(rows: Activations, count: int) -> Activations:
    """The activations of the first prompts."""
    kept = rows.gathered("position_prompts") < count
    names = ("positions", "position_prompts", "places")
    return Activations(
        **{name: [rows.gathered(name)[:count]] for name in ("pooled", "prompts")},
        **{name: [rows.gathered(name)[kept]] for name in names},
        count=rows.count,
    )


def highest_scores(probe: Probe, rows: Activations) -> np.ndarray:
    """The highest score of each text over its tokens, above 0 where the gate opens."""

    def score(tokens: torch.Tensor) -> torch.Tensor:
        if isinstance(probe, TextProbe):  # whose h is exactly 0 or 1 for most texts
            return text_scores(probe.inner.logit(tokens)[None, :, 0])[0][0, -1] - probe.threshold
        return probe.score(tokens[None]).double().logit(eps=1e-12).amax()

    with torch.no_grad():
        return torch.stack([score(tokens) for _, tokens in split_rows(rows)]).numpy()


def try_gates(sides: dict[str, Activations], seed: int) -> list[dict[str, Any]]:
    """Figures of every form and count at one layer."""
    lines = []
    for count in COUNTS:
        source, control = first_rows(sides["source"], count), first_rows(sides["control"], 2 * count)
        for form in FORMS:
            recipe = Recipe(form=form, top_share=0.25, seed=seed)
            probe = methods.gate("dsas").fit_on(source, [control], recipe).place_at(recipe.control_h)[0]
            toxic, neutral = (highest_scores(probe, sides[side]) for side in ("toxic", "neutral"))
            lines.append(
                {
                    "count": count,
                    "form": form,
                    "auroc": find_auroc(toxic, neutral),
                    "recall": float((toxic > 0).mean()),
                    "touched": float((neutral > 0).mean()),
                    "possible": float((toxic > np.quantile(neutral, 1 - SHARE)).mean()),
                }
            )
    return lines


def best_lines(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each form and count the figures at the layer whose scores allow most, by the mean over seeds.

    The layer is chosen on the same texts.

    Args:
        lines: of one model in the record.

    Returns:
        `form`, `count` and `site`, and each of `FIGURES` as its mean, lowest and highest value over the seeds.
    """
    best = []
    for form, count in itertools.product(FORMS, COUNTS):
        by_site: dict[str, list[Mapping[str, Any]]] = {}
        for line in lines:
            if (line["form"], line["count"]) == (form, count):
                by_site.setdefault(line["site"], []).append(line)
        figures = [
            {"site": site, **{key: _spread([line[key] for line in own]) for key in FIGURES}}
            for site, own in by_site.items()
        ]
        best.append({"form": form, "count": count, **max(figures, key=lambda line: line["possible"])})
    return best


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return float(np.mean(values)), min(values), max(values)


def run_seed(args: argparse.Namespace, reader: ModelReader, seed: int) -> list[dict[str, Any]]:
    """Every layer of one seed."""
    split = draw_split(read_davidson(args.data), seed, max(COUNTS), HELD_OUT, HELD_OUT)
    texts: dict[str, Sequence[str]] = {
        "source": split.lesson["source"],
        "control": split.lesson["control"],
        "toxic": split.held_out.toxic,
        "neutral": split.held_out.neutral,
    }
    sites = llm.find_sites(reader.model, "block")
    sites = sites[:: max(1, len(sites) // args.layers)]
    captures = {
        side: reader.capture(reader.encode(list(part)), sites, [(side, "all")], tokens=TOKENS)
        for side, part in texts.items()
    }
    lines = []
    for site in sites:
        rows = {side: captures[side].rows[site, 0, side] for side in texts}
        lines += [{"seed": seed, "site": str(site), **line} for line in try_gates(rows, seed)]
        print(f"seed {seed}: {site}", flush=True)
    return lines


def main() -> None:
    parser = build_parser(__doc__, record_path(__file__), seeds=2)
    parser.add_argument("--model", required=True, help="folder or Hub name of a causal language model")
    parser.add_argument("--dtype", default="auto", help="of the model: float32, bfloat16; default as of llm.load")
    parser.add_argument("--data", type=Path, required=True, help="folder of labelled texts")
    parser.add_argument("--layers", type=int, default=8, help="layers to read, at about equal distances")
    args = parser.parse_args()
    check_folder(args.data)
    began = time.monotonic()
    reader = ModelReader(*llm.load(args.model, dtype=args.dtype))
    lines = [line for seed in range(args.seeds) for line in run_seed(args, reader, seed)]
    command = format_data_command(args.data, "benchmarks.quality.text_gates")
    entry = {"seeds": args.seeds, "lines": lines, **provenance(began=began, command=command)}
    update_record(args.out, Path(args.model).name, entry)
    for line in best_lines(lines):
        print(line)


if __name__ == "__main__":
    main()
