"""The rows that maps are fitted on: means over positions, plain, weighted by the gate, or of those that lead to it."""

from __future__ import annotations

import numpy as np
import torch

from ...probes import Probe
from .discriminant import discriminant
from .gate_fit import GateRows

#: targets still show what the gate detects where their highest h is at least this share of the sources'
STILL_SHOWN = 0.5
#: least share of a source prompt's positions that a concept is assumed to occupy
MIN_SHARE = 0.02
#: share of a text's tokens that show the concept most, before which a map of pooling "leading" is fitted
LEADING = 0.25


def map_rows(source: GateRows, target: GateRows, probe: Probe, pooling: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What the map is fitted on, [rows, width] of each side: means over positions, or means weighted by the gate.

    Where targets no longer show what the gate detects (a cat in the dog's place), its weights would pick positions at
    random. There plain means give the change, all of which is at the share of the positions that the gate picks in the
    source; so their difference is divided by that share.

    Where it is known which positions of both sides show the concept, these give the means, whatever the gate.

    Of texts, "leading" takes the states that are about to write what shows the concept, see `leading_means`.
    """
    if pooling == "leading":
        return leading_means(source, target), target.gathered("pooled")
    plain, changed = source.gathered("pooled"), target.gathered("pooled")
    if source.labels and target.labels and pooling == "gated":
        return _marked_means(source), _marked_means(target)
    locator = None if pooling == "mean" else probe.locator
    if locator is None:
        return plain, changed
    weighted, highest, share = _weighted_means(source, locator)
    target_weighted, target_highest, _ = _weighted_means(target, locator)
    if target_highest >= STILL_SHOWN * highest:
        return weighted, target_weighted
    centre, share = plain.mean(0), max(share, MIN_SHARE)
    return centre + (plain - centre) / share, centre + (changed - centre) / share


def leading_means(source: GateRows, target: GateRows) -> torch.Tensor:
    """The mean of each source text over the positions right before those that differ most from target texts.

    A state has read its own token and writes the next one. Moving those that are about to write a word of the concept
    changes what is written; those that have read it differ far more, mostly by the word itself.

    Args:
        source: activations with the positions of each text in order. Only pairs that are next to each other count: of a
            text of which few positions were sampled, few.
        target: those of target texts.

    Returns:
        [rows, width]; the plain mean of a text without such a pair.
    """
    sides = [rows.gathered("pooled") for rows in (source, target)]
    means, labels = torch.cat(sides).double().numpy(), np.repeat([1, 0], [len(side) for side in sides])
    scale = means.std(0).clip(1e-6)
    direction = torch.from_numpy(discriminant((means - means.mean(0)) / scale, labels) / scale)
    leading = []
    places = source.gathered("places").split(source.sampled)
    for (mean, positions), place in zip(split_rows(source), places, strict=True):
        adjacent = place.diff() == 1
        before, shown = positions[:-1][adjacent], positions[1:][adjacent].double() @ direction
        count = max(1, round(LEADING * (len(shown) + 1)))
        leading.append(before[shown.topk(count).indices].mean(0) if len(shown) else mean)
    return torch.stack(leading)


def _marked_means(rows: GateRows) -> torch.Tensor:
    """Means over the positions that show the concept, [rows, width], without rows that show it nowhere."""
    marked = zip(split_rows(rows), rows.gathered("labels").split(rows.sampled), strict=True)
    return torch.stack([positions[labels].mean(0) for (_, positions), labels in marked if labels.any()])


def _weighted_means(rows: GateRows, probe: Probe) -> tuple[torch.Tensor, float, float]:
    """Means over positions weighted by h, [rows, width]; the mean of the rows' highest h, and of their mean h.

    A row where h is 0 at every position counts by its plain mean.
    """
    means, h = [], []
    for plain, positions in split_rows(rows):
        scores = probe.score(positions).mean(-1, keepdim=True).expand(len(positions), 1)
        weighted = (scores * positions).sum(0) / scores.sum().clamp_min(1e-6)
        means.append(weighted if bool((scores > 0).any()) else plain)
        h.append(scores)
    highest, share = (float(torch.stack([reduce(row) for row in h]).mean()) for reduce in (torch.max, torch.mean))
    return torch.stack(means), highest, share


def split_rows(rows: GateRows) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The mean [width] of each row, and its sampled positions [k, width]."""
    positions = rows.gathered("positions").split(rows.sampled)
    return list(zip(rows.gathered("pooled"), positions, strict=True))
