"""Where a gate sees a concept, against where it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np

from dsas_core.errors import DSASError


@dataclass(frozen=True)
class Localisation:
    """How well heat fits a mask.

    `auroc` of heat as a score of mask pixels; `iou` of heat >= threshold with the mask; `pointing`, the share of the
    hottest points that lie on the mask (the pointing game, Zhang et al. 2016).
    """

    auroc: float
    iou: float
    pointing: float


def localisation(heat: np.ndarray, mask: np.ndarray, threshold: float = 0.5) -> Localisation:
    """Compare heat [height, width] with a mask, bool [height, width].

    Raises:
        DSASError: shapes that differ, or a mask that is empty or full, of which an AUROC is not defined.
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
        DSASError: there is none.
    """
    if not results:
        raise DSASError("no picture with a mask: there is nothing to average")
    return Localisation(*(float(np.mean(values)) for values in zip(*map(astuple, results), strict=True)))
