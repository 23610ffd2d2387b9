"""Calls of a model that autograd may come back to: what each was, for gradient checkpointing, which computes it again.

A checkpoint computes a part of a call again in the backward pass, when other calls have followed. Which call it is of
is told by the number that autograd gives each node of a graph, in order: the node that is at work lies between the
first and the last of its call. A record lives as long as a graph that needs it, which holds it.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch

from ...errors import UnsupportedError
from ...model.hooks import Call
from ...model.row_groups import RowGroups
from ...model.sites import Site
from ..binding import BoundParameters
from .stack import Doses, Stack

Key = TypeVar("Key", bound=tuple[object, ...])
#: how many calls are kept that ran without gradients inside a checkpoint, to which no graph leads
BLIND_CALLS = 256


def _nothing() -> None:
    """As a weak reference whose object is gone."""


class Outside(NamedTuple):
    """What a site is steered by that comes from outside of it.

    Args:
        value: without a graph.
        differentiable: whether it had one: a checkpoint that is computed again must save for it what it saved before.
        lost: whether gradients were off where it was made, or are lost to what makes it.
    """

    value: torch.Tensor
    differentiable: bool
    lost: bool

    @classmethod
    def of(cls, tensor: torch.Tensor, *, lost: bool = False) -> Outside:
        """That of the forward pass."""
        return cls(tensor.detach(), tensor.requires_grad, lost or tensor.requires_grad)

    def again(self) -> torch.Tensor:
        """What stands for it where the site is computed again."""
        return self.value.detach().requires_grad_(self.differentiable)


@dataclass(eq=False)
class PlacedCall:
    """A call of a root, and where it is in the graphs of autograd.

    Args:
        call: rows, prompts, masks.
        differentiable: whether gradients were on when it began.
        blind: sites that were passed with gradients off, as by reentrant checkpoints.
        region: weak reference to the checkpoint that it began in.
        frames: of those that its sites are in.
        first: number of its first node.
        last: number of the node behind its last one.
        thread: which it ran in.
        detached: whether steering ended.
    """

    call: Call
    differentiable: bool
    blind: set[Site] = field(default_factory=set)
    region: Callable[[], Any] = _nothing
    frames: list[weakref.ref[Any]] = field(default_factory=list)
    first: int = 0
    last: int | None = None
    thread: int = 0
    detached: bool = False

    def __post_init__(self) -> None:
        self.first, self.thread = torch._C._autograd._get_sequence_nr(), threading.get_ident()
        frame = _frame() if self.differentiable else None
        self.region = _nothing if frame is None else weakref.ref(frame)

    def note_pass(self, site: Site) -> None:
        """Note how gradients stand where a site is passed in the forward pass, of a call with gradients."""
        if torch.is_grad_enabled():
            self.note_frame(_frame())
        else:
            self.blind.add(site)

    def note_frame(self, frame: Any) -> None:
        """Note a checkpoint that a part of the call is in."""
        if frame is not None and not self.is_in(frame):
            self.frames.append(weakref.ref(frame))

    def is_in(self, frame: Any) -> bool:
        """Whether a part of the call is in a checkpoint."""
        return any(known() is frame for known in self.frames)

    def contains(self, number: int) -> bool:
        """Whether a node of that number was made in the call."""
        return self.differentiable and self.first <= number and (self.last is None or number < self.last)

    def hold_by(self, tensors: Iterator[torch.Tensor]) -> None:
        """Let the graphs of some tensors hold this record."""
        for tensor in tensors:
            if tensor.grad_fn is not None:
                held: Any = tensor.grad_fn.metadata
                held[self] = True

    def finish(self, output: Any) -> None:
        """At the end of the call: let what it returned hold this record, and refuse its backward pass once detached."""
        self.last = torch._C._autograd._get_sequence_nr()
        if not self.differentiable:
            return
        self.hold_by(_tensors(output))
        if self.frames or self.blind:
            for tensor in _tensors(output):
                if tensor.grad_fn is not None:
                    tensor.grad_fn.register_prehook(self._refuse_detached)

    def _refuse_detached(self, gradients: Any) -> None:
        if self.detached and (self.frames or _leads_to_python(torch._C._current_autograd_node())):
            raise UnsupportedError(
                "steering was detached before the backward pass, and gradient checkpointing would compute the call "
                "again without it: call backward() inside the with block, before detach()"
            )


@dataclass(eq=False)
class CallRecord(PlacedCall):
    """What one call of a root is steered by.

    Args:
        doses: concept -> map strength of each row.
        targets: concept -> target logit and highest strength, for `Auto`.
        parameters: concept -> the probes and maps of its timestep bin.
        memories: concept and intervention -> the state of a stateful probe before the call.
        states: concept and intervention -> the state of a running map before the call.
        scores: concept and intervention -> h that was read elsewhere.
        read: the interventions whose probes have read for elsewhere.
        factors: concept and site -> the localiser's factor.
        stacked: what is computed together of the concepts that steer, and their strengths; None for nothing.
        groups: which rows are runs of one prompt; None where nothing couples rows.
        exposed: whether autograd may have saved what it is steered by.
        passed_on: whether a later call has read the state that it left, without the gradient.
        ended: whether its forward pass is over.
    """

    doses: dict[str, torch.Tensor] = field(default_factory=dict)
    targets: dict[str, torch.Tensor] = field(default_factory=dict)
    parameters: dict[str, BoundParameters] = field(default_factory=dict)
    memories: dict[tuple[str, int], Outside] = field(default_factory=dict)
    states: dict[tuple[str, int], tuple[Outside, ...]] = field(default_factory=dict)
    scores: dict[tuple[str, int], Outside] = field(default_factory=dict)
    read: set[tuple[str, int]] = field(default_factory=set)
    factors: dict[tuple[str, Site], Outside | None] = field(default_factory=dict)
    stacked: tuple[Stack, Doses] | None = None
    groups: RowGroups | None = None
    exposed: bool = False
    passed_on: bool = False
    ended: bool = False


class _Recalled(NamedTuple):
    """A whole call that is computed again: `work` tells this work of autograd from others, `number` counts calls."""

    work: tuple[object, int]
    record: CallRecord
    number: int


class CallHistory:
    """The calls of a steering that autograd may come back to, by root.

    Attributes:
        any: whether there are such calls.
    """

    def __init__(self) -> None:
        self.any = False
        self._records: dict[str, list[weakref.ref[CallRecord]]] = {}
        self._blind: deque[CallRecord] = deque(maxlen=BLIND_CALLS)
        self._recalled: dict[str, _Recalled] = {}
        # what was computed again, since which number of a node, and in which work of autograd
        self._again: dict[str, deque[tuple[int, weakref.ref[CallRecord], int]]] = {}

    def keep(self, root: str, record: CallRecord, *, blind: bool) -> None:
        """Keep a call that is about to run.

        Args:
            root: name of the root.
            record: the call.
            blind: whether gradients are off, but asked for from outside, as by reentrant checkpoints.
        """
        self.any = True
        self._records.setdefault(root, []).append(weakref.ref(record))
        if blind:
            self._blind.append(record)

    def is_in_blind_checkpoint(self) -> bool:
        """Whether no node was made since the last call that was blind, so that this is in the same checkpoint."""
        return bool(self._blind) and self._blind[-1].first == torch._C._autograd._get_sequence_nr()

    def drop_dead(self) -> None:
        """Forget calls that no graph holds."""
        for root in list(self._records):
            self._records[root] = [held for held in self._records[root] if held() is not None]
        self.any = any(self._records.values())

    def __iter__(self) -> Iterator[CallRecord]:
        held = (record() for records in self._records.values() for record in records)
        return iter([record for record in held if record is not None])

    def recall(self, root: str, now: CallRecord | None, *, begins: bool) -> CallRecord | None:
        """The call that is computed again; None outside of a backward pass.

        Args:
            root: name of the root.
            now: the newest call of it.
            begins: whether a whole call begins, not only a part of one.

        Raises:
            UnsupportedError: in a backward pass, and which call it is cannot be told.
        """
        node = torch._C._current_autograd_node()
        if node is None:
            return None
        frame, task, held = _frame(), torch._C._current_graph_task_id(), self._recalled.get(root)
        work = node if frame is None else frame, task
        same = held is not None and held.work[0] is work[0] and held.work[1] == task
        records = [record for record in (ref() for ref in self._records.get(root, ())) if record is not None]
        if held is not None and same and not begins:
            return held.record
        if begins:
            known = [*records, *([now] if now is not None and now not in records else [])]
            group = _calls_in_checkpoint(node, frame, known)
            number = held.number + 1 if held is not None and same else 0
            record = group[number % len(group)] if group else None
            if record is not None:
                self._recalled[root] = _Recalled(work, record, number)
        else:
            record = self._find(root, node, frame, task, records)
        if record is None:
            raise UnsupportedError(
                f"a backward pass computes {root!r} again, and steering does not know which call it was: steer() "
                "before the first call of the graph and until its backward(), and checkpoint with use_reentrant=False"
            )
        record.exposed = True
        again = self._again.setdefault(root, deque(maxlen=BLIND_CALLS))
        if not again or again[-1][1]() is not record or again[-1][2] != task:
            again.append((torch._C._autograd._get_sequence_nr(), weakref.ref(record), task))
        return record

    def _find(self, root: str, node: Any, frame: Any, task: int, records: list[CallRecord]) -> CallRecord | None:
        """The call that a part belongs to."""
        again = self._again.get(root, ())
        if frame is not None:
            known = next((record for record in records if record.is_in(frame)), None)
            if known is None and again and again[-1][2] == task and (known := again[-1][1]()) is not None:
                known.note_frame(frame)  # a checkpoint in one that is computed again
            if known is not None:
                return known
        if len({record.thread for record in records}) > 1:
            raise UnsupportedError(
                f"a backward pass computes a part of {root!r} again, and calls of several threads wait for theirs: "
                "call and backward() in one thread after the other, or checkpoint with use_reentrant=False"
            )
        number = node._sequence_nr()
        found = next((record for record in reversed(records) if record.contains(number)), None)
        # made while a call was computed again: a checkpoint in a checkpoint
        later = next((ref() for since, ref, _ in reversed(again) if since <= number), None) if again else None
        return found or later


def _calls_in_checkpoint(node: Any, frame: Any, records: list[CallRecord]) -> list[CallRecord]:
    """The calls that a checkpoint contains as a whole, in order."""
    if frame is not None:
        return [record for record in records if record.region() is frame]
    # a reentrant checkpoint has one node, which it makes right before it runs the calls without any
    number = node._sequence_nr()
    return [record for record in records if not record.differentiable and record.first == number + 1]


def _frame() -> Any:
    """What torch keeps for the checkpoint (use_reentrant=False) that is at work, or computed again; None outside."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    if not hooks or getattr(hooks[0], "__module__", "") != "torch.utils.checkpoint":
        return None
    known = inspect.getclosurevars(inspect.unwrap(hooks[0])).nonlocals
    return known["frame"] if "frame" in known else known.get("target_frame_ref", _nothing)()


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in what a module takes or returns."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list | Mapping):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)


def asks_for_gradients(inputs: Any) -> bool:
    """Whether a tensor among the inputs of a module requires gradients."""
    return any(tensor.requires_grad for tensor in _tensors(inputs))


def _leads_to_python(node: Any) -> bool:
    """Whether a graph has a function of Python, as reentrant checkpoints are."""
    seen, waiting = set(), [node]
    while waiting:
        part = waiting.pop()
        if part is None or part in seen:
            continue
        if isinstance(part, torch.autograd.function.BackwardCFunction):
            return True
        seen.add(part)
        waiting += [following for following, _ in part.next_functions]
    return False
