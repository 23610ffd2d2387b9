"""What visitors order from the demo, and what they get: a picture without and with steering, or a strip."""

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
MAX_STEPS = 100
MAX_CHARACTERS = 2000


@dataclass(frozen=True)
class Order:
    """A picture that a visitor asks for.

    Args:
        prompt: what the picture should show.
        seed: of its noise.
        settings: steps, guidance and size.
        strengths: by concept name, in units.
        gate: "dsas" for each concept's own, "on" to steer everything, "off" for nothing.
        branch: of classifier-free guidance, as for `steer`.
        combine: of several concepts at one site, as for `steer`.
        schedule: strength over the timestep; None for a constant one.
        sites: where to steer, by `site_name`; none for wherever the concepts do.
        preserve: keep the rest of the picture as it is without steering, where the concepts have a place in it.
        negative: what the picture should not show; None for nothing.
        notes: on what was asked for otherwise, in sentences.

    Raises:
        DSASError: no prompt, or a prompt or number of steps beyond the limits.
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
    preserve: bool = False
    negative: str | None = None
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise PromptError("there is no prompt: write what the picture should show")
        if len(self.prompt) > MAX_CHARACTERS:
            raise PromptError(f"the prompt has {len(self.prompt)} characters: at most {MAX_CHARACTERS} are taken")
        if self.negative is not None and len(self.negative) > MAX_CHARACTERS:
            raise PromptError(f"the negative prompt has {len(self.negative)} characters: at most {MAX_CHARACTERS}")
        if not 1 <= self.settings.steps <= MAX_STEPS:
            raise DSASError(f"{self.settings.steps} steps: expected 1 to {MAX_STEPS}")


@dataclass(frozen=True)
class GateReading:
    """What one concept's gate read of a picture.

    Args:
        concept: its name.
        strength: in units.
        mean_h: mean h where it steers.
        highest_h: highest h there.
        words: of the prompt, at which it was open.
        absent: things among these words that the picture does not show without steering, as far as that is known.
        drawn: things among them that it does show.
    """

    concept: str
    strength: float
    mean_h: float
    highest_h: float
    words: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    drawn: tuple[str, ...] = ()


@dataclass(frozen=True)
class Drawing:
    """A picture without and with steering.

    Args:
        order: what was asked for.
        prompt_check: how the model reads the prompt.
        base: the picture without steering.
        base_seconds: how long it took.
        cached: whether it had been drawn before.
        steered: the picture with steering, once it is drawn.
        seconds: how long that took.
        moved: mean absolute difference of their pixels, of 255.
        gates: a reading for each concept.
        conflicts: pairs of concepts that undo one another.
        at: when it was drawn, which tells it from others alike.
        trace: of the steered picture.
        area: share of the picture that was steered, where the rest was kept; None where it was not.
        unplaced: concepts because of which the rest could not be kept: they have no place in pictures.
        ahead: whether it ships with the package: nothing was drawn here.
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
    conflicts: tuple[tuple[str, str], ...] = ()
    at: float = field(default_factory=time.time)
    trace: PictureTrace | None = None
    area: float | None = None
    unplaced: tuple[str, ...] = ()
    ahead: bool = False

    @property
    def untouched(self) -> bool:
        return self.moved <= UNCHANGED


@dataclass(frozen=True)
class Strip:
    """Pictures from a concept's lowest to its highest strength."""

    concept: str
    prompt: str
    strengths: tuple[float, ...]
    pictures: tuple[Image.Image, ...]

    def as_png(self) -> bytes:
        """All pictures side by side, labelled."""
        content = io.BytesIO()
        strips.strip([self.pictures], self.strengths, [self.prompt]).save(content, "PNG")
        return content.getvalue()

    def animated(self, suffix: str = ".webp") -> bytes:
        """All pictures forth and back in a loop, as a file of this kind."""
        return encode_animation(strips.animation(self.pictures, self.strengths, self.concept), suffix)
