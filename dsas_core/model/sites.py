"""Sites: named places in a model, and how to read and write the activations there.

Names are canonical: levels that depend on library versions (the `text_model` level that transformers 5.6 removed from
CLIP) are left out, and those of torch.compile and PEFT (`wrappers`), so that a site that was learned with one version,
or without adapters, is found in another.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from ..errors import DSASError, ModelMismatchError, quote
from .wrappers import walk

#: levels of module paths that are no part of a site's name
_LEFT_OUT = {"_orig_mod", "text_model"}
#: what positions are, where a model attends to image and text at once
STREAMS = ("", "image", "text")
#: how the dimensions of an activation lie: number of them, and what they are
LAYOUTS = {
    "last": (3, "[batch, positions, width]"),
    "first": (4, "[batch, width, height, width in pixels]"),
    "streams-last": (4, "[batch, positions, streams, width]"),
    "streams-first": (4, "[streams, batch, positions, width]"),
}
#: how many similar paths a message lists for a pattern that matches none
NEAREST = 8

Roots = Mapping[str, nn.Module]


@dataclass(frozen=True)
class Site:
    """One place where activations can be read and written.

    Args:
        path: canonical module path, beginning with the root's name ("unet.mid_block.attentions.0").
        side: "output" of the module, or its "input".
        index: which element, where the module takes or returns several.
        tokens: (start, stop) of the positions, or None for all; negative counts from the end.
        channels: (start, stop) of the channels (an attention head), or None for all.
        layout: "last" for [batch, positions, width], "first" for [batch, width, height, width in pixels];
            "streams-last" for [batch, positions, streams, width] and "streams-first" for [streams, batch, positions,
            width], where several residual streams lie side by side: they are read and written as one of their widths
            together.
        stream: "image" or "text", where a transformer attends to both at once; "" elsewhere. An activation with both
            in one sequence is split as `hooks.Call.joint` describes.
        argument: which argument, of an input that goes by its name: of a denoiser the embeddings of the prompt, which
            are the same at every timestep.

    Raises:
        DSASError: an unknown side, layout or stream, or an argument of an output.

    Example:
        >>> str(Site("model.layers.3", side="input", tokens=(1, None)))
        'model.layers.3:input[1:]'
        >>> str(Site("unet", side="input", argument="encoder_hidden_states"))
        'unet:input:encoder_hidden_states'
    """

    path: str
    side: str = "output"
    index: int = 0
    tokens: tuple[int | None, int | None] | None = None
    channels: tuple[int | None, int | None] | None = None
    layout: str = "last"
    stream: str = ""
    argument: str = ""

    def __post_init__(self) -> None:
        if self.argument and self.side != "input":
            raise DSASError(f"site {self.path}: argument {quote(self.argument)} is of an input, and the side is output")
        if self.side not in ("output", "input") or self.layout not in LAYOUTS:
            raise DSASError(
                f"site {self.path}: side is input or output, layout one of {', '.join(LAYOUTS)}; found "
                f"{quote(self.side)} and {quote(self.layout)}"
            )
        if self.stream not in STREAMS:
            raise DSASError(f"site {self.path}: stream is image, text or none; found {self.stream!r}")

    def __str__(self) -> str:
        side = "".join(f":{part}" for part in ("input" * (self.side == "input"), self.stream, self.argument) if part)
        slices = "".join(
            f"[{'' if part[0] is None else part[0]}:{'' if part[1] is None else part[1]}]"
            for part in (self.tokens, self.channels)
            if part is not None
        )
        return f"{self.path}{side}{slices}"

    @property
    def root(self) -> str:
        """The name of its root module."""
        return self.path.split(".", 1)[0]

    def to_dict(self) -> dict[str, Any]:
        """Plain data without the fields that have their defaults.

        Example:
            >>> Site("unet.mid", index=1).to_dict()
            {'path': 'unet.mid', 'index': 1}
        """
        default = Site(self.path)
        return {key: value for key, value in asdict(self).items() if key == "path" or value != getattr(default, key)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Site:
        """The inverse of `to_dict`.

        Args:
            data: the fields; lists stand for tuples.

        Raises:
            DSASError: an unknown field, side, layout or stream.

        Example:
            >>> str(Site.from_dict({"path": "unet.mid", "tokens": [1, None]}))
            'unet.mid[1:]'
        """
        unknown = set(data) - {f.name for f in fields(cls)}
        if unknown:
            raise DSASError(f"a site has no field {', '.join(sorted(unknown))}")
        content: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**content)


@lru_cache(2**14)
def canonical_path(path: str) -> str:
    """A module path without the levels that depend on library versions and wrappers.

    Example:
        >>> canonical_path("text_encoder.text_model.encoder.layers.0")
        'text_encoder.encoder.layers.0'
    """
    return ".".join(part for part in path.split(".") if part not in _LEFT_OUT)


def modules(roots: Roots) -> dict[str, nn.Module]:
    """Every module of the roots by canonical path; where two share a path, the inner one, but with its adapters.

    Example:
        >>> list(modules({"model": nn.Sequential(nn.ReLU())}))
        ['model', 'model.0']
    """
    return modules_and_copies(roots)[0]


def modules_and_copies(roots: Roots) -> tuple[dict[str, nn.Module], dict[str, list[nn.Module]]]:
    """Every module of the roots, and those that PEFT runs in place of others (`modules_to_save`), by canonical path.

    Example:
        >>> modules_and_copies({"model": nn.ReLU()})
        ({'model': ReLU()}, {})
    """
    own: dict[str, nn.Module] = {}
    copied: dict[str, list[nn.Module]] = {}
    for name, root in roots.items():
        for place in walk(root):
            path = canonical_path(f"{name}.{place.path}" if place.path else name)
            if place.copy:
                copied.setdefault(path, []).append(place.module)
            else:
                own[path] = place.module
    return own, copied


def find(roots: Roots, pattern: str | Iterable[str]) -> list[str]:
    r"""Canonical paths of modules that match a pattern.

    Args:
        roots: the model's root modules by name.
        pattern: a regular expression for the whole path, or a list of suffixes.

    Raises:
        ModelMismatchError: nothing matches; the message lists similar paths.
        DSASError: the pattern is no regular expression.

    Example:
        >>> find({"model": nn.Sequential(nn.ReLU(), nn.Identity())}, r"model\.[01]")
        ['model.0', 'model.1']
    """
    paths = list(modules(roots))
    if isinstance(pattern, str):
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise DSASError(f"site pattern {pattern!r} is not a regular expression: {error}") from None
        matches = [path for path in paths if expression.fullmatch(path)]
    else:
        suffixes = list(pattern)
        matches = [path for path in paths if any(f".{path}".endswith(f".{suffix}") for suffix in suffixes)]
        pattern = ", ".join(suffixes)
    if not matches:
        shapes = sorted({re.sub(r"\.\d+", ".N", path) for path in paths if path.count(".") > 0})
        nearest = get_close_matches(pattern, shapes, n=NEAREST, cutoff=0.0)
        raise ModelMismatchError(f"no site matches {pattern!r}; what comes nearest (N a number): {', '.join(nearest)}")
    return matches


@dataclass(frozen=True)
class Joint:
    """How image patches and text tokens share one sequence, in a transformer that attends to both at once.

    Args:
        image: number of image positions.
        text: number of text positions, padding included.
        text_first: whether the text comes first.
        padded_image: number of image positions with the padding behind them; None where there is none.
        text_lengths: int64 [batch], how many of each row's text positions are tokens, which come first; None for all.
        text_padding_last: whether the image follows each row's own tokens, and the text's padding comes at the end.

    Example:
        >>> Joint(image=3, text=2).index_of("image")
        (slice(None, None, None), slice(2, 5, None))
    """

    image: int
    text: int
    text_first: bool = True
    padded_image: int | None = None
    text_lengths: torch.Tensor | None = field(default=None, compare=False)
    text_padding_last: bool = False

    @property
    def image_span(self) -> int:
        """Number of image positions with their padding."""
        return self.image if self.padded_image is None else self.padded_image

    def index_of(self, stream: str, device: torch.device | None = None) -> tuple[Any, Any]:
        """The index of a stream's positions in [batch, positions, ...]: one for each of these two dimensions."""
        if self.text_padding_last and self.text_lengths is not None:
            lengths = self.text_lengths.to(device)[:, None]
            rows = torch.arange(len(lengths), device=device)[:, None]
            if stream == "image":
                return rows, lengths + torch.arange(self.image, device=device)
            places = torch.arange(self.text, device=device)
            return rows, torch.where(places < lengths, places, places + self.image)
        start = 0 if (stream == "text") == self.text_first else self.text if self.text_first else self.image_span
        return slice(None), slice(start, start + (self.text if stream == "text" else self.image))

    def token_mask(self, count: int) -> torch.Tensor | None:
        """Which of the first `count` text positions are tokens, float [batch, count]; None for all."""
        if self.text_lengths is None:
            return None
        return (torch.arange(count, device=self.text_lengths.device) < self.text_lengths[:, None]).float()


