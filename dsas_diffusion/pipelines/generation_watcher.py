"""What the current generation of a pipeline was asked for, observed where pipelines check and encode their prompts.

`GenerationWatcher` wraps a few of a pipeline's own methods (`check_inputs`, `encode_prompt`, `prepare_latents`,
`maybe_free_model_hooks`) and keeps their arguments as a `GenerationRequest`. A generation is one run of the pipeline's
`__call__`; its prompts are what the pipeline encodes before its denoiser runs. What callbacks encode later, and what
is encoded outside of any `__call__`, is not of a generation that runs.
"""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import FrameType
from typing import Any, Self

import torch

from dsas_core.errors import DSASError, UnavailableError, UnsupportedError

from .adapter import PipelineAdapter
from .text_reading import ENCODE, NEGATIVE, PROMPT, TextReading, as_list

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
    prompt_embeds: Any = None
    negative_embeds: Any = None
    patches: int | None = None

    @property
    def pictures(self) -> int:
        """How many are drawn at once."""
        return self.prompts * self.images_per_prompt


class GenerationWatcher:
    """Watches what a pipeline is asked for. A context manager; undone on exit.

    Several may watch a pipeline, one around another, that steerings own; who draws for another purpose is alone.

    Args:
        adapter: of the pipeline.
        on_begin: called with the request whenever a generation begins, if given.

    Attributes:
        owner: the steering that watches; None for who draws without one, as learning does.
        request: of the current generation.
        running: whether its prompts are encoded and its pictures are not finished.
        denoising: whether its denoiser has run; set by whoever sees that.
        reading: what text encoders read in the `encode_prompt` that runs right now; None outside of one.

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
        self.owner: object | None = None
        self.request = GenerationRequest()
        self.running = self.denoising = False
        self.reading: TextReading | None = None
        self._embeddings: list[tuple[weakref.ref[torch.Tensor], list[str] | None]] = []  # results, and their prompts
        self._checked: Mapping[str, Any] = {}  # arguments of `check_inputs`
        self._recorded = False  # whether a request is recorded whose latents are not prepared yet
        self._encoded = False  # whether prompts were encoded since `check_inputs`
        self._place = -1  # where in the pipeline's `__call__` its own prompts are encoded
        self._aside: GenerationRequest | None = None  # what was encoded after the denoiser had run
        self._watched: dict[str, _WatchedMethod] = {}

    def __enter__(self) -> Self:
        pipe = self.adapter.pipe
        encoding = [name for name in ENCODE if hasattr(type(pipe), name)]
        if not encoding:
            raise UnsupportedError(f"{type(pipe).__name__} has no {ENCODE[0]}, where its prompts would be seen")
        around = find_watchers(pipe)
        if around and (self.owner is None or any(other.owner is None for other in around)):
            raise DSASError(
                "this pipeline is being steered, or drawn with for learning, and both must not mix: wait until that "
                "ends, or end it (dsas.steered(pipe) returns the handles, dsas.detach(pipe) ends them)"
            )
        parameters = _signature(pipe, encoding[0]).parameters
        if "prompt" not in parameters:
            raise UnsupportedError(
                f"{type(pipe).__name__}.{encoding[0]} takes no prompt, so which rows are the prompt's is unknown: use "
                "a text-to-image pipeline of the same parts"
            )
        counts_pictures = "num_images_per_prompt" in parameters
        self._forget()
        for name in encoding:
            self._watch(name, partial(self._encode, _is_of_diffusers(pipe, name)))
        self._watch("maybe_free_model_hooks", self._end)
        if hasattr(type(pipe), "check_inputs"):
            self._watch("check_inputs", self._check)
        if hasattr(type(pipe), "prepare_latents"):
            self._watch("prepare_latents", self._prepare if counts_pictures else self._prepare_uncounted)
        return self

    def __exit__(self, *_: object) -> None:
        for name, watched in self._watched.items():
            watched.remove(self.adapter.pipe, name)
        self._watched.clear()

    def _watch(self, name: str, handler: _Handler) -> None:
        pipe = self.adapter.pipe
        self._watched[name] = _WatchedMethod(pipe, name, handler, self)
        setattr(pipe, name, self._watched[name])

    def _check(self, check: Callable[[], Any], arguments: dict[str, Any]) -> Any:
        self._find_call()  # raises where a generation runs within another
        self._forget()
        self._checked = arguments
        return check()

    def _prepare(self, prepare: Callable[[], Any], arguments: dict[str, Any]) -> Any:
        if self.denoising and self._aside is not None:  # it is a new generation, after one that broke off
            self._begin(self._aside)
        result = prepare()
        latents = result[0] if isinstance(result, tuple) else result
        packed = isinstance(latents, torch.Tensor) and latents.ndim == 3
        self.request = replace(self.request, patches=latents.shape[1] if packed else None)
        return result

    def _prepare_uncounted(self, prepare: Callable[[], Any], arguments: dict[str, Any]) -> Any:
        """For pipelines whose `encode_prompt` is not told how many pictures, nor called for ready-made embeddings."""
        pictures, call = int(arguments["batch_size"]), self._find_call()
        if self.denoising and self._aside is not None:
            self._begin(self._aside)
        elif not self._recorded:
            called = {} if call is None else call.f_locals
            embeds, each = called.get("prompt_embeds"), int(called.get("num_images_per_prompt") or 1)
            texts, source = self._recognise(embeds)
            request = GenerationRequest(prompts=pictures // each, texts=texts, embeddings=source, prompt_embeds=embeds)
            self._begin(replace(request, negative_embeds=called.get("negative_prompt_embeds")))
        self.request = replace(self.request, images_per_prompt=pictures // self.request.prompts)
        self._recorded = False
        return self._prepare(prepare, arguments)

    def _encode(self, in_order: bool, encode: Callable[[], Any], arguments: dict[str, Any]) -> Any:
        if self.reading is not None:  # one that calls another
            return encode()
        call = self._find_call()
        inside = call is not None
        if call is None or (self.denoising and not self._checked and call.f_lasti == self._place):
            self._forget()  # the latter is a new generation, after one that broke off
        negative = self._is_negative(arguments)
        request = None if negative else self._request_for(arguments)
        if request is not None and not self.denoising:
            self._encoded, self._recorded = bool(self._checked), inside
            self._place = call.f_lasti if call is not None else -1
            self._begin(request, inside or self.adapter.family.negative_encoding == "together")
        roles = (NEGATIVE,) if negative else self._roles(arguments)
        self.reading = TextReading(self.adapter.pipe, arguments, roles, in_order)
        try:
            result = encode()
        finally:
            self.reading = None
        parts = result if isinstance(result, tuple) else (result,)
        if request is None:
            self.request = replace(self.request, negative_embeds=parts[0])
            return result
        request = replace(request, **self._embeds_of(parts, request.pictures))
        if self.denoising:  # by a callback: the generation is still of its own prompts
            self._aside = request
        else:
            self.request = request
        tensors = [tensor for part in parts for tensor in (part if isinstance(part, list) else [part])]
        self._embeddings = [known for known in self._embeddings if known[0]() is not None] + [
            (weakref.ref(tensor), request.texts) for tensor in tensors if isinstance(tensor, torch.Tensor)
        ]
        return result

    def _end(self, free: Callable[[], Any], arguments: dict[str, Any]) -> Any:
        """Every pipeline's last act: the next call of its denoiser is of prompts that are still to come."""
        self._forget()
        return free()

    def _forget(self) -> None:
        """No generation runs."""
        self.running = self.denoising = self._encoded = self._recorded = False
        self._checked, self._aside = {}, None

    @property
    def generating(self) -> bool:
        """Whether the pipeline's own `__call__` is running."""
        return self._find_call() is not None

    def _find_call(self) -> FrameType | None:
        """The frame of the pipeline's `__call__` that runs right now, whose variables are its arguments; None outside.

        Raises:
            UnsupportedError: it runs twice, one within the other.
        """
        pipe, found = self.adapter.pipe, []
        methods = [inspect.unwrap(vars(kind)["__call__"]) for kind in type(pipe).__mro__ if "__call__" in vars(kind)]
        codes = {getattr(method, "__code__", None) for method in methods}
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            if frame.f_code in codes:
                first = next(iter(frame.f_locals.values()), None)  # perhaps *args, of somebody's wrapper
                if (first[0] if isinstance(first, tuple) and first else first) is pipe:
                    found.append(frame)
            frame = frame.f_back
        if len({running.f_code for running in found}) < len(found):
            raise UnsupportedError(
                f"a callback called {type(pipe).__name__} while it draws, which changes the scheduler and the prompts "
                "under the first generation: call it when that is done"
            )
        return found[0] if found else None

    def _is_negative(self, arguments: Mapping[str, Any]) -> bool:
        """Whether a generation that has encoded its prompt now encodes the negative one."""
        text, embeds = arguments.get("prompt"), arguments.get("prompt_embeds")
        if not self._encoded or self.denoising or self.adapter.family.negative_encoding == "together":
            return False
        if "negative_prompt" not in self._checked:  # pipelines that take none encode an empty one
            guided = bool(getattr(self.adapter.pipe, "do_classifier_free_guidance", False))
            return guided and text is not None and not any(as_list(text))
        if embeds is not None:
            return embeds is self._checked.get("negative_prompt_embeds")
        return text is not None and text == self._checked["negative_prompt"]

    def _roles(self, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """What an `encode_prompt` that is not of negative prompts alone encodes, in order."""
        if self.adapter.family.negative_encoding == "apart" or not arguments.get("do_classifier_free_guidance", True):
            return (PROMPT,)
        given = (arguments.get("prompt_embeds"), arguments.get("negative_prompt_embeds"))
        roles = tuple(role for role, embeds in zip((PROMPT, NEGATIVE), given, strict=True) if embeds is None)
        return roles or (PROMPT,)

    def _request_for(self, arguments: Mapping[str, Any]) -> GenerationRequest:
        """What a generation is asked for, from the arguments of `encode_prompt`."""
        embeds, texts = arguments.get("prompt_embeds"), as_list(arguments.get("prompt"))
        request = GenerationRequest(
            prompts=len(texts),
            texts=texts,
            images_per_prompt=int(arguments.get("num_images_per_prompt") or 1),
            clip_skip=int(arguments.get("clip_skip") or 0),
            encode_arguments=arguments,
        )
        if embeds is not None:
            known, source = self._recognise(embeds)
            return replace(request, prompts=len(embeds), texts=known, embeddings=source)
        if not self.adapter.text_encoders:
            raise UnavailableError(
                "the pipeline has no text encoder to read prompts with: load one, or pass prompt_embeds"
            )
        return request

    def _embeds_of(self, parts: Sequence[Any], pictures: int) -> dict[str, Any]:
        """The embeddings of prompts and of negative prompts in a result of `encode_prompt`.

        An older kind returns both as one tensor, whose rows are told as those of the denoiser are.
        """
        index = self.adapter.family.negative_index
        negative = None if index is None or index >= len(parts) else parts[index]
        first = parts[0] if isinstance(parts[0], list) or len(parts) > 1 or index is None else None
        return {"prompt_embeds": first, "negative_embeds": negative}

    def _recognise(self, embeds: Any) -> tuple[list[str] | None, str]:
        """The prompts of ready-made embeddings, where they are known, and where the embeddings come from."""
        first = embeds[0] if isinstance(embeds, list) and embeds else embeds
        known = [texts for tensor, texts in self._embeddings if first is not None and tensor() is first]
        texts = known[0] if known else None
        if texts is not None:  # perhaps they were encoded for several pictures each
            texts = [text for text in texts for _ in range(len(embeds) // len(texts))]
        return texts, "encoded here" if known else "given"

    def _begin(self, request: GenerationRequest, running: bool = True) -> None:
        self.request, self.running, self.denoising, self._aside = request, running, False, None
        if self.on_begin is not None:
            self.on_begin(request)


class _WatchedMethod:
    """A method of a pipeline that goes through a handler. A copy or pickle of the pipeline gets the method alone.

    Attributes:
        own: the method by its name, where the object had one of its own.
    """

    def __init__(self, pipe: Any, name: str, handler: _Handler, watcher: GenerationWatcher) -> None:
        self.pipe, self.name, self.handler, self.watcher = pipe, name, handler, watcher
        self.own = {key: own for key, own in vars(pipe).items() if key == name}
        self.method = getattr(pipe, name)  # perhaps a wrapper that somebody else has set, of any arguments
        self.__signature__ = _signature(pipe, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self.__signature__.bind(*args, **kwargs)
        bound.apply_defaults()
        return self.handler(lambda: self.method(*args, **kwargs), bound.arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.pipe, self.name)

    def remove(self, pipe: Any, name: str) -> None:
        """Put back what was there before, also from below another one."""
        above = next((other for other in _watched_methods(pipe, name) if other.method is self), None)
        if above is not None:
            above.method, above.own = self.method, self.own
        else:
            vars(pipe).pop(name, None)
            vars(pipe).update(self.own)


def _watched_methods(pipe: Any, name: str) -> Iterator[_WatchedMethod]:
    """The watched methods of that name on a pipeline, each around the next one."""
    method = vars(pipe).get(name)
    while isinstance(method, _WatchedMethod):
        yield method
        method = method.method


def find_watchers(pipe: Any) -> list[GenerationWatcher]:
    """Those who watch a pipeline now, the last one first."""
    return list(dict.fromkeys(method.watcher for name in ENCODE for method in _watched_methods(pipe, name)))


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


def _is_of_diffusers(pipe: Any, name: str) -> bool:
    """Whether a method of a pipeline comes with diffusers, and not from a subclass, or an object of somebody else."""
    own = name in vars(pipe)
    for watched in _watched_methods(pipe, name):
        own = name in watched.own  # at last that of the innermost
    return not own and str(getattr(type(pipe), name).__module__).startswith("diffusers.")
