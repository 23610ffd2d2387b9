"""Which rows of a language model's call are runs of one prompt, for probes and maps that go by the other runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...errors import DSASError, UnsupportedError
from ...utils.numbers import accepts
from .call_inputs import CallInputs


def check_groups(groups: object) -> list[int]:
    """The numbers of groups that a user gives, one for each row.

    Raises:
        DSASError: anything but whole numbers from 0 up.

    Example:
        >>> check_groups((0, 0, 1, 1))
        [0, 0, 1, 1]
    """
    numbers = groups.tolist() if isinstance(groups, torch.Tensor) else groups
    if not isinstance(numbers, list | tuple) or not numbers or not all(accepts("dimensions", n) for n in numbers):
        raise DSASError(f"groups {groups!r}: expected a number from 0 up for each row, [0, 0, 1, 1] for two prompts")
    return list(numbers)


class Runs:
    """Tells which rows of each call are runs of one prompt: those that users say, or those whose prompts are equal.

    Args:
        given: the number of each row's group; None for the rows whose prompts are equal.
    """

    def __init__(self, given: Sequence[int] | None = None) -> None:
        self.given = None if given is None else torch.tensor(given)
        self._encoded: torch.Tensor | None = None  # groups of the encoder's last call

    def find(
        self, root: str, inputs: CallInputs, known: torch.Tensor | None, read: int, real: torch.Tensor
    ) -> torch.Tensor:
        """The groups of a call's rows, int64 [batch], which the next call of its text is told as `known`.

        Args:
            root: name of the root.
            inputs: of the call.
            known: groups by what the text has shown so far; None where it begins.
            read: how many of the call's positions, from the first on, are the prompt's.
            real: bool [batch, positions], those that are no padding.

        Raises:
            DSASError: a batch that the given groups do not fit.
            UnsupportedError: rows that were not there when the prompt was read.
        """
        batch, device = inputs.batch, inputs.given.device
        if self.given is not None:
            if batch % len(self.given):
                raise DSASError(f"groups are given for {len(self.given)} rows, but the call has {batch}")
            return _spread(self.given.to(device), batch)
        if root == "decoder":
            known, read = self._encoded, 0
        if read or known is None:
            count = read or inputs.count
            rows = inputs.given[:, :count].masked_fill(~_like(real[:, :count], inputs.given), -1)
            parts = [rows.flatten(1)] if known is None else [_spread(known, batch)[:, None].to(rows), rows.flatten(1)]
            known = torch.cat(parts, 1).unique(dim=0, return_inverse=True)[1]
        if batch % len(known):
            raise UnsupportedError(
                f"{len(known)} rows read the prompt and {batch} go on, so which are runs of one prompt is unknown: "
                "give groups=, a number for each row"
            )
        found = _spread(known, batch)
        if root == "encoder":
            self._encoded = found
        return found


def _like(mask: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    return mask if given.ndim == 2 else mask[..., None]


def _spread(groups: torch.Tensor, batch: int) -> torch.Tensor:
    """Groups of rows that were repeated: the copies of a row follow one another, as those of `generate` do."""
    return groups.repeat_interleave(batch // len(groups))
