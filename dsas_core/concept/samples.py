"""Samples: what a concept does, to be shown in its folder, on its card and in the demo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: name of the file with the pictures side by side, in a concept's folder
STRIP = "strip.webp"


@dataclass(frozen=True)
class Samples:
    """What a concept does to a source prompt and to a control prompt, neither of which it was fitted on.

    Args:
        prompts: the two.
        strengths: ascending, 0 among them.
        texts: what was written, by prompt and strength; () of pictures.
        strip: the pictures side by side, the content of a WebP file; b"" of texts.

    Example:
        >>> samples = Samples(("a banana", "a dog"), (0.0, 1.0), strip=b"...")
        >>> Samples.from_dict(samples.to_dict(), b"...") == samples
        True
    """

    prompts: tuple[str, ...]
    strengths: tuple[float, ...]
    texts: tuple[tuple[str, ...], ...] = ()
    strip: bytes = b""

    def to_dict(self) -> dict[str, Any]:
        """All but the pictures, as plain data."""
        texts = {"texts": [list(line) for line in self.texts]} if self.texts else {}
        return {"prompts": list(self.prompts), "strengths": list(self.strengths), **texts}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], strip: bytes = b"") -> Samples:
        """The inverse of `to_dict`. Raises KeyError, TypeError or ValueError on what that does not write."""
        texts = tuple(tuple(map(str, line)) for line in data.get("texts", ()))
        return cls(tuple(map(str, data["prompts"])), tuple(map(float, data["strengths"])), texts, strip)
