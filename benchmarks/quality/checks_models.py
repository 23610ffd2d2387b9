"""What the checks are made on: the built-in language model (`Desk`) and the built-in text-to-image model (`Studio`)."""

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
from dsas_core.learning.prompts.prompt_set import PromptSet, load_prompts
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

#: source prompts that learning and `rows` draw; controls are twice as many
COUNT = 48
MESSAGES = 120
#: held-out pictures: this many of source prompts, and of control prompts half more
PICTURES = 16
#: of the draw of held-out prompts, and of their noise
HELD_OUT = 77
BATCH = 8

Figures = dict[str, float]


@dataclass(frozen=True)
class Sample:
    """Mean activations at one place of a model, [n, width] of source and of control, and the prompt of each row."""

    source: torch.Tensor
    control: torch.Tensor
    groups: tuple[list[int], list[int]]


@dataclass(frozen=True)
class Transfer:
    """A set of prompts to learn from, and the examination that the concept is to pass."""

    prompts: PromptSet
    examination: str


class Bench(ABC):
    """A built-in model, the prompts of a concept, and examinations: prompts that learning never draws.

    Examinations go by name; "held out" is the one that every check uses.
    """

    prompts: PromptSet
    #: label -> control templates, from those with nothing in common with the source to look-alikes
    controls: Mapping[str, Sequence[str]]
    transfers: Mapping[str, Transfer]

    def __init__(self) -> None:
        self._concepts: dict[str, Concept] = {}

    def learn(self, prompts: PromptSet | None = None, **settings: Any) -> Concept:
        """A concept; the same prompts and settings are learned once."""
        prompts = prompts or self.prompts
        key = json.dumps([prompts.to_dict(), settings])
        if key not in self._concepts:
            self._concepts[key] = self.learned(prompts, **settings)
        return self._concepts[key]

    def measured(self, concept: Concept, strength: float = 1.0, gate: str | None = None) -> Figures:
        """What a concept does to held-out source and control prompts."""
        return self.shows(concept, strength, gate) | self.keeps(concept, strength, gate)

    @abstractmethod
    def learned(self, prompts: PromptSet, **settings: Any) -> Concept:
        """A concept, learned now."""

    @abstractmethod
    def unsteered(self, examination: str) -> Figures:
        """What the model shows of source prompts by itself, and where it can be asked in words for what is wanted."""

    @abstractmethod
    def shows(
        self, concept: Concept, strength: float = 1.0, gate: str | None = None, examination: str = "held out"
    ) -> Figures:
        """What a concept does to the source prompts of an examination."""

    @abstractmethod
    def keeps(self, concept: Concept, strength: float = 1.0, gate: str | None = None) -> Figures:
        """What a concept does to held-out control prompts."""

    @abstractmethod
    def fires(self, concept: Concept) -> Figures:
        """Mean h, times the weight of the site, over held-out control and source prompts, without steering."""

    @abstractmethod
    def rows(self, prompts: PromptSet, every: bool = False) -> dict[str, Sample]:
        """Mean activations of the prompts that learning draws, by place; `every` for more places than are steered."""


