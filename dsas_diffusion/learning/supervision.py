"""Where source pictures show the thing, for learning: masks of finished pictures, as labels of a site's patches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from dsas_core.errors import DSASError, UnsupportedError
from dsas_core.learning.capture import Shown
from dsas_core.learning.prompts.prompt_set import PromptSet
from dsas_core.model.sites import Site, patch_grid

from ..vision.segmentation import Masks, masks_from


def masks_for(masks: Masks | None, content: PromptSet, text_sites: Sequence[Site]) -> Masks:
    """What tells where pictures show the thing: what the user gave, else the segmentation model of the prompt file.

    Raises:
        UnsupportedError: sites of a text encoder, where there are no patches.
        DSASError: neither was given.
    """
    if text_sites:
        raise UnsupportedError(
            f"masks mark patches of pictures, and {text_sites[0]} reads words: learn at the denoiser "
            "(sites='denoiser'), or leave supervision to prompts"
        )
    if masks is None and not content.masks:
        raise DSASError(
            "supervision by positions asks where pictures show the thing: pass masks, a function of pictures, or name "
            "a segmentation model in the prompt file (masks: …)"
        )
    return masks_from(content.masks) if masks is None else masks


def patch_labels(masks: Sequence[np.ndarray | None]) -> Shown:
    """Labels of patches: those that a mask, bool [height, width], covers at least half of."""
    if all(mask is None for mask in masks):
        raise DSASError(f"masks mark nothing in any of {len(masks)} pictures of source prompts: look at both")

    def labels(picture: int, count: int) -> Sequence[bool]:
        mask = masks[picture]
        if mask is None:
            return [False] * count
        covered = torch.from_numpy(mask)[None, None].float()
        grid = patch_grid(count, *mask.shape)
        return (F.adaptive_avg_pool2d(covered, grid) >= 0.5).flatten().tolist()

    return labels
