"""The one equation: golden numbers, both ends exact, several maps."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsas_core.maps import AffineMap, Map
from dsas_core.steering.interpolation import interpolate
from tests.fixtures.checks import vector
from tests.fixtures.concepts import MAPS, Turn, random_map

H = 0.9922324299
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (AffineMap(vector(1, 0, -1)), (3.9844648598, -1, -1.9844648598)),
        (AffineMap(vector(1, 0, -1), vector(0.5, 1, 2)), (2, -1, -1.9844648598)),
    ],
    ids=["additive", "affine"],
)
def test_golden(transform: AffineMap, expected: tuple[float, ...]) -> None:
    out = interpolate(vector(2, -1, 0)[None], [(transform, 2.0, vector(H)[:, None])])
    assert out.dtype == torch.float64
    assert out[0].tolist() == pytest.approx(expected, abs=1e-9)


def drawn(kind: str, width: int, random: torch.Generator) -> Map:
    return Turn(torch.randn((), generator=random)) if kind == "turn" else random_map(kind, width, random)


cases = given(
    kind=st.sampled_from([*MAPS, "turn"]),
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
    per_row=st.booleans(),
)


def case(
    kind: str, shape: list[int], dtype: torch.dtype, seed: int, per_row: bool
) -> tuple[Map, torch.Tensor, list[int]]:
    random = torch.Generator().manual_seed(seed)
    x = (10 * torch.randn(shape, generator=random)).to(dtype)
    return drawn(kind, shape[-1], random), x, [*shape[:-2], 1 if per_row else shape[-2], 1]


@cases
def test_h_zero_and_strength_zero_give_the_input_itself(
    kind: str, shape: list[int], dtype: torch.dtype, seed: int, per_row: bool
) -> None:
    transform, x, h_shape = case(kind, shape, dtype, seed, per_row)
    wide = torch.promote_types(dtype, torch.float32)
    off = interpolate(x, [(transform, 3.0, torch.zeros(h_shape, dtype=wide))])
    unmoved = interpolate(x, [(transform, 0.0, torch.rand(h_shape, dtype=wide))])
    assert off.dtype == unmoved.dtype == dtype
    assert torch.equal(off, x)
    assert torch.equal(unmoved, x)


class Broken(Map):
    """A map that gives one value everywhere, whatever the strength."""

    def __init__(self, value: float, linear: bool) -> None:
        self.value, self.linear_in_strength = value, linear  # type: ignore[misc]

    def displacement(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x, self.value)

    def apply(self, x: torch.Tensor, strength: torch.Tensor | float) -> torch.Tensor:
        return torch.full_like(x, self.value)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 3e38, -1.0])
def test_nothing_times_anything_is_nothing(value: float, linear: bool, dtype: torch.dtype) -> None:
    """Bit for bit, the sign of 0 included; with other maps beside it, and where h is unknown at strength 0."""
    x = torch.tensor([[[-0.0, 0.0, 1.5, -3e4]], [[1e-30, -1e-7, 0.1, 2.0]]], dtype=dtype)
    wide = torch.promote_types(dtype, torch.float32)
    one, zero, broken = torch.ones(2, 1, 1, dtype=wide), torch.zeros(2, 1, 1, dtype=wide), Broken(value, linear)
    still = [(zero, one), (one, zero), (0.0, one), (zero, one * math.nan), (one, zero.expand(2, 1, 4))]
    for strength, h in still:
        for steps in ([(broken, strength, h)], [(broken, strength, h)] * 2):
            out = interpolate(x, steps)
            assert torch.equal(out, x)
            assert torch.equal(out.signbit(), x.signbit())
    shift = AffineMap(torch.ones(4, dtype=dtype))
    alone = interpolate(x, [(shift, 1.0, one)])
    for steps in ([(shift, 1.0, one), (broken, zero, one)], [(broken, zero, one), (shift, 1.0, one)]):
        assert torch.equal(interpolate(x, steps), alone)
    if linear:  # one row only
        half = torch.cat([zero[:1], one[:1]])
        assert torch.equal(interpolate(x, [(broken, half, one)])[0], x[0])


@cases
def test_h_one_gives_the_map_alone(kind: str, shape: list[int], dtype: torch.dtype, seed: int, per_row: bool) -> None:
    transform, x, h_shape = case(kind, shape, dtype, seed, per_row)
    wide = torch.promote_types(dtype, torch.float32)
    out = interpolate(x, [(transform, -1.7, torch.ones(h_shape, dtype=wide))])
    vanilla = transform.apply(x.to(wide), -1.7).to(dtype)
    if kind == "turn":
        assert torch.equal(out, vanilla)
    else:
        torch.testing.assert_close(out, vanilla, rtol=4 * torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("kind", [*MAPS, "turn"])
def test_between_the_ends_it_is_linear_in_h(kind: str) -> None:
    random = torch.Generator().manual_seed(0)
    transform, x = drawn(kind, 6, random), torch.randn(2, 3, 6, generator=random, dtype=torch.float64)
    h = torch.rand(2, 3, 1, generator=random, dtype=torch.float64)
    expected = x + h * (transform.apply(x, 2.0) - x)
    torch.testing.assert_close(interpolate(x, [(transform, 2.0, h)]), expected)


@pytest.mark.parametrize("kinds", [("affine", "affine"), ("turn", "affine"), ("affine", "turn"), ("turn", "turn")])
def test_several_maps_all_read_the_incoming_activation(kinds: tuple[str, str]) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 6, generator=random, dtype=torch.float64)
    steps = [
        (drawn(kind, 6, random), 1.5, torch.rand(2, 3, 1, generator=random, dtype=torch.float64)) for kind in kinds
    ]
    alone = [interpolate(x, [step]) - x for step in steps]
    torch.testing.assert_close(interpolate(x, steps), x + alone[0] + alone[1])
    torch.testing.assert_close(interpolate(x, steps[::-1]), interpolate(x, steps))


def test_strength_may_differ_from_row_to_row() -> None:
    x = torch.randn(3, 2, 4)
    transform = AffineMap(torch.ones(4))
    out = interpolate(x, [(transform, torch.tensor([0.0, 1.0, -2.0])[:, None, None], torch.ones(3, 2, 1))])
    torch.testing.assert_close(out - x, torch.tensor([0.0, 1.0, -2.0])[:, None, None].expand(3, 2, 4))
