"""The visitor of joint training: steers with maps and gates that are parameters, and keeps what the loss is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ...concept.intervention import bin_of
from ...errors import UnsupportedError
from ...maps import AffineMap
from ...model.early_exit import Stopper
from ...model.hooks import Call
from ...model.sites import Site
from ...probes import Probe
from ...probes.combine import pool
from ...steering.interpolation import displace
from ...utils.tensorclass import cast, compute_dtype


@dataclass(frozen=True)
class SteeredSite:
    """The map and the gate of a site in each timestep bin; no gate where the map is trained always on.

    Args:
        maps: one for each bin.
        probes: likewise; None for h = 1.
        weights: likewise.
    """

    maps: Sequence[AffineMap]
    probes: Sequence[Probe | None]
    weights: Sequence[float]


@dataclass(eq=False)
class Pass:
    """One forward pass, and what it left for the loss.

    Args:
        steered: map and gate of each site; None for an unsteered pass.
        sources: how many of the rows are read for their means; the others are controls.
        clean: what an unsteered pass left of the same controls.

    Attributes:
        means: of each site, the means over positions of the first rows, after steering.
        states: the activations of controls, unsteered; detached.
        moved: of how far positions of controls moved, the sum of mean squares over dimensions, and their number: [2].
    """

    steered: Mapping[Site, SteeredSite] | None
    sources: int
    clean: Mapping[Site, torch.Tensor] = field(default_factory=dict)
    means: dict[Site, torch.Tensor] = field(default_factory=dict)
    states: dict[Site, torch.Tensor] = field(default_factory=dict)
    moved: dict[Site, torch.Tensor] = field(default_factory=dict)


def join_passes(parts: Sequence[tuple[Sequence[int], Pass]]) -> Pass:
    """One pass of the rows of several, each with the places of its rows among all, of which sources are the first.

    The ends of controls with fewer positions than others are zeros.
    """
    sources = [place for rows, one in parts for place in rows[: one.sources]]
    controls = [place for rows, one in parts for place in rows[one.sources :]]
    whole = Pass(parts[0][1].steered, len(sources))

    def ordered(found: Sequence[torch.Tensor], places: Sequence[int]) -> list[torch.Tensor]:
        rows = [row for tensor in found for row in tensor]
        return [rows[i] for i in sorted(range(len(rows)), key=places.__getitem__)]

    for site in parts[0][1].means:
        whole.means[site] = torch.stack(ordered([one.means[site] for _, one in parts], sources))
        if states := [one.states[site] for _, one in parts if site in one.states]:
            whole.states[site] = torch.nn.utils.rnn.pad_sequence(ordered(states, controls), batch_first=True)
        if moved := [one.moved[site] for _, one in parts if site in one.moved]:
            whole.moved[site] = torch.stack(moved).sum(0)
    return whole


class JointVisitor:
    """Steers what passes the sites, and keeps means of source rows and changes of control rows.

    It ends a forward pass at the last site, unless a checkpoint is not to be left halfway (`stopper.active`).

    Args:
        sites: all that it visits.
        edges: ascending timesteps that separate bins.

    Attributes:
        current: the pass that is run.
        bin: the timestep bin of the last call.
        counted: how much each position counts in the mean of its row, float [rows, positions]; None for the mask of the
            call.
    """

    def __init__(self, sites: Sequence[Site], edges: Sequence[float]) -> None:
        self.edges, self.stopper = tuple(edges), Stopper(sites)
        self.current = Pass({}, 0)
        self.counted: torch.Tensor | None = None
        self._call: Call | None = None
        self.bin = 0

    def start(self, one: Pass) -> None:
        """Before a forward pass."""
        self.current = one
        self.stopper.restart()

    def begin(self, root: str, call: Call) -> None:
        if not _computes_again():
            self._call, self.bin = call, int(bin_of(call.timestep, self.edges))

    def visit(self, site: Site, x: torch.Tensor) -> torch.Tensor | None:
        call, now = self._call, self.current
        assert call is not None
        call.check_rows(site, len(x))
        mask = call.position_mask(site, x.shape[1])
        mask = None if mask is None else mask.to(x.device)
        out = x
        if now.steered is not None:
            out = self._steer(now.steered[site], x, call, mask)
        counted = self.counted if self.counted is not None else mask
        if counted is not None and counted.shape[1] != x.shape[1]:
            raise UnsupportedError(f"{site} has {x.shape[1]} positions, and {counted.shape[1]} are known by what shows")
        mean = pool(out[: now.sources], None if counted is None else counted[: now.sources].to(x.device))[:, 0]
        controls = out[now.sources :]
        moved = None
        if len(controls) and now.steered is not None:
            moved = _squares(controls, now.clean[site], None if mask is None else mask[now.sources :])
        if not _computes_again():  # what a checkpoint computes again is the same, and kept already
            now.means[site] = mean
            if moved is not None:
                now.moved[site] = moved
            elif len(controls):
                now.states[site] = controls.detach()
            self.stopper.visit(site, x)
        return None if now.steered is None else out

    def _steer(self, part: SteeredSite, x: torch.Tensor, call: Call, mask: torch.Tensor | None) -> torch.Tensor:
        """The steered activation at strength 1."""
        probe, transform = (_on(x.device, one[self.bin]) for one in (part.probes, part.maps))
        h = call.steered.to(x.device)[:, None, None]
        if probe is not None:
            h = h * probe.score(x, mask) * part.weights[self.bin]
        if mask is not None:
            h = h * mask[..., None]
        wide = cast(x, compute_dtype(x))
        return cast(displace(wide, transform.displacement(wide), h), x.dtype)


def _on(device: torch.device, part: Any) -> Any:
    """A probe or a map where a site is, of a model that is spread over several devices; None stays None."""
    if part is None or all(tensor.device == device for tensor in part.tensors()):
        return part
    return part.map_tensors(lambda tensor: tensor.to(device))


def _squares(moved: torch.Tensor, clean: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Sum over positions that count of the mean squared difference over dimensions, and their number: [2].

    Where other rows are longer, one of both has more padding at its end.
    """
    dtype, count = compute_dtype(moved), min(moved.shape[1], clean.shape[1])
    moved, clean, mask = moved[:, :count], clean[:, :count], None if mask is None else mask[:, :count]
    # a loss of torch keeps what it is of, and not the difference
    squares = nn.functional.mse_loss(moved.to(dtype), clean.to(moved.device, dtype), reduction="none").mean(-1)
    mask = torch.ones_like(squares) if mask is None else mask.to(squares)
    return torch.stack([(squares * mask).sum(), mask.sum()])


def _computes_again() -> bool:
    """Whether this is in a backward pass, where a checkpoint computes its part of the forward pass again."""
    return torch._C._current_graph_task_id() != -1
