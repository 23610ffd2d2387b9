"""Distances between sets of pictures: against torchmetrics, closed forms and cases with a known answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dsas_core import DSASError
from dsas_diffusion.builtin.judge import Judge, JudgeNetwork
from dsas_diffusion.vision import similarity
from dsas_diffusion.vision.similarity import fid, judge_features, kid
from tests.fixtures.vision_models import noise_pictures


class Columns:
    """Features that are looked up: pictures of one pixel, whose grey level is the row."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __call__(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        return self.values[[picture.getpixel((0, 0)) for picture in pictures]]


def looked_up(base: np.ndarray, steered: np.ndarray) -> tuple[list[Image.Image], list[Image.Image], Columns]:
    """Pictures that have these features [n, d]."""
    pictures = [Image.new("L", (1, 1), row) for row in range(len(base) + len(steered))]
    return pictures[: len(base)], pictures[len(base) :], Columns(np.concatenate([base, steered]))


class Given(nn.Module):
    """A feature extractor for torchmetrics that gives back what it is given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def with_moments(count: int, mean: np.ndarray, covariance: np.ndarray, seed: int) -> np.ndarray:
    """A sample [n, d] whose own mean and covariance are exactly these."""
    x = np.random.default_rng(seed).normal(size=(count, len(mean)))
    x = x - x.mean(0)
    own = np.linalg.cholesky(np.cov(x.T))
    return x @ np.linalg.inv(own).T @ np.linalg.cholesky(covariance).T + mean


@pytest.mark.parametrize("shift", [0.0, 3.0])
@pytest.mark.parametrize(("first", "second"), [((1, 4, 9), (1, 4, 9)), ((1, 4, 9), (4, 1, 16))])
def test_fid_of_gaussians_along_the_axes(shift: float, first: tuple[int, ...], second: tuple[int, ...]) -> None:
    # commuting covariances: Σ (σ − τ)², plus the distance of the means
    x = with_moments(40, np.zeros(3), np.diag(np.array(first, float)), 0)
    y = with_moments(60, np.full(3, shift), np.diag(np.array(second, float)), 1)
    expected = 3 * shift**2 + float(((np.sqrt(first) - np.sqrt(second)) ** 2).sum())
    assert fid(*looked_up(x, y)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("counts", "width"), [((50, 70), 6), ((20, 20), 20), ((5, 9), 12)])
def test_fid_is_that_of_torchmetrics(counts: tuple[int, int], width: int) -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    rng = np.random.default_rng(width)
    x = rng.normal(size=(counts[0], width)) @ rng.normal(size=(width, width))
    y = rng.normal(size=(counts[1], width)) @ rng.normal(size=(width, width)) + 1
    metric = FrechetInceptionDistance(feature=Given(width)).set_dtype(torch.float64)
    metric.update(torch.from_numpy(x), real=True)
    metric.update(torch.from_numpy(y), real=False)
    # where there are fewer pictures than features, theirs takes roots of eigenvalues that are 0 up to rounding
    assert fid(*looked_up(x, y)) == pytest.approx(float(metric.compute()), rel=1e-5)


@pytest.mark.parametrize(("count", "width"), [(30, 4), (6, 50)])
def test_fid_of_equal_sets_is_0_in_any_order(count: int, width: int) -> None:
    x = np.random.default_rng(0).normal(size=(count, width)) * 100
    assert fid(*looked_up(x, x[::-1])) == pytest.approx(0, abs=1e-7)


def test_kid_is_that_of_torchmetrics() -> None:
    from torchmetrics.image.kid import KernelInceptionDistance

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(25, 6)), rng.normal(size=(25, 6)) * 1.3 + 0.4
    metric = KernelInceptionDistance(feature=Given(6), subsets=1, subset_size=25)
    metric.update(torch.from_numpy(x), real=True)
    metric.update(torch.from_numpy(y), real=False)
    assert kid(*looked_up(x, y)) == pytest.approx(float(metric.compute()[0]), rel=1e-9)


def test_kid_by_hand() -> None:
    # kernel (xy + 1)³ of {0, 1} and {1, 2}: within 1 and 27, across 1, 1, 8, 27
    x, y = np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]])
    assert kid(*looked_up(x, y)) == pytest.approx(1 + 27 - 2 * (1 + 1 + 8 + 27) / 4)


def test_kid_is_about_0_for_alike_sets_and_subsets_mean_the_same() -> None:
    rng = np.random.default_rng(0)
    alike = [kid(*looked_up(rng.normal(size=(20, 4)), rng.normal(size=(20, 4)))) for _ in range(200)]
    assert abs(np.mean(alike)) < 3 * np.std(alike) / np.sqrt(len(alike))
    x, y = rng.normal(size=(60, 4)), rng.normal(size=(50, 4)) + 0.5
    small, whole = kid(*looked_up(x, y), subset=20), kid(*looked_up(x, y))
    assert small == kid(*looked_up(x, y), subset=20)
    assert small != kid(*looked_up(x, y), subset=20, seed=1)
    assert small == pytest.approx(whole, rel=0.3)


@pytest.mark.parametrize("metric", [fid, kid])
@pytest.mark.parametrize(("before", "after"), [(1, 5), (5, 0)])
def test_sets_need_two_pictures(metric: Any, before: int, after: int) -> None:
    with pytest.raises(DSASError, match="from 2 pictures each on"):
        metric(*looked_up(np.zeros((before, 3)), np.zeros((after, 3))))


@pytest.mark.parametrize(("subset", "count_text"), [(1, "subsets of 1 "), (6, "subsets of 6 "), (0, "subsets of 0 ")])
def test_kid_subsets_that_cannot_be(subset: int, count_text: str) -> None:
    with pytest.raises(DSASError, match=f"{count_text}pictures: expected 2 to 5"):
        kid(*looked_up(np.zeros((5, 3)), np.zeros((8, 3))), subset=subset)


@pytest.mark.parametrize("values", [np.zeros(3), np.zeros((4, 2)), np.full((3, 2), np.nan)])
def test_features_that_are_none(values: np.ndarray) -> None:
    with pytest.raises(DSASError, match="expected finite numbers"):
        fid(noise_pictures(3), noise_pictures(3), lambda pictures: values)


# ---- features of the built-in judge ----------------------------------------------------------------------------------


def test_features_of_the_judge_are_those_that_its_head_is_fed_from(monkeypatch: pytest.MonkeyPatch) -> None:
    network = JudgeNetwork().eval()
    deepest: list[torch.Tensor] = []
    network.down[-1].register_forward_hook(lambda module, given, output: deepest.append(output))
    pictures = noise_pictures(5)
    Judge(network).look(pictures)
    expected = deepest[0].mean((2, 3))
    monkeypatch.setattr(similarity, "BATCH", 2)
    result = judge_features(Judge(network))(pictures)
    assert result.shape == (5, 160)
    assert result == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-5)


def test_features_of_the_shipped_judge_tell_sets_apart() -> None:
    features = judge_features()
    flat = [Image.new("RGB", (64, 64), (level, 120, 200)) for level in range(0, 160, 10)]
    assert fid(flat, flat, features) == pytest.approx(0, abs=1e-6)
    assert fid(flat, noise_pictures(16, size=(64, 64)), features) > 0.01
