"""Pictures of the trace, and pictures side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from dsas_core.errors import DSASError
from dsas_core.sites import Site, patch_grid
from dsas_core.trace import Record, Trace

#: dark violet to yellow, perceptually even: h = 0 and h = 1
_LOW, _MIDDLE, _HIGH = np.array((30, 12, 72)), np.array((214, 66, 88)), np.array((252, 240, 130))


@dataclass(frozen=True)
class PictureRecord(Record):
    """A record that knows the pictures.

    Args:
        pictures: h on the patches of each, float [pictures, patches]; None where the call is not of them.
    """

    pictures: torch.Tensor | None = None


class PictureTrace(Trace):
    """A trace of pictures: h on the patches of each picture.

    Of the call that is being recorded: `pictures` is how many are made at once, `block` which of the blocks of so many
    rows that are steered is theirs, None for none; `patches` is how many of the positions are of the picture itself,
    the first of them, None for all.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pictures = 1
        self.block: int | None = 0
        self.patches: int | None = None

    def record(self, *seen: Any, **more: Any) -> Record:
        """As `Trace.record`."""
        made = super().record(*seen, **more)
        shown = None
        if self.block is not None:
            shown = made.h[self.block * self.pictures : (self.block + 1) * self.pictures, : self.patches]
        self.records[-1] = PictureRecord(**vars(made), pictures=shown)
        return self.records[-1]

    def heat(
        self,
        concept: str,
        size: tuple[int, int],
        *,
        image: int = 0,
        site: str | None = None,
        root: str | None = None,
        below: float = 1000.0,
        at: float | None = None,
    ) -> np.ndarray:
        """Where a concept was seen in one picture of the last generation.

        Args:
            concept: its name.
            size: (width, height) of the picture.
            image: which picture of the batch, in the order of `pipe(...).images`.
            site: one site; by default the mean over all sites that see patches.
            root: sites below one root only.
            below: only steps with a timestep up to this; in the first steps there is no picture to see yet.
            at: the step of one timestep alone, of those that `by_step` lists.

        Returns:
            float32 [height, width] in [0, 1], averaged over the steps.

        Raises:
            DSASError: nothing was recorded there.
        """
        width, height = size
        records = [
            record
            for record in self._of_patches(concept, site, root)
            if record.timestep is None or (record.timestep <= below if at is None else record.timestep == at)
        ]
        maps = [h[image] for record in records if (h := record.pictures) is not None and 0 <= image < len(h)]
        if not maps:
            known = sorted({f"{r.concept} at {r.site}" for r in self.records})
            told = ", ".join(known) or "nothing: call the pipeline inside steer()"
            raise DSASError(
                f"no heat for {concept!r}, picture {image}: recorded are {told}; text sites have no patches"
            )
        total = torch.zeros(height, width)
        for h in maps:
            grid = h.view(1, 1, *patch_grid(len(h), height, width))
            total += torch.nn.functional.interpolate(grid, (height, width), mode="bilinear", align_corners=False)[0, 0]
        return (total / len(maps)).clamp(0, 1).numpy()

    def patch_sites(self, concept: str) -> list[Site]:
        """Where a concept was seen on patches, so that `heat` can draw it."""
        return list(dict.fromkeys(record.site for record in self._of_patches(concept)))

    def by_step(self, concept: str, *, prompt: int = 0) -> dict[Site, dict[float | None, float]]:
        """Mean h of one prompt by site, and there by timestep, in the order of the calls; text encoders know none."""
        found: dict[Site, dict[float | None, list[float]]] = {}
        for record in self.select(concept):
            counted = (torch.ones_like(record.h) if record.mask is None else record.mask)[record.prompts == prompt] > 0
            if counted.any():
                steps = found.setdefault(record.site, {})
                steps.setdefault(record.timestep, []).append(float(record.h[record.prompts == prompt][counted].mean()))
        return {site: {t: fmean(values) for t, values in steps.items()} for site, steps in found.items()}

    def _of_patches(self, concept: str, site: str | None = None, root: str | None = None) -> list[PictureRecord]:
        """Records of one concept that have patches of the pictures."""
        return [
            record
            for record in self.select(concept, site, root)
            if isinstance(record, PictureRecord) and record.mask is None and record.site.stream != "text"
            if record.pictures is not None and record.pictures.shape[1] > 1
        ]

    def heatmap(self, concept: str, picture: Image.Image, *, image: int = 0, **which: Any) -> Image.Image:
        """The picture with the concept's h over it, dark where h is 0 and bright where it is 1; see `heat`."""
        return overlay(picture, self.heat(concept, picture.size, image=image, **which))


