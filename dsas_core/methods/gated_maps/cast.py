"""CAST, conditional activation steering: T(x; s) = x + s * v, where the prompt fulfils a condition.

    h = 1 where sim(x) is above (or below) a threshold, sim(x) = cos(x, tanh(c c^T x / c^T c)), x the prompt's mean.

Lee et al., "Programming Refusal with Conditional Activation Steering", arXiv 2409.05907; released code. Both vectors
are first principal components of pairs centred on their middle, v of source and target, c of source and control; v
points to the target in the majority of pairs. Its `length` is "apart", the distance between the means along it, so that
a strength of 1 moves all the way, or "unit", 1, where the strength is the length, as published. Every source row is
paired with every row of the other side, as in the paper, so numbers of rows may differ. Of all pairs the component is
the first eigenvector of Cov(source) + Cov(other) + d d^T, d the mean difference, so no pair has to be formed.

Threshold and side are those of the highest F1 on the rows that c was fitted on. The paper searches 0 to 0.06 in steps
of 0.0001, which suits its models; here every threshold that divides the rows differently, of equal ones the one with
the widest gap. The condition is read once per row: in texts on the mean over the prompt's tokens, and v is added from
the prompt's last token on (form "latch"; the released code lets the first row of a batch decide for all); in pictures
on the mean over the positions of the call. `learn` reads it at one site of each root, and steers that site and later
ones: of the first half of the sites, in the order in which they are computed, the one that separates source from
control best. Earlier sites are not steered, as they are computed before the condition is read. In a combination each
site has a condition of its own.

Traps: the first component is where rows vary most, which is the concept only where nothing varies more (the paper's
reviewers ask why not a classifier). c and -c are the same condition. No norm clamp, which the released code has.
"""

from __future__ import annotations

import torch

from ...maps import AffineMap
from ...probes import ConditionLatch, ConditionProbe, PooledConditionProbe, Probe
from ..base.gate import Gate
from ..base.map_method import MapMethod, one_of
from ..base.traits import GateTraits, MapTraits


class CAST(MapMethod):
    """The behaviour vector. Option `length`, see above.

    Example:
        >>> source, target = torch.tensor([[0.0, 0.0], [0.0, 1.0]]), torch.tensor([[8.0, 0.0], [8.0, 1.0]])
        >>> CAST().fit(source, target).shift.round()
        tensor([8., 0.])
    """

    traits = MapTraits(
        "add the first component of source against target, where the prompt meets a condition (arXiv 2409.05907)",
        default_gate="cast",
    )
    options = {"length": one_of("apart", "unit")}

    def _fit(self, source: torch.Tensor, target: torch.Tensor, *, length: str) -> AffineMap:
        component = first_component(source, target)
        along_target, along_source = target @ component, (source @ component).sort().values
        larger = torch.searchsorted(along_source, along_target).double().mean() / len(source)  # share of pairs
        shift = component if larger >= 0.5 else -component
        return AffineMap(shift if length == "unit" else shift * (along_target.mean() - along_source.mean()).abs())


class Condition(Gate):
    """The condition: one decision per row.

    Example:
        >>> source, control = torch.tensor([[4.0, 1.0], [5.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, 2.0]])
        >>> probe = Condition().fit(source, control)
        >>> [probe.score(rows)[:, 0].tolist() for rows in (source, control)]
        [[1.0, 1.0], [0.0, 0.0]]
    """

    traits = GateTraits(
        "one decision per prompt: cosine to its projection on a first component, against a threshold",
        fitted_on="pooled",
        uses_other_positions=True,
        per_prompt=True,
        text_form="latch",
        fixed_threshold=True,
    )

    def in_form(self, probe: ConditionProbe, form: str) -> Probe:
        return ConditionLatch(probe) if form == "latch" else PooledConditionProbe(probe)

    def _fit(self, source: torch.Tensor, control: torch.Tensor) -> ConditionProbe:
        zero, above = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
        probe = ConditionProbe(first_component(source, control), zero, above)
        threshold, side = best_threshold(*(probe.similarity(rows)[:, 0] for rows in (source, control)))
        return ConditionProbe(probe.direction, threshold, side)


def first_component(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """First principal component of all pairs of rows, each pair centred on its middle.

    Args:
        first: [n, width].
        second: [m, width].

    Returns:
        [width], of length 1, of either sign.

    Example:
        >>> first_component(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])).abs()
        tensor([1., 0.])
    """
    difference = (first.mean(0) - second.mean(0))[None]
    within = [(rows - rows.mean(0)) / len(rows) ** 0.5 for rows in (first, second)]
    vectors: torch.Tensor = torch.linalg.svd(torch.cat([*within, difference]), full_matrices=False).Vh
    return vectors[0]


def best_threshold(source: torch.Tensor, control: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The threshold of the highest F1, in the middle between two values; of equal ones, in the widest gap.

    Args:
        source: values that are to be on its side, [n].
        control: values that are not, [m].

    Returns:
        The threshold [], and the side []: 1 above, -1 below.

    Example:
        >>> best_threshold(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 1.0]))
        (tensor(2.), tensor(1., dtype=torch.float64))
    """
    values, order = torch.cat([source, control]).sort()
    hits = (order < len(source)).double()
    below, gap = hits.cumsum(0)[:-1], values.diff()
    count = torch.arange(1, len(values), dtype=torch.float64)
    candidates = []
    for side, true, fired in ((1.0, len(source) - below, len(values) - count), (-1.0, below, count)):
        f1 = torch.where(gap > 0, 2 * true / (fired + len(source)), 0.0)
        place = int(torch.where(f1 >= f1.max() - 1e-12, gap, -1.0).argmax())
        candidates.append((float(f1[place]), float(gap[place]), (values[place] + values[place + 1]) / 2, side))
    _, _, threshold, side = max(candidates, key=lambda candidate: candidate[:2])
    return threshold, torch.tensor(side, dtype=torch.float64)
