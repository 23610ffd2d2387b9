"""Steering: the visitor that applies concepts to a model. What the user does with it is in `handle`.

Everything that may change while a model runs (strengths, schedule, rows, timestep bin) is a tensor, written in place
before a root module runs and only read at the sites, so that one compiled graph serves all values. See `call_state`.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Self

import torch

from ..concept.concept import Concept
from ..errors import DSASError, ModelMismatchError, UnsupportedError, did_you_mean, quote
from ..maps import IdentityMap
from ..model.compilation import CompileWatch
from ..model.hooks import Call, DescribeCall, OnEnd, OnUnreached, visit
from ..model.sites import Roots, Site
from .binding import BoundConcept, BoundIntervention, tell_groups
from .calls.call_state import CallState
from .calls.recomputation import CallRecord, Outside
from .diagnostics import describe_conflicts, find_overflows
from .handle import Handle, find_handles
from .interpolation import interpolate, normalise_gates
from .requirements import obstacle_to_auto, obstacle_to_within
from .solve import SolvedStrength, solve_strength, strength_within
from .strengths import Schedule, Strength, Strengths
from .trace import Trace

#: combination of several concepts at one position: their changes add up, or their h sum to no more than the highest
COMBINE = ("sum", "blend")
#: bound on each concept's own change: none, or the ellipse of its target activations
WITHIN = (None, "target")

#: a concept's name, a site, and the activation [batch, positions, width] there -> a factor on h [batch, positions, 1],
#: or None for 1 everywhere
Localiser = Callable[[str, Site, torch.Tensor], torch.Tensor | None]


class _Step(NamedTuple):
    """The change of an activation by one intervention; `trace_h` is h for the trace."""

    entry: BoundIntervention
    strength: torch.Tensor
    h: torch.Tensor
    trace_h: torch.Tensor
    solved: SolvedStrength | None


class _Planned(NamedTuple):
    """How an activation is changed: its call, whether that is computed again, and what does so."""

    record: CallRecord
    again: bool
    steps: list[_Step]
    layers: Sequence[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]


class _Plan(NamedTuple):
    """A concept at a site: the numbers of its interventions whose probes only read there, and of those that write.

    `width` is the number of channels that it expects there; None where none of its tensors tells.
    """

    concept: BoundConcept
    width: int | None
    readers: list[int]
    writers: list[int]


class Steering(Handle):
    """A visitor that steers a model; a context manager that detaches at the end of its block.

    Args:
        concepts: concept -> strength: a number in units of the concept, one per prompt, or "auto" (`Auto`).
        gate: None for each concept's own, "on" for h = 1 (the vanilla method, site weights 1), "off" for h = 0.
        schedule: strength over the timestep for all concepts, or by concept name.
        trace: where to record h and changes, or None.
        combine: "sum" adds up the changes by several concepts at a position; "blend" first scales their h down to a sum
            of the highest among them (`interpolation.normalise_gates`), independent of their order.
        within: "target" shortens each strength, at each position, so that the activation stays within the ellipse of
            the concept's target activations (`solve.strength_within`), for each concept without regard to the others;
            None leaves it as it is.
        localiser: a factor on h, whatever the gate; None for 1 everywhere.
        interpolate_bins: interpolate probes and maps linearly between the middles of the timestep bins, instead of
            switching at their edges.

    Raises:
        DSASError: an unknown option, a strength that is not finite, or two concepts of one name.
        UnsupportedError: a concept that does not support an option; the message says why.

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
        strengths = Strengths(
            {concept.name: obstacle_to_auto(concept, gate) for concept in concepts},
            {concept.name: concept.range for concept in concepts},
        )
        strengths.set_all({concept.name: strength for concept, strength in concepts.items()})
        names = list(strengths)
        schedules = schedule if isinstance(schedule, Mapping) else {name: schedule for name in names if schedule}
        for name in schedules:
            if name not in names:
                raise DSASError(
                    f"a schedule for {quote(name)}, but attached are {', '.join(names)}{did_you_mean(name, names)}"
                )
        if trace is not None:
            trace.names = tuple(names)
        self._localiser, self._blends = localiser, combine == "blend"
        # a blend adds up in one order, whatever the user's
        ordered = sorted(concepts, key=lambda concept: concept.name) if self._blends else concepts
        options = {"watch": trace is not None, "within": within is not None, "interpolate": interpolate_bins}
        self._attached = [BoundConcept(concept, gate, **options) for concept in ordered]
        stacks = trace is None and localiser is None and not self._blends
        state = CallState(self._attached, strengths, schedules, stacks=stacks)
        super().__init__(list(concepts), strengths, trace, state)
        self._plans = _plans(self._attached)
        #: every site that is read or written, without repetitions
        self.sites = list(self._plans)

    # ---- attached to a model ----------------------------------------------------------------------------------------

    def attach(
        self,
        roots: Roots,
        describe: Mapping[str, DescribeCall],
        *,
        on_unreached: OnUnreached | None = None,
        on_end: OnEnd | None = None,
        unhooked: Collection[Site] = (),
    ) -> Self:
        """Attach to the sites of a model, and warn of concepts that work against one another, or that overflow.

        Changes add up with those of other steerings on the model.

        Args:
            roots: the model's root modules by name.
            describe: root name -> makes the Call of a call of that root.
            on_unreached: called with the sites that a call did not reach, see `hooks.visit`.
            on_end: called after each call of a root, see `hooks.visit`.
            unhooked: sites that get no hook, see `hooks.visit`.

        Raises:
            ModelMismatchError: a site that the model lacks.
            UnsupportedError: a module that is already compiled.
            DSASError: this is attached already, or a concept of this name is.
        """
        if self.attached:
            raise DSASError("this steering is attached already: detach() it first")
        others = [] if self.watches else find_handles(roots)
        self._check_names(others)

        def end(root: str, output: object) -> None:
            self._state.end(root, output)
            if on_end is not None:
                on_end(root, output)

        self._visit = visit(roots, self.sites, self, describe, on_unreached=on_unreached, on_end=end, unhooked=unhooked)
        if self._state.choice is not None:
            self._state.choice.compiled = CompileWatch(roots, self._visit.ways)
        self.strengths.ended = False
        if not self.watches:
            self._join(others)
        try:
            for line in [
                *find_overflows(self._concepts, roots),
                *describe_conflicts(self._conflicts(all_concepts=False)),
            ]:
                warnings.warn(line, stacklevel=3)
        except BaseException:  # warnings may be raised as errors
            self.detach()
            raise
        return self

    @property
    def stateful(self) -> bool:
        """Whether a probe or a map has a state, which has to follow the rows of a batch."""
        return any(True for _ in self._state.stateful()) or any(True for _ in self._state.maps.running())

    # ---- the visitor ------------------------------------------------------------------------------------------------

    def recall(self, root: str, *, inputs: object = None) -> Call | None:
        """The call of a root that a backward pass computes again, None for a new one; see `hooks.Recaller`."""
        record = self._state.recall(root, inputs)
        return None if record is None else record.call

    def begin(self, root: str, call: Call) -> None:
        """Before the forward pass of a root module; see `hooks.Visitor`."""
        self._state.begin(root, call)

    def visit(self, site: Site, x: torch.Tensor) -> torch.Tensor | None:
        """The steered activation [batch, positions, width]: x' = lerp(x, T(x; strength), h)."""
        together: Sequence[Any] = self._together.get(site, (self,)) if self._together else (self,)
        if together[0] is not self:
            return None  # that one changes it, for this one too
        planned = [steering._plan_steps(site, x) for steering in together]
        steps = [step for part in planned for step in part.steps]
        layers = [layer for part in planned for layer in part.layers]
        if not steps and not layers:
            return None
        out = interpolate(x, [(step.entry.map, _bounded_strength(x, step), step.h) for step in steps], layers)
        for steering, (record, again, own, _) in zip(together, planned, strict=True):
            if own:
                steering._note(site, x, out, record, again, own)
        return out

    def _plan_steps(self, site: Site, x: torch.Tensor) -> _Planned:
        """What this steering changes an activation by."""
        record, again = self._state.call_at(site, x)
        stack, doses = record.stacked or (None, None)
        layers = () if stack is None else stack.layers.get(site, ())
        if not record.parameters and not layers:  # all rest
            return _Planned(record, again, [], [])
        mask = record.call.position_mask(site, x.shape[1])
        mask = mask if mask is None or mask.device == x.device else mask.to(x.device)
        steps: list[_Step] = []
        for concept, width, readers, writers in self._plans[site] if record.parameters else ():
            if concept.name not in record.parameters:
                continue
            if width not in (None, x.shape[-1]):
                raise ModelMismatchError(
                    f"concept {quote(concept.name)} is {width} wide at {site}, and this model's activation there has "
                    f"{x.shape[-1]} channels: use it on the model that it was learned on"
                )
            entries = tell_groups(record.parameters[concept.name].on(x.device), record.groups, x, mask)
            for number in readers:
                self._state.keep_score(entries[number], x, mask, record, again)
            alone = writers if stack is None else stack.leaves(concept, writers)
            steps += [self._step(entries[number], x, mask, record, again) for number in alone]
        moves = [partial(layer.move, doses=doses, mask=mask) for layer in layers if doses is not None]
        return _Planned(record, again, self._blend(steps), moves)

    def _note(
        self, site: Site, x: torch.Tensor, out: torch.Tensor, record: CallRecord, again: bool, steps: Sequence[_Step]
    ) -> None:
        """Keep what was done, for checkpoints and the trace."""
        if record.differentiable and not torch.compiler.is_compiling():
            record.hold_by(iter((out,)))
        if self._trace is not None and not again:
            for step in steps:
                writes = not isinstance(step.entry.map, IdentityMap)
                if writes or step.entry.weight:  # or it does not read at this timestep
                    self._trace.record(step.entry.concept, site, record.call, step.trace_h, x, out, step.solved, writes)

    def _step(
        self, entry: BoundIntervention, x: torch.Tensor, mask: torch.Tensor | None, record: CallRecord, again: bool
    ) -> _Step:
        """The change of an activation by an intervention that writes there.

        The strength is the given one, or the smallest that brings the probe's logit down to the target.
        """
        state, strength = self._state, record.doses[entry.concept].to(x.device)
        factor = None if self._localiser is None else self._factor(self._localiser, entry, x, record, again)
        target, plane, solved = record.targets.get(entry.concept), entry.plane, None
        if target is None or plane is None:
            read = state.kept_score(entry, x, record, again) if entry.reads_elsewhere else None
            h = state.score(entry, x, mask, record, again) if read is None else read
            trace_h = h
        else:
            logit, cap = target.to(x.device).unbind()
            solved = solve_strength(x, entry.map, plane.probe, logit, cap, mask)
            counted = (strength * entry.weight if mask is None else strength * entry.weight * mask[..., None]) != 0
            counted = counted if factor is None else counted & (factor > 0)
            if not again:
                state.count(entry, solved, counted)
            h = (solved.strength > 0) * entry.weight * plane.gate(x, mask) * counted
            trace_h = h if self._trace is None else state.score(entry, x, mask, record, again)
            strength = solved.strength * strength
        if factor is not None:
            h, trace_h = h * factor, trace_h * factor
        return _Step(state.maps.following(entry, record, again), strength, h, trace_h, solved)

    @staticmethod
    def _factor(
        localiser: Localiser, entry: BoundIntervention, x: torch.Tensor, record: CallRecord, again: bool
    ) -> torch.Tensor | None:
        """The localiser's factor; of a call that is computed again that of then, as it may go by other activations."""
        key = entry.concept, entry.map_site
        if again:
            past = record.factors.get(key)
            return None if past is None else past.again()
        factor = localiser(entry.concept, entry.map_site, x)
        if record.differentiable:
            record.factors[key] = None if factor is None else Outside.of(factor)
        return factor

    def _blend(self, steps: list[_Step]) -> list[_Step]:
        """Steps with their h as `combine` leaves them; the interventions of one concept count as one gate."""
        names = dict.fromkeys(step.entry.concept for step in steps) if self._blends else {}
        if len(names) < 2:
            return steps
        gates = [[step.h * (step.strength != 0) for step in steps if step.entry.concept == name] for name in names]
        factor = normalise_gates([functools.reduce(torch.maximum, scores) for scores in gates])
        return [step._replace(h=step.h * factor) for step in steps]


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
        if obstacle := obstacle_to_within(concept, gate):
            raise UnsupportedError(f"concept {concept.name!r} cannot be kept within its targets: {obstacle}")
    names = [concept.name for concept in concepts]
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise DSASError(f"two concepts are named {double[0]!r}: give one another name (dataclasses.replace)")


def _plans(concepts: Sequence[BoundConcept]) -> dict[Site, list[_Plan]]:
    """The interventions at each site, concept by concept; computed once, not in every call."""
    plans: dict[Site, dict[str, _Plan]] = {}
    for concept in concepts:
        for entry in concept.entries:
            for site in (entry.probe_site, entry.map_site):
                plans.setdefault(site, {}).setdefault(concept.name, _Plan(concept, concept.widths.get(site), [], []))
            if entry.reads_elsewhere:
                plans[entry.probe_site][concept.name].readers.append(entry.number)
            plans[entry.map_site][concept.name].writers.append(entry.number)
    return {site: list(by_concept.values()) for site, by_concept in plans.items()}


def _bounded_strength(x: torch.Tensor, step: _Step) -> torch.Tensor:
    """A step's strength, shortened where `within` demands it."""
    if step.entry.envelope is None:
        return step.strength
    return strength_within(x, step.entry.map, step.strength, step.h, step.entry.envelope)
