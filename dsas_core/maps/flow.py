"""Flow maps: a velocity network carries an activation along, for a time that is the strength (FLAS, arXiv 2605.05892).

    Φ_T(x) = x + ∫ v(Φ_t(x), t, c) dt from 0 to T,     T = 2 · strength,     v(h, t, c) = block(h, t, c) - h,

by N steps of Euler's method. The block adds an embedding of the time t, attends to the tokens of the concept c, then
to the earlier positions of the text, and ends with a gated MLP, each with norms around it and a factor per channel. The
keys and values of the concept are in the map; those of the text are its state, one pair for each Euler step, as each
step reads other activations.

A gate may either interpolate the two ends of the way, as that of any other map, or be a factor on the time, so that the
activation stays on the way that was learned, which is curved: field `by_time`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from torch.nn import functional

from ..utils.tensorclass import Holds, TensorClass, cast
from .attention import Positions, attend, collect, normalise, project, rotate
from .running import RunningMap, State

#: flow time of strength 1: the longest that networks are trained on
TIME_OF_STRENGTH = 2.0
#: the longest wave of the embedding of the time, over 2π
LONGEST_WAVE = 10_000.0
#: largest number in a tensor: with larger ones, products of gates, values and activations overflow float32
LARGEST = 1e4
#: names of activation functions, as configs of transformers have them
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
}

OfWidth = Annotated[torch.Tensor, Holds("width", high=LARGEST)]
HeadVector = Annotated[torch.Tensor, Holds("head", high=LARGEST)]
ToHeads = Annotated[torch.Tensor, Holds("heads head width", high=LARGEST)]
ToQueries = Annotated[torch.Tensor, Holds("heads groups head width", high=LARGEST)]
FromQueries = Annotated[torch.Tensor, Holds("width heads groups head", high=LARGEST)]
QueryBias = Annotated[torch.Tensor, Holds("heads groups head", high=LARGEST)]
KeyBias = Annotated[torch.Tensor, Holds("heads head", high=LARGEST)]
OfConcept = Annotated[torch.Tensor, Holds("heads tokens head", high=LARGEST)]
#: the number below a root of a norm; the factor on the products of queries and keys; the bound on them
Epsilon = Annotated[float, Holds(high=1.0, low=0.0)]
Scale = Annotated[float, Holds(high=1e3, low=1e-6)]
SoftCap = Annotated[float, Holds(high=1e6, low=1e-3)]


@dataclass(frozen=True, eq=False)
class ConceptAttention(TensorClass, kind="flow-concept"):
    """Attention of activations to the tokens of a concept, whose keys and values are computed once.

    Args:
        before: scale of the norm before it.
        query: projection to queries; `heads` are those of keys, each with several (`groups`) of queries.
        query_norm: scale of the norm of queries.
        keys: of the concept's tokens, normed and rotated.
        values: of the concept's tokens.
        output: projection from heads.
        after: scale of the norm after it.
        factor: on what it adds, by channel.
        frequencies: of the rotary embedding.
        query_bias: or None.
        output_bias: or None.
        hidden: 1 for tokens that are padding; only in training, where concepts share a batch.
        length: factor on rotated vectors.
        cap: bound on the products of queries and keys; None for none.
        epsilon: of norms.
    """

    before: OfWidth
    query: ToQueries
    query_norm: HeadVector
    keys: OfConcept
    values: OfConcept
    output: FromQueries
    after: OfWidth
    factor: OfWidth
    frequencies: HeadVector
    query_bias: QueryBias | None = None
    output_bias: OfWidth | None = None
    hidden: Annotated[torch.Tensor, Holds("tokens", high=1.0, low=0.0)] | None = None
    length: Scale = 1.0
    cap: SoftCap | None = None
    epsilon: Epsilon = 1e-6

    def add(self, x: torch.Tensor, positions: Positions) -> torch.Tensor:
        """x [batch, positions, width], and what it reads of the concept."""
        queries = project(normalise(x, self.before, self.epsilon), self.query, self.query_bias)
        queries = normalise(queries, self.query_norm, self.epsilon)
        numbers = positions.numbers[:, None, None]
        queries = rotate(queries, numbers, self.frequencies, self.length)
        hidden = None if self.hidden is None else self.hidden[..., None, None, None, :] > 0
        keys, values, scale = cast(self.keys, x.dtype), cast(self.values, x.dtype), queries.shape[-1] ** -0.5
        read = collect(attend(queries, keys, values, scale, self.cap, hidden), self.output, self.output_bias)
        return x + cast(self.factor, x.dtype) * normalise(read, self.after, self.epsilon)


# size: all tensors of one attention layer, whose shapes are checked against one another
@dataclass(frozen=True, eq=False)
class CausalAttention(TensorClass, kind="flow-causal"):
    """Attention of activations to those of earlier positions.

    Args:
        before: scale of the norm before it.
        query: projection to queries; `heads` are those of keys, each with several (`groups`) of queries.
        key: projection to keys.
        value: projection to values.
        output: projection from heads.
        after: scale of the norm after it.
        factor: on what it adds, by channel.
        frequencies: of the rotary embedding.
        query_norm: scale of the norm of queries, or None for no norm.
        key_norm: scale of the norm of keys, or None for no norm.
        query_bias: or None.
        key_bias: or None.
        value_bias: or None.
        output_bias: or None.
        length: factor on rotated vectors.
        scale: factor on the products of queries and keys.
        cap: bound on them; None for none.
        epsilon: of norms.
    """

    before: OfWidth
    query: ToQueries
    key: ToHeads
    value: ToHeads
    output: FromQueries
    after: OfWidth
    factor: OfWidth
    frequencies: HeadVector
    query_norm: HeadVector | None = None
    key_norm: HeadVector | None = None
    query_bias: QueryBias | None = None
    key_bias: KeyBias | None = None
    value_bias: KeyBias | None = None
    output_bias: OfWidth | None = None
    length: Scale = 1.0
    scale: Scale = 1.0
    cap: SoftCap | None = None
    epsilon: Epsilon = 1e-6

    def add(self, x: torch.Tensor, positions: Positions, past: State) -> tuple[torch.Tensor, State]:
        """x [batch, positions, width] and what it reads of earlier positions; and the keys and values of all so far."""
        normed = normalise(x, self.before, self.epsilon)
        queries = normalise(project(normed, self.query, self.query_bias), self.query_norm, self.epsilon)
        keys = normalise(project(normed, self.key, self.key_bias), self.key_norm, self.epsilon)
        values = project(normed, self.value, self.value_bias)
        queries = rotate(queries, positions.numbers[:, None, None], self.frequencies, self.length)
        keys = rotate(keys, positions.numbers[:, None], self.frequencies, self.length)
        keys, values = (torch.cat([cast(old, x.dtype), new], 2) for old, new in zip(past, (keys, values), strict=True))
        read = attend(queries, keys, values, self.scale, self.cap, ~positions.seen[:, None, None])
        read = normalise(collect(read, self.output, self.output_bias), self.after, self.epsilon)
        return x + cast(self.factor, x.dtype) * read, (keys, values)


@dataclass(frozen=True, eq=False)
class GatedMLP(TensorClass, kind="flow-mlp"):
    """down(activation(gate(x)) * up(x)), position by position.

    Args:
        before: scale of the norm before it.
        gate: projection.
        up: projection.
        down: projection.
        after: scale of the norm after it.
        factor: on what it adds, by channel.
        activation: a name of `ACTIVATIONS`.
        epsilon: of norms.
    """

    before: OfWidth
    gate: Annotated[torch.Tensor, Holds("inner width", high=LARGEST)]
    up: Annotated[torch.Tensor, Holds("inner width", high=LARGEST)]
    down: Annotated[torch.Tensor, Holds("width inner", high=LARGEST)]
    after: OfWidth
    factor: OfWidth
    activation: str = "silu"
    epsilon: Epsilon = 1e-6

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, found {self.activation!r}")

    def add(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., width], and what it makes of it."""
        normed = normalise(x, self.before, self.epsilon)
        gate, up, down = (cast(weight, x.dtype) for weight in (self.gate, self.up, self.down))
        made = ACTIVATIONS[self.activation](functional.linear(normed, gate)) * functional.linear(normed, up)
        return x + cast(self.factor, x.dtype) * normalise(functional.linear(made, down), self.after, self.epsilon)


