"""What steering did to pictures, no judge needed: how alike pairs and sets are, how well pictures fit their prompts.

Pictures are PIL images of one size. `ssim`, `lpips`, `latent_change` and `identical` compare pairs; `fid` and `kid`
compare sets, in a space of features; `clip_score` compares pictures with prompts. What another library or other
weights must do raises `UnavailableError` where they are not to be had, so that who evaluates can go on without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from dsas_core.errors import DSASError, UnavailableError
from dsas_core.model.loading import load_pretrained, reason_of

from ..builtin.judge import Judge
from .image_models import BATCH, Clip, array_of, chunks, embedding

#: side of the window that SSIM compares, in pixels
WINDOW = 11
#: networks that LPIPS has weights for
NETS = ("alex", "vgg", "squeeze")
#: random subsets that `kid` is the mean over, and the most pictures in one
SUBSETS, SUBSET = 100, 1000

#: pictures -> float [n, d]
Features = Callable[[Sequence[Image.Image]], np.ndarray]


# ---- pairs ------------------------------------------------------------------------------------------------------


def ssim(base: Sequence[Image.Image], steered: Sequence[Image.Image]) -> np.ndarray:
    """Structural similarity of each pair (Wang et al. 2004, as torchmetrics has it), float [n], 1 for equal pictures.

    A Gaussian window with sigma 1.5, pictures mirrored at their edges, mean over colours; values are out of 255.

    Raises:
        DSASError: no pairs of one size, or pictures smaller than the window.
        UnavailableError: torchmetrics is not installed.
    """
    before, after = pair_of(base, steered)
    if len(before) and min(before.shape[1:3]) < WINDOW:
        raise DSASError(f"SSIM needs pictures of {WINDOW} x {WINDOW} pixels or more, found {_size(before)}")
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise _not_installed("SSIM", error) from error

    scores = []
    for a, b in zip(_batches(before), _batches(after), strict=True):
        values = structural_similarity_index_measure(a, b, data_range=255.0, reduction="none")
        assert isinstance(values, torch.Tensor)  # two of them come only where contrast is asked for
        scores.append(values.reshape(-1))
    return _join(scores)


def lpips(base: Sequence[Image.Image], steered: Sequence[Image.Image], net: str = "alex") -> np.ndarray:
    """Learned perceptual distance of each pair (Zhang et al. 2018, torchmetrics), float [n], 0 for equal pictures.

    Args:
        net: "alex", "vgg" or "squeeze".

    Raises:
        DSASError: no such network, or no pairs of one size.
        UnavailableError: torchmetrics or torchvision is not installed, or the network's weights cannot be downloaded.
    """
    if net not in NETS:
        raise DSASError(f"LPIPS net {net!r}: expected one of {', '.join(NETS)}")
    before, after = pair_of(base, steered)
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
    except ImportError as error:
        raise _not_installed("LPIPS", error) from error

    try:
        metric = LearnedPerceptualImagePatchSimilarity(net_type=net)  # type: ignore[arg-type]
    except ModuleNotFoundError as error:
        raise UnavailableError("LPIPS needs torchvision, which is not installed: pip install torchvision") from error
    except Exception as error:  # a download that fails raises a dozen kinds
        raise UnavailableError(f"LPIPS: no weights of {net}: {reason_of(error)}") from error
    with torch.inference_mode():
        pairs = zip(_batches(before, 1), _batches(after, 1), strict=True)
        return _join([metric(a / 127.5 - 1, b / 127.5 - 1).reshape(1) for a, b in pairs])


def identical(base: Sequence[Image.Image], steered: Sequence[Image.Image]) -> np.ndarray:
    """Whether the pictures of each pair are equal bit for bit, bool [n]."""
    pair_of(base, steered)
    pairs = zip(base, steered, strict=True)
    return np.array([a.mode == b.mode and a.tobytes() == b.tobytes() for a, b in pairs], dtype=bool)


def latent_change(base: torch.Tensor, steered: torch.Tensor) -> np.ndarray:
    """Relative L2 change ‖steered − base‖ / ‖base‖ of each item of latents [n, channels, height, width], float [n].

    Raises:
        DSASError: tensors of different shapes, or without items.
    """
    if base.shape != steered.shape or base.ndim < 2:
        found = f"{list(base.shape)} and {list(steered.shape)}"
        raise DSASError(f"latents are to have one shape [n, channels, height, width], found {found}")
    before, after = (x.detach().cpu().double().flatten(1) for x in (base, steered))
    change, size = (after - before).norm(dim=1), before.norm(dim=1)
    return torch.where(change == 0, 0.0, change / size).numpy()


# ---- sets -------------------------------------------------------------------------------------------------------


def fid(base: Sequence[Image.Image], steered: Sequence[Image.Image], features: Features) -> float:
    """Fréchet distance of two sets of pictures in a space of features (Heusel et al. 2017), from 0 up.

    `‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁^½ Σ₂ Σ₁^½)^½)`, in float64. It falls with the number of pictures and depends on
    the features: compare only what has both in common.

    Raises:
        DSASError: fewer than 2 pictures in a set, or features that are not finite numbers [n, d].
    """
    x, y = _features_of(base, steered, features)
    gap = float(((x.mean(0) - y.mean(0)) ** 2).sum())
    a, b = _root(x), _root(y)
    # with Σ₁ = aᵀa and Σ₂ = bᵀb the trace of the root is the sum of the singular values of a bᵀ: nothing to clip
    shared = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return max(0.0, gap + float((a**2).sum() + (b**2).sum() - 2 * shared))


def kid(
    base: Sequence[Image.Image],
    steered: Sequence[Image.Image],
    features: Features,
    subset: int | None = None,
    seed: int = 0,
) -> float:
    """Kernel distance of two sets of pictures in a space of features (Bińkowski et al. 2018), about 0 for alike ones.

    The unbiased estimate of MMD² with the kernel `(x·y / d + 1)³`, which can be below 0; mean over 100 random subsets.

    Args:
        subset: pictures of each set in a subset; None takes all of the smaller set, 1000 at most.
        seed: of the subsets.

    Raises:
        DSASError: fewer than 2 pictures in a set, a subset of fewer than 2 or of more than there are, or features that
            are not finite numbers [n, d].
    """
    x, y = _features_of(base, steered, features)
    most = min(len(x), len(y))
    size = min(SUBSET, most) if subset is None else subset
    if not 2 <= size <= most:
        raise DSASError(f"KID subsets of {size} pictures: expected 2 to {most}")
    rng = np.random.default_rng(seed)
    count = 1 if size == len(x) == len(y) else SUBSETS  # every subset would be the same
    drawn = [(rng.choice(len(x), size, replace=False), rng.choice(len(y), size, replace=False)) for _ in range(count)]
    return float(np.mean([_mmd(x[first], y[second]) for first, second in drawn]))


def _features_of(
    base: Sequence[Image.Image], steered: Sequence[Image.Image], features: Features
) -> tuple[np.ndarray, np.ndarray]:
    """Features of both sets, float64 [n, d]."""
    both = []
    for pictures in (base, steered):
        if len(pictures) < 2:
            raise DSASError(f"sets of pictures are compared from 2 pictures each on, found {len(pictures)}")
        values = np.asarray(features(pictures), dtype=np.float64)
        if values.ndim != 2 or len(values) != len(pictures) or not np.isfinite(values).all():
            raise DSASError(
                f"features of {len(pictures)} pictures: expected finite numbers [n, d], found {list(values.shape)}"
            )
        both.append(values)
    return both[0], both[1]


def _root(x: np.ndarray) -> np.ndarray:
    """A matrix [min(n, d), d] whose product with itself, `rᵀr`, is the covariance of x [n, d]."""
    return np.linalg.qr((x - x.mean(0)) / np.sqrt(len(x) - 1)).R


def _mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate of MMD² of two sets of m items each."""
    m, d = x.shape
    xx, yy, xy = ((a @ b.T / d + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)
    return float(within / (m * (m - 1)) - 2 * xy.mean())


def judge_features(judge: Judge | None = None) -> Features:
    """Features [n, 160] from the network of the built-in judge: its deepest layer, mean over the picture.

    Args:
        judge: None takes the one that ships.
    """
    network = (judge or Judge.load()).network

    @torch.inference_mode()
    def features(pictures: Sequence[Image.Image]) -> np.ndarray:
        batches = []
        for x in _batches(array_of(pictures)):
            x = F.pixel_unshuffle(x / 127.5 - 1, 2)
            for stage in network.down:
                x = stage(x)
            batches.append(x.mean((2, 3)))
        return _join(batches)

    return features


def transformers_features(name: str | Path, *, device: str = "auto", **options: Any) -> Features:
    """Features [n, d] from an image model of transformers: what it pools, or else the mean of its last hidden state.

    Args:
        name: a folder or Hub name.
        device: "auto" takes a GPU when there is one.
        options: further arguments of `from_pretrained` (revision, token, …).

    Raises:
        UnavailableError: no such model, or no image model.
    """
    model, processor, missing = load_pretrained(name, "AutoModel", "AutoImageProcessor", device, **options)
    pooled = not any("pooler" in key for key in missing)  # a pooler that was never trained says nothing
    if lacking := [key for key in missing if "pooler" not in key]:
        raise UnavailableError(f"{name} is no image model: it lacks {lacking[0]}, which would be random")

    @torch.inference_mode()
    def features(pictures: Sequence[Image.Image]) -> np.ndarray:
        batches = []
        for chunk in chunks(pictures):
            pixels = processor(images=chunk, return_tensors="pt")["pixel_values"].to(model.device)
            if hasattr(model, "get_image_features"):  # pictures are one half of what it reads
                batches.append(embedding(model.get_image_features(pixel_values=pixels)))
                continue
            outputs = model(pixel_values=pixels)
            if pooled and getattr(outputs, "pooler_output", None) is not None:
                batches.append(outputs.pooler_output.flatten(1))
                continue
            hidden = outputs.last_hidden_state  # [n, positions, d], or [n, d, height, width] from a convolution
            batches.append(hidden.mean(1) if hidden.ndim == 3 else hidden.flatten(2).mean(-1))
        return _join(batches)

    return features


# ---- pictures and prompts ---------------------------------------------------------------------------------------


def clip_score(pictures: Sequence[Image.Image], prompts: Sequence[str], model: str | Path | Clip) -> np.ndarray:
    """CLIPScore of each picture and its prompt, `100 · max(cos, 0)`, float [n] in [0, 100].

    Hessel et al. 2021, with the factor that torchmetrics has. torchmetrics 1.9 itself fails on what CLIPs of
    transformers 5 return, and loses the end of prompts that are too long.

    Args:
        model: a CLIP, by folder or Hub name or loaded.

    Raises:
        DSASError: not as many prompts as pictures.
        UnavailableError: no such model, or no CLIP.
    """
    if len(pictures) != len(prompts):
        raise DSASError(f"{len(pictures)} pictures, but {len(prompts)} prompts: expected one each")
    clip = model if isinstance(model, Clip) else Clip(model)
    if not len(pictures):
        return np.zeros(0)
    texts = torch.cat([clip.of_texts(prompts[i : i + BATCH]) for i in range(0, len(prompts), BATCH)])
    return (100 * (clip.of_pictures(pictures) * texts).sum(-1)).clamp(0, 100).double().numpy()


# ---- what all of them need --------------------------------------------------------------------------------------


def pair_of(base: Sequence[Image.Image], steered: Sequence[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """Pictures before and after as uint8 [n, height, width, 3] each.

    Raises:
        DSASError: not as many of one as of the other, or not of one size.
    """
    if len(base) != len(steered):
        raise DSASError(f"{len(base)} pictures before, but {len(steered)} after: expected pairs")
    both = array_of([*base, *steered])
    return both[: len(base)], both[len(base) :]


def _batches(array: np.ndarray, batch: int = BATCH) -> Iterator[torch.Tensor]:
    """Pictures uint8 [n, height, width, 3] as float [batch, 3, height, width] out of 255."""
    for start in range(0, len(array), batch):
        yield torch.from_numpy(array[start : start + batch]).permute(0, 3, 1, 2).float()


def _join(batches: Sequence[torch.Tensor]) -> np.ndarray:
    return torch.cat(list(batches)).double().cpu().numpy() if batches else np.zeros(0)


def _size(array: np.ndarray) -> str:
    return f"{array.shape[2]} x {array.shape[1]}"


def _not_installed(metric: str, error: ImportError) -> UnavailableError:
    return UnavailableError(f"{metric} needs torchmetrics: pip install 'dsas-diffusion[eval]' ({reason_of(error)})")
