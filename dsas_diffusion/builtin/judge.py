"""The judge: which thing each pixel shows, and in which style; trained on the same renderer as the model.

It measures. It never takes part in learning or steering.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from .scenes import NAMES, STYLES

#: a thing is there when it covers this share of the picture, and this share of the largest thing
MIN_SHARE, MIN_RELATIVE = 0.012, 0.2


def _convolution(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(8, outside), nn.ReLU())


class JudgeNetwork(nn.Module):
    """A small U-Net over 2x2 pixel blocks.

    Pictures [batch, 3, height, width] in [-1, 1] -> logits of things [batch, 1 + things, height / 2, width / 2] and of
    styles [batch, styles, height / 2, width / 2].
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
    """What one picture shows: thing -> its style, centre (x, y) in fractions, and boolean mask [height, width]."""

    styles: dict[str, str]
    centres: dict[str, tuple[float, float]]
    masks: dict[str, np.ndarray]

    @property
    def things(self) -> frozenset[str]:
        return frozenset(self.styles)


class Judge:
    """Looks at pictures.

    Args:
        network: a trained JudgeNetwork; `Judge.load()` reads the one that ships.
    """

    def __init__(self, network: JudgeNetwork) -> None:
        self.network = network.eval().float()

    @classmethod
    def load(cls, folder: str | Path | None = None) -> Judge:
        """Read the shipped weights, or those in `folder`."""
        from safetensors.torch import load_file

        path = Path(folder or Path(__file__).parent / "judge") / "judge.safetensors"
        if not path.is_file():
            raise FileNotFoundError(f"no judge at {path}: `make train-builtin` trains one")
        network = JudgeNetwork()
        network.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
        return cls(network)

    @torch.inference_mode()
    def look(self, pictures: list[Image.Image] | np.ndarray, batch: int = 64) -> list[Verdict]:
        """Judge PIL images of one size, or an array uint8 [n, height, width, 3]."""
        if not len(pictures):
            return []
        if isinstance(pictures, np.ndarray):
            array = pictures
        else:
            array = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
        verdicts: list[Verdict] = []
        for chunk in torch.from_numpy(np.ascontiguousarray(array)).split(batch):
            both = self.network(chunk.permute(0, 3, 1, 2).float() / 127.5 - 1)
            things, styles = (F.interpolate(x, size=chunk.shape[1:3], mode="bilinear") for x in both)
            verdicts += [_read(t, s) for t, s in zip(things, styles, strict=True)]
        return verdicts


def _read(things: torch.Tensor, styles: torch.Tensor) -> Verdict:
    labels = things.argmax(0)
    counts = labels.flatten().bincount(minlength=1 + len(NAMES))[1:]
    least = max(MIN_SHARE * labels.numel(), MIN_RELATIVE * int(counts.max()))
    styles_of: dict[str, str] = {}
    centres, masks = {}, {}
    for index in (counts >= least).nonzero().flatten().tolist():
        mask = labels == index + 1
        rows, columns = mask.nonzero(as_tuple=True)
        name = NAMES[index]
        styles_of[name] = STYLES[int(styles.log_softmax(0)[:, mask].mean(1).argmax())]
        height, width = labels.shape
        centres[name] = (float(columns.float().mean()) / width, float(rows.float().mean()) / height)
        masks[name] = mask.numpy()
    return Verdict(styles_of, centres, masks)
