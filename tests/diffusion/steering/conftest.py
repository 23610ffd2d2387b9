"""Masks that are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dsas_diffusion.steering import preserve as passes


class Seeing:
    """A reader of masks that sees every concept in the left half of the pictures that it is told, or of all."""

    pictures: tuple[int, ...] | None = None
    localises = True

    def __init__(self, layout: Any, concept: Any) -> None: ...

    def __enter__(self) -> Seeing:
        return self

    def __exit__(self, *_: object) -> None: ...

    def masks(self, size: tuple[int, int], pictures: int) -> list[np.ndarray]:
        half = np.zeros(size[::-1], np.float32)
        half[:, : size[0] // 2] = 1
        return [half * (self.pictures is None or i in self.pictures) for i in range(pictures)]


@pytest.fixture
def seeing(monkeypatch: pytest.MonkeyPatch) -> type[Seeing]:
    made = type("SeeingHere", (Seeing,), {})
    monkeypatch.setattr(passes, "MaskReader", made)
    return made
