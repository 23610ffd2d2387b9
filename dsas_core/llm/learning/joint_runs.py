"""Runs texts through a language model for joint training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ...learning.joint.runs import JointRuns, Row
from ...model.hooks import Call
from ...model.sites import Roots
from ..model.conversations import Batch, Encoded, pad_batch
from ..model.layers import roots_of, unwrap
from .reader import Reader


class TextRuns(JointRuns):
    """The texts of a concept, run through the model; see `learning.joint.runs.JointRuns`.

    Every token but the first is steered; the mean of a text is over those that a selection has.

    Args:
        reader: runs the model.
        texts: by kind.
        selection: which tokens of source and target texts count (`conversations.TOKEN_SELECTIONS`).
    """

    def __init__(self, reader: Reader, texts: Mapping[str, Sequence[Encoded]], selection: str) -> None:
        super().__init__({kind: len(found) for kind, found in texts.items()})
        self.reader, self.texts, self.selection = reader, texts, selection
        self._batch: Batch | None = None

    @property
    def roots(self) -> Roots:
        return roots_of(self.reader.model)

    @property
    def module(self) -> nn.Module:
        return unwrap(self.reader.model)

    def length(self, row: Row) -> int:
        kind, index = row
        return len(self.texts[kind][index].ids)

    def _prepare(self, rows: Sequence[Row], moment: int) -> tuple[Call, torch.Tensor]:
        device = self.reader.device
        batch = self._batch = pad_batch([self.texts[kind][i] for kind, i in rows], self.reader.pad)
        steered, prompts = torch.ones(len(rows), device=device), torch.arange(len(rows), device=device)
        call = Call(steered, prompts, None, batch.token_mask("all").to(device))
        return call, batch.token_mask(self.selection).to(device)

    def _run(self) -> None:
        assert self._batch is not None
        self.reader.read(self._batch, gradients=torch.is_grad_enabled())
