"""Whose rows are these? Each call of a text encoder or denoiser as a `Call`: rows, prompts, timestep, mask.

Told by the family's table and by the prompts themselves, seen where every pipeline checks and encodes them; never by
counting calls, never guessed: a batch that fits no rule raises.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Self

import torch

from dsas_core.errors import DSASError
from dsas_core.hooks import Call, Describe
from dsas_core.sites import Joint

from .families import bounds_of, denoiser_of, encoders_of, family_of
from .family import Family, TextEncoder
from .tokens import POSITIONS, Tokens

#: what a block of rows of a denoiser's batch is for: prompts, negative prompts, or prompts without some attention
PROMPT, NEGATIVE, PERTURBED = "prompt", "negative", "perturbed"
#: which of them are steered, the one that is shown first
STEERED = {
    "conditional": (PROMPT, PERTURBED),
    "unconditional": (NEGATIVE,),
    "both": (PROMPT, NEGATIVE, PERTURBED),
}
ROWS = tuple(STEERED)
#: what pipelines call the method that encodes prompts; the second in an InstructPix2Pix
ENCODE = ("encode_prompt", "_encode_prompt")
#: what denoisers call the latents, the clock and what was made of the prompts, in this order; and its mask
SAMPLE, TIMESTEP = ("sample", "hidden_states", "x"), ("timestep", "t")
EMBEDDINGS = ("encoder_hidden_states", "cap_feats")
_MASK = ("encoder_attention_mask", "encoder_hidden_states_mask")


class Rows:
    """Watches what a pipeline does with the prompts of a generation. A context manager; undone on exit.

    Args:
        pipe: the pipeline.
        rows: "conditional" steers the rows of the prompt, "unconditional" those of the negative prompt, "both" all.
        positions: in the text, "words" counts the tokens of the prompt up to the first end token, "all" also what is
            behind it, as far as the denoiser reads it: Stable Diffusion's reads padding, those that are told which
            tokens are padding do not. The first token, and an instruction in front of the prompt, never count.
        on_prompts: called with the number of prompts whenever a generation begins.
    """

    def __init__(
        self,
        pipe: Any,
        rows: str = "conditional",
        positions: str = "all",
        on_prompts: Callable[[int], None] | None = None,
    ) -> None:
        if rows not in ROWS or positions not in POSITIONS:
            raise DSASError(f"rows {rows!r}, positions {positions!r}: expected {ROWS} and {POSITIONS}")
        self.pipe, self.rows, self.positions, self.on_prompts = pipe, rows, positions, on_prompts
        self.family: Family = family_of(pipe)
        self._bounds = bounds_of(pipe)
        self.prompts = 0
        self.texts: list[str] | None = None  # the prompts, where they are known
        self.latents = (0, 0)  # height and width of what the denoiser reads
        self.patches: int | None = None  # of a picture that is packed, without those of pictures to go by
        self.images_per_prompt = 1
        self.clip_skip = 0
        self.skips = False  # whether the denoiser is asked to leave out some of its layers, this time
        self.embeddings = ""  # "given" ready-made, or "made here" by an earlier encode_prompt; else made now
        self.by_hand = False  # whether a text encoder has read something that the pipeline did not give it
        self._made: list[tuple[weakref.ref[torch.Tensor], list[str] | None]] = []
        self.given: Mapping[str, Any] = {}  # what its prompts were encoded with
        self._asked: Mapping[str, Any] = {}  # what a generation was called with, where it says so before it encodes
        self._noted = False  # whether it has said what it is asked for
        self._encoded = False  # whether it has encoded its prompts since
        self._negatives: Mapping[str, list[str]] | None = None  # by text encoder; None without guidance
        self._undecided: set[str] = set()  # text encoders that read the same for both, and have read nothing yet
        self._encoding = False  # whether the pipeline encodes prompts of either kind
        self._negating = False  # whether negative prompts, and they alone, are being encoded
        self._negative: torch.Tensor | None = None  # what was made of them
        self._positive: torch.Tensor | None = None  # what was made of prompts
        self._blocks: tuple[str, ...] = ()  # of the denoiser's last call
        self._own: dict[str, dict[str, Any]] = {}  # of the pipeline's methods that are watched, those it had for itself
        self._running = False  # whether its prompts are encoded and its pictures are not yet made

    def describe(self) -> dict[str, Describe]:
        """By root name, what tells its calls: for `hooks.visit`."""
        tell: dict[str, Describe] = {self.family.denoiser: self._denoiser_call}
        for encoder in encoders_of(self.pipe):
            tell[encoder.part] = _TextCall(self, encoder)
        return tell

    def __enter__(self) -> Self:
        encode = next((name for name in ENCODE if hasattr(type(self.pipe), name)), "")
        if not encode:
            raise DSASError(f"{type(self.pipe).__name__} has no {ENCODE[0]}, where its prompts would be seen")
        if isinstance(vars(self.pipe).get(encode), _Watched):
            raise DSASError("this pipeline is being steered already: pass all concepts to one steer()")
        told = "num_images_per_prompt" in inspect.signature(getattr(type(self.pipe), encode)).parameters
        self._watch(encode, self._encode)
        self._watch("maybe_free_model_hooks", self._end)
        if self.family.negatives == "apart":
            self._watch("check_inputs", self._check)
        if hasattr(type(self.pipe), "prepare_latents"):
            self._watch("prepare_latents", self._prepare if told else self._prepare_untold)
        return self

    def __exit__(self, *_: object) -> None:
        for name, own in self._own.items():
            delattr(self.pipe, name)
            vars(self.pipe).update(own)
        self._own.clear()

    # ---- what a pipeline is asked for ------------------------------------------------------------------------------

    def _watch(self, name: str, noted: Callable[[Callable[[], Any], dict[str, Any]], Any]) -> None:
        """Have a method of the pipeline go through `noted`, which is given the call and what it is called with."""
        self._own[name] = {key: own for key, own in vars(self.pipe).items() if key == name}
        setattr(self.pipe, name, _Watched(self.pipe, name, noted))

    def _check(self, check: Callable[[], Any], given: dict[str, Any]) -> Any:
        self._asked, self._encoded = given, False
        return check()

    def _prepare(self, prepare: Callable[[], Any], given: dict[str, Any]) -> Any:
        made = prepare()
        latents = made[0] if isinstance(made, tuple) else made
        packed = isinstance(latents, torch.Tensor) and latents.ndim == 3
        self.patches = latents.shape[1] if packed else None
        return made

    def _prepare_untold(self, prepare: Callable[[], Any], given: dict[str, Any]) -> Any:
        """Of pipelines that do not say before how many pictures are asked for, nor encode what is given ready-made."""
        pictures = int(given["batch_size"])
        if not self._noted:
            made_here = any(made() is not None for made, _ in self._made)
            self._begin(pictures, None, "made here" if made_here else "given")
        self.images_per_prompt, self._noted = pictures // self.prompts, False
        return self._prepare(prepare, given)

    def _encode(self, encode: Callable[[], Any], given: dict[str, Any]) -> Any:
        self._negating = self._is_negative(given)
        if not self._negating:
            self._note(given)
        self._encoding = True
        try:
            made = encode()
        finally:
            negative, self._encoding, self._negating = self._negating, False, False
        if negative:
            self._negative = made[0]
            return made
        parts = made if isinstance(made, tuple) else (made,)
        self._positive = parts[0]
        tensors = [tensor for part in parts for tensor in (part if isinstance(part, list) else [part])]
        self._made = [known for known in self._made if known[0]() is not None]
        self._made += [(weakref.ref(tensor), self.texts) for tensor in tensors if isinstance(tensor, torch.Tensor)]
        if self.family.negative is not None:
            self._negative = parts[self.family.negative]
        return made

    def _end(self, free: Callable[[], Any], given: dict[str, Any]) -> Any:
        """Every pipeline's last act: the next call of its denoiser is of prompts that are still to come."""
        self._running, self._encoded, self._asked = False, False, {}
        return free()

    def _is_negative(self, given: Mapping[str, Any]) -> bool:
        """Whether a generation that has encoded its prompt goes on with the negative one."""
        text, embeds = given.get("prompt"), given.get("prompt_embeds")
        if not self._encoded:
            return False
        if "negative_prompt" not in self._asked:  # of pipelines that are told none it has no words
            guided = bool(getattr(self.pipe, "do_classifier_free_guidance", False))
            return guided and text is not None and not any(_listed(text))
        if embeds is not None:
            return embeds is self._asked.get("negative_prompt_embeds")
        return text is not None and text == self._asked["negative_prompt"]

    def _note(self, given: Mapping[str, Any]) -> None:
        """Remember what a generation is asked for."""
        prompt, embeds = given.get("prompt"), given.get("prompt_embeds")
        one = embeds[0] if isinstance(embeds, list) else embeds
        ours = [texts for made, texts in self._made if made() is one]
        self.images_per_prompt = int(given.get("num_images_per_prompt") or 1)
        self.clip_skip = int(given.get("clip_skip") or 0)
        self.given, self._negative, self._negatives, self._undecided = given, None, None, set()
        self._encoded, self._noted = bool(self._asked), True
        if self.family.negatives == "together" and given.get("do_classifier_free_guidance", True):
            self._negatives = {encoder.part: _negatives(given, encoder) for encoder in self.family.encoders}
            if embeds is None:
                self._undecided = {each.part for each in self.family.encoders if _same(given, each)}
        if embeds is None:
            if not encoders_of(self.pipe):
                raise DSASError(
                    "the pipeline has no text encoder to read prompts with: load one, or pass prompt_embeds"
                )
            self._begin(len(_listed(prompt)), _listed(prompt), "")
        else:
            texts = ours[0] if ours else None
            if texts is not None:  # perhaps they were made for several pictures each
                texts = [text for text in texts for _ in range(len(embeds) // len(texts))]
            self._begin(len(embeds), texts, "made here" if ours else "given")

    def _begin(self, prompts: int, texts: list[str] | None, embeddings: str) -> None:
        self.prompts, self.texts, self.embeddings, self._running = prompts, texts, embeddings, True
        if self.on_prompts is not None:
            self.on_prompts(prompts)

    # ---- texts -------------------------------------------------------------------------------------------------------

    def text_call(self, encoder: TextEncoder, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """A call of a text encoder: of all prompts, or of all negative prompts; what it reads by hand is of prompts."""
        self.by_hand |= not self._encoding
        tokens, given = Tokens(self.pipe, encoder), self.given
        ids = kwargs["input_ids"] if kwargs.get("input_ids") is not None else args[0]
        negative = torch.tensor(self._negating, device=ids.device)
        if self._negatives is not None and self._encoding:
            texts = tokens.worded(self._negatives[encoder.part], True, given)
            known = tokens.ids(texts, ids.shape[1], given).to(ids.device)
            # all of them, as one of the prompts may well be what another is not to be
            negative = (ids == known).all() if len(known) in (1, len(ids)) else torch.zeros_like(negative)
            if encoder.part in self._undecided:  # prompts and negative prompts are the same, and prompts come first
                self._undecided.remove(encoder.part)
                negative = torch.zeros_like(negative)
        negative = negative.expand(len(ids))
        rows = {"conditional": ~negative, "unconditional": negative, "both": torch.ones_like(negative)}[self.rows]
        mask = tokens.counted(ids, kwargs.get("attention_mask"), negative, self.positions, given)
        return Call(rows.float(), torch.arange(len(ids), device=ids.device), None, mask)

    # ---- the denoiser ------------------------------------------------------------------------------------------------

    def _denoiser_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        if not self._running:
            raise DSASError(
                "the denoiser ran outside the pipeline that is steered, so its rows are unknown: call that pipeline, "
                "or steer the one that you call"
            )
        return self.of_prompts(args, kwargs, STEERED[self.rows])

    @property
    def shown(self) -> int | None:
        """Of the blocks of rows that are steered in the denoiser's last call, which are to be shown; None for none."""
        steered = [block for block in self._blocks if block in STEERED[self.rows]]
        wanted = STEERED[self.rows][0]
        return steered.index(wanted) if wanted in steered else None

    def of_prompts(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], steered: Collection[str] = (PROMPT,)
    ) -> Call:
        """A call of the denoiser; its rows are those of the prompts, picture by picture, or of other blocks as well."""
        sample: Any
        sample, timestep, embeds = (
            next((kwargs[name] for name in names if name in kwargs), args[place] if place < len(args) else None)
            for place, names in enumerate((SAMPLE, TIMESTEP, EMBEDDINGS))
        )
        attended = next((kwargs[name] for name in _MASK if name in kwargs), None)
        batch, asked = len(sample), self.prompts * self.images_per_prompt
        device = sample[0].device
        self.skips = kwargs.get("skip_layers") is not None
        if sample[0].ndim > 2:
            self.latents = tuple(sample[0].shape[-2:])
        self._blocks = blocks = self._layout(batch, asked, embeds)
        rows = torch.tensor([float(block in steered) for block in blocks for _ in range(asked)], device=device)
        owners = torch.tensor([i // self.images_per_prompt for _ in blocks for i in range(asked)], device=device)
        return Call(rows, owners, self._clock(timestep, device), joint=self._joint(sample, embeds, attended))

    def _layout(self, batch: int, asked: int, embeds: Any) -> tuple[str, ...]:
        """What each block of as many rows as pictures were asked for is for, in order.

        Raises:
            DSASError: a batch that fits no rule.
        """
        pipe, guidance = self.pipe, self.family.guidance
        perturbed = bool(getattr(pipe, "do_perturbed_attention_guidance", False))
        guided = bool(getattr(pipe, "do_classifier_free_guidance", True))
        layouts: list[tuple[str, ...]] = [(PROMPT,)]
        if guidance == "two calls":
            layouts = [(NEGATIVE,) if self._made_of_negatives(embeds) else (PROMPT,)]
        elif perturbed:
            layouts = [(NEGATIVE, PROMPT, PERTURBED) if guided else (PROMPT, PERTURBED)]
        elif "image_guidance_scale" in inspect.signature(type(pipe).__call__).parameters:  # InstructPix2Pix
            layouts.append((PROMPT, NEGATIVE, NEGATIVE))  # these with the picture, and without
        else:
            pair = (NEGATIVE, PROMPT) if guidance == "uncond, cond" else (PROMPT, NEGATIVE)
            layouts.append(pair)
        for blocks in layouts:
            if batch == asked * len(blocks):
                return blocks
        sizes = " or ".join(str(asked * len(blocks)) for blocks in layouts)
        raise DSASError(
            f"{asked} pictures were asked for, but the denoiser of {type(pipe).__name__} got {batch} rows: expected "
            f"{sizes}"
        )

    def _made_of_negatives(self, embeds: torch.Tensor | None) -> bool:
        """Whether a call of its own is for the negative prompts: it is given what was made of them."""
        known = self._negative
        if known is None or embeds is None or embeds is self._positive:
            return False
        return embeds is known or (embeds.shape == known.shape and torch.equal(embeds, known.to(embeds)))

    def _clock(self, timestep: Any, device: torch.device) -> torch.Tensor:
        """The timestep as float [] from 0 (clean) to 1000 (noise), on the device of the sample."""
        value = torch.as_tensor(timestep, device=device).float().flatten()[0]
        noisy, clean = self._bounds
        return (value - clean) / (noisy - clean) * 1000

    def _joint(self, sample: Any, embeds: Any, attended: torch.Tensor | None) -> Joint | None:
        """How picture and prompt lie in one sequence, in a family that attends to both at once."""
        family = self.family
        if embeds is None or not any(group.stream for groups in family.groups.values() for group in groups):
            return None
        image = sample[0].shape[0]  # packed
        if sample[0].ndim > 2:
            config: Any = denoiser_of(self.pipe).config
            patch = int(config["patch_size"] if "patch_size" in config else config["all_patch_size"][0])
            image = (sample[0].shape[-2] // patch) * (sample[0].shape[-1] // patch)
        lengths = None if attended is None else attended.sum(1).long()
        text = len(embeds[0])
        if isinstance(embeds, list):
            lengths = torch.tensor([len(each) for each in embeds], device=embeds[0].device)
        if isinstance(embeds, list) or family.sequence == "tokens, image":
            assert lengths is not None
            text = int(lengths.max())
        room, text = (-(-count // family.multiple) * family.multiple for count in (image, text))
        first, close = family.sequence != "image, text", family.sequence == "tokens, image"
        return Joint(image, text, first, room, lengths, close)


class _Watched:
    """A method of a pipeline that goes through `noted`. A copy of the pipeline, or a pickle, gets the method alone."""

    def __init__(self, pipe: Any, name: str, noted: Callable[[Callable[[], Any], dict[str, Any]], Any]) -> None:
        self.pipe, self.name, self.noted = pipe, name, noted
        self.method = getattr(pipe, name)  # perhaps somebody's own around the pipeline's, of any arguments
        self.__signature__ = inspect.signature(getattr(type(pipe), name).__get__(pipe))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = self.__signature__.bind(*args, **kwargs)
        given.apply_defaults()
        return self.noted(lambda: self.method(*args, **kwargs), given.arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.pipe, self.name)


class _TextCall:
    """Tells the calls of one text encoder."""

    def __init__(self, rows: Rows, encoder: TextEncoder) -> None:
        self.rows, self.encoder = rows, encoder

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        return self.rows.text_call(self.encoder, args, kwargs)


def _listed(text: str | Sequence[str] | None) -> list[str]:
    """Prompts as a pipeline takes them, each on its own."""
    return [text or ""] if text is None or isinstance(text, str) else list(text)


def _negatives(given: Mapping[str, Any], encoder: TextEncoder) -> list[str]:
    """The negative prompts that a text encoder will be given."""
    return _listed(given.get(encoder.negative) or given.get("negative_prompt"))


def _same(given: Mapping[str, Any], encoder: TextEncoder) -> bool:
    """Whether a text encoder will be given the same for prompts and for negative prompts."""
    prompts = _listed(given.get(encoder.negative.removeprefix("negative_")) or given.get("prompt"))
    negatives = _negatives(given, encoder)
    return prompts == (negatives if len(negatives) > 1 else negatives * len(prompts))
