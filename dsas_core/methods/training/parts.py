"""Maps and probes as parameters of a training, in units in which a step is as long in every dimension.

Dimensions of activations differ in their spread by orders of magnitude, and a slope about 0 moves the mean. So what is
trained is a slope about the mean of the rows, and a shift in standard deviations: T(x) = x + w (x - m) + b s, and
z = v . (x - m) / s + c. The map and the probe that come of it are ordinary ones.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ...errors import UnsupportedError
from ...maps import AffineMap, Map
from ...probes import LinearProbe, Probe, RectifiedProbe
from .optimal_transport import shrink, wasserstein

#: of the standard deviation of the dimension that varies most: what varies less counts as if it varied so
LEAST_SCALE = 1e-4
#: steps, and the first step size, of a map that is trained on rows of one site alone
STEPS, RATE = 600, 0.05
#: of Adam: a short memory of squared gradients, which fall by orders of magnitude
BETAS = (0.9, 0.9)
#: of Adam: gradients of quiet dimensions are that much smaller than those of loud ones
EPSILON = 1e-15


class Scale(nn.Module):
    """Where the rows are that are moved, and how far apart all are, dimension by dimension.

    Buffers of what is trained in them, so that an interrupted training goes on in the units that it began in.

    Args:
        source: [n, width], the rows that are moved.
        others: [m, width], those that they are moved to, or told from.

    Attributes:
        mean: [width], of the source.
        deviation: [width], of all; above 0.

    Example:
        >>> Scale(torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [6.0]])).mean
        tensor([1.])
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, source: torch.Tensor, others: torch.Tensor) -> None:
        super().__init__()
        deviation = torch.cat([source, others]).std(0, correction=0)
        largest = deviation.max()
        self.register_buffer("mean", source.mean(0))
        self.register_buffer(
            "deviation",
            deviation.clamp_min(LEAST_SCALE * largest) if bool(largest > 0) else torch.ones_like(deviation),
        )


class TrainedMap(nn.Module):
    """An affine map as parameters.

    Args:
        start: where training begins; without a slope, none is trained.
        scale: of the rows.

    Raises:
        UnsupportedError: a map that is not affine.

    Example:
        >>> trained = TrainedMap(AffineMap(torch.tensor([3.0])), Scale(torch.zeros(1, 1), torch.tensor([[4.0]])))
        >>> trained.offset, trained().shift
        (Parameter containing:
        tensor([1.5000], requires_grad=True), tensor([3.], grad_fn=<MulBackward0>))
    """

    def __init__(self, start: Map, scale: Scale) -> None:
        super().__init__()
        if not isinstance(start, AffineMap):
            raise UnsupportedError(
                f"mode joint trains affine maps, dimension by dimension, and this is a {type(start).__name__}: "
                "choose lineas, e2e-dsas, caa or linear-act"
            )
        self.scale = scale
        slope = None if start.slope is None else start.slope.to(scale.mean) - 1
        shift = start.shift.to(scale.mean) + (0 if slope is None else slope * scale.mean)
        self.offset = nn.Parameter(shift / scale.deviation)
        self.slope = None if slope is None else nn.Parameter(slope)

    def forward(self) -> AffineMap:
        shift = self.offset * self.scale.deviation
        if self.slope is None:
            return AffineMap(shift)
        return AffineMap(shift - self.slope * self.scale.mean, self.slope + 1)

    @torch.no_grad()
    def shrink(self, optimiser: torch.optim.Optimizer, rate: float, l1: float, group: float) -> None:
        """A proximal step of the sparse group lasso, see `optimal_transport.shrink`: each of the two is a group.

        With the step sizes that the optimiser has taken: where it scales gradients, penalties are scaled alike.
        """
        for parameter in self.parameters():
            parameter.copy_(shrink(parameter, step_sizes(optimiser, parameter, rate), l1, group))

    def moved_dimensions(self) -> int:
        """How many dimensions the map moves."""
        moved = self.offset != 0
        return int((moved if self.slope is None else moved | (self.slope != 0)).sum())


def step_sizes(optimiser: torch.optim.Optimizer, parameter: nn.Parameter, rate: float) -> torch.Tensor | float:
    """How far an optimiser goes for a gradient of 1: its rate, or that of each number where it scales them (Adam)."""
    state = optimiser.state.get(parameter, {})
    if "exp_avg_sq" not in state:
        return rate
    mean_square = state["exp_avg_sq"] / (1 - BETAS[1] ** float(state["step"]))
    return rate / (mean_square.sqrt() + EPSILON)  # type: ignore[no-any-return]


class TrainedProbe(nn.Module):
    """A probe of single positions as parameters.

    Args:
        start: where training begins, a `LinearProbe` or a `RectifiedProbe`.
        scale: of the rows.

    Raises:
        UnsupportedError: another kind of probe.

    Example:
        >>> probe = LinearProbe(torch.tensor([2.0]), torch.tensor(1.0))
        >>> TrainedProbe(probe, Scale(torch.zeros(1, 1), torch.ones(1, 1)))().bias.item()
        1.0
    """

    def __init__(self, start: Probe, scale: Scale) -> None:
        super().__init__()
        if not isinstance(start, LinearProbe | RectifiedProbe):
            raise UnsupportedError(
                f"gates are trained that read single positions, and this is a {type(start).__name__}: choose the gate "
                "e2e-dsas, or train the map alone (lineas)"
            )
        self.start, self.scale = start, scale
        weight = start.weight.to(scale.mean)
        self.weight = nn.Parameter(weight * scale.deviation)
        self.bias = nn.Parameter(start.bias.to(scale.mean) + weight @ scale.mean)

    def forward(self) -> LinearProbe | RectifiedProbe:
        weight = self.weight / self.scale.deviation
        return replace(self.start, weight=weight, bias=self.bias - weight @ self.scale.mean)


def train_on_rows(
    start: Map, source: torch.Tensor, target: torch.Tensor, l1: float = 0.0, group: float = 0.0
) -> AffineMap:
    """The affine map that takes source rows [n, width] nearest to target rows [m, width], of one site by itself.

    What joint training does where one site is all there is, and nothing lies between it and the rows.

    Args:
        start: where training begins.
        source: float64.
        target: float64.
        l1: see `optimal_transport.shrink`.
        group: likewise.
    """
    with torch.enable_grad(), torch.inference_mode(False):
        source, target = source.clone(), target.clone()
        trained = TrainedMap(start, Scale(source, target))
        first = wasserstein(source, target).mean().clamp_min(torch.finfo(source.dtype).tiny)
        optimiser = torch.optim.Adam(trained.parameters(), RATE, BETAS, EPSILON)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
        for _ in range(STEPS):
            optimiser.zero_grad()
            (wasserstein(trained().apply(source, 1.0), target).sum() / first).backward()  # type: ignore[no-untyped-call]
            rate = float(schedule.get_last_lr()[0])
            optimiser.step()
            if l1 or group:
                trained.shrink(optimiser, rate, l1, group)
            schedule.step()
        return trained().map_tensors(torch.Tensor.detach)
