"""Samples: images or texts that show what a concept does, for its folder, its card and the demo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: name of the file with the images side by side, in a concept's folder
STRIP = "strip.webp"


@dataclass(frozen=True)
class Samples:
    """What a model generates under a concept for a held-out source prompt and a held-out control prompt.

    Args:
        prompts: these two.
        strengths: ascending, 0 among them.
        texts: the generated texts, by prompt and strength; () for images.
        strip: the images side by side, the content of a WebP file; b"" for texts.

    Example:
        >>> samples = Samples(("a banana", "a dog"), (0.0, 1.0), strip=b"...")
        >>> Samples.from_dict(samples.to_dict(), b"...") == samples
        True
    """

    prompts: tuple[str, ...]
    strengths: tuple[float, ...]
    texts: tuple[tuple[str, ...], ...] = ()
    strip: bytes = field(default=b"", repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the images, as plain data."""
        texts = {"texts": list(map(list, self.texts))} if self.texts else {}
        return {"prompts": list(self.prompts), "strengths": list(self.strengths), **texts}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], strip: bytes = b"") -> Samples:
        """The inverse of `to_dict`.

        Args:
            data: as `to_dict` returns it.
            strip: the images.

        Raises:
            KeyError: prompts or strengths are missing.
            TypeError: prompts, strengths or texts are no lists.
            ValueError: strengths that are no numbers.
        """
        texts = tuple(tuple(map(str, line)) for line in data.get("texts", ()))
        return cls(tuple(map(str, data["prompts"])), tuple(map(float, data["strengths"])), texts, strip)
