"""Modules that have moved: their old names go on working for one release, with a warning."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

#: the release in which the old names go
REMOVED_IN = "0.3.0"


def warn_moved(old: str, new: str, stacklevel: int = 2) -> None:
    """Warn that a name has moved.

    Args:
        old: the name that was used.
        new: the name to use.
        stacklevel: of the line to point to, as in `warnings.warn`.
    """
    warnings.warn(
        f"{old} is {new} now; the old name goes in {REMOVED_IN}", DeprecationWarning, stacklevel=stacklevel + 1
    )


def forward_to(new: str, old: str) -> Callable[[str], Any]:
    """The `__getattr__` of a module that has moved: every name is that of the new module, and is warned of.

    Args:
        new: full name of the module as it is now; imported when the first name is asked for.
        old: full name of the module that forwards, its `__name__`.

    Example:
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     forward_to("dsas_core.model.sites", "dsas_core.places")("Site").__name__
        'Site'
        >>> str(caught[0].message)
        'dsas_core.places.Site is dsas_core.model.sites.Site now; the old name goes in 0.3.0'
    """

    def get(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(new), name)
        warn_moved(f"{old}.{name}", f"{new}.{name}")
        return value

    return get
