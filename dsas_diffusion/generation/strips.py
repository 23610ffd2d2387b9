"""Pictures side by side: labelled tables, strips, frames of animations, and heat-maps over a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont

#: dark violet to yellow, perceptually even: h = 0 and h = 1
_LOW, _MIDDLE, _HIGH = np.array((30, 12, 72)), np.array((214, 66, 88)), np.array((252, 240, 130))

#: how much stronger differences are shown than they are
GAIN = 4


def overlay(picture: Image.Image, heat: np.ndarray) -> Image.Image:
    """Draw a heat-map over a greyed picture.

    Args:
        picture: of any mode.
        heat: float [height, width], 0 to 1.

    Example:
        >>> overlay(Image.new("RGB", (4, 2), "white"), np.zeros((2, 4))).getpixel((0, 0))
        (131, 121, 154)
    """
    grey = np.asarray(picture.convert("L"), np.float32)[..., None].repeat(3, -1)
    level = heat[..., None]
    colour = np.where(level < 0.5, _LOW + (_MIDDLE - _LOW) * level * 2, _MIDDLE + (_HIGH - _MIDDLE) * (level - 0.5) * 2)
    return Image.fromarray((0.45 * grey + 0.55 * colour).clip(0, 255).astype(np.uint8))


def difference(before: Image.Image, after: Image.Image) -> Image.Image:
    """How far pixels moved, black where they did not, `GAIN` times as bright as it is.

    Example:
        >>> difference(Image.new("RGB", (1, 1), (10, 10, 99)), Image.new("RGB", (1, 1), (8, 10, 0))).getpixel((0, 0))
        (8, 0, 255)
    """
    return ImageChops.difference(before, after).point(lambda value: min(255, GAIN * value))


def grid(
    rows: Sequence[Sequence[Image.Image]],
    columns: Sequence[str],
    captions: Sequence[str],
    cell: int = 160,
    caption_width: int = 190,
) -> Image.Image:
    """A labelled table of pictures.

    Args:
        rows: pictures, row by row.
        columns: headings.
        captions: one text per row, to its left.
        cell: pixels of a cell's width; small pictures are enlarged, and all are as high as the first one is for it.
        caption_width: pixels to the left of the pictures.
    """
    font, bold = _font(14), _font(15, bold=True)
    gap, top = 8, 34
    height = round(cell * rows[0][0].height / rows[0][0].width) if rows and rows[0] else cell
    width = caption_width + len(columns) * (cell + gap) + gap
    sheet = Image.new("RGB", (width, top + len(rows) * (height + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for i, heading in enumerate(columns):
        draw.text((caption_width + gap + i * (cell + gap) + cell / 2, 18), heading, "black", bold, anchor="mm")
    for j, (pictures, caption) in enumerate(zip(rows, captions, strict=True)):
        y = top + j * (height + gap)
        lines = _wrapped(caption, font, caption_width - 2 * gap)
        draw.multiline_text((gap, y + height / 2), "\n".join(lines), "black", font, anchor="lm", spacing=5)
        for i, picture in enumerate(pictures):
            resample = Image.Resampling.BICUBIC if picture.width < cell else Image.Resampling.LANCZOS
            place = caption_width + gap + i * (cell + gap), y
            sheet.paste(picture.convert("RGB").resize((cell, height), resample), place)
    return sheet


def strip(rows: Sequence[Sequence[Image.Image]], strengths: Sequence[float], captions: Sequence[str]) -> Image.Image:
    """Pictures side by side, from the lowest strength to the highest.

    Args:
        rows: pictures by strength, row by row.
        strengths: of the columns.
        captions: one text per row, to its left.
    """
    return grid(rows, [strength_label(strength) for strength in strengths], captions, cell_of(rows[0][0]))


def animation(pictures: Sequence[Image.Image], strengths: Sequence[float], caption: str = "") -> list[Image.Image]:
    """Frames that go through the strengths and back, each with its strength below, in writing and on a scale.

    Args:
        pictures: one for each strength; small ones are enlarged.
        strengths: ascending.
        caption: stands before the strength.

    Returns:
        2n - 2 frames for n strengths: the ends do not come twice, so that a loop runs evenly.
    """
    pairs = zip(pictures, strengths, strict=True)
    frames = [_frame(picture, strength, strengths, caption) for picture, strength in pairs]
    return frames + frames[-2:0:-1]


def strength_label(strength: float) -> str:
    """A strength as a heading: with its sign, and "off" for 0.

    Example:
        >>> strength_label(1.5), strength_label(-1), strength_label(0)
        ('+1.5', '-1', 'off')
    """
    return f"{strength:+.3g}" if strength else "off"


def cell_of(picture: Image.Image) -> int:
    """Pixels of a cell's side that suit a picture in a grid."""
    return min(256, max(160, picture.width))


def _frame(picture: Image.Image, strength: float, strengths: Sequence[float], caption: str) -> Image.Image:
    """A picture over a scale with a knob at its strength, and a tick at 0."""
    font, gap, below = _font(14), 12, 52
    if picture.width < 256:
        picture = picture.resize((256, round(256 * picture.height / picture.width)), Image.Resampling.BICUBIC)
    width, height = picture.size
    frame = Image.new("RGB", (width, height + below), "white")
    frame.paste(picture.convert("RGB"), (0, 0))
    draw = ImageDraw.Draw(frame)
    label = strength_label(strength)
    draw.text((width - gap, height + 16), label, "black", _font(14, bold=True), anchor="rm")
    draw.text((gap, height + 16), _fitting(caption, font, width - 6 * gap), "black", font, anchor="lm")
    low, high = strengths[0], strengths[-1]
    left, right, y = gap + 6, width - gap - 6, height + 38

    def place(value: float) -> float:
        return left + (right - left) * (value - low) / (high - low or 1)

    draw.line((left, y, right, y), "silver", 3)
    if low <= 0 <= high:
        draw.line((place(0), y - 5, place(0), y + 5), "gray", 2)
    draw.ellipse((place(strength) - 6, y - 6, place(strength) + 6, y + 6), "black")
    return frame


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """A text, cut where it is wider than there is room."""
    if font.getlength(text) <= width:
        return text
    return next((f"{text[:i]}…" for i in range(len(text), 0, -1) if font.getlength(f"{text[:i]}…") <= width), "")


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    import matplotlib  # ships DejaVu, so labels look the same everywhere

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)
