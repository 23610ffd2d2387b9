"""The rows that maps of texts are fitted on: states that are about to write what shows the concept."""

from __future__ import annotations

import pytest
import torch

from dsas_core import methods
from dsas_core.learning.capture import Activations
from dsas_core.methods.base.map_rows import leading_means
from dsas_core.probes import ConstantProbe

WIDTH, LENGTH = 6, 8
READ, ABOUT = 0, 1
"""The dimension of a state that has read a word of the concept, and of one that is about to write it."""


def texts(shows: bool, seed: int, count: int = 30, step: int = 1) -> Activations:
    """Texts of noise; one token of each is a word of the concept, and the token before knows."""
    random = torch.Generator().manual_seed(seed)
    rows = Activations()
    for number in range(count):
        x = 0.3 * torch.randn(LENGTH, WIDTH, generator=random)
        if shows:
            place = int(torch.randint(1, LENGTH, (1,), generator=random))
            x[place, READ] += 8.0
            x[place - 1, ABOUT] += 2.0
        rows.pooled.append(x.mean(0)[None])
        rows.prompts.append(torch.tensor([number]))
        rows.positions.append(x)
        rows.position_prompts.append(torch.full((LENGTH,), number))
        rows.places.append(step * torch.arange(LENGTH))
    return rows


def test_the_map_moves_what_is_about_to_write() -> None:
    source, target = texts(True, 0), texts(False, 1)
    fit = methods.mapping("caa").fit_on
    mean, leading = (fit(source, target, ConstantProbe(), pooling).shift for pooling in ("mean", "leading"))
    assert -mean[READ] > 3 * -mean[ABOUT] > 0, "a plain mean is mostly the word itself"
    assert -leading[ABOUT] > 3 * leading[READ].abs()
    assert leading[ABOUT] < 3 * mean[ABOUT], "undiluted by the rest of the text"


def test_each_text_has_a_row_of_its_own() -> None:
    source, target = texts(True, 2), texts(False, 3)
    rows = leading_means(source, target)
    assert rows.shape == (30, WIDTH)
    swapped = Activations(**{name: getattr(source, name)[::-1] for name in vars(source) if name != "count"})
    torch.testing.assert_close(leading_means(swapped, target), rows.flip(0))


def test_of_sampled_positions_the_pairs_that_are_left_count() -> None:
    """A text that is longer than what is kept of it: less is found, and it is no mean of everything."""
    source, target = texts(True, 6, count=200), texts(False, 7, count=200)
    random = torch.Generator().manual_seed(0)
    for number in range(200):
        kept = torch.randperm(LENGTH, generator=random)[: LENGTH * 3 // 4].sort().values
        for name in ("positions", "position_prompts", "places"):
            getattr(source, name)[number] = getattr(source, name)[number][kept]
    leading, mean = leading_means(source, target).mean(0), source.gathered("pooled").mean(0)
    assert leading[ABOUT] > 2 * mean[ABOUT]
    assert leading[READ].abs() < 0.5 * mean[READ]


@pytest.mark.parametrize("alone", [True, False])
def test_without_neighbours_a_text_counts_by_its_mean(alone: bool) -> None:
    """Of one position, or sampled with gaps: which state wrote what is not known."""
    source, target = texts(True, 4, step=2), texts(False, 5)
    if alone:
        for name in ("positions", "position_prompts", "places"):
            setattr(source, name, [part[:1] for part in getattr(source, name)])
    torch.testing.assert_close(leading_means(source, target), source.gathered("pooled"))
