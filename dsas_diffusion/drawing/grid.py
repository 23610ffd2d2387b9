"""Grids of pictures: one prompt over strengths, seeds, concepts, prompts, steps or guidance, up to three at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from dsas_core.errors import DSASError, quote, shorten
from dsas_core.steering.strengths import AUTO, Auto
from dsas_core.utils.numbers import number

from ..generation import strips
from ..generation.settings import Settings, settings_of
from ..pipelines.adapter import PipelineAdapter, adapt
from .draw import draw_each
from .picture_settings import HowSteered, PictureSettings
from .shelf import Shelf

#: what can vary; strength:NAME is the strength of one of several concepts
KINDS = ("strength", "seed", "concept", "prompt", "steps", "guidance")
#: axes: columns, rows, blocks
MOST_AXES = 3
#: most pictures of a grid
MAX_CELLS = 400
#: characters of a label, and of a caption beside a row
LABEL, CAPTION = 18, 80

#: how pictures are drawn, by block, row and column
Cells = list[list[list[PictureSettings]]]


@dataclass(frozen=True)
class Axis:
    """What varies along one side of a grid.

    Args:
        kind: one of KINDS.
        values: numbers, `Auto`, prompts, or names of concepts.
        concept: name of the concept that strengths are of; None for the only one, or that of the axis `concept`.

    Raises:
        DSASError: an unknown kind, no values, one of them twice, or none of its kind.

    Example:
        >>> Axis("strength", [-1, 0, 1]).labels
        ('-1', 'off', '+1')
    """

    kind: str
    values: tuple[Any, ...]
    concept: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DSASError(f"axis {quote(self.kind)}: expected one of {', '.join(KINDS)}, or strength:NAME")
        given = self.values
        if isinstance(given, str | bytes) or not isinstance(given, Collection) or not given:
            raise DSASError(f"axis {self.kind}: expected a list of values, found {quote(given)}")
        values = tuple(self._read(value) for value in given)
        if len(set(values)) < len(values):
            raise DSASError(f"axis {self.kind}: one value stands twice in {quote(list(map(str, values)))}")
        object.__setattr__(self, "values", values)

    def _read(self, value: Any) -> Any:
        if self.kind in ("prompt", "concept"):
            if not isinstance(value, str):
                raise DSASError(f"axis {self.kind}: expected texts, found {quote(value)}")
            return value
        if self.kind == "strength" and (isinstance(value, Auto) or value == AUTO):
            return value if isinstance(value, Auto) else Auto()
        return number(self.kind, value, f"axis {self.kind}")

    @property
    def labels(self) -> tuple[str, ...]:
        """A heading for each value."""
        return tuple(map(self._label, self.values))

    def _label(self, value: Any) -> str:
        if self.kind == "strength":
            text = str(value) if isinstance(value, Auto) else strips.strength_label(value)
            return text if self.concept is None else f"{self.concept} {text}"
        if self.kind in ("prompt", "concept"):
            return str(value)
        return f"{self.kind} {value:g}" if self.kind == "guidance" else f"{self.kind} {value}"


@dataclass(frozen=True)
class Grid:
    """Pictures over up to three axes.

    Args:
        axes: of columns, rows and blocks; an axis that is not there has one value.
        cells: how each picture was drawn: `cells[block][row][column]`.
        pictures: in the same places.
    """

    axes: tuple[Axis, ...]
    cells: Cells
    pictures: list[list[list[Image.Image]]]

    def sheet(self) -> Image.Image:
        """All pictures on a labelled sheet: blocks one below the other, each with its rows and columns."""
        columns = [shorten(label, LABEL) for label in self._labels(0)]
        rows, blocks = ([shorten(label, CAPTION) for label in self._labels(axis)] for axis in (1, 2))
        same = "" if any(axis.kind == "prompt" for axis in self.axes) else shorten(self.cells[0][0][0].prompt, CAPTION)
        captions = [" – ".join(filter(None, (same, block, row))) for block in blocks for row in rows]
        pictures = [row for block in self.pictures for row in block]
        return strips.grid(pictures, columns, captions, strips.cell_of(pictures[0][0]))

    def flat(self) -> list[PictureSettings]:
        """The settings of all pictures: block by block, row by row."""
        return [cell for block in self.cells for row in block for cell in row]

    def _labels(self, axis: int) -> tuple[str, ...]:
        return self.axes[axis].labels if axis < len(self.axes) else ("",)


def draw_grid(
    pipe: Any,
    prompt: str,
    concepts: Mapping[Any, Any],
    axes: Mapping[str, Sequence[Any]],
    *,
    seed: int = 0,
    settings: Settings | None = None,
    negative_prompt: str | None = None,
    preserve: Any = False,
    how: HowSteered | None = None,
    on_picture: Callable[[int, int], object] | None = None,
) -> Grid:
    """Draw a prompt over strengths, seeds, concepts, prompts, steps or guidance.

    Each picture is what a call of the pipeline with these values draws: it does not depend on the others.

    Args:
        pipe: the pipeline, or its adapter.
        prompt: what to draw, where no axis has prompts; tags in it set strengths, see `parse_prompt`.
        concepts: concept, or its folder, Hub name or builtin:NAME -> strength where no axis has another; may be empty.
        axes: what varies along columns, rows and blocks, in this order: kind -> values. "strength" is that of the only
            concept, "strength:NAME" that of one of several; "concept" has concepts, or what names them, of which one
            steers at a time; "seed", "prompt", "steps" and "guidance".
        seed: of the noise, where no axis has seeds: that of `torch.Generator().manual_seed`.
        settings: steps, guidance, scheduler and size; None for what suits the model.
        negative_prompt: what not to draw.
        preserve: as for `PipelineSteering.generate`.
        how: gate, schedule and the like.
        on_picture: called with the number of pictures drawn so far, and of all.

    Returns:
        A grid; its `sheet()` is a labelled picture of all.

    Raises:
        DSASError: unknown axes or values, more than 400 pictures, or what `steer` refuses.

    Example:
        >>> from dsas_diffusion import load_pipeline
        >>> pipe = load_pipeline("builtin:emoji", device="cpu")
        >>> axes = {"strength": [0, 1], "seed": [1, 2]}
        >>> grid = draw_grid(pipe, "a banana", {"builtin:banana-blur": 1.0}, axes, settings=Settings(1, 3.0))
        >>> len(grid.pictures[0]), grid.cells[0][1][0].noise_seed, grid.sheet().size
        (2, 2, (534, 378))
    """
    adapter, shelf = adapt(pipe), Shelf(concepts.items())
    named, mask = (preserve, None) if isinstance(preserve, bool | str) else ("mask", preserve)
    settings = settings_of(adapter) if settings is None else settings
    options: dict[str, Any] = {"negative_prompt": negative_prompt, "how": how or HowSteered(), "preserve": named}
    first = PictureSettings(adapter.name, prompt, seed, settings, **options)
    sides = read_axes(axes, shelf)
    cells = plan_cells(first, sides, shelf, lambda picture, value: replace(picture, noise_seed=value))
    return draw_cells(adapter, sides, cells, shelf, mask, on_picture)


def read_axes(axes: Mapping[str, Sequence[Any]], shelf: Shelf) -> tuple[Axis, ...]:
    """Axes by what names them, as for `draw_grid`; concepts are put on the shelf.

    Raises:
        DSASError: too many or unknown axes, unknown values, or two axes of one thing.
    """
    if not isinstance(axes, Mapping) or not 1 <= len(axes) <= MOST_AXES:
        raise DSASError(f"axes: expected 1 to {MOST_AXES} as {{kind: values}}, found {quote(axes)}")
    sides = []
    for key, values in axes.items():
        kind, _, name = str(key).partition(":")
        if name and (kind != "strength" or name not in shelf.concepts):
            there = ", ".join(shelf.concepts) or "none"
            raise DSASError(f"axis {quote(key)}: expected strength:NAME of a concept that is given; there is {there}")
        if kind == "concept" and not isinstance(values, str):
            values = [shelf.read(value) for value in values]
        sides.append(Axis(kind, values, name or None))  # type: ignore[arg-type]  # read there
    return tuple(sides)


def plan_cells(
    first: PictureSettings,
    axes: Sequence[Axis],
    shelf: Shelf,
    reseed: Callable[[PictureSettings, int], PictureSettings],
) -> Cells:
    """How each picture of a grid is drawn.

    Args:
        first: what all have in common; its prompt may have tags.
        axes: of columns, rows and blocks.
        shelf: of the concepts.
        reseed: a picture with another seed.

    Raises:
        DSASError: too many pictures, a strength without a concept, or one that both an axis and a tag set.
    """
    count = math.prod(len(axis.values) for axis in axes)
    if count > MAX_CELLS:
        raise DSASError(f"a grid of {count} pictures: at most {MAX_CELLS} are drawn, leave some values out")
    columns, rows, blocks = (axes[i].values if i < len(axes) else (None,) for i in range(MOST_AXES))

    def cell(*values: Any) -> PictureSettings:
        return _plan_cell(first, list(zip(axes, values, strict=False)), shelf, reseed)

    return [[[cell(x, y, z) for x in columns] for y in rows] for z in blocks]


def _plan_cell(
    first: PictureSettings,
    values: Sequence[tuple[Axis, Any]],
    shelf: Shelf,
    reseed: Callable[[PictureSettings, int], PictureSettings],
) -> PictureSettings:
    by_kind = {axis.kind: value for axis, value in values}
    clean, concepts, tagged = shelf.read_prompt(by_kind.get("prompt", first.prompt))
    steering = {concept.name: concept for concept in concepts}
    for axis, value in values:
        if axis.kind == "concept":
            _refuse_tagged(tagged, axis.values, axis)
            own = {name: it for name, it in steering.items() if name == value or name not in axis.values}
            steering = own if value in own else {**own, value: shelf.describe(value, 1.0)}
    varied: set[str] = set()
    for axis, value in values:
        if axis.kind == "strength":
            name = axis.concept or by_kind.get("concept") or _only(steering, tagged)
            _refuse_tagged(tagged, [name], axis)
            if name in varied:
                raise DSASError(f"two axes are strengths of {quote(name)}: make them one, or leave one out")
            varied.add(name)
            steering[name] = shelf.describe(name, value)
    numbers = {kind: by_kind[kind] for kind in ("steps", "guidance") if kind in by_kind}
    settings = replace(first.settings, **numbers)
    picture = replace(first, prompt=clean, settings=settings, concepts=tuple(steering.values()))
    return reseed(picture, by_kind["seed"]) if "seed" in by_kind else picture


def _only(steering: Collection[str], tagged: Collection[str]) -> str:
    """The concept that an axis of strengths is of."""
    given = [name for name in steering if name not in tagged]
    if len(given) != 1:
        found = f"{len(given)} ({', '.join(given)})" if given else "none"
        raise DSASError(
            f"axis strength: expected one concept that it is of, found {found}: give one, or name it, strength:NAME"
        )
    return given[0]


def _refuse_tagged(tagged: Collection[str], names: Sequence[str], axis: Axis) -> None:
    if both := [name for name in names if name in tagged]:
        raise DSASError(f"axis {axis.kind}: a tag in the prompt sets {quote(both[0])}, too: leave the tag or axis out")


def draw_cells(
    adapter: PipelineAdapter,
    axes: Sequence[Axis],
    cells: Cells,
    shelf: Shelf,
    mask: Any = None,
    on_picture: Callable[[int, int], object] | None = None,
) -> Grid:
    """Draw a grid as it is planned; arguments as for `draw_each` and `draw_grid`."""
    flat = [cell for block in cells for row in block for cell in row]
    # those that share an unsteered pass, or are steered by the same concepts, come one after the other
    order = sorted(range(len(flat)), key=lambda i: _alike(flat[i]))
    pictures: dict[int, Image.Image] = {}
    drawn = draw_each(adapter, [flat[i] for i in order], shelf.concepts, mask)
    for i, (made, _) in zip(order, drawn, strict=True):
        pictures[i] = made.images[0]
        if on_picture is not None:
            on_picture(len(pictures), len(flat))
    remaining = iter([pictures[i] for i in range(len(flat))])
    return Grid(tuple(axes), cells, [[[next(remaining) for _ in row] for row in block] for block in cells])


def _alike(picture: PictureSettings) -> tuple[Any, ...]:
    names = tuple(concept.name for concept in picture.concepts)
    return names, picture.prompt, picture.noise_seed, picture.settings.steps, picture.settings.guidance
