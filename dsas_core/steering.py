"""Steering: the visitor that applies concepts, its knobs, and how it lets go.

Everything that may move while a model runs (strengths, schedule, rows, timestep bin) is a tensor, written in place
before a root module runs and only read at the sites: one compiled graph serves them all.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple, Self, TypeVar

import torch

from .attached import Attached, Entry
from .concept import Concept
from .errors import DSASError
from .hooks import Call, Describe, Missed, Visit, visit
from .interpolation import interpolate, share
from .maps import Map
from .maps.envelope import Cloud
from .opposition import Opposition, oppositions, warnings_of
from .probes import RunningProbe
from .requirements import obstacle_to_auto, obstacle_to_within
from .sites import Roots, Site
from .solve import Solved, strength_to, strength_within
from .strengths import Auto, Strength, Strengths
from .trace import Trace

#: what becomes of several concepts at one position: their changes add up, or share what the highest h would have made
COMBINE = ("sum", "blend")
#: what each concept's own change may be kept within: the cloud of its target activations, or nothing
WITHIN = (None, "target")

#: strength over the timestep: float [] in 0 … 1000 -> a factor []
Schedule = Callable[[torch.Tensor], torch.Tensor]
#: where a concept may act: its name, a site, an activation [batch, positions, width] there -> a factor on h
#: [batch, positions, 1], or None for everywhere
Localiser = Callable[[str, Site, torch.Tensor], torch.Tensor | None]
Key = TypeVar("Key", bound=tuple[object, ...])


class _Step(NamedTuple):
    """What one intervention is to do to an activation: h and strength; `seen` is what its probe says, for the trace."""

    concept: str
    map: Map
    strength: torch.Tensor
    h: torch.Tensor
    seen: torch.Tensor
    solved: Solved | None = None
    cloud: Cloud | None = None


class _Plan(NamedTuple):
    """What a concept is to do at a site, by number: interventions that read there for elsewhere, and that write."""

    attached: Attached
    reading: list[int]
    writing: list[int]


class Steering:
    """A visitor that steers, and the handle of what it is attached to: a context manager.

    Args:
        concepts: concept -> strength: a number, one per prompt, or "auto" (`Auto`).
        gate: None for each concept's own, "on" for h = 1 (the vanilla method, site weights 1), "off" for h = 0.
        schedule: strength over the timestep for all concepts, or by concept name.
        trace: where to record h and changes, or None.
        combine: "sum" adds up what several concepts change at a position; "blend" first takes their h down to a total
            of the highest among them (`interpolation.share`), in whatever order they are given.
        within: "target" takes as much of each strength, at each position, as keeps the activation among those of the
            concept's targets (`solve.strength_within`); None takes all of it. Of several concepts each is kept in its
            own targets' cloud, whatever the others do.
        localiser: multiplies h, whatever it comes from, by where a concept may act; None for everywhere.
        interpolate_bins: between the middles of two timestep bins, probes and maps go from those of the one to those of
            the other on a straight line; otherwise they change at the bins' edge.
    """

    def __init__(
        self,
        concepts: Mapping[Concept, Strength],
        gate: str | None = None,
        schedule: Schedule | Mapping[str, Schedule] | None = None,
        trace: Trace | None = None,
        combine: str = "sum",
        within: str | None = None,
        localiser: Localiser | None = None,
        interpolate_bins: bool = False,
    ) -> None:
        if gate not in (None, "on", "off"):
            raise DSASError(f"gate {gate!r}: expected None (the concept's own), on or off")
        if combine not in COMBINE:
            raise DSASError(f"combine {combine!r}: expected {' or '.join(COMBINE)}")
        if interpolate_bins and within:
            raise DSASError("clouds of two timestep bins have no axes in common: leave within or interpolate_bins out")
        if within not in WITHIN:
            raise DSASError(f"within {within!r}: expected None, or target to stay where its activations are")
        for concept in concepts if within else ():
            obstacle = obstacle_to_within(concept, gate)
            if obstacle is not None:
                raise DSASError(f"concept {concept.name!r} cannot be kept within its targets: {obstacle}")
        names = [concept.name for concept in concepts]
        double = sorted({name for name in names if names.count(name) > 1})
        if double:
            raise DSASError(f"two concepts are named {double[0]!r}: give one another name (dataclasses.replace)")
        self.strengths = Strengths({concept.name: obstacle_to_auto(concept, gate) for concept in concepts})
        for concept, strength in concepts.items():
            self.strengths[concept.name] = strength
        self.trace, self._localiser = trace, localiser
        schedules = schedule if isinstance(schedule, Mapping) else {name: schedule for name in names if schedule}
        unknown = set(schedules) - set(names)
        if unknown:
            raise DSASError(f"a schedule for {', '.join(sorted(unknown))}, but attached are {', '.join(names)}")
        self._schedules: Mapping[str, Schedule] = schedules
        self._concepts, self._blends = list(concepts), combine == "blend"
        # a blend takes its sums in one order, whatever the user's
        ordered = sorted(concepts, key=lambda concept: concept.name) if self._blends else concepts
        held = {"watch": trace is not None, "within": within is not None, "interpolate": interpolate_bins}
        self._attached = [Attached(concept, gate, **held) for concept in ordered]
        self._plans = _plans(self._attached)
        #: every site that is read or written, each once
        self.sites = list(self._plans)
        self._calls: dict[str, Call] = {}
        self._doses: dict[tuple[str, str], torch.Tensor] = {}
        self._aims: dict[tuple[str, str], torch.Tensor] = {}  # of concepts with `Auto`: target logit, highest strength
        self._counts: dict[tuple[str, int], torch.Tensor] = {}  # of positions that are above it, and stay
        self._states: dict[tuple[str, int], torch.Tensor] = {}
        self._scores: dict[tuple[str, str, int], torch.Tensor] = {}  # h of probes that read elsewhere than they gate
        #: roots where a probe reads for another root: a text encoder for the denoiser
        self._asked = {entry.reads.root for one in self._attached for entry in one.entries if entry.across}
        self._visit: Visit | None = None

    def attach(
        self,
        roots: Roots,
        describe: Mapping[str, Describe],
        *,
        missed: Missed | None = None,
        by_hand: Collection[Site] = (),
    ) -> Self:
        """Go to the sites of a model; see `hooks.visit`."""
        self._visit = visit(roots, self.sites, self, describe, missed=missed, by_hand=by_hand)
        for line in warnings_of(self.opposition()):
            warnings.warn(line, stacklevel=3)
        return self

    def detach(self) -> None:
        """Take every hook away; the model is what it was. Can be called again."""
        if self._visit is None:
            return
        self._visit.detach()
        self._visit = None
        for name, sites in self.against().items():
            most = [site for site, part in sites.items() if part > 0.5]
            if most:
                warnings.warn(
                    f"strength auto of {name!r}: at {', '.join(most)} the map does not lower what the probe sees at "
                    "most positions that are above the target, which stayed as they were: learn with other sites or "
                    "another method, or give a number",
                    stacklevel=3,
                )

    def opposition(self) -> list[Opposition]:
        """The angle between what every two concepts do, at each site that they share."""
        return oppositions(self._concepts, self.strengths)

    def against(self) -> dict[str, dict[str, float]]:
        """Of concepts with the strength auto, by site: where their maps do not lower what their probes see.

        The share of the positions above the target so far; sites where none was are left out.
        """
        found: dict[str, dict[str, float]] = {}
        for attached in self._attached:
            for entry in attached.entries:
                above, against = self._counts.get((attached.name, entry.number), torch.zeros(2)).tolist()
                if above > 0:
                    found.setdefault(attached.name, {})[str(entry.writes)] = against / above
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    @property
    def fired(self) -> list[str]:
        """Sites that have been reached so far; of a pipeline, in the last generation."""
        return sorted(str(site) for site in self._visit.fired) if self._visit else []

    def begin(self, root: str, call: Call) -> None:
        self._calls[root] = call
        if root not in self._asked or bool(call.rows.any()):  # another root is not asked about negative prompts
            for key in [key for key in self._scores if key[0] == root]:
                del self._scores[key]  # what was read in one call gates nothing of the next
        for attached in self._attached:
            attached.turn(call.timestep, call.rows.device)
            _hold(self._doses, (root, attached.name), self._dose(attached, call))
            auto = self.strengths.auto_of(attached.name)
            if auto is None:
                self._aims.pop((root, attached.name), None)
            else:
                self._aim(root, attached, auto, call.rows.device)

    def visit(self, site: Site, x: torch.Tensor) -> torch.Tensor | None:
        call = self._calls.get(site.root)
        if call is None:
            raise DSASError(
                f"{site} was reached, but {site.root!r} itself was not called, which tells rows and positions: call "
                "the module that was steered, not a part of it"
            )
        if len(x) != len(call.rows):
            raise DSASError(
                f"{len(x)} rows come by at {site}, but {site.root!r} was called with {len(call.rows)}: something "
                "between takes rows away, as FasterCache does those of the negative prompt; steer without it"
            )
        mask = call.counted(site, x.shape[1])
        mask = None if mask is None else mask.to(x.device)
        steps: list[_Step] = []
        for attached, reading, writing in self._plans[site]:
            entries, name = attached.on(x.device), attached.name
            for entry in [entries[number] for number in reading]:
                key = site.root, name, entry.number
                if not entry.across:
                    self._scores[key] = self._score(name, entry, x, mask)
                elif key not in self._scores:
                    self._scores[key] = (entry.probe.score(x, mask) * entry.weight)[call.prompts.argsort()]
            steps += [self._step(name, entries[number], x, mask) for number in writing]
        if not steps:
            return None
        out = interpolate(x, [(step.map, _strength(x, step), step.h) for step in self._shared(steps)])
        if self.trace is not None:
            for step in steps:
                self.trace.record(step.concept, site, call, step.seen, x, out, step.solved)
        return out

    def _step(self, name: str, entry: Entry, x: torch.Tensor, mask: torch.Tensor | None) -> _Step:
        """What an intervention is to do where it writes."""
        root = entry.writes.root
        dose, aim = self._doses[root, name].to(x.device), self._aims.get((root, name))
        where = None if self._localiser is None else self._localiser(name, entry.writes, x)
        if aim is None or entry.plane is None:
            h = self._score_of(name, entry, x) if entry.elsewhere else self._score(name, entry, x, mask)
            h = h if where is None else h * where
            return _Step(name, entry.map, dose, h, h, cloud=entry.cloud)
        target, cap = aim.to(x.device).unbind()
        solved = strength_to(x, entry.map, entry.plane.probe, target, cap, mask)
        counted = (dose * entry.weight if mask is None else dose * entry.weight * mask[..., None]) != 0
        if where is not None:
            counted = counted & (where > 0)
        counts = torch.stack([(part & counted).sum() for part in (solved.above, solved.unreachable)])
        held = self._counts[name, entry.number]
        held.add_(counts.to(held))
        h = (solved.strength > 0) * entry.weight * entry.plane.gate(x, mask) * counted
        seen = h if self.trace is None else self._score(name, entry, x, mask)
        h, seen = (h, seen) if where is None else (h * where, seen * where)
        return _Step(name, entry.map, solved.strength * dose, h, seen, solved, entry.cloud)

    def _shared(self, steps: list[_Step]) -> list[_Step]:
        """Steps of several concepts with what `combine` leaves each of its h; the interventions of one go together."""
        names = dict.fromkeys(step.concept for step in steps) if self._blends else {}
        if len(names) < 2:
            return steps
        opened = {name: [step.h * (step.strength != 0) for step in steps if step.concept == name] for name in names}
        kept = share([functools.reduce(torch.maximum, gates) for gates in opened.values()])
        return [step._replace(h=step.h * kept) for step in steps]

    def _score(self, name: str, entry: Entry, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """h of a probe where it reads, with its site's weight; 0 at positions that do not count."""
        if isinstance(entry.probe, RunningProbe):
            h = self._follow((name, entry.number), entry.probe, entry.reads.root, x) * entry.weight
        else:
            h = entry.probe.score(x, mask) * entry.weight
        return h if mask is None else h * mask[..., None]

    def _score_of(self, name: str, entry: Entry, x: torch.Tensor) -> torch.Tensor:
        """h of a probe that has read elsewhere."""
        h = self._scores.get((entry.reads.root, name, entry.number))
        if h is None:
            raise DSASError(
                f"{entry.writes} is gated by what {entry.reads} shows, which the model has not come to: a probe must "
                "read before its map writes"
            )
        if entry.across and h.shape[1] == 1:
            h = h[self._calls[entry.writes.root].prompts.to(h.device)]
        if h.shape[1] not in (1, x.shape[1]) or len(h) != len(x):
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

    def _remembering(self) -> Iterator[tuple[str, Entry, RunningProbe]]:
        """Concept, intervention and probe where that goes by what came before."""
        for attached in self._attached:
            for entry in attached.entries:
                if isinstance(entry.probe, RunningProbe) and entry.probe.state_size:
                    yield attached.name, entry, entry.probe

    def forget(self, root: str, rows: int, device: torch.device) -> None:
        """A new text of so many rows begins at a root: what probes remember of the last one goes."""
        for name, entry, probe in self._remembering():
            if entry.reads.root != root:
                continue
            held = self._states.get((name, entry.number))
            if held is not None and len(held) == rows and held.device == device:
                held.zero_()
            else:
                with torch.inference_mode(False):  # to be written in and out of inference mode
                    self._states[name, entry.number] = torch.zeros(rows, probe.state_size, device=device)

    def _follow(self, key: tuple[str, int], probe: RunningProbe, root: str, x: torch.Tensor) -> torch.Tensor:
        """What a remembering probe says, its state moved on."""
        call, state = self._calls[root], self._states.get(key)
        if call.prompt is None or (state is None and probe.state_size):
            raise DSASError(
                f"{key[0]!r} has a gate of kind {probe.kind}, which goes by a text that is written, and {root!r} is "
                "given no such: learn with another form"
            )
        read = call.mask if call.read is None else call.read
        mask, prompt = (None if part is None else part.to(x.device) for part in (read, call.prompt))
        if state is None:
            return probe.step(x, mask, prompt, x.new_zeros(len(x), 0))[0]
        h, after = probe.step(x, mask, prompt, state.to(x.device))
        state.copy_(after.detach())
        return h

    def _dose(self, attached: Attached, call: Call) -> torch.Tensor:
        """Map strength of each row, float32 [batch, 1, 1]."""
        strengths = self.strengths.values_of(attached.name).to(call.rows.device)
        if len(strengths) > 1:
            if int(call.prompts.max()) >= len(strengths):
                raise DSASError(
                    f"strength of {attached.name!r} is given for {len(strengths)} prompts, but the call has "
                    f"{int(call.prompts.max()) + 1}"
                )
            strengths = strengths[call.prompts]
        unit = 1.0 if self.strengths.auto_of(attached.name) else attached.unit  # 1: all the way to the target
        dose = strengths * unit * call.rows
        schedule = self._schedules.get(attached.name)
        if schedule is not None and call.timestep is not None:
            dose = dose * schedule(call.timestep.float()).to(dose)
        return dose[:, None, None]

    def _aim(self, root: str, attached: Attached, auto: Auto, device: torch.device) -> None:
        """Where a concept that chooses its strength is to go, and what counts how often it cannot."""
        aim = torch.tensor([auto.logit, auto.cap * abs(attached.unit)], device=device)
        _hold(self._aims, (root, attached.name), aim)
        for entry in attached.entries:
            if (attached.name, entry.number) not in self._counts:
                _hold(self._counts, (attached.name, entry.number), torch.zeros(2, device=device))


