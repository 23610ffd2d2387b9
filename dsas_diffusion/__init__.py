"""dsas_diffusion: concept sliders for diffusers pipelines that leave alone what has nothing to do with the concept."""

from typing import TYPE_CHECKING, Any

from dsas_core import Auto, Concept, DSASError, shipped

from .drawing.grid import draw_grid
from .drawing.picture_files import read_settings
from .drawing.prompt_tags import parse_prompt
from .drawing.stars import stars
from .learning.calibrate import calibrate
from .learning.drafting import draft
from .learning.illustrate import illustrate
from .learning.learn import Lesson, learn
from .pipelines.adapter import find_sites
from .pipelines.load import load_pipeline
from .steering.processor import DSASAttnProcessor
from .steering.schedule import Schedule
from .steering.steer import detach, steer, steered

if TYPE_CHECKING:
    from .steering.callback import DSASCallback

__all__ = [
    "Auto",
    "Concept",
    "DSASAttnProcessor",
    "DSASCallback",
    "DSASError",
    "Lesson",
    "Schedule",
    "calibrate",
    "draft",
    "draw_grid",
    "detach",
    "find_sites",
    "illustrate",
    "learn",
    "load_pipeline",
    "parse_prompt",
    "read_settings",
    "shipped",
    "stars",
    "steer",
    "steered",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "DSASCallback":  # a class of diffusers', which takes seconds to import
        from .steering.callback import DSASCallback

        return DSASCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
