"""Runs texts through a language model for joint training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from ...learning.joint.runs import Row, checkpointed
from ...learning.joint.visitor import JointVisitor
from ...model.hooks import Call, visit
from ...model.sites import Roots, Site
from ..model.conversations import Encoded, pad_batch
from ..model.layers import roots_of, unwrap
from .reader import Reader


class TextRuns:
    """The texts of a concept, run through the model; see `learning.joint.runs.JointRuns`.

    Every token but the first is steered; the mean of a text is over those that a selection has.

    Args:
        reader: runs the model.
        texts: by kind.
        selection: which tokens of source and target texts count (`conversations.TOKEN_SELECTIONS`).
    """

    moments = 1

    def __init__(self, reader: Reader, texts: Mapping[str, Sequence[Encoded]], selection: str) -> None:
        self.reader, self.texts, self.selection = reader, texts, selection
        self.counts = {kind: len(found) for kind, found in texts.items()}
        self._call: Call | None = None
        self._visitor: JointVisitor | None = None

    @property
    def roots(self) -> Roots:
        return roots_of(self.reader.model)

    @contextmanager
    def placed(self, sites: Sequence[Site], visitor: JointVisitor) -> Iterator[None]:
        self._visitor = visitor
        described = dict.fromkeys(self.roots, self._describe)
        with visit(self.roots, sites, visitor, described):
            yield

    def _describe(self, args: object, kwargs: object) -> Call:
        assert self._call is not None
        return self._call

    def run(self, rows: Sequence[Row], moment: int) -> None:
        assert self._visitor is not None
        device = self.reader.device
        batch = pad_batch([self.texts[kind][i] for kind, i in rows], self.reader.pad)
        steered = torch.ones(len(rows), device=device)
        prompts = torch.arange(len(rows), device=device)
        self._call = Call(steered, prompts, None, batch.token_mask("all").to(device))
        self._visitor.counted = batch.token_mask(self.selection).to(device)
        self.reader.read(batch, gradients=torch.is_grad_enabled())

    @contextmanager
    def checkpointing(self) -> Iterator[None]:
        with checkpointed(unwrap(self.reader.model)):
            if self._visitor is not None:
                self._visitor.stopper.active = False
            yield
