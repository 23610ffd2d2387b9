"""Pictures of which only the concept changes: `PipelineSteering.generate(…, preserve=…)`.

The pipeline is called twice with the same arguments and random numbers. The first pass is muted: it draws the unsteered
picture, leaves its latents after every step, and the concepts' probes tell where they are. In the second pass latents
outside that mask become the unsteered ones after every step, and so do pixels at the end. What the first pass left can
be used again by calls that differ in strengths alone.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from dsas_core.concept.concept import Concept
from dsas_core.concept.data import ConceptData
from dsas_core.errors import DSASError, UnsupportedError
from dsas_core.steering.steering import Steering

from ..generation.pictures import size_of
from ..generation.recorded import RandomStates, Recorded, Tensors, describe_call
from ..pipelines.adapter import PipelineAdapter
from ..pipelines.batch_layout import BatchLayout
from .blending import compose, count_bytes, feather, fit_masks, latents_mask, read_masks
from .concept_masks import MaskReader, MaskRule

#: the tensors of a pipeline's state that pictures are made of; some decode the second one
STATE = ("latents", "denoised")
CALLBACK, INPUTS = "callback_on_step_end", "callback_on_step_end_tensor_inputs"


@dataclass(frozen=True, eq=False)
class Generation:
    """What one `generate` drew.

    Args:
        images: as the pipeline returns them, a list of PIL pictures unless it was asked for something else.
        unsteered: the same without steering, where it was drawn; else None.
        masks: float32 [height, width] in [0, 1] for each picture: 1 where it was steered, and where pixels are composed
            between 0 and 1 at its feathered edge; None where nothing was to be preserved.
        kept_bytes: memory that the latents of the unsteered pass take, as long as `recorded` is held.
        recorded: what the unsteered pass left, for another `generate(…, unsteered=…)`.
    """

    images: Any
    unsteered: Any = None
    masks: list[np.ndarray] | None = None
    kept_bytes: int = 0
    recorded: Recorded | None = field(default=None, repr=False)

    @property
    def is_steered(self) -> bool:
        """Whether a steered pass was run: not where no picture shows the concept, or strengths are 0."""
        return self.masks is None or any(mask.any() for mask in self.masks)

    def looked_for(self, concepts: Iterable[Concept]) -> bool:
        """Whether all of these concepts, by their probes, were looked for in the unsteered pass."""
        return self.recorded is not None and all(_key_of(concept) in self.recorded.masks for concept in concepts)


def can_preserve(adapter: PipelineAdapter) -> bool:
    """Whether a pipeline gives its latents to a callback after each step.

    Example:
        >>> from dsas_diffusion import load_pipeline
        >>> can_preserve(PipelineAdapter(load_pipeline("builtin:emoji", device="cpu")))
        True
    """
    return CALLBACK in adapter.call_parameters and STATE[0] in _callback_inputs(adapter)


def generate_preserving(
    steering: Steering,
    layout: BatchLayout,
    concepts: Sequence[Concept],
    preserve: Any,
    base: Generation | None,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Generation:
    """See `PipelineSteering.generate`.

    Args:
        steering: attached to the pipeline.
        layout: of its batches.
        concepts: those that steer.
        preserve: True, "latents", or masks.
        base: an earlier generation, whose unsteered pass is used again; None to draw it.
        args: of the pipeline.
        kwargs: of the pipeline.
    """
    latents_only = isinstance(preserve, str) and preserve == "latents"
    given = None if preserve is True or latents_only else read_masks(preserve)
    passes = _Passes(layout.adapter, args, kwargs, composed=not latents_only)
    readers = {} if given is not None else {concept.name: MaskReader(layout, concept) for concept in concepts}
    on = float(steering.enabled)
    strengths = {concept.name: on * steering.strengths.values_of(concept.name) for concept in concepts}
    blind = [name for name, reader in readers.items() if not reader.localises]
    if unseen := [name for name in blind if strengths[name].any()]:
        _warn_unlocalised(unseen)
        return Generation(passes.draw())
    keys = {concept.name: _key_of(concept) for concept in concepts if concept.name in readers}
    if base is None or (blind and passes.calls_back):  # which may raise the strength of what has no place
        with ExitStack() as reading:
            _attach(readers.values(), reading)
            wanted = reading.enter_context(steering.muted())
            unsteered = passes.draw(passes.record)
        if unseen := [name for name in blind if wanted[name]]:  # a callback has moved a strength that was 0
            _warn_unlocalised(unseen)
            return Generation(passes.draw_again(), unsteered)
        _check_unsteered(layout, concepts)
        recorded = passes.recorded(unsteered, layout.request.images_per_prompt, readers, keys)
    else:
        unsteered, recorded = base.unsteered, passes.use(base.recorded, keys)
        everyone = set(recorded.prompts) if passes.calls_back else None  # a callback may raise any strength
        wanted = {name: everyone or _steered_prompts(it, recorded.prompts) for name, it in strengths.items()}
    masks = [np.zeros(recorded.size[::-1], np.float32) for _ in recorded.prompts]
    for name, steered in wanted.items():
        of_concept = recorded.masks[keys[name]] if given is None else fit_masks(given, recorded.size, len(masks))
        masks = [
            np.maximum(mask, own) if prompt in steered else mask
            for mask, own, prompt in zip(masks, of_concept, recorded.prompts, strict=True)
        ]
    if any(mask.any() for mask in masks):
        images = passes.draw_blended(recorded.steps, unsteered, masks)
    else:
        images = passes.draw_nothing(recorded, unsteered)
    kept_bytes = count_bytes(tensor for step in recorded.steps for tensor in step.values())
    return Generation(images, unsteered, passes.as_composed(masks), kept_bytes, recorded)


class _Passes:
    """Calls of a pipeline with the same arguments, that start from the same random numbers.

    Args:
        adapter: of the pipeline.
        args: of the pipeline.
        kwargs: of the pipeline.
        composed: whether pixels are composed in the end.

    Raises:
        UnsupportedError: a pipeline whose latents cannot be seen after its steps, or an output that is no picture.
    """

    def __init__(
        self, adapter: PipelineAdapter, args: tuple[Any, ...], kwargs: Mapping[str, Any], composed: bool
    ) -> None:
        self.adapter, self._composed = adapter, composed
        if not can_preserve(adapter):
            raise UnsupportedError(_no_callback(adapter, "gives no latents after its steps"))
        self._arguments = _by_name(adapter, args, kwargs)
        output = self._argument("output_type")
        allowed = ("pil",) if composed else ("pil", "latent")
        if output not in allowed:
            raise UnsupportedError(
                f"output_type {output!r} with preserve: expected {' or '.join(map(repr, allowed))}"
                + (" (or 'latent' with preserve='latents')" if composed else "")
            )
        self._call = describe_call(adapter, self._arguments)
        self._start = self._own = self._random()
        self._steps: list[Tensors] = []  # of the unsteered pass

    @property
    def calls_back(self) -> bool:
        """Whether the user has a callback."""
        return self._arguments.get(CALLBACK) is not None

    def _random(self) -> RandomStates:
        return RandomStates(self._arguments.values(), torch.device(self.adapter.pipe._execution_device))

    def draw(self, change: Callable[[Tensors], Tensors] | None = None) -> Any:
        """Pictures, or latents; `change` gets the tensors of `STATE` after each step, and returns what they become."""
        options = {} if change is None else self._callback(change)
        # of lists and dicts copies, because some pipelines write into them: Z-Image wraps prompts in their own list
        arguments = {name: copy(it) if isinstance(it, list | dict) else it for name, it in self._arguments.items()}
        return self.adapter.pipe(**{**arguments, **options})[0]

    def draw_again(self, change: Callable[[Tensors], Tensors] | None = None) -> Any:
        """As `draw`, with the random numbers of the first time."""
        self._start.restore(self._own.generators)
        try:
            return self.draw(change)
        finally:
            if self._own is not self._start and self._own.generators:  # torch's own were of an earlier call
                self._own.restore_own()

    def record(self, state: Tensors) -> Tensors:
        """Keep what the unsteered pass has after a step."""
        self._steps.append({name: tensor.detach().clone() for name, tensor in state.items()})
        return state

    def draw_nothing(self, recorded: Recorded, unsteered: Any) -> Any:
        """The unsteered pictures, and random numbers as their pass has left them."""
        if self._own is not self._start:
            recorded.end.restore(self._own.generators, own=not self._own.generators)
        return unsteered.clone() if isinstance(unsteered, torch.Tensor) else list(unsteered)

    def recorded(
        self, pictures: Any, images_per_prompt: int, readers: Mapping[str, MaskReader], keys: Mapping[str, Any]
    ) -> Recorded:
        """What the unsteered pass, which drew these pictures, has left.

        Raises:
            UnsupportedError: it has shown no latents.
        """
        if not self._steps:
            raise UnsupportedError(_no_callback(self.adapter, f"takes {CALLBACK}, but has not called it"))
        count, size = len(pictures), self._size(pictures)
        prompts = [picture // max(1, images_per_prompt) for picture in range(count)]
        masks = {keys[name]: reader.masks(size, count) for name, reader in readers.items()}
        return Recorded(self._steps, masks, size, prompts, self._call, self._start, self._random())

    def use(self, recorded: Recorded | None, keys: Mapping[str, Any]) -> Recorded:
        """Check that what an earlier call left is of the same call, and start from its random numbers.

        Args:
            recorded: what it left.
            keys: concept name -> key of the masks that are needed.

        Raises:
            DSASError: it preserved nothing, or is of another call or of other concepts.
        """
        if recorded is None:
            raise DSASError("unsteered: expected what generate(…, preserve=…) returned; that one preserved nothing")
        if other := recorded.differs_from(self._call, self._start):
            raise DSASError(
                f"unsteered: that call had another {other}: give the same arguments and seeds, or leave unsteered= out"
            )
        if missing := [name for name, key in keys.items() if key not in recorded.masks]:
            raise DSASError(f"unsteered: in that call nothing looked for {missing[0]}: leave unsteered= out")
        self._start = recorded.start
        return recorded

    def _size(self, pictures: Any) -> tuple[int, int]:
        """(width, height) of the pictures."""
        if isinstance(pictures, list):
            width, height = pictures[0].size
            return width, height
        asked = self._argument("width"), self._argument("height")
        return asked if all(asked) else size_of(self.adapter, pictures)[::-1]

    def draw_blended(self, steps: Sequence[Tensors], unsteered: Any, masks: Sequence[np.ndarray]) -> Any:
        """Steered pictures that are the unsteered ones outside the masks; `steps` are those of the unsteered pass."""
        blend = _Blend(steps, masks)
        steered = self.draw_again(blend)
        pairs = list(zip(steered, unsteered, masks, strict=True))
        if isinstance(steered, torch.Tensor):
            return torch.stack([picture if mask.any() else base for picture, base, mask in pairs])
        return [self._finish(*pair) for pair in pairs]

    def as_composed(self, masks: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The share of the steered picture at each pixel: with a feathered edge where pixels are composed."""
        return [feather(mask) if self._composed and mask.any() else mask for mask in masks]

    def _finish(self, steered: Image.Image, unsteered: Image.Image, mask: np.ndarray) -> Image.Image:
        if not mask.any():
            return unsteered
        return compose(steered, unsteered, mask) if self._composed else steered

    def _argument(self, name: str) -> Any:
        """An argument of the call, or its default."""
        parameter = self.adapter.call_parameters.get(name)
        return self._arguments.get(name, None if parameter is None else parameter.default)

    def _callback(self, change: Callable[[Tensors], Tensors]) -> dict[str, Any]:
        """Arguments that let the user's callback run, if there is one, and then the change."""
        own = self._arguments.get(CALLBACK)
        asked: list[str] = []
        if own is not None:
            asked = list(getattr(own, "tensor_inputs", self._argument(INPUTS)))  # as diffusers does
        state = [name for name in STATE if name in _callback_inputs(self.adapter)]

        def step_ends(pipe: Any, step: int, timestep: Any, tensors: Tensors) -> dict[str, Any]:
            returned: dict[str, Any] = dict(tensors)
            if own is not None:
                returned |= own(pipe, step, timestep, {name: tensors[name] for name in asked})
            return {**returned, **change({name: returned[name] for name in state})}

        return {CALLBACK: step_ends, INPUTS: list(dict.fromkeys([*asked, *state]))}


