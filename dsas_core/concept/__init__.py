"""The concept: the artifact of learning, with its evidence, its file format, its card and its place on the Hub."""

from .concept import Concept
from .intervention import Intervention
from .samples import Samples

__all__ = ["Concept", "Intervention", "Samples"]
