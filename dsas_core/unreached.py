"""What to tell of sites that a call of a model has not come to: each once."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from torch import nn

from .hooks import is_compiled
from .sites import Site


class Unreached:
    """Sites that the user knows not to be reached."""

    def __init__(self) -> None:
        self._told: set[Site] = set()

    def news(self, sites: Iterable[Site]) -> list[Site]:
        """Those of some sites that were not told of yet; from now on they are."""
        found = [site for site in sites if site not in self._told]
        self._told.update(found)
        return found

    def forget(self) -> None:
        """Tell of all again."""
        self._told.clear()


def warn(sites: Iterable[Site], why: str) -> None:
    """Tell of sites that a call has not come to."""
    told = f"attached sites were not reached, so nothing was steered there: {listed(sites)} ({why})"
    warnings.warn(told, stacklevel=3)


def why(root: nn.Module) -> str:
    """What may have kept a call of a root from coming to its sites, and the way out."""
    if is_compiled(root) or "_compiled_call" in vars(root):  # this by `generate` of transformers
        return "torch goes by what it compiled without its hook: call torch.compiler.reset(), and again"
    return "somebody removed its hook, or the model skips that block"


def listed(sites: Iterable[Site]) -> str:
    """Sites, for a message."""
    return ", ".join(map(str, sites))