class _Blend:
    """Makes latents outside the masks those of the unsteered pass, call by call."""

    def __init__(self, steps: Sequence[Tensors], masks: Sequence[np.ndarray]) -> None:
        self._steps, self._masks = iter(steps), masks
        self._on_latents: dict[torch.Size, torch.Tensor] = {}

    def __call__(self, state: Tensors) -> Tensors:
        bases = next(self._steps, None)
        if bases is None:
            raise UnsupportedError(
                "the steered pass has more steps than the unsteered one: preserve takes a pipeline and callbacks that "
                "do the same in both"
            )
        return {name: torch.lerp(bases[name], tensor, self._mask(tensor)) for name, tensor in state.items()}

    def _mask(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape not in self._on_latents:
            self._on_latents[tensor.shape] = latents_mask(self._masks, tensor)
        return self._on_latents[tensor.shape].expand_as(tensor)


def _callback_inputs(adapter: PipelineAdapter) -> Collection[str]:
    """Names of the tensors that a pipeline gives to callbacks."""
    return getattr(adapter.pipe, "_callback_tensor_inputs", ())


def _key_of(concept: Concept) -> tuple[str, str, str]:
    """What tells masks apart: a concept's name, its rule, and the probes that are read, whatever it steers."""
    rule = MaskRule.of(concept)
    read = () if rule is None else rule.sites
    probes = tuple(item for item in concept.interventions if item.read_only and str(item.site) in read)
    return concept.name, str(rule), ConceptData(concept.name, probes).digest


def _steered_prompts(strengths: torch.Tensor, prompts: Collection[int]) -> set[int]:
    """Numbers of the prompts that strengths steer, one for all or one for each."""
    return set(strengths.nonzero().flatten().tolist() if len(strengths) > 1 else prompts if strengths.any() else ())


def _by_name(adapter: PipelineAdapter, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a pipeline's call by name; TypeError as the call itself would raise it."""
    signature = inspect.Signature(list(adapter.call_parameters.values()))
    arguments = dict(list(signature.bind(adapter.pipe, *args, **kwargs).arguments.items())[1:])
    for name, parameter in adapter.call_parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments |= arguments.pop(name, {})
    return arguments


def _attach(readers: Collection[MaskReader], reading: ExitStack) -> None:
    for reader in readers:
        try:
            reading.enter_context(reader)
        except UnsupportedError as error:
            raise UnsupportedError(
                f"the probes that see where a concept is cannot be attached now; give a mask, preserve=mask ({error})"
            ) from error


def _check_unsteered(layout: BatchLayout, concepts: Sequence[Concept]) -> None:
    """Refuse embeddings that were made while steering: no picture of them is unsteered."""
    denoiser = layout.adapter.family.denoiser
    texts = any(site.root != denoiser for concept in concepts for site in concept.steered_sites)
    if texts and layout.request.embeddings == "encoded here":
        raise DSASError(
            "prompt_embeds were made inside the steer() block, and steered there, so that no unsteered picture can be "
            "drawn of them to preserve: pass prompt= instead"
        )


def _warn_unlocalised(names: Sequence[str]) -> None:
    """Warn of concepts that have no place in the picture."""
    warnings.warn(
        f"{', '.join(names)}: no probes that see it at some place of the picture (none were learned, or they see it in "
        "most of the picture, or in few pictures), so that nothing is preserved; give a mask, preserve=mask",
        stacklevel=4,
    )


def _no_callback(adapter: PipelineAdapter, why: str) -> str:
    return (
        f"{type(adapter.pipe).__name__} {why}, so that nothing can be preserved: generate without preserve, or with a "
        "pipeline of diffusers that calls back after each step"
    )
