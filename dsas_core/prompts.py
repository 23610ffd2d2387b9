"""Moved to `dsas_core.learning.prompts`; this name goes in 0.3.0."""

from .utils.deprecation import forward_to

__getattr__ = forward_to("dsas_core.learning.prompts", __name__)
