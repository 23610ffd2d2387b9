"""Supervision by positions: masks of generated source pictures as labels of a site's patches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from dsas_core.errors import DSASError, UnsupportedError
from dsas_core.learning.capture import LabelPositions
from dsas_core.learning.prompts.prompt_set import PromptSet
from dsas_core.model.sites import Site, patch_grid

from ..vision.segmentation import Masks, masks_from


def masks_for(masks: Masks | None, content: PromptSet, text_sites: Sequence[Site] = ()) -> Masks:
    """Choose what finds where pictures show the concept.

    Args:
        masks: the user's function, pictures -> masks.
        content: the prompt file, which may name a segmentation model.
        text_sites: sites of text encoders that are learned at.

    Returns:
        The user's function, else one of the segmentation model of the prompt file.

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


def find_marked(masks: Masks, pictures: Sequence[Image.Image]) -> list[np.ndarray | None]:
    """Where the pictures of source prompts show the concept.

    Raises:
        DSASError: no mask marks anything.
    """
    found = masks(pictures)
    if all(mask is None for mask in found):
        raise DSASError(f"masks mark nothing in any of {len(found)} pictures of source prompts: look at both")
    return found


def patch_labels(masks: Sequence[np.ndarray | None]) -> LabelPositions:
    """Labels of patches: those that a mask covers at least half of.

    Args:
        masks: of each picture, bool [height, width], or None where nothing is marked.

    Example:
        >>> mask = np.zeros((8, 8), bool)
        >>> mask[:, :4] = True
        >>> patch_labels([mask])(0, 4)  # the first picture, on a grid of four patches
        [True, False, True, False]
    """

    def labels(picture: int, count: int) -> Sequence[bool]:
        mask = masks[picture]
        if mask is None:
            return [False] * count
        covered = torch.from_numpy(mask)[None, None].float()
        grid = patch_grid(count, *mask.shape)
        return (F.adaptive_avg_pool2d(covered, grid) >= 0.5).flatten().tolist()

    return labels
