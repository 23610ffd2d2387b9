"""Pictures that follow one another, as a file that loops."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

#: suffix -> how an animation is written
ANIMATIONS: Mapping[str, Mapping[str, Any]] = {".gif": {"format": "GIF"}, ".webp": {"format": "WEBP", "quality": 90}}
#: of one frame, in milliseconds
DURATION = 250


def looped(frames: Sequence[Image.Image], suffix: str) -> bytes:
    """An animation that loops, as a file's content; the suffix says in which format."""
    frames = _with_one_palette(frames) if suffix == ".gif" else frames
    content = io.BytesIO()
    frames[0].save(content, save_all=True, append_images=frames[1:], duration=DURATION, loop=0, **ANIMATIONS[suffix])
    return content.getvalue()


def _with_one_palette(frames: Sequence[Image.Image]) -> list[Image.Image]:
    """Frames in the 256 colours that suit all of them: with a palette for each, what stands still would flicker."""
    width, height = (-(-side // 4) for side in frames[0].size)  # a sample is enough, and as good
    samples = Image.new("RGB", (width, height * len(frames)))
    for i, frame in enumerate(frames):
        samples.paste(frame.resize((width, height), Image.Resampling.NEAREST), (0, i * height))
    colours = samples.quantize(255, kmeans=1).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*colours[: 3 * 255], 255, 255, 255])  # the paper stays white
    return [frame.quantize(palette=palette) for frame in frames]
