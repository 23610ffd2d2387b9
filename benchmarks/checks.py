"""Checks that reviewers of the paper asked for, on the built-in language model: each a name of its own.

    python benchmarks/checks.py                    # all of them
    python benchmarks/checks.py sweep faithful     # some

- sweep: strengths of the map from 0 to 10, gated and not: does the effect grow, and where does the text break?
- controls: control sets at random, curated, and with look-alikes; how similar they are to the source (Mahalanobis
  distance of means) beside how often the gate fires where it must not.
- transfer: a concept learned from one set of prompts, on another set of the same behaviour.
- separability: how well each layer tells source from control, before and after projection, and what fitting costs.
- faithful: the recipe as the paper has it (5 principal components of means, every layer's weight 1, no calibration)
  beside ours.
- noise: a share of source and control prompts swapped while learning.
- size: 8 to 128 prompts a side.

Writes benchmarks/results/checks.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dsas_core import llm, methods
from dsas_core.capture import Capture
from dsas_core.concept import Concept
from dsas_core.errors import DSASError
from dsas_core.evaluate.texts import degenerate
from dsas_core.hooks import visit
from dsas_core.llm.builtin import corpus, quality
from dsas_core.llm.layers import roots_of
from dsas_core.llm.prompts import encode, pad_token
from dsas_core.llm.reader import Reader
from dsas_core.prompts import PromptSet, read
from dsas_core.provenance import versions

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "checks.json"
PROMPTS = ROOT / "prompts" / "rudeness.yaml"
FAITHFUL = {"form": "paper", "rank": 5, "scaler": "none", "site_weight": "none", "control_h": None, "pooling": "mean"}
MESSAGES = 120


class Desk:
    """The built-in model, its prompts, and what is asked of it."""

    def __init__(self) -> None:
        self.model, self.tokenizer = llm.load("builtin:chat")
        self.prompts = read(PROMPTS)
        self.angry = [r.text for r in corpus.draw_requests(MESSAGES, 7, manners=("angry",))]
        self.calm = [r.text for r in corpus.draw_requests(MESSAGES, 7, manners=corpus.CALM)]
        self.insulting = [r.text for r in corpus.draw_angry_questions(MESSAGES, 7)]
        self.plain = self.answers(self.calm)

    def learn(self, prompts: PromptSet | None = None, **settings: Any) -> Concept:
        return llm.learn(self.model, self.tokenizer, prompts or self.prompts, seed=0, **settings)

    def answers(self, messages: list[str]) -> list[str]:
        return quality.answers(self.model, self.tokenizer, messages)

    def measured(self, concept: Concept, strength: float = 1.0, gate: str | None = None) -> dict[str, float]:
        """Rudeness left, calm answers that changed, and broken answers, at a strength."""
        with llm.steer(self.model, {concept: strength}, gate=gate):
            said, kept = self.answers(self.angry), self.answers(self.calm)
        return {
            "rude": quality.rude_share(said),
            "calm_changed": float(np.mean([a != b for a, b in zip(kept, self.plain, strict=True)])),
            "broken": float(np.mean([degenerate(text) for text in said])),
        }

    def fires(self, concept: Concept) -> dict[str, float]:
        """Mean h over the tokens of calm and of angry messages."""
        found = {}
        for name, messages in (("calm", self.calm), ("angry", self.angry)):
            with llm.steer(self.model, {concept: 0.0}, trace=True) as steering:
                quality.answers(self.model, self.tokenizer, messages, batch=len(messages), max_new_tokens=1)
                assert steering.trace is not None
                found[f"h_on_{name}_messages"] = steering.trace.mean_h(concept.name)
        return found


def sweep(desk: Desk) -> Any:
    """Strengths of the map from 0 to 10."""
    concept = desk.learn().with_unit(1.0)
    grid = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0)
    return {
        arm: [{"strength": strength, **desk.measured(concept, strength, gate)} for strength in grid]
        for arm, gate in (("dsas", None), ("on", "on"))
    }


def controls(desk: Desk) -> Any:
    """Control sets of three kinds."""
    sides = desk.prompts.to_dict()
    curated = sides["control"]
    kinds = {
        "at random": [t for t in curated if "{person}" in t or "{place}" in t],
        "of the same topics": [t for t in curated if "{thing}" in t and "{calm}" not in t]
        + [t.replace("{calm}", "could you please help me?") for t in curated if "{calm}" in t],
        "with look-alikes": curated,
    }
    found = {}
    for kind, templates in kinds.items():
        prompts = replace(desk.prompts, control=tuple(dict.fromkeys(templates)))
        try:
            concept = desk.learn(prompts)
        except DSASError as error:
            found[kind] = {"refused": str(error)}
            continue
        distance = [_mahalanobis(*rows) for rows in _rows(desk, prompts).values()]
        found[kind] = {"mahalanobis": float(np.mean(distance)), **desk.fires(concept), **desk.measured(concept)}
    return found


def transfer(desk: Desk) -> Any:
    """Insults around questions about facts, of which learning saw none."""
    concept = desk.learn()
    base = quality.rude_share(desk.answers(desk.insulting))
    with llm.steer(desk.model, {concept: 1.0}):
        steered = quality.rude_share(desk.answers(desk.insulting))
    return {"rude": base, "rude_steered": steered, **{f"help_desk_{k}": v for k, v in desk.measured(concept).items()}}


def separability(desk: Desk) -> Any:
    """Held-out balanced accuracy of each layer's means, with and without projection, and seconds of fitting."""
    gate = methods.get("dsas", "gate")
    found = {}
    for site, (source, control) in _rows(desk, desk.prompts, sites="block").items():
        line: dict[str, Any] = {"mahalanobis": _mahalanobis(source, control)}
        for name, rank in (("5 components", 5), ("all components", source.shape[1]), ("discriminant", "lda")):
            began = time.perf_counter()
            fitted = gate.cross_fit(source, control, rank=rank, scaler="std")
            line[name] = {
                "balanced_accuracy": fitted.evidence.balanced_accuracy,
                "auroc": fitted.evidence.auroc,
                "seconds": time.perf_counter() - began,
            }
        found[site] = line
    return found