class Desk(Bench):
    """Rudeness of the help desk in `builtin:chat`: 120 angry and 120 calm messages."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.tokenizer = llm.load("builtin:chat")
        self.prompts = load_prompts(PROMPTS / "rudeness.yaml")
        self.calm = [r.text for r in corpus.draw_requests(MESSAGES, 7, manners=corpus.CALM)]
        self.examinations = {
            "held out": [r.text for r in corpus.draw_requests(MESSAGES, 7, manners=("angry",))],
            "facts": [r.text for r in draw_angry_questions(MESSAGES, 7)],
        }
        self.plain = self._answers(self.calm)
        curated = self.prompts.control
        self.controls = {
            "at random": [t for t in curated if "{person}" in t or "{place}" in t],
            "of the same topics": [t for t in curated if "{thing}" in t and "{calm}" not in t]
            + [t.replace("{calm}", "could you please help me?") for t in curated if "{calm}" in t],
            "with look-alikes": curated,
        }
        self.transfers = {
            "help desk → help desk": Transfer(self.prompts, "held out"),
            "help desk → insults around questions about facts": Transfer(self.prompts, "facts"),
        }

    def learned(self, prompts: PromptSet, **settings: Any) -> Concept:
        return llm.learn(self.model, self.tokenizer, prompts, seed=0, **settings)

    def unsteered(self, examination: str) -> Figures:
        return {"rude_unsteered": quality.rude_share(self._answers(self.examinations[examination]))}

    def shows(
        self, concept: Concept, strength: float = 1.0, gate: str | None = None, examination: str = "held out"
    ) -> Figures:
        with llm.steer(self.model, {concept: strength}, gate=gate):
            said = self._answers(self.examinations[examination])
        return {"rude": quality.rude_share(said), "broken": float(np.mean([degenerate(text) for text in said]))}

    def keeps(self, concept: Concept, strength: float = 1.0, gate: str | None = None) -> Figures:
        with llm.steer(self.model, {concept: strength}, gate=gate):
            kept = self._answers(self.calm)
        return {"calm_changed": float(np.mean([a != b for a, b in zip(kept, self.plain, strict=True)]))}

    def fires(self, concept: Concept) -> Figures:
        found = {}
        for side, messages in (("control", self.calm), ("source", self.examinations["held out"])):
            with llm.steer(self.model, {concept: 0.0}, trace=True) as steering:
                quality.answers(self.model, self.tokenizer, messages, batch=len(messages), max_new_tokens=1)
                assert steering.trace is not None
                found[f"h_on_{side}"] = steering.trace.mean_h(concept.name)
        return found

    def rows(self, prompts: PromptSet, every: bool = False) -> dict[str, Sample]:
        sites = llm.find_sites(self.model, "block" if every else None)
        capture, drawn = Capture(positions_per_row=0), prompts.draw(COUNT, 0)
        reader = Reader(self.model, pad_token(self.tokenizer), 32)
        for side in ("source", "control"):
            capture.start(side)
            for piece in reader.batches([encode(self.tokenizer, text) for text in drawn[side]]):
                with visit(layers_of(self.model), sites, capture, reader.describe(piece.token_mask("prompt"))):
                    reader.run(piece)
                capture.offset += len(piece.ids)
        return {str(site).removeprefix("model.model."): _sample(capture, capture, site, 0) for site in sites}

    def _answers(self, messages: list[str]) -> list[str]:
        return quality.answers(self.model, self.tokenizer, messages)


class Studio(Bench):
    """A blurred banana in `builtin:emoji`, steered in the denoiser: 16 source and 24 control pictures.

    In the text encoder, where steering goes by default, everything is easier: there the word "banana" is told apart.
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
        self.examinations = {
            "held out": file.draw(PICTURES, HELD_OUT),
            "unseen": file.fresh(PICTURES, HELD_OUT),
            "pairs": pairs.draw(PICTURES, HELD_OUT),
            "alone": alone.draw(PICTURES, HELD_OUT),
        }
        self.others = self.examinations["held out"]["control"][: PICTURES * 3 // 2]
        parts = (*self.examinations["held out"]["source"], *self.examinations["pairs"]["source"], *self.others)
        self.prompts = replace(file, evaluation={**file.evaluation, "held_out": tuple(dict.fromkeys(parts))})
        self.controls = {
            "at random": [t for t in file.control if "{fruit}" not in t and "blurred" not in t],
            "of the same category": [t for t in file.control if "{fruit}" in t and "{thing}" not in t],
            "with look-alikes": file.control,
        }
        only_pairs = _with_templates(self.prompts, True)
        self.transfers = {
            "the file → the same templates": Transfer(self.prompts, "held out"),
            "the file → other places, openings and companions": Transfer(self.prompts, "unseen"),
            "pairs → pairs": Transfer(only_pairs, "pairs"),
            "pairs → bananas alone": Transfer(only_pairs, "alone"),
        }
        self._captured = cache(self._capture)
        self._plain = cache(lambda: self._pictures(self.others, 1))

    def learned(self, prompts: PromptSet, **settings: Any) -> Concept:
        return dsas.learn(self.pipe, prompts, sites="denoiser", seed=0, **settings)

    def unsteered(self, examination: str) -> Figures:
        asked = self.examinations[examination]
        made = [self._judged(self._pictures(asked[side])) for side in ("source", "target")]
        return {"blurred_unsteered": made[0]["blurred"], "blurred_asked_in_words": made[1]["blurred"]}

    def shows(
        self, concept: Concept, strength: float = 1.0, gate: str | None = None, examination: str = "held out"
    ) -> Figures:
        with dsas.steer(self.pipe, {concept: strength}, gate=gate):
            made = self._pictures(self.examinations[examination]["source"])
        return self._judged(made)

    def keeps(self, concept: Concept, strength: float = 1.0, gate: str | None = None) -> Figures:
        plain = self._plain()
        with dsas.steer(self.pipe, {concept: strength}, gate=gate):
            made = self._pictures(self.others, 1)
        return {
            "control_change": float((1 - ssim(plain, made)).mean()),
            "control_unchanged": float((change(plain, made) <= UNCHANGED).mean()),
        }

    def fires(self, concept: Concept) -> Figures:
        found = {}
        for place, (side, texts) in enumerate(
            (("control", self.others), ("source", self.examinations["held out"]["source"]))
        ):
            h = []
            with dsas.steer(self.pipe, {concept: 0.0}, trace=True) as steering:
                assert steering.trace is not None
                for _ in latent_batches(
                    self.adapter, texts, seeds_for(texts, HELD_OUT + 1 - place), self.settings, BATCH
                ):
                    h.append(steering.trace.mean_h(concept.name))  # the trace is of the last batch
            found[f"h_on_{side}"] = float(np.mean(h))
        return found

    def rows(self, prompts: PromptSet, every: bool = False) -> dict[str, Sample]:
        drawn = prompts.draw(COUNT, 0)
        source, control = (self._captured(side, tuple(drawn[side])) for side in ("source", "control"))
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
        with BatchLayout(self.adapter) as rows:
            sites = find_sites(self.pipe, "denoiser")
            with visit(self.adapter.roots, sites, capture, rows.describe()):
                for made in latent_batches(self.adapter, texts, seeds_for(texts, 0), self.settings, BATCH):
                    capture.offset += len(made)
        return capture

    def _pictures(self, texts: Sequence[str], place: int = 0) -> list[Image.Image]:
        return pictures_of(self.adapter, texts, seeds_for(texts, HELD_OUT + place), self.settings, BATCH)

    def _judged(self, pictures: Sequence[Image.Image]) -> Figures:
        """Shares of pictures with a blurred banana, and of those without any."""
        shown = self.judge.target_scores(pictures, [""] * len(pictures))  # the judge looks at the pictures alone
        lost = [mask is None for mask in self.judge.masks(pictures)]
        return {"blurred": float(shown.mean()), "lost": float(np.mean(lost))}


BENCHES: dict[str, type[Bench]] = {"builtin:chat": Desk, "builtin:emoji": Studio}


def _with_templates(prompts: PromptSet, beside: bool) -> PromptSet:
    """The source and target templates with another thing beside, or those without."""
    source, target = (
        tuple(template for template in side if ("{beside}" in template) == beside)
        for side in (prompts.source, prompts.target)
    )
    return replace(prompts, source=source, target=target)


def _sample(source: Capture, control: Capture, site: Any, bin_: int) -> Sample:
    """What two captures hold of one site and timestep bin."""
    sides = source.rows[site, bin_, "source"], control.rows[site, bin_, "control"]
    pooled = [rows.gathered("pooled") for rows in sides]
    groups = [[int(prompt) for prompt in rows.gathered("prompts")] for rows in sides]
    return Sample(pooled[0], pooled[1], (groups[0], groups[1]))
