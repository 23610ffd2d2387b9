"""Capture: the visitor that keeps what fitting needs, means over positions and sampled positions, per site and bin."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field

import torch

from ..concept.intervention import bin_of
from ..concept.schema import TIMESTEPS
from ..errors import DSASError, quote
from ..model.hooks import Call
from ..model.sites import Site
from ..probes.combine import pool
from ..utils.numbers import accepts, number

#: site, timestep bin, kind of prompt
Key = tuple[Site, int, str]
#: (index of a prompt, number of positions of the longest row of a site) -> whether each position shows the concept
LabelPositions = Callable[[int, int], Sequence[bool]]
#: (kind of prompt, index of a prompt, number of positions) -> whether each is a word of the prompt
FindWords = Callable[[str, int, int], Sequence[bool]]


def check_edges(edges: Sequence[float]) -> tuple[float, ...]:
    """Timesteps that separate bins, as they are given.

    Raises:
        DSASError: no numbers, not between 0 and 1000, or not ascending.

    Example:
        >>> check_edges([300, 700.0])
        (300, 700.0)
    """
    is_list = isinstance(edges, Sequence) and not isinstance(edges, str)
    valid = is_list and all(accepts("timestep", edge) and 0 < edge < TIMESTEPS for edge in edges)
    if not valid or list(edges) != sorted(set(edges)):
        raise DSASError(
            f"timestep edges {quote(edges)}: expected ascending numbers, each once, between 0 and {TIMESTEPS:g}"
        )
    return tuple(edges)


def is_timeless(site: Site, roots: Container[str]) -> bool:
    """Whether activations at a site are the same at every timestep: of text encoders, or the prompt's embeddings.

    Args:
        site: where they are read.
        roots: those that run without timesteps.

    Example:
        >>> given = Site("unet", side="input", argument="encoder_hidden_states")
        >>> is_timeless(given, set()), is_timeless(Site("unet.mid"), set())
        (True, False)
    """
    return bool(site.argument) or site.root in roots


@dataclass
class Activations:
    """Activations of one site, one timestep bin and one kind of prompt, float32; a tensor for each forward pass.

    Args:
        pooled: means over positions, [n, width].
        prompts: index of the prompt of each mean, [n].
        positions: sampled positions, [m, width].
        position_prompts: index of the prompt of each sampled position, [m].
        places: index of each sampled position in its picture or text, [m].
        labels: whether each sampled position shows the concept, bool [m]; empty until `Capture.mark` is called.
        count: number of positions of the longest row.

    Example:
        >>> Activations(pooled=[torch.ones(2, 3), torch.zeros(1, 3)]).gathered("pooled").shape
        torch.Size([3, 3])
    """

    pooled: list[torch.Tensor] = field(default_factory=list)
    prompts: list[torch.Tensor] = field(default_factory=list)
    positions: list[torch.Tensor] = field(default_factory=list)
    position_prompts: list[torch.Tensor] = field(default_factory=list)
    places: list[torch.Tensor] = field(default_factory=list)
    labels: list[torch.Tensor] = field(default_factory=list)
    count: int = 0

    def gathered(self, name: str) -> torch.Tensor:
        """One field of all forward passes, concatenated."""
        return torch.cat(getattr(self, name))

    def sort(self) -> None:
        """Bring all that was captured into the order of the prompts, as one tensor a field; before `mark`."""
        for key, names in (("prompts", ("pooled",)), ("position_prompts", ("positions", "places"))):
            if getattr(self, key):
                order = self.gathered(key).argsort(stable=True)
                for name in (*names, key):
                    setattr(self, name, [self.gathered(name)[order]])

    @property
    def sampled(self) -> list[int]:
        """How many positions were sampled from each row, in the order of `pooled`."""
        counts = []
        for prompts in self.position_prompts:
            changes = (prompts.diff() != 0).nonzero().flatten() + 1
            counts += [len(row) for row in prompts.tensor_split(changes.tolist())]
        return counts

    def mark(self, label_positions: LabelPositions) -> None:
        """Set the labels of the sampled positions."""
        labels = {i: label_positions(i, self.count) for i in self.gathered("prompts").unique().tolist()}
        self.labels = [
            torch.tensor([bool(labels[i][place]) for i, place in zip(prompts.tolist(), places.tolist(), strict=True)])
            for prompts, places in zip(self.position_prompts, self.places, strict=True)
        ]


class Capture:
    """Keep the activations of steered rows (the conditional branch) while prompts go through the model.

    Call `start(kind)` before the prompts of each kind, and set `offset` to the index of a batch's first prompt, or
    call `at` with it, or `choose` where the prompts of a batch do not follow one another. `rows` maps (site, bin, kind)
    to `Activations`.

    Args:
        edges: ascending timesteps that separate the bins.
        positions_per_row: how many positions to sample from each row of each forward pass; 0 keeps means only.
        seed: of the sampling.
        find_words: where the words of prompts are in their embeddings, which are sampled before padding; None for not
            knowing it.

    Raises:
        DSASError: edges that do not ascend.

    Example:
        >>> capture, site = Capture(positions_per_row=2), Site("unet.mid")
        >>> capture.start("source")
        >>> capture.begin("unet", Call(torch.ones(1), torch.arange(1)))
        >>> capture.visit(site, torch.tensor([[[1.0], [3.0]]]))  # one row of two positions
        >>> capture.rows[site, 0, "source"].gathered("pooled")
        tensor([[2.]])
    """

    def __init__(
        self,
        edges: Sequence[float] = (),
        positions_per_row: int = 32,
        seed: int = 0,
        find_words: FindWords | None = None,
    ) -> None:
        self.edges = check_edges(edges)
        self.seed = number("seed", seed)
        self.positions_per_row, self.find_words = positions_per_row, find_words
        self.kind = ""
        self.offset = 0
        self._chosen: torch.Tensor | None = None
        self.timeless: set[str] = set()  # roots that run without timesteps have one bin
        self.rows: dict[Key, Activations] = defaultdict(Activations)
        self._random = torch.Generator()
        self._calls: dict[str, tuple[Call, int]] = {}

    def start(self, kind: str) -> None:
        """Begin a kind of prompts with its first prompt. The same places are sampled for every kind."""
        self.kind, self.offset, self._chosen = kind, 0, None
        self._random.manual_seed(self.seed)

    def at(self, offset: int) -> None:
        """Begin a batch at this prompt of its kind; the places sampled do not depend on the batches before."""
        self.offset, self._chosen = offset, None
        self._random.manual_seed((self.seed * 1_000_003 + offset) % 2**63)

    def choose(self, prompts: Sequence[int]) -> None:
        """Begin a batch of any prompts of the kind; the places sampled in each do not depend on the others, or on pads.

        Args:
            prompts: the index of each of the batch's prompts.
        """
        self._chosen = torch.tensor(prompts)

    def absorb(self, other: Capture) -> None:
        """Take over what another capture holds of other kinds, sites or bins."""
        self.rows.update(other.rows)
        self.timeless |= other.timeless

    def mark(self, kind: str, label_positions: LabelPositions) -> None:
        """Label the sampled positions of a kind."""
        for (_, _, row_kind), rows in self.rows.items():
            if row_kind == kind:
                rows.mark(label_positions)

    def begin(self, root: str, call: Call) -> None:
        if call.timestep is None:
            self.timeless.add(root)
        self._calls[root] = call, int(bin_of(call.timestep, self.edges))

    def visit(self, site: Site, x: torch.Tensor) -> None:
        call, bin_ = self._calls[site.root]
        call.check_rows(site, len(x))
        keep = call.steered.to(x.device) > 0
        if not bool(keep.any()):
            return
        mask = call.position_mask(site, x.shape[1])
        mask = None if mask is None else mask.to(x.device)[keep]
        x = x.detach()[keep].float()
        prompts = call.prompts.cpu()[keep.cpu()]
        prompts = prompts + self.offset if self._chosen is None else self._chosen[prompts]
        rows = self.rows[site, 0 if site.argument else bin_, self.kind]
        if site.argument and rows.prompts and torch.equal(rows.prompts[-1], prompts):
            return  # a later step, of the same embeddings
        rows.pooled.append(pool(x, mask)[:, 0].cpu())
        rows.prompts.append(prompts)
        if self.positions_per_row:
            first = self.find_words if site.argument else None
            self._sample(rows, x, mask, prompts, first)

    def _sample(
        self,
        rows: Activations,
        x: torch.Tensor,
        mask: torch.Tensor | None,
        prompts: torch.Tensor,
        find_words: FindWords | None,
    ) -> None:
        batch, count, _ = x.shape
        rows.count = max(rows.count, count)
        order = self._draw(prompts, count)
        if find_words is not None:
            order += torch.tensor([find_words(self.kind, prompt, count) for prompt in prompts.tolist()])
        if mask is not None:
            order = order.masked_fill(mask.cpu() == 0, -1)
        chosen = order.topk(min(self.positions_per_row, count), dim=1)
        places, real = chosen.indices, chosen.values >= 0
        if self._chosen is not None:  # in order, whatever the padding
            places = places.masked_fill(~real, count).sort(1).values
            real, places = places < count, places.clamp_max(count - 1)
        elif bool(real.all()):
            places = places.sort(1).values
        taken = x.gather(1, places.to(x.device)[..., None].expand(-1, -1, x.shape[-1])).cpu()
        rows.positions.append(taken[real])
        rows.position_prompts.append(prompts[:, None].expand_as(places)[real])
        rows.places.append(places[real])

    def _draw(self, prompts: torch.Tensor, count: int) -> torch.Tensor:
        """A random number for each position, [rows, count]: the highest are sampled."""
        if self._chosen is None:
            return torch.rand((len(prompts), count), generator=self._random)
        drawn = torch.empty(len(prompts), count)
        for row, prompt in zip(drawn, prompts.tolist(), strict=True):
            self._random.manual_seed(self.seed * 1_000_003 + prompt)
            row.copy_(torch.rand(count, generator=self._random))  # a longer row begins with the same numbers
        return drawn
