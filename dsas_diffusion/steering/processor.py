"""`DSASAttnProcessor`: steering as an attention processor, for those who compose processors themselves.

It runs the processor that was there and lets the steering have what comes out, which is what a hook on the attention
layer sees: both give the same pictures, bit for bit. Hooks are the better default: they stay when diffusers replaces
processors (attention slicing, fused projections, IP-Adapters), and text encoders have none.

Example:
    >>> with dsas.steer(pipe, {"banana-blur": 1.0}, attach="processor") as steering:
    ...     image = pipe("a banana and a dog").images[0]

    >>> with dsas.steer(pipe, {"banana-blur": 1.0}, attach="processor") as steering:
    ...     pipe.unet.set_attn_processor(steering.attn_processors(AttnProcessor()))  # around another than its own
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

from torch import nn

from dsas_core.errors import DSASError, UnsupportedError
from dsas_core.model.sites import Site, canonical


class Steers(Protocol):
    """Who is given what comes by at a site, and gives back what goes on."""

    def bring(self, site: Site, value: Any) -> Any: ...


def _of_inner(name: str) -> Any:
    """An attribute of a processor that is kept by the processor inside it."""

    def get(self: DSASAttnProcessor) -> Any:
        return getattr(self.inner, name)

    def put(self: DSASAttnProcessor, value: Any) -> None:
        setattr(self.inner, name, value)

    return property(get, put)


class DSASAttnProcessor:
    """Another attention processor, with what it makes steered on the way out.

    Args:
        inner: the processor that computes attention.
        attention: the layer that this one is for.
        sites: those of the layer: its output, of joint attention perhaps both streams.
        steering: who steers them.

    Raises:
        DSASError: an inner processor with weights, which diffusers loads and finds by its class; an inner processor
            that steers already. When called: by another layer than its own.
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

    # what diffusers sets on processors is for the one that computes attention

    _attention_backend = _of_inner("_attention_backend")
    _parallel_config = _of_inner("_parallel_config")

    # a copy of the model, or a pickle, is not steered, as it is with hooks

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.inner, memo)

    def __reduce__(self) -> tuple[Any, ...]:
        return copy.copy, (self.inner,)


@cache
def _with_signature_of(kind: Any) -> type[DSASAttnProcessor]:
    """The class with the call signature of another: diffusers passes on no argument that a processor does not name."""

    def new(cls: Any, *args: Any) -> Any:
        # diffusers asks for `type(processor)()` where it replaces one: let it have another of the kind inside
        return object.__new__(cls) if args else kind()

    def call(self: DSASAttnProcessor, attn: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return DSASAttnProcessor.__call__(self, attn, *args, **kwargs)

    call.__wrapped__ = kind.__call__  # type: ignore[attr-defined]  # where signatures are looked up, compiled too
    named = {"__new__": new, "__call__": call, "__module__": __name__}
    return type(DSASAttnProcessor.__name__, (DSASAttnProcessor,), named)


def attention_layers(denoiser: nn.Module) -> dict[str, nn.Module]:
    """The layers of a denoiser that have a processor, by its key in `attn_processors`."""
    return {f"{path}.processor": layer for path, layer in denoiser.named_modules() if hasattr(layer, "set_processor")}


class SteeredProcessors:
    """The attention processors of a denoiser that steer what their layers make.

    Args:
        denoiser: the model. root: its name in the paths of sites.
        sites: those that are outputs of attention layers are steered here, others are left to hooks; none for none.

    Raises:
        UnsupportedError: a denoiser that takes no processors as a whole, as Lumina's and Z-Image's.
    """

    def __init__(self, denoiser: Any, root: str, sites: Sequence[Site]) -> None:
        if sites and not hasattr(denoiser, "set_attn_processor"):
            raise UnsupportedError(f'{type(denoiser).__name__} has no set_attn_processor: steer with attach="hooks"')
        self._denoiser = denoiser
        self._before: dict[str, Any] = {}  # what was there, where others steer now
        self._sites: dict[str, list[Site]] = {}  # by the key of their processor
        for key in attention_layers(denoiser):
            path = canonical(f"{root}.{key.removesuffix('.processor')}")
            here = [site for site in sites if site.path == path and site.side == "output"]
            if here:
                self._sites[key] = here

    @property
    def sites(self) -> list[Site]:
        """Those that are steered here."""
        return [site for here in self._sites.values() for site in here]

    def make(self, steering: Steers, inner: Any = None) -> dict[str, Any]:
        """Processors for `set_attn_processor`, one for each layer; those at sites steer, the others are as they are.

        Args:
            steering: what steers at the sites. It is not kept here, so that the two do not hold each other.
            inner: what computes attention at the sites; None for what is there.
        """
        layers = attention_layers(self._denoiser)
        there = {key: _unwrapped(layer) for key, layer in layers.items()}
        steered = {
            key: DSASAttnProcessor(there[key] if inner is None else inner, layers[key], here, steering)
            for key, here in self._sites.items()
        }
        return {**there, **steered}

    def replace(self, steering: Steers) -> None:
        """Have the denoiser go through steered processors; without sites it is left alone."""
        if self._sites:
            made, before = self.make(steering), self._denoiser.attn_processors
            self._denoiser.set_attn_processor(made)
            self._before = {key: before[key] for key in self._sites}

    def restore(self) -> None:
        """Put back what was there, but where somebody else has set another since."""
        if self._before:
            now = self._denoiser.attn_processors
            ours = [key for key in self._before if isinstance(now.get(key), DSASAttnProcessor)]
            self._denoiser.set_attn_processor({**now, **{key: self._before[key] for key in ours}})
            self._before = {}


def _unwrapped(layer: nn.Module) -> Any:
    """The processor of a layer, or what a steered one has inside."""
    processor = layer.processor
    return processor.inner if isinstance(processor, DSASAttnProcessor) else processor
