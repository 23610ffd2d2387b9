"""The autoencoder of the built-in model, as `from_pipe` of diffusers takes it.

`StableDiffusionImg2ImgPipeline.from_pipe(pipe)` and its relatives hand a part on where its class equals the one that
their signature names, `AutoencoderKL`. The built-in model has an `AutoencoderTiny`, which all of these pipelines work
with (`AutoPipelineForImage2Image` does not compare), so its class says that it equals the named one. Nothing else about
it changes: weights, pictures, and the files that `save_pretrained` writes are those of an `AutoencoderTiny`.
"""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL, AutoencoderTiny


class _Accepted(type):
    """A class that equals `AutoencoderKL`, too."""

    def __eq__(cls, other: object) -> bool:
        return cls is other or other is AutoencoderKL

    __hash__ = type.__hash__


def _reduce(self: Any, protocol: Any) -> tuple[Any, ...]:
    return _empty, (), self.__getstate__()


#: named as the class that it is one of, which is what files and messages tell
AcceptedAutoencoder: Any = _Accepted(
    AutoencoderTiny.__name__,
    (AutoencoderTiny,),
    {"__module__": AutoencoderTiny.__module__, "__doc__": AutoencoderTiny.__doc__, "__reduce_ex__": _reduce},
)


def _empty() -> Any:
    """For copies and pickles, which find a class by its name."""
    return AcceptedAutoencoder.__new__(AcceptedAutoencoder)


def accept(pipe: Any) -> None:
    """Let `from_pipe` hand on the autoencoder of a pipeline, if it is an `AutoencoderTiny`.

    Example:
        >>> from diffusers import StableDiffusionImg2ImgPipeline
        >>> from dsas_diffusion import load_pipeline
        >>> pipe = load_pipeline("builtin:emoji", device="cpu")
        >>> type(StableDiffusionImg2ImgPipeline.from_pipe(pipe)).__name__
        'StableDiffusionImg2ImgPipeline'
    """
    if type(pipe.vae) is AutoencoderTiny:
        pipe.vae.__class__ = AcceptedAutoencoder
