"""Novelty of outputs: how far they are, in their features, from everything that the unsteered model generates."""

from __future__ import annotations

import torch

#: number of nearest neighbours whose distances are averaged
NEIGHBOURS = 2


class NearestNeighbourNovelty:
    """k-nearest-neighbour novelty of outputs, relative to outputs of the unsteered model.

    An output unlike all that a model generates by itself has no near neighbours. Displacement does not show that: an
    output that becomes what it should has moved as far as one that falls apart.

    Args:
        known: features of unsteered outputs, float64 [n, features]; they are standardised by their own deviation.
        own: features of other unsteered outputs, whose mean distance to their neighbours is 1.

    Example:
        >>> known = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> scorer = NearestNeighbourNovelty(known[:40], known[40:])
        >>> scorer.novelty(known[40:]), scorer.novelty(known[40:] + 10) > 10
        (1.0, True)
    """

    def __init__(self, known: torch.Tensor, own: torch.Tensor) -> None:
        self._scale = known.std(0).clamp_min(1e-6)
        self._known = known / self._scale
        self._distance = max(self._mean_distance(own), 1e-6)

    def novelty(self, features: torch.Tensor) -> float:
        """Mean distance of outputs to their neighbours, over that of the unsteered model's own."""
        return self._mean_distance(features) / self._distance

    def _mean_distance(self, features: torch.Tensor) -> float:
        distances = torch.cdist(features / self._scale, self._known)
        return float(distances.topk(min(NEIGHBOURS, len(self._known)), largest=False).values.mean())
