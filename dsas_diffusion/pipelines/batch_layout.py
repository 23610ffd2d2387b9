"""The layout of a pipeline's batches: each call of a text encoder or denoiser as a `Call` of rows, prompts, mask, time.

It follows from the family's entry, from what the generation was asked for (`GenerationRequest`) and from where the
embeddings come from that the denoiser is given. It is never guessed: a batch that fits no rule raises.
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
from .embedding_origin import EmbeddingOrigins, is_alike
from .families.spec import TextEncoder
from .generation_watcher import GenerationRequest, GenerationWatcher
from .prompt_tokens import POSITIONS, PromptTokens
from .text_reading import NEGATIVE, PROMPT

#: what a block of rows of a denoiser's batch is for, beside prompts and negative ones: prompts, attention perturbed
PERTURBED = "perturbed"
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
            mask do not. The first token, and an instruction in front of it, never count. At "embeddings" all do.
        on_generation: called with the request whenever a generation begins.

    Raises:
        DSASError: an unknown branch or choice of positions; while the pipeline runs, a batch that fits no rule.

    Attributes:
        latents: height and width of the denoiser's input in its last call.
        skips_layers: whether that call left out some of the denoiser's layers.
        replaced: whether the denoiser is given other embeddings than those that the generation began with.
        called_directly: whether a text encoder was called by somebody else than the pipeline.
        owner: the steering that this is for; layouts of several on one pipeline go together.

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
        self.adapter, self.branch, self.positions, self.on_generation = adapter, branch, positions, on_generation
        self.latents = (0, 0)
        self.owner: object = None
        self.skips_layers = self.called_directly = False
        self._watcher, self._timestep_range = GenerationWatcher(adapter), adapter.timestep_range
        self._blocks: tuple[str, ...] = ()  # of the denoiser's last call
        self._forget()

    @property
    def request(self) -> GenerationRequest:
        """Of the current generation."""
        return self._watcher.request

    def describe(self) -> dict[str, DescribeCall]:
        """By root name, what describes its calls: for `hooks.visit`."""
        text_calls = {encoder.part: partial(self._text_call, encoder) for encoder in self.adapter.text_encoders}
        return {self.adapter.family.denoiser: self._denoiser_call, **text_calls}

    def __enter__(self) -> Self:
        self.called_directly, self._watcher.owner = False, self.owner
        self._watcher.__enter__()
        self._watcher.on_begin = self._generation_begins
        return self

    def __exit__(self, *_: object) -> None:
        self._watcher.__exit__()
        self._watcher.on_begin = self._watcher.owner = None  # which hold this, beyond its end
        self._forget()

    def _forget(self) -> None:
        self._origins, self._turns = EmbeddingOrigins(), _Turns()
        self._ordered: tuple[Any, tuple[str, ...]] = (None, ())  # the last embeddings of several blocks, and these
        self.replaced = False

    def _generation_begins(self, request: GenerationRequest) -> None:
        self._forget()
        if self.on_generation is not None:
            self.on_generation(request)

    # ---- texts -------------------------------------------------------------------------------------------------------

    def _text_call(self, encoder: TextEncoder, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """A call of a text encoder: of all prompts, or of all negative prompts; by hand it is taken for prompts."""
        reading = self._watcher.reading
        if reading is None and self._watcher.generating:
            raise UnsupportedError(
                f"the {encoder.part} was called while {type(self.adapter.pipe).__name__} draws, but not by its "
                "encode_prompt, so whether it reads a prompt or a negative one is unknown: encode before, and pass "
                "prompt_embeds= and negative_prompt_embeds="
            )
        self.called_directly |= reading is None
        tokens, arguments = PromptTokens(self.adapter.pipe, encoder), self.request.encode_arguments
        ids = kwargs["input_ids"] if kwargs.get("input_ids") is not None else args[0]
        negative = torch.tensor(
            reading is not None and reading.tell(encoder, ids, kwargs) == NEGATIVE, device=ids.device
        )
        arguments = arguments if reading is None else reading.arguments
        negative = negative.expand(len(ids))
        steered = {"conditional": ~negative, "unconditional": negative, "both": torch.ones_like(negative)}[self.branch]
        mask = tokens.position_mask(ids, kwargs.get("attention_mask"), negative, self.positions, arguments)
        return Call(steered.float(), torch.arange(len(ids), device=ids.device), None, mask)

    # ---- the denoiser ------------------------------------------------------------------------------------------------

    def _denoiser_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        if not self._watcher.running:
            raise DSASError(
                "the denoiser ran outside the pipeline that is steered, or its prompts were not encoded by "
                "encode_prompt, so its rows are unknown: call that pipeline, or steer the one that you call"
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
        sample, timestep, embeds = _inputs(args, kwargs)
        pictures, device = self.request.pictures, sample[0].device
        self._watcher.denoising, self.skips_layers = True, kwargs.get("skip_layers") is not None
        if sample[0].ndim > 2:
            self.latents = tuple(sample[0].shape[-2:])
        turn = self._turns.take(sample, (timestep, embeds))
        self._blocks = blocks = self._find_blocks(len(sample), embeds, turn)
        rows = torch.tensor([float(block in steered) for block in blocks for _ in range(pictures)], device=device)
        count = self.request.images_per_prompt
        prompts = torch.tensor([i // count for _ in blocks for i in range(pictures)], device=device)
        joint = self.joint_of(args, kwargs)
        return Call(rows, prompts, self._timestep(timestep, device), joint=joint, groups=_groups(self.request, prompts))

    def _find_blocks(self, batch: int, embeds: Any, turn: int) -> tuple[str, ...]:
        """What each block of rows, one row per picture, is for, in order.

        Raises:
            UnsupportedError: a batch that fits no rule.
        """
        guidance, pictures = self.adapter.family.guidance, self.request.pictures
        for role, own in ((PROMPT, self.request.prompt_embeds), (NEGATIVE, self.request.negative_embeds)):
            self._origins.add(own, role)
        layouts = [(PROMPT,), *([] if guidance == "two calls" else [self._guided_layout()])]
        for blocks in layouts:
            if batch == pictures * len(blocks):
                if guidance == "two calls":
                    return (self._find_call(embeds, turn),)
                return (self._find_block(embeds),) if len(blocks) == 1 else self._find_order(embeds, blocks)
        sizes = " or ".join(str(pictures * len(blocks)) for blocks in layouts)
        kind = type(self.adapter.pipe).__name__
        found = f"{pictures} pictures were asked for, but the denoiser of {kind} got {batch} rows"
        raise UnsupportedError(f"{found}: expected {sizes}")

    def _guided_layout(self) -> tuple[str, ...]:
        """The blocks of a call that has all branches of guidance."""
        pipe = self.adapter.pipe
        if bool(getattr(pipe, "do_perturbed_attention_guidance", False)):
            return (NEGATIVE, PROMPT, PERTURBED) if self._is_guided() else (PROMPT, PERTURBED)
        if "image_guidance_scale" in self.adapter.call_parameters:  # InstructPix2Pix
            return (PROMPT, NEGATIVE, NEGATIVE)  # these with the picture, and without
        return (NEGATIVE, PROMPT) if self.adapter.family.guidance == "uncond, cond" else (PROMPT, NEGATIVE)

    def _is_guided(self) -> bool:
        """Whether the generation has classifier-free guidance at this step."""
        asked = self.request.encode_arguments.get("do_classifier_free_guidance", True)
        # in a loop of one's own the pipeline still has what its last call was given
        own = self.adapter.pipe if self._watcher.generating else None
        return bool(getattr(own, "do_classifier_free_guidance", asked))

    def _find_order(self, embeds: Any, blocks: tuple[str, ...]) -> tuple[str, ...]:
        """The blocks of a call with several: as in the family, unless their embeddings show another order."""
        if embeds is None or embeds is self._ordered[0]:
            return self._ordered[1] or blocks
        rows = len(embeds) // len(blocks)
        parts = [embeds[i * rows : (i + 1) * rows] for i in range(len(blocks))]
        found = [self._origins.find(part) for part in parts]
        self.replaced |= bool(self._ordered[1]) and not self._origins.knows(parts)
        if PERTURBED not in blocks and is_alike(found, blocks):
            blocks = tuple(map(str, found))
        self._origins.replace_blocks(parts, [NEGATIVE if block == NEGATIVE else PROMPT for block in blocks])
        self._ordered = embeds, blocks
        return blocks

    def _find_block(self, embeds: Any) -> str:
        """Whether a call with a single block is for the prompts or, as in self-attention guidance, for the others."""
        found = self._origins.find(embeds, by_values=self.request.negative_embeds is not None or bool(self._ordered[1]))
        if found is not None:
            self._origins.add(embeds, found)  # it may come again
            return found
        if self._is_guided():
            raise UnsupportedError(
                "the denoiser got embeddings that are of neither or of both branches of guidance: hand them back as "
                "they were, give it both branches in one call, or set guidance off"
            )
        began = self.request.prompt_embeds is not None or bool(self._ordered[1])
        self.replaced |= began and not self._origins.knows(embeds)
        return PROMPT

    def _find_call(self, embeds: Any, turn: int) -> str:
        """Whether a call of a family that makes two is for the prompts, or for the negative prompts.

        Its embeddings tell, or its turn: a callback may have handed back others. Turns are what they were before.
        """
        found = self._origins.find(embeds, by_values=False)
        if found is not None:
            self._turns.roles.setdefault(turn, found)
            return found
        found = self._turns.roles.get(turn) or self._origins.find(embeds)
        if found is None and turn > 1:
            raise UnsupportedError(
                f"{type(self.adapter.pipe).__name__} called its denoiser {turn + 1} times in one step, with embeddings "
                "that it did not encode: expected one call for the prompts and one for the negative prompts"
            )
        return found or (PROMPT, NEGATIVE)[turn]

    def _timestep(self, timestep: Any, device: torch.device) -> torch.Tensor:
        """The timestep as float [] from 0 (clean) to 1000 (noise), on the device of the sample."""
        value = torch.as_tensor(timestep, device=device).float().flatten()[0]
        noisy, clean = self._timestep_range
        return (value - clean) / (noisy - clean) * 1000

    def joint_of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Joint | None:
        """How picture and prompt lie in one sequence in a call of a family whose layers attend to both at once."""
        sample, _, embeds = _inputs(args, kwargs)
        attended = next((kwargs[name] for name in _MASK if name in kwargs), None)
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


def _inputs(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """The latents, the timestep and the embeddings of a call of a denoiser; None where it has none."""
    sample, timestep, embeds = (
        next((kwargs[name] for name in names if name in kwargs), args[place] if place < len(args) else None)
        for place, names in enumerate((SAMPLE, TIMESTEP, EMBEDDINGS))
    )
    return sample, timestep, embeds


def _groups(request: GenerationRequest, prompts: torch.Tensor) -> torch.Tensor | None:
    """Pictures of equal prompts have one number; None where each prompt is there once, or texts are not known."""
    texts = request.texts
    if texts is None or len(texts) != request.prompts or len(set(texts)) == len(texts):
        return None
    firsts = torch.tensor([texts.index(text) for text in texts], device=prompts.device)
    return firsts[prompts]


class _Turns:
    """Which call of the denoiser, of those with the same latents, the present one is: 0 for the first.

    Attributes:
        roles: turn -> what its embeddings have shown that it is for.
    """

    def __init__(self) -> None:
        self.roles: dict[int, str] = {}
        self._turn = 0
        self._sample: Any = None
        self._given: tuple[Any, ...] = ()

    def take(self, sample: Any, given: tuple[Any, ...]) -> int:
        """The turn of a call. Several may ask: what else the call is given, object by object, tells it from others."""
        if sample is not self._sample:
            self._turn = 0
        elif any(old is not new for old, new in zip(self._given, given, strict=True)):
            self._turn += 1
        self._sample, self._given = sample, given
        return self._turn
