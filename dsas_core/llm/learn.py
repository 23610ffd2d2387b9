"""`learn(model, tokenizer, prompts)`: a concept from a few dozen texts or conversations.

Every prompt is read once while its activations are captured; maps and gates are fitted as everywhere
(`dsas_core.learn`); then the unit of strength is chosen on other prompts of the same file, by what the steered model
answers, as it reads it itself when it is not steered, and by how far its predictions move on control prompts.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from ..capture import Capture, Shown
from ..concept import Concept
from ..errors import DSASError, UnsupportedError
from ..evidence import SiteEvidence
from ..hooks import visit
from ..learn import as_concept, fit_sites
from ..pretrained import name_of
from ..progress import progress_bar
from ..prompts import COUNT, SIDES, PromptSet, read
from ..provenance import versions
from ..recipe import Recipe, recipe_of
from ..site_fit import UNSEEN
from ..sites import Site
from ..unit import TRIALS, held_back, units_of
from .layers import bare, find_sites, positions_of, roots_of
from .load import BUILTIN
from .prompts import POOLINGS, encode, marked, pad_token
from .reader import HeldOut, Reader, choose_unit
from .steer import steer

NEAR_CHANCE, FIRING, TOLD_BY_LENGTH = 0.65, 0.05, 0.95
#: how a gate may read a text: no further than it is written
FORMS = ("token", "prefix", "latch", "last", "paper")


def learn(
    model: nn.Module,
    tokenizer: Any,
    prompts: str | Path | Mapping[str, Any] | PromptSet,
    *,
    method: str = "caa",
    gate: str | None = None,
    sites: str | Sequence[str] | None = None,
    pooling: str | None = None,
    seed: int = 0,
    count: int = COUNT,
    drift: float = 0.01,
    batch: int = 16,
    recipe: Mapping[str, Any] | None = None,
    show_progress: bool = False,
) -> Concept:
    """Learn a concept.

    Args:
        model: a transformers language model. tokenizer: its own.
        prompts: a prompt file (dsas_core/prompts.py), or its content; conversations as in dsas_core/llm/prompts.py.
            With parts `unseen_source` and `unseen_control` in its evaluation, the evidence tells how the gates do on
            these.
        method, gate: names in `dsas_core.methods`; gates also combined, "product(dsas, gaps)". Without a gate it is the
            method's own, or `dsas`.
        sites: see `dsas_core.llm.layers.find_sites`; None for the outputs of the middle third of the layers.
        pooling: what is read of source and target prompts: "answer", "prompt", "last" or "all" tokens; None for
            answers where prompts have them. The gate of form "prefix" is fitted on all tokens, that of form "latch" on
            the prompt, and that of form "last" on the states that write the answer, as they read. Of control prompts
            every token that a gate will meet takes part in placing its threshold.
        seed: of prompt choice and cross-validation.
        count: source and target prompts; controls are twice as many. A quarter is kept for choosing the unit.
        drift: mean Kullback-Leibler divergence per control token, in nats, that the unit may cost.
        batch: prompts per forward pass.
        recipe: further fields of `dsas_core.recipe.Recipe` (form, rank, site_weight, …).

    Returns:
        The concept, its unit chosen and its evidence in it; not saved yet. Without conversations in the prompt file
        nothing tells when enough is done, and the unit is 1: the mean difference itself.

    Raises:
        DSASError: bad prompts, names or sites; no site tells source from control.
    """
    chosen = _recipe(recipe, method, gate, seed)  # what cannot be is said before anything is encoded
    lesson = Lesson(
        model,
        tokenizer,
        prompts,
        sites=sites,
        pooling=pooling,
        seed=seed,
        count=count,
        batch=batch,
        show_progress=show_progress,
    )
    return lesson._learn(chosen, drift)


class Lesson:
    """The prompts of a concept, read once; any number of concepts are fitted on what was read.

    What has to be read depends on the gate's form, so that it may be read anew for another form.

    Args:
        model, tokenizer, prompts, and all others: as of `learn`. Nothing is read before the first concept is asked for.

    Example:
        >>> lesson = Lesson(model, tokenizer, "prompts/rudeness.yaml")
        >>> concepts = [lesson.learn(method) for method in ("caa", "mean-act", "linear-act")]
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        prompts: str | Path | Mapping[str, Any] | PromptSet,
        *,
        sites: str | Sequence[str] | None = None,
        pooling: str | None = None,
        seed: int = 0,
        count: int = COUNT,
        batch: int = 16,
        show_progress: bool = False,
    ) -> None:
        self.model, self.tokenizer, self.content = model, tokenizer, read(prompts)
        self.count, self.seed, self.show_progress = count, seed, show_progress
        self.sites = _readable(model, find_sites(model, sites), sites)
        drawn, limit = self.content.draw(count, seed), positions_of(model)
        self.texts = {side: [encode(tokenizer, prompt, limit) for prompt in found] for side, found in drawn.items()}
        self.answered = all(text.answer < len(text.ids) for side in SIDES[:2] for text in self.texts[side])
        self.pooling = pooling or ("answer" if self.answered else "all")
        if self.pooling not in POOLINGS or (self.pooling == "answer" and not self.answered):
            raise DSASError(
                f"pooling {self.pooling!r}: expected one of {', '.join(POOLINGS)}; answer needs an assistant's turn at "
                "the end of each source and target prompt"
            )
        self.fitting, self.held_out = held_back(self.texts)
        self.sources = drawn["source"][: len(self.fitting["source"])]
        self.unseen = {
            kind: [encode(tokenizer, text, limit) for text in self.content.sample(kind, count, seed)] for kind in UNSEEN
        }
        self.reader = Reader(model, pad_token(tokenizer), batch)
        self._captures: dict[tuple[tuple[str, str], ...], Capture] = {}

    def learn(
        self,
        method: str = "caa",
        gate: str | None = None,
        *,
        drift: float = 0.01,
        recipe: Mapping[str, Any] | None = None,
    ) -> Concept:
        """Fit a concept, see `learn`."""
        return self._learn(_recipe(recipe, method, gate, self.seed), drift)

    def _learn(self, chosen: Recipe, drift: float) -> Concept:
        shown = self._shown(chosen.lead) if chosen.supervised else None
        capture = self.captured(chosen)

        def behind(site: Site, learned: Concept) -> Capture:
            return self._walk([site], f"capturing at {site}", self._readings(chosen), learned, chosen)

        with progress_bar(len(self.sites), "fitting", self.show_progress) as bar:
            interventions, evidence = fit_sites(capture, chosen, bar.update, recapture=behind, shown=shown)
        lengths = ([len(text.ids) for text in self.texts[side]] for side in ("source", "control"))
        told_by_length = _auroc(*lengths)
        _warn(evidence if chosen.resolved_gate.traits.reads_activations else [], told_by_length)
        roots, inner = roots_of(self.model), bare(self.model)
        concept = as_concept(
            interventions,
            evidence,
            chosen,
            self.content,
            roots,
            model=name_of(inner, BUILTIN),
            count=self.count,
            prompts_used={side: len(found) for side, found in self.fitting.items()},
            pooling=self.pooling,
            seed=self.seed,
            versions=versions("transformers"),
        )
        found = {**concept.evidence, "length_auroc": told_by_length}
        if "encoder" in roots or not self.answered:
            return replace(concept, evidence=found)
        with progress_bar(min(TRIALS, len(units_of(concept.method))), "choosing the unit", self.show_progress) as bar:
            unit, trials = choose_unit(self._trial, concept, drift, bar.update)
        if not trials["trials"]:
            warnings.warn(
                "the model answers source prompts much as it answers control prompts, so nothing tells when enough is "
                "done: the unit is 1, the map as it was fitted",
                stacklevel=3,
            )
        return replace(concept, unit=unit, evidence={**found, "unit": trials})

    def captured(self, recipe: Recipe) -> Capture:
        """What sites show of the unsteered model, for a recipe to be fitted on; read when it is first asked for."""
        readings = self._readings(recipe)
        if readings not in self._captures:
            self._captures[readings] = self._walk(self.sites, "capturing", readings)
        return self._captures[readings]

    def _shown(self, lead: int) -> Shown:
        """Which positions of source prompts show the concept: those `lead` tokens before a word of its spans.

        Raises:
            DSASError: a prompt file without spans, or none of which is in any of the prompts.
        """
        name, spans = self.content.name, self.content.expanded("spans")
        if not spans:
            raise DSASError(
                f"prompt file {name!r} has no spans, the words of source prompts that show the concept: add them, or "
                "leave supervision to prompts"
            )
        found = [marked(self.tokenizer, prompt, spans) for prompt in self.sources]
        if not any(map(any, found)):
            raise DSASError(
                f"prompt file {name!r}: none of its spans is in a source prompt, the first is {spans[0]!r}: write them "
                "as they stand there, as whole words"
            )
        shown = [(*marks[lead:], *(False,) * lead) for marks in found]
        return lambda prompt, _: shown[prompt]

    @cached_property
    def _trial(self) -> HeldOut:
        """Who tells what a strength does."""
        return HeldOut(self.reader, self.fitting, self.held_out)

    def _readings(self, recipe: Recipe) -> tuple[tuple[str, str], ...]:
        """Kinds of rows, and which tokens of theirs are read."""
        form = recipe.form
        read_at = {"latch": "prompt", "prefix": "all", "last": "answer"}.get(form, self.pooling)
        readings = [("source", read_at), ("target", self.pooling), ("control", read_at)]
        readings += [("context", "all")] if form != "last" else []  # it does not meet what was given
        readings += [("moved", self.pooling)] if read_at != self.pooling else []
        readings += [("cloud", "all")] if recipe.cloud else []  # whatever is read, all tokens are moved
        how = read_at if form in ("latch", "last") else "all"
        return (*readings, *((kind, how) for kind, found in self.unseen.items() if found))

    def _walk(
        self,
        sites: Sequence[Site],
        label: str,
        readings: Sequence[tuple[str, str]],
        learned: Concept | None = None,
        recipe: Recipe | None = None,
    ) -> Capture:
        """The activations at some sites, while a concept steers the kinds that the recipe has it steer."""
        same = {"context": "control", "moved": "source", "cloud": "target"}
        shown = {**self.fitting, **self.unseen, **{kind: self.fitting[side] for kind, side in same.items()}}
        capture, reader = Capture(seed=self.seed), self.reader
        with progress_bar(sum(len(shown[kind]) for kind, _ in readings), label, self.show_progress) as bar:
            for kind, how in readings:
                capture.start(kind)
                steering = learned if recipe is not None and recipe.steers(kind) else None
                with nullcontext() if steering is None else steer(self.model, {steering: 1.0}):
                    for piece in reader.batches(shown[kind]):
                        with visit(roots_of(self.model), sites, capture, reader.describe(piece.counted(how))):
                            reader.run(piece)
                        capture.offset += len(piece.ids)
                        bar.update(len(piece.ids))
        return capture


