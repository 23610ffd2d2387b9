"""Checks that reviewers of the paper asked for, on the built-in models.

    python -m benchmarks.quality.checks                                       # all of them, texts and pictures
    python -m benchmarks.quality.checks --model builtin:emoji noise faithful  # some, on one model
    python -m benchmarks.quality.checks --resume                              # those that are not recorded yet

- sweep: strengths of the map from 0 to 10, gated and not: does the effect grow, and where does the output break?
- controls: control sets at random, of the same kind, and with look-alikes; how similar they are to the source
  (Mahalanobis distance of means) beside how high the gate is on controls.
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

from benchmarks.common.records import build_parser, format_command, provenance, record_path, write_record
from benchmarks.quality.checks_models import COUNT, MODELS, ModelUnderTest, Sample
from dsas_core import methods
from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError
from dsas_core.learning.prompts.prompt_set import PromptSet

OUT = record_path(__file__)
MODULE = "benchmarks.quality.checks"
FAITHFUL = {"form": "paper", "rank": 5, "scaler": "none", "site_weight": "none", "control_h": None, "pooling": "mean"}
STRENGTHS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0)
NOISE = (0.0, 0.05, 0.1, 0.2, 0.3)
SIZES = (8, 16, 32, 64, 128)
FOLDS = 5


def sweep(model: ModelUnderTest) -> Any:
    """Strengths of the map from 0 to 10."""
    concept = model.learn()
    in_map_strength = concept.with_unit(1.0)
    arms = {
        arm: [{"strength": strength, **model.measure(in_map_strength, strength, gate)} for strength in STRENGTHS]
        for arm, gate in (("dsas", None), ("on", "on"))
    }
    return {"unit": concept.unit, **arms}


def controls(model: ModelUnderTest) -> Any:
    """Control sets of three kinds."""

    def trial(templates: list[str]) -> dict[str, Any]:
        prompts = replace(model.prompts, control=tuple(dict.fromkeys(templates)))
        concept = model.learn(prompts)
        distance = float(np.mean([_mahalanobis(sample) for sample in model.mean_activations(prompts).values()]))
        return {"mahalanobis": distance, **model.gate_scores(concept), **model.measure(concept)}

    return {kind: _try_trial(trial, list(templates)) for kind, templates in model.controls.items()}


def transfer(model: ModelUnderTest) -> Any:
    """Concepts measured on prompts like those that they were learned from, and on others."""
    figures = {}
    for label, case in model.transfers.items():
        concept = model.learn(case.prompts)
        effect = model.effect(concept, evaluation_set=case.evaluation_set)
        figures[label] = {"unit": concept.unit, **model.unsteered(case.evaluation_set), **effect}
    return figures


def separability(model: ModelUnderTest) -> Any:
    """Held-out balanced accuracy and AUROC of each site's means, with and without projection; processor seconds."""
    gate = methods.get("dsas", "gate")

    def fit_projected(sample: Sample, rank: int | str) -> dict[str, float]:
        cross_fitted = gate.cross_fit(sample.source, sample.control, rank=rank, scaler="std", groups=sample.groups)
        return {"balanced_accuracy": cross_fitted.evidence.balanced_accuracy, "auroc": cross_fitted.evidence.auroc}

    fits: dict[str, Callable[[Sample], dict[str, float]]] = {
        "no projection": _fit_unprojected,
        "5 components": lambda sample: fit_projected(sample, 5),
        "discriminant": lambda sample: fit_projected(sample, "lda"),
    }
    figures = {}
    with threadpool_limits(1):
        for site, sample in model.mean_activations(model.prompts, all_sites=True).items():
            line: dict[str, Any] = {"width": sample.source.shape[1], "mahalanobis": _mahalanobis(sample)}
            for name, fit in fits.items():
                began = time.process_time()
                line[name] = fit(sample)
                line[name]["seconds"] = time.process_time() - began
            figures[site] = line
    return figures


