"""What of held-out pictures stays: changes beside a thing, their counts, and what is said of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dsas_core.concept.evidence import describe_kept
from dsas_diffusion.learning.trial.kept import CHANGED_BESIDE, Kept, Part, change_beside, count_kept, describe_changes

SIDE = 64
NONE = Part(0, 0)


def picture(*boxes: tuple[int, int], value: int = 200) -> Image.Image:
    """A black picture with squares of 20 pixels, by their left upper corners."""
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    for x, y in boxes:
        pixels[y : y + 20, x : x + 20] = value
    return Image.fromarray(pixels)


def mask_at(x: int, y: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE))
    mask[y : y + 20, x : x + 20] = 1
    return mask


THING, BESIDE = (2, 20), (40, 20)


@pytest.mark.parametrize(
    ("after", "changed"),
    [
        (picture(THING, BESIDE), False),
        (picture(BESIDE), False),  # the thing alone is gone
        (picture((5, 22), BESIDE), False),  # it reaches a little farther
        (picture(THING), True),  # what was beside it is gone
        (picture(THING, (44, 0)), True),  # it has moved
        (picture(THING, BESIDE, value=190), False),  # all is a little darker
    ],
    ids=["nothing", "the thing", "its shape", "gone", "moved", "shade"],
)
def test_what_changes_beside_the_thing(after: Image.Image, changed: bool) -> None:
    found = change_beside([picture(THING, BESIDE)], [after], [mask_at(*THING)])
    assert (found[0] > CHANGED_BESIDE) == changed


def test_without_a_place_nothing_beside_it_is_told() -> None:
    assert change_beside([picture()], [picture(BESIDE)], None).tolist() == [0.0]
    unseen = change_beside([picture()], [picture(BESIDE)], [np.zeros((SIDE, SIDE))])
    assert unseen[0] > CHANGED_BESIDE, "where nothing is seen, all of the picture is beside it"


def test_counts_are_by_part_and_by_neighbour() -> None:
    around = np.array([0.0, 99.0, 99.0, 0.0])
    kept = count_kept(around, [None, "rabbit", "hat", "rabbit"], np.array([True, False]))
    assert kept == Kept(Part(0, 1), Part(2, 3), Part(1, 2), {"hat": Part(1, 1), "rabbit": Part(1, 2)})
    assert kept.drift == 2 / 3, "many that stay elsewhere do not make up for it"
    both = kept + kept
    assert both.beside == Part(4, 6)
    assert both.neighbours == {"hat": Part(2, 2), "rabbit": Part(2, 4)}
    assert both.drift == kept.drift


@given(changed=st.integers(0, 60), pictures=st.integers(0, 60))
def test_more_pictures_are_known_better(changed: int, pictures: int) -> None:
    part = Part(min(changed, pictures), pictures)
    assert 0 <= part.share <= 1
    hundred = Part(100 * part.changed, 100 * part.pictures)
    assert hundred.is_known or not part.is_known
    assert not Part(0, 3).is_known
    assert Part(0, 40).is_known


@pytest.mark.parametrize(
    ("beside", "without", "said"),
    [
        (Part(0, 20), Part(0, 20), []),
        (Part(2, 20), Part(2, 20), []),
        (Part(6, 8), Part(0, 20), ["things beside it changed in 6 of 8 held-out pictures (rabbit 6 of 8): draw with"]),
        (NONE, Part(5, 20), ["pictures without it changed in 5 of 20 held-out pictures: add control prompts"]),
    ],
)
def test_what_could_not_be_kept_is_said(beside: Part, without: Part, said: list[str]) -> None:
    kept = Kept(NONE, beside, without, {"rabbit": beside, "hat": NONE}).as_evidence()
    lines = describe_changes(kept)
    assert len(lines) == len(said)
    assert all(line.startswith(start) for line, start in zip(lines, said, strict=True))
    shown = describe_kept(kept)
    assert f"without it {without.changed} of {without.pictures}" in shown
    assert ("beside it" in shown) == bool(beside.pictures)
