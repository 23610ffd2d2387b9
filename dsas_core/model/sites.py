"""Sites: named places in a model, and how to read and write them.

Names are canonical: wrappers that come and go with library versions or with compilation (`_orig_mod`, the
`text_model` level that transformers 5.6 removed from CLIP) are not part of a name, so what was learned with one version
is found by another.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from ..errors import DSASError, ModelMismatchError

_PASSING = {"_orig_mod", "text_model"}
#: what positions are, where a model attends to picture and prompt at once
STREAMS = ("", "image", "text")
#: how many paths a message names, of those that are like a pattern which matches none
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
        layout: "last" for [batch, positions, width], "first" for [batch, width, height, width in pixels].
        stream: "image" or "text", where a transformer attends to both at once; "" elsewhere. An activation that holds
            both, one behind the other, is cut by what the call says (`hooks.Call.joint`).

    Raises:
        DSASError: a side, layout or stream that there is not.

    Example:
        >>> str(Site("model.layers.3", side="input", tokens=(1, None)))
        'model.layers.3:input[1:]'
    """

    path: str
    side: str = "output"
    index: int = 0
    tokens: tuple[int | None, int | None] | None = None
    channels: tuple[int | None, int | None] | None = None
    layout: str = "last"
    stream: str = ""

    def __post_init__(self) -> None:
        if self.side not in ("output", "input") or self.layout not in ("last", "first"):
            raise DSASError(f"site {self.path}: side is input or output, layout first or last; found {self}")
        if self.stream not in STREAMS:
            raise DSASError(f"site {self.path}: stream is image, text or none; found {self.stream!r}")

    def __str__(self) -> str:
        side = ("" if self.side == "output" else ":input") + (f":{self.stream}" if self.stream else "")
        slices = "".join(
            f"[{'' if part[0] is None else part[0]}:{'' if part[1] is None else part[1]}]"
            for part in (self.tokens, self.channels)
            if part is not None
        )
        return f"{self.path}{side}{slices}"

    @property
    def root(self) -> str:
        """The name of the root module that it is in."""
        return self.path.split(".", 1)[0]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, defaults left out."""
        default = Site(self.path)
        return {key: value for key, value in asdict(self).items() if key == "path" or value != getattr(default, key)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Site:
        """The inverse of `to_dict`. Raises DSASError on fields that a site has not."""
        unknown = set(data) - {f.name for f in fields(cls)}
        if unknown:
            raise DSASError(f"a site has no field {', '.join(sorted(unknown))}")
        content: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**content)


def canonical(path: str) -> str:
    """A module path without the levels that depend on versions and wrappers.

    Example:
        >>> canonical("text_encoder.text_model.encoder.layers.0")
        'text_encoder.encoder.layers.0'
    """
    return ".".join(part for part in path.split(".") if part not in _PASSING)


def modules(roots: Roots) -> dict[str, nn.Module]:
    """Every module below the roots by canonical path; where two share a path, the inner one."""
    found: dict[str, nn.Module] = {}
    for name, root in roots.items():
        for path, module in root.named_modules():
            found[canonical(f"{name}.{path}" if path else name)] = module
    return found


def find(roots: Roots, pattern: str | Iterable[str]) -> list[str]:
    r"""Canonical paths of modules that match a pattern.

    Args:
        roots: the model's root modules by name.
        pattern: a string is a regular expression for the whole path, a list holds suffixes.

    Raises:
        ModelMismatchError: nothing matches; the message lists what comes nearest.
        DSASError: no regular expression.

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
        found = [path for path in paths if expression.fullmatch(path)]
    else:
        suffixes = list(pattern)
        found = [path for path in paths if any(path == s or path.endswith(f".{s}") for s in suffixes)]
        pattern = ", ".join(suffixes)
    if not found:
        shapes = sorted({re.sub(r"\.\d+", ".N", path) for path in paths if path.count(".") > 0})
        nearest = get_close_matches(pattern, shapes, n=NEAREST, cutoff=0.0)
        raise ModelMismatchError(f"no site matches {pattern!r}; what comes nearest (N a number): {', '.join(nearest)}")
    return found


