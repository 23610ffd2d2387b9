"""Judges of pictures by a model of transformers: a CLIP or an image classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dsas_core.errors import DSASError, UnavailableError
from dsas_core.model.loading import load_pretrained

from .image_models import Clip, chunks
from .picture_judge import CheckedJudge

#: the most labels listed in an error
LISTED = 20


class ClipJudge(CheckedJudge):
    """The probability of one caption against another by a CLIP: softmax over its two logits (zero-shot).

    Args:
        model: a folder or Hub name, or a loaded CLIP.
        wanted: a caption of what a picture should show: "a photo of a blurred banana".
        other: a caption of what it could show instead: "a photo of a sharp banana".
        device: "auto" takes a GPU if there is one.
        options: further arguments of `from_pretrained` (revision, token, …).

    Raises:
        DSASError: an empty caption, or twice the same.
        UnavailableError: no such model, or no CLIP.
    """

    def __init__(
        self, model: str | Path | Clip, wanted: str, other: str, *, device: str = "auto", **options: Any
    ) -> None:
        if not wanted.strip() or not other.strip() or wanted.strip() == other.strip():
            raise DSASError(f"wanted and other are to be two different texts, found {wanted!r} and {other!r}")
        self.clip = model if isinstance(model, Clip) else Clip(model, device=device, **options)
        if not hasattr(self.clip.model, "logit_scale"):
            raise UnavailableError(f"{self.clip.name} is no CLIP: it has no scale for its logits")
        self.name = f"clip {self.clip.name}"
        self._texts = self.clip.of_texts([wanted, other])

    def _score(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        if not len(pictures):
            return np.zeros(0)
        scale = float(self.clip.model.logit_scale.detach().exp())
        logits = scale * self.clip.of_pictures(pictures) @ self._texts.T
        return logits.softmax(-1)[:, 0].double().numpy()


class ClassifierJudge(CheckedJudge):
    """The probability of one label, by an image classifier of transformers.

    Softmax over its labels; sigmoid if its config says multi-label, or if it has one label only.

    Args:
        model: a folder or Hub name.
        label: its name, ignoring case, or its number.
        device: "auto" takes a GPU if there is one.
        options: further arguments of `from_pretrained` (revision, token, …).

    Raises:
        DSASError: no such label.
        UnavailableError: no such model, or no image classifier.
    """

    def __init__(self, model: str | Path, label: str | int, *, device: str = "auto", **options: Any) -> None:
        self.name = f"classifier {model}"
        self.model, self.processor, missing = load_pretrained(
            model, "AutoModelForImageClassification", "AutoImageProcessor", device, **options
        )
        if missing:
            raise UnavailableError(f"{model} is no image classifier: it lacks {missing[0]}, which would be random")
        config = self.model.config
        self.labels = {int(number): str(name) for number, name in config.id2label.items()}
        self.label = _find_label(self.labels, label, str(model))
        several = getattr(config, "problem_type", None) == "multi_label_classification"
        self.function = "sigmoid" if several or len(self.labels) == 1 else "softmax"

    @torch.inference_mode()
    def _score(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        scores = [np.zeros(0)]
        for chunk in chunks(pictures):
            inputs = self.processor(images=chunk, return_tensors="pt").to(self.model.device)
            logits = self.model(pixel_values=inputs["pixel_values"]).logits.double()
            probabilities = logits.softmax(-1) if self.function == "softmax" else logits.sigmoid()
            scores.append(probabilities[:, self.label].cpu().numpy())
        return np.concatenate(scores)


def _find_label(labels: Mapping[int, str], wanted: str | int, model: str) -> int:
    """The number of a label."""
    numbers = [number for number, name in labels.items() if name.strip().lower() == str(wanted).strip().lower()]
    if not numbers and str(wanted).isdecimal() and int(wanted) in labels:
        return int(wanted)
    if len(numbers) > 1:
        raise DSASError(
            f"{model} has several labels {wanted!r}: give the number, one of {', '.join(map(str, numbers))}"
        )
    if not numbers:
        known = ", ".join(f"{number}: {name}" for number, name in list(labels.items())[:LISTED])
        more = f", … ({len(labels)} in all)" if len(labels) > LISTED else ""
        raise DSASError(f"{model} has no label {wanted!r}; it has {known}{more}")
    return numbers[0]
