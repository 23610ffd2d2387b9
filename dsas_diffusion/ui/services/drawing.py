"""What visitors ask the demo to draw, and what they get: an order, a picture without and with steering, a strip."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image

from dsas_core.errors import DSASError, PromptError

from ...generation import strips
from ...generation.animation import encode_animation
from ...generation.compare import UNCHANGED
from ...generation.settings import Settings
from ...pipelines.prompt_check import PromptCheck
from ...steering.schedule import Schedule
from ...steering.trace import PictureTrace

#: limits of what one picture may cost
MOST_STEPS = 100
MOST_CHARACTERS = 2000


@dataclass(frozen=True)
class Order:
    """A picture that somebody asks for.

    Args:
        prompt, seed, settings: what to draw. strengths: by concept name, in units.
        gate: "dsas" is each concept's own, "on" steers everything, "off" nothing.
        branch, combine, schedule: as of `steer`. sites: by `site_name`, where to steer; none for all.
    """

    prompt: str
    seed: int
    settings: Settings
    strengths: Mapping[str, float] = field(default_factory=dict)
    gate: str = "dsas"
    branch: str = "conditional"
    combine: str = "sum"
    schedule: Schedule | None = None
    sites: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise PromptError("there is no prompt: write what the picture should show")
        if len(self.prompt) > MOST_CHARACTERS:
            raise PromptError(f"the prompt has {len(self.prompt)} characters: at most {MOST_CHARACTERS} are taken")
        if not 1 <= self.settings.steps <= MOST_STEPS:
            raise DSASError(f"{self.settings.steps} steps: expected 1 to {MOST_STEPS}")


@dataclass(frozen=True)
class GateReading:
    """What one concept's gate read of a picture: mean and highest h where it steers, and words at which it opened."""

    concept: str
    strength: float
    mean_h: float
    highest_h: float
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Drawing:
    """A picture without and with steering, and how its prompt is read.

    `seconds` are of the steered picture, `base_seconds` of the other; `cached` says whether that was there already.
    `moved` is the mean absolute difference of their pixels, of 255. `at` tells a drawing from one that is alike.
    """

    order: Order
    prompt_check: PromptCheck
    base: Image.Image
    base_seconds: float
    cached: bool
    steered: Image.Image | None = None
    seconds: float = 0.0
    moved: float = 0.0
    gates: tuple[GateReading, ...] = ()
    opposed: tuple[tuple[str, str], ...] = ()
    at: float = field(default_factory=time.time)
    trace: PictureTrace | None = None

    @property
    def untouched(self) -> bool:
        return self.moved <= UNCHANGED


@dataclass(frozen=True)
class Strip:
    """Pictures from a concept's low to its high end."""

    concept: str
    prompt: str
    strengths: tuple[float, ...]
    pictures: tuple[Image.Image, ...]

    def as_png(self) -> bytes:
        """All side by side, labelled."""
        content = io.BytesIO()
        strips.strip([self.pictures], self.strengths, [self.prompt]).save(content, "PNG")
        return content.getvalue()

    def animated(self, suffix: str = ".webp") -> bytes:
        """Forth and back in a loop."""
        return encode_animation(strips.animation(self.pictures, self.strengths, self.concept), suffix)
