"""The world of `builtin:emoji` and its judge: things, styles, backgrounds and relations of its scenes.

A scene is zero, one or two things, each in one of four styles, on one of thirteen backgrounds. How scenes are drawn for
training: benchmarks/builtin_models/picture_scenes.py of the repository.
"""

from __future__ import annotations

from pathlib import Path

import yaml

_TABLES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
#: name -> (glyph, category or None)
THINGS: dict[str, tuple[str, str | None]] = {
    name: (glyph, None if category == "other" else category)
    for category, glyphs in _TABLES["things"].items()
    for name, glyph in glyphs.items()
}
NAMES = tuple(THINGS)
CATEGORIES = ("fruit", "animal", "vehicle")

#: "sharp" is the default and has no word in captions
STYLES = ("sharp", "blurred", "pixelated", "grey")

#: red, green and blue, 0 to 255
COLOURS: dict[str, tuple[int, int, int]] = {name: tuple(rgb) for name, rgb in _TABLES["colours"].items()}
PLACES = ("on the grass", "on the beach", "at night", "on a table", "in the snow")
BACKGROUNDS = tuple(f"on a {colour} background" for colour in COLOURS) + PLACES

#: relation -> unit offset of the first thing from the second (x to the right, y down)
RELATIONS = {"to the left of": (-1, 0), "to the right of": (1, 0), "above": (0, -1), "below": (0, 1)}
