"""The models under test: the built-in language model (`ChatModel`) and text-to-image model (`PictureModel`)."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image

import dsas_diffusion as dsas
from benchmarks.builtin_models import language_quality as quality
from benchmarks.builtin_models.conversations import draw_angry_questions
from benchmarks.common.records import PROMPTS
from dsas_core import llm
from dsas_core.concept.concept import Concept
from dsas_core.learning.capture import Capture
from dsas_core.learning.prompts.prompt_file import load_prompts
from dsas_core.learning.prompts.prompt_set import PromptSet
from dsas_core.llm.builtin import corpus
from dsas_core.llm.evaluation.repetition import degenerate
from dsas_core.llm.learning.reader import Reader
from dsas_core.llm.model.conversations import encode, pad_token
from dsas_core.llm.model.layers import roots_of as layers_of
from dsas_core.model.hooks import visit
from dsas_diffusion.generation.compare import UNCHANGED, change
from dsas_diffusion.generation.pictures import latent_batches, pictures_of, seeds_for
from dsas_diffusion.generation.settings import settings_of
from dsas_diffusion.pipelines.adapter import adapt, find_sites
from dsas_diffusion.pipelines.batch_layout import BatchLayout
from dsas_diffusion.vision.builtin_judge import BuiltinJudge
from dsas_diffusion.vision.judges import judge_from
from dsas_diffusion.vision.similarity import ssim

#: number of source prompts for learning and for `mean_activations`; controls are twice as many
COUNT = 48
#: number of held-out messages, angry and calm each
MESSAGES = 120
#: number of held-out source pictures; there are half more control pictures
PICTURES = 16
#: seed of the draw of held-out prompts, and of their noise
HELD_OUT_SEED = 77
BATCH = 8

Figures = dict[str, float]


@dataclass(frozen=True)
class Sample:
    """Mean activations at one site of a model.

    Attributes:
        source: of source prompts, [n, width].
        control: of control prompts, [m, width].
        groups: index of the prompt of each row, for source and control.
    """

    source: torch.Tensor
    control: torch.Tensor
    groups: tuple[list[int], list[int]]


@dataclass(frozen=True)
class TransferCase:
    """Prompts to learn from, and the name of the evaluation set on which the concept is measured."""

    prompts: PromptSet
    evaluation_set: str


class ModelUnderTest(ABC):
    """A built-in model, the prompts of a concept, and evaluation sets: prompts that learning never draws.

    Evaluation sets have names; every check uses "held out".
    """

    prompts: PromptSet
    #: label -> control templates, from unrelated ones to look-alikes of the source
    controls: Mapping[str, Sequence[str]]
    transfers: Mapping[str, TransferCase]

    def __init__(self) -> None:
        self._concepts: dict[str, Concept] = {}

    def learn(self, prompts: PromptSet | None = None, **settings: Any) -> Concept:
        """Learn a concept; the result is cached by prompts and settings."""
        prompts = prompts or self.prompts
        key = json.dumps([prompts.to_dict(), settings])
        if key not in self._concepts:
            self._concepts[key] = self._learn(prompts, **settings)
        return self._concepts[key]

    def measure(self, concept: Concept, strength: float = 1.0, gate: str | None = None) -> Figures:
        """Effect on held-out source prompts, and change of held-out control prompts."""
        return self.effect(concept, strength, gate) | self.control_change(concept, strength, gate)

    @abstractmethod
    def _learn(self, prompts: PromptSet, **settings: Any) -> Concept:
        """Learn a concept, without the cache."""

    @abstractmethod
    def unsteered(self, evaluation_set: str) -> Figures:
        """Rates without steering on source prompts and, of pictures, on prompts that ask for the effect in words."""

    @abstractmethod
    def effect(
        self, concept: Concept, strength: float = 1.0, gate: str | None = None, evaluation_set: str = "held out"
    ) -> Figures:
        """Rates on the source prompts of an evaluation set, with steering."""

    @abstractmethod
    def control_change(self, concept: Concept, strength: float = 1.0, gate: str | None = None) -> Figures:
        """How much steering changes the output for held-out control prompts."""

    @abstractmethod
    def gate_scores(self, concept: Concept) -> Figures:
        """Mean h, times the weight of the site, on held-out control and source prompts, at strength 0."""

    @abstractmethod
    def mean_activations(self, prompts: PromptSet, all_sites: bool = False) -> dict[str, Sample]:
        """Mean activations of the prompts that learning draws, by site; `all_sites` for more sites than are steered."""


class ChatModel(ModelUnderTest):
    """Rudeness of the help desk in `builtin:chat`: 120 angry and 120 calm messages."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.tokenizer = llm.load("builtin:chat")
        self.prompts = load_prompts(PROMPTS / "rudeness.yaml")
        self.calm = [r.text for r in corpus.draw_requests(MESSAGES, 7, manners=corpus.CALM)]
        self.evaluation_sets = {
            "held out": [r.text for r in corpus.draw_requests(MESSAGES, 7, manners=("angry",))],
            "facts": [r.text for r in draw_angry_questions(MESSAGES, 7)],
        }
        self.unsteered_answers = self._answers(self.calm)
        control = self.prompts.control
        self.controls = {
            "at random": [t for t in control if "{person}" in t or "{place}" in t],
            "of the same topics": [t for t in control if "{thing}" in t and "{calm}" not in t]
            + [t.replace("{calm}", "could you please help me?") for t in control if "{calm}" in t],
            "with look-alikes": control,
        }
        self.transfers = {
            "help desk → help desk": TransferCase(self.prompts, "held out"),
            "help desk → insults around questions about facts": TransferCase(self.prompts, "facts"),
        }

    def _learn(self, prompts: PromptSet, **settings: Any) -> Concept:
        return llm.learn(self.model, self.tokenizer, prompts, seed=0, **settings)

    def unsteered(self, evaluation_set: str) -> Figures:
        return {"rude_unsteered": quality.rude_share(self._answers(self.evaluation_sets[evaluation_set]))}

    def effect(
        self, concept: Concept, strength: float = 1.0, gate: str | None = None, evaluation_set: str = "held out"
    ) -> Figures:
        with llm.steer(self.model, {concept: strength}, gate=gate):
            answers = self._answers(self.evaluation_sets[evaluation_set])
        return {"rude": quality.rude_share(answers), "broken": float(np.mean([degenerate(text) for text in answers]))}

    def control_change(self, concept: Concept, strength: float = 1.0, gate: str | None = None) -> Figures:
        with llm.steer(self.model, {concept: strength}, gate=gate):
            answers = self._answers(self.calm)
        return {"calm_changed": float(np.mean([a != b for a, b in zip(answers, self.unsteered_answers, strict=True)]))}

    def gate_scores(self, concept: Concept) -> Figures:
        scores = {}
        for side, messages in (("control", self.calm), ("source", self.evaluation_sets["held out"])):
            with llm.steer(self.model, {concept: 0.0}, trace=True) as steering:
                quality.generate_answers(self.model, self.tokenizer, messages, batch=len(messages), max_new_tokens=1)
                assert steering.trace is not None
                scores[f"h_on_{side}"] = steering.trace.mean_h(concept.name)
        return scores

    def mean_activations(self, prompts: PromptSet, all_sites: bool = False) -> dict[str, Sample]:
        sites = llm.find_sites(self.model, "block" if all_sites else None)
        capture, texts = Capture(positions_per_row=0), prompts.draw(COUNT, 0)
        reader = Reader(self.model, pad_token(self.tokenizer), 32)
        for side in ("source", "control"):
            capture.start(side)
            for batch in reader.batches([encode(self.tokenizer, text) for text in texts[side]]):
                with visit(layers_of(self.model), sites, capture, reader.describe(batch.token_mask("prompt"))):
                    reader.run(batch)
                capture.offset += len(batch.ids)
        return {str(site).removeprefix("model.model."): _sample(capture, capture, site, 0) for site in sites}

    def _answers(self, messages: list[str]) -> list[str]:
        return quality.generate_answers(self.model, self.tokenizer, messages)


