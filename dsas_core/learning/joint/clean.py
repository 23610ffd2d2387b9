"""What controls are unsteered, at every site: read once, as far as memory is meant for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from ...model.sites import Site

#: bytes of activations that are kept; those of further prompts are read in every step
KEPT = 2**30


class CleanStates:
    """Activations of control prompts from an unsteered pass.

    Args:
        run: kind of prompts, their indices, and a moment -> by site, the activations [rows, positions, width].
        most: how many bytes to keep.

    Example:
        >>> site, asked = Site("model.0"), []
        >>> def run(kind, rows, moment):
        ...     asked.append(list(rows))
        ...     return {site: torch.ones(len(rows), 2, 3)}
        >>> states = CleanStates(run)
        >>> [states.read("control", rows, 0)[site].shape[0] for rows in ([0, 1], [1, 2], [2, 0])], asked
        ([2, 2, 2], [[0, 1], [2]])
    """

    def __init__(self, run: Callable[[str, Sequence[int], int], Mapping[Site, torch.Tensor]], most: int = KEPT) -> None:
        self._run, self._left = run, most
        self._kept: dict[tuple[str, int, int], dict[Site, torch.Tensor]] = {}

    def read(self, kind: str, rows: Sequence[int], moment: int) -> dict[Site, torch.Tensor]:
        """The activations of some prompts by site; the ends of those with fewer positions are zeros."""
        found = {row: self._kept[kind, row, moment] for row in rows if (kind, row, moment) in self._kept}
        if missing := [row for row in rows if row not in found]:
            states = self._run(kind, missing, moment)
            size = sum(part.nbytes for part in states.values())
            for place, row in enumerate(missing):
                found[row] = {site: part[place] for site, part in states.items()}
                if size <= self._left:
                    self._kept[kind, row, moment] = found[row]
            self._left -= size if size <= self._left else 0
        return {
            site: torch.nn.utils.rnn.pad_sequence([found[row][site] for row in rows], batch_first=True)
            for site in found[rows[0]]
        }
