"""How alike two pictures are: each metric against its reference or a case with a known answer."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dsas_core import DSASError
from dsas_core.errors import UnavailableError
from dsas_diffusion.vision import similarity
from dsas_diffusion.vision.similarity import change_outside, identical, latent_change, lpips, ssim, surroundings
from tests.fixtures.vision_models import noise_pictures


def reference_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004, for pictures [height, width, 3] out of 255; mirrored at the edges, as torchmetrics does."""
    from scipy.ndimage import gaussian_filter

    def mean(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, sigma=(1.5, 1.5, 0), truncate=3.5, mode="mirror")

    a, b = a.astype(np.float64), b.astype(np.float64)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ma, mb = mean(a), mean(b)
    va, vb, vab = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    return float((((2 * ma * mb + c1) * (2 * vab + c2)) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean())


@pytest.mark.parametrize("size", [(32, 32), (40, 24), (11, 11)])
def test_ssim_is_the_published_one(size: tuple[int, int]) -> None:
    base = noise_pictures(3, 0, size)
    steered = [base[0], *(Image.blend(a, b, 0.3) for a, b in zip(base[1:], noise_pictures(2, 1, size), strict=True))]
    expected = [reference_ssim(np.asarray(a), np.asarray(b)) for a, b in zip(base, steered, strict=True)]
    result = ssim(base, steered)
    assert result == pytest.approx(expected, abs=1e-4)
    assert result[0] == pytest.approx(1, abs=1e-6)
    assert result[1:].max() < 0.99


@pytest.mark.parametrize(("a", "b"), [(0, 255), (100, 120), (7, 7)])
def test_ssim_of_flat_pictures(a: int, b: int) -> None:
    c1 = (0.01 * 255) ** 2
    pictures = [[Image.new("RGB", (16, 16), (level,) * 3)] for level in (a, b)]
    assert ssim(*pictures) == pytest.approx([(2 * a * b + c1) / (a * a + b * b + c1)], rel=1e-3)


def test_ssim_of_a_picture_does_not_depend_on_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    base, steered = noise_pictures(5, 0), noise_pictures(5, 1)
    whole = ssim(base, steered)
    monkeypatch.setattr(similarity, "BATCH", 2)
    assert ssim(base, steered) == pytest.approx(whole, abs=1e-6)
    assert ssim([], []).shape == (0,)


def test_identical_is_bit_for_bit() -> None:
    base = noise_pictures(3)
    nudged = base[1].copy()
    red, green, blue = nudged.getpixel((3, 4))
    nudged.putpixel((3, 4), (red, green, blue ^ 1))
    result = identical(base, [base[0].copy(), nudged, base[2].convert("RGBA")])
    assert result.dtype == bool
    assert result.tolist() == [True, False, False]


@pytest.mark.parametrize("metric", [ssim, identical, lpips])
@pytest.mark.parametrize(
    ("steered", "message"),
    [
        (noise_pictures(2), "1 pictures before, but 2 after"),
        (noise_pictures(1, size=(16, 32)), "found 16 x 32, 32 x 32"),
        ([np.zeros((32, 32, 3), np.uint8)], "found ndarray"),
    ],
)
def test_no_pairs(metric: Any, steered: list[Any], message: str) -> None:
    with pytest.raises(DSASError, match=message):
        metric(noise_pictures(1), steered)


def test_ssim_of_pictures_that_are_too_small() -> None:
    tiny = noise_pictures(1, size=(10, 32))
    with pytest.raises(DSASError, match="11 x 11 pixels or more, found 10 x 32"):
        ssim(tiny, tiny)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_latent_change(dtype: torch.dtype) -> None:
    base = torch.randn(3, 4, 8, 8).to(dtype)
    steered = torch.stack([base[0], base[1] * 1.5, -base[2]])
    assert latent_change(base, steered) == pytest.approx([0, 0.5, 2], rel=1e-3)


def test_surroundings_begin_a_tenth_of_the_width_away() -> None:
    mask = np.zeros((40, 30), bool)
    mask[20, 10] = True
    inside = np.zeros_like(mask)
    inside[17:24, 7:14] = True
    assert np.array_equal(surroundings(mask), ~inside)
    assert not surroundings(np.ones((4, 4), bool)).any()


def test_changes_within_the_dilated_mask_do_not_count() -> None:
    mask = np.zeros((40, 30), bool)
    mask[20, 10] = True
    near, far = np.zeros((2, 40, 30, 3), np.uint8)
    near[17:24, 7:14] = 90
    far[16, 7] = 90
    before, *after = (Image.fromarray(pixels) for pixels in (np.zeros_like(near), near, far))
    changes = change_outside([before] * 3, [*after, before], [mask, mask, np.ones_like(mask)])
    assert changes == pytest.approx([0.0, 90 / (40 * 30 - 49)])


def test_latent_change_from_nothing() -> None:
    base = torch.zeros(2, 4, 2, 2)
    steered = base.clone()
    steered[1] += 1
    assert latent_change(base, steered).tolist() == [0, np.inf]


@pytest.mark.parametrize(("base", "steered"), [((2, 4, 8, 8), (1, 4, 8, 8)), ((4,), (4,))])
def test_latents_that_do_not_match(base: tuple[int, ...], steered: tuple[int, ...]) -> None:
    with pytest.raises(DSASError, match="one shape"):
        latent_change(torch.zeros(base), torch.zeros(steered))


# ---- LPIPS: its linear layers come with torchmetrics, its networks with torchvision ----------------------------------


def alexnet(name: str, pretrained: bool = False) -> nn.Sequential:
    """The layers of torchvision's AlexNet, untrained."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    shapes = [(3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1)]
    for index, (inside, outside, kernel, stride, padding) in enumerate(shapes):
        layers += [nn.Conv2d(inside, outside, kernel, stride, padding), nn.ReLU()]
        layers += [nn.MaxPool2d(3, 2)] if index in (0, 1, 4) else []
    return nn.Sequential(*layers)


def test_lpips_is_what_torchmetrics_says_of_each_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchmetrics.functional.image import lpips as functional
    from torchmetrics.image import lpip

    monkeypatch.setattr(lpip, "_TORCHVISION_AVAILABLE", True)
    monkeypatch.setattr(functional, "_get_tv_model_features", alexnet)
    base, steered = noise_pictures(3, 0, (64, 64)), noise_pictures(3, 1, (64, 64))
    steered[0] = base[0]
    scaled = [
        torch.from_numpy(np.stack([*map(np.asarray, p)])).permute(0, 3, 1, 2) / 127.5 - 1 for p in (base, steered)
    ]
    expected = functional._NoTrainLpips(net="alex")(*scaled).flatten()
    result = lpips(base, steered)
    assert result == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-7)
    assert result[0] == 0
    assert result[1:].min() > 1e-3


@pytest.mark.parametrize(
    ("available", "error", "message"),
    [(False, None, "needs torchvision"), (True, OSError("no route\nto host"), "no weights of alex: no route to host")],
)
def test_lpips_says_why_it_is_not_to_be_had(
    available: bool, error: Exception | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchmetrics.functional.image import lpips as functional
    from torchmetrics.image import lpip

    def fails(name: str, pretrained: bool = False) -> nn.Sequential:
        assert error
        raise error

    monkeypatch.setattr(lpip, "_TORCHVISION_AVAILABLE", available)
    monkeypatch.setattr(functional, "_get_tv_model_features", fails)
    with pytest.raises(UnavailableError, match=message):
        lpips(noise_pictures(1), noise_pictures(1))


@pytest.mark.parametrize("metric", [ssim, lpips])
def test_without_torchmetrics(metric: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torchmetrics.functional.image", "torchmetrics.image.lpip"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UnavailableError, match=r"pip install 'dsas-diffusion\[eval\]'"):
        metric(noise_pictures(1), noise_pictures(1))


def test_lpips_with_another_network() -> None:
    with pytest.raises(DSASError, match="alex, vgg, squeeze"):
        lpips([], [], net="resnet")
