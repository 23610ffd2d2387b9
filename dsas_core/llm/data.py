"""Moved to `dsas_core.llm.learning.datasets`; this name goes in 0.3.0."""

from ..utils.deprecation import forward_to

__getattr__ = forward_to("dsas_core.llm.learning.datasets", __name__)