def _plans(every: Sequence[Attached]) -> dict[Site, list[_Plan]]:
    """What is to be done at each site, concept by concept: told once, and not looked for at every call."""
    plans: dict[Site, list[_Plan]] = {}

    def plan(attached: Attached, site: Site) -> _Plan:
        there = plans.setdefault(site, [])
        if not there or there[-1].attached is not attached:
            there.append(_Plan(attached, [], []))
        return there[-1]

    for attached in every:
        for entry in attached.entries:
            if entry.elsewhere:
                plan(attached, entry.reads).reading.append(entry.number)
            plan(attached, entry.writes).writing.append(entry.number)
    return plans


def _strength(x: torch.Tensor, step: _Step) -> torch.Tensor:
    """A step's strength, as far as it may go."""
    if step.cloud is None:
        return step.strength
    return strength_within(x, step.map, step.strength, step.h, step.cloud)


def _hold(held: dict[Key, torch.Tensor], key: Key, value: torch.Tensor) -> None:
    """Write a value in place where there is one of its shape already: a compiled graph goes on reading it."""
    there = held.get(key)
    if there is None or there.shape != value.shape or there.device != value.device:
        with torch.inference_mode(False):  # to be written in and out of inference mode
            there = held[key] = torch.empty_like(value)
    there.copy_(value)
