"""Steering: the visitor that applies concepts, and the handle of what it is attached to.

Everything that may change while a model runs (strengths, schedule, rows, timestep bin) is a tensor, written in place
before a root module runs and only read at the sites: one compiled graph serves them all. See `call_state`.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple, Self

import torch

from ..concept.concept import Concept
from ..errors import DSASError, UnsupportedError
from ..maps import Map
from ..maps.envelope import EllipticEnvelope
from ..model.hooks import Call, DescribeCall, OnUnreached, Visit, visit
from ..model.sites import Roots, Site
from .binding import BoundConcept, BoundIntervention
from .call_state import CallState
from .diagnostics import Conflict, describe_conflicts, find_conflicts
from .interpolation import interpolate, normalise_gates
from .requirements import obstacle_to_auto, obstacle_to_within
from .solve import SolvedStrength, solve_strength, strength_within
from .strengths import Schedule, Strength, Strengths
from .trace import Trace

#: what becomes of several concepts at one position: their changes add up, or share what the highest h would have made
COMBINE = ("sum", "blend")
#: what each concept's own change may be kept within: the cloud of its target activations, or nothing
WITHIN = (None, "target")

#: where a concept may act: its name, a site, an activation [batch, positions, width] there -> a factor on h
#: [batch, positions, 1], or None for everywhere
Localiser = Callable[[str, Site, torch.Tensor], torch.Tensor | None]


class _Step(NamedTuple):
    """What one intervention is to do to an activation: h and strength; `shown` is h for the trace."""

    concept: str
    map: Map
    strength: torch.Tensor
    h: torch.Tensor
    shown: torch.Tensor
    solved: SolvedStrength | None = None
    cloud: EllipticEnvelope | None = None


class _Plan(NamedTuple):
    """What a concept does at a site: the numbers of its interventions that only read there, and that write there."""

    concept: BoundConcept
    reading: list[int]
    writing: list[int]


class Steering:
    """A visitor that steers, and the handle of what it is attached to: a context manager.

    Args:
        concepts: concept -> strength: a number in units of the concept, one per prompt, or "auto" (`Auto`).
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

    Raises:
        DSASError: an option that there is not, a strength that is not finite, two concepts of one name.
        UnsupportedError: a concept that cannot do what an option asks for; the message says why.

    Example:
        >>> steering = Steering({Concept.from_pretrained("builtin:banana-blur"): 1.0})
        >>> steering.strengths["banana-blur"] = 0.5
        >>> steering.strengths
        Strengths({'banana-blur': 0.5})
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
        _check_options(concepts, gate, combine, within, interpolate_bins)
        self.strengths = Strengths({concept.name: obstacle_to_auto(concept, gate) for concept in concepts})
        for concept, strength in concepts.items():
            self.strengths[concept.name] = strength
        names = list(self.strengths)
        schedules = schedule if isinstance(schedule, Mapping) else {name: schedule for name in names if schedule}
        unknown = set(schedules) - set(names)
        if unknown:
            raise DSASError(f"a schedule for {', '.join(sorted(unknown))}, but attached are {', '.join(names)}")
        self.trace, self._localiser = trace, localiser
        self._concepts, self._blends = list(concepts), combine == "blend"
        # a blend takes its sums in one order, whatever the user's
        ordered = sorted(concepts, key=lambda concept: concept.name) if self._blends else concepts
        options = {"watch": trace is not None, "within": within is not None, "interpolate": interpolate_bins}
        self._attached = [BoundConcept(concept, gate, **options) for concept in ordered]
        self._state = CallState(self._attached, self.strengths, schedules)
        self._plans = _plans(self._attached)
        #: every site that is read or written, each once
        self.sites = list(self._plans)
        self._visit: Visit | None = None

    # ---- attached to a model ----------------------------------------------------------------------------------------

    def attach(
        self,
        roots: Roots,
        describe: Mapping[str, DescribeCall],
        *,
        on_unreached: OnUnreached | None = None,
        unhooked: Collection[Site] = (),
    ) -> Self:
        """Go to the sites of a model; see `hooks.visit`."""
        self._visit = visit(roots, self.sites, self, describe, on_unreached=on_unreached, unhooked=unhooked)
        for line in describe_conflicts(self.conflicts()):
            warnings.warn(line, stacklevel=3)
        return self

    def detach(self) -> None:
        """Take every hook away; the model is what it was. Can be called again."""
        if self._visit is None:
            return
        self._visit.detach()
        self._visit = None
        for name, sites in self.unreachable().items():
            most = [site for site, part in sites.items() if part > 0.5]
            if most:
                warnings.warn(
                    f"strength auto of {name!r}: at {', '.join(most)} the map does not lower what the probe sees at "
                    "most positions that are above the target, which stayed as they were: learn with other sites or "
                    "another method, or give a number",
                    stacklevel=3,
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    @property
    def fired(self) -> list[str]:
        """Sites that have been reached so far; of a pipeline, in the last generation."""
        return sorted(str(site) for site in self._visit.visited) if self._visit else []

    @property
    def stateful(self) -> bool:
        """Whether a probe depends on earlier positions, so that the rows of a batch must not change places."""
        return any(True for _ in self._state.stateful())

    def conflicts(self) -> list[Conflict]:
        """The cosine between what every two concepts do, at each site that they share."""
        return find_conflicts(self._concepts, self.strengths)

    def unreachable(self) -> dict[str, dict[str, float]]:
        """Where maps do not lower what their probes see, of concepts with the strength auto.

        Returns:
            Concept name -> site -> share of the positions above the target so far; sites where none was are left out.
        """
        return self._state.unreachable()

    # ---- the visitor ------------------------------------------------------------------------------------------------

    def begin(self, root: str, call: Call) -> None:
        """A root module is about to run; see `hooks.Visitor`."""
        for concept in self._attached:
            concept.select_bin(call.timestep, call.steered.device)
        self._state.begin(root, call)

    def visit(self, site: Site, x: torch.Tensor) -> torch.Tensor | None:
        """The activation [batch, positions, width] as it goes on: x' = lerp(x, T(x; strength), h)."""
        call = self._state.call_at(site, x)
        mask = call.position_mask(site, x.shape[1])
        mask = None if mask is None else mask.to(x.device)
        steps: list[_Step] = []
        for concept, reading, writing in self._plans[site]:
            entries = concept.on(x.device)
            for number in reading:
                self._state.keep_score(entries[number], x, mask)
            steps += [self._step(entries[number], x, mask) for number in writing]
        if not steps:
            return None
        out = interpolate(x, [(step.map, _strength(x, step), step.h) for step in self._shared(steps)])
        if self.trace is not None:
            for step in steps:
                self.trace.record(step.concept, site, call, step.shown, x, out, step.solved)
        return out

    def _step(self, entry: BoundIntervention, x: torch.Tensor, mask: torch.Tensor | None) -> _Step:
        """What an intervention is to do where it writes: with the strength that was given, or solved for."""
        where = None if self._localiser is None else self._localiser(entry.concept, entry.map_site, x)
        target = self._state.target(entry)
        if target is not None and entry.plane is not None:
            return self._solved_step(entry, target, x, mask, where)
        h = self._state.kept_score(entry, x) if entry.reads_elsewhere else self._state.score(entry, x, mask)
        h = h if where is None else h * where
        return _Step(entry.concept, entry.map, self._state.dose(entry, x.device), h, h, cloud=entry.cloud)

    def _solved_step(
        self,
        entry: BoundIntervention,
        target: torch.Tensor,
        x: torch.Tensor,
        mask: torch.Tensor | None,
        where: torch.Tensor | None,
    ) -> _Step:
        """As `_step`, with the smallest strength that brings the probe's logit down to the target."""
        assert entry.plane is not None
        dose, (logit, cap) = self._state.dose(entry, x.device), target.to(x.device).unbind()
        solved = solve_strength(x, entry.map, entry.plane.probe, logit, cap, mask)
        counted = (dose * entry.weight if mask is None else dose * entry.weight * mask[..., None]) != 0
        if where is not None:
            counted = counted & (where > 0)
        self._state.count(entry, solved, counted)
        h = (solved.strength > 0) * entry.weight * entry.plane.gate(x, mask) * counted
        shown = h if self.trace is None else self._state.score(entry, x, mask)
        h, shown = (h, shown) if where is None else (h * where, shown * where)
        return _Step(entry.concept, entry.map, solved.strength * dose, h, shown, solved, entry.cloud)

    def _shared(self, steps: list[_Step]) -> list[_Step]:
        """Steps of several concepts with what `combine` leaves each of its h; the interventions of one go together."""
        names = dict.fromkeys(step.concept for step in steps) if self._blends else {}
        if len(names) < 2:
            return steps
        gates = {name: [step.h * (step.strength != 0) for step in steps if step.concept == name] for name in names}
        kept = normalise_gates([functools.reduce(torch.maximum, every) for every in gates.values()])
        return [step._replace(h=step.h * kept) for step in steps]


def _check_options(
    concepts: Mapping[Concept, Strength], gate: str | None, combine: str, within: str | None, interpolate_bins: bool
) -> None:
    if gate not in (None, "on", "off"):
        raise DSASError(f"gate {gate!r}: expected None (the concept's own), on or off")
    if combine not in COMBINE:
        raise DSASError(f"combine {combine!r}: expected {' or '.join(COMBINE)}")
    if interpolate_bins and within:
        raise UnsupportedError(
            "clouds of two timestep bins have no axes in common: leave within or interpolate_bins out"
        )
    if within not in WITHIN:
        raise DSASError(f"within {within!r}: expected None, or target to stay where its activations are")
    for concept in concepts if within else ():
        obstacle = obstacle_to_within(concept, gate)
        if obstacle is not None:
            raise UnsupportedError(f"concept {concept.name!r} cannot be kept within its targets: {obstacle}")
    names = [concept.name for concept in concepts]
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise DSASError(f"two concepts are named {double[0]!r}: give one another name (dataclasses.replace)")


def _plans(concepts: Sequence[BoundConcept]) -> dict[Site, list[_Plan]]:
    """What is to be done at each site, concept by concept: found once, not in every call."""
    plans: dict[Site, dict[str, _Plan]] = {}
    for concept in concepts:
        for entry in concept.entries:
            for site in (entry.probe_site, entry.map_site):
                plans.setdefault(site, {}).setdefault(concept.name, _Plan(concept, [], []))
            if entry.reads_elsewhere:
                plans[entry.probe_site][concept.name].reading.append(entry.number)
            plans[entry.map_site][concept.name].writing.append(entry.number)
    return {site: list(by_concept.values()) for site, by_concept in plans.items()}


def _strength(x: torch.Tensor, step: _Step) -> torch.Tensor:
    """A step's strength, as far as it may go."""
    if step.cloud is None:
        return step.strength
    return strength_within(x, step.map, step.strength, step.h, step.cloud)
