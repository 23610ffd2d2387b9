"""What steering did to pictures: each metric against its reference, a closed form, or a case with a known answer."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dsas_core import DSASError
from dsas_diffusion import similarity, vision
from dsas_diffusion.builtin.architecture import TEXT_POSITIONS, build_tokenizer
from dsas_diffusion.builtin.judge import Judge, JudgeNetwork
from dsas_diffusion.similarity import (
    clip_score,
    fid,
    identical,
    judge_features,
    kid,
    latent_change,
    lpips,
    ssim,
    transformers_features,
)
from dsas_diffusion.vision import Clip, Unavailable

PROMPTS = ["a dog on the grass", "a blurred banana", "a cat and a hat at night"]
SMALL = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, initializer_range=0.3)


def noise_pictures(count: int, seed: int = 0, size: tuple[int, int] = (32, 32)) -> list[Image.Image]:
    """Random colours in blocks, so that what a network sees of them differs."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return [Image.fromarray(b).resize(size, Image.Resampling.BICUBIC) for b in blocks]


def save_processor(folder: Path, tokenizer: Any = None) -> Any:
    """An image processor for pictures of 32 x 32, with a tokenizer if one is given; saved."""
    from transformers import CLIPImageProcessor, CLIPProcessor

    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = CLIPProcessor(image_processor=images, tokenizer=tokenizer) if tokenizer else images
    processor.save_pretrained(folder)
    return processor


def save_clip(folder: Path) -> tuple[Any, Any]:
    """A tiny random CLIP with the built-in model's tokenizer, saved; returns model and processor."""
    from transformers import CLIPConfig, CLIPModel

    tokenizer = build_tokenizer(folder)
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    text = dict(vocab_size=len(tokenizer), max_position_embeddings=TEXT_POSITIONS, **SMALL, **ids)
    vision = dict(image_size=32, patch_size=8, **SMALL)
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
    # random projections map everything to about one direction: spread it out
    for layer in (model.visual_projection, model.text_projection):
        nn.init.normal_(layer.weight)
    model.save_pretrained(folder)
    return model, save_processor(folder, tokenizer)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder)
    return folder


class Columns:
    """Features that are looked up: pictures of one pixel, whose grey level is the row."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __call__(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        return self.values[[picture.getpixel((0, 0)) for picture in pictures]]


def looked_up(base: np.ndarray, made: np.ndarray) -> tuple[list[Image.Image], list[Image.Image], Columns]:
    """Pictures that have these features [n, d]."""
    pictures = [Image.new("L", (1, 1), row) for row in range(len(base) + len(made))]
    return pictures[: len(base)], pictures[len(base) :], Columns(np.concatenate([base, made]))


class Given(nn.Module):
    """A feature extractor for torchmetrics that gives back what it is given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


# ---- pairs ------------------------------------------------------------------------------------------------------


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
    made = [base[0], *(Image.blend(a, b, 0.3) for a, b in zip(base[1:], noise_pictures(2, 1, size), strict=True))]
    expected = [reference_ssim(np.asarray(a), np.asarray(b)) for a, b in zip(base, made, strict=True)]
    found = ssim(base, made)
    assert found == pytest.approx(expected, abs=1e-4)
    assert found[0] == pytest.approx(1, abs=1e-6)
    assert found[1:].max() < 0.99


@pytest.mark.parametrize(("a", "b"), [(0, 255), (100, 120), (7, 7)])
def test_ssim_of_flat_pictures(a: int, b: int) -> None:
    c1 = (0.01 * 255) ** 2
    pictures = [[Image.new("RGB", (16, 16), (level,) * 3)] for level in (a, b)]
    assert ssim(*pictures) == pytest.approx([(2 * a * b + c1) / (a * a + b * b + c1)], rel=1e-3)


def test_ssim_of_a_picture_does_not_depend_on_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    base, made = noise_pictures(5, 0), noise_pictures(5, 1)
    whole = ssim(base, made)
    monkeypatch.setattr(similarity, "BATCH", 2)
    assert ssim(base, made) == pytest.approx(whole, abs=1e-6)
    assert ssim([], []).shape == (0,)


