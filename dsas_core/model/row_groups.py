"""Rows of a batch that belong together: the runs of one prompt. Parts that couple rows are told of them by `among`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, NamedTuple, Self, TypeVar

import torch

from ..errors import DSASError, quote
from ..utils.tensorclass import TensorClass
from .hooks import Call

PartT = TypeVar("PartT", bound=TensorClass)


class RowGroups(NamedTuple):
    """Which rows of a batch are runs of one prompt. Its shapes are known before a call, so that a graph can have it.

    Args:
        members: int64 [groups, size], the rows of each group, in order; -1 where a group has fewer than `size`.
        places: int64 [batch], which place of `members` (flattened) a row has; -1 for rows of no group.
        counted: float [batch, positions], 1 for positions that count; None for all.

    Example:
        >>> groups = find_groups(torch.tensor([5, 5, 7, 7]), torch.tensor([1.0, 1.0, 1.0, 0.0]))
        >>> groups.members.tolist(), groups.places.tolist()
        ([[0, 1], [2, -1]], [0, 1, 2, -1])
    """

    members: torch.Tensor
    places: torch.Tensor
    counted: torch.Tensor | None = None

    @classmethod
    def of_one(cls, x: torch.Tensor, mask: torch.Tensor | None = None) -> Self:
        """All rows of an activation [batch, positions, width] as one group; one [positions, width] is a single run."""
        rows = torch.arange(len(x) if x.ndim > 2 else 1, device=x.device)
        return cls(rows[None], rows, mask)

    def at(self, device: torch.device, counted: torch.Tensor | None) -> RowGroups:
        """The groups on a device, where these positions count."""
        return RowGroups(self.members.to(device), self.places.to(device), counted)

    def counts(self) -> torch.Tensor:
        """How many rows each group has, int64 [groups]."""
        return (self.members >= 0).sum(1)

    def gather(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Activations by group.

        Args:
            x: [batch, positions, width].

        Returns:
            [groups, positions, size, width], zeros for runs that do not count at a position; and which do, bool
            [groups, positions, size, 1].
        """
        rows, there = self.members.clamp_min(0), self.members >= 0
        counts = there[:, None].expand(-1, x.shape[-2], -1)
        if self.counted is not None:
            counts = counts & (self.counted[rows] > 0).transpose(1, 2)
        counts = counts[..., None]
        return torch.where(counts, x[rows].transpose(1, 2), 0), counts

    def scatter(self, values: torch.Tensor) -> torch.Tensor:
        """Values by group, [groups, positions, size, width], as those of rows [batch, positions, width]; else zeros."""
        by_place = values.transpose(1, 2).flatten(0, 1)
        if not len(by_place):
            return values.new_zeros(len(self.places), *by_place.shape[1:])
        return torch.where((self.places >= 0)[:, None, None], by_place[self.places.clamp_min(0)], 0)


def find_groups(numbers: torch.Tensor, takes_part: torch.Tensor) -> RowGroups:
    """The groups of rows that have one number.

    Args:
        numbers: int64 [batch].
        takes_part: float [batch], 0 for rows that are in no group.
    """
    rows = (takes_part != 0).nonzero()[:, 0]
    found, group, counts = numbers[rows].unique(return_inverse=True, return_counts=True)
    size = int(counts.max()) if len(rows) else 1
    order = group.argsort(stable=True)
    starts = counts.cumsum(0) - counts
    place = group[order] * size + torch.arange(len(rows), device=rows.device) - starts[group[order]]
    members = torch.full((len(found) * size,), -1, device=rows.device).scatter(0, place, rows[order])
    places = torch.full((len(numbers),), -1, device=rows.device).scatter(0, rows[order], place)
    return RowGroups(members.view(len(found), size), places)


def couples_rows(part: TensorClass) -> bool:
    """Whether a probe or map, or a part of it, goes by the other rows of a group."""
    return bool(getattr(part, "couples_rows", False)) or any(map(couples_rows, part.children()))


def among(part: PartT, groups: RowGroups) -> PartT:
    """A probe or map that is told which rows belong together, wherever it is in it; itself where it couples none."""
    if getattr(part, "couples_rows", False):
        bound: PartT = part.among(groups)  # type: ignore[attr-defined]
        return bound
    if not couples_rows(part):
        return part
    values = {field.name: _among(getattr(part, field.name), groups) for field in fields(part)}  # type: ignore[arg-type]
    return replace(part, **values)  # type: ignore[type-var]


def _among(value: Any, groups: RowGroups) -> Any:
    if isinstance(value, TensorClass):
        return among(value, groups)
    return tuple(_among(item, groups) for item in value) if isinstance(value, tuple) else value


class RowGrouping:
    """The groups of rows of each root's calls: found before a call, kept as long as its rows are the same.

    Args:
        coupled: root -> names of the concepts with parts that couple its rows.
    """

    def __init__(self, coupled: Mapping[str, set[str]]) -> None:
        self.coupled = coupled
        self._found: dict[str, tuple[torch.Tensor, torch.Tensor, RowGroups]] = {}

    def find(self, root: str, call: Call, doses: Mapping[str, torch.Tensor]) -> RowGroups | None:
        """The groups of a call's rows, without those that are not steered; None where no concept couples rows.

        Args:
            root: name of the root.
            call: of the root.
            doses: concept -> map strength of each row, [batch, 1, 1]; none of concepts that do not steer.

        Raises:
            DSASError: a concept that couples rows steers a row which is alone in its group.
        """
        names = self.coupled.get(root)
        if not names:
            return None
        numbers = call.prompts if call.groups is None else call.groups
        last = self._found.get(root)
        if last is not None and _same(last[0], numbers) and _same(last[1], call.steered):
            groups = last[2]
        else:
            groups = find_groups(numbers, call.steered)
            self._found[root] = numbers.clone(), call.steered.clone(), groups
        alone = groups.members[groups.counts() == 1, 0]
        for name in sorted(names & set(doses)) if len(alone) else ():
            if bool((doses[name][alone] != 0).any()):
                raise DSASError(
                    f"concept {quote(name)} goes by several runs of one prompt: found 1 run, expected at least 2: draw "
                    "or write several (num_images_per_prompt=, num_return_sequences=, or one prompt several times in a "
                    "batch)"
                )
        return groups


def _same(old: torch.Tensor, new: torch.Tensor) -> bool:
    return old.device == new.device and torch.equal(old, new)
