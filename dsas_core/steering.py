"""Steering: the visitor that applies concepts, its knobs, and how it lets go.

Everything that may move while a model runs (strengths, schedule, rows, timestep bin) is a tensor, written in place
before a root module runs and only read at the sites: one compiled graph serves them all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Self

import torch

from .capture import bin_of
from .concept import Concept, Intervention
from .errors import DSASError
from .hooks import Call, Describe, Visit, visit
from .interpolation import interpolate
from .maps import Map
from .probes import ConstantProbe, Probe, RunningProbe
from .sites import Roots, Site
from .trace import Trace

Strength = float | Sequence[float]
#: concepts, or their folders or Hub names, each with its strength: one number, or one per prompt
Strengthened = Mapping[Concept, Strength] | Mapping[str, Strength] | Mapping[Concept | str | Path, Strength]
#: strength over the timestep: float [] in 0 … 1000 -> a factor []
Schedule = Callable[[torch.Tensor], torch.Tensor]


class Strengths(MutableMapping[str, float | list[float]]):
    """The user's knobs by concept name: a number, or one number per prompt. Set them at any time."""

    def __init__(self, names: Sequence[str]) -> None:
        self._values = {name: torch.zeros(1) for name in names}

    def __getitem__(self, name: str) -> float | list[float]:
        values = self.values_of(name).tolist()
        return values[0] if len(values) == 1 else values

    def __setitem__(self, name: str, value: float | Sequence[float]) -> None:
        self.values_of(name)
        numbers = list(value) if isinstance(value, Sequence) else [value]
        if not numbers or not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
            raise DSASError(f"strength of {name!r}: expected a finite number, or one per prompt; found {value!r}")
        self._values[name] = torch.tensor(numbers, dtype=torch.float32)

    def __delitem__(self, name: str) -> None:
        raise DSASError("a strength cannot be removed; set it to 0")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def values_of(self, name: str) -> torch.Tensor:
        """float32 [1] or [prompts]."""
        if name not in self._values:
            raise DSASError(f"no concept {name!r} is attached; there is {', '.join(self._values)}")
        return self._values[name]


class _Entry(NamedTuple):
    """One intervention in the current bin; `number` tells it from the others of its concept."""

    number: int
    probe: Probe
    map: Map
    weight: torch.Tensor
    reads: Site
    writes: Site


