"""The judge of the built-in picture model: how it reads the maps of its network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dsas_core.errors import UnavailableError
from dsas_diffusion.builtin.judge import Judge, JudgeNetwork
from dsas_diffusion.builtin.scenes import NAMES, STYLES


class Painted(JudgeNetwork):
    """A judge network with given outputs: things and styles per 2x2 block."""

    def __init__(self, things: torch.Tensor, styles: torch.Tensor) -> None:
        super().__init__()
        self.things, self.styles = things, styles

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        def maps(labels: torch.Tensor, count: int) -> torch.Tensor:
            return 20.0 * torch.nn.functional.one_hot(labels, count).permute(2, 0, 1).float()[None]

        return maps(self.things, 1 + len(NAMES)), maps(self.styles, len(STYLES))


def test_the_judge_names_what_covers_enough() -> None:
    things, styles = torch.zeros(32, 32, dtype=torch.long), torch.zeros(32, 32, dtype=torch.long)
    things[2:14, 4:12] = 1 + NAMES.index("banana")
    styles[2:14, 4:12] = STYLES.index("blurred")
    things[18:28, 16:28] = 1 + NAMES.index("dog")
    things[0, 30:] = 1 + NAMES.index("cat")  # two specks are no cat
    (verdict,) = Judge(Painted(things, styles)).look(np.zeros((1, 64, 64, 3), np.uint8))
    assert verdict.styles == {"banana": "blurred", "dog": "sharp"}
    assert verdict.things == {"banana", "dog"}
    assert verdict.centres["banana"] == pytest.approx((0.25, 0.25), abs=0.02)
    assert verdict.masks["dog"].shape == (64, 64)
    assert verdict.masks["dog"].sum() == pytest.approx(4 * 10 * 12, rel=0.15)


def test_the_judge_of_nothing() -> None:
    nothing = torch.zeros(32, 32, dtype=torch.long)
    judge = Judge(Painted(nothing, nothing))
    assert judge.look([]) == []
    (verdict,) = judge.look(np.zeros((1, 64, 64, 3), np.uint8))
    assert verdict.things == frozenset()


def test_the_network_of_the_judge_sees_half_the_size() -> None:
    things, styles = JudgeNetwork()(torch.zeros(2, 3, 64, 48))
    assert things.shape == (2, 1 + len(NAMES), 32, 24)
    assert styles.shape == (2, len(STYLES), 32, 24)


def test_a_judge_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="make train-builtin"):
        Judge.load(tmp_path)
