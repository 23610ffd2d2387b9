"""`learn(model, tokenizer, prompts)`: a concept from a few dozen texts or conversations.

Every prompt is read once while its activations are captured; maps and gates are fitted as everywhere
(`dsas_core.learning.fit`); then the unit of strength is chosen on other prompts of the same file, by what the steered
model answers, as it reads it itself when it is not steered, and by how far its predictions move on control prompts.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from ...concept.concept import Concept
from ...concept.evidence import SiteEvidence
from ...errors import DSASError, PromptError, UnsupportedError
from ...learning.capture import Capture, Shown
from ...learning.learner import Learner
from ...learning.prompts.prompt_set import COUNT, SIDES, PromptSet, load_prompts
from ...learning.recipe import Recipe, recipe_of
from ...learning.site_fit import UNSEEN
from ...model.hooks import visit
from ...model.loading import name_of
from ...model.sites import Roots, Site
from ...utils.progress import progress_bar
from ..model.conversations import TOKEN_SELECTIONS, Encoded, mark_phrases, pad_token
from ..model.layers import find_sites, roots_of, unwrap
from ..model.load import BUILTIN
from ..steering.steer import steer
from .held_out_trial import TextTrial
from .reader import Reader, encode_all, have_answers

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
    seed: int = 0,
    drift: float = 0.01,
    recipe: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Concept:
    """Learn a concept.

    Args:
        model: a transformers language model. tokenizer: its own.
        prompts: a prompt file (dsas_core/learning/prompts/prompt_set.py), or its content; conversations as in
            dsas_core/llm/model/conversations.py.
        method, gate: names in `dsas_core.methods`; gates also combined, "product(dsas, gaps)". Without a gate it is the
            method's own, or `dsas`.
        seed: of prompt choice and cross-validation.
        drift: mean Kullback-Leibler divergence per control token, in nats, that the unit may cost.
        recipe: further fields of `dsas_core.learning.recipe.Recipe` (form, rank, site_weight, …).
        settings: further arguments of `Lesson`: sites, pooling, count, batch, show_progress.

    Returns:
        The concept, its unit chosen and its evidence in it; not saved yet. Without conversations in the prompt file
        nothing tells when enough is done, and the unit is 1: the mean difference itself.

    Raises:
        DSASError: bad prompts, names or sites; no site tells source from control.
    """
    chosen = _recipe(recipe, method, gate, seed)  # what cannot be is said before anything is encoded
    return Lesson(model, tokenizer, prompts, seed=seed, **settings).fit(chosen, drift)


class TextLearner(Learner[Encoded]):
    """The prompts of a concept, read once; any number of concepts are fitted on what was captured.

    What has to be read depends on the gate's form, so that it may be read anew for another form. Nothing is read before
    the first concept is asked for.

    Args:
        model: a transformers language model. tokenizer: its own.
        prompts: a prompt file (dsas_core/learning/prompts/prompt_set.py), or its content; conversations as in
            dsas_core/llm/model/conversations.py.
            With parts `unseen_source` and `unseen_control` in its evaluation, the evidence tells how the gates do on
            these.
        sites: see `dsas_core.llm.model.layers.find_sites`; None for the outputs of the middle third of the layers.
        pooling: what is read of source and target prompts: "answer", "prompt", "last" or "all" tokens; None for
            answers where prompts have them. The gate of form "prefix" is fitted on all tokens, that of form "latch" on
            the prompt, and that of form "last" on the states that write the answer, as they read. Of control prompts
            every token that a gate will meet takes part in placing its threshold.
        seed: of prompt choice and cross-validation.
        count: source and target prompts; controls are twice as many. A quarter is kept for choosing the unit.
        batch: prompts per forward pass.
        show_progress: whether to show bars.

    Example:
        >>> lesson = Lesson(model, tokenizer, "prompts/rudeness.yaml")
        >>> concepts = [lesson.learn(method) for method in ("caa", "mean-act", "linear-act")]
    """

    LIBRARIES = ("transformers",)

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
        content, readable = load_prompts(prompts), _readable(model, find_sites(model, sites), sites)
        self.model, self.tokenizer = model, tokenizer
        drawn = content.draw(count, seed)
        texts = {side: encode_all(model, tokenizer, drawn[side]) for side in SIDES}
        answered = have_answers(texts)
        self.pooling = pooling or ("answer" if answered else "all")
        if self.pooling not in TOKEN_SELECTIONS or (self.pooling == "answer" and not answered):
            raise DSASError(
                f"pooling {self.pooling!r}: expected one of {', '.join(TOKEN_SELECTIONS)}; answer needs an assistant's "
                "turn at the end of each source and target prompt"
            )
        super().__init__(
            content,
            texts,
            readable,
            model_name=name_of(unwrap(model), BUILTIN),
            settings={"pooling": self.pooling},
            count=count,
            seed=seed,
            show_progress=show_progress,
        )
        self.tries_units = answered and "encoder" not in self._roots
        self.sources = drawn["source"][: len(self.fitting["source"])]
        self.unseen = {kind: encode_all(model, tokenizer, content.sample(kind, count, seed)) for kind in UNSEEN}
        self.length_auroc = _auroc(*([len(text.ids) for text in texts[side]] for side in ("source", "control")))
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
        return self.fit(_recipe(recipe, method, gate, self.seed), drift)

    def captured(self, recipe: Recipe) -> Capture:
        readings = self._readings(recipe)
        if readings not in self._captures:
            self._captures[readings] = self._walk(self.sites, "capturing", readings)
        return self._captures[readings]

    def _recapture(self, site: Site, learned: Concept, recipe: Recipe) -> Capture:
        return self._walk([site], f"capturing at {site}", self._readings(recipe), learned, recipe)

    def _position_labels(self, recipe: Recipe) -> Shown:
        """Those `lead` tokens before a word of the prompt file's spans.

        Raises:
            PromptError: a prompt file without spans, or none of which is in any of the prompts.
        """
        name, spans = self.content.name, self.content.expanded("spans")
        if not spans:
            raise PromptError(
                f"prompt file {name!r} has no spans, the words of source prompts that show the concept: add them, or "
                "leave supervision to prompts"
            )
        marks = [mark_phrases(self.tokenizer, prompt, spans) for prompt in self.sources]
        if not any(map(any, marks)):
            raise PromptError(
                f"prompt file {name!r}: none of its spans is in a source prompt, the first is {spans[0]!r}: write them "
                "as they stand there, as whole words"
            )
        labels = [(*marks_of[recipe.lead :], *(False,) * recipe.lead) for marks_of in marks]
        return lambda prompt, _: labels[prompt]

    @cached_property
    def _trial(self) -> TextTrial:
        return TextTrial(self.reader, self.fitting, self.held_out)

    def _more_evidence(self, recipe: Recipe, evidence: Sequence[SiteEvidence]) -> dict[str, Any]:
        """How well length alone tells source from control, after warnings of what makes a gate weak."""
        for weakness in _weaknesses(
            evidence if recipe.resolved_gate.traits.reads_activations else [], self.length_auroc
        ):
            warnings.warn(weakness, stacklevel=4)
        return {"length_auroc": self.length_auroc}

    @property
    def _roots(self) -> Roots:
        return roots_of(self.model)

    def _readings(self, recipe: Recipe) -> tuple[tuple[str, str], ...]:
        """Kinds of rows, and which tokens of theirs are read."""
        form = recipe.form
        read_at = {"latch": "prompt", "prefix": "all", "last": "answer"}.get(form, self.pooling)
        readings = [("source", read_at), ("target", self.pooling), ("control", read_at)]
        readings += [("context", "all")] if form != "last" else []  # it does not meet what was given
        readings += [("moved", self.pooling)] if read_at != self.pooling else []
        readings += [("cloud", "all")] if recipe.cloud else []  # whatever is read, all tokens are moved
        how = read_at if form in ("latch", "last") else "all"
        return (*readings, *((kind, how) for kind, texts in self.unseen.items() if texts))

    def _walk(
        self,
        sites: Sequence[Site],
        label: str,
        readings: Sequence[tuple[str, str]],
        learned: Concept | None = None,
        recipe: Recipe | None = None,
    ) -> Capture:
        """The activations at some sites, while a concept steers the kinds that the recipe has it steer."""
        sides = {"context": "control", "moved": "source", "cloud": "target"}
        texts = {**self.fitting, **self.unseen, **{kind: self.fitting[side] for kind, side in sides.items()}}
        capture, reader = Capture(seed=self.seed), self.reader
        with progress_bar(sum(len(texts[kind]) for kind, _ in readings), label, self.show_progress) as bar:
            for kind, how in readings:
                capture.start(kind)
                steering = learned if recipe is not None and recipe.steers(kind) else None
                with nullcontext() if steering is None else steer(self.model, {steering: 1.0}):
                    for piece in reader.batches(texts[kind]):
                        with visit(self._roots, sites, capture, reader.describe(piece.token_mask(how))):
                            reader.run(piece)
                        capture.offset += len(piece.ids)
                        bar.update(len(piece.ids))
        return capture


#: the name by which users know it
Lesson = TextLearner


def _recipe(given: Mapping[str, Any] | None, method: str, gate: str | None, seed: int) -> Recipe:
    """The recipe of a concept of texts.

    Raises:
        UnsupportedError: one that reads what is not written yet.
    """
    chosen = recipe_of(given, form="token", pooling="mean", top_share=0.25, method=method, gate=gate, seed=seed)
    if "form" not in (given or {}):
        chosen = replace(chosen, form=chosen.resolved_gate.traits.text_form)
    if chosen.form not in FORMS:
        raise UnsupportedError(
            f"gate form {chosen.form!r} reads tokens that are not written yet: choose {', '.join(FORMS)}"
        )
    obstacle = chosen.obstacle_to_texts()
    if obstacle is not None:
        raise UnsupportedError(obstacle)
    return chosen


def _auroc(source: Sequence[int], control: Sequence[int]) -> float:
    """How well a number alone tells source from control: 0.5 is not at all, 1 and 0 are wholly."""
    pairs = [(a > b) + 0.5 * (a == b) for a in source for b in control]
    return sum(pairs) / len(pairs)


def _weaknesses(evidence: Sequence[SiteEvidence], length_auroc: float) -> Iterator[str]:
    """What makes a gate weak, or strong for the wrong reason."""
    best = max(evidence, key=lambda item: item.balanced_accuracy, default=None)
    if best is not None and best.balanced_accuracy < NEAR_CHANCE and best.weight > 0:
        yield (
            f"the best site, {best.site}, tells source from control with balanced accuracy "
            f"{best.balanced_accuracy:.2f} only: add prompts, or choose other sites"
        )
    firing = [item for item in evidence if item.weight > 0 and item.control_h > FIRING]
    if firing:
        worst = max(firing, key=lambda item: item.control_h)
        yield (
            f"the gate fires on control tokens (mean h {worst.control_h:.2f} at {worst.site}): add controls that are "
            "more like the source"
        )
    if not 1 - TOLD_BY_LENGTH < length_auroc < TOLD_BY_LENGTH:
        yield (
            f"length alone tells source from control prompts (AUROC {length_auroc:.2f}): the gate may have learned "
            "nothing else; make them of about the same length"
        )


def _readable(model: nn.Module, sites: list[Site], asked: object) -> list[Site]:
    """Sites that a prompt reaches: of a model with an encoder, the encoder's."""
    if "encoder" not in roots_of(model):
        return sites
    readable = [site for site in sites if site.root == "encoder"]
    if not readable or (asked is not None and len(readable) < len(sites)):
        raise UnsupportedError(
            "prompts go through the encoder: choose encoder sites to learn at (encoder.*), found decoder sites"
        )
    return readable