@dataclass(frozen=True, eq=False)
class FlowBlock(TensorClass, kind="flow-block"):
    """A block of the velocity network; any of its parts may be missing, as in ablations.

    Args:
        concept: attention to the concept.
        causal: attention to earlier positions.
        mlp: the gated MLP.
    """

    concept: ConceptAttention | None = None
    causal: CausalAttention | None = None
    mlp: GatedMLP | None = None


@dataclass(frozen=True, eq=False)
class FlowMap(RunningMap, kind="flow"):
    """The flow Φ_T of a velocity network towards one concept, T = 2 · strength; a negative strength flows backwards.

    Args:
        blocks: of the network, in order.
        sine: of the embedding of the time: a linear layer of sines and cosines, SiLU, and another one.
        cosine: the same, of the cosines.
        embedding_bias: of the first layer.
        embedding: the second layer.
        second_bias: of the second layer.
        steps: number N of Euler steps.
        by_time: whether a gate's h is a factor on the time, Φ_{hT}(x), instead of interpolating x and Φ_T(x). Where h
            differs from channel to channel, each has its own time, and the network is told their mean.

    Example:
        >>> still = torch.zeros(2, 2)
        >>> flow = FlowMap((FlowBlock(),), still, still, torch.zeros(2), still, torch.tensor([1.0, 0.0]), steps=3)
        >>> flow.apply(torch.zeros(1, 2), strength=0.5)  # a velocity of 1, for a time of 1
        tensor([[1., 0.]])
    """

    blocks: tuple[FlowBlock, ...]
    sine: Annotated[torch.Tensor, Holds("width waves", high=LARGEST)]
    cosine: Annotated[torch.Tensor, Holds("width waves", high=LARGEST)]
    embedding_bias: OfWidth
    embedding: Annotated[torch.Tensor, Holds("width width", high=LARGEST)]
    second_bias: OfWidth
    steps: Annotated[int, Holds(high=1000, low=1)] = 3
    by_time: bool = False

    @property
    def scales_strength(self) -> bool:
        return self.by_time

    def begin(self, batch: int, device: torch.device | str = "cpu") -> State:
        """The positions before a text begins, none: which of them were read, and their keys and values."""
        state = [torch.zeros(batch, 0, device=device)]
        for causal in [block.causal for block in self.blocks] * self.steps:
            if causal is not None:
                heads, head = causal.key.shape[:2]
                state += [torch.zeros(batch, heads, 0, head, device=device) for _ in range(2)]
        return tuple(state)

    def step(
        self,
        x: torch.Tensor,
        strength: torch.Tensor | float,
        mask: torch.Tensor | None,
        first: torch.Tensor | None,
        state: State,
    ) -> tuple[torch.Tensor, State]:
        moved, state, _ = self.flow(x, TIME_OF_STRENGTH * strength, mask, first, state)
        return moved, state

    def flow(
        self,
        x: torch.Tensor,
        time: torch.Tensor | float,
        mask: torch.Tensor | None,
        first: torch.Tensor | None,
        state: State,
    ) -> tuple[torch.Tensor, State, torch.Tensor]:
        """As `step`, by the flow time T; returns also the velocity [batch, positions, width] of the last Euler step.

        Args:
            x: see `step`, as the others.
            time: T, a number, or a tensor that is broadcastable to x.
            mask: which positions count.
            first: the first token of each row.
            state: of the positions before.
        """
        time = torch.as_tensor(time, dtype=x.dtype, device=x.device)
        interval = time.reshape((1,) * (3 - time.ndim) + time.shape) / self.steps
        read = torch.ones_like(x[..., 0]) if mask is None else cast(mask, x.dtype)
        read = read if first is None else torch.maximum(read, cast(first, x.dtype))
        positions, read = _positions(read, state[0])
        past, after, velocity = iter(state[1:]), [read], torch.zeros_like(x)
        for step in range(self.steps):
            velocity, kept = self._velocity(x, step * interval.mean(-1, keepdim=True), positions, past)
            x, after = x + interval * velocity, [*after, *kept]
        return x, tuple(after), velocity

    def _velocity(
        self, x: torch.Tensor, time: torch.Tensor, positions: Positions, past: Iterator[torch.Tensor]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """v(x, time), and the keys and values of all positions so far, block by block."""
        begin, kept = x, list[torch.Tensor]()
        x = x + self._embed(time)
        for block in self.blocks:
            if block.concept is not None:
                x = block.concept.add(x, positions)
            if block.causal is not None:
                x, pair = block.causal.add(x, positions, (next(past), next(past)))
                kept += pair
            if block.mlp is not None:
                x = block.mlp.add(x)
        return x - begin, kept

    def _embed(self, time: torch.Tensor) -> torch.Tensor:
        """The embedding of a time [..., 1], as [..., width]."""
        count, dtype = self.sine.shape[1], time.dtype
        speeds = torch.arange(count, dtype=torch.float32, device=time.device) * (-math.log(LONGEST_WAVE) / count)
        angles = time.float() * speeds.exp()
        waves = functional.linear(cast(angles.sin(), dtype), cast(self.sine, dtype))
        waves = waves + functional.linear(
            cast(angles.cos(), dtype), cast(self.cosine, dtype), cast(self.embedding_bias, dtype)
        )
        return functional.linear(functional.silu(waves), cast(self.embedding, dtype), cast(self.second_bias, dtype))


def _positions(read: torch.Tensor, past: torch.Tensor) -> tuple[Positions, torch.Tensor]:
    """The positions of a call, by which of them are read, and which of those before; and which are read so far."""
    read = torch.cat([cast(past, read.dtype), read], 1)
    count, total = read.shape[1] - past.shape[1], read.shape[1]
    numbers = (read.cumsum(1) - 1).clamp_min(0)[:, past.shape[1] :]
    order = torch.arange(total, device=read.device)
    seen = (read[:, None] > 0) & (order <= order[total - count :, None])
    return Positions(numbers.long(), seen), read
