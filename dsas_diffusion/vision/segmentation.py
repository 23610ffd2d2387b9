"""Masks of a thing in pictures, by a segmentation model or a function.

`masks_from` builds a `Masks` from plain data, such as the `masks` of a prompt file. The built-in judge has masks of its
own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dsas_core.errors import DSASError, UnavailableError
from dsas_core.learning.prompts.prompt_set import PromptSet
from dsas_core.model.loading import catch_load_errors, device_of, hub_options

from .builtin_judge import BuiltinJudge
from .image_models import BATCH, chunks
from .judges import judge_from
from .model_judges import LISTED
from .picture_judge import import_function

#: pictures -> the mask of each, bool [height, width], or None if it does not show the thing
Masks = Callable[[Sequence[Image.Image]], list[np.ndarray | None]]


def masks_from(spec: Mapping[str, Any], *, device: str = "auto") -> Masks:
    """A segmenter from plain data, as a YAML file holds it.

    ```yaml
    {segmentation: {model: user/name, labels: [banana]}}
    ```

    A file, which may come from anybody, cannot name code to run; for a function of yours take `CallableMasks`.

    Args:
        spec: the kind of segmenter and its settings.
        device: of the model; "auto" takes a GPU if there is one.

    Raises:
        DSASError: other data, or labels that the model does not know.
        UnavailableError: no such model.
    """
    given = spec.get("segmentation") if isinstance(spec, Mapping) and len(spec) == 1 else None
    if not isinstance(given, Mapping) or set(given) != {"model", "labels"}:
        raise DSASError(f"masks {spec!r}: expected segmentation: {{model: …, labels: […]}}")
    return SegmentationMasks(given["model"], given["labels"], device=device)


def segmenter_for(prompts: PromptSet, function: str | None = None) -> Masks | None:
    """The segmenter for the thing of a prompt file, or None.

    Args:
        prompts: its `masks` are taken, or else its built-in judge.
        function: "package.module:function", which takes precedence.
    """
    if function is not None:
        return CallableMasks(function)
    if prompts.masks:
        return masks_from(prompts.masks)
    judges = [judge_from(spec) for spec in prompts.judges]
    return next((judge.masks for judge in judges if isinstance(judge, BuiltinJudge)), None)


class SegmentationMasks:
    """The union of the segments with given labels, by a segmentation model of transformers.

    Args:
        model: a folder or Hub name; any that transformers' "image-segmentation" pipeline takes.
        labels: their names, ignoring case.
        device: "auto" takes a GPU if there is one.
        options: further arguments of `from_pretrained` (revision, token, …).

    Raises:
        DSASError: a label that the model does not know.
        UnavailableError: no such model.
    """

    def __init__(self, model: str | Path, labels: Sequence[str], *, device: str = "auto", **options: Any) -> None:
        from transformers import pipeline

        if not isinstance(labels, list | tuple) or not labels or not all(isinstance(label, str) for label in labels):
            raise DSASError(f"masks: labels are to be a list of names, found {labels!r}")
        settings = {"device": device_of(device), **hub_options(options)}
        with catch_load_errors(model, UnavailableError):
            self._pipeline = pipeline("image-segmentation", model=str(model), **settings)
        self.name = f"segmentation {model}"
        known = [str(name).lower() for name in (self._pipeline.model.config.id2label or {}).values()]
        self._labels = {label.strip().lower() for label in labels}
        if unknown := sorted(self._labels - set(known)):
            more = ", …" if len(known) > LISTED else ""
            raise DSASError(f"{model} has no label {unknown[0]!r}; it has {', '.join(known[:LISTED])}{more}")

    def __call__(self, pictures: Sequence[Image.Image]) -> list[np.ndarray | None]:
        return [
            self._join(segments) for chunk in chunks(pictures) for segments in self._pipeline(chunk, batch_size=BATCH)
        ]

    def _join(self, segments: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
        masks = [np.asarray(segment["mask"]) > 0 for segment in segments if segment["label"].lower() in self._labels]
        joined = np.logical_or.reduce(masks) if masks else None
        return joined if joined is not None and joined.any() else None


class CallableMasks:
    """Masks by a function: pictures -> a mask [height, width] of each, or None.

    Args:
        function: the function, or "package.module:function" to import. Its exceptions are passed on.

    Raises:
        DSASError: no such function.

    Example:
        >>> masks = CallableMasks(lambda pictures: [np.asarray(picture.convert("L")) > 127 for picture in pictures])
        >>> [mask] = masks([Image.new("RGB", (2, 1), "white")])
        >>> mask.tolist()
        [[True, True]]
    """

    def __init__(self, function: str | Callable[[Sequence[Image.Image]], Any]) -> None:
        self.function = import_function(function, "masks") if isinstance(function, str) else function
        self.name = f"callable {function if isinstance(function, str) else getattr(function, '__qualname__', '')}"

    def __call__(self, pictures: Sequence[Image.Image]) -> list[np.ndarray | None]:
        masks = self.function(list(pictures))
        if not isinstance(masks, Sequence | np.ndarray) or len(masks) != len(pictures):
            many = f"{len(masks)} masks" if hasattr(masks, "__len__") else type(masks).__name__
            raise DSASError(f"{self.name}: {many} for {len(pictures)} pictures: expected a list, one mask or None each")
        return [
            None if mask is None else self._check(mask, picture) for mask, picture in zip(masks, pictures, strict=True)
        ]

    def _check(self, mask: Any, picture: Image.Image) -> np.ndarray | None:
        """A mask as bool [height, width]; None if it is empty."""
        try:
            array = np.asarray(mask, dtype=np.float64)
        except (TypeError, ValueError):
            raise DSASError(f"{self.name}: expected masks of numbers, found {type(mask).__name__}") from None
        if array.shape != picture.size[::-1]:
            size = f"{picture.height} x {picture.width}"
            raise DSASError(f"{self.name}: a mask of shape {list(array.shape)} for a picture of {size}")
        wrong = array[(array != 0) & (array != array.max())]
        if len(wrong):
            raise DSASError(f"{self.name}: a mask holds {wrong[0]:g}: expected 0 and one other number; threshold it")
        return array > 0 if array.any() else None
