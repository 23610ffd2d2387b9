"""Whose rows are these? Each call of a text encoder or denoiser as a `Call`: rows, prompts, timestep, mask.

Told by the family's table and by the prompts themselves, seen where every pipeline encodes them; never by counting
calls, never guessed: a batch that fits no rule raises.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self

import torch

from dsas_core.errors import DSASError
from dsas_core.hooks import Call, Describe

from .families import Family, family_of

ROWS = ("conditional", "both")
POSITIONS = ("words", "all")


class Rows:
    """Watches a pipeline's `encode_prompt` for the prompts of a generation. A context manager; undone on exit.

    Args:
        pipe: the pipeline.
        rows: "conditional" steers the rows of the prompt, "both" those of the negative prompt too.
        positions: in the text, "words" counts the tokens after the first up to the first end token, "all" also the
            padding behind it, which Stable Diffusion's denoiser reads as well.
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
        self.embeddings = ""  # "given" ready-made, or "made here" by an earlier encode_prompt; else made now
        self._made: list[tuple[weakref.ref[torch.Tensor], list[str] | None]] = []
        self._negative_ids: torch.Tensor | None = None
        self._original: Any = None

    def describe(self) -> dict[str, Describe]:
        """By root name, what tells its calls: for `hooks.visit`."""
        tell: dict[str, Describe] = {self.family.denoiser: self._denoiser_call}
        for name in self.family.text_encoders:
            tell[name] = self._text_call
        return tell

    def __enter__(self) -> Self:
        if "encode_prompt" in vars(self.pipe):
            raise DSASError("this pipeline is being steered already: pass all concepts to one steer()")
        self._original = self.pipe.encode_prompt
        signature = inspect.signature(self._original)

        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            self._note(given.arguments)
            made = self._original(*args, **kwargs)
            self._made = [known for known in self._made if known[0]() is not None]
            self._made += [(weakref.ref(tensor), self.texts) for tensor in made if isinstance(tensor, torch.Tensor)]
            return made

        self.pipe.encode_prompt = encode_prompt
        return self

    def __exit__(self, *_: object) -> None:
        if self._original is not None:
            del self.pipe.encode_prompt
            self._original = None

    def _note(self, given: dict[str, Any]) -> None:
        """Remember what a generation is asked for."""
        prompt, embeds = given.get("prompt"), given.get("prompt_embeds")
        ours = [texts for made, texts in self._made if made() is embeds]
        self.embeddings = "" if embeds is None else "made here" if ours else "given"
        self.prompts = len(embeds) if embeds is not None else len(prompt) if isinstance(prompt, list) else 1
        if embeds is None:
            self.texts = prompt if isinstance(prompt, list) else [prompt or ""]
        else:
            self.texts = ours[0] if ours else None
        self.images_per_prompt = int(given.get("num_images_per_prompt") or 1)
        self._negative_ids = None
        if given.get("do_classifier_free_guidance", True):
            negative = given.get("negative_prompt") or ""
            self._negative_ids = self.tokenised([negative] if isinstance(negative, str) else list(negative))
        if self.on_prompts is not None:
            self.on_prompts(self.prompts)

    def tokenised(self, texts: list[str]) -> torch.Tensor:
        """Token ids of texts as the text encoder reads them, int64 [texts, positions]: padded, and cut off."""
        options = {"padding": "max_length", "max_length": self.pipe.tokenizer.model_max_length, "truncation": True}
        return self.pipe.tokenizer(self._converted(texts), return_tensors="pt", **options).input_ids

    def spelled(self, text: str) -> list[int]:
        """Token ids of a text as it stands within a prompt."""
        return self.pipe.tokenizer(self._converted([text]), add_special_tokens=False).input_ids[0]

    def _converted(self, texts: list[str]) -> list[str]:
        """Texts with what textual inversion has learned spelled out: one word, several tokens."""
        if hasattr(self.pipe, "maybe_convert_prompt"):
            return self.pipe.maybe_convert_prompt(texts, self.pipe.tokenizer)
        return texts

    def _denoiser_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        call = self.of_prompts(args, kwargs)
        return call if self.rows == "conditional" else replace(call, rows=torch.ones_like(call.rows))

    def of_prompts(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """A call of the denoiser; its rows are those of the prompts, picture by picture, whatever is steered."""
        sample = kwargs["sample"] if "sample" in kwargs else args[0]
        timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
        batch, asked = len(sample), self.prompts * self.images_per_prompt
        device = sample.device
        self.latents = tuple(sample.shape[-2:])
        if asked == 0:
            raise DSASError("the denoiser ran outside the pipeline, so its rows are unknown: call the pipeline itself")
        owners = torch.arange(self.prompts, device=device).repeat_interleave(self.images_per_prompt)
        if batch == asked:
            rows = torch.ones(batch, device=device)
        elif batch == 2 * asked:
            halves = [torch.zeros(asked, device=device), torch.ones(asked, device=device)]
            rows = torch.cat(halves if self.family.unconditional_first else halves[::-1])
            owners = owners.repeat(2)
        else:
            raise DSASError(
                f"{asked} pictures were asked for, but the denoiser got {batch} rows: expected {asked} or {2 * asked}"
            )
        return Call(rows, owners, _clock(timestep, self.family, device))

    def _text_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        ids = kwargs["input_ids"] if kwargs.get("input_ids") is not None else args[0]
        batch = len(ids)
        rows = torch.ones(batch, device=ids.device)
        negative = self._negative_ids
        if self.rows == "conditional" and negative is not None and negative.shape[1] == ids.shape[1]:
            same = (ids[:, None] == negative.to(ids.device)[None]).all(-1).any(1)
            rows = rows * ~same
        mask = torch.ones(ids.shape, device=ids.device)
        mask[:, 0] = 0
        if self.positions == "words":
            end = self.pipe.tokenizer.eos_token_id
            behind = (ids == end).cumsum(1) - (ids == end).long() > 0
            mask = mask * ~behind
        return Call(rows, torch.arange(batch, device=ids.device), None, mask)


def _clock(timestep: Any, family: Family, device: torch.device) -> torch.Tensor:
    """The timestep as float [] from 0 (clean) to 1000 (noise), on the device of the sample."""
    value = torch.as_tensor(timestep, device=device).float().flatten()[0]
    noisy, clean = family.bounds
    return (value - clean) / (noisy - clean) * 1000
