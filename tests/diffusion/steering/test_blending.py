"""Masks on latents, and their feathered edge on pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dsas_core.errors import UnsupportedError
from dsas_diffusion.steering.blending import feather, feather_width, latents_mask


@pytest.mark.parametrize("shape", [(1, 4, 8, 4), (1, 32, 16), (1, 4, 1, 8, 4)], ids=["plain", "packed", "with frames"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_masks_cover_the_cells_of_latents_that_they_touch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Of a picture that is no square; and latents are blended exactly there."""
    mask, base = (
        np.zeros((64, 32), np.float32),
        torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype),
    )
    mask[7:10, 31] = 1  # in the last column, the first and second row
    on_latents = latents_mask([mask], base).expand_as(base)
    cells = (on_latents if len(shape) == 3 else on_latents.flatten(2).transpose(1, 2))[0, :, 0]
    assert cells.nonzero().flatten().tolist() == [3, 7]
    blended = torch.lerp(base, 3 * base, on_latents)
    assert torch.equal(blended, torch.where(on_latents > 0, 3 * base, base))


@pytest.mark.parametrize("shape", [(2, 4, 8, 4), (1, 4, 8, 8), (1, 31, 16), (1, 4)])
def test_latents_of_another_form_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UnsupportedError, match=r"latents \[.*\] of 1 pictures of 32 × 64: expected"):
        latents_mask([np.ones((64, 32), np.float32)], torch.zeros(shape))


@pytest.mark.parametrize("shape", [(24, 17), (300, 400)])
def test_the_feather_is_that_of_a_square(shape: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).choice([0, 0, 0, 0.5, 1], shape).astype(np.float32)
    mask[:, : shape[1] // 2] = 0
    reach = feather_width(shape)
    grown, feathered = np.pad(mask, reach), feather(mask)
    grown = np.lib.stride_tricks.sliding_window_view(grown, (2 * reach + 1,) * 2).max((2, 3))
    mean = np.lib.stride_tricks.sliding_window_view(np.pad(grown, reach, "edge"), (2 * reach + 1,) * 2).mean((2, 3))
    assert np.abs(feathered - np.maximum(mean, mask)).max() < 1e-6
    assert 0 < feathered[:, : shape[1] // 2].max() <= 1
