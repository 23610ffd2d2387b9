"""Concepts stacked at a site: linear gates and affine maps of all of them in two products, however many there are.

    h = sigmoid(x Wᵀ + b)                        [positions, concepts]
    x' = x + (h s) V + x * ((h s) C)             V: shifts, C: slopes - 1, both times the site's weight

It is the equation of `interpolation` for maps that are linear in their strength, summed over concepts. What is not of
this form, and what has to be known concept by concept (a trace, a blend, gradients), goes by that one.

A stack is of the concepts that steer: those of strength 0 are in it only where a compiled graph must serve them later.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import torch

from ...concept.intervention import Intervention
from ...errors import ModelMismatchError, quote
from ...maps import AffineMap
from ...model.compilation import runs_compiled
from ...model.eager import at_hand
from ...model.hooks import Call
from ...model.sites import Site
from ...probes import ConstantProbe, LinearProbe
from ...utils.tensorclass import cast
from ..binding import BoundConcept, select_bins
from ..strengths import Strengths


class Layer(NamedTuple):
    """Interventions of some concepts at one site, in the current timestep bin; k of them.

    Args:
        site: the site.
        names: of the concepts.
        columns: their places among the concepts of the stack; None where they are all.
        weight: Wᵀ, [width, k]; None where h is 1, or a constant that is part of the maps.
        bias: b, [k].
        shift: V, [k, width].
        slope: C, [k, width]; None for 0.
    """

    site: Site
    names: tuple[str, ...]
    columns: torch.Tensor | None
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    shift: torch.Tensor
    slope: torch.Tensor | None

    def move(self, out: torch.Tensor, x: torch.Tensor, doses: Doses, mask: torch.Tensor | None) -> torch.Tensor:
        """What was made of an activation so far, moved by these concepts.

        Args:
            out: [batch, positions, width].
            x: the incoming activation, of the same shape and dtype, at least float32.
            doses: of the call.
            mask: float [batch, positions], 1 for positions that count; None for all.
        """
        width = self.shift.shape[-1]
        if x.shape[-1] != width:
            raise ModelMismatchError(
                f"concept {quote(self.names[0])} is {width} wide at {self.site}, and this model's activation there has "
                f"{x.shape[-1]} channels: use it on the model that it was learned on"
            )
        share, live = doses.at(self, x, mask)
        if share is None:
            return out
        wide = x.reshape(-1, width)
        if self.weight is not None and self.bias is not None:
            share = torch.addmm(_like(self.bias, x), wide, _like(self.weight, x)).sigmoid_().mul_(share)
        shift = _like(self.shift, x)
        if out.is_contiguous():
            moved = torch.addmm(out.view(-1, width), share, shift).view(out.shape)
        else:  # in the layout of the activation, by which convolutions choose how they round
            moved = out + (share @ shift).view(out.shape)
        if self.slope is not None:
            factor = (share @ _like(self.slope, x)).view(out.shape)
            moved = moved + (factor * x).masked_fill_(factor == 0, 0)  # 0 times infinity is not 0
        return moved if live is None else torch.where(live.view(*out.shape[:-1], 1), moved, out)


def _like(part: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return cast(part, x.dtype) if part.device == x.device else part.to(x)


class Doses:
    """The map strengths of a call by row and concept, and by position where that is asked for.

    Args:
        values: float32 [batch, concepts].
    """

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values
        self._kept: dict[object, tuple[torch.Tensor | None, torch.Tensor | None]] = {}

    def at(
        self, layer: Layer, x: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The strengths at the positions of an activation, computed once for all sites that have the same.

        Args:
            layer: where.
            x: the activation [batch, positions, width].
            mask: float [batch, positions], 1 for positions that count; None for all.

        Returns:
            The strengths [batch * positions, k], None where all are 0; and where any is not, bool [batch * positions,
            1], None for everywhere.
        """
        if torch.compiler.is_compiling():
            return self._at(layer, x, mask)
        key = id(layer.columns), x.shape[1], x.dtype, x.device, layer.site.tokens, layer.site.stream
        kept = self._kept.get(key)
        if kept is None:
            share, live = self._at(layer, x, mask)
            kept = share, live
            if at_hand(live):  # elsewhere it would have to be waited for
                kept = (share, None) if bool(live.all()) else (share, live) if bool(live.any()) else (None, None)
            self._kept[key] = kept
        return kept

    def _at(self, layer: Layer, x: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        values = self.values if layer.columns is None else self.values.index_select(1, layer.columns)
        share = values.to(x.device, x.dtype)[:, None].expand(-1, x.shape[1], -1)
        share = share if mask is None else share * mask[..., None].to(share)
        share = share.reshape(-1, share.shape[-1])
        return share, (share != 0).any(1, keepdim=True)


class Stack:
    """What is stackable of some concepts in one root.

    Args:
        concepts: those that are stacked.
        root: its name.

    Attributes:
        concepts: in the order of their doses.
        names: theirs.
        layers: site -> the interventions there.
    """

    def __init__(self, concepts: Sequence[BoundConcept], root: str) -> None:
        self.names, self.concepts = tuple(concept.name for concept in concepts), concepts
        found: dict[tuple[tuple[float, ...], bool], dict[tuple[Site, int], list[_Item]]] = {}
        for column, concept in enumerate(concepts):
            for item in concept.stackable.values():
                if item.site.root == root and not _is_silent(item):
                    is_constant = isinstance(item.probes[0], ConstantProbe)
                    place = item.site, item.maps[0].shift.numel()  # type: ignore[attr-defined]  # of an affine map
                    group = found.setdefault((concept.edges, is_constant), {})
                    group.setdefault(place, []).append(_Item(column, concept.name, item))
        self._groups = [_Group(edges, places) for (edges, _), places in found.items()]
        self.layers: dict[Site, list[Layer]] = {}
        self._device: torch.device | None = None

    def leaves(self, concept: BoundConcept, numbers: Sequence[int]) -> Sequence[int]:
        """Those of some interventions of a concept, by number, that are not stacked."""
        return [i for i in numbers if i not in concept.stackable] if concept.name in self.names else numbers

    def begin(self, call: Call) -> None:
        """Before a call of the root: bring what is stacked to its device and timestep bin."""
        if self._device != call.steered.device:
            self._device = call.steered.device
            self.layers = {}
            # one tensor for all layers of the same concepts, by which `Doses` knows that they have the same strengths
            columns: dict[tuple[int, ...], torch.Tensor | None] = {tuple(range(len(self.names))): None}
            for group in self._groups:
                group.place(self._device, self.layers, columns)
        for group in self._groups:
            group.select_bin(call.timestep)


class Selection(NamedTuple):
    """What steers the calls of a root.

    Args:
        stack: what is computed together; None for nothing.
        apart: the concepts that are computed, or have parts that are, by themselves.
    """

    stack: Stack | None
    apart: Sequence[BoundConcept]


class StackChoice:
    """Chooses what is computed together: a stack of all that steers, which lasts until other concepts do.

    Concepts of strength 0 rest, at no cost, unless a compiled graph must serve them later.

    Args:
        concepts: the attached concepts.
        strengths: of the user.

    Attributes:
        compiled: tells whether the call that begins may be of a compiled graph.
    """

    def __init__(self, concepts: Sequence[BoundConcept], strengths: Strengths) -> None:
        self._concepts, self._strengths = concepts, strengths
        self.compiled: Callable[[], bool] = runs_compiled
        self._resting: tuple[tuple[int, bool], frozenset[str]] = (-1, False), frozenset()
        self._chosen: dict[str, tuple[tuple[int, frozenset[str]], Selection]] = {}  # by root, with what it is for

    def choose(self, root: str, *, disabled: bool) -> Selection:
        """What steers a call of a root that begins; `disabled` lets all strengths count as 0."""
        changes = self._strengths.changes
        if self._resting[0] != (changes, disabled):
            self._resting = (
                (changes, disabled),
                frozenset(
                    concept.name
                    for concept in self._concepts
                    if concept.can_rest and (disabled or not bool(self._strengths.values_of(concept.name).any()))
                ),
            )
        resting = self._resting[1]
        if resting and self.compiled():
            resting = frozenset()
        known = self._chosen.get(root)
        if known is None or known[0] != (changes, resting):
            stack = None if known is None else known[1].stack
            known = self._chosen[root] = (changes, resting), self._select(root, resting, stack)
        return known[1]

    def _select(self, root: str, resting: Collection[str], before: Stack | None) -> Selection:
        """A selection, with the stack before where that is of the same concepts."""
        working = [concept for concept in self._concepts if concept.name not in resting]
        stacked = [c for c in working if c.stackable and self._strengths.auto_of(c.name) is None]
        names = tuple(concept.name for concept in stacked)
        stack = before if before is not None and before.names == names else Stack(stacked, root) if stacked else None
        whole = {concept.name for concept in stacked if len(concept.stackable) == len(concept.entries)}
        return Selection(stack, [concept for concept in working if concept.name not in whole])


class _Item(NamedTuple):
    column: int
    concept: str
    intervention: Intervention


class _Group:
    """Stackable interventions that share timestep bins and a kind of gate, all their numbers in one tensor.

    Args:
        edges: of the bins.
        places: by site and width.
    """

    def __init__(self, edges: tuple[float, ...], places: dict[tuple[Site, int], list[_Item]]) -> None:
        self.edges, self._places = edges, places
        with torch.inference_mode(False):
            bins = [
                torch.cat([part for items in places.values() for part in _flatten(items, i)])
                for i in range(len(edges) + 1)
            ]
            self._bins = torch.stack(bins)
            self._live = self._bins[0].clone()

    def place(
        self,
        device: torch.device,
        layers: dict[Site, list[Layer]],
        columns: dict[tuple[int, ...], torch.Tensor | None],
    ) -> None:
        """Add the layers, as views of what is live, on a device; `columns` has the tensors of concepts so far."""
        with torch.inference_mode(False):
            self._bins, self._live = self._bins.to(device), self._live.to(device)
            start = 0
            for (site, width), items in self._places.items():
                k, (gated, sloped) = len(items), _kinds(items)
                sizes = [k * width * gated, k * gated, k * width, k * width * sloped]
                weight, bias, shift, slope = self._live[start : start + sum(sizes)].split(sizes)
                start += sum(sizes)
                among = tuple(item.column for item in items)
                if among not in columns:
                    columns[among] = torch.tensor(among, device=device)
                layer = Layer(
                    site=site,
                    names=tuple(item.concept for item in items),
                    columns=columns[among],
                    weight=weight.view(k, width).t() if gated else None,
                    bias=bias if gated else None,
                    shift=shift.view(k, width),
                    slope=slope.view(k, width) if sloped else None,
                )
                layers.setdefault(site, []).append(layer)

    def select_bin(self, timestep: torch.Tensor | None) -> None:
        """Make the numbers of a timestep's bin the live ones, in place."""
        if self.edges:
            self._live.copy_(select_bins(self._bins, timestep, self.edges))


def _is_silent(item: Intervention) -> bool:
    """Whether h is 0 in all bins."""
    return not any(
        weight and not (isinstance(probe, ConstantProbe) and probe.value == 0)
        for weight, probe in zip(item.weights, item.probes, strict=True)
    )


def _kinds(items: Sequence[_Item]) -> tuple[bool, bool]:
    """Whether the gates of a layer read, and whether any of its maps has a slope."""
    gated = isinstance(items[0].intervention.probes[0], LinearProbe)
    return gated, any(item.intervention.maps[0].slope is not None for item in items)  # type: ignore[attr-defined]


def _flatten(items: Sequence[_Item], bin_: int) -> list[torch.Tensor]:
    """The numbers of a layer in a bin, in the order in which `_Group.place` reads them."""
    gated, sloped = _kinds(items)
    weights, biases, shifts, slopes = [], [], [], []
    for _, _, item in items:
        probe, transform, factor = item.probes[bin_], item.maps[bin_], item.weights[bin_]
        assert isinstance(transform, AffineMap)
        if isinstance(probe, LinearProbe):
            weights.append(probe.weight)
            biases.append(probe.bias[None])
        else:
            factor = factor * float(probe.value)  # type: ignore[attr-defined]  # of a constant probe
        shifts.append(transform.shift * factor)
        if sloped:
            slope = transform.slope
            slopes.append(torch.zeros_like(transform.shift) if slope is None else (slope - 1) * factor)
    return [part.float() for part in (*weights, *biases, *shifts, *slopes)]
