"""What the current generation of a pipeline was asked for, observed where pipelines check and encode their prompts.

`GenerationWatcher` wraps a few of a pipeline's own methods (`check_inputs`, `encode_prompt`, `prepare_latents`,
`maybe_free_model_hooks`) and keeps their arguments as a `GenerationRequest`. It counts no calls.
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

#: given a call of a watched method and its arguments by name; makes the call and returns its result
_Handler = Callable[[Callable[[], Any], dict[str, Any]], Any]


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """What a generation was asked for, as far as it has come.

    Args:
        prompts: how many.
        texts: the prompts themselves, where they are known.
        images_per_prompt: pictures of each prompt.
        clip_skip: how many of CLIP's last layers are left out.
        embeddings: where the embeddings of the prompts come from: "" for computed now, "given" for ready-made,
            "encoded here" for ready-made by an earlier `encode_prompt` that was watched.
        encode_arguments: what `encode_prompt` was called with, by name.
        negative_texts: negative prompts by text encoder, where they are encoded together with the prompts.
        ambiguous: text encoders that read the same for prompts and for negative prompts.
        prompt_embeds: the embeddings of the prompts.
        negative_embeds: the embeddings of the negative prompts.
        patches: positions of a packed picture, without those of pictures that it is drawn from; None for unpacked ones.
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
        """How many are drawn at once."""
        return self.prompts * self.images_per_prompt


