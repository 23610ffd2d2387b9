"""Ends a forward pass at the last site of which anything is wanted."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from .hooks import Call
from .sites import Site


class FinishedError(Exception):
    """Ends a forward pass of which nothing more is wanted; whoever runs the model catches it."""


class Stopper:
    """A visitor that raises `FinishedError` once all of some sites were seen.

    Place it before other visitors: those that are placed later see an activation before.

    Args:
        sites: where there is something to be seen.

    Attributes:
        active: False to let the model run to its end, as where a checkpoint must not be left halfway.
    """

    def __init__(self, sites: Iterable[Site]) -> None:
        self._sites = frozenset(sites)
        self._left, self.active = set(self._sites), True

    def begin(self, root: str, call: Call) -> None:
        """Every row counts."""

    def restart(self) -> None:
        """Before another forward pass."""
        self._left = set(self._sites)

    def visit(self, site: Site, x: torch.Tensor) -> None:
        self._left.discard(site)
        if self.active and not self._left:
            raise FinishedError