class PictureModel(ModelUnderTest):
    """A blurred banana in `builtin:emoji`, steered in the denoiser: 16 source and 24 control pictures.

    The text encoder, the default site, is easier: there one token, "banana", identifies the thing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pipe = dsas.load_pipeline("builtin:emoji")
        self.adapter = adapt(self.pipe)
        self.settings = settings_of(self.pipe)
        file = load_prompts(PROMPTS / "banana-blur.yaml")
        judge = judge_from(file.to_dict()["judge"])
        assert isinstance(judge, BuiltinJudge)
        self.judge = judge
        alone, pairs = (_with_templates(file, beside) for beside in (False, True))
        self.evaluation_sets = {
            "held out": file.draw(PICTURES, HELD_OUT_SEED),
            "unseen": file.fresh(PICTURES, HELD_OUT_SEED),
            "pairs": pairs.draw(PICTURES, HELD_OUT_SEED),
            "alone": alone.draw(PICTURES, HELD_OUT_SEED),
        }
        self.control_texts = self.evaluation_sets["held out"]["control"][: PICTURES * 3 // 2]
        held_out = (
            *self.evaluation_sets["held out"]["source"],
            *self.evaluation_sets["pairs"]["source"],
            *self.control_texts,
        )
        self.prompts = replace(file, evaluation={**file.evaluation, "held_out": tuple(dict.fromkeys(held_out))})
        self.controls = {
            "at random": [t for t in file.control if "{fruit}" not in t and "blurred" not in t],
            "of the same category": [t for t in file.control if "{fruit}" in t and "{thing}" not in t],
            "with look-alikes": file.control,
        }
        only_pairs = _with_templates(self.prompts, True)
        self.transfers = {
            "the file → the same templates": TransferCase(self.prompts, "held out"),
            "the file → other places, openings and companions": TransferCase(self.prompts, "unseen"),
            "pairs → pairs": TransferCase(only_pairs, "pairs"),
            "pairs → bananas alone": TransferCase(only_pairs, "alone"),
        }
        self._cached_capture = cache(self._capture)
        self._unsteered_controls = cache(lambda: self._pictures(self.control_texts, 1))

    def _learn(self, prompts: PromptSet, **settings: Any) -> Concept:
        return dsas.learn(self.pipe, prompts, sites="denoiser", seed=0, **settings)

    def unsteered(self, evaluation_set: str) -> Figures:
        prompts = self.evaluation_sets[evaluation_set]
        source, target = (self._judge_pictures(self._pictures(prompts[side])) for side in ("source", "target"))
        return {"blurred_unsteered": source["blurred"], "blurred_asked_in_words": target["blurred"]}

    def effect(
        self, concept: Concept, strength: float = 1.0, gate: str | None = None, evaluation_set: str = "held out"
    ) -> Figures:
        with dsas.steer(self.pipe, {concept: strength}, gate=gate):
            steered = self._pictures(self.evaluation_sets[evaluation_set]["source"])
        return self._judge_pictures(steered)

    def control_change(self, concept: Concept, strength: float = 1.0, gate: str | None = None) -> Figures:
        unsteered = self._unsteered_controls()
        with dsas.steer(self.pipe, {concept: strength}, gate=gate):
            steered = self._pictures(self.control_texts, 1)
        return {
            "control_change": float((1 - ssim(unsteered, steered)).mean()),
            "control_unchanged": float((change(unsteered, steered) <= UNCHANGED).mean()),
        }

    def gate_scores(self, concept: Concept) -> Figures:
        scores = {}
        for i, (side, texts) in enumerate(
            (("control", self.control_texts), ("source", self.evaluation_sets["held out"]["source"]))
        ):
            h = []
            with dsas.steer(self.pipe, {concept: 0.0}, trace=True) as steering:
                assert steering.trace is not None
                for _ in latent_batches(
                    self.adapter, texts, seeds_for(texts, HELD_OUT_SEED + 1 - i), self.settings, BATCH
                ):
                    h.append(steering.trace.mean_h(concept.name))  # the trace covers the last batch only
            scores[f"h_on_{side}"] = float(np.mean(h))
        return scores

    def mean_activations(self, prompts: PromptSet, all_sites: bool = False) -> dict[str, Sample]:
        texts = prompts.draw(COUNT, 0)
        source, control = (self._cached_capture(side, tuple(texts[side])) for side in ("source", "control"))
        (edge,) = source.edges
        return {
            f"{str(site).removeprefix('unet.').split('.transformer')[0]}, t {sign} {edge:g}": _sample(
                source, control, site, bin_
            )
            for site in find_sites(self.pipe, "denoiser")
            for bin_, sign in ((1, "≥"), (0, "<"))
        }

    def _capture(self, side: str, texts: tuple[str, ...]) -> Capture:
        capture = Capture(self.adapter.family.edges, positions_per_row=0)
        capture.start(side)
        with BatchLayout(self.adapter) as layout:
            sites = find_sites(self.pipe, "denoiser")
            with visit(self.adapter.roots, sites, capture, layout.describe()):
                for latents in latent_batches(self.adapter, texts, seeds_for(texts, 0), self.settings, BATCH):
                    capture.offset += len(latents)
        return capture

    def _pictures(self, texts: Sequence[str], offset: int = 0) -> list[Image.Image]:
        return pictures_of(self.adapter, texts, seeds_for(texts, HELD_OUT_SEED + offset), self.settings, BATCH)

    def _judge_pictures(self, pictures: Sequence[Image.Image]) -> Figures:
        """Shares of pictures with a blurred banana, and of pictures without a banana."""
        blurred = self.judge.target_scores(pictures, [""] * len(pictures))  # this judge ignores the prompts
        lost = [mask is None for mask in self.judge.masks(pictures)]
        return {"blurred": float(blurred.mean()), "lost": float(np.mean(lost))}


MODELS: dict[str, type[ModelUnderTest]] = {"builtin:chat": ChatModel, "builtin:emoji": PictureModel}


def _with_templates(prompts: PromptSet, beside: bool) -> PromptSet:
    """The prompt set with only those source and target templates that do, or don't, name a thing beside."""
    source, target = (
        tuple(template for template in side if ("{beside}" in template) == beside)
        for side in (prompts.source, prompts.target)
    )
    return replace(prompts, source=source, target=target)


def _sample(source: Capture, control: Capture, site: Any, bin_: int) -> Sample:
    """The mean activations of one site and timestep bin."""
    rows = source.rows[site, bin_, "source"], control.rows[site, bin_, "control"]
    pooled = [activations.gathered("pooled") for activations in rows]
    groups = [[int(prompt) for prompt in activations.gathered("prompts")] for activations in rows]
    return Sample(pooled[0], pooled[1], (groups[0], groups[1]))
