"""Captioned scenes of colour emoji, on which `builtin:emoji` and its judge are trained.

A scene is drawn at random from a seeded generator, rendered as a picture with a label map, and described by a caption.
Content (things, styles, relation and background, whatever the phrasing) whose hash falls into one of twenty buckets is
held out: training never sees it, and quality is measured on nothing else.

Rendering needs the font Noto Color Emoji (Debian: fonts-noto-color-emoji); nothing else does.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from dsas_core.errors import UnavailableError
from dsas_diffusion.builtin.scenes import BACKGROUNDS, CATEGORIES, COLOURS, NAMES, RELATIONS, STYLES, THINGS

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
#: how often each of STYLES is drawn
STYLE_SHARES = (0.60, 0.20, 0.09, 0.11)
OPENINGS = ("", "a picture of ", "a photo of ")
NOTHING = "nothing"

HELD_OUT_BUCKETS = 20


@dataclass(frozen=True)
class Item:
    """One thing in a scene: its style, centre and size as fractions of the picture, and angle in degrees."""

    thing: str
    style: str
    x: float
    y: float
    size: float
    angle: float


@dataclass(frozen=True)
class Scene:
    """The content of a picture, and one caption of it."""

    items: tuple[Item, ...]
    background: str
    relation: str | None
    caption: str

    @property
    def held_out(self) -> bool:
        """Whether training must not see this content, in any phrasing."""
        parts = [f"{item.style} {item.thing}" for item in self.items]
        key = "|".join([*parts, self.relation or "", self.background])
        return zlib.crc32(key.encode()) % HELD_OUT_BUCKETS == 0


def noun_phrase(noun: str, style: str = "sharp", *, trailing: bool = False) -> str:
    """The noun phrase of one thing: "a blurred banana", or with `trailing`, "a banana that is blurred"."""
    plain = style == "sharp"
    first = noun if plain or trailing else style
    article = "" if noun == "grapes" else "an " if first[0] in "aeiou" else "a "
    if plain:
        return f"{article}{noun}"
    return f"{article}{noun} that is {style}" if trailing else f"{article}{style} {noun}"


def vocabulary() -> list[str]:
    """Every word that a caption can hold, sorted."""
    text = [*NAMES, *CATEGORIES, *STYLES[1:], *BACKGROUNDS, *RELATIONS, *OPENINGS, NOTHING, "a an and that is"]
    return sorted({word for phrase in text for word in phrase.split()})


def sample_scene(rng: np.random.Generator, *, held_out: bool = False) -> Scene:
    """Draw a scene; content is from the held-out part exactly when `held_out`."""
    while True:
        scene = _draw_scene(rng)
        if scene.held_out == held_out:
            return scene


def _draw_scene(rng: np.random.Generator) -> Scene:
    count = int(rng.choice(3, p=(0.02, 0.40, 0.58)))
    background = str(rng.choice(BACKGROUNDS))
    relation = None
    if count == 2:
        names = [str(name) for name in rng.choice(NAMES, 2, replace=False)]
        offset, relation = _draw_relation(rng)
        gap = rng.uniform(0.21, 0.24)
        centre = rng.uniform(-0.02, 0.02, 2)
        slack = rng.uniform(-0.12, 0.12, 2)
        places = []
        for sign, jitter in ((1, slack[0]), (-1, slack[1])):
            along = sign * gap
            x = 0.5 + centre[0] + (offset[0] * along if offset[0] else jitter)
            y = 0.5 + centre[1] + (offset[1] * along if offset[1] else jitter)
            places.append((x, y))
        sizes = rng.uniform(26 / 64, 31 / 64, 2)
    else:
        names = [str(rng.choice(NAMES))] * count
        sizes = rng.uniform(38 / 64, 48 / 64, count)
        places = [tuple(rng.uniform(size / 2 - 0.02, 1.02 - size / 2, 2)) for size in sizes]
    styles = [str(style) for style in rng.choice(STYLES, count, p=STYLE_SHARES)]
    items = tuple(
        Item(name, style, float(x), float(y), float(size), float(rng.uniform(-15, 15)))
        for name, style, (x, y), size in zip(names, styles, places, sizes, strict=True)
    )
    return Scene(items, background, relation, _describe(rng, items, background, relation))


def _draw_relation(rng: np.random.Generator) -> tuple[tuple[int, int], str | None]:
    relation = list(RELATIONS)[rng.integers(len(RELATIONS))]
    return RELATIONS[relation], relation if rng.random() < 0.6 else None


def _describe(rng: np.random.Generator, items: tuple[Item, ...], background: str, relation: str | None) -> str:
    phrases = []
    for item in items:
        noun = item.thing
        category = THINGS[noun][1]
        if category and rng.random() < 0.07:
            noun = category
        phrases.append(noun_phrase(noun, item.style, trailing=rng.random() < 0.12))
    subject = f" {relation or 'and'} ".join(phrases) or NOTHING
    opening = str(rng.choice(OPENINGS, p=(0.6, 0.2, 0.2)))
    caption = opening + subject
    if rng.random() < 0.12:
        return caption
    if background.endswith("background") and rng.random() < 0.2:
        background = f"on {background.split()[2]}"
    return f"{caption} {background}"


@cache
def _glyph(name: str, size: int = 96) -> Image.Image:
    if not FONT.is_file():
        raise UnavailableError(f"no {FONT}: rendering scenes needs it (Debian: apt-get install fonts-noto-color-emoji)")
    font = ImageFont.truetype(str(FONT), 109)
    canvas = Image.new("RGBA", (180, 180))
    ImageDraw.Draw(canvas).text((20, 20), THINGS[name][0], font=font, embedded_color=True)
    canvas = canvas.crop(canvas.getbbox())
    side = max(canvas.size)
    square = Image.new("RGBA", (side, side))
    square.paste(canvas, ((side - canvas.width) // 2, (side - canvas.height) // 2))
    return square.resize((size, size), Image.Resampling.BICUBIC)


def render(scene: Scene, rng: np.random.Generator, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Render a scene.

    Args:
        scene: what to draw.
        rng: generator of the background's noise.
        size: pixels of a side.

    Returns:
        The picture, uint8 [size, size, 3], and its label map, uint8 [size, size, 2]: the thing (0 for none, else
        1 + its index in NAMES) and the style (index in STYLES) of each pixel.
    """
    picture = _background(scene.background, rng, size)
    labels = np.zeros((size, size, 2), np.uint8)
    for item in scene.items:
        layer = _layer(item, size)
        silhouette = Image.new("L", (size, size))
        silhouette.paste(layer.getchannel("A"), (size // 64, size // 32))
        shadow = silhouette.filter(ImageFilter.GaussianBlur(size / 40))
        picture *= 1 - 0.3 * np.asarray(shadow, np.float32)[..., None] / 255
        pixels = np.asarray(layer.convert("RGBa"), np.float32)
        if item.style == "blurred":
            soft = layer.convert("RGBa").filter(ImageFilter.GaussianBlur(0.085 * item.size * size))
            pixels = np.asarray(soft, np.float32)
        alpha = pixels[..., 3:] / 255
        picture = picture * (1 - alpha) + pixels[..., :3]
        labels[alpha[..., 0] > 0.5] = (1 + NAMES.index(item.thing), STYLES.index(item.style))
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8), labels


def _layer(item: Item, size: int) -> Image.Image:
    """The item alone on a transparent canvas, straight alpha; PIL premultiplies while it resamples."""
    side = round(item.size * size)
    glyph = _glyph(item.thing).rotate(item.angle, Image.Resampling.BICUBIC)
    glyph = glyph.resize((side, side), Image.Resampling.BICUBIC)
    if item.style == "pixelated":
        block = max(3, round(side / 7))
        cells = max(1, round(side / block))
        coarse = glyph.resize((cells, cells), Image.Resampling.BOX)
        alpha = coarse.getchannel("A").point(lambda value: 255 if value > 90 else 0)
        coarse.putalpha(alpha)
        glyph = coarse.resize((cells * block, cells * block), Image.Resampling.NEAREST)
    elif item.style == "grey":
        grey = glyph.convert("RGB").convert("L")
        glyph = Image.merge("RGBA", (grey, grey, grey, glyph.getchannel("A")))
    layer = Image.new("RGBA", (size, size))
    layer.paste(glyph, (round(item.x * size - glyph.width / 2), round(item.y * size - glyph.height / 2)))
    return layer


def _background(name: str, rng: np.random.Generator, size: int) -> np.ndarray:
    down, across = np.mgrid[0:size, 0:size].astype(np.float32) / size
    if name.endswith("background"):
        colour = np.array(COLOURS[name.split()[2]], np.float32)
        angle = rng.uniform(0, 2 * np.pi)
        slope = (np.cos(angle) * (across - 0.5) + np.sin(angle) * (down - 0.5)) * rng.uniform(0, 36)
        return np.clip(colour + rng.uniform(-9, 9, 3) + slope[..., None], 0, 255).astype(np.float32)
    horizon = rng.uniform(0.36, 0.5) + 0.03 * np.sin(across * rng.uniform(3, 7) + rng.uniform(0, 6))
    ground = (down > horizon)[..., None]
    grain = rng.normal(0, 1, (size, size, 1)).astype(np.float32)
    if name == "on the grass":
        above = np.array((150, 205, 240)) + (1 - down[..., None]) * 20
        below = np.array((95, 170, 70)) - (down - 0.5)[..., None] * 50 + grain * (2, 3, 1.5)
    elif name == "on the beach":
        sea = (down > horizon - 0.12)[..., None]
        above = np.where(sea, (60, 140, 190), (165, 215, 245)) + 0 * grain
        below = np.array((236, 210, 150)) + grain * 2
    elif name == "at night":
        stars = rng.random((size, size, 1)) > 0.988
        above = np.where(stars, (235, 235, 200), np.array((16, 20, 58)) + down[..., None] * 26)
        below = np.array((26, 32, 40)) + 0 * grain
        ground = (down > horizon + 0.35)[..., None]
    elif name == "on a table":
        above = np.array((225, 215, 200)) - down[..., None] * 20
        planks = 8 * np.sin(across * 2 + down * rng.uniform(50, 60))[..., None]
        below = np.array((150, 98, 55)) + planks * (1, 0.7, 0.4) + grain
    else:
        flakes = rng.random((size, size, 1)) > 0.985
        above = np.where(flakes, (255, 255, 255), np.array((165, 190, 215)) + down[..., None] * 25)
        below = np.array((236, 242, 250)) + grain
    mixed = np.where(ground, below, above) + rng.uniform(-6, 6, 3)
    return np.clip(mixed, 0, 255).astype(np.float32)
