"""STARS: orthogonal offsets of the runs of one prompt, against a computation by singular values; groups; agreement."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dsas_core import Call, Concept, DSASError, Intervention, Recipe, Site, Steering, methods
from dsas_core.errors import UnsupportedError
from dsas_core.maps import AffineMap, Map, StiefelMap
from dsas_core.maps.stiefel import orthogonal_offsets, random_rows
from dsas_core.model.row_groups import RowGroups, among, couples_rows, find_groups
from dsas_core.probes import AgreementProbe, ConstantProbe, LinearProbe, Probe, ProductProbe

SITE, WIDTH = Site("model.0"), 16


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_singular_values(runs: np.ndarray, scale: float, random: np.ndarray) -> tuple[np.ndarray, float, float]:
    """V [width, runs], α and η by the formulas of the paper, with a full SVD and a basis of the null space."""
    H = runs.T
    _, sigma, wt = np.linalg.svd(H, full_matrices=False)
    alpha = scale * sigma.max() ** 2
    d1 = 2 * (sigma**2 / (sigma**2 + alpha)).sum()
    d2 = 4 * (sigma**4 / (sigma**2 + alpha) ** 2).sum()
    span = np.linalg.matrix_rank(H)
    null = np.linalg.svd(H)[0][:, span:]
    # the orthonormal columns that are next to the random ones, within the null space
    left, _, right = np.linalg.svd(null.T @ random.T, full_matrices=False)
    V0 = np.sqrt(alpha) * null @ (left @ right)
    eta = d1 / d2
    root = wt.T @ np.diag((alpha + eta**2 * sigma**2) ** -0.5) @ wt
    return np.sqrt(alpha) * (V0 + eta * H) @ root, alpha, eta


@pytest.mark.parametrize("scale", [0.1, 0.5, 2.0])
@pytest.mark.parametrize(("width", "runs"), [(6, 3), (16, 4), (64, 20)])
def test_golden_offsets(width: int, runs: int, scale: float) -> None:
    H, random = drawn(runs, width), random_rows(runs, width, 0, drawn(1))
    expected, alpha, _ = by_singular_values(H.numpy(), scale, random.numpy())
    V = orthogonal_offsets(H, scale, random).T
    np.testing.assert_allclose(V.numpy(), expected, atol=1e-10)
    assert np.linalg.norm(V.numpy().T @ V.numpy() / alpha - np.eye(runs)) <= 1e-12
    before, after = (torch.logdet(M @ M.T) for M in (H, H + V.T))
    assert after > before, "the volume that the runs span grows"


@pytest.mark.parametrize("same", [2, 4], ids=["two alike", "all alike"])
@pytest.mark.parametrize("noise", [0.0, 1e-12, 1e-9, 1e-4])
def test_runs_that_are_the_same_are_pushed_apart_exactly(same: int, noise: float) -> None:
    H = drawn(4, 24)
    H[:same] = H[0] + noise * drawn(same, 24, seed=1)
    V = orthogonal_offsets(H, 0.5, random_rows(4, 24, 3, H))
    alpha = 0.5 * torch.linalg.svdvals(H).max() ** 2
    assert bool(V.isfinite().all())
    assert float((V @ V.T / alpha - torch.eye(4)).norm()) <= 1e-12


def test_half_precision_and_extremes_stay_finite() -> None:
    for dtype, size in ((torch.float32, 1e6), (torch.float32, 1e-6), (torch.bfloat16, 300.0), (torch.float32, 0.0)):
        x = (size * drawn(3, 2, 32)).to(dtype).float()
        V = StiefelMap(0.5).displacement(x)
        assert bool(V.isfinite().all()), (dtype, size)
        assert bool((V == 0).all()) == (size == 0)


def test_random_rows_depend_on_seed_row_and_column_alone() -> None:
    rows = random_rows(40, 500, 1, drawn(1))
    assert torch.equal(rows[:7, :33], random_rows(7, 33, 1, drawn(1)))
    assert not torch.equal(rows, random_rows(40, 500, 2, drawn(1)))
    assert abs(float(rows.mean())) < 0.02
    assert float((torch.corrcoef(rows) - torch.eye(40)).abs().max()) < 0.2
    kurtosis = float((rows**4).mean() / (rows**2).mean() ** 2)
    assert kurtosis == pytest.approx(3, abs=0.15), "they are normal"


def test_it_is_linear_in_its_strength_and_exact_at_0() -> None:
    x, transform = drawn(3, 5, WIDTH), StiefelMap(0.3, seed=4)
    assert torch.equal(transform.apply(x, 0.0), x)
    one, three = (transform.apply(x, strength) - x for strength in (1.0, 3.0))
    torch.testing.assert_close(three, 3 * one)
    assert not torch.equal(transform.apply(x, 1.0), transform.apply(x, -1.0))
    assert not torch.allclose(StiefelMap(0.3, seed=5).displacement(x), one)


def test_groups_and_positions_are_computed_at_once() -> None:
    x = drawn(7, 3, WIDTH)
    groups = find_groups(torch.tensor([4, 9, 4, 9, 9, 1, 4]), torch.tensor([1.0, 1, 1, 1, 1, 0, 1]))
    assert [[row for row in rows if row >= 0] for rows in groups.members.tolist()] == [[0, 2, 6], [1, 3, 4]]
    V = StiefelMap().among(groups).displacement(x)
    assert torch.equal(V[5], torch.zeros(3, WIDTH)), "it takes no part"
    for rows in ([0, 2, 6], [1, 3, 4]):
        torch.testing.assert_close(V[rows], StiefelMap().displacement(x[rows]))
        for place in range(3):
            alone = StiefelMap().displacement(x[rows, place : place + 1])
            torch.testing.assert_close(V[rows, place : place + 1], alone)
    uneven = find_groups(torch.tensor([0, 0, 1, 1, 1]), torch.ones(5))
    pair = StiefelMap().among(uneven).displacement(x[:5])[:2, 0]
    alpha = 0.5 * torch.linalg.svdvals(x[:2, 0]).max() ** 2
    torch.testing.assert_close(pair @ pair.T, alpha * torch.eye(2, dtype=torch.float64))


def test_positions_that_do_not_count_are_no_runs() -> None:
    x, mask = drawn(3, 2, WIDTH), torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    V = StiefelMap().among(RowGroups.of_one(x, mask)).displacement(x)
    assert torch.equal(V[:, 1], torch.zeros(3, WIDTH)), "one run is left there, with none to be pushed from"
    torch.testing.assert_close(V[:, :1], StiefelMap().displacement(x[:, :1]))


def test_what_cannot_be_is_said_in_one_line() -> None:
    with pytest.raises(DSASError, match=r"^a group of 1 run: .* 2 or more runs"):
        StiefelMap().displacement(drawn(1, 2, WIDTH))
    with pytest.raises(UnsupportedError, match=r"^3 runs and 5 dimensions: .* take 2 runs at most"):
        StiefelMap().displacement(drawn(3, 2, 5))


# ---- the gate --------------------------------------------------------------------------------------------------------


def test_agreement_is_the_mean_cosine_of_two_runs() -> None:
    x = drawn(4, 3, WIDTH) + 1
    unit = x / x.norm(dim=-1, keepdim=True)
    pairs = [(i, j) for i in range(4) for j in range(i)]
    mean = torch.stack([(unit[i] * unit[j]).sum(-1) for i, j in pairs]).mean(0)
    h = AgreementProbe().score(x)
    torch.testing.assert_close(h, mean.clamp(0, 1).expand(4, 3)[..., None])
    torch.testing.assert_close(AgreementProbe(0.2).score(x)[0, :, 0], ((mean - 0.2) / 0.8).clamp(0, 1))
    assert float(AgreementProbe(0.5).score(x[:1].expand(4, -1, -1)).min()) == pytest.approx(1)
    opposite = torch.stack([x[0], -x[0]])
    assert torch.equal(AgreementProbe().score(opposite), torch.zeros(2, 3, 1, dtype=torch.float64))


def test_agreement_of_those_that_count() -> None:
    x, mask = drawn(3, 2, WIDTH), torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    x[1, 0] = x[0, 0]
    h = AgreementProbe().score(x, mask)
    assert h[:, 0, 0].tolist() == pytest.approx([1, 1, 0])
    assert torch.equal(AgreementProbe().score(x[0]), torch.zeros(2, 1, dtype=torch.float64)), "alone"


def test_parts_are_told_wherever_they_are() -> None:
    plain = LinearProbe(torch.ones(WIDTH), torch.tensor(0.0))
    both = ProductProbe((plain, AgreementProbe()))
    assert couples_rows(both)
    assert not couples_rows(plain)
    groups = find_groups(torch.tensor([0, 0, 1, 1]), torch.ones(4))
    assert among(plain, groups) is plain
    x = drawn(4, 2, WIDTH)
    h = torch.cat([AgreementProbe().score(x[:2]), AgreementProbe().score(x[2:])])
    torch.testing.assert_close(among(both, groups).score(x), plain.score(x) * h, check_dtype=False)


# ---- in a steering ---------------------------------------------------------------------------------------------------


def concept(transform: Map | None = None, probe: Probe | None = None) -> Concept:
    parts = (probe or ConstantProbe(),), (transform or StiefelMap(),)
    return Concept("apart", (Intervention(SITE, *parts, (1.0,)),), method="stars", gate="on")


def steered(x: torch.Tensor, strength: Any = 1.0, which: Concept | None = None, **call: Any) -> torch.Tensor:
    call = {"steered": torch.ones(len(x)), "prompts": torch.zeros(len(x), dtype=torch.long), **call}
    model = nn.Sequential(nn.Identity())
    steering = Steering({which or concept(): strength})
    with steering.attach({"model": model}, {"model": lambda args, kwargs: Call(**call)}):
        out: torch.Tensor = model(x)
        return out


def test_rows_of_one_prompt_are_a_group_unless_groups_are_given() -> None:
    x = drawn(4, 2, WIDTH).float()
    pairs = torch.tensor([0, 0, 1, 1])
    by_prompt = steered(x, prompts=pairs)
    for rows in (slice(0, 2), slice(2, 4)):
        torch.testing.assert_close(by_prompt[rows], StiefelMap().apply(x[rows], 1.0))
    assert torch.equal(steered(x, groups=pairs), by_prompt)
    torch.testing.assert_close(steered(x), StiefelMap().apply(x, 1.0))
    crossed = steered(x, prompts=pairs, groups=torch.tensor([7, 5, 7, 5]))
    torch.testing.assert_close(crossed[[0, 2]], StiefelMap().apply(x[[0, 2]], 1.0))


def test_rows_that_are_not_steered_take_no_part() -> None:
    x, rows = drawn(4, 2, WIDTH).float(), torch.tensor([0.0, 0.0, 1.0, 1.0])
    out = steered(x, steered=rows)
    assert torch.equal(out[:2], x[:2])
    torch.testing.assert_close(out[2:], StiefelMap().apply(x[2:], 1.0))
    assert torch.equal(steered(x, steered=torch.zeros(4)), x)
    with pytest.raises(
        DSASError, match=r"'apart' goes by several runs of one prompt: found 1 run, expected at least 2"
    ):
        steered(x, steered=torch.tensor([1.0, 0.0, 0.0, 0.0]))


def test_a_run_alone_is_refused_where_it_is_steered() -> None:
    x, alone = drawn(3, 2, WIDTH).float(), torch.tensor([0, 0, 1])
    for which in (concept(), concept(AffineMap(torch.ones(WIDTH)), AgreementProbe())):
        with pytest.raises(DSASError, match=r"found 1 run, expected at least 2: draw or write several \(num_images"):
            steered(x, which=which, prompts=alone)
    assert torch.equal(steered(x, 0.0, prompts=alone), x), "strength 0 is off"
    mixed = steered(x, [1.0, 0.0], prompts=alone)
    assert torch.equal(mixed[2], x[2])
    assert not torch.equal(mixed[:2], x[:2])


def test_groups_may_change_from_call_to_call() -> None:
    x = drawn(4, 2, WIDTH).float()
    model, groups = nn.Sequential(nn.Identity()), torch.tensor([0, 0, 1, 1])
    describe = {"model": lambda args, kwargs: Call(torch.ones(4), groups.clone())}
    with Steering({concept(): 1.0}).attach({"model": model}, describe):
        first = model(x)
        assert torch.equal(model(x), first)
        groups[:] = torch.tensor([0, 1, 0, 1])
        assert not torch.equal(model(x), first)
        groups[:] = torch.tensor([0, 0, 1, 1])
        assert torch.equal(model(x), first)


def test_no_gradient_passes_through_the_offsets() -> None:
    x = drawn(3, 2, WIDTH).float().requires_grad_()
    steered(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.ones_like(x))


def test_learning_refuses_it() -> None:
    for wrong in ({"method": "stars"}, {"gate": "stars"}, {"gate": "product(dsas, stars)"}):
        with pytest.raises(DSASError, match=r"goes by several runs of one prompt, and learning runs each prompt once"):
            Recipe(**wrong)
    with pytest.raises(DSASError, match=r"gate stars: least 2\.0: expected a cosine from 0 to 0\.999"):
        methods.gate("stars(least=2.0)")
    with pytest.raises(DSASError, match=r"STARS option c: expected a number above 0, up to 100, found 0"):
        methods.check_options("stars", {"c": 0})
