"""Versions of the packages that a result was computed with."""

from __future__ import annotations

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python, torch and the named packages; packages that are not installed are left out.

    Example:
        >>> list(versions("numpy", "no-such-package"))
        ['python', 'torch', 'numpy']
    """
    known = {"python": platform.python_version()}
    for package in ("torch", *packages):
        with suppress(PackageNotFoundError):
            known[package] = version(package)
    return known
