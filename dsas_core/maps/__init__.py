"""Maps: HOW an activation is moved. `apply(x, strength) -> x'`, same shape; strength 0 gives x itself."""

from .affine import AffineMap
from .base import Map
from .identity import IdentityMap
from .projection import ProjectionMap, TurnMap
from .stiefel import StiefelMap
from .support import MeanShiftMap, SupportMap

__all__ = ["AffineMap", "IdentityMap", "Map", "MeanShiftMap", "ProjectionMap", "StiefelMap", "SupportMap", "TurnMap"]
