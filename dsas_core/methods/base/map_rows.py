"""The rows that maps are fitted on: means over positions, plain or weighted by the gate."""

from __future__ import annotations

import torch

from ...probes import Probe
from .gate_fit import GateRows

#: targets still show what the gate detects where their highest h is at least this share of the sources'
STILL_SHOWN = 0.5
#: least share of a source prompt's positions that a concept is assumed to occupy
MIN_SHARE = 0.02


def map_rows(source: GateRows, target: GateRows, probe: Probe, pooling: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What the map is fitted on, [rows, width] of each side: means over positions, or means weighted by the gate.

    Where targets no longer show what the gate detects (a cat in the dog's place), its weights would pick positions at
    random. There plain means give the change, all of which is at the share of the positions that the gate picks in the
    source; so their difference is divided by that share.
    """
    plain, changed = source.gathered("pooled"), target.gathered("pooled")
    locator = None if pooling == "mean" else probe.locator
    if locator is None:
        return plain, changed
    weighted, highest, share = _weighted_means(source, locator)
    target_weighted, target_highest, _ = _weighted_means(target, locator)
    if target_highest >= STILL_SHOWN * highest:
        return weighted, target_weighted
    centre, share = plain.mean(0), max(share, MIN_SHARE)
    return centre + (plain - centre) / share, centre + (changed - centre) / share


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
