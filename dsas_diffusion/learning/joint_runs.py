"""Runs prompts of pictures through the denoiser, or a text encoder, for joint training.

What a pipeline calls them with is different in every family, and depends on the steps before. So the calls of a few
steps are kept while unsteered pictures are drawn, and made again, row by row, in whatever batches training asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from dsas_core.errors import DSASError
from dsas_core.learning.capture import LabelPositions
from dsas_core.learning.joint.runs import JointRuns, Row
from dsas_core.model.early_exit import FinishedError
from dsas_core.model.hooks import Call, DescribeCall
from dsas_core.model.sites import Roots

#: arguments that all rows of a batch share, whatever their lengths
SHARED = ("img_ids", "txt_ids", "image_rotary_emb")
#: positional and keyword arguments
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def spread_steps(steps: int, count: int) -> list[int]:
    """As many of the steps of a generation, evenly spread.

    Example:
        >>> spread_steps(8, 4), spread_steps(2, 4)
        ([1, 3, 5, 7], [0, 1])
    """
    count = min(steps, count)
    return [int((i + 0.5) * steps / count) for i in range(count)]


@dataclass(frozen=True)
class KeptCall:
    """A call of a root, as it was made while pictures were drawn.

    Args:
        arguments: of the call.
        call: its rows.
    """

    arguments: Arguments
    call: Call

    @property
    def rows(self) -> int:
        """The size of its batch."""
        return len(self.call.steered)


class CallKeeper:
    """Keeps the calls of one root at some steps of each generation, by prompt.

    Args:
        root: its name.
        steps: which of the calls with rows that are steered, counted from the begin of a generation.

    Attributes:
        kept: kind and index of a prompt -> for each step, the call and its row in that.
    """

    def __init__(self, root: str, steps: Sequence[int]) -> None:
        self.root, self.steps = root, list(steps)
        self.kept: dict[Row, dict[int, tuple[KeptCall, int]]] = {}
        self._kind, self._offset, self._count = "", 0, 0

    def start(self, kind: str, offset: int) -> None:
        """Before a batch of prompts of a kind, by the index of its first."""
        self._kind, self._offset, self._count = kind, offset, 0

    def describe(self, described: Mapping[str, DescribeCall]) -> dict[str, DescribeCall]:
        """What describes calls, and keeps them."""
        return {name: self._keeping(call) if name == self.root else call for name, call in described.items()}

    def _keeping(self, describe: DescribeCall) -> Callable[..., Call]:
        def keep(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
            call = describe(args, kwargs)
            rows = call.steered.nonzero()[:, 0].tolist()
            if rows:
                if self._count in self.steps:
                    kept = KeptCall((args, dict(kwargs)), call)
                    for row in rows:
                        place = self._kind, self._offset + int(call.prompts[row])
                        self.kept.setdefault(place, {})[self.steps.index(self._count)] = kept, row
                self._count += 1
            return call

        return keep


class PictureRuns(JointRuns):
    """The prompts of a concept of pictures, see `learning.joint.runs.JointRuns`.

    Args:
        roots: of the pipeline, by name.
        keeper: with the calls of all prompts.
        counts: kind -> number of prompts.
        labels: kind -> which positions show the concept, whose mean is taken; none for all.
    """

    def __init__(
        self, roots: Roots, keeper: CallKeeper, counts: Mapping[str, int], labels: Mapping[str, LabelPositions]
    ) -> None:
        super().__init__(counts, moments=len(keeper.steps))
        self.all_roots, self.keeper, self.labels = roots, keeper, labels
        self._arguments: Arguments = (), {}

    @property
    def roots(self) -> Roots:
        return {self.keeper.root: self.module}

    @property
    def module(self) -> nn.Module:
        return self.all_roots[self.keeper.root]

    def _prepare(self, rows: Sequence[Row], moment: int) -> tuple[Call, torch.Tensor | None]:
        parts = [self._part(row, moment) for row in rows]
        self._arguments = _join([kept.arguments for kept, _ in parts], [(kept.rows, row) for kept, row in parts])
        return _join_calls(parts), self._counted(rows, parts)

    def _run(self) -> None:
        args, kwargs = self._arguments
        with suppress(FinishedError):
            self.module(*args, **kwargs)

    def _part(self, row: Row, moment: int) -> tuple[KeptCall, int]:
        try:
            return self.keeper.kept[row][moment]
        except KeyError:
            raise DSASError(
                f"{self.keeper.root!r} was not called {self.keeper.steps[moment] + 1} times for {row[0]} prompt "
                f"{row[1]}: train at fewer moments (training moments), or draw with more steps"
            ) from None

    def _counted(self, rows: Sequence[Row], parts: Sequence[tuple[KeptCall, int]]) -> torch.Tensor | None:
        """The positions of embeddings that show the concept, float [rows, positions]; all of rows that show none."""
        if not self.labels:
            return None
        count = self._positions(parts)
        marks = [self.labels[kind](i, count) if kind in self.labels else () for kind, i in rows]
        return torch.tensor([[float(mark) for mark in row] if any(row) else [1.0] * count for row in marks])

    @staticmethod
    def _positions(parts: Sequence[tuple[KeptCall, int]]) -> int:
        args, kwargs = parts[0][0].arguments
        embeddings: torch.Tensor = kwargs["encoder_hidden_states"] if "encoder_hidden_states" in kwargs else args[2]
        return embeddings.shape[1]


def _join(values: Sequence[Any], places: Sequence[tuple[int, int]]) -> Any:
    """Rows of several calls as one call: what has a row for each of the batch is joined, the rest is the first's.

    Args:
        values: the same argument of each call.
        places: of each, the size of its batch, and the row.

    Example:
        >>> calls = [{"x": torch.tensor([[1.0], [2.0]]), "t": 5}, {"x": torch.tensor([[3.0], [4.0]]), "t": 5}]
        >>> _join(calls, [(2, 1), (2, 0)])
        {'x': tensor([[2.],
                [3.]]), 't': 5}
    """
    first, (batch, _) = values[0], places[0]
    if isinstance(first, torch.Tensor):
        if not first.ndim or len(first) != batch:
            return _usable(first)
        return _usable(torch.cat([value[row : row + 1] for value, (_, row) in zip(values, places, strict=True)]))
    if isinstance(first, Mapping):
        each = {name: [value[name] for value in values] for name in first}
        return {name: found[0] if name in SHARED else _join(found, places) for name, found in each.items()}
    if isinstance(first, list) and len(first) == batch:
        return [_usable(value[row]) for value, (_, row) in zip(values, places, strict=True)]
    if isinstance(first, list | tuple):
        return type(first)(_join([value[i] for value in values], places) for i in range(len(first)))
    return first


def _usable(value: Any) -> Any:
    """A tensor that autograd may save."""
    return value.clone() if isinstance(value, torch.Tensor) and value.is_inference() else value


def _join_calls(parts: Sequence[tuple[KeptCall, int]]) -> Call:
    first = parts[0][0].call
    device = first.steered.device
    mask = None
    if first.mask is not None:
        mask = torch.cat([kept.call.mask[row : row + 1] for kept, row in parts if kept.call.mask is not None])
    joint = first.joint
    if joint is not None and joint.text_lengths is not None:
        lengths = [kept.call.joint.text_lengths[row] for kept, row in parts]  # type: ignore[union-attr, index]
        joint = replace(joint, text_lengths=torch.stack(lengths))
    count = len(parts)
    return Call(torch.ones(count, device=device), torch.arange(count, device=device), first.timestep, mask, joint=joint)
