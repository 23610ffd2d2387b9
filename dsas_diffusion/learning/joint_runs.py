"""Runs prompts of pictures through the denoiser, or a text encoder, for joint training.

What a pipeline calls them with is different in every family, and depends on the steps before. So the calls of a few
steps are kept while unsteered pictures are drawn, and made again, row by row, in whatever batches training asks for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dsas_core.errors import UnsupportedError
from dsas_core.learning.capture import LabelPositions
from dsas_core.learning.joint.runs import JointRuns, Row
from dsas_core.model.early_exit import FinishedError
from dsas_core.model.hooks import Call, DescribeCall
from dsas_core.model.sites import Joint, Roots

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


def batches_of_two_sizes(counts: Mapping[str, int], batch: int) -> list[tuple[str, int, int]]:
    """Batches of prompts by kind, from one index up to another; of two sizes at least, if there are two prompts.

    Sizes that differ tell what has an entry for each row from what is as long by chance (`_find_by_row`). Where all
    would be of one prompt, one is of two: training holds more at once.

    Example:
        >>> batches_of_two_sizes({"source": 4}, 4), batches_of_two_sizes({"source": 5}, 4)
        ([('source', 0, 1), ('source', 1, 4)], [('source', 0, 4), ('source', 4, 5)])
        >>> batches_of_two_sizes({"source": 3}, 1)
        [('source', 0, 2), ('source', 2, 3)]
    """
    found = [(kind, i, min(i + batch, count)) for kind, count in counts.items() for i in range(0, count, batch)]
    kind, start, end = found[0]
    if len({end - start for _, start, end in found}) == 1:
        if end - start > 1:
            found[:1] = [(kind, start, start + 1), (kind, start + 1, end)]
        elif counts[kind] > 1:  # all the others have one
            found[:2] = [(kind, 0, 2)]
    return found


@dataclass(frozen=True, eq=False)
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

    A step is a new timestep: schedulers such as Heun's call a denoiser twice at most of them.

    Args:
        root: its name.
        moments: at how many steps, at most, evenly spread.

    Attributes:
        kept: kind and index of a prompt -> for each moment, the call and its row in that.
    """

    def __init__(self, root: str, moments: int) -> None:
        self.root, self.moments = root, moments
        self.kept: dict[Row, list[tuple[KeptCall, int]]] = {}
        self._kind, self._offset = "", 0
        self._timesteps: list[float | None] | None = None  # of every generation
        # of the generation that is drawn: timestep -> prompt -> its call
        self._steps: dict[float | None, dict[Row, tuple[KeptCall, int]]] = {}

    def start(self, kind: str, offset: int) -> None:
        """Before a batch of prompts of a kind, by the index of its first."""
        self.finish()
        self._kind, self._offset = kind, offset

    def finish(self) -> None:
        """After the last batch: of each generation, some steps are kept.

        Raises:
            UnsupportedError: a generation at other timesteps than those before.
        """
        steps, self._steps = self._steps, {}
        if steps and self._timesteps is None:
            self._timesteps = list(steps)
        if steps and list(steps) != self._timesteps:
            raise UnsupportedError(
                f"{self.root!r} is called at other timesteps for {self._kind} prompts from {self._offset} on than for "
                "those before, and joint training has the same moments for all: use another scheduler, or train at "
                "sites of a text encoder (sites)"
            )
        kept = [list(steps.values())[i] for i in spread_steps(len(steps), self.moments)] if steps else []
        for place in kept[0] if kept else ():
            if all(place in step for step in kept):
                self.kept[place] = [step[place] for step in kept]

    def describe(self, described: Mapping[str, DescribeCall]) -> dict[str, DescribeCall]:
        """What describes calls, and keeps them."""
        return {name: self._keeping(call) if name == self.root else call for name, call in described.items()}

    def _keeping(self, describe: DescribeCall) -> Callable[..., Call]:
        def keep(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
            call = describe(args, kwargs)
            rows = call.steered.nonzero()[:, 0].tolist()
            if rows:
                kept = KeptCall((args, dict(kwargs)), call)
                step = self._steps.setdefault(None if call.timestep is None else float(call.timestep), {})
                for row in rows:
                    step.setdefault((self._kind, self._offset + int(call.prompts[row])), (kept, row))
            return call

        return keep


class PictureRuns(JointRuns):
    """The prompts of a concept of pictures, see `learning.joint.runs.JointRuns`.

    Args:
        roots: of the pipeline, by name.
        keeper: with the calls of all prompts.
        counts: kind -> number of prompts.
        labels: kind -> which positions show the concept, whose mean is taken; none for all.
        joint_of: tells of the arguments of a call how picture and prompt share one sequence; None where they do not.
    """

    def __init__(
        self,
        roots: Roots,
        keeper: CallKeeper,
        counts: Mapping[str, int],
        labels: Mapping[str, LabelPositions],
        joint_of: Callable[[tuple[Any, ...], dict[str, Any]], Joint | None],
    ) -> None:
        super().__init__(counts, moments=len(next(iter(keeper.kept.values()), ())))
        self.all_roots, self.keeper, self.labels, self._joint_of = roots, keeper, labels, joint_of
        calls = {id(kept): kept for parts in keeper.kept.values() for kept, _ in parts}
        self._by_row = _find_by_row([(kept.arguments, kept.rows) for kept in calls.values()])
        self._kinds = {number: _describe(kept, self._by_row) for number, kept in calls.items()}
        self._arguments: Arguments = (), {}

    @property
    def roots(self) -> Roots:
        return {self.keeper.root: self.module}

    @property
    def module(self) -> nn.Module:
        return self.all_roots[self.keeper.root]

    def groups(self, rows: Sequence[Row], moment: int) -> list[list[int]]:
        """By what their calls have in common but for the rows: lengths, masks or none, and what is for all rows."""
        found: dict[Hashable, list[int]] = {}
        for place, row in enumerate(rows):
            found.setdefault(self._kinds[id(self._part(row, moment)[0])], []).append(place)
        return list(found.values())

    def _prepare(self, rows: Sequence[Row], moment: int) -> tuple[Call, torch.Tensor | None]:
        parts = [self._part(row, moment) for row in rows]
        self._arguments = _join([(kept.arguments, row) for kept, row in parts], self._by_row)
        first = parts[0][0].call
        mask = (
            None
            if first.mask is None
            else torch.stack([kept.call.mask[row] for kept, row in parts if kept.call.mask is not None])
        )
        count, device = len(parts), first.steered.device
        steered, prompts = torch.ones(count, device=device), torch.arange(count, device=device)
        call = Call(steered, prompts, first.timestep, mask, joint=self._joint_of(*self._arguments))
        return call, self._counted(rows)

    def _run(self) -> None:
        args, kwargs = self._arguments
        with suppress(FinishedError):
            self.module(*args, **kwargs)

    def _part(self, row: Row, moment: int) -> tuple[KeptCall, int]:
        if row not in self.keeper.kept:
            raise UnsupportedError(
                f"{self.keeper.root!r} was not called at every step for {row[0]} prompt {row[1]}, and joint training "
                "makes its calls again: train at sites of another part of the pipeline (sites)"
            )
        return self.keeper.kept[row][moment]

    def _counted(self, rows: Sequence[Row]) -> torch.Tensor | None:
        """The positions of embeddings that show the concept, float [rows, positions]; all of rows that show none."""
        if not self.labels:
            return None
        args, kwargs = self._arguments
        embeddings: torch.Tensor = kwargs["encoder_hidden_states"] if "encoder_hidden_states" in kwargs else args[2]
        count = embeddings.shape[1]
        marks = [self.labels[kind](i, count) if kind in self.labels else () for kind, i in rows]
        return torch.tensor([[float(mark) for mark in row] if any(row) else [1.0] * count for row in marks])


def _find_by_row(calls: Sequence[tuple[Any, int]]) -> Any:
    """Which parts of the arguments of some calls have one entry for each row: what is as long as the batch in all.

    Calls of two sizes tell what is so by chance: twelve tensors of a control network beside twelve rows.

    Args:
        calls: the same argument of each, and the size of its batch.

    Returns:
        True for what has rows; of what contains others, these by name or place; False for what is for all rows.

    Example:
        >>> x = torch.zeros
        >>> _find_by_row([({"x": x(2, 4), "ids": x(2, 3), "t": 5}, 2), ({"x": x(1, 4), "ids": x(2, 3), "t": 5}, 1)])
        {'x': True, 'ids': False, 't': False}
    """
    values = [value for value, _ in calls]
    if all(isinstance(value, Mapping) for value in values):
        names = dict.fromkeys(name for value in values for name in value)
        return {name: _find_by_row([(value.get(name), rows) for value, rows in calls]) for name in names}
    if all(isinstance(value, list | tuple) for value in values):
        counted = all(isinstance(value, list) and len(value) == rows for value, rows in calls)
        if counted and (len(set(map(len, values))) > 1 or not any(_has_rows(value, rows) for value, rows in calls)):
            return True
        longest = max(map(len, values))
        return [_find_by_row([(value[i], rows) for value, rows in calls if i < len(value)]) for i in range(longest)]
    some = [(value, rows) for value, rows in calls if value is not None]
    return bool(some) and all(isinstance(x, torch.Tensor) and x.ndim > 0 and len(x) == rows for x, rows in some)


def _has_rows(value: Any, rows: int) -> bool:
    """Whether each part of a list has tensors, or is one, with an entry for each row."""
    if isinstance(value, list | tuple):
        return bool(value) and all(_has_rows(part, rows) for part in value)
    return isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == rows


def _describe(kept: KeptCall, by_row: Any) -> Hashable:
    """What calls have to have in common for rows of them to be in one."""
    mask = kept.call.mask
    return _kind_of(kept.arguments, by_row), None if mask is None else mask.shape[1:]


def _kind_of(value: Any, by_row: Any) -> Hashable:
    """What is the same for all rows of an argument: shapes of what has rows, and values of the rest."""
    if isinstance(value, Mapping):
        return tuple((name, _kind_of(part, by_row[name])) for name, part in sorted(value.items()))
    if isinstance(value, list | tuple):
        parts = by_row if isinstance(by_row, list) else [by_row] * len(value)
        kinds = tuple(map(_kind_of, value, parts))
        return kinds if by_row is not True else tuple(sorted(set(map(repr, kinds))))
    if isinstance(value, torch.Tensor):
        content = (
            b"" if by_row is True else value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
        shape = value.shape[1:] if by_row is True else value.shape
        return shape, value.dtype, hashlib.sha256(content).digest()
    return "" if by_row is True else repr(value)


def _join(values: Sequence[tuple[Any, int]], by_row: Any) -> Any:
    """Rows of several calls as one call: what has rows is joined, the rest is the first's.

    Args:
        values: the same argument of each call, and the row.
        by_row: as `_find_by_row` tells.

    Example:
        >>> calls = [{"x": torch.tensor([[1.0], [2.0]]), "t": 5}, {"x": torch.tensor([[3.0], [4.0]]), "t": 5}]
        >>> _join([(calls[0], 1), (calls[1], 0)], {"x": True, "t": False})
        {'x': tensor([[2.],
                [3.]]), 't': 5}
    """
    first = values[0][0]
    if isinstance(first, Mapping):
        return {name: _join([(value[name], row) for value, row in values], by_row[name]) for name in first}
    if by_row is True and isinstance(first, list):
        return [_usable(value[row]) for value, row in values]
    if isinstance(first, list | tuple):
        parts = by_row if isinstance(by_row, list) else [by_row] * len(first)
        return type(first)(_join([(value[i], row) for value, row in values], parts[i]) for i in range(len(first)))
    if by_row is True and isinstance(first, torch.Tensor):
        return _usable(torch.cat([value[row : row + 1] for value, row in values]))
    return _usable(first)


def _usable(value: Any) -> Any:
    """A tensor that autograd may save."""
    return value.clone() if isinstance(value, torch.Tensor) and value.is_inference() else value
