"""The trace: h, and the change that was made, per concept, site, step and position of the last generation."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch

from ..model.hooks import Call
from ..model.sites import Site
from .solve import SolvedStrength


@dataclass(frozen=True)
class Record:
    """One concept at one site in one call.

    Only rows that were to be steered are kept.

    Args:
        concept: its name.
        site: where it writes, or only reads.
        timestep: of the call, 0 to 1000; None without a clock.
        prompts: [rows], the prompt of each.
        h: [rows, positions], the probe's score (its mean over dimensions, where it scores each) times the site's
            weight.
        change: [rows, positions], the length of what was added, relative to the activation's.
        cosine: [rows, positions], between the activation before and after.
        mask: [rows, positions], 1 for positions that count; None for all.
        chosen: [rows, positions], of a strength that is auto: the map strength that was solved for, before the site's
            weight and before `within` shortens it; else None.
        unreachable: [rows, positions], of a strength that is auto: 1 where the probe is above its target and the map
            does not lower it, so that nothing was done; else None.
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
    unreachable: torch.Tensor | None = None


class Trace:
    """Records of the last generation; a new one begins when its prompts come in.

    Example:
        >>> Trace().mean_h("banana-blur")
        0.0
    """

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
        solved: SolvedStrength | None = None,
    ) -> Record:
        """Keep what one concept did at one site in one call, with the strength that was solved for; what was kept."""
        kept = (call.steered > 0).cpu()  # the site may be on another device than its root
        old, new = before[kept].detach().float(), after[kept].detach().float()
        change = (new - old).norm(dim=-1) / old.norm(dim=-1).clamp_min(1e-12)
        mask = call.position_mask(site, before.shape[1])

        def by_position(part: torch.Tensor) -> torch.Tensor:
            return part.detach().float().expand(*before.shape[:-1], -1)[kept].mean(-1).cpu()

        record = Record(
            concept=concept,
            site=site,
            timestep=None if call.timestep is None else float(call.timestep),
            prompts=call.prompts.cpu()[kept],
            h=by_position(h),
            change=change.cpu(),
            cosine=torch.cosine_similarity(old, new, dim=-1).cpu(),
            mask=None if mask is None else mask.cpu()[kept],
            chosen=None if solved is None else by_position(solved.strength),
            unreachable=None if solved is None else by_position(solved.unreachable),
        )
        self.records.append(record)
        return record

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
            concept: its name.
            site: one site; None for all.
            root: one root; None for all.
            sites: these alone, such as those that steer; None for all.
            prompt: one prompt of the batch; None for all.
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
