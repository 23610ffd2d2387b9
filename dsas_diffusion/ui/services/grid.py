"""Grids of the demo: a picture over strengths, seeds and concepts, row by row, so that others draw in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError

from ...drawing.grid import Grid, plan_cells, read_axes
from ...drawing.picture_files import encode_picture
from ...drawing.picture_settings import PictureSettings, as_document
from ...drawing.shelf import Shelf
from .drawing import Order
from .picture_files import picture_settings, source_of
from .picture_service import PictureService

#: pictures of a grid, at most
MAX_CELLS = 60


def draw_grid(
    service: PictureService,
    order: Order,
    concepts: Sequence[Concept],
    strengths: Sequence[float],
    seeds: Sequence[int],
    on_picture: Callable[[int, int], object],
) -> Grid:
    """The order's picture at each strength (columns) and seed (rows) of each concept (blocks), one at a time.

    Args:
        service: what draws.
        order: what all have in common.
        concepts: one or more.
        strengths: in units.
        seeds: of the noise.
        on_picture: called with the number drawn so far, and of all.

    Raises:
        DSASError: nothing to draw, too much of it, or a value twice.
    """
    if order.sites:
        raise DSASError("a grid steers wherever its concepts do: leave “Only at these layers” empty")
    count = len(concepts) * len(strengths) * len(seeds)
    if not 0 < count <= MAX_CELLS:
        sides = f"{len(concepts)} concepts x {len(strengths)} strengths x {len(seeds)} seeds"
        raise DSASError(f"{sides} are {count} pictures: expected 1 to {MAX_CELLS}")
    shelf = Shelf()
    axes = read_axes({"strength": strengths, "seed": seeds, "concept": list(concepts)}, shelf)
    preserve = order.preserve and not service.find_unplaced(order, concepts)
    first = picture_settings(replace(order, strengths={}), service, steered=True, preserve=preserve)
    cells = plan_cells(first, axes, shelf, lambda picture, seed: replace(picture, noise_seed=seed))
    pictures, done = [], 0
    for block in cells:
        drawn = []
        for row in block:
            drawn.append(service.draw_row(row, shelf.concepts))
            done += len(row)
            on_picture(done, count)
        pictures.append(drawn)
    return Grid(axes, cells, pictures)


def encode_grid(grid: Grid) -> bytes:
    """The labelled sheet as a PNG with the settings of all pictures."""

    def named(picture: PictureSettings) -> PictureSettings:
        return replace(picture, concepts=tuple(replace(it, concept=source_of(it.name)) for it in picture.concepts))

    return encode_picture(grid.sheet(), as_document([named(picture) for picture in grid.flat()]))