def _recipe(given: Mapping[str, Any] | None, method: str, gate: str | None, seed: int) -> Recipe:
    """The recipe of a concept of texts.

    Raises:
        DSASError: one that reads what is not written yet.
    """
    chosen = recipe_of(given, form="token", pooling="mean", top_share=0.25, method=method, gate=gate, seed=seed)
    if "form" not in (given or {}):
        chosen = replace(chosen, form=chosen.resolved_gate.traits.text_form)
    if chosen.form not in FORMS:
        raise DSASError(f"gate form {chosen.form!r} reads tokens that are not written yet: choose {', '.join(FORMS)}")
    obstacle = chosen.obstacle_to_texts()
    if obstacle is not None:
        raise UnsupportedError(obstacle)
    return chosen


def _auroc(source: Sequence[int], control: Sequence[int]) -> float:
    """How well a number alone tells source from control: 0.5 is not at all, 1 and 0 are wholly."""
    pairs = [(a > b) + 0.5 * (a == b) for a in source for b in control]
    return sum(pairs) / len(pairs)


def _warn(evidence: Sequence[SiteEvidence], told_by_length: float) -> None:
    """Warn of what makes a gate weak, or strong for the wrong reason."""
    best = max(evidence, key=lambda found: found.balanced_accuracy, default=None)
    if best is not None and best.balanced_accuracy < NEAR_CHANCE and best.weight > 0:
        warnings.warn(
            f"the best site, {best.site}, tells source from control with balanced accuracy "
            f"{best.balanced_accuracy:.2f} only: add prompts, or choose other sites",
            stacklevel=4,
        )
    firing = [found for found in evidence if found.weight > 0 and found.control_h > FIRING]
    if firing:
        worst = max(firing, key=lambda found: found.control_h)
        warnings.warn(
            f"the gate fires on control tokens (mean h {worst.control_h:.2f} at {worst.site}): add controls that are "
            "more like the source",
            stacklevel=4,
        )
    if not 1 - TOLD_BY_LENGTH < told_by_length < TOLD_BY_LENGTH:
        warnings.warn(
            f"length alone tells source from control prompts (AUROC {told_by_length:.2f}): the gate may have learned "
            "nothing else; make them of about the same length",
            stacklevel=4,
        )


def _readable(model: nn.Module, found: list[Site], asked: object) -> list[Site]:
    """Sites that a prompt reaches: of a model with an encoder, the encoder's."""
    if "encoder" not in roots_of(model):
        return found
    readable = [site for site in found if site.root == "encoder"]
    if not readable or (asked is not None and len(readable) < len(found)):
        raise DSASError(
            "prompts go through the encoder: choose encoder sites to learn at (encoder.*), found decoder sites"
        )
    return readable