def test_identical_is_bit_for_bit() -> None:
    base = noise_pictures(3)
    nudged = base[1].copy()
    red, green, blue = nudged.getpixel((3, 4))
    nudged.putpixel((3, 4), (red, green, blue ^ 1))
    found = identical(base, [base[0].copy(), nudged, base[2].convert("RGBA")])
    assert found.dtype == bool
    assert found.tolist() == [True, False, False]


@pytest.mark.parametrize("metric", [ssim, identical, lpips])
@pytest.mark.parametrize(
    ("made", "message"),
    [
        (noise_pictures(2), "1 pictures before, but 2 after"),
        (noise_pictures(1, size=(16, 32)), "found 16 x 32, 32 x 32"),
        ([np.zeros((32, 32, 3), np.uint8)], "found ndarray"),
    ],
)
def test_no_pairs(metric: Any, made: list[Any], message: str) -> None:
    with pytest.raises(DSASError, match=message):
        metric(noise_pictures(1), made)


def test_ssim_of_pictures_that_are_too_small() -> None:
    tiny = noise_pictures(1, size=(10, 32))
    with pytest.raises(DSASError, match="11 x 11 pixels or more, found 10 x 32"):
        ssim(tiny, tiny)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_latent_change(dtype: torch.dtype) -> None:
    base = torch.randn(3, 4, 8, 8).to(dtype)
    made = torch.stack([base[0], base[1] * 1.5, -base[2]])
    assert latent_change(base, made) == pytest.approx([0, 0.5, 2], rel=1e-3)


def test_latent_change_from_nothing() -> None:
    base = torch.zeros(2, 4, 2, 2)
    made = base.clone()
    made[1] += 1
    assert latent_change(base, made).tolist() == [0, np.inf]


@pytest.mark.parametrize(("base", "made"), [((2, 4, 8, 8), (1, 4, 8, 8)), ((4,), (4,))])
def test_latents_that_do_not_match(base: tuple[int, ...], made: tuple[int, ...]) -> None:
    with pytest.raises(DSASError, match="one shape"):
        latent_change(torch.zeros(base), torch.zeros(made))


# ---- LPIPS: its linear layers come with torchmetrics, its networks with torchvision -----------------------------


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
    base, made = noise_pictures(3, 0, (64, 64)), noise_pictures(3, 1, (64, 64))
    made[0] = base[0]
    scaled = [torch.from_numpy(np.stack([*map(np.asarray, p)])).permute(0, 3, 1, 2) / 127.5 - 1 for p in (base, made)]
    expected = functional._NoTrainLpips(net="alex")(*scaled).flatten()
    found = lpips(base, made)
    assert found == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-7)
    assert found[0] == 0
    assert found[1:].min() > 1e-3


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
    with pytest.raises(Unavailable, match=message):
        lpips(noise_pictures(1), noise_pictures(1))


