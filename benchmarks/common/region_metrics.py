"""Metrics of what happened outside a mask, and at its edge."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from dsas_diffusion.vision.similarity import surroundings

#: pixels of a mask's edge
EDGE = 3


def squared_error_outside(before: Image.Image, after: Image.Image, mask: np.ndarray) -> float:
    """Mean squared difference of pixels outside a mask, dilated as for `similarity.change_outside`.

    Args:
        before: the picture before.
        after: the picture after.
        mask: of the thing in the picture before, bool [height, width].

    Example:
        >>> black, grey = Image.new("RGB", (16, 16)), Image.new("RGB", (16, 16), (3, 3, 3))
        >>> squared_error_outside(black, grey, np.zeros((16, 16), bool))
        9.0
    """
    difference = np.asarray(before, np.float64) - np.asarray(after, np.float64)
    return float((difference[surroundings(mask)] ** 2).mean())


def psnr_of(squared_error: float) -> float:
    """Peak signal-to-noise ratio of a mean squared difference, in dB; infinite for equal pictures.

    Example:
        >>> round(psnr_of(1.0), 2), psnr_of(0.0)
        (48.13, inf)
    """
    return 10 * math.log10(255**2 / squared_error) if squared_error > 0 else math.inf


def gradient_across(picture: Image.Image, mask: np.ndarray) -> float:
    """Mean absolute difference of neighbouring pixels on two sides of a mask's edge, of 255; 0 without an edge.

    The edge is that of the mask and those one and two pixels farther out, as composed pictures have a feathered edge.
    Compared with the unsteered picture it tells of a seam (above 1) or of what was smoothed away (below 1).

    Args:
        picture: of any mode.
        mask: bool [height, width].

    Example:
        >>> mask = np.arange(8)[None].repeat(8, 0) < 2
        >>> gradient_across(Image.fromarray(np.where(mask, 0, 90).astype(np.uint8)), mask)
        30.0
    """
    from scipy.ndimage import maximum_filter

    pixels = np.asarray(picture.convert("RGB"), np.float32)
    steps = [np.abs(np.diff(pixels, axis=axis)).mean(-1) for axis in (0, 1)]
    grown = [maximum_filter(mask.astype(np.uint8), 2 * reach + 1, mode="constant") for reach in range(EDGE)]
    across = np.concatenate([step[np.diff(one, axis=axis) != 0] for one in grown for axis, step in enumerate(steps)])
    return float(across.mean()) if len(across) else 0.0


def covered_share(mask: np.ndarray, thing: np.ndarray) -> float:
    """The share of a thing that a mask covers, both bool [height, width].

    Example:
        >>> covered_share(np.array([[True, False]]), np.array([[True, True]]))
        0.5
    """
    return float(mask[thing].mean())


def overlap(mask: np.ndarray, thing: np.ndarray) -> float:
    """Intersection over union of two masks, bool [height, width]; 0 where both are empty.

    Example:
        >>> overlap(np.array([[True, False]]), np.array([[True, True]]))
        0.5
    """
    return float((mask & thing).sum() / max(1, (mask | thing).sum()))
