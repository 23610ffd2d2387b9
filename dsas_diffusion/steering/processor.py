"""`DSASAttnProcessor`: steering as an attention processor, for those who compose processors themselves.

It runs the processor that was there and steers its output, which is what a hook on the attention layer receives: both
give the same pictures, bit for bit. Hooks are the better default: they stay when diffusers replaces processors
(attention slicing, fused projections, IP-Adapters), and text encoders have no processors.

Example:
    >>> import torch
    >>> from diffusers.models.attention_processor import AttnProcessor
    >>> from dsas_core import Concept, Intervention, maps, probes
    >>> from dsas_diffusion import find_sites, load_pipeline, steer
    >>> pipe = load_pipeline("builtin:emoji", device="cpu")
    >>> site, always = find_sites(pipe, "cross")[0], probes.ConstantProbe(1.0)
    >>> shift = maps.AffineMap(torch.ones(pipe.unet.get_submodule(site.path.removeprefix("unet.")).query_dim))
    >>> concept = Concept("mine", (Intervention(site, (always,), (shift,), (1.0,)),))  # or one learned at the denoiser
    >>> with steer(pipe, {concept: 1.0}, attach="processor") as steering:
    ...     pipe.unet.set_attn_processor(steering.attn_processors(AttnProcessor()))  # in place of the model's own
    ...     image = pipe("a fruit and a dog", num_inference_steps=1).images[0]
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

from torch import nn

from dsas_core.errors import DSASError, UnsupportedError
from dsas_core.model.sites import Site, canonical_path


class Steers(Protocol):
    """Steers the activation at a site."""

    def bring(self, site: Site, value: Any) -> Any: ...


def _of_inner(name: str) -> Any:
    """An attribute that is read from the inner processor, and set there."""

    def get(self: DSASAttnProcessor) -> Any:
        return getattr(self.inner, name)

    def put(self: DSASAttnProcessor, value: Any) -> None:
        setattr(self.inner, name, value)

    return property(get, put)


class DSASAttnProcessor:
    """An attention processor that steers the output of another.

    Args:
        inner: the processor that computes attention.
        attention: the layer that this processor is for.
        sites: those of the layer: its output, of joint attention perhaps both streams.
        steering: what steers them.

    Raises:
        UnsupportedError: an inner processor with weights, which diffusers loads and finds by its class.
        DSASError: an inner processor that steers already; when called, a layer other than its own.

    Example:
        >>> class Double:
        ...     def bring(self, site, value): return 2 * value
        >>> def inner(attention, hidden_states): return hidden_states
        >>> layer = nn.Identity()
        >>> DSASAttnProcessor(inner, layer, [Site("unet.attn")], Double())(layer, 3)
        6
    """

    def __new__(cls, inner: Any, *_: Any) -> DSASAttnProcessor:
        return object.__new__(_with_signature_of(type(inner)))  # type: ignore[arg-type]

    def __init__(self, inner: Any, attention: nn.Module, sites: Sequence[Site], steering: Steers) -> None:
        if isinstance(inner, nn.Module):
            raise UnsupportedError(
                f"{type(inner).__name__} has weights of its own, as IP-Adapters do, which diffusers must find where "
                'they are: steer with attach="hooks", which leaves processors alone'
            )
        if isinstance(inner, DSASAttnProcessor):
            raise DSASError("an attention layer is steered already: pass all concepts to one steer()")
        self.inner, self.attention, self.sites, self.steering = inner, attention, tuple(sites), steering

    def __call__(self, attn: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if attn is not self.attention:
            raise DSASError(
                "one DSASAttnProcessor serves one attention layer, this one is called by another: set the dict that "
                "steering.attn_processors() gives, which has one for each"
            )
        value = self.inner(attn, *args, **kwargs)
        for site in self.sites:
            value = self.steering.bring(site, value)
        return value

    # diffusers sets these for the processor that computes attention

    _attention_backend = _of_inner("_attention_backend")
    _parallel_config = _of_inner("_parallel_config")

    # a copy or pickle of the model is not steered, as with hooks

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.inner, memo)

    def __reduce__(self) -> tuple[Any, ...]:
        return copy.copy, (self.inner,)


@cache
def _with_signature_of(kind: Any) -> type[DSASAttnProcessor]:
    """The class with the signature of another: diffusers drops arguments that a `__call__` does not name."""

    def new(cls: Any, *args: Any) -> Any:
        # diffusers calls `type(processor)()` where it replaces one: give it another of the inner kind
        return object.__new__(cls) if args else kind()

    def call(self: DSASAttnProcessor, attn: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return DSASAttnProcessor.__call__(self, attn, *args, **kwargs)

    call.__wrapped__ = kind.__call__  # type: ignore[attr-defined]  # `inspect.signature` follows it, compiled too
    members = {"__new__": new, "__call__": call, "__module__": __name__}
    return type(DSASAttnProcessor.__name__, (DSASAttnProcessor,), members)


def attention_layers(denoiser: nn.Module) -> dict[str, nn.Module]:
    """The layers of a denoiser that have a processor, by the processor's key in `attn_processors`."""
    return {f"{path}.processor": layer for path, layer in denoiser.named_modules() if hasattr(layer, "set_processor")}


