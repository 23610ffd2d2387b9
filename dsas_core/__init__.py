"""dsas_core: probes that decide when, maps that decide how, and the steering that applies both to any torch model."""

from . import maps, methods, probes, prompts
from .concept.builtin import Shipped, shipped
from .concept.concept import Concept
from .concept.intervention import Intervention
from .errors import DSASError
from .learning.recipe import Recipe
from .model import sites
from .model.hooks import Call, visit
from .model.sites import Site
from .steering import interpolation
from .steering.steering import Steering
from .steering.strengths import Auto

__all__ = [
    "Auto",
    "Call",
    "Concept",
    "DSASError",
    "Intervention",
    "Recipe",
    "Shipped",
    "Site",
    "Steering",
    "interpolation",
    "maps",
    "methods",
    "probes",
    "prompts",
    "shipped",
    "sites",
    "visit",
]
