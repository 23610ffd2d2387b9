"""Checks that reviewers of the paper asked for, on the built-in models: each a name of its own.

    python -m benchmarks.quality.checks                                       # all of them, texts and pictures
    python -m benchmarks.quality.checks --model builtin:emoji noise faithful  # some, on one model
    python -m benchmarks.quality.checks --resume                              # those that are not recorded yet

- sweep: strengths of the map from 0 to 10, gated and not: does the effect grow, and where does the output break?
- controls: control sets at random, of the same kind, and with look-alikes; how similar they are to the source
  (Mahalanobis distance of means) beside how often the gate fires where it must not.
- transfer: a concept learned from one set of prompts, on another set of the same behaviour.
- separability: how well each site tells source from control, before and after projection, and what fitting costs.
- faithful: the recipe as the paper has it (5 principal components of means, every layer's weight 1, no calibration)
  beside ours.
- noise: a share of source and control prompts swapped while learning.
- size: 8 to 128 prompts a side.

Writes benchmarks/results/checks.json after each check; about 5 minutes of texts and 45 of pictures on one core.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from benchmarks.common.records import command_of, made_with, parser_of, results_of, write
from benchmarks.quality.checks_models import BENCHES, COUNT, Bench, Sample
from dsas_core import methods
from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError
from dsas_core.learning.prompts.prompt_set import PromptSet

OUT = results_of(__file__)
MODULE = "benchmarks.quality.checks"
FAITHFUL = {"form": "paper", "rank": 5, "scaler": "none", "site_weight": "none", "control_h": None, "pooling": "mean"}
STRENGTHS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0)
NOISE = (0.0, 0.05, 0.1, 0.2, 0.3)
SIZES = (8, 16, 32, 64, 128)
FOLDS = 5


def sweep(bench: Bench) -> Any:
    """Strengths of the map from 0 to 10."""
    learned = bench.learn()
    concept = learned.with_unit(1.0)
    arms = {
        arm: [{"strength": strength, **bench.measured(concept, strength, gate)} for strength in STRENGTHS]
        for arm, gate in (("dsas", None), ("on", "on"))
    }
    return {"unit": learned.unit, **arms}


def controls(bench: Bench) -> Any:
    """Control sets of three kinds."""

    def trial(templates: list[str]) -> dict[str, Any]:
        prompts = replace(bench.prompts, control=tuple(dict.fromkeys(templates)))
        concept = bench.learn(prompts)
        distance = float(np.mean([_mahalanobis(sample) for sample in bench.rows(prompts).values()]))
        return {"mahalanobis": distance, **bench.fires(concept), **bench.measured(concept)}

    return {kind: _tried(trial, list(templates)) for kind, templates in bench.controls.items()}


def transfer(bench: Bench) -> Any:
    """Concepts on prompts like those that they were learned from, and on others."""
    found = {}
    for label, case in bench.transfers.items():
        concept = bench.learn(case.prompts)
        shown = bench.shows(concept, examination=case.examination)
        found[label] = {"unit": concept.unit, **bench.unsteered(case.examination), **shown}
    return found


def separability(bench: Bench) -> Any:
    """Held-out balanced accuracy and AUROC of each site's means, with and without projection; processor seconds."""
    gate = methods.get("dsas", "gate")

    def projected(sample: Sample, rank: int | str) -> dict[str, float]:
        fitted = gate.cross_fit(sample.source, sample.control, rank=rank, scaler="std", groups=sample.groups)
        return {"balanced_accuracy": fitted.evidence.balanced_accuracy, "auroc": fitted.evidence.auroc}

    ways: dict[str, Callable[[Sample], dict[str, float]]] = {
        "no projection": _unprojected,
        "5 components": lambda sample: projected(sample, 5),
        "discriminant": lambda sample: projected(sample, "lda"),
    }
    found = {}
    with threadpool_limits(1):
        for place, sample in bench.rows(bench.prompts, every=True).items():
            line: dict[str, Any] = {"width": sample.source.shape[1], "mahalanobis": _mahalanobis(sample)}
            for name, fit in ways.items():
                began = time.process_time()
                line[name] = fit(sample)
                line[name]["seconds"] = time.process_time() - began
            found[place] = line
    return found


def faithful(bench: Bench) -> Any:
    """The paper's recipe beside ours, each at its own unit."""
    found = {}
    for name, concept in (("ours", bench.learn()), ("faithful", bench.learn(recipe=FAITHFUL))):
        found[name] = {"unit": concept.unit, **bench.fires(concept), **bench.measured(concept)}
    return found


