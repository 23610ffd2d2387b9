"""The states of stateful probes, and of running maps, which go by the text so far, and follow its rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch._compile import _disable_dynamo

from ...errors import UnsupportedError
from ...maps import Map, RunningMap
from ...maps.running import State
from ...probes import RunningProbe
from ..binding import BoundConcept, BoundIntervention
from .recomputation import CallRecord, Outside


class ProbeStates:
    """The states of the stateful probes of a steering, each by concept and intervention.

    With gradients they are replaced, not written: a later call passes its gradient on to those before.

    Args:
        concepts: the attached concepts.
    """

    def __init__(self, concepts: Sequence[BoundConcept]) -> None:
        self._concepts = concepts
        self._memories: dict[tuple[str, int], torch.Tensor] = {}
        self._owned: set[tuple[str, int]] = set()  # those of them that only we hold
        self._blind_writers: dict[tuple[str, int], CallRecord] = {}  # calls that left them without a gradient

    def stateful(self) -> Iterator[tuple[BoundIntervention, RunningProbe]]:
        """Interventions whose probes have a state, with these probes."""
        for concept in self._concepts:
            for entry in concept.entries:
                if isinstance(entry.probe, RunningProbe) and entry.probe.state_size:
                    yield entry, entry.probe

    def save(self, root: str) -> dict[tuple[str, int], torch.Tensor]:
        """A copy of the states of the probes in a root."""
        keys = [(entry.concept, entry.number) for entry, _ in self.stateful() if entry.probe_site.root == root]
        return {key: self._memories[key].clone() for key in keys if key in self._memories}

    def load(self, saved: Mapping[tuple[str, int], torch.Tensor]) -> None:
        """Set states of probes to those that `save` returned."""
        for key, memory in saved.items():
            self._memories[key] = memory
            self._owned.discard(key)

    def reset(self, root: str, batch: int, device: torch.device) -> None:
        """Reset the states of the probes in a root, because a new text begins.

        Args:
            root: name of the root.
            batch: number of rows.
            device: where the states are kept.
        """
        for entry, probe in self.stateful():
            if entry.probe_site.root != root:
                continue
            key = entry.concept, entry.number
            memory = self._memories.get(key)
            self._blind_writers.pop(key, None)
            if key in self._owned and memory is not None and len(memory) == batch and memory.device == device:
                memory.zero_()
            else:
                with torch.inference_mode(False):  # to be written in and out of inference mode
                    self._memories[key] = torch.zeros(batch, probe.state_size, device=device)
                self._owned.add(key)

    def take_rows(self, root: str, rows: torch.Tensor) -> None:
        """Let the states of the probes in a root follow rows that were repeated, dropped or reordered.

        Args:
            root: name of the root.
            rows: for each row of the batch from now on, the index of the row that it continues, int64 [batch].
        """
        for entry, _ in self.stateful():
            key = entry.concept, entry.number
            if entry.probe_site.root == root and key in self._memories:
                self._memories[key] = self._memories[key][rows.to(self._memories[key].device)]
                self._owned.discard(key)

    def prepare(self, root: str, record: CallRecord, *, kept: bool) -> None:
        """Before a call: keep the states of the probes for its recomputation, or have them as ours, to be written."""
        for entry, _ in self.stateful():
            key = entry.concept, entry.number
            memory = self._memories.get(key)
            if entry.probe_site.root != root or memory is None:
                continue
            if kept:
                writer = self._blind_writers.get(key)
                if writer is not None:
                    writer.passed_on = True
                record.memories[key] = Outside.of(memory, lost=writer is not None)
                self._owned.discard(key)
            elif key not in self._owned:
                with torch.inference_mode(False):
                    self._memories[key] = memory.detach().clone()
                self._owned.add(key)

    def step(
        self, entry: BoundIntervention, probe: RunningProbe, x: torch.Tensor, record: CallRecord, again: bool
    ) -> torch.Tensor:
        """h of a stateful probe, whose state is updated.

        Raises:
            UnsupportedError: the root does not generate text, or gradients that would be off.
        """
        root, key, call = entry.probe_site.root, (entry.concept, entry.number), record.call
        past = record.memories.get(key) if again else None
        memory = self._memories.get(key) if past is None else past.again()
        if again and ((past is not None and past.lost) or record.passed_on):
            refuse_blind(record, entry, "what was read in other calls")
        if call.prompt is None or (memory is None and probe.state_size):
            raise UnsupportedError(
                f"{entry.concept!r} has a gate of kind {probe.kind}, which goes by a text that is written, and "
                f"{root!r} is given no such: learn with another form"
            )
        memory_mask = call.mask if call.memory_mask is None else call.memory_mask
        mask, prompt = (None if part is None else part.to(x.device) for part in (memory_mask, call.prompt))
        if memory is None:
            return probe.step(x, mask, prompt, x.new_zeros(len(x), 0))[0]
        h, after = probe.step(x, mask, prompt, memory.to(x.device))
        if again:
            return h
        if key in self._owned:
            memory.copy_(after.detach())
            return h
        if not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(after):
            raise UnsupportedError(
                f"{entry.concept!r} has a gate of kind {probe.kind}, which goes by what came before, and torch.func "
                "lets nothing be kept: take gradients by backward(), or learn with form token"
            )
        self._memories[key] = after
        if record.differentiable and not torch.is_grad_enabled():
            self._blind_writers[key] = record
        return h


class MapStates:
    """The states of the running maps of a steering, each by concept and intervention.

    They are never written in place, but replaced: with gradients, a later call passes its gradient on to those before.

    Args:
        concepts: the attached concepts.
    """

    def __init__(self, concepts: Sequence[BoundConcept]) -> None:
        self._concepts = concepts
        self._states: dict[tuple[str, int], State] = {}
        self._blind_writers: dict[tuple[str, int], CallRecord] = {}  # calls that left them without a gradient

    def running(self, root: str | None = None) -> Iterator[tuple[BoundIntervention, RunningMap]]:
        """Interventions whose maps have a state, with these maps; None for those of all roots."""
        for concept in self._concepts:
            for entry in concept.entries:
                if isinstance(entry.map, RunningMap) and root in (None, entry.map_site.root):
                    yield entry, entry.map

    def save(self, root: str) -> dict[tuple[str, int], State]:
        """The states of the maps in a root."""
        keys = [(entry.concept, entry.number) for entry, _ in self.running(root)]
        return {key: self._states[key] for key in keys if key in self._states}

    def load(self, saved: Mapping[tuple[str, int], State]) -> None:
        """Set states of maps to those that `save` returned."""
        self._states.update(saved)

    def reset(self, root: str, batch: int, device: torch.device) -> None:
        """Reset the states of the maps in a root, because a new text begins.

        Args:
            root: name of the root.
            batch: number of rows.
            device: where the states are kept.
        """
        for entry, running in self.running(root):
            self._states[entry.concept, entry.number] = running.begin(batch, device)
            self._blind_writers.pop((entry.concept, entry.number), None)

    def take_rows(self, root: str, rows: torch.Tensor) -> None:
        """Let the states follow rows that were repeated, dropped or reordered, see `ProbeStates.take_rows`."""
        for key, state in self.save(root).items():
            self._states[key] = tuple(tensor[rows.to(tensor.device)] for tensor in state)

    def prepare(self, root: str, record: CallRecord, *, kept: bool) -> None:
        """Before a call: keep the states of the maps for its recomputation, if it may be computed again."""
        for key, state in self.save(root).items() if kept else ():
            writer = self._blind_writers.get(key)
            if writer is not None:
                writer.passed_on = True
            record.states[key] = tuple(Outside.of(tensor, lost=writer is not None) for tensor in state)

    def following(self, entry: BoundIntervention, record: CallRecord, again: bool) -> BoundIntervention:
        """An intervention whose map, if it is a running one, continues the text of a call where it is applied."""
        if not isinstance(entry.map, RunningMap):
            return entry
        return entry._replace(map=_FollowingMap(self, entry, entry.map, record, again))

    @_disable_dynamo  # a state that grows would have a graph compiled anew for each token
    def step(
        self,
        entry: BoundIntervention,
        running: RunningMap,
        x: torch.Tensor,
        strength: torch.Tensor | float,
        record: CallRecord,
        again: bool,
    ) -> torch.Tensor:
        """What a running map makes of the positions of a call; its state is updated.

        Raises:
            UnsupportedError: the root does not read a text, positions are missing, or gradients would be off.
        """
        root, key, call = entry.map_site.root, (entry.concept, entry.number), record.call
        past = record.states.get(key) if again else None
        state = self._states.get(key) if past is None else tuple(tensor.again() for tensor in past)
        if again and (record.passed_on or any(tensor.lost for tensor in past or ())):
            refuse_blind(record, entry, "what was read in other calls")
        if call.prompt is None or state is None:
            raise UnsupportedError(
                f"{entry.concept!r} has a map of kind {running.kind}, which goes by a text that is written, and "
                f"{root!r} is given no such: steer a language model with it"
            )
        mask = call.mask if call.memory_mask is None else call.memory_mask
        if call.prompt.shape[1] != x.shape[1]:
            raise UnsupportedError(
                f"{x.shape[1]} positions reach {entry.map_site}, but the call has {call.prompt.shape[1]}, and a map of "
                f"kind {running.kind} goes by all of them: choose a site with every position"
            )
        mask, first = (None if part is None else part.to(x.device) for part in (mask, call.first))
        moved, after = running.step(x, strength, mask, first, tuple(_usable(tensor, x.device) for tensor in state))
        if again:
            return moved
        if torch._C._functorch.is_functorch_wrapped_tensor(after[0]):
            raise UnsupportedError(
                f"{entry.concept!r} has a map of kind {running.kind}, which goes by what came before, and torch.func "
                "lets nothing be kept: take gradients by backward()"
            )
        self._states[key] = after
        if record.differentiable and not torch.is_grad_enabled():
            self._blind_writers[key] = record
        return moved


class _FollowingMap(Map):
    """A running map in one call of a model: it continues the state of its text."""

    def __init__(
        self, states: MapStates, entry: BoundIntervention, running: RunningMap, record: CallRecord, again: bool
    ) -> None:
        self._states, self._entry, self._running = states, entry, running
        self._record, self._again = record, again

    @property
    def scales_strength(self) -> bool:
        return self._running.scales_strength

    def apply(self, x: torch.Tensor, strength: torch.Tensor | float) -> torch.Tensor:
        return self._states.step(self._entry, self._running, x, strength, self._record, self._again)


def _usable(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of a state on a device, which autograd may save."""
    tensor = tensor.to(device)
    return tensor.clone() if tensor.is_inference() and not torch.is_inference_mode_enabled() else tensor


def refuse_blind(record: CallRecord, entry: BoundIntervention, what: str) -> None:
    """Raise where a reentrant checkpoint computes a site again, whose gate depends on what is outside of it."""
    if entry.map_site in record.blind or entry.probe_site in record.blind:
        raise UnsupportedError(
            f"what is done at {entry.map_site} goes by {what}, to which no gradient passes out of a reentrant "
            "checkpoint: checkpoint with use_reentrant=False"
        )