def read_site(value: Any, site: Site, joint: Joint | None = None) -> torch.Tensor:
    """The activation at a site as [batch, positions, width], taken from its module's input or output.

    Args:
        value: a tensor, or a tuple, list or mapping that contains it.
        site: which part of it.
        joint: how both streams share one sequence; needed by sites with a stream.

    Raises:
        DSASError: a value of another form than the site expects.

    Example:
        >>> read_site((torch.zeros(2, 5, 3),), Site("model.0", tokens=(1, None))).shape
        torch.Size([2, 4, 3])
    """
    return _flat(_tensor(value, site), site)[_index(value, site, joint)]


def write_site(value: Any, site: Site, x: torch.Tensor, joint: Joint | None = None) -> Any:
    """A module's input or output with the activation at a site replaced; nothing is changed in place.

    Args:
        value: the input or output, as for `read_site`.
        site: which part of it.
        x: the new activation, of the shape that `read_site` returns.
        joint: how both streams share one sequence; needed by sites with a stream.

    Raises:
        DSASError: a value of another form than the site expects.

    Example:
        >>> write_site(torch.zeros(1, 2, 2), Site("model.0", tokens=(1, None)), torch.ones(1, 1, 2))
        tensor([[[0., 0.],
                 [1., 1.]]])
    """
    whole, index = _tensor(value, site), _index(value, site, joint)
    if index != (...,):
        changed = _flat(whole, site).clone()
        changed[index] = x
        x = changed
    x = _unflat(x, whole, site)
    if isinstance(value, torch.Tensor):
        return x
    if isinstance(value, tuple | list):
        items = [*value[: site.index], x, *value[site.index + 1 :]]
        make = getattr(type(value), "_make", type(value))  # a named tuple takes its items one by one
        return make(items)
    replaced: Any = type(value)(**value) if isinstance(value, Mapping) else copy.copy(value)
    parts: Any = replaced if isinstance(value, Mapping) else vars(replaced)
    parts[list(_named_parts(value))[site.index]] = x
    return replaced


