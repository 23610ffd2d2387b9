"""`learn(model, tokenizer, prompts)`: a concept from a few dozen texts or conversations.

Every prompt is read once while its activations are captured; maps and gates are fitted as for pictures
(`dsas_core.learning.fit`); then the unit of strength is chosen on other prompts of the same file, by the answers of the
steered model, as the unsteered model classifies them, and by how far predictions on control prompts change.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ...concept.concept import Concept
from ...concept.evidence import SiteEvidence
from ...errors import DSASError, PromptError, UnsupportedError
from ...learning.capture import Capture, LabelPositions
from ...learning.joint.runs import HELD_OUT
from ...learning.learner import Learner
from ...learning.prompts.prompt_file import load_prompts
from ...learning.prompts.prompt_set import COUNT, SIDES, PromptSet
from ...learning.recipe import Recipe, recipe_of
from ...learning.site_fit import UNSEEN
from ...methods.gates.dsas import WHOLE_TEXT_FORMS
from ...model.loading import name_of
from ...model.sites import Roots, Site
from ...steering.handle import refuse_steered
from ...utils.meter import Meter
from ...utils.progress import progress_bar
from ..model.conversations import TOKEN_SELECTIONS, Encoded, mark_phrases, pad_token
from ..model.layers import find_read_sites, find_sites, roots_of, unwrap
from ..model.load import BUILTIN
from ..steering.steer import steer
from .held_out_trial import TextTrial
from .joint_runs import TextRuns
from .reader import Reader, encode_all, have_answers
from .weaknesses import find_weaknesses

#: the texts of a kind of activations, where they are another's, too
SIDE_OF = {"context": "control", "moved": "source", "cloud": "target"}
#: forms of gates that read no token after their own
FORMS = ("text", "message", "token", "prefix", "latch", "last", "paper")
#: positions kept of a prompt where a gate decides about whole texts, or a map goes by neighbours; and of others
WHOLE_TEXT, FEW = 128, 32


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
    keep_prompts: str | None = None,
    checkpoint: str | Path | None = None,
    show_progress: bool = False,
) -> Concept:
    """Learn a concept from texts or conversations.

    Args:
        model: a transformers language model.
        tokenizer: its tokenizer.
        prompts: a prompt file (format: `dsas_core.prompts`), or its content; conversations as in
            dsas_core/llm/model/conversations.py. With parts `unseen_source` and `unseen_control` in its evaluation, the
            evidence tests the gates on these.
        method: a map method of `dsas_core.methods`.
        gate: a gate of `dsas_core.methods`, also combined, "product(dsas, gaps)"; None for the method's own, or `dsas`.
        sites: where to steer, see `dsas_core.llm.find_sites`; None for the output of the layer at three fifths of the
            depth, or, of fewer than 12 layers, of the middle third.
        pooling: which tokens of source and target prompts are captured for the map: "answer", "prompt", "last" or
            "all"; None for answers where prompts have them, else all. Of all, with the default gate, a map goes by
            those that are about to write what shows the concept (`Recipe.pooling`). A gate is fitted on what it reads:
            of forms "text" and "message" the prompt, "prefix" all tokens, "latch" the prompt, "last" the states that
            write the answer. Of control prompts every token that a gate will read takes part in placing its threshold.
        seed: of prompt choice and cross-validation.
        count: source prompts, and as many target prompts; controls are twice as many. A quarter is held out for
            choosing the unit.
        drift: mean Kullback-Leibler divergence per control token, in nats, that the unit may cost.
        batch: prompts per forward pass; three times as many are answered at once.
        recipe: further fields of `dsas_core.Recipe` (form, rank, site_weight, ...).
        keep_prompts: what the concept keeps of its prompts: "all", or "hash" for no text, only what tells which were
            used (`dsas_core.learning.prompts.kept`); None for "hash" where the prompt file is marked as private, as
            those of data sets are, and "all" elsewhere.
        checkpoint: a folder where joint training is kept, so that an interrupted one goes on; None for nowhere.
        show_progress: whether to show progress bars.

    Returns:
        The concept with its unit and evidence; not saved yet. The unit is chosen by what held-out prompts are answered,
        or continued, with: see docs/language-models.md.

    Raises:
        DSASError: bad prompts, names or sites; no site tells source from control.

    Example:
        >>> from dsas_core import llm
        >>> concept = learn(*llm.load("builtin:chat"), "prompts/rudeness.yaml", count=8)
        >>> concept.name, concept.method, concept.gate
        ('rudeness', 'caa', 'dsas')
    """
    Lesson.check_recipe(recipe, method=method, gate=gate, seed=seed)  # refused before anything is encoded
    lesson = Lesson(
        model,
        tokenizer,
        prompts,
        sites=sites,
        pooling=pooling,
        seed=seed,
        count=count,
        batch=batch,
        keep_prompts=keep_prompts,
        checkpoint=checkpoint,
        show_progress=show_progress,
    )
    return lesson.learn(method, gate, drift=drift, recipe=recipe)


class TextLearner(Learner[Encoded]):
    """The prompts of a concept, read once; any number of concepts are fitted on what was captured.

    Which tokens are captured depends on the gate's form, so that another form may read the prompts anew. Nothing is
    read before the first concept is learned.

    Args:
        model: a transformers language model.
        tokenizer: its tokenizer.
        prompts: a prompt file (format: `dsas_core.prompts`), or its content.
        sites: where to steer; this and the settings below are explained at `dsas_core.llm.learn`.
        pooling: which tokens of source and target prompts are captured.
        seed: of prompt choice and cross-validation.
        count: source prompts, and as many target prompts.
        batch: prompts per forward pass.
        keep_prompts: what concepts keep of their prompts.
        checkpoint: where joint training is kept.
        show_progress: whether to show progress bars.

    Raises:
        DSASError: bad prompts or sites; a pooling that the prompts do not allow.

    Example:
        >>> from dsas_core import llm
        >>> lesson = Lesson(*llm.load("builtin:chat"), "prompts/rudeness.yaml", count=16)
        >>> # concepts = [lesson.learn(method) for method in ("caa", "mean-act", "linear-act")]  # a minute
        >>> lesson.pooling, len(lesson.fitting["source"]), len(lesson.held_out["source"])
        ('answer', 12, 4)
    """

    LIBRARIES = ("transformers",)
    DRIFT = 0.01

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
        keep_prompts: str | None = None,
        checkpoint: str | Path | None = None,
        show_progress: bool = False,
    ) -> None:
        refuse_steered(roots_of(model), "learning")
        content, encodable = load_prompts(prompts), _encoder_sites(model, find_sites(model, sites), sites)
        self.model, self.tokenizer, self.checkpoint = model, tokenizer, checkpoint
        drawn = content.draw(count, seed)
        texts = {side: encode_all(model, tokenizer, drawn[side]) for side in SIDES}
        self.answered = answered = have_answers(texts)
        self.pooling = pooling or ("answer" if answered else "all")
        if self.pooling not in TOKEN_SELECTIONS or (self.pooling == "answer" and not answered):
            raise DSASError(
                f"pooling {self.pooling!r}: expected one of {', '.join(TOKEN_SELECTIONS)}; answer needs an assistant's "
                "turn at the end of each source and target prompt"
            )
        super().__init__(
            content,
            texts,
            encodable,
            model_name=name_of(unwrap(model), BUILTIN),
            settings={"pooling": self.pooling},
            count=count,
            seed=seed,
            keep_prompts=keep_prompts,
            show_progress=show_progress,
        )
        self.tries_units = "encoder" not in self._roots
        self.sources = drawn["source"][: len(self.fitting["source"])]
        self.unseen = {kind: encode_all(model, tokenizer, content.sample(kind, count, seed)) for kind in UNSEEN}
        self.length_auroc = _auroc(*([len(text.ids) for text in texts[side]] for side in ("source", "control")))
        self.reader = Reader(model, pad_token(tokenizer), batch, steered=self.sites)
        self._captures: dict[tuple[tuple[str, str], ...], Capture] = {}

    def _recipe(self, given: Mapping[str, Any] | None, **fields: Any) -> Recipe:
        recipe = self.check_recipe(given, **fields)
        chosen = given or {}
        if recipe.form == "text" and self.answered and "form" not in chosen:
            recipe = replace(recipe, form="message")
        if recipe.form == "text" and self.pooling == "all" and "pooling" not in chosen:
            recipe = replace(recipe, pooling="leading")  # a few words make the text; answers differ all over
        return recipe

    @staticmethod
    def check_recipe(given: Mapping[str, Any] | None, **fields: Any) -> Recipe:
        """The recipe of a concept of texts, before it is known whether they are conversations.

        Raises:
            UnsupportedError: one that reads tokens which are not written yet.
        """
        recipe = recipe_of(given, form="token", pooling="mean", top_share=0.25, **fields)
        if "form" not in (given or {}) and not recipe.supervised:  # marked tokens tell nothing of whole texts
            recipe = replace(recipe, form=recipe.resolved_gate.traits.text_form)
        if recipe.form not in FORMS:
            raise UnsupportedError(
                f"gate form {recipe.form!r} reads tokens that are not written yet: choose {', '.join(FORMS)}"
            )
        obstacle = recipe.obstacle_to_texts()
        if obstacle is not None:
            raise UnsupportedError(obstacle)
        return recipe

    def captured(self, recipe: Recipe) -> Capture:
        selections, reads = self._selections(recipe), self._read_sites(recipe)
        tokens = WHOLE_TEXT if reads or recipe.pooling == "leading" else FEW
        key = (*selections, *(("reads", str(site)) for site in reads), ("tokens", str(tokens)))
        if key not in self._captures:
            sites = [*reads, *(site for site in self.sites if site not in reads)]
            self._captures[key] = self._capture(sites, "capturing", selections, tokens=tokens)
        return self._captures[key]

    def _read_sites(self, recipe: Recipe) -> Sequence[Site]:
        return find_read_sites(self.model, self.sites) if recipe.form in WHOLE_TEXT_FORMS else ()

    def _recapture(self, site: Site, learned: Concept, recipe: Recipe) -> Capture:
        tokens = WHOLE_TEXT if recipe.pooling == "leading" else FEW
        return self._capture([site], f"capturing at {site}", self._selections(recipe), learned, recipe, tokens)

    def _joint_runs(self, recipe: Recipe) -> TextRuns:
        held_out = {HELD_OUT + side: texts for side, texts in self.held_out.items()}
        return TextRuns(self.reader, {**self.fitting, **held_out}, self.pooling)

    def _position_labels(self, recipe: Recipe) -> Mapping[str, LabelPositions]:
        """The positions `lead` tokens before each token of the prompt file's spans.

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
        labels = [(*tokens[recipe.lead :], *(False,) * recipe.lead) for tokens in marks]
        return {"source": lambda prompt, _: labels[prompt]}

    @cached_property
    def _trial(self) -> TextTrial:
        return TextTrial(self.reader, self.fitting, self.held_out)

    def _more_evidence(self, recipe: Recipe, evidence: Sequence[SiteEvidence]) -> dict[str, Any]:
        """How well length alone tells source from control, after warnings of what makes a gate weak."""
        gate_evidence = evidence if recipe.resolved_gate.traits.reads_activations else []
        for weakness in find_weaknesses(gate_evidence, self.length_auroc):
            warnings.warn(weakness, stacklevel=4)
        return {"length_auroc": self.length_auroc}

    def _meter(self) -> Meter:
        return Meter(self.reader.device, self.reader.tokens)

    @property
    def _roots(self) -> Roots:
        return roots_of(self.model)

    def _selections(self, recipe: Recipe) -> tuple[tuple[str, str], ...]:
        """Each kind of activations, and which tokens of its prompts are captured."""
        form = recipe.form
        whole = "prompt" if self.answered else "all"
        read_at = {"latch": "prompt", "prefix": "all", "text": whole, "message": whole, "last": "answer"}.get(
            form, self.pooling
        )
        selections = [("source", read_at), ("target", self.pooling), ("control", read_at)]
        selections += [("context", "all")] if form != "last" else []  # such a gate does not read the prompt
        selections += [("moved", self.pooling)] if read_at != self.pooling else []
        selections += [("cloud", "all")] if recipe.cloud else []  # whatever is read, all tokens are moved
        unseen_at = read_at if form in ("latch", "last") else "all"
        return (*selections, *((kind, unseen_at) for kind, texts in self.unseen.items() if texts))

    def _capture(
        self,
        sites: Sequence[Site],
        label: str,
        selections: Sequence[tuple[str, str]],
        learned: Concept | None = None,
        recipe: Recipe | None = None,
        tokens: int = FEW,
    ) -> Capture:
        """The activations at some sites, while a concept steers the kinds that the recipe steers.

        Kinds of the same texts share a forward pass, unless the one is steered and the other is not.
        """
        texts = {**self.fitting, **self.unseen}
        readings: dict[tuple[str, bool], list[tuple[str, str]]] = {}
        for kind, selection in selections:
            steered = learned is not None and recipe is not None and recipe.steers(kind)
            readings.setdefault((SIDE_OF.get(kind, kind), steered), []).append((kind, selection))
        capture = Capture(seed=self.seed)
        with progress_bar(sum(len(texts[side]) for side, _ in readings), label, self.show_progress) as bar:
            for (side, steered), kinds in readings.items():
                with steer(self.model, {learned: 1.0}) if learned is not None and steered else nullcontext():
                    capture.absorb(self.reader.capture(texts[side], sites, kinds, self.seed, bar.update, tokens))
        return capture


#: the public name
Lesson = TextLearner


def _auroc(source: Sequence[int], control: Sequence[int]) -> float:
    """AUROC of a number alone: 0.5 is chance, 1 and 0 separate source from control completely."""
    return float((np.sign(np.subtract.outer(source, control)) / 2 + 0.5).mean())


def _encoder_sites(model: nn.Module, sites: list[Site], given: object) -> list[Site]:
    """The sites that read prompts: of a model with an encoder, the encoder's.

    Raises:
        UnsupportedError: the user gave other sites.
    """
    if "encoder" not in roots_of(model):
        return sites
    in_encoder = [site for site in sites if site.root == "encoder"]
    if not in_encoder or (given is not None and len(in_encoder) < len(sites)):
        raise UnsupportedError(
            "prompts go through the encoder: choose encoder sites to learn at (encoder.*), found decoder sites"
        )
    return in_encoder