def faithful(model: ModelUnderTest) -> Any:
    """The paper's recipe beside ours, each at its own unit."""
    figures = {}
    for name, concept in (("ours", model.learn()), ("faithful", model.learn(recipe=FAITHFUL))):
        figures[name] = {"unit": concept.unit, **model.gate_scores(concept), **model.measure(concept)}
    return figures


def noise(model: ModelUnderTest) -> Any:
    """Source prompts of which a share is swapped with control prompts."""
    texts = model.prompts.draw(COUNT, 0)

    def trial(share: float) -> dict[str, Any]:
        count = round(share * COUNT)
        source = [*texts["control"][:count], *texts["source"][count:]]
        control = [*texts["source"][:count], *texts["control"][count:]]
        prompts = PromptSet("noisy", tuple(source), tuple(texts["target"]), tuple(control))
        return _measure_learned(model, model.learn(prompts))

    return {f"{share:g}": _try_trial(trial, share) for share in NOISE}


def size(model: ModelUnderTest) -> Any:
    """8 to 128 prompts a side, fewer where the file has fewer."""

    def trial(count: int) -> dict[str, Any]:
        concept = model.learn(count=count)
        counts = {side: len(texts) for side, texts in model.prompts.draw(count, 0).items()}
        return {"source": counts["source"], "control": counts["control"], **_measure_learned(model, concept)}

    return {str(count): _try_trial(trial, count) for count in SIZES}


CHECKS: dict[str, Callable[[ModelUnderTest], Any]] = {
    check.__name__: check for check in (sweep, controls, transfer, separability, faithful, noise, size)
}


def _measure_learned(model: ModelUnderTest, concept: Concept) -> dict[str, Any]:
    """Unit and best balanced accuracy of a concept, and its figures on held-out prompts."""
    best = max(site["balanced_accuracy"] for site in concept.evidence["sites"])
    return {"unit": concept.unit, "balanced_accuracy": best, **model.measure(concept)}


def _try_trial(trial: Callable[[Any], dict[str, Any]], value: Any) -> dict[str, Any]:
    """The figures of a trial, or the reason why nothing could be learned."""
    try:
        return trial(value)
    except DSASError as error:
        return {"refused": str(error)}


def _fit_unprojected(sample: Sample) -> dict[str, float]:
    """Logistic regression on all standardised coordinates: cross-validated, then a final fit (for its time)."""
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
    """Mahalanobis distance of the means, in the pooled covariance with Ledoit-Wolf shrinkage."""
    sides = [side.double().numpy() for side in (sample.source, sample.control)]
    precision = LedoitWolf().fit(np.concatenate([side - side.mean(0) for side in sides])).precision_
    gap = sides[0].mean(0) - sides[1].mean(0)
    return float(np.sqrt(gap @ precision @ gap))


def load_records() -> dict[str, dict[str, Any]]:
    """The records so far: model -> check -> figures and provenance."""
    return json.loads(OUT.read_text()) if OUT.is_file() else {}


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"of {', '.join(CHECKS)}; default: all")
    parser.add_argument("--model", choices=tuple(MODELS), help="default: both")
    parser.add_argument("--resume", action="store_true", help="skip recorded checks")
    args = parser.parse_args()
    if unknown := sorted(set(args.checks) - set(CHECKS)):
        sys.exit(f"error: no check {', '.join(unknown)}; there is {', '.join(CHECKS)}")
    for model_name in [args.model] if args.model else MODELS:
        recorded = load_records().get(model_name, {}) if args.resume else {}
        missing = [name for name in args.checks or CHECKS if name not in recorded]
        model = MODELS[model_name]() if missing else None
        for name in missing:
            assert model is not None
            began = time.monotonic()
            figures = CHECKS[name](model)
            command = format_command("--model", model_name, name, module=MODULE)
            record = {"figures": figures, **provenance("torchmetrics", began=began, command=command)}
            print(f"{model_name} {name} ({record['seconds']:.0f} s)", json.dumps(figures, indent=1), flush=True)
            report = load_records()
            report.setdefault(model_name, {})[name] = record
            write_record(OUT, report)


if __name__ == "__main__":
    main()