class GenerationWatcher:
    """Watches what a pipeline is asked for. A context manager; undone on exit.

    Args:
        adapter: of the pipeline.
        on_begin: called with the request whenever a generation begins, if given.

    Attributes:
        request: of the current generation.
        running: whether its prompts are encoded and its pictures are not finished.
        encoding: whether the pipeline encodes prompts or negative prompts right now.
        encoding_negatives: whether it encodes negative prompts, and them alone.

    Example:
        >>> from dsas_diffusion import load_pipeline
        >>> from dsas_diffusion.pipelines.adapter import adapt
        >>> adapter = adapt(load_pipeline("builtin:emoji", device="cpu"))
        >>> with GenerationWatcher(adapter, lambda request: None) as watcher:
        ...     images = adapter.pipe("a banana", num_inference_steps=1, output_type="latent").images
        >>> watcher.request.texts, watcher.request.pictures
        (['a banana'], 1)
    """

    def __init__(self, adapter: PipelineAdapter, on_begin: Callable[[GenerationRequest], object] | None = None) -> None:
        self.adapter, self.on_begin = adapter, on_begin
        self.request = GenerationRequest()
        self.running = self.encoding = self.encoding_negatives = False
        self._embeddings: list[tuple[weakref.ref[torch.Tensor], list[str] | None]] = []  # results, and their prompts
        self._checked: Mapping[str, Any] = {}  # arguments of `check_inputs`, where negative prompts are encoded apart
        self._recorded = False  # whether a request is recorded whose latents are not prepared yet
        self._encoded = False  # whether prompts were encoded since `check_inputs`
        self._overridden: dict[str, dict[str, Any]] = {}  # of the watched methods, those that the object itself had

    def __enter__(self) -> Self:
        pipe = self.adapter.pipe
        encode = next((name for name in ENCODE if hasattr(type(pipe), name)), "")
        if not encode:
            raise UnsupportedError(f"{type(pipe).__name__} has no {ENCODE[0]}, where its prompts would be seen")
        if isinstance(vars(pipe).get(encode), _WatchedMethod):
            raise DSASError("this pipeline is being steered already: pass all concepts to one steer()")
        counts_pictures = "num_images_per_prompt" in _signature(pipe, encode).parameters
        self._watch(encode, self._encode)
        self._watch("maybe_free_model_hooks", self._end)
        if self.adapter.family.negative_encoding == "apart":
            self._watch("check_inputs", self._check)
        if hasattr(type(pipe), "prepare_latents"):
            self._watch("prepare_latents", self._prepare if counts_pictures else self._prepare_uncounted)
        return self

    def __exit__(self, *_: object) -> None:
        pipe = self.adapter.pipe
        for name, own in self._overridden.items():
            delattr(pipe, name)
            vars(pipe).update(own)
        self._overridden.clear()

    def _watch(self, name: str, handler: _Handler) -> None:
        pipe = self.adapter.pipe
        self._overridden[name] = {key: own for key, own in vars(pipe).items() if key == name}
        setattr(pipe, name, _WatchedMethod(pipe, name, handler))

    def _check(self, check: Callable[[], Any], arguments: dict[str, Any]) -> Any:
        self._checked, self._encoded = arguments, False
        return check()

    def _prepare(self, prepare: Callable[[], Any], arguments: dict[str, Any]) -> Any:
        result = prepare()
        latents = result[0] if isinstance(result, tuple) else result
        packed = isinstance(latents, torch.Tensor) and latents.ndim == 3
        self.request = replace(self.request, patches=latents.shape[1] if packed else None)
        return result

    def _prepare_uncounted(self, prepare: Callable[[], Any], arguments: dict[str, Any]) -> Any:
        """For pipelines whose `encode_prompt` is not told how many pictures, nor called for ready-made embeddings."""
        pictures = int(arguments["batch_size"])
        if not self._recorded:
            encoded_here = any(tensor() is not None for tensor, _ in self._embeddings)
            embeddings = "encoded here" if encoded_here else "given"
            self._begin(replace(self.request, prompts=pictures, texts=None, embeddings=embeddings))
        self.request = replace(self.request, images_per_prompt=pictures // self.request.prompts)
        self._recorded = False
        return self._prepare(prepare, arguments)

    def _encode(self, encode: Callable[[], Any], arguments: dict[str, Any]) -> Any:
        negative = self._is_negative(arguments)
        if not negative:
            self._record(arguments)
        self.encoding, self.encoding_negatives = True, negative
        try:
            result = encode()
        finally:
            self.encoding = self.encoding_negatives = False
        parts = result if isinstance(result, tuple) else (result,)
        if negative:
            self.request = replace(self.request, negative_embeds=parts[0])
            return result
        index = self.adapter.family.negative_index
        negative_embeds = None if index is None else parts[index]
        self.request = replace(self.request, prompt_embeds=parts[0], negative_embeds=negative_embeds)
        tensors = [tensor for part in parts for tensor in (part if isinstance(part, list) else [part])]
        self._embeddings = [known for known in self._embeddings if known[0]() is not None] + [
            (weakref.ref(tensor), self.request.texts) for tensor in tensors if isinstance(tensor, torch.Tensor)
        ]
        return result

    def _end(self, free: Callable[[], Any], arguments: dict[str, Any]) -> Any:
        """Every pipeline's last act: the next call of its denoiser is of prompts that are still to come."""
        self.running, self._encoded, self._checked = False, False, {}
        return free()

    def _is_negative(self, arguments: Mapping[str, Any]) -> bool:
        """Whether a generation that has encoded its prompt now encodes the negative one."""
        text, embeds = arguments.get("prompt"), arguments.get("prompt_embeds")
        if not self._encoded:
            return False
        if "negative_prompt" not in self._checked:  # pipelines that take none encode an empty one
            guided = bool(getattr(self.adapter.pipe, "do_classifier_free_guidance", False))
            return guided and text is not None and not any(_as_list(text))
        if embeds is not None:
            return embeds is self._checked.get("negative_prompt_embeds")
        return text is not None and text == self._checked["negative_prompt"]

    def _record(self, arguments: Mapping[str, Any]) -> None:
        """Record what a generation is asked for, from the arguments of `encode_prompt`."""
        self._encoded, self._recorded = bool(self._checked), True
        family, embeds, texts = self.adapter.family, arguments.get("prompt_embeds"), _as_list(arguments.get("prompt"))
        together = family.negative_encoding == "together" and arguments.get("do_classifier_free_guidance", True)
        encoders = family.encoders if together else ()
        request = GenerationRequest(
            prompts=len(texts),
            texts=texts,
            images_per_prompt=int(arguments.get("num_images_per_prompt") or 1),
            clip_skip=int(arguments.get("clip_skip") or 0),
            encode_arguments=arguments,
            negative_texts={item.part: _negative_texts(arguments, item) for item in encoders} if together else None,
            ambiguous=frozenset(item.part for item in encoders if embeds is None and _is_ambiguous(arguments, item)),
        )
        if embeds is not None:
            known, source = self._recognise(embeds)
            request = replace(request, prompts=len(embeds), texts=known, embeddings=source)
        elif not self.adapter.text_encoders:
            raise UnavailableError(
                "the pipeline has no text encoder to read prompts with: load one, or pass prompt_embeds"
            )
        self._begin(request)

    def _recognise(self, embeds: Any) -> tuple[list[str] | None, str]:
        """The prompts of ready-made embeddings, where they are known, and where the embeddings come from."""
        first = embeds[0] if isinstance(embeds, list) else embeds
        known = [texts for tensor, texts in self._embeddings if tensor() is first]
        texts = known[0] if known else None
        if texts is not None:  # perhaps they were encoded for several pictures each
            texts = [text for text in texts for _ in range(len(embeds) // len(texts))]
        return texts, "encoded here" if known else "given"

    def _begin(self, request: GenerationRequest) -> None:
        self.request, self.running = request, True
        if self.on_begin is not None:
            self.on_begin(request)


class _WatchedMethod:
    """A method of a pipeline that goes through a handler. A copy or pickle of the pipeline gets the method alone."""

    def __init__(self, pipe: Any, name: str, handler: _Handler) -> None:
        self.pipe, self.name, self.handler = pipe, name, handler
        self.method = getattr(pipe, name)  # perhaps a wrapper that somebody else has set, of any arguments
        self.__signature__ = _signature(pipe, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self.__signature__.bind(*args, **kwargs)
        bound.apply_defaults()
        return self.handler(lambda: self.method(*args, **kwargs), bound.arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.pipe, self.name)


def _signature(pipe: Any, name: str) -> inspect.Signature:
    """The signature of a pipeline's method, from the class that names its arguments.

    Subclasses may hand some on as *args and **kwargs, among which prompts could not be told from negative prompts: then
    it is that of a class above which names them all, or the most.

    Raises:
        UnsupportedError: no class names any.
    """
    unnamed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    partial: list[tuple[int, inspect.Signature]] = []
    for kind in type(pipe).__mro__:
        if name in vars(kind):
            signature = inspect.signature(vars(kind)[name].__get__(pipe))
            named = sum(parameter.kind not in unnamed for parameter in signature.parameters.values())
            if named == len(signature.parameters):
                return signature
            partial.append((named, signature))
    most, signature = max(partial, key=lambda entry: entry[0])
    if not most:
        raise UnsupportedError(
            f"{type(pipe).__name__}.{name} names none of its arguments, so that prompts cannot be told from negative "
            "prompts: write them out, as the pipelines of diffusers do"
        )
    return signature


def _as_list(text: str | Sequence[str] | None) -> list[str]:
    """Prompts as a pipeline takes them, as a list."""
    return [text or ""] if text is None or isinstance(text, str) else list(text)


def _negative_texts(arguments: Mapping[str, Any], encoder: TextEncoder) -> list[str]:
    """The negative prompts that a text encoder will be given."""
    return _as_list(arguments.get(encoder.negative_argument) or arguments.get("negative_prompt"))


def _is_ambiguous(arguments: Mapping[str, Any], encoder: TextEncoder) -> bool:
    """Whether a text encoder will be given the same for prompts and for negative prompts."""
    prompts = _as_list(arguments.get(encoder.negative_argument.removeprefix("negative_")) or arguments.get("prompt"))
    negatives = _negative_texts(arguments, encoder)
    return prompts == (negatives if len(negatives) > 1 else negatives * len(prompts))
