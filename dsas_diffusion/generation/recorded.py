"""What a call of a pipeline has left, and whether another call is the same one: arguments and random numbers."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..pipelines.adapter import PipelineAdapter

#: tensors of a pipeline by name
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Recorded:
    """What an unsteered pass left.

    Args:
        steps: tensors of the pipeline after each step.
        masks: what tells a concept apart -> where each picture shows it.
        size: (width, height) of the pictures.
        prompts: of each picture, the number of its prompt.
        call: what was called, as `describe_call` tells it.
        start: where its random numbers started.
        end: where they ended.
    """

    steps: Sequence[Tensors]
    masks: Mapping[Any, Sequence[np.ndarray]]
    size: tuple[int, int]
    prompts: Sequence[int]
    call: Mapping[str, Any]
    start: RandomStates
    end: RandomStates

    def differs_from(self, call: Mapping[str, Any], start: RandomStates) -> str | None:
        """What another call has that this one had not, in words; None where both are the same."""
        for name in {**call, **self.call}:
            if call.get(name) != self.call.get(name):
                return name
        return None if self.start.has_same_generators(start) else "generator, or the same drawn from since"


def describe_call(adapter: PipelineAdapter, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a call of a pipeline draws, in a form that `==` compares; defaults are as if they were given.

    Args:
        adapter: of the pipeline.
        arguments: of the call, by name.

    Returns:
        The pipeline, its scheduler, and the arguments by name: texts and numbers as they are, and digests of tensors,
        arrays and pictures. What cannot be compared is left out: generators, of which `RandomStates` knows, callbacks.

    Example:
        >>> from dsas_diffusion import load_pipeline
        >>> adapter = PipelineAdapter(load_pipeline("builtin:emoji", device="cpu"))
        >>> ones, zeros = ({"prompt": "a dog", "latents": make(1, 4, 8, 8)} for make in (torch.ones, torch.zeros))
        >>> a, b, c = (describe_call(adapter, given) for given in (ones, zeros, {**ones, "height": None}))
        >>> [name for name in a if a[name] != b[name]], a == c
        (['latents'], True)
    """
    scheduler = adapter.pipe.scheduler
    config = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    parts = {"scheduler": repr((type(scheduler).__qualname__, sorted(config.items(), key=str)))}
    defaults = {name: parameter.default for name, parameter in adapter.call_parameters.items()}
    described: dict[str, Any] = {"pipeline": weakref.ref(adapter.pipe)}
    for name, value in {**parts, **defaults, **arguments}.items():
        with suppress(TypeError):
            described[name] = _as_plain(value)
    return described


def _as_plain(value: Any) -> Any:
    """A value in a form that `==` compares; TypeError where there is none."""
    if isinstance(value, str | int | float | type(None)):
        return value
    if isinstance(value, list | tuple):
        return [_as_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _as_plain(item) for key, item in value.items()}
    if isinstance(value, torch.Tensor):
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return "tensor", str(value.dtype), tuple(value.shape), _digest(content)
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind != "O":
        return "array", str(value.dtype), value.shape, _digest(np.ascontiguousarray(value).tobytes())
    if isinstance(value, Image.Image):
        return "picture", value.mode, value.size, value.getpalette(), _digest(value.tobytes())
    raise TypeError(f"{type(value).__name__} cannot be compared")


def _digest(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()


class RandomStates:
    """Where random numbers stand that a call draws: its generators', and torch's own, used where there is none.

    Args:
        arguments: of the call.
        device: that the pipeline runs on; the states of other GPUs are left alone.

    Example:
        >>> generator = torch.Generator().manual_seed(3)
        >>> states = RandomStates([generator], torch.device("cpu"))
        >>> drawn = torch.rand(2, generator=generator)
        >>> states.restore()
        >>> torch.equal(torch.rand(2, generator=generator), drawn)
        True
    """

    def __init__(self, arguments: Iterable[Any], device: torch.device) -> None:
        listed = [item for value in arguments for item in (value if isinstance(value, list | tuple) else [value])]
        self.generators = [item for item in listed if isinstance(item, torch.Generator)]
        self._device = device
        self._given = [generator.get_state() for generator in self.generators]
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        self._mps = torch.mps.get_rng_state() if device.type == "mps" else None

    def has_same_generators(self, other: RandomStates) -> bool:
        """Whether the generators of both stood at the same place."""
        pairs = zip(self._given, other._given, strict=False)
        return len(self._given) == len(other._given) and all(torch.equal(own, its) for own, its in pairs)

    def restore(self, generators: Sequence[torch.Generator] | None = None, *, own: bool = True) -> None:
        """Put all of them back.

        Args:
            generators: those of another call, which are to stand where these did, in their order; None for the same.
            own: whether torch's own go back, too.
        """
        for generator, state in zip(self.generators if generators is None else generators, self._given, strict=True):
            generator.set_state(state)
        if own:
            self.restore_own()

    def restore_own(self) -> None:
        """Put torch's own back."""
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)
        if self._mps is not None:
            torch.mps.set_rng_state(self._mps)
