"""The judge of `builtin:emoji`: segments pictures into things and their styles; trained on the scenes of the model.

It is used for evaluation alone, never for learning or steering.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from dsas_core.errors import UnavailableError

from .scenes import NAMES, STYLES

#: a thing is detected if it covers this share of the picture, and this share of the largest thing's area
MIN_SHARE, MIN_RELATIVE = 0.012, 0.2


def _convolution(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(8, outside), nn.ReLU())


class JudgeNetwork(nn.Module):
    """A small U-Net on 2x2 pixel blocks.

    Maps pictures [batch, 3, height, width] in [-1, 1] to logits of things [batch, 1 + things, height / 2, width / 2]
    (the first is "none") and of styles [batch, styles, height / 2, width / 2].

    Args:
        widths: channels at each resolution, the highest first.

    Example:
        >>> [tuple(logits.shape) for logits in JudgeNetwork()(torch.zeros(1, 3, 32, 32))]
        [(1, 37, 16, 16), (1, 4, 16, 16)]
    """

    def __init__(self, widths: tuple[int, ...] = (24, 64, 112, 160)) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            nn.Sequential(_convolution(inside, outside, 1 if i == 0 else 2), _convolution(outside, outside))
            for i, (inside, outside) in enumerate(zip((12, *widths), widths, strict=False))
        )
        steps = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(_convolution(deep + skip, skip) for deep, skip in steps)
        self.head = nn.Conv2d(widths[0], 1 + len(NAMES) + len(STYLES), 1)

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        skips = []
        x = F.pixel_unshuffle(pictures, 2)
        for stage in self.down:
            x = stage(x)
            skips.append(x)
        skips.pop()
        for stage in self.up:
            skip = skips.pop()
            x = stage(torch.cat([F.interpolate(x, size=skip.shape[-2:], mode="nearest"), skip], 1))
        logits = self.head(x)
        return logits[:, : 1 + len(NAMES)], logits[:, 1 + len(NAMES) :]


@dataclass(frozen=True)
class Verdict:
    """The things in a picture.

    Args:
        styles: thing -> its style.
        centres: thing -> its centre (x, y), as fractions of width and height.
        masks: thing -> bool [height, width].
    """

    styles: dict[str, str]
    centres: dict[str, tuple[float, float]]
    masks: dict[str, np.ndarray]

    @property
    def things(self) -> frozenset[str]:
        """Names of the things."""
        return frozenset(self.styles)


class Judge:
    """Detects things and their styles in pictures.

    Args:
        network: a trained network; `Judge.load()` reads the one that ships.

    Example:
        >>> Judge.load().look(np.zeros((1, 64, 64, 3), np.uint8))[0].things
        frozenset()
    """

    def __init__(self, network: JudgeNetwork) -> None:
        self.network = network.eval().float()

    @classmethod
    def load(cls, folder: str | Path | None = None) -> Judge:
        """Read a judge.

        Args:
            folder: folder with judge.safetensors; None for the one that ships.

        Raises:
            UnavailableError: there are no weights.
        """
        from safetensors.torch import load_file

        path = Path(folder or Path(__file__).parent / "judge") / "judge.safetensors"
        if not path.is_file():
            raise UnavailableError(f"no judge at {path}: `make train-builtin` trains one")
        network = JudgeNetwork()
        network.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
        return cls(network)

    @torch.inference_mode()
    def look(self, pictures: list[Image.Image] | np.ndarray, batch: int = 64) -> list[Verdict]:
        """Judge pictures.

        Args:
            pictures: images of one size, or an array uint8 [n, height, width, 3].
            batch: pictures per forward pass.

        Returns:
            A verdict for each picture.
        """
        if not len(pictures):
            return []
        if not isinstance(pictures, np.ndarray):
            pictures = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
        verdicts: list[Verdict] = []
        for chunk in torch.from_numpy(np.array(pictures)).split(batch):
            logits = self.network(chunk.permute(0, 3, 1, 2).float() / 127.5 - 1)
            things, styles = (F.interpolate(x, size=chunk.shape[1:3], mode="bilinear") for x in logits)
            verdicts += map(_judge, things, styles)
        return verdicts


def _judge(things: torch.Tensor, styles: torch.Tensor) -> Verdict:
    """The verdict on a picture, by its logits of things and of styles, both [classes, height, width]."""
    labels = things.argmax(0)
    counts = labels.flatten().bincount(minlength=1 + len(NAMES))[1:]
    least = max(MIN_SHARE * labels.numel(), MIN_RELATIVE * int(counts.max()))
    height, width = labels.shape
    verdict = Verdict({}, {}, {})
    for index in (counts >= least).nonzero().flatten().tolist():
        mask = labels == index + 1
        rows, columns = mask.nonzero(as_tuple=True)
        name = NAMES[index]
        verdict.styles[name] = STYLES[int(styles.log_softmax(0)[:, mask].mean(1).argmax())]
        verdict.centres[name] = (float(columns.float().mean()) / width, float(rows.float().mean()) / height)
        verdict.masks[name] = mask.numpy()
    return verdict
