"""The state of steering during one call of a model: strengths, targets, scores, and the states of stateful probes.

All of it is tensors. Strengths and targets are written in place before a root module runs (`CallState.begin`) and only
read at its sites, so that compiled graphs keep reading them. Stateful probes update their states at their sites.

Where gradients are on, nothing is written in place: autograd may have saved it. What a call was steered by is kept
(`recomputation`) as long as its graph, for checkpoints that compute parts of it again.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import torch

from ...errors import DSASError, UnsupportedError
from ...maps import IdentityMap
from ...model.hooks import Call
from ...model.row_groups import RowGrouping
from ...model.sites import Site
from ...probes import RunningProbe
from ..binding import BoundConcept, BoundIntervention, coupled_roots
from ..solve import SolvedStrength
from ..strengths import Schedule, Strengths
from .doses import GivenDoses
from .probe_states import MapStates, ProbeStates, refuse_blind
from .recomputation import CallHistory, CallRecord, Key, Outside, asks_for_gradients
from .stack import Doses, Selection, StackChoice


class CallState(ProbeStates):
    """The state that one `Steering` keeps while a model runs.

    Args:
        concepts: the attached concepts.
        strengths: the user's strengths.
        schedules: concept name -> strength over the timestep.
        stacks: whether concepts may be computed together, so that what each does by itself is not known.

    Attributes:
        choice: chooses what is computed together; None where nothing may be.
        maps: the states of running maps.
        disabled: whether all strengths count as 0 until the user enables them.
        grouping: which rows of a call are runs of one prompt.
        muted: None, or, while all strengths count as 0, concept name -> the prompts that they would have steered.
    """

    def __init__(
        self,
        concepts: Sequence[BoundConcept],
        strengths: Strengths,
        schedules: Mapping[str, Schedule],
        *,
        stacks: bool = False,
    ) -> None:
        super().__init__(concepts)
        self.maps = MapStates(concepts)
        self._given = GivenDoses(concepts, strengths, schedules)
        self.choice = StackChoice(concepts, strengths) if stacks else None
        self.muted: dict[str, set[int]] | None = None
        self.disabled = False
        #: roots where a probe reads for a map in another root: a text encoder for the denoiser
        self._shared = {e.probe_site.root for concept in concepts for e in concept.entries if e.reads_other_root}
        # by root
        self._now: dict[str, CallRecord] = {}
        self.history, self.grouping = CallHistory(), RowGrouping(coupled_roots(concepts))
        self._asked = False  # whether an input of the call that is about to begin requires gradients
        self._parameters_exposed = False  # whether autograd may have saved parameters of the current bin
        # by root and concept: the map strength of each row ("" for those of a stack); for `Auto`, target logit and
        # highest strength
        self._doses: dict[tuple[str, str], torch.Tensor] = {}
        self._targets: dict[tuple[str, str], torch.Tensor] = {}
        # by concept and intervention: numbers of positions above the target, and of those that the map cannot lower
        self._counts: dict[tuple[str, int], torch.Tensor] = {}
        # by root, concept and intervention: h of probes whose maps write at another site, and whether it was read with
        # gradients off
        self._scores: dict[tuple[str, str, int], tuple[torch.Tensor, bool]] = {}

    # ---- before the call --------------------------------------------------------------------------------------------

    def recall(self, root: str, inputs: object = None) -> CallRecord | None:
        """The call that a backward pass computes again; None for a new one.

        Args:
            root: name of the root.
            inputs: of a call that begins; None at sites.
        """
        if inputs is not None:
            blind = not torch.is_grad_enabled()
            self._asked = blind and (asks_for_gradients(inputs) or self.history.is_in_blind_checkpoint())
        return self.history.recall(root, self._now.get(root), begins=inputs is not None)

    def begin(self, root: str, call: Call) -> None:
        """Before the forward pass of a root: set its strengths and targets, drop the scores of its last call."""
        before = self._now.get(root)
        record = self._now[root] = CallRecord(call, torch.is_grad_enabled(), exposed=torch.is_grad_enabled())
        if self.history.any:
            self.history.drop_dead()
        if record.differentiable or self._asked:
            self.history.keep(root, record, blind=self._asked)
            record.exposed = True
        anew = record.exposed or (before is not None and before.exposed)
        parameters_anew = record.exposed or self._parameters_exposed
        if root not in self._shared or bool(call.steered.any()):  # a call with negative prompts alone scores nothing
            for score_key in [score_key for score_key in self._scores if score_key[0] == root]:
                del self._scores[score_key]
        self.prepare(root, record, kept=record.differentiable or self._asked)
        self.maps.prepare(root, record, kept=record.differentiable or self._asked)
        chosen = Selection(None, self._concepts)
        if self.choice is not None and not record.exposed:
            chosen = self.choice.choose(root, disabled=self.disabled)
        if record.exposed or len(chosen.apart) == len(self._concepts):  # else others have parameters of before
            self._parameters_exposed = record.exposed
        for concept in chosen.apart:
            concept.select_bin(call.timestep, call.steered.device, anew=parameters_anew)
            record.parameters[concept.name] = concept.current
            self._set_dose(root, concept, record, anew=anew)
        if chosen.stack is not None:
            chosen.stack.begin(call)
            doses = self._doses_of(root, chosen.stack.concepts, call)
            record.stacked = chosen.stack, Doses(_write(self._doses, (root, ""), doses, anew=anew))
        record.groups = self.grouping.find(root, call, record.doses)

    def _set_dose(self, root: str, concept: BoundConcept, record: CallRecord, *, anew: bool) -> None:
        """Set the strengths of a concept, and with the strength auto its targets, for a call."""
        call, key = record.call, (root, concept.name)
        dose = self._doses_of(root, [concept], call)[:, None]
        record.doses[concept.name] = _write(self._doses, key, dose, anew=anew)
        auto = self._given.strengths.auto_of(concept.name)
        if auto is None:
            self._targets.pop(key, None)
            return
        device = call.steered.device
        target = torch.tensor([auto.logit, auto.cap * abs(concept.unit)], device=device)
        record.targets[concept.name] = _write(self._targets, key, target, anew=anew)
        for entry in concept.entries:
            if (concept.name, entry.number) not in self._counts:
                _write(self._counts, (concept.name, entry.number), torch.zeros(2, device=device))

    def _doses_of(self, root: str, concepts: Sequence[BoundConcept], call: Call) -> torch.Tensor:
        """Map strengths by row and concept, [batch, concepts]; while muted, 0, and who would be steered is noted."""
        doses = self._given.of_rows([concept.name for concept in concepts], call, disabled=self.disabled)
        if self.muted is None:
            return doses
        for concept, dose in zip(concepts, doses.T, strict=True):
            if any(e.map_site.root == root and not isinstance(e.map, IdentityMap) for e in concept.entries):
                self.muted[concept.name].update(call.prompts[dose != 0].tolist())
        return torch.zeros_like(doses)

    def end(self, root: str, output: object) -> None:
        """After the forward pass of a root, with what it returned: what comes to its sites now is of no known call."""
        record = self._now.get(root)
        if record is not None:
            record.ended = True
            if self.history.any:
                record.finish(output)

    # ---- at a site --------------------------------------------------------------------------------------------------

    def call_at(self, site: Site, x: torch.Tensor) -> tuple[CallRecord, bool]:
        """The call that an activation [batch, positions, width] belongs to, and whether it is computed again.

        Raises:
            DSASError: the root was not called.
            UnsupportedError: the activation has another number of rows than the call, or is of another thread's.
        """
        eager = not torch.compiler.is_compiling()
        record = self.recall(site.root) if eager and self.history.any else None
        again = record is not None
        if record is None:
            record = self._now.get(site.root)
            if record is not None and eager and record.thread != threading.get_ident():
                raise UnsupportedError(
                    f"two threads call {site.root!r} at once, and steering follows one call at a time: give each "
                    "thread a copy of the model, or call one after the other"
                )
            if record is None or (eager and record.ended):
                raise DSASError(
                    f"{site} was reached, but {site.root!r} itself was not called, which tells rows and positions: "
                    "call the module that was steered, not a part of it"
                )
            if record.differentiable and eager:
                record.note_pass(site)
        record.call.check_rows(site, len(x))
        return record, again

    def score(
        self, entry: BoundIntervention, x: torch.Tensor, mask: torch.Tensor | None, record: CallRecord, again: bool
    ) -> torch.Tensor:
        """h of a probe at its own site, times the weight; 0 at masked positions."""
        probe = entry.probe
        h = self.step(entry, probe, x, record, again) if isinstance(probe, RunningProbe) else probe.score(x, mask)
        h = h * entry.weight
        return h if mask is None else h * mask[..., None]

    def keep_score(
        self, entry: BoundIntervention, x: torch.Tensor, mask: torch.Tensor | None, record: CallRecord, again: bool
    ) -> None:
        """Keep h of a probe for the site where its map writes; for another root, one h for each prompt."""
        root = entry.probe_site.root
        key = root, entry.concept, entry.number
        if again and key[1:] not in record.read:
            return
        if not entry.reads_other_root:
            h = self.score(entry, x, mask, record, again)
        elif key not in self._scores or again:
            h = (entry.probe.score(x, mask) * entry.weight)[record.call.prompts.argsort()]
        else:
            return
        if not again:  # else it was computed for what a checkpoint saves of it
            record.read.add(key[1:])
            self._scores[key] = h, record.differentiable and not torch.is_grad_enabled()

    def kept_score(self, entry: BoundIntervention, x: torch.Tensor, record: CallRecord, again: bool) -> torch.Tensor:
        """h of a probe that has read at another site, for an activation where its map writes.

        Raises:
            DSASError: the probe's site was not reached before.
            UnsupportedError: the two sites have other positions or widths.
        """
        key = entry.concept, entry.number
        past = record.scores.get(key) if again else None
        kept = self._scores.get((entry.probe_site.root, *key)) if past is None else (past.again(), past.lost)
        if kept is None:
            raise DSASError(
                f"{entry.map_site} is gated by what {entry.probe_site} shows, which the model has not reached: a "
                "probe must read before its map writes"
            )
        h, lost = kept
        if again and lost:
            refuse_blind(record, entry, f"what {entry.probe_site} shows")
        if record.differentiable and not again:
            record.scores[key] = Outside.of(h, lost=lost)
        if entry.reads_other_root and h.shape[1] == 1:
            h = h[record.call.prompts.to(h.device)]
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


def _write(values: dict[Key, torch.Tensor], key: Key, value: torch.Tensor, *, anew: bool = False) -> torch.Tensor:
    """Write a value in place if its shape is the same as before, so that compiled graphs keep reading it.

    Args:
        values: where it is kept.
        key: under which key.
        value: the new value.
        anew: not in place, because autograd may have saved the one before.
    """
    held = values.get(key)
    if anew or held is None or held.shape != value.shape or held.device != value.device:
        with torch.inference_mode(False):  # to be written in and out of inference mode
            held = values[key] = torch.empty_like(value)
    return held.copy_(value)