@pytest.mark.parametrize("metric", [ssim, lpips])
def test_without_torchmetrics(metric: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torchmetrics.functional.image", "torchmetrics.image.lpip"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(Unavailable, match=r"pip install 'dsas-diffusion\[eval\]'"):
        metric(noise_pictures(1), noise_pictures(1))


def test_lpips_with_another_network() -> None:
    with pytest.raises(DSASError, match="alex, vgg, squeeze"):
        lpips([], [], net="resnet")


# ---- sets -------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(("subset", "found"), [(1, "subsets of 1 "), (6, "subsets of 6 "), (0, "subsets of 0 ")])
def test_kid_subsets_that_cannot_be(subset: int, found: str) -> None:
    with pytest.raises(DSASError, match=f"{found}pictures: expected 2 to 5"):
        kid(*looked_up(np.zeros((5, 3)), np.zeros((8, 3))), subset=subset)


@pytest.mark.parametrize("values", [np.zeros(3), np.zeros((4, 2)), np.full((3, 2), np.nan)])
def test_features_that_are_none(values: np.ndarray) -> None:
    with pytest.raises(DSASError, match="expected finite numbers"):
        fid(noise_pictures(3), noise_pictures(3), lambda pictures: values)


# ---- features ---------------------------------------------------------------------------------------------------


def test_features_of_the_judge_are_those_that_its_head_is_fed_from(monkeypatch: pytest.MonkeyPatch) -> None:
    network = JudgeNetwork().eval()
    deepest: list[torch.Tensor] = []
    network.down[-1].register_forward_hook(lambda module, given, made: deepest.append(made))
    pictures = noise_pictures(5)
    Judge(network).look(pictures)
    expected = deepest[0].mean((2, 3))
    monkeypatch.setattr(similarity, "BATCH", 2)
    found = judge_features(Judge(network))(pictures)
    assert found.shape == (5, 160)
    assert found == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-5)


def test_features_of_the_shipped_judge_tell_sets_apart() -> None:
    features = judge_features()
    flat = [Image.new("RGB", (64, 64), (level, 120, 200)) for level in range(0, 160, 10)]
    assert fid(flat, flat, features) == pytest.approx(0, abs=1e-6)
    assert fid(flat, noise_pictures(16, size=(64, 64)), features) > 0.01


def save_vit(folder: Path, kind: str) -> Any:
    from transformers import ViTConfig, ViTForImageClassification, ViTModel

    config = ViTConfig(image_size=32, patch_size=8, **SMALL)
    torch.manual_seed(0)
    model = (ViTModel if kind == "vit" else ViTForImageClassification)(config).eval()
    model.save_pretrained(folder)
    return model if kind == "vit" else model.vit


def save_resnet(folder: Path, kind: str) -> Any:
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    torch.manual_seed(0)
    model = ResNetModel(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("save", "kind", "expected"),
    [
        (save_vit, "vit", lambda made: made.pooler_output),
        # a classifier's checkpoint has no pooler: what transformers then makes up at random must not be read
        (save_vit, "vit classifier", lambda made: made.last_hidden_state.mean(1)),
        (save_resnet, "resnet", lambda made: made.last_hidden_state.mean((2, 3))),
        (lambda folder, kind: save_clip(folder)[0], "clip", None),
    ],
    ids=["pooled", "mean", "convolution", "clip"],
)
def test_features_of_transformers(save: Any, kind: str, expected: Any, tmp_path: Path) -> None:
    model = save(tmp_path, kind)
    pictures = noise_pictures(3)
    pixels = save_processor(tmp_path)(images=pictures, return_tensors="pt")["pixel_values"]
    if kind == "clip":  # keep the tokenizer's processor out of it: features need none
        (tmp_path / "processor_config.json").unlink()
        save_processor(tmp_path)
    with torch.no_grad():
        wanted = expected(model(pixel_values=pixels)) if expected else projected(model, pixels)
    found = transformers_features(tmp_path, device="cpu")(pictures)
    assert found.shape == tuple(wanted.shape)
    assert found == pytest.approx(wanted.numpy(), rel=1e-4, abs=1e-5)


def projected(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)


# ---- CLIP -------------------------------------------------------------------------------------------------------


def direct_scores(model: Any, processor: Any, pictures: list[Image.Image], prompts: list[str]) -> np.ndarray:
    """100 · max(cos, 0) from the vectors that CLIP's own forward gives."""
    inputs = processor(text=prompts, images=pictures, return_tensors="pt", padding=True)
    with torch.no_grad():
        made = model(**inputs)
    cosines = torch.nn.functional.cosine_similarity(made.image_embeds, made.text_embeds)
    return (100 * cosines.clamp(min=0)).numpy()


@pytest.fixture(scope="module")
def clip_parts(clip_folder: Path) -> tuple[Any, Any]:
    from transformers import AutoProcessor, CLIPModel

    return CLIPModel.from_pretrained(clip_folder).eval(), AutoProcessor.from_pretrained(clip_folder)


