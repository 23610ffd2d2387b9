"""Heat maps and tables of pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from dsas_core import Call, DSASError, Site
from dsas_diffusion.generation.strips import animation, grid, overlay, strength_label, strip
from dsas_diffusion.steering.trace import PictureTrace

SITE, OTHER = Site("unet.one"), Site("unet.two")


def traced(
    *records: tuple[Site, torch.Tensor], pictures: int = 1, block: int | None = 0, patches: int | None = None
) -> PictureTrace:
    """A trace of h [rows, positions], each at a site."""
    trace = PictureTrace()
    trace.pictures, trace.block, trace.patches = pictures, block, patches
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


@pytest.mark.parametrize("block", [0, 1, 2])
def test_heat_is_of_one_block_of_rows(block: int) -> None:
    """Those of the prompts lie before or behind those of negative prompts, or between others."""
    h = torch.tensor([[0.1], [0.2], [0.3], [0.4], [0.5], [0.6]]).expand(-1, 4)
    trace = traced((SITE, h), pictures=2, block=block)
    assert [trace.heat("it", (8, 8), image=i).mean() for i in (0, 1)] == pytest.approx(h[2 * block :, 0][:2].tolist())
    for image in (-1, 2):
        with pytest.raises(DSASError, match=f"no heat for 'it', picture {image}"):
            trace.heat("it", (8, 8), image=image)


def test_calls_of_negative_prompts_alone_show_nothing() -> None:
    trace = traced((SITE, torch.full((1, 4), 0.9)), block=None)
    with pytest.raises(DSASError, match="no heat"):
        trace.heat("it", (8, 8))
    assert trace.mean_h("it") == pytest.approx(0.9)


def test_patches_of_other_pictures_are_left_out() -> None:
    trace = traced((SITE, torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.9, 0.9]])), patches=4)
    assert trace.heat("it", (2, 2)).flatten() == pytest.approx([0.1, 0.2, 0.3, 0.4])


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


def test_a_strip_has_a_column_for_each_strength() -> None:
    colours = ["red", "lime", "blue"]
    sheet = strip([[Image.new("RGB", (16, 16), colour) for colour in colours]], [-1, 0, 0.5], ["one"])
    assert sheet.size == (190 + 3 * 168 + 8, 34 + 168 + 8)
    assert [sheet.getpixel((190 + 8 + i * 168 + 80, 120)) for i in range(3)] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    headings = [np.asarray(sheet.crop((198 + i * 168, 0, 358 + i * 168, 34)).convert("L")) for i in range(3)]
    assert all(heading.min() < 100 for heading in headings)
    assert not np.array_equal(headings[0], headings[1])


def test_a_strength_is_labelled_with_its_sign_and_0_is_off() -> None:
    labels = [strength_label(strength) for strength in (-1.0, -0.0, 0.0, 0.5, 2 / 3, 12.0)]
    assert labels == ["-1", "off", "off", "+0.5", "+0.667", "+12"]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_an_animation_goes_forth_and_back(count: int) -> None:
    pictures = [Image.new("RGB", (16, 12), (30 * i, 0, 0)) for i in range(count)]
    frames = animation(pictures, list(range(count)), "it")
    assert len(frames) == max(1, 2 * count - 2)
    shown = [frame.getpixel((128, 96))[0] // 30 for frame in frames]
    assert shown == [*range(count), *range(count - 2, 0, -1)]
    assert {frame.size for frame in frames} == {(256, 192 + 52)}  # enlarged, in shape, with room for the caption


def test_large_pictures_of_an_animation_stay_as_they_are() -> None:
    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 256, (300, 400, 3), np.uint8))
    for frame in animation([picture, picture], [0, 1]):
        assert frame.size == (400, 352)
        assert frame.crop((0, 0, 400, 300)).tobytes() == picture.tobytes()


def test_frames_tell_their_strength_in_writing_and_on_a_scale() -> None:
    picture = Image.new("RGB", (256, 256), "red")
    low, off, _, _ = frames = animation([picture] * 3, [-1, 0, 1], "a name")
    below = [np.asarray(frame.crop((0, 256, 256, 308)).convert("L")) for frame in frames]
    written, scale = [part[:28] for part in below], [part[28:] for part in below]
    assert not np.array_equal(written[0], written[1])
    assert np.array_equal(below[1], below[3])
    knobs = [np.flatnonzero((part < 60).any(0)).mean() for part in scale[:3]]
    assert knobs == sorted(knobs)
    assert knobs[1] == pytest.approx(127.5, abs=2)
    nameless = np.asarray(animation([picture] * 2, [-1, 0])[0].crop((0, 256, 180, 280)).convert("L"))
    assert nameless.min() == 255
    named = animation([picture] * 2, [-1, 0], "a very long name " * 9)[0]
    assert np.asarray(named.convert("L"))[256:280, 190:215].min() == 255, "room before the strength"
