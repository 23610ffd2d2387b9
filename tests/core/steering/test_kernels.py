"""What is computed in a way that suits the machine equals plain references in float64, and keeps still what it must."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch.autograd import forward_ad

from dsas_core.maps import AffineMap, Map, SupportMap, TwoWayMap
from dsas_core.maps.envelope import EllipticEnvelope
from dsas_core.model.eager import CHUNK, at_hand, in_chunks
from dsas_core.probes import (
    ConditionProbe,
    ConstantProbe,
    CosineProbe,
    LinearProbe,
    PooledConditionProbe,
    Probe,
    ProductProbe,
    QuadraticProbe,
)
from dsas_core.steering.interpolation import interpolate
from dsas_core.steering.solve import strength_within

WIDTH = 256
#: positions by themselves, a batch, one that is worked on in chunks, and one whose rows are not beside one another
SHAPES = ((7, WIDTH), (2, 5, WIDTH), (3, CHUNK // WIDTH + 1, WIDTH), (2, 6, WIDTH, -1))
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
#: factors on activations of about 1
SCALES = (0.0, 1e-3, 1.0, 300.0)
CLOSE = {"rtol": 2e-6, "atol": 2e-6}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def activations(shape: tuple[int, ...], dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    """Random ones with a row of zeros; not contiguous where the shape ends with -1."""
    x = (scale * draw(*(size for size in shape if size > 0), seed=1)).to(dtype)
    x[..., 1, :] = 0
    return x.mT.contiguous().mT if shape[-1] < 0 else x


def quadratic(soft: bool) -> QuadraticProbe:
    side = draw(WIDTH, seed=2).sign()
    side[::3] = 0
    tensors = [draw(WIDTH, seed=seed) for seed in (3, 4, 5, 6)]
    return QuadraticProbe(*(tensor.float().double() for tensor in tensors), side, soft)


def quadratic_logit(probe: QuadraticProbe, x: torch.Tensor) -> torch.Tensor:
    u = x - probe.center
    z = probe.curve * u * u + probe.slope * u + probe.offset
    return torch.where(u * probe.side > 0, z.clamp(-30, 30), -torch.inf)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_quadratic(shape: tuple[int, ...], dtype: torch.dtype, scale: float) -> None:
    x = activations(shape, dtype, scale)
    expected = quadratic_logit(quadratic(True), x.double())
    soft, hard = quadratic(True).score(x), quadratic(False).score(x)
    assert soft.dtype == hard.dtype == torch.promote_types(dtype, torch.float32)
    # where terms cancel, a logit has their rounding
    size = (x.double().abs() + 9).square() * 30
    doubtful = expected.abs() < 2e-7 * size
    assert torch.equal(hard[~doubtful], (expected > 0)[~doubtful].to(hard.dtype))
    error = (soft.double() - expected.sigmoid()).abs()
    assert bool((error <= 2e-6 + 1e-7 * size * expected.sigmoid()).all())
    assert torch.equal(hard, quadratic(False).link(quadratic(False).logit(x)))
    torch.testing.assert_close(soft, quadratic(True).link(quadratic(True).logit(x)), rtol=2e-6, atol=0)


def cosine(probe: CosineProbe, x: torch.Tensor) -> torch.Tensor:
    return (x @ probe.direction / x.norm(dim=-1).clamp_min(1e-12) - probe.threshold).clamp(0, 1)[..., None]


def similarity(probe: ConditionProbe, x: torch.Tensor) -> torch.Tensor:
    unit = probe.direction / probe.direction.norm()
    projected = ((x @ unit)[..., None] * unit).tanh()
    lengths = x.norm(dim=-1).clamp_min(1e-12) * projected.norm(dim=-1).clamp_min(1e-12)
    return ((x * projected).sum(-1) / lengths)[..., None]


COSINE = CosineProbe(torch.nn.functional.normalize(draw(WIDTH), dim=0), torch.tensor(-0.1, dtype=torch.float64))
CONDITION = ConditionProbe(draw(WIDTH), torch.tensor(0.05).double(), torch.tensor(1.0).double())


@pytest.mark.parametrize("scale", [*SCALES, 1e15])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_cosines(shape: tuple[int, ...], dtype: torch.dtype, scale: float) -> None:
    x = activations(shape, dtype, scale if dtype != torch.float16 else min(scale, 1e3))
    for found, expected in (
        (COSINE.score(x), cosine(COSINE, x.double())),
        (CONDITION.similarity(x), similarity(CONDITION, x.double())),
    ):
        assert found.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(found.double(), expected, **CLOSE)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_condition_of_a_mean_over_the_positions_that_count(dtype: torch.dtype) -> None:
    x, mask = activations((2, 5, WIDTH), dtype), torch.tensor([[1.0, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    means = torch.stack([row[: int(count)].double().mean(0) for row, count in zip(x, mask.sum(1), strict=True)])
    z = PooledConditionProbe(CONDITION).logit(x, mask)
    torch.testing.assert_close(z[:, 0].double(), similarity(CONDITION, means) - CONDITION.threshold, **CLOSE)


@pytest.mark.parametrize("order", [1, -1])
def test_a_product_leaves_its_factors_alone(order: int) -> None:
    x = activations((2, 5, WIDTH), torch.float32)
    factors = (LinearProbe(0.1 * draw(WIDTH), torch.tensor(0.5)), quadratic(True), ConstantProbe(0.5))[::order]
    scores = [factor.score(x) for factor in factors]
    torch.testing.assert_close(ProductProbe(factors).score(x), scores[0] * scores[1] * scores[2])
    x.requires_grad_()
    assert torch.autograd.gradcheck(ProductProbe(factors).score, draw(1, 2, WIDTH, seed=1).requires_grad_())


def affine(seed: int) -> AffineMap:
    return AffineMap(draw(WIDTH, seed=seed), 1 + draw(WIDTH, seed=seed + 1))


BOUND = draw(WIDTH, seed=9).abs()
TRANSFORMS: dict[str, tuple[Map, Callable[[torch.Tensor, float], torch.Tensor]]] = {
    "additive": (AffineMap(draw(WIDTH)), lambda x, s: x + s * draw(WIDTH)),
    "affine": (affine(3), lambda x, s: x + s * moved_by(affine(3), x)),
    "two-way": (
        TwoWayMap(affine(3), affine(5)),
        lambda x, s: x + abs(s) * moved_by(affine(3 if s > 0 else 5), x),
    ),
    "two ways, one additive": (
        TwoWayMap(AffineMap(draw(WIDTH)), affine(5)),
        lambda x, s: x + abs(s) * (draw(WIDTH) if s > 0 else moved_by(affine(5), x)),
    ),
    "support": (
        SupportMap(affine(3), -BOUND, BOUND),
        lambda x, s: torch.where(x.abs() < BOUND, x + s * moved_by(affine(3), x), x),
    ),
}


def moved_by(affine: AffineMap, x: torch.Tensor) -> torch.Tensor:
    assert affine.slope is not None
    return (affine.slope - 1) * x + affine.shift


@pytest.mark.parametrize("probe", [ConstantProbe(0.3), COSINE, quadratic(True), quadratic(False)])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_equation(name: str, probe: Probe) -> None:
    transform, reference = TRANSFORMS[name]
    for dtype in DTYPES:
        for strength in (1.5, -0.7):
            x = activations((2, 5, WIDTH), dtype)
            h = probe.score(x)
            out = interpolate(x, [(transform, torch.full((2, 1, 1), strength), h)])
            expected = x.double() + h.double() * (reference(x.double(), strength) - x.double())
            error = torch.finfo(dtype).eps if dtype.itemsize == 2 else 2e-6
            torch.testing.assert_close(out.double(), expected, rtol=error, atol=8e-6)
            assert torch.equal(out[h.expand_as(x) == 0], x[h.expand_as(x) == 0])


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan, -0.0])
@pytest.mark.parametrize("per_dimension", [True, False])
@pytest.mark.parametrize("transform", [AffineMap(draw(WIDTH)), affine(3), TwoWayMap(affine(3), affine(5))])
def test_one_number_that_is_no_sum_does_not_go_unseen(transform: Map, per_dimension: bool, bad: float) -> None:
    """Among many that are: where h is 0 or unknown, x is there bit for bit, the sign of 0 included."""
    for unknown in (False, True):
        x = activations((2, 5, WIDTH), torch.float32)
        x[1, 2, :8] = bad
        h = torch.rand(2, 5, WIDTH if per_dimension else 1)
        h[1, 2, :8] = 0
        h[0, 3] = torch.nan if unknown else 0
        out = interpolate(x, [(transform, torch.ones(2, 1, 1), h)])
        assert torch.equal(out[1, 2, :8].view(torch.int32), x[1, 2, :8].view(torch.int32))
        assert torch.equal(out[0, 3].view(torch.int32), x[0, 3].view(torch.int32))


def test_within_an_ellipse_as_by_plain_vectors() -> None:
    axes = torch.linalg.qr(draw(WIDTH, 4)).Q.T
    spread = torch.tensor([9.0, 5, 3, 2]).double()
    cloud = EllipticEnvelope(draw(WIDTH), axes, spread, torch.tensor(0.5).double(), torch.tensor(60.0).double())
    x = cloud.mean + draw(2, 5, WIDTH, seed=1)
    covariance = axes.T.mul(spread.square()) @ axes + 0.25 * (torch.eye(WIDTH).double() - axes.T @ axes)
    inverse = covariance.inverse()

    def distance(x: torch.Tensor) -> torch.Tensor:
        y = x - cloud.mean
        return (y @ inverse * y).sum(-1, keepdim=True).sqrt()

    torch.testing.assert_close(cloud.distance(x), distance(x))
    torch.testing.assert_close(cloud.distance(x.float()).double(), distance(x), rtol=2e-6, atol=0)
    for transform in (AffineMap(draw(WIDTH)), affine(3)):
        for h in (torch.rand(2, 5, 1).double(), torch.rand(2, 5, WIDTH).double(), torch.tensor(0.5).double()):
            s = strength_within(x, transform, torch.full((2, 1, 1), 90.0).double(), h, cloud)
            reached = distance(x + s * h * transform.displacement(x))
            torch.testing.assert_close(reached, torch.full((2, 5, 1), 60.0).double())


def test_chunks_are_those_of_the_whole() -> None:
    sizes: list[int] = []

    def compute(x: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        sizes.append(x.numel())
        return torch.sum(x, -1, keepdim=True, out=out)

    for shape in ((3, CHUNK // WIDTH + 1, WIDTH), (2, 3, WIDTH), (1, 4 * CHUNK), (0, WIDTH)):
        x = draw(*shape)
        sizes.clear()
        assert torch.equal(in_chunks(compute, x, 1), x.sum(-1, keepdim=True))
        assert sum(sizes) == x.numel()
        assert (len(sizes) > 1) == (shape[0] == 3 and torch.get_num_threads() == 1)
    watched = draw(3, CHUNK // WIDTH + 1, WIDTH).requires_grad_()
    sizes.clear()
    in_chunks(compute, watched, 1).sum().backward()
    assert watched.grad is not None
    assert torch.equal(watched.grad, torch.ones_like(watched))
    in_chunks(compute, watched.detach(), 1, [torch.ones(1, requires_grad=True)])
    assert sizes == [watched.numel()] * 2


def test_only_plain_numbers_are_looked_at() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    seen: list[bool] = []

    def ask(x: torch.Tensor) -> torch.Tensor:
        seen.append(at_hand(x))
        return x * 1

    torch.func.vmap(ask)(torch.ones(2))
    torch.func.grad(ask)(torch.ones(()))
    torch.jit.trace(ask, torch.ones(2), check_trace=False)
    with FakeTensorMode():
        ask(torch.ones(2))
    with forward_ad.dual_level():
        ask(forward_ad.make_dual(torch.ones(2), torch.ones(2)))
    ask(torch.ones(2, requires_grad=True))
    assert not any(seen)
    with torch.no_grad():
        assert at_hand(torch.ones(2), torch.ones(2, requires_grad=True))
