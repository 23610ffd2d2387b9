"""How maps and gates are trained together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from ...errors import DSASError, quote

#: optimiser -> its rate where none is given
OPTIMISERS = {"adamw": 0.02, "sgd": 0.1}


@dataclass(frozen=True)
class TrainingSettings:
    """How long, how fast, and on how much at once maps and gates are trained.

    Args:
        steps: of the optimiser, from 1 up.
        optimiser: "adamw", or "sgd" with momentum.
        rate: first step size, which falls to 0 by half a cosine; in units of the rows (`methods.training.parts`). None
            for that of the optimiser.
        batch: source prompts a step, at most, and as many controls; target prompts are read once, all of them.
        moments: of pictures, timesteps among those that are drawn with at which the denoiser is trained, spread evenly;
            each step has one of them.
        checks: how often the loss of held-out prompts is measured; the parameters of the lowest are kept.
        patience: training ends early behind so many checks without a lower one.
        checkpointing: whether activations are computed again in the backward pass, which saves memory and takes about a
            third longer; None for where memory would not hold them.

    Raises:
        DSASError: a value that a setting does not take.

    Example:
        >>> TrainingSettings(optimiser="sgd").first_rate
        0.1
    """

    steps: int = 300
    optimiser: str = "adamw"
    rate: float | None = None
    batch: int = 32
    moments: int = 4
    checks: int = 20
    patience: int = 6
    checkpointing: bool | None = None

    def __post_init__(self) -> None:
        for name, most in (
            ("steps", 10**7),
            ("batch", 10**5),
            ("moments", 1000),
            ("checks", 10**4),
            ("patience", 10**4),
        ):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise DSASError(f"training {name} {quote(value)}: expected a whole number from 1 to {most}")
        if self.optimiser not in OPTIMISERS:
            raise DSASError(f"training optimiser {quote(self.optimiser)}: expected {' or '.join(OPTIMISERS)}")
        if self.rate is not None and not (type(self.rate) in (int, float) and 0 < self.rate <= 100):
            raise DSASError(f"training rate {quote(self.rate)}: expected a number above 0, up to 100")
        if self.checkpointing not in (None, True, False):
            raise DSASError(f"training checkpointing {quote(self.checkpointing)}: expected true, false or null")

    @property
    def first_rate(self) -> float:
        """The rate of the first step."""
        return OPTIMISERS[self.optimiser] if self.rate is None else float(self.rate)

    @property
    def check_every(self) -> int:
        """Steps between two checks."""
        return max(1, self.steps // self.checks)


def training_settings(given: object) -> TrainingSettings:
    """Settings by name, the others by default.

    Raises:
        DSASError: an unknown name, or a value that a setting does not take.

    Example:
        >>> training_settings({"steps": 10}).check_every
        1
    """
    names = [field.name for field in fields(TrainingSettings)]
    if not isinstance(given, Mapping) or not set(given) <= set(names):
        raise DSASError(f"training {quote(given)}: expected settings by name, of {', '.join(names)}")
    return TrainingSettings(**given)