def noise(bench: Bench) -> Any:
    """A share of the source prompts swapped with as many control prompts."""
    drawn = bench.prompts.draw(COUNT, 0)

    def trial(share: float) -> dict[str, Any]:
        count = round(share * COUNT)
        source = [*drawn["control"][:count], *drawn["source"][count:]]
        control = [*drawn["source"][:count], *drawn["control"][count:]]
        return _learned(bench, bench.learn(PromptSet("noisy", tuple(source), tuple(drawn["target"]), tuple(control))))

    return {f"{share:g}": _tried(trial, share) for share in NOISE}


def size(bench: Bench) -> Any:
    """8 to 128 prompts a side, as far as the file has them."""

    def trial(count: int) -> dict[str, Any]:
        concept = bench.learn(count=count)
        drawn = {side: len(texts) for side, texts in bench.prompts.draw(count, 0).items()}
        return {"source": drawn["source"], "control": drawn["control"], **_learned(bench, concept)}

    return {str(count): _tried(trial, count) for count in SIZES}


CHECKS: dict[str, Callable[[Bench], Any]] = {
    check.__name__: check for check in (sweep, controls, transfer, separability, faithful, noise, size)
}


def _learned(bench: Bench, concept: Concept) -> dict[str, Any]:
    """What learning says of a concept, and what held-out prompts say."""
    best = max(site["balanced_accuracy"] for site in concept.evidence["sites"])
    return {"unit": concept.unit, "balanced_accuracy": best, **bench.measured(concept)}


def _tried(trial: Callable[[Any], dict[str, Any]], value: Any) -> dict[str, Any]:
    """What a trial finds, or why nothing could be learned."""
    try:
        return trial(value)
    except DSASError as error:
        return {"refused": str(error)}


def _unprojected(sample: Sample) -> dict[str, float]:
    """Logistic regression on all standardised coordinates: the folds, and the final fit that the time includes."""
    rows = torch.cat([sample.source, sample.control]).double().numpy()
    labels = np.repeat([1, 0], [len(sample.source), len(sample.control)])
    first, second = (np.array(group) for group in sample.groups)
    groups = np.concatenate([first, second + 1 + first.max()])
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=1.0, class_weight="balanced", solver="newton-cholesky")
    )
    logits = np.zeros(len(rows))
    for train, test in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(rows, labels, groups):
        logits[test] = model.fit(rows[train], labels[train]).decision_function(rows[test])
    model.fit(rows, labels)
    return {
        "balanced_accuracy": float(balanced_accuracy_score(labels, logits > 0)),
        "auroc": float(roc_auc_score(labels, logits)),
    }


def _mahalanobis(sample: Sample) -> float:
    """Distance of the means in the pooled covariance, shrunken after Ledoit and Wolf."""
    sides = [side.double().numpy() for side in (sample.source, sample.control)]
    precision = LedoitWolf().fit(np.concatenate([side - side.mean(0) for side in sides])).precision_
    gap = sides[0].mean(0) - sides[1].mean(0)
    return float(np.sqrt(gap @ precision @ gap))


def recorded() -> dict[str, dict[str, Any]]:
    """The records so far: model -> check -> figures, and what they were made with."""
    return json.loads(OUT.read_text()) if OUT.is_file() else {}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"of {', '.join(CHECKS)}; all without any")
    parser.add_argument("--model", choices=tuple(BENCHES), help="both without it")
    parser.add_argument("--resume", action="store_true", help="leave out what is recorded")
    args = parser.parse_args()
    if unknown := sorted(set(args.checks) - set(CHECKS)):
        sys.exit(f"error: no check {', '.join(unknown)}; there is {', '.join(CHECKS)}")
    for model in [args.model] if args.model else BENCHES:
        wanted = [name for name in args.checks or CHECKS if not (args.resume and name in recorded().get(model, {}))]
        bench = BENCHES[model]() if wanted else None
        for name in wanted:
            assert bench is not None
            began = time.monotonic()
            figures = CHECKS[name](bench)
            record = {
                "figures": figures,
                **made_with("torchmetrics", began=began, command=command_of("--model", model, name, module=MODULE)),
            }
            print(f"{model} {name} ({record['seconds']:.0f} s)", json.dumps(figures, indent=1), flush=True)
            report = recorded()
            report.setdefault(model, {})[name] = record
            write(OUT, report)


if __name__ == "__main__":
    main()
