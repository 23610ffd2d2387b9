"""The trace: h and the change of the activation, by concept, site, step and position of the last generation."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch

from ..errors import DSASError, did_you_mean, quote
from ..model.hooks import Call
from ..model.sites import Site
from .solve import SolvedStrength


@dataclass(frozen=True)
class Record:
    """One concept at one site in one call, with the steered rows alone.

    Args:
        concept: name of the concept.
        site: where it writes, or only reads.
        timestep: of the call, 0 to 1000; None without a timestep.
        prompts: int64 [rows], the number of each row's prompt.
        h: [rows, positions], the probe's score (its mean over dimensions, where it scores each of them) times the
            site's weight.
        change: [rows, positions], norm of the change, relative to the norm of the activation.
        cosine: [rows, positions], between the activation before and after.
        mask: [rows, positions], 1 for positions that count; None for all.
        chosen: [rows, positions], with strength "auto" the solved map strength, before the site's weight and before
            `within` shortens it; else None.
        unreachable: [rows, positions], with strength "auto" 1 where the probe is above its target and the map does not
            lower it, so that nothing was changed; else None.
        writes: whether the site is steered; False for what only reads there.
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
    writes: bool = True


class Trace:
    """Records of the last generation; the next one clears them when its prompts arrive.

    Attributes:
        names: of the concepts that steer; where there are any, asking for another one raises a DSASError.

    Example:
        >>> trace, x = Trace(), torch.ones(1, 2, 4)
        >>> call = Call(steered=torch.ones(1), prompts=torch.zeros(1, dtype=torch.long))
        >>> record = trace.record("blur", Site("unet.mid"), call, torch.tensor([[[0.5], [1.0]]]), before=x, after=2 * x)
        >>> record.change, trace.mean_h("blur"), trace.highest_h("blur")
        (tensor([[1., 1.]]), 0.75, 1.0)
    """

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.names: tuple[str, ...] = ()

    def check_name(self, concept: str) -> None:
        """Raise a DSASError where no concept of this name steers; the message offers the nearest."""
        if self.names and concept not in self.names:
            raise DSASError(
                f"no concept {quote(concept)} is traced; there is {', '.join(self.names)}"
                f"{did_you_mean(concept, self.names)}"
            )

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
        writes: bool = True,
    ) -> Record:
        """Record what one concept did at one site in one call.

        Args:
            concept: name of the concept.
            site: the site.
            call: the call; only its steered rows are kept.
            h: scores, broadcastable to [batch, positions, width].
            before: activation before steering, [batch, positions, width].
            after: activation after steering, of the same shape.
            solved: the solved strength, where it is "auto".
            writes: whether the site is steered, not only read.

        Returns:
            The new record.
        """
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
            writes=writes,
        )
        self.records.append(record)
        return record

    def select(
        self, concept: str, site: str | None = None, root: str | None = None, sites: Collection[Site] | None = None
    ) -> list[Record]:
        """Records of one concept.

        Args:
            concept: name of the concept.
            site: only at this site; None for all.
            root: only in this root; None for all.
            sites: only where these sites are steered; None for all records.

        Raises:
            DSASError: no such concept steers.
        """
        self.check_name(concept)
        return [
            record
            for record in self.records
            if record.concept == concept
            and (site is None or str(record.site) == site)
            and (root is None or record.site.root == root)
            and (sites is None or (record.site in sites and record.writes))
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
        """Mean h over the positions that count; 0 without records.

        Args:
            concept: name of the concept.
            site: only at this site; None for all.
            root: only in this root; None for all.
            sites: only at these sites, such as those that steer; None for all.
            prompt: only for this prompt of the batch; None for all.
        """
        total = count = 0.0
        for record in self.select(concept, site, root, sites):
            rows = slice(None) if prompt is None else record.prompts == prompt
            mask = _mask_of(record)[rows]
            total += float((record.h[rows] * mask).sum())
            count += float(mask.sum())
        return total / max(1.0, count)

    def highest_h(self, concept: str, site: str | None = None, *, sites: Collection[Site] | None = None) -> float:
        """Highest h over the positions that count; 0 without records. Arguments as for `mean_h`."""
        records = self.select(concept, site, sites=sites)
        return max((float((r.h * _mask_of(r)).max()) for r in records if r.h.numel()), default=0.0)


def _mask_of(record: Record) -> torch.Tensor:
    return torch.ones_like(record.h) if record.mask is None else record.mask.to(record.h.dtype)