class SteeredProcessors:
    """The attention processors of a denoiser that steer the outputs of their layers.

    Args:
        denoiser: the model.
        root: its name in the paths of sites.
        sites: those that are outputs of attention layers are steered here, others are left to hooks.

    Raises:
        UnsupportedError: a denoiser without `set_attn_processor`, as Lumina's and Z-Image's.
    """

    def __init__(self, denoiser: Any, root: str, sites: Sequence[Site]) -> None:
        if sites and not hasattr(denoiser, "set_attn_processor"):
            raise UnsupportedError(f'{type(denoiser).__name__} has no set_attn_processor: steer with attach="hooks"')
        self._denoiser = denoiser
        self._replaced: dict[str, Any] = {}  # the processors in place of which others steer now
        self._sites: dict[str, list[Site]] = {}  # by the key of their processor
        for key in attention_layers(denoiser) if sites else ():
            path = canonical_path(f"{root}.{key.removesuffix('.processor')}")
            here = [site for site in sites if site.path == path and site.side == "output"]
            if here:
                self._sites[key] = here

    @property
    def sites(self) -> list[Site]:
        """The sites that are steered here."""
        return [site for here in self._sites.values() for site in here]

    def build(self, steering: Steers, inner: Any = None) -> dict[str, Any]:
        """Processors for `set_attn_processor`, one for each layer; those at sites steer, the others are unchanged.

        Args:
            steering: what steers at the sites. It is not kept here, so that the two do not hold each other.
            inner: the processor that computes attention at the sites; None for that of each layer.
        """
        layers = attention_layers(self._denoiser)
        processors = {key: _unwrapped(layer) for key, layer in layers.items()}
        for key, sites in self._sites.items():
            computes = processors[key] if inner is None else inner
            processors[key] = DSASAttnProcessor(computes, layers[key], sites, steering)
        return processors

    def replace(self, steering: Steers) -> None:
        """Set steering processors in the denoiser; without sites it is left alone."""
        if self._sites:
            processors, own = self.build(steering), self._denoiser.attn_processors
            self._denoiser.set_attn_processor(processors)
            self._replaced = {key: own[key] for key in self._sites}

    def restore(self) -> None:
        """Put the replaced processors back, except where somebody else has set another since."""
        if self._replaced:
            now = self._denoiser.attn_processors
            ours = [key for key in self._replaced if isinstance(now.get(key), DSASAttnProcessor)]
            self._denoiser.set_attn_processor({**now, **{key: self._replaced[key] for key in ours}})
            self._replaced = {}


def _unwrapped(layer: nn.Module) -> Any:
    """The processor of a layer, or the inner one of a processor that steers."""
    processor = layer.processor
    return processor.inner if isinstance(processor, DSASAttnProcessor) else processor
