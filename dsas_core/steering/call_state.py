"""The state of steering during one call of a model: strengths, targets, scores, and the states of stateful probes.

All of it is tensors. Strengths and targets are written in place before a root module runs (`CallState.begin`) and only
read at its sites, so that compiled graphs keep reading them. Stateful probes update their states at their sites.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import torch

from ..errors import DSASError, UnsupportedError
from ..maps import IdentityMap
from ..model.hooks import Call
from ..model.sites import Site
from ..probes import RunningProbe
from .binding import BoundConcept, BoundIntervention
from .solve import SolvedStrength
from .strengths import Schedule, Strengths

Key = TypeVar("Key", bound=tuple[object, ...])


class CallState:
    """The state that one `Steering` keeps while a model runs.

    Args:
        concepts: the attached concepts.
        strengths: the user's strengths.
        schedules: concept name -> strength over the timestep.

    Attributes:
        muted: None, or, while all strengths count as 0, concept name -> the prompts that they would have steered.
    """

    def __init__(
        self, concepts: Sequence[BoundConcept], strengths: Strengths, schedules: Mapping[str, Schedule]
    ) -> None:
        self._concepts, self._strengths, self._schedules = concepts, strengths, schedules
        self.muted: dict[str, set[int]] | None = None
        #: roots where a probe reads for a map in another root: a text encoder for the denoiser
        self._shared = {e.probe_site.root for concept in concepts for e in concept.entries if e.reads_other_root}
        # by root
        self._calls: dict[str, Call] = {}
        # by root and concept: the map strength of each row; for `Auto`, target logit and highest strength
        self._doses: dict[tuple[str, str], torch.Tensor] = {}
        self._targets: dict[tuple[str, str], torch.Tensor] = {}
        # by concept and intervention: numbers of positions above the target, and of those that the map cannot lower;
        # states of stateful probes
        self._counts: dict[tuple[str, int], torch.Tensor] = {}
        self._memories: dict[tuple[str, int], torch.Tensor] = {}
        # by root, concept and intervention: h of probes whose maps write at another site
        self._scores: dict[tuple[str, str, int], torch.Tensor] = {}

    # ---- before the call --------------------------------------------------------------------------------------------

    def begin(self, root: str, call: Call) -> None:
        """Before the forward pass of a root: set its strengths and targets, drop the scores of its last call."""
        self._calls[root] = call
        if root not in self._shared or bool(call.steered.any()):  # a call with negative prompts alone scores nothing
            for score_key in [score_key for score_key in self._scores if score_key[0] == root]:
                del self._scores[score_key]
        for concept in self._concepts:
            key = root, concept.name
            dose = self._dose(concept, call)
            if self.muted is not None:
                if any(e.map_site.root == root and not isinstance(e.map, IdentityMap) for e in concept.entries):
                    self.muted[concept.name].update(call.prompts[dose[:, 0, 0] != 0].tolist())
                dose = torch.zeros_like(dose)
            _write(self._doses, key, dose)
            auto = self._strengths.auto_of(concept.name)
            if auto is None:
                self._targets.pop(key, None)
                continue
            device = call.steered.device
            target = torch.tensor([auto.logit, auto.cap * abs(concept.unit)], device=device)
            _write(self._targets, key, target)
            for entry in concept.entries:
                if (concept.name, entry.number) not in self._counts:
                    _write(self._counts, (concept.name, entry.number), torch.zeros(2, device=device))

    def _dose(self, concept: BoundConcept, call: Call) -> torch.Tensor:
        """Map strength of each row, float32 [batch, 1, 1]; for `Auto` a factor on the solved strength."""
        strengths = self._strengths.values_of(concept.name).to(call.steered.device)
        if len(strengths) > 1:
            if int(call.prompts.max()) >= len(strengths):
                raise DSASError(
                    f"strength of {concept.name!r} is given for {len(strengths)} prompts, but the call has "
                    f"{int(call.prompts.max()) + 1}"
                )
            strengths = strengths[call.prompts]
        unit = 1.0 if self._strengths.auto_of(concept.name) else concept.unit  # 1: reach the target
        dose = strengths * unit * call.steered
        schedule = self._schedules.get(concept.name)
        if schedule is not None and call.timestep is not None:
            dose = dose * schedule(call.timestep.float()).to(dose)
        return dose[:, None, None]

    # ---- at a site --------------------------------------------------------------------------------------------------

    def call_at(self, site: Site, x: torch.Tensor) -> Call:
        """The call that an activation [batch, positions, width] belongs to.

        Raises:
            DSASError: the root was not called.
            UnsupportedError: the activation has another number of rows than the call.
        """
        call = self._calls.get(site.root)
        if call is None:
            raise DSASError(
                f"{site} was reached, but {site.root!r} itself was not called, which tells rows and positions: call "
                "the module that was steered, not a part of it"
            )
        call.check_rows(site, len(x))
        return call

    def dose(self, entry: BoundIntervention, device: torch.device) -> torch.Tensor:
        """Map strength of each row for an intervention, [batch, 1, 1]."""
        return self._doses[entry.map_site.root, entry.concept].to(device)

    def target(self, entry: BoundIntervention) -> torch.Tensor | None:
        """Target logit and highest strength [2] of a strength to solve for; None where the strength is given."""
        return self._targets.get((entry.map_site.root, entry.concept))

    def score(self, entry: BoundIntervention, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """h of a probe at its own site, times the weight; 0 at masked positions."""
        probe = entry.probe
        h = self._step(entry, probe, x) if isinstance(probe, RunningProbe) else probe.score(x, mask)
        h = h * entry.weight
        return h if mask is None else h * mask[..., None]

    def keep_score(self, entry: BoundIntervention, x: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Keep h of a probe for the site where its map writes; for another root, one h for each prompt."""
        root = entry.probe_site.root
        key = root, entry.concept, entry.number
        if not entry.reads_other_root:
            self._scores[key] = self.score(entry, x, mask)
        elif key not in self._scores:
            self._scores[key] = (entry.probe.score(x, mask) * entry.weight)[self._calls[root].prompts.argsort()]

    def kept_score(self, entry: BoundIntervention, x: torch.Tensor) -> torch.Tensor:
        """h of a probe that has read at another site, for an activation where its map writes.

        Raises:
            DSASError: the probe's site was not reached before.
            UnsupportedError: the two sites have other positions or widths.
        """
        h = self._scores.get((entry.probe_site.root, entry.concept, entry.number))
        if h is None:
            raise DSASError(
                f"{entry.map_site} is gated by what {entry.probe_site} shows, which the model has not reached: a "
                "probe must read before its map writes"
            )
        if entry.reads_other_root and h.shape[1] == 1:
            h = h[self._calls[entry.map_site.root].prompts.to(h.device)]
        if h.shape[1] not in (1, x.shape[1]) or len(h) != len(x):
            raise UnsupportedError(
                f"{entry.probe_site} has {h.shape[1]} positions, {entry.map_site} has {x.shape[1]}: a probe that "
                "reads elsewhere needs the same, or one h for all (form pooled or latch)"
            )
        if h.shape[-1] not in (1, x.shape[-1]):
            raise UnsupportedError(
                f"{entry.probe_site} has {h.shape[-1]} dimensions, {entry.map_site} has {x.shape[-1]}: a gate of "
                "each dimension must read where its map writes"
            )
        return h.to(x.device)

    def clear_scores(self) -> None:
        """Drop all kept scores, because other prompts follow."""
        self._scores.clear()

    # ---- strengths that are solved for ------------------------------------------------------------------------------

    def count(self, entry: BoundIntervention, solved: SolvedStrength, counted: torch.Tensor) -> None:
        """Count positions above the target, and those of them that the map cannot lower.

        Args:
            entry: the intervention.
            solved: its solved strength.
            counted: bool, broadcastable to [batch, positions, 1]: the positions to count.
        """
        counts = torch.stack([(part & counted).sum() for part in (solved.above, solved.unreachable)])
        total = self._counts[entry.concept, entry.number]
        total.add_(counts.to(total))

    def unreachable(self) -> dict[str, dict[str, float]]:
        """See `Steering.unreachable`."""
        shares: dict[str, dict[str, float]] = {}
        for concept in self._concepts:
            for entry in concept.entries:
                above, unreachable = self._counts.get((concept.name, entry.number), torch.zeros(2)).tolist()
                if above > 0:
                    shares.setdefault(concept.name, {})[str(entry.map_site)] = unreachable / above
        return shares

    # ---- stateful probes --------------------------------------------------------------------------------------------

    def stateful(self) -> Iterator[tuple[BoundIntervention, RunningProbe]]:
        """Interventions whose probes have a state, with these probes."""
        for concept in self._concepts:
            for entry in concept.entries:
                if isinstance(entry.probe, RunningProbe) and entry.probe.state_size:
                    yield entry, entry.probe

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
            memory = self._memories.get((entry.concept, entry.number))
            if memory is not None and len(memory) == batch and memory.device == device:
                memory.zero_()
            else:
                with torch.inference_mode(False):  # to be written in and out of inference mode
                    self._memories[entry.concept, entry.number] = torch.zeros(batch, probe.state_size, device=device)

    def take_rows(self, root: str, rows: torch.Tensor) -> None:
        """Let the states of the probes in a root follow rows that were repeated, dropped or reordered.

        Args:
            root: name of the root.
            rows: for each row of the batch from now on, the index of the row that it continues, int64 [batch].
        """
        for entry, _ in self.stateful():
            key = entry.concept, entry.number
            if entry.probe_site.root == root and key in self._memories:
                _write(self._memories, key, self._memories[key][rows.to(self._memories[key].device)])

    def _step(self, entry: BoundIntervention, probe: RunningProbe, x: torch.Tensor) -> torch.Tensor:
        """h of a stateful probe, whose state is updated.

        Raises:
            UnsupportedError: the root does not generate text.
        """
        root = entry.probe_site.root
        call, memory = self._calls[root], self._memories.get((entry.concept, entry.number))
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
        memory.copy_(after.detach())
        return h


def _write(values: dict[Key, torch.Tensor], key: Key, value: torch.Tensor) -> None:
    """Write a value in place if its shape is the same as before, so that compiled graphs keep reading it."""
    held = values.get(key)
    if held is None or held.shape != value.shape or held.device != value.device:
        with torch.inference_mode(False):  # to be written in and out of inference mode
            held = values[key] = torch.empty_like(value)
    held.copy_(value)
