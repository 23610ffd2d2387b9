"""dsas_diffusion: concept sliders for diffusers pipelines that leave alone what has nothing to do with the concept."""

from dsas_core import Auto, Concept, DSASError

from .calibrate import calibrate
from .learn import Lesson, learn
from .load import load_pipeline
from .schedule import Schedule
from .sites import find_sites
from .steer import steer

__all__ = [
    "Auto",
    "Concept",
    "DSASError",
    "Lesson",
    "Schedule",
    "calibrate",
    "find_sites",
    "learn",
    "load_pipeline",
    "steer",
]
__version__ = "0.1.0"
