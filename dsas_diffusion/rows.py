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

from .families import Family, TextEncoder, bounds_of, encoders_of, family_of

ROWS = ("conditional", "unconditional", "both")
POSITIONS = ("words", "all")
#: what a block of rows of a denoiser's batch is for: prompts, negative prompts, or prompts without some attention
PROMPT, NEGATIVE, PERTURBED = "prompt", "negative", "perturbed"


class Rows:
    """Watches a pipeline's `encode_prompt` for the prompts of a generation. A context manager; undone on exit.

    Args:
        pipe: the pipeline.
        rows: "conditional" steers the rows of the prompt, "unconditional" those of the negative prompt, "both" all.
        positions: in the text, "words" counts the tokens after the first up to the first end token, "all" also the
            padding behind it, as far as the denoiser reads it: Stable Diffusion's does, those that are told which
            tokens are padding do not.
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
        self.prompts = 0
        self.texts: list[str] | None = None  # the prompts, where they are known
        self.latents = (0, 0)  # height and width of what the denoiser reads
        self.images_per_prompt = 1
        self.clip_skip = 0
        self.skips = False  # whether the denoiser is asked to leave out some of its layers, this time
        self.embeddings = ""  # "given" ready-made, or "made here" by an earlier encode_prompt; else made now
        self._made: list[tuple[weakref.ref[torch.Tensor], list[str] | None]] = []
        self._asked: Mapping[str, Any] = {}  # what a generation was called with, where it says so before it encodes
        self._encoded = False  # whether it has encoded its prompts since
        self._negatives: Mapping[str, list[str]] | None = None  # by text encoder; None without guidance
        self._negating = False  # whether negative prompts, and they alone, are being encoded
        self._negative: torch.Tensor | None = None  # what was made of them
        self._own: dict[str, dict[str, Any]] = {}  # of the pipeline's methods that are watched, those it had for itself
        self._running = False  # whether its prompts are encoded and its pictures are not yet made

    def describe(self) -> dict[str, Describe]:
        """By root name, what tells its calls: for `hooks.visit`."""
        tell: dict[str, Describe] = {self.family.denoiser: self._denoiser_call}
        for encoder in encoders_of(self.pipe):
            tell[encoder.part] = _TextCall(self, encoder)
        return tell

    def __enter__(self) -> Self:
        if isinstance(vars(self.pipe).get("encode_prompt"), _Watched):
            raise DSASError("this pipeline is being steered already: pass all concepts to one steer()")
        self._watch("encode_prompt", self._encode)
        self._watch("maybe_free_model_hooks", self._end)
        if self.family.negatives == "apart":
            self._watch("check_inputs", self._check)
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

    def _encode(self, encode: Callable[[], Any], given: dict[str, Any]) -> Any:
        if self._is_negative(given):
            self._negating = True
            try:
                made = encode()
            finally:
                self._negating = False
            self._negative = made[0]
            return made
        self._note(given)
        made = encode()
        tensors = made if isinstance(made, tuple) else (made,)
        self._made = [known for known in self._made if known[0]() is not None]
        self._made += [(weakref.ref(tensor), self.texts) for tensor in tensors if isinstance(tensor, torch.Tensor)]
        return made

    def _end(self, free: Callable[[], Any], given: dict[str, Any]) -> Any:
        """Every pipeline's last act: the next call of its denoiser is of prompts that are still to come."""
        self._running = False
        return free()

    def _is_negative(self, given: Mapping[str, Any]) -> bool:
        """Whether a generation that has encoded its prompt goes on with the negative one."""
        text, embeds = given.get("prompt"), given.get("prompt_embeds")
        if not self._encoded:
            return False
        if embeds is not None:
            return embeds is self._asked.get("negative_prompt_embeds")
        return text is not None and text == self._asked.get("negative_prompt")

    def _note(self, given: Mapping[str, Any]) -> None:
        """Remember what a generation is asked for."""
        prompt, embeds = given.get("prompt"), given.get("prompt_embeds")
        ours = [texts for made, texts in self._made if made() is embeds]
        self.embeddings = "" if embeds is None else "made here" if ours else "given"
        self.prompts = len(embeds) if embeds is not None else len(prompt) if isinstance(prompt, list) else 1
        if embeds is None:
            self.texts = list(prompt) if isinstance(prompt, list) else [prompt or ""]
        else:
            self.texts = ours[0] if ours else None
        self.images_per_prompt = int(given.get("num_images_per_prompt") or 1)
        self.clip_skip = int(given.get("clip_skip") or 0)
        self._negative, self._negatives, self._encoded, self._running = None, None, bool(self._asked), True
        if self.family.negatives == "together" and given.get("do_classifier_free_guidance", True):
            self._negatives = {encoder.part: _negatives(given, encoder) for encoder in self.family.encoders}
        if self.on_prompts is not None:
            self.on_prompts(self.prompts)

    # ---- texts -------------------------------------------------------------------------------------------------------

    def tokenised(self, texts: list[str]) -> torch.Tensor:
        """Token ids of texts as the first text encoder reads them, int64 [texts, positions]: padded, and cut off."""
        return self._ids(texts, encoders_of(self.pipe)[0], self.pipe.tokenizer.model_max_length)

    def spelled(self, text: str) -> list[int]:
        """Token ids of a text as it stands within a prompt."""
        return self.pipe.tokenizer(self._written([text], self.pipe.tokenizer), add_special_tokens=False).input_ids[0]

    def _ids(self, texts: list[str], encoder: TextEncoder, length: int) -> torch.Tensor:
        tokenizer = getattr(self.pipe, encoder.tokenizer)
        options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
        return tokenizer(self._written(texts, tokenizer), **options).input_ids

    def _written(self, texts: list[str], tokenizer: Any) -> list[str]:
        """Texts as the pipeline gives them to a tokenizer; what textual inversion has learned is several tokens."""
        if hasattr(self.pipe, "_text_preprocessing"):
            return self.pipe._text_preprocessing(texts, clean_caption=False)
        if hasattr(self.pipe, "maybe_convert_prompt"):
            return self.pipe.maybe_convert_prompt(texts, tokenizer)
        return texts

    def text_call(self, encoder: TextEncoder, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """A call of a text encoder."""
        ids = kwargs["input_ids"] if kwargs.get("input_ids") is not None else args[0]
        rows = torch.ones(len(ids), device=ids.device)
        if self._negating:
            rows = torch.zeros_like(rows)
        elif self._negatives is not None:
            negative = self._ids(self._negatives[encoder.part], encoder, ids.shape[1]).to(ids.device)
            rows = rows * ~(ids[:, None] == negative[None]).all(-1).any(1)
        rows = {"conditional": rows, "unconditional": 1 - rows, "both": torch.ones_like(rows)}[self.rows]
        attended = kwargs.get("attention_mask")
        mask = self._counted(getattr(self.pipe, encoder.tokenizer), ids, attended)
        return Call(rows, torch.arange(len(ids), device=ids.device), None, mask)

    def _counted(self, tokenizer: Any, ids: torch.Tensor, attended: torch.Tensor | None) -> torch.Tensor:
        """Positions of a text that count, float [texts, positions]."""
        mask = torch.ones(ids.shape, device=ids.device)
        begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        if begin is not None:
            mask = mask * ~((ids == begin) & ((ids == begin).cumsum(1) == 1))
        if attended is not None:
            mask = mask * (attended != 0)
        if self.positions == "words":
            ends = ids == end
            mask = mask * ~(ends.cumsum(1) - ends.long() > 0)
            if tokenizer.pad_token_id not in (None, end):
                mask = mask * (ids != tokenizer.pad_token_id)
        return mask

    # ---- the denoiser ------------------------------------------------------------------------------------------------

    def _denoiser_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        if not self._running:
            raise DSASError(
                "the denoiser ran outside the pipeline that is steered, so its rows are unknown: call that pipeline, "
                "or steer the one that you call"
            )
        every = {"conditional": (PROMPT, PERTURBED), "unconditional": (NEGATIVE,)}
        return self.of_prompts(args, kwargs, every.get(self.rows, (PROMPT, NEGATIVE, PERTURBED)))

    def of_prompts(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], steered: Collection[str] = (PROMPT,)
    ) -> Call:
        """A call of the denoiser; its rows are those of the prompts, picture by picture, or of other blocks as well."""
        sample = next((kwargs[name] for name in ("sample", "hidden_states") if name in kwargs), None)
        sample = args[0] if sample is None else sample
        timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
        batch, asked = len(sample), self.prompts * self.images_per_prompt
        device = sample[0].device
        self.skips = kwargs.get("skip_layers") is not None
        if sample.ndim == 4:
            self.latents = tuple(sample.shape[-2:])
        embeds = kwargs.get("encoder_hidden_states", args[2] if len(args) > 2 else None)
        blocks = self._blocks(batch, asked, embeds)
        owners = torch.arange(self.prompts, device=device).repeat_interleave(self.images_per_prompt)
        rows = torch.tensor([float(block in steered) for block in blocks], device=device).repeat_interleave(asked)
        return Call(rows, owners.repeat(len(blocks)), self._clock(timestep, device), joint=self._joint(sample, embeds))

    def _blocks(self, batch: int, asked: int, embeds: Any) -> tuple[str, ...]:
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
        if known is None or embeds is None:
            return False
        return embeds is known or (embeds.shape == known.shape and torch.equal(embeds, known.to(embeds)))

    def _clock(self, timestep: Any, device: torch.device) -> torch.Tensor:
        """The timestep as float [] from 0 (clean) to 1000 (noise), on the device of the sample."""
        value = torch.as_tensor(timestep, device=device).float().flatten()[0]
        noisy, clean = bounds_of(self.pipe)
        return (value - clean) / (noisy - clean) * 1000

    def _joint(self, sample: torch.Tensor, embeds: torch.Tensor | None) -> Joint | None:
        """How picture and prompt lie in one sequence, in a family that attends to both at once."""
        if embeds is None or not any(group.stream for groups in self.family.groups.values() for group in groups):
            return None
        patch = 1
        if sample.ndim == 4:
            denoiser = getattr(self.pipe, self.family.denoiser)
            patch = int(getattr(denoiser, "_orig_mod", denoiser).config.patch_size)
        count = sample.shape[1] if sample.ndim == 3 else (sample.shape[-2] // patch) * (sample.shape[-1] // patch)
        return Joint(int(count), int(embeds.shape[1]))


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


def _negatives(given: Mapping[str, Any], encoder: TextEncoder) -> list[str]:
    """The negative prompts that a text encoder will be given."""
    negative: str | Sequence[str] = given.get(encoder.negative) or given.get("negative_prompt") or ""
    return [negative] if isinstance(negative, str) else list(negative)
