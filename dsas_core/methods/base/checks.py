"""Checks of the rows that methods are fitted on."""

from __future__ import annotations

import torch

from ...errors import DSASError


def check_rows(**sides: torch.Tensor) -> list[torch.Tensor]:
    """The rows of each side as float64, in the order given.

    Args:
        sides: [n, width] each, of any floating dtype, under the name that errors give them; the first sets the width.

    Raises:
        DSASError: rows of another shape or dtype, of another width than the first side's, or that are not finite.

    Example:
        >>> source, control = check_rows(source=torch.zeros(2, 3), control=torch.ones(4, 3))
        >>> source.dtype, control.shape
        (torch.float64, torch.Size([4, 3]))
    """
    first, *_ = sides.values()
    for name, rows in sides.items():
        if rows.ndim != 2 or not len(rows) or not rows.is_floating_point():
            raise DSASError(f"{name}: expected floating rows [n, width], found {rows.dtype} {tuple(rows.shape)}")
        if rows.shape[1] != first.shape[1]:
            raise DSASError(f"{name}: expected width {first.shape[1]} as in the source rows, found {rows.shape[1]}")
        if not bool(rows.isfinite().all()):
            raise DSASError(f"{name}: rows hold NaN or infinite values; capture in float32 or bfloat16")
    return [rows.double() for rows in sides.values()]