class _Bound:
    """Interventions by the sites that they read and write, their tensors views of one: `live`, those of one bin."""

    def __init__(self, interventions: Sequence[Intervention], live: torch.Tensor) -> None:
        self.live = live
        self.reading: dict[Site, list[_Entry]] = {}
        self.writing: dict[Site, list[_Entry]] = {}
        start = 0

        def view(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal start
            start += tensor.numel()
            return live[start - tensor.numel() : start].view(tensor.shape)

        for number, intervention in enumerate(interventions):
            probe = intervention.probes[0].map_tensors(view)
            transform = intervention.maps[0].map_tensors(view)
            weight, reads = view(torch.empty(())), intervention.reads or intervention.site
            entry = _Entry(number, probe, transform, weight, reads, intervention.site)
            self.reading.setdefault(entry.reads, []).append(entry)
            self.writing.setdefault(entry.writes, []).append(entry)


class _Attached:
    """One concept as a visitor holds it: parameters of all bins, and a live copy of those of the current bin.

    The copy lies on the device that the root is called on. A model may be spread over several: a site that comes by
    elsewhere gets a copy there.
    """

    def __init__(self, concept: Concept, gate: str | None, watch: bool) -> None:
        self.name, self.unit, self.edges = concept.name, concept.unit, concept.edges
        chosen = [intervention for intervention in concept.interventions if watch or not intervention.watches]
        self._interventions = [_gated(intervention, gate) for intervention in chosen]
        bins = [_flattened(self._interventions, i) for i in range(len(concept.edges) + 1)]
        self._banks = torch.stack(bins)  # [bins, parameters]
        self._go_to(self._banks.device)

    def _go_to(self, device: torch.device) -> None:
        with torch.inference_mode(False):
            self._device, self._banks = device, self._banks.to(device)
            self._here = _Bound(self._interventions, self._banks[0].clone())
            self._elsewhere: dict[torch.device, _Bound] = {}

    @property
    def entries(self) -> Iterator[_Entry]:
        """Every intervention, on the device of the root."""
        return itertools.chain.from_iterable(self._here.writing.values())

    def on(self, device: torch.device) -> _Bound:
        """What reads and writes activations that are on a device."""
        if device == self._device:
            return self._here
        if device not in self._elsewhere:
            with torch.inference_mode(False):
                self._elsewhere[device] = _Bound(self._interventions, self._here.live.to(device))
        return self._elsewhere[device]

    def turn(self, timestep: torch.Tensor | None, device: torch.device) -> None:
        """Bring in the parameters of the timestep's bin, on the device that the root is called on."""
        if device != self._device:
            self._go_to(device)
        if self.edges:
            bin_ = bin_of(timestep, self.edges).to(device)
            for bound in (self._here, *self._elsewhere.values()):
                bound.live.copy_(self._banks.index_select(0, bin_[None])[0])


class Steering:
    """A visitor that steers, and the handle of what it is attached to: a context manager.

    Args:
        concepts: concept -> strength, a number or one per prompt.
        gate: None for each concept's own, "on" for h = 1 (the vanilla method, site weights 1), "off" for h = 0.
        schedule: strength over the timestep for all concepts, or by concept name.
        trace: where to record h and changes, or None.
    """

    def __init__(
        self,
        concepts: Mapping[Concept, Strength],
        gate: str | None = None,
        schedule: Schedule | Mapping[str, Schedule] | None = None,
        trace: Trace | None = None,
    ) -> None:
        if gate not in (None, "on", "off"):
            raise DSASError(f"gate {gate!r}: expected None (the concept's own), on or off")
        names = [concept.name for concept in concepts]
        double = sorted({name for name in names if names.count(name) > 1})
        if double:
            raise DSASError(f"two concepts are named {double[0]!r}: give one another name (dataclasses.replace)")
        self.strengths = Strengths(names)
        for concept, strength in concepts.items():
            self.strengths[concept.name] = strength
        self.trace = trace
        schedules = schedule if isinstance(schedule, Mapping) else {name: schedule for name in names if schedule}
        unknown = set(schedules) - set(names)
        if unknown:
            raise DSASError(f"a schedule for {', '.join(sorted(unknown))}, but attached are {', '.join(names)}")
        self._schedules: Mapping[str, Schedule] = schedules
        self._attached = [_Attached(concept, gate, watch=trace is not None) for concept in concepts]
        self._calls: dict[str, Call] = {}
        self._doses: dict[tuple[str, str], torch.Tensor] = {}
        self._states: dict[tuple[str, int], torch.Tensor] = {}
        self._scores: dict[tuple[str, str, int], torch.Tensor] = {}  # h of probes that read elsewhere than they gate
        self._visit: Visit | None = None

    def attach(self, roots: Roots, describe: Mapping[str, Describe]) -> Self:
        """Go to the sites of a model; see `hooks.visit`."""
        self._visit = visit(roots, self.sites, self, describe)
        return self

    def detach(self) -> None:
        """Take every hook away; the model is what it was. Can be called again."""
        if self._visit is not None:
            self._visit.detach()
        self._visit = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    @property
    def fired(self) -> list[str]:
        """Sites that have been reached so far (not tracked inside compiled modules)."""
        return sorted(str(site) for site in self._visit.fired) if self._visit else []

    @property
    def sites(self) -> list[Site]:
        """Every site that is read or written, each once."""
        entries = [entry for attached in self._attached for entry in attached.entries]
        return list(dict.fromkeys(site for entry in entries for site in (entry.reads, entry.writes)))

    def begin(self, root: str, call: Call) -> None:
        self._calls[root] = call
        for key in [key for key in self._scores if key[0] == root]:
            del self._scores[key]  # what was read in one call gates nothing of the next
        for attached in self._attached:
            attached.turn(call.timestep, call.rows.device)
            dose = self._dose(attached, call)
            held = self._doses.get((root, attached.name))
            if held is None or held.shape != dose.shape or held.device != dose.device:
                with torch.inference_mode(False):  # to be written in and out of inference mode
                    held = self._doses[root, attached.name] = torch.empty_like(dose)
            held.copy_(dose)

    def visit(self, site: Site, x: torch.Tensor) -> torch.Tensor | None:
        call = self._calls.get(site.root)
        if call is None:
            raise DSASError(
                f"{site} was reached, but {site.root!r} itself was not called, which tells rows and positions: call "
                "the module that was steered, not a part of it"
            )
        mask = None if call.mask is None else call.mask[:, slice(*(site.tokens or (None,)))].to(x.device)
        steps: list[tuple[Map, torch.Tensor, torch.Tensor]] = []
        scores: list[tuple[str, torch.Tensor]] = []
        for attached in self._attached:
            bound = attached.on(x.device)
            for entry in bound.reading.get(site, ()):
                h = self._score(attached.name, entry, x, mask)
                if entry.writes != site:
                    self._scores[site.root, attached.name, entry.number] = h
                    continue
                steps.append((entry.map, self._doses[site.root, attached.name].to(x.device), h))
                scores.append((attached.name, h))
            for entry in bound.writing.get(site, ()):
                if entry.reads != site:
                    h = self._score_of(attached.name, entry, x)
                    steps.append((entry.map, self._doses[site.root, attached.name].to(x.device), h))
                    scores.append((attached.name, h))
        if not steps:
            return None
        out = interpolate(x, steps)
        if self.trace is not None:
            for name, h in scores:
                self.trace.record(name, site, call, h, x, out)
        return out

    def _score(self, name: str, entry: _Entry, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """h of a probe where it reads, with its site's weight; 0 at positions that do not count."""
        if isinstance(entry.probe, RunningProbe):
            h = self._follow((name, entry.number), entry.probe, entry.reads.root, x) * entry.weight
        else:
            h = entry.probe.score(x, mask) * entry.weight
        return h if mask is None else h * mask[..., None]

    def _score_of(self, name: str, entry: _Entry, x: torch.Tensor) -> torch.Tensor:
        """h of a probe that has read elsewhere."""
        h = self._scores.get((entry.reads.root, name, entry.number))
        if h is None:
            raise DSASError(
                f"{entry.writes} is gated by what {entry.reads} shows, which the model has not come to: a probe must "
                "read before its map writes"
            )
        if h.shape[1] not in (1, x.shape[1]):
            raise DSASError(
                f"{entry.reads} has {h.shape[1]} positions, {entry.writes} has {x.shape[1]}: a probe that reads "
                "elsewhere needs the same, or one h for all (form pooled or latch)"
            )
        if h.shape[-1] not in (1, x.shape[-1]):
            raise DSASError(
                f"{entry.reads} has {h.shape[-1]} dimensions, {entry.writes} has {x.shape[-1]}: a gate of each "
                "dimension must read where its map writes"
            )
        return h.to(x.device)

    @property
    def remembers(self) -> bool:
        """Whether a probe goes by what came before, so that the rows of a batch must not be moved about."""
        return any(True for _ in self._remembering())

    def _remembering(self) -> Iterator[tuple[str, _Entry]]:
        """Concept and intervention of each probe that goes by what came before."""
        for attached in self._attached:
            for entry in attached.entries:
                if isinstance(entry.probe, RunningProbe):
                    yield attached.name, entry

    def forget(self, root: str, rows: int, device: torch.device) -> None:
        """A new text of so many rows begins at a root: what probes remember of the last one goes."""
        for name, entry in self._remembering():
            if entry.reads.root != root:
                continue
            held = self._states.get((name, entry.number))
            if held is not None and len(held) == rows and held.device == device:
                held.zero_()
            else:
                with torch.inference_mode(False):  # to be written in and out of inference mode
                    self._states[name, entry.number] = torch.zeros(rows, 3, device=device)

    def _follow(self, key: tuple[str, int], probe: RunningProbe, root: str, x: torch.Tensor) -> torch.Tensor:
        """What a remembering probe says, its state moved on."""
        call, state = self._calls[root], self._states[key]
        read = call.mask if call.read is None else call.read
        mask, prompt = (None if part is None else part.to(x.device) for part in (read, call.prompt))
        h, after = probe.follow(x, mask, prompt, state.to(x.device))
        state.copy_(after.detach())
        return h

    def _dose(self, attached: _Attached, call: Call) -> torch.Tensor:
        """Map strength of each row, float32 [batch, 1, 1]."""
        strengths = self.strengths.values_of(attached.name).to(call.rows.device)
        if len(strengths) > 1:
            if int(call.prompts.max()) >= len(strengths):
                raise DSASError(
                    f"strength of {attached.name!r} is given for {len(strengths)} prompts, but the call has "
                    f"{int(call.prompts.max()) + 1}"
                )
            strengths = strengths[call.prompts]
        dose = strengths * attached.unit * call.rows
        schedule = self._schedules.get(attached.name)
        if schedule is not None and call.timestep is not None:
            dose = dose * schedule(call.timestep.float()).to(dose)
        return dose[:, None, None]


def loaded(concepts: Strengthened, roots: Roots | None = None, *, force: bool = False) -> dict[Concept, Strength]:
    """Concepts with their strengths, those that are given by folder or Hub name read.

    Args:
        roots: what they are to steer; None where it is not there yet. force: take one that does not fit, too.

    Raises:
        DSASError: none is given, one is given twice, or one cannot be read or does not fit.
    """
    if not isinstance(concepts, Mapping) or not concepts:
        raise DSASError(f"concepts: expected {{concept: strength}}, found {concepts!r}")
    read = {
        given if isinstance(given, Concept) else Concept.from_pretrained(given): strength
        for given, strength in concepts.items()
    }
    if len(read) < len(concepts):
        raise DSASError("one concept is given twice: give it one strength")
    if roots is not None:
        for concept in read:
            concept.check(roots, force=force)
    return read


def _gated(intervention: Intervention, gate: str | None) -> Intervention:
    if gate is None:
        return intervention
    probe = ConstantProbe(1.0 if gate == "on" else 0.0)
    bins = len(intervention.probes)
    return replace(intervention, probes=(probe,) * bins, weights=(1.0,) * bins, reads=None)


def _flattened(interventions: Sequence[Intervention], bin_: int) -> torch.Tensor:
    """Every parameter of one bin in a row, in the order in which `_Bound` takes them."""
    tensors = [torch.empty(0)]
    for item in interventions:
        tensors += [*item.probes[bin_].tensors(), *item.maps[bin_].tensors(), torch.tensor(item.weights[bin_])]
    return torch.cat([tensor.flatten().float() for tensor in tensors])
