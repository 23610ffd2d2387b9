"""Animations that loop, as the content of a file."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

#: suffix of a file -> the options of PIL that an animation is written with
ANIMATIONS: Mapping[str, Mapping[str, Any]] = {".gif": {"format": "GIF"}, ".webp": {"format": "WEBP", "quality": 90}}
#: of one frame, in milliseconds
DURATION = 250


def encode_animation(frames: Sequence[Image.Image], suffix: str, options: Mapping[str, Any] | None = None) -> bytes:
    """Encode an animation that loops.

    Args:
        frames: of one size.
        suffix: ".gif" or ".webp".
        options: further ones of PIL: a comment, Exif data.

    Returns:
        The content of a file.

    Example:
        >>> frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
        >>> encode_animation(frames, ".gif")[:6]
        b'GIF89a'
    """
    frames = _with_one_palette(frames) if suffix == ".gif" else frames
    content = io.BytesIO()
    options = {"duration": DURATION, "loop": 0, **ANIMATIONS[suffix], **(options or {})}
    frames[0].save(content, save_all=True, append_images=frames[1:], **options)
    return content.getvalue()


def _with_one_palette(frames: Sequence[Image.Image]) -> list[Image.Image]:
    """Frames in the 256 colours that suit all of them: with a palette for each, what stands still would flicker."""
    width, height = (-(-side // 4) for side in frames[0].size)  # a quarter of the size is enough to choose colours
    samples = Image.new("RGB", (width, height * len(frames)))
    for i, frame in enumerate(frames):
        samples.paste(frame.resize((width, height), Image.Resampling.NEAREST), (0, i * height))
    colours = samples.quantize(255, kmeans=1).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*colours[: 3 * 255], 255, 255, 255])  # white margins stay white
    return [frame.quantize(palette=palette) for frame in frames]
