"""Trains maps, and perhaps gates, of all sites together: one forward and one backward pass for each step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from ...concept.intervention import Intervention
from ...errors import PromptError, UnsupportedError
from ...methods.training.parts import BETAS, EPSILON, Scale
from ...model.sites import Roots, Site
from ...utils.processes import Share
from ...utils.progress import progress_bar
from .checkpoint import Checkpoint, Progressed
from .clean import CleanStates
from .memory import SavedTensors, free_memory
from .objective import Loss, measure_loss
from .parameters import JointParameters
from .runs import HELD_OUT, JointRuns, Row, check_trainable, frozen
from .settings import TrainingSettings
from .visitor import JointVisitor, Pass, join_passes

Module = TypeVar("Module", bound=nn.Module)

#: of SGD
MOMENTUM = 0.9
#: activations are computed again where keeping them would take more than this part of what memory is free
SHARE_OF_MEMORY = 0.7


@dataclass(frozen=True)
class Aims:
    """What is trained for.

    Args:
        gates: whether gates are trained together with their maps; maps are trained always on otherwise.
        gamma: how much the preservation of controls counts.
        l1: penalty of each number of a map.
        group: penalty of each site's map.
    """

    gates: bool = False
    gamma: float = 1.0
    l1: float = 0.0
    group: float = 0.0


class JointTrainer:
    """Trains the maps, and perhaps the gates, of some interventions.

    Args:
        items: the interventions where training begins; all of one root.
        edges: ascending timesteps that separate their bins.
        scales: of each site, the scales of its map and of its gate.
        aims: what is trained for.
        settings: how.
        runs: runs the prompts.
        seed: of batches and moments.
        checkpoint: where an interrupted run goes on from.
        share: of this process.
        show_progress: whether to show a progress bar.

    Raises:
        UnsupportedError: a model without gradients; maps or gates of kinds that cannot be trained.
        PromptError: fewer than two source or target prompts.
    """

    def __init__(
        self,
        items: Sequence[Intervention],
        edges: Sequence[float],
        scales: Mapping[Site, tuple[Scale, Scale]],
        aims: Aims,
        settings: TrainingSettings,
        runs: JointRuns,
        seed: int,
        checkpoint: Checkpoint,
        share: Share,
        show_progress: bool,
    ) -> None:
        check_trainable(runs.roots)
        _check_counts(runs.counts, settings, share.processes)
        self.items, self.aims, self.settings, self.runs = items, aims, settings, runs
        self.seed, self.checkpoint, self.share, self.show_progress = seed, checkpoint, share, show_progress
        self.parameters = JointParameters(items, scales, gates=aims.gates).to(_device(runs.roots))
        self.visitor = JointVisitor([item.site for item in items], edges)
        self._clean = CleanStates(self._read_clean)
        self._targets: dict[tuple[str, int], dict[Site, torch.Tensor]] = {}

    def run(self) -> tuple[list[Intervention], dict[str, Any]]:
        """Train, and return the interventions of the lowest held-out loss, with what was measured as plain data."""
        sites = [item.site for item in self.items]
        with ExitStack() as opened, torch.enable_grad(), torch.inference_mode(False):
            opened.enter_context(frozen(self.runs.roots))
            opened.enter_context(self.runs.placed(sites, self.visitor))
            memory, again = self._plan_memory()
            opened.enter_context(self.runs.checkpointing() if again else nullcontext())
            return self._train(memory, again)

    # ---- the loop ----------------------------------------------------------------------------------------------------

    def _train(self, memory: int, again: bool) -> tuple[list[Intervention], dict[str, Any]]:
        settings, optimiser = self.settings, self._optimiser()
        resumed = self.checkpoint.read(self.parameters, optimiser, self.share)
        if resumed is None:
            now, best = Progressed(first=self.share.from_first(self._first_loss)), self._copy()
            now, best = self._check(now, best)
        else:
            now, best = resumed
        note = f"{memory / 2**20:,.0f} MB" + (", computed again" if again else "")
        with progress_bar(settings.steps, f"training ({note})", self.show_progress) as bar:
            bar.update(now.step)
            while now.step < settings.steps and not self._is_over(now):
                loss = self._step(now, optimiser)
                now = now._replace(step=now.step + 1)
                bar.update()
                if now.step % settings.check_every == 0 or now.step == settings.steps:
                    now, best = self._check(now, best, loss)
                    bar.set_postfix_str(", ".join(f"{name} {value:.3g}" for name, value in now.history[-1].items()))
                    if self.share.process == 0:
                        self.checkpoint.write(self.parameters, optimiser, best, now)
        self.parameters.load_state_dict(best)
        found = {
            "steps": now.step,
            "memory": memory,
            "checkpointing": again,
            "history": now.history,
            "best": now.history[now.best[1]] if now.best else {},
            "moved_dimensions": self.parameters.moved_dimensions(),
        }
        return self.parameters.interventions(), found

    def _step(self, now: Progressed, optimiser: torch.optim.Optimizer) -> Loss:
        """One step of the optimiser; the rate falls by half a cosine."""
        rate = self.settings.first_rate * (1 + math.cos(math.pi * now.step / self.settings.steps)) / 2
        for group in optimiser.param_groups:
            group["lr"] = rate
        random = torch.Generator().manual_seed((self.seed * 1_000_003 + now.step) % 2**63)
        moment = int(torch.randint(self.runs.moments, (), generator=random))
        rows = {
            kind: _choose(self.runs.counts.get(kind, 0), self.settings.batch, random) for kind in ("source", "control")
        }
        optimiser.zero_grad()
        loss = self._measure(moment, "", rows["source"], rows["control"] if self.aims.gates else [])
        # so that a rate says the same whatever activations are large, and however many there are
        (loss.total(self.aims.gamma) * (self.parameters.dimensions / now.first)).backward()  # type: ignore[no-untyped-call]
        self.share.add_gradients(self.parameters.parameters())
        optimiser.step()
        if self.aims.l1 or self.aims.group:
            self.parameters.shrink(optimiser, rate, self.aims.l1, self.aims.group)
        return Loss(loss.transport.detach(), loss.preservation.detach())

    def _check(
        self, now: Progressed, best: dict[str, torch.Tensor], loss: Loss | None = None
    ) -> tuple[Progressed, dict[str, torch.Tensor]]:
        """The loss of held-out prompts, and the best parameters so far."""
        held_out = self._held_out_loss()
        entry = {"step": float(now.step)}
        if loss is not None:
            entry |= {"transport": float(loss.transport), "preservation": float(loss.preservation)}
        # one process's, as the last bits of others may differ: all must take the same for the best, and end together
        total = self.share.from_first(lambda: float(held_out.total(self.aims.gamma)))
        entry |= {"held_out": total, "held_out_preservation": float(held_out.preservation)}
        history = [*now.history, entry]
        if now.best is None or total < now.best[0]:
            return now._replace(history=history, best=(total, len(history) - 1)), self._copy()
        return now._replace(history=history), best

    def _is_over(self, now: Progressed) -> bool:
        return now.best is not None and len(now.history) - 1 - now.best[1] >= self.settings.patience

    # ---- losses ------------------------------------------------------------------------------------------------------

    def _first_loss(self) -> float:
        """How far sources are from targets before they are steered, the mean over moments."""
        losses, bins = [], set()
        with torch.no_grad():
            for moment in range(self.runs.moments):
                unsteered = Pass(None, 0, means=self._means_of("source", moment))
                losses.append(measure_loss(unsteered, self._means_of("target", moment), Share(), [], 0))
                bins.add(self.visitor.bin)
        self.parameters.check_bins(bins, self.visitor.edges)
        return max(float(torch.stack([loss.transport for loss in losses]).mean()), 1e-30)

    def _held_out_loss(self) -> Loss:
        with torch.no_grad():
            losses = []
            for moment in range(self.runs.moments):
                sources, controls = (range(self.runs.counts.get(HELD_OUT + kind, 0)) for kind in ("source", "control"))
                losses.append(self._measure(moment, HELD_OUT, sources, controls if self.aims.gates else []))
            return Loss(*(torch.stack([getattr(loss, name) for loss in losses]).mean() for name in Loss._fields))

    def _measure(self, moment: int, kind: str, sources: Sequence[int], controls: Sequence[int]) -> Loss:
        """The loss of some prompts at a moment; each process runs its part of them."""
        share = self.share
        own, kept = (list(range(len(rows)))[share.process :: share.processes] for rows in (sources, controls))
        steered, parts = self.parameters.steered(), list[tuple[list[int], Pass]]()
        count = max(len(own), len(kept))
        size = count if torch.is_grad_enabled() else self.settings.batch  # a backward pass is of one forward pass
        for start in range(0, count, size):
            part, beside = own[start : start + size], kept[start : start + size]
            clean = self._clean.read(f"{kind}control", [controls[i] for i in beside], moment) if beside else {}
            rows: list[Row] = [(f"{kind}source", sources[i]) for i in part]
            rows += [(f"{kind}control", controls[i]) for i in beside]
            one = self._pass(Pass(steered, len(part), clean), rows, moment)
            parts.append(([*range(start, start + len(part)), *range(count + start, count + start + len(beside))], one))
        done = join_passes(parts) if len(parts) > 1 else parts[0][1]
        targets = self._means_of(f"{kind}target", moment)
        return measure_loss(done, targets, share, own, len(sources), preserve=bool(controls))

    def _pass(self, one: Pass, rows: Sequence[Row], moment: int) -> Pass:
        """Run some rows: at once, or in as many calls of the model as they cannot share."""
        groups = self.runs.groups(rows, moment)
        if len(groups) > 1:
            parts = []
            for group in groups:
                of_controls = [i - one.sources for i in group if i >= one.sources]
                clean = {site: part[of_controls] for site, part in one.clean.items()}
                part = Pass(one.steered, len(group) - len(of_controls), clean)
                parts.append((group, self._pass_at_once(part, [rows[i] for i in group], moment)))
            return join_passes(parts)
        return self._pass_at_once(one, rows, moment)

    def _pass_at_once(self, one: Pass, rows: Sequence[Row], moment: int) -> Pass:
        self.visitor.start(one)
        self.runs.run(rows, moment)
        missed = next((item.site for item in self.items if item.site not in one.means), None)
        if missed is not None:
            raise UnsupportedError(f"{missed} was not reached in training: choose other sites")
        return one

    def _unsteered(self, kind: str, rows: Sequence[int], moment: int, states: bool = False) -> Pass:
        """What prompts give unsteered: their means, or, of controls, all of it."""
        with torch.no_grad():
            return self._pass(Pass(None, 0 if states else len(rows)), [(kind, i) for i in rows], moment)

    def _read_clean(self, kind: str, rows: Sequence[int], moment: int) -> dict[Site, torch.Tensor]:
        return self._unsteered(kind, rows, moment, states=True).states

    def _means_of(self, kind: str, moment: int) -> dict[Site, torch.Tensor]:
        """The means of all prompts of a kind, unsteered; read once."""
        if (kind, moment) not in self._targets:
            parts: list[dict[Site, torch.Tensor]] = []
            for start in range(0, self.runs.counts[kind], self.settings.batch):
                rows = range(start, min(start + self.settings.batch, self.runs.counts[kind]))
                parts.append(self._unsteered(kind, rows, moment).means)
            self._targets[kind, moment] = {site: torch.cat([part[site] for part in parts]) for site in parts[0]}
        return self._targets[kind, moment]

    def _optimiser(self) -> torch.optim.Optimizer:
        parameters, rate = list(self.parameters.parameters()), self.settings.first_rate
        if self.settings.optimiser == "sgd":
            return torch.optim.SGD(parameters, rate, MOMENTUM)
        return torch.optim.AdamW(parameters, rate, BETAS, EPSILON, weight_decay=0.0)

    def _copy(self) -> dict[str, torch.Tensor]:
        return {name: part.detach().clone() for name, part in self.parameters.state_dict().items()}

    def _plan_memory(self) -> tuple[int, bool]:
        """How many bytes of activations a step keeps, and whether they are to be computed again instead."""
        counts = self.runs.counts
        there = [part for root in self.runs.roots.values() for part in root.parameters()]
        sources, controls = self._longest("source"), self._longest("control") if self.aims.gates else []
        with SavedTensors([*there, *self.parameters.parameters()]) as saved:
            self._measure(0, "", sources, controls)
        batch = min(self.settings.batch, max(counts["source"], counts["control"] if controls else 0))
        memory = saved.bytes * batch // len(sources)
        wanted = self.settings.checkpointing
        return memory, memory > SHARE_OF_MEMORY * free_memory(_device(self.runs.roots)) if wanted is None else wanted

    def _longest(self, kind: str) -> list[int]:
        """The two longest prompts of a kind for each process."""
        lengths = [self.runs.length((kind, i)) for i in range(self.runs.counts[kind])]
        return sorted(range(len(lengths)), key=lambda i: -lengths[i])[: 2 * self.share.processes]


def _device(roots: Roots) -> torch.device:
    """Where parameters go: to the model's, or to the CPU if all of it is offloaded."""
    devices = (part.device for root in roots.values() for part in root.parameters())
    return next((device for device in devices if device.type != "meta"), torch.device("cpu"))


def _check_counts(counts: Mapping[str, int], settings: TrainingSettings, processes: int) -> None:
    """Raise a PromptError where there are too few prompts of a side, or too few for each process to have one."""
    few = next((side for side in ("source", "target") if counts[side] < 2), None)
    if few is not None:
        raise PromptError(
            f"{few}: joint training compares distributions, and {counts[few]} prompt is none: give at least 2"
        )
    sources, held_out = counts["source"], counts[f"{HELD_OUT}source"]
    least = min(sources, held_out, settings.batch)
    if least < processes:
        raise PromptError(
            f"{processes} processes share {sources} source prompts, {held_out} that are held out, and batches of "
            f"{settings.batch}: start at most {least}, or give more prompts and a larger batch"
        )


def _choose(count: int, batch: int, random: torch.Generator) -> list[int]:
    """Indices of the prompts of a step: all, or as many as drawn."""
    return sorted(torch.randperm(count, generator=random)[:batch].tolist())
