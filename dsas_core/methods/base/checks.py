"""Checking what methods are fitted on."""

from __future__ import annotations

import torch

from ...errors import DSASError


def check_rows(name: str, rows: torch.Tensor, width: int | None = None) -> torch.Tensor:
    """Rows as float64.

    Args:
        name: of the side, for errors.
        rows: [n, width], of any floating dtype.
        width: what they must have; None for any.

    Raises:
        DSASError: rows of another shape or dtype, or that are not finite.
    """
    if rows.ndim != 2 or not len(rows) or not rows.is_floating_point():
        raise DSASError(f"{name}: expected floating rows [n, width], found {rows.dtype} {tuple(rows.shape)}")
    if width is not None and rows.shape[1] != width:
        raise DSASError(f"{name}: expected width {width} as in the source rows, found {rows.shape[1]}")
    if not bool(rows.isfinite().all()):
        raise DSASError(f"{name}: rows hold NaN or infinite values; capture in float32 or bfloat16")
    return rows.double()
