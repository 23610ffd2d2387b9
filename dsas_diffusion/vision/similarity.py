"""Similarity of pictures before and after steering, in pairs and in sets, and of pictures to their prompts.

Pictures are PIL images of one size. `ssim`, `lpips`, `latent_change`, `identical` and `change_outside` compare pairs;
`fid` and `kid` compare sets, in a space of features; `clip_score` compares pictures with prompts. A missing library or
missing weights raise `UnavailableError`, so that an evaluation can go on without the figure.
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

#: side of the window of SSIM, in pixels
WINDOW = 11
#: networks that LPIPS has weights for
NETS = ("alex", "vgg", "squeeze")
#: random subsets of `kid`, and the most pictures in a subset
SUBSETS, SUBSET = 100, 1000

#: pictures -> float [n, d]
Features = Callable[[Sequence[Image.Image]], np.ndarray]


# ---- pairs ------------------------------------------------------------------------------------------------------


def ssim(base: Sequence[Image.Image], steered: Sequence[Image.Image]) -> np.ndarray:
    """Structural similarity of each pair (Wang et al. 2004, by torchmetrics), 1 for equal pictures.

    A Gaussian window with sigma 1.5, reflection at the edges, mean over colours; the data range is 255.

    Args:
        base: pictures before.
        steered: pictures after.

    Returns:
        Float [n].

    Raises:
        DSASError: no pairs of one size, or pictures smaller than the window.
        UnavailableError: torchmetrics is not installed.

    Example:
        >>> grey, black = (Image.new("RGB", (16, 16), colour) for colour in ("grey", "black"))
        >>> ssim([grey, grey], [grey, black]).round(2).tolist()
        [1.0, 0.0]
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
    """Learned perceptual distance of each pair (LPIPS, Zhang et al. 2018, by torchmetrics), 0 for equal pictures.

    Args:
        base: pictures before.
        steered: pictures after.
        net: "alex", "vgg" or "squeeze".

    Returns:
        Float [n].

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
    """Whether the pictures of each pair are equal bit for bit, bool [n].

    Example:
        >>> grey, black = (Image.new("RGB", (16, 16), colour) for colour in ("grey", "black"))
        >>> identical([grey, grey], [grey, black]).tolist()
        [True, False]
    """
    pair_of(base, steered)
    pairs = zip(base, steered, strict=True)
    return np.array([a.mode == b.mode and a.tobytes() == b.tobytes() for a, b in pairs], dtype=bool)


def latent_change(base: torch.Tensor, steered: torch.Tensor) -> np.ndarray:
    """Relative L2 change ‖steered − base‖ / ‖base‖ of each item.

    Args:
        base: latents before, [n, channels, height, width].
        steered: latents after.

    Returns:
        Float [n].

    Raises:
        DSASError: tensors of different shapes, or without items.

    Example:
        >>> latent_change(torch.ones(1, 4, 8, 8), torch.full((1, 4, 8, 8), 1.5)).tolist()
        [0.5]
    """
    if base.shape != steered.shape or base.ndim < 2:
        found = f"{list(base.shape)} and {list(steered.shape)}"
        raise DSASError(f"latents are to have one shape [n, channels, height, width], found {found}")
    before, after = (x.detach().cpu().double().flatten(1) for x in (base, steered))
    change, size = (after - before).norm(dim=1), before.norm(dim=1)
    return torch.where(change == 0, 0.0, change / size).numpy()


def change_outside(
    base: Sequence[Image.Image], steered: Sequence[Image.Image], masks: Sequence[np.ndarray | None]
) -> list[float]:
    """Mean absolute pixel difference, of 255, outside the mask of a thing.

    The mask is dilated by a tenth of the picture's width: a softer edge of the thing is no change of its surroundings.

    Args:
        base: pictures before.
        steered: pictures after.
        masks: the thing in the pictures before, bool [height, width].

    Returns:
        A number for each picture with a mask that, dilated, does not cover all.

    Example:
        >>> grey, black = (Image.new("RGB", (16, 16), colour) for colour in ("grey", "black"))
        >>> change_outside([grey, grey], [black, black], [np.zeros((16, 16), bool), None])
        [128.0]
    """
    changes = []
    for before, after, mask in zip(base, steered, masks, strict=True):
        if mask is not None and (around := surroundings(mask)).any():
            difference = np.abs(np.asarray(before, np.float32) - np.asarray(after, np.float32)).mean(-1)
            changes.append(float(difference[around].mean()))
    return changes


def surroundings(mask: np.ndarray) -> np.ndarray:
    """The pixels outside a mask [height, width] that is dilated by a tenth of its width, bool [height, width]."""
    from scipy.ndimage import maximum_filter

    return maximum_filter(mask.astype(np.uint8), 2 * (mask.shape[1] // 10) + 1, mode="constant") == 0


# ---- sets -------------------------------------------------------------------------------------------------------


def fid(base: Sequence[Image.Image], steered: Sequence[Image.Image], features: Features) -> float:
    """Fréchet distance of two sets of pictures in a space of features (Heusel et al. 2017), at least 0.

    `‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁^½ Σ₂ Σ₁^½)^½)`, in float64. It falls with the number of pictures and depends on
    the features: compare only distances that have both in common.

    Args:
        base: the one set.
        steered: the other set.
        features: pictures -> float [n, d].

    Example:
        >>> grey, black = (Image.new("RGB", (16, 16), colour) for colour in ("grey", "black"))
        >>> mean = lambda pictures: [[np.asarray(picture).mean()] for picture in pictures]
        >>> fid([grey, grey], [black, black], mean) == 128**2
        True

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
    """Kernel distance of two sets of pictures in a space of features (Bińkowski et al. 2018), about 0 for similar sets.

    The unbiased estimate of MMD² with the kernel `(x·y / d + 1)³`, which can be negative; mean over 100 random subsets.

    Args:
        base: the one set.
        steered: the other set.
        features: pictures -> float [n, d].
        subset: pictures of each set in a subset; None takes all of the smaller set, 1000 at most.
        seed: of the subsets.

    Raises:
        DSASError: fewer than 2 pictures in a set, a subset of fewer than 2 or of more than there are, or features that
            are not finite numbers [n, d].

    Example:
        >>> grey, black = (Image.new("RGB", (16, 16), colour) for colour in ("grey", "black"))
        >>> mean = lambda pictures: [[np.asarray(picture).mean() / 255] for picture in pictures]
        >>> kid([grey, grey], [black, black], mean) > kid([grey, grey], [grey, grey], mean)
        True
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
    """Features [n, 160] from the network of the built-in judge: its deepest layer, averaged over the picture.

    Args:
        judge: None takes the built-in one.
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
    """Features [n, d] from an image model of transformers: its pooled output, or the mean of its last hidden states.

    Args:
        name: a folder or Hub name.
        device: "auto" takes a GPU if there is one.
        options: further arguments of `from_pretrained` (revision, token, …).

    Raises:
        UnavailableError: no such model, or no image model.
    """
    model, processor, missing = load_pretrained(name, "AutoModel", "AutoImageProcessor", device, **options)
    pooled = not any("pooler" in key for key in missing)  # an untrained pooler is random
    if lacking := [key for key in missing if "pooler" not in key]:
        raise UnavailableError(f"{name} is no image model: it lacks {lacking[0]}, which would be random")

    @torch.inference_mode()
    def features(pictures: Sequence[Image.Image]) -> np.ndarray:
        batches = []
        for chunk in chunks(pictures):
            pixels = processor(images=chunk, return_tensors="pt")["pixel_values"].to(model.device)
            if hasattr(model, "get_image_features"):  # a model of pictures and texts
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
    """CLIPScore of each picture and its prompt, `100 · max(cos, 0)` (Hessel et al. 2021, with torchmetrics' factor).

    torchmetrics 1.9 itself fails on the outputs of CLIPs of transformers 5, and drops prompts' ends that are too long.

    Args:
        pictures: the pictures.
        prompts: one for each picture.
        model: a CLIP, by folder or Hub name or loaded.

    Returns:
        Float [n] in [0, 100].

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


# ---- shared by all ----------------------------------------------------------------------------------------------


def pair_of(base: Sequence[Image.Image], steered: Sequence[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """Pictures before and after as uint8 [n, height, width, 3] each.

    Raises:
        DSASError: sequences of different lengths, or pictures of different sizes.
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