def overlay(picture: Image.Image, heat: np.ndarray) -> Image.Image:
    """Colours for heat [height, width] in [0, 1] over a greyed picture."""
    grey = np.asarray(picture.convert("L"), np.float32)[..., None].repeat(3, -1)
    level = heat[..., None]
    colour = np.where(level < 0.5, _LOW + (_MIDDLE - _LOW) * level * 2, _MIDDLE + (_HIGH - _MIDDLE) * (level - 0.5) * 2)
    return Image.fromarray((0.45 * grey + 0.55 * colour).clip(0, 255).astype(np.uint8))


def grid(
    rows: Sequence[Sequence[Image.Image]],
    columns: Sequence[str],
    captions: Sequence[str],
    cell: int = 160,
    caption_width: int = 190,
) -> Image.Image:
    """A labelled table of pictures.

    Args:
        rows: pictures, row by row. columns: headings. captions: one text per row, to its left.
        cell: pixels of a cell's side; small pictures are enlarged.
    """
    font, bold = _font(14), _font(15, bold=True)
    gap, top = 8, 34
    width = caption_width + len(columns) * (cell + gap) + gap
    sheet = Image.new("RGB", (width, top + len(rows) * (cell + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for i, heading in enumerate(columns):
        draw.text((caption_width + gap + i * (cell + gap) + cell / 2, 18), heading, "black", bold, anchor="mm")
    for j, (pictures, caption) in enumerate(zip(rows, captions, strict=True)):
        y = top + j * (cell + gap)
        lines = _wrapped(caption, font, caption_width - 2 * gap)
        draw.multiline_text((gap, y + cell / 2), "\n".join(lines), "black", font, anchor="lm", spacing=5)
        for i, picture in enumerate(pictures):
            resample = Image.Resampling.BICUBIC if picture.width < cell else Image.Resampling.LANCZOS
            sheet.paste(
                picture.convert("RGB").resize((cell, cell), resample), (caption_width + gap + i * (cell + gap), y)
            )
    return sheet


def strip(rows: Sequence[Sequence[Image.Image]], strengths: Sequence[float], captions: Sequence[str]) -> Image.Image:
    """Pictures side by side, from the lowest strength to the highest.

    Args:
        rows: pictures by strength, row by row. strengths: of the columns. captions: one text per row, to its left.
    """
    return grid(rows, [strength_label(strength) for strength in strengths], captions, cell_of(rows[0][0]))


def animation(pictures: Sequence[Image.Image], strengths: Sequence[float], caption: str = "") -> list[Image.Image]:
    """Frames that go through the strengths and back, each with its strength below, in writing and on a scale.

    Args:
        pictures: one for each strength; small ones are enlarged.
        strengths: ascending. caption: stands before the strength.

    Returns:
        2n - 2 frames for n strengths: the ends are not shown twice, so that a loop goes on evenly.
    """
    there = [
        _frame(picture, strength, strengths, caption) for picture, strength in zip(pictures, strengths, strict=True)
    ]
    return there + there[-2:0:-1]


def strength_label(strength: float) -> str:
    """A strength as a heading: with its sign, and "off" for 0."""
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
