"""Maps that keep something of earlier positions, of texts that are generated token by token."""

from __future__ import annotations

import torch

from .base import Map

#: what is kept of a text: tensors whose first dimension is the row; they may grow with the text
State = tuple[torch.Tensor, ...]


class RunningMap(Map):
    """Base of the maps whose T(x; s) depends on earlier positions. The `steer()` call that uses one owns its state.

    The state is a tuple of tensors, each with one entry per row of the batch in its first dimension, so that it can
    follow rows that are repeated, dropped or reordered. A subclass never writes into it, but returns a new one. It is
    continued at every position that counts, also where the gate is closed or the strength is 0: later ones depend on
    it.
    """

    def begin(self, batch: int, device: torch.device | str = "cpu") -> State:
        """The state before a text begins.

        Args:
            batch: number of rows.
            device: where it is kept.
        """
        raise NotImplementedError

    def step(
        self,
        x: torch.Tensor,
        strength: torch.Tensor | float,
        mask: torch.Tensor | None,
        first: torch.Tensor | None,
        state: State,
    ) -> tuple[torch.Tensor, State]:
        """Move the positions of one call, which follow those that `state` holds.

        Args:
            x: [batch, positions, width].
            strength: a number, or a tensor that is broadcastable to x; 0 gives x itself.
            mask: float [batch, positions], 1 for positions that count; None counts all. Nothing depends on others.
            first: bool [batch, positions], the first token of each row, which is not steered and has 0 in the mask, but
                which others may read; None for none.
            state: of the positions before.

        Returns:
            The moved activations [batch, positions, width], and the state after these positions.
        """
        raise NotImplementedError

    def apply(self, x: torch.Tensor, strength: torch.Tensor | float) -> torch.Tensor:
        """T(x; strength) of whole texts, all of whose positions count: x [..., positions, width]."""
        rows = x.reshape(-1, *x.shape[-2:])
        if isinstance(strength, torch.Tensor) and strength.ndim > 0:
            strength = strength.expand_as(x).reshape(rows.shape)
        return self.step(rows, strength, None, None, self.begin(len(rows), x.device))[0].view_as(x)
