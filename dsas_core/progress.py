"""Progress bars, the same everywhere."""

from __future__ import annotations

from typing import Any


def progress_bar(total: int, label: str, show: bool = True) -> Any:
    """A progress bar on standard error; `update(n)` moves it."""
    from tqdm import tqdm

    return tqdm(total=total, desc=label, disable=not show, leave=False)
