"""Maps: HOW an activation is moved. `apply(x, strength) -> x'`, same shape; strength 0 gives x itself."""

from .affine import AffineMap
from .base import Map
from .flow import FlowMap
from .identity import IdentityMap
from .projection import ProjectionMap, TurnMap
from .running import RunningMap
from .stiefel import StiefelMap
from .support import MeanShiftMap, SupportMap
from .two_way import TwoWayMap

__all__ = [
    "AffineMap",
    "FlowMap",
    "IdentityMap",
    "Map",
    "MeanShiftMap",
    "ProjectionMap",
    "RunningMap",
    "StiefelMap",
    "SupportMap",
    "TurnMap",
    "TwoWayMap",
]
