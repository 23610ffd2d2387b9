"""Novelty of results: how far from all that the unsteered model makes they are, in some features of theirs."""

from __future__ import annotations

import torch

#: to how many of the nearest a distance is taken
NEAREST = 2


class NearestNeighbourNovelty:
    """Results of the unsteered model, by which others are judged.

    What is off all that a model makes by itself has nothing near. How far a result has moved does not tell that: one
    that becomes what it should has moved as far as one that falls apart.

    Args:
        known: features of results, float64 [n, features]: standardised, these are near or far.
        own: features of other unsteered results: their mean distance from the nearest is 1.
    """

    def __init__(self, known: torch.Tensor, own: torch.Tensor) -> None:
        self._scale = known.std(0).clamp_min(1e-6)
        self._known = known / self._scale
        self._distance = max(self._from_nearest(own), 1e-6)

    def novelty(self, features: torch.Tensor) -> float:
        """The mean distance of results from the nearest, over that of the unsteered model's own."""
        return self._from_nearest(features) / self._distance

    def _from_nearest(self, features: torch.Tensor) -> float:
        distances = torch.cdist(features / self._scale, self._known)
        return float(distances.topk(min(NEAREST, len(self._known)), largest=False).values.mean())
