"""The layout of a pipeline's batches: each call of a text encoder or denoiser as a `Call` of rows, prompts, mask, time.

It follows from the family's entry and from what the generation was asked for (`GenerationRequest`); never from counting
calls, and never guessed: a batch that fits no rule raises.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Self

import torch

from dsas_core.errors import DSASError, UnsupportedError
from dsas_core.model.hooks import Call, DescribeCall
from dsas_core.model.sites import Joint

from .adapter import PipelineAdapter
from .families.spec import TextEncoder
from .generation_watcher import GenerationRequest, GenerationWatcher
from .prompt_tokens import POSITIONS, PromptTokens

#: what a block of rows of a denoiser's batch is for: prompts, negative prompts, or prompts with perturbed attention
PROMPT, NEGATIVE, PERTURBED = "prompt", "negative", "perturbed"
#: branch of classifier-free guidance -> the blocks that are steered, that of the heat-map first
STEERED = {
    "conditional": (PROMPT, PERTURBED),
    "unconditional": (NEGATIVE,),
    "both": (PROMPT, NEGATIVE, PERTURBED),
}
BRANCHES = tuple(STEERED)
#: arguments of denoisers, by their names in all families: latents, timestep, embeddings of the prompts; and their mask
SAMPLE, TIMESTEP = ("sample", "hidden_states", "x"), ("timestep", "t")
EMBEDDINGS = ("encoder_hidden_states", "cap_feats")
_MASK = ("encoder_attention_mask", "encoder_hidden_states_mask")


class BatchLayout:
    """Describes the rows of a pipeline's calls while it is watched. A context manager; undone on exit.

    Args:
        adapter: of the pipeline.
        branch: "conditional" steers the rows of the prompt, "unconditional" those of the negative prompt, "both" all.
        positions: in the text, "words" counts the tokens of the prompt up to the first end token, "all" also what is
            behind it, as far as the denoiser reads it: Stable Diffusion's reads padding, denoisers with an attention
            mask do not. The first token, and an instruction in front of the prompt, never count.
        on_generation: called with the request whenever a generation begins.

    Raises:
        DSASError: an unknown branch or choice of positions; while the pipeline runs, a batch that fits no rule.

    Attributes:
        latents: height and width of the denoiser's input in its last call.
        skips_layers: whether that call left out some of the denoiser's layers.
        called_directly: whether a text encoder was called by somebody else than the pipeline.

    Example:
        >>> from dsas_diffusion import load_pipeline
        >>> from dsas_diffusion.pipelines.adapter import adapt
        >>> adapter = adapt(load_pipeline("builtin:emoji", device="cpu"))
        >>> with BatchLayout(adapter) as layout:
        ...     latents = adapter.pipe("a banana", num_inference_steps=1, output_type="latent").images
        >>> layout.request.texts, sorted(layout.describe())
        (['a banana'], ['text_encoder', 'unet'])
    """

    def __init__(
        self,
        adapter: PipelineAdapter,
        branch: str = "conditional",
        positions: str = "all",
        on_generation: Callable[[GenerationRequest], object] | None = None,
    ) -> None:
        for name, given, known in (("branch", branch, BRANCHES), ("positions", positions, POSITIONS)):
            if given not in known:
                raise DSASError(f"{name} {given!r}: expected {' or '.join(known)}")
        self.adapter = adapter
        self.branch, self.positions, self.on_generation = branch, positions, on_generation
        self.latents = (0, 0)
        self.skips_layers = self.called_directly = False
        self._watcher = GenerationWatcher(self.adapter)
        self._timestep_range = self.adapter.timestep_range
        self._undecided: set[str] = set()  # ambiguous text encoders that have not run yet
        self._blocks: tuple[str, ...] = ()  # of the denoiser's last call

    @property
    def request(self) -> GenerationRequest:
        """Of the current generation."""
        return self._watcher.request

    def describe(self) -> dict[str, DescribeCall]:
        """By root name, what describes its calls: for `hooks.visit`."""
        text_calls = {encoder.part: partial(self._text_call, encoder) for encoder in self.adapter.text_encoders}
        return {self.adapter.family.denoiser: self._denoiser_call, **text_calls}

    def __enter__(self) -> Self:
        self._watcher.__enter__()
        self._watcher.on_begin = self._generation_begins
        return self

    def __exit__(self, *_: object) -> None:
        self._watcher.__exit__()
        self._watcher.on_begin = None  # which holds this, and the pipeline: they would wait for the garbage collector

    def _generation_begins(self, request: GenerationRequest) -> None:
        self._undecided = set(request.ambiguous)
        if self.on_generation is not None:
            self.on_generation(request)

    # ---- texts -------------------------------------------------------------------------------------------------------

    def _text_call(self, encoder: TextEncoder, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """A call of a text encoder: of all prompts, or of all negative prompts; direct calls are taken for prompts."""
        self.called_directly |= not self._watcher.encoding
        tokens, arguments = PromptTokens(self.adapter.pipe, encoder), self.request.encode_arguments
        ids = kwargs["input_ids"] if kwargs.get("input_ids") is not None else args[0]
        negative = torch.tensor(self._watcher.encoding_negatives, device=ids.device)
        if self.request.negative_texts is not None and self._watcher.encoding:
            texts = tokens.apply_template(self.request.negative_texts[encoder.part], True, arguments)
            known = tokens.ids(texts, ids.shape[1], arguments).to(ids.device)
            # all of them: a prompt may well be the negative prompt of another
            negative = (ids == known).all() if len(known) in (1, len(ids)) else torch.zeros_like(negative)
            if encoder.part in self._undecided:  # prompts and negative prompts are the same, and prompts come first
                self._undecided.remove(encoder.part)
                negative = torch.zeros_like(negative)
        negative = negative.expand(len(ids))
        steered = {"conditional": ~negative, "unconditional": negative, "both": torch.ones_like(negative)}[self.branch]
        mask = tokens.position_mask(ids, kwargs.get("attention_mask"), negative, self.positions, arguments)
        return Call(steered.float(), torch.arange(len(ids), device=ids.device), None, mask)

    # ---- the denoiser ------------------------------------------------------------------------------------------------

    def _denoiser_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        if not self._watcher.running:
            raise DSASError(
                "the denoiser ran outside the pipeline that is steered, so its rows are unknown: call that pipeline, "
                "or steer the one that you call"
            )
        return self.prompt_call(args, kwargs, STEERED[self.branch])

    @property
    def heatmap_block(self) -> int | None:
        """Which of the steered blocks of the denoiser's last call the heat-map shows; None for none."""
        steered = [block for block in self._blocks if block in STEERED[self.branch]]
        first = STEERED[self.branch][0]
        return steered.index(first) if first in steered else None

    def prompt_call(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], steered: Collection[str] = (PROMPT,)
    ) -> Call:
        """A call of the denoiser, picture by picture, in which the blocks of prompts, or others, are steered."""
        sample: Any
        sample, timestep, embeds = (
            next((kwargs[name] for name in names if name in kwargs), args[place] if place < len(args) else None)
            for place, names in enumerate((SAMPLE, TIMESTEP, EMBEDDINGS))
        )
        attended = next((kwargs[name] for name in _MASK if name in kwargs), None)
        pictures, device = self.request.pictures, sample[0].device
        self.skips_layers = kwargs.get("skip_layers") is not None
        if sample[0].ndim > 2:
            self.latents = tuple(sample[0].shape[-2:])
        self._blocks = blocks = self._find_blocks(len(sample), embeds)
        rows = torch.tensor([float(block in steered) for block in blocks for _ in range(pictures)], device=device)
        count = self.request.images_per_prompt
        prompts = torch.tensor([i // count for _ in blocks for i in range(pictures)], device=device)
        return Call(rows, prompts, self._timestep(timestep, device), joint=self._joint(sample, embeds, attended))

    def _find_blocks(self, batch: int, embeds: Any) -> tuple[str, ...]:
        """What each block of rows, one row per picture, is for, in order.

        Raises:
            UnsupportedError: a batch that fits no rule.
        """
        pipe, guidance, pictures = self.adapter.pipe, self.adapter.family.guidance, self.request.pictures
        perturbed = bool(getattr(pipe, "do_perturbed_attention_guidance", False))
        guided = bool(getattr(pipe, "do_classifier_free_guidance", True))
        layouts: list[tuple[str, ...]] = [(PROMPT,)]
        if guidance == "two calls":
            layouts = [(NEGATIVE,) if self._is_negative(embeds) else (PROMPT,)]
        elif perturbed:
            layouts = [(NEGATIVE, PROMPT, PERTURBED) if guided else (PROMPT, PERTURBED)]
        elif "image_guidance_scale" in self.adapter.call_parameters:  # InstructPix2Pix
            layouts.append((PROMPT, NEGATIVE, NEGATIVE))  # these with the picture, and without
        else:
            layouts.append((NEGATIVE, PROMPT) if guidance == "uncond, cond" else (PROMPT, NEGATIVE))
        for blocks in layouts:
            if batch == pictures * len(blocks):
                return blocks
        sizes = " or ".join(str(pictures * len(blocks)) for blocks in layouts)
        raise UnsupportedError(
            f"{pictures} pictures were asked for, but the denoiser of {type(pipe).__name__} got {batch} rows: expected "
            f"{sizes}"
        )

    def _is_negative(self, embeds: torch.Tensor | None) -> bool:
        """Whether a call is for the negative prompts: it is given their embeddings."""
        known = self.request.negative_embeds
        if known is None or embeds is None or embeds is self.request.prompt_embeds:
            return False
        return embeds is known or (embeds.shape == known.shape and torch.equal(embeds, known.to(embeds)))

    def _timestep(self, timestep: Any, device: torch.device) -> torch.Tensor:
        """The timestep as float [] from 0 (clean) to 1000 (noise), on the device of the sample."""
        value = torch.as_tensor(timestep, device=device).float().flatten()[0]
        noisy, clean = self._timestep_range
        return (value - clean) / (noisy - clean) * 1000

    def _joint(self, sample: Any, embeds: Any, attended: torch.Tensor | None) -> Joint | None:
        """How picture and prompt lie in one sequence, in a family whose layers attend to both at once."""
        family = self.adapter.family
        if embeds is None or not any(group.stream for groups in family.groups.values() for group in groups):
            return None
        image = sample[0].shape[0]  # packed
        if sample[0].ndim > 2:
            config = self.adapter.denoiser.config
            patch = int(config["patch_size"] if "patch_size" in config else config["all_patch_size"][0])
            image = (sample[0].shape[-2] // patch) * (sample[0].shape[-1] // patch)
        lengths = None if attended is None else attended.sum(1).long()
        text = len(embeds[0])
        if isinstance(embeds, list):
            lengths = torch.tensor([len(item) for item in embeds], device=embeds[0].device)
        if isinstance(embeds, list) or family.sequence == "tokens, image":
            assert lengths is not None
            text = int(lengths.max())
        padded, text = (-(-count // family.sequence_multiple) * family.sequence_multiple for count in (image, text))
        text_first, close = family.sequence != "image, text", family.sequence == "tokens, image"
        return Joint(image, text, text_first, padded, lengths, close)
