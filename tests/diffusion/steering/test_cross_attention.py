"""Attention as a mask: against plain sums, its bounds, and the way to a grid and back."""

from __future__ import annotations

import pytest
import torch

from dsas_diffusion.steering.cross_attention import attention_to, normalise_attention, on_grid, on_patches


def test_it_is_the_softmax_of_scaled_products() -> None:
    queries, keys = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 6, 4)
    chosen = torch.zeros(2, 2, 6)
    chosen[0, :, 1] = 1
    chosen[1, 0, 2:4] = 0.5  # two tokens of one row, none of the other
    found = attention_to(queries, keys, chosen, 0.5)
    for row in range(2):
        weights = torch.stack([torch.exp(queries[row, head] @ keys[row, head].T * 0.5) for head in range(3)])
        weights = (weights / weights.sum(-1, keepdim=True)).mean(0)
        assert torch.allclose(found[0, row], weights[:, 1], atol=1e-6)
        expected = weights[:, 2:4].mean(-1) if row == 0 else torch.zeros(5)
        assert torch.allclose(found[1, row], expected, atol=1e-6)


def test_all_tokens_together_get_all_attention_in_half_precision_too() -> None:
    queries, keys = torch.randn(1, 2, 7, 8).half(), torch.randn(1, 2, 5, 8).half()
    found = attention_to(queries, keys, torch.ones(1, 1, 5), 1.0)
    assert found.dtype == torch.float32
    assert torch.allclose(found, torch.ones(1, 1, 7), atol=1e-6)


def test_normalised_goes_by_each_maps_own_quantiles() -> None:
    maps = torch.arange(101.0).view(1, 1, 101) / 1000
    made = normalise_attention(torch.stack([maps, 1000 * maps + 3]), 0.5, 0.9)
    assert torch.allclose(made[0], made[1], atol=1e-5)
    expected = ((torch.arange(101.0) - 50) / 40).clamp(0, 1)
    assert torch.allclose(made[0, 0, 0], expected, atol=1e-5)


def test_a_map_that_is_the_same_everywhere_gives_nothing() -> None:
    assert not normalise_attention(torch.full((2, 4, 4), 0.3), 0.5, 0.95).any()


@pytest.mark.parametrize(("positions", "grid"), [(16, (8, 8)), (4, (8, 8)), (64, (8, 8)), (32, (4, 8)), (8, (4, 8))])
def test_a_place_in_the_picture_stays_in_its_place(positions: int, grid: tuple[int, int]) -> None:
    height, width = grid
    rows = round((positions * height / width) ** 0.5)
    maps = torch.zeros(1, 1, rows, positions // rows)
    maps[..., 0, -1] = 1  # the upper right corner
    spread = on_grid(maps.flatten(2), height, width)
    assert spread.shape == (1, 1, height, width)
    assert (spread[..., 0, -1], spread[..., -1, 0]) == (1, 0)
    back = on_patches(spread, positions)
    assert back.shape == (1, 1, positions)
    assert back.flatten().argmax() == maps.flatten().argmax()
    assert torch.allclose(on_patches(torch.full((1, 1, height, width), 0.7), positions), torch.tensor(0.7))
