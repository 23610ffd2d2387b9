"""The trace: h, and the change that was made, per concept, site, step and position of the last generation."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch

from .hooks import Call
from .sites import Site
from .solve import Solved


@dataclass(frozen=True)
class Record:
    """One concept at one site in one call.

    `h` [rows, positions] is the probe's score (its mean over dimensions, where it scores each) times the site's weight;
    `change` [rows, positions] the length of what was added, relative to the activation; `cosine` [rows, positions]
    between the activation before and behind. Where the strength is auto, `chosen` [rows, positions] is the map strength
    that it came to, before the site's weight and before `within` shortens it, and `against` [rows, positions] is 1
    where the probe is above its target and the map does not lower it, so that nothing was done; None elsewhere. Only
    rows that were to be steered are kept; `prompts` [rows] tells whose.
    """

    concept: str
    site: Site
    timestep: float | None
    prompts: torch.Tensor
    h: torch.Tensor
    change: torch.Tensor
    cosine: torch.Tensor
    mask: torch.Tensor | None
    chosen: torch.Tensor | None = None
    against: torch.Tensor | None = None


class Trace:
    """Records of the last generation; a new one begins when its prompts come in."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def clear(self) -> None:
        self.records.clear()

    def record(
        self,
        concept: str,
        site: Site,
        call: Call,
        h: torch.Tensor,
        before: torch.Tensor,
        after: torch.Tensor,
        solved: Solved | None = None,
    ) -> Record:
        """Keep what one concept did at one site in one call, with the strength that was solved for; what was kept."""
        kept = (call.rows > 0).cpu()  # the site may be on another device than its root
        old, new = before[kept].detach().float(), after[kept].detach().float()
        change = (new - old).norm(dim=-1) / old.norm(dim=-1).clamp_min(1e-12)
        h = h.detach().float().expand(*before.shape[:-1], -1)[kept].mean(-1)
        mask = call.counted(site, before.shape[1])
        made = Record(
            concept=concept,
            site=site,
            timestep=None if call.timestep is None else float(call.timestep),
            prompts=call.prompts.cpu()[kept],
            h=h.cpu(),
            change=change.cpu(),
            cosine=torch.cosine_similarity(old, new, dim=-1).cpu(),
            mask=None if mask is None else mask.cpu()[kept],
        )
        if solved is not None:
            chosen, against = (
                part.detach().float().expand(*before.shape[:-1], 1)[kept][..., 0].cpu()
                for part in (solved.strength, solved.unreachable)
            )
            made = replace(made, chosen=chosen, against=against)
        self.records.append(made)
        return made

    def select(self, concept: str, site: str | None = None, root: str | None = None) -> list[Record]:
        """Records of one concept, at one site or below one root."""
        return [
            record
            for record in self.records
            if record.concept == concept
            and (site is None or str(record.site) == site)
            and (root is None or record.site.root == root)
        ]

    def mean_h(
        self,
        concept: str,
        site: str | None = None,
        root: str | None = None,
        *,
        sites: Collection[Site] | None = None,
        prompt: int | None = None,
    ) -> float:
        """Mean h over what was read; 0 when nothing was.

        Args:
            concept, site, root: as of `select`. sites: these alone, such as those that steer.
            prompt: one of the batch.
        """
        total = count = 0.0
        for record in self.select(concept, site, root):
            if sites is None or record.site in sites:
                own = slice(None) if prompt is None else record.prompts == prompt
                counted = _counted(record)[own]
                total += float((record.h[own] * counted).sum())
                count += float(counted.sum())
        return total / max(1.0, count)

    def highest_h(self, concept: str, site: str | None = None, *, sites: Collection[Site] | None = None) -> float:
        """Highest h over what was read, see `mean_h`; 0 when nothing was."""
        records = [record for record in self.select(concept, site) if sites is None or record.site in sites]
        return max((float((r.h * _counted(r)).max()) for r in records if r.h.numel()), default=0.0)


def _counted(record: Record) -> torch.Tensor:
    return torch.ones_like(record.h) if record.mask is None else record.mask.to(record.h.dtype)