@dataclass(frozen=True)
class Joint:
    """How a picture's patches and a prompt's tokens lie in one sequence.

    Args:
        image: how many positions the picture has.
        text: how many positions the prompt has, with the padding that it keeps.
        text_first: which comes first.
        room: how many positions the picture takes up, with padding behind it; None for as many as it has.
        lengths: int64 [batch], how many positions of each row's text are tokens, the first of them; None for all.
        close: whether the picture follows each row's own tokens, and their padding comes last.
    """

    image: int
    text: int
    text_first: bool = True
    room: int | None = None
    lengths: torch.Tensor | None = field(default=None, compare=False)
    close: bool = False

    @property
    def spread(self) -> int:
        """Of the picture, with its padding."""
        return self.image if self.room is None else self.room

    def of(self, stream: str, device: torch.device | None = None) -> tuple[Any, Any]:
        """Where the positions of a stream lie: index of the first two dimensions, of which the first is the batch."""
        if self.close and self.lengths is not None:
            lengths = self.lengths.to(device)[:, None]
            rows = torch.arange(len(lengths), device=device)[:, None]
            if stream == "image":
                return rows, lengths + torch.arange(self.image, device=device)
            places = torch.arange(self.text, device=device)
            return rows, torch.where(places < lengths, places, places + self.image)
        start = 0 if (stream == "text") == self.text_first else self.text if self.text_first else self.spread
        return slice(None), slice(start, start + (self.text if stream == "text" else self.image))

    def tokens(self, count: int) -> torch.Tensor | None:
        """Which of so many positions of the text are tokens, float [batch, count]; None for all."""
        if self.lengths is None:
            return None
        return (torch.arange(count, device=self.lengths.device) < self.lengths[:, None]).float()


def read_site(value: Any, site: Site, joint: Joint | None = None) -> torch.Tensor:
    """The activation at a site as [batch, positions, width], from what its module takes or returns.

    Args:
        value: a tensor, or a tuple, list or mapping with one.
        site: which part of it.
        joint: how positions of both streams lie in one sequence; needed by sites with a stream.

    Raises:
        DSASError: a value of another form than the site expects.

    Example:
        >>> read((torch.zeros(2, 5, 3),), Site("model.0", tokens=(1, None))).shape
        torch.Size([2, 4, 3])
    """
    return _flat(_tensor(value, site), site)[_part(value, site, joint)]


def write_site(value: Any, site: Site, x: torch.Tensor, joint: Joint | None = None) -> Any:
    """What the module takes or returns, with the activation at the site replaced by x; nothing is changed in place."""
    whole, part = _tensor(value, site), _part(value, site, joint)
    if part != (...,):
        changed = _flat(whole, site).clone()
        changed[part] = x
        x = changed
    if site.layout == "first":
        x = x.transpose(1, 2).reshape(whole.shape)
    if isinstance(value, torch.Tensor):
        return x
    if isinstance(value, tuple | list):
        return type(value)([*value[: site.index], x, *value[site.index + 1 :]])
    replaced = type(value)(**value)
    replaced[list(value)[site.index]] = x
    return replaced


def _flat(x: torch.Tensor, site: Site) -> torch.Tensor:
    return x.flatten(2).transpose(1, 2) if site.layout == "first" else x


def _part(value: Any, site: Site, joint: Joint | None) -> tuple[Any, ...]:
    """The index of a site in its module's activation, [batch, positions, width]."""
    if site.tokens is None and site.channels is None and not site.stream:
        return (...,)
    tokens, channels = (slice(None) if part is None else slice(*part) for part in (site.tokens, site.channels))
    rows: Any = slice(None)
    if site.stream:
        if joint is None:
            raise DSASError(f"{site} needs to know how picture and prompt lie in one sequence: call the whole pipeline")
        x = _tensor(value, site)
        if x.shape[1] == joint.spread + joint.text:
            rows, tokens = joint.of(site.stream, x.device)
        elif x.shape[1] != (joint.image if site.stream == "image" else joint.text):
            raise DSASError(
                f"{site}: {x.shape[1]} positions, expected {joint.image} of the picture, {joint.text} of the prompt, "
                "or both"
            )
    parts = (rows, tokens, channels)
    return (...,) if all(isinstance(part, slice) and part == slice(None) for part in parts) else parts


def _tensor(value: Any, site: Site) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        x = value
    elif isinstance(value, tuple | list) and len(value) > site.index:
        x = value[site.index]
    elif isinstance(value, Mapping) and len(value) > site.index:
        x = list(value.values())[site.index]
    else:
        raise DSASError(f"site {site}: its module gave {type(value).__name__}, without an element {site.index}")
    expected = 4 if site.layout == "first" else 3
    if not isinstance(x, torch.Tensor) or x.ndim != expected:
        shape = tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
        raise DSASError(f"site {site}: layout {site.layout} expects {expected} dimensions, its module gave {shape}")
    return x


def patch_grid(positions: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of a picture's patches: of all grids of so many the one nearest to its shape.

    Example:
        >>> patch_grid(24, height=512, width=768)
        (4, 6)
    """
    small = [row for row in range(1, math.isqrt(positions) + 1) if positions % row == 0]
    rows = [row for divisor in small for row in (divisor, positions // divisor)]
    best = min(rows, key=lambda row: abs(math.log(row * row / positions * width / height)))
    return best, positions // best