def faithful(desk: Desk) -> Any:
    """The paper's recipe beside ours, each at its own unit."""
    found = {}
    for name, recipe in (("ours", None), ("faithful", FAITHFUL)):
        concept = desk.learn(recipe=recipe)
        found[name] = {"unit": concept.unit, **desk.fires(concept), **desk.measured(concept)}
    return found


def noise(desk: Desk) -> Any:
    """A share of source and control prompts swapped."""
    found = {}
    drawn = desk.prompts.draw(48, 0)
    for share in (0.0, 0.05, 0.1, 0.2, 0.3):
        count = round(share * 48)
        source = [*drawn["control"][:count], *drawn["source"][count:]]
        control = [*drawn["source"][:count], *drawn["control"][count:]]
        try:
            concept = desk.learn(_literal(source, drawn["target"], control))
            found[f"{share:g}"] = {"unit": concept.unit, **desk.measured(concept)}
        except DSASError as error:
            found[f"{share:g}"] = {"refused": str(error)}
    return found


def size(desk: Desk) -> Any:
    """8 to 128 prompts a side."""
    found = {}
    for count in (8, 16, 32, 64, 128):
        concept = desk.learn(count=count)
        best = max(site["balanced_accuracy"] for site in concept.evidence["sites"])
        found[str(count)] = {"unit": concept.unit, "balanced_accuracy": best, **desk.measured(concept)}
    return found


CHECKS: dict[str, Callable[[Desk], Any]] = {
    check.__name__: check for check in (sweep, controls, transfer, separability, faithful, noise, size)
}


def _literal(source: list[str], target: list[str], control: list[str]) -> PromptSet:
    """A prompt set of these texts as they are."""
    sides = {"source": source, "target": target, "control": control}
    return PromptSet("noisy", **{side: tuple(texts) for side, texts in sides.items()})


def _rows(desk: Desk, prompts: PromptSet, sites: str | None = None) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Mean activations over the prompt, source and control [n, width], by site."""
    found = llm.find_sites(desk.model, sites)
    capture, drawn = Capture(positions_per_row=0), prompts.draw(48, 0)
    reader = Reader(desk.model, pad_token(desk.tokenizer), 32)
    for side in ("source", "control"):
        capture.start(side)
        for piece in reader.batches([encode(desk.tokenizer, text) for text in drawn[side]]):
            with visit(roots_of(desk.model), found, capture, reader.describe(piece.counted("prompt"))):
                reader.run(piece)
            capture.offset += len(piece.ids)
    kept = {(str(site), side): rows.gathered("pooled") for (site, _, side), rows in capture.rows.items()}
    return {str(site): (kept[str(site), "source"], kept[str(site), "control"]) for site in found}


def _mahalanobis(source: torch.Tensor, control: torch.Tensor) -> float:
    """Distance of the means in the pooled covariance, shrunken after Ledoit and Wolf."""
    from sklearn.covariance import LedoitWolf

    sides = [source.double().numpy(), control.double().numpy()]
    precision = LedoitWolf().fit(np.concatenate([side - side.mean(0) for side in sides])).precision_
    gap = sides[0].mean(0) - sides[1].mean(0)
    return float(np.sqrt(gap @ precision @ gap))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"of {', '.join(CHECKS)}; all without any")
    args = parser.parse_args()
    unknown = sorted(set(args.checks) - set(CHECKS))
    if unknown:
        sys.exit(f"error: no check {', '.join(unknown)}; there is {', '.join(CHECKS)}")
    desk = Desk()
    report = json.loads(OUT.read_text()) if OUT.is_file() else {}
    for name in args.checks or CHECKS:
        began = time.monotonic()
        report[name] = CHECKS[name](desk)
        print(f"{name} ({time.monotonic() - began:.0f} s)", json.dumps(report[name], indent=1), flush=True)
    report |= {
        "command": "python benchmarks/checks.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": versions("transformers", "scikit-learn"),
    }
    OUT.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