def _named_parts(value: Any) -> Mapping[str, Any]:
    """The parts of a mapping, or of an object that carries a tensor along with others, as PEFT's ShadowCarrier."""
    return value if isinstance(value, Mapping) else getattr(value, "__dict__", {})


def _flat(x: torch.Tensor, site: Site) -> torch.Tensor:
    """[batch, positions, width] of any layout."""
    if site.layout == "first":
        return x.flatten(2).transpose(1, 2)
    if site.layout == "streams-first":
        x = x.permute(1, 2, 0, 3)
    return x if site.layout == "last" else x.flatten(2)


def _unflat(x: torch.Tensor, whole: torch.Tensor, site: Site) -> torch.Tensor:
    """The inverse of `_flat`, in the shape of `whole`."""
    if site.layout == "first":
        return x.transpose(1, 2).reshape(whole.shape)
    if site.layout == "streams-first":
        return x.unflatten(2, (len(whole), -1)).permute(2, 0, 1, 3)
    return x if site.layout == "last" else x.reshape(whole.shape)


def _index(value: Any, site: Site, joint: Joint | None) -> tuple[Any, ...]:
    """The index of a site in its module's activation [batch, positions, width]."""
    if site.tokens is None and site.channels is None and not site.stream:
        return (...,)
    tokens, channels = (slice(None) if part is None else slice(*part) for part in (site.tokens, site.channels))
    rows: Any = slice(None)
    if site.stream:
        if joint is None:
            raise DSASError(f"{site} needs to know how picture and prompt lie in one sequence: call the whole pipeline")
        x = _tensor(value, site)
        if x.shape[1] == joint.image_span + joint.text:
            rows, tokens = joint.index_of(site.stream, x.device)
        elif x.shape[1] != (joint.image if site.stream == "image" else joint.text):
            raise DSASError(
                f"{site}: {x.shape[1]} positions, expected {joint.image} of the picture, {joint.text} of the prompt, "
                "or both"
            )
    parts = (rows, tokens, channels)
    return (...,) if all(isinstance(part, slice) and part == slice(None) for part in parts) else parts


def _tensor(value: Any, site: Site) -> torch.Tensor:
    """The tensor in a module's input or output that a site is a part of."""
    if isinstance(value, torch.Tensor):
        x = value
    else:
        items = value if isinstance(value, tuple | list) else list(_named_parts(value).values())
        if len(items) <= site.index:
            raise DSASError(f"site {site}: its module gave {type(value).__name__}, without an element {site.index}")
        x = items[site.index]
    expected, dimensions = LAYOUTS[site.layout]
    if not isinstance(x, torch.Tensor) or x.ndim != expected:
        shape = tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
        raise DSASError(
            f"site {site}: layout {site.layout} expects {expected} dimensions, its module gave {shape}: name sites "
            f"that give {dimensions}, as sites=[…] with suffixes of modules inside it"
        )
    return x


def patch_grid(positions: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of an image's patches: the grid whose aspect ratio is nearest to the image's.

    Args:
        positions: number of patches.
        height: of the image, in any unit.
        width: of the image, in the same unit.

    Example:
        >>> patch_grid(24, height=512, width=768)
        (4, 6)
    """
    small = [divisor for divisor in range(1, math.isqrt(positions) + 1) if positions % divisor == 0]
    rows = [row for divisor in small for row in (divisor, positions // divisor)]
    best = min(rows, key=lambda row: abs(math.log(row * row / positions * width / height)))
    return best, positions // best
