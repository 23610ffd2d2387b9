"""Heat maps and tables of pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from dsas_core import Call, DSASError, Site
from dsas_diffusion.viz import PictureTrace, grid, overlay

SITE, OTHER = Site("unet.one"), Site("unet.two")


def traced(*records: tuple[Site, torch.Tensor], pictures: int = 1) -> PictureTrace:
    """A trace of h [rows, positions], each at a site."""
    trace = PictureTrace()
    trace.pictures = pictures
    for site, h in records:
        x = torch.ones(*h.shape, 2)
        call = Call(torch.ones(len(h)), torch.arange(len(h)), torch.tensor(500.0))
        trace.record("it", site, call, h[..., None], x, x)
    return trace


def patches(rows: int, columns: int, at: tuple[int, int]) -> torch.Tensor:
    """h that is 1 at one patch."""
    h = torch.zeros(1, rows, columns)
    h[0, at[0], at[1]] = 1
    return h.flatten(1)


@pytest.mark.parametrize(("size", "rows", "columns"), [((32, 32), 4, 4), ((64, 32), 4, 8), ((32, 64), 8, 4)])
def test_heat_is_where_the_patch_is(size: tuple[int, int], rows: int, columns: int) -> None:
    heat = traced((SITE, patches(rows, columns, (1, 2)))).heat("it", size)
    width, height = size
    assert heat.shape == (height, width)
    assert heat.dtype == np.float32
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    assert (y * rows // height, x * columns // width) == (1, 2)
    assert heat.mean() == pytest.approx(1 / (rows * columns), rel=0.05)
    assert heat[0, -1] == 0


def test_heat_is_the_mean_over_sites_and_steps() -> None:
    trace = traced((SITE, torch.full((1, 4), 0.2)), (SITE, torch.full((1, 4), 0.4)), (OTHER, torch.full((1, 16), 0.9)))
    assert trace.heat("it", (8, 8)).mean() == pytest.approx(0.5)
    assert trace.heat("it", (8, 8), site="unet.one").mean() == pytest.approx(0.3)
    assert trace.heat("it", (8, 8), root="unet").mean() == pytest.approx(0.5)


def test_rows_of_the_negative_prompt_come_before_those_of_the_pictures() -> None:
    trace = traced((SITE, torch.tensor([[0.1] * 4, [0.2] * 4, [0.3] * 4, [0.4] * 4])), pictures=2)
    assert trace.heat("it", (8, 8), image=0).mean() == pytest.approx(0.3)
    assert trace.heat("it", (8, 8), image=1).mean() == pytest.approx(0.4)
    for image in (-1, 2):
        with pytest.raises(DSASError, match=f"no heat for 'it', picture {image}"):
            trace.heat("it", (8, 8), image=image)


def test_rows_that_are_not_steered_are_not_recorded() -> None:
    trace, x = PictureTrace(), torch.ones(2, 4, 2)
    call = Call(torch.tensor([0.0, 1.0]), torch.tensor([0, 0]), torch.tensor(500.0))
    trace.record("it", SITE, call, torch.tensor([0.9, 0.3])[:, None, None], x, x * 1.5)
    (record,) = trace.records
    assert record.prompts.tolist() == [0]
    assert record.timestep == 500
    torch.testing.assert_close(record.h, torch.full((1, 4), 0.3))
    torch.testing.assert_close(record.change, torch.full((1, 4), 0.5))
    assert trace.mean_h("it") == pytest.approx(0.3)
    assert trace.heat("it", (8, 8)).mean() == pytest.approx(0.3)


def test_clearing_forgets() -> None:
    trace = traced((SITE, torch.full((1, 4), 0.2)))
    trace.clear()
    with pytest.raises(DSASError, match="nothing: call the pipeline inside steer"):
        trace.heat("it", (8, 8))


def test_the_overlay_is_dark_where_nothing_is_and_bright_where_all_is() -> None:
    picture = Image.new("RGB", (8, 4), (90, 120, 60))
    levels = [np.asarray(overlay(picture, np.full((4, 8), heat, np.float32)), float).mean() for heat in (0, 0.5, 1)]
    assert levels == sorted(levels)
    assert levels[2] > levels[0] + 50
    assert overlay(picture, np.zeros((4, 8), np.float32)).size == (8, 4)


def test_a_heatmap_has_the_size_of_its_picture() -> None:
    trace = traced((SITE, patches(4, 4, (0, 0))))
    drawn = np.asarray(trace.heatmap("it", Image.new("RGB", (32, 32), "gray")), float).sum(-1)
    assert drawn.shape == (32, 32)
    assert drawn[:4, :4].mean() > drawn[-4:, -4:].mean() + 100


def test_a_grid_shows_each_picture_at_its_place() -> None:
    colours = [["red", "lime"], ["blue", "yellow"]]
    rows = [[Image.new("RGB", (16, 16), colour) for colour in line] for line in colours]
    sheet = grid(rows, ["base", "steered"], ["one two", ""], cell=40, caption_width=60)
    cells = [[sheet.getpixel((60 + 8 + i * 48 + 20, 34 + j * 48 + 20)) for i in range(2)] for j in range(2)]
    assert cells == [[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 0)]]
    assert sheet.size == (60 + 2 * 48 + 8, 34 + 2 * 48 + 8)
    written = np.asarray(sheet.convert("L"))
    assert written[34 : 34 + 48, :60].min() < 100, "a caption to the left"
    assert written[:30, 68:].min() < 100, "headings above"
    assert written[34 + 48 :, :60].min() == 255, "no caption, no ink"
