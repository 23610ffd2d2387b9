"""Localisation: the heat of a gate, compared with the mask of the concept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np

from dsas_core.errors import DSASError


@dataclass(frozen=True)
class Localisation:
    """How well heat fits a mask.

    Args:
        auroc: of heat as a score of mask pixels.
        iou: of the mask with the pixels at or above the threshold.
        pointing: the share of the hottest pixels that lie on the mask (the pointing game, Zhang et al. 2016).
    """

    auroc: float
    iou: float
    pointing: float


def localisation(heat: np.ndarray, mask: np.ndarray, threshold: float = 0.5) -> Localisation:
    """Compare heat with a mask.

    Args:
        heat: h of each pixel, float [height, width] in [0, 1].
        mask: bool [height, width].
        threshold: for the IoU.

    Raises:
        DSASError: shapes that differ, or a mask that is empty or full, whose AUROC is undefined.

    Example:
        >>> localisation(np.array([[0.9, 0.2]]), np.array([[True, False]]))
        Localisation(auroc=1.0, iou=1.0, pointing=1.0)
    """
    if heat.shape != mask.shape:
        raise DSASError(f"heat {heat.shape} and mask {mask.shape}: expected one shape")
    if not mask.any() or mask.all():
        raise DSASError("the mask is empty or full: nothing can be told from anything else")
    from sklearn.metrics import roc_auc_score

    hot = heat >= threshold
    return Localisation(
        auroc=float(roc_auc_score(mask.ravel(), heat.ravel())),
        iou=float((hot & mask).sum() / (hot | mask).sum()),
        pointing=float(mask[heat == heat.max()].mean()),
    )


def average(results: Sequence[Localisation]) -> Localisation:
    """The mean of each figure.

    Raises:
        DSASError: no results.
    """
    if not results:
        raise DSASError("no picture with a mask: there is nothing to average")
    return Localisation(*(float(np.mean(values)) for values in zip(*map(astuple, results), strict=True)))
