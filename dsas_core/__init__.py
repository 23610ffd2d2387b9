"""dsas_core: probes that say when, maps that say how, and the engine that applies them to any torch model."""

from . import interpolation, maps, methods, probes, prompts, sites
from .concept import Concept, Intervention
from .errors import DSASError
from .hooks import Call, visit
from .recipe import Recipe
from .shipped import Shipped, shipped
from .sites import Site
from .steering import Steering
from .strengths import Auto

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
