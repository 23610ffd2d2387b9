"""Samples: images or texts that show what a concept does, for its folder, its card and the demo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: name of the file with the images side by side, in a concept's folder
STRIP = "strip.webp"
#: most pixels of it; Pillow warns of larger pictures
MAX_PIXELS = 2**26


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
        >>> Samples.from_dict(samples.to_dict(), samples.strip) == samples
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
        """The inverse of `to_dict`, of data that has been checked.

        Args:
            data: as `to_dict` returns it.
            strip: the images.
        """
        texts = tuple(map(tuple, data.get("texts", ())))
        return cls(tuple(data["prompts"]), tuple(map(float, data["strengths"])), texts, strip)


def check_picture(content: bytes) -> None:
    """Raise a ValueError where the images are no whole WebP file, or one that takes too much memory when it is shown.

    Only the size is read; what is in the picture is for those who show it.

    Example:
        >>> check_picture(b"<svg>")
        Traceback (most recent call last):
        ValueError: strip.webp is no whole WebP picture
    """
    size = int.from_bytes(content[4:8], "little") + 8
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP" or size + size % 2 not in (len(content), len(content) + 1):
        raise ValueError(f"{STRIP} is no whole WebP picture")
    kind, data = content[12:16], content[20:30]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[i : i + 3], "little") + 1 for i in (4, 7))
    elif kind == b"VP8L" and data[:1] == b"\x2f":
        bits = int.from_bytes(data[1:5], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 " and data[3:6] == b"\x9d\x01\x2a":
        width, height = (int.from_bytes(data[i : i + 2], "little") & 0x3FFF for i in (6, 8))
    else:
        raise ValueError(f"{STRIP} is no WebP picture that can be shown")
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(f"{STRIP} has {width} x {height} pixels: expected up to {MAX_PIXELS}")
