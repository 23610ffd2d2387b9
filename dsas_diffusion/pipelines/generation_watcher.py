"""What the current generation of a pipeline was asked for, seen where every pipeline checks and encodes its prompts.

`GenerationWatcher` puts itself between a pipeline and its own methods (`check_inputs`, `encode_prompt`,
`prepare_latents`, `maybe_free_model_hooks`) and keeps what they are called with as a `GenerationRequest`. It counts no
calls.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch

from dsas_core.errors import DSASError, UnavailableError, UnsupportedError

from .adapter import PipelineAdapter
from .families.spec import TextEncoder

#: what pipelines call the method that encodes prompts; the second in an InstructPix2Pix
ENCODE = ("encode_prompt", "_encode_prompt")

#: given a call of a watched method and what it is called with, by name; makes the call and gives what it made
_Handler = Callable[[Callable[[], Any], dict[str, Any]], Any]


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """What a generation was asked for, as far as it has come.

    Args:
        prompts: how many. texts: the prompts themselves, where they are known.
        images_per_prompt: pictures of each prompt.
        clip_skip: the last layers of CLIP that are left out.
        embeddings: where the embeddings of the prompts come from: "" for made now, "given" for ready-made, "made here"
            for made by an earlier `encode_prompt` that was watched.
        encode_arguments: what the prompts were encoded with, by name.
        negative_texts: negative prompts by text encoder, where they are encoded together with the prompts.
        ambiguous: text encoders that read the same for prompts and for negative prompts.
        prompt_embeds, negative_embeds: what was made of the prompts and of the negative prompts.
        patches: positions of a picture that is packed, without those of pictures to go by; None for unpacked ones.
    """

    prompts: int = 0
    texts: list[str] | None = None
    images_per_prompt: int = 1
    clip_skip: int = 0
    embeddings: str = ""
    encode_arguments: Mapping[str, Any] = field(default_factory=dict)
    negative_texts: Mapping[str, list[str]] | None = None
    ambiguous: frozenset[str] = frozenset()
    prompt_embeds: torch.Tensor | None = None
    negative_embeds: torch.Tensor | None = None
    patches: int | None = None

    @property
    def pictures(self) -> int:
        """How many are made at once."""
        return self.prompts * self.images_per_prompt


class GenerationWatcher:
    """Watches what a pipeline is asked for. A context manager; undone on exit.

    Args:
        adapter: of the pipeline.
        on_begin: called with the request whenever a generation begins.

    Attributes:
        request: of the current generation.
        running: whether its prompts are encoded and its pictures are not yet made.
        encoding: whether the pipeline encodes prompts or negative prompts right now.
        encoding_negatives: whether it encodes negative prompts, and them alone.
    """

    def __init__(self, adapter: PipelineAdapter, on_begin: Callable[[GenerationRequest], object]) -> None:
        self.adapter, self.on_begin = adapter, on_begin
        self.request = GenerationRequest()
        self.running = self.encoding = self.encoding_negatives = False
        self._made: list[tuple[weakref.ref[torch.Tensor], list[str] | None]] = []  # embeddings, and their prompts
        self._checked: Mapping[str, Any] = {}  # what a generation was called with, where it says so before it encodes
        self._noted = False  # whether a generation has encoded what it is asked for, and not yet prepared its latents
        self._encoded = False  # whether it has encoded its prompts since `check_inputs`
        self._own: dict[str, dict[str, Any]] = {}  # of the methods that are watched, those the pipeline had for itself

    def __enter__(self) -> Self:
        pipe = self.adapter.pipe
        encode = next((name for name in ENCODE if hasattr(type(pipe), name)), "")
        if not encode:
            raise UnsupportedError(f"{type(pipe).__name__} has no {ENCODE[0]}, where its prompts would be seen")
        if isinstance(vars(pipe).get(encode), _WatchedMethod):
            raise DSASError("this pipeline is being steered already: pass all concepts to one steer()")
        counts_pictures = "num_images_per_prompt" in inspect.signature(getattr(type(pipe), encode)).parameters
        self._watch(encode, self._encode)
        self._watch("maybe_free_model_hooks", self._end)
        if self.adapter.family.negative_encoding == "apart":
            self._watch("check_inputs", self._check)
        if hasattr(type(pipe), "prepare_latents"):
            self._watch("prepare_latents", self._prepare if counts_pictures else self._prepare_uncounted)
        return self

    def __exit__(self, *_: object) -> None:
        pipe = self.adapter.pipe
        for name, own in self._own.items():
            delattr(pipe, name)
            vars(pipe).update(own)
        self._own.clear()

    def _watch(self, name: str, handler: _Handler) -> None:
        pipe = self.adapter.pipe
        self._own[name] = {key: own for key, own in vars(pipe).items() if key == name}
        setattr(pipe, name, _WatchedMethod(pipe, name, handler))

    def _check(self, check: Callable[[], Any], arguments: dict[str, Any]) -> Any:
        self._checked, self._encoded = arguments, False
        return check()

    def _prepare(self, prepare: Callable[[], Any], arguments: dict[str, Any]) -> Any:
        made = prepare()
        latents = made[0] if isinstance(made, tuple) else made
        packed = isinstance(latents, torch.Tensor) and latents.ndim == 3
        self.request = replace(self.request, patches=latents.shape[1] if packed else None)
        return made

    def _prepare_uncounted(self, prepare: Callable[[], Any], arguments: dict[str, Any]) -> Any:
        """Of pipelines that do not say before how many pictures are asked for, nor encode what is given ready-made."""
        pictures = int(arguments["batch_size"])
        if not self._noted:
            made_here = any(made() is not None for made, _ in self._made)
            embeddings = "made here" if made_here else "given"
            self._begin(replace(self.request, prompts=pictures, texts=None, embeddings=embeddings))
        self.request = replace(self.request, images_per_prompt=pictures // self.request.prompts)
        self._noted = False
        return self._prepare(prepare, arguments)

    def _encode(self, encode: Callable[[], Any], arguments: dict[str, Any]) -> Any:
        negative = self._is_negative(arguments)
        if not negative:
            self._note(arguments)
        self.encoding, self.encoding_negatives = True, negative
        try:
            made = encode()
        finally:
            self.encoding = self.encoding_negatives = False
        if negative:
            self.request = replace(self.request, negative_embeds=made[0])
            return made
        parts = made if isinstance(made, tuple) else (made,)
        self.request = replace(self.request, prompt_embeds=parts[0])
        tensors = [tensor for part in parts for tensor in (part if isinstance(part, list) else [part])]
        self._made = [known for known in self._made if known[0]() is not None]
        self._made += [
            (weakref.ref(tensor), self.request.texts) for tensor in tensors if isinstance(tensor, torch.Tensor)
        ]
        if self.adapter.family.negative_index is not None:
            self.request = replace(self.request, negative_embeds=parts[self.adapter.family.negative_index])
        return made

    def _end(self, free: Callable[[], Any], arguments: dict[str, Any]) -> Any:
        """Every pipeline's last act: the next call of its denoiser is of prompts that are still to come."""
        self.running, self._encoded, self._checked = False, False, {}
        return free()

    def _is_negative(self, arguments: Mapping[str, Any]) -> bool:
        """Whether a generation that has encoded its prompt goes on with the negative one."""
        text, embeds = arguments.get("prompt"), arguments.get("prompt_embeds")
        if not self._encoded:
            return False
        if "negative_prompt" not in self._checked:  # of pipelines that are told none it has no words
            guided = bool(getattr(self.adapter.pipe, "do_classifier_free_guidance", False))
            return guided and text is not None and not any(_listed(text))
        if embeds is not None:
            return embeds is self._checked.get("negative_prompt_embeds")
        return text is not None and text == self._checked["negative_prompt"]

    def _note(self, arguments: Mapping[str, Any]) -> None:
        """A generation says what it is asked for: keep it."""
        self._encoded, self._noted = bool(self._checked), True
        family, embeds = self.adapter.family, arguments.get("prompt_embeds")
        listed = _listed(arguments.get("prompt"))
        texts: list[str] | None = listed
        prompts, embeddings, ambiguous = len(listed), "", frozenset[str]()
        negative_texts: dict[str, list[str]] | None = None
        if family.negative_encoding == "together" and arguments.get("do_classifier_free_guidance", True):
            negative_texts = {encoder.part: _negative_texts(arguments, encoder) for encoder in family.encoders}
            ambiguous = frozenset(encoder.part for encoder in family.encoders if _is_ambiguous(arguments, encoder))
        if embeds is not None:
            prompts, ambiguous = len(embeds), frozenset()
            texts, embeddings = self._recognise(embeds)
        elif not self.adapter.text_encoders:
            raise UnavailableError(
                "the pipeline has no text encoder to read prompts with: load one, or pass prompt_embeds"
            )
        self._begin(
            GenerationRequest(
                prompts=prompts,
                texts=texts,
                images_per_prompt=int(arguments.get("num_images_per_prompt") or 1),
                clip_skip=int(arguments.get("clip_skip") or 0),
                embeddings=embeddings,
                encode_arguments=arguments,
                negative_texts=negative_texts,
                ambiguous=ambiguous,
            )
        )

    def _recognise(self, embeds: Any) -> tuple[list[str] | None, str]:
        """The prompts of embeddings that are given, where they are known, and where the embeddings come from."""
        one = embeds[0] if isinstance(embeds, list) else embeds
        ours = [texts for made, texts in self._made if made() is one]
        texts = ours[0] if ours else None
        if texts is not None:  # perhaps they were made for several pictures each
            texts = [text for text in texts for _ in range(len(embeds) // len(texts))]
        return texts, "made here" if ours else "given"

    def _begin(self, request: GenerationRequest) -> None:
        self.request, self.running = request, True
        self.on_begin(request)


class _WatchedMethod:
    """A method of a pipeline that goes through a handler. A copy or pickle of the pipeline gets the method alone."""

    def __init__(self, pipe: Any, name: str, handler: _Handler) -> None:
        self.pipe, self.name, self.handler = pipe, name, handler
        self.method = getattr(pipe, name)  # perhaps somebody's own around the pipeline's, of any arguments
        self.__signature__ = inspect.signature(getattr(type(pipe), name).__get__(pipe))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = self.__signature__.bind(*args, **kwargs)
        given.apply_defaults()
        return self.handler(lambda: self.method(*args, **kwargs), given.arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.pipe, self.name)


def _listed(text: str | Sequence[str] | None) -> list[str]:
    """Prompts as a pipeline takes them, each on its own."""
    return [text or ""] if text is None or isinstance(text, str) else list(text)


def _negative_texts(arguments: Mapping[str, Any], encoder: TextEncoder) -> list[str]:
    """The negative prompts that a text encoder will be given."""
    return _listed(arguments.get(encoder.negative_argument) or arguments.get("negative_prompt"))


def _is_ambiguous(arguments: Mapping[str, Any], encoder: TextEncoder) -> bool:
    """Whether a text encoder will be given the same for prompts and for negative prompts."""
    prompts = _listed(arguments.get(encoder.negative_argument.removeprefix("negative_")) or arguments.get("prompt"))
    negatives = _negative_texts(arguments, encoder)
    return prompts == (negatives if len(negatives) > 1 else negatives * len(prompts))