def test_clip_score_is_the_cosine_of_transformers(
    clip_folder: Path, clip_parts: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, prompts = noise_pictures(6), [*PROMPTS, *PROMPTS[::-1]]
    expected = direct_scores(*clip_parts, pictures, prompts)
    assert (expected == 0).any()  # both sides of the clamp
    assert (expected > 1).any()
    assert clip_score(pictures, prompts, clip_folder) == pytest.approx(expected, rel=1e-3, abs=1e-3)
    monkeypatch.setattr(vision, "BATCH", 2)
    assert clip_score(pictures, prompts, Clip(clip_folder)) == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert clip_score([], [], clip_folder).shape == (0,)


def test_clip_score_is_that_of_torchmetrics(clip_folder: Path, clip_parts: tuple[Any, Any]) -> None:
    from torchmetrics.multimodal import CLIPScore

    model, processor = clip_parts
    bare = SimpleNamespace(  # torchmetrics expects vectors, where transformers 5 gives output objects
        config=model.config,
        to=lambda device: bare,
        get_image_features=lambda pixels: projected(model, pixels),
        get_text_features=lambda ids, mask: model.text_projection(model.text_model(ids, mask).pooler_output),
    )
    metric = CLIPScore(model_name_or_path=lambda: (bare, processor))
    for picture, prompt in zip(noise_pictures(3), PROMPTS, strict=True):
        with torch.no_grad():
            expected = metric(torch.from_numpy(np.array(picture)).permute(2, 0, 1), prompt)
        assert clip_score([picture], [prompt], clip_folder) == pytest.approx([float(expected)], rel=1e-3, abs=1e-3)


def test_prompts_that_are_too_long_are_cut(clip_folder: Path) -> None:
    clip = Clip(clip_folder)
    words = "dog " * (TEXT_POSITIONS - 2)
    short, long, other = clip.of_texts([words, words + "cat " * 50, words.replace("dog", "cat", 1)])
    assert torch.allclose(short, long, atol=1e-5)
    assert not torch.allclose(short, other, atol=1e-2)


def test_clip_score_needs_a_prompt_for_each_picture(clip_folder: Path) -> None:
    with pytest.raises(DSASError, match="3 pictures, but 1 prompts"):
        clip_score(noise_pictures(3), ["a dog"], clip_folder)


# ---- models that are not to be had ------------------------------------------------------------------------------


@pytest.mark.parametrize("use", [Clip, transformers_features])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "no model is named"),
        ("./nowhere", "no such folder"),
        ("empty", r"has no config\.json"),
        ("pickled", "cannot load .*safetensors"),
        ("torn", "cannot load"),
    ],
)
def test_models_that_cannot_be_loaded(
    use: Any, name: str, message: str, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for kind in ("pickled", "torn"):
        shutil.copytree(clip_folder, tmp_path / kind)
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pickled" / "pytorch_model.bin")
    (tmp_path / "torn" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(Unavailable, match=message) as caught:
        use(name)
    assert "\n" not in str(caught.value)


def test_the_hub_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModel

    def fails(name: str, **options: Any) -> None:
        raise OSError("We couldn't connect to 'https://huggingface.co'\nto load the files")

    monkeypatch.setattr(AutoModel, "from_pretrained", fails)
    with pytest.raises(Unavailable, match=r"cannot load someone/clip: We couldn't connect to .* to load the files"):
        clip_score(noise_pictures(1), ["a dog"], "someone/clip")


def test_what_is_no_clip(tmp_path: Path) -> None:
    save_vit(tmp_path, "vit")
    save_processor(tmp_path)
    with pytest.raises(Unavailable, match="is no CLIP"):
        Clip(tmp_path)


def test_weights_that_are_missing(clip_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for use in (Clip, transformers_features):
        with pytest.raises(Unavailable, match=r"it lacks visual_projection\.weight, which would be random"):
            use(folder)
